"""The field's words: old names of this project's own are not in its code, help or docs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OLD = re.compile(r"\b(nobody|somebody|told|tally|ticket|doors?|twins?)\b", re.I)
FIELD = ("told apart",)  # a phrase that means something else
ELSEWHERE = (
    "docs/results/",
    "cutaway/serve/",
    "cutaway/commands/serve.py",
    "cutaway/runtime/",
    "cutaway/train/",
    "docs/evaluation.md",
)


def files() -> list[Path]:
    found = [*ROOT.glob("cutaway/**/*.py"), *ROOT.glob("docs/**/*.md"), ROOT / "README.md"]
    return [path for path in found if not str(path.relative_to(ROOT)).startswith(ELSEWHERE)]


def old(text: str) -> list[str]:
    for phrase in FIELD:
        text = text.replace(phrase, "")
    return OLD.findall(text)


def test_an_old_word_is_found() -> None:
    assert old("Nobody was told") == ["Nobody", "told"] and old("told apart; another ticker") == []


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_old_word(path: Path) -> None:
    assert old(path.read_text("utf-8")) == []
