"""Laws of every rule of who sees whom: a rule is found in visibility.py, so that a new one is tested too."""

import inspect
from dataclasses import fields

import pytest
import torch

from cutaway.attention.common import visibility
from cutaway.attention.common.visibility import (
    And,
    Causal,
    Global,
    Or,
    Positions,
    Span,
    Visibility,
    Window,
    mask,
)

SIZES = {"summary": 2, "seed": 3, "count": 2}
PARTS = {"left": Causal(), "right": Window(4)}


def _rule(kind: type) -> Visibility:
    return kind(**{f.name: PARTS.get(f.name, SIZES.get(f.name, 5)) for f in fields(kind)})


RULES = {
    name: _rule(kind)
    for name, kind in vars(visibility).items()
    if inspect.isclass(kind) and issubclass(kind, Visibility) and not inspect.isabstract(kind)
}


def _spans(size: int, start: int, count: int) -> Span:
    low = torch.arange(count) * size + start
    return Span(low, low + size - 1)


@pytest.mark.parametrize("name", RULES)
def test_queries_and_keys_broadcast(name: str) -> None:
    i, j = torch.arange(6)[:, None], torch.arange(9)[None]
    assert RULES[name].sees(i, j).shape == (6, 9)
    assert RULES[name].may(Span(i, i), Span(j, j)).shape == (6, 9)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("tall", "wide"), [(1, 1), (1, 4), (3, 1), (3, 4), (8, 2)])
def test_spans_never_say_no_wrongly_and_of_the_basic_rules_are_exact(name: str, tall: int, wide: int) -> None:
    rule = RULES[name]
    asks, keys = _spans(tall, 2, 12), _spans(wide, 1, 14)
    may = rule.may(Span(asks.low[:, None], asks.high[:, None]), Span(keys.low[None], keys.high[None]))
    i = asks.low[:, None, None, None] + torch.arange(tall)[:, None]
    j = keys.low[None, :, None, None] + torch.arange(wide)
    seen = rule.sees(i, j).flatten(2).any(-1)
    assert not (seen & ~may).any()
    if not isinstance(rule, And | Or):  # whose sides may each find a pair, and never the same one
        assert torch.equal(seen, may)


def _drawn(block: int, n: int, seed: int) -> int:
    """The draw in Python's own numbers, which have no end to overflow at."""
    prime = 2_147_483_647
    x = (7919 * block + 104_729 * n + 1_299_709 * seed + 1) % prime
    for _ in range(2):
        x = (x**2 + 48_271 * x + 11) % prime
    return x % block if block else 0


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 1234, 987_654])
def test_a_random_draw_is_its_formula(seed: int) -> None:
    blocks = [*range(40), 1000, 12_345, 1_000_000]
    rule = visibility.Random(1, 4, seed)
    for block in blocks:
        expected = {_drawn(block, n, seed) for n in range(4)}
        there = torch.tensor(sorted({*range(min(block, 50) + 2), *expected, block}))
        seen = rule.sees(torch.full_like(there, block), there)
        assert set(there[seen].tolist()) == expected
        assert torch.equal(rule.may(Span(there * 0 + block, there * 0 + block), Span(there, there)), seen)


def test_random_draws_differ_by_seed_and_spread_over_the_past() -> None:
    far = torch.arange(100, 200)[:, None]
    there = torch.arange(200)[None]
    seen = [visibility.Random(1, 3, seed).sees(far, there) for seed in (0, 1)]
    assert (seen[0] & seen[1]).sum() < 0.1 * seen[0].sum()
    for each in seen:
        assert not each[:, 199:].any() and (each.sum(1) >= 1).all()
        quarters = (each * (there * 4 // far)[:, :]).unique()
        assert quarters.tolist() == [0, 1, 2, 3]


def test_rules_are_joined() -> None:
    i, j = torch.arange(9)[:, None], torch.arange(9)[None]
    one, two = Window(3), Global(2)
    assert torch.equal((one & two).sees(i, j), one.sees(i, j) & two.sees(i, j))
    assert torch.equal((one | two).sees(i, j), one.sees(i, j) | two.sees(i, j))
    a, b = _spans(2, 0, 6), _spans(3, 0, 6)
    a, b = Span(a.low[:, None], a.high[:, None]), Span(b.low[None], b.high[None])
    assert torch.equal((one & two).may(a, b), one.may(a, b) & two.may(a, b))
    assert torch.equal((one | two).may(a, b), one.may(a, b) | two.may(a, b))


@pytest.mark.parametrize("name", RULES)
def test_padding_and_other_documents_are_hidden(name: str) -> None:
    pos = torch.tensor([[-1, 0, 1, 2, 3, 0, 1, 2]])
    documents = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1]])
    whole = mask(RULES[name], Positions(pos), Positions(pos))
    assert not whole[:, 0].any() and not whole[:, :, 0].any()
    apart = mask(RULES[name], Positions(pos, documents), Positions(pos, documents))
    same = documents[:, :, None] == documents[:, None]
    assert torch.equal(apart, whole & same)
    for one, other in ((None, documents), (documents, None)):
        assert torch.equal(mask(RULES[name], Positions(pos, one), Positions(pos, other)), whole)
