"""Steering vectors: directions of the residual stream, made of two sets of texts (2308.10248, 2312.06681).

    calm = difference(lm, ids of calm texts, ids of angry texts, layer=12)
    save("calm.safetensors", [calm])
    lm.generate("...", edit=load("calm.safetensors", strength=0.8))

A file is safetensors: each tensor [d] is named by the value it is added to (``blocks.12.out``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect.arrays import log_softmax
from cutaway.inspect.edits import Add, describe, to_json
from cutaway.inspect.result import Result
from cutaway.inspect.rows import Rows
from cutaway.inspect.subject import Metric, Subject, instrumented, subject_of
from cutaway.inspect.trace import trace_texts
from cutaway.quantization import formats
from cutaway.store.files import Progress, silent
from cutaway.weights import safetensors

RESIDUAL = re.compile(r"blocks\.(\d+)\.out")


def difference(lm: Any, towards: Sequence[Sequence[int]], away: Sequence[Sequence[int]], layer: int) -> Add:
    """The mean residual stream after a layer at the last token of ``towards``, less that of ``away``.

    ``lm`` is a loaded model, a ``Subject``, or a PyTorch model.
    """
    if not towards or not away:
        raise UserError("a steering vector needs at least one text for it and one against it")
    name = f"blocks.{layer}.out"
    loaded = isinstance(lm, Subject) or hasattr(lm, "subject")
    of: Any = subject_of(lm) if loaded else instrumented(lm)
    for_it, against_it = (
        np.mean([values[name][-1] for values in of.values(texts, [name])], axis=0)
        for texts in (towards, away)
    )
    return Add(layer, (for_it - against_it).tolist())


def save(path: str | Path, edits: Sequence[Add]) -> None:
    """Writes the vectors, each times its strength, as a safetensors file.

    Raises UserError for one that acts elsewhere than on all of a layer's output, and for two of one layer.
    """
    packed = {}
    for one in edits:
        name = f"blocks.{one.layer}.out" if one.name is None else one.name
        some = [field for field in ("positions", "units", "head") if getattr(one, field) is not None]
        some += ["relative"] * one.relative
        if RESIDUAL.fullmatch(name) is None or some or one.from_step or name in packed:
            raise UserError(
                f"{describe(one)}: a steering file holds one vector a layer, added to all of blocks.LAYER.out"
            )
        packed[name] = formats.pack(np.float32(one.strength) * np.array(one.vector, np.float32), "F32")
    safetensors.write_safetensors(path, packed, {"format": "cutaway-steering"})


def load(path: str | Path, strength: float = 1.0) -> tuple[Add, ...]:
    """Reads what ``save`` wrote. Raises UserError for a tensor that is no vector for a layer's output."""
    found = []
    for name, packed in safetensors.read_safetensors(Path(path)).items():
        layer, vector = RESIDUAL.fullmatch(name), np.array(formats.unpack(packed))
        if layer is None or vector.ndim != 1:
            raise UserError(
                f"{path} holds {name!r} of shape {list(vector.shape)}: a steering file holds vectors named "
                "blocks.LAYER.out"
            )
        found.append(Add(int(layer[1]), vector.tolist(), strength=strength))
    return tuple(found)


def sweep(
    lm: Any,
    direction: Add,
    prompts: Sequence[Any],
    metric: Metric,
    strengths: Sequence[float] = (0.0, 0.5, 1.0, 2.0, 4.0),
    *,
    text: Any,
    resume: str | Path | None = None,
    progress: Progress = silent,
) -> Result:
    """What steering does and what it costs, by strength: [strength, (metric, perplexity)].

    ``metric`` of logits [t v] is the mean over the prompts; the price is the perplexity of a ``text`` that
    has nothing to do with the direction, read under the same edit. ``resume``: a file that keeps each
    strength's row, from which the same call goes on.
    """
    subject = subject_of(lm)
    ids, rows = subject.encode(text), [subject.encode(prompt) for prompt in prompts]
    if len(ids) < 2 or not rows:
        raise UserError("a sweep needs at least one prompt, and a text of two tokens or more for its price")

    def measured(strength: float) -> list[float]:
        edit = replace(direction, strength=strength)
        found = [float(metric(trace.logits)) for trace in trace_texts(subject, rows, ["logits"], edit)]
        chances = log_softmax(trace_texts(subject, [ids], ["logits"], edit)[0].logits.astype(np.float64))
        surprise = -chances[np.arange(len(ids) - 1), ids[1:]].mean()
        return [float(np.mean(found)), float(np.exp(surprise))]

    of = {"study": "steering", "direction": to_json(direction), "prompts": rows, "text": ids}
    if resume is not None:  # another model, or one with other edits, starts elsewhere
        of["start"] = f"{float(metric(trace_texts(subject, rows[:1], ['logits'])[0].logits)):.3g}"
    kept = Rows(resume, of | {"strengths": list(strengths)})
    values = np.zeros((len(strengths), 2))
    for i, strength in enumerate(strengths):
        values[i] = kept.of(i, partial(measured, strength))
        progress("steering", i + 1, len(strengths))
    axes = {"strength": list(strengths), "": ["metric", "perplexity"]}
    return Result(values, axes, f"steering by {describe(direction)}", {"tokens": len(ids)})
