"""The text of multimodal models has the logits of transformers' wrappers, in every layout of names."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.errors import UserError
from cutaway.weights import family_registry, load, text_types, wrappers
from cutaway.weights.fields import Fields
from tests.parity import tiny
from tests.parity import wrappers as made

EXACT = 1e-5
SCALED = ("aya_vision", "cohere2_vision", "gemma3-bounded", "granite_speech", "llava-gemma2")
SCALED += ("llava_next-granite",)  # whose transformers wrapper leaves out what scales or bounds the logits


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max())


def opened(folder: Path) -> tuple[torch.Tensor, list[str]]:
    """Cutaway's logits of a folder, and what it warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checkpoint = load.read_checkpoint(folder)
    return tiny.ours(checkpoint), [str(each.message) for each in caught]


# One of each mechanism: a layout of names, a text type of its own, a head (scripts/check/wrappers.py: all).
TAKEN = [
    "blip-2",
    "gemma4",
    "gemma4_unified",
    "glm4v",
    "glm4v_moe",
    "glm_ocr",
    "granite_docling",
    "hunyuan_vl",
    "idefics3",
    "internvl",
    "kimi_k25",
    "lfm2_vl",
    "mistral3",
    "mllama",
    "nemotron_h_omni",
    "paddleocr_vl",
    "paligemma-gemma2",
    "qwen2_5_omni_thinker",
    "qwen2_vl",
    "qwen3_5",
    "qwen3_omni_moe_thinker",
    "qwen3_vl",
    "qwen3_vl_moe",
    "shieldgemma2",
    "video_llava",
]


@pytest.mark.parametrize("case", TAKEN)
def test_a_wrappers_text_is_the_wrappers_own(case: str, tmp_path: Path) -> None:
    model = made.model(case)
    model.save_pretrained(tmp_path)
    ours, warned = opened(tmp_path)
    assert distance(ours, made.logits(model)) < EXACT
    assert bool(warned) == case.startswith("paligemma"), warned


@pytest.mark.parametrize("case", ["aya_vision", "gemma3-bounded", "llava_next-granite"])
def test_what_a_wrapper_leaves_out_is_computed_with_a_warning(case: str, tmp_path: Path) -> None:
    """The text model's own class judges: its head on the wrapper's last states."""
    model = made.model(case)
    model.save_pretrained(tmp_path)
    config = model.config.text_config
    config.tie_word_embeddings = False
    text = tiny.transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    body = model.model.language_model
    text.model.load_state_dict(getattr(body, "model", body).state_dict())
    text.lm_head.load_state_dict(model.lm_head.state_dict())
    ours, warned = opened(tmp_path)
    assert distance(ours, tiny.theirs(text)) < EXACT
    assert distance(ours, made.logits(model)) > 1e-3
    assert len(warned) == 1 and type(model).__name__ in warned[0] and "leaves out" in warned[0]


def test_the_table_of_compared_wrappers_is_what_is_compared() -> None:
    compared = {wrapper for wrapper, *_ in made.CASES.values()}
    nested = {"qwen2_5_omni", "qwen3_omni_moe"}  # whose thinker is one of them
    assert compared | nested == wrappers.COMPARED


def respelt(folder: Path, change: Callable[[str], str], config: Callable[[dict[str, Any]], None]) -> None:
    """Change the names of a folder's weights and its config."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    save_file({change(name): weight for name, weight in load_file(file).items()}, file, {"format": "pt"})
    data = json.loads((folder / "config.json").read_text())
    config(data)
    (folder / "config.json").write_text(json.dumps(data))


LAYOUTS = {  # of the text's weights, as published folders have them
    "transformers 4": ("language_model.model.", "language_model.lm_head."),
    "transformers 5": ("model.language_model.", "lm_head."),
    "Idefics": ("model.text_model.", "lm_head."),
    "Emu 3": ("text_model.model.", "text_model.lm_head."),
    "twice": ("model.language_model.model.", "lm_head."),
    "Fun-ASR": ("llm.model.", "llm.lm_head."),
    "DeepSeek-VL2": ("language.model.", "language.lm_head."),
    "a thinker": ("thinker.model.", "thinker.lm_head."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_names_is_read(layout: str, tmp_path: Path) -> None:
    model = made.model("llava")
    model.save_pretrained(tmp_path)
    body, head = LAYOUTS[layout]
    own = {"language_model.model.": body, "language_model.lm_head.": head}

    def change(name: str) -> str:
        for old, new in own.items():
            name = name.replace(old, new, 1) if name.startswith(old) else name
        return name

    def nest(data: dict[str, Any]) -> None:
        if layout == "a thinker":
            data["thinker_config"] = {"text_config": data.pop("text_config")}

    respelt(tmp_path, change, nest)
    ours, warned = opened(tmp_path)
    assert distance(ours, made.logits(model)) < EXACT and not warned


@pytest.mark.parametrize("case", ["qwen2_vl", "qwen2_5_vl", "paddleocr_vl", "hunyuan_vl"])
def test_a_config_with_the_texts_keys_beside_the_others_is_read(case: str, tmp_path: Path) -> None:
    """The published layout: ``rope_scaling`` of the type mrope, and no ``text_config``."""
    model = made.model(case)
    model.save_pretrained(tmp_path)

    def flat(data: dict[str, Any]) -> None:
        text = data.pop("text_config")
        rope = text.pop("rope_parameters")
        kind = "xdrope" if rope.pop("rope_type") == "dynamic" else "mrope"
        text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope | {"type": kind}}
        data |= {key: value for key, value in text.items() if key not in data}

    respelt(tmp_path, lambda name: name, flat)
    assert distance(opened(tmp_path)[0], made.logits(model)) < EXACT


@pytest.mark.parametrize("kind", text_types.TEXTS)
def test_what_a_text_config_leaves_out_is_its_class_s_value(kind: str) -> None:
    """transformers 4 wrote of a ``text_config`` only what differs from the values of its class."""
    own = text_types.TEXTS[kind]
    full = tiny.transformers.models.auto.CONFIG_MAPPING[kind]().to_dict() | {"model_type": kind}

    def read(data: dict[str, Any]) -> object:
        fields = Fields(wrappers._plain(data, own, "config.json"), "config.json")
        return family_registry.of_hf(fields).read(fields)

    if kind in ("glm4v_moe_text", "qwen3_omni_moe_text"):  # whose classes' own values do not fit together
        full |= {"head_dim": 64}
        assert read({"model_type": kind, "head_dim": 64}) == read(full)
    elif kind != "gemma4_unified_text":  # of whose layers transformers 5 writes every one
        full = {key: value for key, value in full.items() if key != "cross_attention_layers"}
        assert read({"model_type": kind}) == read(full)


def test_a_tied_head_is_the_wrappers_or_the_texts(tmp_path: Path) -> None:
    """transformers 5 ties by the wrapper's key, whatever the text's says; a head of its own counts."""
    from safetensors.torch import load_file, save_file

    model = made.model("internvl")
    model.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    assert data["tie_word_embeddings"] and not data["text_config"]["tie_word_embeddings"]
    plain = opened(tmp_path)[0]
    for outer, inner in ((None, None), (None, True), (False, True)):
        data["tie_word_embeddings"], data["text_config"]["tie_word_embeddings"] = outer, inner
        (tmp_path / "config.json").write_text(json.dumps(data))
        assert torch.equal(opened(tmp_path)[0], plain)
    data["text_config"]["tie_word_embeddings"] = False
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"lm_head\.weight"):
        load.read_checkpoint(tmp_path)
    data["tie_word_embeddings"] = True
    (tmp_path / "config.json").write_text(json.dumps(data))
    weights = load_file(tmp_path / "model.safetensors")
    weights["language_model.lm_head.weight"] = weights["language_model.model.embed_tokens.weight"].flip(0)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert distance(opened(tmp_path)[0], plain.flip(-1)) < EXACT


def test_experts_that_transformers_4_wrote_transposed_are_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = made.model("qwen3_vl_moe")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in [name for name in weights if "experts." in name]:
        weights[name] = weights[name].transpose(1, 2).contiguous()
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert distance(opened(tmp_path)[0], made.logits(model)) < EXACT


def test_a_wrapper_that_was_never_compared_is_named(tmp_path: Path) -> None:
    model = made.model("llava")
    model.save_pretrained(tmp_path)
    respelt(tmp_path, lambda name: name, lambda data: data.update(model_type="molmo9"))
    ours, warned = opened(tmp_path)
    assert distance(ours, made.logits(model)) < EXACT
    assert len(warned) == 1 and "molmo9" in warned[0]


def test_a_text_that_is_not_read_is_named(tmp_path: Path) -> None:
    made.model("llava").save_pretrained(tmp_path)
    respelt(
        tmp_path, lambda name: name, lambda data: data["text_config"].update(model_type="kosmos_2_text_model")
    )
    with pytest.raises(UserError, match="text_config: model_type is 'kosmos_2_text_model'"):
        load.read_checkpoint(tmp_path)
