"""`cutaway compare`: the same model trained with one part swapped, and a table that can be trusted."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from cutaway.commands import console
from cutaway.commands.options import Flag, Json
from cutaway.errors import UserError
from cutaway.extras import need
from cutaway.store.files import check_folder


def compare(
    experiment: str | None = None,
    /,
    *,
    attention: str | None = None,
    position: str | None = None,
    norm: str | None = None,
    mlp: str | None = None,
    optimizer: str | None = None,
    tokenizer: str | None = None,
    task: str = "copying",
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    steps: int | None = None,
    seeds: int | None = None,
    learning_rates: str | None = None,
    width: int = 64,
    layers: int = 2,
    heads: int = 2,
    threads: int | None = None,
    workers: int = 1,
    ray: Flag = False,
    as_json: Json = False,
) -> None:
    """Train the same model with one part swapped, under one budget, and say what separated.

    Name several kinds of one part; a single kind of another part is what all arms have. Each arm has its own
    learning-rate sweep, as many parameters and the same rows; the first arm is run again with other seeds, as
    the noise floor. The folder gets experiment.yaml, results.json, report.md and report.html, and each run in
    it is a model that other verbs open. A comparison that was stopped goes on.

    **Examples:**

    cutaway compare --attention mha,gqa,linear --task copying --output runs/c

    cutaway compare --position rope,alibi,learned,none --task extrapolation --attention mqa

    cutaway compare --tokenizer bytes,bpe:1024 --task language --seeds 3 --json

    cutaway compare mqar --workers 2

    cutaway compare experiment.yaml

    :param experiment: A preset, or a YAML file with task, model, arms and hypothesis (docs/compare.md).
    :param attention: Mechanisms, separated by commas; `cutaway attention` lists them.
    :param position: rope, alibi, t5, learned, sinusoidal, none.
    :param norm: rms, layer, post, sandwich.
    :param mlp: swiglu, geglu, reglu, relu2, relu, gelu, silu.
    :param optimizer: adamw, muon.
    :param tokenizer: bytes, bpe:SIZE, a file or a model's name, with --task language.
    :param task: arithmetic, compress, copying, extrapolation, induction, language, memorise, mqar,
        needle, parity, reversal or selective_copying.
    :param output: The folder of the runs and the report; without it runs/NAME.
    :param steps: Training steps of a run.
    :param seeds: Runs of each arm at its best learning rate.
    :param learning_rates: The sweep, separated by commas.
    :param width: The model's width.
    :param layers: Its layers.
    :param heads: Its attention heads.
    :param threads: Processor threads of a run.
    :param workers: Arms that are trained side by side, in processes.
    :param ray: Train arms on a Ray cluster whose machines share the folder, or on a local Ray.
    """
    need("comparing", "torch")
    from cutaway.compare import arms, report, sweep

    given = {"attention": attention, "position": position, "norm": norm, "mlp": mlp, "optimizer": optimizer}
    given |= {"tokenizer": tokenizer}
    parts = {name: [kind.strip() for kind in kinds.split(",")] for name, kinds in given.items() if kinds}
    if (experiment is None) == (not parts):
        raise UserError("give an experiment's file or preset, or --attention (or another part) with kinds")
    if workers < 1:
        raise UserError(f"--workers is {workers}: give a number from 1 up")
    rates = None if learning_rates is None else _numbers(learning_rates)
    chosen: dict[str, Any] = {"steps": steps, "seeds": seeds, "threads": threads, "learning_rates": rates}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if steps is not None:
        chosen["trial_steps"] = max(1, steps // 4)
    if experiment is not None:
        made = replace(arms.read_experiment(experiment), **chosen)
    else:
        made = arms.preset(arms.task(task), parts, width=width, layers=layers, heads=heads, **chosen)
    folder = output or Path("runs") / (Path(experiment).stem if experiment else "compare")
    for arm in made.arms:  # one that cannot be trained is refused before another one has been
        arms.run_of(made, arm, made.learning_rates[0], made.steps, 0)
    check_folder(folder)
    report.begin(made, folder)
    with console.watched() as progress:
        results = sweep.run_sweep(made, folder, console.note, workers=workers, ray=ray, progress=progress)
    document = report.save(made, results, folder)
    if as_json:
        console.print_json(document)
        return
    table = report.rows(made, results)
    if sys.stdout.isatty():
        console.on_screen(lambda out: _show(out, made, table))
    else:
        print(report.markdown(made, table, folder))
    console.note(f"{folder / 'report.html'} has the curves; again: {report.command(folder)}")


def _show(out: Any, experiment: Any, rows: Any) -> None:
    """The report's table and paragraph on a terminal."""
    from rich.table import Table

    from cutaway.compare import report

    headings, *lines = report.cells(experiment, rows)
    table = Table(*headings, box=None, pad_edge=False)
    for line in lines:
        table.add_row(*line)
    out.print(report.title(experiment, rows), style="bold", markup=False)
    console.print_table(out, table)
    out.print(report.paragraph(experiment, rows), markup=False)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UserError(f"--learning-rates is {text!r}: write numbers with commas, as 0.001,0.003") from None
