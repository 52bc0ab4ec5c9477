"""Pairs of texts that studies compare: their ids, their answers, and the metric that tells them apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cutaway.bounds import is_finite
from cutaway.errors import UserError
from cutaway.inspect.rows import Rows
from cutaway.inspect.subject import Metric, Subject, subject_of

Answers = tuple[str | int, str | int]


@dataclass(frozen=True)
class LogitDifference:
    """The logit of one token less that of another, if any, at a position: a metric of logits [t v]."""

    first: int
    second: int | None
    position: int = -1

    def __call__(self, logits: Any) -> Any:
        return self.of(logits[self.position])

    def of(self, row: Any) -> Any:
        """The metric of the logits [v] at the position."""
        return row[self.first] if self.second is None else row[self.first] - row[self.second]


def token_id(lm: Any, token: str | int) -> int:
    """The id of a token given as text or id; UserError for a text of several tokens."""
    if isinstance(token, int):
        return token
    subject = subject_of(lm)
    ids = subject.tokenizer.encode(token)  # pyright: ignore[reportAttributeAccessIssue]
    if len(ids) != 1:
        spaced = f" {token.strip()}"
        hint = "give one"
        if ids and token.strip() and len(subject.tokenizer.encode(spaced)) == 1:  # pyright: ignore[reportAttributeAccessIssue]
            hint = f"with its space {spaced!r} it is one"
        elif ids:
            hint = f"give one, such as its first, {token_text(subject, ids[0])!r}"
        raise UserError(f"{token!r} is {len(ids)} tokens, and one is needed: {hint}")
    return ids[0]


def logit_difference(lm: Any, answers: Answers, position: int = -1) -> LogitDifference:
    """The logit of the first answer less that of the second, at a position."""
    first, second = (token_id(lm, one) for one in answers)
    return LogitDifference(first, second, position)


class Pair(NamedTuple):
    """Two texts' ids of equal length, the metric that tells them apart, its value on each, and its name."""

    ids: list[int]
    other: list[int]
    metric: Metric
    here: float
    there: float
    words: str
    answers: tuple[int, int] | None

    def recovered(self, value: float) -> float:
        """From this text's metric (0) to the other's (1)."""
        return (value - self.here) / (self.there - self.here)

    @property
    def facts(self) -> dict[str, Any]:
        return {"metric": self.words, "here": self.here, "there": self.there, "answers": self.answers}

    @property
    def position(self) -> int | None:
        """The position whose logits the metric reads; None where it reads them all."""
        return self.metric.position if isinstance(self.metric, LogitDifference) else None

    def effect(self, logits: np.ndarray, tokens: Sequence[int] | None) -> float:
        """How far logits are from this text's to the other's: [t v], or those of ``tokens`` at the metric's
        position.
        """
        if tokens is None or not isinstance(self.metric, LogitDifference):
            return self.recovered(float(self.metric(logits)))
        return self.recovered(float(self.metric.of(dict(zip(tokens, logits, strict=True)))))


class Pairs(NamedTuple):
    """One pair of texts, or a list of them, ``several``, whose results have an axis of pairs."""

    each: list[Pair]
    several: bool

    @property
    def facts(self) -> dict[str, Any]:
        if not self.several:
            return self.each[0].facts
        ends = {name: float(np.mean([getattr(one, name) for one in self.each])) for name in ("here", "there")}
        words = {one.words for one in self.each}
        return {"metric": words.pop() if len(words) == 1 else "each pair's own", **ends}

    @property
    def tokens(self) -> list[int] | None:
        """The tokens whose logits the metrics read; None where one reads them all."""
        found: set[int] = set()
        for metric in (one.metric for one in self.each):
            if not isinstance(metric, LogitDifference):
                return None
            found |= {id for id in (metric.first, metric.second) if id is not None}
        return sorted(found)

    @property
    def axis(self) -> dict[str, Sequence[Any]]:
        return {"pair": range(len(self.each))} if self.several else {}

    def folded(self, values: np.ndarray) -> np.ndarray:
        """Values with an axis of pairs, without it where there is one pair."""
        return values if self.several else values[0]

    def rows(self, path: str | Path | None, study: str, **options: Any) -> Rows:
        """The finished rows of a study of the pairs; another model or edit shows in their metrics."""
        of = {
            "study": study,
            **{name: [getattr(one, name) for one in self.each] for name in ("ids", "other")},
            "metric": [one.words for one in self.each],
            **{name: [f"{getattr(one, name):.3g}" for one in self.each] for name in ("here", "there")},
        }
        return Rows(path, of | options)


def pairs(
    lm: Any, text: Any, other: Any, answers: Answers | Sequence[Answers] | None, metric: Metric | None
) -> Pairs:
    """Texts made comparable, one and one or as many and as many; without answers or a metric, each text's
    likeliest token is its answer.

    ``answers`` are (this text's, the other's), of all pairs or one a pair. Raises UserError unless the texts
    of a pair have as many tokens, differ, and differ in the metric.
    """
    subject, several = subject_of(lm), _is_list(text)
    if several is not _is_list(other):
        raise UserError("patching takes a text and another, or two lists of texts")
    texts, others = (list(text), list(other)) if several else ([text], [other])
    if len(texts) != len(others) or not texts:
        raise UserError(f"patching needs as many texts as others: these are {len(texts)} and {len(others)}")
    per_pair = _per_pair(answers, len(texts))
    ids, theirs = ([subject.encode(one) for one in some] for some in (texts, others))
    for one, another in zip(ids, theirs, strict=True):
        differing(one, another)
    whole = metric is not None and not isinstance(metric, LogitDifference)
    at = None if whole else [-1 if metric is None else metric.position]
    seen = subject.values([*ids, *theirs], ["logits"], logits_at=at)
    vocabulary = vocabulary_of(subject)
    logits = [one["logits"][:, :vocabulary] for one in seen]
    found = []
    for n in range(len(ids)):
        both = (logits[n], logits[n + len(ids)]) if whole else (logits[n][0], logits[n + len(ids)][0])
        found.append(_pair(subject, ids[n], theirs[n], per_pair[n], metric, both))
    return Pairs(found, several)


def pair(lm: Any, text: Any, other: Any, answers: Answers | None, metric: Metric | None) -> Pair:
    """Two texts made comparable, as ``pairs`` makes several."""
    if _is_list(text):
        raise UserError("this study takes one text and another, not lists of them")
    return pairs(lm, text, other, answers, metric).each[0]


def differing(ids: Sequence[int], other: Sequence[int]) -> list[int]:
    """The positions where two texts differ, and the last. UserError unless they can be compared."""
    if len(ids) != len(other):
        raise UserError(
            f"patching needs texts of equal length: this one has {len(ids)} tokens, the other {len(other)}; "
            "reword one of them"
        )
    found = [i for i, (a, b) in enumerate(zip(ids, other, strict=True)) if a != b]
    if not found:
        raise UserError("both texts are the same, so patching has nothing to move")
    return sorted({*found, len(ids) - 1})


def vocabulary_of(subject: Subject) -> int:
    """How many logits are those of tokens: models may pad their table."""
    return min(subject.config.vocab, len(subject.tokenizer))


def token_text(subject: Subject, id: int) -> str:
    """A token as text; bytes that are no whole character as \\x escapes."""
    return subject.tokenizer.token_bytes(id).decode(errors="backslashreplace")


def _is_list(text: Any) -> bool:
    """Whether this is a list of texts: a list of ids, or of messages, is one."""
    return isinstance(text, list | tuple) and bool(text) and isinstance(text[0], str | list | tuple)


def _per_pair(answers: Any, count: int) -> list[Any]:
    if answers is None or isinstance(answers[0], str | int):
        return [answers] * count
    if len(answers) != count:
        raise UserError(f"answers are of {len(answers)} pairs, and there are {count}")
    return list(answers)


def _pair(
    subject: Subject,
    ids: list[int],
    other: list[int],
    answers: Answers | None,
    metric: Metric | None,
    both: tuple[np.ndarray, np.ndarray],
) -> Pair:
    """A pair by the logits of both texts: [v] at the metric's position, or [t v] of a function."""
    words, chosen = "the metric given", None
    if metric is None:
        if answers is None:
            answers = (int(both[0].argmax()), int(both[1].argmax()))
        if len(answers) != 2:
            raise UserError(f"answers are two tokens, this text's and the other's: these are {len(answers)}")
        mine, yours = chosen = token_id(subject, answers[0]), token_id(subject, answers[1])
        first, second = (token_text(subject, one) for one in (yours, mine))
        if mine == yours:
            raise UserError(
                f"both texts have the same answer, {second!r}, so patching has nothing to move: give answers="
            )
        metric, words = LogitDifference(yours, mine), f"{first!r} - {second!r}"
    of: Any = metric.of if isinstance(metric, LogitDifference) else metric
    measured = [of(logits) for logits in both]
    for shape in (np.shape(one) for one in measured):
        if math.prod(shape) != 1:
            raise UserError(f"the metric gives numbers of shape {list(shape)}: it must give one number")
    here, there = map(float, measured)
    if not is_finite(there - here):
        raise UserError(f"the metric is {here} for this text and {there} for the other: both must be finite")
    if here == there:
        raise UserError("the metric is the same for both texts, so patching has nothing to move")
    return Pair(ids, other, metric, here, there, words, chosen)
