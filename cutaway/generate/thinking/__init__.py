"""Slow thinking: more tokens for one answer, by several samples, votes, searches, or a budget of thought.

One file a strategy; ``parse("vote-16")`` finds it. All write through one scheduler, so that samples of a
prompt share its pages. What a strategy costs is every token that it wrote, the discarded ones too.
"""

from cutaway.generate.thinking.strategy import (
    Judge,
    Strategy,
    Thought,
    Writer,
    judge,
    parse,
    samples,
    seed_of,
)

__all__ = ["Judge", "Strategy", "Thought", "Writer", "judge", "parse", "samples", "seed_of"]
