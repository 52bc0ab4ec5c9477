"""Softmax attention against the papers' equations, written as float64 loops over single numbers."""

import math

import pytest
import torch
from torch.testing import assert_close

from cutaway.attention import gqa, mha, mqa
from cutaway.attention.common.visibility import Causal, Positions, Sink, Visibility, Window, mask
from cutaway.layers.config import Norm
from cutaway.position import rope
from cutaway.position.scaling import Linear, Llama3
from tests.laws.mechanisms import KINDS, attention


def _rms(vector: list[float], weight: list[float], eps: float) -> list[float]:
    root = math.sqrt(sum(x * x for x in vector) / len(vector) + eps)
    return [w * x / root for w, x in zip(weight, vector, strict=True)]


def _turn(vector: list[float], position: int, base: float) -> list[float]:
    """Rotary position as complex numbers: pair (i, i + k/2) times e^(i m theta)."""
    half = len(vector) // 2
    rotated = list(vector)
    for i in range(half):
        angle = position * base ** (-2 * i / len(vector))
        pair = complex(vector[i], vector[i + half]) * complex(math.cos(angle), math.sin(angle))
        rotated[i], rotated[i + half] = pair.real, pair.imag
    return rotated


def _apply(matrix: torch.Tensor, vector: list[float]) -> list[float]:
    return [sum(w * x for w, x in zip(row, vector, strict=True)) for row in matrix.tolist()]


def _loop(config, module, x: list[list[float]], window: int, base: float | None) -> list[list[float]]:
    """The equation, token by token and head by head."""
    size, heads, groups = config.key_size, config.heads, config.groups
    norm = config.qk_norm

    def head(matrix: torch.Tensor, token: int, h: int, weight: torch.Tensor | None) -> list[float]:
        vector = _apply(matrix[h * size : (h + 1) * size], x[token])
        if weight is not None and norm is not None:
            vector = _rms(vector, weight.tolist(), norm.eps)
            return _turn(vector, token, base) if base else vector
        return vector

    out = []
    for t in range(len(x)):
        gathered: list[float] = []
        for h in range(heads):
            g = h * groups // heads
            q = head(module.query.weight, t, h, module.query_norm.weight)
            seen = [s for s in range(t + 1) if s > t - window]
            scores = []
            for s in seen:
                k = head(module.key.weight, s, g, module.key_norm.weight)
                score = sum(a * b for a, b in zip(q, k, strict=True)) / math.sqrt(size)
                scores.append(config.softcap * math.tanh(score / config.softcap))
            total = sum(math.exp(score) for score in scores)
            mixed = [0.0] * size
            for s, score in zip(seen, scores, strict=True):
                for i, value in enumerate(head(module.value.weight, s, g, None)):
                    mixed[i] += math.exp(score) / total * value
            gathered += mixed
        out.append(_apply(module.out.weight, gathered))
    return out


@torch.no_grad()
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in ("mha", "mqa", "gqa", "local")])
def test_attention_is_its_equation(kind: str) -> None:
    torch.manual_seed(0)
    config = attention(kind, position=rope.Config(8, base=50.0), qk_norm=Norm(eps=1e-6), softcap=3.0)
    module = config.build(12).double()
    module.query_norm.weight.copy_(torch.rand(8))
    module.key_norm.weight.copy_(torch.rand(8))
    x = torch.randn(1, 9, 12, dtype=torch.float64)
    pos = torch.arange(9)[None]
    rotation = rope.RotaryEmbedding(config.position).rotation(pos)
    ours = module(x, Positions(pos), rotation, False, None)
    window = getattr(config, "window", 9)
    assert_close(
        ours[0], torch.tensor(_loop(config, module, x[0].tolist(), window, 50.0), dtype=torch.float64)
    )


def test_key_value_heads_are_as_many_as_the_name_says() -> None:
    kinds = (
        mha.Config(heads=6, key_size=2),
        gqa.Config(heads=6, kv_heads=3, key_size=2),
        mqa.Config(heads=6, key_size=2),
    )
    for config, groups in zip(kinds, (6, 3, 1), strict=True):
        assert config.groups == groups
        assert config.build(8).key.weight.shape == (groups * 2, 8)
        assert config.bytes_per_token(2) == 2 * groups * 2 * 2  # a key and a value, two bytes a number


@pytest.mark.parametrize("offset", [0, 7])
def test_rope_is_relative(offset: int) -> None:
    config = rope.Config(16)
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)

    def score(start: int) -> torch.Tensor:
        turns = [rope.RotaryEmbedding(config).rotation(torch.tensor([[p]])) for p in (start + offset, start)]
        return (rope.rotate(q, turns[0]) * rope.rotate(k, turns[1])).sum()

    for start in (10, 1000, 100_000):
        assert_close(score(start), score(0), rtol=1e-9, atol=1e-9)


def test_rope_leaves_the_rest_of_the_head() -> None:
    x = torch.randn(1, 2, 3, 16)
    rotated = rope.rotate(x, rope.RotaryEmbedding(rope.Config(6)).rotation(torch.arange(3)[None]))
    assert torch.equal(rotated[..., 6:], x[..., 6:])
    assert_close(rotated[..., :6].norm(dim=-1), x[..., :6].norm(dim=-1))


def test_scalings_stretch_as_their_papers_say() -> None:
    plain = rope.Config(64, base=500_000.0).frequencies()
    assert (rope.Config(64, base=500_000.0, scaling=Linear(4.0)).frequencies() == plain / 4).all()
    scaled = rope.Config(64, base=500_000.0, scaling=Llama3(8.0, 1.0, 4.0, 8192)).frequencies()
    for before, after in zip(plain, scaled, strict=True):
        wavelength = 2 * math.pi / before
        if wavelength < 8192 / 4.0:
            expected = before
        elif wavelength > 8192 / 1.0:
            expected = before / 8
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            expected = (1 - smooth) * before / 8 + smooth * before
        assert math.isclose(after, expected, rel_tol=1e-12)


RULES = {
    "causal": (Causal(), lambda t, s: s <= t),
    "window": (Causal() & Window(3), lambda t, s: t - 3 < s <= t),
    "window of one": (Causal() & Window(1), lambda t, s: s == t),
    "sink": (Causal() & (Window(2) | Sink(2)), lambda t, s: s <= t and (s > t - 2 or s < 2)),
}


@pytest.mark.parametrize("name", RULES)
def test_visibility_is_its_rule(name: str) -> None:
    rule: Visibility = RULES[name][0]
    pos = torch.tensor([[-1, 0, 1, 2, 5, 6, -1], [0, 1, 2, 3, 4, 5, 6]])
    documents = torch.tensor([[0] * 7, [0, 0, 0, 0, 1, 1, 1]])
    dense = mask(rule, Positions(pos, documents), Positions(pos, documents))
    for b in range(2):
        for i, t in enumerate(pos[b].tolist()):
            for j, s in enumerate(pos[b].tolist()):
                expected = t >= 0 and s >= 0 and documents[b, i] == documents[b, j] and RULES[name][1](t, s)
                assert bool(dense[b, i, j]) == bool(expected)
