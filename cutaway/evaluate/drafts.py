"""A draft's material and its judge: a model's own answers, and how often a draft foresees them.

``answer`` writes each prompt of a data set with the model's own answer, for `finetune distill --draft`, and
goes on with the prompt at which it was stopped. ``judged`` drafts answers to prompts that were held out: a
fixed number of tokens a step, to see how many are accepted, and as many as pay, in turns with none, to see
how fast that is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.data import layouts, rows
from cutaway.data.conversations import template_options
from cutaway.errors import UserError, quoted
from cutaway.evaluate import statistics
from cutaway.generate.batch.many_prompts import answer_all
from cutaway.generate.batch.request import Generation, Request
from cutaway.generate.decode import finish, generate
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.speculative import Drafting, DraftLengths
from cutaway.generate.tool_calls import prompted
from cutaway.lm import LanguageModel
from cutaway.store.files import disk_errors
from cutaway.store.reading import parsed_text
from cutaway.tokenizer import chat

TEMPERATURE = 0.7  # of the answers: what a model mostly says, and not always the same
AT_ONCE = 64  # prompts
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
            return self.row | {"messages": [*self.row["messages"], {"role": "assistant", "content": text}]}
        return {"text": self.row["text"] + text}

    def answer_in(self, row: Mapping[str, Any]) -> str | None:
        """The text that ``answered`` made a row of; None where it made another."""
        match row:
            case {"messages": [*_, {"content": str(text)}]}:
                pass
            case {"text": str(text)}:
                text = text.removeprefix(self.row.get("text", ""))
            case _:
                return None
        return text if json.dumps(self.answered(text)) == json.dumps(row) else None


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
    alone = not any(name in row for name in answers)  # a question alone is enough
    try:
        known, _ = layouts.standard("examples", {**row, "answer": "?"} if alone else row, where)
    except UserError:
        known, _ = layouts.standard("examples", row, where)  # which names only what the row has
    messages = known.get("messages")
    if messages is None:
        text = known.get("prompt")
        whole = text or known.get("text", known.get("completion"))
        if not isinstance(whole, str):
            raise UserError(f"{where}: its text is {quoted(whole)}: `finetune distill --draft` reads texts")
        text = text or lm.tokenizer.decode(lm.tokenizer.encode(whole)[:BEGINNING])
        return Prompt({"text": text}, lm.ids(text) if text else [])
    while messages and messages[-1]["role"] != "user":
        messages = messages[:-1]
    if not messages:
        raise UserError(f"{where}: nothing is asked: a conversation has a message of the user")
    return _asked(lm, messages, known, where)


def _asked(lm: LanguageModel, messages: Any, known: Mapping[str, Any], where: str) -> Prompt:
    """A conversation with its tools, in a row of which training makes the same ids."""
    options = template_options(known, where)
    tools = options.pop("tools", None)
    try:
        if chat.has_calls(messages, tools) and lm.tool_format is prompted.FORMAT:
            whole = [message | {"content": message.get("content") or ""} for message in messages]
            messages = [one.message for one in prompted.as_text(whole, tools or ())]
            tools = None  # which the template does not know: they are text in the messages
        ids = lm.chat_ids(messages, tools=tools, **options)
    except (KeyError, TypeError, AttributeError):
        shape = '{"type": "function", "function": {"name": ...}}'
        raise UserError(f"{where}: tools and calls of them should be lists of {shape}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    beside = {"tools": tools, "chat_template_kwargs": options}
    return Prompt({"messages": messages} | {name: value for name, value in beside.items() if value}, ids)


def answer(lm: LanguageModel, asked: Sequence[Prompt], path: Path, tokens: int, report: Report) -> None:
    """Write each prompt with the model's answer of at most so many tokens, a line each; those that the file
    has already stay. UserError where it answers other prompts.
    """
    lines = _lines(path)
    done = len(answers(asked, path))
    if done < len(lines):  # the last line is not whole
        os.truncate(path, sum(map(len, lines[:done])))
    report(done, len(asked))

    def ended(number: int, made: Generation) -> None:
        line = json.dumps(asked[number].answered(made.text))
        with disk_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
        report(number + 1, len(asked))

    while done < len(asked):
        first = done - done % AT_ONCE  # of a part, whose answers have one seed wherever it was stopped
        settings = lm.ending(SamplingParams(max_tokens=tokens, temperature=TEMPERATURE, seed=first))
        part = [Request(tuple(one.ids), settings) for one in asked[done : first + AT_ONCE]]
        answer_all(lm.engine, lm.tokenizer, part, ended=lambda n, made, done=done: ended(done + n, made))
        done += len(part)


def answers(asked: Sequence[Prompt], path: Path) -> list[str]:
    """The answers that a file has, to the first prompts. UserError where it answers others."""
    found = list[str]()
    for n, line in enumerate(_lines(path)):
        if not line.endswith(b"\n"):
            break  # its writer was stopped
        where = f"{path}, line {n + 1}"
        text = asked[n].answer_in(parsed_text(line, where)) if n < len(asked) else None
        if text is None:
            raise UserError(
                f"{where}: does not answer the prompt in this place: one of the files was changed since: "
                "choose another folder with --output"
            )
        found.append(text)
    return found


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.is_file() else []


def written(lm: LanguageModel, asked: Sequence[Prompt], path: Path) -> np.ndarray:
    """How often the answers of a file [v] have each id."""
    counts = np.zeros(lm.engines.decoder().vocab, np.int64)
    for text in answers(asked, path):
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
        statistics.ratio(right, tried, (0.0, 1.0)),
        statistics.ratio(first, steps, (0.0, 1.0)),
        statistics.ratio(written, steps, (1.0, COUNT + 1.0)),
        statistics.ratio(plain, drafted).from_zero(),
    )
