"""The induction circuit of SmolLM2: found by search, checked by intervention, beside controls that fail.

    python -m scripts.study.induction_circuit

Twelve texts of seven random words that begin again; the answer is the word that followed the last one. In the
other text another word took the answer's place. The search leaves out all parts that it can; the controls are
random circuits of as many parts, and the circuit's own MLPs with as many random heads. Then heads with the
highest induction scores are left out of the whole model, beside as many random heads. A minute of one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import cutaway
from cutaway.evaluate.statistics import mean
from cutaway.inspect.circuit_search import Part, Parts, search
from cutaway.inspect.head_scores import head_scores
from cutaway.inspect.pairs import pairs
from cutaway.inspect.subject import subject_of

TEXTS, WORDS, SCORED, DRAWS = 12, 7, 9, 10
THRESHOLD = 0.02
Texts = tuple[list[list[int]], list[list[int]], list[tuple[int, int]]]


def drawn(lm: Any) -> Texts:
    """Texts, others and answers (the text's, the other's), as ids."""
    random = np.random.default_rng(1)
    words = [id for id in range(1000, 20000) if _is_word(lm.tokenizer.token_bytes(id))]
    texts: Texts = ([], [], [])
    for _ in range(TEXTS):
        chosen = random.choice(words, WORDS + 1, replace=False).tolist()
        at = int(random.integers(1, WORDS - 1))
        text = chosen[:WORDS] + chosen[: at + 1]
        other = list(text)
        other[at + 1] = chosen[WORDS]
        for some, one in zip(texts, (text, other, (chosen[at + 1], chosen[WORDS])), strict=True):
            some.append(one)
    return texts


def _is_word(token: bytes) -> bool:
    return token[:1] == b" " and token[1:].isalpha() and token[1:].islower() and 3 <= len(token) <= 8


def controls(lm: Any, texts: Texts, circuit: Sequence[Part]) -> None:
    """Print the circuit's figures and those of its controls."""
    study = Parts(subject_of(lm), pairs(lm, *texts[:2], texts[2], None))
    every, random = set(study.every), np.random.default_rng(0)
    heads = [part for part in study.every if part[1] is not None]
    mlps = {part for part in circuit if part[1] is None}
    count = len(circuit) - len(mlps)

    def chosen(some: Sequence[Part], size: int) -> set[Part]:
        return {some[n] for n in random.choice(len(some), size, replace=False)}

    scores = head_scores(lm, "induction")
    best = {(layer, head) for layer, head, _ in scores.top(SCORED)}
    print(f"the highest induction scores: {sorted(best)}; in the circuit: {len(best & set(circuit))}")
    rows = {
        "the circuit": [set(circuit)],
        "all else, without the circuit": [every - set(circuit)],
        "random parts": [chosen(study.every, len(circuit)) for _ in range(DRAWS)],
        "its MLPs and random heads": [mlps | chosen(heads, count) for _ in range(DRAWS)],
        "its MLPs alone": [mlps],
        f"the whole model without the {SCORED} heads": [every - best],
        f"the whole model without {SCORED} random heads": [
            every - chosen(heads, SCORED) for _ in range(DRAWS)
        ],
        f"the circuit without the {SCORED} heads": [set(circuit) - best],
    }
    for name, circuits in rows.items():
        of = mean(study.kept(circuits).mean(0))
        print(f"{name}: {of.value:.3f} ({of.between('.3f')}), n = {of.n}")


def main() -> None:
    lm = cutaway.load("smollm2")
    texts = drawn(lm)
    found = search(lm, *texts[:2], answers=texts[2], threshold=THRESHOLD)
    print(f"{len(found.circuit)} of {found.parts} parts: {found.circuit}")
    losses = sorted(zip(found.minimality, found.circuit, strict=True), reverse=True)
    print(
        "lost without each:", ", ".join(f"{layer}.{head} {loss:.2f}" for loss, (layer, head) in losses[:12])
    )
    controls(lm, texts, found.circuit)


if __name__ == "__main__":
    main()
