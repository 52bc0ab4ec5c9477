"""Keys of a config.json that say again what others of it say: other families' words, and frameworks' own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cutaway.errors import UserError
from cutaway.weights.fields import Fields

KEYS = {  # our name of a setting: the keys by which it is repeated
    "context": "n_ctx n_positions seq_length max_seq_len max_seq_length max_sequence_length model_max_length",
    "eps": "norm_eps rms_norm_eps layer_norm_eps layer_norm_epsilon",
    "heads": "num_attention_heads num_heads n_head",
    "head_size": "head_dim kv_channels attention_head_size attention_head_dim",
    "kv_heads": "num_key_value_heads num_kv_heads",
    "width": "hidden_size d_model n_embd",
    "hidden": "intermediate_size ffn_hidden_size",
    "layers": "num_hidden_layers n_layer num_layers",
    "experts": "num_experts num_local_experts n_routed_experts",
    "top_k": "num_experts_per_tok experts_per_token moe_topk",
    "activation": "hidden_act hidden_activation activation_function",
    "bias": "attention_bias qkv_bias use_qkv_bias",
}
SETTINGS = {key: name for name, keys in KEYS.items() for key in keys.split()}
PLAIN: dict[str, object] = {
    "is_llama_config": True,
    "use_mrope": False,
    "pruned_heads": {},
    "mlp_only_layers": [],
}
Reader = Callable[[Fields, str], Any]


def repeats(fields: Fields, key: str, known: Mapping[str, Any], readers: Mapping[str, Reader]) -> bool:
    """Whether an unread key of a config only repeats the settings ``known``.

    ``readers`` parse a setting's value as its own key would.
    """
    value, position = fields.data[fields.prefix + key], known.get("rope")
    if key in PLAIN:
        return type(value) is type(PLAIN[key]) and value == PLAIN[key]
    if key == "use_sliding_window":
        return value is False and not any(known.get("windows") or ())
    if key == "attention_chunk_size":  # asked only where no window is stated
        return value is not None and value == fields.data.get("sliding_window")
    if key in ("rope_interleaved", "initial_context_length", "partial_rotary_factor", "rope_theta"):
        if position is None or isinstance(value, str | list | dict):
            return False
        if key == "partial_rotary_factor":
            size = known.get("head_size")  # of some families computed later
            return size is not None and int(size * value) == position.size
        if key == "rope_theta":
            return value == position.base
        own = (
            position.interleaved if key == "rope_interleaved" else getattr(position.scaling, "original", None)
        )
        return type(value) is type(own) and value == own
    name = SETTINGS.get(key)
    if name is None or known.get(name) is None or name not in readers:
        return False
    try:
        return readers[name](fields, key) == known[name]
    except UserError:
        return False
