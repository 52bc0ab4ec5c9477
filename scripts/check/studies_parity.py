"""Six studies of SmolLM2 by the public API, and by hand with hooks on transformers; three minutes.

    python -m scripts.check.studies_parity

Prints the largest difference of each study's numbers, both models in float64, and the lines that each takes;
then, of the packed model, how far two of them are from what its engine itself shows and generates with. The
other four need edits or gradients that only the PyTorch model makes, which computes the packed engine's
numbers for them. Exit code 1 if a difference from the hooks is above 1e-5.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

import cutaway
from cutaway.inspect import gradients, pairs, patching
from cutaway.inspect.head_scores import LENGTH, TEXTS, head_scores, repeated
from cutaway.inspect.logit_attribution import logit_attribution
from cutaway.runtime import values
from cutaway.runtime.edits import Edit
from tests.parity import smollm2

TEXT, OTHER, ANSWERS = "The capital of France is", "The capital of Italy is", (" Paris", " Rome")
CLOSE = 1e-5


class Task(NamedTuple):
    """Two texts' ids, each text's answer, and how many ids random tokens are drawn from."""

    ids: list[int]
    other: list[int]
    here: int
    there: int
    vocabulary: int

    @property
    def answers(self) -> tuple[int, int]:
        return self.here, self.there


def induction(lm: Any, _task: Task) -> np.ndarray:
    return head_scores(lm, "induction").values


def induction_by_hand(hf: Any, task: Task) -> np.ndarray:
    twice = torch.from_numpy(repeated(task.vocabulary))
    with torch.no_grad():
        patterns = hf(twice, output_attentions=True).attentions
    rows = [p[:, :, LENGTH:].diagonal(offset=1, dim1=-2, dim2=-1).mean((0, -1)) for p in patterns]
    return torch.stack(rows).numpy()


def attribution(lm: Any, task: Task) -> np.ndarray:
    return logit_attribution(lm, task.ids, [task.here])[0]


def attribution_by_hand(hf: Any, task: Task) -> np.ndarray:
    layers, norm, kept = hf.model.layers, hf.model.norm, {}
    handles = [norm.register_forward_pre_hook(lambda _, x: kept.__setitem__("last", x[0][0, -1]))]
    for i, layer in enumerate(layers):
        out = layer.self_attn.o_proj
        handles.append(out.register_forward_pre_hook(lambda _, x, i=i: kept.__setitem__(i, x[0][0, -1])))
        handles.append(out.register_forward_hook(lambda _, x, y, i=i: kept.__setitem__((i, "out"), y[0, -1])))
    with torch.no_grad():
        logit = hf(torch.tensor([task.ids])).logits[0, -1, task.here]
    for handle in handles:
        handle.remove()
    frozen = norm(kept["last"]) / kept["last"]  # a norm of RMS is a product with this, its size frozen
    read = hf.lm_head.weight[task.here] * frozen
    read = read * logit / (read @ kept["last"])  # a soft-cap is the factor that it applied
    heads = hf.config.num_attention_heads
    rows = []
    for i, layer in enumerate(layers):
        out = kept[i, "out"]  # Gemma's norm after attention is frozen too
        after = (
            layer.post_attention_layernorm(out) / out if hasattr(layer, "pre_feedforward_layernorm") else 1
        )
        written = layer.self_attn.o_proj.weight.unflatten(1, (heads, -1)) * kept[i].unflatten(0, (heads, -1))
        rows.append(torch.einsum("dhv,d->h", written, read * after))
    return torch.stack(rows).detach().numpy()


def residuals(lm: Any, task: Task) -> np.ndarray:
    return patching.patching(lm, task.ids, task.other, answers=task.answers).values


def residuals_by_hand(hf: Any, task: Task) -> np.ndarray:
    ids, other = torch.tensor([task.ids]), torch.tensor([task.other])

    def lead(logits: torch.Tensor) -> float:
        return float(logits[0, -1, task.there] - logits[0, -1, task.here])

    donors: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _, x, output: donors.append(_stream(output)))
        for layer in hf.model.layers
    ]
    with torch.no_grad():
        high = lead(hf(other).logits)
        for handle in handles:
            handle.remove()
        low = lead(hf(ids).logits)
    differ = [p for p in range(ids.shape[1]) if ids[0, p] != other[0, p] or p == ids.shape[1] - 1]
    rows = np.zeros((len(hf.model.layers), len(differ)))
    for i, layer in enumerate(hf.model.layers):
        for row, p in enumerate(differ):

            def patch(_module: Any, _inputs: Any, output: Any, i: int = i, p: int = p) -> Any:
                changed = _stream(output).clone()
                changed[:, p] = donors[i][:, p]
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

            handle = layer.register_forward_hook(patch)
            with torch.no_grad():
                rows[i, row] = (lead(hf(ids).logits) - low) / (high - low)
            handle.remove()
    return rows


def _stream(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def heads(lm: Any, task: Task) -> np.ndarray:
    return patching.patching(lm, task.ids, task.other, "heads", answers=task.answers).values


def heads_by_hand(hf: Any, task: Task, frozen: bool = False) -> np.ndarray:
    ids, other = torch.tensor([task.ids]), torch.tensor([task.other])
    outs = [layer.self_attn.o_proj for layer in hf.model.layers]

    def lead(logits: torch.Tensor) -> float:
        return float(logits[0, -1, task.there] - logits[0, -1, task.here])

    def read(text: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
        kept: list[torch.Tensor] = []
        handles = [out.register_forward_pre_hook(lambda _, x: kept.append(x[0])) for out in outs]
        with torch.no_grad():
            logits = hf(text).logits
        for handle in handles:
            handle.remove()
        return lead(logits), kept

    (low, ours), (high, theirs) = read(ids), read(other)
    count, size = hf.config.num_attention_heads, ours[0].shape[-1] // hf.config.num_attention_heads
    rows = np.zeros((len(outs), count))
    for i in range(len(outs)):
        for head in range(count):
            part = slice(head * size, (head + 1) * size)

            def sent(_module: Any, inputs: Any, i: int = i, part: slice = part) -> Any:
                changed = (ours[i] if frozen else inputs[0]).clone()
                changed[..., part] = theirs[i][..., part]
                return (changed,)

            handles = [outs[i].register_forward_pre_hook(sent)]
            for j, out in enumerate(outs if frozen else ()):
                if j != i:
                    handles.append(out.register_forward_pre_hook(lambda _, x, j=j: (ours[j],)))
            with torch.no_grad():
                rows[i, head] = (lead(hf(ids).logits) - low) / (high - low)
            for handle in handles:
                handle.remove()
    return rows


def paths(lm: Any, task: Task) -> np.ndarray:
    return patching.path_patching(lm, task.ids, task.other, answers=task.answers).values


def paths_by_hand(hf: Any, task: Task) -> np.ndarray:
    return heads_by_hand(hf, task, frozen=True)


def gradient_patches(lm: Any, task: Task) -> np.ndarray:
    return gradients.attribution_patching(lm, task.ids, task.other, "heads", answers=task.answers).values


def gradient_patches_by_hand(hf: Any, task: Task) -> np.ndarray:
    outs, kept = [layer.self_attn.o_proj for layer in hf.model.layers], []
    handles = [out.register_forward_pre_hook(lambda _, x: kept.append(x[0])) for out in outs]
    leads = []
    for text in (task.ids, task.other):
        logits = hf(torch.tensor([text])).logits[0, -1]
        leads.append(logits[task.there] - logits[task.here])
    for handle in handles:
        handle.remove()
    ours, theirs, count = kept[: len(outs)], kept[len(outs) :], hf.config.num_attention_heads
    grads = torch.autograd.grad(leads[0], ours)
    span = float((leads[1] - leads[0]).detach())
    parts = [
        ((b - a) * g)[0].unflatten(-1, (count, -1)).sum((0, 2))
        for a, b, g in zip(ours, theirs, grads, strict=True)
    ]
    return (torch.stack(parts) / span).detach().numpy()


def packed_induction(lm: Any, task: Task) -> np.ndarray:
    """Induction scores from the attention patterns that the packed engine shows."""
    twice = torch.from_numpy(repeated(task.vocabulary))
    seen = values.of_texts(lm.engine, twice.tolist(), ["blocks.*.attention.pattern"])
    rows = [
        [seen[name][2 * LENGTH * text + at][:, at - LENGTH + 1] for at in range(LENGTH, 2 * LENGTH)]
        for name in seen
        for text in range(TEXTS)
    ]
    return np.array(rows).reshape(len(seen), TEXTS * LENGTH, -1).mean(1)


def packed_residuals(lm: Any, task: Task) -> np.ndarray:
    """Patches of the residual stream made by the packed engine: the texts' difference added at a position."""
    engine, last, layers = lm.engine, len(task.ids) - 1, range(len(lm.config.blocks))

    def lead(ids: list[int], edits: Sequence[Edit] = ()) -> float:
        logits = engine.read([ids], [engine.edited_state(edits)], [last])[0]
        return float(logits[task.there] - logits[task.here])

    ours, theirs = (values.of_texts(engine, [ids], ["blocks.*.out"]) for ids in (task.ids, task.other))
    low, high = lead(task.ids), lead(task.other)

    def recovered(layer: int, p: int) -> float:
        name = f"blocks.{layer}.out"
        edit = Edit(layer, theirs[name][p] - ours[name][p], 1.0, positions=frozenset({p}))
        return (lead(task.ids, [edit]) - low) / (high - low)

    at = pairs.differing(task.ids, task.other)
    return np.array([[recovered(layer, p) for p in at] for layer in layers])


PACKED = {
    "induction scores": (induction, packed_induction),
    "patching the residual stream": (residuals, packed_residuals),
}
STUDIES = {
    "induction scores": (induction, induction_by_hand),
    "direct logit attribution by head": (attribution, attribution_by_hand),
    "patching the residual stream": (residuals, residuals_by_hand),
    "patching heads": (heads, heads_by_hand),
    "path patching to the logits": (paths, paths_by_hand),
    "attribution patching of heads": (gradient_patches, gradient_patches_by_hand),
}


def packed_differences(lm: Any, task: Task) -> dict[str, float]:
    """How far studies of a packed model are from what its engine itself computes."""
    return {
        name: float(np.abs(one(lm, task) - other(lm, task)).max()) for name, (one, other) in PACKED.items()
    }


def task_of(lm: Any) -> Task:
    """The texts and answers as a model's ids."""
    here, there = (lm.ids(one)[0] for one in ANSWERS)
    return Task(lm.ids(TEXT), lm.ids(OTHER), here, there, len(lm.tokenizer))


def main() -> int:
    lm = cutaway.load(smollm2.gguf_file(), engine="pytorch")
    lm.model.double()
    hf = smollm2.model(smollm2.gguf_file()).double()
    hf.set_attn_implementation("eager")
    worst, task = 0.0, task_of(lm)
    print("study | largest difference | of values up to | lines | by hand")
    for name, (ours, by_hand) in STUDIES.items():
        one, other = ours(lm, task), by_hand(hf, task)
        difference = float(np.abs(one - other).max())
        lines = [len(inspect.getsource(code).strip().splitlines()) - 1 for code in (ours, by_hand)]
        print(f"{name} | {difference:.1e} | {np.abs(other).max():.2f} | {lines[0]} | {lines[1]}", flush=True)
        worst = max(worst, difference)
    packed = packed_differences(cutaway.load(smollm2.gguf_file(), engine="runtime"), task)
    print("packed, beside its engine: " + ", ".join(f"{name} {far:.1e}" for name, far in packed.items()))
    return int(worst > CLOSE)


if __name__ == "__main__":
    sys.exit(main())
