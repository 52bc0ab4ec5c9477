"""A task run on a model: a figure for each metric with its error, and each item's value, for pairing.

Multiple choice compares log p(choice | prompt):

    acc        the largest sum wins
    acc_norm   per character of the choice, without the space before it
    acc_bytes  per byte of what is scored
    acc_mi     less log p(choice) without the prompt, where it is asked for

Exercises are answered by the batch scheduler, greedily or in several samples at a temperature, through the
model's chat template where it has one: ``acc`` is the fraction of answers with a score of 0.99 or more,
``score`` the mean score, ``pass_at_k`` the probability that one of k samples is right. With slow thinking
``ceiling`` is the fraction of exercises of which one candidate is right, and ``tokens`` all that were written
for one. A text has ``bits_per_byte`` and ``perplexity``, tool exercises the figures of ``tool_calls.py``.
Agent exercises are answered by the agent's loop, and as exercises by a model without a chat template.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from cutaway.data.tasks import RIGHT
from cutaway.errors import UserError
from cutaway.evaluate import agent_exercises, labelled, likelihood, statistics, tool_calls
from cutaway.evaluate.cache import Cache
from cutaway.evaluate.statistics import Estimate
from cutaway.evaluate.task import AgentExercise, EvaluationTask, Labelled, Question, Text, ToolExercise
from cutaway.generate import thinking
from cutaway.generate.sampling_params import SamplingParams
from cutaway.lm import LanguageModel

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Options:
    """How exercises are answered, and whether choices are scored without their prompt too."""

    samples: int = 1
    temperature: float = 0.0
    seed: int = 0
    max_tokens: int | None = None
    mutual_information: bool = False
    think: str | None = None


@dataclass(frozen=True)
class EvaluationResult:
    """A task's figures; ``values`` [n] has each item's, ``clusters`` what they share."""

    task: EvaluationTask | Text
    metrics: dict[str, Estimate]
    values: dict[str, list[float]]
    clusters: list[str] | None
    seconds: float
    first_prompt: str
    tokens: int = 0  # generated
    answers: list[list[str]] = field(default_factory=list)


def check(task: EvaluationTask | Text, options: Options) -> None:
    """Before any task is asked: UserError for options that this one does not have."""
    if isinstance(task, Text) or isinstance(task.items[0], Question | Labelled):
        return
    if isinstance(task.items[0], ToolExercise | AgentExercise):
        if options.samples > 1 or options.temperature or options.think is not None:
            raise UserError(f"{task.name}: calls are greedy: leave out samples, temperature and --think")
    elif options.samples > 1 and not options.temperature:
        raise UserError("several samples at temperature 0 are all the same: give a temperature above 0")


def run_tasks(
    lm: LanguageModel,
    task: EvaluationTask | Text,
    cache: Cache,
    options: Options | None = None,
    progress: Progress = lambda done, total: None,
) -> EvaluationResult:
    """The model's figures on a task. Raises UserError for one that the model cannot be asked."""
    options, start = options or Options(), time.perf_counter()
    check(task, options)
    f1 = None
    if isinstance(task, Text):
        values, clusters, sizes, first = _text(lm, task, cache, progress)
        answers, tokens = [], 0
        metrics = _rates(values["surprise"], clusters, sizes)
    elif isinstance(task.items[0], Question):
        values, first = _choices(lm, task.items, cache, options, progress)
        answers, tokens, clusters = [], 0, _clusters(task.items)
    elif isinstance(task.items[0], Labelled):
        values, f1, answers = labelled.answered(lm, task, progress)
        tokens, clusters, first = 0, _clusters(task.items), task.items[0].prompt
    elif isinstance(task.items[0], ToolExercise):
        values, answers, tokens, first = tool_calls.answered(lm, task, cache, options.max_tokens, progress)
        clusters = _clusters(task.items)
    elif isinstance(task.items[0], AgentExercise) and lm.checkpoint.chat_template is not None:
        size = options.max_tokens
        values, answers, tokens, first = agent_exercises.answered(lm, task, cache, size, progress)
        clusters = _clusters(task.items)
    else:
        values, answers, tokens, first = _exercises(lm, task, cache, options, progress)
        clusters = _clusters(task.items)
    if not isinstance(task, Text):
        metrics = {name: statistics.mean(each, clusters, share=_share(name)) for name, each in values.items()}
        metrics |= {} if f1 is None else {"macro_f1": f1}
    seconds = time.perf_counter() - start
    return EvaluationResult(task, metrics, values, clusters, seconds, first, tokens, answers)


def compared(a: EvaluationResult, b: EvaluationResult) -> dict[str, statistics.Paired]:
    """The difference a - b of each metric, question by question."""
    return {
        name: statistics.paired(a.values[name], b.values[name], a.clusters, share=_share(name))
        for name in a.values
        if len(a.values[name]) == len(b.values.get(name, ()))
    }


def _share(metric: str) -> bool:
    """Whether a metric's values lie between 0 and 1."""
    return metric not in ("tokens", "surprise")


def _clusters(items: Sequence[Any]) -> list[str] | None:
    if all(item.cluster is None for item in items):
        return None
    return [f"alone {n}" if item.cluster is None else item.cluster for n, item in enumerate(items)]


def _choices(
    lm: LanguageModel, items: Sequence[Any], cache: Cache, options: Options, progress: Progress
) -> tuple[dict[str, list[float]], str]:
    requests = [likelihood.likelihood(lm, item.prompt, item.choices) for item in items]
    sums = _scored(lm, requests, cache, progress)
    ratings = {
        "acc": sums,
        "acc_norm": [
            [total / max(len(choice.strip()), 1) for total, choice in zip(row, item.choices, strict=True)]
            for row, item in zip(sums, items, strict=True)
        ],
        "acc_bytes": [
            [total / len(choice.encode()) for total, choice in zip(row, item.choices, strict=True)]
            for row, item in zip(sums, items, strict=True)
        ],
    }
    if options.mutual_information:
        bare = [likelihood.likelihood(lm, "", item.choices) for item in items]
        without = _scored(lm, bare, cache, progress)
        ratings["acc_mi"] = [
            [a - b for a, b in zip(row, other, strict=True)] for row, other in zip(sums, without, strict=True)
        ]
    values = {
        name: [float(int(np.argmax(row)) == item.answer) for row, item in zip(rows, items, strict=True)]
        for name, rows in ratings.items()
    }
    return values, items[0].prompt


def _scored(
    lm: LanguageModel, requests: Sequence[likelihood.Likelihood], cache: Cache, progress: Progress
) -> list[list[float]]:
    """The sum of log-probabilities of each continuation of each request."""

    def compute(numbers: Sequence[int]) -> list[list[float]]:
        scored = likelihood.score(lm, [requests[n] for n in numbers])
        return [[each.log_probability for each in row] for row in scored]

    keys = [["choices", request.context, request.continuations] for request in requests]
    return cache.fill(keys, compute, lambda done: progress(done, len(requests)))


def _exercises(
    lm: LanguageModel, task: EvaluationTask, cache: Cache, options: Options, progress: Progress
) -> tuple[dict[str, list[float]], list[list[str]], int, str]:
    items: Any = task.items
    chat = lm.checkpoint.chat_template is not None
    prompts = [
        lm.chat_ids([{"role": "user", "content": item.prompt}]) if chat else lm.ids(f"{item.prompt}\n")
        for item in items
    ]
    size = options.max_tokens or task.max_tokens
    longest = max(map(len, prompts))
    if longest + size > lm.context:
        raise UserError(
            f"{task.name}: a prompt of {longest} ids and {size} for the answer are more than the model's "
            f"context of {lm.context}: give the answer fewer, by max_tokens"
        )
    if options.think is not None:
        return _thoughts(lm, task, prompts, size, cache, options, progress)
    settings = lm.ending(SamplingParams(max_tokens=size, temperature=options.temperature))
    requests = [
        [
            "seeded answer",
            ids,
            size,
            options.temperature,
            options.seed * options.samples + n,
            len(lm.tokenizer),
        ]
        for ids in prompts
        for n in range(options.samples)
    ]

    def compute(numbers: Sequence[int]) -> list[list[Any]]:
        asked = [requests[n][1] for n in numbers]
        chosen = [replace(settings, seed=thinking.seed_of(requests[n][1], requests[n][4])) for n in numbers]
        with thinking.Writer(lm.engine, lm.tokenizer) as writer:
            made = writer.write(asked, chosen)
        return [[each.text, len(each.ids)] for each in made]

    found = cache.fill(requests, compute, lambda done: progress(done, len(requests)))
    each = options.samples
    answers = [[text for text, _ in found[n : n + each]] for n in range(0, len(found), each)]
    scores = [[item.check(text) for text in row] for item, row in zip(items, answers, strict=True)]
    values = {
        "acc": [sum(score >= RIGHT for score in row) / each for row in scores],
        "score": [sum(row) / each for row in scores],
    }
    if each > 1:
        k = each // 2 or 1
        right = [sum(score >= RIGHT for score in row) for row in scores]
        values[f"pass_at_{k}"] = [statistics.pass_at(each, count, k) for count in right]
    tokens = sum(length for _, length in found)
    return values, answers, tokens, lm.tokenizer.decode(prompts[0])


def _thoughts(
    lm: LanguageModel,
    task: EvaluationTask,
    prompts: Sequence[list[int]],
    size: int,
    cache: Cache,
    options: Options,
    progress: Progress,
) -> tuple[dict[str, list[float]], list[list[str]], int, str]:
    """Answers by slow thinking. What chooses one is the model itself; the task's checker only checks."""
    strategy = thinking.parse(str(options.think))
    settings = lm.ending(SamplingParams(max_tokens=size, temperature=options.temperature, seed=options.seed))
    items: Any = task.items

    def compute(numbers: Sequence[int]) -> list[list[Any]]:
        judge = thinking.Judge(extract=task.extract)
        if lm.checkpoint.chat_template is not None:
            asked = [[{"role": "user", "content": items[n].prompt}] for n in numbers]
            judge = replace(judge, follow_up=lambda n, answers: lm.refining(asked[n], answers))
        with thinking.Writer(lm.engine, lm.tokenizer) as writer:
            made = strategy.answer(writer, [prompts[n] for n in numbers], settings, judge)
        return [
            [thought.generation.text, thought.tokens, [one.text for one in thought.candidates]]
            for thought in made
        ]

    requests = [
        ["seeded thought", options.think, ids, size, options.temperature, options.seed] for ids in prompts
    ]
    found = cache.fill(requests, compute, lambda done: progress(done, len(requests)))
    scores = [item.check(text) for item, (text, _, _) in zip(items, found, strict=True)]
    values = {
        "acc": [float(score >= RIGHT) for score in scores],
        "score": scores,
        "ceiling": [
            float(any(item.check(text) >= RIGHT for text in texts))
            for item, (_, _, texts) in zip(items, found, strict=True)
        ],
        "tokens": [float(count) for _, count, _ in found],
    }
    answers = [[text, *texts] for text, _, texts in found]
    return values, answers, sum(count for _, count, _ in found), lm.tokenizer.decode(prompts[0])


def _text(
    lm: LanguageModel, task: Text, cache: Cache, progress: Progress
) -> tuple[dict[str, list[float]], list[str], dict[str, float], str]:
    """Each token's surprise, the document or block that it is in, and how many bytes these have."""
    ids = [lm.tokenizer.encode(document) for document in task.documents]
    count = sum(map(len, ids))

    def compute(numbers: Sequence[int]) -> list[list[float]]:
        out = []
        for n in numbers:
            before = sum(map(len, ids[:n]))
            report = partial(_reported, progress, before, count)
            out.append(likelihood.rolling(lm, task.documents[n], report).tolist())
        return out

    found = cache.fill([["text", document] for document in task.documents], compute, lambda done: None)
    surprise = [-each for row in found for each in row]
    if len(ids) > 1:
        clusters = [f"document {n}" for n, row in enumerate(ids) for _ in row]
        sizes = {f"document {n}": float(len(text.encode())) for n, text in enumerate(task.documents)}
    else:
        blocks = statistics.blocks(count)
        clusters, whole = [f"block {n}" for n in blocks], len(task.documents[0].encode())
        written = np.array([len(lm.tokenizer.decode_bytes([id])) for id in ids[0]], np.float64)
        own = np.bincount(blocks, written)
        sizes = {f"block {n}": float(size) for n, size in enumerate(own * whole / own.sum())}
    return {"surprise": surprise}, clusters, sizes, task.documents[0][:200]


def _reported(progress: Progress, before: int, count: int, done: int) -> None:
    progress(before + done, count)


def _rates(surprise: list[float], clusters: list[str], sizes: dict[str, float]) -> dict[str, Estimate]:
    """Bits per byte and perplexity; documents, or blocks of one, are what is independent."""
    own = statistics.mean(surprise, clusters, share=False)
    nats = dict.fromkeys(sizes, 0.0)
    for each, cluster in zip(surprise, clusters, strict=True):
        nats[cluster] += each
    bits = statistics.ratio([each / math.log(2) for each in nats.values()], list(sizes.values()))
    value = math.exp(own.value)
    ends = [math.exp(min(x, 700)) if math.isfinite(x) else x for x in (own.low, own.high)]
    perplexity = Estimate(value, value * own.error, ends[0], ends[1], own.n)
    return {"bits_per_byte": replace(bits, n=own.n), "perplexity": perplexity}
