"""A mixture of experts against its equations, token by token and neuron by neuron in float64 loops."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cutaway.layers.config import MLP, MoE
from cutaway.layers.moe import Routing
from cutaway.train.loss import load_balancing

TIGHT = {"rtol": 1e-12, "atol": 1e-12}
WIDTH = 6
CASES = {
    "mixtral": MoE(5, 2, 7),
    "switch": MoE(4, 1, 7, activation="relu", gated=False, normalised=False),
    "qwen2": MoE(5, 3, 7, normalised=False, shared=9, shared_gate=True),
    "deepseek": MoE(6, 2, 3, shared=5),
    "all": MoE(3, 3, 4, activation="gelu"),
}
ACTIVATIONS = {
    "silu": lambda x: x / (1 + math.exp(-x)),
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
}


def _times(matrix: Tensor, x: list[float]) -> list[float]:
    return [sum(float(w) * value for w, value in zip(row, x, strict=True)) for row in matrix]


def _mlp(weights: dict[str, Tensor], name: str, config: MLP, x: list[float]) -> list[float]:
    act = ACTIVATIONS[config.activation]
    hidden = _times(weights[f"{name}.up.weight"], x)
    if config.gated:
        gate = _times(weights[f"{name}.gate.weight"], x)
        hidden = [act(g) * h for g, h in zip(gate, hidden, strict=True)]
    else:
        hidden = [act(h) for h in hidden]
    return _times(weights[f"{name}.down.weight"], hidden)


def _loop(config: MoE, weights: dict[str, Tensor], x: list[float]) -> list[float]:
    """What the layer says of one token."""
    powers = [math.exp(score) for score in _times(weights["router.weight"], x)]
    probabilities = [power / sum(powers) for power in powers]
    chosen = sorted(range(config.experts), key=lambda e: (-probabilities[e], e))[: config.top_k]
    total = sum(probabilities[e] for e in chosen) if config.normalised else 1.0
    out = [0.0] * WIDTH
    for e in chosen:
        output = _mlp(weights, f"experts.{e}", config.expert, x)
        out = [o + probabilities[e] / total * s for o, s in zip(out, output, strict=True)]
    if config.common is not None:
        gate = 1.0
        if config.shared_gate:
            gate = 1 / (1 + math.exp(-_times(weights["shared_gate.weight"], x)[0]))
        output = _mlp(weights, "shared", config.common, x)
        out = [o + gate * s for o, s in zip(out, output, strict=True)]
    return out


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_it_is_its_equation(case: str) -> None:
    config = CASES[case]
    torch.manual_seed(0)
    layer = config.build(WIDTH).double()
    weights = layer.state_dict()
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == config.weights(WIDTH)
    for weight in layer.parameters():
        weight.normal_()
    x, pos = torch.randn(2, 9, WIDTH, dtype=torch.float64), torch.arange(9).expand(2, -1)
    out, _ = layer(x, pos)
    expected = [[_loop(config, weights, token.tolist()) for token in row] for row in x]
    assert_close(out, torch.tensor(expected, dtype=torch.float64), **TIGHT)


def test_the_balance_is_its_equation() -> None:
    """f is the share of all choices, P the mean score, both over what is no padding; E sum f P."""
    torch.manual_seed(0)
    scores = torch.randn(2, 7, 4, dtype=torch.float64).softmax(-1)
    real = torch.ones(2, 7, dtype=torch.bool)
    real[0, :3] = False
    choice = scores.topk(2).indices.where(real[..., None], -1)
    f, mean = [0.0] * 4, [0.0] * 4
    for b in range(2):
        for t in range(7):
            if real[b, t]:
                for e in choice[b, t].tolist():
                    f[e] += 1 / 22
                for e in range(4):
                    mean[e] += float(scores[b, t, e]) / 11
    expected = 4 * sum(a * b for a, b in zip(f, mean, strict=True))
    assert_close(
        load_balancing(Routing(scores, choice), real), torch.tensor(expected, dtype=torch.float64), **TIGHT
    )
    even = torch.full((1, 4, 4), 0.25)
    turns = torch.arange(4)[None, :, None]
    assert float(load_balancing(Routing(even, turns), torch.ones(1, 4, dtype=torch.bool))) == 1.0
    one = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(1, 4, 4)
    assert float(load_balancing(Routing(one, 0 * turns), torch.ones(1, 4, dtype=torch.bool))) == 4.0
