"""`cutaway compare`: the same model trained with one part swapped, and a table that can be trusted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from cyclopts import Parameter

from cutaway.commands import console
from cutaway.commands.options import Json
from cutaway.errors import UserError


def compare(
    experiment: Path | None = None,
    /,
    *,
    attention: str | None = None,
    task: str = "copying",
    output: Annotated[Path, Parameter(alias="-o")] = Path("runs/compare"),
    steps: int | None = None,
    seeds: int | None = None,
    learning_rates: str | None = None,
    width: int = 64,
    layers: int = 2,
    heads: int = 2,
    threads: int | None = None,
    as_json: Json = False,
) -> None:
    """Train the same model with one part swapped, under one budget, and say what separated.

    Each arm has its own learning-rate sweep, as many parameters and the same rows; the first arm is run again
    with other seeds, as the noise floor. The folder gets results.json, report.md and report.html. A
    comparison that was stopped goes on.

    **Examples:**

    cutaway compare --attention mha,gqa,linear --task copying --output runs/c

    cutaway compare --attention mha,linear,gated_delta --task mqar --seeds 3 --json

    cutaway compare experiment.yaml

    :param experiment: A YAML file with task, model, arms and hypothesis (docs/compare.md).
    :param attention: Mechanisms to compare, separated by commas; `cutaway attention` lists them.
    :param task: copying, selective_copying, induction, mqar or parity.
    :param output: The folder of the runs and the report.
    :param steps: Training steps of a run.
    :param seeds: Runs of each arm at its best learning rate.
    :param learning_rates: The sweep, separated by commas.
    :param width: The model's width.
    :param layers: Its layers.
    :param heads: Its attention heads.
    :param threads: Processor threads.
    """
    from cutaway.compare import arms, report, sweep
    from cutaway.model.config import from_dict

    if (experiment is None) == (attention is None):
        raise UserError("give an experiment's file, or --attention with mechanisms to compare")
    chosen: dict[str, Any] = {
        "steps": steps,
        "seeds": seeds,
        "threads": threads,
        "learning_rates": None if learning_rates is None else _numbers(learning_rates),
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if steps is not None:
        chosen["trial_steps"] = max(1, steps // 4)
    if experiment is not None:
        found = from_dict(_entries(experiment), arms.Experiment, str(experiment))
        made = replace(found, **chosen)
    else:
        kinds = [name.strip() for name in str(attention).split(",") if name.strip()]
        if len(kinds) < 2:
            raise UserError("--attention needs two mechanisms or more")
        asked = arms.task(task)
        made = arms.preset(asked, kinds, width=width, layers=layers, heads=heads, **chosen)
    with console.watched(counts=True) as bar:
        results = sweep.run(made, output, lambda doing, done, total: bar("Training", done, total, doing))
    document = report.save(made, results, output)
    if as_json:
        console.print_json(document)
    else:
        print(report.markdown(made, report.rows(made, results)))
        console.note(f"{output / 'report.html'} has the curves.")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UserError(f"--learning-rates is {text!r}: write numbers with commas, as 0.001,0.003") from None


def _entries(path: Path) -> Any:
    try:
        return yaml.safe_load(console.read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML ({' '.join(str(error).split())})") from None
