"""A transformer that layers share against its equation, token by token in float64, and how it is shared."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cutaway.attention import gqa
from cutaway.attention.common.visibility import Positions
from cutaway.errors import UserError
from cutaway.layers.config import MLP, Norm
from cutaway.model.block_config import Block, Shared
from cutaway.model.config import Decoder
from cutaway.model.config_dict import from_dict, to_dict
from cutaway.model.decoder import Decoder as Model
from cutaway.model.shared import EMBEDDED
from tests.laws.mechanisms import attention

D, T = 6, 5
ATTENTION = gqa.Config(heads=2, kv_heads=2, key_size=6, scale=0.4)
OWN = Shared(ATTENTION, 7, "silu", Norm(eps=1e-3), rank=2, attention_rank=3)
Array = np.ndarray


def _rms(x: Array, weight: Array) -> Array:
    return weight * x / math.sqrt(np.mean(x**2) + 1e-3)


@torch.no_grad()
def test_it_is_its_equation() -> None:
    torch.manual_seed(0)
    layer = OWN.build(D).double()
    for weight in layer.parameters():
        weight.normal_()
    w = {name: weight.numpy() for name, weight in layer.named_parameters()}
    assert {name: weight.shape for name, weight in w.items()} == OWN.weights(D)

    def project(name: str, x: Array) -> Array:
        low = w[f"{name}.up.weight"] @ (w[f"{name}.down.weight"] @ x) if f"{name}.up.weight" in w else 0
        return w[f"{name}.shared.weight"] @ x + low

    x, e = torch.randn(2, 1, T, D, dtype=torch.float64)
    out = layer(x, Positions(torch.arange(T)[None], None, {EMBEDDED: e}), None, False, None)
    both = np.concatenate((x[0].numpy(), e[0].numpy()), axis=1)
    read = [_rms(pair, w["attention_norm.weight"]) for pair in both]
    q, k, v = (
        [np.split(project(f"attention.{name}", r), 2) for r in read] for name in ("query", "key", "value")
    )
    for t in range(T):
        heads = []
        for h in range(2):
            powers = np.exp([0.4 * q[t][h] @ k[s][h] for s in range(t + 1)])
            heads.append(sum(p * v[s][h] for s, p in enumerate(powers)) / powers.sum())
        attended = _rms(w["attention.out.shared.weight"] @ np.concatenate(heads), w["mlp_norm.weight"])
        gate, up = np.split(project("gate_up", attended), 2)
        hidden = gate / (1 + np.exp(-gate)) * up
        expected = w["out.weight"] @ (w["down.shared.weight"] @ hidden)
        assert_close(out[0, t], torch.from_numpy(expected), rtol=1e-10, atol=1e-10)


def _config(*shared: Shared | None) -> Decoder:
    return Decoder(11, 8, 32, tuple(Block(attention("mamba2"), None, shared=each) for each in shared))


def test_layers_share_weights_and_nothing_else() -> None:
    own = replace(OWN, attention=attention("mha"))
    config = _config(own, None, replace(own, source=0))
    assert from_dict(to_dict(config)) == config
    model = Model(config).double()
    assert {name: tuple(weight.shape) for name, weight in model.named_parameters()} == config.weights()
    model(torch.arange(6)[None], torch.arange(6)[None]).square().sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())
    kept = {name.removeprefix("blocks.2.shared.") for name in config.weights() if "blocks.2.shared." in name}
    adapted = ("attention.query", "attention.key", "attention.value", "gate_up")
    assert kept == {"out.weight", *(f"{name}.{part}.weight" for name in adapted for part in ("down", "up"))}


def test_what_cannot_be_shared_is_refused() -> None:
    own = replace(OWN, attention=attention("mha"))
    for other in (replace(own, source=1), replace(own, source=0, hidden=9)):
        with pytest.raises(UserError, match="shares the transformer of block"):
            _config(own, other)
    with pytest.raises(UserError, match="a mixer without positions alone"):
        Block(attention("mamba2"), MLP(8), shared=own)
    with pytest.raises(UserError, match="shared has no biases"):
        replace(own, attention=attention("mha", bias=True))
    with pytest.raises(UserError, match=r"shared\.attention should be"):
        replace(own, attention=attention("mamba2"))
