"""Two-hop questions by four lenses: is the unspoken middle term in the top 10, and does swapping it work?

    cutaway lens fit smollm2 --texts web.jsonl --count 32 --dtype bfloat16 --output lens.safetensors
    python -m scripts.study.jacobian_lens lens.safetensors [--tuned tuned.safetensors]

Of 100 questions (two_hop.py) those count that SmolLM2 answers right. Ranks are the best over the layers of
the band 0.38 to 0.92 and the last five positions. A swap exchanges the middle terms of two questions of one
form in an odd number of these layers, as the next one undoes a swap; it succeeds where the likeliest next
token becomes the other question's answer. Beside it are the same swap in an even number of layers, by the
logit lens's directions, of two other middle terms, and along two random directions. Intervals are Wilson's,
95%. A minute on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import cutaway
from cutaway.inspect import jacobian_file, lenses
from cutaway.inspect.edits import Swap
from cutaway.inspect.jacobian_lens import JacobianLens
from scripts.study.two_hop import Question, questions

POSITIONS, TOP = 5, 10


def wilson(hits: int, n: int, z: float = 1.96) -> str:
    """A count with its share and Wilson's interval."""
    share = hits / n
    middle = (share + z * z / 2 / n) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / 4 / n / n)
    return f"{hits} of {n}, {100 * share:.0f}% [{100 * (middle - half):.0f}, {100 * (middle + half):.0f}]"


def answered(lm: Any, asked: Sequence[Question]) -> list[Question]:
    """The questions whose greedy answer begins as it should."""
    return [
        one
        for one in asked
        if lm.generate(one.prompt, max_tokens=4, temperature=0).text.strip().startswith(one.answers)
    ]


def best_rank(
    lm: Any, values: dict[str, np.ndarray], by: Any, band: Sequence[int], ids: Sequence[int]
) -> int:
    """The best rank of any of the ids, from 1, over the band and the last positions."""
    names = [f"blocks.{layer}.out" for layer in band]
    streams = {name: values[name][-POSITIONS:] for name in names}
    read = streams if by is None else by.translated(streams)
    logits = lm.subject.engine.unembed(np.concatenate([read[name] for name in names]).astype(np.float32))
    wanted = logits[:, list(ids)]
    return int(1 + (logits[:, None] > wanted[..., None]).sum(-1).min())


def ranks(
    lm: Any, kept: Sequence[Question], kinds: dict[str, Any], band: Sequence[int]
) -> dict[str, list[int]]:
    """Each lens's best rank of each question's middle term."""
    found: dict[str, list[int]] = {kind: [] for kind in kinds}
    for one in kept:
        values = lm.subject.values([lm.ids(one.prompt)], [f"blocks.{layer}.out" for layer in band])[0]
        spelt = (lm.tokenizer.encode(text) for text in (f" {one.middle}", one.middle))
        ids = [some[0] for some in spelt if len(some) == 1]
        for kind, by in kinds.items():
            found[kind].append(best_rank(lm, values, by, band, ids))
    return found


def partners(kept: Sequence[Question]) -> list[tuple[Question, Question]]:
    """Each question with the next one of its form that has another answer and another middle term."""
    found = []
    for at, one in enumerate(kept):
        later = [*kept[at + 1 :], *kept[:at]]
        other = next(
            (
                two
                for two in later
                if two.kind == one.kind != "other"
                and two.middle != one.middle
                and not {*two.answers} & {*one.answers}
            ),
            None,
        )
        if other is not None:
            found.append((one, other))
    return found


def swaps(lm: Any, pairs: Sequence[tuple[Question, Question]], edits: Sequence[Any]) -> tuple[int, int]:
    """How many answers become the other question's, and how many are no longer the own."""
    texts = [lm.ids(one.prompt) for one, _ in pairs]
    found = lm.subject.values(texts, ["logits"], each=edits, logits_at=[-1])
    became = left = 0
    for (one, other), values in zip(pairs, found, strict=True):
        token = lm.tokenizer.decode([int(values["logits"][0, : len(lm.tokenizer)].argmax())]).strip()
        became += len(token) > 1 and any(answer.startswith(token) for answer in other.answers)
        left += not (len(token) > 1 and any(answer.startswith(token) for answer in one.answers))
    return became, left


def random_swap(width: int, band: Sequence[int], draw: np.random.Generator) -> list[Swap]:
    """A swap along two random directions, one pair for all layers."""
    two = draw.standard_normal((2, width))
    return [Swap(layer, vectors=two.tolist()) for layer in band]


def arms(
    lm: Any, lens: JacobianLens, pairs: Sequence[tuple[Question, Question]]
) -> dict[str, Callable[[], Any]]:
    """The edits of each arm, made when it is run."""
    identity = np.eye(lens.width, dtype=np.float32)
    logit = JacobianLens(dict.fromkeys(lens.matrices, identity), lens.target, 1)
    draw, band = np.random.default_rng(0), lens.swapped()
    even = lens.band()[len(lens.band()) % 2 :]
    middles = sorted({one.middle for pair in pairs for one in pair})

    def others(pair: tuple[Question, Question]) -> list[str]:
        free = [f" {word}" for word in middles if word not in (pair[0].middle, pair[1].middle)]
        return draw.choice(free, 2, replace=False).tolist()

    return {
        "Jacobian directions": lambda: [lens.swap(lm, f" {a.middle}", f" {b.middle}") for a, b in pairs],
        "Jacobian, an even number of layers": lambda: [
            lens.swap(lm, f" {a.middle}", f" {b.middle}", even) for a, b in pairs
        ],
        "logit lens's directions": lambda: [logit.swap(lm, f" {a.middle}", f" {b.middle}") for a, b in pairs],
        "Jacobian, two other terms": lambda: [lens.swap(lm, *others(pair)) for pair in pairs],
        "two random directions": lambda: [random_swap(lens.width, band, draw) for _ in pairs],
    }


def main() -> None:
    """Print both tables."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("lens", type=Path)
    asked.add_argument("--tuned", type=Path)
    given = asked.parse_args()
    lm: Any = cutaway.load("smollm2")
    lens = jacobian_file.load(given.lens, lm)
    band = lens.band()
    kinds: dict[str, Any] = {"Jacobian": lens, "logit": None, "random rotation": lens.random()}
    if given.tuned is not None:
        kinds["tuned"] = lenses.load(given.tuned, lm)
    kept = answered(lm, questions())
    print(f"{lens}, layers {band[0]} to {band[-1]}; {len(kept)} of {len(questions())} answered right")
    found = ranks(lm, kept, kinds, band)
    print(f"\n| lens | median best rank | in the top {TOP} |\n|---|---|---|")
    for kind, each in found.items():
        print(
            f"| {kind} | {np.median(each):,.0f} | {wilson(sum(r <= TOP for r in each), len(each))} |",
            flush=True,
        )
    for form in dict.fromkeys(one.kind for one in kept):
        some = [r for one, r in zip(kept, found["Jacobian"], strict=True) if one.kind == form]
        print(f"Jacobian, {form}: {wilson(sum(r <= TOP for r in some), len(some))}")
    pairs = partners(kept)
    print("\n| swap | becomes the other answer | is no longer its own |\n|---|---|---|")
    for name, edits in arms(lm, lens, pairs).items():
        became, left = swaps(lm, pairs, edits())
        print(f"| {name} | {wilson(became, len(pairs))} | {wilson(left, len(pairs))} |", flush=True)


if __name__ == "__main__":
    main()
