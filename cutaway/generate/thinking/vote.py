"""Self-consistency (2203.11171): n samples, and the answer that most of them end with.

Of answers with as many votes one is drawn by the seed. A sample without an answer has no vote.
"""

from __future__ import annotations

import random
from collections import Counter
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
        """For each prompt, the first sample with the answer that won."""
        thoughts = []
        for n, own in enumerate(writer.samples(prompts, settings, self.count)):
            answers = [judge.extract(generation.text) for generation in own]
            votes = Counter(answer for answer in answers if answer is not None)
            most = max(votes.values(), default=0)
            leading = sorted(answer for answer, count in votes.items() if count == most)
            lot = random.Random(f"{settings.seed} {n}")
            chosen = own[answers.index(lot.choice(leading))] if leading else own[0]
            thoughts.append(Thought(chosen, tuple(own), sum(len(each.ids) for each in own)))
        return thoughts
