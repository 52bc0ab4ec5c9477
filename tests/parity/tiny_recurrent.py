"""Recurrent, hybrid and unusual decoders: the configs of each family, of which ``tiny.py`` makes models."""

from typing import Any

Rows = dict[str, tuple[str, *tuple[dict[str, Any], ...]]]
WITHOUT = ("intermediate_size", "num_key_value_heads", "num_attention_heads")
UNKNOWN = {"MambaConfig": WITHOUT, "FalconMambaConfig": WITHOUT}  # which these have not
MORE: Rows = {
    "mamba": (
        "MambaConfig",
        {"state_size": 8},
        {"state_size": 4, "use_bias": True, "use_conv_bias": False, "conv_kernel": 3, "time_step_rank": 7},
        {"expand": 1, "tie_word_embeddings": False, "num_hidden_layers": 3, "hidden_size": 40},
        {"hidden_size": 48, "tie_word_embeddings": False, "time_step_rank": 5},
    ),
    "falcon_mamba": (
        "FalconMambaConfig",
        {"state_size": 8, "tie_word_embeddings": False},
        {"state_size": 4, "use_bias": True, "use_conv_bias": False, "mixer_rms_eps": 1e-2, "expand": 3},
        {"mixer_rms_eps": 1e-5, "tie_word_embeddings": True},
    ),
}
JAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 14, "num_experts": 4}
MORE |= {
    "jamba": (
        "JambaConfig",
        JAMBA | {"num_hidden_layers": 3},
        JAMBA
        | {"mamba_proj_bias": True, "mamba_conv_bias": False, "mamba_dt_rank": 7, "num_experts": 1}
        | {"tie_word_embeddings": True, "num_key_value_heads": 1, "mamba_d_conv": 3, "mamba_expand": 3},
        JAMBA | {"attn_layer_offset": 0, "expert_layer_period": 1, "expert_layer_offset": 0},
    ),
}
MORE_IN_GGUF = ["mamba-1", "mamba-4", "falcon_mamba-3", "jamba-1", "jamba-3"]
# Why the runtime does not run a family's models, in its words.
UNPACKED = dict.fromkeys(("mamba", "falcon_mamba", "jamba"), "mamba attention has no kernel")
EDITED = ("mamba-1", "falcon_mamba-1", "jamba-1")  # whose every key is edited
