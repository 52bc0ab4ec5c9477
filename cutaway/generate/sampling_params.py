"""The options of sampling, defined once: their names, defaults and bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cutaway.errors import UserError, quoted

Number = int | float


@dataclass(frozen=True)
class SamplingParams:
    """How to choose and when to stop; a value out of its range is UserError by name.

    max_tokens None means until the model or the context ends. top_k 0, top_p 1, min_p 0, typical_p 1,
    repetition_penalty 1 and the other penalties at 0 are off. logit_bias adds to logits by id (-inf bans).
    stop ends at a string, stop_ids at an id, and the tokenizer's end tokens do too unless ignore_eos.
    Without a seed every run differs. logprobs asks for that many alternatives beside each token.
    """

    max_tokens: int | None = 128
    temperature: Number = 0.0
    top_k: int = 0
    top_p: Number = 1.0
    min_p: Number = 0.0
    typical_p: Number = 1.0
    repetition_penalty: Number = 1.0
    frequency_penalty: Number = 0.0
    presence_penalty: Number = 0.0
    logit_bias: Mapping[int, Number] = field(default_factory=dict)
    stop: str | Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    ignore_eos: bool = False
    seed: int | None = None
    logprobs: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1)
        _between("temperature", self.temperature, 0, math.inf)
        _whole("top_k", self.top_k, 0)
        _between("top_p", self.top_p, 0, 1)
        _between("min_p", self.min_p, 0, 1)
        _between("typical_p", self.typical_p, 0, 1)
        _number("repetition_penalty", self.repetition_penalty, lambda x: 0 < x < math.inf, "above 0")
        _between("frequency_penalty", self.frequency_penalty, -2, 2)
        _between("presence_penalty", self.presence_penalty, -2, 2)
        if self.seed is not None:
            _whole("seed", self.seed, 0)
        _whole("logprobs", self.logprobs, 0)
        for id, bias in self.logit_bias.items():
            _whole("logit_bias", id, 0, "an id of")
            _number("logit_bias", bias, lambda x: x < math.inf, "a number below infinity")
        for id in self.stop_ids:
            _whole("stop_ids", id, 0)
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        for text in stop:
            if not isinstance(text, str) or not text:
                raise UserError(f"stop is {quoted(text)}: a stop must be a string of at least one character")
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_ids", tuple(self.stop_ids))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    def check(self, vocab: int) -> None:
        """Refuse ids that a vocabulary of this size does not hold, and more alternatives than it has."""
        for name, ids in (("logit_bias", self.logit_bias), ("stop_ids", self.stop_ids)):
            for id in ids:
                if id >= vocab:
                    raise UserError(f"{name} names the id {id}: the model's ids go from 0 to {vocab - 1}")
        if self.logprobs > vocab:
            raise UserError(f"logprobs is {self.logprobs}: the model has {vocab} tokens to list")


def _number(name: str, value: object, fits: Callable[[float], bool], wanted: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not fits(float(value)):
        raise UserError(f"{name} is {quoted(value)}: it must be {wanted}")


def _between(name: str, value: object, low: Number, high: Number) -> None:
    wanted = f"{low} or more" if high == math.inf else f"between {low} and {high}"
    _number(name, value, lambda x: low <= x <= high and math.isfinite(x), wanted)


def _whole(name: str, value: object, low: int, what: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise UserError(
            f"{name} is {quoted(value)}: it must be {what + ' ' if what else ''}a whole number, {low} or more"
        )
