"""`cutaway pretrain`: from a folder of text to a model."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from cutaway.commands import console
from cutaway.train import config, curve
from cutaway.weights.load import RUN

PLAIN_LINES = 20  # of a whole run, where no cursor can move


def pretrain(
    source: str,
    /,
    *changes: Annotated[str, Parameter(allow_leading_hyphen=True)],
    output: Annotated[Path | None, Parameter(help="The run's folder; without it runs/NAME.")] = None,
    resume: Annotated[bool, Parameter(help="Continue the run that the folder holds.", negative=())] = False,
) -> None:
    """Train a model from text: SOURCE is a YAML file, a preset (nano, book, 10m, 100m, 1b) or a run's folder.

    The run's folder holds the config, the commit, the tokenizer, metrics.jsonl, loss.html, checkpoints and
    the model; every other verb opens it: `cutaway generate "She was" --model runs/nano`. Ctrl-C and SIGTERM
    save first; --resume continues, bit for bit on one device, and with more --steps extends the run.
    `torchrun` splits the work over its processes.

    Examples:

    cutaway pretrain nano

    cutaway pretrain book --output my-book

    cutaway pretrain runs/nano --resume --steps 1200

    cutaway pretrain mine.yaml --optimizer.learning-rate 3e-4 --model.blocks.0.times 12

    torchrun --nproc-per-node 8 -m cutaway pretrain 1b --data.sources.0.path corpus/

    Parameters
    ----------
    source
        A YAML file, a preset's name, or with --resume a run's folder.
    changes
        Changes to the config, written --name.of.entry VALUE; docs/pretraining.md lists the entries.
    """
    run = config.read(source, changes)
    folder = output or _folder(source)
    if resume and (folder / RUN).is_file() and not any(c.split("=")[0] == "--steps" for c in changes):
        run = replace(run, steps=config.read(str(folder / RUN)).steps)
    from cutaway.train import distributed
    from cutaway.train.run import train

    with distributed.joined(run) as parallel:
        progress = Progress(run, shown=parallel.rank == 0)
        try:
            train(run, folder, progress, resume=resume, parallel=parallel)
        finally:
            progress.close()
        finished(folder, progress)


def _folder(source: str) -> Path:
    """Where a run goes that is given no folder: the one that SOURCE itself is or lies in, else runs/NAME."""
    path = Path(source)
    if source not in config.presets():
        if (path / RUN).is_file():
            return path
        if path.name == RUN:
            return path.parent
    return Path("runs") / path.stem


def finished(folder: Path, progress: Progress) -> None:
    for name, points in curve.read(folder).items():
        if len(points) > 1:
            progress.note(f"{name.replace('_', ' ')}\n{curve.text(points)}")
    page = f" {folder / curve.PAGE} shows the loss." if (folder / curve.PAGE).is_file() else ""
    progress.note(f'{folder}: trained.{page} `cutaway generate "..." --model {folder}` continues a text.')


class Progress:
    """A run's progress: a line that moves on a terminal, a few plain lines elsewhere."""

    def __init__(self, run: config.TrainingConfig, shown: bool) -> None:
        self.run, self.shown = run, shown
        self.bar = _bar(run.steps) if shown and sys.stderr.isatty() else None
        self.seconds = 0.0

    def note(self, text: str) -> None:
        """One line."""
        if not self.shown:
            return
        if self.bar is None:
            console.note(text)
        else:
            self.bar[0].console.print(text, markup=False, highlight=False)

    def step(self, numbers: dict[str, float], steps: int) -> None:
        """The step's figures, in place of the last step's."""
        step = int(numbers["step"])
        tokens = self.run.batch_size * self.run.width
        seconds = tokens / numbers["tokens_per_second"]
        self.seconds = 0.9 * self.seconds + 0.1 * seconds if self.seconds else seconds
        left = timedelta(seconds=round((steps - step) * self.seconds))
        bits = f"  {numbers['bits_per_byte']:.3f} bits/byte" if "bits_per_byte" in numbers else ""
        line = (
            f"loss {numbers['loss']:.3f}{bits}  {tokens / self.seconds:,.0f} tokens/s  "
            f"{numbers['flops_per_second'] / 1e9:,.0f} GFLOP/s ({numbers['mfu']:.0%} of peak)  {left} left"
        )
        if self.bar is not None:
            self.bar[0].update(self.bar[1], total=steps, completed=step, description=line)
        elif step in (1, steps) or step % max(1, steps // PLAIN_LINES) == 0:
            self.note(f"step {step}/{steps}  {line}")

    def evaluated(self, step: int, numbers: dict[str, float]) -> None:
        """The loss on text that is never trained on."""
        name = "validation_bits_per_byte"
        bits = f", {numbers[name]:.3f} bits/byte" if name in numbers else ""
        self.note(f"step {step}: validation loss {numbers['validation_loss']:.3f}{bits}")

    def close(self) -> None:
        """Leave the last line on the screen."""
        if self.bar is not None:
            self.bar[0].stop()


def _bar(steps: int) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = MofNCompleteColumn(), BarColumn(bar_width=20), TextColumn("{task.description}")
    bar = Progress(*columns, console=console.screen(stderr=True))
    bar.start()
    return bar, bar.add_task("starting", total=steps)
