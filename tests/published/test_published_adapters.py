"""Published adapter_config.json files: each layout of a base once, beside PEFT."""

from pathlib import Path

import pytest

from tests.published import adapter_configs

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of PEFT, of keys that it has no more
]
ENTRIES = adapter_configs.entries()
LAYOUTS = {(entry.case, frozenset(entry.config)): entry for entry in reversed(ENTRIES)}
CHOSEN = ("wrapper/gemma4", "wrapper/qwen3_5", "t5", "gemma2", "nemotron", "llama-mha")
SOME = [next(entry for entry in LAYOUTS.values() if entry.case.startswith(start)) for start in CHOSEN]


@pytest.mark.parametrize("entry", SOME, ids=[entry.name for entry in SOME])
def test_a_published_config_is_read_as_peft_reads_it(entry: adapter_configs.Entry, tmp_path: Path) -> None:
    """All of them: `python -m scripts.check.adapter_matrix --published`."""
    assert adapter_configs.judged(entry, tmp_path).word == "equal"


def test_the_collection_states_where_it_is_from() -> None:
    assert len(ENTRIES) >= 40 and len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    assert all(entry.source.startswith("github.com/") and " at " in entry.source for entry in ENTRIES)
    refused = sum(entry.refused is not None for entry in ENTRIES)
    assert refused <= len(ENTRIES) // 20
