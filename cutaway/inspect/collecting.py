"""Collecting activations of many texts into shards, on this machine or on a Ray cluster.

What a shard holds depends on the texts and the options alone, and it appears whole or not at all: a stopped
job goes on after its last shard and ends in the same files, to the bit, whichever machine made them. The
dataset is ``activations.py``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import filter as matching
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np

from cutaway.errors import UserError
from cutaway.gguf import Packed
from cutaway.inspect.activations import INDEX, TYPES, Activations, array_of, index_of, read_shard, shard_path
from cutaway.inspect.inputs import mlp_input
from cutaway.inspect.names import aliases, check_list
from cutaway.model.config import Decoder
from cutaway.quantization import formats
from cutaway.ray_tasks import each
from cutaway.runtime import values
from cutaway.store import files
from cutaway.weights import safetensors

SHARD_TOKENS = 1 << 15
BY_HEAD = (".q", ".k", ".v", ".z", ".q_unrotated", ".k_unrotated")  # of attention: [h t k] in a trace
Dtype = Literal["float16", "bfloat16"]


class Collecting(TypedDict, total=False):
    """What ``lm.activations`` takes beside texts, names and output; each may be left out.

    ``context``: the length of the pieces that longer texts are read in. ``max_tokens``: of all texts.
    ``force`` begins an output anew, where an unfinished one is gone on with. ``elsewhere``: a
    function and its arguments, by which the workers of a Ray cluster load the model: they make the shards.
    """

    dtype: Dtype
    context: int | None
    shard_tokens: int
    max_tokens: int | None
    force: bool
    progress: files.Progress
    elsewhere: tuple[Any, ...] | None


class Piece(NamedTuple):
    """A document, or a part of one that fits the context: its number, the part's number, its ids."""

    document: int
    part: int
    ids: list[int]


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
    elsewhere: tuple[Any, ...] | None = None,
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
    if folder is None and elsewhere is not None:
        raise UserError("a cluster writes activations into a folder that its machines share: give an output")
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
    placed = _placed(_shards(pieces, shard_tokens), folder)
    if elsewhere is None:
        made = _made_here(lm, engine, names, dtype, placed, kept, read)
    else:
        jobs = ((elsewhere, engine, names, dtype, *one) for one in placed)
        made = each("collecting activations", _made_there, jobs)
    with _begun(folder, facts, force):
        for shard in made:
            count += 1
            done += sum(len(piece.ids) for piece in shard)
            progress("tokens", done, max_tokens)
    if isinstance(lm.config, Decoder):
        facts["mlp_inputs"] = [mlp_input(lm.config, n) for n in range(len(lm.config.blocks))]
    if folder is None:
        return Activations(kept, facts)
    files.write_file(folder / INDEX, json.dumps(facts | {"shards": count, "tokens": done}, indent=1))
    return Activations.open(folder)


# ---- what is read ------------------------------------------------------------------------------------------


def _placed(
    shards: Iterable[list[Piece]], folder: Path | None
) -> Iterator[tuple[list[Piece], Path | None, bool]]:
    """Each shard's pieces, its file, and whether that is there already."""
    for n, shard in enumerate(shards):
        path = None if folder is None else shard_path(folder, n)
        if path is None or not path.exists():
            yield shard, path, False
        elif np.array_equal(read_shard(path)["token_ids"], _joined(piece.ids for piece in shard)):
            yield shard, path, True
        else:
            raise UserError(f"{path} is of other texts: give those that it was begun with, or force")


def _made_here(
    lm: Any,
    engine: str,
    names: Sequence[str],
    dtype: Dtype,
    placed: Iterable[tuple[list[Piece], Path | None, bool]],
    kept: list[Mapping[str, np.ndarray]],
    read: Callable[[int], None],
) -> Iterator[list[Piece]]:
    """The shards, each in its file or among those ``kept``."""
    for shard, path, there in placed:
        if not there:
            tensors = _tensors(shard, _read(lm, engine, [piece.ids for piece in shard], names, read), dtype)
            if path is None:
                kept.append({name: array_of(tensor) for name, tensor in tensors.items()})
            else:
                safetensors.write_safetensors(path, tensors)
        yield shard


def _made_there(
    elsewhere: tuple[Any, ...],
    engine: str,
    names: Sequence[str],
    dtype: Dtype,
    shard: list[Piece],
    path: Path,
    there: bool,
) -> list[Piece]:
    """On a worker of a cluster: the shard, in its file."""
    lm = None if there else _loaded(*elsewhere)
    return next(_made_here(lm, engine, names, dtype, [(shard, path, there)], [], lambda tokens: None))


@cache
def _loaded(load: Callable[..., Any], *given: Any) -> Any:
    return load(*given)


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


@contextmanager
def _begun(folder: Path | None, facts: dict[str, Any], force: bool) -> Iterator[None]:
    """The folder is ready to be begun or gone on with; what is refused before its first shard leaves none."""
    if folder is None or (not force and index_of(folder) is not None):
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
        if not shard_path(folder, 0).exists():
            (folder / INDEX).unlink(missing_ok=True)
            if not there and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _resumed(folder: Path, facts: dict[str, Any]) -> Activations | None:
    """The dataset if it is complete; UserError where it was begun with other options."""
    found = index_of(folder)
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
