"""`cutaway lens merge` and `cutaway lens convert`: lenses joined, and written in another format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from cutaway.commands import console
from cutaway.commands.options import Force, Threads
from cutaway.errors import UserError, plural
from cutaway.store import files

Output = Annotated[Path, Parameter(alias="-o")]


def merge(*fits: Path, output: Output, threads: Threads = None, force: Force = False) -> None:
    """Join fits of one model to other texts: the mean of their matrices, weighted by their texts.

    **Examples:**

    cutaway lens merge part1.safetensors part2.safetensors --output lens.safetensors

    :param fits: Lenses that `cutaway lens fit` wrote, of different texts.
    :param output: The lens to write.
    """
    if len(fits) < 2:
        raise UserError("give two fits or more: cutaway lens merge A B --output LENS")
    console.use_threads(threads)
    from cutaway.inspect import jacobian_file
    from cutaway.inspect.jacobian_state import merged

    files.check_file(output, force)
    lens = merged(fits)
    jacobian_file.save(output, lens, force=force)
    console.say(f"{output}: a lens of {plural(lens.texts, 'text')}")


def convert(
    lens: Path,
    /,
    *,
    output: Output,
    type: Literal["F32", "F16"] = "F16",
    layers: str | None = None,
    threads: Threads = None,
    force: Force = False,
) -> None:
    """Write a lens as the published artefact (a name that ends in .pt), or in 8 bits (.gguf).

    **Examples:**

    cutaway lens convert lens.safetensors --output lens.pt

    cutaway lens convert published.pt --output lens.safetensors

    cutaway lens convert lens.safetensors --layers 12,16,20,24 --output small.gguf

    :param lens: A lens's file.
    :param output: The file to write.
    :param type: What a .safetensors file keeps numbers as; the published artefact has F16.
    :param layers: Keep these alone, as 12,16,20.
    """
    console.use_threads(threads)
    from cutaway.inspect import jacobian_file

    files.check_file(output, force)
    found = jacobian_file.load(lens)
    if layers is not None:
        found = found.of_layers(_layers(layers))
    jacobian_file.save(output, found, type, force=force)
    console.say(f"{output}: {console.size(output.stat().st_size)}")


def _layers(given: str) -> list[int]:
    """The layers of 12,16,20."""
    if not re.fullmatch(r"\d{1,6}(,\d{1,6})*", given):
        raise UserError(f"--layers is {given!r}: write layers as 12,16,20")
    return sorted({int(one) for one in given.split(",")})
