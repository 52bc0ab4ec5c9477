"""Manual pages, as a wheel has them: one for each verb, with what the page of options says, in roff."""

import importlib.util
import re
from pathlib import Path

from cutaway.cli import VERBS

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "docs" / "reference" / "cli.md"


def made(text: str) -> dict[str, str]:
    """The pages of a text, by the build's own module."""
    spec = importlib.util.spec_from_file_location("man_pages", ROOT / "build_backend" / "man_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages(text, "9.9")


def test_each_verb_and_option_has_its_place() -> None:
    text = SOURCE.read_text("utf-8")
    found = made(text)
    listed = {verb for verbs in VERBS.values() for verb in verbs if f"### {verb}\n" in text}
    assert found.keys() == {"cutaway.1", *(f"cutaway-{verb}.1" for verb in listed)} and len(listed) > 25
    whole = "".join(found.values())
    for option in re.findall(r"^- `(--[\w-]+)", text, re.M):
        assert option.replace("-", "\\-") in whole, option
    assert found["cutaway-pull.1"].startswith('.TH CUTAWAY-PULL 1 "" "cutaway 9.9"\n.SH NAME\n')
    assert ".SH TOKENIZER COMPARE\n" in found["cutaway-tokenizer.1"]


def test_what_roff_reads_is_escaped() -> None:
    text = "# The command line\n\nAll.\n\n## On files\n\n### pull\n\n.sp is text, and \\n too.\n\n"
    page = made(f"{text}- `--a-b`: See [it](x.md).\n")["cutaway-pull.1"]
    assert "\\&.sp is text, and \\en too." in page and "\\fB\\-\\-a\\-b\\fR\nSee it.\n" in page
