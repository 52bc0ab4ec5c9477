"""Reading models: what is beside the weights, and what a stranger's config may try."""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway import gguf, native
from cutaway.attention import gqa, local, mha, mqa
from cutaway.errors import UserError, quoted
from cutaway.gguf import Packed
from cutaway.layers.config import MLP
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.position import rope
from cutaway.position.scaling import Factors, Linear, Llama3
from cutaway.quantization import formats
from cutaway.weights import decoders, family_registry, load, rules, safetensors, save
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.family import Only
from cutaway.weights.fields import Fields
from cutaway.weights.named_tensors import Tensors
from tests.small import model_file

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
LLAMA = family_registry.get("llama")
MIXTURE = {"llama.expert_count": 8, "llama.expert_used_count": 2}


def config(**own: Any) -> Decoder:
    """What a config.json with these entries describes."""
    data = CONFIG | own
    return family_registry.of_hf(Fields(data, "config.json")).read(Fields(data, "config.json"))


def weights(model: Decoder) -> Tensors:
    random = np.random.default_rng(0)
    made = {n: formats.pack(random.standard_normal(s, np.float32), "F32") for n, s in model.weights().items()}
    return Tensors(made)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small Hugging Face folder."""
    path = tmp_path / "model"
    path.mkdir()
    safetensors.write_safetensors(
        path / "model.safetensors", dict(rules.save(LLAMA.hf, config(), weights(config())))
    )
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


def edit(folder: Path, **own: Any) -> None:
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (CONFIG | own).items() if v is not ...}))


def write_gguf(path: Path, metadata: dict[str, object], model: Decoder | None = None) -> Path:
    model = model or config()
    tensors = dict(rules.save(LLAMA.gguf, model, weights(model)))
    words = {f"llama.{name}": value for name, value in LLAMA.write(model, gguf=True).items()}
    entries = {"general.architecture": "llama"} | words | metadata
    gguf.write(path, {name: value for name, value in entries.items() if value is not ...}, tensors)
    return path


# ---- what configs say --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kv_heads", "kind"), [(4, mha.Config), (2, gqa.Config), (1, mqa.Config)], ids=["mha", "gqa", "mqa"]
)
def test_heads_make_the_mechanism(kv_heads: int, kind: type) -> None:
    assert type(config(num_key_value_heads=kv_heads).blocks[0].attention) is kind


def test_an_absent_entry_means_what_the_family_means_by_it() -> None:
    """Not the same as null: Mistral's window is 4096 if the config does not say, and none if it says null."""
    assert decoders.window_of(config(model_type="mistral").blocks[0].attention) == 4096
    assert decoders.window_of(config(model_type="mistral", sliding_window=None).blocks[0].attention) is None
    assert isinstance(config(model_type="mistral", sliding_window=5).blocks[0].attention, local.Config)


def test_scalings_in_both_layouts() -> None:
    plain = {"factor": 4.0}
    llama3 = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    cases = [
        ("linear", plain, Linear(4.0)),
        ("llama3", llama3, Llama3(8.0, 1.0, 4.0, 32)),
        ("default", {}, None),
    ]
    for kind, entries, expected in cases:
        old = config(rope_theta=5e5, rope_scaling={"type": kind, **entries})
        new = config(rope_parameters={"rope_type": kind, "rope_theta": 5e5, **entries})
        assert old == new
        assert old.blocks[0].attention.position == rope.Config(8, 5e5, expected)


def test_divisors_in_gguf_are_recognised_or_kept(tmp_path: Path) -> None:
    scaling = {
        "type": "llama3",
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    known, odd = (
        config(head_dim=32, rope_theta=5e5, rope_scaling=scaling | {"low_freq_factor": low})
        for low in (1.0, 1.5)
    )
    for i, (model, kind) in enumerate([(known, Llama3), (odd, Factors)]):
        checkpoint = Checkpoint(model, weights(model), "llama", tmp_path)
        save.write_checkpoint(tmp_path / f"{i}.gguf", checkpoint)
        position = load.read_checkpoint(tmp_path / f"{i}.gguf").config.blocks[0].attention.position
        ours = model.blocks[0].attention.position
        assert position and ours and isinstance(position.scaling, kind)
        assert np.allclose(position.frequencies(), ours.frequencies(), rtol=1e-6)


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"model_type": "mega9"}, "model_type is 'mega9', not one of "),
        ({"model_type": None}, "model_type"),
        ({"model_type": 7}, "model_type should be a text, but is 7"),
        ({"hidden_act": "xielu"}, "hidden_act is 'xielu'"),
        ({"rope_scaling": {"type": "spiral", "factor": 4.0}}, "rope_scaling.type is 'spiral'"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor is missing"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "short_factor should be a list of positive"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial rotary position embedding"),
        ({"rope_parameters": [1]}, "should hold entries by name"),
        ({"quantization_config": {"quant_method": "aqlm"}}, "quantized by 'aqlm'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config.bits is missing"),
        ({"num_hidden_layers": 2**40}, "between 1 and 10000, but is 1099511627776"),
        ({"num_hidden_layers": 0}, "between 1 and 10000, but is 0"),
        ({"num_hidden_layers": 2.0}, "should be a whole number, but is 2.0"),
        ({"num_hidden_layers": "2"}, "should be a whole number, but is '2'"),
        ({"num_hidden_layers": True}, "should be a whole number, but is True"),
        ({"num_hidden_layers": ...}, "num_hidden_layers is missing"),
        ({"hidden_size": -32}, "hidden_size should be between"),
        ({"hidden_size": 2**62}, "hidden_size should be between"),
        ({"num_attention_heads": 5}, "32 cannot be shared evenly by 5 heads"),
        ({"num_key_value_heads": 3}, "kv_heads is 3; it must divide heads"),
        ({"head_dim": 7}, "must be even"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps should be above"),
        ({"rms_norm_eps": -1}, "rms_norm_eps should be above"),
        ({"rope_theta": float("inf")}, "rope_theta should be above"),
        ({"tie_word_embeddings": "yes"}, "should be true or false"),
        ({"vocab_size": 41}, r"has the shape \(40, 32\), where the config asks for \(41, 32\)"),
        ({"num_hidden_layers": 3}, "layers.2.* is missing"),
        ({"num_hidden_layers": 1}, "layers.1.* has no place"),
        ({"num_hidden_layers": 9999}, "9999 layers, but there are 21 weights"),
        ({"vocab_size": 2**30, "hidden_size": 2**30}, "where the config asks for"),
    ],
)
def test_configs_that_cannot_be_honoured(folder: Path, own: dict[str, Any], why: str) -> None:
    edit(folder, **own)
    tracemalloc.start()
    with pytest.raises(UserError, match=why) as refused:
        load.read_checkpoint(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
    assert peak < 100 << 20


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "null", '{"a": 1e999', "\ud800", "[" * 100_000, '{"vocab_size": ' + "9" * 10_000 + "}"],
    ids=["empty", "list", "cut", "null", "cut-number", "not-unicode", "deep", "long-number"],
)
def test_configs_that_are_no_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=r"config\.json"):
        load.read_checkpoint(folder)


def test_a_config_of_a_gigabyte_is_not_read(folder: Path) -> None:
    with open(folder / "config.json", "r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(UserError, match="at most"):
        load.read_checkpoint(folder)


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"general.architecture": "rwkv7"}, "general.architecture is 'rwkv7', not one of "),
        ({"general.architecture": ...}, "general.architecture"),
        ({"llama.block_count": ...}, "llama.block_count is missing"),
        ({"llama.block_count": 2**31}, "llama.block_count should be between"),
        ({"llama.block_count": "2"}, "llama.block_count should be a whole number"),
        ({"llama.block_count": 3}, "blk.2.* is missing"),
        ({"llama.attention.head_count": 0}, "llama.attention.head_count should be between"),
        ({"llama.attention.head_count": np.array([4, 2], np.int32)}, "head_count should be a whole number"),
        ({"llama.rope.dimension_count": 4}, "partial rotary position embedding"),
        ({"llama.rope.scaling.type": "longrope"}, "llama.rope.scaling.type is 'longrope'"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.factor is missing"),
        ({"llama.expert_count": 8}, "llama.expert_used_count is missing"),
        ({"llama.expert_count": 8, "llama.expert_used_count": 2}, "'blk.0.ffn_gate.weight' has no place"),
        ({"llama.vocab_size": 41}, "a vocabulary of another size than the 40 rows"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon should be above"),
        ({"tokenizer.chat_template": 5}, "chat_template should be a text"),
        ({"general.architecture": np.array([1, 2], np.int32)}, "general.architecture should be a text"),
        ({"llama.rope.scaling.attn_factor": 1.5}, "attn_factor is 1.5: scaling attention"),
        ({"llama.attention.causal": False}, "causal is False: attention to later tokens is not supported"),
        ({"llama.attention.causal": 1}, "causal is 1: attention to later tokens is not supported"),
        ({"llama.expert_used_count": 2}, "expert_used_count is 2: a mixture of experts is not supported"),
        (MIXTURE | {"llama.expert_used_count": 9}, "top_k is 9; it must be at most experts"),
        (MIXTURE | {"llama.expert_used_count": 2**20}, "expert_used_count should be between 1 and 1024"),
        (MIXTURE | {"llama.expert_group_count": 4}, "routing to groups of experts is not supported"),
        ({"llama.nextn_predict_layers": 2}, "block_count should be between 3 and 10000, but is 2"),
        (
            {"llama.rope.scaling.yarn_beta_fast": 32.0},
            "yarn_beta_fast' is 32.0, and llama models have no such",
        ),
        (
            {"llama.logit_scale": 0.5},
            "'llama.logit_scale' is 0.5, and llama models have no such setting here",
        ),
        ({"llama.context_length": np.array([64, 64], np.int32)}, "context_length should be a whole number"),
    ],
)
def test_gguf_metadata_that_cannot_be_honoured(tmp_path: Path, own: dict[str, object], why: str) -> None:
    path = write_gguf(tmp_path / "model.gguf", own)
    with pytest.raises(UserError, match=why):
        load.read_checkpoint(path)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"factor": 2.0}, Linear(2.0)),
        ({"factor": 2.0, "type": "linear"}, Linear(2.0)),
        ({"factor": 2.0, "type": "none"}, None),
        ({"type": "linear"}, None),
        ({"attn_factor": 1.0, "finetuned": True}, None),
    ],
)
def test_rope_scaling_without_a_type_is_linear(
    tmp_path: Path, own: dict[str, object], expected: object
) -> None:
    entries = {f"llama.rope.scaling.{name}": value for name, value in own.items()}
    position = (
        load.read_checkpoint(write_gguf(tmp_path / "model.gguf", entries)).config.blocks[0].attention.position
    )
    assert position.scaling == expected


ARRAYS = [
    np.array([1, 2, 3], np.int32),
    np.array([4, 4, 4], np.uint32),
    np.array([0.5, 0.25], np.float32),
    np.array([True, False]),
    np.empty(0, np.float32),
    ["a", "b"],
    [],
]
STATED = {
    **{f"llama.{key}": value for key, value in LLAMA.write(config(), gguf=True).items()},
    **dict.fromkeys(
        f"llama.{row.gguf}" for row in LLAMA.rows if isinstance(row, Only) and row.gguf and row.gguf[0] != "e"
    ),
    **dict.fromkeys(["general.architecture", "llama.rope.scale_linear"]),
    **dict.fromkeys([f"llama.rope.scaling.{name}" for name in ("type", "factor", "attn_factor")]),
    **dict.fromkeys(["llama.rope.scaling.original_context_length", "tokenizer.chat_template"]),
    **dict.fromkeys([f"general.sampling.{name}" for name in ("temp", "top_k", "top_p", "penalty_repeat")]),
}


@pytest.mark.parametrize("key", sorted(STATED))
def test_an_array_where_gguf_has_a_scalar_is_refused_in_a_sentence(tmp_path: Path, key: str) -> None:
    for array in ARRAYS:
        path = write_gguf(tmp_path / "model.gguf", {key: array})
        with pytest.raises(UserError) as refused:
            load.read_checkpoint(path)
        assert key in str(refused.value) and "\n" not in str(refused.value)


def test_one_number_for_every_layer_is_that_number(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", {"llama.attention.head_count": np.array([4, 4], np.int32)})
    assert load.read_checkpoint(path).config.blocks[1].attention.heads == 4


# ---- what is in a folder ---------------------------------------------------------------------------------


def test_a_pickle_is_never_opened(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickle, which can run code and is never opened"):
        load.read_checkpoint(folder)


def test_folders_and_files_that_hold_no_model(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="holds no model"):
        load.read_checkpoint(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        load.read_checkpoint(tmp_path / "nothing.gguf")
    with pytest.raises(UserError, match="safetensors"):
        load.read_checkpoint(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no .safetensors file"):
        load.read_checkpoint(folder)


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", {})
    assert load.read_checkpoint(tmp_path).config == config(rms_norm_eps=1e-5)
    write_gguf(tmp_path / "b.gguf", {})
    with pytest.raises(UserError, match="2 GGUF files"):
        load.read_checkpoint(tmp_path)


def test_shards_are_one_model(folder: Path) -> None:
    whole = load.read_checkpoint(folder).tensors
    theirs = safetensors.read_safetensors(folder)
    (folder / "model.safetensors").unlink()
    safetensors.write_safetensors(folder / "model.safetensors", theirs, max_shard_bytes=10_000)
    assert len(list(folder.glob("*.safetensors"))) > 2
    again = load.read_checkpoint(folder).tensors
    assert all(np.array_equal(again[name].data, whole[name].data) for name in whole)


def test_chat_templates_wherever_they_are_kept(folder: Path) -> None:
    assert load.read_checkpoint(folder).chat_template is None
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "from a list"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert load.read_checkpoint(folder).chat_template == "from a list"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "from config"}))
    assert load.read_checkpoint(folder).chat_template == "from config"
    (folder / "chat_template.jinja").write_text("from jinja")
    assert load.read_checkpoint(folder).chat_template == "from jinja"


def test_advice_on_sampling(folder: Path) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"temperature": 0.6, "top_k": 20, "eos_token_id": [3, 4], "pad_token_id": 1}))
    assert load.read_checkpoint(folder).defaults == {"temperature": 0.6, "top_k": 20, "eos_ids": (3, 4)}
    path.write_text(json.dumps({"eos_token_id": 40}))
    with pytest.raises(UserError, match="ids below 40"):
        load.read_checkpoint(folder)


def test_without_a_tokenizer_weights_are_read_and_text_is_refused(folder: Path) -> None:
    checkpoint = load.read_checkpoint(folder)
    with pytest.raises(UserError, match="has no tokenizer"):
        _ = checkpoint.tokenizer


def test_a_cutaway_folder(tmp_path: Path) -> None:
    attention = mha.Config(heads=4, key_size=8, bias=True)
    model = Decoder(40, 32, 16, (Block(attention, MLP(16, "relu", gated=False)),), tied=False)
    ours = weights(model)
    assert (
        save.write_checkpoint(tmp_path / "own", Checkpoint(model, ours, None, tmp_path)).format == "cutaway"
    )
    again = load.read_checkpoint(tmp_path / "own")
    assert again.config == model
    assert all(np.array_equal(again.tensors[name].data, ours[name].data) for name in ours)
    path = tmp_path / "own" / "cutaway.json"
    path.write_text(path.read_text().replace('"hidden": 16', '"hidden": -16'))
    with pytest.raises(UserError):
        load.read_checkpoint(tmp_path / "own")


def test_packed_weights_are_not_copied_to_be_read(tmp_path: Path) -> None:
    """A checkpoint holds maps, not memory."""
    model = config(vocab_size=60_000)
    path = write_gguf(tmp_path / "model.gguf", {}, model)
    tracemalloc.start()
    checkpoint = load.read_checkpoint(path)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(checkpoint.tensors.later("embedding.weight"), Packed | gguf.Later)
    assert held < path.stat().st_size / 4


CUT_SHORT = """
import os, sys
import cutaway
path, options = sys.argv[1], {"engine": sys.argv[2], "dtype": sys.argv[3]}
pieces = cutaway.load(path, **options).stream("the", max_tokens=50, ignore_eos=True)
next(pieces)
os.truncate(path, 4096)
print(len(list(pieces)))
"""


@pytest.mark.skipif(native.unavailable_reason() is not None, reason="the native core watches mapped files")
@pytest.mark.parametrize(("engine", "dtype"), [("runtime", "float32"), ("pytorch", "packed")])
def test_a_file_cut_short_while_it_is_used_ends_the_process_in_a_sentence(
    tmp_path: Path, engine: str, dtype: str
) -> None:
    path = model_file(tmp_path / "m.gguf", tied=False)
    command = [sys.executable, "-c", CUT_SHORT, str(path), engine, dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    error = f"cutaway: {quoted(str(path))} was cut short while it was in use: restore it, and start again\n"
    assert (done.returncode, done.stderr, done.stdout) == (1, error, "")


def test_a_file_that_was_closed_is_not_blamed(tmp_path: Path) -> None:
    """Its address may be another file's by then."""
    code = "import gc, mmap, os, sys; from cutaway.weights import load;"
    code += "load.read_checkpoint(sys.argv[1]); gc.collect();"
    code += "f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ);"
    code += "os.truncate(sys.argv[1], 4096); m[-1]"
    path = model_file(tmp_path / "m.gguf")
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (-7, b"")
