"""Chapter 9, rotary positions: angles, rotation, scores by distance, two layouts of a head, YaRN."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from cutaway.course.exercise import Arguments, Exercise, Mistake, Property
from cutaway.position.rope import Config
from cutaway.position.scaling import YaRN

TITLE = "Positions and RoPE"
QUESTION = (
    "Attention compares every token with every other. How does it know which came first, and how far away?"
)


# ---- 9.1 ---------------------------------------------------------------------------------------------------


def _angles(positions: np.ndarray, size: int, base: float) -> np.ndarray:
    return np.asarray(positions, dtype=np.float64)[:, None] * Config(size, base).frequencies()


def _angles_with(power: Any) -> Any:
    def wrong(positions: np.ndarray, size: int, base: float) -> np.ndarray:
        pairs = np.arange(size // 2)
        return np.asarray(positions, dtype=np.float64)[:, None] * base ** power(pairs, size)

    return wrong


def _angle_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield np.array([0, 1, 2]), 4, 10000.0
    yield np.array([5]), 2, 10.0
    yield rng.integers(0, 5000, size=7), 64, 100000.0


# ---- 9.2 ---------------------------------------------------------------------------------------------------


def _rotated(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    first, second = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


def _rotated_backwards(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    return _rotated(x, -angles)


def _rotated_interleaved(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    made = np.empty_like(x)
    a, b, cos, sin = x[..., 0::2], x[..., 1::2], np.cos(angles), np.sin(angles)
    made[..., 0::2], made[..., 1::2] = a * cos - b * sin, a * sin + b * cos
    return made


def _mirrored(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    first, second = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos - first * sin], axis=-1)


def _only_scaled(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    return x * np.concatenate([np.cos(angles), np.cos(angles)], axis=-1)


def _rotate_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield np.array([[1.0, 0.0]]), np.array([[math.pi / 2]])
    yield rng.normal(size=(1, 4)), rng.normal(size=(1, 2))
    yield rng.normal(size=(6, 64)), rng.uniform(0, 100, size=(6, 32))


# ---- 9.3 ---------------------------------------------------------------------------------------------------


def _score_by_distance(q: np.ndarray, k: np.ndarray, distances: np.ndarray, base: float) -> np.ndarray:
    size = len(q)
    here = _rotated(q[None], _angles(np.zeros(1), size, base))
    there = _rotated(np.repeat(k[None], len(distances), 0), _angles(-np.asarray(distances), size, base))
    return (there * here).sum(-1) / math.sqrt(size)


def _key_alone_ahead(q: np.ndarray, k: np.ndarray, distances: np.ndarray, base: float) -> np.ndarray:
    return _score_by_distance(q, k, -np.asarray(distances), base)


def _unscaled(q: np.ndarray, k: np.ndarray, distances: np.ndarray, base: float) -> np.ndarray:
    return _score_by_distance(q, k, distances, base) * math.sqrt(len(q))


def _both_at_the_key(q: np.ndarray, k: np.ndarray, distances: np.ndarray, base: float) -> np.ndarray:
    return np.full(len(distances), float(q @ k) / math.sqrt(len(q)))


def _distance_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield rng.normal(size=2), rng.normal(size=2), np.array([0, 1]), 100.0
    yield rng.normal(size=64), rng.normal(size=64), np.arange(0, 200, 7), 100000.0
    same = rng.normal(size=16)
    yield same, same, np.array([0, 3, 50, 1000]), 10000.0


# ---- 9.4 ---------------------------------------------------------------------------------------------------


def _half_split_rows(weight: np.ndarray) -> np.ndarray:
    return np.concatenate([weight[0::2], weight[1::2]])


def _interleaved_rows(weight: np.ndarray) -> np.ndarray:
    made = np.empty_like(weight)
    made[0::2], made[1::2] = np.split(weight, 2)
    return made


def _layout_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield (np.arange(8.0).reshape(4, 2),)
    yield (rng.normal(size=(64, 16)),)


# ---- 9.5 ---------------------------------------------------------------------------------------------------


def _yarn(size: int, base: float, factor: float, original: int) -> np.ndarray:
    return Config(size, base, YaRN(factor=factor, original=original)).frequencies()


def _interpolated(size: int, base: float, factor: float, original: int) -> np.ndarray:
    return Config(size, base).frequencies() / factor


def _unstretched(size: int, base: float, factor: float, original: int) -> np.ndarray:
    return Config(size, base).frequencies()


def _yarn_reversed(size: int, base: float, factor: float, original: int) -> np.ndarray:
    plain = Config(size, base).frequencies()
    kept = (plain - _yarn(size, base, factor, original)) / (plain - plain / factor)
    return plain / factor * (1 - kept) + plain * kept


def _yarn_whole_base(size: int, base: float, factor: float, original: int) -> np.ndarray:
    return Config(size, base * factor ** (size / (size - 2))).frequencies()


def _yarn_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield 64, 10000.0, 4.0, 2048
    yield 128, 10000.0, 8.0, 4096
    yield 64, float(rng.integers(10_000, 1_000_000)), 2.0, 8192
    yield 16, 10000.0, 4.0, 128  # low would be below 0
    yield 16, 10.0, 4.0, 656  # high would be above size - 1, and no pair is slowed in full


# ---- 9.6 ---------------------------------------------------------------------------------------------------


def _longest_turn(size: int, base: float) -> float:
    return 2 * math.pi / float(Config(size, base).frequencies()[-1])


def _turn_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield 64, 10000.0
    yield 64, 100000.0
    yield 2 * int(rng.integers(8, 64)), float(rng.integers(1000, 500_000))


EXERCISES = [
    Exercise(
        number="9.1",
        title="The angles",
        name="angles",
        parameters="positions, size, base",
        task="""
By which angle does each pair of a head rotate at each position?

positions: whole numbers [t]; size: how many numbers a head has, even; base: a number such as 10000.
Pair i, counted from 0, rotates by base^(-2i/size) radians a token. Returns an array [t size/2]: a row for
each position, in radians, in float64.
""",
        cases=_angle_cases,
        reference=_angles,
        mistakes=(
            Mistake(
                "the exponent is -i/size: it is -2i/size",
                _angles_with(lambda i, k: -i / k),
            ),
            Mistake(
                "the pairs speed up: the exponent has the wrong sign", _angles_with(lambda i, k: 2 * i / k)
            ),
            Mistake(
                "pairs are counted from 1: they begin at 0",
                _angles_with(lambda i, k: -2 * (i + 1) / k),
            ),
            Mistake(
                "the exponent is -4i/size: it is -2i/size",
                _angles_with(lambda i, k: -4 * i / k),
            ),
        ),
        properties=(
            Property("position 0 should not rotate", lambda g, f: not np.any(f[np.asarray(g[0]) == 0])),
            Property(
                "pair 0 should rotate by one radian a token",
                lambda g, f: np.allclose(np.asarray(f)[:, 0], g[0]),
            ),
            Property("it should be computed in float64", lambda g, f: np.asarray(f).dtype == np.float64),
        ),
        tolerance=1e-12,
    ),
    Exercise(
        number="9.2",
        title="Rotate",
        name="rotate",
        parameters="x, angles",
        task="""
Rotate each pair of numbers of each vector by its angle, counter-clockwise.

x: vectors [t n]; angles: radians [t n/2]. Pair i is the numbers i and i + n/2 of a vector (the half-split
layout of Llama's files in Hugging Face's format). A point (a, b) rotated by an angle r is
(a cos r - b sin r, a sin r + b cos r). Returns an array [t n].
""",
        cases=_rotate_cases,
        reference=_rotated,
        mistakes=(
            Mistake("it rotates clockwise: the signs of the two sines are exchanged", _rotated_backwards),
            Mistake("pairs are neighbours (2i, 2i + 1): here they are i and i + n/2", _rotated_interleaved),
            Mistake("both sines have a minus, which mirrors: a rotation has one of each sign", _mirrored),
            Mistake("the sine's half is missing: each coordinate is made of both", _only_scaled),
        ),
        properties=(
            Property(
                "a rotation should keep the length of a vector",
                lambda g, f: np.allclose(np.linalg.norm(f, axis=-1), np.linalg.norm(g[0], axis=-1)),
            ),
        ),
    ),
    Exercise(
        number="9.3",
        title="The score by distance",
        name="score_by_distance",
        parameters="q, k, distances, base",
        task="""
What is the score of a query and a key that is so many tokens before it?

q, k: one query and one key before rotation, n numbers each, n even; distances: whole numbers, 0 is the
query's own place; base: as in 9.1. The query is at position t, the key at t - distance. Both rotate
(half-split layout), and the score is their product divided by the root of n. It does not depend on t.
Returns an array: a score for each distance.
""",
        cases=_distance_cases,
        reference=_score_by_distance,
        mistakes=(
            Mistake("the key is ahead of the query: it is at t - distance", _key_alone_ahead),
            Mistake("the score is not divided by the root of n", _unscaled),
            Mistake("query and key rotate by the same angle: that changes no product", _both_at_the_key),
        ),
        properties=(
            Property(
                "at distance 0 both rotate by the same angle: the score should be that without rotation",
                lambda g, f: np.allclose(
                    np.asarray(f)[np.asarray(g[2]) == 0], float(g[0] @ g[1]) / math.sqrt(len(g[0]))
                ),
            ),
            Property(
                "no score can be larger than the product of the two lengths over the root of n",
                lambda g, f: np.all(
                    np.abs(f) <= np.linalg.norm(g[0]) * np.linalg.norm(g[1]) / math.sqrt(len(g[0])) + 1e-9
                ),
            ),
        ),
    ),
    Exercise(
        number="9.4",
        title="Two layouts of one head",
        name="to_half_split",
        parameters="weight",
        task="""
Llama's files in GGUF keep the numbers of a pair as neighbours (2i, 2i + 1), those of Hugging Face as two
halves (i, i + n/2). Each row of W_q makes one number of a query (6.1), so one layout becomes the other by
another order of the rows.

weight: one head's rows of W_q, pairs as neighbours [n d]. Returns the same rows, pairs as halves [n d].
""",
        cases=_layout_cases,
        reference=_half_split_rows,
        mistakes=(
            Mistake("it goes the other way: from halves to neighbours", _interleaved_rows),
            Mistake("nothing is permuted", lambda weight: weight.copy()),
            Mistake("the order is reversed: pairs keep their order", lambda weight: weight[::-1].copy()),
            Mistake(
                "it permutes columns: each row makes one number of the query",
                lambda w: np.concatenate([w[:, 0::2], w[:, 1::2]], 1),
            ),
        ),
        properties=(
            Property(
                "each row of the weight should appear once",
                lambda g, f: sorted(map(tuple, g[0])) == sorted(map(tuple, f)),
            ),
        ),
    ),
    Exercise(
        number="9.5",
        title="YaRN",
        name="yarn_frequencies",
        parameters="size, base, factor, original",
        task="""
The speed of each pair, for a context `factor` times as long as the `original` one (YaRN, 2309.00071).

Pairs that turn often within the original context keep their speed: they tell neighbours apart. Pairs that
do not even turn once are slowed by the factor: they would reach angles never seen in training. Pairs
between them are slowed in part, the more the slower they are.

size, base: as in 9.1; factor: a number; original: how many tokens. Pair i has the speed f_i =
base^(-2i/size). The pair that makes r turns in the original context is p(r) =
size ln(original / (2 pi r)) / (2 ln base), which need not be a whole number. Let low = floor(p(32)) and
high = ceil(p(1)), kept within 0 and size - 1 (not size/2 - 1: so YaRN's own code has it). Let s_i =
(i - low) / (high - low), kept within 0 and 1. Returns (1 - s_i) f_i + s_i f_i / factor, an array [size/2].
""",
        cases=_yarn_cases,
        reference=_yarn,
        mistakes=(
            Mistake("every pair is slowed: that is position interpolation", _interpolated),
            Mistake("no pair is slowed", _unstretched),
            Mistake("the ramp is upside down: fast pairs are slowed, and slow ones kept", _yarn_reversed),
            Mistake("the base is changed: that is the NTK scheme, without a ramp", _yarn_whole_base),
        ),
        properties=(
            Property(
                "the fastest pair should keep its frequency",
                lambda g, f: math.isclose(float(f[0]), 1.0),
            ),
            Property(
                "the slowest pair should be slowed by the factor",
                lambda g, f: g[1] == 10.0 or math.isclose(f[-1], Config(g[0], g[1]).frequencies()[-1] / g[2]),
            ),
        ),
    ),
    Exercise(
        number="9.6",
        title="The longest turn",
        name="longest_turn",
        parameters="size, base",
        task="""
After how many tokens has the slowest pair of a head made one whole turn?

size, base: as in 9.1. Returns one number: tokens. Compare it with the context that a model was
trained on.
""",
        cases=_turn_cases,
        reference=_longest_turn,
        mistakes=(
            Mistake("a whole turn has 2 pi radians, not 1", lambda size, base: base ** ((size - 2) / size)),
            Mistake("it is half a turn", lambda size, base: math.pi * base ** ((size - 2) / size)),
            Mistake("the last pair is number size/2 - 1, not size/2", lambda size, base: 2 * math.pi * base),
            Mistake("that is the fastest pair: the slowest is the last one", lambda size, base: 2 * math.pi),
        ),
    ),
]
