"""AutoRound (2309.05516): numbers rounded by gradients, in the layouts of GPTQ and AWQ.

``packing_format`` names the layout: ``auto_round:auto_gptq`` is GPTQ's first version, ``auto_round`` (and
``auto_round:gptqmodel``) the same with zeros as they are, ``auto_round:auto_awq`` AWQ's gemm.
"""

from __future__ import annotations

from dataclasses import replace

from cutaway.weights.fields import Fields
from cutaway.weights.quantized import awq, gptq
from cutaway.weights.quantized.method import Method, keys

LAYOUTS = {
    "auto_round": "gptq_v2",
    "auto_round:gptqmodel": "gptq_v2",
    "auto_round:gptq": "gptq",
    "auto_round:auto_gptq": "gptq",
    "auto_round:awq": "awq",
    "auto_round:auto_awq": "awq",
}
HARMLESS = keys(
    """
    quant_method autoround_version iters seqlen nsamples lr minmax_lr enable_quanted_input amp
    dataset low_gpu_mem_usage gradient_accumulate_steps enable_minmax_tuning scale_dtype
    enable_norm_bias_tuning train_bs block_name_to_quantize to_quant_block_names quant_block_list
    enable_alg_ext batch_size supported_types backend act_bits act_data_type act_dynamic
    act_group_size act_sym super_bits super_group_size enable_quanted_input low_cpu_mem_usage
    momentum model_path output_dir
    """
)


def read(fields: Fields) -> Method:
    """The method of a config's section."""
    layout = fields.choice("packing_format", LAYOUTS, "auto_round:auto_gptq")
    fields.only("data_type", ("int", None), "another kind of number")
    settings = {key: fields.get(key) for key in ("bits", "group_size", "sym")}
    if isinstance(own := fields.get("extra_config"), dict) and layout != "awq":
        settings["dynamic"] = own  # single layers' bits, which their shapes show
    elif own is not None:
        raise fields.refusal("extra_config", "gives single layers other settings, which AWQ's layout has not")
    fields.finish(HARMLESS, "AutoRound has")
    if layout != "awq":
        settings["checkpoint_format"] = layout
    inner = Fields(
        {f"{fields.prefix}{key}": value for key, value in settings.items()}, fields.where, fields.prefix
    )
    method = (awq if layout == "awq" else gptq).read(inner)
    return replace(method, name=f"AutoRound as {method.name}")
