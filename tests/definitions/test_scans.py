"""Mamba, the real-gated linear recurrent unit and the gated short convolution against the papers' equations,
token by token in float64, and the scan by doubling against the loop.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cutaway.attention import mamba, rg_lru, short_conv
from cutaway.attention.common import scan
from cutaway.attention.common.visibility import Positions
from cutaway.errors import UserError
from cutaway.layers.config import Norm

WIDTH, TOKENS = 6, 9
Array = np.ndarray
Weights = dict[str, Array]


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _softplus(x: Array) -> Array:
    return np.log1p(np.exp(x))


def _conv(x: list[Array], w: Weights) -> list[Array]:
    weight, bias = w["conv.weight"], w.get("conv.bias", 0.0)
    size = weight.shape[1]
    return [
        sum(weight[:, j] * x[t - size + 1 + j] for j in range(size) if t - size + 1 + j >= 0) + bias
        for t in range(len(x))
    ]


def _mamba(config: Any, w: Weights, x: list[Array]) -> list[Array]:
    """2312.00752, with the norms of Jamba: channel by channel, number by number."""

    def project(name: str, u: Array) -> Array:
        return w[f"{name}.weight"] @ u + w.get(f"{name}.bias", 0.0)

    def normed(name: str, u: Array) -> Array:
        if config.norm is None:
            return u
        return w.get(f"{name}_norm.weight", 1.0) * u / math.sqrt(np.mean(u**2) + config.norm.eps)

    read = [v * _sigmoid(v) for v in _conv([project("value", u) for u in x], w)]
    memory, out = np.zeros((config.channels, config.state_size)), []
    for u, v in zip(x, read, strict=True):
        dt = _softplus(project("step", normed("step", project("step_down", v))) + w["dt_bias"])
        b, c = (normed(name, project(name, v)) for name in ("key", "query"))
        y = np.zeros(config.channels)
        for i in range(config.channels):
            for n in range(config.state_size):
                kept = math.exp(-dt[i] * math.exp(w["A_log"][i, n]))
                memory[i, n] = kept * memory[i, n] + dt[i] * b[n] * v[i]
                y[i] += c[n] * memory[i, n]
        gate = project("gate", u)
        out.append(project("out", (y + w["D"] * v) * gate * _sigmoid(gate)))
    return out


def _rg_lru(config: Any, w: Weights, x: list[Array]) -> list[Array]:
    """2402.19427, channel by channel."""
    size = config.channels // config.heads
    read = _conv([w["value.weight"] @ u + w["value.bias"] for u in x], w)
    memory, out = np.zeros(config.channels), []
    for t, (u, v) in enumerate(zip(x, read, strict=True)):
        for c in range(config.channels):
            h, o = divmod(c, size)
            part = v[h * size : (h + 1) * size]
            i, r = (
                _sigmoid(part @ w[f"{name}_gate.weight"][h, :, o] + w[f"{name}_gate.bias"][c])
                for name in ("input", "recurrent")
            )
            a = math.exp(-8 * r * _softplus(w["decay"][c]))
            written = i * v[c]
            memory[c] = written if t == 0 else a * memory[c] + math.sqrt(1 - a * a) * written
        y = w["gate.weight"] @ u + w["gate.bias"]
        y = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        out.append(w["out.weight"] @ (y * memory) + w["out.bias"])
    return out


def _short_conv(config: Any, w: Weights, x: list[Array]) -> list[Array]:
    """2511.23404: each channel alone, between two gates that are linear in x."""

    def project(name: str, u: Array) -> Array:
        return w[f"{name}.weight"] @ u + w.get(f"{name}.bias", 0.0)

    read = _conv([project("key", u) * project("value", u) for u in x], w)
    return [project("out", project("query", u) * v) for u, v in zip(x, read, strict=True)]


INNER = {"channels": 8, "rank": 3, "state_size": 5}
CASES: dict[str, tuple[Any, Any]] = {
    "mamba": (mamba.Config(**INNER), _mamba),
    "mamba biased": (mamba.Config(**INNER, bias=True, conv_bias=False, conv=2), _mamba),
    "mamba of Jamba": (mamba.Config(**INNER, norm=Norm(eps=1e-3)), _mamba),
    "mamba of Falcon": (mamba.Config(**INNER, norm=Norm(eps=1e-2, weight=False)), _mamba),
    "rg_lru": (rg_lru.Config(channels=8, heads=2), _rg_lru),
    "rg_lru alone": (rg_lru.Config(channels=6, heads=1, conv=3), _rg_lru),
    "short_conv": (short_conv.Config(channels=5), _short_conv),
    "short_conv biased": (short_conv.Config(channels=8, conv=4, bias=True), _short_conv),
}


def _made(case: str) -> tuple[Any, torch.nn.Module, torch.Tensor]:
    torch.manual_seed(len(case))
    config = CASES[case][0]
    module = config.build(WIDTH).double()
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight) * 0.4)
    return config, module, torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [TOKENS, 4, 1])
@pytest.mark.parametrize("case", CASES)
def test_each_is_its_equation(case: str, chunk: int) -> None:
    config, module, x = _made(case)
    weights = {name: weight.numpy() for name, weight in module.named_parameters()}
    expected = np.stack(CASES[case][1](config, weights, list(x[0].numpy())))
    state, parts = config.state(), []
    for t in range(0, TOKENS, chunk):
        pos = torch.arange(t, min(t + chunk, TOKENS))[None]
        parts.append(module(x[:, t : t + chunk], Positions(pos), None, False, state))
        assert state.nbytes == config.state_bytes(8)
    assert_close(torch.cat(parts, dim=1)[0], torch.from_numpy(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 70])
@pytest.mark.parametrize("gates", ["usual", "shut", "open"])
def test_the_scan_is_the_loop(gates: str, tokens: int) -> None:
    """Values and every gradient, over several chunks."""
    generator = torch.Generator().manual_seed(tokens)
    a, x = (torch.randn(2, tokens, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    a = {"usual": a.sigmoid(), "shut": a.clamp(min=0) * 0.3, "open": a * 0 + 1}[gates].requires_grad_()
    h, x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True), x.requires_grad_()
    expected, found, before = scan.recurrent(a, x, h), [], h
    for part in scan.chunks(tokens):
        found.append(scan.states(a[:, part], x[:, part], before))
        before = found[-1][:, -1]
    made = torch.cat(found, dim=1)
    assert_close(made, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(expected)
    each = [torch.autograd.grad((y * weights).sum(), (a, x, h)) for y in (made, expected)]
    for mine, true in zip(*each, strict=True):
        assert_close(mine, true, rtol=1e-8, atol=1e-8)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(UserError, match=r"heads is 3; it must divide channels \(8\)"):
        rg_lru.Config(channels=8, heads=3)
    with pytest.raises(UserError, match="activation cannot be xielu"):
        rg_lru.Config(channels=8, heads=2, activation="xielu")
