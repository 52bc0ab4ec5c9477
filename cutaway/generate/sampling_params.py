"""The options of sampling, defined once: their names, defaults and bounds.

The command line checks by them, and the API's schema is derived from them (serve/openai/sampling_schema.py).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict, get_args

import numpy as np

from cutaway.bounds import Bound, Count, Natural, bounds_of
from cutaway.errors import UserError, quoted

Number = int | float
Fraction = Annotated[Number, Bound(0, 1)]
Penalty = Annotated[Number, Bound(-2, 2)]


@dataclass(frozen=True)
class SamplingParams:
    """How to choose and when to stop; a value out of its bounds is UserError by name.

    max_tokens None means until the model or the context ends. top_k 0, top_p 1, min_p 0, typical_p 1,
    repetition_penalty 1 and the other penalties at 0 are off. logit_bias adds to logits by id (-inf bans).
    stop ends at a string, stop_ids at an id, and the tokenizer's end tokens do too unless ignore_eos.
    Without a seed every run differs. logprobs asks for that many alternatives beside each token. watermark
    marks the text with a secret (generate/watermark).
    """

    max_tokens: Count | None = 128
    temperature: Annotated[Number, Bound(0)] = 0.0
    top_k: Natural = 0
    top_p: Fraction = 1.0
    min_p: Fraction = 0.0
    typical_p: Fraction = 1.0
    repetition_penalty: Annotated[Number, Bound(0.01, 100)] = 1.0
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    logit_bias: Mapping[int, Number] = field(default_factory=dict)
    stop: str | Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    ignore_eos: bool = False
    seed: Natural | None = None
    logprobs: Natural = 0
    watermark: Any = None  # a Watermark; its type would be resolved with the bounds of the others

    def __post_init__(self) -> None:
        for name, (kinds, low, high, optional) in RANGES.items():
            value: Any = getattr(self, name)
            if (type(value) in kinds and low <= value <= high) or (value is None and optional):
                continue
            kind, bound, _ = NUMBERS[name]  # another type of number, or a mistake
            _check(name, value, kind, bound)
        for id, bias in self.logit_bias.items():
            _check("logit_bias", id, int, Bound(0), "an id of ")
            if isinstance(bias, bool) or not isinstance(bias, int | float | np.number) or not bias < math.inf:
                raise UserError(f"logit_bias is {quoted(bias)}: it must be a number below infinity")
        for id in self.stop_ids:
            _check("stop_ids", id, int, Bound(0))
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        for text in stop:
            if not isinstance(text, str) or not text:
                raise UserError(f"stop is {quoted(text)}: a stop must be a string of at least one character")
        if self.watermark is not None and self.temperature == 0 and not self.watermark.greedy:
            raise UserError("this watermark is in the random choice: give a temperature above 0, such as 0.8")
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_ids", tuple(self.stop_ids))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    def check(self, vocab: int) -> None:
        """UserError for ids outside a vocabulary of this size, and for more alternatives than it has."""
        for name, ids in (("logit_bias", self.logit_bias), ("stop_ids", self.stop_ids)):
            for id in ids:
                if id >= vocab:
                    raise UserError(f"{name} names the id {id}: the model's ids go from 0 to {vocab - 1}")
        if self.logprobs > vocab:
            raise UserError(f"logprobs is {self.logprobs}: the model has {vocab} tokens to list")


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams` as keyword arguments, for type checkers; each may be left out."""

    max_tokens: int | None
    temperature: Number
    top_k: int
    top_p: Number
    min_p: Number
    typical_p: Number
    repetition_penalty: Number
    frequency_penalty: Number
    presence_penalty: Number
    logit_bias: Mapping[int, Number]
    stop: str | Sequence[str]
    stop_ids: Sequence[int]
    ignore_eos: bool
    seed: int | None
    logprobs: int
    watermark: Any  # as above


def sampling_params(options: SamplingOptions) -> SamplingParams:
    """The parameters of these options; UserError for an unknown name, with the nearest known one."""
    known = SamplingOptions.__annotations__
    for name in options:
        if name not in known:
            from difflib import get_close_matches  # a mistake's alone

            near = get_close_matches(name, known, n=1)
            instead = f"did you mean {near[0]}?" if near else f"use {', '.join(known)}"
            raise UserError(f"There is no sampling setting {name}: {instead}")
    return SamplingParams(**options)


def _number(hint: Any) -> tuple[type[int] | type[float], Bound, bool] | None:
    """An option's type: int or float, its bound, and whether it may be None."""
    options = (hint,) if hasattr(hint, "__metadata__") else get_args(hint)
    for option in options:
        if hasattr(option, "__metadata__"):
            return (int if option.__origin__ is int else float, option.__metadata__[0], type(None) in options)
    return None


def _check(name: str, value: object, kind: type[int] | type[float], bound: Bound, what: str = "") -> None:
    if not _is_number(value, kind) or not bound.holds(value):  # pyright: ignore
        whole = "a whole number, " if kind is int else ""
        raise UserError(f"{name} is {quoted(value)}: it must be {what}{whole}{bound}")


def _is_number(value: object, kind: type[int] | type[float]) -> bool:
    kinds = int | np.integer if kind is int else int | float | np.number
    return isinstance(value, kinds) and not isinstance(value, bool)


NUMBERS = {name: found for name, hint in bounds_of(SamplingParams).items() if (found := _number(hint))}
# The usual types, the lowest and the highest value of each, and whether it may be None: for every request.
RANGES = {
    name: ((int,) if kind is int else (int, float), bound.low, min(bound.high, sys.float_info.max), optional)
    for name, (kind, bound, optional) in NUMBERS.items()
}
