"""Folders whose weights are quantised: each method's values to the bit, whole models against transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import cutaway
from cutaway import gguf
from cutaway.weights import quant, quantized, safetensors
from cutaway.weights.quantized.stored import KINDS, rounded, widened
from tests import quantizing

HERE = Path(__file__).parent / "published" / "quantized"
GOLDEN = sorted((HERE / "golden").glob("*.safetensors"))
SECTIONS = [json.loads(line) for line in (HERE / "sections.jsonl").read_text("utf-8").splitlines()]
LAYER = "model.layers.0.self_attn.q_proj"
transformers = pytest.importorskip("transformers")


def same_bits(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return ours.shape == theirs.shape and bool((ours.view(np.uint32) == theirs.view(np.uint32)).all())


def joined(section: dict[str, Any], tensors: dict[str, gguf.Packed]) -> dict[str, gguf.Packed]:
    method = quantized.of_config({"quantization_config": section}, "config.json")
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

    The files were written by the libraries themselves (scripts/quantized_golden.py).
    """
    tensors, texts = dict(safetensors.read(path)), safetensors.metadata(path)
    theirs = tensors.pop("expected")
    ((name, packed),) = joined(json.loads(texts["section"]), tensors).items()
    expected = widened(theirs.data.reshape(-1).view(KINDS[theirs.type]), theirs.type).reshape(theirs.shape)
    assert name == f"{LAYER}.weight" and packed.shape == expected.shape
    ours = rounded(quant.unpack(packed), theirs.type)
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
    ((_, packed),) = joined(section, safetensors.read(tmp_path)).items()
    assert same_bits(quant.unpack(packed), expected.numpy())
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
    ((_, packed),) = joined(section, safetensors.read(tmp_path)).items()
    assert packed.type == KEPT[name]


def test_a_scale_that_no_half_holds_is_not_packed(tmp_path: Path) -> None:
    section, tensors, expected = stored("w4a16")
    scale = tensors[f"{LAYER}.weight_scale"]
    scale[0, 0] = 1e-9
    expected[0, :32] *= 1e-9 / float(expected[0, :32].abs().max() / 7)
    save_file(tensors, tmp_path / "model.safetensors")
    ((_, packed),) = joined(section, safetensors.read(tmp_path)).items()
    assert packed.type == "F32"
    assert same_bits(quant.unpack(packed)[1:], expected[1:].numpy())


def test_columns_in_activation_order_have_their_own_groups(tmp_path: Path) -> None:
    """GPTQ with desc_act: number by number, by the group that g_idx names."""
    section, tensors, _ = stored("gptq-v2")
    order = torch.randperm(96, generator=torch.Generator().manual_seed(3)) % 3
    tensors[f"{LAYER}.g_idx"] = order.int()
    save_file(tensors, tmp_path / "model.safetensors")
    ((_, packed),) = joined(section | {"desc_act": True}, safetensors.read(tmp_path)).items()
    ours = quant.unpack(packed)
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
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
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


def quantise(source: Path, target: Path, name: str) -> torch.Tensor:
    """Write the folder with every linear layer but the head quantised; the logits of its values."""
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
    model = transformers.AutoModelForCausalLM.from_pretrained(values, dtype=torch.float32)
    with torch.no_grad():
        return model(IDS).logits[0]


@pytest.mark.parametrize(("family", "name"), FOLDERS)
def test_a_folder_has_the_logits_of_its_values(
    family: str, name: str, plain: Callable[[str], Path], tmp_path: Path
) -> None:
    """Both engines, and the definition with weights kept packed, beside transformers on the values."""
    expected = quantise(plain(family), tmp_path / "q", name)
    for settings in (
        {"engine": "definition"},
        {"engine": "definition", "dtype": "packed"},
        {"engine": "runtime"},
    ):
        lm = cutaway.load(tmp_path / "q", **settings)
        ours = torch.as_tensor(np.asarray(lm.logits(IDS[0].tolist())))
        far = float((ours - expected).abs().max())
        assert far < (1e-5 if settings["engine"] == "definition" else 0.05), settings
