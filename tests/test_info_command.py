"""`cutaway info`: a model's card agrees with the model itself, and needs no torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import Mamba2Config

import cutaway
from cutaway import cli
from cutaway.weights import adapters, load
from tests import inputs
from tests.small import model_file


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


def test_recurrent_states_are_counted_beside_the_kv_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Mamba2Config(
        num_hidden_layers=2, hidden_size=32, num_heads=8, head_dim=8, state_size=16, n_groups=2, vocab_size=64
    )
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert cli.main(["info", str(tmp_path), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    state = 2 * 4 * (8 * 8 * 16 + (64 + 2 * 2 * 16) * 3)  # float32: the heads' matrices, and a convolution
    assert (card["kv_cache_bytes_per_token"], card["recurrent_state_bytes"]) == (0, state)
    assert card["memory_bytes"]["whole context"] == card["memory_bytes"]["empty"] + state
    assert cli.main(["info", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "KV cache" not in shown and "of the recurrent layers, however long the text is" in shown


def test_it_reads_for_people_without_torch() -> None:
    code = "import sys; from cutaway.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "info", str(inputs.path("smollm2"))]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "30 layers of width 576, 9 query and 3 key-value heads of 64, MLP width 1536" in printed
    assert "134,515,008" in printed and printed.endswith("False\n")


def test_an_adapters_card_names_it_beside_its_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights are the base's as they stay: changes are not counted as floats that no file holds."""
    base, name = model_file(tmp_path / "n.gguf"), "blocks.0.mlp.up.weight"
    cutaway.load(base).save(tmp_path / "base.gguf", format="gguf", type="Q8_0")
    checkpoint = load.read_checkpoint(tmp_path / "base.gguf")
    rows, columns = checkpoint.tensors[name].shape
    pair = np.ones((3, columns), np.float32), np.ones((rows, 3), np.float32)
    adapters.write_adapter(
        tmp_path / "run", {name: adapters.LowRank(*pair, 1.0)}, checkpoint, str(tmp_path / "base.gguf")
    )
    cards = []
    for model in (tmp_path / "base.gguf", tmp_path / "run"):
        assert cli.main(["info", str(model), "--json"]) == 0
        cards.append(json.loads(capsys.readouterr().out))
    own, adapted = cards
    assert own["adapter"] is None and adapted["adapter"]["kind"] == "LoRA"
    assert adapted["adapter"]["ranks"] == [3] and adapted["adapter"]["base"] == str(tmp_path / "base.gguf")
    assert (adapted["weight_types"], adapted["weight_bytes"]) == (own["weight_types"], own["weight_bytes"])
    assert cli.main(["info", str(tmp_path / "run")]) == 0
    assert "LoRA of rank 3 on 1 matrices" in capsys.readouterr().out.replace("\n              ", " ")
