"""Drafted text is distributed as undrafted: 100,000 draws for each sampler setting, and three wrong rules

    python -m scripts.check.drafted_distribution [--texts 20000] [--settings NAME ...]

A tiny model of four letters writes texts of five tokens in the scheduler, of which all but the first may be
drafted: by lookup, and by another tiny model. For each setting a two-sample chi-square test compares how
often each text was drafted with how often it was written without drafts, by other seeds; Holm's correction
is for all tests. Texts of the same seeds must be equal. Then, for two settings and half as many texts, the
rule that accepts drafts is replaced: by rejection sampling, which is right too, and by three rules that are a
little wrong and must be found out. About fifteen minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import chi2

from cutaway.generate import constrain
from cutaway.generate.batch.request import Generation, Piece, Request
from cutaway.generate.batch.scheduler import Scheduler
from cutaway.generate.batch.sequence import SequenceOutput
from cutaway.generate.decode import finish
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.speculative import Drafting, DraftLengths, DraftModel, PromptLookup
from cutaway.runtime.edits import Edit
from cutaway.runtime.engine import RuntimeEngine
from tests import test_runtime as tiny

LETTERS = "abcd"
# all pairs of ids: lookup always drafts
PROMPT = (0, 0, 1, 0, 2, 0, 3, 0, 4, 1, 1, 2, 1, 3, 1, 4, 2, 2, 3, 2, 4, 3, 3, 4, 4, 0)
AT_ONCE = 128  # texts in the scheduler: those that begin together draft together, once the prompt is read
LENGTH = 5  # tokens of a text, the first of which no draft precedes
SAME = 500  # texts that are written by the same seeds, too
LEVEL = 0.01  # of all tests together
FEW = 10  # texts, below which one's count is added to those of others that are as rare
FOUND = 1e-6  # what a wrong rule's p is below, with one setting and proposer at least
JUDGED = ["temperature 1", "a grammar"]  # the settings in which other rules are tried


class Letters:
    """A tokenizer of four letters and an end token."""

    bos, eos_ids, special = None, (4,), {"<end>": 4}

    def __len__(self) -> int:
        return 5

    def encode(self, text: str) -> list[int]:
        return [LETTERS.index(letter) for letter in text if letter in LETTERS]

    def token_bytes(self, id: int) -> bytes:
        return b"<end>" if id == 4 else LETTERS[id].encode()

    def stream(self) -> Any:
        return LetterStream()


class LetterStream:
    """Its incremental detokenizer."""

    def push(self, id: int) -> str:
        return (LETTERS + "!")[id]

    def follow(self, ids: Any) -> None:
        pass

    def finish(self) -> str:
        return ""


@dataclass(frozen=True)
class Setting:
    """What is asked of the sampler, beside the seed."""

    sampling: dict[str, Any] = field(default_factory=dict)
    request: dict[str, Any] = field(default_factory=dict)
    grammar: str = ""


_DIRECTION = np.random.default_rng(5).normal(size=50).astype(np.float32)
SETTINGS = {
    "temperature 1": Setting(),
    "temperature 0.6": Setting({"temperature": 0.6}),
    "temperature 1.8": Setting({"temperature": 1.8}),
    "top-k 2": Setting({"top_k": 2}),
    "top-p 0.7": Setting({"top_p": 0.7}),
    "min-p 0.3": Setting({"min_p": 0.3}),
    "typical 0.7": Setting({"typical_p": 0.7}),
    "repetition penalty": Setting({"repetition_penalty": 1.5}),
    "frequency and presence penalties": Setting({"frequency_penalty": 0.7, "presence_penalty": 0.5}),
    "logit bias": Setting({"logit_bias": {1: 1.5, 3: float("-inf")}}),
    "a grammar": Setting(grammar='root ::= [abc] [ab] ([bc] | "d") [abcd] [ad]'),
    "an edit": Setting(request={"edit": [Edit(0, _DIRECTION, 0.6, first=2)]}),
    "logprobs": Setting({"logprobs": 2}, {"drawn_logprobs": True}),
    "all of them": Setting(
        {
            "temperature": 1.3,
            "top_p": 0.95,
            "min_p": 0.02,
            "repetition_penalty": 1.2,
            "frequency_penalty": 0.3,
            "logit_bias": {0: 0.5},
            "logprobs": 1,
        },
        {"edit": [Edit(0, _DIRECTION, 0.6, first=2)]},
        'root ::= [abcd]+ [ab] ("c" | [ad]) [bcd]',
    ),
}


class Always(DraftLengths):
    """Drafts so many tokens of each text, whatever it takes."""

    def choose(self, texts: Any, rooms: Sequence[int], proposer: Any, others: Any = ()) -> list[int]:
        """Four of each, as far as there is room."""
        return [min(LENGTH - 1, room) for room in rooms]

    def rest(self, looked: float, texts: int) -> int:
        """Drafts are looked for at each step."""
        return 0


def engine(seed: int) -> RuntimeEngine:
    """A tiny model of the letters, by the seed of its weights."""
    of = replace(tiny.config("llama"), vocab=len(Letters()))
    return RuntimeEngine(of, tiny.tensors(of, seed=seed))


PROPOSERS: dict[str, Callable[[], Any]] = {
    "lookup": PromptLookup,
    "a model": lambda: DraftModel(engine(1), len(Letters())),
}


class Drawn(NamedTuple):
    """A text of each seed, and how many tokens of all were drafted and accepted."""

    texts: list[tuple[int, ...]]
    drafted: int = 0
    accepted: int = 0


def drawn(setting: Setting, seeds: Sequence[int], proposer: str = "") -> Drawn:
    """The texts of these seeds; without a ``proposer`` none is drafted."""
    drafting = Drafting(PROPOSERS[proposer](), Always()) if proposer else None
    tokenizer = Letters()
    begun = constrain.gbnf(setting.grammar).begin(tokenizer) if setting.grammar else None
    usual = {"max_tokens": LENGTH, "temperature": 1.0, "ignore_eos": begun is None} | setting.sampling
    scheduler = Scheduler(engine(0), tokenizer, max_sequences=AT_ONCE, max_queue=AT_ONCE, drafting=drafting)
    made: list[Generation] = []
    try:
        for at in range(0, len(seeds), AT_ONCE):
            with scheduler.paused():
                streams = [
                    scheduler.submit(
                        Request(
                            PROMPT,
                            SamplingParams(seed=seed, **usual),
                            None if begun is None else begun.fresh(),
                            **setting.request,
                        )
                    )
                    for seed in seeds[at : at + AT_ONCE]
                ]
            made += [finish(stream) for stream in streams]
    finally:
        scheduler.close()
    times = [one.timings for one in made]
    return Drawn(
        [one.ids for one in made],
        sum(one.drafted_tokens for one in times),
        sum(one.accepted_tokens for one in times),
    )


def surprise(one: Sequence[tuple[int, ...]], other: Sequence[tuple[int, ...]]) -> float:
    """How likely counts as different as these are, where both are drawn alike: a two-sample chi-square."""
    counts = Counter(one), Counter(other)
    rows: list[tuple[int, int]] = []
    rare = [0, 0]
    for text in sorted({*counts[0], *counts[1]}):
        pair = counts[0][text], counts[1][text]
        if sum(pair) >= FEW:
            rows.append(pair)
        else:
            rare = [rare[0] + pair[0], rare[1] + pair[1]]
    table = np.array([*rows, *([tuple(rare)] if sum(rare) else [])], np.float64)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    return float(chi2.sf(((table - expected) ** 2 / expected).sum(), max(1, len(table) - 1)))


# ---- other rules of acceptance -----------------------------------------------------------------------------

Rule = Callable[[np.ndarray, int], tuple[float, np.ndarray]]


def rejection(p: np.ndarray, id: int) -> tuple[float, np.ndarray]:
    """Right: the draft is accepted by its probability; another token is drawn from the clipped residual."""
    return p[id], np.clip(p - np.eye(len(p))[id], 0, None)


def accept_always(p: np.ndarray, id: int) -> tuple[float, np.ndarray]:
    """Wrong: every draft that is possible is accepted."""
    return float(p[id] > 0), p


def no_residual(p: np.ndarray, id: int) -> tuple[float, np.ndarray]:
    """Wrong: a rejected draft may be drawn again."""
    return p[id], p


def unclipped(p: np.ndarray, id: int) -> tuple[float, np.ndarray]:
    """Wrong: the residual keeps what is negative, by its size."""
    return p[id], np.abs(p - np.eye(len(p))[id]) * (p > 0)


RULES: dict[str, Rule] = {
    "rejection sampling": rejection,
    "accept always": accept_always,
    "accept without the residual": no_residual,
    "a residual without clipping": unclipped,
}


def verified_by(rule: Rule, seed: int = 0) -> Callable[..., tuple[list[Piece], int]]:
    """`SequenceOutput.append_all` by another rule, which knows the draft and not how it was drawn."""
    dice = np.random.default_rng(seed)

    def append_all(
        output: SequenceOutput, logits: np.ndarray, draft: Sequence[int]
    ) -> tuple[list[Piece], int]:
        pieces, accepted = list[Piece](), 0
        for n, row in enumerate(logits):
            chosen = row
            if n < len(draft):
                allowed = row.copy()
                if output.constraint is not None:
                    output.constraint.mask(allowed)
                processed = output.sampler.process(allowed, output.history)
                p = np.exp(processed - processed.max()).astype(np.float64)
                chance, residual = rule(p / p.sum(), draft[n])
                id = draft[n]
                if dice.random() >= chance:
                    id = int(np.searchsorted(np.cumsum(residual), dice.random() * residual.sum(), "right"))
                chosen = np.where(np.arange(len(row)) == id, np.float32(0), np.float32(-np.inf))
            piece = output.append(chosen)
            pieces += [] if piece is None else [piece]
            if piece is None or n == len(draft) or piece.id != draft[n]:
                break
            accepted += 1
            if output.finish_reason is not None:
                break
        return pieces, accepted

    return append_all


def under(rule: Rule, setting: Setting, seeds: Sequence[int], proposer: str) -> Drawn:
    """Drafted texts by another rule of acceptance."""
    honest = SequenceOutput.append_all
    SequenceOutput.append_all = verified_by(rule)  # type: ignore[method-assign]
    try:
        return drawn(setting, seeds, proposer)
    finally:
        SequenceOutput.append_all = honest  # type: ignore[method-assign]


def holm(ps: Sequence[float]) -> list[float]:
    """The p of each test, corrected for how many there are."""
    found, least = [0.0] * len(ps), 0.0
    for rank, n in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - rank) * ps[n]))
        found[n] = least
    return found


def compared(names: Sequence[str], texts: int) -> bool:
    """Print each setting's tests; whether one of them fails, or a text differs from its seed's."""
    seeds = (range(at, at + texts) for at in count(0, texts))  # others for each test
    tests: dict[tuple[str, str], float] = {}
    unequal = 0
    print("| setting | " + " | ".join(f"{one}: p, accepted" for one in PROPOSERS) + " |")
    print("|---" * (1 + len(PROPOSERS)) + "|")
    for name in names:
        setting, first = SETTINGS[name], next(seeds)
        plain, cells = drawn(setting, first).texts, list[str]()
        for proposer in PROPOSERS:
            own = drawn(setting, next(seeds), proposer)
            tests[name, proposer] = p = surprise(own.texts, plain)
            cells.append(f"{p:.3f}, {own.accepted / max(1, own.drafted):.0%} of {own.drafted:,}")
            unequal += drawn(setting, first[:SAME], proposer).texts != plain[:SAME]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    least = min(holm(list(tests.values())))
    print(
        f"\nOf {len(tests)} tests the least p is {min(tests.values()):.4f}, {least:.2f} by Holm's correction."
    )
    print(f"Texts of the same seeds differ in {unequal} of {len(tests)} comparisons.")
    return least < LEVEL or unequal > 0


def judged(names: Sequence[str], texts: int) -> bool:
    """Print each rule's tests; whether the right one fails one, or a wrong one passes one."""
    seeds = (range(at, at + texts) for at in count(10**8, texts))  # others for each test, and not the above
    columns = [(name, proposer) for name in names for proposer in PROPOSERS]
    plain = [drawn(SETTINGS[name], next(seeds)).texts for name, _ in columns]
    print("\n| rule | " + " | ".join(f"{name}, {proposer}" for name, proposer in columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    failed = False
    for rule, own in RULES.items():
        ps = [
            surprise(under(own, SETTINGS[name], next(seeds), proposer).texts, beside)
            for (name, proposer), beside in zip(columns, plain, strict=True)
        ]
        cells = (f"{p:.0e}" if p < LEVEL else f"{p:.2f}" for p in ps)
        print(f"| {rule} | " + " | ".join(cells) + " |", flush=True)
        failed |= min(holm(ps)) < LEVEL if own is rejection else min(ps) > FOUND
    return failed


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--judged", nargs="*", default=JUDGED, choices=list(SETTINGS))
    asked = parser.parse_args(given)
    print(f"p of the two-sample chi-square, of {asked.texts * LENGTH:,} draws\n")
    failed = bool(asked.settings) and compared(asked.settings, asked.texts)
    failed |= bool(asked.judged) and judged(asked.judged, asked.texts // 2)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
