"""Texts drawn at random from what a grammar leaves."""

import numpy as np

from cutaway.generate.constrain import Constraint
from cutaway.tokenizer import Tokenizer


def drawn(
    constraint: Constraint, tokenizer: Tokenizer, seed: int, most: int = 120, eager: bool = False
) -> tuple[str, bool]:
    """Random tokens that a constraint allows, and whether they came to an end; ``eager`` to."""
    random, ids = np.random.default_rng(seed), []
    while not constraint.done and len(ids) < most:
        logits = random.normal(size=len(tokenizer)).astype(np.float32)
        if eager:
            logits[list(tokenizer.eos_ids)] = 5
        constraint.mask(logits)
        if int(logits.argmax()) in tokenizer.eos_ids:
            return tokenizer.decode(ids), True
        ids.append(int(logits.argmax()))
        constraint.accept(ids[-1])
    return tokenizer.decode(ids), constraint.done
