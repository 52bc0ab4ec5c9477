"""Manual pages out of docs/reference/cli.md: cutaway(1), and cutaway-VERB(1) with its own verbs below it.

    python build_backend/man_pages.py FOLDER     # the build runs it (CMakeLists.txt)

That page is made from the parser and held to it by a test, so these say what `--help` says.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def pages(text: str, version: str) -> dict[str, str]:
    """The pages by their file names."""
    sections = re.split(r"^### ", text, flags=re.M)[1:]
    verbs: dict[str, list[str]] = {}
    for section in sections:
        verbs.setdefault(section.split(maxsplit=1)[0], []).append(section)
    intro = re.split(r"^## ", text, maxsplit=1, flags=re.M)[0].partition("\n# ")[2].partition("\n")[2]
    listed = "".join(f".TP\n\\fB{verb}\\fR\n{_summary(parts[0])}\n" for verb, parts in verbs.items())
    seen = ", ".join(f"\\fBcutaway\\-{verb}\\fR(1)" for verb in verbs)
    own = _head("cutaway", version) + ".SH NAME\ncutaway \\- a large language model with its side open\n"
    own += f".SH SYNOPSIS\n\\fBcutaway\\fR VERB ...\n.SH DESCRIPTION\n{_paragraphs(intro)}"
    made = {"cutaway.1": f"{own}.SH VERBS\n{listed}.SH SEE ALSO\n{seen}\n"}
    for verb, parts in verbs.items():
        page = _head(f"cutaway-{verb}", version)
        page += f".SH NAME\ncutaway\\-{verb} \\- {_summary(parts[0])}\n"
        for part in parts:
            name, _, body = part.partition("\n")
            page += f".SH {'DESCRIPTION' if part is parts[0] else _plain(name).upper()}\n{_paragraphs(body)}"
        made[f"cutaway-{verb}.1"] = f"{page}.SH SEE ALSO\n\\fBcutaway\\fR(1)\n"
    return made


def _head(name: str, version: str) -> str:
    return f'.TH {name.upper()} 1 "" "cutaway {version}"\n'


def _summary(section: str) -> str:
    """The first sentence of a verb's own text."""
    body = section.partition("\n")[2].strip()
    return _plain(body.partition("\n\n")[0].rstrip("."))


def _paragraphs(body: str) -> str:
    """Markdown's paragraphs, commands and lists as roff."""
    made, code = [], False
    for line in re.split(r"^## ", body, maxsplit=1, flags=re.M)[0].splitlines():
        if line.startswith("```"):
            made.append(".fi\n.RE" if code else ".PP\n.RS 4\n.nf")
            code = not code
        elif code:
            made.append(_plain(line))
        elif option := re.match(r"- `([^`]+)`: (.*)", line):
            made.append(f".TP\n\\fB{_plain(option[1])}\\fR\n{_plain(option[2])}")
        elif not line.strip():
            made.append(".PP")
        else:
            made.append(_plain(line))
    text = "\n".join(made) + "\n"
    text = re.sub(r"(?:\.PP\n)+(?=\.(?:TP|SH|PP)|\Z)", "", text)
    return re.sub(r"\A(?:\.PP\n)+", "", text)


def _plain(text: str) -> str:
    """Text without Markdown's marks, with what roff reads as its own escaped."""
    text = re.sub(r"`([^`]*)`|\[([^\]]+)\]\([^)]+\)", lambda found: found[1] or found[2] or "", text)
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^(?=[.'])", r"\\&", text)


def main(folder: str) -> None:
    """Write all pages into a folder."""
    stated = re.search(r'__version__ = "([^"]+)"', (ROOT / "cutaway" / "version.py").read_text("utf-8"))
    assert stated is not None
    text = (ROOT / "docs" / "reference" / "cli.md").read_text("utf-8")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, page in pages(text, stated[1]).items():
        Path(folder, name).write_text(page, "utf-8", newline="\n")


if __name__ == "__main__":
    main(sys.argv[1])
