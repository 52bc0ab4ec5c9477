"""The linear family against transformers: Qwen3-Next's gated delta rule and Mamba 2, functions and layers."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from cutaway.attention import gated_delta, mamba2
from cutaway.attention.common import linear_recurrence
from cutaway.attention.common.visibility import Positions

transformers = pytest.importorskip("transformers")

from transformers.models.kimi_linear import modeling_kimi_linear as theirs_kimi  # noqa: E402
from transformers.models.mamba2 import modeling_mamba2 as theirs_mamba2  # noqa: E402
from transformers.models.qwen3_next import modeling_qwen3_next as theirs_qwen  # noqa: E402

CLOSE = {"rtol": 2e-5, "atol": 2e-5}
LAYER = {"rtol": 1e-4, "atol": 1e-4}  # the norm of a head that read little enlarges what float32 rounded
TOKENS = 90


def _plain(function: Any) -> Any:
    """The torch function itself, where a decorator would look for a kernel on the hub."""
    return getattr(function, "__wrapped__", function)


def _perturbed(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return module.eval()


@torch.no_grad()
@pytest.mark.parametrize("form", ["recurrent", "chunked"])
@pytest.mark.parametrize("judge", ["torch_recurrent_gated_delta_rule", "torch_chunk_gated_delta_rule"])
def test_the_gated_delta_rule(form: str, judge: str) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, TOKENS, 4, 8).unbind()
    v, beta = torch.randn(2, TOKENS, 4, 6), torch.rand(2, TOKENS, 4)
    g, memory = -torch.rand(2, TOKENS, 4) * 2, torch.randn(2, 4, 8, 6)
    k = k / k.norm(dim=-1, keepdim=True)
    true, after = _plain(getattr(theirs_qwen, judge))(
        q, k, v, g, beta, initial_state=memory, output_final_state=True
    )
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    g, beta = (x.transpose(1, 2)[..., None] for x in (g, beta))
    mine, memory = linear_recurrence.DELTA[form](q * 8**-0.5, k, v, beta, g, memory)
    assert_close(mine, true.transpose(1, 2), **CLOSE)
    assert_close(memory, after, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("form", ["recurrent", "chunked"])
@pytest.mark.parametrize("judge", ["recurrent_kimi_delta_attention", "chunk_kimi_delta_attention"])
def test_the_delta_rule_with_a_gate_a_channel(form: str, judge: str) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, TOKENS, 4, 8).unbind()
    v, beta = torch.randn(2, TOKENS, 4, 6), torch.rand(2, TOKENS, 4)
    g, memory = -torch.rand(2, TOKENS, 4, 8) * 3, torch.randn(2, 4, 8, 6)
    k = k / k.norm(dim=-1, keepdim=True)
    true, after = _plain(getattr(theirs_kimi, judge))(
        q, k, v, g, beta, initial_state=memory, output_final_state=True
    )
    q, k, v, g = (x.transpose(1, 2) for x in (q, k, v, g))
    beta = beta.transpose(1, 2)[..., None]
    mine, memory = linear_recurrence.DELTA[form](q * 8**-0.5, k, v, beta, g, memory)
    assert_close(mine, true.transpose(1, 2), **CLOSE)
    assert_close(memory, after, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("form", ["recurrent", "chunked"])
def test_the_state_space_dual(form: str) -> None:
    torch.manual_seed(0)
    x, dt, a = torch.randn(2, TOKENS, 4, 6), torch.rand(2, TOKENS, 4), -torch.rand(4) * 4
    b, c = torch.randn(2, 2, TOKENS, 2, 8).unbind()
    memory = torch.randn(2, 4, 6, 8)
    judge = _plain(theirs_mamba2.mamba2_chunk_scan)
    true, after = judge(x, dt, a, b, c, chunk_size=32, initial_states=memory, return_final_states=True)
    k, q = (part.repeat_interleave(2, dim=2).transpose(1, 2) for part in (b, c))
    step = dt.transpose(1, 2)[..., None]
    v = step * x.transpose(1, 2)
    mine, memory = linear_recurrence.GATED_LINEAR[form](q, k, v, step * a[:, None, None], memory.mT)
    assert_close(mine, true.transpose(1, 2), **CLOSE)
    assert_close(memory, after.mT, **CLOSE)


def _read(ours: torch.nn.Module, config: Any, x: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    state = config.state()
    parts = []
    for start, end in zip([0, *cuts], [*cuts, x.shape[1]], strict=True):
        pos = torch.arange(start, end).expand(x.shape[0], -1)
        parts.append(ours(x[:, start:end], Positions(pos), None, start == 0, state))
    return torch.cat(parts, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("key_heads", [2, 4])
def test_qwen3_next_layer(key_heads: int) -> None:
    torch.manual_seed(1)
    sizes = {"linear_num_key_heads": key_heads, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
    sizes |= {
        "linear_value_head_dim": 6,
        "linear_conv_kernel_dim": 4,
        "hidden_size": 32,
        "num_hidden_layers": 1,
    }
    theirs = _perturbed(theirs_qwen.Qwen3NextGatedDeltaNet(transformers.Qwen3NextConfig(**sizes), 0))
    config = gated_delta.Config(heads=4, key_heads=key_heads, key_size=8, value_size=6)
    ours = config.build(32).eval()

    # Theirs lie group by group: q k v z, and beta a, of one key head after those of another.
    shared = 4 // key_heads
    qkvz = theirs.in_proj_qkvz.weight.unflatten(0, (key_heads, -1)).split(
        (8, 8, 6 * shared, 6 * shared), dim=1
    )
    ba = theirs.in_proj_ba.weight.unflatten(0, (key_heads, -1)).split((shared, shared), dim=1)
    weights = dict(zip(("query", "key", "value", "gate"), qkvz, strict=True)) | {
        "beta": ba[0],
        "forget": ba[1],
    }
    filled = {f"{name}.weight": weight.flatten(0, 1) for name, weight in weights.items()}
    filled |= {
        "decay.A_log": theirs.A_log,
        "decay.dt_bias": theirs.dt_bias,
        "norm.weight": theirs.norm.weight,
    }
    filled |= {"conv.weight": theirs.conv1d.weight[:, 0], "out.weight": theirs.out_proj.weight}
    ours.load_state_dict(filled)
    assert {name: tuple(weight.shape) for name, weight in filled.items()} == config.weights(32)

    x = torch.randn(2, TOKENS, 32)
    true = theirs(x)
    assert_close(_read(ours, config, x, []), true, **LAYER)
    assert_close(_read(ours, config, x, [70, 71, 72, 80]), true, **LAYER)


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2_layer(groups: int) -> None:
    torch.manual_seed(2)
    sizes = {
        "num_heads": 4,
        "head_dim": 16,
        "state_size": 8,
        "n_groups": groups,
        "hidden_size": 32,
        "expand": 2,
    }
    given = transformers.Mamba2Config(**sizes, num_hidden_layers=1, use_bias=True, chunk_size=32)
    theirs = _perturbed(theirs_mamba2.Mamba2Mixer(given, 0))
    config = mamba2.Config(heads=4, key_size=8, value_size=16, groups=groups, bias=True)
    ours = config.build(32).eval()
    rows = {"gate": 64, "value": 64, "key": 8 * groups, "query": 8 * groups, "step": 4}
    filled = {
        "decay.A_log": theirs.A_log,
        "decay.dt_bias": theirs.dt_bias,
        "D": theirs.D,
        "norm": theirs.norm.weight,
    }
    filled |= {"conv.weight": theirs.conv1d.weight[:, 0], "conv.bias": theirs.conv1d.bias}
    for part in ("weight", "bias"):
        split = getattr(theirs.in_proj, part).split(tuple(rows.values()))
        filled |= {f"{name}.{part}": value for name, value in zip(rows, split, strict=True)}
        filled[f"out.{part}"] = getattr(theirs.out_proj, part)
    ours.load_state_dict(filled)
    assert {name: tuple(weight.shape) for name, weight in filled.items()} == config.weights(32)

    x = torch.randn(2, TOKENS, 32)
    true = theirs(x)
    assert_close(_read(ours, config, x, []), true, **LAYER)
    assert_close(_read(ours, config, x, [70, 71, 72, 80]), true, **LAYER)
