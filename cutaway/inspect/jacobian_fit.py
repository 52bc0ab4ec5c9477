"""Fit a Jacobian lens: how much each layer's residual stream moves the last one's, on average over texts.

    J_l[i, :] = mean over source positions p of the sum over target positions p' of d h[p', i] / d h_l[p, :]

h_l [t d] is the residual stream after layer l, h that after the target layer. Positions 16 to t-2 of a text
are sources and targets: the first ones are attention sinks, the last one predicts nothing of the text. Row i
is one backward pass, whose cotangent is 1 at dimension i of every target position, so that a text costs one
forward pass and d backward ones, which give all layers at once.

A sketch takes k < d rows of a random orthonormal basis in place of the d dimensions: J is then estimated by
d/k Q' Q J. Text after text takes the next k rows of the basis, so that d/k texts have each direction once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from cutaway.errors import UserError
from cutaway.hooks import tracing
from cutaway.inspect.jacobian_lens import digest
from cutaway.inspect.jacobian_state import FIRST, Fit, Settings
from cutaway.inspect.subject import Subject
from cutaway.model.config import Decoder
from cutaway.store.files import Progress, silent

GRAPH = 1 << 31  # bytes of activations that are kept for the backward passes of one text, all copies together
COPIES = 16  # of a text: backward passes that run as one
SAVED = 30.0  # seconds between two saves


def target_layer(config: Any) -> int:
    """The layer whose output a lens's matrices give: the last, or the one before a layer that is scaled."""
    if not isinstance(config, Decoder):
        raise UserError("a Jacobian lens is fitted to a decoder: this model predicts no next token")
    if config.streams:
        raise UserError("a Jacobian lens is of one residual stream, and this model has several")
    target = len(config.blocks) - 1 - config.blocks[-1].scaled
    if target < 1:
        raise UserError(f"a Jacobian lens needs a layer before the last: this model has {len(config.blocks)}")
    return target


def settings_of(
    subject: Subject, rows: int | None, seed: int, dtype: Literal["float32", "bfloat16"]
) -> Settings:
    """The settings of a fit; ``rows`` None is exact. UserError for a model or a number that does not fit."""
    width, target = subject.config.width, target_layer(subject.config)
    if rows is not None and not 1 <= rows <= width:
        raise UserError(
            f"the rows of a sketch are {rows}: 1 to {width}, which is the model's width, and exact"
        )
    return Settings(digest(subject), target, rows or width, seed, dtype)


def fit(
    subject: Subject,
    texts: Sequence[Sequence[int]],
    state: Fit,
    path: str | Path,
    *,
    each: Callable[[Fit], None] = lambda _: None,
    progress: Progress = silent,
) -> Fit:
    """Adds the texts' Jacobians to a fit, which is saved to ``path`` now and then, and when it is stopped.

    ``each`` is called after every text. The texts that the fit already has are not computed again.
    """
    state.check_texts(texts)
    model: Any = subject.pytorch.model
    rows = state.settings.rows
    saved, changed = time.monotonic(), False
    with _frozen(model, state.settings.dtype):
        try:
            for number in range(state.texts, len(texts)):
                done = partial(_report, progress, number * rows, len(texts) * rows)
                state.add(texts[number], _text(model, texts[number], state, done))
                changed = True
                each(state)
                if time.monotonic() - saved > SAVED:
                    state.save(path)
                    saved, changed = time.monotonic(), False
        finally:  # Ctrl-C too
            if changed:
                state.save(path)
    return state


def _report(progress: Progress, before: int, total: int, done: int) -> None:
    progress("backward passes", before + done, total)


def _text(model: Any, ids: Sequence[int], state: Fit, done: Callable[[int], None]) -> np.ndarray:
    """float32 [l d d]: a text's estimate of each layer's matrix."""
    settings, width = state.settings, model.config.width
    basis = settings.basis(state.texts, width)
    cotangents = torch.eye(width) if basis is None else torch.from_numpy(basis)
    rows = np.concatenate(list(pulled_back(model, ids, cotangents, settings.target, done)), axis=1)
    return rows if basis is None else (width / settings.rows) * (basis.T @ rows)


def pulled_back(
    model: Any,
    ids: Sequence[int],
    cotangents: Tensor,
    target: int,
    done: Callable[[int], None] = lambda _: None,
) -> Iterator[np.ndarray]:
    """float32 [l n d] for some of the cotangents [m d] after others: v' J of every layer below ``target``."""
    names = [f"blocks.{i}.out" for i in range(target + 1)]
    sources = slice(FIRST, len(ids) - 1)
    copies = _copies(model, ids, names, len(cotangents))
    streams = _forward(model, [ids] * copies, names)
    end = streams[-1]
    for first in range(0, len(cotangents), copies):
        some = cotangents[first : first + copies].to(end)
        cotangent = torch.zeros_like(end)
        cotangent[: len(some), sources] = some[:, None]
        found = torch.autograd.grad(end, streams[:-1], cotangent, retain_graph=True)
        yield np.stack([each[: len(some), sources].mean(1).float().cpu().numpy() for each in found])
        done(first + len(some))


def _forward(model: Any, rows: Sequence[Sequence[int]], names: Sequence[str]) -> list[Tensor]:
    """The residual streams [b t d] by name, with the graph from the first of them on."""
    here = next(model.parameters()).device
    ids = torch.tensor([list(row) for row in rows], device=here)
    pos = torch.arange(ids.shape[1], device=here).expand_as(ids)
    start = {names[0]: lambda value: value.detach().requires_grad_()}
    with torch.enable_grad(), tracing(model, *names, edit=start) as seen:
        model(ids, pos, last=True)
    return [seen[name] for name in names]


def _copies(model: Any, ids: Sequence[int], names: Sequence[str], most: int) -> int:
    """How many copies of a text are differentiated at once: their graphs stay below GRAPH bytes."""
    kept: dict[int, int] = {}

    def count(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return value

    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
        _forward(model, [ids], names)
    one = sum(size for at, size in kept.items() if at not in weights)
    return max(1, min(COPIES, most, GRAPH // max(1, one)))


# ---- a model whose weights need no gradient ----------------------------------------------------------------


@contextmanager
def _frozen(model: nn.Module, dtype: Literal["float32", "bfloat16"]) -> Iterator[None]:
    """No gradients of weights; with bfloat16 the backward pass's products by them are of bfloat16 numbers,
    added up in float32. The forward pass, norms and attention stay as they are.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    with ExitStack() as stack:
        for weight in trained:
            weight.requires_grad_(False)
            stack.callback(weight.requires_grad_, True)
        if dtype == "bfloat16":
            for module in model.modules():
                if type(module) is nn.Linear:
                    rounded = module.weight.detach().bfloat16()
                    module.forward = partial(_Rounded.apply, module.weight, module.bias, rounded)
                    stack.callback(module.__dict__.pop, "forward")
        yield


class _Rounded(torch.autograd.Function):
    """y = x W' + b, whose backward pass multiplies by W rounded to bfloat16."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, rounded: Tensor, x: Tensor) -> Tensor:
        ctx.rounded = rounded
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None, Tensor]:
        return None, None, None, (grads[0].bfloat16() @ ctx.rounded).to(grads[0])
