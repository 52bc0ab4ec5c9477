"""Texts past ``max_position_embeddings``: with a longer ``context`` both engines read on as transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import cutaway
from cutaway import native
from cutaway.errors import UserError
from tests.rounding import noise

MOST, LENGTH, EXACT, HALVES = 16, 45, 1e-5, 4e-3
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": MOST}
SIZES |= {"bos_token_id": 0, "eos_token_id": 1}
ORIGINAL = {"original_max_position_embeddings": 8}
YARN = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4} | ORIGINAL
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 4.0, 9.0]}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("LlamaConfig", {}),
    "linear": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    "dynamic": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "llama3": ("LlamaConfig", {"rope_parameters": LLAMA3 | ORIGINAL | {"rope_theta": 1e4}}),
    "yarn": ("LlamaConfig", {"rope_parameters": YARN}),
    "yarn that keeps the original length": (
        "Qwen2Config",
        {"rope_parameters": YARN | {"original_max_position_embeddings": MOST}},
    ),
    "longrope": ("Phi3Config", {"rope_parameters": LONG | ORIGINAL | {"rope_theta": 1e4}, "pad_token_id": 0}),
    "windows": ("MistralConfig", {"sliding_window": 7}),
    "windows in some layers": (
        "Gemma3TextConfig",
        {"sliding_window": 7, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}
IDS = torch.randint(2, 64, (1, LENGTH), generator=torch.Generator().manual_seed(0))


def saved(name: str, own: dict[str, Any], folder: Path) -> Any:
    """A model in transformers, every weight moved, and its folder."""
    torch.manual_seed(0)
    config = getattr(transformers, name)(**SIZES | own)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("case", CASES)
def test_both_engines_read_on(case: str, tmp_path: Path) -> None:
    model = saved(*CASES[case], tmp_path)

    def theirs() -> torch.Tensor:
        with torch.no_grad():
            return model(IDS).logits[0]

    expected, within = theirs(), max(EXACT, 4 * noise(model, theirs))
    with pytest.warns(
        UserWarning, match="was made for 16 tokens, and reads 64 here: its positions go on"
    ) as warned:
        lm = cutaway.load(tmp_path, engine="pytorch", context=64)
    grows = "change as the text grows, so what it writes past their length may differ from what transformers"
    assert (grows in str(warned[0].message)) == (case in ("dynamic", "longrope"))
    found = lm.logits(IDS[0].tolist())
    assert np.abs(found - expected.numpy()).max() < within
    assert lm.config.context == lm.context == 64
    with pytest.raises(UserError, match="holds 16"):
        cutaway.load(tmp_path, engine="pytorch").logits(IDS[0].tolist())
    lm.save(tmp_path / "again")
    assert cutaway.load(tmp_path / "again").config == lm.checkpoint.config  # of 16 positions, as before
    if (
        case == "dynamic" or native.unavailable_reason() is not None
    ):  # the runtime has no kernel for it, and says so
        return
    with pytest.warns(UserWarning, match="reads 64 here"):
        runtime = cutaway.load(tmp_path, engine="runtime", context=64)
    found = runtime.logits(IDS[0].tolist())
    assert np.abs(found - expected.numpy()).max() < HALVES * float(expected.abs().max())
    state = runtime.engine.new_state()
    runtime.engine.prefill(IDS[0, :20].tolist(), state)
    assert np.array_equal(runtime.engine.prefill(IDS[0, 20:].tolist(), state), found[-1])


def test_learned_positions_have_an_end(tmp_path: Path) -> None:
    own = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": MOST}
    own |= {"bos_token_id": 0, "eos_token_id": 1}
    model = transformers.AutoModelForCausalLM.from_config(transformers.GPT2Config(**own))
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has learned a vector for each of 16 positions, and none for later"):
        cutaway.load(tmp_path, context=17)
    with pytest.raises(UserError, match="context is 0"):
        cutaway.load(tmp_path, context=0)
