"""A family is one file of the folder, found by its name, and short where it only renames weights."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cutaway import gguf
from cutaway.errors import UserError
from cutaway.quantization import formats
from cutaway.weights import families, load, rules, safetensors, save
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Tensors

RENAMED = '''"""Owl: llama's block under other names of weights and of two settings."""

from cutaway.weights import naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import Field

ALIASES = ("night-owl",)

FAMILY = llama.FAMILY.but(
    "owl",
    "OwlForCausalLM",
    architecture="night-owl",
    prefix="owl.",
    hf=(
        *naming.weights(("owl.words", "embedding"), ("owl.head", "head"), ("owl.last_norm", "norm")),
        *naming.weights(
            ("owl.{n}.norm_1", "blocks.{n}.attention_norm"),
            ("owl.{n}.norm_2", "blocks.{n}.mlp_norm"),
            ("owl.{n}.q", "blocks.{n}.attention.query"),
            ("owl.{n}.k", "blocks.{n}.attention.key"),
            ("owl.{n}.v", "blocks.{n}.attention.value"),
            ("owl.{n}.o", "blocks.{n}.attention.out"),
            ("owl.{n}.w1", "blocks.{n}.mlp.gate"),
            ("owl.{n}.w2", "blocks.{n}.mlp.down"),
            ("owl.{n}.w3", "blocks.{n}.mlp.up"),
        ),
    ),
    rows=rows.replaced(
        llama.FAMILY.rows,
        Field("width", "d_model", "embedding_length"),
        Field("heads", "n_heads", "attention.head_count"),
    ),
)
'''
CONFIG = {
    "model_type": "owl",
    "vocab_size": 40,
    "d_model": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "n_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture
def owl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> families.Family:
    """The family in a folder of its own, which joins those of the package."""
    home = tmp_path / "more"
    home.mkdir()
    (home / "owl.py").write_text(RENAMED)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(home)])
    monkeypatch.delitem(sys.modules, "cutaway.weights.families.owl", raising=False)
    return families.get("owl")


def test_a_family_that_renames_is_one_file_of_under_60_lines(owl: families.Family, tmp_path: Path) -> None:
    assert len(RENAMED.splitlines()) < 60
    config = owl.read(Fields(CONFIG, "config.json"))
    draw = np.random.default_rng(0)
    ours = Tensors(
        {
            name: formats.pack(draw.random(shape, np.float32), "F32")
            for name, shape in config.weights().items()
        }
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    safetensors.write(folder / "model.safetensors", dict(rules.save(owl.hf, config, ours)))
    checkpoint = load.read(folder)
    assert checkpoint.family == "owl" and checkpoint.config == config
    save.write(tmp_path / "model.gguf", Checkpoint(config, ours, "owl", tmp_path))
    assert gguf.read(tmp_path / "model.gguf").metadata["night-owl.embedding_length"] == 32
    again = load.read(tmp_path / "model.gguf")
    assert again.family == "owl" and again.config == config
    save.write(tmp_path / "back", again)
    assert "owl.1.w2.weight" in safetensors.read(tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["d_model"] == 32
    for name in ours:
        assert np.array_equal(again.tensors[name].data, ours[name].data)


def test_names_are_found_without_importing_the_families() -> None:
    program = (
        "import sys; from cutaway.weights import families; from cutaway.weights.fields import Fields;"
        "families.of_hf(Fields({'model_type': 'qwen3'}, 'config.json'));"
        "here = families.__name__ + '.';"
        "print(sorted(name.rpartition('.')[2] for name in sys.modules if name.startswith(here)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "['llama', 'qwen2', 'qwen3']"


@pytest.mark.parametrize(
    ("word", "name"),
    [
        *(("gemma3_text", "gemma3"), ("smollm", "llama"), ("mistral", "mistral"), ("gpt2", "gpt2")),
        *(("gemma4_text", "gemma4"), ("qwen3_5_text", "qwen3_5"), ("qwen3_5_moe_text", "qwen3_5_moe")),
        *(("gpt-sw3", "gpt2"), ("camembert", "roberta"), ("xlm-roberta", "roberta")),
    ],
)
def test_aliases(word: str, name: str) -> None:
    assert families.of_hf(Fields({"model_type": word}, "config.json")).name == name


def test_a_setting_that_no_row_reads_is_refused() -> None:
    data = {**CONFIG, "model_type": "llama", "hidden_size": 32, "num_attention_heads": 4}
    data |= {"d_model": 48}  # which would be harmless if it were 32 again
    with pytest.raises(UserError, match="'d_model' is 48, and llama models have no such setting here"):
        families.get("llama").read(Fields(data, "config.json"))
