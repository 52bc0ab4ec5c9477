"""What the definitions share: vectors as lists of numbers, and a softmax written out."""

import cmath
import math
from collections.abc import Callable

from torch import Tensor

Vector = list[float]


def apply(matrix: Tensor, vector: Vector) -> Vector:
    return [dot(row, vector) for row in matrix.tolist()]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def rms(vector: Vector, weight: Tensor, eps: float) -> Vector:
    root = math.sqrt(sum(x * x for x in vector) / len(vector) + eps)
    return [w * x / root for w, x in zip(weight.tolist(), vector, strict=True)]


def layer_norm(vector: Vector, weight: Tensor, bias: Tensor, eps: float) -> Vector:
    mean = sum(vector) / len(vector)
    root = math.sqrt(sum((x - mean) ** 2 for x in vector) / len(vector) + eps)
    return [w * (x - mean) / root + b for w, b, x in zip(weight.tolist(), bias.tolist(), vector, strict=True)]


def turn(vector: Vector, position: int, base: float, interleaved: bool) -> Vector:
    """Rotary position as complex numbers: pair i times e^(i m theta)."""
    n, rotated = len(vector), list(vector)
    for i in range(n // 2):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + n // 2)
        pair = complex(vector[a], vector[b]) * cmath.exp(1j * position * base ** (-2 * i / n))
        rotated[a], rotated[b] = pair.real, pair.imag
    return rotated


def read(scores: dict[int, float], values: Callable[[int], Vector], sink: float | None = None) -> Vector:
    """sum over s of softmax(scores)[s] values[s]; a sink takes its share and gives nothing."""
    total = sum(math.exp(score) for score in scores.values()) + (0.0 if sink is None else math.exp(sink))
    mixed = [0.0] * len(values(0))
    for s, score in scores.items():
        mixed = [m + math.exp(score) / total * v for m, v in zip(mixed, values(s), strict=True)]
    return mixed
