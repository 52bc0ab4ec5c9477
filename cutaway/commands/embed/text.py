"""`cutaway embed text`: texts as vectors, by an encoder for sentences."""

from pathlib import Path
from typing import Literal

import numpy as np

from cutaway import lm
from cutaway.commands import console
from cutaway.commands.options import Flag, Force, Json
from cutaway.errors import UserError
from cutaway.store import files

SHOWN = 4  # numbers of a vector that a line has room for


def text(
    *texts: str,
    file: Path | None = None,
    model: str = "minilm",
    pooling: Literal["mean", "cls", "last"] | None = None,
    truncate: Flag = False,
    output: Path | None = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Turn texts into vectors of length one: the closer in meaning, the closer to 1 their product.

    Two to nine texts are compared with each other.

    **Examples:**

    cutaway embed text "A cat sits on a mat" "A kitten on a rug" "Interest rates rose"

    cutaway embed text --file sentences.txt --output sentences.npy

    :param texts: The texts.
    :param file: A file with a text on each line; after those given before it.
    :param model: An encoder: a known name, a folder, ORG/NAME; a decoder where --pooling says how.
    :param pooling: How a text's tokens become one vector; by default as the model's files say.
    :param truncate: Cut off the end of a text that is longer than the model reads, which is refused
        otherwise.
    :param output: Write the vectors to this .npy file, float32, a row a text.
    """
    every = [*texts, *(console.read_text(file).splitlines() if file else ())]
    if not every:
        raise UserError('there is no text: `cutaway embed text "A first" "A second"`, or --file')
    if output is not None and output.suffix != ".npy":
        raise UserError(f"{output}: vectors are written as .npy: give such a name")
    if output is not None:
        files.check_file(output, force)
    reader = lm.load(console.model_path(model))
    console.note_fallback(reader)
    with console.watched() as progress:
        progress.begin("Loading the weights")
        vectors = reader.embed(every, pooling, truncate=truncate, progress=progress)
    if output is not None:
        with files.atomic_file(output, force=force) as out:
            np.save(out, vectors)
    if as_json:
        rows = [{"text": one, "vector": row.tolist()} for one, row in zip(every, vectors, strict=True)]
        console.print_json({"model": model, "size": vectors.shape[1], "texts": rows})
    elif output is not None:
        print(f"{output}: {vectors.shape[0]:,} vectors of {vectors.shape[1]}")
    else:
        print("\n".join(_table(every, vectors)))


def _table(texts: list[str], vectors: np.ndarray) -> list[str]:
    """A line a text: how near it is to each of the few, or where its vector begins when they are many."""
    few = 2 <= len(texts) <= 9
    numbers = vectors @ vectors.T if few else vectors[:, :SHOWN]
    more = "" if few else " ..."
    return [
        "  ".join(f"{number:6.3f}" for number in row) + f"{more}  {one[:70]}"
        for one, row in zip(texts, numbers, strict=True)
    ]
