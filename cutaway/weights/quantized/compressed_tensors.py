"""compressed-tensors, what LLM Compressor writes: groups of modules, each with a scheme of its own.

A scheme's layout shows in what is stored beside ``weight_scale``: ``weight`` of type I8 or F8_E4M3 (naive,
int and float quantized, MXFP8); ``weight_packed`` int32 (pack-quantized: numbers of 1 to 8 bits, signed,
stored with half their range added, the lowest bits first and across words); ``weight_packed`` uint8 (NVFP4
with a ``weight_global_scale`` that divides, MXFP4 with bytes for scales). ``weight_zero_point`` is taken off,
packed along the rows in pack-quantized; ``weight_g_idx`` is the group of each column.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from cutaway.errors import quoted
from cutaway.gguf import Packed
from cutaway.weights.fields import Fields
from cutaway.weights.quantized import fp4, fp8
from cutaway.weights.quantized.integers import Grouped, order_of
from cutaway.weights.quantized.integers import fields as fields_of
from cutaway.weights.quantized.method import Method, keys, listed, matches
from cutaway.weights.quantized.stored import FLOATS, WHOLE, Stored

FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "mixed-precision",
)
PARTS = ("_packed", "_scale", "_zero_point", "_shape", "_g_idx", "_global_scale")
HARMLESS = keys(
    """
    quant_method global_compression_ratio version kv_cache_scheme run_compressed quantization_status
    """
)
HARMLESS += ("moe_sparsity_config", "use_optimized_inference", "dequantize", "producer", "quant_algo")
STRATEGIES = ("tensor", "channel", "group", "block", "tensor_group")


@dataclass(frozen=True)
class Scheme:
    """How the weights of some modules are quantised."""

    targets: tuple[str, ...]
    bits: int
    float: bool
    symmetric: bool
    group: (
        int | None
    )  # numbers that share a scale, -1 where a row or a matrix does, None where none is stated
    block: tuple[int, int] | None

    @property
    def words(self) -> str:
        kind = "float" if self.float else "int"
        group = f" in groups of {self.group}" if self.group and self.group > 0 else ""
        block = f" in blocks of {self.block[0]} x {self.block[1]}" if self.block else ""
        return f"{kind}{self.bits}{group}{block}"


def read(fields: Fields) -> Method:
    """The method of a config's section."""
    format = fields.text("format", None)
    if format not in (*FORMATS, None):
        raise fields.refusal("format", f"is {quoted(format)}: read are {', '.join(FORMATS)}")
    fields.only("quantization_status", ("compressed", None), "a model whose quantization is not finished")
    sparse = fields.section("sparsity_config")
    if sparse and sparse.data:
        sparse.only("format", ("dense", None), "sparse weights")
    for key in ("transform_config", "spin_config"):
        if (rotation := fields.section(key)) and any(value for value in rotation.data.values()):
            raise fields.refusal(key, "rotates the weights, which is not read: take a model without it")
    groups = fields.section("config_groups")
    if groups is None or not groups.data:
        raise fields.refusal("config_groups", "is missing: it should say how each group of modules is stored")
    names = [key.removeprefix(groups.prefix) for key in groups.data]
    schemes = tuple(scheme for name in names if (scheme := _scheme(groups, name)))
    if not schemes:
        raise fields.refusal("config_groups", "quantizes no weights")
    ignored = listed(fields, "ignore")
    fields.finish(HARMLESS, "compressed-tensors has")
    one = schemes[0] if len(schemes) == 1 else None
    return Method(
        "compressed-tensors",
        PARTS,
        lambda stored: _weight(stored, schemes),
        takes=lambda name, found: (
            any(part in found for part in PARTS) and bool({"", "_packed"} & found.keys())
        ),
        bits=one.bits if one else None,
        group=one.group if one else None,
        also=(format or one.words) if one else " and ".join(scheme.words for scheme in schemes),
        ignored=ignored,
    )


def _scheme(groups: Fields, name: str) -> Scheme | None:
    """One group of modules, None where its weights are not quantised."""
    own = groups.section(name)
    weights = own.section("weights") if own else None
    if own is None:
        raise groups.refusal(name, "should hold a scheme and its targets")
    targets = listed(own, "targets")
    if weights is None:
        return None
    strategy = weights.text("strategy", None)
    if strategy not in (*STRATEGIES, None):
        raise weights.refusal("strategy", f"is {quoted(strategy)}: read are {', '.join(STRATEGIES)}")
    weights.only("dynamic", (False, None), "weights whose scales are not stored")
    kind = weights.choice("type", {"int": False, "float": True}, "int")
    group = weights.integer("group_size", None, low=-1) or None
    return Scheme(
        targets,
        weights.integer("num_bits", 8, low=1, high=8),
        kind,
        weights.flag("symmetric", True),
        -1 if strategy in ("tensor", "channel") else group,
        _block(weights),
    )


def _block(weights: Fields) -> tuple[int, int] | None:
    """The rows and columns of a block, which older versions write as 128x128."""
    value = weights.get("block_structure")
    if isinstance(value, str) and (found := re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", value)):
        return int(found[1]), int(found[2])
    return fp8.block_of(weights, "block_structure")


def _of(stored: Stored, schemes: tuple[Scheme, ...]) -> Scheme:
    """The scheme of a module: by its name before by its class; UserError where several could be."""
    module = stored.name.removesuffix(".weight")
    named = [each for each in schemes if any(matches(target, module) for target in each.targets)]
    if named:
        return named[0]
    classes = [each for each in schemes if any(target.isidentifier() for target in each.targets)]
    found = classes or list(schemes)
    if len(found) == 1 or len({replace(each, targets=()) for each in found}) == 1:
        return found[0]
    raise stored.refusal("fits no target of the config_groups: get the folder's own config.json")


def _weight(stored: Stored, schemes: tuple[Scheme, ...]) -> Packed:
    type = stored.type("_packed") or stored.type("")
    if {"", "_packed"} <= stored.tensors.keys():
        raise stored.refusal("is stored twice, as weight and as weight_packed: take a folder of one")
    if type in fp8.EIGHT:
        return _float8(stored, _of(stored, schemes))
    if type == "I32":
        return _numbers(stored, _of(stored, schemes))
    if type == "I8":
        return _bytes(stored, _of(stored, schemes))
    if type == "U8":
        own = 16 if stored.type("_scale") != "U8" else 32
        if not {each.group for each in schemes} & {None, own}:
            raise stored.refusal(f"has groups of {own}, and no scheme of the config states that size")
        return fp4.weight(stored, "_packed", "_scale", "_global_scale", divides=True)
    if type in FLOATS:
        raise stored.refusal(f"is stored as {type} beside its scales: it is not quantized yet")
    raise stored.refusal(f"is stored as {type or 'nothing'}, which compressed-tensors does not write")


def _float8(stored: Stored, scheme: Scheme) -> Packed:
    main = stored.array("", fp8.EIGHT)
    if "_zero_point" in stored and stored.array("_zero_point", (*fp8.EIGHT, *FLOATS, *WHOLE)).any():
        raise stored.refusal("has a weight_zero_point of floats of 8 bits, which is not read")
    _check_zeros(stored, scheme)
    block = scheme.block
    if block is None and scheme.group is not None:
        columns = main.shape[-1] if main.ndim else 0
        scale = stored.array("_scale", (*FLOATS, "U8", "F8_E8M0"))
        groups = scale.shape[-1] if scale.ndim > 1 and scale.ndim == main.ndim else 1
        order_of(stored, columns, groups, scheme.group)
        block = None if scheme.group == -1 else (1, scheme.group)
    return fp8.weight(stored, block)


def _check_zeros(stored: Stored, scheme: Scheme) -> None:
    if "_zero_point" not in stored and not scheme.symmetric:
        raise stored.refusal("has no weight_zero_point, and its scheme is not symmetric")


def _bytes(stored: Stored, scheme: Scheme) -> Packed:
    q = stored.array("", ("I8",), (None, None))
    rows, columns = q.shape
    _check_zeros(stored, scheme)
    order = _order(stored, (rows, columns), scheme)

    def both() -> tuple[np.ndarray, np.ndarray | None]:
        scale = _grid(stored, stored.floats("_scale"), q.shape, scheme)
        if "_zero_point" not in stored:
            return scale, None
        zero = stored.array("_zero_point", WHOLE).astype(np.int16)
        return scale, _grid(stored, zero, q.shape, scheme)

    return Grouped((rows, columns), lambda a, b: q[a:b].astype(np.int16), both, -128, 127, order).packed(
        stored
    )


def _order(stored: Stored, shape: tuple[int, int], scheme: Scheme) -> np.ndarray | None:
    """The group of each column where their sizes differ; UserError where what is stated does not fit."""
    groups = _grid(stored, stored.floats("_scale"), shape, scheme).shape[1]
    if scheme.block:
        return order_of(stored, shape[1], groups, scheme.block[1], even=False)
    return order_of(stored, shape[1], groups, scheme.group)


def _grid(stored: Stored, values: np.ndarray, shape: tuple[int, ...], scheme: Scheme) -> np.ndarray:
    """Scales or zeros as [rows or 1, groups]: of a matrix, of rows, of groups or of blocks of rows."""
    rows, columns = shape
    if block := scheme.block:
        if values.shape == (-(-rows // block[0]), -(-columns // block[1])):
            return values[np.arange(rows) // block[0]]
    elif values.size == 1:
        return values.reshape(1, 1)
    elif values.shape == (rows,):
        return values[:, None]
    elif values.ndim == 2 and values.shape[0] == rows and values.shape[1]:
        return values
    says = f": the config states blocks of {block[0]} x {block[1]}" if block else ""
    raise stored.refusal(
        f"is {rows} x {columns} and has scales of {' x '.join(map(str, values.shape))}, "
        f"which do not fit it{says}"
    )


def _numbers(stored: Stored, scheme: Scheme) -> Packed:
    shape = stored.array("_shape", ("I64", "I32"), (2,))
    rows, columns = (int(n) for n in shape)
    bits, half = scheme.bits, np.int16(1 << scheme.bits - 1)
    if rows < 1 or columns < 1 or scheme.float:
        raise stored.refusal(f"is {rows} x {columns} of {scheme.words}, which pack-quantized is not")
    words = stored.array("_packed", ("I32",), (rows, -(-columns * bits // 32)))
    groups = _grid(stored, stored.floats("_scale"), (rows, columns), scheme).shape[1]
    order = _order(stored, (rows, columns), scheme)
    if "_g_idx" in stored:
        named = stored.array("_g_idx", ("I32", "I64"), (columns,)).astype(np.int64)
        if not (named == -1).all():
            order = None if _is_plain(named, groups) else named
    _check_zeros(stored, scheme)

    def both() -> tuple[np.ndarray, np.ndarray | None]:
        scale = _grid(stored, stored.floats("_scale"), (rows, columns), scheme)
        if "_zero_point" not in stored:
            return scale, None
        if stored.type("_zero_point") == "I8":  # as older versions store them
            zero = stored.array("_zero_point", ("I8",)).astype(np.int16)
            return scale, _grid(stored, zero, (rows, columns), scheme)
        packed = stored.array("_zero_point", ("I32",), (-(-len(scale) * bits // 32), groups))
        return scale, (fields_of(packed.T, bits, len(scale)) - half).T

    def q(first: int, last: int) -> np.ndarray:
        return fields_of(words[first:last], bits, columns) - half

    return Grouped((rows, columns), q, both, -int(half), int(half) - 1, order).packed(stored)


def _is_plain(order: np.ndarray, groups: int) -> bool:
    """Whether a g_idx names groups of neighbours, all of one size."""
    return len(order) % groups == 0 and bool((order == np.arange(len(order)) // (len(order) // groups)).all())
