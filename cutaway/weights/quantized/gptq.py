"""GPTQ (2210.17323): whole numbers of 2, 3, 4 or 8 bits, in columns of 32-bit words.

``qweight`` int32 [in * bits / 32, out] holds q of neighbouring inputs in a word, the lowest bits first;
``qzeros`` int32 [groups, out * bits / 32] the zeros of neighbouring outputs, ``scales`` [groups, out] and
``g_idx`` int32 [in] the group of each input. A value is (q - zero) scale. The first version of the format
stores zeros less one, taken off whole words, so that adding it to a word undoes it; ``gptq_v2`` as they are.
"""

from __future__ import annotations

import numpy as np

from cutaway.gguf import Packed
from cutaway.weights.fields import Fields
from cutaway.weights.quantized.integers import Grouped, order_of
from cutaway.weights.quantized.integers import fields as fields_of
from cutaway.weights.quantized.method import Method, keys, listed
from cutaway.weights.quantized.stored import FLOATS, Stored

BITS = (2, 3, 4, 8)
GROUP = 128  # where a config states no group_size, as in transformers
FORMATS = {"gptq": 1, "gptq_v2": 0}
HARMLESS = keys(
    """
    quant_method bits desc_act sym damp_percent true_sequential static_groups model_name_or_path
    dataset model_file_base_name tokenizer meta exllama_config max_input_length use_cuda_fp16
    use_exllama disable_exllama batch_size model_seqlen module_name_preceding_first_block
    modules_in_block_to_quantize pad_token_id backend lm_head block_name_to_quantize
    cache_block_outputs act_group_aware pack_dtype dynamic damp_auto_increment mse format device
    pack_impl adapter rotation quant_type exllama_version awq_gemm_checkpoint
    """
)


def read(fields: Fields) -> Method:
    """The method of a config's section."""
    bits = fields.integer("bits", low=1, high=32)
    if bits not in BITS:
        raise fields.refusal("bits", f"is {bits}: GPTQ of {', '.join(map(str, BITS))} bits is read")
    words = {name: name for name in FORMATS}
    stated = [key for key in ("checkpoint_format", "format") if fields.get(key) is not None]
    versions = {fields.choice(key, words) for key in stated} or {"gptq"}
    if len(versions) > 1:
        raise fields.refusal("checkpoint_format", "and format disagree: one of them is wrong")
    less = FORMATS[versions.pop()]
    fields.only("is_marlin_format", (False, None), "the layout of Marlin's kernels")
    fields.only("rotation", (None, ""), "a rotation of the weights")
    group = group_of(fields)
    ignored = listed(fields, "modules_to_not_convert")
    fields.finish(HARMLESS, "GPTQ has")
    dynamic = fields.get("dynamic")
    several = isinstance(dynamic, dict)
    own = dynamic.values() if isinstance(dynamic, dict) else ()
    sizes = [group, *(each.get("group_size", group) for each in own if isinstance(each, dict))]
    if not all(size is None or (type(size) is int and (size > 0 or size == -1)) for size in sizes):
        raise fields.refusal(
            "dynamic", "gives a layer a group_size that is neither a number nor -1 for a row"
        )

    def weight(stored: Stored) -> Packed:
        return _weight(stored, None if several else bits, less, set(sizes))

    return Method(
        "GPTQ",
        (".qzeros", ".scales", ".g_idx"),
        weight,
        main=".qweight",
        ending=".weight",
        bits=bits,
        group=group,
        ignored=ignored,
        also="by activation order" if fields.flag("desc_act", None) else "",
    )


def group_of(fields: Fields) -> int | None:
    """Numbers of a group, -1 where a row is one, None where nothing is stated."""
    group = fields.integer("group_size", None, low=-1)
    if group == 0:
        raise fields.refusal("group_size", "is 0, and should be the numbers of a group, or -1 for a row")
    return group


def size_of(stored: Stored, columns: int, groups: int, sizes: set[int | None]) -> int | None:
    """The group's size of a layer among those that a config states, None where none is stated."""
    if sizes == {None}:
        return GROUP if -(-columns // GROUP) == groups else None
    wide = {columns if size == -1 else size for size in sizes if size is not None}
    fits = {size for size in wide if size and -(-columns // size) == groups}
    if len({min(size, columns) for size in fits}) > 1:
        raise stored.refusal(
            f"has {groups} groups in rows of {columns}, which several of the stated sizes fit: "
            f"{', '.join(map(str, sorted(fits)))}"
        )
    return min(fits or wide) or None


def _weight(stored: Stored, bits: int | None, less: int, sizes: set[int | None]) -> Packed:
    groups, rows = stored.array(".scales", FLOATS, (None, None)).shape
    words = stored.array(".qzeros", ("I32",), (groups, None))
    own = words.shape[1] * 32 // rows if rows else 0
    if own not in BITS or words.shape[1] * 32 != rows * own or bits not in (None, own):
        raise stored.refusal(
            f"has qzeros of {words.shape[1]} words for {rows} rows, which is not GPTQ of {bits or 'any'} bits"
        )
    qweight = stored.array(".qweight", ("I32",), (None, rows))
    columns = qweight.shape[0] * 32 // own
    if columns * own != qweight.shape[0] * 32:
        raise stored.refusal(f"has {qweight.shape[0]} words in a column, which do not hold {own} bits each")
    order = order_of(stored, columns, groups, size_of(stored, columns, groups, sizes), even=False)
    if ".g_idx" in stored and columns:
        order = stored.array(".g_idx", ("I32", "I64"), (columns,)).astype(np.int64)
        if groups and columns % groups == 0 and (order == np.arange(columns) // (columns // groups)).all():
            order = None

    def q(first: int, last: int) -> np.ndarray:
        return fields_of(qweight[:, first:last].T, own, columns)

    def both() -> tuple[np.ndarray, np.ndarray]:
        return stored.floats(".scales").T, _zeros(words, own, rows, less).T

    return Grouped((rows, columns), q, both, 0, (1 << own) - 1, order).packed(stored)


def _zeros(words: np.ndarray, bits: int, rows: int, less: int) -> np.ndarray:
    """The zeros of each group: int16 [groups rows]."""
    if bits == 3:  # fields cross words, and are counted one by one
        return (fields_of(words, bits, rows) + np.int16(less)) & np.int16(7)
    ones = np.uint32(sum(1 << at for at in range(0, 32, bits)) * less)
    return fields_of((words.view(np.uint32) + ones).view(np.int32), bits, rows)
