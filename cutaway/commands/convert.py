"""`cutaway convert`: write a model as GGUF or as a safetensors folder, tokenizer and chat template along."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from cyclopts import Parameter

from cutaway.commands import console
from cutaway.commands.options import Flag, Force, Json
from cutaway.errors import UserError
from cutaway.weights import adapters, gguf_adapters, load, save

Type = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]


def convert(
    source: str,
    target: Path,
    /,
    *,
    type: Annotated[
        Type | None,
        Parameter(
            help="What matrices are stored as; without it nothing is rounded.",
            converter=console.any_case(*get_args(Type)),
        ),
    ] = None,
    adapter: Flag = False,
    model: str | None = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a model in another format: TARGET is NAME.gguf, or a folder of safetensors.

    Without --type, GGUF keeps each weight as it is stored, to the bit; a folder keeps F32, F16 and BF16 and
    unpacks the rest to F32. With it, matrices become that type; vectors stay F32 in GGUF, and the matrix that
    makes the logits is Q8_0 where the others are Q4_0 or Q4_1. Notes name what could not be made as asked.

    **Examples:**

    cutaway convert smollm2 smollm2-folder

    cutaway convert smollm2-folder smollm2.gguf --type Q8_0

    cutaway convert runs/talk talk-adapter.gguf --adapter

    :param source: A model's name, a .gguf file, a Hugging Face folder, or a folder that Cutaway wrote.
    :param target: Where to write: NAME.gguf or a folder.
    :param adapter: Write an adapter by itself: SOURCE is PEFT's folder or llama.cpp's GGUF, TARGET the other.
    :param model: The base model of the adapter; without it the one that a PEFT folder names.
    """
    if adapter or model is not None:
        _adapter(Path(source), target, type, model, force)
        return
    checkpoint = load.read(console.model_path(source))
    with console.watched() as bar:
        saved = save.write(target, checkpoint, type=type, force=force, progress=bar)
    if as_json:
        console.print_json(
            {
                "path": str(saved.path),
                "format": saved.format,
                "family": saved.family,
                "bytes": saved.nbytes,
                "types": saved.types,
                "notes": list(saved.notes),
            }
        )
        return
    for note in saved.notes:
        console.note(f"Note: {note}.")
    types = ", ".join(f"{count} {name}" for name, count in saved.types.items())
    print(f"{saved.path}: {console.size(saved.nbytes)}, {types}", file=sys.stdout)


def _adapter(source: Path, target: Path, type: str | None, model: str | None, force: bool) -> None:
    """Writes an adapter alone."""
    if type is not None:
        raise UserError("--type is for models: an adapter's matrices stay F32")
    base = adapters.base_of(source) if model is None else load.read(console.model_path(model))
    if adapters.extended(base, source).config != base.config:
        raise UserError(
            f"{source}: extends its base's context, which no adapter's file says: use `cutaway merge`"
        )
    changes: Any = adapters.read(source, base)
    if target.suffix == ".gguf":
        gguf_adapters.write(target, changes, base, force)
    else:
        adapters.write(target, changes, base, model or str(base.source), force)
    print(f"{target}: changes of {len(changes)} weights of {base.source}")
