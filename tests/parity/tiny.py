"""Tiny random models of every family, made by transformers, with every weight moved off the value it starts
at.

Norms start at one and biases at zero, which hides half of all mistakes: nothing here keeps its start.
"""

import copy
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.hooks import Listener, tracing
from cutaway.weights.checkpoint import Checkpoint
from tests.parity import tiny_decoders, tiny_recurrent
from tests.parity.words import VOCAB, WORDS

transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
WITHOUT = ("intermediate_size", "num_key_value_heads")
UNKNOWN = {  # which these have not, or call otherwise
    "FalconConfig": WITHOUT,
    "OPTConfig": WITHOUT,
    "Mamba2Config": (*WITHOUT, "num_attention_heads"),
}
ALONE = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")  # of GPT-2's kin
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA_POSITIONS = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8, "rope_parameters": GEMMA_POSITIONS}
QWEN_MOE = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-mha": ("LlamaConfig", {"num_key_value_heads": 4}),
    "llama-mqa-bias-tied": (
        "LlamaConfig",
        {
            "num_key_value_heads": 1,
            "head_dim": 32,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "llama-linear": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "llama3": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "mistral": ("MistralConfig", {"sliding_window": 8}),
    "mistral-no-window": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2-window": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral-window": ("MixtralConfig", {"num_local_experts": 3, "sliding_window": 8}),
    "qwen2-moe": ("Qwen2MoeConfig", QWEN_MOE | {"shared_expert_intermediate_size": 48}),
    "qwen2-moe-mixed": (
        "Qwen2MoeConfig",
        QWEN_MOE
        | {
            "shared_expert_intermediate_size": 48,
            "norm_topk_prob": True,
            "qkv_bias": False,
            "mlp_only_layers": [1],
        },
    ),
    "qwen3-moe": ("Qwen3MoeConfig", QWEN_MOE | {"head_dim": 32, "norm_topk_prob": True}),
    "qwen3-moe-mixed": (
        "Qwen3MoeConfig",
        QWEN_MOE | {"num_hidden_layers": 3, "decoder_sparse_step": 2, "attention_bias": True},
    ),
    "gemma3": ("Gemma3TextConfig", GEMMA | {"num_hidden_layers": 7}),
    "gemma3-odd": (
        "Gemma3TextConfig",
        GEMMA | {"layer_types": ["full_attention", "sliding_attention"], "final_logit_softcapping": 3.0},
    ),
    "gemma3-scaled": ("Gemma3TextConfig", GEMMA | {"query_pre_attn_scalar": 20}),
    "qwen2-head": ("Qwen2Config", {"head_dim": 32}),
    "qwen2-moe-head": ("Qwen2MoeConfig", QWEN_MOE | {"head_dim": 32}),
    "qwen2-moe-tied": ("Qwen2MoeConfig", QWEN_MOE | {"tie_word_embeddings": True}),
    "qwen3-bias": ("Qwen3Config", {"head_dim": 32, "attention_bias": True}),
    "gemma3-bias": ("Gemma3TextConfig", GEMMA | {"attention_bias": True}),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": VOCAB, "n_positions": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "eos_token_id": 1},
    ),
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
ORIGINAL = "original_max_position_embeddings"
LONG = {"rope_type": "longrope", "original_max_position_embeddings": 64}
LONG |= {"short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.5], "long_factor": [1.0, 2.0, 3.0, 5.0, 7.0, 9.0]}
ODD = {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48, "head_dim": 20}
MINISTRAL = {"rope_parameters": YARN | {"llama_4_scaling_beta": 0.3, "mscale": 1.0, "mscale_all_dim": 1.0}}
OLMO3_GGUF = {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
OLMO3 = {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 1e3}}
MULTIPLIED = {"embedding_multiplier": 6.0, "residual_multiplier": 0.3, "attention_multiplier": 0.1}
LLLG = ["sliding_attention"] * 3 + ["full_attention"]
MORE: dict[str, tuple[str, *tuple[dict[str, Any], ...]]] = {  # three configs of each further family
    "gemma": ("GemmaConfig", {"head_dim": 16}, ODD | {"attention_bias": True}, {"rope_parameters": LLAMA3}),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8},
        ODD | {"sliding_window": 8, "attn_logit_softcapping": None, "final_logit_softcapping": 4.0},
        {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4, "attention_bias": True},
    ),
    "phi3": (
        "Phi3Config",
        {"sliding_window": 8},
        {"partial_rotary_factor": 0.75, "rope_parameters": LONG | {ORIGINAL: 256}, ORIGINAL: 256}
        | {"max_position_embeddings": 512},
        {"tie_word_embeddings": True, "num_key_value_heads": 4, "original_max_position_embeddings": 16}
        | {"partial_rotary_factor": 0.75, "rope_parameters": LONG | {"attention_factor": 1.2}},
    ),
    "phi": (
        "PhiConfig",
        {},
        {"qk_layernorm": True},
        {"partial_rotary_factor": 0.25, "num_key_value_heads": 4, "qk_layernorm": True},
    ),
    "olmo": (
        "OlmoConfig",
        {"clip_qkv": 0.5},
        {"attention_bias": True, "tie_word_embeddings": True},
        {"num_key_value_heads": 1, "rope_parameters": LLAMA3},
    ),
    "olmo2": (
        "Olmo2Config",
        {},
        {"attention_bias": True},
        {"tie_word_embeddings": True, "rope_parameters": YARN},
    ),
    "olmo3": (
        "Olmo3Config",
        {"num_hidden_layers": 4, "sliding_window": 8, "rope_parameters": OLMO3},
        {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4},
        {"layer_types": ["full_attention"] * 2, "tie_word_embeddings": True, "attention_bias": True},
        {"num_hidden_layers": 4, "sliding_window": 8, "rope_parameters": OLMO3_GGUF},
    ),
    "smollm3": (
        "SmolLM3Config",
        {"num_hidden_layers": 4},
        {"no_rope_layers": [0, 1], "attention_bias": True, "rope_parameters": YARN},
        {"tie_word_embeddings": False, "num_key_value_heads": 1},
    ),
    "granite": (
        "GraniteConfig",
        MULTIPLIED | {"logits_scaling": 8.0},
        MULTIPLIED | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        {"num_key_value_heads": 1, "logits_scaling": 3.0, "rope_parameters": LLAMA3},
    ),
    "glm4": (
        "Glm4Config",
        {"head_dim": 16},
        ODD | {"attention_bias": False, "tie_word_embeddings": True},
        {"head_dim": 32, "partial_rotary_factor": 0.25},
    ),
    "ministral3": (
        "Ministral3Config",
        MINISTRAL | {"head_dim": 16},
        MINISTRAL | ODD | {"sliding_window": 8},
        MINISTRAL | {"tie_word_embeddings": True, "head_dim": 24},
    ),
    "seed_oss": (
        "SeedOssConfig",
        {"head_dim": 24},
        ODD | {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True, "head_dim": 16, "rope_parameters": YARN},
    ),
    "arcee": (
        "ArceeConfig",
        {},
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        {"head_dim": 24, "rope_parameters": YARN},
    ),
    "starcoder2": (
        "Starcoder2Config",
        {"sliding_window": 8},
        {"use_bias": False, "tie_word_embeddings": False},
        {"num_key_value_heads": 4, "rope_parameters": YARN},
    ),
    "stablelm": (
        "StableLmConfig",
        {"partial_rotary_factor": 0.5},
        {"use_qkv_bias": True, "use_parallel_residual": True},
        {"partial_rotary_factor": 1.0, "tie_word_embeddings": True},
    ),
    "cohere": (
        "CohereConfig",
        {},
        {"use_qk_norm": True, "attention_bias": True},
        {"logit_scale": 0.5, "tie_word_embeddings": False, "num_key_value_heads": 1},
    ),
    "cohere2": (
        "Cohere2Config",
        {"num_hidden_layers": 4, "sliding_window": 8},
        {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4, "attention_bias": True},
        {"logit_scale": 1.5, "sliding_window": 8, "tie_word_embeddings": False},
    ),
    "exaone4": (
        "Exaone4Config",
        {"num_hidden_layers": 4, "sliding_window": 8},
        {"sliding_window": None, "layer_types": ["full_attention"] * 2, "tie_word_embeddings": True},
        {"sliding_window": 4, "layer_types": ["full_attention"] * 2},
        ODD | {"sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "ernie4_5": (
        "Ernie4_5Config",
        {"head_dim": 16},
        ODD | {"use_bias": True},
        {"tie_word_embeddings": False},
    ),
    "hunyuan_v1_dense": (
        "HunYuanDenseV1Config",
        {"head_dim": 16},
        ODD | {"attention_bias": True, "tie_word_embeddings": True},
        {
            "head_dim": 16,
            "rope_parameters": {"rope_type": "dynamic", "alpha": 50.0, "rope_theta": 1e4, "factor": 1.0},
        },
    ),
    "apertus": (
        "ApertusConfig",
        {},
        {"attention_bias": True, "tie_word_embeddings": True},
        {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    ),
    "helium": (
        "HeliumConfig",
        {"head_dim": 16},
        {"head_dim": 16, "attention_bias": True, "mlp_bias": True},
        {"head_dim": 16, "tie_word_embeddings": True, "num_key_value_heads": 1},
    ),
    "nanochat": (
        "NanoChatConfig",
        {},
        {"attention_bias": True, "final_logit_softcapping": None}
        | {"rope_parameters": YARN | {"attention_factor": 1.3}},
        {"num_key_value_heads": 1, "tie_word_embeddings": True, "final_logit_softcapping": 3.0},
    ),
}
SPARSE = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
SHARED = SPARSE | {"num_experts": 4, "shared_expert_intermediate_size": 20}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 20,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
}
LATENT |= {"num_key_value_heads": 4}
SHARPER = YARN | {"mscale": 0.7, "mscale_all_dim": 1.0}
GROUPED = SPARSE | {"n_routed_experts": 8, "n_group": 4, "topk_group": 2}
HYBRID = {"head_dim": 32, "linear_key_head_dim": 16, "linear_value_head_dim": 12, "linear_num_key_heads": 2}
HYBRID |= {"linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"]}
MORE |= {
    "glm4_moe": (
        "Glm4MoeConfig",
        SPARSE | {"n_routed_experts": 4, "use_qk_norm": True, "attention_bias": True},
        GROUPED | {"routed_scaling_factor": 2.5, "head_dim": 24, "n_shared_experts": 2},
        SPARSE | {"n_routed_experts": 4, "norm_topk_prob": False, "first_k_dense_replace": 0},
    ),
    "minimax_m2": (
        "MiniMaxM2Config",
        {"num_experts_per_tok": 2, "num_local_experts": 4, "head_dim": 16},
        {"num_experts_per_tok": 3, "num_local_experts": 4, "head_dim": 32, "partial_rotary_factor": 0.5},
        ODD | {"num_experts_per_tok": 1, "num_local_experts": 3, "tie_word_embeddings": True},
    ),
    "granitemoe": (
        "GraniteMoeConfig",
        MULTIPLIED | {"num_local_experts": 4, "logits_scaling": 6.0},
        {"num_local_experts": 3, "num_experts_per_tok": 1, "attention_bias": True},
        MULTIPLIED | {"num_local_experts": 4, "num_experts_per_tok": 3, "tie_word_embeddings": True},
    ),
    "gpt_oss": (
        "GptOssConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 8}
        | {"rope_parameters": YARN | {"truncate": False, "rope_theta": 100.0} | {ORIGINAL: 64}},
        {"num_local_experts": 3, "num_experts_per_tok": 1, "head_dim": 24, "swiglu_limit": 0.5}
        | {"rope_parameters": YARN, "layer_types": ["full_attention"] * 2},
        {"num_local_experts": 4, "num_experts_per_tok": 3, "head_dim": 16, "attention_bias": False}
        | {"rope_parameters": YARN, "tie_word_embeddings": True},
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 8}
        | {"rope_parameters": YARN, "num_key_value_heads": 1},
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        LATENT | GROUPED | {"first_k_dense_replace": 1},
        LATENT | GROUPED | {"first_k_dense_replace": 0, "q_lora_rank": None, "rope_parameters": SHARPER},
        LATENT | GROUPED | {"first_k_dense_replace": 1, "rope_interleave": False},
        LATENT
        | GROUPED
        | {"first_k_dense_replace": 1, "q_lora_rank": None, "norm_topk_prob": False}
        | {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.7}},
    ),
    "deepseek_v2": (
        "DeepseekV2Config",
        LATENT | SPARSE | {"n_routed_experts": 4, "first_k_dense_replace": 1},
        LATENT | GROUPED | {"topk_method": "group_limited_greedy", "routed_scaling_factor": 3.0},
        LATENT | SPARSE | {"n_routed_experts": 4, "q_lora_rank": None, "rope_parameters": SHARPER},
    ),
    "glm4_moe_lite": (
        "Glm4MoeLiteConfig",
        LATENT | SPARSE | {"n_routed_experts": 4},
        LATENT | GROUPED | {"mlp_layer_types": ["sparse", "dense"], "rope_interleave": False},
        LATENT | SPARSE | {"n_routed_experts": 4, "norm_topk_prob": False, "tie_word_embeddings": True},
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        HYBRID | SHARED,
        HYBRID
        | SHARED
        | {"linear_num_value_heads": 2, "norm_topk_prob": False, "partial_rotary_factor": 0.5},
        HYBRID | SHARED | {"mlp_only_layers": [0], "tie_word_embeddings": True, "num_key_value_heads": 1},
        HYBRID | SHARED | {"linear_value_head_dim": 16, "norm_topk_prob": True},
    ),
    "qwen3_5": (
        "Qwen3_5TextConfig",
        HYBRID,
        HYBRID | {"linear_num_value_heads": 2, "linear_conv_kernel_dim": 3, "tie_word_embeddings": True},
        HYBRID | {"num_hidden_layers": 4, "layer_types": None, "num_key_value_heads": 1, "head_dim": 16},
        HYBRID | {"linear_value_head_dim": 16},
    ),
    "qwen3_5_moe": (
        "Qwen3_5MoeTextConfig",
        HYBRID | SHARED,
        HYBRID | SHARED | {"linear_num_value_heads": 2, "num_experts_per_tok": 1},
        HYBRID
        | SHARED
        | {"tie_word_embeddings": True, "num_key_value_heads": 1, "partial_rotary_factor": 0.5},
        HYBRID | SHARED | {"linear_value_head_dim": 16, "linear_num_value_heads": 6},
    ),
}
BIGCODE = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
BLOOM = {"hidden_size": 48, "n_layer": 2, "n_head": 3}
MORE |= {
    "gpt_neox": (
        "GPTNeoXConfig",
        {},
        {"use_parallel_residual": False, "tie_word_embeddings": True, "attention_bias": False},
        {"rope_parameters": YARN | {"partial_rotary_factor": 0.5}, "num_attention_heads": 2},
    ),
    "gpt_bigcode": ("GPTBigCodeConfig", BIGCODE, BIGCODE | {"multi_query": False}, BIGCODE | {"n_inner": 80}),
    "falcon": (
        "FalconConfig",
        {},
        {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True, "ffn_hidden_size": 80},
        {"multi_query": False, "parallel_attn": False, "tie_word_embeddings": False},
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        {"new_decoder_architecture": True, "num_kv_heads": 2, "tie_word_embeddings": False},
    ),
    "bloom": ("BloomConfig", BLOOM, BLOOM | {"n_head": 4}, BLOOM | {"tie_word_embeddings": False}),
}
CONV_FULL = {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3}
MORE |= {
    "lfm2": (
        "Lfm2Config",
        CONV_FULL | {"block_multiple_of": 16},
        {"full_attn_idxs": [0], "conv_bias": True, "conv_L_cache": 4, "block_auto_adjust_ff_dim": False},
        ODD
        | CONV_FULL
        | {"tie_word_embeddings": False, "block_ffn_dim_multiplier": 1.5, "num_key_value_heads": 3},
    ),
}
LFM2_MOE = CONV_FULL | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MORE |= {
    "lfm2_moe": (
        "Lfm2MoeConfig",
        LFM2_MOE | {"num_dense_layers": 1},
        LFM2_MOE
        | {"num_dense_layers": 0, "use_expert_bias": False, "conv_bias": True, "routed_scaling_factor": 2.5},
        ODD | LFM2_MOE | {"num_dense_layers": 1, "norm_topk_prob": False, "tie_word_embeddings": False},
        LFM2_MOE | {"num_dense_layers": 2, "conv_L_cache": 4, "num_key_value_heads": 1},
    ),
}
MAMBA_FULL = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
MAMBA_FULL |= {
    "mamba_n_heads": 8,
    "mamba_d_state": 12,
    "shared_intermediate_size": 40,
    "num_local_experts": 4,
}
MORE |= {
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        MAMBA_FULL | {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
        MAMBA_FULL | {"num_local_experts": 0, "position_embedding_type": "rope", "mamba_n_groups": 2},
        MAMBA_FULL
        | {"mamba_conv_bias": False, "mamba_proj_bias": True, "tie_word_embeddings": True, "mamba_d_conv": 3}
        | {"num_key_value_heads": 1, "logits_scaling": 2.0},
    ),
}
MORE |= {
    "diffllama": (
        "DiffLlamaConfig",
        {"num_hidden_layers": 3},
        {"attention_bias": True, "head_dim": 24, "tie_word_embeddings": True},
        {"num_key_value_heads": 4, "rope_parameters": LLAMA3},
    ),
}
DENSE_LATENT = {
    name: size for name, size in LATENT.items() if "expert" not in name and name != "first_k_dense_replace"
}
MORE |= {
    "minicpm3": (
        "MiniCPM3Config",
        DENSE_LATENT,
        DENSE_LATENT
        | {"q_lora_rank": None, "scale_depth": None, "dim_model_base": 32, "mlp_bias": True}
        | {"tie_word_embeddings": False},
        DENSE_LATENT | {"v_head_dim": None, "scale_emb": 2, "dim_model_base": 48, "rope_parameters": YARN},
        DENSE_LATENT
        | {"v_head_dim": None, "tie_word_embeddings": False}
        | {
            "rope_parameters": LONG | {ORIGINAL: 16, "short_factor": [1.0] * 4, "long_factor": [1.5, 2, 4, 9]}
        },
    ),
}
BAMBA = {"num_hidden_layers": 3, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_state": 12}
MORE |= {
    "bamba": (
        "BambaConfig",
        BAMBA,
        BAMBA | {"mamba_n_groups": 2, "mlp_bias": True, "attention_bias": True, "tie_word_embeddings": True},
        BAMBA
        | {"num_key_value_heads": 1, "mamba_d_conv": 3, "mamba_proj_bias": True, "mamba_conv_bias": False}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25}},
    ),
}
GEMMA4 = {"num_hidden_layers": 4, "head_dim": 8, "global_head_dim": 16, "sliding_window": 8}
GEMMA4 |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "hidden_size": 48}
GEMMA4 |= {"hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": VOCAB}
GEMMA4_MOE = GEMMA4 | {"hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 4}
GEMMA4_MOE |= {"top_k_experts": 2, "moe_intermediate_size": 32}
MORE |= {
    "gemma4": (  # the shapes of E2B, E4B and 12B
        "Gemma4TextConfig",
        GEMMA4 | {"num_kv_shared_layers": 2, "use_double_wide_mlp": True, "num_key_value_heads": 1},
        GEMMA4
        | {"num_kv_shared_layers": 1, "final_logit_softcapping": 4.0, "tie_word_embeddings": False}
        | {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3, "attention_bias": True},
        GEMMA4
        | {"hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1}
        | {"attention_bias": True, "num_hidden_layers": 3, "layer_types": ["sliding_attention"] * 3},
        GEMMA4_MOE
        | {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
        | {"final_logit_softcapping": 4.0},
        GEMMA4_MOE
        | {"num_kv_shared_layers": 2, "use_double_wide_mlp": True, "top_k_experts": 1}
        | {"hidden_size_per_layer_input": 6, "final_logit_softcapping": 4.0},
    ),
}
STATES = {"num_heads": 6, "head_dim": 16, "hidden_size": 48, "n_groups": 2, "state_size": 8}
STATES |= {"chunk_size": 16}
MORE |= {
    "mamba2": (
        "Mamba2Config",
        STATES,
        STATES | {"use_bias": True, "use_conv_bias": False, "conv_kernel": 3, "tie_word_embeddings": True},
        STATES | {"num_heads": 4, "head_dim": 12, "expand": 1, "n_groups": 4, "num_hidden_layers": 3},
    ),
}
NEMOTRON = {"mamba_num_heads": 6, "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 8, "head_dim": 12}
NEMOTRON |= {"n_routed_experts": 4, "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 20}
NEMOTRON |= {"hidden_size": 48, "chunk_size": 16}
MORE |= {
    "nemotron_h": (
        "NemotronHConfig",
        NEMOTRON | {"hybrid_override_pattern": "ME*-M", "time_step_min": 0.5},
        NEMOTRON
        | {"hybrid_override_pattern": "M-*-", "mlp_bias": True, "use_bias": True, "use_conv_bias": False},
        NEMOTRON
        | {"hybrid_override_pattern": "MM*E", "n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5}
        | {"tie_word_embeddings": True, "num_key_value_heads": 1, "norm_topk_prob": False},
        NEMOTRON | {"hybrid_override_pattern": "M-*-M", "mlp_bias": True, "intermediate_size": 40},
        NEMOTRON | {"hybrid_override_pattern": "ME*-ME", "moe_latent_size": 16},
        NEMOTRON | {"hybrid_override_pattern": "ME*E", "moe_latent_size": 20},
    ),
}
FALCON_H1 = {"mamba_n_heads": 6, "mamba_d_ssm": 48, "mamba_d_state": 8, "hidden_size": 48}
FALCON_H1 |= {"mamba_chunk_size": 16}
MUP = {
    "embedding_multiplier": 3.0,
    "lm_head_multiplier": 0.4,
    "key_multiplier": 1.5,
    "ssm_in_multiplier": 0.7,
}
MUP |= {"ssm_out_multiplier": 1.2, "attention_in_multiplier": 0.8, "attention_out_multiplier": 0.6}
MUP |= {"ssm_multipliers": [0.3, 1.7, 2.0, 0.6, 1.4], "mlp_multipliers": [0.5, 2.0]}
MORE |= {
    "falcon_h1": (
        "FalconH1Config",
        FALCON_H1 | MUP,
        FALCON_H1 | {"mamba_rms_norm": True, "mamba_n_groups": 2, "attention_bias": True, "mlp_bias": True},
        FALCON_H1
        | MUP
        | {"mamba_rms_norm": True, "mamba_norm_before_gate": False, "projectors_bias": True, "head_dim": 20}
        | {"mamba_conv_bias": False, "tie_word_embeddings": True, "mamba_d_ssm": None, "mamba_n_heads": 8},
        FALCON_H1
        | MUP
        | {"mamba_rms_norm": True, "mamba_norm_before_gate": False, "mamba_n_groups": 3}
        | {"tie_word_embeddings": True},
    ),
}
MORE |= {
    "opt": (
        "OPTConfig",
        {"ffn_dim": 80},
        {"ffn_dim": 96, "enable_bias": False, "tie_word_embeddings": False, "activation_function": "gelu"},
        {"ffn_dim": 64, "layer_norm_elementwise_affine": False, "num_attention_heads": 2},
    ),
}
INDEXED = LATENT | {"index_n_heads": 8, "index_head_dim": 12, "index_topk": 6}
MORE |= {
    "deepseek_v32": (
        "DeepseekV32Config",
        INDEXED | GROUPED | {"first_k_dense_replace": 1},
        INDEXED | GROUPED | {"first_k_dense_replace": 0, "index_topk": 64, "rope_parameters": SHARPER},
        INDEXED
        | SPARSE
        | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "mlp_layer_types": ["sparse", "dense"]},
        INDEXED | GROUPED | {"first_k_dense_replace": 1, "index_head_dim": 64, "kv_lora_rank": 56},
    ),
}
KIMI = {name: size for name, size in LATENT.items() if name != "q_lora_rank"} | SPARSE
KIMI |= {"linear_head_dim": 12, "linear_num_heads": 3, "num_local_experts": 4, "num_hidden_layers": 3}
KIMI |= {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
MORE |= {
    "kimi_linear": (
        "KimiLinearConfig",
        KIMI,
        KIMI
        | {"q_lora_rank": 20, "linear_conv_kernel_dim": 3, "mlp_layer_types": ["sparse", "dense", "sparse"]}
        | {"num_local_experts": 8, "n_group": 4, "topk_group": 2, "n_shared_experts": 2},
        KIMI
        | {"num_hidden_layers": 5, "layer_types": None, "norm_topk_prob": False, "num_experts_per_tok": 1}
        | {"linear_head_dim": 20, "linear_num_heads": 2, "rms_norm_eps": 1e-3, "routed_scaling_factor": 1.5},
        KIMI
        | {
            "linear_num_heads": 4,
            "num_local_experts": 8,
            "n_group": 4,
            "topk_group": 2,
            "rms_norm_eps": 1e-6,
        },
    ),
}
MORE |= tiny_recurrent.MORE
UNKNOWN |= tiny_recurrent.UNKNOWN
MORE |= tiny_decoders.MORE
UNKNOWN |= tiny_decoders.UNKNOWN
CASES |= {f"{name}-{n}": (row[0], own) for name, row in MORE.items() for n, own in enumerate(row[1:], 1)}
MORE_IN_GGUF = re.findall(
    r"\S+",
    """
    gemma-1 gemma2-1 olmo-1 olmo2-1 smollm3-1 smollm3-3 granite-1 granite-2 granite-3 glm4-1 glm4-2 glm4-3
    seed_oss-1 seed_oss-2 seed_oss-3 arcee-1 arcee-3 starcoder2-3 stablelm-1 stablelm-2 cohere-1 cohere2-1
    exaone4-2 ernie4_5-1 ernie4_5-3 hunyuan_v1_dense-1 helium-1 helium-3 phi-1 granitemoe-1
    granitemoe-2 granitemoe-3 gpt_bigcode-1 gpt_bigcode-2 gpt_bigcode-3 gemma4-1
    phi3-2 phi3-3 minicpm3-1 minicpm3-4 bamba-1 gpt_neox-1 gpt_neox-3 bloom-1 bloom-2 bloom-3
    falcon-1 falcon-4 falcon-5 kimi_linear-4 deepseek_v32-4
    olmo3-4 minimax_m2-1 minimax_m2-2 glm4_moe-1 glm4_moe-3 gpt_oss-4 lfm2-1 lfm2_moe-1 lfm2_moe-4
    deepseek_v3-1 deepseek_v3-2 deepseek_v3-4 deepseek_v2-1 deepseek_v2-3 glm4_moe_lite-1 glm4_moe_lite-3
    ministral3-1 ministral3-3 mamba2-1 mamba2-3 granitemoehybrid-1
    granitemoehybrid-2 falcon_h1-1 falcon_h1-4 nemotron_h-3 nemotron_h-4
    apertus-1 apertus-3
    qwen3_next-4 qwen3_5-4 qwen3_5_moe-4
    """,
)
MORE_IN_GGUF += tiny_decoders.MORE_IN_GGUF
MORE_IN_GGUF += tiny_recurrent.MORE_IN_GGUF
# Families or cases that the runtime does not run, and why.
UNPACKED: dict[str, str] = {**tiny_recurrent.UNPACKED, **tiny_decoders.UNPACKED}
FOLDED = {"falcon_h1-1", "falcon_h1-4"}  # whose GGUF has another config, and the multipliers in its weights
SCALED = {"gemma3-scaled"}  # whose GGUF has their factor of attention scores in the queries
UNOPENED = {"qwen2-head", "qwen2-moe-head", "qwen2-moe-tied", "qwen3-bias", "gemma3-bias"}
NOT_IN_GGUF = {  # llama.cpp has no words for what they do, or does not open them
    *(UNOPENED - {"qwen2-head"}),  # which is written as the llama that it equals
    "mistral",
    "qwen2-window",
    "mixtral-window",
    "qwen2-moe-mixed",
    "qwen3-moe-mixed",
    *(case for case in CASES if case.rpartition("-")[0] in MORE and case not in {*MORE_IN_GGUF, *SCALED}),
}
IDS = torch.randint(2, VOCAB, (2, 40), generator=torch.Generator().manual_seed(1))


def perturbed(auto: Any, name: str, own: dict[str, Any]) -> Any:
    """A model of transformers' config class ``name``, every weight that is trained moved off its start."""
    torch.manual_seed(0)
    config = getattr(transformers, name)(**copy.deepcopy(own))
    made = auto.from_config(config, attn_implementation="eager").eval()
    if own.get("tie_word_embeddings") is False and hasattr(getattr(made, "lm_head", None), "weight"):
        made.lm_head.weight = torch.nn.Parameter(torch.randn_like(made.lm_head.weight) * 0.3)
    trained = [weight for weight in made.parameters() if weight.requires_grad]
    biases = [buffer for name, buffer in made.named_buffers() if name == "final_logits_bias"]
    with torch.no_grad():
        for weight in (*trained, *biases):
            weight.add_(torch.randn_like(weight) * 0.1)
    return made


@cache
def model(case: str) -> Any:
    """The case's model, in transformers, to be read only."""
    name, own = CASES[case]
    sizes = {key: SIZES[key] for key in ALONE} if "n_layer" in own else SIZES
    sizes = {key: value for key, value in sizes.items() if key not in UNKNOWN.get(name, ())}
    config = getattr(transformers, name)(**copy.deepcopy(sizes | own))
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        chosen = ("_correction_bias", "expert_bias", "layer_scalar")
        biases = [buffer for key, buffer in made.named_buffers() if key.endswith(chosen)]
        for weight in (*made.parameters(), *biases):
            weight.add_(torch.randn_like(weight) * 0.1)
    return made


def theirs(model: Any) -> torch.Tensor:
    """Transformers' logits of ``IDS``, [b t v]."""
    with torch.no_grad():
        return model(IDS).logits


@cache
def expected(case: str) -> torch.Tensor:
    """Transformers' logits of the case's model."""
    return theirs(model(case))


def reopened(folder: Path) -> torch.Tensor:
    """What transformers makes of a folder: its logits of ``IDS``, and every weight must have been there."""
    opened, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    return theirs(opened.eval())


def ours(
    checkpoint: Checkpoint,
    dtype: str = "float32",
    ids: torch.Tensor = IDS,
    edit: Mapping[str, Listener] | None = None,
) -> torch.Tensor:
    """Cutaway's logits of ``ids``, [b t v], under edits."""
    from cutaway.weights.build import decoder

    model = decoder(checkpoint, dtype)
    # Without edits as users run it: a trace takes the naive attention.
    with torch.no_grad(), tracing(model, edit=edit) if edit else nullcontext():
        return model(ids, torch.arange(ids.shape[1]).expand(ids.shape))


def worded(checkpoint: Checkpoint) -> Checkpoint:
    """The same with a vocabulary of one-letter tokens, which llama.cpp wants to see."""
    return replace(checkpoint, metadata=WORDS)
