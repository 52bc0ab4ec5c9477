"""Texts, and pairs of texts that are read together, as the ids and segments of a model's inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from cutaway.errors import UserError
from cutaway.model.config import Encoder, Model
from cutaway.store.reading import parsed
from cutaway.tokenizer import pairs
from cutaway.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    from cutaway.tokenizer import Tokenizer

Pair = tuple[str, str]
WITH_SEGMENTS = (  # families whose tokenizers give segments where a folder does not name its tokenizer
    *("bert", "electra", "ernie", "megatron_bert", "deberta", "deberta_v2", "squeezebert"),
    "nomic_bert",
)


@dataclass(frozen=True)
class PairInputs:
    """How a model reads texts; ``row`` gives the ids of text number n, or raises UserError."""

    checkpoint: Checkpoint
    config: Model
    context: int
    get_tokenizer: Callable[[], Tokenizer]
    row: Callable[[int, str | Sequence[int], bool], list[int]]

    @cached_property
    def template(self) -> pairs.PairTemplate:
        """What is around a pair."""
        return pairs.read_pair_template(self.checkpoint.path, self.get_tokenizer())

    @cached_property
    def has_segments(self) -> bool:
        """Whether tokens of a pair's second text are of another segment, for the model and its tokenizer."""
        path = self.checkpoint.path / "tokenizer_config.json"
        stated = pairs.gives_segments(parsed(path)) if path.is_file() else None
        known = self.checkpoint.family in WITH_SEGMENTS if stated is None else stated
        return known and isinstance(self.config, Encoder) and self.config.segments > 1

    def count(self, first: str, second: str) -> int:
        """How many ids a pair has."""
        encode = self.get_tokenizer().encode
        return len(encode(first)) + len(encode(second)) + self.template.added

    def rows(
        self, texts: Sequence[str | Sequence[int] | Pair], truncate: bool = False
    ) -> tuple[list[list[int]], list[list[int]] | None]:
        """The ids of texts and of pairs, and the segments of their tokens where the model has them.

        ``truncate`` cuts off the end of what is too long, of a pair its longer text's, as transformers does.
        """
        rows, segments = list[list[int]](), list[list[int]]()
        for i, text in enumerate(texts):
            if isinstance(text, tuple) and len(text) == 2 and all(isinstance(one, str) for one in text):
                ids, parts = self._pair(i, str(text[0]), str(text[1]), truncate)
            else:
                ids = self.row(i, text, truncate)  # type: ignore[arg-type]
                parts = [0] * len(ids)
            rows.append(ids)
            segments.append(parts)
        return rows, segments if self.has_segments else None

    def _pair(self, i: int, first: str, second: str, truncate: bool) -> tuple[list[int], list[int]]:
        encode = self.get_tokenizer().encode
        one, two = list(encode(first)), list(encode(second))
        over = len(one) + len(two) + self.template.added - self.context
        if over > 0 and not truncate:
            count = f"{over + self.context:,} tokens, and this model reads at most {self.context:,}"
            raise UserError(f"the two texts of pair {i} have {count}: shorten them")
        for _ in range(max(over, 0)):
            (one if len(one) > len(two) else two).pop()
        ids, parts = self.template.joined(one, two)
        if not ids:
            raise UserError(f"pair {i} has no token, so there is nothing to read")
        if wrong := [id for id in ids if not 0 <= id < self.config.vocab]:
            last = self.config.vocab - 1
            raise UserError(f"pair {i} has the id {wrong[0]}, and this model's go from 0 to {last}")
        if self.has_segments and max(parts) >= getattr(self.config, "segments", 0):
            raise UserError(f"the tokenizer's template has the segment {max(parts)}, which the model lacks")
        return ids, parts
