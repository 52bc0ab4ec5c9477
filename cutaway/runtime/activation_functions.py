"""The activation functions of an MLP in numpy, with the roundings of the native step."""

from typing import Any

import numpy as np

from cutaway.runtime import arithmetic


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (np.float32(1) + arithmetic.exponential(-x))


# Our own fit of P, within 4e-8 of its values for a up to 12, past which nothing is left of Phi(-a).
GELU = (2.816112583e-2, -1.649588851e-1, 3.219553669e-1, -2.363325110e-1, 2.236916208e-1)
GELU += (2.315553749e-2, 1.063810081e-1, 9.812455136e-2, 9.982216728e-2)


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    """x/2 (1 + tanh(u)) = x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3)."""
    u = x * arithmetic.fma(x * x, np.float32(0.044715), np.float32(1))
    return x / (np.float32(1) + arithmetic.exponential(u * np.float32(-1.5957691216)))


def _gelu(x: np.ndarray) -> np.ndarray:
    """x Phi(x) = max(x, 0) - |x| Phi(-|x|), with Phi(-a) = e^(-a^2/2) t P(t), t = 1 / (1 + a/4)."""
    a = np.minimum(np.float32(12), np.abs(x))
    t = np.float32(1) / arithmetic.fma(np.float32(0.25), a, np.float32(1))
    p = np.float32(GELU[0])
    for term in GELU[1:]:
        p = arithmetic.fma(p, t, np.float32(term))
    below = (p * t) * arithmetic.exponential(a * a * np.float32(-0.5))
    return np.maximum(x, np.float32(0)) - a * below


def xielu(x: np.ndarray, above: Any, below: Any, beta: Any, most: Any) -> np.ndarray:
    """x^2 above 0, an exponential below (2411.13010), by numbers that are learned."""
    curved = np.expm1(np.minimum(x, most).astype(np.float64)).astype(np.float32) - x
    return beta * x + np.where(x > 0, above * x * x, below * curved)


ACTIVATIONS = {
    "silu": _silu,
    "gelu_tanh": _gelu_tanh,
    "gelu": _gelu,
    "gelu_sigmoid": lambda x: x / (np.float32(1) + arithmetic.exponential(x * np.float32(-1.702))),
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "relu2": lambda x: np.maximum(x, np.float32(0)) ** 2,
}
