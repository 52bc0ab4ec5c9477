"""NVIDIA's ModelOpt: NVFP4 and FP8 of whole matrices.

NVFP4: ``weight`` uint8 [out, in / 2], ``weight_scale`` F8_E4M3 [out, in / 16], ``weight_scale_2`` one number.
FP8: ``weight`` F8_E4M3 and ``weight_scale``. Which one a weight is shows in its type, so that a model may mix
them. A config names modules that are not quantised by wildcards.
"""

from __future__ import annotations

from cutaway.errors import quoted
from cutaway.gguf import Packed
from cutaway.weights.fields import Fields
from cutaway.weights.quantized import fp4, fp8
from cutaway.weights.quantized.method import ACTIVATIONS, Method, keys, listed
from cutaway.weights.quantized.stored import Stored

ALGORITHMS = {
    "NVFP4": 4,
    "FP8": 8,
    "W4A16_NVFP4": 4,
    "NVFP4_W4A16": 4,
    "FP8_PB_WO": 8,
    "MIXED_PRECISION": None,
}
HARMLESS = keys(
    """
    quant_method quant_algo kv_cache_quant_algo kv_cache_scheme producer group_size config_groups
    quantization has_zero_point pre_quant_scale quantized_layers with_global_scale
    kv_cache_quant_method
    """
)


def read(fields: Fields) -> Method:
    """The method of a config's section, or of hf_quant_config.json."""
    algorithm = fields.text("quant_algo", "NVFP4")
    if algorithm not in ALGORITHMS:
        raise fields.refusal("quant_algo", f"is {quoted(algorithm)}: read are {', '.join(ALGORITHMS)}")
    fields.only("pre_quant_scale", (False, None), "a scale of the activations")
    ignored = listed(fields, "ignore", "exclude_modules")
    fields.finish(HARMLESS, "ModelOpt has")
    bits = ALGORITHMS[algorithm]
    if bits == 4:
        fields.only("group_size", (16, None), "NVFP4 in groups of another size")
    return Method(
        f"ModelOpt {algorithm}",
        ("_scale", "_scale_2"),
        _weight,
        takes=lambda name, found: any(each.type in fp8.EIGHT for each in found.values()),
        unused=tuple(ending for ending in ACTIVATIONS if ending != ".pre_quant_scale"),
        bits=bits,
        group=16 if bits == 4 else None,
        ignored=ignored,
        wildcards=True,
    )


def _weight(stored: Stored) -> Packed:
    if stored.type("") in fp8.EIGHT:
        return fp8.weight(stored, None)
    return fp4.weight(stored, "", "_scale", "_scale_2", divides=False)
