"""Greedy text is the same with drafts and without, to the bit: 500 prompts, two engines, many tiny models

    python -m scripts.check.drafted_greedy [MODEL ...] [--engine runtime pytorch] [--prompts 500]
                                           [--tokens 16] [--output FILE]

MODEL is a model's name or file, or tiny: random models of five shapes (windows, latent attention, experts,
sinks, two lengths of RoPE). Each prompt is continued without drafts, by lookup, and by a draft model (a
model's first layers, or other random weights), in batches of eight by the runtime and alone by PyTorch, with
one to eight tokens drafted at each step. Ids must be equal; the runtime's log-probabilities too, to the bit.
PyTorch rounds a pass over several tokens otherwise: an id may differ where its two best are closer than that.
--output keeps a line for each batch: a run that was stopped goes on from there. Half an hour for tiny.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import cutaway
from cutaway.generate.batch.many_prompts import answer_all
from cutaway.generate.batch.request import Generation, Request
from cutaway.generate.batch.scheduler import Scheduler
from cutaway.generate.decode import finish, generate
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.speculative import Drafting, DraftLengths, DraftModel, PromptLookup
from cutaway.runtime.engine import RuntimeEngine
from tests import test_runtime as tiny
from tests.test_serve_engine import Words

SHAPES = ["llama", "gemma3", "deepseek-v3", "gpt-oss", "phi3"]  # of tests/test_runtime.py
BATCH, MOST = 8, 8
CLOSE = 1e-3  # logarithms of probabilities, within which PyTorch's rounding may change the order of two
LONGEST = 96  # ids of a prompt
HEADER = "| model | engine | prompts | texts that differ | bits that differ | drafted a token | accepted |"


class Case(NamedTuple):
    """A model on one engine, with what drafts for it and its prompts."""

    name: str
    engine: Any
    draft: Any
    tokenizer: Any
    prompts: list[list[int]]


class Varied(DraftLengths):
    """Drafts from one to MOST tokens, other numbers at each step."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._dice = np.random.default_rng(seed)

    def choose(self, texts: Any, rooms: Sequence[int], proposer: Any, others: Any = ()) -> list[int]:
        """A number for each text."""
        wanted = self._dice.integers(1, MOST + 1, len(rooms)).tolist()
        return [min(count, room) for count, room in zip(wanted, rooms, strict=True)]

    def rest(self, looked: float, texts: int) -> int:
        """Drafts are looked for at each step."""
        return 0


def tiny_cases(engine: str, count: int) -> list[Case]:
    """Random models; half of the prompts are periodic, so that lookup drafts."""
    dice, cases = np.random.default_rng(0), []
    prompts = [dice.integers(0, 100, dice.integers(2, LONGEST)).tolist() for _ in range(count)]
    prompts = [ids if n % 2 else (ids[: 2 + n % 7] * LONGEST)[: len(ids)] for n, ids in enumerate(prompts)]
    for name in SHAPES:
        of = tiny.config(name)
        build = RuntimeEngine if engine == "runtime" else tiny.definition
        own, draft = (build(of, tiny.tensors(of, seed=seed)) for seed in (0, 1))
        cases.append(Case(f"tiny {name}", own, draft, Words(), prompts))
    return cases


def case(model: str, engine: str, count: int) -> Case:
    """A model, and prompts out of the documentation and this script's own code."""
    lm: Any = cutaway.load(model, engine=engine)
    root = Path(__file__).parents[2]
    texts = [path.read_text("utf-8") for path in sorted([*root.glob("docs/*.md"), *root.glob("bench/*.py")])]
    ids, dice = lm.ids("".join(texts)), np.random.default_rng(0)
    starts = dice.integers(0, len(ids) - LONGEST, count)
    prompts = [
        ids[at : at + int(size)] for at, size in zip(starts, dice.integers(4, LONGEST, count), strict=True)
    ]
    layers = max(1, len(lm.config.blocks) // 8)
    return Case(model, lm.engine, lm.first_layers(layers).engine, lm.tokenizer, prompts)


def written(of: Case, number: int, prompts: list[list[int]], tokens: int, how: str) -> list[Generation]:
    """A batch's texts without drafts, or drafted by lookup or a model."""
    proposer: Any = None
    if how != "plain":
        proposer = PromptLookup() if how == "lookup" else DraftModel(of.draft, len(of.tokenizer))
    drafting = None if proposer is None else Drafting(proposer, Varied(number))
    settings = SamplingParams(max_tokens=tokens, ignore_eos=True, logprobs=2)
    if not isinstance(of.engine, RuntimeEngine):
        return [finish(generate(of.engine, of.tokenizer, ids, settings, None, drafting)) for ids in prompts]
    requests = [Request(tuple(ids), settings) for ids in prompts]
    if drafting is None:
        return answer_all(of.engine, of.tokenizer, requests, max_sequences=BATCH)
    scheduler = Scheduler(of.engine, of.tokenizer, max_sequences=BATCH, drafting=drafting)
    try:
        return [finish(stream) for stream in [scheduler.submit(request) for request in requests]]
    finally:
        scheduler.close()


def compared(of: Case, number: int, tokens: int) -> Counter[str]:
    """What differs in a batch, by kind, and how its drafts fared."""
    found, prompts = Counter[str](), of.prompts[number * BATCH : (number + 1) * BATCH]
    plain = written(of, number, prompts, tokens, "plain")
    for how in ("lookup", "a model"):
        for one, other in zip(plain, written(of, number, prompts, tokens, how), strict=True):
            found["texts"] += 1
            found["tokens"] += len(other.ids)
            found["drafted"] += other.timings.drafted_tokens
            found["accepted"] += other.timings.accepted_tokens
            if one.ids != other.ids:
                at = next(n for n, (a, b) in enumerate(zip(one.ids, other.ids, strict=True)) if a != b)
                best = one.top_logprobs[at]
                found["close" if best[0][1] - best[1][1] < CLOSE else "differ"] += 1
            elif (one.logprobs, one.top_logprobs) != (other.logprobs, other.top_logprobs):
                found["bits"] += 1
    return found


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["tiny"])
    parser.add_argument("--engine", nargs="*", default=["runtime", "pytorch"], choices=["runtime", "pytorch"])
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args(given)
    known: dict[str, Counter[str]] = {}
    if asked.output is not None and asked.output.exists():
        lines = [json.loads(line) for line in asked.output.read_text("utf-8").splitlines()]
        known = {name: Counter(found) for name, found in lines}
    wrong = False
    print(HEADER + "\n" + "|---" * 7 + "|")
    for model in asked.models:
        for engine in asked.engine:
            cases = (
                tiny_cases(engine, asked.prompts) if model == "tiny" else [case(model, engine, asked.prompts)]
            )
            for of in cases:
                total = Counter[str]()
                for number in range(-(-asked.prompts // BATCH)):
                    name = f"{of.name} {engine} {asked.prompts} {asked.tokens} {number}"
                    if name not in known:
                        known[name] = compared(of, number, asked.tokens)
                        if asked.output is not None:
                            with asked.output.open("a", encoding="utf-8") as file:
                                file.write(json.dumps([name, known[name]]) + "\n")
                    total += known[name]
                print(row(of.name, engine, asked.prompts, total), flush=True)
                wrong |= total["differ"] > 0 or (engine == "runtime" and total["bits"] + total["close"] > 0)
    if wrong:
        sys.exit(1)


def row(name: str, engine: str, prompts: int, total: Counter[str]) -> str:
    """A case's row of the table."""
    differ = f"{total['differ']} of {total['texts']}" + (
        f", {total['close']} at a tie" if total["close"] else ""
    )
    bits = (
        "0"
        if engine == "runtime" and not total["bits"]
        else total["bits"]
        if engine == "runtime"
        else "rounded"
    )
    drafts = f"{total['drafted'] / total['tokens']:.1f} | {total['accepted'] / max(1, total['drafted']):.0%}"
    return f"| {name} | {engine} | {prompts} | {differ} | {bits} | {drafts} |"


if __name__ == "__main__":
    main()
