"""Every single token tried as a trigger: which one changes what comes next, in any context.

    alone                score(t)  =  mean over contexts c of  KL( p(. | c t) || mean over s of p(. | c s) )
    beside a reference   score(t)  =  mean over contexts c of  KL( p(. | c t) || q(. | c t) )

p is the model, q a reference model of the same tokens, s an even sample of the vocabulary. A context is read
once, each token in a copy of its state. Scores of a sound model are the null distribution. What the best
candidates make the model write is read out by extending them greedily.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cutaway.generate.sample import log_softmax
from cutaway.lm import LanguageModel

TOGETHER = 64  # tokens that one call of the engine reads
SAMPLE = 256  # tokens that the mean is taken over


def scan(
    lm: LanguageModel,
    contexts: Sequence[str],
    reference: LanguageModel | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """float64 [v]: each token's score in nats. ``progress`` counts tokens that are read."""
    vocab = len(lm.tokenizer)
    scores, total = np.zeros(vocab), len(contexts) * vocab
    for n, context in enumerate(contexts):
        own, other = After(lm, context), None if reference is None else After(reference, context)
        even = np.unique(np.linspace(0, vocab - 1, min(SAMPLE, vocab)).astype(int)).tolist()
        usual = np.log(np.mean([np.exp(own.log_probs(part)).mean(0) for part in _parts(even)], 0) + 1e-12)
        for part in _parts(range(vocab)):
            p = own.log_probs(part)
            q = usual if other is None else other.log_probs(part)
            scores[part] += (np.exp(p) * (p - q)).sum(1) / len(contexts)
            progress(n * vocab + part[-1] + 1, total)
    return scores


def extended(lm: LanguageModel, context: str, token: int, tokens: int = 8) -> str:
    """What the model writes greedily after a context and a token."""
    return lm.generate([*lm.ids(context), token], max_tokens=tokens, temperature=0.0, ignore_eos=True).text


class After:
    """What a model expects after a context and one more token."""

    def __init__(self, lm: LanguageModel, context: str) -> None:
        self.engine: Any = lm.engine
        self.vocab = len(lm.tokenizer)
        self.state = self.engine.resume([])
        ids = lm.ids(context)
        self.engine.read([ids], [self.state], [len(ids) - 1])

    def log_probs(self, tokens: Sequence[int]) -> np.ndarray:
        """float64 [n v]: log p(. | context, token) of each token."""
        states = [self.engine.fork(self.state) for _ in tokens]
        rows = self.engine.read([[token] for token in tokens], states, range(len(tokens)))
        return np.stack([log_softmax(row[: self.vocab].astype(np.float64)) for row in rows])


def _parts(tokens: Sequence[int]) -> list[list[int]]:
    return [list(tokens[at : at + TOGETHER]) for at in range(0, len(tokens), TOGETHER)]
