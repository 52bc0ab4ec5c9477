"""StruQ (2402.06363): the instruction and the data in parts of their own, and a model trained to keep to it.

The front end: the data is a message of its own, reserved control tokens are around it, and whatever spells
one of these in the data is removed, until nothing does. The model: fine-tuned on examples of which a
``share`` have another instruction in the data, and whose answer is still the one that the user asked for;
in the others the user gives that instruction, so that obeying is not unlearnt. The share is the strength.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cutaway.security.cases import CANARIES, STYLES, Case, negatives

SHARES = (0.0, 0.1, 0.5)
ROLE = "data"  # of the message that the text is
OBEYING = 1 / 3  # of the other examples: the user gives the instruction
Turn = dict[str, str]


@dataclass(frozen=True)
class Example:
    """A question about a text, and the right value of the field; ``start`` begins the answer."""

    question: str
    text: str
    start: str
    value: str

    @property
    def answer(self) -> str:
        """The whole answer."""
        return f'{self.start}{self.value}"}}'


def turns(question: str, text: str, delimiters: Collection[str]) -> list[Turn]:
    """The conversation: what the user asks, and the text in a message of its own."""
    return [{"role": "user", "content": question}, {"role": ROLE, "content": filtered(text, delimiters)}]


def filtered(text: str, delimiters: Collection[str]) -> str:
    """The text without anything that spells a delimiter, also where removing one puts another together."""
    while any(delimiter in text for delimiter in delimiters):
        for delimiter in delimiters:
            text = text.replace(delimiter, "")
    return text


def examples(draw: np.random.Generator, count: int, share: float, styles: Sequence[str]) -> list[Example]:
    """Examples for training; attacks and orders are of these styles."""
    made = []
    for case, noisy in negatives(draw, count, training=True):
        # Half of all texts, whatever is asked, have ordinary sentences too: they must not tell what is right.
        own = replace(case, text=noisy) if draw.random() < 0.5 else case
        style, word = styles[int(draw.integers(len(styles)))], CANARIES[int(draw.integers(len(CANARIES)))]
        if draw.random() < share:
            made.append(_asked(own, own.question, own.attacked(style, 0, word=word), own.value))
        elif draw.random() < OBEYING:
            made.append(_asked(own, ordered(own, style, word), own.text, word))
        else:
            made.append(_asked(own, own.question, own.text, own.value))
    return made


def ordered(case: Case, style: str, word: str) -> str:
    """The question with an imperative, which here is the user's."""
    json = f'{case.start}{word}"}}'
    return case.question + STYLES[style][0].format(word=word, field=case.field, json=json)


def _asked(case: Case, question: str, text: str, value: str) -> Example:
    return Example(question, text, case.start, value)
