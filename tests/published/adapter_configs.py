"""Published adapter_config.json files on small models of their base's family, beside PEFT.

An entry of ``adapters/peft.jsonl`` is what a published file says, with where it was found: ranks are made
small and the alphas beside them in proportion, layers that are listed are layers of the small model, and
names of folders on other machines are left out. Every other key is as it is published.
"""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from peft.tuners import tuners_utils

from cutaway.errors import UserError
from cutaway.weights import adapters, load, peft_config
from tests.parity import peft_kinds
from tests.parity.peft_kinds import Found, peft

FILE = Path(__file__).parent / "adapters" / "peft.jsonl"


class Entry(NamedTuple):
    """A published config: where it was found, the small model it is applied to, why it is refused."""

    name: str
    source: str
    case: str
    config: dict[str, Any]
    refused: str | None = None


def entries() -> list[Entry]:
    """The collection."""
    return [Entry(**json.loads(line)) for line in FILE.read_text("utf-8").splitlines()]


def judged(entry: Entry, folder: Path) -> Found:
    """What becomes of a random adapter that PEFT makes by a config, beside the config as published."""
    model = peft_kinds.model(entry.case)
    with warnings.catch_warnings(), mock.patch.object(tuners_utils, "_check_lora_target_modules_mamba"):
        warnings.simplefilter("ignore")
        config = peft.PeftConfig.from_peft_type(**entry.config | {"inference_mode": False})
        wrapped = peft.get_peft_model(copy.deepcopy(model), config)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in wrapped.parameters():
                if weight.requires_grad:
                    weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
        wrapped.save_pretrained(folder / "adapter")
    (folder / "adapter" / peft_config.CONFIG).write_text(json.dumps(entry.config))
    model.save_pretrained(folder / "base")
    # PEFT refuses Mamba's output projection since 0.19, and opened it before.
    with mock.patch.object(tuners_utils, "_check_lora_target_modules_mamba"):
        opened = peft_kinds.opened(model, folder / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = load.read_checkpoint(folder / "base")
        try:
            tuned = adapters.joined(base, adapters.read_adapter(folder / "adapter", base))
        except UserError as problem:
            return Found("refused", str(problem))
    plain = peft_kinds.ours(entry.case, base)
    assert float((peft_kinds.ours(entry.case, tuned) - plain).abs().max()) > 1e-3, (
        "the adapter changes nothing"
    )
    return peft_kinds.compared(entry.case, tuned, opened, folder / "adapter")
