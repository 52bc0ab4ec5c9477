"""A model of each family with several keys moved at once, written as GGUF and opened by llama.cpp.

``python -m scripts.check.perturbed_gguf`` moves every key of every family by itself.
"""

from pathlib import Path
from typing import Any

import pytest

from cutaway.errors import UserError
from cutaway.weights import load, save
from tests.parity import perturbed
from tests.parity.perturbed import POSITIONS

FAMILIES = sorted(perturbed.bases())
GROWING = POSITIONS["yarn"] | {"llama_4_scaling_beta": 0.3}
NEAR = {"rope_type": "default", "rope_theta": 1e4}
# What llama.cpp once computed otherwise, silently, and is now written so that it agrees.
AGREES: dict[str, tuple[str, dict[str, Any]]] = {
    "the scale of angles": ("llama", {"rope_parameters": POSITIONS["yarn attention"]}),
    "two mscale numbers": ("llama", {"rope_parameters": POSITIONS["yarn mscale"]}),
    "a scale beside growing queries": (
        "ministral3-1",
        {"rope_parameters": GROWING | {"attention_factor": 1.3}},
    ),
    "turns that are read": ("ministral3-1", {"rope_parameters": GROWING | {"beta_slow": 0.3}}),
    "turns of a llama, which is a mistral3 too": ("llama", {"rope_parameters": POSITIONS["yarn slow"]}),
    "DeepSeek's mscales": ("deepseek_v3-1", {"rope_parameters": POSITIONS["yarn mscale"]}),
    "DeepSeek-V3.2's mscales": ("deepseek_v32-4", {"rope_parameters": POSITIONS["yarn mscale"]}),
    "the eps of latents": ("glm4_moe_lite-1", {"rms_norm_eps": 0.05}),
    "the eps of a dense model's latents": ("minicpm3-1", {"rms_norm_eps": 0.05}),
    "all groups": ("deepseek_v3-1", {"topk_group": 4}),
    "a window over the whole context": ("phi3-1", {"sliding_window": 128}),
    "no bound of logits": ("gemma4-1", {"final_logit_softcapping": None}),
}
# And what it computes otherwise, or does not open, whatever the file says.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "turns": ("qwen2", {"rope_parameters": POSITIONS["yarn slow"]}, "YaRN of beta_slow 0.3 is not supported"),
    "a short original": (
        "starcoder2-3",
        {"rope_parameters": POSITIONS["yarn"] | {"original_max_position_embeddings": 1}},
        "an original context of 1 tokens, too short",
    ),
    "global angles": (
        "gemma3",
        {
            "rope_parameters": {
                "full_attention": POSITIONS["yarn attention"],
                "sliding_attention": NEAR,
            }
        },
        "scales the angles of global layers alone",
    ),
    "linear latents": ("deepseek_v3-1", {"rope_parameters": POSITIONS["linear"]}, "linear scaling of latent"),
    "divisors": (
        "smollm3-1",
        {"rope_parameters": POSITIONS["llama3"]},
        "smollm3 does not have this scaling of rotary",
    ),
    "divisors beside convolutions": (
        "lfm2_moe-1",
        {"rope_parameters": POSITIONS["llama3"]},
        "this scaling of",
    ),
    "unit vectors": ("qwen3_5-4", {"rms_norm_eps": 0.05}, "eps of 0.05 is not supported in GGUF"),
    "unit vectors of Kimi": (
        "kimi_linear-4",
        {"rms_norm_eps": 1e-3},
        "norms' eps of 0.001 in a model of linear layers",
    ),
    "scores without a bound": (
        "gemma2-1",
        {"attn_logit_softcapping": None},
        "gemma2 always has a soft cap of scores of 50",
    ),
    "no shared expert": ("glm4_moe-1", {"n_shared_experts": 0}, "mixture without shared experts"),
    "wide heads": ("cohere2-1", {"head_dim": 32}, "heads that are not as wide together as the model"),
    "a tied head": ("apertus-1", {"tie_word_embeddings": True}, "the embedding table as the head is not"),
    "a window": ("phi3-1", {}, "a window is not supported in GGUF"),
    "no window": ("gpt_oss-4", {"layer_types": ["full_attention"] * 2}, "a model without a window"),
}


def case_of(name: str, edit: dict[str, Any]) -> perturbed.Case:
    """A tiny case with some keys moved."""
    base = next(base for bases in perturbed.bases().values() for base in bases if base.case == name)
    family, config = perturbed.read(base.data | edit)
    return perturbed.Case(f"{name}: {edit}", family.name, config)


@pytest.mark.parametrize("what", AGREES)
def test_what_llama_cpp_takes_for_granted_is_written_another_way(what: str, tmp_path: Path) -> None:
    """And read again, the file is the same function."""
    case = case_of(*AGREES[what])
    found = perturbed.outcome(case, tmp_path)
    assert found.what == "agrees", found
    again = load.read_checkpoint(tmp_path / "model.gguf")
    ids = list(range(2, 42))
    ours = perturbed.checkpoint_of(case.family, case.config, 0)
    assert abs(perturbed.ours(again, ids) - perturbed.ours(ours, ids)).max() < 1e-4


@pytest.mark.parametrize("what", REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused(what: str, tmp_path: Path) -> None:
    name, edit, sentence = REFUSED[what]
    case = case_of(name, edit)
    with pytest.raises(UserError, match=f"cannot be written as GGUF: .*{sentence}"):
        save.write_checkpoint(tmp_path / "model.gguf", perturbed.checkpoint_of(case.family, case.config, 0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_moved_together_are_what_llama_cpp_computes(family: str, tmp_path: Path) -> None:
    case = perturbed.together(family, tmp_path)
    assert case is not None, "no case of this family is written as GGUF: give it one, or no names in GGUF"
    found = perturbed.outcome(case, tmp_path)
    assert found.what == "agrees", f"{case.name}: {found.what}, {found.detail}"
