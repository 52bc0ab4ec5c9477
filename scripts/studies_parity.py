"""Six studies of SmolLM2 by the public API, and by hand with hooks on transformers; three minutes.

    python -m scripts.studies_parity

Prints the largest difference of each study's numbers, both models in float64, and the lines that each takes.
Exit code 1 if a difference is above 1e-5.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import numpy as np
import torch

import cutaway
from cutaway.inspect import causal, gradients
from cutaway.inspect.head_scores import LENGTH, TEXTS, head_scores
from cutaway.inspect.logit_attribution import logit_attribution
from tests.parity import smollm2

TEXT, OTHER, ANSWERS = "The capital of France is", "The capital of Italy is", (" Paris", " Rome")
CLOSE = 1e-5


def induction(lm: Any) -> np.ndarray:
    return head_scores(lm, "induction").values


def induction_by_hand(hf: Any, lm: Any) -> np.ndarray:
    once = torch.randint(len(lm.tokenizer), (TEXTS, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        patterns = hf(once.repeat(1, 2), output_attentions=True).attentions
    rows = [p[:, :, LENGTH:].diagonal(offset=1, dim1=-2, dim2=-1).mean((0, -1)) for p in patterns]
    return torch.stack(rows).numpy()


def attribution(lm: Any) -> np.ndarray:
    return logit_attribution(lm, TEXT, [ANSWERS[0]])[0]


def attribution_by_hand(hf: Any, lm: Any) -> np.ndarray:
    ids, token, kept = torch.tensor([lm.ids(TEXT)]), lm.ids(ANSWERS[0])[0], {}
    layers, norm = hf.model.layers, hf.model.norm
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, x, i=i: kept.__setitem__(i, x[0][0, -1]))
        for i, layer in enumerate(layers)
    ]
    handles.append(norm.register_forward_pre_hook(lambda _, x: kept.__setitem__("last", x[0][0, -1])))
    with torch.no_grad():
        hf(ids)
    for handle in handles:
        handle.remove()
    scale = (kept["last"].square().mean() + norm.variance_epsilon).sqrt()
    read = hf.lm_head.weight[token] * norm.weight / scale
    heads = hf.config.num_attention_heads
    rows = []
    for i, layer in enumerate(layers):
        written = layer.self_attn.o_proj.weight.unflatten(1, (heads, -1)) * kept[i].unflatten(0, (heads, -1))
        rows.append(torch.einsum("dhv,d->h", written, read))
    return torch.stack(rows).detach().numpy()


def residuals(lm: Any) -> np.ndarray:
    return causal.patching(lm, TEXT, OTHER, answers=ANSWERS).values


def residuals_by_hand(hf: Any, lm: Any) -> np.ndarray:
    ids, other = torch.tensor([lm.ids(TEXT)]), torch.tensor([lm.ids(OTHER)])
    here, there = (lm.ids(one)[0] for one in ANSWERS)

    def lead(logits: torch.Tensor) -> float:
        return float(logits[0, -1, there] - logits[0, -1, here])

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
    rows = np.zeros((len(differ), len(hf.model.layers)))
    for i, layer in enumerate(hf.model.layers):
        for row, p in enumerate(differ):

            def patch(_module: Any, _inputs: Any, output: Any, i: int = i, p: int = p) -> Any:
                changed = _stream(output).clone()
                changed[:, p] = donors[i][:, p]
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

            handle = layer.register_forward_hook(patch)
            with torch.no_grad():
                rows[row, i] = (lead(hf(ids).logits) - low) / (high - low)
            handle.remove()
    return rows


def _stream(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def heads(lm: Any) -> np.ndarray:
    return causal.patching(lm, TEXT, OTHER, "heads", answers=ANSWERS).values


def heads_by_hand(hf: Any, lm: Any, frozen: bool = False) -> np.ndarray:
    ids, other = torch.tensor([lm.ids(TEXT)]), torch.tensor([lm.ids(OTHER)])
    here, there = (lm.ids(one)[0] for one in ANSWERS)
    outs = [layer.self_attn.o_proj for layer in hf.model.layers]

    def read(text: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
        kept: list[torch.Tensor] = []
        handles = [out.register_forward_pre_hook(lambda _, x: kept.append(x[0])) for out in outs]
        with torch.no_grad():
            logits = hf(text).logits
        for handle in handles:
            handle.remove()
        return float(logits[0, -1, there] - logits[0, -1, here]), kept

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
                logits = hf(ids).logits[0, -1]
            for handle in handles:
                handle.remove()
            rows[i, head] = (float(logits[there] - logits[here]) - low) / (high - low)
    return rows


def paths(lm: Any) -> np.ndarray:
    return causal.path_patching(lm, TEXT, OTHER, answers=ANSWERS).values


def paths_by_hand(hf: Any, lm: Any) -> np.ndarray:
    return heads_by_hand(hf, lm, frozen=True)


def slopes(lm: Any) -> np.ndarray:
    return gradients.attribution_patching(lm, TEXT, OTHER, "heads", answers=ANSWERS).values


def slopes_by_hand(hf: Any, lm: Any) -> np.ndarray:
    here, there = (lm.ids(one)[0] for one in ANSWERS)
    outs, kept = [layer.self_attn.o_proj for layer in hf.model.layers], []
    handles = [out.register_forward_pre_hook(lambda _, x: kept.append(x[0])) for out in outs]
    leads = []
    for text in (TEXT, OTHER):
        logits = hf(torch.tensor([lm.ids(text)])).logits[0, -1]
        leads.append(logits[there] - logits[here])
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


STUDIES = {
    "induction scores": (induction, induction_by_hand),
    "direct logit attribution by head": (attribution, attribution_by_hand),
    "patching the residual stream": (residuals, residuals_by_hand),
    "patching heads": (heads, heads_by_hand),
    "path patching to the logits": (paths, paths_by_hand),
    "attribution patching of heads": (slopes, slopes_by_hand),
}


def main() -> int:
    lm = cutaway.load(smollm2.gguf_file(), engine="definition")
    lm.model.double()
    hf = smollm2.model(smollm2.gguf_file()).double()
    hf.set_attn_implementation("eager")
    worst = 0.0
    print("study | largest difference | of values up to | lines | by hand")
    for name, (ours, by_hand) in STUDIES.items():
        one, other = ours(lm), by_hand(hf, lm)
        difference = float(np.abs(one - other).max())
        lines = [len(inspect.getsource(code).strip().splitlines()) - 1 for code in (ours, by_hand)]
        print(f"{name} | {difference:.1e} | {np.abs(other).max():.2f} | {lines[0]} | {lines[1]}", flush=True)
        worst = max(worst, difference)
    return int(worst > CLOSE)


if __name__ == "__main__":
    sys.exit(main())
