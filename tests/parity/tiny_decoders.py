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

MORE: dict[str, tuple[str, *tuple[dict[str, Any], ...]]] = {
    "olmoe": (
        "OlmoeConfig",
        EXPERTS | MHA,
        EXPERTS | {"norm_topk_prob": True, "attention_bias": True, "num_experts_per_tok": 3},
        {"num_experts": 3, "num_experts_per_tok": 1, "tie_word_embeddings": True, "rope_parameters": YARN},
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
        {"head_dim": 32, "partial_rotary_factor": 0.25, "rope_parameters": LLAMA3},
    ),
    "gptj": (
        "GPTJConfig",
        GPTJ,
        GPTJ | {"n_inner": 80, "rotary_dim": 16, "activation_function": "gelu"},
        GPTJ | {"n_head": 3, "n_embd": 48, "rotary_dim": 4, "layer_norm_epsilon": 1e-3},
    ),
    "codegen": (
        "CodeGenConfig",
        GPTJ,
        GPTJ | {"n_head": 2, "n_inner": 80, "rotary_dim": 16},
        GPTJ | {"n_head": 3, "n_embd": 48, "rotary_dim": 4, "activation_function": "relu"},
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
        {"head_dim": None, "rope_parameters": LLAMA3},
    ),
    "iquestcoder": (
        "IQuestCoderConfig",
        {"head_dim": 16},
        BIASED | {"head_dim": 24, "tie_word_embeddings": True},
        {"head_dim": None, "num_key_value_heads": 1},
    ),
    "jais2": (
        "Jais2Config",
        {},
        {"attention_bias": False, "mlp_bias": False, "num_key_value_heads": 1, "rope_parameters": LLAMA3},
        {"tie_word_embeddings": True, "head_dim": 24, "hidden_act": "silu"},
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
        {"num_experts": 3, "num_experts_per_tok": 1, "rope_parameters": YARN, "num_key_value_heads": 1},
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
        MULTIPLIED
        | {"num_local_experts": 4, "tie_word_embeddings": True, "rope_parameters": YARN}
        | {"shared_intermediate_size": 40, "layer_types": ["sliding_attention"] * 2, "sliding_window": 8},
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
        ODD
        | SPARSE
        | EXPERTS
        | {"sliding_window": 4, "layer_types": ["full_attention"] * 2}
        | {"first_k_dense_replace": 0, "tie_word_embeddings": True},
    ),
    "hunyuan_v1_moe": (
        "HunYuanMoEV1Config",
        {"num_experts": 4, "moe_topk": 2, "head_dim": 16},
        ODD | {"num_experts": 3, "moe_topk": [2, 2], "attention_bias": True, "tie_word_embeddings": True},
        {"num_experts": 4, "moe_topk": 1, "head_dim": 16}
        | {"rope_parameters": {"rope_type": "dynamic", "alpha": 50.0, "rope_theta": 1e4, "factor": 1.0}},
    ),
}
MORE_IN_GGUF = re.findall(
    r"\S+",
    """
    olmoe-1 nemotron-1 glm-1 mpt-1 mpt-2 exaone-1 exaone-2 exaone-3 internlm3-1 internlm3-2 internlm3-3
    iquestcoder-1 iquestcoder-2 iquestcoder-3 jais2-1
    ministral-3 cwm-3 granitemoeshared-1 granitemoeshared-2 granitemoeshared-3 dots1-1 dots1-3 hunyuan_v1_moe-1
    """,
)
UNKNOWN = {  # keys of tiny.SIZES that these configs have not, or call otherwise
    "GPTNeoConfig": ("num_key_value_heads",),
    "MptConfig": (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
    ),
}
