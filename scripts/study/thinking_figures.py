"""Slow thinking on three tasks: accuracy against all tokens written, for each strategy, with intervals.

    python -m scripts.study.thinking_figures     # trains on each task first; half an hour on two quiet cores
    python -m scripts.study.thinking_figures --steps 2 --questions 8 --trees 2 --output smoke --results smoke

For each task SmolLM2 is trained by imitation of the task's own answers, then asked held-out questions:
greedily, and by each strategy. What chooses an answer is the model itself, never the task's checker; the
ceiling is how often any candidate was right. A strategy is compared with greedy answers question by question.
A sample that two strategies ask for with one seed is written once and counted for both.

Then a search over trees is measured on word problems, SmolLM2 untrained: ids read, bytes of KV cache written,
seconds; with pages shared, the same with nothing shared, and as many independent samples. What is finished is
read again. It writes thinking.md and thinking.csv, and thinking.html with the plot.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cutaway
from cutaway.data.tasks import RIGHT
from cutaway.errors import UserError
from cutaway.evaluate import statistics, task_registry
from cutaway.generate import thinking
from cutaway.generate.batch.request import Constraint, Generation, Request
from cutaway.generate.decode import finish
from cutaway.generate.sampling_params import SamplingParams
from cutaway.page import report as page
from cutaway.page.charts import Axis, Plot, Series

TASKS = ("chain_sum:min_terms=2:max_terms=2:min_digits=2:max_digits=2", "letter_counting", "gcd")
STRATEGIES = (
    *("best-of-2", "best-of-4", "best-of-8", "vote-4", "vote-8", "tree-4x3", "refine-1"),
    "budget-64",
)
GREEDY = "greedy"
FIELDS = (
    *("task", "strategy", "n", "accuracy", "low", "high", "ceiling", "tokens", "gain", "gain_low"),
    "gain_high",
)
TREE, INDEPENDENT = "tree-8x4", "best-of-8"  # on word problems


class RememberingWriter(thinking.Writer):
    """Writes what it wrote before only once: a sample is decided by its prompt and its settings."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.known: dict[Any, Generation] = {}

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        settings: Sequence[SamplingParams],
        constraints: Sequence[Constraint] | None = None,
    ) -> list[Generation]:
        if constraints is not None:
            return super().write(prompts, settings, constraints)
        keys = [(tuple(ids), repr(each)) for ids, each in zip(prompts, settings, strict=True)]
        new = [n for n, key in enumerate(keys) if key not in self.known]
        made = super().write([prompts[n] for n in new], [settings[n] for n in new])
        self.known |= {keys[n]: each for n, each in zip(new, made, strict=True)}
        return [self.known[key] for key in keys]


class SeparateWriter(thinking.Writer):
    """Shares no page: each text has a prefix cache of its own, which holds nothing."""

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        settings: Sequence[SamplingParams],
        constraints: Sequence[Constraint] | None = None,
    ) -> list[Generation]:
        assert constraints is None
        first = self._scheduler.stats().finished
        streams = [
            self._scheduler.submit(Request(tuple(ids), each, cache_scope=f"{first} {n}".encode()))
            for n, (ids, each) in enumerate(zip(prompts, settings, strict=True))
        ]
        return [finish(stream) for stream in streams]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--steps", type=int, default=60, help="of imitation; 0 asks SmolLM2 as it is")
    parser.add_argument("--batch", type=int, default=16, help="of imitation")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--trees", type=int, default=20, help="word problems that trees are measured on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/thinking"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    chances: dict[str, float] = {}
    for name in asked.tasks.split(","):
        task: Any = task_registry.find(f"reasoning_gym:{name}", asked.questions)
        setting, name = name, name.partition(":")[0]
        kept = asked.output / f"{name}-{asked.steps}-{asked.batch}-{asked.questions}-{asked.seed}.json"
        if not kept.is_file():
            kept.write_text(json.dumps(measured(trained(setting, asked), task, asked)))
        found = json.loads(kept.read_text())
        chances[name] = task.chance
        refused |= found["refused"]
        base = found["strategies"][GREEDY]["right"]
        rows += [row(name, strategy, each, base) for strategy, each in found["strategies"].items()]
    kept = asked.output / f"trees-{asked.trees}-{asked.seed}.json"
    if not kept.is_file():
        kept.write_text(json.dumps(trees(asked)))
    asked.results.mkdir(parents=True, exist_ok=True)
    with (asked.results / "thinking.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    text = report(rows, refused, chances, json.loads(kept.read_text()), asked)
    (asked.results / "thinking.md").write_text(text, "utf-8")
    (asked.output / "thinking.html").write_text(html(rows), "utf-8")
    print(text)


def trained(name: str, asked: argparse.Namespace) -> Any:
    """SmolLM2 after imitation of a task's answers, unless that is done."""
    if asked.steps == 0:
        return cutaway.load("smollm2")
    name, *settings = name.split(":")
    folder = asked.output / f"{name}-{asked.steps}-{asked.batch}-{asked.seed}"
    if not (folder / "adapter_config.json").is_file():
        command = [sys.executable, "-m", "cutaway", "finetune", "imitation", "--output", str(folder)]
        command += [f"--task=reasoning_gym:{name}", f"--steps={asked.steps}", f"--seed={asked.seed}"]
        command += [f"--data.options.{each.replace('_', '-')}" for each in settings]
        command += [
            "--data.max-tokens=24",
            f"--data.instruction={tasks_ask()}",
            f"--batch-size={asked.batch}",
        ]
        command += [
            f"--micro-batch-size={asked.batch}",
            "--optimizer.learning-rate=0.0003",
            "--schedule.warmup-steps=5",
        ]
        command += [f"--data.test={asked.questions}", "--precision=auto", "--intervals.evaluate-sequences=4"]
        command += [f"--intervals.evaluate={asked.steps}", "--intervals.save=10"]
        command += ["--resume"] if (folder / "run.yaml").is_file() else []
        subprocess.run(command, check=True)
    return cutaway.load("smollm2", adapter=folder)


def tasks_ask() -> str:
    """The instruction that the evaluation adds to a question, so that training asks in the same words."""
    from cutaway.evaluate.tasks.reasoning_gym import ASK

    return ASK


def measured(lm: Any, task: Any, asked: argparse.Namespace) -> dict[str, Any]:
    """What came of each strategy: per question whether it is right, whether any candidate is, and tokens."""
    messages = [[{"role": "user", "content": item.prompt}] for item in task.items]
    prompts = [lm.chat_ids(each) for each in messages]
    settings = lm.ending(SamplingParams(max_tokens=task.max_tokens, seed=asked.seed))
    judge = thinking.Judge(
        extract=task.extract, follow_up=lambda n, answers: lm.refining(messages[n], answers)
    )
    found: dict[str, Any] = {}
    refused: dict[str, str] = {}
    with RememberingWriter(lm.engine, lm.tokenizer) as writer:
        for strategy in (GREEDY, *STRATEGIES):
            start = time.perf_counter()
            if strategy == GREEDY:
                made = writer.write(prompts, [settings] * len(prompts))
                thoughts = [thinking.Thought(each, (each,), len(each.ids)) for each in made]
            else:
                try:
                    thoughts = thinking.parse(strategy).answer(writer, prompts, settings, judge)
                except UserError as error:  # a budget needs a model that marks its thoughts
                    refused[strategy] = str(error)
                    continue
            right = [
                [item.check(one.text) >= RIGHT for one in (thought.generation, *thought.candidates)]
                for item, thought in zip(task.items, thoughts, strict=True)
            ]
            found[strategy] = {
                "right": [float(each[0]) for each in right],
                "any": [float(any(each)) for each in right],
                "tokens": [thought.tokens for thought in thoughts],
            }
            seconds = time.perf_counter() - start
            print(
                f"{task.name} {strategy}: {sum(each[0] for each in right)} right, {seconds:.0f} s", flush=True
            )
    return {"strategies": found, "refused": refused}


def trees(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """A search over trees with shared pages and without, and independent samples: what each reads."""
    lm = cutaway.load("smollm2")
    task: Any = task_registry.find("gsm8k", asked.trees)
    prompts = [lm.chat_ids([{"role": "user", "content": item.prompt}]) for item in task.items]
    settings = lm.ending(SamplingParams(max_tokens=128, seed=asked.seed))
    rows, texts = [], {}
    for name, strategy, kind in (
        (f"{TREE}, pages shared", TREE, thinking.Writer),
        (f"{TREE}, nothing shared", TREE, SeparateWriter),
        (f"{INDEPENDENT}, pages shared", INDEPENDENT, thinking.Writer),
        (f"{INDEPENDENT}, nothing shared", INDEPENDENT, SeparateWriter),
    ):
        start = time.process_time(), time.perf_counter()
        with kind(lm.engine, lm.tokenizer) as writer:
            made = thinking.parse(strategy).answer(writer, prompts, settings, thinking.Judge())
            seconds = time.process_time() - start[0], time.perf_counter() - start[1]
            stats = writer._scheduler.stats()
        read = stats.prompt_tokens - stats.cached_tokens
        engine: Any = lm.engine
        texts[name] = [[one.ids for one in thought.candidates] for thought in made]
        rows.append(
            {
                "name": name,
                "texts": stats.finished,
                "asked": stats.prompt_tokens,
                "read": read,
                "written": stats.generated_tokens,
                "bytes": (read + stats.generated_tokens) * stats.page_bytes // engine.page,
                "processor": seconds[0],
                "seconds": seconds[1],
            }
        )
        print(*rows[-1].values(), flush=True)
    for strategy in (TREE, INDEPENDENT):
        one, other = (texts[f"{strategy}, {how}"] for how in ("pages shared", "nothing shared"))
        assert one == other, f"{strategy}: sharing changed a text"
    return rows


def row(task: str, strategy: str, found: dict[str, Any], base: list[float]) -> dict[str, Any]:
    """A line of the table."""
    own = statistics.mean(found["right"])
    gain = statistics.paired(found["right"], base).difference
    figures = (
        *(own.n, own.value, own.low, own.high, sum(found["any"]) / own.n, sum(found["tokens"]) / own.n),
        *(gain.value, gain.low, gain.high),
    )
    return dict(zip(FIELDS, (task, strategy, *(round(each, 4) for each in figures)), strict=True))


def report(
    rows: list[dict[str, Any]],
    refused: dict[str, str],
    chances: dict[str, float],
    search: list[dict[str, Any]],
    asked: argparse.Namespace,
) -> str:
    """The results as a page."""
    command = (
        f"`python -m scripts.study.thinking_figures --steps {asked.steps} --batch {asked.batch} --questions "
        f"{asked.questions} --trees {asked.trees} --seed {asked.seed}`: after {asked.steps} steps of "
        f"imitation of each task's answers, {asked.batch} at a time. Tokens are all that were written for a "
        "question. The gain is over greedy answers, paired by question. No strategy sees the checker; the "
        "ceiling is how often any candidate was right."
    )
    lines = ["# Slow thinking: SmolLM2-135M on three tasks", "", command, ""]
    lines += [
        "| task | strategy | accuracy | 95% | ceiling | tokens | gain, 95% | helps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task, chance in chances.items():
        lines.append(f"| {task} | always the commonest answer | {chance:.1%} | | | | | |")
        lines += [_line(each) for each in rows if each["task"] == task]
    verdicts = Counter((each["strategy"], _verdict(each)) for each in rows if each["strategy"] != GREEDY)
    lines.append("")
    for strategy in dict.fromkeys(each["strategy"] for each in rows if each["strategy"] != GREEDY):
        counts = [
            f"{verdicts[strategy, v]} {v}"
            for v in ("helps", "harms", "not separated")
            if verdicts[strategy, v]
        ]
        lines.append(f"- {strategy}: of {len(chances)} tasks {', '.join(counts)}.")
    lines += [f"- {name} was refused: {why}." for name, why in refused.items()]
    lines += ["", "Accuracy by strategy, a mark for each 2%, `|` the ceiling:", "", "```"]
    for task in chances:
        lines.append(task)
        for each in sorted((one for one in rows if one["task"] == task), key=lambda one: one["tokens"]):
            bar = ("#" * round(each["accuracy"] * 50)).ljust(round(each["ceiling"] * 50)) + "|"
            lines.append(f"{each['tokens']:6.0f} tokens  {each['strategy']:<11} {bar}")
    explained = (
        f"{asked.trees} word problems of GSM8K, SmolLM2 as it is, at most 128 tokens a text, the same seeds. "
        "Each step's text is a request of its own, whose prompt is the problem and the lines before. "
        "The texts are the same, to the id, whether pages are shared or not."
    )
    columns = ("", "requests", "ids of their prompts", "ids read", "ids written", "KV cache written, MB")
    columns += ("processor seconds", "seconds")
    lines += [
        "```",
        "",
        "## What a search over trees shares",
        "",
        explained,
        "",
        f"| {' | '.join(columns)} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in search:
        lines.append(
            f"| {each['name']} | {each['texts']} | {each['asked']:,} | {each['read']:,} | "
            f"{each['written']:,} | {each['bytes'] / 1e6:,.1f} | {each['processor']:.1f} | "
            f"{each['seconds']:.1f} |"
        )
    return "\n".join([*lines, ""])


def _verdict(each: dict[str, Any]) -> str:
    return "helps" if each["gain_low"] > 0 else "harms" if each["gain_high"] < 0 else "not separated"


def _line(each: dict[str, Any]) -> str:
    gain, verdict = "", ""
    if each["strategy"] != GREEDY:
        gain = f"{each['gain']:+.1%}, {each['gain_low']:+.1%} to {each['gain_high']:+.1%}"
        verdict = _verdict(each)
    return (
        f"| {each['task']} | {each['strategy']} | {each['accuracy']:.1%} | {each['low']:.1%} to "
        f"{each['high']:.1%} | {each['ceiling']:.1%} | {each['tokens']:.0f} | {gain} | {verdict} |"
    )


def html(rows: list[dict[str, Any]]) -> str:
    """Accuracy against tokens, a plot a task, a line a family of strategies with its intervals."""
    x = Axis("tokens for one answer, all candidates", log=True)
    families = list(dict.fromkeys(_family(each["strategy"]) for each in rows))
    plots = []
    for task in dict.fromkeys(each["task"] for each in rows):
        series = []
        for color, family in enumerate(families):
            own = [each for each in rows if each["task"] == task and _family(each["strategy"]) == family]
            own.sort(key=lambda each: each["tokens"])
            columns = [
                [each[name] for each in own] for name in ("tokens", "accuracy", "low", "high", "strategy")
            ]
            series.append(Series(family, *columns, points=True, color=color))
        plots.append(Plot(task, x, Axis("accuracy", "95% interval"), series))
    return page.html("Slow thinking: accuracy against tokens", [page.Grid(plots)])


def _family(strategy: str) -> str:
    return strategy.rstrip("0123456789x").rstrip("-")


if __name__ == "__main__":
    main()
