"""`cutaway sae convert`: a dictionary as another tool's folder, or another tool's as ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cutaway.commands import console
from cutaway.commands.options import Force
from cutaway.errors import UserError, plural
from cutaway.inspect import sae_formats
from cutaway.inspect.sae_folders import load_set
from cutaway.store import files

OURS = "cutaway"


def convert(
    folder: Path,
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    format: str = "saelens",
    model: str | None = None,
    force: Force = False,
) -> None:
    """Write a sparse dictionary as SAELens's, circuit-tracer's or Cutaway's folder.

    SAELens has no TopK transcoder, and circuit-tracer needs a transcoder of every layer from 0 on: train
    those with --activation batch_topk or jumprelu.

    **Examples:**

    cutaway sae convert saes/layer15 --output for-saelens

    cutaway sae convert transcoders --format circuit-tracer --output for-circuit-tracer

    cutaway sae convert downloaded --format cutaway --model gemma.gguf --output saes/gemma

    :param folder: A folder that `cutaway sae`, SAELens or circuit-tracer wrote.
    :param output: The folder to write.
    :param format: saelens, circuit-tracer or cutaway.
    :param model: What the card names as the model, where it is stored under another name here.
    """
    if format not in (OURS, *sae_formats.FORMATS):
        raise UserError(
            f"--format {format} is not known: use one of {OURS}, {', '.join(sae_formats.FORMATS)}"
        )
    files.check_overwrite(output, force)
    files.check_folder(output)
    made = [one.named(model) for one in load_set(folder)] if model else load_set(folder)
    if format != OURS:
        sae_formats.save(made, output, format, force=force)
    elif len(made) == 1:
        made[0].save(output, force)
    else:
        with files.atomic_folder(output, force=force) as part:
            for one in made:
                one.save(part / f"layer_{one.layer}")
    console.say(
        f"{output}: {plural(len(made), 'dictionary', 'dictionaries')} of {made[0].card.model}, for {format}"
    )
