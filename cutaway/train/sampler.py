"""Where rollouts are sampled: on this machine (``local_sampler.py``) or a server (``remote_sampler.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from cutaway.generate.batch.request import Generation, Request


@dataclass(frozen=True)
class Completion:
    """What was sampled: ids [m] with the end token, where one was chosen, and their log-probabilities."""

    ids: np.ndarray
    log_probs: np.ndarray
    text: str
    finished: bool

    @staticmethod
    def of(made: Generation) -> Completion:
        """A generation's, whose log-probabilities are of what was drawn from."""
        ids, log_probs = made.ids, made.logprobs
        if isinstance(made.stop, int) and made.stop_logprob is not None:
            ids, log_probs = (*ids, made.stop), (*log_probs, made.stop_logprob)
        finished = made.finish_reason == "stop"
        return Completion(np.array(ids, np.int64), np.array(log_probs, np.float32), made.text, finished)


@runtime_checkable
class Sampler(Protocol):
    """Samples a completion for each request, from the model after ``step`` steps.

    A sampler that gets new weights only now and then uses older ones, unless they must be ``current``.
    """

    def __call__(
        self, requests: Sequence[Request], step: int, /, *, current: bool = False
    ) -> list[Completion]: ...
