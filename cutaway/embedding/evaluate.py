"""What word vectors are worth, by three sets that people made.

WordSim-353 and SimLex-999 (1408.3456) are pairs of words with how alike people find them; the score is
Spearman's rank correlation between that and the cosines. The analogy set (1301.3781) asks what is to c as b
is to a, and counts right answers. What a vocabulary lacks is left out and counted, as is the custom.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cutaway.embedding.neighbours import search, unit
from cutaway.embedding.vectors import Vectors
from cutaway.errors import UserError, quoted

SETS = {"wordsim": "wordsim353.tsv", "simlex": "simlex999.txt", "analogy": "questions-words.txt"}
FREQUENT = 300_000  # words, the first of the table, among which an analogy's answer is looked for
BLOCK = 256  # questions at once


@dataclass(frozen=True)
class Similarity:
    """Spearman's correlation over the ``used`` pairs of ``pairs``; NaN with fewer than two."""

    correlation: float
    used: int
    pairs: int


@dataclass(frozen=True)
class Analogies:
    """``right`` of the ``used`` questions of ``questions``; ``sections`` by name: (right, used)."""

    right: int
    used: int
    questions: int
    sections: dict[str, tuple[int, int]]

    @property
    def accuracy(self) -> float:
        return self.right / self.used if self.used else float("nan")


def find(name: str) -> Path:
    """The file of a set, of those that an installed gensim brings; UserError when there is none."""
    spec = importlib.util.find_spec("gensim")
    if spec is not None and spec.origin:
        path = Path(spec.origin).parent / "test" / "test_data" / SETS[name]
        if path.is_file():
            return path
    raise UserError(
        f"the set {quoted(name)} is not here: `pip install gensim` brings it, or give the path of its file "
        f"({SETS[name]}) yourself"
    )


def similarity(vectors: Vectors, path: Path) -> Similarity:
    """How well cosines follow people's scores in a file of lines ``word word score``, tabs between."""
    people, cosines, total = [], [], 0
    ids = _folded(vectors)
    for number, line in _lines(path):
        fields = line.split("\t")
        try:
            one, other, score = fields[0].lower(), fields[1].lower(), float(fields[2])
        except (IndexError, ValueError):
            raise UserError(
                f"{path}:{number}: expected `word<TAB>word<TAB>score`, found {quoted(line)}"
            ) from None
        total += 1
        if one in ids and other in ids:
            left, right = unit(vectors.table[[ids[one], ids[other]]])
            people.append(score)
            cosines.append(float(left @ right))
    return Similarity(spearman(np.array(people), np.array(cosines)), len(people), total)


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of ranks, equal values sharing theirs."""
    if len(one) < 2:
        return float("nan")
    left, right = _ranks(one), _ranks(other)
    left, right = left - left.mean(), right - right.mean()
    size = np.sqrt((left @ left) * (right @ right))
    return float(left @ right / size) if size else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def analogies(vectors: Vectors, path: Path) -> Analogies:
    """How often b - a + c is nearest to d (3CosAdd), in a file of lines ``a b c d`` under ``: section``."""
    ids = {word: id for word, id in _folded(vectors).items() if id < FREQUENT}
    section, questions, asked = "", 0, dict[str, list[list[int]]]()
    for number, line in _lines(path):
        if line.startswith(":"):
            section = line[1:].strip()
            continue
        words = line.lower().split()
        if len(words) != 4:
            raise UserError(f"{path}:{number}: expected four words, found {quoted(line)}")
        questions += 1
        if all(word in ids for word in words):
            asked.setdefault(section, []).append([ids[word] for word in words])
    table = unit(vectors.table[:FREQUENT])
    sections = {name: (_right(table, np.array(rows)), len(rows)) for name, rows in asked.items()}
    right, used = (sum(column) for column in zip(*sections.values(), strict=True)) if sections else (0, 0)
    return Analogies(right, used, questions, sections)


def _right(table: np.ndarray, questions: np.ndarray) -> int:
    right = 0
    for first in range(0, len(questions), BLOCK):
        a, b, c, d = questions[first : first + BLOCK].T
        found, _ = search(table, table[b] - table[a] + table[c], 1, exclude=np.stack([a, b, c], axis=1))
        right += int((found[:, 0] == d).sum()) if found.shape[1] else 0
    return right


def _folded(vectors: Vectors) -> dict[str, int]:
    """Ids by lower-case word; of words that differ in case alone, the first."""
    ids: dict[str, int] = {}
    for word, id in vectors.ids.items():
        ids.setdefault(word.lower(), id)
    return ids


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip() and not line.startswith("#"):
                    yield number, line.strip()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None
