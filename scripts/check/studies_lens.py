"""The six studies of `scripts/check/studies_parity.py` by TransformerLens, beside ours; five minutes.

    python -m scripts.check.studies_lens [--tiny]

Prints the largest difference of each study's numbers, both models in float64 on the same weights, and the
lines that each takes. TransformerLens has no function for path patching and attribution patching, so those
are hooks of it. It does not know SmolLM2 by name: `lens_model` states the architecture. Needs
transformer-lens, in an environment of its own if need be. Exit code 1 if a difference is above 1e-5.
With --tiny the model is a random Llama of two layers: seconds.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformer_lens import patching

import cutaway
from bench.activations_peers import lens_model
from cutaway.inspect.head_scores import LENGTH, repeated
from cutaway.inspect.pairs import differing
from cutaway.inspect.subject import Subject
from cutaway.weights import load
from cutaway.weights.build import decoder
from scripts.check.studies_parity import CLOSE, Task, task_of
from scripts.check.studies_parity import STUDIES as OURS
from tests.parity import smollm2, tiny
from tests.parity.test_studies_parity import TASK, Words


def induction(model: Any, task: Task) -> Any:
    twice = torch.from_numpy(repeated(task.vocabulary))
    _, cache = model.run_with_cache(twice, names_filter=lambda name: name.endswith("pattern"))
    patterns = [cache["pattern", i][:, :, LENGTH:] for i in range(model.cfg.n_layers)]
    return torch.stack([p.diagonal(offset=1, dim1=-2, dim2=-1).mean((0, -1)) for p in patterns])


def attribution(model: Any, task: Task) -> Any:
    _, cache = model.run_with_cache(torch.tensor([task.ids]))
    heads = cache.stack_head_results(pos_slice=-1)
    found = cache.logit_attrs(heads, tokens=task.here, pos_slice=-1)
    return found.view(model.cfg.n_layers, model.cfg.n_heads)


def residuals(model: Any, task: Task) -> Any:
    ids, other = torch.tensor([task.ids]), torch.tensor([task.other])
    lead = lambda logits: logits[0, -1, task.there] - logits[0, -1, task.here]  # noqa: E731
    (high, cache), low = model.run_with_cache(other), lead(model(ids))
    recovered = lambda logits: (lead(logits) - low) / (lead(high) - low)  # noqa: E731
    return patching.get_act_patch_resid_pre(model, ids, cache, recovered)


def heads(model: Any, task: Task) -> Any:
    ids, other = torch.tensor([task.ids]), torch.tensor([task.other])
    lead = lambda logits: logits[0, -1, task.there] - logits[0, -1, task.here]  # noqa: E731
    (high, cache), low = model.run_with_cache(other), lead(model(ids))
    recovered = lambda logits: (lead(logits) - low) / (lead(high) - low)  # noqa: E731
    return patching.get_act_patch_attn_head_out_all_pos(model, ids, cache, recovered)


def paths(model: Any, task: Task) -> Any:
    ids, other = torch.tensor([task.ids]), torch.tensor([task.other])
    (low, ours), (high, theirs) = model.run_with_cache(ids), model.run_with_cache(other)
    lead = lambda logits: logits[0, -1, task.there] - logits[0, -1, task.here]  # noqa: E731
    rows = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)

    def sent(z: Any, hook: Any, layer: int, head: int) -> Any:
        z = ours[hook.name].clone()
        if hook.layer() == layer:
            z[:, :, head] = theirs[hook.name][:, :, head]
        return z

    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            frozen = [(lambda name: name.endswith("hook_z"), partial(sent, layer=layer, head=head))]
            logits = model.run_with_hooks(ids, fwd_hooks=frozen)
            rows[layer, head] = (lead(logits) - lead(low)) / (lead(high) - lead(low))
    return rows


def gradients(model: Any, task: Task) -> Any:
    ids, other = torch.tensor([task.ids]), torch.tensor([task.other])
    lead = lambda logits: logits[0, -1, task.there] - logits[0, -1, task.here]  # noqa: E731
    z, grads = (lambda name: name.endswith("hook_z")), {}
    high, theirs = model.run_with_cache(other, names_filter=z)
    low, ours = model.run_with_cache(ids, names_filter=z)
    with torch.enable_grad(), model.hooks(bwd_hooks=[(z, lambda g, hook: grads.update({hook.name: g}))]):
        lead(model(ids)).backward()
    parts = [((theirs[n] - ours[n]) * grads[n]).sum((0, 1, 3)) for n in ours]
    return torch.stack(parts) / (lead(high) - lead(low))


THEIRS = dict(zip(OURS, (induction, attribution, residuals, heads, paths, gradients), strict=True))


def comparable(name: str, ours: np.ndarray, theirs: np.ndarray, at: list[int]) -> tuple[Any, Any]:
    """The numbers that both compute: theirs are before each layer, at all positions; ours after, at some."""
    return (ours[:-1], theirs[1:][:, at]) if name.startswith("patching the residual") else (ours, theirs)


def tiny_llama() -> tuple[Any, Any, Task]:
    """A random Llama of two layers as our subject and as transformers has it, every weight perturbed."""
    with tempfile.TemporaryDirectory() as folder:
        hf = tiny.model("llama")
        hf.save_pretrained(folder)
        model = decoder(load.read_checkpoint(Path(folder)), "float32").double()
    return Subject.of(model, Words()), hf, TASK


def main() -> int:
    worst = 0.0
    if "--tiny" in sys.argv:
        lm, hf, task = tiny_llama()
    else:
        lm, hf = cutaway.load(smollm2.gguf_file(), engine="pytorch"), smollm2.model(smollm2.gguf_file())
        lm.model.double()
        task = task_of(lm)
    model, at = lens_model(hf.double(), torch.float64), differing(task.ids, task.other)
    print(f"transformer-lens {version('transformer-lens')}")
    print("study | largest difference | of values up to | lines | TransformerLens's")
    for name, theirs in THEIRS.items():
        ours = OURS[name][0]
        with torch.no_grad():
            found = theirs(model, task).detach().double().numpy()
        mine, found = comparable(name, ours(lm, task), found, at)
        difference = float(np.abs(mine - found).max())
        lines = [len(inspect.getsource(code).strip().splitlines()) - 1 for code in (ours, theirs)]
        print(f"{name} | {difference:.1e} | {np.abs(found).max():.2f} | {lines[0]} | {lines[1]}", flush=True)
        worst = max(worst, difference)
    return int(worst > CLOSE)


if __name__ == "__main__":
    sys.exit(main())
