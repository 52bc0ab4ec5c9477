"""Log-likelihoods of given continuations, for multiple choice and bits per byte.

    log p(continuation | context) = sum over its tokens of log p(token | context, tokens before it)

Context and continuation are encoded together and then divided where the context's own ids end, as lm-eval
does: spaces at the context's end go to the continuation. A text that is longer than the model's context loses
its beginning. A context is read once for all its continuations, and many texts in one call of the engine;
each has the numbers, bit for bit, that it has alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cutaway.errors import OperationalError, UserError
from cutaway.generate.engine import BatchedEngine
from cutaway.lm import LanguageModel

BUDGET = 768  # ids that one call of the engine reads; a row of logits is kept for each at most
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Scored:
    """A continuation's log-probability in nats, whether each of its tokens is the likeliest, and how many
    tokens it has.
    """

    log_probability: float
    greedy: bool
    tokens: int


@dataclass(frozen=True)
class Likelihood:
    """A context as ids, and the ids of each of its continuations; none of them is empty."""

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]


def likelihood(lm: LanguageModel, context: str, continuations: Sequence[str]) -> Likelihood:
    """The ids of a context and of what may follow. UserError for a continuation without a token."""
    kept = context.rstrip()
    spaces = context[len(kept) :]
    before = tuple(lm.ids(kept)) if kept else prefix(lm)
    start = len(lm.tokenizer.encode(kept))
    after = [tuple(lm.tokenizer.encode(kept + spaces + each)[start:]) for each in continuations]
    for text, ids in zip(continuations, after, strict=True):
        if not ids:
            raise UserError(f"the continuation {text!r} has no token of its own after its context")
    return Likelihood(before, tuple(after))


def prefix(lm: LanguageModel) -> tuple[int, ...]:
    """The id that a text without a context begins with: the begin token, else the end token."""
    tokenizer = lm.tokenizer
    first = tokenizer.bos if tokenizer.bos is not None else tokenizer.eos
    if first is None:
        raise UserError("the tokenizer has no begin token and no end token to score a text from")
    return (first,)


def score(
    lm: LanguageModel, questions: Sequence[Likelihood], progress: Progress | None = None
) -> list[list[Scored]]:
    """Each question's continuations scored. ``progress(done)`` is called as questions are."""
    engine = lm.engine
    if not isinstance(engine, BatchedEngine):
        raise UserError("this engine reads one text only, and evaluation reads many at once")
    vocab = min(engine.vocab, len(lm.tokenizer))
    out: list[list[Scored]] = [[] for _ in questions]
    order = sorted(range(len(questions)), key=lambda n: -_size(questions[n]))
    done = 0
    for group in _groups(order, [_size(question) for question in questions]):
        for n, scored in zip(group, _score(engine, vocab, [questions[n] for n in group]), strict=True):
            out[n] = scored
        done += len(group)
        if progress is not None:
            progress(done)
    return out


def rolling(lm: LanguageModel, text: str, progress: Progress | None = None) -> np.ndarray:
    """float64 [n]: log p of each of a text's ids. Windows of the model's context; each id is predicted once,
    the last window's with as much before it as it holds.
    """
    ids = lm.tokenizer.encode(text)
    if not ids:
        raise UserError("there is nothing to score: the text has no tokens")
    whole, size = [*prefix(lm), *ids], lm.context
    parts, done, engine = [], 0, lm.engine
    while done < len(ids):
        stop = min(done + size, len(ids))
        start = max(0, stop - size) if done else 0
        logits = engine.prefill_all_logits(whole[start:stop], engine.new_state())[done - start :]
        parts.append(log_probabilities(logits, np.array(ids[done:stop]), len(lm.tokenizer))[0])
        done = stop
        if progress is not None:
            progress(done)
    return np.concatenate(parts)


def log_probabilities(logits: np.ndarray, ids: np.ndarray, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """From logits [n v]: float64 [n] log p of each id among the first ``vocab``, and whether it is the
    likeliest.
    """
    logp, best = np.empty(len(ids)), np.empty(len(ids), bool)
    for n, id in enumerate(ids):
        row = logits[n, :vocab]
        top = row.max()
        if not np.isfinite(top):
            raise OperationalError("the model's logits are NaN or infinite: its weights are broken")
        logp[n] = float(row[id] - top) - np.log(np.exp(row - top).sum(dtype=np.float64))
        best[n] = row.argmax() == id
    return logp, best


def _size(question: Likelihood) -> int:
    return len(question.context) + sum(map(len, question.continuations))


def _groups(order: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    group: list[int] = []
    for n in order:
        if group and sum(sizes[m] for m in group) + sizes[n] > BUDGET:
            yield group
            group = []
        group.append(n)
    if group:
        yield group


def _score(engine: Any, vocab: int, questions: Sequence[Likelihood]) -> list[list[Scored]]:
    """One call of the engine for the contexts, one for what follows."""
    longest = engine.max_context
    contexts, states = [], []
    for question in questions:
        room = longest - max(map(len, question.continuations)) + 1
        if room < 1:
            raise UserError(f"a continuation alone is longer than the model's context of {longest} ids")
        contexts.append(question.context[-room:])
        states.append(engine.resume([]))
    ends = np.cumsum([len(ids) for ids in contexts]) - 1
    first = engine.read(contexts, states, ends.tolist())
    texts, forks, targets = [], [], []
    for question, state in zip(questions, states, strict=True):
        for ids in question.continuations:
            if len(ids) > 1:
                texts.append(ids[:-1])
                forks.append(state.snapshot())
                targets.append(ids[1:])
    rest = iter(())
    if texts:
        logits = engine.read(texts, forks, range(sum(map(len, texts))))
        cuts = np.cumsum([len(ids) for ids in texts])[:-1]
        rest = iter(
            log_probabilities(rows, np.array(ids), vocab)
            for rows, ids in zip(np.split(logits, cuts), targets, strict=True)
        )
    out = []
    for question, row in zip(questions, first, strict=True):
        scored = []
        for ids in question.continuations:
            logp, best = log_probabilities(row[None], np.array(ids[:1]), vocab)
            if len(ids) > 1:
                more, more_best = next(rest)
                logp, best = np.concatenate([logp, more]), np.concatenate([best, more_best])
            scored.append(Scored(float(logp.sum()), bool(best.all()), len(ids)))
        out.append(scored)
    return out
