"""In one pass over memory as by torch: SwiGLU's values and gradients, and a rotation's to the bit."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from cutaway import native as core
from cutaway.attention.common import rotation
from cutaway.layers import swiglu
from cutaway.layers.norm import RMSNorm
from cutaway.position.rope import Config, RotaryEmbedding, rotate

built = pytest.mark.skipif(
    not swiglu.ONE_PASS, reason=core.unavailable_reason() or "the core was built earlier"
)


@built
@pytest.mark.parametrize("count", [1, 15, 16, 17, 700, 40_000])
def test_swiglu_and_its_gradients(count: int) -> None:
    draw = torch.Generator().manual_seed(count)
    gate, up, given = (6 * torch.randn(count, generator=draw) for _ in range(3))
    gate[0] = -200.0  # nothing overflows
    found = []
    for kind in (torch.float32, torch.float64):
        leaves = [x.to(kind).requires_grad_() for x in (gate, up)]
        assert swiglu.fits(*leaves) is (kind == torch.float32)
        out = swiglu.swiglu(*leaves)
        grads = torch.autograd.grad((out * given.to(kind)).sum(), leaves)
        found.append([x.detach().double() for x in (out, *grads)])
    expected = F.silu(gate.double()) * up.double()
    assert_close(found[1][0], expected, rtol=0, atol=0)
    assert_close(found[0], found[1], rtol=2e-6, atol=2e-6)


@built
def test_a_gate_that_is_nan_is_not_lost() -> None:
    gate, up = torch.zeros(40, requires_grad=True), torch.ones(40)
    with torch.no_grad():
        gate[7] = torch.nan
    out = swiglu.swiglu(gate, up)
    (grad,) = torch.autograd.grad(out.sum(), gate)
    assert out.isnan().nonzero().flatten().tolist() == grad.isnan().nonzero().flatten().tolist() == [7]


@built
@pytest.mark.parametrize(("rows", "width"), [(1, 16), (3, 48), (37, 576)])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_frozen_norm_and_its_gradient(rows: int, width: int, weighted: bool) -> None:
    draw = torch.Generator().manual_seed(width)
    x, given = (torch.randn(2, rows, width, generator=draw) for _ in range(2))
    norm = RMSNorm(width, 1e-3, ("weight",) if weighted else ())
    for parameter in norm.parameters():
        parameter.data = 1 + torch.randn(width, generator=draw)
    found = []
    for kind, frozen in ((torch.float32, True), (torch.float64, False)):
        leaf = x.to(kind).requires_grad_()
        out = norm.to(kind).requires_grad_(not frozen)(leaf)
        assert frozen is ("FrozenRMSNorm" in str(out.grad_fn)) or not weighted
        found.append([t.double() for t in (out, *torch.autograd.grad((out * given.to(kind)).sum(), leaf))])
    assert_close(*found, rtol=1e-5, atol=1e-6)


@built
def test_a_narrow_norm_is_torchs() -> None:
    x = torch.randn(5, 24, requires_grad=True)
    norm = RMSNorm(24, 1e-5).requires_grad_(False)
    assert_close(norm(x), x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt())


@built
@pytest.mark.parametrize(("size", "key_size", "rows"), [(32, 32, 1), (64, 80, 3), (96, 96, 2)])
@pytest.mark.parametrize("strided", [True, False])
def test_a_rotation_and_its_gradient(size: int, key_size: int, rows: int, strided: bool) -> None:
    """Heads side by side as a projection leaves them, or each by itself; rows at positions of their own."""
    torch.manual_seed(size)
    x = torch.randn(rows, 37, 5, key_size).transpose(1, 2) if strided else torch.randn(rows, 5, 37, key_size)
    given = torch.randn(rows, 5, 37, key_size)
    pos = torch.arange(37)[None] + 100 * torch.arange(rows)[:, None]
    angles = RotaryEmbedding(Config(size)).rotation(pos)
    found = []
    for way in (rotation.rotated, rotate):
        leaf = x.detach().requires_grad_()
        assert rotation.fits(leaf, angles)
        out = way(leaf, angles)
        found.append((out.detach(), *torch.autograd.grad((out * given).sum(), leaf)))
    assert all(map(torch.equal, *found))


def test_what_does_not_fit_is_torchs() -> None:
    x = torch.randn(1, 2, 3, 24, requires_grad=True)
    pos = torch.arange(3)[None]
    for config in (Config(24), Config(16, interleaved=True), Config(12)):
        angles = RotaryEmbedding(config).rotation(pos)
        assert not rotation.fits(x, angles)
        assert torch.equal(rotation.rotated(x, angles), rotate(x, angles))
    assert not swiglu.fits(x.double()) and not swiglu.fits(x.transpose(1, 2))


@built
def test_a_gradient_of_a_gradient_is_refused() -> None:
    """What the core computes, and what is kept of a forward pass, has no gradient of its own."""
    norm = RMSNorm(32, 1e-5)
    norm.requires_grad_(False)
    angles = RotaryEmbedding(Config(32)).rotation(torch.arange(3)[None])
    ways = (norm, lambda x: rotation.rotated(x, angles), lambda x: swiglu.swiglu(x, x))
    for way in ways:
        x = torch.randn(1, 2, 3, 32, requires_grad=True)
        (grad,) = torch.autograd.grad(way(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()
