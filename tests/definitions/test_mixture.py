"""A mixture of experts against its equations, token by token and neuron by neuron in float64 loops."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cutaway.layers.config import MLP, MoE, Norm, Router
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
    "llama 4": MoE(5, 2, 7, normalised=False, shared=4, router=Router("sigmoid", on_input=True)),
    "kolibri": MoE(5, 2, 7, router=Router("sigmoid", choice_bias=True, by_logits=True)),
    "nemotron 3": MoE(4, 2, 7, activation="relu", gated=False, shared=5, latent=3),
    "gemma 4": MoE(4, 2, 5, activation="gelu", shared=7, norms=Norm(eps=1e-3)),
    "command a": MoE(4, 2, 7, shared=5, out_scale=0.5),
    "phi": MoE(5, 2, 7, normalised=False, router=Router("sparsemixer", jitter=0.4)),
    "phi, apart": MoE(5, 2, 7, normalised=False, router=Router("sparsemixer")),
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

    def normed(name: str, vector: list[float]) -> list[float]:
        if config.norms is None:
            return vector
        root = math.sqrt(sum(v * v for v in vector) / len(vector) + config.norms.eps)
        return [w * v / root for w, v in zip(weights[f"{name}.weight"].tolist(), vector, strict=True)]

    small = 1 if config.norms is None else WIDTH**-0.5
    scores = _times(weights["router.weight"], [small * v for v in normed("router_norm", x)])
    powers = [math.exp(score) for score in scores]
    probabilities = [power / sum(powers) for power in powers]
    if config.router.score == "sigmoid":
        probabilities = [1 / (1 + math.exp(-score)) for score in scores]
    if config.router.score == "sparsemixer":
        probabilities = _sparsely_mixed(scores, config.router.jitter)
    bias = weights.get("choice_bias", torch.zeros(config.experts)).tolist()
    merit = scores if config.router.by_logits else probabilities
    chosen = sorted(range(config.experts), key=lambda e: (-merit[e] - bias[e], e))[: config.top_k]
    total = sum(probabilities[e] for e in chosen) if config.normalised else 1.0
    out = [0.0] * WIDTH
    read = normed("experts_norm", x)
    if config.latent:
        read, out = _times(weights["latent_down.weight"], read), [0.0] * config.latent
    for e in chosen:
        weight = probabilities[e] / total
        if config.norms is not None:
            weight *= float(weights["expert_scale"][e])
        before, after = (weight, 1.0) if config.router.on_input else (1.0, weight)
        output = _mlp(weights, f"experts.{e}", config.expert, [before * v for v in read])
        out = [o + after * s for o, s in zip(out, output, strict=True)]
    out = normed("experts_post_norm", _times(weights["latent_up.weight"], out) if config.latent else out)
    if config.common is not None:
        gate = 1.0
        if config.shared_gate:
            gate = 1 / (1 + math.exp(-_times(weights["shared_gate.weight"], x)[0]))
        output = normed("shared_post_norm", _mlp(weights, "shared", config.common, normed("shared_norm", x)))
        out = [o + gate * s for o, s in zip(out, output, strict=True)]
    return [config.out_scale * o for o in out]


def _sparsely_mixed(logits: list[float], jitter: float) -> list[float]:
    """The weight of each of two experts among those near it, 0 of the others."""
    weights, left = [0.0] * len(logits), list(range(len(logits)))
    for _ in range(2):
        best = max(left, key=lambda e: logits[e])
        size = logits[best]
        near = [e for e in left if (size - logits[e]) / max(abs(logits[e]), size) <= 2 * jitter]
        weights[best] = math.exp(size) / sum(math.exp(logits[e]) for e in near)
        left.remove(best)
    return weights


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
