"""The sizes of groups and blocks that a config states: used where they fit, refused where they do not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cutaway.errors import UserError
from cutaway.quantization import formats
from cutaway.weights import safetensors
from cutaway.weights.quantized import methods
from tests import quantizing
from tests.quantizing import words

LAYER = "model.layers.0.mlp.up_proj"
FP8: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
GPTQ = quantizing.GPTQ | {"group_size": 64, "sym": False}
RANDOM = torch.Generator().manual_seed(0)


def scales(*shape: int) -> Tensor:
    return (torch.rand(*shape, generator=RANDOM) + 0.1).half().float()


def scheme(bits: int, format: str, **weights: object) -> dict[str, Any]:
    """A config's section of compressed-tensors."""
    group = {"targets": ["Linear"], "weights": {"num_bits": bits, "type": "int"} | weights}
    return {"quant_method": "compressed-tensors", "format": format, "config_groups": {"g": group}}


def values(section: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> Tensor:
    """What is read of a layer's tensors."""
    stored = {LAYER + end: tensor.contiguous() for end, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors")
    method = methods.of_config({"quantization_config": section}, "config.json")
    assert method is not None
    return torch.tensor(
        formats.unpack(method.joined(safetensors.read_safetensors(folder), "folder")[f"{LAYER}.weight"])
    )


def eight(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=RANDOM).to(torch.float8_e4m3fn)


def spread(scale: Tensor, rows: int, columns: int, block: tuple[int, int]) -> Tensor:
    return scale[torch.arange(rows) // block[0]][:, torch.arange(columns) // block[1]]


UNSTATED = {
    "fp8": (FP8, ".weight_scale_inv"),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}, ".weight_scale"),
}


@pytest.mark.parametrize("name", UNSTATED)
def test_blocks_that_no_config_states_are_of_128(name: str, tmp_path: Path) -> None:
    """As in transformers, where 200 rows are 128 and 72; other grids are shared evenly, as are rows."""
    section, part = UNSTATED[name]
    for rows, grid, block in ((200, (2, 2), (128, 128)), (256, (4, 4), (64, 64)), (200, (200, 1), (1, 200))):
        w, scale = eight(rows, rows), scales(*grid)
        expected = w.float() * spread(scale, rows, rows, block)
        assert torch.equal(values(section, {".weight": w, part: scale}, tmp_path), expected)


@pytest.mark.parametrize("block", [(128, 128), (32, 32), (8, 8)])
def test_blocks_that_do_not_fit_the_scales_are_refused(block: tuple[int, int], tmp_path: Path) -> None:
    tensors = {".weight": eight(64, 96), ".weight_scale_inv": scales(4, 6)}
    why = rf"{LAYER}.weight' is 64 x 96 and has scales of 4 x 6, .* states blocks of {block[0]} x {block[1]}"
    with pytest.raises(UserError, match=why):
        values(FP8 | {"weight_block_size": list(block)}, tensors, tmp_path)


def test_a_block_of_columns_may_be_cut_off(tmp_path: Path) -> None:
    """compressed-tensors' blocks of 1 x 128 over 200 columns: 128 and 72."""
    q, scale = torch.randint(-128, 128, (16, 200), generator=RANDOM), scales(16, 2)
    section = scheme(8, "int-quantized", strategy="block", block_structure=[1, 128])
    tensors = {".weight": q.to(torch.int8), ".weight_scale": scale}
    expected = q.float() * spread(scale, 16, 200, (1, 128))
    assert torch.equal(values(section, tensors, tmp_path), expected)
    with pytest.raises(UserError, match="states blocks of 1 x 32"):
        values(
            scheme(8, "int-quantized", strategy="block", block_structure=[1, 32]),
            tensors,
            tmp_path,
        )


def gptq() -> tuple[dict[str, Tensor], Tensor]:
    """96 inputs in groups of 64 and 32, without a g_idx: tensors and values."""
    q, zero = (
        torch.randint(1, 15, (16, 96), generator=RANDOM),
        torch.randint(1, 15, (2, 16), generator=RANDOM),
    )
    scale, group = scales(2, 16), torch.arange(96) // 64
    tensors = {".qweight": words(q, 4).T, ".qzeros": words(zero - 1, 4), ".scales": scale.half()}
    return tensors, (q - zero[group].T).float() * scale[group].T


def test_gptq_takes_the_stated_size_without_a_g_idx(tmp_path: Path) -> None:
    tensors, expected = gptq()
    assert torch.equal(values(GPTQ, tensors, tmp_path), expected)
    own = {"+:.*": {"group_size": 64}, "-:lm_head": {}}
    assert torch.equal(values(GPTQ | {"group_size": 32, "dynamic": own}, tensors, tmp_path), expected)
    with pytest.raises(UserError, match="which several of the stated sizes fit: 48, 64"):
        values(GPTQ | {"group_size": 48, "dynamic": own}, tensors, tmp_path)
    with pytest.raises(UserError, match="dynamic gives a layer a group_size that is neither"):
        values(GPTQ | {"dynamic": {"+:.*": {"group_size": [64]}}}, tensors, tmp_path)
    empty = {
        ".qweight": tensors[".qweight"][:0],
        ".qzeros": tensors[".qzeros"],
        ".scales": tensors[".scales"],
    }
    with pytest.raises(UserError, match="16 x 0, which no weight has"):
        values(GPTQ | {"group_size": -1}, empty, tmp_path)
    for size, count in ((32, 3), (-1, 1)):
        with pytest.raises(UserError, match=f"has 2 groups in rows of 96, where .*, {count} of them"):
            values(GPTQ | {"group_size": size}, tensors, tmp_path)


def test_compressed_tensors_groups_share_a_row_evenly(tmp_path: Path) -> None:
    """Its library raises too; bytes, packed numbers and floats of 8 bits have one rule."""
    q = torch.randint(-8, 8, (16, 96), generator=RANDOM)
    packed = {".weight_packed": words(q + 8, 4), ".weight_shape": torch.tensor([16, 96])}
    layers = (
        (4, "int", "pack-quantized", packed),
        (8, "int", "int-quantized", {".weight": q.to(torch.int8)}),
        (8, "float", "float-quantized", {".weight": eight(16, 96)}),
    )
    for bits, type, format, tensors in layers:
        own = tensors | {".weight_scale": scales(16, 2)}
        for size, why in ((64, "stated groups of 64 do not share evenly"), (32, "3 of them")):
            with pytest.raises(UserError, match=why):
                values(scheme(bits, format, strategy="group", group_size=size, type=type), own, tmp_path)
        with pytest.raises(UserError, match="1 of them"):
            values(scheme(bits, format, strategy="channel", type=type), own, tmp_path)
        section = scheme(bits, format, strategy="group", group_size=48, type=type, symmetric=False)
        with pytest.raises(UserError, match="has no weight_zero_point, and its scheme is not symmetric"):
            values(section, own, tmp_path)


OTHERS = {
    "awq": {"group_size": 16},
    "awq-gemv": {"group_size": 64},
    "auto-round": {"group_size": 16},
    "torchao-int4": {
        "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 16}}}
    },
}


@pytest.mark.parametrize("name", OTHERS)
def test_each_method_refuses_a_stated_size_that_does_not_fit(name: str, tmp_path: Path) -> None:
    section, method = quantizing.METHODS[name]
    tensors, _ = method(torch.randn(64, 96, generator=RANDOM))
    with pytest.raises(UserError, match=rf"{LAYER}.weight' has .*state[ds] groups of (16|64)"):
        values(section | OTHERS[name], tensors, tmp_path)


@pytest.mark.parametrize("name", ["gptq", "w4a16"])
def test_a_weight_that_is_stored_twice_is_refused(name: str, tmp_path: Path) -> None:
    section, method = quantizing.METHODS[name]
    w = torch.randn(16, 96, generator=RANDOM)
    with pytest.raises(UserError, match=rf"{LAYER}.weight' is stored twice"):
        values(section, method(w)[0] | {".weight": w}, tmp_path)


@pytest.mark.parametrize("name", ["gptq", "awq", "nf4", "fp8", "bitnet"])
def test_floats_that_a_config_says_are_quantised_are_named(name: str, tmp_path: Path) -> None:
    w = torch.randn(16, 96, generator=RANDOM)
    with pytest.warns(UserWarning, match="says that the weights are quantized as .*, but none is stored so"):
        assert torch.equal(values(quantizing.METHODS[name][0], {".weight": w}, tmp_path), w)
