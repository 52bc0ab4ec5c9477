"""`cutaway pretrain`: from a folder of text to a model, told while it happens."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from cutaway.commands import console
from cutaway.train import config

if TYPE_CHECKING:
    from cutaway.model.decoder import Decoder

PLAIN_LINES = 20  # of a whole run, where no cursor can move


def pretrain(
    source: str,
    /,
    *changes: Annotated[str, Parameter(allow_leading_hyphen=True)],
    output: Annotated[Path | None, Parameter(help="The run's folder; without it runs/NAME.")] = None,
    resume: Annotated[bool, Parameter(help="Go on with the run that is in the folder.", negative=())] = False,
) -> None:
    """Train a model from text: SOURCE is a YAML file, or a preset: nano, book, 10m, 100m, 1b.

    What comes out is a folder with the resolved config, the state of git, the tokenizer, metrics.jsonl,
    checkpoints and the model; every other verb opens it: `cutaway generate "She was" --model runs/nano`.
    Ctrl-C and SIGTERM save first, and --resume goes on, bit for bit on one device. Under `torchrun` the work
    is shared by all its processes.

    Examples:

    cutaway pretrain nano

    cutaway pretrain book --output my-book

    cutaway pretrain mine.yaml --optimizer.learning_rate 3e-4 --model.blocks.0.times 12

    torchrun --nproc-per-node 8 -m cutaway pretrain 1b --data.sources.0.path corpus/

    Parameters
    ----------
    source
        A YAML file, or a preset's name.
    changes
        Changes to its entries, written --name.of.entry VALUE.
    """
    run = config.read(source, changes)
    folder = output or Path("runs") / Path(source).stem
    from cutaway.train import distributed
    from cutaway.train.run import pretrain as train

    with distributed.joined(run) as parallel:
        callback = _Watch(run, shown=parallel.rank == 0)
        try:
            train(run, folder, callback, resume=resume, parallel=parallel)
        finally:
            callback.close()
        callback.note(f'{folder}: trained. `cutaway generate "..." --model {folder}` continues a text.')


class _Watch:
    """What a person sees of a run: a line that moves on a terminal, a few plain lines elsewhere."""

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
        """The step's numbers, where the last ones stood."""
        step = int(numbers["step"])
        tokens = self.run.batch_size * self.run.model.context
        seconds = tokens / numbers["tokens_per_second"]
        self.seconds = 0.9 * self.seconds + 0.1 * seconds if self.seconds else seconds
        left = timedelta(seconds=round((steps - step) * self.seconds))
        said = (
            f"loss {numbers['loss']:.3f}  {numbers['bits_per_byte']:.3f} bits/byte  "
            f"{tokens / self.seconds:,.0f} tokens/s  {numbers['flops_per_second'] / 1e9:,.0f} GFLOP/s "
            f"({numbers['mfu']:.0%} of peak)  {left} left"
        )
        if self.bar is not None:
            self.bar[0].update(self.bar[1], completed=step, description=said)
        elif step in (1, steps) or step % max(1, steps // PLAIN_LINES) == 0:
            self.note(f"step {step}/{steps}  {said}")

    def evaluated(self, step: int, numbers: dict[str, float]) -> None:
        """How well text is read that was never trained on."""
        loss, bits = numbers["validation_loss"], numbers["validation_bits_per_byte"]
        self.note(f"step {step}: held-out loss {loss:.3f}, {bits:.3f} bits/byte")

    def sample(self, step: int, model: Decoder, tokenizer: Any) -> list[str]:
        """What the model writes after each of the run's prompts."""
        from cutaway.generate.decode import finish, generate
        from cutaway.generate.sample import Settings
        from cutaway.model.engine import DefinitionEngine

        room = min(self.run.intervals.sample_tokens, model.config.context // 2)
        settings = Settings(max_tokens=room, temperature=0.8, top_p=0.95, seed=step)
        begin = tokenizer.bos if tokenizer.bos is not None else tokenizer.eos
        texts = []
        for prompt in self.run.prompts:
            ids = [begin, *tokenizer.encode(prompt)]
            said = prompt + finish(generate(DefinitionEngine(model), tokenizer, ids, settings)).text
            self.note(f"step {step}: {said!r}")
            texts.append(said)
        return texts

    def close(self) -> None:
        """Leaves the last line standing."""
        if self.bar is not None:
            self.bar[0].stop()


def _bar(steps: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = MofNCompleteColumn(), BarColumn(bar_width=20), TextColumn("{task.description}")
    bar = Progress(*columns, console=Console(stderr=True))
    bar.start()
    return bar, bar.add_task("beginning", total=steps)
