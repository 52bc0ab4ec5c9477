"""Model soups: the weights of several models of one base made one, a tensor at a time, in float32.

    average (2203.05482)          W = sum w_i W_i / sum w_i
    slerp (Shoemake 1985)         W = [sin((1 - t) a) W_1 + sin(t a) W_2] / sin a,  a the angle between them
    task arithmetic (2212.04089)  W = W_0 + s sum w_i (W_i - W_0); a negative w_i takes a task away
    TIES (2306.01708)             W = W_0 + s (weighted mean of the trimmed changes with the elected sign)

TIES trims each change to the ``density`` of its values that are largest, and elects the sign of their
weighted sum at each place. Here it trims tensor by tensor; the paper trims a model's change as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from cutaway.errors import UserError
from cutaway.gguf import Later, Packed
from cutaway.quantization import formats
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors

PARALLEL = 1e-6  # the sine of an angle below which slerp is the straight line
Array = np.ndarray


def average(models: Sequence[Array], weights: Sequence[float]) -> Array:
    """The weighted mean."""
    return _sum(models, np.array(weights) / sum(weights))


def slerp(models: Sequence[Array], weights: Sequence[float]) -> Array:
    """Interpolate two tensors on the arc between them, t = w_2 / (w_1 + w_2)."""
    (one, other), t = models, weights[1] / sum(weights)
    norms = [float(np.linalg.norm(each.astype(np.float64))) for each in models]
    product = np.einsum("i,i->", one.ravel(), other.ravel(), dtype=np.float64)
    cosine = float(product) / (norms[0] * norms[1]) if all(norms) else 1.0
    angle = float(np.arccos(np.clip(cosine, -1, 1)))
    if np.sin(angle) < PARALLEL:
        return average(models, weights)
    return _sum(models, np.sin([(1 - t) * angle, t * angle]) / np.sin(angle))


def task(base: Array, models: Sequence[Array], weights: Sequence[float], scale: float = 1.0) -> Array:
    """The base plus the weighted sum of what each model changes."""
    return base + _sum([model - base for model in models], scale * np.array(weights))


def ties(
    base: Array,
    models: Sequence[Array],
    weights: Sequence[float],
    density: float = 0.2,
    scale: float = 1.0,
) -> Array:
    """The base plus the mean of the large changes that agree in sign with the weighted majority."""
    changes = [_trimmed(model - base, density) for model in models]
    elected = np.sign(_sum(changes, weights))
    agreeing = [np.where(np.sign(change) == elected, change, 0) for change in changes]
    counted = _sum([(part != 0).astype(np.float32) for part in agreeing], weights)
    return base + np.float32(scale) * _sum(agreeing, weights) / np.where(counted == 0, 1, counted)


def _sum(arrays: Sequence[Array], weights: Sequence[float] | Array) -> Array:
    total = np.zeros_like(arrays[0])
    for array, weight in zip(arrays, weights, strict=True):
        total += np.float32(weight) * array
    return total


def _trimmed(change: Array, density: float) -> Array:
    """The change with all but its largest values set to 0: at least one stays."""
    size = np.abs(change)
    kept = max(1, round(density * change.size))
    return np.where(size >= np.partition(size, -kept, axis=None)[-kept], change, 0)


METHODS: Mapping[str, Callable[..., Array]] = {
    "average": average,
    "slerp": slerp,
    "task": task,
    "ties": ties,
}


def soup(
    method: str,
    models: Sequence[Checkpoint],
    weights: Sequence[float],
    base: Checkpoint | None = None,
    **options: float,
) -> Checkpoint:
    """The models as one, with the first one's tokenizer; each weight is made when it is asked for.

    ``base`` is needed by "task" and "ties", ``options`` are those of the method's function. Raises UserError
    for models of other configs, and weights that make no mean.
    """
    if len(models) < 2 or (method == "slerp" and len(models) > 2):
        wanted = "exactly 2" if method == "slerp" else "2 or more"
        raise UserError(f"{method} makes one model of {wanted}, and {len(models)} were given")
    if len(weights) != len(models):
        raise UserError(f"{len(weights)} weights were given for {len(models)} models: give one for each")
    if method != "task" and (min(weights) < 0 or not sum(weights)):
        raise UserError(f"{method} takes weights that are 0 or more, not all 0: only task subtracts models")
    if not 0 < options.get("density", 1) <= 1:
        raise UserError(f"density is {options['density']}: it must be above 0 and at most 1")
    for other in (*models[1:], *([] if base is None else [base])):
        if other.config != models[0].config:
            raise UserError(
                f"{other.source}: has another config than {models[0].source}: only models of one base, with "
                "the same layers, positions and head, can be made one"
            )

    def make(name: str) -> Packed:
        arrays = [formats.unpack(model.tensors[name]) for model in models]
        start = [] if base is None else [formats.unpack(base.tensors[name])]
        return formats.pack(METHODS[method](*start, arrays, weights, **options), "F32")

    shapes = {name: models[0].tensors.later(name).shape for name in models[0].tensors}
    made = {name: Later("F32", shape, lambda name=name: make(name)) for name, shape in shapes.items()}
    return replace(models[0], tensors=Tensors(made))
