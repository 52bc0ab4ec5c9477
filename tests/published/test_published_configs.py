"""Published configs load as they are and give transformers' logits; the others are refused with their reason.

One config of each family and set of keys; ``python -m scripts.published_configs`` judges them all.
"""

import re
from pathlib import Path

import pytest

from cutaway.weights import described
from tests.published import collection
from tests.published.collection import Entry

ENTRIES = collection.entries()
FIRST = {
    (entry.config.get("model_type"), *sorted(collection.text_of(entry.config))): entry
    for entry in ENTRIES[::-1]
}


def test_at_least_nineteen_of_twenty_load() -> None:
    assert len(ENTRIES) >= 150 and len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    assert all(entry.source for entry in ENTRIES)
    assert sum(entry.refused is None for entry in ENTRIES) >= 0.95 * len(ENTRIES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", sorted(FIRST.values()), ids=lambda entry: entry.name)
def test_as_published(entry: Entry, tmp_path: Path) -> None:
    config = collection.small(collection.text_of(entry.config))
    if entry.refused is not None:
        (tmp_path / "config.json").write_text(collection.json.dumps(config), "utf-8")
        assert re.search(entry.refused, described.read(tmp_path).refused)
        return
    verdict = collection.judged(config, tmp_path / "model")
    assert verdict.agrees, verdict.refused or f"{verdict.distance:.2g} where {verdict.within:.2g} is rounding"


def test_sizes_are_made_small_and_nothing_else_is_changed() -> None:
    for entry in ENTRIES:
        text = collection.text_of(entry.config)
        small = collection.small(text)
        assert small.keys() == text.keys()
        words = {key: value for key, value in text.items() if isinstance(value, bool | str | float | None)}
        pattern = {"hybrid_override_pattern"}
        assert all(small[key] == value for key, value in words.items() if key not in pattern), entry.name
        assert re.search(r"\w", entry.name)
