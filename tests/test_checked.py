"""The checker of signatures that the whole suite runs under catches what it is there for."""

import gc
import weakref
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from cutaway.attention.backends.inputs import AttentionInputs
from cutaway.shapes import Float
from tests import checked


def product(x: Float[torch.Tensor, "a b"], y: Float[torch.Tensor, "b c"]) -> Float[torch.Tensor, "a c"]:
    return x.sum(1)[:, None] + torch.zeros(1, y.shape[1] + (len(x) == 7))


@dataclass(frozen=True)
class Sizes:
    width: float
    names: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("x", "y"),
    [((2, 3), (4, 5)), ((2, 3, 1), (3, 5)), ((7, 3), (3, 5))],
    ids=["one letter of two sizes", "an axis too many", "the result"],
)
def test_a_shape_that_is_not_the_signatures_is_caught(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    of = checked(product)
    assert of(torch.zeros(2, 3), torch.zeros(3, 5)).shape == (2, 5)
    assert of(torch.zeros(4, 6), torch.zeros(6, 5)).shape == (4, 5), "letters hold for one call"
    with pytest.raises(Exception, match="violates type hint"):
        of(torch.zeros(x), torch.zeros(y))
    with pytest.raises(Exception, match="violates type hint"):
        of(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3, 5))


def chosen(
    x: Float[torch.Tensor, "a b"], kind: type[int] | type[float] = int, *more: torch.Tensor
) -> tuple[Float[torch.Tensor, " a"], float]:
    return x.sum(1), 1.0


def test_a_call_of_known_kinds_is_checked_where_it_differs() -> None:
    """What fitted before is not checked again: another shape, class or type is."""
    of, x = checked(chosen), torch.zeros(2, 3)
    for _ in range(2):
        assert of(x)[1] == of(x, float)[1] == of(x, float, x)[1] == 1
    for arguments in ([torch.zeros(3)], [x, str], [x, 1], [x, int, 5], [x.long()]):
        with pytest.raises(Exception, match="violates type hint"):
            of(*arguments)


def counted(values: tuple[int, ...]) -> int:
    return len(values)


def test_every_tuple_of_any_length_is_checked() -> None:
    of = checked(counted)
    assert of((1,) * 9) == 9
    with pytest.raises(Exception, match="violates type hint"):
        of(("1",) * 9)


def results_of(x: Float[torch.Tensor, "a b"]) -> Float[torch.Tensor, " a"] | None:
    return RESULTS.pop()


RESULTS: list[Any] = []


def test_a_result_of_another_kind_is_checked_with_the_arguments_sizes() -> None:
    of, x = checked(results_of), torch.zeros(2, 3)
    for fits in (torch.zeros(2), None, torch.zeros(2, dtype=torch.float64)):
        RESULTS.append(fits)
        assert of(x) is fits
    for wrong in (torch.zeros(3), torch.zeros(2, dtype=torch.int64), 2, torch.zeros(2, 3)):
        RESULTS.append(wrong)
        with pytest.raises(Exception, match="violates type hint"):
            of(x)


def test_each_closure_is_checked_and_is_itself() -> None:
    """A check is written once for all of them."""

    def adding(n: int) -> Any:
        def added(x: Float[torch.Tensor, " n"], y: Float[torch.Tensor, " n"]) -> Float[torch.Tensor, " n"]:
            return x + y + n

        return checked(added)

    x = torch.zeros(3)
    for n in (1, 2):
        of = adding(n)
        assert of(x, x).tolist() == [n] * 3
        for other in (torch.zeros(4), torch.zeros(3, dtype=torch.int64)):
            with pytest.raises(Exception, match="violates type hint"):
                of(x, other)


def test_what_a_closure_holds_is_not_kept() -> None:
    """The first one's neither, whose check all have."""

    def summing(held: torch.Tensor) -> Any:
        def summed(x: Float[torch.Tensor, " n"]) -> Float[torch.Tensor, ""]:
            return x.sum() + held.sum()

        return checked(summed)

    held = torch.ones(2)
    gone = weakref.ref(held)
    assert summing(held)(torch.ones(3)) == 5
    del held
    gc.collect()
    assert gone() is None


def either(
    x: Float[torch.Tensor, "n 2"] | Float[torch.Tensor, "2 n"], y: Float[torch.Tensor, " n"]
) -> torch.Tensor:
    return x


def test_a_part_of_a_union_that_does_not_fit_leaves_no_size() -> None:
    of = checked(either)
    for _ in range(2):  # the first time, and with the type and dtype known
        assert of(torch.zeros(2, 5), torch.zeros(5)).shape == (2, 5)
        with pytest.raises(Exception, match="violates type hint"):
            of(torch.zeros(2, 5), torch.zeros(2))


def test_a_field_of_another_type_is_caught() -> None:
    of = checked(Sizes)
    assert of(3).width == 3  # an int is a float
    with pytest.raises(Exception, match="violates type hint"):
        of("3")


def test_the_package_is_checked() -> None:
    with pytest.raises(Exception, match="violates type hint"):
        AttentionInputs("q", "k", "v")  # type: ignore
