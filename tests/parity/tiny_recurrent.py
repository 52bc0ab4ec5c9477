"""Recurrent, hybrid and unusual decoders: the configs of each family, of which ``tiny.py`` makes models."""

from typing import Any

from tests.parity.words import VOCAB

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
YARN |= {"mscale": 0.7, "mscale_all_dim": 1.0}
Rows = dict[str, tuple[str, *tuple[dict[str, Any], ...]]]
WITHOUT = ("intermediate_size", "num_key_value_heads", "num_attention_heads")
UNKNOWN = {
    "MambaConfig": WITHOUT,
    "FalconMambaConfig": WITHOUT,
    "Kolibri1Config": WITHOUT[:1],
}  # which these have not
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
LLAMA4 = {"intermediate_size": 40, "intermediate_size_mlp": 80, "head_dim": 16, "num_local_experts": 4}
LLAMA4 |= {"num_hidden_layers": 4}
MORE |= {
    "llama4": (
        "Llama4TextConfig",
        LLAMA4 | {"attention_chunk_size": 7, "floor_scale": 8, "attn_scale": 0.3, "num_experts_per_tok": 2},
        LLAMA4
        | {"attention_bias": True, "use_qk_norm": False, "moe_layers": [1], "no_rope_layers": [1, 0, 1, 1]}
        | {"attention_chunk_size": None, "attn_temperature_tuning": False, "tie_word_embeddings": True},
        LLAMA4 | {"interleave_moe_layer_step": 2, "num_key_value_heads": 1},
    ),
}
GEMMA4 = {"num_hidden_layers": 4, "head_dim": 8, "global_head_dim": 16, "sliding_window": 8}
GEMMA4 |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "hidden_size": 48}
MORE |= {
    "gemma4_unified": (
        "Gemma4UnifiedTextConfig",
        GEMMA4 | {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
        GEMMA4 | {"num_kv_shared_layers": 2, "use_double_wide_mlp": True, "attention_bias": True},
    ),
}
GRIFFIN = {"attention_window_size": 8, "num_hidden_layers": 3}
MORE |= {
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        GRIFFIN,
        GRIFFIN
        | {"block_types": ["attention", "recurrent"], "attention_bias": True, "conv1d_width": 3}
        | {"num_key_value_heads": 1, "logits_soft_cap": 4.0},
    ),
}
LFM3 = {"head_dim": 16, "sliding_window": 8, "num_hidden_layers": 3, "conv_L_cache": 5}
LFM3 |= {"layer_types": ["conv", "full_attention", "sliding_attention"]}
MORE |= {
    "lfm3": (
        "Lfm3Config",
        LFM3,
        LFM3
        | {"use_attention_gate": False, "use_sandwich_norm": False, "attention_bias": True}
        | {"conv_bias": True, "tie_word_embeddings": False, "num_key_value_heads": 1},
    ),
}
OLMO = {"layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 12}
MORE |= {
    "olmo_hybrid": (
        "OlmoHybridConfig",
        OLMO | {"linear_value_head_dim": 12},
        OLMO
        | {"linear_num_key_heads": 2, "linear_value_head_dim": 6, "linear_allow_neg_eigval": False}
        | {"attention_bias": True, "linear_conv_kernel_dim": 3, "tie_word_embeddings": True}
        | {"rope_parameters": {"rope_theta": None, "rope_type": "default"}},
    ),
}
INDEXED = {"kv_lora_rank": 16, "q_lora_rank": 20, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12}
INDEXED |= {"v_head_dim": 10, "index_n_heads": 8, "index_head_dim": 12, "index_topk": 6}
INDEXED |= {"moe_intermediate_size": 24, "num_experts_per_tok": 2, "num_key_value_heads": 4}
INDEXED |= {"num_hidden_layers": 3}
MORE |= {
    "glm_moe_dsa": (
        "GlmMoeDsaConfig",
        INDEXED
        | {"n_routed_experts": 4, "first_k_dense_replace": 1, "indexer_types": ["full", "shared", "full"]},
        INDEXED
        | {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 0}
        | {"indexer_types": ["full", "shared", "shared"], "rope_parameters": YARN, "index_topk": 9},
    ),
}
GEMMA3N = {"hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": VOCAB, "laurel_rank": 5}
GEMMA3N |= {"num_hidden_layers": 4, "head_dim": 16, "sliding_window": 8, "altup_num_inputs": 3}
GEMMA3N |= {"layer_types": ["sliding_attention", "full_attention"] * 2}
MORE |= {
    "gemma3n": (
        "Gemma3nTextConfig",
        GEMMA3N | {"num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.7, 0.0, 0.5, 0.0]},
        GEMMA3N
        | {"num_kv_shared_layers": 0, "attention_bias": True, "intermediate_size": [32, 40, 48, 56]}
        | {"vocab_size_per_layer_input": VOCAB - 9, "final_logit_softcapping": 4.0, "altup_num_inputs": 2},
    ),
}
LING = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 10}
LING |= {"num_local_experts": 8, "n_group": 4, "topk_group": 2, "moe_intermediate_size": 24}
LING |= {"num_experts_per_tok": 2, "first_k_dense_replace": 1, "num_key_value_heads": 4, "head_dim": 12}
LING |= {"layer_types": ["linear_attention", "full_attention"]}
MORE |= {
    "bailing_hybrid": (
        "BailingHybridConfig",
        LING,
        LING
        | {"kda_safe_gate": False, "q_lora_rank": 20, "first_k_dense_replace": 0, "n_shared_experts": 2}
        | {"short_conv_kernel_size": 3, "norm_topk_prob": False, "tie_word_embeddings": True},
    ),
}
KOLIBRI = {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
KOLIBRI |= {"shared_expert_intermediate_size": 20, "sliding_window": 8}
MORE |= {
    "kolibri1": (
        "Kolibri1Config",
        KOLIBRI | {"layer_types": ["sliding_attention", "full_attention"]},
        KOLIBRI
        | {"layer_types": ["full_attention", "sliding_attention"], "norm_topk_prob": True}
        | {"tie_word_embeddings": True, "num_experts_per_tok": 3},
    ),
}
ZAMBA2 = {"num_hidden_layers": 5, "n_mamba_heads": 4, "mamba_d_state": 12, "adapter_rank": 5}
ZAMBA2 |= {"layers_block_type": ["mamba", "hybrid", "hybrid", "mamba", "hybrid"], "hidden_size": 32}
ZAMBA2 |= {"num_key_value_heads": 4, "intermediate_size": 48}
MORE |= {
    "zamba2": (
        "Zamba2Config",
        ZAMBA2 | {"num_mem_blocks": 2, "use_shared_attention_adapter": True, "use_mem_rope": True},
        ZAMBA2
        | {"num_key_value_heads": 2, "mamba_ngroups": 2, "time_step_min": 0.4, "hidden_act": "silu"}
        | {"mamba_d_conv": 3, "mamba_expand": 1},
    ),
}
MORE_IN_GGUF = ["mamba-1", "mamba-4", "falcon_mamba-3", "jamba-1", "jamba-3", "llama4-3"]
MORE_IN_GGUF += ["nemotron_h-6", "gemma4-4", "gemma4-5"]
MORE_IN_GGUF += ["gemma4_unified-1"]
# Why the runtime does not run a family's models, or a case's, in its words.
UNPACKED = dict.fromkeys(("mamba", "falcon_mamba", "jamba"), "mamba attention has no kernel")
UNPACKED |= {"llama4": "chunked attention has no kernel"}
UNPACKED |= {"recurrent_gemma": "rg_lru attention has no kernel"}
UNPACKED |= dict.fromkeys(
    ("llama4-2", "nemotron_h-5", "nemotron_h-6", "gemma4-4", "gemma4-5"), "its experts are of a latent"
)
UNPACKED |= {"lfm3-1": "its gates are softplus or one number a head"}
UNPACKED |= {"olmo_hybrid": "its delta rule has a convolution of each part"}
UNPACKED |= {"glm_moe_dsa": "its indexer rotates neighbouring pairs"}
UNPACKED |= {"gemma3n": "it has several residual streams"}
UNPACKED |= {"bailing_hybrid": "its decays have one matrix"}
UNPACKED |= {"kolibri1": "its experts are chosen by logits"}
UNPACKED |= {"zamba2": "it shares a transformer with other layers"}
# Cases whose every key is edited in each run; the first of each family above was, before it was added.
EDITED = ("falcon_mamba-1", "lfm3-1")
