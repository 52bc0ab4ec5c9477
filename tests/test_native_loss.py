"""The native core's cross-entropy is the reference's, its gradient in the logits' place too."""

import pytest
import torch
from torch.testing import assert_close

from cutaway import native as core
from cutaway.layers.workers import KERNELS
from cutaway.train import loss

built = pytest.mark.skipif(not KERNELS, reason=core.unavailable_reason() or "no kernels for this processor")


@built
@pytest.mark.parametrize("z", [0.0, 0.01])
@pytest.mark.parametrize("vocab", [1, 15, 16, 17, 256, 300, 4096])
@pytest.mark.parametrize("type", [torch.float32, torch.bfloat16], ids=str)
def test_the_loss_and_its_gradient(type: torch.dtype, vocab: int, z: float) -> None:
    draw = torch.Generator().manual_seed(vocab)
    logits = (8 * torch.randn(37, vocab, generator=draw)).to(type)
    logits[0] *= 50  # nothing overflows
    targets = torch.randint(0, vocab, (37,), generator=draw)
    targets[:2] = torch.tensor([0, vocab - 1])
    grad, of_target, totals = loss.logits_grad(logits.double(), targets, z)
    taken = logits.clone()
    found, found_target, found_totals = loss._logits_grad(taken, targets, z, None)
    assert found is taken
    assert_close(found_target.double(), of_target)
    assert_close(found_totals.double(), totals, rtol=1e-6, atol=1e-6)
    near = 1e-5 if type == torch.float32 else 4e-3
    assert_close(found.double(), grad, rtol=near, atol=near)


@built
@pytest.mark.parametrize("type", [torch.float32, torch.bfloat16], ids=str)
def test_a_logit_that_is_no_number_is_not_lost(type: torch.dtype) -> None:
    """A run stops at such a loss: it must be seen."""
    logits = torch.zeros(3, 40, dtype=type)
    logits[1, 7] = torch.nan
    _, _, totals = loss._logits_grad(logits, torch.zeros(3, dtype=torch.int64), 0.0, None)
    assert totals.isfinite().tolist() == [True, False, True]


@built
@pytest.mark.parametrize("target", [-1, 40])
def test_a_target_that_is_no_id_is_an_error(target: int) -> None:
    with pytest.raises(IndexError, match="outside the vocabulary's 0 to 39"):
        loss._logits_grad(torch.zeros(3, 40), torch.tensor([0, target, 1]), 0.0, None)


@built
@pytest.mark.parametrize("z", [0.0, 0.01])
@pytest.mark.parametrize("chunk", [7, 50])
def test_under_autocast_it_is_the_references(monkeypatch: pytest.MonkeyPatch, chunk: int, z: float) -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(23, 8, generator=draw), torch.randn(41, 8, generator=draw)
    targets = torch.randint(0, 41, (23,), generator=draw)
    found = []
    for kernels in (True, False):
        monkeypatch.setattr(loss, "KERNELS", kernels)
        ours = x.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            total, entropy = loss.chunked(*ours, targets, chunk, z)
        total.backward()
        assert ours[0].grad.dtype == ours[1].grad.dtype == torch.float32
        found.append((total, entropy, ours[0].grad, ours[1].grad))
    assert_close(*found, rtol=1e-2, atol=1e-2)
    wide = x.clone().requires_grad_(), weight.clone().requires_grad_()
    loss.plain(wide[0] @ wide[1].T, targets, z).backward()
    assert_close(found[0][2:], (wide[0].grad, wide[1].grad), rtol=0.05, atol=0.05)
