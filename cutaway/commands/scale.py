"""`cutaway scale`: a ladder of runs, the scaling law that fits them, and what it says of larger ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cutaway.commands import console
from cutaway.commands.options import Json
from cutaway.errors import UserError
from cutaway.extras import need
from cutaway.store.files import check_folder


def scale(
    ladder: str | None = None,
    /,
    *,
    preset: str | None = None,
    output: Annotated[Path, Parameter(alias="-o")] = Path("runs/laws"),
    compute: float | None = None,
    threads: int | None = None,
    as_json: Json = False,
) -> None:
    """Train models of several sizes on several budgets of tokens, and fit L(N, D) = E + A/N^alpha + B/D^beta.

    Each run has a warm-up and a decay of its own length. The fit is Huber's on the logarithm, its 90%
    intervals are a bootstrap's over runs; the largest run is predicted from the others. What is asked beyond
    ten times the ladder's compute is refused. The folder gets laws.json, report.md and report.html, and each
    run in it is a model; a ladder that was stopped goes on.

    **Examples:**

    cutaway scale --preset small --output runs/laws

    cutaway scale ladder.yaml --compute 2e13 --json

    :param ladder: A YAML file with task, rungs and held_out (docs/compare.md).
    :param preset: A ladder that comes with Cutaway: small.
    :param output: The folder of the runs and the report.
    :param compute: Floating-point operations to spend best; without it four times the largest run's.
    :param threads: Processor threads of a run.
    """
    need("a ladder of trained models", "torch")
    from cutaway.compare import scaling

    if (source := ladder or preset) is None or (ladder and preset):
        raise UserError(f"give a ladder's file, or --preset {' or '.join(scaling.ladders())}")
    if compute is not None and not compute > 0:
        raise UserError(f"--compute is {compute:g}: give a number of floating-point operations above 0")
    made = scaling.read_ladder(source)
    if threads is not None:
        made = replace(made, threads=threads)
    made.check(compute)
    check_folder(output)
    with console.watched() as progress:
        points = scaling.train(made, made.rungs, output, console.note, progress)
        progress.begin("Fitting the law")
        law = scaling.fit(points)
        held_out = scaling.train(made, made.held_out, output, console.note, progress)
    found = scaling.document(made, points, held_out, law, compute)
    text = scaling.save(found, law, output)
    if as_json:
        console.print_json(found)
    else:
        print(text)
        console.note(f"{output / 'report.html'} has the curves.")
