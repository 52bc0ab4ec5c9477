"""Attention modules against transformers' own, whole: tiny, random, every weight perturbed, in float64."""

import importlib
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.testing import assert_close

from cutaway.attention import bidirectional, cross, differential, dsa, gated, gqa, local, mha, mla
from cutaway.attention.common.visibility import Causal, Global, Near, Positions, mask
from cutaway.layers.config import Norm
from cutaway.position import alibi, mrope, rope, t5
from cutaway.position.scaling import YaRN, sharpening

WIDTH, LENGTH = 32, 24
POS = torch.arange(LENGTH).expand(2, -1)
HEADS = {"heads": 4, "kv_heads": 2, "key_size": 8}
HF: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_hidden_layers": 2,
    "vocab_size": 16,
    "attn_implementation": "eager",
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
}
PLAIN = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}


def _module(file: str, name: str, config: Any, **arguments: Any) -> nn.Module:
    cls = getattr(importlib.import_module(f"transformers.models.{file}.modeling_{file}"), name)
    torch.manual_seed(3)
    module = cls(config, **arguments).double().eval()
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn_like(weight) * 0.4 + (weight.ndim == 1) * 0.7)
    return module


def _cos_sin(size: int, scaling: Any = None) -> tuple[Tensor, Tensor]:
    rotation = rope.RotaryEmbedding(rope.Config(size, scaling=scaling)).rotation(POS)
    cos, sin = (torch.cat((half, half), dim=-1)[:, 0] for half in (rotation.cos, rotation.sin))
    return cos, sin


def _dense(rule: Any = None) -> Tensor:
    seen = mask(rule or Causal(), Positions(POS), Positions(POS))[:, None]
    return torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)


def _x() -> Tensor:
    return torch.randn(2, LENGTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def _take(ours: nn.Module, theirs: nn.Module, names: dict[str, str]) -> None:
    """Copies weights over by name. Every weight on both sides must find its place."""
    taken = {}
    for name, weight in theirs.named_parameters():
        module, _, part = name.rpartition(".")
        taken[f"{names[module]}.{part}" if module else names.get(name, name)] = weight
    ours.load_state_dict(taken, strict=True)


def _ours(config: Any, theirs: nn.Module, names: dict[str, str], by_pieces: bool = False) -> Tensor:
    module = config.build(WIDTH).double()
    _take(module, theirs, names)
    return _output(module, config, by_pieces)


def _output(module: nn.Module, config: Any, by_pieces: bool = False) -> Tensor:
    turn = None if config.position is None else rope.RotaryEmbedding(config.position)
    state, out = config.state() if by_pieces else None, []
    for start in range(0, LENGTH, 5 if by_pieces else LENGTH):
        part = slice(start, start + 5 if by_pieces else LENGTH)
        rotation = turn and turn.rotation(POS[:, part])
        out.append(module(_x()[:, part], Positions(POS[:, part]), rotation, False, state))
    return torch.cat(out, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 5])
def test_sinks_equal_gpt_oss(window: int | None) -> None:
    config = transformers.GptOssConfig(**HF, attention_bias=True)
    theirs = _module("gpt_oss", "GptOssAttention", config, layer_idx=0)
    common: dict[str, Any] = HEADS | {
        "position": rope.Config(8),
        "sinks": True,
        "bias": True,
        "out_bias": True,
    }
    ours = gqa.Config(**common) if window is None else local.Config(window=window, **common)
    halves = tuple(whole[..., :4] for whole in _cos_sin(8))
    expected = theirs(_x(), halves, _dense(ours.visibility))[0]
    assert_close(_ours(ours, theirs, PLAIN), expected)
    assert_close(_ours(ours, theirs, PLAIN, by_pieces=True), expected)


@torch.no_grad()
def test_norm_over_the_width_equals_olmo2() -> None:
    theirs = _module(
        "olmo2", "Olmo2Attention", transformers.Olmo2Config(**HF, rms_norm_eps=1e-5), layer_idx=0
    )
    ours = gqa.Config(**HEADS, position=rope.Config(8), qk_norm=Norm(eps=1e-5), qk_norm_over="width")
    names = PLAIN | {"q_norm": "query_norm", "k_norm": "key_norm"}
    # Its norm counts in float32, ours in the float64 that it is given.
    assert_close(_ours(ours, theirs, names), theirs(_x(), _cos_sin(8), _dense())[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_softcap_equals_gemma2() -> None:
    config = transformers.Gemma2Config(
        **HF, attn_logit_softcapping=2.0, query_pre_attn_scalar=5, attention_bias=False
    )
    theirs = _module("gemma2", "Gemma2Attention", config, layer_idx=1)
    ours = gqa.Config(**HEADS, position=rope.Config(8), softcap=2.0, scale=5**-0.5)
    expected = theirs(_x(), _cos_sin(8), _dense())[0]
    assert_close(_ours(ours, theirs, PLAIN), expected, rtol=1e-5, atol=1e-5)  # its softmax is float32


@torch.no_grad()
def test_gate_equals_qwen3_next() -> None:
    theirs = _module("qwen3_next", "Qwen3NextAttention", transformers.Qwen3NextConfig(**HF), layer_idx=1)
    config = gated.Config(**HEADS, position=rope.Config(8), qk_norm=Norm(eps=1e-6))
    ours = config.build(WIDTH).double()
    weights = {
        f"{PLAIN[name]}.weight": theirs.get_parameter(f"{name}.weight") for name in PLAIN if name != "q_proj"
    }
    query, gate = theirs.get_parameter("q_proj.weight").unflatten(0, (4, 2, 8)).unbind(1)
    weights |= {"query.weight": query.flatten(0, 1), "gate.weight": gate.flatten(0, 1)}
    for name in ("query", "key"):  # its norms' weights count from 1
        weights[f"{name}_norm.weight"] = theirs.get_parameter(f"{name[0]}_norm.weight") + 1
    ours.load_state_dict(weights)
    expected = theirs(_x(), _cos_sin(8), _dense())[0]
    assert_close(_output(ours, config), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 3])
def test_differential_equals_diffllama(layer: int) -> None:
    config = transformers.DiffLlamaConfig(
        **(HF | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4})
    )
    theirs = _module("diffllama", "DiffLlamaAttention", config, layer_idx=layer)
    start = 0.8 - 0.6 * 2.718281828459045 ** (-0.3 * layer)
    ours = differential.Config(
        heads=8, kv_heads=4, key_size=4, position=rope.Config(4), lambda_start=start, eps=config.rms_norm_eps
    )
    module = ours.build(WIDTH).double()
    names = {"lambda_q1": "lambda_query_one", "lambda_k1": "lambda_key_one"}
    names |= {"lambda_q2": "lambda_query_two", "lambda_k2": "lambda_key_two"}
    weights = {f"{PLAIN[name]}.weight": theirs.get_parameter(f"{name}.weight") for name in PLAIN}
    weights |= {mine: theirs.get_parameter(name) for name, mine in names.items()}
    module.load_state_dict(weights | {"head_norm.weight": torch.ones(8, dtype=torch.float64)})
    expected = theirs(_x(), _cos_sin(4), _dense())[0]
    assert_close(_output(module, ours), expected, rtol=1e-5, atol=1e-5)
    assert_close(_output(module, ours, by_pieces=True), expected, rtol=1e-5, atol=1e-5)


YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 40.0,
    "original_max_position_embeddings": 4096,
    "mscale": 0.7,
    "mscale_all_dim": 1.2,
    "beta_fast": 32,
    "beta_slow": 1,
}
LATENT = {
    "q_lora_rank": 10,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 5,
}
MLA = {"heads": 4, "key_size": 6, "rope_dim": 4, "latent": 12, "value_size": 5}
MLA_NAMES = {
    "q_proj": "query",
    "q_a_proj": "query_down",
    "q_a_layernorm": "query_norm",
    "q_b_proj": "query",
    "kv_a_proj_with_mqa": "down",
    "kv_a_layernorm": "latent_norm",
    "o_proj": "out",
    "indexer.wq_b": "index_query",
    "indexer.wk": "index_key",
    "indexer.k_norm": "index_norm",
    "indexer.weights_proj": "index_weight",
}


def _latent(config: mla.Config, theirs: nn.Module) -> nn.Module:
    """Ours with their weights; their kv_b holds each head's key rows, then its value rows."""
    weights = {}
    for name, weight in theirs.named_parameters():
        module, _, part = name.rpartition(".")
        if module == "kv_b_proj":
            key, value = weight.unflatten(0, (4, 11)).split((6, 5), dim=1)
            weights |= {"key_up.weight": key.flatten(0, 1), "value_up.weight": value.flatten(0, 1)}
        else:
            weights[f"{MLA_NAMES[module]}.{part}"] = weight
    module = config.build(WIDTH).double()
    module.load_state_dict(weights, strict=True)
    return module


@torch.no_grad()
@pytest.mark.parametrize("low_rank_query", [True, False])
@pytest.mark.parametrize("yarn", [True, False])
def test_mla_equals_deepseek_v3(yarn: bool, low_rank_query: bool) -> None:
    parameters = YARN if yarn else {"rope_type": "default", "rope_theta": 1e4}
    own = HF | LATENT | {"rope_parameters": parameters, "num_key_value_heads": 4, "rope_interleave": True}
    hf = transformers.DeepseekV3Config(**(own | ({} if low_rank_query else {"q_lora_rank": None})))
    theirs = _module("deepseek_v3", "DeepseekV3Attention", hf, layer_idx=0)
    scaling = YaRN(40.0, 4096, attention=sharpening(40.0, 0.7) / sharpening(40.0, 1.2)) if yarn else None
    config = mla.Config(
        **MLA,
        query_latent=10 if low_rank_query else None,
        position=rope.Config(4, scaling=scaling, interleaved=True),
        scale=10**-0.5 * sharpening(40.0, 1.2) ** 2 if yarn else None,
    )
    ours = _latent(config, theirs)
    expected = theirs(_x(), _cos_sin(4, scaling), _dense())[0]
    assert_close(_output(ours, config), expected, rtol=1e-5, atol=1e-5)
    assert_close(_output(ours, config, by_pieces=True), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("top_k", [64, 6])
def test_dsa_equals_deepseek_v32(top_k: int) -> None:
    own = (
        HF
        | LATENT
        | {"num_key_value_heads": 4, "index_n_heads": 16, "index_head_dim": 8, "index_topk": top_k}
    )
    hf = transformers.DeepseekV32Config(
        **(own | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}})
    )
    theirs = _module("deepseek_v32", "DeepseekV32Attention", hf, layer_idx=0)
    config = dsa.Config(
        **MLA,
        query_latent=10,
        position=rope.Config(4, interleaved=True),
        index_heads=16,
        index_size=8,
        top_k=top_k,
    )
    ours = _latent(config, theirs)
    expected = theirs(_x(), _cos_sin(4), _dense())[0]
    assert_close(_output(ours, config), expected, rtol=1e-5, atol=1e-5)
    assert_close(_output(ours, config, by_pieces=True), expected, rtol=1e-5, atol=1e-5)


T5_NAMES = {"q": "query", "k": "key", "v": "value", "o": "out", "relative_attention_bias": "relative"}


@torch.no_grad()
@pytest.mark.parametrize("decoder", [True, False])
def test_relative_positions_equal_t5(decoder: bool) -> None:
    hf = transformers.T5Config(
        d_model=WIDTH, d_kv=8, num_heads=4, is_decoder=decoder, relative_attention_num_buckets=8,
        relative_attention_max_distance=16, attn_implementation="eager",
    )  # fmt: skip
    theirs = _module("t5", "T5Attention", hf, has_relative_attention_bias=True, layer_idx=0)
    common: dict[str, Any] = {
        "heads": 4,
        "key_size": 8,
        "scale": 1.0,
        "relative": t5.Config(8, 16, not decoder),
    }
    ours = mha.Config(**common) if decoder else bidirectional.Config(kv_heads=4, **common)
    expected = theirs(_x(), mask=_dense(ours.visibility))[0]
    assert_close(_ours(ours, theirs, T5_NAMES), expected)


@torch.no_grad()
def test_cross_attention_equals_t5() -> None:
    hf = transformers.T5Config(
        d_model=WIDTH, d_kv=8, num_heads=4, is_decoder=True, attn_implementation="eager"
    )
    theirs = _module("t5", "T5Attention", hf, layer_idx=0)
    config = cross.Config(heads=4, kv_heads=4, key_size=8, scale=1.0)
    ours = config.build(WIDTH).double()
    _take(ours, theirs, T5_NAMES)
    memory = _x()[:, :7] * 2
    expected = theirs(_x(), key_value_states=memory)[0]
    assert_close(ours(_x(), Positions(POS), memory, Positions(POS[:, :7])), expected)


@torch.no_grad()
@pytest.mark.parametrize("heads", [4, 6])
def test_alibi_equals_bloom(heads: int) -> None:
    size = 8 * heads
    hf = transformers.BloomConfig(hidden_size=size, n_head=heads, hidden_dropout=0.0, attention_dropout=0.0)
    theirs = _module("bloom", "BloomAttention", hf, layer_idx=0)
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    x = torch.randn(2, LENGTH, size, dtype=torch.float64)
    bias = build_alibi_tensor(torch.ones(2, LENGTH, dtype=torch.long), heads, torch.float64)
    expected = theirs(x, torch.zeros_like(x), bias, _dense())[0]
    config = mha.Config(heads=heads, key_size=8, relative=alibi.Config(), bias=True, out_bias=True)
    ours = config.build(size).double()
    weights = {
        "out.weight": theirs.get_parameter("dense.weight"),
        "out.bias": theirs.get_parameter("dense.bias"),
    }
    for part in ("weight", "bias"):
        rows = theirs.get_parameter(f"query_key_value.{part}").unflatten(0, (heads, 3, 8)).unbind(1)
        names = ("query", "key", "value")
        weights |= {f"{name}.{part}": row.flatten(0, 1) for name, row in zip(names, rows, strict=True)}
    ours.load_state_dict(weights)
    assert_close(ours(x, Positions(POS), None, True, None), expected, rtol=1e-5, atol=1e-5)


def test_m_rope_equals_qwen2_vl() -> None:
    from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen

    parameters = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    hf = transformers.Qwen2VLTextConfig(hidden_size=64, num_attention_heads=4, rope_parameters=parameters)
    axes = torch.randint(0, 50, (3, 2, LENGTH), generator=torch.Generator().manual_seed(0))
    cos, sin = qwen.Qwen2VLRotaryEmbedding(hf)(torch.zeros(1, dtype=torch.float64), axes)
    config = mrope.Config(size=16, sections=(2, 3, 3))
    ours = mrope.rotation(config, axes)
    assert_close(ours.cos[:, 0], cos[..., :8], rtol=1e-5, atol=1e-5)
    assert_close(ours.sin[:, 0], sin[..., :8], rtol=1e-5, atol=1e-5)
    text = axes[:1].expand(3, -1, -1)
    assert torch.equal(mrope.rotation(config, text).cos, rope.RotaryEmbedding(config).rotation(axes[0]).cos)


@torch.no_grad()
def test_window_and_globals_see_what_longformer_sees() -> None:
    """Longformer's global tokens have projections of their own; with those equal to the others it is
    this pattern.
    """
    hf = transformers.LongformerConfig(
        hidden_size=WIDTH, num_attention_heads=4, attention_window=[8], num_hidden_layers=1,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    theirs = _module("longformer", "LongformerSelfAttention", hf, layer_id=0).float()
    with torch.no_grad():
        for name in ("query", "key", "value"):
            getattr(theirs, f"{name}_global").load_state_dict(getattr(theirs, name).state_dict())
    marked = torch.zeros(2, LENGTH)
    marked[:, :2] = 1.0
    is_global = marked > 0
    expected = theirs(
        _x().float(),
        attention_mask=marked,
        is_index_masked=marked < 0,
        is_index_global_attn=is_global,
        is_global_attn=True,
    )[0]
    config = bidirectional.Config(heads=4, kv_heads=4, key_size=8, reach=4, globals=2, bias=True)
    assert config.visibility == Near(4) | Global(2)
    ours = config.build(WIDTH)
    weights = {
        f"{n}.{p}": theirs.get_parameter(f"{n}.{p}")
        for n in ("query", "key", "value")
        for p in ("weight", "bias")
    }
    ours.load_state_dict(weights | {"out.weight": torch.eye(WIDTH)})
    assert_close(ours(_x().float(), Positions(POS), None, False, None), expected, rtol=1e-4, atol=1e-4)
