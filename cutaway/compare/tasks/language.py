"""Language modelling: the next token of a text, in bits per byte of it, whatever the tokenizer.

    bits per byte = sum of -log2 p(target) / bytes of the targets' text

Held-out rows are of the text's last documents, which hold a tenth of its bytes; learning rates are chosen on
a twentieth before them. With ``test_length`` both are longer than the rows that are trained on, and only what
is beyond ``length`` is scored (2108.12409).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from typing import ClassVar, Literal

import numpy as np

from cutaway.bounds import Count
from cutaway.compare.task import ComparisonTask
from cutaway.data import novels, run_tokenizer, sources
from cutaway.errors import UserError
from cutaway.shapes import Bool, Int
from cutaway.tokenizer import Tokenizer

NOVELS = "novels"
VALIDATION, HELD_OUT = 0.05, 0.1
FEW = 40  # documents below which a text is cut by its paragraphs


@dataclass(frozen=True)
class Config(ComparisonTask):
    """``length`` tokens of ``text`` (a file, a folder, "novels") by a ``tokenizer`` of pretraining."""

    metric: ClassVar[Literal["accuracy", "bits_per_byte"]] = "bits_per_byte"
    oracle: ClassVar[float | None] = None

    text: str = NOVELS
    tokenizer: str = "bytes"
    length: Count = 128
    test_length: Count | None = None
    part: Literal["train", "validation", "test"] = "train"

    @property
    def vocab(self) -> int:
        return run_tokenizer.padded(len(self.words()))

    @property
    def context(self) -> int:
        return self.length if self.part == "train" else self.test_length or self.length

    @property
    def chance(self) -> float:
        return 8.0

    @property
    def held_out(self) -> Config:
        return replace(self, part="test")

    @property
    def validation(self) -> Config:
        return replace(self, part="validation")

    def row(self, random: np.random.Generator) -> tuple[Int[np.ndarray, "t1"], Bool[np.ndarray, "t"]]:
        """Tokens from a random place on."""
        ids, context = _read(self.text, self.tokenizer)[self.part], self.context
        if len(ids) <= context + 1:
            raise UserError(
                f"language: {self.text} has {len(ids):,} {self.part} tokens, {context + 2} needed"
            )
        start = int(random.integers(0, len(ids) - context))
        past = context > self.length
        return ids[start : start + context + 1], np.arange(context) >= (self.length if past else 0)

    def words(self) -> Tokenizer:
        """The text's tokenizer."""
        return _trained(self.text, self.tokenizer)


@cache
def _documents(text: str) -> tuple[list[str], list[str], list[str]]:
    """The documents to train on, those to choose learning rates by, and the held-out ones."""
    place = str(novels.folder()) if text == NOVELS else text
    found = [document for document in sources.documents(sources.Source(place)) if document]
    if len(found) < FEW:
        found = [part for document in found for part in document.split("\n\n") if part.strip()]
    ends = list(accumulate(len(document.encode()) for document in found))
    first, last = (
        sum(end <= share * ends[-1] for end in ends) for share in (1 - HELD_OUT - VALIDATION, 1 - HELD_OUT)
    )
    return found[:first], found[first:last], found[last:]


@cache
def _trained(text: str, name: str) -> Tokenizer:
    return run_tokenizer.of_bytes() if name == "bytes" else run_tokenizer.of(name, _documents(text)[0])


@cache
def _read(text: str, name: str) -> dict[str, np.ndarray]:
    """The ids of each part, an end token before each document."""
    tokenizer = _trained(text, name)
    begin, _ = run_tokenizer.ends(tokenizer)

    def ids(documents: list[str]) -> np.ndarray:
        rows = [[begin, *tokenizer.encode_array(document)] for document in documents]
        return np.concatenate(rows) if rows else np.zeros(0, np.int64)

    return dict(zip(("train", "validation", "test"), map(ids, _documents(text)), strict=True))
