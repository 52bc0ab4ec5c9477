"""docs/reference is made from the code: each page is what its generator writes today."""

import doctest
from typing import Any

import pytest

from scripts.lib.reference import cli, http, python
from scripts.tables import reference


@pytest.mark.parametrize("name", reference.PAGES)
def test_the_page_is_current(name: str) -> None:
    written = (reference.FOLDER / name).read_text("utf-8")
    assert reference.PAGES[name]() == written, "run python -m scripts.tables.reference"


def test_the_page_of_verbs_has_what_a_parser_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that lags is found: a verb that went, and one whose option went."""
    monkeypatch.setattr(cli.cli, "VERBS", {"On files": {"pull": "Fetch.", "tokenizer": "Tokens."}})
    page = cli.page()
    assert "### tokenizer train\n" in page and "- `--min-frequency INT`: How often" in page
    assert "### convert" not in page


def test_bodies_and_their_fields_are_those_of_the_routes() -> None:
    schema = {
        "properties": {"a": {"type": "integer", "minimum": 1}, "b": {"enum": ["x|y"]}},
        "required": ["a"],
    }
    assert http._fields(schema).splitlines()[2:] == [
        "| `a` | integer (at least 1) | required |  |",
        r'| `b` | "x\|y" | `null` |  |',
    ]


def test_a_signature_has_no_address() -> None:
    def example(self: Any, text: "str | None", key=lambda x: x, done=doctest.testmod, *, where="a") -> "int":
        pass

    assert python._signature(example) == "(text: str | None, key=..., done=testmod, *, where='a') -> int"
