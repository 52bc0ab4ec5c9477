"""Tiny random multimodal models, made by transformers, whose text is read."""

from typing import Any

import torch

from tests.parity import tiny

transformers = tiny.transformers
TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Sizes of eyes and ears, wherever a config has a key of this name.
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "embed_dim": 32,
    "depth": 1,
    "num_heads": 2,
    "mlp_dim": 32,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 16,
    "out_hidden_size": 32,
    "num_layers": 1,
    "conv_kernel_size": 3,
    "output_dim": 32,
    "mm_tokens_per_image": 4,
    "text_hidden_size": 32,
    "encoder_hidden_size": 32,
    "cross_hidden_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "base_channels": 32,
    "num_res_blocks": 1,
    "depths": [1] * 7,
    "num_filters": 2,
    "num_embeddings": 16,
    "projector_hidden_size": 32,
    "vocab_size": 96,
}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
SECTIONS = PLAIN | {"mrope_section": [2, 1, 1]}
XD = PLAIN | {"rope_type": "dynamic", "alpha": 100.0, "factor": 1.0, "mrope_section": [1] * 4}
HALF = PLAIN | {"mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}
SPLICED = {"head_dim": 8, "rope_parameters": SECTIONS | {"mrope_interleaved": True}}
LLAMA, QWEN2, QWEN3 = ("LlamaConfig", {}), ("Qwen2Config", {}), ("Qwen3Config", {"head_dim": 16})
GEMMA3 = ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 8})
GEMMA4 = {"head_dim": 16, "global_head_dim": 24, "num_kv_shared_layers": 0, "sliding_window": 8}
EYED = GEMMA4 | {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 96}
EYED |= {"final_logit_softcapping": 3.0}
COHERE2 = ("Cohere2Config", {"sliding_window": 8})
DELTA = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 16, "linear_num_key_heads": 2}
DELTA |= {"linear_key_head_dim": 16, "linear_value_head_dim": 12, "linear_num_value_heads": 4}
SPARSE = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
MOE = SPARSE | {"num_experts": 4, "shared_expert_intermediate_size": 20}
LATENT = SPARSE | {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "n_routed_experts": 4}
LATENT |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 1, "topk_group": 1}
MAMBA = {"layers_block_type": ["mamba", "attention"], "mamba_num_heads": 8, "mamba_head_dim": 8}
MAMBA |= {"ssm_state_size": 8, "n_groups": 2, "head_dim": 8, "num_hidden_layers": ...}
GRANITE = {"logits_scaling": 8.0, "embedding_multiplier": 6.0, "residual_multiplier": 0.3}
QWEN3_5 = ("Qwen3_5TextConfig", DELTA)
OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, "intermediate_size": ..., "num_key_value_heads": ...}
# Of each: the wrapper, its text's config class, and the values in which that differs from TEXT.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "aria": (
        "aria",
        "AriaTextConfig",
        {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1, "head_dim": 8}
        | {"rope_parameters": PLAIN},
    ),
    "fuyu": ("fuyu", "PersimmonConfig", {"num_key_value_heads": ...}),
    "glmga": ("glmga", "Glm4vTextConfig", {"rope_parameters": HALF}),
    "hyperclovax_vision_v2": (
        "hyperclovax_vision_v2",
        "HyperCLOVAXConfig",
        {"logits_scaling": 3.0, "attention_multiplier": 0.2},
    ),
    "instructblipvideo": ("instructblipvideo", "OPTConfig", OPT),
    "lfm3_vl": ("lfm3_vl", "Lfm3Config", {"layer_types": ["conv", "full_attention"]}),
    "aya_vision": ("aya_vision", *COHERE2),
    "cohere2_vision": ("cohere2_vision", *COHERE2),
    "blip-2": ("blip-2", "OPTConfig", OPT),
    "deepseek_vl": ("deepseek_vl", *LLAMA),
    "deepseek_vl_hybrid": ("deepseek_vl_hybrid", *LLAMA),
    "emu3": ("emu3", "Emu3TextConfig", {"rope_parameters": PLAIN}),
    "exaone4_5": ("exaone4_5", "Exaone4Config", {"sliding_window": 8}),
    "gemma3": ("gemma3", *GEMMA3),
    "gemma3-bounded": ("gemma3", GEMMA3[0], GEMMA3[1] | {"final_logit_softcapping": 2.0}),
    "gemma4": ("gemma4", "Gemma4TextConfig", EYED),
    "gemma4_unified": ("gemma4_unified", "Gemma4UnifiedTextConfig", GEMMA4),
    "glm4v": ("glm4v", "Glm4vTextConfig", {"rope_parameters": HALF}),
    "glm46v": ("glm46v", "Glm4vTextConfig", {"rope_parameters": HALF}),
    "glm4v_moe": (
        "glm4v_moe",
        "Glm4vMoeTextConfig",
        SPARSE | {"n_routed_experts": 4, "rope_parameters": HALF},
    ),
    "glm_ocr": ("glm_ocr", "GlmOcrTextConfig", {"rope_parameters": SECTIONS}),
    "glmasr": ("glmasr", *LLAMA),
    "got_ocr2": ("got_ocr2", *QWEN2),
    "granite_docling": ("granite_docling", "GraniteDoclingTextConfig", {}),
    "granite_speech": ("granite_speech", "GraniteConfig", GRANITE),
    "granite_speech_plus": ("granite_speech_plus", "GraniteConfig", {}),
    "granite4_vision": ("granite4_vision", "Granite4VisionTextConfig", {"logits_scaling": 3.0}),
    "hunyuan_vl": ("hunyuan_vl", "HunYuanVLTextConfig", {"head_dim": 8, "rope_parameters": XD}),
    "idefics2": ("idefics2", "MistralConfig", {"sliding_window": 8}),
    "idefics3": ("idefics3", *LLAMA),
    "instructblip": ("instructblip", *LLAMA),
    "internvl": ("internvl", *QWEN2),
    "internvl-qwen3": ("internvl", *QWEN3),
    "internvl-gpt_oss": (
        "internvl",
        "GptOssConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 8}
        | {"rope_parameters": PLAIN},
    ),
    "janus": ("janus", *LLAMA),
    "kimi_k25": ("kimi_k25", "DeepseekV3Config", LATENT | {"first_k_dense_replace": 1}),
    "lfm2_vl": ("lfm2_vl", "Lfm2Config", {"full_attn_idxs": [1], "block_multiple_of": 16}),
    "lighton_ocr": ("lighton_ocr", *QWEN3),
    "llama4": (
        "llama4",
        "Llama4TextConfig",
        {"head_dim": 8, "intermediate_size_mlp": 40, "num_local_experts": 4, "rope_parameters": PLAIN},
    ),
    "llava": ("llava", *LLAMA),
    "llava-mistral": ("llava", "MistralConfig", {"sliding_window": None}),
    "llava-gemma2": ("llava", "Gemma2Config", {"head_dim": 16, "sliding_window": 8}),
    "llava_next": ("llava_next", *LLAMA),
    "llava_next-qwen2": ("llava_next", *QWEN2),
    "llava_next-granite": ("llava_next", "GraniteConfig", GRANITE | {"attention_multiplier": 0.1}),
    "llava_next_video": ("llava_next_video", *LLAMA),
    "llava_onevision": ("llava_onevision", *QWEN2),
    "minicpm_ocr": ("minicpm_ocr", *QWEN3_5),
    "minicpmv4_6": ("minicpmv4_6", *QWEN3_5),
    "minicpmv4_7": ("minicpmv4_7", *QWEN3_5),
    "mistral3": ("mistral3", "MistralConfig", {"sliding_window": None}),
    "mistral3-ministral3": ("mistral3", "Ministral3Config", {"head_dim": 16}),
    "mllama": (
        "mllama",
        "MllamaTextConfig",
        {"num_hidden_layers": 4, "cross_attention_layers": [1, 2], "rope_parameters": PLAIN},
    ),
    "moss_transcribe_diarize": ("moss_transcribe_diarize", *QWEN3),
    "nemotron_h_omni": ("nemotron_h_omni", "NemotronHConfig", MAMBA),
    "omniasr": ("omniasr", *LLAMA),
    "ovis2": ("ovis2", *QWEN2),
    "paddleocr_vl": ("paddleocr_vl", "PaddleOCRTextConfig", {"head_dim": 8, "rope_parameters": SECTIONS}),
    "paligemma": ("paligemma", "GemmaConfig", {"head_dim": 16}),
    "paligemma-gemma2": ("paligemma", "Gemma2Config", {"head_dim": 16, "sliding_window": 8}),
    "pp_chart2table": ("pp_chart2table", *QWEN2),
    "qianfan_ocr": ("qianfan_ocr", *QWEN3),
    "qwen2_audio": ("qwen2_audio", *QWEN2),
    "qwen2_vl": ("qwen2_vl", "Qwen2VLTextConfig", {"rope_parameters": SECTIONS}),
    "qwen2_5_vl": ("qwen2_5_vl", "Qwen2_5_VLTextConfig", {"rope_parameters": SECTIONS}),
    "qwen2_5_omni_thinker": ("qwen2_5_omni_thinker", "Qwen2_5OmniTextConfig", {"rope_parameters": SECTIONS}),
    "qwen3_5": ("qwen3_5", *QWEN3_5),
    "qwen3_5_moe": ("qwen3_5_moe", "Qwen3_5MoeTextConfig", DELTA | MOE),
    "qwen3_asr": ("qwen3_asr", *QWEN3),
    "qwen3_omni_moe_thinker": (
        "qwen3_omni_moe_thinker",
        "Qwen3OmniMoeTextConfig",
        SPLICED | SPARSE | {"num_experts": 4},
    ),
    "qwen3_vl": ("qwen3_vl", "Qwen3VLTextConfig", SPLICED),
    "qwen3_vl_moe": ("qwen3_vl_moe", "Qwen3VLMoeTextConfig", SPLICED | SPARSE | {"num_experts": 4}),
    "shieldgemma2": ("shieldgemma2", *GEMMA3),
    "smolvlm": ("smolvlm", *LLAMA),
    "vibevoice_asr": ("vibevoice_asr", *QWEN2),
    "video_llama_3": ("video_llama_3", *QWEN2),
    "video_llava": ("video_llava", *LLAMA),
    "vipllava": ("vipllava", *LLAMA),
    "voxtral": ("voxtral", *LLAMA),
}


# What a wrapper's own config needs to be small, or at all.
OWN: dict[str, dict[str, Any]] = {
    "emu3": {"vocabulary_map": {"<image>": 1}},
    "granite4_vision": {
        "downsample_rate": "4/8",
        "deepstack_layer_map": [],
        "spatial_target_layers": [],
    },
}


def text(name: str, own: dict[str, Any]) -> Any:
    """The config of a tiny text model; an ellipsis leaves a key out."""
    given = {key: value for key, value in (TEXT | own).items() if value is not ...}
    return getattr(transformers, name)(**given)


def _shrink(config: Any) -> None:
    for key, value in SMALL.items():
        held = vars(config).get(key)
        if held is not None and isinstance(held, list | tuple | dict) == isinstance(value, list):
            setattr(config, key, value)
    for name in getattr(type(config), "sub_configs", ()):
        if (inner := getattr(config, name, None)) is not None and name != "text_config":
            _shrink(inner)


def model(case: str) -> Any:
    """The case's model, every weight moved off its start."""
    wrapper, name, own = CASES[case]
    config = transformers.models.auto.CONFIG_MAPPING[wrapper](**OWN.get(wrapper, {}))
    _shrink(config)
    config.text_config = text(name, own)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    auto = transformers.AutoModelForMultimodalLM
    made = auto.from_config(config, attn_implementation="eager").eval().float()
    if made.generation_config is not None:
        made.generation_config.eos_token_id = 2
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return made


def logits(model: Any) -> torch.Tensor:
    """The wrapper's logits of a text alone, those of its text model where it wants to see an image."""
    with torch.no_grad():
        if model.config.model_type in ("blip-2", "instructblip", "instructblipvideo", "llama4"):
            return model.language_model(tiny.IDS).logits
        return model(input_ids=tiny.IDS).logits
