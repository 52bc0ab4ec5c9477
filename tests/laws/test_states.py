"""Memories that store the same in another way: the model says what it says with its own."""

import gc
from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

from cutaway.attention.common.cost import GROUP, quantized_bytes_per_token
from cutaway.attention.common.mixer import LayerState
from cutaway.attention.state.caches import Cross, Full, Ring
from cutaway.attention.state.paged import FIRST_PAGES, Paged, Pool
from cutaway.attention.state.quantized import Quantized, pack, unpack
from cutaway.attention.state.recurrent import Recurrent
from cutaway.errors import UserError
from cutaway.model.decoder import Decoder, State
from tests.laws.mechanisms import KINDS, SOFTMAX, attention, decoder, text

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
FULL = [kind for kind in KINDS if kind in SOFTMAX and isinstance(attention(kind).state(), Full)]


def _read(
    model: Decoder, cuts: list[int], remember: Callable[[LayerState], LayerState] | None = None
) -> torch.Tensor:
    ids, pos = text(2, 40)
    state = model.new_state(remember)
    pairs = zip([0, *cuts], [*cuts, 40], strict=True)
    return torch.cat([model(ids[:, a:b], pos[:, a:b], state) for a, b in pairs], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("kind", FULL)
def test_pages_change_nothing(kind: str) -> None:
    model = decoder(kind)
    assert_close(_read(model, [3, 4, 20, 31], lambda _: Paged(Pool(4))), _read(model, []), **TIGHT)


def _entries(pos: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"k": pos[:, None, :, None].double().expand(-1, 2, -1, 3) + 0.5}


def _append(state: LayerState, start: int, end: int) -> torch.Tensor:
    pos = torch.arange(start, end).expand(2, -1)
    entries, positions = state.append(_entries(pos), pos)  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(entries["k"], _entries(positions)["k"])
    return positions


def test_pages_are_shared_until_someone_writes() -> None:
    pool = Pool(4)
    state = Paged(pool)
    _append(state, 0, 10)
    alone = pool.nbytes
    assert alone == 2 * 3 * 4 * 2 * 3 * 8 and state.nbytes == 2 * 10 * 2 * 3 * 8
    fork = state.snapshot()
    assert pool.nbytes == alone
    _append(fork, 100, 103)  # the half-filled page is copied, and one more taken, in each row
    assert pool.nbytes == alone + 2 * 2 * 4 * 2 * 3 * 8
    assert _append(state, 10, 11)[0].tolist() == list(range(11))
    assert _append(fork, 103, 104)[0].tolist() == [*range(10), *range(100, 104)]
    fork.truncate(3)
    assert _append(fork, 50, 51)[0].tolist() == [0, 1, 2, 50]
    assert _append(state, 11, 12)[0].tolist() == list(range(12))
    del fork
    gc.collect()
    assert pool.nbytes == alone
    state.truncate(0)
    assert pool.nbytes == 0


def test_a_state_of_another_batch_is_refused() -> None:
    state = Paged(Pool(4))
    _append(state, 0, 2)
    with pytest.raises(UserError, match="a batch of 2"):
        state.append(_entries(torch.zeros(3, 1, dtype=torch.long)), torch.zeros(3, 1, dtype=torch.long))


@torch.no_grad()
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in SOFTMAX])
def test_quantized_in_pieces_equals_quantized_at_once(kind: str, bits: int) -> None:
    model = decoder(kind)
    whole = _read(model, [], Quantized.of(bits))
    assert_close(_read(model, [1, 9, 20], Quantized.of(bits)), whole, **TIGHT)
    error = (whole - _read(model, [])).abs().max()
    assert error > 0
    if kind != "dsa":  # whose choice of keys may change
        assert error < {8: 0.03, 4: 0.5}[bits]


@torch.no_grad()
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", ["gqa", "mla", "dsa", "streaming"])
def test_quantized_bytes_are_known_before(kind: str, bits: int) -> None:
    model = decoder(kind)
    ids, pos = text(1, 3)
    state = model.new_state(Quantized.of(bits))
    model(ids, pos, state)
    expected = [quantized_bytes_per_token(block.attention.entries, bits) for block in model.config.blocks]
    assert state.nbytes == 3 * sum(expected)


@pytest.mark.parametrize(("bits", "typical"), [(8, 0.0085), (4, 0.15)])
@pytest.mark.parametrize("size", [64, 40, 5])
def test_the_error_of_a_number_is_half_a_step(bits: int, typical: float, size: int) -> None:
    x = torch.randn(3, 2, 50, size, generator=torch.Generator().manual_seed(0))
    codes, scales = pack(x, bits)
    back = unpack(codes, scales, bits, size)
    for start in range(0, size, GROUP):
        group = x[..., start : start + GROUP]
        reach = group.amax(-1, keepdim=True) - group.amin(-1, keepdim=True)
        off = (back[..., start : start + GROUP] - group).abs()
        assert (
            off <= reach / (2**bits - 1) / 2 + 2**-10 * (group.abs().amax(-1, keepdim=True) + reach)
        ).all()
    assert (back - x).square().mean().sqrt() < typical
    same = torch.full((1, 1, 1, 33), 1.5)
    assert torch.equal(unpack(*pack(same, bits), bits, 33), same)


def test_only_eight_or_four_bits() -> None:
    with pytest.raises(UserError, match="8 or 4 bits"):
        Quantized(Full(), 5)


@pytest.mark.parametrize(
    "make",
    [Full, lambda: Ring(4), lambda: Ring(4, 2), lambda: Paged(Pool(3)), lambda: Quantized(Full(), 8)],
    ids=["full", "ring", "ring and first", "paged", "quantized"],
)
def test_a_snapshot_is_apart_and_truncation_forgets(make: Callable[[], LayerState]) -> None:
    def positions(state: LayerState, start: int, end: int) -> list[int]:
        pos = torch.arange(start, end).expand(2, -1)
        return state.append(_entries(pos), pos)[1][0].tolist()  # pyright: ignore[reportAttributeAccessIssue]

    state = make()
    positions(state, 0, 3)
    kept = state.snapshot()
    assert positions(state, 3, 4) == [0, 1, 2, 3]
    assert positions(kept, 7, 8) == [0, 1, 2, 7]
    assert state.can_truncate(2)
    state.truncate(2)
    assert state.length == 2 and positions(state, 2, 3) == [0, 1, 2]
    for i in range(3, 20):
        positions(state, i, i + 1)
    left = positions(state, 20, 21)
    if isinstance(state, Ring):
        assert left == [*range(state.first), *range(20 - state.window, 21)]
        assert not state.can_truncate(5)
    else:
        assert left == list(range(21))


def test_a_ring_truncates_past_padding() -> None:
    state = Ring(6)
    pos = torch.tensor([[0, 1, -1, 2, 3]])
    state.append({"k": torch.zeros(1, 1, 5, 1)}, pos)
    state.truncate(3)
    assert state.append({"k": torch.zeros(1, 1, 1, 1)}, torch.tensor([[2]]))[1].tolist() == [[0, 1, -1, 2]]


def test_a_fixed_memory_goes_back_to_now_or_to_the_start_alone() -> None:
    def read(state: Recurrent, start: int, end: int) -> None:
        pos = torch.arange(start, end)[None]
        memory = state.get("memory")
        total = torch.zeros(1, 2, 3) if memory is None else memory
        state.keep({"memory": total + pos.sum()}, pos)

    state = Recurrent()
    assert state.get("memory") is None and state.nbytes == 0 and state.length == 0
    read(state, 0, 4)
    kept = state.snapshot()
    read(state, 4, 6)
    assert (state.length, kept.length) == (6, 4) and state.nbytes == kept.nbytes == 24
    assert state.get("memory") is not None and kept.get("memory") is not None
    assert float(state.tensors["memory"][0, 0, 0]) == 15 and float(kept.tensors["memory"][0, 0, 0]) == 6
    assert [state.can_truncate(n) for n in (0, 1, 5, 6, 7)] == [True, False, False, True, True]
    state.truncate(6)
    assert state.length == 6 and state.get("memory") is not None
    state.truncate(0)
    assert state.length == 0 and state.get("memory") is None
    read(state, 0, 4)
    assert torch.equal(state.tensors["memory"], kept.tensors["memory"])
    with pytest.raises(UserError, match="carries no gradients"):
        state.keep({"memory": torch.zeros(1, requires_grad=True)}, torch.zeros(1, 1, dtype=torch.long))


def test_only_memories_of_entries_are_quantized() -> None:
    remember = Quantized.of(8)
    assert isinstance(remember(Full()), Quantized) and isinstance(remember(Ring(3)), Quantized)
    for other in (Recurrent(), Cross()):
        assert remember(other) is other


@pytest.mark.parametrize(
    "make", [Full, lambda: Ring(4), lambda: Paged(Pool(3)), lambda: Quantized(Full(), 8)]
)
def test_what_is_remembered_carries_no_gradient(make: Callable[[], LayerState]) -> None:
    entries = {"k": torch.zeros(1, 1, 1, 4, requires_grad=True)}
    with pytest.raises(UserError, match="carries no gradients"):
        make().append(entries, torch.zeros(1, 1, dtype=torch.long))  # pyright: ignore[reportAttributeAccessIssue]


@torch.no_grad()
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in SOFTMAX])
def test_a_state_of_another_kind_is_refused(kind: str) -> None:
    """Attention over entries refuses a recurrence's memory, instead of crashing on it."""
    model = decoder(kind)
    with pytest.raises(UserError, match="Recurrent stores no entries"):
        model(*text(1, 3), model.new_state(lambda _: Recurrent()))


def test_a_full_state_doubles_its_memory() -> None:
    state = Full()
    for start, end, room in ((0, 3, 64), (3, 64, 64), (64, 65, 128), (65, 400, 400), (400, 401, 800)):
        _append(state, start, end)
        assert state.positions.shape[1] == room == state.buffers["k"].shape[2]
    assert state.nbytes == 2 * 401 * 2 * 3 * 8


def test_a_pool_grows_and_gives_pages_again() -> None:
    pool = Pool(2)
    one, two = Paged(pool), Paged(pool)
    _append(one, 0, 2 * FIRST_PAGES)
    assert len(pool.users) == 2 * FIRST_PAGES == sum(pool.users)  # two rows, a page for two tokens
    _append(two, 0, 1)
    assert len(pool.users) == 4 * FIRST_PAGES and sum(pool.users) == 2 * FIRST_PAGES + 2
    one.truncate(5)
    assert sum(pool.users) == 2 * 3 + 2
    _append(two, 1, 20)
    assert len(pool.users) == 4 * FIRST_PAGES and sum(pool.users) == 2 * 3 + 2 * 10
    assert one.can_truncate(0) and one.length == 5
    one.truncate(7)
    assert one.length == 5


def test_a_models_state_is_as_long_as_its_first_layers() -> None:
    one = Full()
    _append(one, 0, 3)
    assert State([one]).length == 3 and State([]).length == 0


def test_a_pool_grows_by_what_is_missing() -> None:
    pool, pos = Pool(2), torch.arange(2).expand(2, -1)
    pages = pool.take(FIRST_PAGES + 4, _entries(pos), pos)
    assert len(pages) == len(pool.users) == FIRST_PAGES + 4  # at least so many as are asked for
    for page in pages[:5]:
        pool.users[page] = 0
    assert len(pool.take(2 * FIRST_PAGES, _entries(pos), pos)) == 2 * FIRST_PAGES
    assert len(pool.users) == (FIRST_PAGES + 4) + (2 * FIRST_PAGES - 5)  # five were free


def test_a_cross_state_is_written_once() -> None:
    state = Cross()
    pos = torch.arange(3).expand(2, -1)
    state.write(_entries(pos), pos)
    copy = state.snapshot()
    assert copy.written and copy.nbytes == state.nbytes == 2 * 3 * 2 * 3 * 8
    with pytest.raises(UserError, match="already holds a memory"):
        state.write(_entries(pos), pos)
    state.truncate(0)
    assert state.written
