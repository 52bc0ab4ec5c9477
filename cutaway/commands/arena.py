"""`cutaway arena`: models answer the same prompts, a judge compares, ratings come with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cutaway
from cutaway.commands import console, plots
from cutaway.commands.options import Flag, Force, Html, Json, Svg
from cutaway.errors import UserError
from cutaway.evaluate import arena as games
from cutaway.evaluate import cache as caching
from cutaway.evaluate import report
from cutaway.evaluate.arena import Arena, Judge


def arena(
    *models: str,
    prompts: Path,
    judge: str,
    max_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    show: Flag = False,
    html: Html = None,
    svg: Svg = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Let models answer the same prompts and rate them by pairwise comparison.

    Each pair of answers is judged in both orders; a verdict that changes with the order is a tie. A person
    sees each pair once, in an order drawn by lot, without names. The ratings are Bradley-Terry's in Elo with
    95% intervals over prompts, at equal length of the answers, and for a person at equal place.

    Examples:

    cutaway arena smollm2 runs/talk --prompts prompts.txt --judge judge.py

    cutaway arena smollm2 runs/talk runs/preferred --prompts prompts.txt --judge person

    cutaway arena smollm2 runs/talk --prompts prompts.txt --judge reward_model:runs/judge

    Parameters
    ----------
    models
        Two models or more: names, files, folders, runs.
    prompts
        A text file with a prompt on each line.
    judge
        A Python file with judge(prompt, first, second), which gives 1 for the first, 0 or 0.5;
        reward_model:RUN, a model's name, or `person`.
    max_tokens
        The longest answer.
    temperature
        Of the answers; 0 is greedy.
    seed
        Of the answers and of the intervals.
    show
        Print the answers.
    as_json
        Print one JSON document.
    """
    plots.check(html, svg, force)
    if len(set(models)) < 2:
        raise UserError("an arena needs two different models or more")
    asked = [line.strip() for line in console.read_text(prompts).splitlines() if line.strip()]
    if not asked:
        raise UserError(f"{prompts}: has no prompt")
    paths = {name: console.model_path(name) for name in models}
    for path in paths.values():  # refused, if it writes no answers, before another one has written its own
        _writer(path)
    decide = _judge(judge)
    with console.watched() as bar:
        written: dict[str, Any] = {}
        for n, name in enumerate(models):
            lm = _writer(paths[name])
            console.note_fallback(lm)
            written[name] = games.answers(
                lm,
                asked,
                caching.Cache(lm, caching.path()),
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                progress=lambda done, n=n: bar("Answering", n * len(asked) + done, len(models) * len(asked)),
            )
        if judge == "person":
            bar.end()
        found = games.play(
            asked,
            written,
            decide,
            both_orders=judge != "person",
            seed=seed,
            progress=lambda done, total: None if judge == "person" else bar("Judging", done, total),
        )
    document = _document(found, asked, written, judge)
    plots.write_plots(report.arena(document), html, svg, force)
    if as_json:
        console.print_json(document)
        return
    for n, prompt in enumerate(asked if show else ()):
        print(prompt)
        for name in models:
            print(f"  {name}: {written[name][n]!r}")
    console.on_screen(lambda out: _show(out, found))


def _writer(path: Path) -> cutaway.lm.LanguageModel:
    """A model that answers. UserError for an encoder, which writes nothing."""
    lm = cutaway.load(path)
    if lm.is_encoder:
        raise UserError(f"{path}: is an encoder, which writes no answers: name a decoder")
    return lm


def _judge(name: str) -> Judge:
    if name == "person":
        if not console.interactive():
            raise UserError("a person judges in a terminal: there is none")
        return _person
    if name.endswith(".py"):
        return games.program(name)
    kind, colon, folder = name.partition(":")
    if colon and kind == "reward_model":
        return games.reward_model(folder)
    return games.model(cutaway.load(console.model_path(name)))


def _person(prompt: str, first: str, second: str) -> float:
    """Ask which of two answers without names is better."""
    console.note(f"\n{prompt}\n\n[1] {first}\n\n[2] {second}\n")
    while True:
        typed = input("Better: 1, 2, or = ? ").strip()
        if typed in ("1", "2", "="):
            return {"1": 1.0, "2": 0.0, "=": 0.5}[typed]


def _document(found: Arena, asked: list[str], written: dict[str, Any], judge: str) -> dict[str, Any]:
    ratings = found.ratings
    return {
        "judge": judge,
        "prompts": len(asked),
        "ratings": {
            name: {"elo": elo, "interval": list(ratings.interval[name])} for name, elo in ratings.elo.items()
        },
        "differences": [
            {"first": a, "second": b, "elo": value, "interval": [low, high]}
            for (a, b), (value, low, high) in ratings.differences.items()
        ],
        "covariates": {
            name: {"value": value, "interval": list(interval)} for name, value, interval in _weights(found)
        },
        "decide_every_game": list(found.deciding),
        "first_place_won": found.first_place,
        "changed_with_order": found.disagreements,
        "answers": written,
    }


def _weights(found: Arena) -> Any:
    """Each covariate with its weight and interval."""
    ratings = found.ratings
    return zip(found.covariates, ratings.weights, ratings.weight_intervals, strict=True)


def _show(out: Any, found: Arena) -> None:
    from rich.table import Table

    ratings = found.ratings
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    table.add_column("Elo", justify="right")
    table.add_column("95% interval", justify="right")
    for name, elo in sorted(ratings.elo.items(), key=lambda item: -item[1]):
        low, high = ratings.interval[name]
        table.add_row(name, f"{elo:.0f}", f"{low:.0f} to {high:.0f}")
    console.print_table(out, table)
    for (a, b), (value, low, high) in ratings.differences.items():
        verdict = "separated" if low > 0 or high < 0 else "not separated"
        out.print(f"{a} - {b}: {value:+.0f}, 95% {low:+.0f} to {high:+.0f}: {verdict}", markup=False)
    for name in found.deciding:
        out.print(f"The {name} alone decides every game that was won: the ratings are of it too.")
    for name, value, (low, high) in _weights(found):
        unit = " a natural logarithm" if name == "length" else " for the first"
        out.print(f"{name}: {value:+.2f}{unit}, 95% {low:+.2f} to {high:+.2f}", markup=False)
    out.print(
        f"{len(found.games)} games; the answer shown first won {found.first_place:.0%}; "
        f"{found.disagreements} verdicts changed with the order and count as ties",
        markup=False,
    )
