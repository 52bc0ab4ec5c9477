"""Adapters against PEFT: its folders read, ours read by it, and the torch modules that train them."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import cutaway
from cutaway.errors import UserError
from cutaway.model.context import ContextExtension
from cutaway.train.adapters import dora, ia3, lora
from cutaway.weights import adapters, build, load, peft_config, peft_names, safetensors, save
from tests.parity import tiny
from tests.test_patterns import MODULES, PATTERNS

peft = pytest.importorskip("peft")
Folder = Callable[[str], Path]
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
EXACT = 5e-5  # PEFT adds the two products, here the changed weight is rounded to float32 first
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GPT2 = ["c_attn", "c_proj", "c_fc"]
KINDS: dict[str, Callable[[list[str], bool], Any]] = {
    "lora": lambda targets, conv: peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=targets, fan_in_fan_out=conv
    ),
    "rslora": lambda targets, conv: peft.LoraConfig(
        r=4, lora_alpha=7, target_modules=targets, use_rslora=True, fan_in_fan_out=conv
    ),
    "patterns": lambda targets, conv: peft.LoraConfig(
        r=2,
        target_modules=targets,
        rank_pattern={targets[0]: 5},
        alpha_pattern={targets[0]: 3},
        fan_in_fan_out=conv,
    ),
    "dora": lambda targets, conv: peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=targets, use_dora=True, fan_in_fan_out=conv
    ),
    "ia3": lambda targets, conv: peft.IA3Config(
        target_modules=[t for t in targets if t not in ("q_proj", "gate_proj")],
        feedforward_modules=[t for t in targets if t in ("down_proj", "c_proj")][: 0 if conv else 1],
        fan_in_fan_out=conv,
    ),
}
CASES = ["llama-mqa-bias-tied", "gpt2"]


def made(case: str, kind: str, folder: Path) -> torch.Tensor:
    """PEFT's adapter of a tiny model, every number of it moved, saved; and its logits."""
    torch.manual_seed(3)
    conv = case == "gpt2"
    model = peft.get_peft_model(
        copy.deepcopy(tiny.model(case)), KINDS[kind](GPT2 if conv else ALL, conv)
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora" in name or "ia3" in name:
                weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(folder)
    return tiny.theirs(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_peft_adapters_give_pefts_logits(case: str, kind: str, folder: Folder, tmp_path: Path) -> None:
    expected = made(case, kind, tmp_path / "adapter")
    base = load.read_checkpoint(folder(case))
    changed = adapters.joined(base, adapters.read_adapter(tmp_path / "adapter", base))
    assert float((tiny.ours(changed) - expected).abs().max()) < EXACT
    assert float((tiny.ours(base) - expected).abs().max()) > 1e-2


@pytest.mark.parametrize(
    "config", [lora.Config(3, 7.0), dora.Config(3, 7.0, rank_stabilised=True), ia3.Config()]
)
@pytest.mark.parametrize("case", CASES)
def test_trained_adapters_are_read_by_peft(case: str, config: Any, folder: Folder, tmp_path: Path) -> None:
    if case == "gpt2":
        targets = (
            ("key", "value", "query")
            if isinstance(config, ia3.Config)
            else ("query", "key", "value", "out", "up")
        )
        config = type(config)(targets=targets)
    base = load.read_checkpoint(folder(case))
    model = build.decoder(base)
    plain = model(tiny.IDS, torch.arange(40).expand(2, 40))
    config.attach(model)
    pos = torch.arange(40).expand(2, 40)
    assert torch.allclose(model(tiny.IDS, pos), plain, atol=1e-5), "training starts at the base"
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name
        for name, _ in model.named_parameters()
        if name.rpartition(".")[2] in ("a", "b", "magnitude", "factors")
    }
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        trained = model(tiny.IDS, pos)
    adapters.write_adapter(tmp_path / "adapter", config.changes(model), base, "base")
    reread = adapters.joined(base, adapters.read_adapter(tmp_path / "adapter", base))
    assert float((tiny.ours(reread) - trained).abs().max()) < EXACT
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(tiny.model(case)), tmp_path / "adapter").eval()
    assert float((tiny.theirs(theirs) - trained).abs().max()) < EXACT


def test_gradients_are_pefts(folder: Folder, tmp_path: Path) -> None:
    """LoRA's and DoRA's: the norm of DoRA's rows is a constant in the backward pass."""
    for kind, config in (("lora", lora.Config(3, 7.0)), ("dora", dora.Config(3, 5.0))):
        made("llama", kind, tmp_path / kind)
        base = load.read_checkpoint(folder("llama"))
        read = adapters.read_adapter(tmp_path / kind, base)
        model = build.decoder(base)
        config.attach(model)
        for name, module in model.named_modules():
            if isinstance(module, lora.LoRALinear):
                change: Any = read[f"{name}.weight"]
                module.a.data, module.b.data = torch.from_numpy(change.a), torch.from_numpy(change.b)
                if isinstance(module, dora.DoRALinear):
                    module.magnitude.data = torch.from_numpy(change.magnitude)
        theirs = peft.PeftModel.from_pretrained(
            copy.deepcopy(tiny.model("llama")), tmp_path / kind, is_trainable=True
        )
        model(tiny.IDS, torch.arange(40).expand(2, 40)).square().mean().backward()
        theirs(tiny.IDS).logits.square().mean().backward()
        wanted = dict(theirs.named_parameters())
        own: Any = model.get_submodule("blocks.1.attention.query")
        for part, name in (("a", "lora_A.default.weight"), ("b", "lora_B.default.weight")):
            grad = wanted[f"base_model.model.model.layers.1.self_attn.q_proj.{name}"].grad
            assert torch.allclose(getattr(own, part).grad, grad, atol=1e-6, rtol=1e-4), (kind, part)
        if kind == "dora":
            grad = wanted[
                "base_model.model.model.layers.1.self_attn.q_proj.lora_magnitude_vector.default.weight"
            ].grad
            assert torch.allclose(own.magnitude.grad, grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "kind",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ],
)
@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings:UserWarning", "ignore:Setting:UserWarning")
def test_an_adapter_of_a_tied_head_leaves_the_table(
    kind: dict[str, Any], folder: Folder, tmp_path: Path
) -> None:
    """And the other way round; the merged model, written and reread, has the live one's logits."""
    torch.manual_seed(3)
    case = "llama-mqa-bias-tied"
    model = peft.get_peft_model(copy.deepcopy(tiny.model(case)), peft.LoraConfig(r=3, **kind)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(tmp_path / "adapter")
    expected, base = tiny.theirs(model), load.read_checkpoint(folder(case))
    tuned = adapters.joined(base, adapters.read_adapter(tmp_path / "adapter", base))
    assert float((tiny.ours(tuned) - expected).abs().max()) < EXACT
    save.write_checkpoint(tmp_path / "merged", tuned, "safetensors")
    assert float((tiny.reopened(tmp_path / "merged") - expected).abs().max()) < EXACT
    assert float((tiny.ours(base) - expected).abs().max()) > 1e-2


def test_an_extended_context_is_written_for_peft(folder: Folder, tmp_path: Path) -> None:
    """PEFT knows no such entry: it says that it leaves it out, and reads the rest."""
    made("llama", "lora", tmp_path / "theirs")
    base = load.read_checkpoint(folder("llama"))
    changes: Any = adapters.read_adapter(tmp_path / "theirs", base)
    (tmp_path / "ours").mkdir()
    adapters.save(tmp_path / "ours", changes, base, "base", ContextExtension("linear", 2.0))
    with pytest.warns(UserWarning, match="context_extension"):
        model = peft.PeftModel.from_pretrained(copy.deepcopy(tiny.model("llama")), tmp_path / "ours").eval()
    plain = adapters.joined(base, changes)
    assert float((tiny.theirs(model) - tiny.ours(plain)).abs().max()) < EXACT
    longer = adapters.extended(base, tmp_path / "ours")
    assert longer.config.context == 2 * base.config.context


def test_an_adapter_folder_opens_as_a_model(folder: Folder, tmp_path: Path) -> None:
    made("llama", "lora", tmp_path / "adapter")
    described = json.loads((tmp_path / "adapter" / adapters.CONFIG).read_text())
    described["base_model_name_or_path"] = str(folder("llama"))
    (tmp_path / "adapter" / adapters.CONFIG).write_text(json.dumps(described))
    ids = tiny.IDS[0].tolist()
    base = cutaway.load(folder("llama"), engine="pytorch").logits(ids)
    alone = cutaway.load(tmp_path / "adapter", engine="pytorch").logits(ids)
    beside = cutaway.load(folder("llama"), engine="pytorch", adapter=tmp_path / "adapter").logits(ids)
    assert np.array_equal(alone, beside) and not np.allclose(alone, base, atol=1e-3)


def test_the_runtime_shares_its_weights_with_adapters(folder: Folder, tmp_path: Path) -> None:
    """Beside the packed weights, for every way to load it; what it cannot apply is in weights of its own."""
    made("llama", "lora", tmp_path / "adapter")
    ids = tiny.IDS[0].tolist()
    base = cutaway.load(folder("llama"), engine="runtime")
    talk = base.with_adapter(tmp_path / "adapter")
    assert cast(Any, talk.engine).packed is cast(Any, base.engine).packed
    alone = cutaway.load(folder("llama"), engine="runtime", adapter=tmp_path / "adapter")
    assert np.array_equal(talk.logits(ids), alone.logits(ids))
    expected = talk.pytorch.logits(ids)
    assert np.abs(talk.logits(ids) - expected).max() < 4e-3 * np.abs(expected).max()
    assert np.abs(base.logits(ids) - expected).max() > 1e-2 * np.abs(expected).max()
    made("llama-mqa-bias-tied", "ia3", tmp_path / "scaled")
    base = cutaway.load(folder("llama-mqa-bias-tied"), engine="runtime")
    scaled = base.with_adapter(tmp_path / "scaled")
    assert cast(Any, scaled.engine).packed is not cast(Any, base.engine).packed
    expected = scaled.pytorch.logits(ids)
    assert np.abs(scaled.logits(ids) - expected).max() < 4e-3 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("peft_type", "OFT", "VERA are read"),
        ("peft_type", "PROMPT_TUNING", "vectors that are no tokens"),
        ("init_lora_weights", "pissa_niter_4", "random approximation"),
        ("init_lora_weights", "corda", "covariances"),
        ("init_lora_weights", "loftq", "four bits"),
        ("target_modules", ["q_proj"], "target_modules does not name it"),
        ("exclude_modules", ["q_proj"], "target_modules does not name it"),
        ("layers_to_transform", [1], "target_modules does not name it"),
        ("layer_replication", [[0, 2]], "layer_replication"),
        ("r", 5, "rank 5"),
        ("use_dora", True, "use_dora"),
    ],
)
def test_what_is_not_read_is_refused(
    key: str, value: Any, match: str, folder: Folder, tmp_path: Path
) -> None:
    made("llama", "lora", tmp_path / "adapter")
    path = tmp_path / "adapter" / adapters.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=match):
        adapters.read_adapter(tmp_path / "adapter", load.read_checkpoint(folder("llama")))


def test_a_key_that_peft_does_not_have_is_warned_of(folder: Folder, tmp_path: Path) -> None:
    made("llama", "lora", tmp_path / "adapter")
    base = load.read_checkpoint(folder("llama"))
    path = tmp_path / "adapter" / adapters.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"a_future_key": 1, "another": None}))
    with pytest.warns(UserWarning, match="left out: 'a_future_key'$"):
        adapters.read_adapter(tmp_path / "adapter", base)


def test_an_adapter_of_another_model_is_refused(folder: Folder, tmp_path: Path) -> None:
    made("llama", "lora", tmp_path / "adapter")
    with pytest.raises(UserError, match=r"does not fit|no such matrix"):
        adapters.read_adapter(tmp_path / "adapter", load.read_checkpoint(folder("llama-mha")))
    tensors = safetensors.read_safetensors(tmp_path / "adapter" / peft_names.WEIGHTS)
    tensors["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = next(iter(tensors.values()))
    safetensors.write_safetensors(tmp_path / "adapter" / peft_names.WEIGHTS, tensors)
    with pytest.raises(UserError, match=r"layers\.9"):
        adapters.read_adapter(tmp_path / "adapter", load.read_checkpoint(folder("llama")))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_means_the_modules_that_peft_finds(pattern: str) -> None:
    found = peft_config.ByModule({pattern: 3.0}, 8.0, "alpha_pattern")
    theirs = peft.utils.other.get_pattern_key
    for module in MODULES:
        if module != pattern:  # which PEFT also gives back where nothing matches
            assert found(module) == (3.0 if theirs([pattern], module) == pattern else 8.0), module
