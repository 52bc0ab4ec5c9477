"""A model written to disk: a GGUF file, or a folder of safetensors that Hugging Face's transformers loads.

Without a ``type`` nothing is rounded. In GGUF each weight keeps the type it has, blocks and all; a folder
cannot hold blocks, so there they become F32, and F32, F16 and BF16 stay. Vectors (norms, biases), learned
positions and what routes tokens to experts are always F32 in GGUF, as llama.cpp wants them. With a ``type``
all matrices become it, and the result notes these exceptions:

- the matrix that makes the logits (the head, or the embedding table where it is the head) is Q8_0 for Q4_0
  and Q4_1;
- a matrix whose rows are not whole blocks of 32 is F16 instead.

A model that no family can describe is written as a Cutaway folder: our names, and its config in
``cutaway.json``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cutaway.errors import UserError
from cutaway.quantization import formats
from cutaway.store.files import Progress, check_file, check_overwrite, silent
from cutaway.weights import (
    save_folder,
    save_gguf,
)
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.load import CONFIG
from cutaway.weights.retype import counted

FORMATS = {"safetensors": ("F32", "F16", "BF16"), "gguf": ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")}


@dataclass(frozen=True)
class Saved:
    """What was written: where, as which format and family, tensors by type, and notes."""

    path: Path
    format: str
    family: str | None
    types: dict[str, int]
    nbytes: int
    notes: tuple[str, ...]


def write_checkpoint(
    target: str | Path,
    checkpoint: Checkpoint,
    format: str | None = None,
    type: str | None = None,
    *,
    file_type: int | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Saved:
    """Writes a model whole or not at all; ``format`` None goes by the target's name.

    ``type``: one of ``FORMATS[format]``, or None to keep what is there. ``file_type``: GGUF's number of
    a mix of types, else that of most matrices. ``progress`` counts bytes.
    UserError if the target exists (unless ``force``), or if the format cannot describe the model.
    """
    target = Path(target)
    format = (format or ("gguf" if target.suffix == ".gguf" else "safetensors")).lower()
    if format not in FORMATS:
        raise UserError(f"there is no format {format!r} to write: use {' or '.join(FORMATS)}")
    type = None if type is None else formats.type_named(type, FORMATS[format], f"{format} is not written as")
    check_free(target, format, force)
    if format == "gguf":
        family, types, notes = save_gguf.write_gguf_model(
            target, checkpoint, type, file_type, force, progress
        )
        return Saved(target, format, family, types, target.stat().st_size, counted(notes))
    family, types, notes = save_folder.write_folder(target, checkpoint, type, force, progress)
    nbytes = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    return Saved(target, format if family else "cutaway", family, types, nbytes, counted(notes))


def check_free(target: Path, format: str, force: bool) -> None:
    """UserError if the target is there and may not be replaced, or is no name for a model of this format."""
    if target.suffix in (".safetensors", ".bin"):
        raise UserError(f"{target}: a model is written as a folder of safetensors: give a folder's name")
    (check_file if format == "gguf" else check_overwrite)(target, force)
    if format == "gguf" and target.is_dir():
        raise UserError(f"{target}: is a folder: give a file's name")
    models = (target / CONFIG, target / "config.json")
    if target.is_dir() and any(target.iterdir()) and not any(file.exists() for file in models):
        raise UserError(f"{target}: is a folder that holds no model, and is not replaced")
