"""What a training takes on 1 to 64 nodes: a simulation by the formulas of `cutaway plan`, from what one
device was measured or is assumed to reach, written to docs/results/nodes.md.

    python -m scripts.study.nodes
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cutaway.data import run_tokenizer
from cutaway.errors import UserError
from cutaway.train import config, plan

PAGE = Path(__file__).parents[2] / "docs/results/nodes.md"
NODES = (1, 2, 8, 64)
FAILURES = 419 / (54 * 86_400 * 16_384)  # unexpected ones a device and second: Llama 3's (2407.21783, 3.3.4)
RESTART = 600.0  # seconds from a failure to the first step after it
DISK = 1e9  # bytes a second that a node writes of a checkpoint


@dataclass(frozen=True)
class Machine:
    """A node: devices that each reach ``flops``, and bytes a second within and between nodes for each."""

    name: str
    devices: int
    flops: float
    within: float
    between: float


@dataclass(frozen=True)
class Case:
    """A preset on nodes of one kind; ``rows`` of a device at a time, and a step's batch for so many nodes."""

    preset: str
    machine: Machine
    rows: int
    batches: dict[int, tuple[int, ...]]


GPUS = Machine("eight H100, 40% of bf16's peak (assumed), NVLink, 400 Gb/s a GPU", 8, 4e14, 2e11, 5e10)
CPUS = Machine("two Zen 4 cores, 318 GFLOP/s in bf16 (measured), 10 Gb/s", 1, 3.18e11, 1e12, 1.25e9)
CASES = (
    Case("1b", GPUS, 4, {1: (512,), 2: (512,), 8: (512,), 64: (512, 2048)}),
    Case("10m", CPUS, 16, {1: (64,), 2: (64,), 8: (128,), 64: (64, 1024)}),
)


def main() -> int:
    """Write the page."""
    lines = PAGE.read_text("utf-8").partition("<!-- ")[0].rstrip().splitlines() if PAGE.is_file() else []
    lines += ["", "<!-- simulated: python -m scripts.study.nodes -->"]
    for case in CASES:
        lines += ["", f"`{case.preset}` on nodes of {case.machine.name}:", ""]
        lines += [
            "| nodes | rows a step | seconds a step | tokens/s | of so many single nodes | the run | lost |"
        ]
        lines += ["|---|---|---|---|---|---|---|", *rows(case)]
    PAGE.write_text("\n".join([*lines, "<!-- end of simulated -->", ""]), "utf-8")
    print(PAGE.read_text("utf-8"))
    return 0


def rows(case: Case) -> Iterator[str]:
    """A line of the table for each number of nodes and batch."""
    alone: list[float] = []
    for nodes in NODES:
        for batch in case.batches[nodes]:
            run, made = planned(case, nodes, batch)
            tokens = batch * run.model.context
            speeds = [tokens / seconds for seconds in made.seconds]
            alone = alone or speeds
            hours = [run.steps * seconds / 3600 for seconds in made.seconds]
            part = [f"{own / one / nodes:.0%}" for own, one in zip(speeds, alone, strict=True)]
            steps = " to ".join(f"{seconds:.3g}" for seconds in dict.fromkeys(made.seconds))
            rate = " to ".join(f"{speed:,.0f}" for speed in dict.fromkeys(reversed(speeds)))
            whole = " to ".join(f"{each:.3g} h" for each in dict.fromkeys(hours))
            yield (
                f"| {nodes} | {batch} | {steps} | {rate} | {' to '.join(dict.fromkeys(reversed(part)))} | "
                f"{whole} | {lost(run, made, nodes, case.machine):.2%} |"
            )


def planned(case: Case, nodes: int, batch: int) -> tuple[config.TrainingConfig, plan.Plan]:
    """The preset with this batch and as many tokens in all, on so many nodes."""
    run = config.read_run_config(case.preset)
    vocab = run.model.vocab or run_tokenizer.size_of(run.data.tokenizer)
    if vocab is None:
        raise UserError(f"{case.preset}: the vocabulary is unknown")
    devices = nodes * case.machine.devices
    steps, size = run.steps * run.batch_size // batch, min(case.rows, batch // devices)
    model = replace(run.model, vocab=vocab)
    run = replace(run, model=model, batch_size=batch, micro_batch_size=size, steps=steps)
    wire = case.machine.within if nodes == 1 else case.machine.between
    return run, plan.plan(run, devices, case.machine.flops, wire)


def lost(run: config.TrainingConfig, made: plan.Plan, nodes: int, machine: Machine) -> float:
    """The part of the time that checkpoints and failures take: half an interval and a restart for each."""
    step = made.seconds[1]
    saving = 12 * made.weights / nodes / DISK  # weights and both moments, by all nodes at once
    interval = run.intervals.save * step + saving
    failing = FAILURES * nodes * machine.devices
    return saving / interval + failing * (interval / 2 + RESTART)


if __name__ == "__main__":
    sys.exit(main())
