"""The laws that every attention mechanism obeys, whatever its equation."""

import json
import random
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from cutaway.attention.common.visibility import Positions
from cutaway.errors import UserError
from cutaway.hooks import tracing
from cutaway.model.config_dict import from_dict, to_dict
from cutaway.model.decoder import Decoder
from tests.laws.mechanisms import CONTEXT, KINDS, VOCAB, attention, decoder, decoder_config, text

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
WIDE = {"S", "log_a", "dt", "scale"}  # sums over a whole text and how they fade, and what norms divide by

pytestmark = pytest.mark.parametrize("kind", KINDS)


@torch.no_grad()
def test_shape(kind: str) -> None:
    ids, pos = text(3, 11)
    assert decoder(kind)(ids, pos).shape == (3, 11, VOCAB)
    assert decoder(kind)(ids, pos, last=True).shape == (3, 1, VOCAB)


@torch.no_grad()
def test_the_future_cannot_change_the_past(kind: str) -> None:
    model = decoder(kind)
    ids, pos = text(1, 20)
    before = model(ids, pos)
    for cut in (1, 7, 19):
        changed = ids.clone()
        changed[:, cut:] = (changed[:, cut:] + 1) % VOCAB
        after = model(changed, pos)
        assert_close(after[:, :cut], before[:, :cut], **TIGHT)
        assert (after[:, cut:] - before[:, cut:]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("seed", range(2))
def test_cached_equals_reread(kind: str, seed: int) -> None:
    model = decoder(kind, seed)
    ids, pos = text(2, 40, seed)
    whole = model(ids, pos)
    rng = random.Random(seed)
    cuts = [0]
    while cuts[-1] < 40:  # decoding, a few at a time as a draft is judged, and prompts
        cuts.append(min(cuts[-1] + rng.choice((1, 2, 3, 9)), 40))
    state, parts = model.new_state(), []
    for start, end in pairwise(cuts):
        parts.append(model(ids[:, start:end], pos[:, start:end], state))
    assert_close(torch.cat(parts, dim=1), whole, **TIGHT)
    assert state.length == 40


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 4, 12])
def test_left_padding_changes_nothing(kind: str, chunk: int) -> None:
    model = decoder(kind)
    ids, pos = text(2, 12)
    padded_ids, padded_pos = ids.clone(), pos.clone()
    padded_ids[1] = torch.cat((torch.zeros(5, dtype=torch.long), ids[1, :7]))
    padded_pos[1] = torch.cat((torch.full((5,), -1), torch.arange(7)))
    state, parts = model.new_state(), []
    for start in range(0, 12, chunk):
        part = slice(start, start + chunk)
        parts.append(model(padded_ids[:, part], padded_pos[:, part], state))
    padded = torch.cat(parts, dim=1)
    assert_close(padded[0], model(ids, pos)[0], **TIGHT)
    assert_close(padded[1, 5:], model(ids[1:, :7], pos[1:, :7])[0], **TIGHT)
    assert padded.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("shift", [0, 6])
def test_padding_changes_nothing_read_at_once_without_a_state(kind: str, shift: int) -> None:
    """Only the first row is in order: what may be skipped for it must not be for the others."""
    model = decoder(kind)
    ids, pos = text(2, 17)
    padded_pos = pos.clone()
    padded_pos[1] = -1
    padded_pos[1, shift : shift + 11] = torch.arange(11)
    padded_ids = torch.stack((ids[0], ids[1].roll(shift)))
    padded = model(padded_ids, padded_pos)
    assert_close(padded[0], model(ids, pos)[0], **TIGHT)
    assert_close(padded[1, shift : shift + 11], model(ids[1:, :11], pos[1:, :11])[0], **TIGHT)
    assert padded.isfinite().all()


@torch.no_grad()
def test_padding_in_the_middle_changes_nothing(kind: str) -> None:
    model = decoder(kind)
    ids, pos = text(1, 12)
    holes = torch.tensor([0, 1, -1, 2, 3, 4, 5, -1, -1, 6, 7, 8, 9, 10, 11, -1])[None]
    holed = torch.where(holes >= 0, ids.gather(1, holes.clamp(min=0)), 0)
    state = model.new_state()
    out = torch.cat([model(holed[:, i : i + 3], holes[:, i : i + 3], state) for i in range(0, 16, 3)], dim=1)
    assert_close(out[holes >= 0][None], model(ids, pos), **TIGHT)


@torch.no_grad()
def test_packed_equals_separate(kind: str) -> None:
    model = decoder(kind)
    lengths = (7, 1, 12)
    texts = [text(1, n, seed=n)[0] for n in lengths]
    pos = torch.cat([torch.arange(n) for n in lengths])[None]
    documents = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    packed = model(torch.cat(texts, dim=1), pos, documents=documents)
    separate = torch.cat([model(ids, torch.arange(ids.shape[1])[None]) for ids in texts], dim=1)
    assert_close(packed, separate, **TIGHT)


@torch.no_grad()
def test_documents_are_apart_though_their_positions_run_on(kind: str) -> None:
    model = decoder(kind)
    ids, pos = text(1, 20)
    packed = model(ids, pos, documents=(pos >= 9).long())
    separate = torch.cat([model(ids[:, part], pos[:, part]) for part in (slice(9), slice(9, 20))], dim=1)
    assert_close(packed, separate, **TIGHT)
    assert (packed - model(ids, pos))[:, 9:].abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_comes_out_has_the_type_that_went_in(kind: str, dtype: torch.dtype) -> None:
    """Each value on the way as well, but those of a recurrence that are kept wide."""
    model = decoder(kind, dtype=dtype)
    ids, pos = text(2, 7)
    with tracing(model) as seen:
        model(ids, pos)
    wide = {name: x.dtype for name, x in seen.items() if x.is_floating_point() and x.dtype != dtype}
    assert {name.split(".")[-1] for name in wide} <= WIDE, wide


@torch.no_grad()
def test_watching_changes_nothing(kind: str) -> None:
    model = decoder(kind)
    ids, pos = text(2, 13)
    with tracing(model) as seen:
        watched = model(ids, pos)
    assert_close(watched, model(ids, pos), **TIGHT)
    assert {"embed", "logits", "blocks.0.attention.out", "blocks.1.middle", "blocks.2.out"} <= set(seen)


@torch.no_grad()
def test_snapshot_keeps_and_truncate_forgets(kind: str) -> None:
    model = decoder(kind)
    ids, pos = text(1, 30)
    state = model.new_state()
    model(ids[:, :4], pos[:, :4], state)
    kept = state.snapshot()
    expected = model(ids[:, 4:9], pos[:, 4:9], kept.snapshot())
    model(ids[:, 20:24], pos[:, 4:8], state)
    assert_close(model(ids[:, 4:9], pos[:, 4:9], kept.snapshot()), expected, **TIGHT)
    if all(block.can_truncate(4) for block in state.blocks):
        state.truncate(4)
        assert_close(model(ids[:, 4:9], pos[:, 4:9], state), expected, **TIGHT)
    else:
        with pytest.raises(UserError, match="read the text again"):
            state.truncate(4)
    fixed = sum(getattr(block.attention, "state_bytes", lambda _: 0)(8) for block in model.config.blocks)
    assert kept.nbytes == 4 * model.config.bytes_per_token(8) + fixed


def test_gradients(kind: str) -> None:
    module = attention(kind).build(8).double()
    x = torch.randn(1, 5, 8, dtype=torch.float64, requires_grad=True)
    positions = Positions(torch.arange(5)[None])
    assert torch.autograd.gradcheck(lambda x: module(x, positions, None, True, None), (x,))


def test_config_round_trips(kind: str) -> None:
    config = decoder_config(kind)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_the_config_knows_every_weight(kind: str) -> None:
    made = {name: tuple(weight.shape) for name, weight in decoder(kind).named_parameters()}
    assert decoder_config(kind).weights() == made


def test_weights_round_trip(kind: str) -> None:
    model = decoder(kind)
    copy = Decoder(decoder_config(kind)).to(torch.float64)
    copy.load_state_dict(model.state_dict())
    ids, pos = text(1, CONTEXT)
    with torch.no_grad():
        assert torch.equal(copy(ids, pos), model(ids, pos))
