"""llama.cpp's importance matrices: GGUF files with what a text sends through each weight's columns.

Two tensors a weight, under its name in the model's GGUF file: ``NAME.in_sum2`` float32 [matrices columns],
the sums of the squares of its inputs, and ``NAME.counts`` float32 [matrices 1], over how many rows; there is
one matrix, or one an expert. What quantization/search.py weighs errors by is their quotient.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cutaway import gguf
from cutaway.errors import UserError, quoted
from cutaway.gguf import Packed
from cutaway.gguf.types import MAGIC
from cutaway.quantization import formats
from cutaway.weights import family_registry, named_tensors, rules
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.retype import counted

SUMS, COUNTS = ".in_sum2", ".counts"
LONGEST = 256  # bytes of a name in the format before GGUF
Sums = Mapping[str, tuple[np.ndarray, int]]


def read_imatrix(path: Path, checkpoint: Checkpoint) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The mean square of the inputs of each weight in the file, by our name: float32 [columns].

    And notes of what it lacks. UserError for a file that is no importance matrix, or one of another model."""
    path = Path(path)
    if _is_old(path):
        raise UserError(
            f"{path}: is an importance matrix in llama.cpp's format before GGUF: convert it with "
            f"`llama-imatrix --in-file {path} -o {path.with_suffix('.gguf')}`"
        )
    tensors = gguf.read(path).tensors
    entries = {name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)}
    if not entries:
        raise UserError(f"{path}: is a GGUF file, but no importance matrix: it has no tensor NAME{SUMS}")
    notes: Counter[str] = Counter()
    found: dict[str, np.ndarray] = {}
    matrices = 0
    for bound in _bound(checkpoint):
        named = [
            (name, shape)
            for name, shape in zip(bound.ours, bound.place.shapes, strict=True)
            if not named_tensors.is_kept_whole(name, shape)
        ]
        matrices += len(named)
        if named and bound.theirs in entries:
            means = _means(path, bound.theirs, tensors)
            if len(named) % len(means):
                raise _other(path, bound.theirs, f"{len(means)} matrices, the model {len(named)}")
            for n, (name, shape) in enumerate(named):
                mean = means[n * len(means) // len(named)]
                if mean is None:
                    notes["matrices of an expert that its calibration did not reach"] += 1
                elif mean.shape != shape[-1:]:
                    raise _other(path, bound.theirs, f"{len(mean)} columns, the model {shape[-1]}")
                else:
                    found[name] = mean
    if not found:
        raise UserError(f"{path}: none of its {len(entries)} entries is of a weight of this model")
    if matrices > len(found):
        notes[f"matrices without an entry in {path}, whose columns count the same"] = matrices - len(found)
    return found, counted(notes)


def write_imatrix(
    path: Path, checkpoint: Checkpoint, sums: Sums, dataset: str, window: int, force: bool = False
) -> None:
    """Write what ``inspect/importance.py`` summed as llama.cpp reads it; whole or not at all.

    ``dataset`` names the text, which was read in windows of so many tokens. UserError for a model of no
    family, or if the file exists (unless ``force``)."""
    entries: dict[str, Packed] = {}
    rows = 0
    for bound in _bound(checkpoint):
        if bound.how.absorbs or not any(name in sums for name in bound.ours):
            continue  # an absorbed matrix has other columns than the one that was watched
        shape = bound.how.shape(bound.place)
        nothing = np.zeros(shape[-1]), 0
        parts = (
            bound.ours[:: len(bound.ours) // shape[0]]
            if len(shape) == 3 and len(bound.ours) > 1
            else bound.ours[:1]
        )
        each = [sums.get(name, nothing) for name in parts]
        rows = max(rows, *(count for _, count in each))
        totals, counts = np.stack([total for total, _ in each]), np.array([[count] for _, count in each])
        entries[bound.theirs + SUMS] = formats.pack(totals.astype(np.float32), "F32")
        entries[bound.theirs + COUNTS] = formats.pack(counts.astype(np.float32), "F32")
    metadata: dict[str, object] = {
        "general.type": "imatrix",
        "imatrix.datasets": [dataset],
        "imatrix.chunk_count": -(-rows // window),
        "imatrix.chunk_size": window,
    }
    gguf.write(path, metadata, dict(sorted(entries.items())), force=force)


def _bound(checkpoint: Checkpoint) -> list[rules.Bound]:
    """The family's names in GGUF of this model's weights."""
    table = family_registry.get(checkpoint.family).gguf if checkpoint.family else ()
    if not table:
        raise UserError(
            f"{checkpoint.source}: its family has no names in GGUF, which importance matrices go by"
        )
    return rules.bind(table, checkpoint.config)


def _means(path: Path, name: str, tensors: Mapping[str, Packed]) -> list[np.ndarray | None]:
    """The mean square a column of each matrix; None for an expert that no token came to."""
    sums, counts = tensors[name + SUMS], tensors.get(name + COUNTS)
    if counts is None or {sums.type, counts.type} != {"F32"}:
        raise UserError(f"{path}: its entry {quoted(name)} has not both {SUMS} and {COUNTS} as F32")
    each = formats.unpack(counts).reshape(-1)
    if not each.size or sums.data.size // 4 % each.size:
        raise UserError(f"{path}: the sums and counts of its entry {quoted(name)} do not fit")
    values = formats.unpack(sums).reshape(each.size, -1)
    if not (np.isfinite(values).all() and np.isfinite(each).all() and (values >= 0).all()):
        raise UserError(f"{path}: its entry {quoted(name)} holds an infinity, NaN or negative sum")
    return [row / count if count > 0 else None for row, count in zip(values, each, strict=True)]


def _other(path: Path, name: str, found: str) -> UserError:
    return UserError(f"{path}: is of another model: its entry {quoted(name)} has {found}")


def _is_old(path: Path) -> bool:
    """Whether it begins as the format before GGUF: a number of entries, the length of a name, the name."""
    try:
        with open(path, "rb") as file:
            head = file.read(8 + LONGEST)
    except OSError:
        return False  # gguf.read says why
    if len(head) < 8 or head.startswith(MAGIC):
        return False
    count, size = struct.unpack_from("<ii", head)
    name = head[8 : 8 + size]
    return count > 0 and 0 < size == len(name) and name.isascii() and name.decode().isprintable()
