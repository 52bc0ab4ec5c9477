"""The runtime: its panels, products and logits against the reference implementation's to the bit, under every
instruction set; its logits against the PyTorch model's within the distributions that docs/runtime.md states.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cutaway import gguf, native
from cutaway.attention import (
    differential,
    dsa,
    gated,
    gated_delta,
    gqa,
    kda,
    local,
    mamba2,
    mha,
    mla,
    mqa,
    short_conv,
)
from cutaway.attention.common.heads import Temperature
from cutaway.errors import UserError
from cutaway.gguf import TYPES, Packed
from cutaway.hooks import Listener, tracing
from cutaway.inspect import activation_quant
from cutaway.layers.config import MLP, MoE, Norm, PerLayer, Router
from cutaway.model.block_config import Beside, Block
from cutaway.model.config import Decoder
from cutaway.native import library, packed_product, step, structures
from cutaway.position import alibi, learned, rope, sinusoidal, t5
from cutaway.position.scaling import DynamicNTK, LongRoPE
from cutaway.quantization import formats
from cutaway.runtime import adapter, block_numbers, cache_formats, matmul, panels, supported
from cutaway.runtime.engine import RuntimeEngine
from cutaway.runtime.reference import ReferenceEngine
from cutaway.weights import load, save
from cutaway.weights.changes import LowRank
from cutaway.weights.named_tensors import ROUTERS, Tensors
from cutaway.weights.quantize import quantized
from tests import inputs
from tests.test_native import Run, on_each_set, python

pytestmark = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built"
)


def weights(type: str, rows: int, columns: int, seed: int = 0) -> Packed:
    """Random packed weights whose deviation is columns^-0.5: any bits for the quants, random scales."""
    generator = np.random.default_rng(seed)
    layout = TYPES[type]
    if layout.block == 1:
        return formats.pack((generator.normal(size=(rows, columns)) * columns**-0.5).astype(np.float32), type)
    data = generator.integers(0, 256, (rows, columns // layout.block, layout.bytes), dtype=np.uint8)
    if type == "MXFP4":
        data[..., 0] = generator.integers(118, 123, data.shape[:2])  # 2^(that - 128) times 12 at most
    halves = generator.normal(size=(*data.shape[:2], 2))
    for factor in (1.0, None):
        if factor is None:
            factor = (
                columns**-0.5
                / formats.unpack_reference(Packed(type, (rows, columns), data.reshape(rows, -1))).std()
            )
        for n, at in enumerate(halves_at(type)):
            data[..., at : at + 2] = (halves[..., n, None] * factor).astype(np.float16).view(np.uint8)
    return Packed(type, (rows, columns), data.reshape(rows, -1))


def halves_at(type: str) -> tuple[int, ...]:
    """Where a block's scale is, and its least where it has one; MXFP4's scale is no half."""
    where = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "MXFP4": ()}
    return where.get(type, (0, 2) if type in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else (0,))


def laid(packed: Packed) -> np.ndarray:
    rows, columns = packed.shape
    out = np.empty(packed_product.packed_bytes(packed.type, rows, columns), np.uint8)
    packed_product.pack(packed.type, rows, columns, packed.data, out)
    return out


def sizes(type: str) -> list[tuple[int, int]]:
    block = TYPES[type].block
    return (
        [(16, 256), (37, 768)]
        if block == 256
        else [(16, 32), (37, 96), (5, 608), (32, 608)]
        if block == 32
        else [(16, 32), (37, 75)]
    )


@pytest.mark.parametrize("type", packed_product.TYPES)
def test_panels_are_the_same_bytes(type: str):
    for rows, columns in sizes(type):
        packed = weights(type, rows, columns)
        assert np.array_equal(laid(packed), panels.pack_reference(packed))


# Products of every type and number of vectors in a fresh process, where the environment chooses the kernel.
NEEDS = """
import sys
from types import SimpleNamespace
import numpy as np
from cutaway import gguf, native
from cutaway.native import packed_product as kernels
from cutaway.runtime import matmul
from tests.test_runtime import laid, sizes, weights
"""
PRODUCTS = """
assert native.available() and native.isa() == sys.argv[1], native.isa()

def used(shape, dtype):
    made = np.empty(shape, dtype)
    made.view(np.uint8)[...] = 255  # of floats no number, which would show
    return made

# Memory that held something before.
kernels.np = SimpleNamespace(**{**vars(np), "empty": used})
for type in kernels.TYPES:
    for rows, columns in sizes(type):
        packed = weights(type, rows, columns)
        x = np.random.default_rng(1).normal(size=(41, columns)).astype(np.float32)
        x[2] = 0
        x[3, : columns // 2] = 0
        ours = kernels.multiply(type, rows, columns, laid(packed), x)
        assert np.array_equal(ours, matmul.product(packed, x)), (type, rows, columns)
        for n in (*range(1, 9), 17, 22, 31):
            fewer = kernels.multiply(type, rows, columns, laid(packed), x[:n])
            assert np.array_equal(fewer, ours[:n]), (type, n)
        apart = np.repeat(x, 2, axis=1)[:, ::2]  # numbers of a row that are not neighbours
        assert np.array_equal(kernels.multiply(type, rows, columns, laid(packed), apart), ours), type
print("same bits")
"""


@pytest.fixture(scope="module")
def products() -> dict[str, Run]:
    return on_each_set(NEEDS, PRODUCTS)


@pytest.mark.parametrize("isa", library.SETS)
def test_each_instruction_set_gives_the_references_products(isa: str, products: dict[str, Run]):
    run = products[isa]
    if "the best that this processor has" in run.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert run.stdout == "same bits\n", run.stderr


def test_a_product_that_no_cache_holds_is_its_parts():
    """More numbers than kCached of native/runtime/matmul_amx.inc are written past the caches."""
    for type in ("Q4_1", "Q4_K"):
        packed = weights(type, 2048, 256)
        x = np.random.default_rng(3).normal(size=(531, 256)).astype(np.float32)
        whole = packed_product.multiply(type, 2048, 256, laid(packed), x, 2)
        parts = [packed_product.multiply(type, 2048, 256, laid(packed), part) for part in np.split(x, [200])]
        assert whole.ctypes.data % 64 == 0 and np.array_equal(whole, np.concatenate(parts)), type


def test_the_largest_numbers_do_not_overflow():
    """All quants at their extremes: 16-bit sums are at their limit."""
    for type in packed_product.TYPES[3:]:
        layout = TYPES[type]
        for byte in (0xFF, 0x80, 0x7F, 0x00):
            data = np.full((32, layout.bytes), byte, np.uint8)
            if type == "MXFP4":
                data[:, 0] = 128
            for at in halves_at(type):
                data[:, at : at + 2] = np.array([1.0], np.float16).view(np.uint8)
            packed = Packed(type, (32, layout.block), data)
            for sign in (1.0, -1.0):
                x = np.full((17, layout.block), sign, np.float32)  # many have a way of their own
                expected = matmul.product(packed, x[:1])
                for n in (1, 17):
                    given = packed_product.multiply(type, 32, layout.block, laid(packed), x[:n])
                    assert np.array_equal(given, np.repeat(expected, n, axis=0)), (type, byte, n)


def test_the_reference_is_the_definitions_product_of_rounded_vectors():
    x = np.random.default_rng(2).normal(size=(3, 256)).astype(np.float32)
    for type in packed_product.TYPES[3:]:
        packed = weights(type, 16, 256)
        exact = (
            matmul.rounded(x, type).astype(np.float64) @ formats.unpack_reference(packed).astype(np.float64).T
        )
        assert np.allclose(matmul.product(packed, x), exact, rtol=1e-4, atol=1e-4 * np.abs(exact).max()), type


# ---- whole models ------------------------------------------------------------------------------------------

ROPE = rope.Config(24)
SHAPES = {
    "llama": {"attention": gqa.Config(heads=6, kv_heads=2, key_size=24, position=ROPE)},
    "odd": {
        "attention": mha.Config(heads=3, key_size=10, value_size=7, position=rope.Config(6, interleaved=True))
    },
    "qwen2": {"attention": mqa.Config(heads=5, key_size=24, position=ROPE, bias=True, out_bias=True)},
    "qwen3": {"attention": gqa.Config(heads=4, kv_heads=2, key_size=24, position=ROPE, qk_norm=Norm())},
    "gemma3": {
        "attention": local.Config(
            heads=4, kv_heads=1, key_size=24, position=ROPE, qk_norm=Norm(), window=20, softcap=5.0, scale=0.3
        ),
        "activation": "gelu_tanh",
        "post_norm": True,
    },
    "plain": {
        "attention": mha.Config(heads=2, key_size=16),
        "activation": "gelu",
        "gated": False,
        "bias": True,
    },
}


SHAPES["mixtral"] = {"attention": SHAPES["llama"]["attention"], "mlp": MoE(5, 2, 40)}
SHAPES["qwen2-moe"] = {
    "attention": SHAPES["qwen2"]["attention"],
    "mlp": MoE(17, 6, 24, normalised=False, shared=72, shared_gate=True),
}
SHAPES["deepseek"] = {
    "attention": SHAPES["qwen3"]["attention"],
    "mlp": MoE(6, 1, 33, "relu", gated=False, shared=20),
    "post_norm": True,
}


LAYER, THREE = Norm("layer"), gqa.Config(heads=6, kv_heads=2, key_size=24, position=rope.Config(8))
SHAPES |= {
    "gpt2": {
        "attention": mha.Config(heads=2, key_size=16, bias=True, out_bias=True),
        "mlp": MLP(72, "relu", gated=False, bias=True),
        "block": {"norm": LAYER},
        "model": {"norm": LAYER, "position": learned.Config(400, 2)},
    },
    "bloom": {
        "attention": mha.Config(heads=3, key_size=16, relative=alibi.Config(), bias=True, softcap=4.0),
        "mlp": MLP(72, "gelu_tanh", gated=False, bias=True),
        "block": {"norm": LAYER},
        "model": {"norm": LAYER, "embedding_norm": LAYER},
    },
    "cohere": {
        "attention": replace(THREE, qk_norm=Norm("layer", bias=False), qk_norm_over="each"),
        "block": {"norm": Norm("layer", bias=False), "parallel": "shared"},
        "model": {"norm": Norm("layer", bias=False), "logit_scale": 0.3},
    },
    "neox": {
        "attention": THREE,
        "block": {"norm": LAYER, "parallel": "own"},
        "model": {"tied": False, "head_bias": True, "softcap": 6.0},
    },
    "olmo": {
        "attention": replace(THREE, qk_norm=Norm(), qk_norm_over="width", clip=0.5),
        "block": {"pre_norm": False, "post_norm": True, "residual": 0.3},
        "model": {"norm": Norm("layer", weight=False)},
    },
    "nanochat": {
        "attention": replace(THREE, qk_norm=Norm(weight=False), qk_norm_after=True),
        "mlp": MLP(72, "relu2", gated=False),
        "block": {"norm": Norm(weight=False)},
        "model": {"norm": Norm(weight=False), "embedding_norm": Norm(weight=False)},
    },
    "ministral": {"attention": replace(THREE, temperature=Temperature(0.3, 16)), "mlp": MLP(72, "xielu")},
    "gpt-oss": {
        "attention": local.Config(heads=4, kv_heads=2, key_size=24, position=ROPE, window=20, sinks=True),
        "mlp": MoE(5, 2, 40, "gelu_sigmoid", router=Router(bias=True), bias=True, limit=0.7),
    },
    "glm": {
        "attention": THREE,
        "mlp": MoE(8, 2, 24, shared=20, router=Router("sigmoid", False, True, 4, 2, True, 2.5)),
    },
    "gemma4": {
        "attention": replace(THREE, value_of_key=True, value_norm=Norm(weight=False), qk_norm=Norm()),
        "mlp": MoE(8, 3, 24, router=Router(groups=4, top_groups=2)),
        "block": {"scaled": True},
        "lends": True,
    },
}


MAMBA = mamba2.Config(heads=6, groups=2, key_size=10, value_size=9, least=0.1)
RECURRENT = ("lfm2", "qwen3-next", "mamba2", "falcon-h1", "kimi")
SHAPES |= {
    "lfm2": {"attention": short_conv.Config(channels=70, conv=3, bias=True)},
    "qwen3-next": {
        "attention": gated_delta.Config(heads=6, key_heads=2, key_size=10, value_size=20),
        "other": gated.Config(heads=6, kv_heads=2, key_size=15, position=rope.Config(8), bias=True),
    },
    "mamba2": {"attention": MAMBA, "mlp": None},
    "falcon-h1": {
        "attention": THREE,
        "mlp": MLP(72, gate_scale=0.5, out_scale=2.0, bias=True),
        "block": {
            "beside": Beside(
                replace(MAMBA, bias=True, normed="first", multipliers=(0.3, 1.7, 2.0, 0.6, 1.4)),
                (0.8, 0.7),
                (0.6, 1.2),
            )
        },
        "other": replace(MAMBA, normed=None, conv_bias=False, groups=3),
    },
}


LATENT = mla.Config(heads=6, key_size=10, rope_dim=8, latent=20, value_size=7, position=rope.Config(8))
SHAPES |= {
    "deepseek-v3": {
        "attention": replace(LATENT, query_latent=18, position=rope.Config(6, interleaved=True)),
        "mlp": MoE(8, 2, 24, shared=20, router=Router("sigmoid", False, True, 4, 2, True, 2.5)),
        "other": replace(LATENT, heads=11, latent=32, scale=0.3, value_size=None, position=None),
    },
    "phi3": {
        "attention": replace(
            THREE,
            position=rope.Config(8, scaling=LongRoPE((1.0, 1.1, 1.5, 2.0), (1.2, 3.0, 9.0, 20.0), 150, 8.0)),
        ),
    },
    "kimi": {
        "attention": kda.Config(heads=3, key_size=10, value_size=20, rank=18, conv=3),
        "other": replace(LATENT, position=None),
    },
    "minicpm3": {"attention": LATENT, "block": {"residual": 0.4}, "model": {"logit_scale": 0.3}},
}


INDEXED = dsa.Config(
    heads=6,
    key_size=10,
    rope_dim=8,
    latent=20,
    value_size=7,
    query_latent=18,
    position=rope.Config(6, interleaved=True),
    index_heads=3,
    index_size=12,
    top_k=40,
)
PAIRS = differential.Config(heads=6, kv_heads=2, key_size=20, value_size=15, position=rope.Config(8))
SHAPES |= {
    "e2b": {  # Gemma 4's small shapes: layers read the keys of others, each has an embedding of its own
        "attention": local.Config(
            heads=4,
            kv_heads=1,
            key_size=24,
            position=ROPE,
            qk_norm=Norm(),
            value_norm=Norm(weight=False),
            window=20,
        ),
        "activation": "gelu_tanh",
        "block": {"post_norm": True, "per_layer": 20},
        "model": {"per_layer": PerLayer(20, 101), "embedding_scale": 2.5, "softcap": 6.0},
        "lends": True,
    },
    "e4b": {
        "attention": replace(THREE, bias=True, out_bias=True, qk_norm=Norm()),
        "mlp": MoE(5, 2, 40, "relu2", gated=False),
        "block": {"per_layer": 37, "residual": 0.4},
        "model": {"per_layer": PerLayer(37, 120), "tied": False},
    },
    "deepseek-v3.2": {
        "attention": INDEXED,
        "other": replace(
            INDEXED, heads=11, query_latent=None, position=None, index_heads=5, index_size=7, top_k=3
        ),
    },
    "diffllama": {
        "attention": replace(PAIRS, lambda_start=0.4, norm_weight=False),
        "other": replace(PAIRS, heads=12, kv_heads=4, value_size=20, bias=True, out_bias=True, sinks=True),
    },
}


def config(name: str) -> Decoder:
    shape = dict(SHAPES[name])
    attention, post_norm = shape.pop("attention"), shape.pop("post_norm", False)
    of_block, of_model, lends = (shape.pop(key, {}) for key in ("block", "model", "lends"))
    other = shape.pop("other", SHAPES["llama"]["attention"])
    mlp = shape.pop("mlp") if "mlp" in shape else MLP(72, **shape)
    block = Block(attention, mlp, **{"norm": Norm(), "post_norm": post_norm} | of_block)
    other = Block(other, MLP(72), Norm(), per_layer=block.per_layer)
    last = replace(block, attention=replace(attention, kv_layer=0)) if lends else block
    softcap, scale = (6.0, 2.5) if name == "gemma3" else (None, 1.0)
    own = {"tied": name not in ("odd", "qwen2"), "softcap": softcap, "embedding_scale": scale}
    return Decoder(101, 50, 400, (block, other, last), **own | of_model)


def tensors(of: Decoder, type: str = "F32", seed: int = 0) -> Tensors:
    """Random weights, every one of them perturbed."""
    generator = np.random.default_rng(seed)
    entries = {}
    for name, shape in of.weights().items():
        size = shape[-1] ** -0.5 if len(shape) == 2 else 0.2
        values = np.asarray(generator.normal(size=shape), np.float32) * size + (
            1.0 if "norm" in name else 0.0
        )
        if name.endswith("activation.eps"):  # the largest x of xIELU's exponential, just below 0
            values = np.full((), -1e-6)
        entries[name] = formats.pack(np.asarray(values, np.float32), type if len(shape) == 2 else "F32")
    return Tensors(entries)


def definition(of: Decoder, entries: Tensors):
    from cutaway.model.engine import PyTorchEngine
    from cutaway.weights.build import decoder
    from cutaway.weights.checkpoint import Checkpoint

    return PyTorchEngine(decoder(Checkpoint(of, entries, None, Path("tiny"))))


IDS = np.random.default_rng(3).integers(0, 101, 300).tolist()


@pytest.mark.parametrize("name", sorted(SHAPES.keys() - {"deepseek-v3.2"}))
def test_float_weights_give_the_definitions_logits(name: str):
    """The only difference is that keys and values are kept as halves: 5e-4 of each."""
    of = config(name)
    entries = tensors(of, seed=int(name == "gpt-oss"))  # with 0 a router is at a tie, and halves tip it
    expected = definition(of, entries).logits(IDS)
    ours = RuntimeEngine(of, entries).logits(IDS)
    assert np.abs(ours - expected).max() < 4e-3 * np.abs(expected).max()


@pytest.mark.parametrize("name", sorted(SHAPES.keys() - {"phi3"}))
def test_how_a_text_is_cut_changes_nothing(name: str):
    """The same bits: at once, in chunks, a token at a time, beside other texts, on any number of threads."""
    of = config(name)
    entries = tensors(of)
    engine = RuntimeEngine(of, entries)
    whole = engine.logits(IDS)
    state = engine.new_state()
    start = 0
    for length in (1, 5, 127, 2, 100, 64, 1):
        last = engine.prefill(IDS[start : start + length], state)
        start += length
        assert np.array_equal(last, whole[start - 1]), start
    one, two = engine.new_state(), engine.new_state()
    engine.prefill(IDS[:130], one)
    engine.prefill(IDS[:7], two)
    both = engine.step_each([IDS[130], IDS[7]], [one, two])
    assert np.array_equal(both, whole[[130, 7]])
    for threads in (1, 3, 64):
        assert np.array_equal(RuntimeEngine(of, entries, threads).logits(IDS), whole)


@pytest.mark.parametrize("engine", [RuntimeEngine, ReferenceEngine])
def test_a_recurrent_state_is_a_copy_where_a_prompt_is_cut(engine: type):
    """What was read moves on: a state returns to its beginning alone, and texts share copies of it."""
    of = config("falcon-h1")
    made = engine(of, tensors(of))
    state = made.new_state()
    first = made.prefill(IDS[:20], state)
    copy = state.snapshot()
    after = made.step(IDS[20], state)
    assert np.array_equal(made.step(IDS[20], copy), after)
    with pytest.raises(UserError, match="no longer holds the first 20 tokens"):
        state.truncate(20)
    assert state.length == 21
    state.truncate(0)
    assert np.array_equal(made.prefill(IDS[:20], state), first)


def test_what_texts_share_of_a_recurrent_model_is_a_state():
    of = replace(config("lfm2"), context=600)
    engine = RuntimeEngine(of, tensors(of))
    ids = [*IDS, *IDS][: engine.page]
    state = engine.new_state()
    engine.prefill(ids, state)
    kept = engine.keep(state, 0)
    expected = engine.step(3, state)
    with pytest.raises(ValueError, match="does not end with its page 0"):
        engine.keep(state, 0)
    assert np.array_equal(engine.step(3, engine.resume([kept])), expected)
    assert np.array_equal(engine.step(3, engine.fork(engine.resume([kept]))), expected)
    other = replace(of, blocks=of.blocks[1:2])
    plain = RuntimeEngine(other, tensors(other))
    one = np.zeros(1, np.int32)
    with pytest.raises(UserError, match="0 recurrent states are not those of 1 sequences"):
        step.run_step(engine.packed.model, one, np.array([0, 1], np.int32), one, [state.addresses], one)
    assert plain.new_state().recurrent.size == 0


def test_a_recurrent_layer_shows_and_changes_no_heads():
    of = config("qwen3-next")
    engine = RuntimeEngine(of, tensors(of))
    with pytest.raises(UserError, match="the mixer of layer 0 is a recurrence"):
        engine.observe([IDS[:3]], [engine.new_state()], ["blocks.0.attention.k"])
    with pytest.raises(UserError, match="layer 0 has no attention weights"):
        engine.watch([IDS[:3]], [engine.new_state()], [2], None, [(1, 0)])
    shown = engine.observe([IDS[:3]], [engine.new_state()], ["blocks.*"])[1]
    assert "blocks.0.out" in shown and "blocks.1.attention.q" in shown
    for name in "blocks.0.attention.query", "blocks.1.attention.gate":
        change = {f"{name}.weight": LowRank(np.ones((1, 50)), np.ones((60, 1)), 1.0)}
        assert adapter.unsupported_reason(of, tensors(of), change) == f"it changes {name}.weight"


def test_latent_attention_caches_latents_alone_and_shares_them():
    """A page is as large as the config says, is read by other texts, and shows what heads gave."""
    of, entries = wide("Q8_0", mixer=WIDE_LATENT)
    engine, reference = RuntimeEngine(of, entries), ReferenceEngine(of, entries)
    assert engine.page_bytes == step.PAGE * of.bytes_per_token(2) == step.PAGE * 2 * 2 * (256 + 32)
    state = engine.new_state()
    engine.prefill(IDS[:130], state)
    expected = engine.step(IDS[130], state)
    other = engine.resume([engine.keep(state, 0)])
    engine.prefill(IDS[128:130], other)
    assert np.array_equal(engine.step(IDS[130], other), expected)
    assert np.array_equal(engine.step(3, engine.fork(other)), engine.step(3, engine.fork(state)))
    names = ["blocks.1.attention.z", "blocks.1.attention.pattern"]
    ours, theirs = (each.observe([IDS[:9]], [each.new_state()], names)[1] for each in (engine, reference))
    assert ours[names[0]].shape == (9, 4, 64) and np.array_equal(ours[names[0]], theirs[names[0]])
    for one, two in zip(ours[names[1]], theirs[names[1]], strict=True):
        assert np.allclose(one, two, atol=1e-6)
    with pytest.raises(UserError, match="layer 0 attends to latents, which no head owns"):
        engine.observe([IDS[:3]], [engine.new_state()], ["blocks.0.attention.k"])
    change = {"blocks.0.attention.query.weight": LowRank(np.ones((1, 256)), np.ones((384, 1)), 1.0)}
    assert adapter.unsupported_reason(of, entries, change) == "it changes blocks.0.attention.query.weight"


def read_alike(engine: RuntimeEngine, ids: list[int]) -> dict[str, Listener]:
    """Edits by which a definition's layers read the keys that the runtime's indexers choose."""
    layers = [n for n, block in enumerate(engine.config.blocks) if block_numbers.indexed(block.attention)]
    names = [f"blocks.{n}.attention.pattern" for n in layers]
    seen = engine.observe([ids], [engine.new_state()], names)[1] if layers else {}
    edits: dict[str, Listener] = {}
    for n, name in zip(layers, names, strict=True):
        chosen = torch.zeros(1, len(ids), len(ids), dtype=torch.bool)
        for t, pattern in enumerate(seen[name]):
            chosen[0, t, : t + 1] = torch.from_numpy(pattern.max(axis=0) > 0)
        edits[f"blocks.{n}.attention.chosen"] = lambda _, chosen=chosen: chosen
    return edits


def test_an_indexer_chooses_the_definitions_keys():
    """As many as it may, none whose score is lower than another's by more than halves cost; the logits are
    those of the PyTorch model that reads the same keys.
    """
    of = config("deepseek-v3.2")
    entries = tensors(of)
    engine = RuntimeEngine(of, entries)
    alike = read_alike(engine, IDS)
    names = [f"blocks.{n}.attention.{what}" for n in range(3) for what in ("index", "chosen")]
    model = definition(of, entries).model
    with torch.no_grad(), tracing(model, *names, edit=alike) as own:
        expected = model(torch.tensor([IDS]), torch.arange(300)[None])[0].numpy()
    assert np.abs(engine.logits(IDS) - expected).max() < 4e-3 * np.abs(expected).max()
    past = torch.ones(300, 300).tril().bool()
    for n, block in enumerate(of.blocks):
        scores, chosen = (own[f"blocks.{n}.attention.{what}"][0] for what in ("index", "chosen"))
        assert torch.equal(chosen.sum(1), (torch.arange(300) + 1).clamp(max=block.attention.top_k))
        least = scores.masked_fill(~chosen, torch.inf).amin(1)
        best = scores.masked_fill(chosen | ~past, -torch.inf).amax(1)
        assert (best - least).max() < 4e-3 * scores.abs().max()


@pytest.mark.parametrize("engine", [RuntimeEngine, ReferenceEngine])
def test_of_equal_index_scores_the_earliest_keys_are_read(engine: type):
    of = config("deepseek-v3.2")
    entries = dict(tensors(of))
    for name in [name for name in entries if name.endswith("index_weight.weight")]:
        entries[name] = formats.pack(np.zeros(entries[name].shape, np.float32), "F32")
    expected = definition(of, Tensors(entries)).logits(IDS[:60])
    ours = engine(of, Tensors(entries)).logits(IDS[:60])
    assert np.abs(ours - expected).max() < 4e-3 * np.abs(expected).max()


@pytest.mark.parametrize("engine", [RuntimeEngine, ReferenceEngine])
def test_a_text_that_outgrows_longropes_first_lengths_is_read_again(engine: type):
    """The last logits are those of the whole text read at once, on both sides of the length, cut anyhow."""
    of = config("phi3")
    made = engine(of, tensors(of))

    def whole(length: int) -> np.ndarray:
        return made.prefill(IDS[:length], made.new_state())

    state, other = made.new_state(), made.new_state()
    for start, end in (0, 40), (40, 149), (149, 150), (150, 151), (151, 152), (152, 200):
        last = made.prefill(IDS[start:end], state) if end - start > 1 else made.step(IDS[start], state)
        assert np.array_equal(last, whole(end)), end
    copy = state.snapshot()
    state.truncate(100)
    assert np.array_equal(made.step(IDS[100], state), whole(101))
    assert np.array_equal(made.step(IDS[200], copy), whole(201))
    made.prefill(IDS[:150], other)
    both = made.step_each([IDS[150], IDS[101]], [other, state])
    assert np.array_equal(both, [whole(151), whole(102)])


def test_pages_that_rotate_otherwise_are_shared_with_texts_of_their_kind():
    of = config("phi3")
    engine = RuntimeEngine(of, tensors(of))
    short, long = engine.new_state(), engine.new_state()
    engine.prefill(IDS[:140], short)
    expected = engine.prefill(IDS[:280], long)
    next = engine.prefill(IDS[:281], engine.new_state())
    assert np.array_equal(engine.step(IDS[280], engine.fork(long)), next)
    for kept in ([(long, 0), (long, 1)], [(short, 0), (long, 1)], [(short, 0)], [(long, 0)]):
        pages = [engine.keep(each, page) for each, page in kept]
        state = engine.resume(pages)
        assert np.array_equal(engine.prefill(IDS[128 * len(pages) : 280], state), expected)
    state = engine.resume([engine.keep(long, 0)])
    at_140 = engine.prefill(IDS[:140], engine.new_state())
    assert np.array_equal(engine.prefill(IDS[128:140], state), at_140)
    state = engine.resume([engine.keep(long, 0)])  # whose page is as it was
    assert np.array_equal(engine.prefill(IDS[128:280], state), expected)
    grows = rope.Config(8, scaling=DynamicNTK(2.0, 64))
    other = replace(of, blocks=(replace(of.blocks[0], attention=replace(THREE, position=grows)),))
    assert (
        supported.unsupported_reason(other, tensors(of)) == "block 0: its positions change as the text grows"
    )


@pytest.mark.parametrize("engine", [RuntimeEngine, ReferenceEngine])
def test_of_equal_scores_the_first_expert_is_chosen(engine: type):
    """As in the PyTorch model (tests/laws/test_moe.py); random routers never score two experts alike."""
    of = config("mixtral")
    entries = dict(tensors(of))
    for name in [name for name in entries if name.endswith("router.weight")]:
        entries[name] = formats.pack(np.zeros(entries[name].shape, np.float32), "F32")
    expected = definition(of, Tensors(entries)).logits(IDS[:20])
    ours = engine(of, Tensors(entries)).logits(IDS[:20])
    assert np.abs(ours - expected).max() < 4e-3 * np.abs(expected).max()


@pytest.mark.parametrize("engine", [RuntimeEngine, ReferenceEngine])
@pytest.mark.parametrize("gap", [0.0, 1e-4])
def test_near_a_routers_tie_either_expert_may_be_chosen(engine: type, gap: float):
    """Where scores differ by less than twice what halves of keys and values move one by, and else the best.

    Two experts' rows differ in their last bits, or are far apart and their logits by ``gap`` on every token.
    """
    of, ids = config("deepseek"), IDS[:40]
    of = replace(of, blocks=of.blocks[:1])
    entries = dict(tensors(of))
    name, norm, scored = "blocks.0.mlp.router.weight", "blocks.0.mlp_norm", "blocks.0.mlp.scores"

    def seen(*names: str) -> dict[str, np.ndarray]:
        model = definition(of, Tensors(entries)).model
        with torch.no_grad(), tracing(model, *names) as own:
            model(torch.tensor([ids]), torch.arange(40)[None])
        return {each: own[each][0].numpy() for each in names}

    router = formats.unpack(entries[name]).copy()
    generator = np.random.default_rng(6)
    if gap:
        x = seen(norm)[norm].astype(np.float64)
        unread = np.linalg.svd(x)[2][40:]  # directions that no token has, in the PyTorch model
        apart_by = generator.normal(size=len(unread)) @ unread
        router[1] = router[0] - np.linalg.pinv(x) @ np.full(40, gap) + apart_by
        router[2:] -= 10 * x.mean(axis=0) / np.square(x.mean(axis=0)).sum()  # no third expert is chosen
    else:
        ends = generator.choice([-np.inf, np.inf], of.width).astype(np.float32)
        router[1] = np.nextafter(router[0], ends)
    entries[name] = formats.pack(router, "F32")
    ours = (made := engine(of, Tensors(entries))).logits(ids)
    read = made.observe([ids], [made.new_state()], [norm])[1][norm]
    model = definition(of, Tensors(entries)).model
    indices = "blocks.0.mlp.expert_indices"
    forced = [watched(model, [ids], {indices: lambda c, e=e: torch.full_like(c, e)})[0] for e in range(6)]
    scores = seen(scored)[scored]
    distances = np.sort(by_expert := np.array([apart(ours, each) for each in forced]), axis=0)
    chosen = by_expert.argmin(axis=0)
    assert distances[0].max() < 4e-3 and distances[1].min() > 1e-2
    logits = torch.from_numpy(np.asarray(read).reshape(40, -1) @ router.T)
    own = logits.sigmoid() if of.blocks[0].mlp.router.score == "sigmoid" else logits.softmax(dim=1)
    margin = 2 * np.abs(own.numpy() - scores).max(axis=1) + 1e-6
    assert margin.max() < 4e-3
    behind = scores.max(axis=1) - np.take_along_axis(scores, chosen[:, None], axis=1)[:, 0]
    ties = np.ptp(np.sort(scores, axis=1)[:, -2:], axis=1) < margin
    assert ties.any() and (behind < margin).all()
    assert np.array_equal(chosen[~ties], scores.argmax(axis=1)[~ties])
    assert gap == 0 or behind.max() > 1e-6  # halves of keys and values tip some


MLPS = {"dense": MLP(512), "sparse": MoE(5, 2, 256, shared=256, shared_gate=True)}


def digested(files: list[str]) -> dict[str, tuple[Decoder, Tensors, list[int]]]:
    """Models of every shape, type and file, with the ids that each reads."""
    # These are read past the first page.
    paged = ("llama", "gemma3", "bloom", "gpt-oss", "phi3", "diffllama", "deepseek-v3", "deepseek-v3.2")
    models = {n: (config(n), tensors(config(n)), IDS[: 151 if n in paged else 20]) for n in SHAPES}
    for type in packed_product.TYPES:
        models |= {f"{type} {name}": (*wide(type, mlp), IDS[:9]) for name, mlp in MLPS.items()}
        models[f"{type} latent"] = (*wide(type, mixer=WIDE_LATENT), IDS[:9])
    for type in ("BF16", "Q8_0", "Q6_K"):
        models[f"{type} per-layer"] = (*wide(type, own=256), IDS[:9])
        models[f"{type} indexed"] = (*wide(type, mixer=WIDE_INDEXED), IDS[:9])
    for file in files:
        checkpoint = load.read_checkpoint(file)
        assert isinstance(checkpoint.config, Decoder)
        models[file] = (checkpoint.config, checkpoint.tensors, [504, 3575, 282, 4649, 314])
    return models


def digests(
    engine: type[RuntimeEngine | ReferenceEngine], models: dict[str, tuple[Decoder, Tensors, list[int]]]
) -> dict[str, str]:
    """The SHA-256 of the logits of each: one bit changes it."""
    return {
        name: hashlib.sha256(engine(of, entries).logits(ids).tobytes()).hexdigest()
        for name, (of, entries, ids) in models.items()
    }


EXPECTED = """
import sys
from cutaway import native
from tests.test_runtime import ReferenceEngine, RuntimeEngine, digested, digests
models = digested(sys.argv[2:])
expected = digests(ReferenceEngine, models)
"""
DIGESTS = """
assert native.isa() == sys.argv[1]
ours = digests(RuntimeEngine, models)
assert ours == expected, [name for name in expected if ours[name] != expected[name]]
print("same bits")
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """SmolLM2 as its file has it (Q4_1, Q8_0), and as Q4_K (with Q5_0, Q6_K and Q8_0 beside it)."""
    source = inputs.path("smollm2")
    target = tmp_path_factory.mktemp("real") / "q4_k.gguf"
    save.write_checkpoint(target, quantized(load.read_checkpoint(source), "Q4_K").checkpoint, "gguf")
    return {"Q4_1": source, "Q4_K": target}


@pytest.fixture(scope="module")
def computed(real: dict[str, Path]) -> dict[str, Run]:
    return on_each_set(EXPECTED, DIGESTS, *map(str, real.values()))


@pytest.mark.parametrize("isa", library.SETS)
def test_each_instruction_set_gives_the_references_logits(isa: str, computed: dict[str, Run]):
    run = computed[isa]
    if "the best that this processor has" in run.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert run.stdout == "same bits\n", run.stderr


def watched(model: Any, texts: Sequence[Sequence[int]], edits: Mapping[str, Listener]) -> np.ndarray:
    """The logits [b t v] of texts of one length by the PyTorch model under edits: the runtime's roundings."""
    ids = torch.tensor(texts)
    with torch.no_grad(), tracing(model, edit=edits):
        return model(ids, torch.arange(ids.shape[1]).expand_as(ids)).numpy()


def routed_alike(
    engine: RuntimeEngine, model: Any, ids: list[int], edits: Mapping[str, Listener]
) -> dict[str, Listener]:
    """Edits by which a definition's tokens pass the experts that the runtime chooses.

    Where two experts' scores are nearer than what rounded vectors move them by, either choice is right, and
    which one is made depends on the processor. A choice that is another one at a larger gap fails here.
    """
    sparse = [n for n, block in enumerate(model.config.blocks) if isinstance(block.mlp, MoE)]
    norms = ["mlp_norm" if "mlp_norm" in model.config.blocks[n].norms else "attention_norm" for n in sparse]
    names = [f"blocks.{n}.{norm}" for n, norm in zip(sparse, norms, strict=True)]
    seen = engine.observe([ids], [engine.new_state()], names)[1] if sparse else {}
    alike: dict[str, Listener] = {}
    for n, name in zip(sparse, names, strict=True):
        block, pos = model.blocks[n], torch.arange(len(ids))[None]
        with torch.no_grad(), tracing(model, f"blocks.{n}.mlp.scores", edit={**edits, **alike}) as own:
            model(torch.tensor([ids]), pos)
            _, (_, chosen) = block.mlp(torch.from_numpy(seen[name])[None], pos)
        scores = own[f"blocks.{n}.mlp.scores"][0]
        order = scores.sort(descending=True).values
        gap = order[:, block.mlp.top_k - 1] - order[:, block.mlp.top_k]
        other = scores.gather(1, chosen[0]).sum(1) < order[:, : block.mlp.top_k].sum(1) - 1e-6
        assert other.sum() <= len(ids) / 10 and (gap[other] < 0.02).all(), (n, gap[other])
        alike[f"blocks.{n}.mlp.expert_indices"] = lambda _, chosen=chosen: chosen
    return alike


def layer_alone(of: Decoder, entries: Tensors, n: int, inputs: np.ndarray) -> tuple[Decoder, Tensors]:
    """A model of block n alone: token i's embedding is row i of ``inputs``, its logits the normed output."""
    width = of.width
    table = np.zeros((width, width), np.float32)
    table[: len(inputs)] = inputs
    floats = {"embedding": table, "head": np.eye(width, dtype=np.float32), "norm": np.ones(width, np.float32)}
    held = {f"{name}.weight": formats.pack(values, "F32") for name, values in floats.items()}
    here = f"blocks.{n}."
    held |= {name.replace(here, "blocks.0."): entries[name] for name in entries if name.startswith(here)}
    return replace(of, vocab=width, blocks=(of.blocks[n],), tied=False), Tensors(held)


def layer_inputs(model: Any, ids: list[int], edits: Mapping[str, Listener]) -> list[np.ndarray]:
    """The residual stream [t d] that enters each layer, under edits."""
    names = ["embed", *(f"blocks.{n}.out" for n in range(len(model.config.blocks) - 1))]
    with torch.no_grad(), tracing(model, *names, edit=edits) as seen:
        model(torch.tensor([ids]), torch.arange(len(ids))[None])
    return [seen[name][0].numpy() for name in names]


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) of each position's predictions, in nats, of logits [t v]."""
    one, other = (torch.from_numpy(each).double().log_softmax(-1) for each in (p, q))
    return (one.exp() * (one - other)).sum(-1).numpy()


@pytest.mark.parametrize("kind", ["Q4_1", "Q4_K"])
def test_a_real_models_law(kind: str, real: dict[str, Path]):
    """docs/runtime.md's distributions: the runtime beside the PyTorch model that makes the same roundings."""
    checkpoint = load.read_checkpoint(real[kind])
    of, entries = checkpoint.config, checkpoint.tensors
    assert isinstance(of, Decoder)
    edits = activation_quant.edits(of, entries)
    plain = definition(of, entries)
    engine = RuntimeEngine(of, entries)
    ids = checkpoint.tokenizer.encode(Path(__file__).read_text()[:200])[:40]
    alone = np.concatenate([engine.logits([id]) for id in ids])
    firsts = apart(alone, watched(plain.model, [[id] for id in ids], edits)[:, 0])
    assert np.median(firsts) < 1e-2 and max(firsts) < 0.06, firsts
    ours = engine.logits(ids)
    whole = apart(ours, watched(plain.model, [ids], edits)[0])
    assert np.median(whole) < 5e-2 and whole.max() < 0.25, whole
    assert divergence(plain.logits(ids), ours).mean() < 0.02
    layers_apart = []
    inputs = layer_inputs(plain.model, ids, edits)
    for n in 0, 12, 24:
        layer, held = layer_alone(of, entries, n, inputs[n])
        rows = list(range(len(ids)))
        rounded = watched(definition(layer, held).model, [rows], activation_quant.edits(layer, held))[0]
        layers_apart.append(apart(RuntimeEngine(layer, held).logits(rows), rounded))
    # The first layer's inputs are 8-bit embeddings: after its norm many are midway between two roundings.
    assert max(map(np.max, layers_apart)) < 0.02
    assert np.median(layers_apart[1:]) < 1e-6 and np.mean(np.array(layers_apart[1:]) < 1e-5) > 0.6, (
        layers_apart
    )


def test_the_reference_reads_on_where_it_stopped():
    of = config("gemma3")
    engine = ReferenceEngine(of, tensors(of))
    whole, state = engine.logits(IDS[:150]), engine.new_state()
    engine.prefill(IDS[:140], state)
    copy = state.snapshot()
    engine.prefill(IDS[200:205], state)
    state.truncate(140)
    for each in (state, copy):
        assert np.array_equal(engine.prefill(IDS[140:150], each), whole[-1])
        assert np.array_equal(engine.step_each([IDS[150]], [each])[0], engine.logits(IDS[:151])[-1])
    with pytest.raises(UserError, match="outside the model's 0 to 100"):
        engine.step(101, state)
    with pytest.raises(UserError, match="context holds 400 ids, and this text has 401"):
        engine.prefill([1] * 401, engine.new_state())


WITHOUT_CORE = """
import warnings
from pathlib import Path
from cutaway.lm import LanguageModel
from cutaway.weights.checkpoint import Checkpoint
from tests.test_runtime import IDS, config, tensors

of = config("llama")
checkpoint = Checkpoint(of, tensors(of), None, Path("tiny"))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    lm = LanguageModel(checkpoint, engine="runtime")
    lm.logits(IDS[:5]), LanguageModel(checkpoint, engine="runtime").logits(IDS[:5])
print(type(lm.engine).__name__, LanguageModel(checkpoint).engine_choice[0], len(caught))
"""


def test_without_the_core_the_reference_serves_and_says_so_once():
    run = python(WITHOUT_CORE, CUTAWAY_PURE="1")
    assert run.stdout == "ReferenceEngine pytorch 1\n", run.stderr


def test_a_state_forgets_and_is_copied():
    of = config("gemma3")
    engine = RuntimeEngine(of, tensors(of))
    state = engine.new_state()
    engine.prefill(IDS[:200], state)
    copy = state.snapshot()
    expected = engine.step(IDS[200], state)
    state.truncate(100)
    assert (state.length, len(state.addresses)) == (100, 1)
    engine.prefill(IDS[100:200], state)
    assert np.array_equal(engine.step(IDS[200], state), expected)
    state.truncate(100)
    engine.prefill(IDS[:100], state)  # other tokens in the same places
    assert np.array_equal(engine.step(IDS[200], copy), expected)


WIDE = gqa.Config(heads=4, kv_heads=2, key_size=64, position=rope.Config(64))
WIDE_LATENT = mla.Config(
    heads=4, key_size=64, rope_dim=32, latent=256, query_latent=256, position=rope.Config(32)
)

WIDE_INDEXED = dsa.Config(**vars(WIDE_LATENT), index_heads=2, index_size=128, top_k=5)


def wide(
    type: str, mlp: MLP | MoE = MLPS["dense"], mixer: Any = WIDE, own: int | None = None
) -> tuple[Decoder, Tensors]:
    """``own``: the numbers that each block has of a token."""
    block = Block(mixer, mlp, Norm(), per_layer=own)
    per_layer = PerLayer(own, 160) if own else None
    of = Decoder(160, 256, 300, (block, block), tied=type != "Q6_K", per_layer=per_layer)
    generator = np.random.default_rng(4)
    entries = {}
    for n, (name, shape) in enumerate(of.weights().items()):
        if len(shape) == 2:
            entries[name] = weights("F32" if name.endswith(ROUTERS) else type, *shape, seed=n)
        else:
            entries[name] = formats.pack(generator.normal(1, 0.1, shape).astype(np.float32), "F32")
    return of, Tensors(entries)


@pytest.mark.parametrize("type", ["F16", "BF16", "Q8_0"])
def test_latent_attention_of_packed_weights_is_the_definitions(type: str):
    """Within what rounded vectors cost: each head's two products read vectors of eight bits too."""
    of, entries = wide(type, mixer=WIDE_LATENT)
    distance = apart(RuntimeEngine(of, entries).logits(IDS[:60]), definition(of, entries).logits(IDS[:60]))
    assert np.median(distance) < {"F16": 1e-3, "BF16": 0.015, "Q8_0": 0.04}[type]


@pytest.mark.parametrize("own", [None, 256])
@pytest.mark.parametrize("type", ["F16", "BF16", "Q8_0"])
def test_embeddings_of_layers_and_differences_are_traced(type: str, own: int | None):
    """The PyTorch model rounds what their packed matrices read as the runtime does, where traced."""
    pairs = differential.Config(heads=4, kv_heads=2, key_size=64, norm_weight=False)
    of, entries = wide(type, mixer=pairs, own=own)
    edits = activation_quant.edits(of, entries)
    ours = RuntimeEngine(of, entries).logits(IDS[:30])
    distance = apart(ours, watched(definition(of, entries).model, [IDS[:30]], edits)[0])
    assert np.median(distance) < (1e-3 if type == "F16" else 0.03)
    assert distance[0] < (1e-5 if type == "F16" else 0.01), distance


@pytest.mark.parametrize("engine", [RuntimeEngine, ReferenceEngine])
def test_differences_are_shown_and_their_values_as_they_are_kept(engine: type):
    """Two values are kept side by side, and share scales there."""
    of = config("diffllama")
    entries = tensors(of)
    names = [f"blocks.1.attention.{name}" for name in ("q", "k", "v", "z", "pattern")]
    for kind in cache_formats.KINDS:
        made, plain = engine(of, entries, kv_cache=kind), ReferenceEngine(of, entries, kind)
        ours, theirs = (each.observe([IDS[:5]], [each.new_state()], names)[1] for each in (made, plain))
        for name in names[:4]:
            assert np.array_equal(ours[name], theirs[name]), name
        for one, two in zip(ours[names[4]], theirs[names[4]], strict=True):
            assert one.shape == two.shape and np.allclose(one, two, atol=1e-6)
    model = definition(of, entries).model
    with torch.no_grad(), tracing(model, *names) as seen:
        model(torch.tensor([IDS[:5]]), torch.arange(5)[None])
    shown = engine(of, entries).observe([IDS[:5]], [engine(of, entries).new_state()], names)[1]
    for name in names[:4]:
        expected = seen[name][0].transpose(0, 1).numpy()
        assert np.abs(shown[name] - expected).max() < 4e-3 * np.abs(expected).max(), name


@pytest.mark.parametrize("mlp", MLPS)
@pytest.mark.parametrize("type", packed_product.TYPES)
def test_packed_weights_give_the_logits_of_rounded_vectors(type: str, mlp: str):
    """Every type, against the trace that shows what the runtime computes with."""
    of, entries = wide(type, MLPS[mlp])
    plain = definition(of, entries)
    edits = activation_quant.edits(of, entries)
    engine = RuntimeEngine(of, entries)
    ours = engine.logits(IDS[:60])
    # A value within rounding noise of the midpoint of two roundings goes to either; what follows moves by
    # less than eight bits cost. In two random layers of 256 few do at a text's first token.
    alone = watched(plain.model, [[id] for id in IDS[:7]], edits)[:, 0]
    firsts = apart(np.concatenate([engine.logits([id]) for id in IDS[:7]]), alone)
    # The head's second rounding has its edges too, 254 times lower: a stream that differs by 1e-6, which is
    # torch's order of adding, moves these logits by 1.4e-5 there, and by 1e-6 where the head rounds once.
    assert np.median(firsts) < (1e-5 if type in matmul.FLOATS else 3e-5), firsts
    alike = routed_alike(engine, plain.model, IDS[:60], edits)
    assert apart(ours, watched(plain.model, [IDS[:60]], edits | alike)[0]).max() < 0.06
    if type not in matmul.FLOATS:
        assert apart(ours, plain.logits(IDS[:60]))[0] > 1e-3


@pytest.mark.parametrize("type", packed_product.TYPES)
def test_a_tied_table_is_read_out_of_the_heads_panels(type: str):
    """As an untied model reads the same table from its rows: to the bit, out of a half-filled panel too."""
    of, entries = wide(type)
    table = weights(type, 155, of.width)
    held = Tensors({**entries, "embedding.weight": table, "head.weight": table})
    tied, untied = (RuntimeEngine(replace(of, vocab=155, tied=each), held) for each in (True, False))
    assert np.array_equal(tied.logits(range(155)), untied.logits(range(155)))


def apart(ours: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The error of each position's logits relative to their size."""
    return np.linalg.norm(ours - expected, axis=1) / np.linalg.norm(expected, axis=1)


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "type", [type for type in packed_product.TYPES if type != "MXFP4"]
)  # all its bytes are numbers
def test_weights_that_are_no_numbers_are_refused(type: str):
    of, entries = wide(type)
    broken = dict(entries)
    name = "blocks.1.mlp.down.weight"
    data = broken[name].data.copy()
    at = halves_at(type)[0]
    bad = {"F32": b"\x00\x00\x80\x7f", "BF16": b"\x80\x7f"}.get(type, b"\x00\x7c")
    data[5, at : at + len(bad)] = np.frombuffer(bad, np.uint8)
    broken[name] = Packed(type, broken[name].shape, data)
    with pytest.raises(
        UserError, match=r"blocks.1.mlp.down.weight cannot be run: row 5 holds a weight that is infinite"
    ):
        RuntimeEngine(of, Tensors(broken))
    broken = dict(entries) | {"norm.weight": formats.pack(np.full(256, np.nan, np.float32), "F32")}
    with pytest.raises(UserError, match=r"norm.weight holds an infinity or NaN"):
        RuntimeEngine(of, Tensors(broken))


PEAK = """
import sys
from pathlib import Path
from cutaway import gguf, native
from cutaway.runtime.engine import RuntimeEngine
from cutaway.weights.rules import Tensors
from tests.test_runtime import large

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

file, config = gguf.read(sys.argv[1]), large()
native.isa()  # loads the core
before = peak()
engine = RuntimeEngine(config, Tensors(file.tensors))
state = engine.new_state()
for first in range(0, config.vocab, 4000):  # rows from all over the table, few at once: little scratch
    engine.prefill(range(first, first + 4000, 200), state)
print((peak() - before) / Path(sys.argv[1]).stat().st_size)
"""


def large() -> Decoder:
    return Decoder(
        40_000, 512, 300, (Block(gqa.Config(heads=8, kv_heads=4, key_size=64), MLP(1024), Norm()),)
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_memory_never_holds_the_weights_twice(tmp_path: Path):
    """The peak is at most 1.25 times the file: what was read of it leaves as panels are made, and no text
    brings it back.
    """
    of = large()
    vector = formats.pack(np.ones(512, np.float32), "F32")
    entries = {
        name: weights("Q8_0", *shape) if len(shape) == 2 else vector for name, shape in of.weights().items()
    }
    gguf.write(tmp_path / "large.gguf", {"general.architecture": "ours"}, entries)
    run = python(PEAK, str(tmp_path / "large.gguf"))
    assert float(run.stdout) < 1.25, run.stderr


LONG = """
from pathlib import Path
from cutaway.attention import gqa
from cutaway.layers.config import MLP, Norm
from cutaway.model.config import Block, Decoder
from cutaway.runtime.engine import RuntimeEngine
from tests.test_runtime import tensors

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

config = Decoder(50, 32, 20_000, (Block(gqa.Config(heads=2, kv_heads=1, key_size=16), MLP(32), Norm()),))
engine = RuntimeEngine(config, tensors(config))
state = engine.new_state()
engine.prefill([1] * 1024, state)
before = peak()
engine.prefill([1] * 15_000, state)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_a_long_prompt_never_holds_its_scores():
    """Those of the last 512 tokens with all before them would take 65 MB, those of all with all 2 GB."""
    run = python(LONG)
    assert int(run.stdout) < 16e6, run.stderr


def test_models_it_does_not_know_are_refused():
    of = config("e2b")
    fewer = replace(of, per_layer=PerLayer(20, 100))
    reason = "its per-layer embeddings have fewer rows than its vocabulary"
    assert supported.unsupported_reason(fewer, tensors(fewer)) == reason
    change = {"blocks.0.per_layer.gate.weight": LowRank(np.ones((1, 50)), np.ones((20, 1)), 1.0)}
    assert adapter.unsupported_reason(of, tensors(of), change) == "it changes blocks.0.per_layer.gate.weight"
    of = config("llama")
    relative = replace(of.blocks[0].attention, position=None, relative=t5.Config())
    other = replace(of, blocks=(replace(of.blocks[0], attention=relative),))
    assert supported.unsupported_reason(of, tensors(of)) is None
    assert supported.unsupported_reason(other, tensors(of)) == "block 0: its scores have learned biases"
    waves = replace(of, position=sinusoidal.Config())
    assert supported.unsupported_reason(waves, tensors(of)) == "sinusoids are added to the embeddings"
    with pytest.raises(
        UserError, match="because sinusoids are added to the embeddings: use engine='pytorch'"
    ):
        RuntimeEngine(waves, tensors(of))
    with pytest.raises(UserError, match="groups"):  # a token's experts do not fit into its best groups
        MoE(8, 3, 24, router=Router(groups=4, top_groups=1))


def test_what_does_not_fit_is_refused():
    of = config("llama")
    engine = RuntimeEngine(of, tensors(of))
    state = engine.new_state()
    with pytest.raises(UserError, match="outside the model's 0 to 100"):
        engine.step(101, state)
    with pytest.raises(UserError, match="context holds 400 ids, and this text has 401"):
        engine.prefill([1] * 401, state)
    with pytest.raises(UserError, match="one state"):
        engine.step_each([1, 2], [state, state])
    assert state.length == 0
    many = np.zeros(1, np.int32)
    with pytest.raises(UserError, match="0 pages do not hold positions 0 to 0"):
        step.run_step(
            engine.packed.model, many, np.array([0, 1], np.int32), many, [np.empty(0, np.uint64)], many
        )


def test_a_wrong_number_of_threads_is_no_weights_fault(monkeypatch: pytest.MonkeyPatch):
    of = config("llama")
    monkeypatch.setenv("CUTAWAY_THREADS", "many")
    with pytest.raises(UserError, match=r"^CUTAWAY_THREADS is 'many'; set it to a number from 1 up"):
        RuntimeEngine(of, tensors(of))


def test_the_structures_mirror_the_compilers():
    structures.check_sizes()
    assert ctypes.sizeof(packed_product.Matrix) == 32


def test_a_token_alone_is_read_as_with_others():
    """A step has structures of its own; it gives the bits that reading gives, and refuses the same."""
    of = config("llama")
    engine = RuntimeEngine(of, tensors(of), 2)
    one, other = engine.new_state(), engine.new_state()
    for id in np.random.default_rng(5).integers(0, of.vocab, 9).tolist():
        assert np.array_equal(engine.step(id, one), engine.read([[id]], [other], [0])[0])
    assert one.length == other.length == 9
    for id in -1, of.vocab:
        with pytest.raises(UserError, match="An id is outside"):
            engine.step(id, one)
    with pytest.raises(UserError, match="pages do not hold"):
        step.OneToken(engine.packed.model).read(0, 128, one.addresses[:1])


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize(
    "name", ["llama", "gemma3", "gpt2", "deepseek", "deepseek-v3", "deepseek-v3.2", "diffllama", "e2b"]
)
def test_a_smaller_kv_cache_gives_the_references_bits(name: str, kind: Any):
    of = config(name)
    entries = tensors(of)
    ids = np.random.default_rng(3).integers(0, of.vocab, 150).tolist()
    engine, reference = RuntimeEngine(of, entries, kv_cache=kind), ReferenceEngine(of, entries, kind)
    one, other = engine.new_state(), reference.new_state()
    for part in (ids[:129], ids[129:131]):
        logits = engine.prefill(part, one)
        assert np.array_equal(logits, reference.prefill(part, other))
    for id in ids[131:134]:
        assert np.array_equal(engine.step(id, one), reference.step(id, other))
    plain = RuntimeEngine(of, entries)
    ratio = plain.page_bytes / engine.page_bytes
    assert (1.1 if kind == "Q8_0" else 1.8) < ratio <= (1.89 if kind == "Q8_0" else 3.56)
    if name == "deepseek-v3.2":  # whose indexer chooses other keys
        return
    whole = plain.prefill(ids[:131], plain.new_state())
    apart = np.abs(engine.prefill(ids[:131], engine.new_state()) - whole).max() / np.abs(whole).max()
    assert 0 < apart < (0.1 if kind == "Q8_0" else 1.0)


def test_what_a_kv_cache_keeps_of_numbers():
    x = np.random.default_rng(0).normal(size=(7, 3, 40)).astype(np.float32)
    x[0, 0, :32] = 0
    for kind, most in (("Q8_0", 1 / 127), ("Q4_0", 1 / 8)):
        kept = cache_formats.stored(x, kind)
        groups = np.abs(np.pad(x, ((0, 0), (0, 0), (0, 24)))).reshape(7, 3, 2, 32).max(-1)
        error = np.abs(np.pad(kept - x, ((0, 0), (0, 0), (0, 24)))).reshape(7, 3, 2, 32).max(-1)
        assert (error <= groups * (most * 1.01)).all() and not kept[0, 0, :32].any()
    assert np.array_equal(cache_formats.stored(x, "F16"), x.astype(np.float16))
    with pytest.raises(UserError, match="kv_cache 'Q3_K' is not known: use one of F16, Q8_0, Q4_0"):
        cache_formats.check("Q3_K")
