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

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import filter as matching
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.gguf import Packed
from cutaway.inspect.inputs import mlp_input
from cutaway.inspect.names import aliases, check_list
from cutaway.model.config import Decoder
from cutaway.quantization import formats
from cutaway.runtime import values
from cutaway.store import files
from cutaway.store.reading import parsed
from cutaway.weights import safetensors
from cutaway.weights.fields import Fields

INDEX = "dataset.json"
TYPES = {"float16": "F16", "bfloat16": "BF16"}
KINDS = {"I32": "<i4", "F16": "<f2", "BF16": "<u2"}
SHARD_TOKENS = 1 << 15
NORMED_TOKENS = 1 << 12  # whose norms are computed at a time
MASSIVE = 10  # times the median norm
KEYS = ("token_ids", "documents", "positions")
AGAINST = "against."  # before the names of another model's activations
BY_HEAD = (".q", ".k", ".v", ".z", ".q_unrotated", ".k_unrotated")  # of attention: [h t k] in a trace
Dtype = Literal["float16", "bfloat16"]


class Collecting(TypedDict, total=False):
    """What ``lm.activations`` takes beside texts, names and output; each may be left out.

    ``context``: the length of the pieces that longer texts are read in. ``max_tokens``: of all texts.
    ``force`` begins an output anew, where an unfinished one is gone on with.
    """

    dtype: Dtype
    context: int | None
    shard_tokens: int
    max_tokens: int | None
    force: bool
    progress: files.Progress


class Piece(NamedTuple):
    """A document, or a part of one that fits the context: its number, the part's number, its ids."""

    document: int
    part: int
    ids: list[int]


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
        facts = _index(Path(folder))
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
        shards = [_opened(_path(Path(folder), n)) for n in range(fields.integer("shards"))]
        form = {name: shard.shape[1:] for name, shard in shards[0].items()}
        for n, shard in enumerate(shards):
            if {name: array.shape[1:] for name, array in shard.items()} != form:
                raise UserError(f"{_path(Path(folder), n)}: has other activations than the first shard")
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
        """Of each token the norm of this activation: float32 [n], computed once."""
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


def collect(
    lm: Any,
    texts: Iterable[Any],
    names: Sequence[str],
    output: str | Path | None = None,
    *,
    dtype: Dtype = "float16",
    context: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    max_tokens: int | None = None,
    force: bool = False,
    progress: files.Progress = files.silent,
) -> Activations:
    """``lm.activations``: see there."""
    if dtype not in TYPES:
        raise UserError(f"dtype {dtype!r} is not known: use one of {', '.join(TYPES)}")
    held = lm.context if context is None else context
    if not 1 <= held <= lm.context or shard_tokens < 1 or (max_tokens is not None and max_tokens < 1):
        raise UserError(f"context goes from 1 to {lm.context}, shard_tokens and max_tokens from 1")
    if isinstance(texts, str):
        raise UserError("activations are of a list of texts, and this is one: write [text]")
    check_list(names)
    names = _own_names(lm.config, names)
    engine = _engine(lm, names)
    facts = {"model": str(lm.checkpoint.source), "fingerprint": _fingerprint(lm), "engine": engine}
    facts |= {"names": list(names), "dtype": dtype, "context": held, "shard_tokens": shard_tokens}
    facts["max_tokens"] = max_tokens
    folder = None if output is None else Path(output)
    if folder is not None and not force and (found := _resumed(folder, facts)) is not None:
        return found
    pieces = _up_to(max_tokens, _pieces(lm, texts, held))
    if (first := next(pieces, None)) is None:
        raise UserError("there is nothing to read: the texts have no tokens")
    pieces = chain((first,), pieces)
    kept: list[Mapping[str, np.ndarray]] = []
    count = done = 0

    def read(tokens: int) -> None:
        progress("tokens", done + tokens, max_tokens)

    read(0)
    with _begun(folder, facts, force):
        for count, shard in enumerate(_shards(pieces, shard_tokens), 1):
            path = None if folder is None else _path(folder, count - 1)
            if path is None or not path.exists():
                rows = _read(lm, engine, [piece.ids for piece in shard], names, read)
                tensors = _tensors(shard, rows, dtype)
                if path is None:
                    kept.append({name: _array(tensor) for name, tensor in tensors.items()})
                else:
                    safetensors.write_safetensors(path, tensors)
            elif not np.array_equal(_opened(path)["token_ids"], _joined(piece.ids for piece in shard)):
                raise UserError(f"{path} is of other texts: give those that it was begun with, or force")
            done += sum(len(piece.ids) for piece in shard)
            progress("tokens", done, max_tokens)
    if isinstance(lm.config, Decoder):
        facts["mlp_inputs"] = [mlp_input(lm.config, n) for n in range(len(lm.config.blocks))]
    if folder is None:
        return Activations(kept, facts)
    files.write_file(folder / INDEX, json.dumps(facts | {"shards": count, "tokens": done}, indent=1))
    return Activations.open(folder)


# ---- what is read ------------------------------------------------------------------------------------------


def _own_names(config: Any, names: Sequence[str]) -> list[str]:
    """Names that are TransformerLens's as the runtime's, where it has them; others as they are."""
    if not any("hook_" in name for name in names):
        return list(names)
    theirs = aliases(values.every(config), len(config.blocks))
    return [one for name in names for one in [theirs[n] for n in matching(theirs, name)] or [name]]


def _engine(lm: Any, names: Sequence[str]) -> str:
    """Which engine reads; UserError where the one that was asked for cannot show the names."""
    if any(name.endswith((".pattern", ".scores")) for name in names):
        raise UserError(
            "attention maps grow with the square of a text: `lm.trace` and `engine.observe` show them"
        )
    if lm.engine_choice[0] == "runtime":
        try:
            values.named(lm.config, tuple(names))
        except UserError:
            if lm.engine_asked == "runtime":
                raise
        else:
            return "runtime"
    return "pytorch"


def _read(
    lm: Any, engine: str, texts: list[list[int]], names: Sequence[str], progress: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """float32 [n ...] by name, a row for each token of the texts."""
    if engine == "runtime":
        return values.of_texts(lm.engine, texts, names, progress=progress)
    traces = []
    for ids in texts:
        traces.append(lm.trace(ids, names=names))
        progress(sum(map(len, texts[: len(traces)])))
    kept = [name for name in traces[0] if name != "logits" or "logits" in names]
    return {
        name: np.concatenate([_by_token(name, trace[name], len(trace.ids)) for trace in traces])
        for name in kept
    }


def _by_token(name: str, value: np.ndarray, tokens: int) -> np.ndarray:
    value = value.swapaxes(0, 1) if ".attention" in name and name.endswith(BY_HEAD) else value
    if len(value) != tokens:
        raise UserError(f"{name} has no row for each token, so it cannot be kept in a dataset")
    return value


def _pieces(lm: Any, texts: Iterable[Any], context: int) -> Iterator[Piece]:
    for document, text in enumerate(texts):
        ids = lm.ids(text)
        for part, start in enumerate(range(0, len(ids), context)):
            yield Piece(document, part, ids[start : start + context])


def _up_to(most: int | None, pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces of the first ``most`` tokens."""
    left = most
    for piece in pieces:
        yield piece if left is None else piece._replace(ids=piece.ids[:left])
        if left is not None and (left := left - len(piece.ids)) <= 0:
            return


def _shards(pieces: Iterator[Piece], tokens: int) -> Iterator[list[Piece]]:
    """Pieces in lists of at least so many tokens; the last may have fewer."""
    while shard := list(islice(pieces, 1)):
        held = len(shard[0].ids)
        while held < tokens and (more := next(pieces, None)) is not None:
            shard.append(more)
            held += len(more.ids)
        yield shard


# ---- files -------------------------------------------------------------------------------------------------


def _path(folder: Path, n: int) -> Path:
    return folder / f"{n:05}.safetensors"


def _joined(parts: Iterable[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


def _tensors(shard: list[Piece], rows: Mapping[str, np.ndarray], dtype: Dtype) -> dict[str, Packed]:
    """A shard's tensors as they are stored."""
    columns = {
        "token_ids": _joined(piece.ids for piece in shard),
        "documents": _joined(np.full(len(piece.ids), piece.document) for piece in shard),
        "positions": _joined(range(len(piece.ids)) for piece in shard),
    }
    out = {name: Packed("I32", array.shape, array.view(np.uint8)) for name, array in columns.items()}
    for name, array in sorted(rows.items()):
        largest = float(np.abs(array).max())
        if not np.isfinite(largest) or (dtype == "float16" and largest >= 65520):
            raise UserError(f"{name} reaches {largest:g}, beyond {dtype}: use bfloat16, or look at the model")
        out[name] = formats.pack(np.ascontiguousarray(array), TYPES[dtype])
    return out


def _opened(path: Path) -> dict[str, np.ndarray]:
    """A shard's arrays: the columns of KEYS, and activations with a row for each token."""
    found = safetensors.read_shaped(path, dict.fromkeys(KEYS, (None,)), ("I32",))
    tokens = found[KEYS[0]].shape
    for name, packed in safetensors.read_safetensors(path).items():
        if packed.shape[:1] != tokens or (name not in KEYS and packed.type not in TYPES.values()):
            raise UserError(
                f"{path}: {quoted(name)} has no number in 16 bits for each of {tokens[0]:,} tokens"
            )
        found[name] = packed
    return {name: _array(packed) for name, packed in found.items()}


def _array(packed: Packed) -> np.ndarray:
    return packed.data.reshape(-1).view(KINDS[packed.type]).reshape(packed.shape)


def _floats(rows: np.ndarray) -> np.ndarray:
    """float32 of float16, or of bfloat16 as uint16."""
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32)


def _index(folder: Path) -> dict[str, Any] | None:
    return parsed(folder / INDEX) if (folder / INDEX).is_file() else None


@contextmanager
def _begun(folder: Path | None, facts: dict[str, Any], force: bool) -> Iterator[None]:
    """The folder is ready to be begun or gone on with; what is refused before its first shard leaves none."""
    if folder is None or (not force and _index(folder) is not None):
        yield
        return
    there = folder.exists()
    with files.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            files.check_overwrite(folder, force)
        (folder / INDEX).unlink(missing_ok=True)
        for shard in folder.glob("[0-9]*.safetensors"):
            shard.unlink()
    files.write_file(folder / INDEX, json.dumps(facts, indent=1))
    try:
        yield
    except UserError:
        if not _path(folder, 0).exists():
            (folder / INDEX).unlink(missing_ok=True)
            if not there and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _resumed(folder: Path, facts: dict[str, Any]) -> Activations | None:
    """The dataset if it is complete; UserError where it was begun with other options."""
    found = _index(folder)
    if found is None:
        return None
    other = [key for key, value in facts.items() if found.get(key) != value]
    if other:
        key = other[0]
        raise UserError(
            f"{folder} was begun with {key} {found.get(key)}, and {facts[key]} is asked for: "
            "give the same options to go on, or --force to begin anew"
        )
    return Activations.open(folder) if "tokens" in found else None


def _fingerprint(lm: Any) -> str:
    """What tells one model from another: its config, its tensors' types, its last norm's weights."""
    tensors = lm.checkpoint.tensors
    types = [(name, (later := tensors.later(name)).type, later.shape) for name in sorted(tensors)]
    weights = next(
        (formats.unpack(tensors[name]).tobytes() for name in tensors if name == "norm.weight"), b""
    )
    shown = re.sub(r"\b\w+\.Config\(", "Config(", repr((lm.config, types)))  # as in datasets on disk
    return hashlib.sha256(shown.encode() + weights).hexdigest()[:16]
