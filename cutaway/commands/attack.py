"""`cutaway attack`: attack a model of one's own, and see why what worked did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import cutaway
from cutaway.commands import console
from cutaway.commands.options import Adapter, Json, Model, Threads
from cutaway.errors import UserError
from cutaway.store.files import check_folder, write_file

QUICK, FULL = 8, 64  # trials of an arm


def attack(
    model: Model = "smollm2",
    /,
    *,
    probe: str | None = None,
    trials: int | None = None,
    full: bool = False,
    seed: int = 0,
    adapter: Adapter = None,
    output: Annotated[Path, Parameter(alias="-o")] = Path("runs/attack"),
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Attack a model of your own with harmless canaries, and measure each attack beside its control.

    With 8 trials an arm, a probe takes from seconds (files, forgery) to a minute (injection) on two quiet
    cores; --full takes 64, and up to eight times as long. Rates have 95% intervals, which are wide for few
    trials; a defence is a curve of catch against false positives. The folder gets results.json and
    report.html, in which each finding opens the model at its token. What the folder has of other probes on
    the same model stays in both.

    Examples:

    cutaway attack smollm2

    cutaway attack smollm2 --probe forgery,injection --full --json

    Parameters
    ----------
    probe
        Probes, separated by commas; all those that train no model by default (docs/security.md).
    trials
        Cases of each arm, 8 if not given, of which each probe makes its own count: forgery asks 8
        conversations for each, and compares the next token in as many as this at most. n is what an arm had.
    full
        64 trials: enough to call an attack that never works "sound".
    seed
        Of every random choice.
    output
        The folder of the report, and of the runs of probes that train.
    """
    from cutaway.security import probe_runner, report
    from cutaway.security.finding import Budget, Finding

    if trials is not None and full:
        raise UserError("--trials and --full were both given: give one")
    trials = trials if trials is not None else FULL if full else QUICK
    if trials < 1:
        raise UserError(f"--trials is {trials}: give a number from 1 up")
    console.use_threads(threads)
    asked = [] if probe is None else [p.strip() for p in probe.split(",")]
    probe_runner.check_probes(asked)
    check_folder(output)
    path = console.model_path(model)
    chosen = ", ".join(asked) if asked else "all probes that train no model"
    console.note(f"Attacking {model}: {chosen}; {trials} trials an arm.")
    with console.doing("Loading the probes and the model"):
        asked = asked or probe_runner.names(trains=False)  # which imports them
        lm = cutaway.load(path, adapter=adapter)
    output.mkdir(parents=True, exist_ok=True)
    results, budget = output / "results.json", Budget(trials, output)
    shown = model if adapter is None else f"{model} with {adapter}"
    findings, whole = list[Finding](), report.kept(results, shown, [])
    document = report.document(shown, whole, seed=seed, trials=trials)
    with console.watched() as bar:
        for name in asked:  # each by itself, so that what is done is kept when a later one is stopped
            findings += probe_runner.run_probes(lm, [name], seed=seed, budget=budget, progress=bar)
            whole = report.kept(results, shown, findings)
            document = report.document(shown, whole, seed=seed, trials=trials)
            write_file(results, json.dumps(document, indent=1))
    write_file(output / "report.html", report.page(shown, whole, lm))
    if as_json:
        console.print_json(document)
        return
    for finding in findings:
        print("\n".join(report.lines(finding)))
    console.note(f"{output / 'report.html'} has the curves, and the model's inside at each finding.")
