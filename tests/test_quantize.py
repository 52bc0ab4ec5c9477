"""`cutaway quantize`: which matrix gets which type, what is measured and printed."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import cutaway
from cutaway import cli, gguf
from cutaway.attention import gqa
from cutaway.commands import quantize as command
from cutaway.errors import UserError
from cutaway.evaluate import perplexity as scoring
from cutaway.inspect import importance as importances
from cutaway.inspect.importance import importance, moments, runs, sums
from cutaway.inspect.instrumented_runtime import InstrumentedRuntime
from cutaway.inspect.verify import ROUNDED
from cutaway.layers.config import MLP, MoE
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.position import rope
from cutaway.quantization import formats, mixes
from cutaway.runtime.engine import RuntimeEngine
from cutaway.weights import load, quantize, retype, save
from cutaway.weights.named_tensors import Tensors
from tests import inputs, llama_cpp, test_runtime
from tests.small import VOCAB, decoder


@cache
def checkpoint(
    width: int = 256, layers: int = 8, tied: bool = True, experts: MoE | None = None, kv_heads: int = 4
) -> load.Checkpoint:
    """A random Llama of this width, or a Mixtral, in float32, without a tokenizer."""
    heads = gqa.Config(heads=8, kv_heads=kv_heads, key_size=width // 8, position=rope.Config(width // 8))
    config = Decoder(64, width, 64, (Block(heads, experts or MLP(2 * width)),) * layers, tied=tied)
    generator = np.random.default_rng(0)
    tensors = {
        name: formats.pack((generator.normal(size=shape) * 0.1).astype(np.float32), "F32")
        for name, shape in config.weights().items()
    }
    return load.Checkpoint(config, Tensors(tensors), "mixtral" if experts else "llama", Path("tiny"))


def types(made: quantize.Quantized) -> dict[str, str]:
    tensors = made.checkpoint.tensors
    return {name: tensors.later(name).type for name in tensors}


# Of 8 layers with two query heads to a key-value head: what differs from the mix's own type, by role, as
# llama-quantize has it (scripts/check/quantize_layouts.py compares whole models tensor by tensor).
MORE = "Q6_K . . Q6_K . . Q6_K Q6_K"
LAYOUT: dict[str, tuple[str, str, str, str]] = {  # own type; value, down and out of each layer
    "Q8_0": ("Q8_0", "", "", ""),
    "Q6_K": ("Q6_K", "", "", ""),
    "Q5_K_M": ("Q5_K", MORE, MORE, ""),
    "Q5_K_S": ("Q5_K", "", "", ""),
    "Q5_1": ("Q5_1", "", "", ""),
    "Q5_0": ("Q5_0", "", "", ""),
    "Q4_K_M": ("Q4_K", MORE, MORE, ""),
    "Q4_K_S": ("Q4_K", "Q5_K Q5_K Q5_K Q5_K . . . .", "Q5_K . . . . . . .", ""),
    "Q4_1": ("Q4_1", "", "", ""),
    "Q4_0": ("Q4_0", "", "", ""),
    "IQ4_NL": ("IQ4_NL", "", "Q5_K . . . . . . .", ""),
    "IQ4_XS": ("IQ4_XS", "", "Q5_K . . . . . . .", ""),
    "Q3_K_L": ("Q3_K", "Q5_K " * 8, "Q5_K " * 8, "Q5_K " * 8),
    "Q3_K_M": ("Q3_K", "Q5_K Q5_K" + " Q4_K" * 6, "Q4_K " * 8, "Q4_K " * 8),
    "Q3_K_S": ("Q3_K", "", "", ""),
    "Q2_K": ("Q2_K", "Q3_K " * 8, "Q3_K " * 8, "Q3_K " * 8),
}
LAYOUT |= {name: LAYOUT[mix] for name, mix in mixes.ALIASES.items()}


@pytest.mark.parametrize("kind", mixes.KINDS)
def test_which_matrix_gets_which_type(kind: str):
    found = types(quantize.quantized(checkpoint(tied=False), kind))
    own, *others = LAYOUT[kind]
    assert found["norm.weight"] == found["blocks.0.mlp_norm.weight"] == "F32"
    assert found["embedding.weight"] == found["blocks.3.mlp.up.weight"] == own
    assert found["blocks.7.attention.key.weight"] == found["blocks.0.attention.query.weight"] == own
    assert found["head.weight"] == ("Q8_0" if kind == "Q8_0" else "Q6_K")
    for role, layers in zip(("attention.value", "mlp.down", "attention.out"), others, strict=True):
        expected = [own if type == "." else type for type in (layers or ". " * 8).split()]
        assert [found[f"blocks.{n}.{role}.weight"] for n in range(8)] == expected, role


@pytest.mark.parametrize(
    ("kind", "plain", "calibrated"),
    [("Q4_0", "Q4_0", "Q4_1"), ("Q5_0", "Q5_0", "Q5_1"), ("IQ4_XS", "Q5_K", "IQ4_XS")],
)
def test_a_calibrated_mix_has_another_first_eighth(kind: str, plain: str, calibrated: str):
    for columns, expected in ((None, plain), ({}, calibrated)):
        found = types(quantize.quantized(checkpoint(), kind, columns))
        assert found["blocks.0.mlp.down.weight"] == expected
        assert found["blocks.1.mlp.down.weight"] == kind


def test_models_that_count_their_heads_and_experts_otherwise():
    """Four query heads to a key-value head, eight experts, eighty layers: as llama.cpp lays them out."""
    assert (
        types(quantize.quantized(checkpoint(kv_heads=2), "Q2_K"))["blocks.5.attention.value.weight"] == "Q4_K"
    )
    assert (
        types(quantize.quantized(checkpoint(kv_heads=2), "IQ4_NL"))["blocks.5.attention.value.weight"]
        == "Q5_K"
    )
    eight = types(quantize.quantized(checkpoint(layers=2, experts=MoE(8, 2, 256)), "Q4_K_S"))
    assert eight["blocks.1.attention.value.weight"] == eight["blocks.1.attention.key.weight"] == "Q8_0"
    assert eight["blocks.1.attention.out.weight"] == "Q5_K"
    large = checkpoint(layers=1)
    blocks = replace(large.config, blocks=large.config.blocks * 80)
    many = replace(
        large,
        config=blocks,
        tensors=Tensors(dict.fromkeys(blocks.weights(), large.tensors["embedding.weight"])),
    )
    assert types(quantize.quantized(many, "Q3_K_S"))["blocks.40.attention.value.weight"] == "Q5_K"


def test_rows_that_are_not_whole_blocks_fall_back_and_are_reported():
    found = quantize.quantized(checkpoint(width=96, layers=1), "Q4_K")
    assert types(found)["blocks.0.attention.query.weight"] == "Q5_0"
    assert types(found)["embedding.weight"] == "Q8_0"
    assert any("as Q5_0 instead of Q4_K (rows not of whole blocks of 256)" in note for note in found.notes)
    found = quantize.quantized(checkpoint(width=48, layers=1), "Q4_0")
    assert types(found)["blocks.0.mlp.up.weight"] == "F16"
    assert any("F16 instead of Q4_0" in note for note in found.notes)


def test_one_matrix_of_query_key_and_value_has_one_type(tmp_path: Path):
    """GPT-2's file keeps the three in one, so the others are as value is and the file can be written."""
    model = decoder("gpt2")
    weights = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    tensors = Tensors({name: formats.pack(weight, "F32") for name, weight in weights.items()})
    small = load.Checkpoint(model.config, tensors, "gpt2", Path("tiny"))
    made = quantize.quantized(small, "Q4_K")
    assert types(made)["blocks.0.attention.value.weight"] == types(made)["blocks.0.attention.query.weight"]
    assert save.write_checkpoint(tmp_path / "small.gguf", made.checkpoint).types["Q5_0"] > 0


def test_experts_of_a_layer_have_one_type_and_routers_stay_whole(tmp_path: Path):
    """The file keeps all experts of a layer in one tensor, and it reads back to the bit."""
    made = quantize.quantized(checkpoint(layers=3, experts=MoE(3, 2, 256)), "Q4_K").checkpoint
    found = types(quantize.Quantized(made, 15, ()))
    downs = [{found[f"blocks.{n}.mlp.experts.{e}.down.weight"] for e in range(3)} for n in range(3)]
    assert downs == [{"Q4_K"}, {"Q4_K"}, {"Q6_K"}]
    assert {found[f"blocks.{n}.mlp.router.weight"] for n in range(3)} == {"F32"}
    save.write_checkpoint(tmp_path / "small.gguf", made)
    stored = gguf.read(tmp_path / "small.gguf").tensors
    assert stored["blk.2.ffn_down_exps.weight"].shape == (3, 256, 256)
    assert stored["blk.2.ffn_down_exps.weight"].type == "Q6_K"
    again = load.read_checkpoint(tmp_path / "small.gguf")
    assert again.config == made.config and again.family == "mixtral"
    for name, packed in made.tensors.items():
        assert np.array_equal(packed.data, again.tensors[name].data), name


def test_importance_says_nothing_of_an_expert_that_no_token_came_to():
    model = decoder("mixture")
    found = importance(model, [7])
    experts = {name.split(".")[4] for name in found if name.startswith("blocks.0.mlp.experts.")}
    assert len(experts) == 2 and all(np.isfinite(each).all() for each in found.values())


def test_a_matrix_of_the_type_already_is_left_alone():
    once = quantize.quantized(checkpoint(layers=1), "Q4_K").checkpoint
    name = "blocks.0.mlp.up.weight"
    kept = replace(once, tensors=Tensors({n: once.tensors[n] for n in once.tensors}))
    assert quantize.quantized(kept, "Q4_K").checkpoint.tensors[name] is kept.tensors[name]
    again = quantize.quantized(kept, "Q4_0")
    assert any(re.fullmatch(r"[2-9]\d* matrices rounded again, from Q4_K to Q4_0", n) for n in again.notes)


def test_importance_is_the_mean_square_of_inputs():
    """Against what a float64 reading of the first layers would multiply: the embeddings' norm, by hand."""
    model = decoder()
    ids = [int(id) for id in np.random.default_rng(0).integers(0, VOCAB, 100)]
    found = importance(model, ids)
    matrices = {name for name, weight in model.named_parameters() if weight.ndim == 2}
    assert set(found) == matrices
    rows = model.embedding.weight.detach().double().numpy()[ids]
    norm = model.blocks[0].attention_norm.weight.detach().double().numpy()
    eps = model.config.blocks[0].norm.eps
    normed = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + eps) * norm
    expected = (normed**2).mean(axis=0)
    for name in ("query", "key", "value"):
        assert np.allclose(found[f"blocks.0.attention.{name}.weight"], expected, rtol=1e-4)
    assert found["embedding.weight"].shape == (model.config.width,)
    with pytest.raises(UserError, match="no token"):
        importance(model, [])


@pytest.mark.parametrize("name", ["llama", "cohere", "gemma3", "gpt2"])
def test_the_runtimes_importance_is_the_pytorch_models(name: str, monkeypatch: pytest.MonkeyPatch):
    """Of the same text in windows, a piece of one in a call; a square has twice its number's error."""
    of = test_runtime.config(name)
    entries = test_runtime.tensors(of)
    engine = InstrumentedRuntime(RuntimeEngine(of, entries), entries)
    assert runs(engine)
    model = test_runtime.definition(of, entries).model
    monkeypatch.setattr(importances, "WINDOW", 40)
    monkeypatch.setattr(importances, "SHOWN", 4 << 10)
    ids = [int(id) for id in np.random.default_rng(0).integers(0, of.vocab, 60)]
    ours, theirs = sums(engine, ids), sums(model, ids)
    assert ours.keys() == theirs.keys()
    for weight, (total, rows) in theirs.items():
        near = np.allclose(ours[weight][0], total, rtol=2e-3, atol=2e-3 * total.mean())
        assert ours[weight][1] == rows and near, weight
    mine, other = moments(engine, ids), moments(model, ids)
    for weight, found in other.items():
        assert np.allclose(mine[weight], found, rtol=2e-3, atol=2e-3), weight


def test_what_counts_is_kept_better():
    """A model of which one column carries nearly everything: weighted by it, its product is nearer."""
    generator = np.random.default_rng(1)
    x = generator.normal(size=(200, 256)).astype(np.float32) * np.where(np.arange(256) % 32 == 3, 30, 0.1)
    small = checkpoint(layers=1)
    name = "blocks.0.attention.query.weight"
    exact = formats.unpack(small.tensors[name])
    errors = []
    for weights in (None, {name: (x**2).mean(axis=0).astype(np.float32)}):
        made = quantize.quantized(small, "Q4_K", weights).checkpoint.tensors[name]
        errors.append(float(((x @ (formats.unpack(made) - exact).T) ** 2).mean()))
    assert errors[1] < errors[0] / 4


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's first two layers: real weights and its tokenizer, quickly read."""
    lm = cutaway.load(inputs.path("smollm2")).first_layers(2)
    target = tmp_path_factory.mktemp("quantize") / "two-layers.gguf"
    lm.save(target)
    return target


def test_the_command_writes_measures_and_says(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    words = ["quantize", str(short), "--type", "q4_k", "--force"]
    measured = ["--text", str(text), "--calibration", str(text), "--json"]
    assert cli.main([*words, *measured]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == "two-layers-Q4_K.gguf"
    assert found["bytes_before"] == short.stat().st_size
    assert found["types"]["Q4_K"] == 1  # of one layer the MLP's last matrix; the other's is Q6_K
    cost = found["cost"]
    assert cost["tokens"] == 255
    assert 0 < cost["kl_median"] < cost["kl_divergence"] < cost["kl_largest"]
    assert cli.main([*words, "-o", "plain.gguf", "--no-measure"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("plain.gguf: ") and "was " in captured.out and "Q5_0" in captured.out
    notes = " ".join(captured.err.split())
    assert "rows not of whole blocks of 256" in notes and "rounded again, from Q4_1" in notes
    assert cli.main(["info", "plain.gguf"]) == 0
    assert re.search(r"^mix +Q4_K_M$", capsys.readouterr().out, re.MULTILINE)
    assert gguf.read("plain.gguf").metadata["general.file_type"] == 15
    assert Path("plain.gguf").read_bytes() != Path("two-layers-Q4_K.gguf").read_bytes()


@pytest.mark.parametrize("kind", ["Q4_1", "Q4_K", "Q2_K", "Q5_K_M"])  # of many types, rows being 576 long
def test_llama_cpp_gives_what_was_written_our_logits(short: Path, tmp_path: Path, kind: str):
    """Both engines round what a matrix reads to eight bits, each in its own way, and agree but for that."""
    path = tmp_path / "small.gguf"
    assert cli.main(["quantize", str(short), "--type", kind, "-o", str(path), "--no-measure", "--force"]) == 0
    lm = cutaway.load(path, engine="pytorch")
    ids = lm.ids("The capital of France is")
    ours = lm.logits(ids)[-1].astype(np.float64)
    with llama_cpp.opened(path, len(ours)) as theirs:
        scores = theirs(ids)
    apart = (ours - ours.mean()) - (scores - scores.mean())  # log-probabilities are logits but for a constant
    assert np.sqrt(np.mean(apart**2)) < ROUNDED * ours.std(), kind


def test_what_gets_no_smaller_is_refused_without_force(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["quantize", str(short), "--type", "Q8_0", "-o", str(tmp_path / "out.gguf"), "--no-measure"]
    assert cli.main(words) == 2
    captured = " ".join(capsys.readouterr().err.split())
    assert re.search(r"its weights take [\d,]+ bytes \(.*Q4_1.*\) and would take [\d,]+ as Q8_0", captured)
    assert "give --force" in captured and not (tmp_path / "out.gguf").exists()
    assert cli.main([*words, "--force"]) == 0


def test_a_folder_has_a_size_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save.write_checkpoint(tmp_path / "run" / "model", checkpoint(layers=1))
    made = tmp_path / "run" / "model"
    words = ["quantize", str(made), "--type", "q8_0", "-o", str(tmp_path / "out.gguf"), "--no-measure"]
    assert cli.main([*words, "--json"]) == 0
    before = json.loads(capsys.readouterr().out)["bytes_before"]
    assert before == retype.stored_bytes(load.read_checkpoint(made).tensors) > 0


def test_a_note_about_matrices_begins_with_how_many():
    notes = Counter(
        {"matrices rounded again": 1, "matrices stored as F16": 3, "the model has no tokenizer": 1}
    )
    assert retype.counted(notes) == (
        "1 matrix rounded again",
        "3 matrices stored as F16",
        "the model has no tokenizer",
    )


def test_a_cost_is_printed_in_a_line():
    plain = scoring.Perplexity(510, 3.0, 0.1)
    worse = scoring.Perplexity(510, 3.1, 0.1)
    cost = scoring.Divergence(510, plain, worse, 0.25, 0.01, 0.2, 1.0, 2.0, 0.875)
    line = command.summary(cost, None)
    assert line.startswith("On what the model writes itself (510 tokens scored): perplexity 20.086 -> 22.198")
    assert "+10.52%" in line and "0.25000 +/- 0.01000" in line and "87.5%" in line


def test_mistakes_are_refused_before_any_work(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(save, "write_checkpoint", lambda *_, **__: pytest.fail("something was written"))
    there = tmp_path / "there.gguf"
    there.write_bytes(b"mine")
    broken = tmp_path / "broken.txt"
    broken.write_bytes(b"\xff\xfe")
    short_text = tmp_path / "short.txt"
    short_text.write_text("Too little.")
    base = ["quantize", str(short), "--type", "Q4_0"]
    for more, sentence in (
        (["-o", str(there)], "already exists"),
        (["-o", "folder"], "ends in .gguf"),
        (["--text", "absent.txt"], "absent.txt: there is no such file"),
        (["--calibration", str(broken)], "not UTF-8"),
        (["--text", str(short_text)], "has 3 tokens, and a window 512: give a longer text"),
    ):
        assert cli.main([*base, *more]) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
    encoder = inputs.path("minilm")
    assert cli.main(["quantize", str(encoder), "--type", "Q4_0"]) == 2
    assert "only decoders are measured: add --no-measure" in " ".join(capsys.readouterr().err.split())
    assert cli.main(["quantize", str(short), "--type", "Q3_X"]) == 2
    assert "Q3_X" in capsys.readouterr().err
    assert there.read_bytes() == b"mine"
    with pytest.raises(UserError, match="use one of Q8_0"):
        quantize.quantized(load.read_checkpoint(short), "IQ3_S")


def test_a_weight_that_stays_as_it_is_is_looked_at_too():
    small = checkpoint(layers=1)
    entries = {name: small.tensors[name] for name in small.tensors}
    entries["norm.weight"] = formats.pack(np.full(256, np.inf, np.float32), "F32")
    made = quantize.quantized(replace(small, tensors=Tensors(entries)), "Q4_0").checkpoint.tensors
    with pytest.raises(
        UserError, match=r"'norm.weight' cannot be stored as F32: it holds a number that is infinite or NaN"
    ):
        made["norm.weight"]


def test_a_weight_that_cannot_be_packed_is_named_and_nothing_is_left(tmp_path: Path):
    small = checkpoint(layers=1)
    entries = {name: small.tensors[name] for name in small.tensors}
    broken = formats.unpack(entries["blocks.0.mlp.up.weight"]).copy()
    broken[3, 5] = np.nan
    entries["blocks.0.mlp.up.weight"] = formats.pack(broken, "F32")
    made = quantize.quantized(replace(small, tensors=Tensors(entries)), "Q4_0")
    with pytest.raises(
        UserError, match=r"'blocks.0.mlp.up.weight' cannot be stored as Q4_0: A weight is infinite"
    ):
        save.write_checkpoint(tmp_path / "broken.gguf", made.checkpoint)
    assert list(tmp_path.iterdir()) == []
