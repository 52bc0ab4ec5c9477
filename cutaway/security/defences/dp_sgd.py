"""DP-SGD (1607.00133): no single document changes the model by more than a stated budget allows.

    g  =  ( sum over drawn documents of  g_i min(1, C / |g_i|)  +  N(0, sigma^2 C^2) )  /  (q n)

The unit is a document: each is a row of its own, since a packed row would hold parts of several, and to clip
the row would then protect none of them. A text in k documents has k times the budget (a group). Documents are
drawn as the accountant has it, each with probability q in each step. A document's gradient is taken by itself
and by parameter, so that fused kernels are in it and a tied table has both its uses before it is clipped.

The budget of T steps, for orders a = 2, 3, ... (1908.10530, 2004.00010):

    RDP(a)   =  T / (a - 1) log sum_k C(a, k) (1 - q)^(a - k) q^k exp(k (k - 1) / (2 sigma^2))
    epsilon  =  min over a of  RDP(a) + log((a - 1) / a) - (log delta + log a) / (a - 1)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cutaway.model import config as conf
from cutaway.model.decoder import Decoder

ORDERS = range(2, 129)


@dataclass(frozen=True)
class PrivacySettings:
    """``steps`` with some ``batch`` documents each. ``clip`` None is training without privacy."""

    steps: int = 200
    batch: int = 16
    clip: float | None = 1.0
    sigma: float = 1.0
    learning_rate: float = 3e-3


def epsilon(sigma: float, q: float, steps: int, delta: float) -> float:
    """What so many steps with noise ``sigma`` cost at sampling rate ``q``."""
    if not sigma:
        return math.inf
    bounds = []
    for a in ORDERS:
        terms = [
            math.lgamma(a + 1) - math.lgamma(k + 1) - math.lgamma(a - k + 1)
            + (a - k) * math.log1p(-q) + k * math.log(q) + k * (k - 1) / (2 * sigma**2)
            for k in range(a + 1)
        ]  # fmt: skip
        rdp = steps * float(np.logaddexp.reduce(terms)) / (a - 1)
        bounds.append(rdp + math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1))
    return max(0.0, min(bounds))


def noise(target: float, q: float, steps: int, delta: float) -> float:
    """The least noise, to 1%, under which so many steps cost at most ``target``."""
    low, high = 0.1, 1000.0
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if epsilon(middle, q, steps, delta) <= target else (middle, high)
    return high


def trained(
    config: conf.Decoder,
    documents: Sequence[Sequence[int]],
    settings: PrivacySettings,
    *,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Decoder:
    """A decoder trained on documents of ids, each at most the model's context long."""
    torch.manual_seed(seed)
    model, draw = Decoder(config).train(), np.random.default_rng(seed)
    weights = list(model.parameters())
    optimizer = torch.optim.Adam(weights, settings.learning_rate)
    q = settings.batch / len(documents)
    for step in range(settings.steps):
        chosen = np.flatnonzero(draw.random(len(documents)) < q).tolist()
        grads = clipped_sum(model, [documents[n] for n in chosen], settings.clip)
        for weight, grad in zip(weights, grads, strict=True):
            if settings.clip is not None:
                grad += settings.sigma * settings.clip * torch.randn_like(grad)
            weight.grad = grad / settings.batch
        optimizer.step()
        progress(step + 1, settings.steps)
    return model.eval()


def clipped_sum(model: Decoder, documents: Sequence[Sequence[int]], clip: float | None) -> list[Tensor]:
    """The sum of the documents' gradients by parameter, each with a norm of at most ``clip``."""
    weights = list(model.parameters())
    total = [torch.zeros_like(weight) for weight in weights]
    for document in documents:
        grads = torch.autograd.grad(loss(model, document), weights)
        norm = math.sqrt(sum(float(grad.square().sum()) for grad in grads))
        factor = 1.0 if clip is None else min(1.0, clip / max(norm, 1e-12))
        for each, grad in zip(total, grads, strict=True):
            each.add_(grad, alpha=factor)
    return total


def loss(model: Decoder, document: Sequence[int]) -> Tensor:
    """The mean cross-entropy of a document's tokens after the first."""
    ids = torch.tensor([list(document)])
    logits = model(ids[:, :-1], torch.arange(ids.shape[1] - 1)[None])
    return F.cross_entropy(logits[0].float(), ids[0, 1:])
