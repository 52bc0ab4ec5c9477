"""Disentangled attention against its equation, written with loops, and what it refuses."""

import math

import pytest
import torch

from cutaway.attention import disentangled
from cutaway.attention.common.visibility import Positions
from cutaway.errors import UserError
from cutaway.position import distances
from tests.laws.mechanisms import WIDTH

HEADS, SIZE, LENGTH = 4, 8, 11
CASES = (
    {"relative": distances.Config(3)},
    {"relative": distances.Config(4, 9, 1e-3), "shared_projections": True},
    {"relative": distances.Config(20), "position_to_content": False, "distance_bias": False},
    {"relative": distances.Config(8, 12), "content_to_position": False, "key_bias": False},
)


def row(apart: int, span: int, farthest: int | None) -> int:
    """The vector of a distance: near ones by themselves, others by the logarithm, the last for all beyond."""
    half = span // 2
    if farthest is not None and abs(apart) > half:
        steps = math.log(abs(apart) / half) / math.log((farthest - 1) / half) * (half - 1)
        apart = int(math.copysign(math.ceil(round(steps, 5)) + half, apart))
    return min(max(apart + span, 0), 2 * span - 1)


@torch.no_grad()
@pytest.mark.parametrize("n", range(len(CASES)))
def test_scores_are_the_equation(n: int) -> None:
    torch.manual_seed(n)
    config = disentangled.Config(heads=HEADS, key_size=SIZE, bias=True, **CASES[n])
    module = config.build(WIDTH)
    for weight in module.parameters():
        weight.add_(torch.randn_like(weight) * 0.3)
    x = torch.randn(1, LENGTH, WIDTH)
    found = module(x, Positions(torch.arange(LENGTH)[None]), None, True, None)[0]

    def cut(y: torch.Tensor) -> torch.Tensor:
        return y.unflatten(-1, (HEADS, SIZE))

    q, k, v = (cut(part(x[0])) for part in (module.query, module.key, module.value))
    vectors = module.relative()
    keys = cut((module.distance_key or module.key)(vectors)) if config.content_to_position else None
    queries = cut((module.distance_query or module.query)(vectors)) if config.position_to_content else None
    expected = torch.zeros(LENGTH, HEADS, SIZE)
    for head in range(HEADS):
        for i in range(LENGTH):
            scores = torch.empty(LENGTH)
            for j in range(LENGTH):
                at = row(i - j, config.relative.span, config.relative.farthest)
                score = q[i, head] @ k[j, head]
                score = score if keys is None else score + q[i, head] @ keys[at, head]
                score = score if queries is None else score + k[j, head] @ queries[at, head]
                scores[j] = score / math.sqrt(SIZE * config.terms)
            expected[i, head] = scores.softmax(0) @ v[:, head]
    assert (found - module.out(expected.flatten(-2))).abs().max() < 1e-5
    assert config.weights(WIDTH) == {name: tuple(weight.shape) for name, weight in module.named_parameters()}


def test_what_has_no_meaning_is_refused() -> None:
    sizes = {"heads": 2, "key_size": 4}
    with pytest.raises(UserError, match="content_to_position"):
        disentangled.Config(**sizes, content_to_position=False, position_to_content=False)
    with pytest.raises(UserError, match="no other positions"):
        disentangled.Config(**sizes, scale=1.0)
    with pytest.raises(UserError, match="farthest is 5"):
        distances.Config(8, 5)
