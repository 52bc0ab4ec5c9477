"""The linear family against the papers' equations, token by token and head by head in float64; and the
chunked form of each recurrence against that loop, values and gradients, over long texts and with gates that
are shut.
"""

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cutaway.attention.common import linear_recurrence
from cutaway.attention.common.visibility import Positions
from cutaway.attention.modules.delta import unit
from cutaway.attention.modules.gated_delta import Decay
from cutaway.errors import UserError
from cutaway.layers.conv import ShortConv
from cutaway.position import rope
from cutaway.position.scaling import DynamicNTK

WIDTH, TOKENS = 6, 9
Array = np.ndarray


def _silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _rms(x: Array, weight: Array, eps: float) -> Array:
    return weight * x / math.sqrt(np.mean(x**2) + eps)


def _unit(x: Array) -> Array:
    return x / math.sqrt(np.sum(x**2) + 1e-6)


def _turn(x: Array, position: int, base: float) -> Array:
    """Pair (i, i + k/2) as a complex number, times e^(i m theta)."""
    half = len(x) // 2
    angles = position * base ** (-2 * np.arange(half) / len(x))
    rotated = (x[:half] + 1j * x[half:]) * np.exp(1j * angles)
    return np.concatenate((rotated.real, rotated.imag))


def _conv(x: list[Array], weight: Array, bias: Array | float = 0.0) -> list[Array]:
    size = weight.shape[1]
    return [
        sum(weight[:, j] * x[t - size + 1 + j] for j in range(size) if t - size + 1 + j >= 0) + bias
        for t in range(len(x))
    ]


Weights = dict[str, Array]


def _linear(config: Any, w: Weights, x: list[Array]) -> list[Array]:
    feature: Callable[[Array], Array] = {
        "elu": lambda u: np.where(u > 0, u + 1, np.exp(u)),
        "relu": lambda u: np.maximum(u, 0),
    }.get(config.feature, lambda u: u)
    out = []
    for t in range(len(x)):
        gathered = []
        for h in range(config.heads):
            key = slice(h * config.key_size, (h + 1) * config.key_size)
            value = slice(h * config.values, (h + 1) * config.values)
            q = feature(w["query.weight"][key] @ x[t])
            top, bottom = np.zeros(config.values), 0.0
            for s in range(t + 1):
                k = feature(w["key.weight"][key] @ x[s])
                weight = float(q @ k)
                if config.feature == "taylor":
                    score = weight / math.sqrt(config.key_size)
                    weight = 1 + score + score**2 / 2
                top, bottom = top + weight * (w["value.weight"][value] @ x[s]), bottom + weight
            gathered.append(top / bottom if bottom else top)
        out.append(w["out.weight"] @ np.concatenate(gathered))
    return out


def _retention(config: Any, w: Weights, x: list[Array]) -> list[Array]:
    memory = [np.zeros((config.key_size, config.values)) for _ in range(config.heads)]
    out = []
    for t, u in enumerate(x):
        gathered = []
        for h in range(config.heads):
            q, k, v = (
                np.split(w[f"{name}.weight"] @ u, config.heads)[h] for name in ("query", "key", "value")
            )
            q, k = _turn(q, t, config.position.base), _turn(k, t, config.position.base)
            memory[h] = (1 - 2.0 ** (-5 - h)) * memory[h] + np.outer(k, v)
            gathered.append(
                _rms(q @ memory[h] / math.sqrt(config.key_size), w["norm.weight"], config.norm.eps)
            )
        out.append(w["out.weight"] @ (_silu(w["gate.weight"] @ u) * np.concatenate(gathered)))
    return out


def _gla(config: Any, w: Weights, x: list[Array]) -> list[Array]:
    memory = [np.zeros((config.key_size, config.values)) for _ in range(config.heads)]
    out = []
    for u in x:
        gathered = []
        gates = _sigmoid(w["forget_up.weight"] @ (w["forget_down.weight"] @ u) + w["forget_up.bias"])
        for h in range(config.heads):
            q, k, v = (
                np.split(w[f"{name}.weight"] @ u, config.heads)[h] for name in ("query", "key", "value")
            )
            a = np.split(gates, config.heads)[h] ** (1 / config.temperature)
            memory[h] = np.diag(a) @ memory[h] + np.outer(k, v)
            gathered.append(
                _rms(q @ memory[h] / math.sqrt(config.key_size), w["norm.weight"], config.norm.eps)
            )
        out.append(w["out.weight"] @ (_silu(w["gate.weight"] @ u) * np.concatenate(gathered)))
    return out


def _delta(config: Any, w: Weights, x: list[Array]) -> list[Array]:
    """Both delta rules: without a gate all of the memory is kept and nothing scales the output."""
    gated = hasattr(config, "key_heads")
    groups = config.groups if gated else config.heads
    qkv = [np.concatenate([w[f"{name}.weight"] @ u for name in ("query", "key", "value")]) for u in x]
    if config.conv:
        each = [w.get(f"conv.{name}.weight") for name in ("query", "key", "value")]
        qkv = _conv(qkv, w["conv.weight"] if each[0] is None else np.concatenate(each))
    memory = [np.zeros((config.key_size, config.values)) for _ in range(config.heads)]
    out = []
    for t, u in enumerate(x):
        gathered = []
        key = groups * config.key_size
        q_, k_, v_ = np.split(_silu(qkv[t]), [key, 2 * key])
        for h in range(config.heads):
            g = h * groups // config.heads
            q, k = _unit(np.split(q_, groups)[g]), _unit(np.split(k_, groups)[g])
            v = np.split(v_, config.heads)[h]
            beta = _sigmoid(w["beta.weight"][h] @ u) * (2 if getattr(config, "negative", False) else 1)
            if gated:
                dt = math.log1p(math.exp(w["forget.weight"][h] @ u + w["decay.dt_bias"][h]))
                memory[h] = math.exp(-math.exp(w["decay.A_log"][h]) * dt) * memory[h]
            memory[h] = memory[h] - beta * np.outer(k, k @ memory[h]) + beta * np.outer(k, v)
            gathered.append(
                _rms(q @ memory[h] / math.sqrt(config.key_size), w["norm.weight"], config.norm.eps)
            )
        mixed = np.concatenate(gathered)
        out.append(w["out.weight"] @ (mixed * _silu(w["gate.weight"] @ u) if gated else mixed))
    return out


def _kda(config: Any, w: Weights, x: list[Array]) -> list[Array]:
    """2510.26692: each row of the memory decays at its own rate, then the delta rule; a sigmoid gates."""
    read = {
        name: _conv([w[f"{name}.weight"] @ u for u in x], w[f"conv.{name}.weight"])
        for name in ("query", "key", "value")
    }
    memory = [np.zeros((config.key_size, config.values)) for _ in range(config.heads)]
    out = []
    for t, u in enumerate(x):
        gathered = []
        first, second = (w.get(f"{name}_down.weight", np.eye(len(u))) @ u for name in ("forget", "gate"))
        given = w["forget.weight"] @ first + w["decay.dt_bias"]
        dt, gate = np.log1p(np.exp(given)), _sigmoid(w["gate.weight"] @ second)
        for h in range(config.heads):
            q, k, v = (np.split(_silu(read[name][t]), config.heads)[h] for name in read)
            q, k, beta = _unit(q), _unit(k), _sigmoid(w["beta.weight"][h] @ u)
            rate = math.exp(w["decay.A_log"][h])
            a = np.exp(-rate * np.split(dt, config.heads)[h])
            if config.bound is not None:
                a = np.exp(-config.bound * _sigmoid(rate * np.split(given, config.heads)[h]))
            memory[h] = np.diag(a) @ memory[h]
            memory[h] = memory[h] - beta * np.outer(k, k @ memory[h]) + beta * np.outer(k, v)
            normed = _rms(q @ memory[h] / math.sqrt(config.key_size), w["norm.weight"], config.norm.eps)
            gathered.append(normed * np.split(gate, config.heads)[h])
        out.append(w["out.weight"] @ np.concatenate(gathered))
    return out


def _mamba2(config: Any, w: Weights, x: list[Array]) -> list[Array]:
    def project(name: str, u: Array) -> Array:
        return w[f"{name}.weight"] @ u + w[f"{name}.bias"]

    by = dict(zip(("gate", "value", "key", "query", "step"), config.multipliers, strict=True))
    vkq = [np.concatenate([by[name] * project(name, u) for name in ("value", "key", "query")]) for u in x]
    vkq = _conv(vkq, w["conv.weight"], w["conv.bias"])
    memory = [np.zeros((config.key_size, config.values)) for _ in range(config.heads)]
    out = []
    for t, u in enumerate(x):
        gathered = []
        value = config.heads * config.values
        v_, k_, q_ = np.split(_silu(vkq[t]), [value, value + config.groups * config.key_size])
        for h in range(config.heads):
            g = h * config.groups // config.heads
            b, c = np.split(k_, config.groups)[g], np.split(q_, config.groups)[g]
            v = np.split(v_, config.heads)[h]
            dt = math.log1p(math.exp(by["step"] * project("step", u)[h] + w["decay.dt_bias"][h]))
            dt = max(dt, config.least or 0.0)
            memory[h] = math.exp(-dt * math.exp(w["decay.A_log"][h])) * memory[h] + dt * np.outer(b, v)
            gathered.append(c @ memory[h] + w["D"][h] * v)
        gate, y = _silu(by["gate"] * project("gate", u)), np.concatenate(gathered)
        y = y if config.normed == "first" else y * gate
        if config.normed:
            parts = zip(np.split(y, config.groups), np.split(w["norm"], config.groups), strict=True)
            y = np.concatenate([_rms(part, weight, config.eps) for part, weight in parts])
        out.append(project("out", y * gate if config.normed == "first" else y))
    return out


MULTIPLIERS = (0.3, 1.7, 2.0, 0.6, 1.4)
SIZES = {"heads": 4, "key_size": 4, "value_size": 3}
CASES: dict[str, tuple[str, dict[str, Any], Callable[..., list[Array]]]] = {
    "linear": ("linear", {}, _linear),
    "linear relu": ("linear", {"feature": "relu"}, _linear),
    "linear taylor": ("linear", {"feature": "taylor"}, _linear),
    "retention": ("retention", {"position": rope.Config(4, base=20.0)}, _retention),
    "gla": ("gla", {"rank": 2, "temperature": 3.0}, _gla),
    "delta": ("delta", {}, _delta),
    "delta without conv": ("delta", {"conv": 0}, _delta),
    "gated_delta": ("gated_delta", {}, _delta),
    "gated_delta grouped": ("gated_delta", {"key_heads": 2, "conv": 3}, _delta),
    "gated_delta apart": ("gated_delta", {"key_heads": 2, "apart": True, "negative": True}, _delta),
    "kda": ("kda", {}, _kda),
    "kda narrow": ("kda", {"rank": 2, "conv": 3}, _kda),
    "kda direct": ("kda", {"direct": True, "bound": 2.0}, _kda),
    "mamba2": ("mamba2", {"bias": True}, _mamba2),
    "mamba2 grouped": ("mamba2", {"bias": True, "groups": 2, "conv": 2}, _mamba2),
    "mamba2 normed first": ("mamba2", {"bias": True, "groups": 2, "normed": "first", "least": 0.5}, _mamba2),
    "mamba2 multiplied": ("mamba2", {"bias": True, "normed": None, "multipliers": MULTIPLIERS}, _mamba2),
}


def _made(case: str) -> tuple[Any, torch.nn.Module, torch.Tensor]:
    kind, options, _ = CASES[case]
    torch.manual_seed(len(case))
    config = importlib.import_module(f"cutaway.attention.{kind}").Config(**SIZES, **options)
    module = config.build(WIDTH).double()
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight) * 0.4)
    return config, module, torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [TOKENS, 1])
@pytest.mark.parametrize("case", CASES)
def test_each_is_its_equation(case: str, chunk: int) -> None:
    config, module, x = _made(case)
    weights = {name: weight.numpy() for name, weight in module.named_parameters()}
    expected = np.stack(CASES[case][2](config, weights, list(x[0].numpy())))
    state, parts = config.state(), []
    for t in range(0, TOKENS, chunk):
        pos = torch.arange(t, t + chunk)[None]
        rotation = None if config.position is None else rope.RotaryEmbedding(config.position).rotation(pos)
        parts.append(module(x[:, t : t + chunk], Positions(pos), rotation, False, state))
    assert_close(torch.cat(parts, dim=1)[0], torch.from_numpy(expected), rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_the_memory_does_not_grow(case: str) -> None:
    config, module, x = _made(case)
    state = config.state()
    for t in range(TOKENS):
        pos = torch.full((1, 1), t)
        rotation = None if config.position is None else rope.RotaryEmbedding(config.position).rotation(pos)
        module(x[:, t : t + 1], Positions(pos), rotation, False, state)
        assert state.nbytes == config.state_bytes(8)
    assert state.length == TOKENS
    assert config.bytes_per_token(2) == 0
    half = config.build(WIDTH).bfloat16()
    state = config.state()
    out = half(x.bfloat16(), Positions(torch.arange(TOKENS)[None]), None, True, state)
    assert out.dtype == torch.bfloat16
    assert state.nbytes == config.state_bytes(2)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_packed_with_padding_between_equals_separate(case: str) -> None:
    """Neither the memory nor the short convolution reaches over a document's edge or is cut by padding."""
    config, module, x = _made(case)
    pos = torch.tensor([[-1, 0, 1, -1, 2, 0, -1, 1, 2]])
    documents = torch.tensor([[9, 4, 4, 9, 4, 7, 9, 7, 7]])

    def read(x: torch.Tensor, pos: torch.Tensor, documents: torch.Tensor | None) -> torch.Tensor:
        rotation = None if config.position is None else rope.RotaryEmbedding(config.position).rotation(pos)
        return module(x, Positions(pos, documents), rotation, False, None)

    packed = read(x, pos, documents)
    assert packed.isfinite().all()
    for document in (4, 7):
        own = (documents == document)[0]
        assert_close(packed[:, own], read(x[:, own], torch.arange(3)[None], None), rtol=1e-9, atol=1e-9)


def _inputs(
    tokens: int, gates: str, seed: int, dtype: torch.dtype = torch.float64
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(2, 3, tokens, *shape, generator=generator, dtype=torch.float64)

    size = 5 if gates.endswith("rows") else 1
    log_a = {
        "open": normal(size) * 0,
        "usual": -torch.nn.functional.softplus(normal(size) - 2),
        "shut": torch.full((2, 3, tokens, size), -40.0),
        "mixed": torch.where(normal(size) > 1.5, -1000.0, -0.01),
    }[gates.split()[0]]
    k = normal(5)
    made = {"q": normal(5), "k": k / k.norm(dim=-1, keepdim=True), "v": normal(4)}
    made |= {"beta": normal(1).sigmoid(), "log_a": log_a.expand(2, 3, tokens, size).clone()}
    made["S"] = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    return {name: value.to(dtype).requires_grad_() for name, value in made.items()}


GATES = ["open", "usual", "shut", "mixed"]
CHOICES = [(rule, gates) for rule in ("gated_linear", "delta") for gates in GATES] + [
    ("gated_linear", f"{gates} rows") for gates in GATES[1:]
]


@pytest.mark.parametrize("tokens", [1, 16, 64, 65, 150])
@pytest.mark.parametrize(("rule", "gates"), CHOICES)
def test_chunked_equals_recurrent(rule: str, gates: str, tokens: int) -> None:
    """Values, memory and every gradient."""
    inputs = _inputs(tokens, gates, seed=tokens)
    forms = linear_recurrence.GATED_LINEAR if rule == "gated_linear" else linear_recurrence.DELTA
    if rule == "gated_linear":
        del inputs["beta"]
    true, mine = forms["recurrent"](**inputs), forms["chunked"](**inputs)
    weights = [torch.randn_like(value) for value in true]
    for a, b in zip(mine, true, strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-9)
    gradients = [
        torch.autograd.grad(
            sum((value * weight).sum() for value, weight in zip(made, weights, strict=True)), inputs.values()
        )
        for made in (mine, true)
    ]
    for name, a, b in zip(inputs, *gradients, strict=True):
        assert b.isfinite().all(), name
        assert_close(a, b, rtol=1e-8, atol=1e-8, msg=lambda text, name=name: f"gradient of {name}: {text}")


@torch.no_grad()
@pytest.mark.parametrize(("rule", "gates"), CHOICES)
def test_float32_stays_close_over_a_long_text(rule: str, gates: str) -> None:
    """Where k exp(-G) overflows: 64 tokens at -2 are e^128, past what float32 holds."""
    forms = linear_recurrence.GATED_LINEAR if rule == "gated_linear" else linear_recurrence.DELTA
    inputs = _inputs(700, gates, seed=3)
    if rule == "gated_linear":
        del inputs["beta"]
    true = forms["recurrent"](**inputs)[0]
    mine = forms["chunked"](**{name: value.float() for name, value in inputs.items()})[0]
    assert mine.isfinite().all()
    assert (mine - true).abs().max() / true.abs().max() < 2e-5


def test_gradient_checks() -> None:
    inputs = {name: value[:1, :1] for name, value in _inputs(4, "usual", seed=0).items()}
    inputs = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    assert torch.autograd.gradcheck(linear_recurrence.delta_chunked, tuple(inputs.values()))
    rows = {
        name: value[:1, :1].detach().requires_grad_()
        for name, value in _inputs(4, "usual rows", seed=0).items()
    }
    del rows["beta"]
    assert torch.autograd.gradcheck(linear_recurrence.gated_linear_chunked, tuple(rows.values()))


def test_a_shut_gate_has_a_gradient() -> None:
    """Documents shut the gate with -inf: neither the values nor the gradients may turn to NaN."""
    inputs = _inputs(20, "usual", seed=1)
    leaves = {name: inputs[name] for name in ("q", "k", "v", "log_a", "beta")}
    documents = torch.tensor([0] * 7 + [1] * 13).expand(2, -1)
    positions = Positions(torch.arange(20).expand(2, -1), documents)
    for read, _ in (
        linear_recurrence.delta(**leaves, positions=positions, S=None),
        linear_recurrence.gated_linear(
            **{n: x for n, x in leaves.items() if n != "beta"}, positions=positions, S=None
        ),
    ):
        alone = torch.autograd.grad(read[:, :, 7:].sum(), inputs["v"], retain_graph=True)[0]
        assert (alone[:, :, :7] == 0).all()
        assert all(
            gradient.isfinite().all()
            for gradient in torch.autograd.grad(read.sum(), [leaves["log_a"], leaves["k"]])
        )


@torch.no_grad()
def test_a_memory_carried_in_is_that_of_the_first_document() -> None:
    """Padding before it begins no document, whatever number it bears."""
    inputs = _inputs(6, "usual", seed=4)
    memory, beta = inputs.pop("S"), inputs.pop("beta")
    pos, documents = torch.tensor([[-1, -1, 0, 1, 2, 3]] * 2), torch.tensor([[9, 9, 4, 4, 4, 4]] * 2)
    alone = {name: value[:, :, 2:] for name, value in inputs.items()}
    there = Positions(pos[:, 2:])
    for ours, true in (
        (
            linear_recurrence.gated_linear(**inputs, positions=Positions(pos, documents), S=memory),
            linear_recurrence.gated_linear(**alone, positions=there, S=memory),
        ),
        (
            linear_recurrence.delta(**inputs, beta=beta, positions=Positions(pos, documents), S=memory),
            linear_recurrence.delta(**alone, beta=beta[:, :, 2:], positions=there, S=memory),
        ),
    ):
        assert_close(ours[0][:, :, 2:], true[0], rtol=1e-9, atol=1e-9)
        assert_close(ours[1], true[1], rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize(("gates", "other"), [("usual", "ROWS_CHUNK"), ("usual rows", "CHUNK")])
def test_a_chunk_is_as_long_as_its_gates_allow(
    gates: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One gate a head needs no number for each row of each pair, and reads four times as much at once."""
    monkeypatch.setattr(linear_recurrence, other, None)
    inputs = _inputs(3, gates, seed=0)
    del inputs["beta"]
    assert_close(
        linear_recurrence.gated_linear_chunked(**inputs), linear_recurrence.gated_linear_recurrent(**inputs)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_unit_vector_keeps_its_type(dtype: torch.dtype) -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=dtype)
    assert unit(x).dtype == dtype
    assert_close(unit(x), torch.tensor([[0.6, 0.8], [0.0, 0.0]], dtype=dtype))


def test_the_delta_rule_recalls_the_last_value_of_a_key() -> None:
    keys = torch.eye(4, dtype=torch.float64)[None, None]
    repeated = torch.cat((keys, keys[:, :, :1]), dim=2)
    values = torch.arange(10.0, dtype=torch.float64).reshape(1, 1, 5, 2)
    always, open_ = torch.ones(1, 1, 5, 1, dtype=torch.float64), torch.zeros(1, 1, 5, 1, dtype=torch.float64)
    positions = Positions(torch.arange(5)[None])
    _, memory = linear_recurrence.delta(repeated, repeated, values, always, open_, positions, None)
    assert_close(keys @ memory, values[:, :, [4, 1, 2, 3]])
    _, summed = linear_recurrence.gated_linear(repeated, repeated, values, open_, positions, None)
    assert_close(keys[:, :, :1] @ summed, values[:, :, :1] + values[:, :, 4:])


def test_a_key_that_is_not_normed_breaks_the_delta_rule() -> None:
    """Why k is brought to length 1: the same text without it is past float32's range."""
    inputs = _inputs(200, "open", seed=0, dtype=torch.float32)
    safe = linear_recurrence.delta_recurrent(**inputs)[0]
    wild = linear_recurrence.delta_recurrent(**inputs | {"k": inputs["k"] * 3})[0]
    assert safe.abs().max() < 100
    assert not wild.isfinite().all() or wild.abs().max() > 1e20


@torch.no_grad()
def test_the_short_convolution_is_its_equation() -> None:
    conv = ShortConv(3, 4, bias=True).double()
    conv.bias.copy_(torch.randn(3))
    x = torch.randn(1, 7, 3, dtype=torch.float64)
    pos = torch.arange(7)[None]
    expected = np.stack(_conv(list(x[0].numpy()), conv.weight.numpy(), conv.bias.numpy()))
    for in_order in (True, False):
        y, tail = conv(x, pos, None, in_order, None)
        assert_close(y[0], torch.from_numpy(expected))
        assert_close(tail, x[:, 4:])
    judge = torch.nn.functional.conv1d(x.mT, conv.weight[:, None], conv.bias, padding=3, groups=3)[..., :7].mT
    assert_close(y, judge)


def test_what_cannot_be_is_refused() -> None:
    from cutaway.attention import gated_delta, mamba2, retention

    with pytest.raises(UserError, match="cannot grow"):
        retention.Config(heads=2, key_size=4, position=rope.Config(4, scaling=DynamicNTK(2.0, 16)))
    with pytest.raises(UserError, match="must divide"):
        gated_delta.Config(heads=4, key_size=4, key_heads=3)
    with pytest.raises(UserError, match="must divide"):
        mamba2.Config(heads=4, key_size=4, groups=3)
    with pytest.raises(UserError, match="1 or more"):
        mamba2.Config(heads=4, key_size=4, conv=0)
    with pytest.raises(UserError, match="1 or more"):
        retention.Config(heads=0, key_size=4)
    config, module, x = _made("gla")
    with pytest.raises(UserError, match="gradients"):
        module(x, Positions(torch.arange(TOKENS)[None]), None, True, config.state())


def test_the_form_is_named_with_its_reason() -> None:
    assert [linear_recurrence.choose(tokens)[0] for tokens in (1, 2, 500)] == [
        "recurrent",
        "chunked",
        "chunked",
    ]
    assert all(linear_recurrence.choose(tokens)[1] for tokens in (1, 2))


def test_a_short_convolution_begins_as_torchs_does() -> None:
    torch.manual_seed(0)
    conv, theirs = ShortConv(2000, 4, bias=True), torch.nn.Conv1d(2000, 2000, 4, groups=2000)
    for weight in (conv.weight, theirs.weight):
        assert 0.49 < weight.max() <= 0.5 and -0.5 <= weight.min() < -0.49
    assert conv.bias is not None and not conv.bias.any()


def test_forgetting_begins_between_a_few_tokens_and_a_thousand() -> None:
    torch.manual_seed(0)
    begun = Decay(5000)
    steps, rates = torch.nn.functional.softplus(begun.dt_bias), begun.A_log.exp()
    assert 0.001 <= steps.min() * 1.0001 < 0.0011 and 0.09 < steps.max() * 0.9999 <= 0.1
    assert 1 <= rates.min() < 1.1 and 15.9 < rates.max() <= 16.001
