"""Each weight column's importance: the mean square of its inputs on a text.

For y = W x, rounding W to W + E adds E x to y, whose mean square over many x is, as far as different x_j are
independent, sum over columns j of E_j^2 mean(x_j^2). So that is how errors are weighed when scales are chosen
(quantization/search.py); the idea is llama.cpp's importance matrix. The runtime reads the text in windows and
writes out what each matrix reads, where it shows that of all matrices; elsewhere the PyTorch model does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect.inputs import has_gate
from cutaway.inspect.instrumented import Instrumented
from cutaway.layers.config import MLP
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.kinds import kind_of
from cutaway.runtime.numpy_layers import Layers
from cutaway.store.files import Progress, silent

WINDOW = 512  # tokens read together; the next window begins anew
SHOWN = 64 << 20  # bytes of what is written out in one call
Summed = Callable[[np.ndarray], np.ndarray]  # of rows float64 [n columns]
Sums = dict[str, tuple[np.ndarray, int]]  # by a weight's name: what was summed, over how many rows


def importance(of: Any, ids: Sequence[int], progress: Progress = silent) -> dict[str, np.ndarray]:
    """The mean square of the inputs of each weight that multiplies, by name: float32 [columns].

    ``of`` is an engine or a PyTorch model. ``progress`` counts tokens. Raises UserError for a text without a
    token."""
    found = sums(of, ids, progress)
    return {name: (total / rows).astype(np.float32) for name, (total, rows) in found.items()}


def sums(of: Any, ids: Sequence[int], progress: Progress = silent) -> Sums:
    """By the name of each weight that multiplies: float64 [columns], the sum of its inputs' squares, and over
    how many of them; arguments and errors as in ``importance``."""
    return _sums(of, ids, lambda rows: np.square(rows).sum(axis=0), "", progress)


def moments(of: Any, ids: Sequence[int], progress: Progress = silent) -> dict[str, np.ndarray]:
    """By the name of each layer's query matrix: float64 [width width], the mean of x x' of its inputs x.

    Arguments and errors as in ``importance``."""
    found = _sums(of, ids, lambda rows: rows.T @ rows, "attention.query.weight", progress)
    return {name: total / rows for name, (total, rows) in found.items()}


def runs(of: Any) -> bool:
    """Whether an engine is the runtime and shows what every matrix of its model reads."""
    return isinstance(of, Instrumented) and of.name == "runtime" and _read(of.config) is not None


def _sums(of: Any, ids: Sequence[int], summed: Summed, end: str, progress: Progress) -> Sums:
    """What ``summed`` makes of the inputs of each weight whose name has this end."""
    if not ids:
        raise UserError("The calibration text has no token: give a longer one")
    if runs(of):
        return _by_runtime(of, ids, summed, end, progress)
    from cutaway.inspect.importance_pytorch import sums_of  # imports torch

    return sums_of(getattr(of, "model", of), ids, WINDOW, summed, end, progress)


def _by_runtime(of: Any, ids: Sequence[int], summed: Summed, end: str, progress: Progress) -> Sums:
    """The sums from what the runtime writes out, a piece of a window at a time."""
    reads = {weight: value for weight, value in (_read(of.config) or {}).items() if weight.endswith(end)}
    names, last = list(dict.fromkeys(reads.values())), f"blocks.{len(of.config.blocks) - 1}.out"
    width = sum(int(np.prod(of.shapes()[name])) for name in names)
    piece = max(16, SHOWN // (4 * width))
    window = min(WINDOW, of.config.context)
    found: dict[str, Any] = dict.fromkeys(names, 0)
    for start in range(0, len(ids), window):
        text, state = list(ids[start : start + window]), of.engine.new_state()
        state.announced = len(text)
        for first in range(0, len(text), piece):
            _, seen = of.engine.observe([text[first : first + piece]], [state], names)
            for name, rows in seen.items():
                if name == last:
                    rows = Layers(of.tensors).norm(rows, "norm", of.config.norm) * of.config.logit_scale
                found[name] += summed(rows.reshape(len(rows), -1).astype(np.float64))
        progress("calibrating", min(start + window, len(ids)), len(ids))
    return {weight: (found[name], len(ids)) for weight, name in reads.items()}


def _read(config: Decoder) -> Mapping[str, str] | None:
    """The input of each matrix, by name; None where the runtime does not show one."""
    if config.per_layer or config.table or not config.last_norm or not all(map(_plain, config.blocks)):
        return None
    table = "embedding.weight" if config.tied else "head.weight"
    found = {table: f"blocks.{len(config.blocks) - 1}.out"}  # normed
    for n, block in enumerate(config.blocks):
        path = f"blocks.{n}"
        own = "attention_norm" if block.parallel == "shared" else "mlp_norm"
        by = {"attention.out": "attention.z", "mlp.down": "mlp.hidden", "mlp.gate": own, "mlp.up": own}
        by |= {f"attention.{part}": "attention_norm" for part in ("query", "key", "value")}
        weights = block.weights(config.width)
        found |= {
            f"{path}.{w}.weight": f"{path}.{value}" for w, value in by.items() if f"{w}.weight" in weights
        }
    return found


def _plain(block: Block) -> bool:
    """Whether a block is a softmax over heads and a dense MLP, each behind a norm, and nothing else."""
    of: Any = block.attention
    heads = kind_of(of) in ("mha", "mqa", "gqa", "local") and not has_gate(of)
    return heads and isinstance(block.mlp, MLP) and not block.beside and "attention_norm" in block.norms
