"""Needle (passkey retrieval, 2305.16300): digits are hidden in a long random text, and due at its end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cutaway.bounds import Count
from cutaway.compare.task import ComparisonTask
from cutaway.errors import UserError
from cutaway.shapes import Bool, Int


@dataclass(frozen=True)
class Config(ComparisonTask):
    """``length`` tokens, of which ``digits`` at a random place are the needle; id 0 opens it and asks for it.

    Ids 1 to 10 are digits, the ``letters`` after them are the text around.
    """

    length: Count = 96
    digits: Count = 4
    letters: Count = 26

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.digits + 1 > self.length:
            raise UserError(f"needle: {self.digits} digits and a marker do not fit {self.length} tokens")

    @property
    def vocab(self) -> int:
        return 11 + self.letters

    @property
    def context(self) -> int:
        return self.length + self.digits

    @property
    def chance(self) -> float:
        return 0.1

    def row(self, random: np.random.Generator) -> tuple[Int[np.ndarray, "t1"], Bool[np.ndarray, "t"]]:
        """Text with the needle, the question, the needle."""
        needle = random.integers(1, 11, self.digits)
        text = random.integers(11, self.vocab, self.length)
        place = int(random.integers(0, self.length - self.digits))
        text[place], text[place + 1 : place + 1 + self.digits] = 0, needle
        return np.concatenate([text, [0], needle]), np.arange(self.context) >= self.length
