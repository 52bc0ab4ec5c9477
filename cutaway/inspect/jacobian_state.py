"""A Jacobian lens while it is fitted: the running mean over texts, how far it is from settled, its file.

The file is the lens itself (jacobian_file.py): a fit that was stopped goes on from it to the same bits, and
fits of other texts are merged into one by the weighted mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect import jacobian_file
from cutaway.inspect.jacobian_lens import JacobianLens
from cutaway.store.files import Progress, silent

FIRST = 16  # the first position of a text that is a source and a target
LEAST = FIRST + 2  # tokens of a text that has a position to measure


@dataclass(frozen=True)
class Settings:
    """How texts are measured. ``rows``: backward passes a text; as many as the model's width are exact."""

    model: str
    target: int
    rows: int
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"

    @classmethod
    def stated(cls, lens: JacobianLens, path: str | Path) -> Settings:
        """Those of a lens's facts; UserError for a lens that was not fitted here."""
        facts = lens.facts
        match (facts.get("model"), facts.get("rows"), facts.get("seed"), facts.get("dtype")):
            case (str(model), int(rows), int(seed), "float32" | "bfloat16" as dtype) if (
                0 < rows <= lens.width and seed >= 0
            ):
                return cls(model, lens.target, rows, seed, dtype)
        raise UserError(f"{path} is no fit that could go on or be merged: `cutaway lens fit` writes one")

    def basis(self, text: int, width: int) -> np.ndarray | None:
        """float32 [rows d]: the orthonormal cotangents of a text by its number; None if they are all
        dimensions.
        """
        if self.rows == width:
            return None
        blocks = -(-width // self.rows)
        number, block = divmod(text, blocks)
        normal = np.random.default_rng([self.seed, number]).standard_normal((width, width))
        columns = np.linalg.qr(normal)[0].T
        return np.roll(columns, -block * self.rows, axis=0)[: self.rows].astype(np.float32)


@dataclass
class Fit:
    """``mean`` float32 [l d d] over ``texts`` texts, whose ids ``done`` digests.

    ``deviation`` [l]: the sum over texts of |J - mean before it|^2 (n - 1) / n, which is n - 1 times the
    variance of a text's matrix. ``change``: by how much of its norm the last text moved the mean.
    """

    settings: Settings
    mean: np.ndarray
    texts: int = 0
    tokens: int = 0
    done: str = ""
    deviation: np.ndarray = field(default_factory=lambda: np.zeros(0))
    change: float = float("nan")

    @classmethod
    def begin(cls, settings: Settings, width: int) -> Fit:
        """A fit without texts."""
        shape = (settings.target, width, width)
        return cls(settings, np.zeros(shape, np.float32), deviation=np.zeros(settings.target))

    @property
    def error(self) -> float:
        """The mean's standard error over its norm, the median over layers; NaN of fewer than two texts."""
        if self.texts < 2:
            return float("nan")
        variance = self.deviation / (self.texts - 1) / self.texts
        return float(np.median(np.sqrt(variance) / _norms(self.mean)))

    def add(self, ids: Sequence[int], found: np.ndarray) -> None:
        """Takes one more text's matrices [l d d]."""
        if not np.isfinite(found).all():
            raise UserError("a text gave gradients that are NaN or infinite: the model's weights are damaged")
        n = self.texts + 1
        off = found - self.mean
        self.mean += off / np.float32(n)
        self.deviation += _norms(off) ** 2 * (n - 1) / n
        self.change = float(np.median(_norms(off) / n / _norms(self.mean)))
        self.done = _chained(self.done, ids)
        self.texts, self.tokens = n, self.tokens + len(ids)

    def join(self, other: Fit) -> None:
        """Takes the texts of another fit: means weighted by their numbers, deviations by Chan's formula."""
        total = self.texts + other.texts
        off = other.mean - self.mean
        self.deviation += other.deviation + _norms(off) ** 2 * self.texts * other.texts / total
        self.mean += off * np.float32(other.texts / total)
        self.done = _chained(self.done, [other.done])
        self.texts, self.tokens = total, self.tokens + other.tokens

    def check_texts(self, texts: Sequence[Sequence[int]]) -> None:
        """UserError unless the fit's texts are the first ones of these."""
        done = ""
        for ids in texts[: self.texts]:
            done = _chained(done, ids)
        if len(texts) < self.texts or done != self.done:
            raise UserError(
                f"the file is a fit of {self.texts} texts that are not the first of these: give the same "
                "texts to go on, or another --output"
            )

    @classmethod
    def resume(cls, path: str | Path, settings: Settings) -> Fit:
        """The fit that a file holds; UserError for one of other settings, and for a lens that is no fit."""
        lens = jacobian_file.load(path)
        for name, wanted in asdict(settings).items():
            own = lens.target if name == "target" else lens.facts.get(name)
            if own != wanted:
                raise UserError(
                    f"{path} was fitted with {name} {own}, and {wanted} is asked for: give the same options "
                    "to go on, or another --output"
                )
        return cls.of(lens, settings, path)

    @classmethod
    def of(cls, lens: JacobianLens, settings: Settings, path: str | Path) -> Fit:
        """The fit of a lens whose facts say how it was made."""
        facts, layers = lens.facts, settings.target
        deviation = np.asarray(facts.get("deviation", ()), np.float64)
        tokens, done = facts.get("tokens"), facts.get("done")
        whole = sorted(lens.matrices) == list(range(layers)) and deviation.shape == (layers,)
        if not whole or not isinstance(tokens, int) or not isinstance(done, str):
            raise UserError(f"{path} is no fit that could go on: `cutaway lens fit` writes one")
        mean = np.stack([*lens.matrices.values()])
        return cls(settings, mean, lens.texts, tokens, done, deviation)

    @property
    def lens(self) -> JacobianLens:
        """The lens as fitted so far."""
        facts = asdict(self.settings)
        del facts["target"]
        facts |= {"tokens": self.tokens, "done": self.done, "deviation": self.deviation.tolist()}
        facts["error"] = None if np.isnan(self.error) else self.error
        return JacobianLens(dict(enumerate(self.mean)), self.settings.target, self.texts, facts)

    def save(self, path: str | Path) -> None:
        """Writes the lens, from which the fit goes on."""
        jacobian_file.save(path, self.lens)


def pieces(
    encode: Callable[[str], list[int]],
    documents: Iterable[str],
    tokens: int,
    count: int,
    context: int,
    progress: Progress = silent,
) -> list[list[int]]:
    """``count`` pieces of ``tokens`` tokens: the first of each document, then, where documents are too few,
    their second ones, and so on. A piece has half as many tokens at least.
    """
    if not LEAST <= tokens <= context:
        raise UserError(f"a text's tokens are {tokens}: {LEAST} to {context}, which is the model's context")
    least = max(LEAST, tokens // 2)
    found: list[list[list[int]]] = []
    for document in documents:
        ids = encode(document[: 16 * tokens * count])  # more than is taken of one document
        cut = [ids[at : at + tokens] for at in range(0, len(ids), tokens)]
        cut = [piece for piece in cut if len(piece) >= least][:count]
        found += [cut] if cut else []
        progress("reading texts", len(found), count)
        if len(found) == count:
            break
    most = max(map(len, found), default=0)
    return [cut[n] for n in range(most) for cut in found if n < len(cut)][:count]


def merged(paths: Sequence[str | Path]) -> JacobianLens:
    """The lens of all texts of several fits of one model: the mean of theirs, weighted by their texts."""
    found: Fit | None = None
    seen: set[str] = set()
    for path in paths:
        lens = jacobian_file.load(path)
        one = Fit.of(lens, Settings.stated(lens, path), path)
        if found is None:
            found, seen = one, {one.done}
            continue
        if one.done in seen:
            raise UserError(
                f"{path} is a fit of the same texts as one before it: merge fits of different texts"
            )
        if replace(one.settings, seed=0) != replace(found.settings, seed=0):
            raise UserError(f"{path} is a fit of another model, or by another estimator, than {paths[0]}")
        found.join(one)
        seen.add(one.done)
    if found is None:
        raise UserError("there is nothing to merge: give the files of fits")
    return found.lens


def _chained(before: str, ids: Sequence[int] | Sequence[str]) -> str:
    return hashlib.sha256(f"{before} {list(ids)}".encode()).hexdigest()[:32]


def _norms(matrices: np.ndarray) -> np.ndarray:
    """The Frobenius norm of each matrix, as float64."""
    return np.sqrt(np.einsum("lij,lij->l", matrices, matrices, dtype=np.float64))
