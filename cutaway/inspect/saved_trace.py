"""A trace as a file of safetensors, and as tables of pandas and xarray."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.extras import library
from cutaway.inspect.instrumented import BY_HEAD
from cutaway.model.config_dict import from_dict
from cutaway.quantization import formats
from cutaway.store import files
from cutaway.store.reading import parsed_text
from cutaway.weights import safetensors

if TYPE_CHECKING:
    from cutaway.inspect.trace_values import TraceValues

AXES = {  # of an activation by the last part of its name
    **dict.fromkeys(BY_HEAD, ("head", "token", "size")),
    **dict.fromkeys(("scores", "pattern"), ("head", "token", "key")),
    "hidden": ("token", "neuron"),
    "logits": ("token", "vocabulary"),
}
STAGE = re.compile(r"blocks\.\d+\.(middle|out)")  # of the residual stream
TYPES = ("float64", "float32", "float16", "int64", "int32", "bool")
AS_FLOATS = ("bfloat16",)  # of files that were written when activations had it; numpy has not


@dataclass(frozen=True)
class Facts:
    """What a saved trace's file says beside its activations; ``types`` are those of the activations.

    ``engine``: which engine computed them, and why. ``batched``: whether each has an axis of one text in
    front, as it had in files written before there was an ``engine``.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    vocabulary: int
    layers: int
    types: dict
    engine: tuple[str, ...] = ()
    batched: bool = True


def save(trace: TraceValues, path: str | Path) -> Path:
    """Writes ids, tokens and activations, and returns the path."""
    types = {name: str(value.dtype) for name, value in trace.items()}
    facts = {name: getattr(trace, name) for name in ("ids", "tokens", "vocabulary", "layers", "engine")}
    arrays = {name: np.asarray(value, np.float32) for name, value in trace.items()}
    text = json.dumps(facts | {"types": types, "batched": False})
    files.write_file(path, safetensors.packed(arrays, {"format": "cutaway-trace", "trace": text}))
    return Path(path)


def load(path: str | Path) -> tuple[Facts, dict[str, np.ndarray]]:
    """Reads what ``save`` wrote; UserError for another file."""
    written = safetensors.metadata(path)
    if written.get("format") != "cutaway-trace":
        raise UserError(f"{path} is no trace: `trace.save` writes one")
    facts = from_dict(parsed_text(written.get("trace", ""), f"{path}: trace"), Facts, f"{path}: trace")
    if len(facts.tokens) != len(facts.ids):
        raise UserError(f"{path}: has {len(facts.ids)} ids and {len(facts.tokens)} tokens")
    if len(facts.engine) not in (0, 2):
        raise UserError(f"{path}: engine has {len(facts.engine)} parts, not a name and a reason")
    values = {
        name: _value(path, facts, name, packed) for name, packed in safetensors.read_safetensors(path).items()
    }
    return facts, values


def _value(path: str | Path, facts: Facts, name: str, packed: Any) -> np.ndarray:
    kind = facts.types.get(name)
    if not isinstance(kind, str) or kind not in (*TYPES, *AS_FLOATS):
        raise UserError(f"{path}: {quoted(name)} is of type {quoted(kind)}, not {', '.join(TYPES)}")
    value = formats.unpack(packed).astype("float32" if kind in AS_FLOATS else kind)
    if facts.batched and value.ndim > 2:
        value = value[0]
    if name in ("logits", "embed") or STAGE.fullmatch(name) is not None:
        wide = facts.vocabulary if name == "logits" else 1
        if value.shape[:-1] != (len(facts.ids),) or not 0 < wide <= value.shape[-1]:
            raise UserError(
                f"{path}: {quoted(name)} is of {list(value.shape)}, not of {len(facts.ids)} tokens"
            )
    return value


def to_pandas(trace: TraceValues, name: str) -> Any:
    """An activation as a pandas table: a row a token (and head), a column an index of the last axis."""
    pandas = library("a table", "pandas")
    value, axes = trace[name], _axes(trace, name)
    labels = [
        trace.tokens if axis == "token" else range(n) for axis, n in zip(axes, value.shape, strict=True)
    ]
    rows = pandas.MultiIndex.from_product([range(n) for n in value.shape[:-1]], names=axes[:-1])
    table = pandas.DataFrame(value.reshape(-1, value.shape[-1]), rows)
    table.columns.name = axes[-1]
    table.insert(0, "text", [labels[-2][at] for at in rows.get_level_values("token")])
    return table


def to_xarray(trace: TraceValues) -> Any:
    """The activations as an xarray dataset, whose axes are named and whose tokens have their text."""
    xarray, sizes, arrays = library("a labelled data set", "xarray"), {"token": len(trace.ids)}, {}
    for name, value in trace.items():
        axes = []
        for axis, n in zip(_axes(trace, name), value.shape, strict=True):
            axes.append(axis if sizes.setdefault(axis, n) == n else f"{axis}_{n}")
        arrays[name] = (axes, value)
    return xarray.Dataset(arrays, {"text": ("token", trace.tokens), "id": ("token", list(trace.ids))})


def _axes(trace: TraceValues, name: str) -> tuple[str, ...]:
    rank = trace[name].ndim
    axes = AXES.get((trace.own_name(name) or name).rpartition(".")[2], ("token", "size"))
    return axes if len(axes) == rank else (*(f"axis{i}" for i in range(rank - 2)), "token", "size")[-rank:]
