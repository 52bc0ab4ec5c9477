"""What holds for positions that change as a text grows, for those added to the embedding, and for
several in one model.
"""

import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cutaway.errors import UserError
from cutaway.layers.config import MLP
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.config_dict import from_dict, to_dict
from cutaway.model.decoder import Decoder as Model
from cutaway.position import alibi, learned, mrope, rope, sinusoidal
from cutaway.position.scaling import (
    NTK,
    DynamicNTK,
    Factors,
    Linear,
    Llama3,
    LongRoPE,
    Proportional,
    Scaling,
    YaRN,
)
from tests.laws.mechanisms import KINDS, VOCAB, WIDTH, attention, text

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
ORIGINAL = 16
GROWING = {
    "dynamic": DynamicNTK(4.0, ORIGINAL),
    "longrope": LongRoPE((1.0, 1.1, 1.2, 1.3), (2.0, 4.0, 6.0, 8.0), ORIGINAL, 4.0),
}


def _model(blocks: list[Any], **options: Any) -> Model:
    torch.manual_seed(0)
    layers = tuple(Block(attention=block, mlp=MLP(24)) for block in blocks)
    model = Model(Decoder(vocab=VOCAB, width=WIDTH, context=64, blocks=layers, **options)).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def _cached(model: Model, length: int) -> torch.Tensor:
    ids, pos = text(1, length)
    state = model.new_state()
    return torch.cat([model(ids[:, i : i + 3], pos[:, i : i + 3], state) for i in range(0, length, 3)], dim=1)


def _reread(model: Model, length: int) -> torch.Tensor:
    return model(*text(1, length))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gqa", "local", "mla", "dsa"])
@pytest.mark.parametrize("scaling", GROWING)
def test_growing_positions_hold_up_to_their_original_length(scaling: str, kind: str) -> None:
    position = rope.Config(8, scaling=GROWING[scaling], interleaved=kind in ("mla", "dsa"))
    assert position.grows
    deep = _model([attention(kind, position=position)] * 3)
    assert_close(_cached(deep, ORIGINAL), _reread(deep, ORIGINAL), **TIGHT)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gqa", "mla"])
@pytest.mark.parametrize("scaling", GROWING)
def test_past_it_only_the_newest_of_one_layer_holds(scaling: str, kind: str) -> None:
    """All keys are rotated anew, so one layer's newest answer is that of a text read again. The layer above
    read the values of earlier tokens from when the text was shorter: with two layers it is not, which is what
    ``grows`` says.
    """
    mechanism = attention(kind, position=rope.Config(8, scaling=GROWING[scaling]))
    flat, deep = _model([mechanism]), _model([mechanism] * 2)
    assert_close(_cached(flat, 30)[:, -1], _reread(flat, 30)[:, -1], **TIGHT)
    assert (_cached(deep, 30) - _reread(deep, 30))[:, -1].abs().max() > 1e-6


@torch.no_grad()
def test_sinusoids_are_the_papers() -> None:
    pos = torch.tensor([[0, 1, 7, -1]])
    for interleaved in (True, False):
        made = sinusoidal.Config(interleaved=interleaved).build(6)(pos)
        for n, place in enumerate(pos[0].tolist()):
            for i in range(3):
                angle = place / 10000.0 ** (2 * i / 6)
                at = (2 * i, 2 * i + 1) if interleaved else (i, i + 3)
                for where, expected in zip(at, (math.sin(angle), math.cos(angle)), strict=True):
                    assert made[0, n, where].item() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(UserError, match="must be even"):
        sinusoidal.Config().build(5)


@torch.no_grad()
@pytest.mark.parametrize("position", [learned.Config(64), sinusoidal.Config()])
def test_positions_of_the_embedding(position: Any) -> None:
    model = _model([attention("mha")] * 2, position=position)
    assert from_dict(to_dict(model.config)) == model.config
    assert model.config.weights() == {name: tuple(w.shape) for name, w in model.named_parameters()}
    assert_close(_cached(model, 12), _reread(model, 12), **TIGHT)
    ids, pos = text(1, 12)
    assert (model(ids, pos) - model(ids, pos + 5)).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("position", [rope.Config(8), None], ids=["rope", "alibi"])
def test_relative_positions_do_not_know_where_the_text_begins(position: Any) -> None:
    relative = alibi.Config() if position is None else None
    model = _model([attention("gqa", position=position, relative=relative)] * 2)
    ids, pos = text(1, 12)
    assert_close(model(ids, pos), model(ids, pos + 1000), **TIGHT)
    swapped = ids.flip(1)
    assert (model(ids, pos)[:, -1] - model(swapped, pos)[:, -1]).abs().max() > 1e-3


SCALINGS: dict[str, Any] = {
    "none": None,
    "linear": Linear(3.0),
    "ntk": NTK(3.0),
    "llama3": Llama3(8.0, 1.0, 4.0, 64),
    "yarn": YaRN(4.0, 64, fast=4.0),
    "yarn, attention": YaRN(4.0, 64, attention=0.7, whole=False),
    "yarn, factor 1": YaRN(1.0, 64),
    "factors": Factors((1.0, 2.0, 4.0, 8.0)),
    "proportional": Proportional(0.5, 2.0),
    "dynamic": DynamicNTK(4.0, ORIGINAL),
    "longrope": LongRoPE((1.0, 1.1, 1.2, 1.3), (2.0, 4.0, 6.0, 8.0), ORIGINAL, 4.0),
    "longrope, attention": LongRoPE((1.0,) * 4, (2.0,) * 4, ORIGINAL, 4.0, attention=1.9),
    "longrope, factor 1": LongRoPE((1.0,) * 4, (2.0,) * 4, ORIGINAL, 1.0),
}


def test_a_larger_base_is_what_ntk_is() -> None:
    for size, factor in ((8, 3.0), (64, 8.0)):
        larger = rope.Config(size, base=100.0 * factor ** (size / (size - 2)))
        scaled = rope.Config(size, base=100.0, scaling=NTK(factor))
        assert scaled.frequencies() == pytest.approx(larger.frequencies(), rel=1e-12)


def test_every_scaling_is_listed() -> None:
    assert {type(scaling) for scaling in SCALINGS.values()} - {type(None)} == set(get_args(Scaling))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("length", [5, 40])
@pytest.mark.parametrize("name", SCALINGS)
def test_turning_is_multiplying_complex_numbers(name: str, length: int, interleaved: bool) -> None:
    """However a text is scaled: by magnitude e^(i position frequency), and the rest of a head by 1."""
    config = rope.Config(8, base=100.0, scaling=SCALINGS[name], interleaved=interleaved)
    x = torch.randn(2, 3, length, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotated = rope.rotate(x, rope.RotaryEmbedding(config).rotation(torch.arange(length).expand(2, -1)))
    assert torch.equal(rotated[..., 8:], x[..., 8:])
    first, second = (slice(0, 8, 2), slice(1, 8, 2)) if interleaved else (slice(0, 4), slice(4, 8))
    angles = np.arange(length)[:, None] * config.frequencies(length)
    pairs = (x[..., first] + 1j * x[..., second]).numpy() * (config.magnitude * np.exp(1j * angles))
    assert_close(rotated[..., first], torch.from_numpy(pairs.real), **TIGHT)
    assert_close(rotated[..., second], torch.from_numpy(pairs.imag), **TIGHT)


def test_stated_divisors_slow_each_pair_by_its_own() -> None:
    plain = rope.Config(8).frequencies()
    slowed = rope.Config(8, scaling=Factors((1.0, 2.0, 4.0, 8.0)))
    assert slowed.magnitude == 1.0
    assert slowed.frequencies() == pytest.approx(plain / [1, 2, 4, 8], rel=1e-15)


@torch.no_grad()
def test_m_rope_is_rope_for_text() -> None:
    plain = _model([attention("gqa", position=rope.Config(8))])
    config = replace(
        plain.config.blocks[0], attention=attention("gqa", position=mrope.Config(size=8, sections=(1, 1, 2)))
    )
    model = Model(replace(plain.config, blocks=(config,))).double()
    model.load_state_dict(plain.state_dict())
    assert from_dict(to_dict(model.config)) == model.config
    assert_close(_reread(model, 9), _reread(plain, 9), **TIGHT)
    with pytest.raises(UserError, match="sections"):
        mrope.Config(size=8, sections=(1, 1, 1))


def test_a_hybrid_of_all_kinds_trains_decodes_and_round_trips() -> None:
    model = _model([attention(kind, position=rope.Config(8)) for kind in KINDS])
    assert from_dict(to_dict(model.config)) == model.config
    ids, pos = text(1, 24)
    loss = torch.nn.functional.cross_entropy(model(ids, pos)[0, :-1], ids[0, 1:])
    loss.backward()
    silent = [name for name, w in model.named_parameters() if w.grad is None or not w.grad.isfinite().all()]
    assert all(".index_" in name for name in silent)  # the indexer's choice has no gradient
    with torch.no_grad():
        assert_close(_cached(model, 24), _reread(model, 24), rtol=1e-7, atol=1e-7)
