"""Single values of keys that a config.json may hold: transformers' logits, or a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from cutaway.errors import UserError
from cutaway.position import rope
from cutaway.position.scaling import YaRN
from cutaway.weights import load
from tests.parity import tiny

EXACT = 1e-5
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}
UNTRUNCATED = YARN | {"truncate": False}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
LONG = {"rope_type": "longrope", "short_factor": [2.0], "long_factor": [3.0], "attention_factor": 1.3}
SAME: list[tuple[str, dict[str, Any]]] = [  # a case, and what is edited
    ("falcon-3", {"parallel_attn": None}),
    ("falcon-3", {"multi_query": None, "new_decoder_architecture": None}),
    ("lfm2-1", {"hidden_act": "gelu"}),
    ("lfm2_moe-1", {"hidden_act": "relu"}),
    ("minicpm3-4", {"rope_parameters": {"long_factor": [3.0], "short_factor": [2]}}),
    # A norm after rotation undoes what multiplies cosine and sine.
    ("nanochat-1", {"rope_parameters": LONG | {"original_max_position_embeddings": 16}}),
    # Transformers' class puts 0.5 in its place, and reads another part in rope_parameters alone.
    ("bamba-1", {"rope_parameters": None, "rope_theta": 500.0, "partial_rotary_factor": 0.25}),
    ("olmo3-1", {"rope_parameters": {"full_attention": YARN | {"truncate": True}}}),
]
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "minicpm3-4",
        {"rope_parameters": {"long_factor": [2.0] * 3}},
        "long_factor lists 3 divisors, but 4 pairs",
    ),
    ("minicpm3-4", {"rope_parameters": {"short_factor": []}}, "short_factor lists 0 divisors, but 4 pairs"),
    # In a section of one type of layers transformers does not read it.
    *(
        (case, {"rope_parameters": {kind: UNTRUNCATED}}, f"rope_parameters.{kind}.truncate is not true")
        for case, kind in (
            ("gemma3", "full_attention"),
            ("gemma3n-1", "sliding_attention"),
            ("mellum-1", "full_attention"),
            ("olmo3-1", "sliding_attention"),
        )
    ),
    ("gemma3", {"rope_scaling": UNTRUNCATED}, "rope_scaling.truncate is not true"),
    ("gpt_neox-1", {"rotary_pct": None}, "rotary_pct is null"),
    ("gpt_neox-1", {"rotary_emb_base": None}, "rotary_emb_base is null"),
    *(
        (
            case,
            {"partial_rotary_factor": 0.5, "rope_parameters": {"full_attention": PLAIN}},
            "is missing, and",
        )
        for case in ("laguna-1", "mimo_v2_flash-1")
    ),
    # Of groups that are left out transformers chooses among equal scores of 0, in no order that is defined.
    ("deepseek_v3-1", {"num_experts_per_tok": 5}, "top_k is 5, but the best groups have 4 experts"),
    ("deepseek_v2-2", {"topk_group": 1, "num_experts_per_tok": 3}, "top_k is 3, but the best groups have 2"),
]


def edited(case: str, edit: dict[str, Any], folder: Path) -> Path:
    """The case's folder, with these keys of its config.json."""
    tiny.model(case).save_pretrained(folder)
    data = json.loads((folder / "config.json").read_text())
    for key, value in edit.items():
        data[key] = {**(data.get(key) or {}), **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize(("case", "edit"), SAME, ids=lambda value: value if isinstance(value, str) else "")
def test_what_transformers_computes(case: str, edit: dict[str, Any], tmp_path: Path) -> None:
    folder = edited(case, edit, tmp_path)
    assert (tiny.ours(load.read_checkpoint(folder)) - tiny.reopened(folder)).abs().max() < EXACT


@pytest.mark.parametrize(("case", "edit", "sentence"), REFUSED)
def test_what_has_no_meaning_is_refused(
    case: str, edit: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        load.read_checkpoint(edited(case, edit, tmp_path))


def test_yarn_needs_two_pairs_to_blend_between() -> None:
    with pytest.raises(UserError, match="of which one pair has one"):
        rope.Config(2, scaling=YaRN(4.0, 16))
