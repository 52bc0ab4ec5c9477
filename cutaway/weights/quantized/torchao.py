"""torchao's weights as transformers saves them in safetensors: ``_weight_qdata`` and what is beside it.

Floats of 8 bits (Float8Tensor) with scales of rows, blocks or the matrix; whole numbers of up to 8 bits in
bytes (Int8Tensor, IntxUnpackedToInt8Tensor), where a value is (q - zero_point) scale; and Int4Tensor, which
has signed nibbles, the low one first, and scale and zero_point [groups, out]: q scale + zero_point. Layouts
that a GPU's kernels alone read are refused.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cutaway.errors import quoted
from cutaway.gguf import Packed
from cutaway.weights.fields import Fields
from cutaway.weights.quantized import fp8
from cutaway.weights.quantized import stored as parts
from cutaway.weights.quantized.integers import Grouped, order_of
from cutaway.weights.quantized.method import Method, keys, listed
from cutaway.weights.quantized.stored import WHOLE, Stored

PREFIX = "._weight_"
PARTS = (
    "qdata",
    "scale",
    "zero_point",
    "scale_and_zero",
    "per_tensor_scale",
    "act_pre_scale",
    "packed_weights",
)
PARTS += ("group_scale", "group_zero", "row_scale", "sparse_metadata", "qdata_and_metadata")
UNUSED = (f"{PREFIX}act_quant_scale", f"{PREFIX}act_per_tensor_scale", f"{PREFIX}act_quant_zero_point")
HARMLESS = keys(
    """
    quant_method quant_type quant_type_kwargs include_input_output_embeddings
    untie_embedding_weights
    """
)
BITS = {"Int4": 4, "Int8": 8, "Float8": 8}


def read(fields: Fields) -> Method:
    """The method of a config's section."""
    ignored = listed(fields, "modules_to_not_convert")
    fields.finish(HARMLESS, "torchao has")
    kind, group = _kind(fields.get("quant_type"))
    return Method(
        "torchao",
        tuple(PREFIX + part for part in PARTS),
        lambda stored: _weight(stored, group),
        main=f"{PREFIX}qdata",
        ending=".weight",
        unused=UNUSED,
        bits=next((bits for word, bits in BITS.items() if kind.startswith(word)), None),
        group=group,
        also=kind,
        ignored=ignored,
    )


def _kind(value: object) -> tuple[str, int | None]:
    """The name of torchao's config, and its groups' size."""
    if isinstance(value, dict) and isinstance(value.get("default"), dict):
        value = value["default"]
    if isinstance(value, dict):
        data = value.get("_data")
        group = data.get("group_size") if isinstance(data, dict) else None
        return str(value.get("_type", ""))[:64], group if type(group) is int and group > 0 else None
    return (value[:64] if isinstance(value, str) else ""), None


def _weight(stored: Stored, group: int | None) -> Packed:
    here = replace(
        stored, tensors={part.removeprefix(PREFIX): packed for part, packed in stored.tensors.items()}
    )
    for part in ("scale_and_zero", "per_tensor_scale", "packed_weights", "group_scale", "sparse_metadata"):
        if part in here:
            raise stored.refusal(
                f"has {part}, a layout of a GPU's kernels, which is not read: save it with torchao's plain "
                "packing, or take the unquantized model"
            )
    if "act_pre_scale" in here:
        raise stored.refusal("has act_pre_scale, which scales what it multiplies and is not read")
    type = here.type("qdata")
    if type in fp8.EIGHT:
        renamed = {
            "": here.tensors["qdata"],
            **({"_scale": here.tensors["scale"]} if "scale" in here else {}),
        }
        return fp8.weight(replace(here, tensors=renamed), None)
    if type == "U8" or (type == "I8" and _is_int4(here)):
        return _int4(here, group)
    if type == "I8":
        return _bytes(here, group)
    raise stored.refusal(f"has qdata of {quoted(type)}, a layout of a GPU's kernels, which is not read")


def _is_int4(here: Stored) -> bool:
    """Whether two numbers are in a byte: scales are then [groups, out], and the zero points floats."""
    return "zero_point" in here and here.type("zero_point") in ("BF16", "F16", "F32")


def _int4(here: Stored, group: int | None) -> Packed:
    codes = here.array("qdata", ("U8", "I8"), (None, None)).view(np.uint8)
    rows, columns = shape = parts.checked(here, (codes.shape[0], 2 * codes.shape[1]))
    scale, zero = (here.floats(part, (None, rows)).T for part in ("scale", "zero_point"))
    if not scale.shape[1] or scale.shape != zero.shape or columns % scale.shape[1]:
        raise here.refusal(
            f"is {rows} x {columns} with {scale.shape[1]} groups, which do not share it evenly"
        )

    order_of(here, columns, scale.shape[1], group)

    def values(first: int, last: int) -> np.ndarray:
        pairs = codes[first:last]
        q = np.stack([pairs & 15, pairs >> 4], axis=-1).astype(np.int8)
        signed = (q ^ 8).astype(np.float32) - 8
        grouped = signed.reshape(last - first, scale.shape[1], -1)
        return (grouped * scale[first:last, :, None] + zero[first:last, :, None]).reshape(-1, columns)

    return parts.floats("F32", shape, values, here)


def _bytes(here: Stored, group: int | None) -> Packed:
    q = here.array("qdata", ("I8",), (None, None))
    rows, columns = q.shape
    order_of(here, columns, _grid(here.floats("scale"), rows, here).shape[1], group)

    def both() -> tuple[np.ndarray, np.ndarray | None]:
        scale = _grid(here.floats("scale"), rows, here)
        if "zero_point" not in here or not (zero := here.array("zero_point", WHOLE)).size:
            return scale, None
        return scale, _grid(zero.astype(np.int16), rows, here)

    return Grouped((rows, columns), lambda a, b: q[a:b].astype(np.int16), both, -128, 127).packed(here)


def _grid(values: np.ndarray, rows: int, here: Stored) -> np.ndarray:
    """Scales or zeros as [rows or 1, groups]."""
    if values.size == 1:
        return values.reshape(1, 1)
    if values.shape == (rows,):
        return values[:, None]
    if values.ndim == 2 and values.shape[0] in (1, rows) and values.shape[1]:
        return values
    raise here.refusal(f"has scales of {' x '.join(map(str, values.shape))}, which do not fit {rows} rows")
