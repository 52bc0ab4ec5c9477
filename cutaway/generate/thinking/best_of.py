"""Best of n: n samples, of which the one with the highest score is the answer.

Without a scorer it is the mean log-probability of the sample's own tokens. The distribution moves away from
the model's by a KL divergence of ln n - (n - 1) / n at most (2210.10760).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cutaway.bounds import Bounded, Count
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.thinking.strategy import Judge, Thought, Writer


@dataclass(frozen=True)
class Config(Bounded):
    """``count`` samples."""

    count: Count

    def answer(
        self, writer: Writer, prompts: Sequence[Sequence[int]], settings: SamplingParams, judge: Judge
    ) -> list[Thought]:
        """The best sample of each prompt; the first one of equals."""
        thoughts = []
        for n, own in enumerate(writer.samples(prompts, settings, self.count)):
            best = max(own, key=lambda generation, n=n: judge.score(n, generation))
            thoughts.append(Thought(best, tuple(own), sum(len(each.ids) for each in own)))
        return thoughts
