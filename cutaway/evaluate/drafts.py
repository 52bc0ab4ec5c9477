"""A draft's material and its judge: a model's own answers, and how often a draft foresees them.

``answer`` writes each prompt of a data set with the model's own answer, for `finetune distill --draft`, and
goes on where it was stopped. ``judged`` drafts answers to prompts that were held out: a fixed number of
tokens a step, to see how many are accepted, and as many as pay, in turns with none, to see how fast that is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.data import layouts, rows
from cutaway.errors import UserError
from cutaway.evaluate import statistics
from cutaway.generate.decode import finish, generate
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.speculative import Drafting, DraftLengths
from cutaway.lm import LanguageModel

TEMPERATURE = 0.7  # of the answers: what a model mostly says, and not always the same
AT_ONCE = 64  # prompts, after whose answers a stopped run goes on
BEGINNING = 32  # tokens of a text, which the model then continues
COUNT = 4  # tokens that are drafted in each step to see how many are accepted
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Prompt:
    """A prompt: a row of a data set without its answer, and its ids."""

    row: dict[str, Any]
    ids: list[int]

    def answered(self, text: str) -> dict[str, Any]:
        """A row to train on."""
        if "messages" in self.row:
            return {"messages": [*self.row["messages"], {"role": "assistant", "content": text}]}
        return {"text": self.row["text"] + text}


def prompts(lm: LanguageModel, path: str | Path) -> tuple[list[Prompt], int]:
    """The different prompts of a data set, in its order, and how many leave no room for an answer. UserError
    for a row that has none.
    """
    found: dict[tuple[int, ...], Prompt] = {}
    too_long = 0
    for where, row in rows.rows(path):
        one = _prompt(lm, dict(row), where)
        if len(one.ids) >= lm.context - 1:
            too_long += 1
        elif one.ids:
            found.setdefault(tuple(one.ids), one)
    return list(found.values()), too_long


def _prompt(lm: LanguageModel, row: dict[str, Any], where: str) -> Prompt:
    answers = (*layouts.TALKS, *layouts.ANSWERS, "completion", "text")
    if not any(name in row for name in answers):
        row = {**row, "answer": "?"}  # a question alone is enough
    known, _ = layouts.standard("examples", row, where)
    messages = known.get("messages")
    if messages is None:
        text = known.get("prompt") or lm.tokenizer.decode(
            lm.tokenizer.encode(known.get("text") or known["completion"])[:BEGINNING]
        )
        return Prompt({"text": text}, lm.ids(text))
    while messages and messages[-1]["role"] != "user":
        messages = messages[:-1]
    if not messages:
        raise UserError(f"{where}: nothing is asked: a conversation has a message of the user")
    return Prompt({"messages": messages}, lm.chat_ids(messages))


def answer(lm: LanguageModel, asked: Sequence[Prompt], path: Path, tokens: int, report: Report) -> None:
    """Write each prompt with the model's answer of at most so many tokens, a line each; those that the file
    has already stay.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    done = len(lines) if len(lines) == len(asked) else len(lines) // AT_ONCE * AT_ONCE
    if done < len(lines):  # a part that was stopped, whose last line may not be whole
        path.write_bytes(b"".join(lines[:done]))
    while done < len(asked):
        report(done, len(asked))
        part = asked[done : done + AT_ONCE]
        made = lm.generate_batch(
            [one.ids for one in part], max_tokens=tokens, temperature=TEMPERATURE, seed=done
        )
        lines = [json.dumps(one.answered(each.text)) for one, each in zip(part, made, strict=True)]
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
        done += len(part)
    report(done, len(asked))


def written(lm: LanguageModel, asked: Sequence[Prompt], path: Path) -> np.ndarray:
    """How often the answers of a file [v] have each id."""
    counts = np.zeros(lm.engines.decoder().vocab, np.int64)
    for one, line in zip(asked, path.read_bytes().splitlines(), strict=True):
        row = json.loads(line)
        text = (
            row["messages"][-1]["content"] if "messages" in row else row["text"].removeprefix(one.row["text"])
        )
        np.add.at(counts, lm.tokenizer.encode(text), 1)
    counts[list(lm.tokenizer.eos_ids)] += len(asked)
    return counts


@dataclass(frozen=True)
class Judged:
    """Results of a draft on held-out prompts, with intervals over prompts."""

    prompts: int
    acceptance: statistics.Estimate  # of a drafted token, those after a wrong one left out
    first: statistics.Estimate  # of a step's first drafted token
    per_step: statistics.Estimate  # tokens that a step writes where COUNT are drafted
    speed: statistics.Estimate  # times as fast as without drafts, where as many are drafted as pay

    def entries(self) -> dict[str, Any]:
        """The figures for a file."""
        return {
            name: value if isinstance(value, int) else [value.value, *value.ends]
            for name, value in vars(self).items()
        }


class _Counted(DraftLengths):
    """COUNT tokens a step, and how each step's draft fared: how many of its tokens were accepted, and how
    many there were up to the first wrong one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps = list[tuple[int, int]]()

    def choose(
        self, texts: Sequence[Any], rooms: Sequence[int], proposer: Any, others: Sequence[str] = ()
    ) -> list[int]:
        return [min(COUNT, room) for room in rooms]

    def update(self, text: Any, drafted: int, accepted: int) -> None:
        if drafted:
            self.steps.append((accepted, accepted + (accepted < drafted)))


def judged(
    lm: LanguageModel, draft: Path | LanguageModel, asked: Sequence[Prompt], tokens: int, report: Report
) -> Judged:
    """How a draft (a head's folder, or a model) does on prompts; greedy answers of at most so many tokens."""
    engine, tokenizer, settings = lm.engine, lm.tokenizer, SamplingParams(max_tokens=tokens)
    counts: list[tuple[int, int, int, int]] = []
    seconds: list[tuple[float, float]] = []
    paying = lm.drafting(draft)
    for n, one in enumerate(asked):
        report(n, len(asked))
        counted = _Counted()
        every = Drafting(paying.proposer, counted)
        ways = [None, paying, every] if n % 2 else [every, paying, None]
        made = {
            way: finish(generate(engine, tokenizer, one.ids, settings, None, way)).timings for way in ways
        }
        if counted.steps:
            right, tried = zip(*counted.steps, strict=True)
            counts.append((sum(right), sum(tried), len(right), sum(count > 0 for count in right)))
        plain, drafted = (max(made[way].decode_seconds, 1e-9) for way in (None, paying))
        seconds.append((plain, drafted))
    report(len(asked), len(asked))
    if not counts:
        raise UserError("the model's answers to the held-out prompts are empty, so that no draft is judged")
    right, tried, steps, first = zip(*counts, strict=True)
    written = [each + number for each, number in zip(right, steps, strict=True)]
    plain, drafted = zip(*seconds, strict=True)
    return Judged(
        len(counts),
        statistics.ratio(right, tried),
        statistics.ratio(first, steps),
        statistics.ratio(written, steps),
        statistics.ratio(plain, drafted),
    )
