"""What a config accepts to its limit, and refuses past it."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn

from cutaway.attention.state.caches import Full
from cutaway.attention.state.paged import Pool
from cutaway.attention.state.quantized import Quantized
from cutaway.errors import UserError
from cutaway.layers.config import MLP
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder as DecoderConfig
from cutaway.model.decoder import Decoder
from cutaway.position import mrope, rope, sinusoidal, t5
from cutaway.position.scaling import DynamicNTK, YaRN
from tests.laws.mechanisms import ALL, WIDTH, attention

# Fields that must be 1 at least, in whatever kind has them.
COUNTS = ("window", "first", "chunk", "summary", "stride", "globals", "block", "random", "top_k", "conv")
COUNTED = [
    (kind, name)
    for kind in ALL
    for name in COUNTS
    if name in {f.name for f in fields(type(attention(kind)))}
    and (kind, name) not in (("bidirectional", "globals"), ("delta", "conv"))  # which may be none
]


@pytest.mark.parametrize(("kind", "name"), COUNTED)
def test_one_is_the_least(kind: str, name: str) -> None:
    least = {name: 1} | ({"summary": 1} if name == "chunk" else {})
    assert getattr(attention(kind, **least), name) == 1
    with pytest.raises(UserError, match="attention\\."):
        attention(kind, **(least | {name: 0}))


SHARED = [
    (kind, name)
    for kind in ALL
    for name in ("kv_heads", "key_heads", "groups")
    if name in {f.name for f in fields(type(attention(kind)))}
]


@pytest.mark.parametrize(("kind", "name"), SHARED)
def test_heads_are_shared_evenly(kind: str, name: str) -> None:
    even = 2 if kind == "differential" else 1
    for count in (even, 4):
        config = attention(kind, **{name: count})
        assert config.groups == count and sum(w.numel() for w in config.build(WIDTH).parameters())
    for count in (0, 3, 8):
        with pytest.raises(UserError, match="attention\\."):
            attention(kind, **{name: count})


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in ALL
        if hasattr(attention(kind), "state_shape") and hasattr(attention(kind), "key_size")
    ],
)
def test_a_memory_holds_something(kind: str) -> None:
    for name in ("heads", "key_size", "value_size"):
        shared = {"key_heads": 1, "groups": 1, "position": None}
        assert getattr(attention(kind, **shared, **{name: 1}), name) == 1
        with pytest.raises(UserError, match="must be 1 or more"):
            attention(kind, **shared, **{name: 0})


def _refused(match: str, make: Any) -> None:
    with pytest.raises(UserError, match=match):
        make()


def test_the_others_have_limits_of_their_own() -> None:
    assert attention("fixed", chunk=3, summary=3)
    _refused("at most chunk", lambda: attention("fixed", chunk=3, summary=4))
    assert attention("bidirectional", reach=0)
    _refused("reach", lambda: attention("bidirectional", reach=-1))
    assert attention("delta", conv=0).tail == 0
    _refused("conv", lambda: attention("delta", conv=-1))
    assert attention("mla", rope_dim=8, position=rope.Config(8))
    _refused("cannot be rotated", lambda: attention("mla", rope_dim=8, position=rope.Config(10)))
    assert attention("dsa", index_size=8, position=rope.Config(8))
    _refused("do not fit", lambda: attention("dsa", index_size=6, position=rope.Config(8)))
    _refused("pairs|even", lambda: attention("differential", heads=6, kv_heads=3))
    grows = rope.Config(8, scaling=DynamicNTK(2.0, 8))
    _refused("attention:", lambda: attention("retention", position=grows))
    assert attention("retention", position=rope.Config(8))
    _refused("no length", lambda: mrope.Config(size=8, sections=(1, 1, 2), scaling=DynamicNTK(2.0, 8)))
    _refused("sections", lambda: mrope.Config(size=8, sections=(1, 1, 1)))
    assert attention("bahdanau", size=1)
    _refused("attention", lambda: attention("bahdanau", size=0))
    _refused("attention", lambda: attention("luong", window=0))
    _refused("dot", lambda: attention("luong", score="dot").weights(4, 5))
    assert attention("luong", score="dot").weights(4, 4) is not None
    _refused("pairs", lambda: sinusoidal.Config().build(5))
    assert Pool(1).page == 1
    _refused("holds nothing", lambda: Pool(0))
    for bits in (3, 5, 7, 9, 16):
        _refused("8 or 4 bits", lambda bits=bits: Quantized(Full(), bits))


def test_what_is_left_out_is_what_the_papers_and_models_have() -> None:
    assert t5.Config() == t5.Config(buckets=32, distance=128, both_ways=False)
    assert rope.Config(8) == rope.Config(8, base=10_000.0, interleaved=False)
    assert YaRN(4.0, 64) == YaRN(4.0, 64, fast=32.0, slow=1.0, attention=None, whole=True)
    assert Quantized(Full()).bits == 8


@torch.no_grad()
def test_training_begins_near_zero() -> None:
    """Matrices normal with deviation 0.02, biases zero (GPT-2)."""
    torch.manual_seed(0)
    block = Block(attention=attention("mha", bias=True), mlp=MLP(400, bias=True))
    model = Decoder(DecoderConfig(vocab=400, width=WIDTH, context=8, blocks=(block,)))
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            assert float(module.weight.mean()) == pytest.approx(0.0, abs=0.003)
            assert float(module.weight.std()) == pytest.approx(0.02, rel=0.1)
        if isinstance(module, nn.Linear) and module.bias is not None:
            assert not module.bias.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sinusoids_have_the_type_of_the_embedding(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        assert sinusoidal.Config().build(6)(torch.tensor([[0, 3]])).dtype == dtype
    finally:
        torch.set_default_dtype(torch.float32)
