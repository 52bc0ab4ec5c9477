"""Each chapter has all the parts that the course promises, in the order in which they teach."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "docs/course").glob("[0-9]*.md"))
MINUTES_A_WORD, MINUTES_A_LINE, NEAR = 1 / 60, 1 / 4, 7  # of prose, and of code; how near the stated time is


def missing(text: str, number: int) -> list[str]:
    """The parts that a chapter lacks."""
    code = re.findall(r"^```\w+\n(.*?)^```", text, re.M | re.S)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    figures = re.findall(rf"!\[[^\]]{{30,}}\]\(figures/{number}-[\w-]+\.svg\)", text)
    picture = min((text.index(one) for one in figures), default=len(text))
    notation = re.search(
        r"\$[^$\n]+\$|^\$\$", re.sub(r"`[^`\n]*`", lambda one: "x" * len(one[0]), text), re.M
    )
    exercises = text.partition("## Exercises\n")[2]
    read = text.partition("## Read on\n")[2]
    times = re.search(r"\*Reading: (\d+) minutes\. Exercises: .+\. Machine: .+\.\*", text)
    lines = len(re.findall(r"^(?:>>>|\.\.\.) ", text, re.M))
    needed = len(prose.split()) * MINUTES_A_WORD + lines * MINUTES_A_LINE
    ten = re.search(r"^## Ten lines that .*?\n```pycon\n(.*?)^```", text, re.M | re.S)
    parts = {
        "question": re.search(r"^\*\*The question\.\*\* .+\?$", text, re.M),
        "guess": "\n## A guess\n" in text,
        "idea": "\n## The idea" in text,
        "figure": figures,
        "equation after the picture": notation is not None and notation.start() > picture,
        "ten lines of code": ten and 5 <= len(re.findall(r"^(?:>>>|\.\.\.) ", ten[1], re.M)) <= 17,
        "SmolLM2 itself": any("smollm2" in block for block in code),
        "where it fails": "\n## Where it fails\n- " in text,
        "three exercises or more": len(re.findall(r"^\| \d+\.\d+ \| ", exercises, re.M)) >= 3,
        "reading by id": re.search(r"\b\d{4}\.\d{5}\b", read),
        "times": times and abs(int(times[1]) - needed) < NEAR,
        "views of the page": re.search(
            rf'^    "{number}": \("', (ROOT / "docs/conf.py").read_text("utf-8"), re.M
        ),
    }
    return [name for name, found in parts.items() if not found]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_every_part(path: Path) -> None:
    text = path.read_text("utf-8")
    assert missing(text, int(path.name[0])) == []
    for name in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (path.parent / name).is_file()


def test_a_part_that_is_missing_is_named() -> None:
    text = CHAPTERS[5].read_text("utf-8")
    assert missing(text.replace("## A guess", "## A gues"), 6) == ["guess"]
    assert missing(text.replace("Reading: 20", "Reading: 60"), 6) == ["times"]
    first, _, rest = text.partition("## A guess")
    assert missing(first + "With $x$.\n\n## A guess" + rest, 6) == ["equation after the picture"]
    assert missing(text.replace("figures/6", "figures/7"), 6) == ["figure", "equation after the picture"]
