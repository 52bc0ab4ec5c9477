"""The text models of multimodal models: the family of each type, and the defaults of its class.

transformers 4 wrote only those keys of a ``text_config`` that differ from these defaults.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Text(NamedTuple):
    """A text type: the family's word for it, and what its class means by keys that are left out.

    ``renamed``: keys that the family has under others; ``fused``: experts may be in two tensors.
    """

    family: str
    defaults: Mapping[str, Any]
    renamed: Mapping[str, tuple[str, ...]] = {}
    fused: bool = False


def _text(family: str, vocab: int, width: int, inner: int, layers: int, heads: int, **others: Any) -> Text:
    sizes = {"vocab_size": vocab, "hidden_size": width, "intermediate_size": inner}
    return Text(family, sizes | {"num_hidden_layers": layers, "num_attention_heads": heads} | others)


_VL = {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_window_layers": 80}
_OMNI = {"num_key_value_heads": 4, "rope_theta": 1e6, "tie_word_embeddings": True}
_MOE = {"moe_intermediate_size": 1408, "num_experts_per_tok": 4, "num_experts": 60}
_MOE |= {
    "norm_topk_prob": True,
    "tie_word_embeddings": True,
    "num_key_value_heads": 16,
    "rope_theta": 5e5,
    "max_position_embeddings": 128_000,
}
_GLM: dict[str, Any] = {"rms_norm_eps": 1e-5, "partial_rotary_factor": 1.0}
_GLM["head_dim"] = None  # width / heads
_GLM_OCR = {"num_key_value_heads": 8, "attention_bias": False, "max_position_embeddings": 131_072}
_GRANITE = {"embedding_multiplier": 12.0, "logits_scaling": 4.0, "residual_multiplier": 0.263}
_GRANITE |= {
    "max_position_embeddings": 32_768,
    "attention_multiplier": 1 / 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
_OPT = {"vocab_size": 50_272, "hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12}
_OPT |= {"num_attention_heads": 12, "word_embed_proj_dim": 768}
_PADDLE = {"num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": 5e5}
_PADDLE |= {"max_position_embeddings": 131_072, "tie_word_embeddings": True}
TEXTS = {
    "llama": _text("llama", 32_000, 4096, 11_008, 32, 32),
    "mistral": _text("mistral", 32_000, 4096, 14_336, 32, 32),
    "qwen2": _text("qwen2", 151_936, 4096, 22_016, 32, 32),
    "qwen3": _text("qwen3", 151_936, 4096, 22_016, 32, 32),
    "gemma": _text("gemma", 256_000, 3072, 24_576, 28, 16),
    "gemma2": _text("gemma2", 256_000, 2304, 9216, 26, 8),
    "gemma3_text": _text("gemma3_text", 262_208, 2304, 9216, 26, 8),
    "cohere": _text("cohere", 256_000, 8192, 22_528, 40, 64),
    "cohere2": _text("cohere2", 256_000, 8192, 22_528, 40, 64),
    "granite": _text("granite", 32_000, 4096, 11_008, 32, 32),
    "mllama_text_model": _text(
        "llama",
        128_256,
        4096,
        14_336,
        40,
        32,
        num_key_value_heads=8,
        rms_norm_eps=1e-5,
        rope_theta=5e5,
        max_position_embeddings=131_072,
    )._replace(renamed={"dropout": ()}),
    "emu3_text_model": _text(
        "llama",
        184_622,
        4096,
        14_336,
        32,
        32,
        num_key_value_heads=8,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        max_position_embeddings=9216,
    ),
    "qwen2_vl_text": _text("qwen2", 152_064, 8192, 29_568, 80, 64, **_VL),
    "qwen2_5_vl_text": _text("qwen2", 152_064, 8192, 29_568, 80, 64, **_VL),
    "qwen2_5_omni_text": _text("qwen2", 152_064, 3584, 18_944, 28, 28, **_OMNI),
    "qwen3_vl_text": _text(
        "qwen3", 151_936, 4096, 22_016, 32, 32, rope_theta=5e5, max_position_embeddings=128_000
    ),
    "qwen3_vl_moe_text": _text("qwen3_moe", 151_936, 2048, 5632, 24, 16, **_MOE)._replace(fused=True),
    "qwen3_omni_moe_text": _text("qwen3_moe", 3584, 2048, 18_944, 28, 28, **_OMNI, norm_topk_prob=True),
    "glm4v_text": _text("glm4", 151_552, 4096, 13_696, 40, 32, **_GLM, max_position_embeddings=32_768),
    "glm4v_moe_text": _text(
        "glm4_moe", 151_424, 4096, 10_944, 46, 96, attention_bias=True, max_position_embeddings=65_536
    ),
    "glm_ocr_text": _text("glm4", 59_392, 1024, 4096, 16, 16, **_GLM, **_GLM_OCR),
    "granite4_vision_text": _text("granite", 32_000, 4096, 11_008, 32, 32),
    "granite_docling_text": _text("granite", 133_800, 1024, 2048, 28, 16, num_key_value_heads=4, **_GRANITE),
    "hunyuan_vl_text": _text("hunyuan_v1_dense", 290_943, 4096, 11_008, 32, 32, tie_word_embeddings=True),
    "opt": Text("opt", _OPT),
    "paddleocr_vl_text": _text("llama", 103_424, 1024, 3072, 18, 16, **_PADDLE)._replace(
        renamed={"use_bias": ("attention_bias", "mlp_bias")}
    ),
}
# Wrappers whose config.json may have the text's keys beside the others, and the type of their text.
FLAT = {"qwen2_vl": "qwen2_vl_text", "qwen2_5_vl": "qwen2_5_vl_text", "paddleocr_vl": "paddleocr_vl_text"}
FLAT |= {"hunyuan_vl": "hunyuan_vl_text"}
