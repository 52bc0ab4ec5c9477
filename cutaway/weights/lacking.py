"""Features of a model that llama.cpp's architecture lacks, named by the keys of its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cutaway.errors import UserError
from cutaway.model.config import Model
from cutaway.weights import rules
from cutaway.weights.family import Family

# By a setting of ours, or a part of a weight's name: what to call it, and the keys that may state it.
_BIAS = "attention_bias qkv_bias use_qkv_bias bias use_bias add_bias_linear"
_NORMS = "use_qk_norm qk_norm use_qk_layernorm qk_layernorm"
_SCALING = "rope_parameters rope_scaling"
_PROPERTIES = {
    "window": ("windows", "sliding_window window_size local_attention layer_types"),
    "chunk": ("chunks", "attention_chunk_size"),
    "scaling": ("this scaling of rotary positions", _SCALING),
    "whole": (
        "a ramp of YaRN that is not rounded to whole pairs",
        "rope_parameters.truncate rope_scaling.truncate",
    ),
    "attention": (
        "this attention factor of YaRN",
        "rope_parameters.attention_factor rope_scaling.attention_factor",
    ),
    "base": ("a rotary base", "rope_theta rope_parameters.rope_theta rope_parameters"),
    "interleaved": ("rotated pairs of neighbours", "rope_interleave"),
    "position": ("these rotary positions", f"no_rope_layers {_SCALING}"),
    "bias": ("biases of queries, keys and values", _BIAS),
    "out_bias": ("a bias of attention's output", _BIAS),
    "mlp_bias": ("biases of MLPs", "mlp_bias use_bias bias"),
    "scale": ("a scale of scores", "attention_multiplier query_pre_attn_scalar attn_config.softmax_scale"),
    "softcap": ("a soft cap of scores", "attn_logit_softcapping"),
    "logit_softcap": ("a soft cap of logits", "final_logit_softcapping"),
    "logit_scale": ("a scale of logits", "logit_scale logits_scaling"),
    "embedding_scale": (
        "a scale of embeddings",
        "scale_embedding embedding_multiplier scale_emb mup_enabled",
    ),
    "qk_norm": ("norms of queries and keys", _NORMS),
    "key_norm": ("norms of queries and keys", _NORMS),
    "query_norm": ("norms of queries and keys", _NORMS),
    "sinks": ("sinks", ""),
    "tied": ("a head of its own", "tie_word_embeddings"),
    "activation": ("an activation", "hidden_act hidden_activation activation activation_function"),
    "eps": ("an eps", "rms_norm_eps layer_norm_eps layer_norm_epsilon norm_eps"),
    "top_groups": ("a choice of expert groups", "topk_group"),
    "groups": ("groups of experts", "n_group"),
    "router": ("this choice of experts", "topk_group n_group scoring_func moe_router_activation_func"),
    "shared": ("a shared expert", "n_shared_experts shared_expert_intermediate_size"),
    "key.bias": ("biases of queries, keys and values", _BIAS),
    "query.bias": ("biases of queries, keys and values", _BIAS),
    "value.bias": ("biases of queries, keys and values", _BIAS),
    "out.bias": ("a bias of attention's output", _BIAS),
    "gate.bias": ("biases", f"{_BIAS} mlp_bias"),
    "up.bias": ("biases of MLPs", "mlp_bias use_bias bias"),
    "down.bias": ("biases of MLPs", "mlp_bias use_bias bias"),
    "down.weight": ("an MLP in some layers and experts in others", "mlp_only_layers decoder_sparse_step"),
    "norm.bias": ("biases of norms", "norm_bias use_bias bias"),
    "conv.bias": ("biases of convolutions", "conv_bias use_conv_bias mamba_conv_bias"),
}


class Difference(NamedTuple):
    """A difference of two configs: the path, and each one's value there, None where it is left out."""

    where: str
    one: Any
    other: Any

    def __str__(self) -> str:
        return f"{self.where} {self.one!r} would become {self.other!r}"


def in_gguf(found: Difference | UserError, family: Family, config: Model) -> str:
    """Why a family of GGUF's cannot state this model; an error that is no weight without a name says it."""
    architecture = f"llama.cpp's {family.gguf_name_of(config)}"
    if isinstance(found, rules.Nameless):
        return f"{architecture} does not have {_of_weight(found.weight, family, config)}"
    if isinstance(found, UserError):
        return str(found)
    leaf, one, other = found.where.rpartition(".")[2], found.one, found.other
    if leaf == "kind" and "local" in (one, other):
        leaf, one, other = "window", one == "local", other == "local"
    words, keys = _PROPERTIES.get(leaf, (leaf.replace("_", " "), leaf))
    where = _stated(keys, family, config)
    if other is None or other is False:
        return f"{architecture} does not have {words}{_value(one)}{where}"
    if one is None or one is False:
        return f"{architecture} always has {words}{_value(other)}{where}"
    return f"{architecture} has {words}{_value(other)}, not{_value(one)}{where}"


def _value(value: object) -> str:
    return f" of {value}" if isinstance(value, int | float | str) and not isinstance(value, bool) else ""


def _of_weight(weight: str, family: Family, config: Model) -> str:
    parts = weight.split(".")
    for name in (*reversed(parts), ".".join(parts[-2:]), ".".join(parts[-2:]).rpartition("_")[2]):
        if name in _PROPERTIES and name not in ("attention", "bias"):
            words, keys = _PROPERTIES[name]
            return words + _stated(keys, family, config)
    try:
        bound = rules.bind(family.hf, config)
    except UserError:
        return f"the weight {weight}"
    return f"the weight {next(each.theirs for each in bound if weight in each.ours)}"


def _stated(keys: str, family: Family, config: Model) -> str:
    """The first of these keys that the model's config.json has, in brackets."""
    try:
        entries = family.write(config, gguf=False)
    except UserError:
        return ""
    found = (key for key in keys.split() if _has(entries, key.split(".")))
    return next((f" ({key} in config.json)" for key in found), "")


def _has(entries: Mapping[str, Any], path: list[str]) -> bool:
    for key in path:
        if not isinstance(entries, Mapping) or entries.get(key) is None:
            return False
        entries = entries[key]
    return True
