"""The field's words: old names are not in code, comments, the page, tests, help or docs."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
OLD = re.compile(
    r"(?<![a-z])(nobody|somebody|whoever|told|said|lies|stands|turned|tally|tallies|ticket|doors?|twins?|slopes?)"
    r"(?![a-z])",
    re.I,
)
# Plain English, the field's own word, or text that a test reads.
HONEST = re.compile(r"stands for\b|ALiBi|opened the door|\"role\": \"nobody\"", re.I)
SLOPES = (
    "cutaway/position/alibi.py",
    "cutaway/position/bias.py",
    "cutaway/runtime/block_numbers.py",
)  # ALiBi's own term
SLOPES += ("docs/position.md", "cutaway/inspect/distance.py")
FILES = ("cutaway/**/*.py", "native/**/*.[chi]*", "cutaway/**/*.js", "cutaway/**/*.html", "docs/**/*.md")
ELSEWHERE = ("docs/results/", "cutaway/train/", "tests/test_vocabulary.py", "CHANGELOG.md")


def files() -> list[Path]:
    found = [path for pattern in (*FILES, "tests/**/*.py", "*.md") for path in ROOT.glob(pattern)]
    return [path for path in found if not str(path.relative_to(ROOT)).startswith(ELSEWHERE)]


def old(text: str, exceptions: re.Pattern[str] = HONEST) -> list[str]:
    return OLD.findall(exceptions.sub("", text))


def test_an_old_word_is_found() -> None:
    assert old("Nobody was told") == ["Nobody", "told"] and old("foretold; another ticker") == []
    assert old("turned_back = the_twins") == ["turned", "twins"] and old("A token stands for bytes") == []


def test_no_old_word() -> None:
    """One test for all files: each alone costs less than it takes to name it."""
    wrong = {}
    for path in files():
        name, found = str(path.relative_to(ROOT)), old(path.read_text("utf-8"))
        if name in SLOPES:
            found = [word for word in found if not word.lower().startswith("slope")]
        wrong |= {name: found} if found else {}
    assert wrong == {}
