"""Activation datasets: what a model computes on many texts, in shards, for probes and sparse autoencoders.

    data = lm.activations(texts, ["blocks.15.out"], "acts")
    for batch in data.batches("blocks.15.out", 4096): ...        # float32 [4096 d], shuffled

A folder holds ``dataset.json`` and shards ``00000.safetensors``, ...: int32 ``token_ids``, ``documents`` and
``positions`` [n], and each activation [n ...] as float16 or bfloat16. A document longer than the context is
read in pieces, whose positions begin at 0 again. What a shard holds depends on the texts and the options
alone, and it appears whole or not at all: a stopped job goes on after its last shard and ends in the same
files, to the bit.

Every token has a row. Attention sinks, whose activations are many times larger than others and nearly the
same in every text, are left out of ``batches``: what is fitted to them fits little else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.gguf import Packed
from cutaway.store.reading import parsed
from cutaway.weights import safetensors
from cutaway.weights.fields import Fields

INDEX = "dataset.json"
TYPES = {"float16": "F16", "bfloat16": "BF16"}
KINDS = {"I32": "<i4", "F16": "<f2", "BF16": "<u2"}
NORMED_TOKENS = 1 << 12  # whose norms are computed at a time
MASSIVE = 10  # times the median norm
KEYS = ("token_ids", "documents", "positions")
AGAINST = "against."  # before the names of another model's activations


class Activations:
    """A dataset of ``len()`` tokens: ``token_ids``, ``documents``, ``positions`` int32 [n], and rows by name.

    ``facts`` say what it is of: model, engine, names, dtype, context; and in ``mlp_inputs`` which activation
    each layer's MLP reads. ``shards`` are mappings of arrays,
    mapped from their files; bfloat16, which numpy lacks, is uint16 there, and float32 in ``rows`` and
    ``batches``.
    """

    def __init__(self, shards: Sequence[Mapping[str, np.ndarray]], facts: Mapping[str, Any]) -> None:
        self.shards, self.facts = tuple(shards), dict(facts)
        self.names = tuple(name for name in (shards[0] if shards else ()) if name not in KEYS)
        self._ends = np.cumsum([len(shard["token_ids"]) for shard in shards])
        self._norms: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, folder: str | Path) -> Activations:
        """The dataset of a folder; UserError for another folder and for one that is not complete."""
        facts = index_of(Path(folder))
        if facts is None or "tokens" not in facts:
            state = "it is not complete: give the same command again to go on"
            if facts is None:
                state = (
                    "it is no dataset of activations: make one by "
                    f"`cutaway activations {folder if Path(folder).exists() else 'TEXTS'} "
                    f"--names blocks.15.out --output {folder}-activations`"
                )
            raise UserError(f"{folder}: {state}")
        fields = Fields(facts, Path(folder) / INDEX)
        fields.text("model")
        inputs = facts.get("mlp_inputs", [])
        if not isinstance(inputs, list) or not all(isinstance(name, str) for name in inputs):
            raise fields.refusal("mlp_inputs", "is no list of activations' names")
        shards = [read_shard(shard_path(Path(folder), n)) for n in range(fields.integer("shards"))]
        form = {name: shard.shape[1:] for name, shard in shards[0].items()}
        for n, shard in enumerate(shards):
            if {name: array.shape[1:] for name, array in shard.items()} != form:
                raise UserError(f"{shard_path(Path(folder), n)}: has other activations than the first shard")
        made = cls(shards, facts)
        if len(made) != fields.integer("tokens"):
            raise UserError(f"{folder}: its shards have {len(made):,} tokens, not those that {INDEX} says")
        return made

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __repr__(self) -> str:
        return f"Activations({len(self):,} tokens, {', '.join(self.names)}, of {self.facts['model']})"

    @property
    def token_ids(self) -> np.ndarray:
        """int32 [n]."""
        return np.concatenate([shard["token_ids"] for shard in self.shards])

    @property
    def documents(self) -> np.ndarray:
        """int32 [n]: the number of each token's text, in the order in which texts were given."""
        return np.concatenate([shard["documents"] for shard in self.shards])

    @property
    def positions(self) -> np.ndarray:
        """int32 [n]: each token's position in what the model read."""
        return np.concatenate([shard["positions"] for shard in self.shards])

    def sinks(self, name: str) -> np.ndarray:
        """Which tokens are attention sinks by the norms of this activation: bool [n]."""
        return sinks(self.norms(name), self.positions)

    def norms(self, name: str) -> np.ndarray:
        """The norm of this activation at each token: float32 [n], computed once."""
        if name not in self._norms:
            cuts = np.array_split(np.arange(len(self)), -(-len(self) // NORMED_TOKENS))
            parts = (self.rows(name, cut).reshape(len(cut), -1) for cut in cuts)
            self._norms[name] = np.concatenate([np.linalg.norm(part, axis=1) for part in parts])
        return self._norms[name]

    def __getitem__(self, name: str) -> np.ndarray:
        """All rows of an activation: float32 [n ...], in memory."""
        return self.rows(name, np.arange(len(self)))

    def rows(self, name: str, index: np.ndarray | Sequence[int]) -> np.ndarray:
        """Rows of an activation by their numbers [k]: float32 [k ...]."""
        if name not in self.names:
            raise UserError(f"this dataset has no {name!r}: it has {', '.join(self.names)}")
        index = np.asarray(index)
        shard = np.searchsorted(self._ends, index, side="right")
        out = np.empty((len(index), *self.shards[0][name].shape[1:]), np.float32)
        for n in np.unique(shard).tolist():
            chosen = shard == n
            start = int(self._ends[n - 1]) if n else 0
            out[chosen] = _floats(self.shards[n][name][index[chosen] - start])
        return out

    def batches(
        self, name: str, size: int, seed: int = 0, epochs: int = 1, *, keep_sinks: bool = False
    ) -> Iterator[np.ndarray]:
        """Shuffled rows, float32 [size ...]: each row once an epoch, but for a last batch that is not full.

        Attention sinks are left out, unless ``keep_sinks``. sae-lens's trainer takes
        ``map(torch.from_numpy, data.batches(...))`` as its data provider.
        """
        kept = np.arange(len(self)) if keep_sinks else np.flatnonzero(~self.sinks(name))
        if not 1 <= size <= len(kept):
            beside = "" if keep_sinks else " beside attention sinks"
            raise UserError(f"a batch of {size} rows: this dataset has {len(kept)} tokens{beside}")
        for epoch in range(epochs):
            order = np.random.default_rng([seed, epoch]).permutation(kept)
            for start in range(0, len(order) - size + 1, size):
                yield self.rows(name, order[start : start + size])


def beside(data: Activations, other: Activations) -> Activations:
    """Two models' activations of the same tokens as one dataset, those of ``other`` by ``against.NAME``.

    UserError for datasets of other tokens.
    """
    pairs = list(zip(data.shards, other.shards, strict=False))
    same = all(np.array_equal(one[key], two[key]) for one, two in pairs for key in KEYS)
    if not same or len(data.shards) != len(other.shards):
        raise UserError(
            "the two datasets are of other tokens: read the same texts with both models, by the same options"
        )
    shards = [{**one, **{f"{AGAINST}{name}": two[name] for name in other.names}} for one, two in pairs]
    return Activations(shards, data.facts | {"against": other.facts["model"]})


def opened(path: Path, against: Path | None = None) -> Activations:
    """A dataset, and where there is one the other model's beside it (`beside`)."""
    data = Activations.open(path)
    return data if against is None else beside(data, Activations.open(against))


def sinks(norms: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Which tokens are attention sinks [n], by their activations' norms and their positions.

    Those at position 0, and those whose norm is above ``MASSIVE`` times the median of the others (2309.17453;
    massive activations, 2402.17762).
    """
    return (positions == 0) | (norms > norm_limit(norms, positions))


def norm_limit(norms: np.ndarray, positions: np.ndarray) -> float:
    """The norm above which a token is an attention sink."""
    later = norms[positions > 0]
    return MASSIVE * float(np.median(later)) if len(later) else float("inf")


# ---- files -------------------------------------------------------------------------------------------------


def shard_path(folder: Path, n: int) -> Path:
    return folder / f"{n:05}.safetensors"


def read_shard(path: Path) -> dict[str, np.ndarray]:
    """A shard's arrays: the columns of KEYS, and activations with a row for each token."""
    found = safetensors.read_shaped(path, dict.fromkeys(KEYS, (None,)), ("I32",))
    tokens = found[KEYS[0]].shape
    for name, packed in safetensors.read_safetensors(path).items():
        if packed.shape[:1] != tokens or (name not in KEYS and packed.type not in TYPES.values()):
            raise UserError(
                f"{path}: {quoted(name)} has no number in 16 bits for each of {tokens[0]:,} tokens"
            )
        found[name] = packed
    return {name: array_of(packed) for name, packed in found.items()}


def array_of(packed: Packed) -> np.ndarray:
    return packed.data.reshape(-1).view(KINDS[packed.type]).reshape(packed.shape)


def _floats(rows: np.ndarray) -> np.ndarray:
    """float32 of float16, or of bfloat16 as uint16."""
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32)


def index_of(folder: Path) -> dict[str, Any] | None:
    return parsed(folder / INDEX) if (folder / INDEX).is_file() else None
