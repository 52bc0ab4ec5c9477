"""What the loader of vLLM asks of folders (lora/peft_helper.py, lora/lora_model.py): a model, an adapter."""

import json
import re
from pathlib import Path

from cutaway.cli import main
from cutaway.train.adapters import lora
from cutaway.weights import adapters, build, load, safetensors
from tests.training import chatting_model

WRITTEN = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_a_model_and_its_adapter_are_as_vllms_loader_asks(tmp_path: Path) -> None:
    base = chatting_model(tmp_path / "base")
    assert main(["convert", str(base), str(tmp_path / "exported")]) == 0
    assert {path.name for path in (tmp_path / "exported").iterdir()} >= WRITTEN
    assert json.loads((tmp_path / "exported/config.json").read_text())["architectures"] == [
        "LlamaForCausalLM"
    ]
    checkpoint, config = load.read_checkpoint(base), lora.Config(4, alpha=12.0, targets=("query", "down"))
    model = build.decoder(checkpoint)
    config.attach(model)
    (tmp_path / "talk").mkdir()
    adapters.save(tmp_path / "talk", config.changes(model), checkpoint, str(base))
    found = json.loads((tmp_path / "talk/adapter_config.json").read_text())
    assert found["target_modules"] and not found["use_dora"] and not found.get("modules_to_save")
    assert found["lora_alpha"] == found["r"] == 4, "vLLM scales by their quotient and reads no pattern"
    names = safetensors.read_safetensors(tmp_path / "talk/adapter_model.safetensors")
    modules = {name.removesuffix(".weight") for name in safetensors.read_safetensors(tmp_path / "exported")}
    for name in names:
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_[AB]\.weight", name)
        assert match is not None and match[1] in modules, name
