"""Tiny random models of every family, made by transformers, with every weight moved off the value it starts
at.

Norms start at one and biases at zero, which hides half of all mistakes: nothing here keeps its start.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.weights.load import Checkpoint
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
UNOPENED = {"qwen2-head", "qwen2-moe-head", "qwen2-moe-tied", "qwen3-bias", "gemma3-bias"}
NOT_IN_GGUF = {  # llama.cpp has no words for what they do, or does not open them
    *(UNOPENED - {"qwen2-head"}),  # which is written as the llama that it equals
    "mistral",
    "qwen2-window",
    "gemma3-scaled",
    "mixtral-window",
    "qwen2-moe-mixed",
    "qwen3-moe-mixed",
}
IDS = torch.randint(2, VOCAB, (2, 40), generator=torch.Generator().manual_seed(1))


@cache
def model(case: str) -> Any:
    """The case's model, in transformers."""
    name, own = CASES[case]
    config = getattr(transformers, name)(**(own if name == "GPT2Config" else SIZES | own))
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return made


def theirs(model: Any) -> torch.Tensor:
    """Transformers' logits of ``IDS``, [b t v]."""
    with torch.no_grad():
        return model(IDS).logits


def reopened(folder: Path) -> torch.Tensor:
    """What transformers makes of a folder: its logits of ``IDS``, and every weight must have been there."""
    opened, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    return theirs(opened.eval())


def ours(checkpoint: Checkpoint, dtype: str = "float32") -> torch.Tensor:
    """Cutaway's logits of ``IDS``, [b t v]."""
    from cutaway.weights.build import decoder

    with torch.no_grad():
        return decoder(checkpoint, dtype)(IDS, torch.arange(IDS.shape[1]).expand(IDS.shape))


def worded(checkpoint: Checkpoint) -> Checkpoint:
    """The same with a vocabulary of one-letter tokens, which llama.cpp wants to see."""
    return replace(checkpoint, metadata=WORDS)
