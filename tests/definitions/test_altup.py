"""AltUp, LAuReL and sparse gates against their equations, token by token in float64."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cutaway.errors import UserError
from cutaway.layers.altup import AltUp, Laurel, Streams
from cutaway.layers.config import MLP, Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from tests.laws.mechanisms import attention

P, D = 3, 5
Array = np.ndarray
NORM = Norm(eps=1e-3)


def _made(module: torch.nn.Module) -> tuple[torch.nn.Module, dict[str, Array]]:
    torch.manual_seed(0)
    module = module.double()
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_()
    return module, {name: weight.numpy() for name, weight in module.state_dict().items()}


def _rms(x: Array, weight: Array) -> Array:
    return weight * x / math.sqrt(np.mean(x**2) + NORM.eps)


@torch.no_grad()
def test_altup_is_its_equation() -> None:
    layer, w = _made(AltUp(P, D, NORM))
    x, out = torch.randn(1, 4, P * D, dtype=torch.float64), torch.randn(1, 4, D, dtype=torch.float64)
    predicted = layer.predicted(x)
    corrected = layer.corrected(predicted, out)

    def modalities(vector: Array) -> Array:
        return np.tanh(w["router.weight"] @ (_rms(vector, w["router_norm.weight"]) / D))

    for t in range(4):
        streams = [x[0, t, i * D : (i + 1) * D].numpy() for i in range(P)]
        mix = w["predict.weight"] @ modalities(streams[0])
        y = [streams[i] + sum(mix[i * P + j] * streams[j] for j in range(P)) for i in range(P)]
        by = w["correct.weight"] @ modalities(out[0, t].numpy())
        z = [y[i] + (1 + by[i]) * (out[0, t].numpy() - y[0]) for i in range(P)]
        assert_close(predicted[0, t], torch.from_numpy(np.stack(y)), rtol=1e-10, atol=1e-10)
        assert_close(corrected[0, t], torch.from_numpy(np.stack(z)), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_streams_are_as_large_as_the_first() -> None:
    layer, w = _made(Streams(P, D))
    x = torch.randn(1, 3, D, dtype=torch.float64)
    many = layer.expanded(x)
    one = layer.merged(many)

    def as_large(y: Array, other: Array) -> Array:
        return y * math.sqrt(np.mean(other**2)) / math.sqrt(max(np.mean(y**2), 1e-5))

    for t in range(3):
        first = x[0, t].numpy()
        made = [first, *(as_large(w[f"expand.{i}.weight"] @ first, first) for i in range(P - 1))]
        back = [first, *(as_large(w[f"merge.{i}.weight"] @ made[i + 1], first) for i in range(P - 1))]
        assert_close(many[0, t], torch.from_numpy(np.concatenate(made)), rtol=1e-10, atol=1e-10)
        assert_close(one[0, t], torch.from_numpy(sum(back) / P), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_laurel_is_its_equation() -> None:
    layer, w = _made(Laurel(2, D, NORM))
    x = torch.randn(1, 1, D, dtype=torch.float64)
    n = x[0, 0].numpy()
    expected = n + _rms(w["up.weight"] @ (w["down.weight"] @ n), w["norm.weight"])
    assert_close(layer(x)[0, 0], torch.from_numpy(expected), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_sparse_gates_are_what_is_above_a_part_of_them() -> None:
    layer, w = _made(MLP(40, "relu", sparsity=0.8).build(D))
    x = torch.randn(1, 1, D, dtype=torch.float64)
    gate, up = (w[f"{name}.weight"] @ x[0, 0].numpy() for name in ("gate", "up"))
    least = gate.mean() + NormalDist().inv_cdf(0.8) * gate.std()
    kept = np.array([max(each - least, 0.0) for each in gate])
    assert 0 < (kept > 0).sum() < 20
    assert_close(layer(x)[0, 0], torch.from_numpy(w["down.weight"] @ (kept * up)), rtol=1e-10, atol=1e-10)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"sparsity is 1.0; it must be below 1"):
        MLP(4, sparsity=1.0)
    with pytest.raises(UserError, match="streams need per_layer"):
        Block(attention("mha"), MLP(8), streams=2)
    with pytest.raises(UserError, match="laurel reads what attention does"):
        Block(attention("mha"), MLP(8), pre_norm=False, post_norm=True, laurel=2)
    with pytest.raises(UserError, match="streams of each block must be the model's"):
        Decoder(7, 8, 9, (Block(attention("mha"), MLP(8)),), streams=2)
