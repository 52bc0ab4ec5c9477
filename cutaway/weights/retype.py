"""The type that each weight is stored as, and what is rounded by it; weights are made when written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from cutaway.errors import UserError
from cutaway.gguf import TYPES, Later, Packed
from cutaway.model.config import Decoder, EncoderDecoder, Model
from cutaway.quantization import formats
from cutaway.store.files import Bytes, Progress
from cutaway.weights import named_tensors
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import WHOLE, Tensors

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9}
FILE_TYPES |= {"Q2_K": 10, "Q3_K": 11, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18}
FILE_TYPES |= {"IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32}


def retyped(
    ours: Tensors,
    choose: Callable[[str, Packed | Later], str],
    pack: Callable[[str, Packed, str], Packed] | None = None,
) -> Tensors:
    """Weights that become the type chosen for each when they are made, by ``pack(name, packed, type)``."""

    def later(name: str, entry: Packed | Later) -> Later:
        if isinstance(entry, named_tensors.Absorbed):
            return named_tensors.of_absorbed(
                later(name, entry.stored), entry.shape[0] // entry.stored.shape[1]
            )
        wanted = choose(name, entry)

        def make() -> Packed:
            packed = named_tensors.made(entry)
            try:
                if pack is not None:
                    return pack(name, packed, wanted)
                return packed if packed.type == wanted else formats.pack(formats.unpack(packed), wanted)
            except UserError as problem:
                raise UserError(f"the weight {name!r} cannot be stored as {wanted}: {problem}") from None

        return Later(wanted, entry.shape, make)

    return Tensors({name: later(name, ours.later(name)) for name in ours})


def makes_logits(name: str, config: Model) -> bool:
    """Whether this weight is the head, or the embedding table where it is the head."""
    if isinstance(config, EncoderDecoder):
        own = "embedding.weight" if config.shared else "decoder.embedding.weight"
        return name == (own if config.decoder.tied else "decoder.head.weight")
    return isinstance(config, Decoder) and name == ("embedding.weight" if config.tied else "head.weight")


def fitting(entry: Packed | Later, type: str, smaller: Mapping[str, str], notes: Counter[str]) -> str:
    """The type, or the first ``smaller`` one whose blocks the rows fill, else F16."""
    columns, fits = entry.shape[-1], type
    while columns % TYPES[fits].block:
        fits = smaller.get(fits, "F16")
    if fits != type:
        block = TYPES[type].block
        notes[f"matrices stored as {fits} instead of {type} (rows not of whole blocks of {block})"] += 1
    if entry.type not in WHOLE and entry.type != fits:
        notes[f"matrices rounded again, from {entry.type} to {fits}"] += 1
    return fits


class Rounding:
    """Packs weights as ``retyped`` does, and keeps the largest change, as a part of its matrix's largest."""

    def __init__(self) -> None:
        self.change = 0.0

    def pack(self, name: str, packed: Packed, wanted: str) -> Packed:
        if packed.type == wanted:
            return packed
        values = formats.unpack(packed)
        made = formats.pack(values, wanted)
        if values.ndim > 1 and (largest := float(np.abs(values).max(initial=0))):
            self.change = max(self.change, float(np.abs(formats.unpack(made) - values).max()) / largest)
        return made

    def note(self, checkpoint: Checkpoint, type: str | None, notes: Counter[str]) -> None:
        """What the rounding of a quantised folder's values changed."""
        if checkpoint.quantized and self.change:
            what = f"the values of {checkpoint.quantized}, as {type}, are at most {self.change:.2g}"
            notes[f"{what} of their matrix's largest away from what they were"] += 1


def counted(notes: Counter[str]) -> tuple[str, ...]:
    """Notes as sentences; one about matrices begins with how many."""
    return tuple(
        re.sub("^matrices", f"{count} {'matrix' if count == 1 else 'matrices'}", text)
        for text, count in notes.items()
    )


def stored_bytes(entries: Tensors) -> int:
    """The bytes that weights have as they are stored."""
    return sum(entries.later(name).nbytes for name in entries)


def with_progress(entries: Tensors, target: Path, progress: Progress) -> dict[str, Packed | Later]:
    """The same, telling how far it is whenever one is made."""
    done, total = 0, stored_bytes(entries)

    def later(name: str) -> Later:
        entry = entries.later(name)

        def make() -> Packed:
            nonlocal done
            packed = entries[name]
            done += packed.nbytes
            progress(f"writing {target}", Bytes(done), Bytes(total))
            return packed

        return Later(entry.type, entry.shape, make)

    return {name: later(name) for name in entries}


def types(entries: Tensors) -> dict[str, int]:
    """How many tensors are stored as each type."""
    return dict(Counter(entries.later(name).type for name in entries).most_common())
