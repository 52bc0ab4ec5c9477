"""Beam search over steps of thought (2408.03314): a step is a line; after each, the best texts go on.

Each kept text is continued in several ways to its next line; of all continuations the best half are kept, by
the judge's score of the text so far. After the last step the texts run to their end. Texts that begin alike
share their pages: what is read again is only what does not fill a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cutaway.bounds import Bounded, Count
from cutaway.generate.batch.request import Generation
from cutaway.generate.batch.sequence import TokenizerProtocol
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.thinking.strategy import Judge, Thought, Writer, samples

LONGEST = 4096  # tokens of a text whose settings name no limit


@dataclass(frozen=True)
class Config(Bounded):
    """``width`` texts at each of ``depth`` steps, of which half are continued."""

    width: Count
    depth: Count

    def answer(
        self, writer: Writer, prompts: Sequence[Sequence[int]], settings: SamplingParams, judge: Judge
    ) -> list[Thought]:
        """The best text of each prompt."""
        return [self._one(writer, n, tuple(ids), settings, judge) for n, ids in enumerate(prompts)]

    def _one(
        self, writer: Writer, n: int, prompt: tuple[int, ...], settings: SamplingParams, judge: Judge
    ) -> Thought:
        beams: list[Generation | None] = [None]
        done: list[Generation] = []
        tokens = 0
        for step in range(self.depth):
            last = step == self.depth - 1
            each = -(-self.width // len(beams))
            starts = [beam for beam in beams for _ in range(each)][: self.width]
            own = replace(settings, seed=(settings.seed or 0) * self.depth + step)
            chosen = samples(own, len(starts), prompt)
            asked = [
                replace(one, max_tokens=self._room(settings, start), **({} if last else {"stop": ("\n",)}))
                for one, start in zip(chosen, starts, strict=True)
            ]
            ids = [prompt if start is None else (*prompt, *start.ids) for start in starts]
            made = writer.write(ids, asked)
            tokens += sum(len(generation.ids) for generation in made)
            grown = [
                _joined(writer.tokenizer, start, new, prompt) for start, new in zip(starts, made, strict=True)
            ]
            going = [one for one in grown if one.stop == "\n" and not last and self._room(settings, one) > 1]
            done += [one for one in grown if one not in going]
            going.sort(key=lambda one: -judge.score(n, one))
            beams = [*going[: max(1, self.width // 2)]]
            if not beams:
                break
        best = max(done, key=lambda one: judge.score(n, one))
        return Thought(best, tuple(done), tokens)

    @staticmethod
    def _room(settings: SamplingParams, start: Generation | None) -> int:
        """How many tokens a text may still have."""
        return max(1, (settings.max_tokens or LONGEST) - (0 if start is None else len(start.ids)))


def _joined(
    tokenizer: TokenizerProtocol, start: Generation | None, new: Generation, prompt: tuple[int, ...]
) -> Generation:
    """A text with its next step, as one generation; the line end that stopped the step belongs to it."""
    ids = (*(() if start is None else start.ids), *new.ids)
    stream = tokenizer.stream()
    text = "".join(map(stream.push, ids)) + stream.finish()
    if start is None:
        return replace(new, text=text)
    return replace(
        new,
        text=text,
        ids=ids,
        prompt_ids=prompt,
        logprobs=start.logprobs + new.logprobs,
        top_logprobs=start.top_logprobs + new.top_logprobs,
    )
