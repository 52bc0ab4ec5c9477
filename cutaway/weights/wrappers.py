"""The text of multimodal models: which part of a folder it is, and what its config leaves out.

A wrapper's config.json holds the text model's as ``text_config``, or its keys beside those of its eyes and
ears. A text type that only wrappers have is a known family with other values for keys that are left out. On a
text the coordinates of an image's patch (mRoPE) are equal, so that sections of them change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.gguf import Packed
from cutaway.model.config import Decoder, Model
from cutaway.weights.family import Family
from cutaway.weights.fields import LAYERS, Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import chain, each, split, stack, transpose
from cutaway.weights.text_types import FLAT, TEXTS, Text

PARTS = ("text_config", "llm_config", "language_config")  # where wrappers keep the text model's config
NEAR = ("vision_config", "audio_config")  # beside which a flat config has the text's own keys
TIED = "tie_word_embeddings"
OF_ALL = (TIED, "quantization_config")  # keys of a wrapper that hold for its text
PREFIX = re.compile(r"(thinker\.)?(model\.)?(language_model|text_model|language|llm)\.(model\.)?")
PLAIN = re.compile(r"(thinker\.)?(model\.)?(?=(embed_tokens|layers|norm)\.)")  # where the text has no prefix
HEAD = re.compile(
    r"(thinker\.)?(model\.)?((language_model|text_model|language|llm)\.)?(model\.)?(?=(lm_head|mtp)\.)"
)
# Names that transformers writes and reads in some wrappers in place of "layers".
MISNAMED = re.compile(r"^(blocks|encoder\.layers)(?=\.\d+\.)")
SECTIONS = ("mrope_section", "mrope_interleaved", "xdrope_section")
ROPE_WORDS = {"mrope": "default", "xdrope": "dynamic"}
CROSS = "cross_attention_layers"


_GATE_UP, _DOWN = "model.layers.{n}.mlp.experts.gate_up_proj", "model.layers.{n}.mlp.experts.down_proj"
_BOTH = ("blocks.{n}.mlp.experts.{e}.gate.weight", "blocks.{n}.mlp.experts.{e}.up.weight")
# All experts of a layer in two tensors: transformers 4 wrote matrices transposed, 5 as they are.
_TRANSPOSED = (
    Rule(_GATE_UP, _BOTH, each(chain(transpose, split), 2)),
    Rule(_DOWN, "blocks.{n}.mlp.experts.{e}.down.weight", each(transpose)),
)
_FUSED = (
    Rule(_GATE_UP, _BOTH, each(split, 2)),
    Rule(_DOWN, "blocks.{n}.mlp.experts.{e}.down.weight", stack),
)
# Wrappers whose class in transformers computes what its text model's own class computes of the last states.
SCALING = ("paligemma", "gemma3n", "gemma4", "gemma4_unified", "granite4_vision", "granite_docling")
SCALING += ("hyperclovax_vision_v2",)
PREFIX_LM = "paligemma"
# Wrappers whose logits of a text were compared with Cutaway's (tests/parity/test_wrappers.py).
COMPARED = frozenset(
    re.findall(
        r"\S+",
        """
    aria aya_vision blip-2 cohere2_vision deepseek_vl deepseek_vl_hybrid emu3 exaone4_5 fuyu gemma3
    gemma4 gemma4_unified glm46v glm4v glm4v_moe glm_ocr glmasr glmga got_ocr2 granite4_vision
    granite_docling granite_speech granite_speech_plus hunyuan_vl hyperclovax_vision_v2 idefics2
    idefics3 instructblip instructblipvideo internvl janus kimi_k25 lfm2_vl lfm3_vl lighton_ocr
    llama4 llava llava_next llava_next_video llava_onevision minicpm_ocr minicpmv4_6 minicpmv4_7
    mistral3 mllama moss_transcribe_diarize nemotron_h_omni omniasr ovis2 paddleocr_vl paligemma
    pp_chart2table qianfan_ocr qwen2_5_omni qwen2_5_omni_thinker qwen2_5_vl qwen2_audio qwen2_vl
    qwen3_5 qwen3_5_moe qwen3_asr qwen3_omni_moe qwen3_omni_moe_thinker qwen3_vl qwen3_vl_moe
    shieldgemma2 smolvlm vibevoice_asr video_llama_3 video_llava vipllava voxtral
    """,
    )
)


@dataclass(frozen=True)
class Part:
    """The text of a wrapper: its config and where that is, its weights, and the names of the other parts."""

    config: dict[str, Any]
    where: str
    weights: dict[str, Packed]
    left_out: tuple[str, ...]
    wrapper: str
    named: str  # the class of the wrapper
    layout: tuple[Rule, ...]

    def rules(self, family: Family) -> tuple[Rule, ...]:
        """The names of its weights: its family's, but for those in a layout of their own."""
        others = {name for rule in self.layout for name in rule.names}
        return (*(rule for rule in family.hf if others.isdisjoint(rule.names)), *self.layout)

    def notes(self, config: Model) -> list[str]:
        """Notes where transformers' wrapper differs from its own text model, which Cutaway follows."""
        found = []
        if self.wrapper not in COMPARED:
            found.append(
                f"{self.where}: {self.wrapper} is no multimodal model that was compared with transformers: "
                "its text is read as the text model alone"
            )
        if isinstance(config, Decoder) and self.wrapper not in SCALING:
            scaled = {"its scale of the logits": config.logit_scale not in (None, 1.0)}
            scaled["its bound on the logits"] = config.softcap is not None
            found += [
                f"{self.where}: {self.named} of transformers leaves out {what}, which the text model's own "
                "class computes and Cutaway too: probabilities differ from the wrapper's"
                for what, is_there in scaled.items()
                if is_there
            ]
        if self.wrapper == PREFIX_LM:
            found.append(
                f"{self.where}: {self.named} was trained to read an image and its prompt both ways; "
                "Cutaway reads text from left to right, as its text model's own class does"
            )
        return found


def text_of(data: dict[str, Any], weights: dict[str, Packed], folder: Path) -> Part | None:
    """The text of a multimodal model, None for a model of text alone. UserError for what cannot be read."""
    where, wrapper = f"{folder / 'config.json'}", str(data.get("model_type"))
    classes = data.get("architectures")
    named = str(classes[0]) if isinstance(classes, list) and classes else wrapper
    if isinstance(inner := data.get("thinker_config"), dict):
        data, where = inner, f"{where}: thinker_config"
    key = next((key for key in PARTS if isinstance(data.get(key), dict)), None)
    if key is not None:
        own = {name: data[name] for name in OF_ALL if data.get(name) is not None}
        text, where = data[key], f"{where}: {key}"
    elif wrapper in FLAT and any(name in data for name in NEAR):
        own: dict[str, Any] = {}
        text = {name: value for name, value in data.items() if name not in NEAR}
        text["model_type"] = FLAT[wrapper]
    else:
        return None
    found, others = _weights(weights)
    own_type = TEXTS.get(str(text.get("model_type")))
    text = _plain(text, own_type, where)
    layout = _experts(text, found) if own_type and own_type.fused else ()
    if text.get(CROSS) is not None:
        text, found, crossing = _without_cross(text, found, where)
        others += crossing
    # A wrapper's class ties by its own key, older files by the text's; a head that differs counts (load.py).
    ties = [each[TIED] for each in (own, text) if each.get(TIED) is not None]
    if ties or not any(name.startswith("lm_head.") for name in found):
        own[TIED] = any(ties) if ties else True
    return Part(text | own, where, found, others, wrapper, named, layout)


def _weights(theirs: dict[str, Packed]) -> tuple[dict[str, Packed], tuple[str, ...]]:
    """The weights of the text under a text model's names, without their prefix, and the other parts."""
    layout = PREFIX if any(map(PREFIX.match, theirs)) else PLAIN
    found, others = {}, set()
    for name, packed in theirs.items():
        if inner := HEAD.match(name) or layout.match(name):
            found[MISNAMED.sub("layers", name[inner.end() :])] = packed
        else:
            others.add(".".join(name.split(".")[: 2 if name.startswith("model.") else 1]))
    return found, tuple(sorted(others))


def _experts(text: Mapping[str, Any], weights: Mapping[str, Packed]) -> tuple[Rule, ...]:
    """How experts are stored that are in two tensors: which axis is the width."""
    shapes = [packed.shape for name, packed in weights.items() if name.endswith("mlp.experts.down_proj")]
    if not shapes:
        return ()
    return _TRANSPOSED if shapes[0][-1] == text.get("hidden_size") else _FUSED


def _plain(text: Mapping[str, Any], own: Text | None, where: str) -> dict[str, Any]:
    """The config of a text model as its family reads it."""
    found = dict(text)
    if own is not None:
        found = {**own.defaults, **text, "model_type": own.family}
        for key in own.renamed.keys() & found.keys():
            found |= dict.fromkeys(own.renamed[key], found.pop(key))
    if "num_local_experts" in text and "num_experts" not in text:  # two names of one setting
        found.pop("num_experts", None)
    for key in ("rope_parameters", "rope_scaling"):
        section = found.get(key)
        if not isinstance(section, dict) or not section.keys() & set(SECTIONS):
            continue
        kept = {name: value for name, value in section.items() if name not in SECTIONS}
        for name in kept.keys() & {"type", "rope_type"}:
            kept[name] = ROPE_WORDS.get(kept[name], kept[name]) if isinstance(kept[name], str) else kept[name]
        found[key] = kept
    return found


def _without_cross(
    text: dict[str, Any], weights: dict[str, Packed], where: str
) -> tuple[dict[str, Any], dict[str, Packed], tuple[str, ...]]:
    """A text model without the layers that attend to an image (Llama 3.2), which a text passes by.

    Its embedding table has rows for the image's own ids, which have no logits.
    """
    fields = Fields(text, where)
    layers, vocab = fields.integer("num_hidden_layers", high=LAYERS), fields.integer("vocab_size")
    crossing = set(fields.indices(CROSS, layers) or ())
    number = {str(n): str(i) for i, n in enumerate(n for n in range(layers) if n not in crossing)}
    found, others = {}, []
    for name, packed in weights.items():
        head, dot, rest = name.removeprefix("layers.").partition(".")
        if not name.startswith("layers."):
            found[name] = packed
        elif head in number:
            found[f"layers.{number[head]}{dot}{rest}"] = packed
        elif head.isdecimal() and int(head) in crossing:
            others.append(f"layers.{head}")
        else:
            found[name] = packed
    if (table := found.get("embed_tokens.weight")) is not None and table.shape[:1] > (vocab,):
        found["embed_tokens.weight"] = table.rows(slice(0, vocab))
    kept = {key: value for key, value in text.items() if key != CROSS}
    return kept | {"num_hidden_layers": len(number)}, found, tuple(sorted(set(others)))
