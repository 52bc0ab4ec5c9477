"""Tiny configs of further decoders, dense and with mixtures of experts, as ``tiny.MORE`` has them."""

import re
from typing import Any

LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
ODD = {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48, "head_dim": 20}
BIASED = {"attention_bias": True, "mlp_bias": True}
MHA = {"num_key_value_heads": 4}
GPTJ = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 128, "rotary_dim": 8}
NEO = {"attention_types": [[["global", "local"], 1]], "window_size": 8}
MPT = {"n_layers": 2, "d_model": 64, "n_heads": 4, "max_seq_len": 128}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
SPARSE = {"moe_intermediate_size": 24}
ROUTED = SPARSE | {"n_routed_experts": 4, "num_experts_per_tok": 2}
GROUPS = {"n_group": 4, "topk_group": 2, "n_routed_experts": 8}
MULTIPLIED = {"embedding_multiplier": 6.0, "residual_multiplier": 0.3, "attention_multiplier": 0.1}
TWO_ROPES = {
    "full_attention": YARN | {"partial_rotary_factor": 0.5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
}
TWO_WHOLE = {"full_attention": YARN, "sliding_attention": TWO_ROPES["sliding_attention"]}
LATENT = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 10} | MHA
ERNIE = {"moe_num_experts": 4, "moe_k": 2}
XGLM = {"d_model": 64, "ffn_dim": 80, "num_layers": 2, "attention_heads": 4}
MSCALED = {"rope_type": "longrope", "short_mscale": 1.2, "long_mscale": 1.2, "rope_theta": 1e4}
MSCALED |= {"short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.5, 3.0, 3.5], "original_max_position_embeddings": 64}
MSCALED |= {"long_factor": [1.0, 2.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0]}

MORE: dict[str, tuple[str, *tuple[dict[str, Any], ...]]] = {
    "olmoe": (
        "OlmoeConfig",
        EXPERTS | MHA,
        EXPERTS | {"norm_topk_prob": True, "attention_bias": True, "num_experts_per_tok": 3},
    ),
    "nemotron": (
        "NemotronConfig",
        {},
        BIASED | {"tie_word_embeddings": True, "num_key_value_heads": 1},
        ODD | {"partial_rotary_factor": 0.3, "hidden_act": "gelu"},
    ),
    "glm": (
        "GlmConfig",
        {"head_dim": 16},
        ODD | {"attention_bias": False, "tie_word_embeddings": True},
    ),
    "gptj": (
        "GPTJConfig",
        GPTJ,
        GPTJ | {"n_inner": 80, "rotary_dim": 16, "activation_function": "gelu"},
    ),
    "codegen": (
        "CodeGenConfig",
        GPTJ,
        GPTJ | {"n_head": 2, "n_inner": 80, "rotary_dim": 16},
    ),
    "gpt_neo": (
        "GPTNeoConfig",
        NEO | {"intermediate_size": None},
        NEO | {"num_attention_heads": 2, "tie_word_embeddings": False, "activation_function": "relu"},
        NEO
        | {"num_hidden_layers": 3, "attention_types": [[["local"], 2], [["global"], 1]], "window_size": 3},
    ),
    "mpt": (
        "MptConfig",
        MPT,
        MPT | {"n_heads": 6, "d_model": 48, "tie_word_embeddings": False, "attn_config": {"clip_qkv": 0.5}},
        MPT | {"attn_config": {"softmax_scale": 0.4}, "layer_norm_epsilon": 1e-3},
    ),
    "exaone": (
        "ExaoneConfig",
        {},
        BIASED | {"tie_word_embeddings": True, "num_key_value_heads": 1, "head_dim": 24},
        {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-3},
    ),
    "internlm3": (
        "InternLM3Config",
        {"head_dim": 16},
        BIASED | {"head_dim": 24, "tie_word_embeddings": True},
    ),
    "iquestcoder": (
        "IQuestCoderConfig",
        {"head_dim": 16},
        BIASED | {"head_dim": 24, "tie_word_embeddings": True},
    ),
    "jais2": (
        "Jais2Config",
        {},
        {"attention_bias": False, "mlp_bias": False, "num_key_value_heads": 1, "rope_parameters": LLAMA3},
    ),
    "ministral": (
        "MinistralConfig",
        {"sliding_window": 8, "head_dim": 16},
        ODD | {"sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]},
        {
            "layer_types": ["full_attention"] * 2,
            "head_dim": 24,
            "tie_word_embeddings": True,
            "rope_parameters": LLAMA3,
        },
    ),
    "cwm": (
        "CwmConfig",
        {"num_hidden_layers": 5, "sliding_window": 8, "head_dim": 16, "rope_parameters": LLAMA3},
        ODD | {"mlp_bias": True, "sliding_window": 4, "rope_parameters": LLAMA3, "tie_word_embeddings": True},
        {"head_dim": 24, "layer_types": ["full_attention"] * 2, "rope_parameters": YARN},
    ),
    "vaultgemma": (
        "VaultGemmaConfig",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8},
        ODD | {"sliding_window": 8, "attn_logit_softcapping": None, "final_logit_softcapping": 4.0},
        {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4, "attention_bias": True},
    ),
    "flex_olmo": (
        "FlexOlmoConfig",
        EXPERTS,
        EXPERTS | MHA | {"norm_topk_prob": True, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "granitemoeshared": (
        "GraniteMoeSharedConfig",
        MULTIPLIED | {"num_local_experts": 4, "logits_scaling": 6.0, "shared_intermediate_size": 20},
        {"num_local_experts": 3, "num_experts_per_tok": 1, "attention_bias": True},
        MULTIPLIED
        | {"num_local_experts": 4, "num_experts_per_tok": 3, "tie_word_embeddings": True}
        | {"shared_intermediate_size": 40},
    ),
    "granite_swa": (
        "GraniteSWAConfig",
        MULTIPLIED | {"num_hidden_layers": 5, "sliding_window": 8, "layer_rope_theta": [0, 1e4, 1e4, 1e3, 0]},
        MULTIPLIED | BIASED | {"logits_scaling": 3.0, "sliding_window": 4, "tie_word_embeddings": False},
        {"rope_parameters": LLAMA3, "layer_types": ["full_attention"] * 2, "num_key_value_heads": 1}
        | {"attention_multiplier": 0.2, "layer_rope_theta": [1e4, 5e5]},
    ),
    "granitemoe_swa": (
        "GraniteMoeSWAConfig",
        MULTIPLIED
        | {"num_local_experts": 4, "sliding_window": 8, "shared_intermediate_size": 20}
        | {"num_hidden_layers": 3, "layer_rope_theta": [0, 1e4, 0]},
        {"num_local_experts": 3, "num_experts_per_tok": 1, "attention_bias": True, "sliding_window": 4},
    ),
    "dots1": (
        "Dots1Config",
        ROUTED | MHA | {"n_shared_experts": 2, "head_dim": 16, "first_k_dense_replace": 1},
        ROUTED
        | GROUPS
        | {"n_shared_experts": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5}
        | {"attention_bias": True, "sliding_window": 8, "max_window_layers": 1},
        ODD | ROUTED | {"n_shared_experts": 1, "tie_word_embeddings": True, "sliding_window": None},
    ),
    "exaone_moe": (
        "ExaoneMoeConfig",
        SPARSE | EXPERTS | {"num_hidden_layers": 4, "sliding_window": 8, "head_dim": 16},
        SPARSE
        | {"num_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "sliding_window": 4}
        | {"num_shared_experts": 2, "num_key_value_heads": 1, "head_dim": 16}
        | {"norm_topk_prob": False, "mlp_layer_types": ["sparse", "dense"]},
    ),
    "hunyuan_v1_moe": (
        "HunYuanMoEV1Config",
        {"num_experts": 4, "moe_topk": 2, "head_dim": 16},
        ODD | {"num_experts": 3, "moe_topk": [2, 2], "attention_bias": True, "tie_word_embeddings": True},
        {"num_experts": 4, "moe_topk": 1, "head_dim": 16}
        | {"rope_parameters": {"rope_type": "dynamic", "alpha": 50.0, "rope_theta": 1e4, "factor": 1.0}},
    ),
    "mellum": (
        "MellumConfig",
        SPARSE | EXPERTS | {"head_dim": 16, "rope_parameters": TWO_WHOLE},
        SPARSE
        | EXPERTS
        | {"head_dim": 24, "attention_bias": True, "norm_topk_prob": False}
        | {"layer_types": ["sliding_attention", "full_attention"], "mlp_layer_types": ["sparse", "dense"]}
        | {"sliding_window": 8, "rope_parameters": TWO_WHOLE},
        ODD | SPARSE | EXPERTS | {"tie_word_embeddings": True, "sliding_window": None},
    ),
    "afmoe": (
        "AfmoeConfig",
        SPARSE | EXPERTS | {"num_hidden_layers": 4, "sliding_window": 8, "head_dim": 16},
        SPARSE
        | EXPERTS
        | {"layer_types": ["full_attention", "sliding_attention"], "mup_enabled": True}
        | {"sliding_window": 4, "head_dim": 24, "num_dense_layers": 0, "route_scale": 2.5},
        SPARSE | EXPERTS | {"num_hidden_layers": 4, "sliding_window": 8, "head_dim": 16, "mup_enabled": True},
    ),
    "laguna": (
        "LagunaConfig",
        SPARSE | EXPERTS | {"head_dim": 16, "shared_expert_intermediate_size": 20},
        SPARSE
        | EXPERTS
        | {"head_dim": 24, "gating": "per-element", "moe_routed_scaling_factor": 2.5}
        | {"layer_types": ["sliding_attention", "full_attention"], "mlp_layer_types": ["sparse", "dense"]}
        | {"sliding_window": 8, "num_attention_heads_per_layer": [2, 6], "rope_parameters": TWO_ROPES},
    ),
    "mimo_v2_flash": (
        "MiMoV2FlashConfig",
        ROUTED | {"head_dim": 24, "v_head_dim": 16, "num_hidden_layers": 3, "sliding_window": 8},
        ROUTED
        | GROUPS
        | {"head_dim": 20, "v_head_dim": 12, "attention_bias": True, "norm_topk_prob": False}
        | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
        | {"mlp_layer_types": ["sparse"] * 2, "attention_value_scale": None, "rope_parameters": TWO_ROPES},
        ROUTED
        | {"head_dim": 20, "v_head_dim": 20, "tie_word_embeddings": True, "num_key_value_heads": 1}
        | {"layer_types": ["sliding_attention"] * 2, "sliding_window": 8, "routed_scaling_factor": 2.5},
    ),
    "hy_v3": (
        "HYV3Config",
        SPARSE | EXPERTS | {"head_dim": 16},
        ODD | SPARSE | EXPERTS | {"attention_bias": True, "num_shared_experts": 2, "num_hidden_layers": 3},
    ),
    "solar_open": (
        "SolarOpenConfig",
        ROUTED | {"head_dim": 16},
        ODD | ROUTED | GROUPS | {"attention_bias": True, "n_shared_experts": 2, "norm_topk_prob": False},
    ),
    "sarvam_moe": (
        "SarvamMoEConfig",
        ROUTED | {"head_dim": 16},
        ODD | ROUTED | GROUPS | {"attention_bias": True, "n_shared_experts": 2, "norm_topk_prob": False},
        ROUTED
        | {"head_dim": 32, "use_qk_norm": False, "first_k_dense_replace": 0}
        | {"tie_word_embeddings": True},
    ),
    "sarvam_mla": (
        "SarvamMLAConfig",
        LATENT | ROUTED,
        LATENT | ROUTED | GROUPS | {"q_lora_rank": 20, "n_shared_experts": 2},
        LATENT | ROUTED | {"rope_interleave": False, "norm_topk_prob": False, "first_k_dense_replace": 0},
    ),
    "youtu": (
        "YoutuConfig",
        LATENT | {"q_lora_rank": 20, "pad_token_id": None},  # whose row transformers sets to 0 as it loads
        LATENT | {"q_lora_rank": None, "tie_word_embeddings": False, "rope_parameters": YARN},
    ),
    "hyperclovax": (
        "HyperCLOVAXConfig",
        {},
        MULTIPLIED | BIASED | {"logits_scaling": 0.25, "head_dim": 24, "tie_word_embeddings": True},
        MULTIPLIED | {"use_post_norm": False, "num_key_value_heads": 1, "rope_parameters": LLAMA3},
    ),
    "ernie4_5_moe": (
        "Ernie4_5_MoeConfig",
        SPARSE | ERNIE,
        SPARSE
        | ERNIE
        | {"num_hidden_layers": 5, "moe_layer_interval": 2, "moe_layer_end_index": 3}
        | {"moe_num_shared_experts": 1, "tie_word_embeddings": False},
        SPARSE
        | {"moe_num_experts": 3, "moe_k": 1, "moe_layer_start_index": 0, "head_dim": 24}
        | {"num_key_value_heads": 1, "moe_num_shared_experts": 0},
    ),
    "aria_text": (
        "AriaTextConfig",
        {"moe_num_experts": 4},
        {"moe_num_experts": 3, "moe_topk": 1, "moe_num_shared_experts": 1, "attention_bias": True},
    ),
    "persimmon": (
        "PersimmonConfig",
        {},
        {"qk_layernorm": False, "tie_word_embeddings": True, "num_attention_heads": 2},
    ),
    "cohere2_moe": (
        "Cohere2MoeConfig",
        EXPERTS | {"head_dim": 16, "num_hidden_layers": 5, "sliding_window": 8},
        EXPERTS
        | {"head_dim": 24, "num_shared_experts": 2, "rms_norm_eps": 1e-5, "attention_bias": True}
        | {"mlp_layer_types": ["dense", "sparse"], "layer_types": ["full_attention"] * 2}
        | {"prefix_dense_intermediate_size": 40, "expert_selection_fn": "sigmoid"},
        ODD
        | EXPERTS
        | {"num_shared_experts": 1, "shared_expert_combination_strategy": "sum"}
        | {"expert_selection_fn": "sigmoid", "norm_topk_prob": False, "tie_word_embeddings": False}
        | {"mlp_layer_types": ["dense", "sparse"], "layer_types": ["full_attention", "sliding_attention"]}
        | {"prefix_dense_sliding_window_pattern": 2, "logit_scale": 0.5, "sliding_window": 4}
        | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e3}},
    ),
    "bitnet": (
        "BitNetConfig",
        {},
        {"attention_bias": True, "tie_word_embeddings": True, "num_key_value_heads": 1},
        MHA | {"hidden_act": "silu", "rms_norm_eps": 1e-3, "tie_word_embeddings": True},
    ),
    "phimoe": (
        "PhimoeConfig",
        {"num_local_experts": 4},
        {"num_local_experts": 3, "lm_head_bias": True, "attention_bias": True, "router_jitter_noise": 0.2}
        | {"sliding_window": 8},
        {"num_local_experts": 4, "rope_parameters": MSCALED, "original_max_position_embeddings": 64}
        | {"tie_word_embeddings": True, "router_jitter_noise": 0.0},
    ),
    "xglm": (
        "XGLMConfig",
        XGLM,
        XGLM | {"scale_embedding": False, "tie_word_embeddings": False, "activation_function": "relu"},
    ),
    "biogpt": (
        "BioGptConfig",
        {},
        {"scale_embedding": False, "tie_word_embeddings": False, "hidden_act": "relu"},
    ),
    "gpt_neox_japanese": (
        "GPTNeoXJapaneseConfig",
        {"num_hidden_layers": 3},
        {"intermediate_multiple_size": 2, "hidden_act": "relu"},
        {"num_attention_heads": 2, "rope_parameters": LLAMA3, "layer_norm_eps": 1e-3},
    ),
}
MORE_IN_GGUF = re.findall(
    r"\S+",
    """
    olmoe-1 nemotron-1 glm-1 mpt-1 mpt-2 exaone-1 exaone-2 exaone-3 internlm3-1 internlm3-2
    iquestcoder-1 iquestcoder-2 jais2-1
    ministral-3 cwm-3 granitemoeshared-1 granitemoeshared-2 granitemoeshared-3 dots1-1 dots1-3
    hunyuan_v1_moe-1 mellum-1 mellum-3
    ernie4_5_moe-1 ernie4_5_moe-3 sarvam_mla-1 sarvam_mla-2 aria_text-1 aria_text-2
    hy_v3-1 afmoe-3 exaone_moe-1 bitnet-3 hyperclovax-3 sarvam_moe-1 sarvam_moe-3 solar_open-1
    """,
)
UNPACKED = {"laguna": "its gates are softplus", "bitnet": "sub_norm attention has no kernel"}
UNPACKED |= {"phimoe": "its router is SparseMixer", "xglm": "sinusoids are added"}
UNPACKED |= dict.fromkeys(("mimo_v2_flash-1", "mimo_v2_flash-3"), "its values are scaled")
EDITED = ("cohere2_moe-3", "mpt-2")  # key by key (test_config_keys.py)
UNKNOWN = {  # keys of tiny.SIZES that these configs have not, or call otherwise
    "GPTNeoConfig": ("num_key_value_heads",),
    "PersimmonConfig": ("num_key_value_heads",),
    "BioGptConfig": ("num_key_value_heads",),
    "GPTNeoXJapaneseConfig": ("num_key_value_heads", "intermediate_size"),
    "XGLMConfig": (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    ),
    "SolarOpenConfig": ("intermediate_size",),
    "MptConfig": (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
    ),
}
