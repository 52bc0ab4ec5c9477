"""Published configs load as they are and give transformers' logits; the others are refused with their reason.

One config of each family and set of keys; ``python -m scripts.check.published_configs`` judges them all.
"""

import json
import re
from pathlib import Path

import pytest

import cutaway
from cutaway import cli
from cutaway.weights import described
from tests.published import collection
from tests.published.collection import Entry
from tests.small import model_file

ENTRIES = collection.entries()
FIRST = {
    (entry.config.get("model_type"), *sorted(collection.text_of(entry.config))): entry
    for entry in ENTRIES[::-1]
}
LOADED = [entry for entry in FIRST.values() if entry.refused is None]


def test_at_least_nineteen_of_twenty_load() -> None:
    assert len(ENTRIES) >= 150 and len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    assert all(entry.source for entry in ENTRIES)
    assert sum(entry.refused is None for entry in ENTRIES) >= 0.95 * len(ENTRIES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", sorted(FIRST.values()), ids=lambda entry: entry.name)
def test_as_published(entry: Entry, tmp_path: Path) -> None:
    config = collection.small(collection.text_of(entry.config))
    if entry.refused is not None:
        (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
        assert re.search(entry.refused, described.read_description(tmp_path).refused)
        return
    verdict = collection.judged(config, tmp_path / "model")
    assert verdict.agrees, verdict.refused or f"{verdict.distance:.2g} where {verdict.within:.2g} is rounding"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", sorted(LOADED)[::8], ids=lambda entry: entry.name)
def test_info_and_audit_need_no_weights(
    entry: Entry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the config as it is published, in its own size; its path is enough too."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(entry.config), "utf-8")
    assert cli.main(["info", str(tmp_path), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["parameters"] > 1e6 and card["layers"] > 1 and card["weight_bytes"] == 0
    assert card["not_loaded"] == "there are no weights beside its config" and card["family"]
    assert bool(card["quantized"]) == ("quantization_config" in entry.config)
    assert cli.main(["info", str(path)]) == 0 and "none here" in capsys.readouterr().out
    assert cli.main(["audit", str(tmp_path), "--json", "--fail-on", "high"]) == 0
    found = [issue["what"] for issue in json.loads(capsys.readouterr().out)["findings"]]
    assert any(str(entry.config["model_type"]) in what for what in found)


def test_a_model_that_is_not_loaded_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for entry in ENTRIES:
        if entry.refused is None:
            continue
        (tmp_path / "config.json").write_text(json.dumps(entry.config), "utf-8")
        assert cli.main(["info", str(tmp_path), "--json"]) == 0
        card = json.loads(capsys.readouterr().out)
        assert re.search(entry.refused, card["not_loaded"]) and card["layers"] > 1, entry.name
        cli.main(["audit", str(tmp_path), "--json"])
        found = json.loads(capsys.readouterr().out)["findings"]
        assert any(re.search(entry.refused, issue["what"]) for issue in found), entry.name
        assert cli.main(["generate", "x", "--model", str(tmp_path)]) == 2


def test_sizes_are_made_small_and_nothing_else_is_changed() -> None:
    for entry in ENTRIES:
        text = collection.text_of(entry.config)
        small = collection.small(text)
        assert small.keys() == text.keys()
        words = {key: value for key, value in text.items() if isinstance(value, bool | str | float | None)}
        pattern = {"hybrid_override_pattern"}
        assert all(small[key] == value for key, value in words.items() if key not in pattern), entry.name
        assert re.search(r"\w", entry.name)


def test_the_config_of_a_folder_with_weights_is_that_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cutaway.load(model_file(tmp_path / "n.gguf")).save(tmp_path / "model", format="safetensors")
    cards = []
    for path in (tmp_path / "model", tmp_path / "model" / "config.json"):
        assert cli.main(["info", str(path), "--json"]) == 0
        cards.append(json.loads(capsys.readouterr().out))
        assert cli.main(["audit", str(path), "--json"]) == 0
        assert "not loaded" not in capsys.readouterr().out
    assert cards[0] | {"model": cards[1]["model"], "path": cards[1]["path"]} == cards[1]
