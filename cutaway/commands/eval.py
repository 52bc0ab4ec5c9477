"""`cutaway eval`: what a model can do, with error bars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

import cutaway
from cutaway.commands import console, plots
from cutaway.commands.options import Context, Flag, Html, Json, Strict, Svg
from cutaway.errors import UserError
from cutaway.evaluate import cache as caching
from cutaway.evaluate import on_ray, report, task_registry
from cutaway.evaluate.run import EvaluationResult, Options, check, compared, run_tasks
from cutaway.evaluate.statistics import finite
from cutaway.evaluate.task import EvaluationTask, Exercise, Labelled, Question
from cutaway.generate.thinking.strategy import parse
from cutaway.store.files import atomic_file, check_file

LEAST_EXERCISES = 10  # fewer have no meaningful commonest answer


def eval(
    model: str = "smollm2",
    /,
    *,
    tasks: Annotated[
        str | None, Parameter(help=f"Names, separated by commas: {task_registry.known()}.")
    ] = None,
    harness: str | None = None,
    limit: int | None = None,
    against: str | None = None,
    adapter: Path | None = None,
    samples: int = 1,
    temperature: float = 0.0,
    max_tokens: int | None = None,
    seed: int = 0,
    think: str | None = None,
    mutual_information: Flag = False,
    unsafe: Flag = False,
    cache: Annotated[bool, Parameter(negative="--no-cache")] = True,
    ray: Flag = False,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    force: Flag = False,
    threads: int | None = None,
    context: Context = None,
    strict: Strict = False,
    html: Html = None,
    svg: Svg = None,
    as_json: Json = False,
) -> None:
    """Ask a model tasks and print accuracy, perplexity and their 95% intervals.

    docs/evaluation.md says what each task is. A file or a text of your own is a task too: `file:FILE`,
    `text:FILE` (bits per byte), and of classifiers `labels:FILE`. What was computed is kept, so that a run
    that was stopped goes on. `--harness` asks tasks of lm-eval, EleutherAI's harness.

    Examples:

    cutaway eval smollm2 --tasks hellaswag,gsm8k --limit 20

    cutaway eval smollm2 --tasks hellaswag --against runs/talk --json

    cutaway eval smollm2 --adapter runs/talk --against smollm2 --tasks hellaswag

    cutaway eval smollm2 --tasks reasoning_gym:chain_sum --samples 8 --temperature 0.8

    cutaway eval runs/sums --tasks reasoning_gym:chain_sum --think vote-16

    cutaway eval smollm2 --harness arc_easy,own.yaml --limit 100

    Parameters
    ----------
    model
        A model's name, a .gguf file, a folder or a run.
    harness
        Tasks of lm-eval, or its YAML files, separated by commas, instead of --tasks.
    limit
        At most so many items of each task.
    against
        A second model, compared item by item.
    adapter
        A folder with an adapter for the model.
    samples
        Answers to each exercise; more than one need a temperature.
    temperature
        0 is greedy.
    max_tokens
        The longest answer, instead of the task's own.
    seed
        Of the samples.
    think
        Slow thinking for exercises: best-of-N, vote-N, budget-N, tree-WxD, refine-N.
    mutual_information
        Score choices without their prompt too.
    unsafe
        Run HumanEval's programs though a layer of their sandbox is missing here.
    cache
        Keep results, and use those that were kept.
    ray
        Ask on a Ray cluster whose machines share the model's and the tasks' files, or on a local Ray.
    output
        A JSON-lines file for every item's values and answers.
    force
        Replace the output if it exists.
    threads
        Processor threads.
    as_json
        Print one JSON document.
    """
    console.use_threads(threads)
    loading = {"context": context, "strict": strict}
    _check_numbers(limit, samples, think)
    if harness is not None:
        others = any(given is not None for given in (tasks, against, output, think, html, svg))
        sampling = ray or samples > 1 or temperature or max_tokens is not None or mutual_information
        _check_harness(others, bool(sampling))
        _harness(model, adapter, loading, [name.strip() for name in harness.split(",")], limit, seed, as_json)
        return
    if tasks is None:
        raise UserError("name what is asked: --tasks hellaswag,gsm8k, or --harness for lm-eval's tasks")
    if output is not None:
        check_file(output, force)
    plots.check(html, svg, force)
    options = Options(samples, temperature, seed, max_tokens, mutual_information, think)
    found = _tasks(tasks, limit, unsafe, options)
    if against is not None:  # before an hour of the first model's
        _check_against(against, found, strict, itself=against == model and adapter is None)
    name = f"{model} + {adapter}" if against == model else model  # an adapter beside its own base
    sent = _sent(_names(tasks), found, limit, unsafe, options, threads) if ray else []
    results = {name: _results(model, adapter, loading, found, options, cache, sent)}
    if against is not None:
        results[against] = _results(against, None, loading, found, options, cache, sent)
    if output is not None:
        _write(output, results)
    plots.write_plots(report.evaluation(_document(results)), html, svg, force)
    if as_json:
        console.print_json(_document(results))
        return
    console.on_screen(lambda out: _show(out, results))


def _check_harness(others: bool, sampling: bool) -> None:
    """Refuse options that lm-eval's tasks do not take."""
    if others:
        raise UserError(
            "--harness asks lm-eval: leave out --tasks, --against, --think, --output, --html and --svg"
        )
    if sampling:
        raise UserError(
            "lm-eval's tasks have their own sampling, here: leave out --ray, and how answers are sampled"
        )


def _sent(
    names: list[str],
    found: list[Any],
    limit: int | None,
    unsafe: bool,
    options: Options,
    threads: int | None,
) -> list[on_ray.Asked]:
    """The tasks as they are sent to a Ray cluster."""
    if any(map(_labelled, found)):
        raise UserError("--ray: a task of labels is asked on this machine alone: leave it out there")
    return [on_ray.Asked(each, limit, unsafe, options, threads or 1, str(Path.cwd())) for each in names]


def _check_numbers(limit: int | None, samples: int, think: str | None) -> None:
    """UserError for what cannot be asked, whatever the tasks."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}: give a number from 1 up")
    if samples < 1:
        raise UserError(f"--samples is {samples}: give a number from 1 up")
    if think is not None:
        parse(think)
        if samples > 1:
            raise UserError("--think draws its own samples: leave out --samples")


def _tasks(names: str, limit: int | None, unsafe: bool, options: Options) -> list[Any]:
    """The tasks of these names; UserError for one that cannot be asked so, before the first is asked."""
    found = [task_registry.find(name, limit, unsafe=unsafe) for name in _names(names)]
    if not found:
        raise UserError("--tasks names no task")
    for task in found:
        check(task, options)
    return found


def _names(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _check_against(model: str, tasks: list[Any], strict: bool, itself: bool) -> None:
    """UserError for the model itself, or an encoder that is asked for answers."""
    if itself:
        raise UserError("--against names the model itself")
    is_encoder = cutaway.load(console.model_path(model), strict=strict).is_encoder
    if is_encoder and not all(map(_labelled, tasks)):
        raise UserError(f"{model}: is an encoder, which writes nothing: name a decoder")


def _labelled(task: Any) -> bool:
    """Whether a task is a classifier's."""
    return isinstance(task, EvaluationTask) and isinstance(task.items[0], Labelled)


def _loaded(model: str, adapter: Path | None, loading: dict[str, Any]) -> Any:
    path = console.model_path(model)
    lm = cutaway.load(path, **loading) if adapter is None else cutaway.load(path, adapter=adapter, **loading)
    if not lm.checkpoint.classifier:
        console.note_fallback(lm)
    return lm


def _harness(
    model: str,
    adapter: Path | None,
    loading: dict[str, Any],
    names: list[str],
    limit: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Results of lm-eval under its own names."""
    from cutaway.evaluate import harness

    found = harness.evaluate(_loaded(model, adapter, loading), names, limit=limit, seed=seed)
    if as_json:
        console.print_json({"model": model, "harness": found})
        return

    def show(out: Any) -> None:
        from rich.table import Table

        table = Table("task", "metric", "value", "standard error", "n", box=None, pad_edge=False)
        for task, figures in found.items():
            for metric, value in figures.items():
                name, _, filter = metric.partition(",")
                if name == "n" or name.endswith("_stderr"):
                    continue
                error = figures.get(f"{name}_stderr,{filter}")
                spelt = "" if error is None else f"{error:.4f}"
                table.add_row(
                    task, name if filter == "none" else metric, f"{value:.4f}", spelt, f"{figures['n']}"
                )
        console.print_table(out, table)

    console.on_screen(show)


def _results(
    model: str,
    adapter: Path | None,
    loading: dict[str, Any],
    found: list[Any],
    options: Options,
    kept: bool,
    sent: list[on_ray.Asked],
) -> list[EvaluationResult]:
    """Each task's; ``sent`` names the tasks for the workers of a cluster, or is empty."""
    lm = _loaded(model, adapter, loading)
    path = caching.path() if kept and adapter is None else None
    cache = caching.Cache(lm, path)
    own = loading | ({} if adapter is None else {"adapter": str(adapter.absolute())})
    out = []
    with console.watched() as bar:
        for n, task in enumerate(found):
            doing = f"{model}, {task.name}"
            if sent:
                cache = on_ray.RayCache(lm, path, sent[n], console.model_path(model).absolute(), own)
            out.append(
                run_tasks(lm, task, cache, options, lambda done, total, doing=doing: bar(doing, done, total))
            )
    return out


def _document(results: dict[str, list[EvaluationResult]]) -> dict[str, Any]:
    (name, own), *others = results.items()
    document: dict[str, Any] = {
        "model": name,
        "tasks": {result.task.name: _figures(result) for result in own},
    }
    for other, theirs in others:
        document["against"] = {
            "model": other,
            "tasks": {result.task.name: _figures(result) for result in theirs},
            "difference": {
                a.task.name: {
                    metric: {
                        "value": paired.difference.value,
                        "stderr": finite(paired.difference.error),
                        "interval": paired.difference.ends,
                        "p": paired.p,
                    }
                    for metric, paired in compared(a, b).items()
                }
                for a, b in zip(own, theirs, strict=True)
            },
        }
    return document


def _figures(result: EvaluationResult) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for metric, estimate in result.metrics.items():
        figures[metric] = estimate.value
        figures[f"{metric}_stderr"] = finite(estimate.error)
        figures[f"{metric}_interval"] = estimate.ends
    figures |= {"n": next(iter(result.metrics.values())).n, "source": result.task.source}
    if isinstance(result.task, EvaluationTask):
        figures |= {"chance": result.task.chance, "prompt_hash": result.task.prompt_hash}
    figures |= {"first_prompt": result.first_prompt, "seconds": round(result.seconds, 2)}
    return figures | ({"generated_tokens": result.tokens} if result.tokens else {})


def _show(out: Any, results: dict[str, list[EvaluationResult]]) -> None:
    from rich.table import Table

    own = next(iter(results.values()))
    for result in own:
        hashed = f", prompts {result.task.prompt_hash}" if isinstance(result.task, EvaluationTask) else ""
        out.print(
            f"{result.task.name}: {result.task.source}{hashed}. The first prompt:", style="bold", markup=False
        )
        out.print(result.first_prompt, style="dim", markup=False)
        if isinstance(result.task, EvaluationTask) and isinstance(first := result.task.items[0], Question):
            choices = ", ".join(map(_quoted, first.choices))
            right = _quoted(first.choices[first.answer])
            out.print(f"It is followed by {choices}; right is {right}.", style="dim", markup=False)
    table = Table(box=None, pad_edge=False)
    headings = ["task", "metric", "value", "95% interval", "chance", "n"]
    for heading in [*(["model"] if len(results) > 1 else []), *headings]:
        table.add_column(heading, justify="left" if heading in ("model", "task", "metric") else "right")
    for model, every in results.items():
        for result in every:
            chance = _level(result)
            for metric, x in result.metrics.items():
                figures = (
                    f"{x.value:.3f}",
                    x.between(),
                    chance if metric == "acc" else "",
                    str(x.n),
                )
                names = [*([model] if len(results) > 1 else []), result.task.name, metric]
                table.add_row(*names, *figures)
    console.print_table(out, table)
    if any(_exercises(result) and _level(result) for result in own):
        out.print("Chance of exercises is the share of the commonest answer.", style="dim", markup=False)
    if len(results) > 1:
        (name, first), (other, second) = results.items()
        for a, b in zip(first, second, strict=True):
            for metric, paired in compared(a, b).items():
                d = paired.difference
                verdict = "separated" if paired.separated else "not separated"
                out.print(
                    f"{a.task.name} {metric}: {name} - {other} = {d.value:+.4f}, "
                    f"95% {d.between('+.4f')}, p {paired.p:.3g}: {verdict}",
                    markup=False,
                )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _level(result: EvaluationResult) -> str:
    """The accuracy of a guess. Of few exercises the commonest answer is any of them, which says nothing."""
    task = result.task
    if not isinstance(task, EvaluationTask) or (_exercises(result) and len(task.items) < LEAST_EXERCISES):
        return ""
    return f"{task.chance:.3f}"


def _exercises(result: EvaluationResult) -> bool:
    return isinstance(result.task, EvaluationTask) and isinstance(result.task.items[0], Exercise)


def _write(output: Path, results: dict[str, list[EvaluationResult]]) -> None:
    """A line for each item: its values, and what was answered."""
    with atomic_file(output) as out:
        for model, every in results.items():
            for result in every:
                count = len(next(iter(result.values.values())))
                for n in range(count):
                    line: dict[str, Any] = {"model": model, "task": result.task.name, "item": n}
                    line |= {name: values[n] for name, values in result.values.items()}
                    if result.answers:
                        line["answers"] = result.answers[n]
                    out.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
