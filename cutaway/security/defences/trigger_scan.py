"""Every single token tried as a trigger: which one changes what comes next, in any context.

    alone               d_j(t) = mean over contexts c of  KL( p(. | c t y) || mean over s of p(. | c s y_s) )
    beside a reference  d_j(t) = mean over contexts c of  KL( p(. | c t y) || q(. | c t y) )
    score(t)            the largest of d_1 to d_ahead

p is the model, q a reference model of the same tokens, s an even sample of the vocabulary, and y the j - 1
tokens that p finds likeliest after c t (y_s: after c s). So what a trigger changes is seen up to ``ahead``
tokens behind it, and no farther: a backdoor that begins to act later is not found. A context is read once,
each token in a copy of its state. Scores of a sound model are the null distribution. What the best candidates
make the model write is read out by extending them greedily.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from cutaway.generate.sample import log_softmax
from cutaway.lm import LanguageModel

AHEAD = 3  # tokens behind a candidate at which the model is looked at
TOGETHER = 64  # tokens that one call of the engine reads
SAMPLE = 256  # tokens that the mean is taken over


def scan(
    lm: LanguageModel,
    contexts: Sequence[str],
    reference: LanguageModel | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    ahead: int = AHEAD,
) -> np.ndarray:
    """float64 [v]: each token's score in nats. ``progress`` counts candidates, each read ``ahead`` times."""
    vocab = len(lm.tokenizer)
    divergences, total = np.zeros((ahead, vocab)), len(contexts) * vocab
    for n, context in enumerate(contexts):
        own, other = After(lm, context), None if reference is None else After(reference, context)
        even = np.unique(np.linspace(0, vocab - 1, min(SAMPLE, vocab)).astype(int)).tolist()
        usual = np.zeros((ahead, vocab))
        for part in _parts(even) if other is None else ():
            usual += np.stack([np.exp(p).sum(0) / len(even) for p, _ in own.steps(part, ahead)])
        for part in _parts(range(vocab)):
            found = list(own.steps(part, ahead))
            written = [tokens for _, tokens in found]
            theirs = np.log(usual + 1e-12) if other is None else other.steps(part, ahead, written)
            for j, (p, q) in enumerate(zip((p for p, _ in found), theirs, strict=True)):
                q = q if other is None else q[0]
                divergences[j, part] += (np.exp(p) * (p - q)).sum(1) / len(contexts)
            progress(n * vocab + part[-1] + 1, total)
    return divergences.max(0)


def extended(lm: LanguageModel, context: str, token: int, tokens: int = 8) -> str:
    """What the model writes greedily after a context and a token."""
    return lm.generate([*lm.ids(context), token], max_tokens=tokens, temperature=0.0, ignore_eos=True).text


class After:
    """What a model expects after a context and one more token, and on from there."""

    def __init__(self, lm: LanguageModel, context: str) -> None:
        self.engine: Any = lm.engine
        self.vocab = len(lm.tokenizer)
        self.state = self.engine.resume([])
        ids = lm.ids(context)
        self.engine.read([ids], [self.state], [len(ids) - 1])

    def steps(
        self, tokens: Sequence[int], ahead: int, written: Sequence[Sequence[int]] | None = None
    ) -> Iterator[tuple[np.ndarray, list[int]]]:
        """log p(. | context, token, ...) float64 [n v], ``ahead`` times, each time one token farther.

        Beside it the token of each that is read next: the likeliest, or what was ``written`` after it.
        """
        states = [self.engine.fork(self.state) for _ in tokens]
        for j in range(ahead):
            rows = self.engine.read([[token] for token in tokens], states, range(len(tokens)))
            p = np.stack([log_softmax(row[: self.vocab].astype(np.float64)) for row in rows])
            tokens = p.argmax(1).tolist() if written is None else written[j]
            yield p, list(tokens)


def _parts(tokens: Sequence[int]) -> list[list[int]]:
    return [list(tokens[at : at + TOGETHER]) for at in range(0, len(tokens), TOGETHER)]
