"""Self-refinement (2303.17651): the model answers, is asked to check its answer, and answers again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cutaway.bounds import Bounded, Count
from cutaway.errors import UserError
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.thinking.strategy import Judge, Thought, Writer


@dataclass(frozen=True)
class Config(Bounded):
    """``rounds`` of checking after the first answer; the last answer counts."""

    rounds: Count

    def answer(
        self, writer: Writer, prompts: Sequence[Sequence[int]], settings: SamplingParams, judge: Judge
    ) -> list[Thought]:
        """The last answer to each prompt. UserError for a model without a chat template."""
        if judge.follow_up is None:
            raise UserError("refining is a conversation, and this model has no chat template")
        written = [[generation] for generation in writer.write(prompts, [settings] * len(prompts))]
        for _ in range(self.rounds):
            asked = [judge.follow_up(n, [one.text for one in own]) for n, own in enumerate(written)]
            for own, new in zip(written, writer.write(asked, [settings] * len(prompts)), strict=True):
                own.append(new)
        return [Thought(own[-1], tuple(own), sum(len(one.ids) for one in own)) for own in written]
