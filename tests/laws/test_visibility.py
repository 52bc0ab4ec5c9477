"""Laws of every rule of who sees whom: a rule is found in visibility.py, so that a new one is tested too."""

import inspect
from dataclasses import fields

import pytest
import torch

from cutaway.attention.parts import visibility
from cutaway.attention.parts.visibility import And, Causal, Global, Or, Places, Span, Visibility, Window, mask

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
    asks, told = _spans(tall, 2, 12), _spans(wide, 1, 14)
    may = rule.may(Span(asks.low[:, None], asks.high[:, None]), Span(told.low[None], told.high[None]))
    i = asks.low[:, None, None, None] + torch.arange(tall)[:, None]
    j = told.low[None, :, None, None] + torch.arange(wide)
    seen = rule.sees(i, j).flatten(2).any(-1)
    assert not (seen & ~may).any()
    if not isinstance(rule, And | Or):  # whose sides may each find a pair, and never the same one
        assert torch.equal(seen, may)


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
    whole = mask(RULES[name], Places(pos), Places(pos))
    assert not whole[:, 0].any() and not whole[:, :, 0].any()
    apart = mask(RULES[name], Places(pos, documents), Places(pos, documents))
    same = documents[:, :, None] == documents[:, None]
    assert torch.equal(apart, whole & same)
    for one, other in ((None, documents), (documents, None)):
        assert torch.equal(mask(RULES[name], Places(pos, one), Places(pos, other)), whole)
