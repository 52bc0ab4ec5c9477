"""BitNet (2402.17764): ternary matrices with one scale.

Offline: ``weight`` uint8 [out / 4, in] holds four rows a byte, row i of each quarter of the matrix in its
bits 2i, as 0, 1, 2 for -1, 0, 1; or the ternary matrix in floats. ``weight_scale`` divides it (``bitlinear``)
or multiplies it (``autobitlinear``). Online: floats, of which transformers takes the ternary matrix as it
computes: round(w s) / s between -1 and 1, of s = 1 / the mean size of a weight.

Activations are not rounded to 8 bits here, as BitNet's own layers do.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from cutaway.gguf import Packed
from cutaway.weights.fields import Fields
from cutaway.weights.quantized import stored as parts
from cutaway.weights.quantized.method import Found, Method, listed
from cutaway.weights.quantized.stored import FLOATS, Stored

LEAST = np.float32(1e-5)  # mean size of a weight


def read(fields: Fields) -> Method:
    """The method of a config's section."""
    auto = fields.choice("linear_class", {"bitlinear": False, "autobitlinear": True}, "bitlinear")
    online = fields.choice("quantization_mode", {"offline": False, "online": True}, "offline") and auto
    fields.only("use_rms_norm", (False, None), "a norm in front of each matrix")
    ignored = listed(fields, "modules_to_not_convert")
    fields.finish(("quant_method", "rms_norm_eps"), "BitNet has")

    def takes(name: str, found: Found) -> bool:
        module = name.removesuffix(".weight")
        matrix = (
            name.endswith(".weight") and len(found[".weight"].shape) == 2 if ".weight" in found else False
        )
        table = module.endswith(("embed_tokens", "lm_head")) or module in ignored
        return online and matrix and not table

    return Method(
        "BitNet",
        (".weight_scale",),
        lambda stored: _online(stored) if online else _offline(stored, auto),
        main=".weight",
        ending=".weight",
        takes=takes,
        also="ternary" + (", made so on loading" if online else ""),
        ignored=ignored,
    )


def _offline(stored: Stored, multiplies: bool) -> Packed:
    scale = stored.number(".weight_scale")
    if stored.type(".weight") in FLOATS:
        whole = stored.floats(".weight", (None, None))
        shape = parts.checked(stored, whole.shape)
    else:
        bytes = stored.array(".weight", ("U8",), (None, None))
        shape = parts.checked(stored, (4 * bytes.shape[0], bytes.shape[1]))

    def values(first: int, last: int) -> np.ndarray:
        if stored.type(".weight") in FLOATS:
            q = whole[first:last]
        else:
            rows = np.arange(first, last)
            shifts = (2 * (rows // len(bytes))).astype(np.uint8)[:, None]
            q = (bytes[rows % len(bytes)] >> shifts & 3).astype(np.float32) - 1
        return q * scale if multiplies else q / scale

    return parts.floats("F32", shape, values, stored)


def _online(stored: Stored) -> Packed:
    shape = parts.checked(stored, stored.array(".weight", FLOATS, (None, None)).shape)

    @cache
    def scale() -> np.float32:
        mean = np.abs(stored.floats(".weight")).mean(dtype=np.float64)
        return np.float32(1) / np.maximum(np.float32(mean), LEAST)

    def values(first: int, last: int) -> np.ndarray:
        own = parts.widened(stored.array(".weight", FLOATS)[first:last], stored.type(".weight"))
        return np.rint(own * scale()).clip(-1, 1) / scale()

    return parts.floats("F32", shape, values, stored)
