"""Weights quantised as each method stores them, by its published formula: plain, slow and read once.

Each function takes a matrix [out in] and gives the tensors of a linear layer by the ends of their names, and
the float32 values that they mean. ``SECTIONS`` are the config's sections; sources are in the docstrings.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Stored = tuple[dict[str, Tensor], Tensor]
GROUP = 32


def affine(w: Tensor, bits: int, symmetric: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q [out in], scale and zero [out groups], with w about (q - zero) scale and q from 0 to 2^bits - 1."""
    parts, most = w.reshape(len(w), -1, GROUP), (1 << bits) - 1
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scale = ((high - low) / most).clamp(min=1e-6).to(dtype)
    middle = torch.full_like(low, 1 << bits - 1)
    zero = middle if symmetric else torch.round(-low / scale.float()).clamp(0, most)
    q = torch.round(parts / scale.float()[..., None] + zero[..., None]).clamp(0, most)
    return q.reshape(w.shape).int(), scale, zero.int()


def values(q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """(q - zero) scale in float32, number by number of a group."""
    groups = q.reshape(len(q), -1, GROUP)
    return ((groups - zero[..., None]).float() * scale.float()[..., None]).reshape(q.shape)


def words(numbers: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """int32 [rows n * bits / 32] of whole numbers [rows n], the lowest bits first; ``order`` of a word's."""
    rows = []
    for row in numbers.tolist():
        if order:
            row = [row[at + i] for at in range(0, len(row), len(order)) for i in order]
        whole = sum(number << bits * i for i, number in enumerate(row))
        count = -(-len(row) * bits // 32)
        own = [whole >> 32 * i & 0xFFFFFFFF for i in range(count)]
        rows.append([word - (1 << 32) if word >> 31 else word for word in own])
    return torch.tensor(rows, dtype=torch.int32)


def gptq(w: Tensor, bits: int = 4, symmetric: bool = True, less: int = 1) -> Stored:
    """AutoGPTQ's qlinear_cuda_old.py, pack(): zeros stored less one in the first version."""
    q, scale, zero = affine(w, bits, symmetric, torch.float16)
    stored = (zero.T - less) & (1 << bits) - 1
    tensors = {".qweight": words(q, bits).T.contiguous(), ".qzeros": words(stored, bits)}
    tensors |= {
        ".scales": scale.T.contiguous(),
        ".g_idx": torch.arange(w.shape[1], dtype=torch.int32) // GROUP,
    }
    return tensors, values(q, scale, zero)


def awq(w: Tensor) -> Stored:
    """AutoAWQ's WQLinear_GEMM: outputs of a word in the order 0 2 4 6 1 3 5 7."""
    q, scale, zero = affine(w, 4, False, torch.float16)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    tensors = {".qweight": words(q.T, 4, order), ".qzeros": words(zero.T, 4, order)}
    return tensors | {".scales": scale.T.contiguous()}, values(q, scale, zero)


def awq_gemv(w: Tensor) -> Stored:
    """AutoAWQ's WQLinear_GEMV: inputs of a word in order; zeros and scales filled up to whole words."""
    q, scale, zero = affine(w, 4, False, torch.float16)
    wide = -(-zero.shape[1] // 8) * 8
    fill = (0, wide - zero.shape[1])
    pad = torch.nn.functional.pad
    tensors = {".qweight": words(q, 4), ".qzeros": words(pad(zero, fill), 4), ".scales": pad(scale, fill)}
    return tensors, values(q, scale, zero)


def packed(w: Tensor) -> Stored:
    """compressed-tensors' pack_to_int32: signed numbers, 8 added, in the model's bfloat16."""
    q, scale, zero = affine(w, 4, True, torch.bfloat16)
    tensors = {".weight_packed": words(q, 4), ".weight_scale": scale}
    return tensors | {".weight_shape": torch.tensor(w.shape)}, values(q, scale, zero)


def int8(w: Tensor) -> Stored:
    """compressed-tensors' int-quantized: a row's scale in bfloat16."""
    scale = (w.abs().amax(1, keepdim=True) / 127).to(torch.bfloat16)
    q = torch.round(w / scale.float()).clamp(-128, 127).to(torch.int8)
    return {".weight": q, ".weight_scale": scale}, q.float() * scale.float()


def fp8(w: Tensor, rows: int = 16, columns: int = 32) -> Stored:
    """DeepSeek-V3's inference/kernel.py, weight_dequant: a scale for each block, cut off at the ends."""
    high, wide = -(-w.shape[0] // rows), -(-w.shape[1] // columns)
    scale, q, back = torch.empty(high, wide), torch.empty_like(w).to(torch.float8_e4m3fn), torch.empty_like(w)
    for i in range(high):
        for j in range(wide):
            here = (slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
            scale[i, j] = w[here].abs().max() / 448
            q[here] = (w[here] / scale[i, j]).to(torch.float8_e4m3fn)
            back[here] = q[here].float() * scale[i, j]
    return {".weight": q, ".weight_scale_inv": scale}, back


NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635]
NF4 += [-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725]
NF4 += [
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]


def nf4(w: Tensor, block: int = 64) -> Stored:
    """bitsandbytes' quantize_4bit, over the flat matrix; QLoRA's appendix E has the table."""
    table, flat = torch.tensor(NF4), w.reshape(-1, block)
    largest = flat.abs().amax(1)
    q = ((flat / largest[:, None])[..., None] - table).abs().argmin(-1).reshape(-1).to(torch.uint8)
    state = {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": list(w.shape)}
    data = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    tensors = {".weight": (q[::2] << 4 | q[1::2])[:, None], ".weight.absmax": largest}
    tensors |= {".weight.quant_map": table, ".weight.quant_state.bitsandbytes__nf4": data}
    back = table[q.int()].reshape(-1, block) * largest[:, None]
    return tensors, back.reshape(w.shape).to(torch.bfloat16).float()


E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def nvfp4(w: Tensor) -> Stored:
    """ModelOpt's NVFP4QTensor: a float of 8 bits for 16 numbers, times one for the matrix."""
    whole = w.abs().max() / (6 * 448)
    parts = w.reshape(len(w), -1, 16)
    scale = (parts.abs().amax(-1) / 6 / whole).to(torch.float8_e4m3fn)
    own = scale.float() * whole
    table = torch.tensor(E2M1 + [-each for each in E2M1])
    q = ((parts / own.clamp(min=1e-12)[..., None])[..., None] - table).abs().argmin(-1).to(torch.uint8)
    flat = q.reshape(w.shape)
    tensors = {".weight": flat[:, ::2] | flat[:, 1::2] << 4, ".weight_scale": scale, ".weight_scale_2": whole}
    return tensors, (table[q.int()] * own[..., None]).reshape(w.shape)


def torchao_int4(w: Tensor) -> Stored:
    """torchao's Int4Tensor, FBGEMM's int4_row_quantize_zp: q from -8 to 7, the middle of a group its zero."""
    parts = w.reshape(len(w), -1, GROUP)
    low, high = parts.amin(-1), parts.amax(-1)
    scale = ((high - low).clamp(min=1e-6) / 15).to(torch.bfloat16)
    zero = (low + 8 * scale.float()).to(torch.bfloat16)
    q = torch.round((parts - low[..., None]) / scale.float()[..., None]).clamp(0, 15).int() - 8
    flat = q.reshape(w.shape)
    tensors = {"._weight_qdata": (flat[:, ::2] & 15 | flat[:, 1::2] << 4).to(torch.int8)}
    tensors |= {"._weight_scale": scale.T.contiguous(), "._weight_zero_point": zero.T.contiguous()}
    return tensors, (q * scale.float()[..., None] + zero.float()[..., None]).reshape(w.shape)


def ternary(w: Tensor) -> Stored:
    """transformers' integrations/bitnet.py, pack_weights: four rows a byte, a quarter of the matrix apart."""
    scale = (1 / w.abs().mean()).to(torch.bfloat16)
    q = torch.round(w * scale.float()).clamp(-1, 1) + 0  # a zero that is stored has no sign
    quarter = len(w) // 4
    bytes = sum((q[i * quarter : (i + 1) * quarter] + 1).to(torch.uint8) << 2 * i for i in range(4))
    return {".weight": bytes, ".weight_scale": scale.reshape(1)}, q / scale.float()


GROUPS = {
    "group_0": {
        "targets": ["Linear"],
        "weights": {
            "num_bits": 4,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": GROUP,
        },
    }
}
ROWS = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
CT = {"quant_method": "compressed-tensors", "quantization_status": "compressed", "ignore": ["lm_head"]}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 32]}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
METHODS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Stored]]] = {
    "gptq": (GPTQ, gptq),
    "gptq-asym": (GPTQ | {"sym": False}, lambda w: gptq(w, symmetric=False)),
    "gptq-v2": (GPTQ | {"checkpoint_format": "gptq_v2"}, lambda w: gptq(w, symmetric=False, less=0)),
    "gptq-8": (GPTQ | {"bits": 8}, lambda w: gptq(w, 8)),
    "gptq-3": (GPTQ | {"bits": 3}, lambda w: gptq(w, 3)),
    "gptq-2": (GPTQ | {"bits": 2}, lambda w: gptq(w, 2)),
    "auto-round": (
        {"quant_method": "auto-round", "bits": 4, "group_size": GROUP, "packing_format": "auto_round"},
        lambda w: gptq(w, symmetric=False, less=0),
    ),
    "auto-round-awq": (
        {
            "quant_method": "auto-round",
            "bits": 4,
            "group_size": GROUP,
            "packing_format": "auto_round:auto_awq",
        },
        awq,
    ),
    "awq": (AWQ, awq),
    "awq-gemv": (AWQ | {"version": "gemv"}, awq_gemv),
    "w4a16": (CT | {"format": "pack-quantized", "config_groups": GROUPS}, packed),
    "w8a8": (CT | {"format": "int-quantized", "config_groups": ROWS}, int8),
    "fp8": (FP8, fp8),
    "nf4": (BNB, nf4),
    "nvfp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}, nvfp4),
    "torchao-int4": (
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}},
        torchao_int4,
    ),
    "bitnet": ({"quant_method": "bitnet"}, ternary),
}
