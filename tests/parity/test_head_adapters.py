"""Adapters of classifiers against PEFT, which saves their heads beside them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cutaway
from cutaway.errors import UserError
from cutaway.weights import adapters, load, save
from tests.parity.test_classifiers import CASES, ROWS, theirs
from tests.parity.tiny import perturbed, transformers

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
KINDS = {
    "bert": {"target_modules": "all-linear"},  # of which the pooler is one, a layer of the head
    "bert-dora": {"target_modules": ["query", "dense"], "use_dora": True},
    "bert-whole": {"target_modules": ["value"], "modules_to_save": ["pooler"], "bias": "lora_only"},
    "roberta": {"target_modules": ["query", "value"]},
    "distilbert": {"target_modules": ["q_lin"], "modules_to_save": ["pre_classifier"]},
    "modernbert": {"target_modules": "all-linear"},
    "llama": {"target_modules": ["q_proj", "v_proj"]},
    "gpt2": {"target_modules": ["c_attn"], "fan_in_fan_out": True},
}


def adapted(kind: str, folder: Path) -> Any:
    """PEFT's adapter of a small classifier, every number of it moved, saved beside its base."""
    name, own = CASES[kind.partition("-")[0]]
    base = perturbed(transformers.AutoModelForSequenceClassification, name, own | {"num_labels": 3})
    base.save_pretrained(folder / "base")
    torch.manual_seed(4)
    config = peft.LoraConfig(r=2, lora_alpha=3, task_type="SEQ_CLS", **KINDS[kind])
    model = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.2 * torch.randn_like(weight))
    model.save_pretrained(folder / "adapter")
    path = folder / "adapter" / "adapter_config.json"
    entries = json.loads(path.read_text()) | {"base_model_name_or_path": str(folder / "base")}
    path.write_text(json.dumps(entries))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_with_pefts_adapter_has_pefts_logits(kind: str, tmp_path: Path) -> None:
    model = adapted(kind, tmp_path)
    rows = ROWS[:3]
    expected = theirs(model, rows)
    base = cutaway.load(tmp_path / "base")
    assert np.abs(base.classify(rows).logits - expected).max() > 1e-2
    changed = base.with_adapter(tmp_path / "adapter")
    for lm in (changed, cutaway.load(tmp_path / "adapter")):
        assert np.abs(lm.classify(rows).logits - expected).max() < 1e-5
    save.write_checkpoint(tmp_path / "merged", changed.checkpoint)
    assert np.abs(cutaway.load(tmp_path / "merged").classify(rows).logits - expected).max() < 1e-5


def test_a_head_that_the_base_has_no_place_for_is_refused(tmp_path: Path) -> None:
    adapted("roberta", tmp_path)
    name, own = CASES["roberta"]
    other = perturbed(transformers.AutoModelForSequenceClassification, name, own | {"num_labels": 2})
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"has the shape .3,.*, and the base's head has .2,"):
        cutaway.load(tmp_path / "other", adapter=tmp_path / "adapter")
    base = load.read_checkpoint(tmp_path / "base")
    assert set(adapters.extended(base, tmp_path / "adapter").head) == {
        f"classifier.{layer}.{part}" for layer in ("dense", "out_proj") for part in ("weight", "bias")
    }
