"""Folders of recurrent and hybrid families as their makers, or transformers, write them."""

from pathlib import Path

import torch

from cutaway.weights import load, save
from tests.parity import tiny
from tests.parity.test_families import EXACT, distance


def test_olmo_hybrids_convolutions_are_read_as_transformers_cuts_them(tmp_path: Path) -> None:
    """It writes three of one size, whatever theirs are; the makers' folders have their own."""
    own = {"layer_types": ["linear_attention", "full_attention"], "linear_value_head_dim": 18}
    config = tiny.transformers.OlmoHybridConfig(**(tiny.SIZES | own | {"linear_key_head_dim": 12}))
    torch.manual_seed(0)
    model = tiny.transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(tmp_path / "even")
    checkpoint = load.read_checkpoint(tmp_path / "even")
    name = "blocks.0.attention.conv.{}.weight"
    assert [checkpoint.tensors[name.format(part)].shape[0] for part in ("key", "value")] == [48, 72]
    assert distance(tiny.ours(checkpoint), tiny.theirs(model)) < EXACT
    save.write_checkpoint(tmp_path / "own", checkpoint)
    assert distance(tiny.ours(load.read_checkpoint(tmp_path / "own")), tiny.theirs(model)) < EXACT
    assert distance(tiny.reopened(tmp_path / "own"), tiny.theirs(model)) < EXACT
