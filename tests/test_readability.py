"""Every page of docs/ is within the bar of scripts/check/readability.py."""

from pathlib import Path

import pytest

from scripts.check import readability


@pytest.mark.parametrize("page", readability.pages(), ids=lambda page: page.name)
def test_the_page_reads_well(page: readability.Reading) -> None:
    assert page.median < readability.MEDIAN, f"python -m scripts.check.readability {page.name}"
    assert page.longest <= readability.LONGEST, f"python -m scripts.check.readability {page.name}"
    assert not page.notation_first, "a command, a snippet, a table or a picture comes before notation"


def test_sentences_are_those_of_prose_and_lists() -> None:
    text = "# A title of four words\nOne two three `a b c` four. Five six seven\neight.\n\n"
    text += "- A point of a list.\n"
    text += "\n| a cell of a table |\n|---|\n\n```sh\nsome code that is no prose\n```\n"
    found = readability.sentences(text)
    assert found == ["One two three `a b c` four.", "Five six seven eight.", "A point of a list."]
    assert [readability.words(one) for one in found] == [5, 4, 5]


def test_a_sentence_that_is_too_long_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readability, "DOCS", tmp_path)
    for count in (readability.LONGEST, readability.LONGEST + 1):
        (tmp_path / "a.md").write_text(
            "A short one is here. A short one is there. Word " + "word " * (count - 2) + "end."
        )
        found = readability.read(tmp_path / "a.md")
        assert found.longest == count and found.is_plain is (count == readability.LONGEST)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Text.\n\n$$ x $$\n\n```sh\na\n```\n", True),
        ("```sh\na\n```\n\nWith $x$.\n", False),
        ("With $x$.\n", True),
        ("`$HOME` and `$PATH`\n", False),
    ],
)
def test_notation_before_an_example_is_found(
    text: str, first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readability, "DOCS", tmp_path)
    (tmp_path / "a.md").write_text(text)
    assert readability.read(tmp_path / "a.md").notation_first is first
