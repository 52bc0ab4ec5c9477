"""Patching each head at each position of IOI pairs, on the packed model, by PyTorch, and by TransformerLens.

    python -m scripts.study.patching_sweep [--pairs 20] [--kinds swapped,renamed] [--layers 6,20] [--peer]

SmolLM2 (135M) and 20 pairs of each of two kinds: the repeated name is the other one ("swapped": one token
differs), or all three names are others ("renamed"). Ours patches 30 layers x 9 heads x all positions of
all pairs in one call. The PyTorch model's sweep (batches of 32) and TransformerLens 3's patch the --layers of
the first pair: each of their cells is a forward pass over the whole text, so the rest takes as long. Prints
seconds of processor time for each patch, their ratio, and how far the numbers are apart; ten minutes. With
--peer TransformerLens is measured too, which needs transformer-lens in the environment.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import cutaway
from cutaway.inspect import patching
from cutaway.inspect.pairs import pairs
from cutaway.inspect.subject import Subject
from cutaway.inspect.sweep import WholeTexts
from tests.parity import smollm2
from tests.rounding import noise

NAMES = ("John", "Mary", "Tom", "James", "Dan", "Sarah", "Anna", "Emma", "David", "Mark")
LENGTH = 14  # tokens of each text: SmolLM2 puts none in front
TEXT = "When {} and {} went to the shops, {} gave the bag to"
Texts = tuple[list[str], list[str], list[tuple[str, str]]]


def ioi(lm: Any, kind: str, count: int) -> Texts:
    """Texts, others and answers (each text's own, the other's), of one length."""
    draw, found = np.random.default_rng(0), ([], [], [])
    while len(found[0]) < count:
        a, b, c, d = draw.choice(NAMES, 4, replace=False).tolist()
        text = TEXT.format(a, b, a)
        other, answer = (TEXT.format(a, b, b), a) if kind == "swapped" else (TEXT.format(c, d, c), d)
        if len(lm.ids(text)) == len(lm.ids(other)) == LENGTH:
            for some, one in zip(found, (text, other, (f" {b}", f" {answer}")), strict=True):
                some.append(one)
    return found


def timed(study: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a study gives, and its seconds: of the processor, and in all."""
    begun = time.process_time(), time.perf_counter()
    found = study()
    return found, time.process_time() - begun[0], time.perf_counter() - begun[1]


def patched(lm: Any, texts: Texts, layers: list[int] | None = None) -> np.ndarray:
    """Each head's z of the other texts, at each position: [pair layer position head]."""
    every = range(LENGTH)
    return patching.patching(
        lm, *texts[:2], over="z", answers=texts[2], positions=every, layers=layers
    ).values


def by_transformer_lens(lm: Any, texts: Texts, layers: list[int]) -> Callable[[], np.ndarray]:
    """TransformerLens's own function, of the first pair and some layers: [layer position head]."""
    import pandas
    from transformer_lens import patching

    from bench.activations_peers import lens_model

    model = lens_model(smollm2.model(smollm2.gguf_file()), torch.float32)
    ids, other = (torch.tensor([lm.ids(some[0])]) for some in texts[:2])
    mine, yours = (lm.ids(one)[0] for one in texts[2][0])
    rows = [(i, p, h) for i in layers for p in range(ids.shape[1]) for h in range(model.cfg.n_heads)]

    def lead(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, yours] - logits[0, -1, mine]

    @torch.no_grad()
    def study() -> np.ndarray:
        high, cache = model.run_with_cache(other)
        low = lead(model(ids))
        found = patching.generic_activation_patch(
            model,
            ids,
            cache,
            lambda logits: (lead(logits) - low) / (lead(high) - low),
            patching.layer_pos_head_vector_patch_setter,
            "z",
            index_df=pandas.DataFrame(rows, columns=["layer", "pos", "head"]),
        )
        return found.numpy().reshape(len(layers), ids.shape[1], -1)

    return study


def exact(lm: Any, texts: Texts, count: int = 40) -> bool:
    """Whether cells of the sweep have the bits of whole texts read alone."""
    found = pairs(lm, *texts[:2], texts[2], None)
    study = patching.Study(lm.subject, found, ["blocks.*.attention.z"])
    texts_, others = ([getattr(one, name) for one in found.each] for name in ("ids", "other"))
    ours, theirs = study.values(texts_), study.values(others)
    draw, cells = np.random.default_rng(1), []
    while len(cells) < count:
        n, layer, p, head = (int(draw.integers(size)) for size in (len(texts_), 30, LENGTH, 9))
        name = f"blocks.{layer}.attention.z"
        cell = patching._patch(n, name, ours[n][name], theirs[n][name], [p], head)
        cells += [] if cell is None else [cell]
    whole = WholeTexts(study.engine, texts_)
    fast = {i: seen.logits for i, seen in study.sweep.run(cells, (), -1)}
    return all(np.array_equal(fast[i], seen.logits) for i, seen in whole.run(cells, (), -1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--kinds", default="swapped,renamed")
    parser.add_argument("--layers", default="6,20")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", action="store_true")
    asked = parser.parse_args()
    layers = [int(one) for one in asked.layers.split(",")]
    torch.set_num_threads(asked.threads)
    os.environ["CUTAWAY_THREADS"] = str(asked.threads)
    lm = cutaway.load(smollm2.gguf_file(), engine="runtime")
    floats = cutaway.load(smollm2.gguf_file(), engine="pytorch")
    rounded = Subject(lm.subject.pytorch, lm.tokenizer, (), lm.ids)
    print(f"{asked.pairs} pairs, {asked.threads} thread(s); processor (all) seconds")
    for kind in asked.kinds.split(","):
        texts = ioi(lm, kind, asked.pairs)
        first: Any = tuple(some[:1] for some in texts)
        found, own, all_ = timed(lambda texts=texts: patched(lm, texts))
        each = own / found.size
        print(
            f"{kind}: ours {own:.0f} ({all_:.0f}) for {found.size:,} patches, {1e3 * each:.2f} ms each",
            flush=True,
        )
        print(f"  cells have the bits of whole texts: {exact(lm, texts)}", flush=True)
        peers = {"PyTorch": lambda first=first: patched(floats, first, layers)[0]}
        if asked.peer:
            peers["TransformerLens"] = by_transformer_lens(lm, first, layers)
        for name, study in peers.items():
            theirs, own, all_ = timed(study)
            far = float(np.abs(theirs - found[0, layers]).max())
            cost = own / theirs.size
            print(
                f"  {name}: {own:.0f} ({all_:.0f}) for {theirs.size} patches, {1e3 * cost:.1f} ms each, "
                f"{cost / each:.1f} times ours; apart by {far:.1e}",
                flush=True,
            )
        near = np.abs(patched(rounded, first, layers) - found[:1, layers]).max()
        moved = noise(
            rounded.pytorch.model, lambda first=first: torch.from_numpy(patched(rounded, first, layers)), 1
        )
        print(
            f"  PyTorch with the runtime's rounding: apart by {near:.1e}; it moves by {moved:.1e} itself "
            "when each weight moves by one rounding",
            flush=True,
        )


if __name__ == "__main__":
    main()
