"""SmolLM2 on reasoning-gym: held-out accuracy before, after imitation, then GRPO beside expert iteration.

    python -m scripts.study.finetune_reasoning       # three seeds, 10 minutes each on two quiet cores
    python -m scripts.study.finetune_reasoning --seeds 1 --steps 2 --test 10 --output smoke --results smoke

Each seed trains on questions of its own and is examined on the same held-out ones, none of which it trained
on: first by imitation of the task's own answers, then from there by GRPO and, beside it, by expert iteration
on as many completions. Imitation is stopped while most answers are still wrong: what is always right or never
right teaches nothing. A run that was stopped continues; a finished one is read. It writes rewards.md and
rewards.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path

from cutaway.data import tasks
from cutaway.evaluate.exact import proportion
from cutaway.evaluate.statistics import student
from cutaway.train import curve

TASK = "reasoning_gym:chain_sum"
OPTIONS = {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}
PROMPTS = 2048
SHARED = ["--data.max-tokens=12", "--precision=auto", "--intervals.save=20", "--schedule.warmup-steps=5"]
STAGES = {  # name: method, whose base is which stage, and what differs from the preset
    "imitation": (
        "imitation",
        None,
        "--batch-size 16 --micro-batch-size 16 --optimizer.learning-rate 0.0003",
    ),
    "grpo": ("grpo", "imitation", "--batch-size 8 --micro-batch-size 8 --optimizer.learning-rate 0.0003"),
    "expert iteration": (
        "expert_iteration",
        "imitation",
        "--batch-size 8 --micro-batch-size 8 --optimizer.learning-rate 0.0003",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="of GRPO and of expert iteration")
    parser.add_argument("--imitation-steps", type=int, default=20)
    parser.add_argument("--test", type=int, default=300, help="held-out questions")
    parser.add_argument("--output", type=Path, default=Path("runs/reasoning"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    rows = []
    for seed in range(asked.seeds):
        for stage, (method, base, words) in STAGES.items():
            folder = asked.output / f"{seed}-{method}"
            start = ["--model", str(asked.output / f"{seed}-{STAGES[base][0]}")] if base else []
            run(folder, method, seed, asked, [*start, *words.split()])
            rows += [(seed, stage, *point) for point in read(folder)]
    asked.results.mkdir(parents=True, exist_ok=True)
    with (asked.results / "rewards.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("seed", "stage", "step", "accuracy", "seconds"), *rows])
    (asked.results / "rewards.md").write_text(report(rows, asked), "utf-8")
    print((asked.results / "rewards.md").read_text("utf-8"))


def run(folder: Path, method: str, seed: int, asked: argparse.Namespace, words: list[str]) -> None:
    """Train a stage unless it is finished."""
    steps = steps_of(method, asked)
    if (points := read(folder)) and points[-1][0] >= steps:
        return
    options = [f"--data.options.{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    options += [
        f"--seed={seed}",
        f"--steps={steps}",
        f"--data.test={asked.test}",
        f"--data.prompts={PROMPTS}",
    ]
    options += [
        f"--intervals.evaluate={max(1, steps // 4)}",
        f"--intervals.evaluate-sequences={asked.test}",
    ]
    options += ["--resume"] if (folder / "run.yaml").is_file() else []
    command = [sys.executable, "-m", "cutaway", "finetune", method, "--task", TASK, "--output", str(folder)]
    subprocess.run([*command, *SHARED, *words, *options], check=True)


def steps_of(stage: str, asked: argparse.Namespace) -> int:
    """Of a stage, by its name or its method's."""
    return asked.imitation_steps if stage == "imitation" else asked.steps


def read(folder: Path) -> list[tuple[int, float, float]]:
    """Step, held-out accuracy and seconds of training so far, of each evaluation."""
    path, found, seconds = folder / curve.METRICS, [], 0.0
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        numbers = json.loads(line)
        seconds += numbers.get("seconds", 0.0)
        if "validation_accuracy" in numbers:
            found.append((int(numbers["step"]), float(numbers["validation_accuracy"]), round(seconds, 1)))
    return found


def report(rows: list[tuple[int, str, int, float, float]], asked: argparse.Namespace) -> str:
    """The results as a page."""
    task = tasks.load(TASK, PROMPTS, asked.test, 0, OPTIONS)
    command = (
        f"`python -m scripts.study.finetune_reasoning --seeds {asked.seeds} --steps {asked.steps} "
        f"--imitation-steps {asked.imitation_steps} --test {asked.test}`: {TASK} with {OPTIONS}; "
        f"{len(task.test)} held-out questions, of which no seed trained on one "
        f"({task.shared} more were left out for that, with seed 0); greedy answers."
    )
    lines = [
        "# Learning from rewards: SmolLM2-135M on two-term sums",
        "",
        command,
        "",
        "| after | accuracy, mean | 95%, seeds (t) | 95%, questions (exact, pooled) | each seed | seconds |",
        "|---|---|---|---|---|---|",
        f"| always the commonest answer | {task.floor():.1%} | | | | |",
    ]
    ends = {"before": [r for r in rows if r[1] == "imitation" and r[2] == 0]}
    ends |= {stage: [r for r in rows if r[1] == stage and r[2] == steps_of(stage, asked)] for stage in STAGES}
    for name, found in ends.items():
        values = [r[3] for r in found]
        mean, n = statistics.fmean(values), len(values)
        half = student(values)[1] - mean
        low, high = proportion(round(sum(values) * len(task.test)), n * len(task.test))
        each, seconds = ", ".join(f"{v:.1%}" for v in values), statistics.fmean(r[4] for r in found)
        interval = f"± {half:.1%}" if n > 1 else "one seed"
        lines.append(
            f"| {name} | {mean:.1%} | {interval} | {low:.1%} to {high:.1%} | {each} | {seconds:.0f} |"
        )
    for other in ("imitation", "expert iteration"):
        apart = [a[3] - b[3] for a, b in zip(ends["grpo"], ends[other], strict=True)]
        half = student(apart)[1] - statistics.fmean(apart)
        verdict = "separated" if abs(statistics.fmean(apart)) > half else "not separated"
        lines.append(
            f"\nGRPO less {other}, paired by seed: {statistics.fmean(apart):+.1%} ± {half:.1%}: {verdict}."
        )
    lines.append("\nHeld-out accuracy by step, mean of seeds (rewards.csv has each):\n\n```")
    for stage in STAGES:
        steps = sorted({r[2] for r in rows if r[1] == stage})
        points = [(s, statistics.fmean(r[3] for r in rows if r[1:3] == (stage, s))) for s in steps]
        lines.append(f"{stage}\n{curve.text(points)}")
    return "\n".join([*lines, "```", ""])


if __name__ == "__main__":
    main()
