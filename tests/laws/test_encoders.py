"""Laws of the kinds that no decoder's block can hold: readers of the whole text, and of another text."""

import pytest
import torch
from torch.testing import assert_close

from cutaway.attention.common.visibility import Positions
from cutaway.errors import UserError
from cutaway.hooks import tracing
from cutaway.layers.config import MLP
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.config_dict import from_dict, to_dict
from cutaway.position import alibi
from tests.laws.mechanisms import WIDTH, attention

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def _text(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    return torch.randn(1, length, WIDTH, dtype=torch.float64, generator=generator), torch.arange(length)[None]


@torch.no_grad()
@pytest.mark.parametrize("reach", [None, 3])
def test_an_encoder_reads_both_ways_and_no_padding(reach: int | None) -> None:
    config = attention("bidirectional", reach=reach, globals=1)
    module = config.build(WIDTH).double()
    x, pos = _text(9)
    alone = module(x, Positions(pos), None, True, None)
    changed = x.clone()
    changed[:, 8] += 1
    after = module(changed, Positions(pos), None, True, None)
    assert (after - alone).abs().amax(-1)[0, 5 if reach else 0] > 1e-6
    padded, padded_pos = torch.cat((x, x[:, :2]), dim=1), torch.cat((pos, torch.full((1, 2), -1)), dim=1)
    assert_close(module(padded, Positions(padded_pos), None, False, None)[:, :9], alone, **TIGHT)
    with pytest.raises(UserError, match="no state to decode from"):
        config.state()
    assert config.bytes_per_token(2) == 0


@pytest.mark.parametrize("kind", ["bidirectional", "cross"])
def test_the_config_round_trips_and_knows_every_weight(kind: str) -> None:
    config = attention(kind, bias=True, sinks=True, memory_width=10)
    assert from_dict(to_dict(config), type(config)) == config
    assert config.weights(WIDTH) == {
        name: tuple(w.shape) for name, w in config.build(WIDTH).named_parameters()
    }


def test_a_decoder_refuses_what_does_not_read_the_past() -> None:
    with pytest.raises(UserError, match="a block cannot have cross"):
        Block(attention=attention("cross"), mlp=MLP(8))
    with pytest.raises(UserError, match="a block cannot have bahdanau"):
        Block(attention=attention("bahdanau"), mlp=MLP(8))
    block = Block(attention=attention("bidirectional"), mlp=MLP(8))
    with pytest.raises(UserError, match="a decoder cannot have bidirectional"):
        Decoder(vocab=5, width=8, context=8, blocks=(block,))


def test_gradients() -> None:
    positions = Positions(torch.arange(5)[None])
    x = torch.randn(1, 5, 8, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(1, 5, 8, dtype=torch.float64, requires_grad=True)
    encoder = attention("bidirectional").build(8).double()
    assert torch.autograd.gradcheck(lambda x: encoder(x, positions, None, True, None), (x,))
    reader = attention("cross").build(8).double()
    assert torch.autograd.gradcheck(
        lambda x, memory: reader(x, positions, memory, positions, None), (x, memory)
    )


@torch.no_grad()
def test_a_memory_must_be_there_and_its_padding_is_not_read() -> None:
    module = attention("cross").build(WIDTH).double()
    x, pos = _text(4)
    memory, there = _text(6)
    with pytest.raises(UserError, match="pass the encoder's memory"):
        module(x, Positions(pos), None, None)
    with pytest.raises(UserError, match="pass the encoder's memory"):
        module(x, Positions(pos), memory, None)
    with pytest.raises(UserError, match="pass the encoder's memory"):
        module(x, Positions(pos), None, Positions(there))
    shorter = module(x, Positions(pos), memory[:, :4], Positions(there[:, :4]))
    there = torch.where(there < 4, there, -1)
    assert_close(module(x, Positions(pos), memory, Positions(there)), shorter, **TIGHT)
    with pytest.raises(UserError, match="takes no position"):
        attention("cross", relative=alibi.Config())


@torch.no_grad()
def test_watching_an_encoder_changes_nothing() -> None:
    module = attention("bidirectional").build(WIDTH).double()
    x, pos = _text(7)
    plain = module(x, Positions(pos), None, True, None)
    with tracing(module) as seen:
        watched = module(x, Positions(pos), None, True, None)
    assert_close(watched, plain, **TIGHT)
    assert {"q", "k", "v", "scores", "pattern", "z"} <= set(seen)


@torch.no_grad()
@pytest.mark.parametrize("reach", [None, 2])
def test_packed_for_an_encoder_equals_separate(reach: int | None) -> None:
    module = attention("bidirectional", reach=reach, globals=1).build(WIDTH).double()
    (one, one_pos), (two, two_pos) = _text(5), _text(8)
    pos, documents = torch.cat((one_pos, two_pos), dim=1), torch.tensor([[0] * 5 + [1] * 8])
    packed = module(torch.cat((one, two), dim=1), Positions(pos, documents), None, False, None)
    apart = [module(x, Positions(p), None, True, None) for x, p in ((one, one_pos), (two, two_pos))]
    assert_close(packed, torch.cat(apart, dim=1), **TIGHT)


@torch.no_grad()
def test_a_memory_read_once_is_remembered() -> None:
    config = attention("cross")
    module, state = config.build(WIDTH).double(), config.state()
    (x, pos), (memory, there) = _text(6), _text(4)
    whole = module(x, Positions(pos), memory, Positions(there))
    assert whole.shape == x.shape
    first = module(x[:, :2], Positions(pos[:, :2]), memory, Positions(there), state)
    kept = state.snapshot()
    rest = module(x[:, 2:], Positions(pos[:, 2:]), None, None, kept)
    assert_close(torch.cat((first, rest), dim=1), whole, **TIGHT)
    with tracing(module) as seen:
        assert_close(module(x, Positions(pos), memory, Positions(there)), whole, **TIGHT)
    assert {"q", "k", "v", "pattern"} <= set(seen)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bidirectional", "cross"])
def test_weights_round_trip(kind: str) -> None:
    config = attention(kind, sinks=True, bias=True)
    module, copy = config.build(WIDTH).double(), config.build(WIDTH).double()
    copy.load_state_dict(module.state_dict())
    x, pos = _text(5)
    call = (
        (x, Positions(pos), None, True, None)
        if kind == "bidirectional"
        else (x, Positions(pos), x, Positions(pos))
    )
    assert torch.equal(copy(*call), module(*call))
