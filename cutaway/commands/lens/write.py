"""`cutaway lens merge` and `cutaway lens convert`: lenses joined, and written in another format."""

from __future__ import annotations

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
    rank: int | None = None,
    threads: Threads = None,
    force: Force = False,
) -> None:
    """Write a lens as the published artefact (a name that ends in .pt), or as a smaller file.

    **Examples:**

    cutaway lens convert lens.safetensors --output lens.pt

    cutaway lens convert published.pt --output lens.safetensors

    cutaway lens convert lens.safetensors --rank 32 --output small.safetensors

    :param lens: A lens's file.
    :param output: The file to write.
    :param type: What numbers are kept as; the published artefact has F16.
    :param rank: Keep so many directions of each matrix, beside a multiple of the identity, in 8 bits.
    """
    console.use_threads(threads)
    from cutaway.inspect import jacobian_file

    files.check_file(output, force)
    found = jacobian_file.load(lens)
    if rank is not None:
        found = found.of_rank(rank)
    jacobian_file.save(output, found, type, force=force)
    console.say(f"{output}: {console.size(output.stat().st_size)}")
