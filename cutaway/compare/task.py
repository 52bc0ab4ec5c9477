"""A task that compared models learn: rows, metric, chance level and source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from cutaway.bounds import Bounded
from cutaway.shapes import Bool, Int
from cutaway.tokenizer import Tokenizer
from cutaway.tokenizer.baselines import UNKNOWN, WORD
from cutaway.tokenizer.decode import Words
from cutaway.tokenizer.pretokenize import Split
from cutaway.tokenizer.spec import TokenizerSpec
from cutaway.train.objectives import targets
from cutaway.train.objectives.common.objective import Objective


@dataclass(frozen=True)
class ComparisonTask(Bounded):
    """A task's rows: accuracy and loss are over scored targets alone.

    ``metric`` is the score of an arm; ``oracle`` the best score there is (None: not known).
    """

    metric: ClassVar[Literal["accuracy", "bits_per_byte"]] = "accuracy"
    oracle: ClassVar[float | None] = 1.0

    @property
    def vocab(self) -> int:
        """How many ids there are."""
        raise NotImplementedError

    @property
    def context(self) -> int:
        """How many tokens a row has."""
        raise NotImplementedError

    @property
    def chance(self) -> float:
        """The score of a guess."""
        raise NotImplementedError

    @property
    def source(self) -> int:
        """How many ids of a row an encoder reads, where all that is scored follows them; 0: none."""
        return 0

    @property
    def held_out(self) -> ComparisonTask:
        """The task that held-out rows are of, where it is another: longer rows, another text."""
        return self

    @property
    def validation(self) -> ComparisonTask:
        """The task that the rows are of by which learning rates are chosen: none of them is scored."""
        return self.held_out

    @property
    def objective(self) -> Objective:
        """What training on its rows minimises; it reports cross-entropy and accuracy."""
        return targets.Config()

    def row(self, random: np.random.Generator) -> tuple[Int[np.ndarray, "t1"], Bool[np.ndarray, "t"]]:
        """Ids [context + 1], and which of the targets ids[1:] are scored [context]."""
        raise NotImplementedError

    def words(self) -> Tokenizer:
        """The tokenizer of a run's folder: here each id is the word that spells its number."""
        words = [*map(str, range(self.vocab)), UNKNOWN]
        spec = TokenizerSpec(
            tokens=words,
            vocabulary={word: id for id, word in enumerate(words)},
            model="WordLevel",
            bytewise=False,
            pretokenizer=(Split(WORD, "removed", invert=True),),
            words=Words(),
            unknown=self.vocab,
        )
        return Tokenizer(spec)


class Letters(ComparisonTask):
    """A task on texts of ``length`` letters, ids 1 to ``letters``; id 0 is a marker."""

    length: int
    letters: int

    @property
    def vocab(self) -> int:
        return self.letters + 1

    @property
    def context(self) -> int:
        return self.length

    @property
    def chance(self) -> float:
        return 1 / self.letters
