"""The method by which a folder's weights are quantised, found by its config or other files."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from cutaway.errors import UserError, quoted
from cutaway.store.reading import parsed
from cutaway.weights.family import Family
from cutaway.weights.fields import Fields
from cutaway.weights.quantized import mxfp4
from cutaway.weights.quantized.method import Method
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import transpose

METHODS = {  # the file of each ``quant_method``
    "awq": "awq",
    "auto-round": "auto_round",
    "intel/auto-round": "auto_round",
    "bitnet": "bitnet",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed_tensors",
    "fbgemm_fp8": "fp8",
    "fp8": "fp8",
    "gptq": "gptq",
    "hqq": "hqq",
    "modelopt": "modelopt",
    "modelopt_fp4": "modelopt",
    "mxfp4": "mxfp4",
    "mxfp8": "fp8",
    "torchao": "torchao",
}
SECTIONS = ("quantization_config", "compression_config")
FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
UNQUANTIZED = "take the unquantized model, or a GGUF file of it"


def of_folder(data: Mapping[str, object], folder: Path, where: object) -> Method | None:
    """How the weights of a folder with this config are quantised, None where they are not."""
    if found := of_config(data, where):
        return found
    for name, method in FILES.items():  # where a config says nothing: older and other tools' files
        if (path := folder / name).is_file():
            return _read(Fields({"quant_method": method, **_flat(parsed(path))}, path))
    return None


def of_config(data: Mapping[str, object], where: object) -> Method | None:
    """How a config says that its model is quantised, None where it does not."""
    fields = Fields(data, where)
    text = data.get("text_config")
    for source in (fields, Fields(text, where, "") if isinstance(text, dict) else fields):
        for name in SECTIONS:
            if section := source.section(name):
                return _read(section)
    return None


def describe(data: Mapping[str, object], folder: Path) -> str | None:
    """How the weights of a folder are quantised, in words for people; None where they are not."""
    method = of_folder(data, folder, folder / "config.json")
    return None if method is None else method.summary


def names(method: Method, family: Family, plain: Sequence[Rule], where: object) -> Sequence[Rule]:
    """The table of names of a quantised folder; UserError for a family whose layout the method changes."""
    if method.name == mxfp4.NAME:
        if not family.hf_mxfp4:
            raise UserError(f"{where}: {family.name} models have no experts in MXFP4: {UNQUANTIZED}")
        return family.hf_mxfp4
    if any(rule.how is transpose for rule in plain):
        raise UserError(
            f"{where}: quantized folders of {family.name}, whose matrices are stored transposed where they "
            f"are not quantized, are not read: {UNQUANTIZED}"
        )
    return plain


def _read(fields: Fields) -> Method:
    method = fields.text("quant_method", None) or _older(fields)
    if method not in METHODS:
        raise fields.refusal(
            "quant_method",
            f"says the weights are quantized by {quoted(method)}, which is not read: {UNQUANTIZED}",
        )
    return importlib.import_module(f"cutaway.weights.quantized.{METHODS[method]}").read(fields)


def _older(fields: Fields) -> str:
    """The method of a config that does not name it."""
    if fields.flag("load_in_4bit", None) or fields.flag("load_in_8bit", None):
        return "bitsandbytes"
    return "compressed-tensors" if fields.has("config_groups") else "unknown"


def _flat(data: dict) -> dict:
    """hf_quant_config.json holds its settings in a section."""
    inner = data.get("quantization")
    return {**data, **inner} if isinstance(inner, dict) else data
