"""The attentions of 2014 and 2015 against their papers' equations, as float64 loops over words."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cutaway.attention import bahdanau, luong
from cutaway.errors import UserError
from cutaway.hooks import tracing

MEMORY, WORDS, QUERIES = 6, 7, 3
CASES = {
    "bahdanau": bahdanau.Config(size=4),
    "dot": luong.Config(score="dot"),
    "general": luong.Config(),
    "concat": luong.Config(score="concat"),
    "general local": luong.Config(window=2),
    "dot local": luong.Config(score="dot", window=1),
    "concat local": luong.Config(score="concat", window=3),
}


def _score(config: Any, w: dict[str, np.ndarray], q: np.ndarray, h: np.ndarray) -> float:
    if isinstance(config, bahdanau.Config):
        return float(
            w["score.weight"][0] @ np.tanh(w["query.weight"] @ q + w["key.weight"] @ h + w["key.bias"])
        )
    if config.score == "dot":
        return float(q @ h)
    if config.score == "general":
        return float(q @ w["key.weight"] @ h)
    matrix = np.concatenate((w["query.weight"], w["key.weight"]), axis=1)
    return float(w["score.weight"][0] @ np.tanh(matrix @ np.concatenate((q, h))))


def _loop(
    config: Any, w: dict[str, np.ndarray], queries: np.ndarray, memory: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    read, pattern = np.zeros((len(queries), memory.shape[1])), np.zeros((len(queries), len(memory)))
    for t, q in enumerate(queries):
        words, weight = list(range(len(memory))), [1.0] * len(memory)
        if getattr(config, "window", None) is not None:
            place = len(memory) / (
                1 + math.exp(-(w["position_score.weight"][0] @ np.tanh(w["position.weight"] @ q)))
            )
            words = [s for s in words if place - config.window <= s <= place + config.window]
            sigma = config.window / 2
            weight = [math.exp(-((s - place) ** 2) / (2 * sigma**2)) for s in range(len(memory))]
        exps = {s: math.exp(_score(config, w, q, memory[s])) for s in words}
        for s in words:
            pattern[t, s] = exps[s] / sum(exps.values()) * weight[s]
            read[t] += pattern[t, s] * memory[s]
    return read, pattern


def _made(case: str) -> tuple[Any, torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(len(case))
    query = MEMORY if "dot" in case else 5
    module = CASES[case].build(query, MEMORY).double()
    queries = torch.randn(2, QUERIES, query, dtype=torch.float64)
    return CASES[case], module, queries, torch.randn(2, WORDS, MEMORY, dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_each_is_its_equation(case: str) -> None:
    config, module, queries, values = _made(case)
    weights = {name: weight.numpy() for name, weight in module.named_parameters()}
    assert {name: weight.shape for name, weight in weights.items()} == config.weights(
        queries.shape[2], MEMORY
    )
    read, pattern = module(queries, module.remember(values, torch.arange(WORDS).expand(2, -1)))
    for b in range(2):
        true_read, true_pattern = _loop(config, weights, queries[b].numpy(), values[b].numpy())
        assert_close(pattern[b], torch.from_numpy(true_pattern))
        assert_close(read[b], torch.from_numpy(true_read))


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_padding_is_not_seen(case: str) -> None:
    _, module, queries, values = _made(case)
    plain, _ = module(queries[:, :, :], module.remember(values[:, :4], torch.arange(4).expand(2, -1)))
    pos = torch.tensor([[0, 1, 2, 3, -1, -1], [-1, 0, 1, -1, 2, 3]])
    padded = torch.full((2, 6, MEMORY), 9.0, dtype=torch.float64)
    for b in range(2):
        padded[b, pos[b] >= 0] = values[b, :4]
    read, pattern = module(queries, module.remember(padded, pos))
    assert_close(read, plain)
    assert (pattern[:, :, :][(pos < 0)[:, None].expand_as(pattern)] == 0).all()
    nothing, _ = module(queries, module.remember(padded, torch.full_like(pos, -1)))
    assert (nothing == 0).all()


@pytest.mark.parametrize("case", CASES)
def test_gradients(case: str) -> None:
    _, module, queries, values = _made(case)
    pos = torch.arange(WORDS)[None]

    def read(queries: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return module(queries, module.remember(values, pos))[0]

    assert torch.autograd.gradcheck(read, (queries[:1].requires_grad_(), values[:1].requires_grad_()))


@torch.no_grad()
def test_the_pattern_is_tapped_and_can_be_changed() -> None:
    _, module, queries, values = _made("bahdanau")
    memory = module.remember(values, torch.arange(WORDS).expand(2, -1))
    with tracing(module, "scores", "pattern") as seen:
        _, pattern = module(queries, memory)
    assert torch.equal(seen["pattern"], pattern)
    assert_close(torch.softmax(seen["scores"], -1), pattern)
    first = torch.eye(WORDS, dtype=torch.float64)[0].expand_as(pattern)
    with tracing(module, edit={"pattern": lambda _: first}):
        read, _ = module(queries, memory)
    assert_close(read, values[:, :1].expand_as(read))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="equal sizes"):
        luong.Config(score="dot").build(5, 6)
    with pytest.raises(UserError, match="1 or more"):
        luong.Config(window=0)
    with pytest.raises(UserError, match="1 or more"):
        bahdanau.Config(size=0)
