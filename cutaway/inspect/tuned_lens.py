"""The tuned lens (2303.08112): an affine map a layer, trained so that the head reads its residual stream.

    tuned = train(lm, texts, resume="maps")     # minutes on a CPU; the same call goes on if stopped
    lm.trace("The capital of France is").lens(tuned)
    tuned.save("lens.safetensors")              # trace.lens("lens.safetensors") reads it

Each map is trained to give the final distribution from its layer's residual stream, by their KL divergence;
it starts as the identity, which is the logit lens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.extras import need
from cutaway.inspect.subject import subject_of
from cutaway.inspect.trace import trace_texts
from cutaway.inspect.trace_values import TraceValues
from cutaway.inspect.tuned_maps import TunedLens
from cutaway.quantization import formats
from cutaway.store.files import Progress, silent
from cutaway.store.reading import parsed_text
from cutaway.weights import safetensors

STEPS, TOKENS, LEARNING_RATE = 100, 64, 1e-3
TRAINING = "cutaway-lens-training"
SAVED = 20  # steps between two saves of a training that may be resumed


def train(
    lm: Any,
    texts: Sequence[Any],
    steps: int = STEPS,
    tokens: int = TOKENS,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    resume: str | Path | None = None,
    progress: Progress = silent,
) -> TunedLens:
    """Trains the maps on texts by Adam: each step reads ``tokens`` tokens drawn from them.

    ``resume``: a safetensors file that keeps the maps and Adam's moments, from which the same call, or one of
    more steps, goes on to the same bits. Raises UserError for a file of another training. Needs torch.
    """
    need("training a lens", "torch")
    import torch

    subject = subject_of(lm)
    model, names = subject.pytorch.model, ["embed", "blocks.*.out"]
    found = _streams(trace_texts(subject, [subject.encode(text) for text in texts], names))
    streams = torch.from_numpy(found)
    n, total, d = streams.shape[0] - 1, *streams.shape[1:]
    weights = torch.zeros(n, d, d, requires_grad=True)
    biases = torch.zeros(n, d, requires_grad=True)
    optimizer = torch.optim.Adam([weights, biases], lr=learning_rate)
    digest = hashlib.sha256(found.tobytes()).hexdigest()
    of = {"texts": digest, "tokens": tokens, "learning_rate": learning_rate, "seed": seed}
    kept = None if resume is None else Path(resume)
    losses = _resumed(kept, of, optimizer, steps) if kept is not None and kept.exists() else []
    generator, first = torch.Generator().manual_seed(seed), len(losses)
    for step in range(steps):
        rows = torch.randint(total, (tokens,), generator=generator)
        if step < first:
            continue
        chosen = streams[:, rows]
        with torch.no_grad():
            target = model.logits(chosen[-1][None])[0].float().log_softmax(-1)
        loss = 0.0
        for i in range(n):  # a layer at a time: one layer's logits in memory
            x = chosen[i]
            logits = model.logits((x + x @ weights[i].T + biases[i])[None])[0].float()
            part = (target.exp() * (target - logits.log_softmax(-1))).sum(-1).mean()
            part.backward(inputs=[weights, biases])
            loss += float(part.detach()) / n
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
        if kept is not None and (step + 1 == steps or (step + 1) % SAVED == 0):
            _keep(kept, of, optimizer, losses)
        progress("training the lens", step + 1, steps)
    return TunedLens(subject, weights.detach().numpy(), biases.detach().numpy(), tuple(losses))


def _keep(path: Path, of: dict[str, Any], optimizer: Any, losses: list[float]) -> None:
    """Writes the maps, Adam's moments and the losses so far, in one replacement of the file."""
    arrays = {}
    for name, value in zip(("weights", "biases"), optimizer.param_groups[0]["params"], strict=True):
        state = optimizer.state[value]
        arrays |= {
            name: value.detach(),
            f"{name}.mean": state["exp_avg"],
            f"{name}.square": state["exp_avg_sq"],
        }
    packed = {name: formats.pack(one.numpy(), "F32") for name, one in arrays.items()}
    safetensors.write_safetensors(path, packed, {TRAINING: json.dumps(of), "losses": json.dumps(losses)})


def _resumed(path: Path, of: dict[str, Any], optimizer: Any, steps: int) -> list[float]:
    """The losses of the steps that are done; the maps and Adam's state go where they belong."""
    import torch

    facts = safetensors.metadata(path)
    if facts.get(TRAINING) != json.dumps(of):
        raise UserError(f"{path} is of another training of a lens, or of none: give another file for resume")
    losses: list[float] = parsed_text(facts.get("losses", ""), f"{path}: losses", list)
    if len(losses) > steps:
        raise UserError(f"{path} is of {len(losses)} steps already, more than the {steps} asked for")
    maps = zip(("weights", "biases"), optimizer.param_groups[0]["params"], strict=True)
    shapes = {
        f"{name}{part}": tuple(value.shape) for name, value in maps for part in ("", ".mean", ".square")
    }
    found = safetensors.read_shaped(path, shapes)
    read = {name: torch.from_numpy(formats.unpack(one).copy()) for name, one in found.items()}
    for name, value in zip(("weights", "biases"), optimizer.param_groups[0]["params"], strict=True):
        value.data.copy_(read[name])
        moments = {"exp_avg": read[f"{name}.mean"], "exp_avg_sq": read[f"{name}.square"]}
        optimizer.state[value] = {"step": torch.tensor(float(len(losses))), **moments}
    return losses


def _streams(traces: Sequence[TraceValues]) -> np.ndarray:
    """float32 [n t d]: the residual streams of all texts, one after another, from the embedding on."""
    return np.concatenate([np.stack(list(trace.residuals().values())) for trace in traces], axis=1)
