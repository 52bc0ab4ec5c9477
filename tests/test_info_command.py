"""`cutaway info`: a model's card agrees with the model itself, and needs no torch."""

import json
import subprocess
import sys

import pytest

import cutaway
from cutaway import cli
from tests import inputs


def test_the_card_is_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    path = inputs.path("smollm2")
    assert cli.main(["info", str(path), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    lm = cutaway.load(path)
    assert card["parameters"] == sum(p.numel() for p in lm.model.parameters())
    assert (card["layers"], card["vocabulary"], card["context"]) == (30, lm.config.vocab, lm.config.context)
    assert card["tokens"] == len(lm.tokenizer) and card["chat_template"] is True
    assert sum(card["weight_types"].values()) == card["parameters"]
    assert 0.9 * path.stat().st_size < card["weight_bytes"] < path.stat().st_size
    runtime = cutaway.load(path, engine="runtime").engine
    assert card["kv_cache_bytes_per_token"] * runtime.page == runtime.page_bytes


def test_it_reads_for_people_without_torch() -> None:
    code = "import sys; from cutaway.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "info", str(inputs.path("smollm2"))]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "30 layers of width 576, 9 query and 3 key-value heads of 64, MLP width 1536" in printed
    assert "134,515,008" in printed and printed.endswith("False\n")
