"""How the documentation reads: each page's median and longest sentence, and notation before an example.

    python -m scripts.check.readability             # the table, the longest sentences first
    python -m scripts.check.readability --check     # exits 1 where a page is over the bar
    python -m scripts.check.readability model.md    # the sentences of a page that are over 25 words

Generated pages and results are left out. A sentence of a list counts; headings, tables and code do not.
"""

from __future__ import annotations

import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
MEDIAN, LONG, LONGEST = 20, 25, 45  # words: a page's median is below; listed as long; the most of a sentence
SKIPPED = ("reference", "results", "_build")
EXAMPLE = re.compile(r"^```(?!\{)|^!\[|^\||^<div", re.M)  # a command, a snippet, a picture, a table
NOTATION = re.compile(r"\$[^$\n]+\$|^\$\$", re.M)


@dataclass(frozen=True)
class Reading:
    """A page in numbers: its sentences, their median, how many are long, and notation before an example."""

    name: str
    sentences: tuple[str, ...]
    notation_first: bool

    @property
    def median(self) -> float:
        return statistics.median(map(words, self.sentences)) if self.sentences else 0.0

    @property
    def long(self) -> list[str]:
        return [one for one in self.sentences if words(one) > LONG]

    @property
    def longest(self) -> int:
        return max(map(words, self.sentences), default=0)

    @property
    def is_plain(self) -> bool:
        return self.median < MEDIAN and self.longest <= LONGEST and not self.notation_first


def words(sentence: str) -> int:
    """The words of a sentence; a piece of code is one."""
    return len(re.sub(r"`[^`]*`|\$[^$]*\$", "code", sentence).split())


def sentences(text: str) -> list[str]:
    """The sentences of a page's prose and lists, of more than three words."""
    text = re.sub(r"^(```|:::).*?^\1[^\n]*$|^\$\$.*?\$\$|<!--.*?-->", "", text, flags=re.M | re.S)
    text = re.sub(r"^(#|\||<).*$", "\n", text, flags=re.M)  # headings, tables, HTML
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text)
    blocks = [" ".join(re.sub(r"^\s*(?:[-*]|\d+\.) ", "", block).split()) for block in blocks]
    found = []
    for block in blocks:
        parts = re.split(r"(?<=[.?!])[*_\"”)]*\s+(?=[A-Z`*\[$“\"(])", block)
        found += [part for part in parts if words(part) > 3]
    return found


def read(path: Path) -> Reading:
    """A page as it reads."""
    text = path.read_text("utf-8")
    example, notation = EXAMPLE.search(text), NOTATION.search(re.sub(r"`[^`\n]*`", "", text))
    first = notation is not None and (example is None or _line(text, example) > _symbol(text))
    return Reading(str(path.relative_to(DOCS)), tuple(sentences(text)), first)


def _line(text: str, found: re.Match[str]) -> int:
    return text.count("\n", 0, found.start())


def _symbol(text: str) -> int:
    """The line of the first notation that is no code."""
    for number, line in enumerate(text.splitlines()):
        if re.search(r"\$[^$\n]+\$|^\$\$", re.sub(r"`[^`]*`", "", line)):
            return number
    return 1 << 30


def pages() -> list[Reading]:
    """Every page that is written by hand."""
    found = [path for path in sorted(DOCS.rglob("*.md")) if path.relative_to(DOCS).parts[0] not in SKIPPED]
    return [read(path) for path in found]


def main(arguments: list[str]) -> int:
    """Print the table, or a page's long sentences."""
    found = pages()
    names = [one for one in arguments if not one.startswith("--")]
    if names:
        for page in found:
            for sentence in page.long if page.name in names else ():
                print(f"{words(sentence):>3}  {sentence}")
        return 0
    print(f"{'page':<40}{'sentences':>10}{'median':>8}{f'over {LONG}':>9}{'longest':>9}  notation first")
    for page in sorted(found, key=lambda one: (-one.median, one.name)):
        counts = f"{len(page.sentences):>10}{page.median:>8.1f}{len(page.long):>9}{page.longest:>9}"
        print(f"{page.name:<40}{counts}  {'yes' if page.notation_first else ''}")
    late = [page.name for page in found if not page.is_plain]
    print(f"{len(found) - len(late)} of {len(found)} pages are within the bar")
    return int("--check" in arguments and bool(late))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
