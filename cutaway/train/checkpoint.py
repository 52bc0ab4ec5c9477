"""Checkpoints: whole or absent, and proven so. What is read back is what was written, or the one before it.

A checkpoint is a folder: safetensors files, ``state.json``, and ``sums.json``, which names every file with
its SHA-256. It is written under another name, brought to the disk, and renamed; a folder that a crash left
half written never has the name of a checkpoint. ``newest`` reads checksums, so that a file that rotted
later is noticed, named, and the checkpoint before it used. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from cutaway.errors import OperationalError, UserError
from cutaway.gguf import Packed
from cutaway.quantization import formats
from cutaway.store.files import atomic_folder, digest
from cutaway.store.reading import parsed
from cutaway.weights import safetensors

NAME = re.compile(r"step-(\d{8})")
SUMS, STATE = "sums.json", "state.json"
REMEDY = "free some space and continue with --resume: the earlier checkpoints are complete"
PART = "distributed"  # the folder in a checkpoint that many devices wrote
Note = Callable[[str], None]
Parts = Mapping[str, Mapping[str, Tensor]]


def path(folder: Path, step: int) -> Path:
    """The path of the checkpoint after ``step`` steps."""
    return folder / f"step-{step:08}"


def write_training_state(folder: Path, step: int, parts: Parts) -> Path:
    """A checkpoint of tensors by part and name.

    OperationalError if the disk refuses, and then nothing that was saved before is touched.
    """
    target = path(folder, step)
    with atomic_folder(target, remedy=REMEDY) as made:
        for name, tensors in parts.items():
            packed = {key: _packed(tensor) for key, tensor in tensors.items()}
            safetensors.write_safetensors(made / f"{name}.safetensors", packed)
        seal(made, step)
    return target


def seal(folder: Path, step: int) -> None:
    """Write the step and every file's checksum, which make a folder a checkpoint."""
    (folder / STATE).write_text(json.dumps({"step": step}), "utf-8")
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    sums = {file.relative_to(folder).as_posix(): digest(file) for file in files}
    (folder / SUMS).write_text(json.dumps(sums, indent=1), "utf-8")


def newest(folder: Path, note: Note) -> Path | None:
    """The newest checkpoint that reads whole, or None; each one that does not is noted."""
    for found in reversed(all_in(folder)):
        fault = damage(found)
        if fault is None:
            return found
        note(f"{found}: is not whole ({fault}), so the one before it is used")
    return None


def all_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first, whole or not."""
    if not folder.is_dir():
        return []
    return sorted(found for found in folder.iterdir() if NAME.fullmatch(found.name))


def damage(found: Path) -> str | None:
    """What is wrong with a checkpoint; None if every byte is what was written."""
    try:
        sums = parsed(found / SUMS)
    except (OperationalError, UserError):
        return f"{SUMS} cannot be read"
    for name, wanted in sums.items():
        file = found / name
        if ".." in Path(name).parts or "\0" in name or not file.is_file():
            return f"{name} is missing"
        if digest(file) != wanted:
            return f"{name} has another checksum"
    return None


def step_of(found: Path) -> int:
    """After how many steps a checkpoint was written."""
    name = NAME.fullmatch(found.name)
    if name is None:
        raise UserError(f"{found}: is no checkpoint: those are called step-00000100")
    return int(name[1])


def state(found: Path) -> dict[str, Any]:
    """What was to be known beside the tensors."""
    return parsed(found / STATE)


def tensors(found: Path, part: str) -> dict[str, Tensor]:
    """The tensors of a part by name, float32; numbers alone come as vectors of one."""
    return {
        name: _tensor(packed)
        for name, packed in safetensors.read_safetensors(found / f"{part}.safetensors").items()
    }


def fill(found: Path, parts: Parts) -> None:
    """Reads a checkpoint into tensors of the same parts, names and sizes; UserError if they differ."""
    if (found / PART).is_dir():
        with warnings.catch_warnings():  # where one process reads, that is meant
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            reader, alone = HuggingFaceStorageReader(str(found / PART)), not dist.is_initialized()
            load(_flat(parts), storage_reader=reader, no_dist=alone)
        return
    for part, ours in parts.items():
        theirs = tensors(found, part)
        if lost := ours.keys() ^ theirs.keys():
            raise UserError(
                f"{found}: does not fit this run: {part}.{min(lost)} is in one and not in the other"
            )
        for name, tensor in ours.items():
            if theirs[name].numel() != tensor.numel():
                raise UserError(f"{found}: does not fit this run: {part}.{name} has another size")
            value = theirs[name].reshape(tensor.shape).to(tensor.device)
            if isinstance(tensor, DTensor):
                value = distribute_tensor(value, tensor.device_mesh, tensor.placements)
            with torch.no_grad():
                tensor.copy_(value)


def write_parts(folder: Path, parts: Parts) -> None:
    """This process's part of tensors that are spread over many, as safetensors and no pickle."""
    save(_flat(parts), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def _flat(parts: Parts) -> dict[str, Tensor]:
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def prune(folder: Path, keep: int) -> None:
    """Remove all but the ``keep`` newest checkpoints."""
    for old in all_in(folder)[: -keep or None]:
        shutil.rmtree(old, ignore_errors=True)


def _packed(tensor: Tensor) -> Packed:
    array = np.ascontiguousarray(tensor.detach().cpu().float().numpy())
    return formats.pack(array.reshape(array.shape or (1,)), "F32")


def _tensor(packed: Packed) -> Tensor:
    return torch.from_numpy(np.array(formats.unpack(packed)))
