"""Every family against transformers and llama.cpp: tiny, random, every weight perturbed, both directions."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cutaway import gguf, native
from cutaway.attention import mla
from cutaway.commands import info
from cutaway.errors import UserError
from cutaway.layers.config import MoE, Norm, Router
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.config_dict import to_dict
from cutaway.position import rope
from cutaway.quantization import formats, search
from cutaway.runtime import block_numbers, supported
from cutaway.runtime.engine import RuntimeEngine
from cutaway.weights import (
    family_match,
    family_registry,
    load,
    named_tensors,
    naming,
    quantize,
    rules,
    safetensors,
    save,
)
from cutaway.weights.build import decoder
from cutaway.weights.families import gemma4, granitemoehybrid, qwen3_5
from tests import llama_cpp
from tests.parity import tiny
from tests.rounding import noise
from tests.test_runtime import read_alike, routed_alike

Folder = Callable[[str], Path]
EXACT = 1e-5
SILU, GELU = 1e-4, 5e-3  # llama.cpp on log-probabilities: its GELU is a table of half-precision numbers
HALVES = 4e-3  # the runtime keeps keys and values as halves (docs/runtime.md)
BOTH_WAYS = sorted(tiny.CASES)
IN_GGUF = sorted(tiny.CASES.keys() - tiny.NOT_IN_GGUF)
SHARPENED = {"deepseek_v3-2", "deepseek_v2-3"}  # scores by YaRN's two mscale numbers, which differ
LATENTS = {
    "glm4_moe_lite-1",
    "glm4_moe_lite-3",
    "minicpm3-1",
    "minicpm3-4",
}  # whose GGUF has another eps of them


@cache
def within(case: str) -> float:
    """How far logits may be apart: four times what one rounding of each weight moves transformers' own by.

    So a model in which small differences grow is held to what it can be held to, on every processor.
    """
    made = tiny.model(case)
    return max(EXACT, 4 * noise(made, lambda: tiny.theirs(made)))


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@pytest.fixture(scope="module", params=BOTH_WAYS)
def case(request: pytest.FixtureRequest) -> str:
    """Each case in turn, for all tests that read it: its model is made once."""
    return request.param


def test_both_directions(case: str, folder: Folder, tmp_path: Path) -> None:
    expected = tiny.expected(case)
    checkpoint = load.read_checkpoint(folder(case))
    assert distance(tiny.ours(checkpoint), expected) < within(case)
    saved = save.write_checkpoint(tmp_path / "ours", checkpoint)
    assert saved.format == "safetensors" and saved.family == checkpoint.family, saved.notes
    assert distance(tiny.reopened(tmp_path / "ours"), expected) < within(case)
    assert load.read_checkpoint(tmp_path / "ours").config == checkpoint.config
    first, second = (safetensors.read_safetensors(at) for at in (folder(case), tmp_path / "ours"))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name].data, second[name].data) for name in first)


def test_chunks_padding_and_packing_change_nothing(case: str, folder: Folder) -> None:
    """In chunks, behind padding, and as documents of one row: transformers' logits of each text alone."""
    expected = tiny.expected(case)
    model, (rows, length) = decoder(load.read_checkpoint(folder(case))), tiny.IDS.shape
    pos = torch.arange(length).expand(rows, length)
    positions = (block.attention.position for block in model.config.blocks)
    grows = any(position is not None and position.grows for position in positions)
    cuts = [0, *sorted(random.Random(case).sample(range(1, length), 4)), length]
    with torch.no_grad():
        state = model.new_state()
        parts = [model(tiny.IDS[:, a:b], pos[:, a:b], state) for a, b in pairwise(cuts)]
        if not grows:  # past its original length such a model reads its past anew
            assert distance(torch.cat(parts, dim=1), expected) < within(case)
        padded = model(F.pad(tiny.IDS, (5, 0)), F.pad(pos, (5, 0), value=-1))
        assert distance(padded[:, 5:], expected) < within(case)
        documents = torch.arange(rows).repeat_interleave(length)[None]
        packed = model(tiny.IDS.view(1, -1), pos.reshape(1, -1), documents=documents)
        assert distance(packed.view_as(expected), expected) < within(case)


def test_no_weight_is_where_it_starts(case: str) -> None:
    """So that one that is left out, or taken twice, is seen."""
    for name, weight in tiny.model(case).named_parameters():
        if weight.numel() > 1:
            assert (weight.std() > 0.05 or weight.numel() < 8) and not (
                weight == weight.flatten()[0]
            ).all(), name


@pytest.mark.skipif(native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built")
def test_the_runtime_is_transformers(case: str, folder: Folder) -> None:
    """Its logits within what halves of keys and values cost, and the same bits however a text is cut."""
    checkpoint = load.read_checkpoint(folder(case))
    assert isinstance(checkpoint.config, Decoder)
    reason = supported.unsupported_reason(checkpoint.config, checkpoint.tensors)
    if (known := tiny.UNPACKED.get(case, tiny.UNPACKED.get(case.rpartition("-")[0]))) is not None:
        assert reason is not None and known in reason
        return
    assert reason is None
    engine = RuntimeEngine(checkpoint.config, checkpoint.tensors)
    first = block_numbers.first_length(checkpoint.config)
    for ids, expected in zip(tiny.IDS.tolist(), tiny.expected(case).numpy(), strict=True):
        found = engine.logits(ids)
        alike = read_alike(engine, ids)  # where scores of keys are near, halves tip an indexer's choice
        if np.abs(found - expected).max() >= HALVES * np.abs(expected).max():  # or a router's
            alike |= routed_alike(engine, decoder(checkpoint), ids, alike)
        if alike:
            expected = tiny.ours(checkpoint, ids=torch.tensor([ids]), edit=alike)[0].numpy()
        assert np.abs(found - expected).max() < HALVES * np.abs(expected).max()
        state = engine.new_state()
        engine.prefill(ids[:13], state)
        step = engine.step(ids[13], state)
        assert np.array_equal(step, found[13]) or first is not None  # a longer text rotates otherwise
        assert np.array_equal(engine.prefill(ids[14:], state), found[-1])


@pytest.mark.skipif(native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built")
@pytest.mark.parametrize("case", ["gemma4-1", "deepseek_v32-4"])
def test_the_runtime_reads_per_layer_embeddings_and_indexers_of_gguf(
    case: str, folder: Folder, tmp_path: Path
) -> None:
    """Its bits are those of the folder; rounded to eight bits, or halves, where rows fit, they are near."""
    checkpoint, ids = load.read_checkpoint(folder(case)), tiny.IDS[0].tolist()
    save.write_checkpoint(tmp_path / "model.gguf", tiny.worded(checkpoint))
    small = quantize.quantized(checkpoint, "Q8_0").checkpoint
    save.write_checkpoint(tmp_path / "small.gguf", tiny.worded(small))
    files = [load.read_checkpoint(tmp_path / name) for name in ("model.gguf", "small.gguf")]
    first, second, packed = (
        RuntimeEngine(each.config, each.tensors).logits(ids) for each in (checkpoint, *files)
    )
    assert np.array_equal(first, second)
    assert 0 < np.abs(packed - first).mean() < 0.1 * np.abs(first).mean()


@pytest.mark.parametrize("case", sorted(tiny.FOLDED))
def test_multipliers_go_into_the_weights_of_gguf(case: str, folder: Folder, tmp_path: Path) -> None:
    saved = save.write_checkpoint(tmp_path / "model.gguf", tiny.worded(load.read_checkpoint(folder(case))))
    assert "multipliers of the config are multiplied into the weights, as GGUF has them" in saved.notes
    again = load.read_checkpoint(tmp_path / "model.gguf")
    assert distance(tiny.ours(again), tiny.expected(case)) < within(case)
    save.write_checkpoint(tmp_path / "back", replace(again, read_tokenizer=None))
    assert distance(tiny.reopened(tmp_path / "back"), tiny.expected(case)) < within(case)
    small = quantize.quantized(load.read_checkpoint(folder(case)), "Q8_0").checkpoint
    save.write_checkpoint(tmp_path / "small.gguf", tiny.worded(small))
    types = {name: entry.type for name, entry in gguf.read(tmp_path / "small.gguf").tensors.items()}
    assert types["blk.0.ssm_out.weight"] == "F16"  # rows of 48
    assert types["blk.0.ssm_conv1d.weight"] == "F32"
    assert load.read_checkpoint(tmp_path / "small.gguf").config == again.config


@pytest.mark.parametrize("case", sorted(LATENTS))
def test_the_eps_of_latents_is_in_the_matrices_before_them(case: str, folder: Folder, tmp_path: Path) -> None:
    """llama.cpp norms latents by the eps of all other norms, transformers by 1e-6: neither folder nor file
    says which, and the way back is the same.
    """
    checkpoint = load.read_checkpoint(folder(case))
    saved = save.write_checkpoint(tmp_path / "model.gguf", tiny.worded(checkpoint))
    assert any("before norms of latents" in note for note in saved.notes)
    again = load.read_checkpoint(tmp_path / "model.gguf")
    assert (
        again.config.blocks[0].attention.norm
        == Norm("rms", 1e-5)
        != checkpoint.config.blocks[0].attention.norm
    )
    assert distance(tiny.ours(again), tiny.expected(case)) < within(case)
    save.write_checkpoint(tmp_path / "back", replace(again, read_tokenizer=None))
    assert load.read_checkpoint(tmp_path / "back").config == checkpoint.config
    assert distance(tiny.reopened(tmp_path / "back"), tiny.expected(case)) < within(case)


@pytest.mark.parametrize("case", sorted(set(IN_GGUF) - tiny.FOLDED - tiny.SCALED - LATENTS))
def test_gguf_and_back(case: str, folder: Folder, tmp_path: Path) -> None:
    """Through GGUF nothing changes: not the config, not a bit of a weight, not what transformers then makes
    of it.
    """
    checkpoint = load.read_checkpoint(folder(case))
    save.write_checkpoint(tmp_path / "model.gguf", tiny.worded(checkpoint))
    again = load.read_checkpoint(tmp_path / "model.gguf")
    if case in SHARPENED:  # by numbers that GGUF has in float32
        first, second = (to_dict(each.config) for each in (checkpoint, again))
        assert family_match._difference(first, second, "config") is None
    else:
        assert again.config == checkpoint.config
    for name, packed in checkpoint.tensors.items():
        if name.endswith("A_log"):  # which GGUF has as -exp(A_log), rounded
            assert np.allclose(formats.unpack(packed), formats.unpack(again.tensors[name]), rtol=0, atol=1e-6)
            continue
        assert np.array_equal(packed.data, again.tensors[name].data), name
    save.write_checkpoint(tmp_path / "back", replace(again, read_tokenizer=None))
    assert distance(tiny.reopened(tmp_path / "back"), tiny.expected(case)) < within(case)


@pytest.mark.parametrize("case", sorted(tiny.NOT_IN_GGUF))
def test_what_llama_cpp_cannot_compute_is_refused(case: str, folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"cannot be written as GGUF: .*(llama\.cpp('s| has no arch)|GGUF has|is not supported)",
    ) as refused:
        save.write_checkpoint(tmp_path / "model.gguf", load.read_checkpoint(folder(case)))
    assert not any(word in str(refused.value) for word in ("blocks", "would become", "no family"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", sorted(tiny.UNOPENED))
def test_llama_cpp_does_not_open_what_is_refused(case: str, folder: Folder, tmp_path: Path) -> None:
    """Written against the refusal, with a name for every weight, the file is one that llama.cpp rejects."""
    checkpoint = tiny.worded(load.read_checkpoint(folder(case)))
    family = family_registry.get(checkpoint.family or "")
    biases = naming.pairs(*naming.GGUF_QUERY_KEY, naming.GGUF_VALUE, naming.GGUF_OUT, parts=("bias",))
    known = {rule.theirs for rule in family.gguf}
    names = (*family.gguf, *(rule for rule in biases if rule.theirs not in known))
    tensors = rules.save(names, checkpoint.config, checkpoint.tensors)
    words = family.write(checkpoint.config, gguf=True)
    entries = {f"{family.gguf_name}.{key}": value for key, value in words.items()}
    metadata = {"general.architecture": family.gguf_name, **entries, **checkpoint.metadata}
    gguf.write(tmp_path / "model.gguf", metadata, {name: tensors.later(name) for name in tensors})
    with pytest.raises(RuntimeError), llama_cpp.opened(tmp_path / "model.gguf", tiny.VOCAB):
        pass


@pytest.mark.parametrize("case", IN_GGUF)
def test_llama_cpp_reads_what_was_written(case: str, folder: Folder, tmp_path: Path) -> None:
    checkpoint = tiny.worded(load.read_checkpoint(folder(case)))
    save.write_checkpoint(tmp_path / "model.gguf", checkpoint)
    expected = torch.log_softmax(tiny.expected(case)[0].double(), dim=-1).numpy()
    mlp = checkpoint.config.blocks[0].mlp
    tolerance = SILU if mlp is None or mlp.activation == "silu" else GELU
    with llama_cpp.opened(tmp_path / "model.gguf", tiny.VOCAB) as scores:
        for length in (1, 12, 40):
            found = scores(tiny.IDS[0, :length].tolist())
            assert np.abs(found - expected[length - 1]).max() < tolerance


def test_keys_of_layers_that_llama_cpp_would_not_read_are_refused(folder: Folder) -> None:
    """It takes those of the last layer with keys for global ones, of the one before for local ones."""
    known = gemma4.settings(load.read_checkpoint(folder("gemma4-1")).config)
    gemma4.Global().write(known, gguf=True)
    other = known | {"windows": (None, None, 8, None), "shared_layers": 1}
    with pytest.raises(UserError, match="is not supported in GGUF"):
        gemma4.Global().write(other, gguf=True)


def test_llama_cpp_takes_a_factor_without_a_type_for_linear(folder: Folder, tmp_path: Path) -> None:
    checkpoint = tiny.worded(load.read_checkpoint(folder("llama")))
    words = {**checkpoint.metadata, "llama.rope.scaling.factor": np.float32(2)}
    save.write_checkpoint(tmp_path / "plain.gguf", checkpoint)
    file = gguf.read(tmp_path / "plain.gguf")
    gguf.write(tmp_path / "model.gguf", {**file.metadata, **words}, file.tensors)
    expected = torch.log_softmax(
        tiny.ours(load.read_checkpoint(tmp_path / "model.gguf"))[0, -1].double(), dim=-1
    )
    with llama_cpp.opened(tmp_path / "model.gguf", tiny.VOCAB) as scores:
        assert np.abs(scores(tiny.IDS[0].tolist()) - expected.numpy()).max() < SILU


@pytest.mark.parametrize(
    ("case", "type"),
    [("llama", "F16"), ("llama", "Q8_0"), ("llama", "Q4_1"), ("gemma3-odd", "BF16"), ("gpt2", "Q4_0")],
)
def test_packed_equals_unpacked_to_the_bit(case: str, type: str, folder: Folder, tmp_path: Path) -> None:
    save.write_checkpoint(tmp_path / "model.gguf", load.read_checkpoint(folder(case)), type=type)
    checkpoint = load.read_checkpoint(tmp_path / "model.gguf")
    assert torch.equal(tiny.ours(checkpoint, "packed"), tiny.ours(checkpoint))


def test_latent_attention_in_one_matrix_is_read_too(folder: Folder, tmp_path: Path) -> None:
    """Files of before May 2025 have keys and values of all heads in ``attn_kv_b``."""
    checkpoint = tiny.worded(load.read_checkpoint(folder("deepseek_v3-1")))
    save.write_checkpoint(tmp_path / "model.gguf", checkpoint)
    file = gguf.read(tmp_path / "model.gguf")
    family, words = family_registry.get("deepseek_v3"), dict(file.metadata)
    of = checkpoint.config.blocks[0].attention
    for key, size in ("key", of.key_size + of.rope_dim), ("value", of.values):
        words |= {f"deepseek2.attention.{key}_length": size}
        del words[f"deepseek2.attention.{key}_length_mla"]
    words["deepseek2.attention.head_count_kv"] = of.heads
    tensors = rules.save(family.gguf_joined, checkpoint.config, checkpoint.tensors)
    gguf.write(tmp_path / "joined.gguf", words, {name: tensors.later(name) for name in tensors})
    again = load.read_checkpoint(tmp_path / "joined.gguf")
    assert again.config == checkpoint.config
    for name, packed in checkpoint.tensors.items():
        assert np.array_equal(packed.data, again.tensors[name].data), name
    expected = torch.log_softmax(tiny.ours(again)[0, -1].double(), dim=-1).numpy()
    with llama_cpp.opened(tmp_path / "joined.gguf", tiny.VOCAB) as scores:
        assert np.abs(scores(tiny.IDS[0].tolist()) - expected).max() < SILU


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0"])
def test_keys_of_latents_are_rounded_once_as_they_are_multiplied(type: str, tmp_path: Path) -> None:
    """Through a file and back the runtime's bits are the same: no row is packed twice, or another way."""
    mixer = mla.Config(
        heads=3,
        key_size=32,
        rope_dim=16,
        latent=64,
        value_size=32,
        position=rope.Config(16, interleaved=True),
    )
    block = Block(
        mixer, MoE(4, 2, 64, shared=64, router=Router("sigmoid", choice_bias=True, group_of_two=True)), Norm()
    )
    config = Decoder(tiny.VOCAB, 64, 128, (block,), tied=False)
    generator = np.random.default_rng(0)
    own = {
        name: formats.pack(generator.normal(0, 0.2, shape).astype(np.float32), "F32")
        for name, shape in config.weights().items()
    }
    source = tiny.worded(load.Checkpoint(config, named_tensors.Tensors(own), "deepseek_v3", tmp_path))
    small = quantize.quantized(source, type).checkpoint
    save.write_checkpoint(tmp_path / "model.gguf", small)
    name = "blocks.0.attention.key_up.weight"
    stored = gguf.read(tmp_path / "model.gguf").tensors["blk.0.attn_k_b.weight"]
    again = load.read_checkpoint(tmp_path / "model.gguf")
    assert (stored.type, stored.shape) == (type, (3, 64, 32))
    expected = formats.unpack(search.pack(formats.unpack(named_tensors.exchanged(own[name], 3)), type))
    assert np.array_equal(formats.unpack(stored).reshape(192, 32), expected)
    back = named_tensors.exchanged(formats.pack(expected, "F32"), 3)
    assert np.array_equal(again.tensors[name].data, back.data)
    save.write_checkpoint(tmp_path / "copy.gguf", again)
    copy = gguf.read(tmp_path / "copy.gguf").tensors["blk.0.attn_k_b.weight"]
    assert copy.type == type and np.array_equal(copy.data, stored.data)
    first, second = (
        RuntimeEngine(config, each.tensors).logits(tiny.IDS[0].tolist()) for each in (small, again)
    )
    assert np.array_equal(first, second)
    card = info.card("latents", tmp_path / "model.gguf", again)
    assert (card["latent"], card["kv_cache_bytes_per_token"]) == (80, 160)
    assert card["weight_bytes"] < (tmp_path / "model.gguf").stat().st_size
    wrong = gguf.read(tmp_path / "model.gguf")
    words = {**wrong.metadata, "deepseek2.attention.value_length": 48}
    gguf.write(tmp_path / "wrong.gguf", words, wrong.tensors)
    with pytest.raises(
        UserError, match="value_length is 48: a cached value other than the latent is not supported"
    ):
        load.read_checkpoint(tmp_path / "wrong.gguf")


def test_what_llama_cpp_asserts_of_recurrences_is_refused_first(folder: Folder) -> None:
    """It ends the process at a Mamba 2 of another width, and deals sections of pairs out in turn."""
    known = granitemoehybrid.settings(load.read_checkpoint(folder("granitemoehybrid-1")).config)
    granitemoehybrid.Mixers().write(known, gguf=True)
    with pytest.raises(UserError, match="not twice as wide as the model is not supported in GGUF"):
        granitemoehybrid.Mixers().write(known | {"mamba_size": 2 * known["mamba_size"]}, gguf=True)
    for pairs, sections in (4, [2, 1, 1, 0]), (32, [11, 11, 10, 0]):
        words = qwen3_5.Rope(part=0.25).write({"rope": rope.Config(2 * pairs)}, gguf=True)
        assert words["rope.dimension_sections"].tolist() == sections
    mixer = load.read_checkpoint(folder("qwen3_5-4")).config.blocks[0].attention
    packed = gguf.Packed("Q4_K", (4, 256), np.zeros((4, 144), np.uint8))
    with pytest.raises(UserError, match="columns of Q4_K cannot be reordered, because heads of 16 share its"):
        qwen3_5.tiled_columns.save((packed,), rules.Place(((4, 256),), mixer))


@pytest.mark.parametrize(
    ("case", "scalar"), [("gemma3-scaled", 20), ("gemma3", 256), ("gemma2-1", 3), ("gemma2-1", 256)]
)
def test_a_factor_of_scores_that_gguf_has_no_key_for_is_in_the_queries(
    case: str, scalar: int, tmp_path: Path
) -> None:
    """Transformers' default of query_pre_attn_scalar is 256, whatever the heads' size."""
    tiny.model(case).save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text()) | {"query_pre_attn_scalar": scalar}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    saved = save.write_checkpoint(tmp_path / "m.gguf", load.read_checkpoint(tmp_path / "m"), type="F32")
    assert any("queries are multiplied" in note for note in saved.notes)
    again = load.read_checkpoint(tmp_path / "m.gguf")
    assert distance(tiny.ours(again), tiny.reopened(tmp_path / "m")) < EXACT


def test_older_layout_is_read_too(folder: Folder, tmp_path: Path) -> None:
    """Transformers 5 writes ``rope_parameters``; older files have ``rope_theta`` and ``rope_scaling``."""
    for case in ("llama3", "gemma3", "llama-linear"):
        new = load.read_checkpoint(folder(case)).config
        older = tmp_path / case
        shutil.copytree(folder(case), older)
        data = json.loads((older / "config.json").read_text())
        rope = data.pop("rope_parameters")
        far, near = rope.get("full_attention", rope), rope.get("sliding_attention")
        data["rope_theta"] = far.pop("rope_theta")
        # transformers reads the older word too, but not in Gemma 3's configs
        data["rope_scaling"] = {"rope_type" if near else "type": far.pop("rope_type"), **far}
        if near:
            data["rope_local_base_freq"] = near["rope_theta"]
        (older / "config.json").write_text(json.dumps(data))
        assert load.read_checkpoint(older).config == new


@pytest.mark.parametrize("case", ["qwen2-moe", "qwen3-moe"])
def test_how_experts_weigh_is_transformers_where_the_config_does_not_say(case: str, tmp_path: Path) -> None:
    tiny.model(case).save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    del data["norm_topk_prob"]
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert distance(tiny.ours(load.read_checkpoint(tmp_path)), tiny.reopened(tmp_path)) < EXACT


def test_a_redundant_head_is_the_table_and_another_is_not(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny.model("qwen2").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    plain = tiny.ours(load.read_checkpoint(tmp_path))
    table = weights["model.embed_tokens.weight"]
    save_file(weights | {"lm_head.weight": table.clone()}, tmp_path / "model.safetensors", {"format": "pt"})
    assert load.read_checkpoint(tmp_path).config.tied
    assert torch.equal(tiny.ours(load.read_checkpoint(tmp_path)), plain)
    save_file(weights | {"lm_head.weight": table.flip(0)}, tmp_path / "model.safetensors", {"format": "pt"})
    assert not load.read_checkpoint(tmp_path).config.tied
    assert distance(tiny.ours(load.read_checkpoint(tmp_path)), tiny.reopened(tmp_path)) < EXACT


def test_a_model_without_its_head_still_has_its_names(tmp_path: Path) -> None:
    """``GPT2Model`` leaves the prefix out of its names, as the files of the original GPT-2 do."""
    tiny.model("gpt2").transformer.save_pretrained(tmp_path)
    expected = tiny.theirs(tiny.model("gpt2"))
    assert distance(tiny.ours(load.read_checkpoint(tmp_path)), expected) < EXACT


def test_the_text_of_a_multimodal_model_is_read(folder: Folder, tmp_path: Path) -> None:
    """Gemma 3 with eyes has the logits of transformers on a text; what is left out is named."""
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = json.loads((folder("gemma3-scaled") / "config.json").read_text())
    config = tiny.transformers.Gemma3Config(
        text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    torch.manual_seed(0)
    model = tiny.transformers.AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    model.eval().save_pretrained(tmp_path)
    checkpoint = load.read_checkpoint(tmp_path)
    assert checkpoint.left_out == ("multi_modal_projector", "vision_tower")
    assert distance(tiny.ours(checkpoint), tiny.theirs(model)) < EXACT


def test_gpt_oss_packed_as_mxfp4_is_transformers(tmp_path: Path) -> None:
    """The folder that Hugging Face has of it: experts as blocks and scales, which transformers unpacks."""
    from safetensors.torch import load_file, save_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    case, generator = "gpt_oss-1", torch.Generator().manual_seed(0)
    own = tiny.CASES[case][1] | {"intermediate_size": 32}
    config = tiny.transformers.GptOssConfig(**(tiny.SIZES | own))
    torch.manual_seed(0)
    model = tiny.transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inside, out = weights.pop(name).shape
        shape = (experts, out, inside // 32, 16)
        blocks = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        scales = torch.randint(120, 125, blocks.shape[:-1], dtype=torch.uint8, generator=generator)
        weights |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        plain = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        with torch.no_grad():
            model.get_parameter(name).copy_(plain)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    data = json.loads((tmp_path / "config.json").read_text())
    packed = data | {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
    (tmp_path / "config.json").write_text(json.dumps(packed))
    checkpoint = load.read_checkpoint(tmp_path)
    expected = tiny.theirs(model)
    assert distance(tiny.ours(checkpoint), expected) < EXACT
    assert distance(tiny.ours(checkpoint, "packed"), expected) < EXACT
    save.write_checkpoint(tmp_path / "again", checkpoint)
    assert distance(tiny.reopened(tmp_path / "again"), expected) < EXACT
    save_file({n: w for n, w in weights.items() if "scales" not in n}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="has no scales"):
        load.read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps(data | {"quantization_config": {"quant_method": "aqlm"}})
    )
    with pytest.raises(UserError, match="quantized by 'aqlm'"):
        load.read_checkpoint(tmp_path)


def test_falcons_alibi_is_refused_for_what_it_is(folder: Folder, tmp_path: Path) -> None:
    shutil.copytree(folder("falcon-1"), tmp_path / "model")
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"alibi": True, "torch_dtype": "float32"}))
    with pytest.raises(
        UserError, match="alibi is True: ALiBi of biases that transformers rounds to bfloat16"
    ):
        load.read_checkpoint(tmp_path / "model")


def test_an_unknown_type_is_refused_with_the_nearest_names(folder: Folder, tmp_path: Path) -> None:
    shutil.copytree(folder("llama"), tmp_path / "model")
    data = json.loads((folder("llama") / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(data | {"model_type": "qwen4"}))
    with pytest.raises(UserError, match=r"'qwen4', not one of .*qwen3"):
        load.read_checkpoint(tmp_path / "model")


def test_what_no_family_can_say_is_a_cutaway_folder(folder: Folder, tmp_path: Path) -> None:
    checkpoint = load.read_checkpoint(folder("llama"))
    block = checkpoint.config.blocks[0]
    odd = replace(block, attention=replace(block.attention, scale=0.3))
    checkpoint = replace(
        checkpoint, config=replace(checkpoint.config, blocks=(odd, *checkpoint.config.blocks[1:]))
    )
    saved = save.write_checkpoint(tmp_path / "ours", checkpoint)
    assert saved.format == "cutaway" and "config.blocks[0].attention.scale" in " ".join(saved.notes)
    again = load.read_checkpoint(tmp_path / "ours")
    assert again.config == checkpoint.config
    assert torch.equal(tiny.ours(again), tiny.ours(checkpoint))


def test_kimi_linear_as_its_makers_wrote_it(folder: Folder, tmp_path: Path) -> None:
    """Layers counted from one under ``linear_attn_config``, and dense layers as ``mlp``, not as experts."""
    from safetensors.torch import load_file, save_file

    data = json.loads((folder("kimi_linear-3") / "config.json").read_text())
    newer = (
        "layer_types",
        "mlp_layer_types",
        "linear_head_dim",
        "linear_num_heads",
        "linear_conv_kernel_dim",
    )
    data = {key: value for key, value in data.items() if key not in newer}
    older = {"kda_layers": [1, 2, 3, 4], "full_attn_layers": [5], "head_dim": 20, "num_heads": 2}
    data |= {"linear_attn_config": older | {"short_conv_kernel_size": 4}, "first_k_dense_replace": 1}
    data |= {"mla_use_nope": True, "moe_router_activation_func": "sigmoid", "num_nextn_predict_layers": 0}
    weights = load_file(folder("kimi_linear-3") / "model.safetensors")
    first = "model.layers.0.block_sparse_moe."
    weights = {name.replace(first, "model.layers.0.mlp."): one for name, one in weights.items()}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    sizes = {"linear_head_dim": 20, "linear_num_heads": 2}  # every fifth layer reads all, without a list
    for each in (data, {key: one for key, one in data.items() if key != "linear_attn_config"} | sizes):
        (tmp_path / "config.json").write_text(json.dumps(each))
        assert load.read_checkpoint(tmp_path).config == load.read_checkpoint(folder("kimi_linear-3")).config
    (tmp_path / "config.json").write_text(json.dumps(data))
    found = load.read_checkpoint(tmp_path)
    assert distance(tiny.ours(found), tiny.reopened(tmp_path)) < within("kimi_linear-3")
    swapped = {"kda_layers": [2, 3, 4, 5], "full_attn_layers": [1]}
    for change in ({"kda_layers": [1, 2]}, {"twisted": 1}, swapped):
        data["linear_attn_config"] = older | change
        (tmp_path / "config.json").write_text(json.dumps(data))
        if change is not swapped:
            with pytest.raises(UserError, match="linear_attn_config"):
                load.read_checkpoint(tmp_path, strict=True)
    data["num_key_value_heads"] = 2
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="num_key_value_heads is 2"):
        load.read_checkpoint(tmp_path)


def test_biases_of_experts_are_refused_by_their_key(folder: Folder, tmp_path: Path) -> None:
    shutil.copytree(folder("nemotron_h-1"), tmp_path / "model")
    data = json.loads((folder("nemotron_h-1") / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(data | {"mlp_bias": True}))
    with pytest.raises(UserError, match="mlp_bias is true: biases of experts are not supported"):
        load.read_checkpoint(tmp_path / "model")
