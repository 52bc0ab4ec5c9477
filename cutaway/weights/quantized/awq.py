"""AWQ (2306.00978): whole numbers of 4 bits whose scales are chosen for the activations.

As ``gemm`` has it: ``qweight`` int32 [in, out / 8], ``qzeros`` int32 [groups, out / 8], ``scales`` half
[groups, out], where the eight outputs of a word are in the order 0 2 4 6 1 3 5 7 from its lowest bits. As
``gemv`` has it: ``qweight`` [out, in / 8] in order, ``qzeros`` [out, w], ``scales`` [out, 8 w], filled up to
whole words. A value is (q - zero) scale.
"""

from __future__ import annotations

import numpy as np

from cutaway.gguf import Packed
from cutaway.weights.fields import Fields
from cutaway.weights.quantized import gptq
from cutaway.weights.quantized.integers import Grouped, order_of
from cutaway.weights.quantized.integers import fields as fields_of
from cutaway.weights.quantized.method import Method, keys, listed
from cutaway.weights.quantized.stored import FLOATS, Stored

BITS = 4
PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # of output i of eight among a word's nibbles
HARMLESS = (*gptq.HARMLESS, *keys("bits w_bit do_fuse fuse_max_seq_len modules_to_fuse"))


def read(fields: Fields) -> Method:
    """The method of a config's section."""
    bits = fields.integer("w_bit" if fields.has("w_bit") else "bits", BITS, low=1, high=32)
    if bits != BITS:
        raise fields.refusal("bits", f"is {bits}: AWQ of {BITS} bits is read")
    stated = [key for key in ("version", "format", "checkpoint_format") if fields.get(key) is not None]
    words = {word: name for name in ("gemm", "gemv") for word in (name, name.upper())}
    versions = {fields.choice(key, words) for key in stated} or {"gemm"}
    if len(versions) > 1:
        raise fields.refusal(stated[0], f"and {stated[1]} disagree")
    if fields.get("backend") == "llm-awq":  # the other words name kernels, which read the same layout
        raise fields.refusal("backend", "is 'llm-awq', a layout of its own, which is not read")
    key = "q_group_size" if fields.has("q_group_size") else "group_size"
    group = gptq.group_of(fields) if key == "group_size" else fields.integer(key, low=1)
    fields.flag("zero_point", None)
    ignored = listed(fields, "modules_to_not_convert")
    fields.finish(HARMLESS, "AWQ has")
    (version,) = versions

    def weight(stored: Stored) -> Packed:
        return _gemm(stored, group) if version == "gemm" else _gemv(stored, group)

    return Method(
        "AWQ",
        (".qzeros", ".scales"),
        weight,
        main=".qweight",
        ending=".weight",
        bits=BITS,
        group=group,
        ignored=ignored,
        also="" if version == "gemm" else version,
    )


def _gemm(stored: Stored, group: int | None) -> Packed:
    groups, rows = stored.array(".scales", FLOATS, (None, None)).shape
    qweight = stored.array(".qweight", ("I32",), (None, rows // 8))
    words = stored.array(".qzeros", ("I32",), (groups, rows // 8))
    if rows % 8:
        raise stored.refusal(f"has {rows} rows, which are not in whole words of eight")
    columns = qweight.shape[0]
    order_of(stored, columns, groups, gptq.size_of(stored, columns, groups, {group}))

    def q(first: int, last: int) -> np.ndarray:
        low, high = first // 8, -(-last // 8)
        found = _in_order(qweight[:, low:high], 8 * (high - low))
        return np.ascontiguousarray(found[:, first - 8 * low : last - 8 * low].T)

    def both() -> tuple[np.ndarray, np.ndarray]:
        return stored.floats(".scales").T, _in_order(words, rows).T

    return Grouped((rows, columns), q, both, 0, 15).packed(stored)


def _in_order(words: np.ndarray, count: int) -> np.ndarray:
    """The nibbles of each row of words by outputs: int16 [n count]."""
    found = fields_of(words, BITS, count).reshape(len(words), -1, 8)
    return found[..., PLACES].reshape(len(words), -1)


def _gemv(stored: Stored, group: int | None) -> Packed:
    qweight = stored.array(".qweight", ("I32",), (None, None))
    rows, columns = qweight.shape[0], 8 * qweight.shape[1]
    groups = -(-columns // (columns if group == -1 else group or gptq.GROUP)) if columns else 0
    words = stored.array(".qzeros", ("I32",), (rows, None))
    wide = stored.array(".scales", FLOATS, (rows, 8 * words.shape[1])).shape[1]
    if not 0 < groups <= wide:
        raise stored.refusal(f"has {wide} scales a row, where {groups} groups are")
    order_of(stored, columns, groups, group or gptq.GROUP)

    def q(first: int, last: int) -> np.ndarray:
        return fields_of(qweight[first:last], BITS, columns)

    def both() -> tuple[np.ndarray, np.ndarray]:
        return stored.floats(".scales")[:, :groups], fields_of(words, BITS, groups)

    return Grouped((rows, columns), q, both, 0, 15).packed(stored)
