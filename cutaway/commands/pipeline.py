"""`cutaway pipeline`: from text to an assistant in one run, with a report card."""

from __future__ import annotations

import inspect
import json
import signal
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from cutaway import bounds
from cutaway.bounds import Count, Natural, NonNegative
from cutaway.commands import console
from cutaway.commands.options import Flag, Json, Threads, converted
from cutaway.errors import UserError
from cutaway.extras import need
from cutaway.pipeline import config, folder, verbs
from cutaway.pipeline.config import Pipeline
from cutaway.store.files import write_file

LIST = "list"
RANGES = {int: Count, float: NonNegative}  # of a verb's options, but for its seed
OF_THE_RUN = {"output", "target", "as_json"}  # a stage's options that the run gives


def pipeline(
    source: str,
    /,
    *,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    budget: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    stages: str | None = None,
    seed: int | None = None,
    dry_run: Flag = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Run text, tokenizer, pretraining, tuning, evaluation, packing and attacks as one, to a report card.

    SOURCE is a preset, a YAML file whose stages are verbs with their own configs, or the folder of a run,
    which continues: after Ctrl-C, a crash or kill -9 it comes to the same bits as one that was not stopped.
    With --budget the model's size and the tokens follow the measured speed of this machine and the scaling
    law; the plan is printed first.

    **Examples:**

    cutaway pipeline list

    cutaway pipeline tiny --dry-run

    cutaway pipeline laptop --budget 90m --seed 1 --output runs/laptop

    cutaway pipeline runs/laptop

    :param source: A preset's name, a YAML file, or a run's folder; `list` prints the presets.
    :param output: The run's folder; without it runs/NAME.
    :param budget: The time that it may take, as 90m or 2h, instead of the preset's; 0 takes the steps as they
        are.
    :param stages: Only these stages, separated by commas; what they need must be done.
    :param seed: Seed of the data that programs write and of each stage that trains, instead of the preset's.
    :param dry_run: Check every stage, print the plan, and start nothing.
    """
    if source == LIST and not Path(source).exists():
        _list(as_json)
        return
    need("a pipeline", "torch")
    from cutaway.pipeline import checks, named

    if threads is not None and threads < 1:
        raise UserError(f"--threads is {threads}: give a number from 1 up")
    preset = output is not None and source in config.presets()  # whose run may lie in a folder of its name
    kept = not preset and (Path(source) / config.PIPELINE).is_file()
    given = config.read_pipeline(Path(source) / config.PIPELINE if kept else source)
    if kept and any(option is not None for option in (output, budget, seed, threads)):
        raise UserError(
            f"{source}: is a run that continues as it began: leave out --output, --budget, --seed, --threads"
        )
    place = Path(source) if kept else output or Path("runs") / Path(source).stem
    if not kept:
        given = _changed(given, budget, seed, threads)
    names = None if stages is None else [name.strip() for name in stages.split(",") if name.strip()]
    if names == []:
        raise UserError(f"--stages: name one or more, with commas between them: {','.join(given.names)}")
    check(given)
    named.check(given)
    checks.models(given)
    if kept or folder.begun(place):
        _continue(place, None if kept else given, names, dry_run, as_json)
    else:
        _begin(place, given, names, dry_run, as_json)


def _changed(given: Pipeline, budget: str | None, seed: int | None, threads: int | None) -> Pipeline:
    """A pipeline with the command line's budget, seed and threads."""
    if budget is not None:
        given = replace(given, budget=0.0 if budget.strip() == "0" else config.seconds(budget))
    if seed is not None:
        given = config.seeded(given, seed)
    return given if threads is None else replace(given, threads=threads)


def _list(as_json: bool) -> None:
    found = {name: config.read_pipeline(name) for name in config.presets()}
    if as_json:
        console.print_json(
            {
                name: {"about": one.about, "budget": one.budget, "stages": one.names, "not_run": one.not_run}
                for name, one in found.items()
            }
        )
        return
    for name, one in found.items():
        console.say(f"{name}: {one.about}" + (f" Not run: {one.not_run}" if one.not_run else ""))


def check(given: Pipeline) -> None:
    """Before the first stage: UserError for a stage whose config its verb does not take."""
    from cutaway.pipeline import checks

    for name, stage in given.stages:
        if verbs.VERBS[stage.verb].entries or stage.verb == "data":
            checks.entries(given, name)
        else:
            _check_options(name, stage.verb, stage.config)


def _check_options(name: str, verb: str, given: dict[str, Any]) -> None:
    """UserError for an entry that is no option of a verb, or has a value that this option does not take."""
    import cyclopts

    module, _, word = verb.partition(" ")
    place = f"cutaway.commands.{module}" + (f".{word}" if word else "")
    function = getattr(import_module(place), word or module)
    known = set(inspect.signature(function).parameters) - OF_THE_RUN
    for key in given:
        if key not in known:
            raise UserError(
                f"stages.{name}.config.{key}: `cutaway {verb}` has no such option"
                + (" here, because the run sets it" if key in OF_THE_RUN else "")
                + f"; known: {', '.join(sorted(known))}"
            )
    words = verbs.command(name, verb, given, "", False)[len(verb.split()) :]
    app = cyclopts.App(help_flags=(), version_flags=(), default_parameter=Parameter(converter=converted))
    app.default(function)
    try:
        _, read, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as problem:
        raise UserError(f"stages.{name}.config: {' '.join(str(problem).split())}") from None
    for key, value in read.arguments.items():
        bound = Natural if key == "seed" else RANGES.get(type(value))
        bounds.check(value, bound, f"stages.{name}.config.{key}")


def _continue(place: Path, given: Pipeline | None, names: Any, dry_run: bool, as_json: bool) -> None:
    from cutaway.pipeline import run

    if given is not None and given.sized and given.budget:  # its model was chosen when it began
        given = _sized_before(given, folder.Folder(place, config.read_pipeline(place / config.PIPELINE)))
    found = folder.opened(place, given, dry=True)
    if names is not None:
        run.check_needs(found.pipeline, names, found.done())
    if dry_run:
        _show_stages(found, as_json)
        return
    with folder.locked(place):
        opened = folder.opened(place, given)
        console.note(f"Continuing {place}.")
        _run(opened, names, as_json)


def _show_stages(opened: folder.Folder, as_json: bool) -> None:
    """Which stages are done."""
    found = {name: "done" if opened.is_done(name) else "to do" for name in opened.pipeline.names}
    if as_json:
        console.print_json({"stages": found})
        return
    for name, state in found.items():
        console.say(f"{name}: {state}")


def _sized_before(given: Pipeline, kept: folder.Folder) -> Pipeline:
    """A pipeline with the size that the law chose when the run began; its other entries are the file's."""
    from cutaway.pipeline import budget

    if given.sized not in kept.pipeline.names:
        return given
    stage, model, size = given[given.sized], kept.pipeline[given.sized].config["model"], kept.size()
    if size is not None:
        model = budget.shaped(stage.config["model"], *size)
    shaped = replace(stage, config=stage.config | {"model": model})
    return replace(
        given, stages=tuple((name, shaped if name == given.sized else one) for name, one in given.stages)
    )


def _begin(place: Path, given: Pipeline, names: Any, dry_run: bool, as_json: bool) -> None:
    from cutaway.pipeline import budget, run

    folder.opened(place, given, dry=True)
    if names is not None:
        run.check_needs(given, names, ())
    if given.not_run:
        console.note(f"This preset has never been run: {given.not_run}")
    plan, show = None, console.note if as_json else console.say
    if given.budget:
        given, plan = budget.planned(
            given, given.budget, lambda run: budget.measured_speed(run, given.threads)
        )
        show("\n".join(plan.lines()))
    else:
        for name, stage in given.stages:
            steps = f", {stage.config['steps']:,} steps" if "steps" in stage.config else ""
            show(f"  {name:<14}{stage.verb}{steps}")
    if dry_run:
        if as_json:
            stages = {name: asdict(stage) for name, stage in given.stages}
            console.print_json({"stages": stages, "plan": None if plan is None else asdict(plan)})
        return
    with folder.locked(place):
        opened = folder.opened(place, given)
        if plan is not None:
            write_file(opened.path / folder.PLAN, json.dumps(asdict(plan), indent=1))
        _run(opened, names, as_json)


def _run(opened: folder.Folder, names: Any, as_json: bool) -> None:
    from cutaway.pipeline import budget, card, run

    pipeline = opened.pipeline
    with console.watched() as progress, _terminated():
        planner: Any = budget.ByTime(pipeline.budget, console.note) if pipeline.budget else run.AsGiven()
        try:
            run.Runner(opened, planner, console.note, progress).run(names)
        except KeyboardInterrupt:
            console.note(f"Stopped; what was saved is kept: go on with `cutaway pipeline {opened.path}`.")
            raise
        if names is None:
            progress.begin("Writing the report card")
            found = card.write_card(opened)
    if names is not None:
        if as_json:
            _show_stages(opened, as_json)
        return
    if as_json:
        console.print_json(found)
        return
    console.say("\n".join(card.lines(found)))
    console.note(f"{opened.path / card.PAGE} is the report card, {opened.path / card.JSON} the same as data.")


class _terminated:
    """While it is entered SIGTERM ends the run as Ctrl-C does: the stage saves first."""

    def __enter__(self) -> None:
        self.before = signal.signal(signal.SIGTERM, self._end)

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self.before)

    def _end(self, number: int, frame: object) -> None:
        raise SystemExit(128 + number)
