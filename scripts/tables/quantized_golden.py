"""Write tests/published/quantized/golden/: one quantised layer a file, and what its own library makes of it.

Each file holds the tensors of one linear layer as the method's library stores them, the library's own
dequantisation as ``expected``, and in its metadata the config's section and the library's version. Run it in
an environment of its own, on a CPU:

    python -m venv quant && cd quant/bin
    ./pip install torch transformers accelerate compressed-tensors bitsandbytes hqq torchao safetensors
    ./pip install --no-deps nvidia-modelopt omegaconf antlr4-python3-runtime==4.9.3 pulp scipy
    ./pip install --no-deps gptqmodel pypcre logbar threadpoolctl device-smi tokenicer defuser pillow
    ./pip install requests
    ./python ../../scripts/tables/quantized_golden.py

A library that is not installed leaves its files as they are.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

OUT = Path(__file__).parents[2] / "tests" / "published" / "quantized" / "golden"
LAYER = "model.layers.0.self_attn.q_proj"
ROWS, COLUMNS = 32, 128
SHAPE = {"in_features": COLUMNS, "out_features": ROWS, "bias": False, "register_buffers": True}
Made = tuple[dict[str, Any], dict[str, Tensor], Tensor]  # a config's section, a layer's tensors, its weight
MAKERS: dict[str, Callable[[], Iterator[tuple[str, Made]]]] = {}


def maker(library: str) -> Callable[[Any], Any]:
    def register(make: Callable[[], Iterator[tuple[str, Made]]]) -> Any:
        MAKERS[library] = make
        return make

    return register


def weight(rows: int = ROWS, columns: int = COLUMNS, dtype: torch.dtype = torch.float32) -> Tensor:
    """A random matrix with rows of several sizes."""
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    sizes = torch.logspace(-2, 0, rows)[:, None]
    return (torch.randn(rows, columns, generator=generator) * sizes * 0.1).to(dtype)


@maker("compressed-tensors")
def compressed_tensors() -> Iterator[tuple[str, Made]]:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    def one(name: str, format: str, dtype: torch.dtype = torch.bfloat16, **args: Any) -> tuple[str, Made]:
        w = weight(dtype=dtype)
        own = QuantizationArgs(**args)
        activations = QuantizationArgs(num_bits=8, dynamic=True, strategy="token", type=own.type)
        acts = activations if format in ("int-quantized", "float-quantized") else None
        scheme = QuantizationScheme(targets=["Linear"], weights=own, input_activations=acts, format=format)
        strategy = own.strategy
        if strategy in ("group", "tensor_group"):
            parts = w.reshape(ROWS, -1, own.group_size)
            low, high = parts.amin(-1), parts.amax(-1)
        elif strategy == "channel":
            low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
        elif strategy == "block":
            rows, columns = own.block_structure
            parts = w.reshape(ROWS // rows, rows, COLUMNS // columns, columns)
            low, high = parts.amin((1, 3)), parts.amax((1, 3))
        else:
            low, high = w.amin().reshape(1), w.amax().reshape(1)
        more = {}
        if format == "nvfp4-pack-quantized":
            more["global_scale"] = (448.0 * 6.0 / w.abs().max().float()).reshape(1)
        scale, zero = calculate_qparams(low, high, own, **more)
        state = {"weight": w, "weight_scale": scale}
        if not own.symmetric:
            state["weight_zero_point"] = zero
        if more:
            state["weight_global_scale"] = more["global_scale"]
        compressor = BaseCompressor.get_value_from_registry(format)
        stored = compressor.compress(state, scheme)
        expected = compressor.decompress(dict(stored), scheme)["weight"]
        section = {
            "quant_method": "compressed-tensors",
            "format": format,
            "quantization_status": "compressed",
            "config_groups": {"group_0": json.loads(scheme.model_dump_json())},
            "ignore": ["lm_head"],
        }
        return name, (section, {f"{LAYER}.{k}": v for k, v in stored.items()}, expected)

    yield one("ct-w8a8-int8", "int-quantized", num_bits=8, strategy="channel")
    yield one("ct-w8-asym", "naive-quantized", num_bits=8, strategy="channel", symmetric=False)
    yield one("ct-w8a16-group", "pack-quantized", num_bits=8, strategy="group", group_size=32)
    yield one("ct-w4a16", "pack-quantized", num_bits=4, strategy="group", group_size=32)
    yield one("ct-w4a16-f16", "pack-quantized", torch.float16, num_bits=4, strategy="group", group_size=64)
    yield one("ct-w4a16-asym", "pack-quantized", num_bits=4, strategy="group", group_size=32, symmetric=False)
    yield one("ct-w4a16-channel", "pack-quantized", num_bits=4, strategy="channel")
    yield one("ct-w3a16", "pack-quantized", num_bits=3, strategy="group", group_size=32)
    yield one("ct-w2a16", "pack-quantized", num_bits=2, strategy="group", group_size=64, symmetric=False)
    yield one("ct-fp8-channel", "float-quantized", num_bits=8, type="float", strategy="channel")
    yield one("ct-fp8-tensor", "float-quantized", num_bits=8, type="float", strategy="tensor")
    yield one(
        "ct-fp8-block",
        "float-quantized",
        num_bits=8,
        type="float",
        strategy="block",
        block_structure=[16, 64],
    )
    yield one(
        "ct-nvfp4",
        "nvfp4-pack-quantized",
        num_bits=4,
        type="float",
        strategy="tensor_group",
        group_size=16,
        scale_dtype=torch.float8_e4m3fn,
    )
    yield one(
        "ct-mxfp4",
        "mxfp4-pack-quantized",
        num_bits=4,
        type="float",
        strategy="group",
        group_size=32,
        scale_dtype=torch.uint8,
    )
    yield one(
        "ct-mxfp8",
        "mxfp8-quantized",
        num_bits=8,
        type="float",
        strategy="group",
        group_size=32,
        scale_dtype=torch.uint8,
    )


@maker("transformers")
def fp8() -> Iterator[tuple[str, Made]]:
    from types import SimpleNamespace

    from transformers.integrations.bitnet import pack_weights, unpack_weights
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    torch.compiler.set_stance("force_eager")
    dequantize = Fp8Dequantize(SimpleNamespace())._dequantize_one
    w = weight()
    for name, (rows, columns), powers in (("fp8-block", (16, 64), False), ("fp8-ue8m0", (16, 64), True)):
        parts = w.reshape(ROWS // rows, rows, COLUMNS // columns, columns)
        scale = parts.abs().amax((1, 3)) / 448
        scale = torch.exp2(torch.ceil(torch.log2(scale))) if powers else scale
        q = (parts / scale[:, None, :, None]).to(torch.float8_e4m3fn).reshape(w.shape)
        own = scale.to(torch.float8_e8m0fnu) if powers else scale
        section = {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [rows, columns],
        }
        tensors = {f"{LAYER}.weight": q, f"{LAYER}.weight_scale_inv": own}
        yield name, (section, tensors, dequantize(q, own, torch.float32))
    scale = (w.abs().max() / 448).to(torch.bfloat16)
    q = (w / scale).to(torch.float8_e4m3fn)
    section = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    tensors = {f"{LAYER}.weight": q, f"{LAYER}.weight_scale_inv": scale}
    tensors[f"{LAYER}.activation_scale"] = torch.tensor(0.5)
    yield "fp8-tensor", (section, tensors, dequantize(q, scale, torch.float32))
    ternary = torch.randint(-1, 2, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(1)).float()
    packed = pack_weights(ternary.clone())
    back = unpack_weights(packed, torch.float32)
    for name, auto in (("bitnet-bitlinear", False), ("bitnet-autobitlinear", True)):
        scale = torch.tensor([37.25 if not auto else 0.0269], dtype=torch.bfloat16)
        section = {"quant_method": "bitnet", "linear_class": "autobitlinear" if auto else "bitlinear"}
        section["quantization_mode"] = "offline"
        tensors = {f"{LAYER}.weight": packed, f"{LAYER}.weight_scale": scale}
        expected = back * scale.float() if auto else back / scale.float()
        yield name, (section, tensors, expected)


@maker("bitsandbytes")
def bitsandbytes() -> Iterator[tuple[str, Made]]:
    import bitsandbytes as bnb

    def four(
        name: str, kind: str, dtype: torch.dtype, nested: bool, columns: int = COLUMNS
    ) -> tuple[str, Made]:
        w = weight(columns=columns, dtype=dtype)
        q, state = bnb.functional.quantize_4bit(w, quant_type=kind, compress_statistics=nested)
        tensors = {f"{LAYER}.weight": q}
        tensors |= {f"{LAYER}.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        section = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
        section["bnb_4bit_use_double_quant"] = nested
        return name, (section, tensors, bnb.functional.dequantize_4bit(q, state))

    yield four("bnb-nf4", "nf4", torch.bfloat16, False)
    yield four("bnb-nf4-nested", "nf4", torch.bfloat16, True)
    yield four("bnb-nf4-f32", "nf4", torch.float32, True, 136)
    yield four("bnb-nf4-odd", "nf4", torch.float16, False, 33)
    yield four("bnb-fp4", "fp4", torch.float16, True)
    w = weight(dtype=torch.float16)
    q, largest, _ = bnb.functional.int8_vectorwise_quant(w)
    tensors = {f"{LAYER}.weight": q, f"{LAYER}.SCB": largest}
    tensors[f"{LAYER}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
    section = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    yield "bnb-int8", (section, tensors, bnb.functional.int8_vectorwise_dequant(q, largest))


@maker("hqq")
def hqq() -> Iterator[tuple[str, Made]]:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    for bits in (8, 4, 3, 2, 1):
        for axis in (0, 1):
            dtype = (torch.float32, torch.float16, torch.bfloat16)[(bits + axis) % 3]
            linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
            linear.weight.data = weight()
            config = BaseQuantizeConfig(nbits=bits, group_size=64, axis=axis)
            layer = HQQLinear(linear, config, compute_dtype=dtype, device="cpu")
            tensors = {f"{LAYER}.{key}": value.contiguous() for key, value in layer.state_dict().items()}
            section = {"quant_method": "hqq", "quant_config": config, "skip_modules": ["lm_head"]}
            yield f"hqq-{bits}-axis{axis}", (section, tensors, layer.dequantize())


@maker("torchao")
def torchao() -> Iterator[tuple[str, Made]]:
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        PerAxis,
        PerGroup,
        quantize_,
    )

    def one(name: str, config: Any) -> tuple[str, Made]:
        model = torch.nn.Sequential(torch.nn.Linear(COLUMNS, ROWS, bias=False))
        model[0].weight.data = weight(dtype=torch.bfloat16)
        quantize_(model, config)
        tensors, _ = flatten_tensor_state_dict({f"{LAYER}.weight": model[0].weight.data})
        section = {"quant_method": "torchao", "quant_type": {"default": {"_type": type(config).__name__}}}
        return name, (section, tensors, model[0].weight.dequantize())

    yield one("torchao-int8", Int8WeightOnlyConfig(version=2))
    yield one("torchao-int4-group", IntxWeightOnlyConfig(torch.int4, PerGroup(32), version=2))
    yield one("torchao-int6-axis", IntxWeightOnlyConfig(torch.int6, PerAxis(0), version=2))
    yield one("torchao-float8", Float8WeightOnlyConfig(version=2))


@maker("gptqmodel")
def gptq() -> Iterator[tuple[str, Made]]:
    from types import SimpleNamespace

    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
    from gptqmodel.utils.model import (
        convert_gptq_v1_to_v2_format_module,
        convert_gptq_v2_to_v1_format_module,
    )

    def scales_of(w: Tensor, bits: int, group: int, sym: bool) -> tuple[Tensor, Tensor]:
        """A scale and a zero for each group of each row, as GPTQ chooses them."""
        parts, most = w.reshape(len(w), -1, group), (1 << bits) - 1
        low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
        if sym:
            high = torch.maximum(-low, high)
            low = -high
        scale = ((high - low) / most).clamp(min=1e-8)
        zero = torch.full_like(scale, (most + 1) // 2) if sym else torch.round(-low / scale)
        return scale, zero

    def one(name: str, bits: int, group: int, sym: bool, version: int, ordered: bool = False) -> Any:
        linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
        linear.weight.data = weight()
        scale, zero = scales_of(linear.weight.data, bits, group, sym)
        order = torch.arange(COLUMNS, dtype=torch.int32) // group
        if ordered:
            order = order[torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(bits))]
        settings = {"bits": bits, "group_size": group, "sym": sym, "desc_act": ordered}
        layer = TorchLinear(**settings, **SHAPE)
        layer.pack(linear, scale, zero, order)
        if version == 1:
            convert_gptq_v2_to_v1_format_module(layer, SimpleNamespace(bits=bits, pack_dtype=torch.int32))
        tensors = {
            f"{LAYER}.{part}": getattr(layer, part).clone()
            for part in ("qweight", "qzeros", "scales", "g_idx")
        }
        if version == 1:
            convert_gptq_v1_to_v2_format_module(layer, bits, torch.int32)
        layer.post_init()
        section = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": sym, "desc_act": ordered}
        section["checkpoint_format"] = "gptq" if version == 1 else "gptq_v2"
        return name, (section, tensors, layer.dequantize_weight().T)

    yield one("gptq-4", 4, 32, True, 1)
    yield one("gptq-4-asym", 4, 64, False, 1)
    yield one("gptq-4-v2-asym", 4, 32, False, 2)
    yield one("gptq-4-order", 4, 32, False, 1, ordered=True)
    yield one("gptq-2", 2, 64, False, 2)
    yield one("gptq-3", 3, 32, True, 1)
    yield one("gptq-3-asym", 3, 32, False, 1)
    yield one("gptq-8", 8, 128, True, 1)
    for name, group in (("awq-gemm", 32), ("awq-gemm-row", COLUMNS)):
        linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
        linear.weight.data = weight()
        scale, zero = scales_of(linear.weight.data, 4, group, False)
        settings = {"bits": 4, "group_size": group, "sym": False, "desc_act": False}
        layer = AwqTorchLinear(**settings, **SHAPE)
        layer.pack(linear, scale.half(), zero)
        parts = ("qweight", "qzeros", "scales")
        tensors = {f"{LAYER}.{part}": getattr(layer, part).clone() for part in parts}
        expected = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, 4, group).T
        section = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}
        yield name, (section, tensors, expected)


@maker("nvidia-modelopt")
def modelopt() -> Iterator[tuple[str, Made]]:
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    w = weight(dtype=torch.bfloat16)
    found, scale, whole = NVFP4QTensor.quantize(w, 16)
    expected = found.dequantize(dtype=torch.float32, scale=scale, double_scale=whole, block_sizes={-1: 16})
    tensors = {f"{LAYER}.weight": found._quantized_data, f"{LAYER}.weight_scale": scale}
    tensors |= {f"{LAYER}.weight_scale_2": whole, f"{LAYER}.input_scale": torch.tensor(0.25)}
    section = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}
    yield "modelopt-nvfp4", (section, tensors, expected)


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    only = sys.argv[1:]
    for library, make in MAKERS.items():
        if only and library not in only:
            continue
        try:
            version = importlib.metadata.version(library)
            made = list(make())
        except ImportError as problem:
            print(f"{library}: {problem}")
            continue
        for name, (section, tensors, expected) in made:
            texts = {"section": json.dumps(section, default=str), "library": f"{library} {version}"}
            stored = {key: value.detach().contiguous() for key, value in tensors.items()}
            save_file(
                stored | {"expected": expected.detach().contiguous()}, OUT / f"{name}.safetensors", texts
            )
            print(name, {key.removeprefix(LAYER): tuple(value.shape) for key, value in stored.items()})


if __name__ == "__main__":
    main()
