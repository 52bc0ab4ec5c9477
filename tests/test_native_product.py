"""Products by tiles of bfloat16 are the reference's: values, edges, sums, and a frozen matrix's gradient."""

import pytest
import torch
from torch.testing import assert_close

from cutaway.layers import product

tiled = pytest.mark.skipif(not product.TILES, reason="this processor has no tiles of bfloat16")
NEAR = 8e-6  # of a row's norm: two numbers of bfloat16 hold 2^-17 of a float


def tiles(*pairs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The products of matrices that may be too small to pay."""
    a, b = zip(*pairs, strict=True)
    return torch.ops.cutaway.products([*a], [*b])


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Each row by its own norm."""
    apart = (found.double() - expected).norm(dim=-1)
    return bool((apart <= NEAR * expected.norm(dim=-1)).all())


@tiled
@pytest.mark.parametrize(
    ("rows", "depth", "columns"),
    [
        (1, 512, 64),
        (33, 65, 300),
        (300, 576, 192),
        (65, 1536, 70),
        (7, 31, 1100),
        (40, 2100, 33),
        (3000, 800, 40),
        (5, 576, 1200),  # columns of several panels
    ],
)
def test_a_product_is_the_references(rows: int, depth: int, columns: int) -> None:
    """Both ways that a matrix can be stored, rows with a stride, and a second product in the same sum."""
    draw = torch.Generator().manual_seed(depth)
    wide = torch.randn(rows, depth + 5, generator=draw)
    a, b = wide[:, 3 : depth + 3], torch.randn(columns, depth, generator=draw)
    c, d = torch.randn(rows, 16, generator=draw), torch.randn(16, columns, generator=draw)
    pairs = ((a, b.T), (c, d))
    expected = product.plain([(one.double(), other.double()) for one, other in pairs])
    assert near(tiles(*pairs), expected)
    assert torch.equal(tiles((a, b.T.contiguous()), (c, d)), tiles(*pairs))
    assert near(tiles((a, b.T)), expected - c.double() @ d.double())


@tiled
def test_a_row_does_not_depend_on_the_others_nor_on_threads() -> None:
    x, w = torch.randn(300, 576), torch.randn(192, 576)
    whole, threads = tiles((x, w.T)), torch.get_num_threads()
    assert torch.equal(tiles((x[130:131], w.T)), whole[130:131])
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.equal(tiles((x, w.T)), whole)
    finally:
        torch.set_num_threads(threads)


@tiled
def test_no_rows_are_no_rows() -> None:
    """An expert that no token was sent to."""
    assert tiles((torch.randn(0, 576), torch.randn(576, 192))).shape == (0, 192)


@tiled
def test_a_number_that_is_not_finite_is_not_lost() -> None:
    x, w = torch.randn(40, 576), torch.randn(192, 576)
    x[3, 5], x[7, 9] = torch.nan, torch.inf
    assert product.fits(x, w.T)
    found = product.products((x, w.T)).isfinite().all(1)
    assert found.logical_not().nonzero().flatten().tolist() == [3, 7]


@tiled
def test_the_gradient_passes_a_frozen_matrix() -> None:
    """As the compiler traces it."""
    x, w = torch.randn(2, 20, 576, requires_grad=True), torch.randn(192, 576)
    given = torch.randn(2, 20, 192)
    out = product.linear(x, w)
    (grad,) = torch.autograd.grad((out * given).sum(), x)
    assert near(out, (x.double() @ w.double().T)) and near(grad, given.double() @ w.double())


def test_what_does_not_fit_is_torchs() -> None:
    for a, b in (
        (torch.randn(3, 576).double(), torch.randn(576, 192).double()),
        (torch.randn(3, 8), torch.randn(8, 8)),
    ):
        assert not product.fits(a, b)
        assert_close(product.products((a, b), (a, b)), a @ b + a @ b)
