"""Files of Jacobian lenses: safetensors with a header that says what was fitted, and the published artefact.

    lens = load("lens.safetensors", lm)      # or .pt: {"J": {layer: [d d]}, ...}
    save("lens.pt", lens)
    save("small.gguf", lens)                 # in 8 bits (Q8_0)

UserError for a damaged file, and for a lens of another model. The published kind is a pickle in a zip; its
opcodes are read as data and none of them is run (torch_zip.py).
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cutaway import gguf
from cutaway.errors import UserError, quoted
from cutaway.extras import need
from cutaway.gguf import Packed
from cutaway.inspect.arrays import LARGEST
from cutaway.inspect.jacobian_lens import JacobianLens
from cutaway.quantization import formats
from cutaway.store import files
from cutaway.store.files import read_errors
from cutaway.store.reading import parsed_text
from cutaway.weights import safetensors, torch_zip

FORMAT = "cutaway-jacobian-lens"
PUBLISHED = (".pt", ".pth")


def save(path: str | Path, lens: JacobianLens, type: str = "F32", force: bool = True) -> None:
    """Writes a lens: as the published artefact to a name that ends in .pt, as GGUF in 8 bits to one that ends
    in .gguf, else as safetensors of F32 or F16.
    """
    path = Path(path)
    if path.suffix in PUBLISHED:
        files.write_file(path, _published(lens), force=force)
        return
    small = path.suffix == ".gguf"
    tensors = {
        f"J.{layer}": formats.pack(np.ascontiguousarray(matrix), "Q8_0" if small else type)
        for layer, matrix in lens.matrices.items()
    }
    facts = json.dumps({"target": lens.target, "texts": lens.texts, **lens.facts})
    if small:
        gguf.write(path, {"general.architecture": FORMAT, "facts": facts}, tensors, force=force)
    else:
        safetensors.write_safetensors(path, tensors, {"format": FORMAT, "facts": facts}, force=force)


def check_path(path: Path) -> None:
    """UserError for what cannot be the file of a lens: none, a folder, or another kind of file."""
    if path.is_dir():
        raise UserError(f"{path} is a folder, and a lens is one file: `cutaway lens fit` writes it")
    if not path.is_file():
        own = "; the model's own lens has no name here: give its file" if str(path) == "jacobian" else ""
        raise UserError(f"{path}: there is no such file; `cutaway lens fit` writes a lens{own}")
    with read_errors(path), path.open("rb") as file:
        head = file.read(9)
    if head[:4] not in (b"PK\x03\x04", b"GGUF") and head[8:9] not in (b"{", b""):
        raise UserError(f"{path} is no lens: it is not a safetensors file, and no GGUF or .pt file")


def load(path: str | Path, lm: Any = None) -> JacobianLens:
    """Reads a lens; with a model, refuses one of another."""
    path = Path(path)
    check_path(path)
    with read_errors(path), path.open("rb") as file:
        head = file.read(4)
    reader = {b"PK\x03\x04": _from_published, b"GGUF": _from_gguf}.get(head, _from_safetensors)
    lens = reader(path)
    if lm is not None:
        lens.check(lm, str(path))
    return lens


def _from_safetensors(path: Path) -> JacobianLens:
    found = safetensors.metadata(path)
    if found.get("format") != FORMAT:
        raise UserError(f"{path} is no Jacobian lens: `cutaway lens fit` writes one")
    return _named(path, safetensors.read_safetensors(path), found.get("facts", ""))


def _from_gguf(path: Path) -> JacobianLens:
    found = gguf.read(path)
    facts = found.metadata.get("facts")
    if found.metadata.get("general.architecture") != FORMAT or not isinstance(facts, str):
        raise UserError(f"{path} is no Jacobian lens: `cutaway lens convert` writes one as GGUF")
    return _named(path, found.tensors, facts)


def _named(path: Path, tensors: Mapping[str, Packed], text: str) -> JacobianLens:
    """The lens of tensors J.LAYER, and of facts as JSON."""
    facts = parsed_text(text, f"{path}: facts")
    matrices = {}
    for name, packed in tensors.items():
        layer = name.removeprefix("J.")
        if not layer.isdecimal() or len(layer) > 6 or packed.type not in ("F32", "F16", "Q8_0"):
            raise UserError(f"{path}: {quoted(name)} is no matrix of a layer, J.LAYER in F32, F16 or Q8_0")
        matrices[int(layer)] = formats.unpack(packed)
    target, texts = facts.pop("target", None), facts.pop("texts", None)
    return _checked(path, matrices, target, texts, facts)


def _from_published(path: Path) -> JacobianLens:
    """The artefact {"J": {layer: [d d]}, "n_prompts", "source_layers", "d_model"}."""
    found = torch_zip.read_torch_zip(path)
    if not isinstance(found, dict) or not isinstance(found.get("J"), dict):
        raise UserError(f"{path} is no Jacobian lens: it holds no dict J of a matrix a layer")
    matrices = {}
    for layer, array in found["J"].items():
        layer = int(layer) if isinstance(layer, str) and layer.isdecimal() and len(layer) < 6 else layer
        if type(layer) is not int or not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            raise UserError(f"{path}: J[{quoted(layer)}] is no matrix of floats of a layer")
        matrices[layer] = array.astype(np.float32)
    stated = found.get("source_layers", sorted(matrices))
    if not isinstance(stated, list) or sorted(map(str, stated)) != sorted(map(str, matrices)):
        raise UserError(f"{path}: its source_layers are not the layers of its matrices")
    lens = _checked(path, matrices, 1 + max(matrices, default=0), found.get("n_prompts", 1), {})
    if found.get("d_model", lens.width) != lens.width:
        raise UserError(
            f"{path}: its d_model is {quoted(found['d_model'])}, its matrices are of {lens.width}"
        )
    return lens


def _checked(
    path: Path, matrices: dict[int, np.ndarray], target: Any, texts: Any, facts: dict[str, Any]
) -> JacobianLens:
    """The lens of what a file holds; UserError where it is none."""
    width = len(next(iter(matrices.values()), ()))
    if not width or any(each.shape != (width, width) for each in matrices.values()):
        raise UserError(f"{path}: a lens has one square matrix a layer, all of one width")
    if min(matrices) < 0 or not all((abs(each) <= LARGEST).all() for each in matrices.values()):
        raise UserError(f"{path}: a matrix is of no layer, or has numbers that are NaN or beyond {LARGEST:g}")
    for what, value, least in (("target", target, 1 + max(matrices)), ("number of texts", texts, 1)):
        if type(value) is not int or not least <= value < 1 << 40:
            raise UserError(
                f"{path}: its {what} is {quoted(value)}: a whole number from {least} on is needed"
            )
    return JacobianLens({layer: matrices[layer] for layer in sorted(matrices)}, target, texts, facts)


def _published(lens: JacobianLens) -> bytes:
    """The bytes of the published artefact."""
    need("writing a lens as torch.save does", "torch")
    import torch

    made = {layer: torch.from_numpy(matrix).half() for layer, matrix in lens.matrices.items()}
    out = io.BytesIO()
    layers = list(made)
    torch.save({"J": made, "n_prompts": lens.texts, "source_layers": layers, "d_model": lens.width}, out)
    return out.getvalue()
