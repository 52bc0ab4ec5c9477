"""Slow thinking on three tasks: accuracy against all tokens written, for each strategy, with intervals.

    python scripts/thinking_figures.py          # trains on each task first; estimated 2 hours on two cores
    python scripts/thinking_figures.py --steps 2 --questions 8 --output smoke --results smoke

For each task SmolLM2 is trained by imitation of the task's own answers, then asked held-out questions:
greedily, and by each strategy. What chooses an answer is the model itself, never the task's checker; the
ceiling is how often any candidate was right. A strategy is compared with greedy answers question by question.
Texts that share a prompt share its pages: the fraction of prompt tokens that were read for another text is
reported beside the time. What is finished is read again. It writes thinking.md and thinking.csv, and
thinking.html with the plot.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cutaway
from cutaway.data.tasks import RIGHT
from cutaway.errors import UserError
from cutaway.evaluate import statistics, tasks
from cutaway.generate import thinking
from cutaway.generate.sampling_params import SamplingParams

TASKS = ("chain_sum", "letter_counting", "gcd")
STRATEGIES = (
    *("best-of-2", "best-of-4", "best-of-8", "best-of-16", "vote-4", "vote-8", "vote-16"),
    *("tree-4x3", "tree-8x3", "refine-1", "budget-64"),
)
GREEDY = "greedy"
FIELDS = (
    *("task", "strategy", "n", "accuracy", "low", "high", "ceiling", "tokens", "gain", "gain_low"),
    *("gain_high", "shared", "seconds"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--steps", type=int, default=60, help="of imitation; 0 asks SmolLM2 as it is")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/thinking"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    for name in asked.tasks.split(","):
        lm = trained(name, asked)
        task: Any = tasks.find(f"reasoning_gym:{name}", asked.questions)
        base: list[float] = []
        for strategy in (GREEDY, *STRATEGIES):
            kept = asked.output / f"{name}-{strategy}-{asked.steps}-{asked.questions}-{asked.seed}.json"
            try:
                found = (
                    json.loads(kept.read_text()) if kept.is_file() else measured(lm, task, strategy, asked)
                )
            except UserError as error:  # a budget needs a model that marks its thoughts
                refused[strategy] = str(error)
                continue
            kept.write_text(json.dumps(found))
            base = found["right"] if strategy == GREEDY else base
            rows.append(row(name, strategy, found, base))
            print(*(f"{key} {rows[-1][key]}" for key in FIELDS[:8]), flush=True)
    asked.results.mkdir(parents=True, exist_ok=True)
    with (asked.results / "thinking.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    (asked.results / "thinking.md").write_text(report(rows, refused, asked), "utf-8")
    plot(rows).write_html(asked.output / "thinking.html", include_plotlyjs=True)


def trained(name: str, asked: argparse.Namespace) -> Any:
    """SmolLM2 after imitation of a task's answers, unless that is done."""
    asked.output.mkdir(parents=True, exist_ok=True)
    if asked.steps == 0:
        return cutaway.load("smollm2")
    folder = asked.output / f"{name}-{asked.steps}-{asked.seed}"
    if not (folder / "adapter_config.json").is_file():
        command = [sys.executable, "-m", "cutaway", "finetune", "imitation", "--output", str(folder)]
        command += [f"--task=reasoning_gym:{name}", f"--steps={asked.steps}", f"--seed={asked.seed}"]
        command += ["--data.max-tokens=24", f"--data.instruction={tasks_ask()}", "--batch-size=16"]
        command += [f"--data.test={asked.questions}"]
        subprocess.run(command, check=True)
    return cutaway.load("smollm2", adapter=folder)


def tasks_ask() -> str:
    """The instruction that the evaluation adds to a question, so that training asks in the same words."""
    from cutaway.evaluate.tasks.reasoning_gym import ASK

    return ASK


def measured(lm: Any, task: Any, strategy: str, asked: argparse.Namespace) -> dict[str, Any]:
    """What came of one strategy: per question whether it is right, whether any candidate is, and tokens."""
    messages = [[{"role": "user", "content": item.prompt}] for item in task.items]
    prompts = [lm.chat_ids(each) for each in messages]
    settings = lm.ending(SamplingParams(max_tokens=task.max_tokens, seed=asked.seed))
    judge = thinking.Judge(
        extract=task.extract, follow_up=lambda n, answers: lm.refining(messages[n], answers)
    )
    start = time.perf_counter()
    with thinking.Writer(lm.engine, lm.tokenizer) as writer:
        if strategy == GREEDY:
            made = writer.write(prompts, [settings] * len(prompts))
            thoughts = [thinking.Thought(each, (each,), len(each.ids)) for each in made]
        else:
            thoughts = thinking.parse(strategy).answer(writer, prompts, settings, judge)
        shared = writer.cached_tokens / max(writer.prompt_tokens, 1)
    right = [[item.check(one.text) >= RIGHT for one in (thought.generation, *thought.candidates)]
             for item, thought in zip(task.items, thoughts, strict=True)]  # fmt: skip
    return {
        "right": [float(each[0]) for each in right],
        "any": [float(any(each)) for each in right],
        "tokens": [thought.tokens for thought in thoughts],
        "shared": shared,
        "seconds": time.perf_counter() - start,
        "chance": task.chance,
    }


def row(task: str, strategy: str, found: dict[str, Any], base: list[float]) -> dict[str, Any]:
    """A line of the table."""
    own = statistics.mean(found["right"])
    gain = statistics.paired(found["right"], base).difference
    figures = (
        *(own.n, own.value, own.low, own.high, sum(found["any"]) / own.n, sum(found["tokens"]) / own.n),
        *(gain.value, gain.low, gain.high, found["shared"], found["seconds"]),
    )
    return dict(zip(FIELDS, (task, strategy, *(round(each, 4) for each in figures)), strict=True))


def report(rows: list[dict[str, Any]], refused: dict[str, str], asked: argparse.Namespace) -> str:
    """The results as a page."""
    command = (
        f"`python scripts/thinking_figures.py --steps {asked.steps} --questions {asked.questions} "
        f"--seed {asked.seed}`: after imitation of each task's answers. Tokens are all that were written for "
        "a question, the gain is over greedy answers, paired by question; `shared` is the fraction of prompt "
        "tokens whose pages another text had read."
    )
    lines = [
        "# Slow thinking: SmolLM2-135M on three tasks",
        "",
        command,
        "",
        "| task | strategy | accuracy | 95% | ceiling | tokens | gain, 95% | helps | shared | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in rows:
        low, high = each["gain_low"], each["gain_high"]
        verdict = "yes" if low > 0 else "harms" if high < 0 else "not separated"
        gain = f"{each['gain']:+.1%}, {low:+.1%} to {high:+.1%}"
        if each["strategy"] == GREEDY:
            gain, verdict = "", ""
        lines.append(
            f"| {each['task']} | {each['strategy']} | {each['accuracy']:.1%} | {each['low']:.1%} to "
            f"{each['high']:.1%} | {each['ceiling']:.1%} | {each['tokens']:.0f} | {gain} | {verdict} | "
            f"{each['shared']:.0%} | {each['seconds']:.0f} |"
        )
    lines += ["", *(f"{name} was refused: {why}." for name, why in refused.items())]
    return "\n".join([*lines, ""])


def plot(rows: list[dict[str, Any]]) -> Any:
    """Accuracy against tokens, a panel a task, a line a family of strategies, bars for the intervals."""
    from plotly import graph_objects as go
    from plotly.subplots import make_subplots

    names = list(dict.fromkeys(each["task"] for each in rows))
    figure = make_subplots(1, len(names), subplot_titles=names, shared_yaxes=True)
    colours = ("#444444", "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e")
    families = list(dict.fromkeys(_family(each["strategy"]) for each in rows))
    for column, task in enumerate(names, 1):
        for family, colour in zip(families, colours, strict=False):
            own = [each for each in rows if each["task"] == task and _family(each["strategy"]) == family]
            own.sort(key=lambda each: each["tokens"])
            values = [each["accuracy"] for each in own]
            error = {
                "array": [each["high"] - each["accuracy"] for each in own],
                "arrayminus": [each["accuracy"] - each["low"] for each in own],
            }
            line = go.Scatter(
                x=[each["tokens"] for each in own],
                y=values,
                error_y=error,
                text=[each["strategy"] for each in own],
                mode="lines+markers",
                name=family,
                legendgroup=family,
                showlegend=column == 1,
                line_color=colour,
            )
            figure.add_trace(line, 1, column)
    figure.update_xaxes(type="log", title="tokens for one answer, all candidates")
    figure.update_yaxes(title="accuracy", col=1)
    return figure


def _family(strategy: str) -> str:
    return strategy.rstrip("0123456789x").rstrip("-")


if __name__ == "__main__":
    main()
