"""Folders whose weights are quantised: each method's values to the bit, whole models against transformers."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import cutaway
from cutaway import cli, gguf
from cutaway.errors import UserError
from cutaway.quantization import formats
from cutaway.train import run as training_run
from cutaway.train.adapters import lora
from cutaway.train.recipes import finetune
from cutaway.weights import load, safetensors
from cutaway.weights.quantized import methods
from cutaway.weights.quantized.stored import KINDS, rounded, widened
from tests import quantizing
from tests.training import Quiet, chatting_model, conversations

HERE = Path(__file__).parent / "published" / "quantized"
GOLDEN = sorted((HERE / "golden").glob("*.safetensors"))
SECTIONS = [json.loads(line) for line in (HERE / "sections.jsonl").read_text("utf-8").splitlines()]
LAYER = "model.layers.0.self_attn.q_proj"
EXACT = 1e-5
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def same_bits(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return ours.shape == theirs.shape and bool((ours.view(np.uint32) == theirs.view(np.uint32)).all())


def joined(section: dict[str, Any], tensors: dict[str, gguf.Packed]) -> dict[str, gguf.Packed]:
    method = methods.of_config({"quantization_config": section}, "config.json")
    assert method is not None
    return method.joined(tensors, "folder")


def in_pieces(packed: gguf.Packed) -> np.ndarray:
    """The bytes of the weight, made some rows at a time."""
    ends = range(0, packed.shape[0], 5)
    return np.concatenate([packed.rows(slice(at, min(at + 5, packed.shape[0]))).data for at in ends])


# ---- each layout -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_layer_is_what_its_own_library_makes_of_it(path: Path) -> None:
    """To the bit; a library that computes in 16 bits has ours rounded once (or, of HQQ, as it rounds).

    The files were written by the libraries themselves (scripts/tables/quantized_golden.py).
    """
    tensors, texts = dict(safetensors.read_safetensors(path)), safetensors.metadata(path)
    theirs = tensors.pop("expected")
    ((name, packed),) = joined(json.loads(texts["section"]), tensors).items()
    expected = widened(theirs.data.reshape(-1).view(KINDS[theirs.type]), theirs.type).reshape(theirs.shape)
    assert name == f"{LAYER}.weight" and packed.shape == expected.shape
    ours = rounded(formats.unpack(packed), theirs.type)
    if packed.type == "MXFP4":  # whose zeros have no sign in GGUF
        ours, expected = ours + np.float32(0), expected + np.float32(0)
    assert same_bits(ours, expected)
    assert np.array_equal(in_pieces(packed), np.asarray(packed.data))


def test_there_is_a_layer_of_every_method() -> None:
    methods = {json.loads(safetensors.metadata(path)["section"])["quant_method"] for path in GOLDEN}
    assert methods == {
        "awq",
        "bitnet",
        "bitsandbytes",
        "compressed-tensors",
        "fp8",
        "gptq",
        "hqq",
        "modelopt",
        "torchao",
    }


def stored(name: str, rows: int = 64, columns: int = 96, seed: int = 0) -> tuple[dict, dict, torch.Tensor]:
    """A random matrix by one of the published formulas: config, tensors, values."""
    section, quantise = quantizing.METHODS[name]
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.1
    tensors, expected = quantise(w)
    return section, {LAYER + end: tensor for end, tensor in tensors.items()}, expected


@pytest.mark.parametrize("name", quantizing.METHODS)
def test_a_layer_is_its_published_formula(name: str, tmp_path: Path) -> None:
    section, tensors, expected = stored(name)
    save_file(tensors, tmp_path / "model.safetensors")
    ((_, packed),) = joined(section, safetensors.read_safetensors(tmp_path)).items()
    assert same_bits(formats.unpack(packed), expected.numpy())
    assert np.array_equal(in_pieces(packed), np.asarray(packed.data))


KEPT = {
    "gptq": "Q4_0",
    "gptq-asym": "Q5_0",
    "gptq-8": "Q8_0",
    "gptq-2": "Q4_0",
    "awq": "Q5_0",
    "w4a16": "Q4_0",
}
KEPT |= {"w8a8": "Q8_0", "nf4": "BF16", "fp8": "F32"}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_exact_stays_packed(name: str, tmp_path: Path) -> None:
    section, tensors, _ = stored(name)
    save_file(tensors, tmp_path / "model.safetensors")
    ((_, packed),) = joined(section, safetensors.read_safetensors(tmp_path)).items()
    assert packed.type == KEPT[name]


def test_a_scale_that_no_half_holds_is_not_packed(tmp_path: Path) -> None:
    section, tensors, expected = stored("w4a16")
    scale = tensors[f"{LAYER}.weight_scale"]
    scale[0, 0] = 1e-9
    expected[0, :32] *= 1e-9 / float(expected[0, :32].abs().max() / 7)
    save_file(tensors, tmp_path / "model.safetensors")
    ((_, packed),) = joined(section, safetensors.read_safetensors(tmp_path)).items()
    assert packed.type == "F32"
    assert same_bits(formats.unpack(packed)[1:], expected[1:].numpy())


def test_columns_in_activation_order_have_their_own_groups(tmp_path: Path) -> None:
    """GPTQ with desc_act: number by number, by the group that g_idx names."""
    section, tensors, _ = stored("gptq-v2")
    order = torch.randperm(96, generator=torch.Generator().manual_seed(3)) % 3
    tensors[f"{LAYER}.g_idx"] = order.int()
    save_file(tensors, tmp_path / "model.safetensors")
    ((_, packed),) = joined(section | {"desc_act": True}, safetensors.read_safetensors(tmp_path)).items()
    ours = formats.unpack(packed)
    words, zeros, scales = (tensors[f"{LAYER}.{part}"] for part in ("qweight", "qzeros", "scales"))
    for row, column in ((0, 0), (7, 31), (39, 95), (13, 64)):
        q = int(words[column // 8, row]) >> 4 * (column % 8) & 15
        group = int(order[column])
        zero = int(zeros[group, row // 8]) >> 4 * (row % 8) & 15
        assert ours[row, column] == np.float32(q - zero) * np.float32(scales[group, row])


# ---- whole folders -----------------------------------------------------------------------------------------

SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
MODELS = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "head_dim": 16,
            "norm_topk_prob": True,
        },
    ),
}
FOLDERS = (
    ("llama", "gptq"),
    ("llama", "nf4"),
    ("llama", "w4a16"),
    ("qwen2", "awq"),
    ("qwen2", "w8a8"),
    ("qwen2", "nvfp4"),
    ("qwen3_moe", "fp8"),
    ("qwen3_moe", "gptq-asym"),
)
IDS = torch.arange(24).reshape(1, -1) * 7 % 96


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of a tiny random model, not quantised, made once."""
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            name, own = MODELS[family]
            config = getattr(transformers, name)(**SIZES, **own)
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(torch.randn_like(weight) * 0.05)
            made[family] = tmp_path_factory.mktemp(family)
            model.save_pretrained(made[family])
        return made[family]

    return of


def quantise(source: Path, target: Path, name: str) -> Path:
    """Write the folder with every linear layer but the head quantised; the folder of its values in floats."""
    section, method = quantizing.METHODS[name]
    weights = load_file(source / "model.safetensors")
    out: dict[str, torch.Tensor] = {}
    for key, weight in weights.items():
        linear = key.endswith("_proj.weight") and weight.dim() == 2
        if not linear:
            out[key] = weight
            continue
        tensors, weights[key] = method(weight)
        out |= {key.removesuffix(".weight") + end: tensor for end, tensor in tensors.items()}
    shutil.copytree(source, target, dirs_exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in out.items()}, target / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    values = target.parent / f"{target.name}-values"
    shutil.copytree(source, values)
    save_file(weights, values / "model.safetensors", {"format": "pt"})
    return values


def theirs(folder: Path) -> Any:
    """The model of a folder, by transformers in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def ours(folder: Path, **settings: Any) -> torch.Tensor:
    lm = cutaway.load(folder, **({"engine": "pytorch"} | settings))
    return torch.as_tensor(np.asarray(lm.logits(IDS[0].tolist())))


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize(("family", "name"), FOLDERS)
def test_a_folder_has_the_logits_of_its_values(
    family: str, name: str, plain: Callable[[str], Path], tmp_path: Path
) -> None:
    """Both engines, and the definition with weights kept packed, beside transformers on the values."""
    values = quantise(plain(family), tmp_path / "q", name)
    with torch.no_grad():
        expected = theirs(values)(IDS).logits[0]
    assert distance(ours(tmp_path / "q"), expected) < EXACT
    assert distance(ours(tmp_path / "q", dtype="packed"), expected) < EXACT
    # The runtime multiplies packed weights by vectors of eight bits, whatever file they are from.
    assert distance(ours(tmp_path / "q", engine="runtime"), expected) < 0.03


def test_what_is_written_of_a_folder_is_its_values(plain: Callable[[str], Path], tmp_path: Path) -> None:
    """GGUF keeps what is packed, to the bit; a folder of floats is read by transformers."""
    values = quantise(plain("llama"), tmp_path / "q", "gptq-asym")
    with torch.no_grad():
        expected = theirs(values)(IDS).logits[0]
    cutaway.load(tmp_path / "q").save(tmp_path / "floats", format="safetensors")
    with torch.no_grad():
        assert distance(theirs(tmp_path / "floats")(IDS).logits[0], expected) < EXACT
    assert cli.main(["convert", str(tmp_path / "q"), str(tmp_path / "q.gguf")]) == 0
    file, weights = gguf.read(tmp_path / "q.gguf"), load_file(values / "model.safetensors")
    packed = file.tensors["blk.1.ffn_down.weight"]
    assert packed.type == "Q5_0"
    assert same_bits(formats.unpack(packed), weights["model.layers.1.mlp.down_proj.weight"].numpy())
    assert distance(ours(tmp_path / "q.gguf"), expected) < EXACT


def test_the_loss_of_another_type_is_named(plain: Callable[[str], Path], tmp_path: Path) -> None:
    """Values that only F32 holds, written in 16 bits: by how much of its matrix's largest one changed."""
    values = quantise(plain("qwen3_moe"), tmp_path / "q", "fp8")
    lm = cutaway.load(tmp_path / "q")
    assert lm.checkpoint.quantized == "FP8, 8 bits, blocks of 16 x 32"
    exact = lm.save(tmp_path / "exact.gguf", format="gguf")
    assert not any("away from" in note for note in exact.notes)
    expected = 0.0
    for name, weight in load_file(values / "model.safetensors").items():
        if weight.dim() > 1 and not name.endswith("mlp.gate.weight"):  # a router stays in floats
            changed = (weight - weight.to(torch.bfloat16).float()).abs().max() / weight.abs().max()
            expected = max(expected, float(changed))
    for format, name in (("gguf", "short.gguf"), ("safetensors", "short")):
        notes = lm.save(tmp_path / name, format=format, type="BF16").notes
        (loss,) = [note for note in notes if "away from" in note]
        assert loss.startswith("the values of FP8, 8 bits, blocks of 16 x 32, as BF16, are at most")
        assert float(re.findall(r"at most (\S+) of", loss)[0]) == pytest.approx(expected, rel=0.05)


def test_an_adapter_changes_the_values(plain: Callable[[str], Path], tmp_path: Path) -> None:
    """QLoRA: PEFT's adapter of the base's values, over the base in NF4."""
    peft = pytest.importorskip("peft")
    values = quantise(plain("llama"), tmp_path / "q", "nf4")
    torch.manual_seed(3)
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "down_proj"])
    model = peft.get_peft_model(theirs(values), config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.1)
        expected = model(IDS).logits[0]
    model.save_pretrained(tmp_path / "adapter")
    assert distance(ours(tmp_path / "q", adapter=tmp_path / "adapter"), expected) < 5e-5
    assert distance(ours(tmp_path / "q"), expected) > 0.01


def test_training_on_a_quantised_base_is_training_on_its_values(tmp_path: Path) -> None:
    """The base kept packed, and its values in floats: the same adapter."""
    values = quantise(chatting_model(tmp_path / "base"), tmp_path / "q", "nf4")
    talk, found = conversations(tmp_path / "talk.jsonl"), []
    for base, kind in ((values, "float32"), (tmp_path / "q", "packed")):
        words = f"--base {base} --data.path {talk} --data.context 64 --steps 2 --batch-size 2 --threads 1"
        run = replace(
            finetune.read_finetuning_config("sft", words.split()), adapter=lora.Config(4), base_type=kind
        )
        out = tmp_path / f"{base.name}-{kind}"
        training_run.train(run, out, Quiet(), recipe=finetune)
        found.append(cutaway.load(out, engine="pytorch").logits([5, 6]))
    assert np.allclose(*found, atol=1e-5)


# ---- configs, and what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("published", SECTIONS, ids=lambda each: each["name"])
def test_a_published_config_is_read(published: dict[str, Any]) -> None:
    """The section of a real repository: what it says of bits and groups, and of modules left as they are."""
    section = published["section"]
    method = methods.of_config({"quantization_config": section}, "config.json")
    assert method is not None and method.summary
    stated = [section.get(key) for key in ("modules_to_not_convert", "ignored_layers", "ignore")]
    listed = next((names for names in stated if names), section.get("llm_int8_skip_modules") or [])
    assert list(method.ignored) == listed
    for key in ("bits", "w_bit"):
        assert section.get(key) in (None, method.bits)
    if block := section.get("weight_block_size"):
        assert f"{block[0]} x {block[1]}" in method.summary


def test_a_module_that_is_not_quantised_stays_as_it_is(tmp_path: Path) -> None:
    section, tensors, _ = stored("gptq")
    plain = torch.randn(8, 16).to(torch.bfloat16)
    save_file(
        tensors | {"lm_head.weight": plain, f"{LAYER}.bias": torch.ones(64)}, tmp_path / "model.safetensors"
    )
    found = joined(section | {"modules_to_not_convert": ["lm_head"]}, safetensors.read_safetensors(tmp_path))
    assert found["lm_head.weight"].type == "BF16" and found[f"{LAYER}.bias"].shape == (64,)
    with pytest.raises(UserError, match=f"lists '{re.escape(LAYER)}' as not quantized"):
        joined(section | {"modules_to_not_convert": [LAYER]}, safetensors.read_safetensors(tmp_path))


@pytest.mark.parametrize(
    ("name", "listed", "others"),
    [
        ("gptq", LAYER, "self_attn.q_proj"),
        ("w4a16", r"re:.*self_attn\.q_proj$", r"re:self_attn\.q_proj$"),
        ("w4a16", r"re:(?!.*mlp).*q_proj", r"re:(?!.*attn).*q_proj"),  # which no linear engine has
        ("nvfp4", "model.layers.0.self_attn*", "model.layers.1.self_attn*"),
    ],
)
def test_modules_are_listed_as_each_method_lists_them(
    name: str, listed: str, others: str, tmp_path: Path
) -> None:
    """By whole names, by patterns from the beginning of a name, by wildcards."""
    section, tensors, _ = stored(name)
    key = {"gptq": "modules_to_not_convert"}.get(name, "ignore")
    save_file({each: tensor.contiguous() for each, tensor in tensors.items()}, tmp_path / "model.safetensors")
    assert len(joined(section | {key: ["lm_head", others]}, safetensors.read_safetensors(tmp_path))) == 1
    with pytest.raises(UserError, match="as not quantized"):
        joined(section | {key: ["lm_head", listed]}, safetensors.read_safetensors(tmp_path))


def test_scales_of_activations_are_left_out(tmp_path: Path) -> None:
    section, tensors, expected = stored("fp8")
    beside = {f"{LAYER}.{part}": torch.tensor(0.5) for part in ("input_scale", "activation_scale")}
    beside["model.layers.0.self_attn.k_scale"] = torch.tensor(0.1)
    save_file(tensors | beside, tmp_path / "model.safetensors")
    found = joined(section | {"activation_scheme": "static"}, safetensors.read_safetensors(tmp_path))
    assert list(found) == [f"{LAYER}.weight"]
    assert same_bits(formats.unpack(found[f"{LAYER}.weight"]), expected.numpy())


GROUP_OF_4 = quantizing.GROUPS["group_0"]["weights"] | {"actorder": "group"}
ACTORDER: dict[str, Any] = {"group_0": {"targets": [r"re:.*q_proj$"], "weights": GROUP_OF_4}}
ACTORDER["group_1"] = {
    "targets": ["Linear"],
    "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
}


def test_each_group_of_modules_has_its_scheme(tmp_path: Path) -> None:
    """compressed-tensors' config_groups: by a pattern of the name before the class; g_idx orders columns."""
    section, tensors, _ = stored("w4a16")
    order = torch.randperm(96, generator=torch.Generator().manual_seed(1)) % 3
    tensors[f"{LAYER}.weight_g_idx"] = order.int()
    w = torch.randn(64, 96, generator=torch.Generator().manual_seed(5))
    scale = w.abs().amax(1, keepdim=True) / 448
    other = "model.layers.0.mlp.up_proj"
    tensors |= {f"{other}.weight": (w / scale).to(torch.float8_e4m3fn), f"{other}.weight_scale": scale}
    save_file(tensors, tmp_path / "model.safetensors")
    mixed = section | {"format": "mixed-precision", "config_groups": ACTORDER}
    found = joined(mixed, safetensors.read_safetensors(tmp_path))
    packed, scales = tensors[f"{LAYER}.weight_packed"], tensors[f"{LAYER}.weight_scale"]
    q = torch.stack([packed >> 4 * i & 15 for i in range(8)], -1).reshape(64, -1) - 8
    expected = q.float() * scales.float()[:, order]
    assert same_bits(formats.unpack(found[f"{LAYER}.weight"]), expected.numpy())
    expected = tensors[f"{other}.weight"].float() * scale
    assert same_bits(formats.unpack(found[f"{other}.weight"]), expected.numpy())


REFUSED = {
    "method": ({"quant_method": "aqlm"}, "quantized by 'aqlm', which is not read: take the unquantized"),
    "no method": ({"bits": 4}, "quantized by 'unknown'"),
    "bits": ({"quant_method": "gptq", "bits": 5}, "is 5: GPTQ of 2, 3, 4, 8 bits is read"),
    "marlin": ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "is 'marlin', not one of"),
    "two formats": (
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2", "format": "gptq"},
        "checkpoint_format and format disagree",
    ),
    "unknown key": ({"quant_method": "gptq", "bits": 4, "zebra": 1}, "GPTQ has no such setting"),
    "awq bits": ({"quant_method": "awq", "bits": 3}, "AWQ of 4 bits is read"),
    "gemv_fast": ({"quant_method": "awq", "bits": 4, "version": "gemv_fast"}, "is 'gemv_fast', not one of"),
    "llm-awq": ({"quant_method": "awq", "bits": 4, "backend": "llm-awq"}, "a layout of its own"),
    "both": ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": True}, "in one of them"),
    "block": ({"quant_method": "fp8", "weight_block_size": [128]}, "rows and columns of a block"),
    "fnuz": ({"quant_method": "fp8", "fmt": "e4m3fnuz"}, "another format of 8 bits is not supported"),
    "sparse": (
        {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}},
        "sparse weights is not supported",
    ),
    "rotated": (
        {"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"a": 1}}},
        "rotates the weights",
    ),
    "no groups": ({"quant_method": "compressed-tensors"}, "config_groups is missing"),
    "norms": ({"quant_method": "bitnet", "use_rms_norm": True}, "a norm in front of each matrix"),
    "algorithm": ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "is 'W4A8_AWQ': read are"),
    "layers' bits": (
        {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:llm_compressor"},
        "is 'auto_round:llm_compressor', not one of",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_is_not_read_is_refused_by_name(name: str) -> None:
    section, why = REFUSED[name]
    with pytest.raises(UserError, match=why):
        methods.of_config({"quantization_config": section}, "config.json")


DAMAGED: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "no zeros": ("gptq", lambda t: t.pop(f"{LAYER}.qzeros"), "has no qzeros: get all of the folder's files"),
    "zeros of other bits": (
        "gptq",
        lambda t: t.update({f"{LAYER}.qzeros": t[f"{LAYER}.qzeros"][:, :4].contiguous()}),
        "which is not GPTQ of 4 bits",
    ),
    "groups beyond": (
        "gptq",
        lambda t: t[f"{LAYER}.g_idx"].add_(1),
        "g_idx that does not name one of 3 groups",
    ),
    "no scale": ("fp8", lambda t: t.pop(f"{LAYER}.weight_scale_inv"), "has no scale_inv"),
    "scales of another matrix": (
        "fp8",
        lambda t: t.update({f"{LAYER}.weight_scale_inv": torch.ones(5, 7)}),
        "has scales of 5 x 7, which do not fit it",
    ),
    "half a matrix": (
        "nf4",
        lambda t: t.update({f"{LAYER}.weight": t[f"{LAYER}.weight"][:99].contiguous()}),
        "has 99 bytes, where 6144 numbers take 3072",
    ),
    "another table": ("nf4", lambda t: t[f"{LAYER}.weight.quant_map"].neg_(), "quant_map that is not nf4's"),
    "a shape beyond": (
        "w4a16",
        lambda t: t[f"{LAYER}.weight_shape"].mul_(1 << 40),
        "weight_shape|as I32 of|which pack-quantized is not|is needed",
    ),
    "a kernel's layout": (
        "torchao-int4",
        lambda t: t.update({f"{LAYER}._weight_scale_and_zero": torch.ones(2)}),
        "a layout of a GPU's kernels",
    ),
    "an activation's scale": (
        "torchao-int4",
        lambda t: t.update({f"{LAYER}._weight_act_pre_scale": torch.ones(2)}),
        "act_pre_scale, which scales what it multiplies",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_layer_that_does_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    of, damage, why = DAMAGED[name]
    section, tensors, _ = stored(of)
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=why) as problem:
        joined(section, safetensors.read_safetensors(tmp_path))
    assert LAYER in str(problem.value) and "\n" not in str(problem.value)


def test_older_tools_files_say_how_a_folder_is_quantised(tmp_path: Path) -> None:
    """AutoGPTQ's quantize_config.json and ModelOpt's hf_quant_config.json, where config.json says nothing."""
    assert methods.describe({}, tmp_path) is None
    (tmp_path / "quantize_config.json").write_text(
        json.dumps({"bits": 4, "group_size": 128, "desc_act": True})
    )
    assert methods.describe({}, tmp_path) == "GPTQ, 4 bits, groups of 128, by activation order"
    (tmp_path / "quantize_config.json").unlink()
    awq = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}  # AutoAWQ, issue 229
    (tmp_path / "quant_config.json").write_text(json.dumps(awq))
    assert methods.describe({}, tmp_path) == "AWQ, 4 bits, groups of 128"
    (tmp_path / "quant_config.json").unlink()
    inner = {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"]}
    (tmp_path / "hf_quant_config.json").write_text(
        json.dumps({"producer": {"name": "modelopt", "version": "0.29"}, "quantization": inner})
    )
    assert methods.describe({}, tmp_path) == "ModelOpt NVFP4, 4 bits, groups of 16"


def test_a_wrappers_text_is_quantised_as_the_wrapper_says(
    plain: Callable[[str], Path], tmp_path: Path
) -> None:
    """The section is the wrapper's own, and its names are the wrapper's."""
    values = quantise(plain("llama"), tmp_path / "q", "gptq")
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    section = config.pop("quantization_config")
    wrapper = {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": config,
    }
    (tmp_path / "q" / "config.json").write_text(json.dumps(wrapper | {"quantization_config": section}))
    weights = load_file(tmp_path / "q" / "model.safetensors")
    renamed = {f"language_model.{name}": weight for name, weight in weights.items()}
    save_file(renamed, tmp_path / "q" / "model.safetensors")
    with torch.no_grad():
        assert distance(ours(tmp_path / "q"), theirs(values)(IDS).logits[0]) < EXACT


@pytest.mark.filterwarnings("ignore:.*but none is stored so")
def test_a_family_that_is_stored_transposed_is_refused(tmp_path: Path) -> None:
    """GPT-2's matrices are transposed before they are quantised, which a square one would hide."""
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(data | {"quantization_config": quantizing.GPTQ}))
    with pytest.raises(UserError, match="quantized folders of gpt2, whose matrices are stored transposed"):
        load.read_checkpoint(tmp_path)
