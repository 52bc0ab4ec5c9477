"""`cutaway pretrain`: from a folder of text to a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cutaway.commands import console
from cutaway.commands.options import Flag
from cutaway.errors import UserError
from cutaway.extras import need
from cutaway.train import config, curve, own_text
from cutaway.train import folder as run_folder
from cutaway.weights.load import RUN


def pretrain(
    *words: Annotated[str, Parameter(name="SOURCE", allow_leading_hyphen=True)],
    data: Annotated[
        str | None, Parameter(help="Text to train on: a file, a folder, or hub:ORG/NAME.")
    ] = None,
    output: Annotated[Path | None, Parameter(help="The run's folder; without it runs/NAME.")] = None,
    resume: Flag = False,
) -> None:
    """Train a model from text: SOURCE is text of your own, a preset, a YAML file or a run's folder.

    Text is a file or a folder (.txt, .md, code, .jsonl, .parquet); the model's size, its vocabulary and the
    steps follow how much there is, and are printed first. Presets: nano, book, 10m, 100m, 1b; --data gives
    one other text. The run's folder holds the config, the commit, the tokenizer, metrics.jsonl, loss.html,
    checkpoints and the model; every other verb opens it: `cutaway generate "She was" --model runs/nano`.
    Ctrl-C and SIGTERM save first; --resume continues, bit for bit on one device, and with more --steps
    extends the run. `torchrun` splits the work over its processes.

    **Examples:**

    cutaway pretrain mytext/

    cutaway pretrain nano

    cutaway pretrain book --data mytext/ --output my-book

    cutaway pretrain runs/nano --resume --steps 1200

    cutaway pretrain mine.yaml --lr 3e-4 --model.blocks.0.times 12

    torchrun --nproc-per-node 8 -m cutaway pretrain 1b --data corpus/

    :param words: Text, a preset's name, a YAML file, or with --resume a run's folder; then changes to the
        config, written --name.of.entry VALUE, which docs/pretraining.md lists.
    :param resume: Continue the run that SOURCE or --output holds, or the last one in runs/.
    """
    need("pretraining", "torch")
    changes, places = config.parted(words)
    source = places.pop(0) if places else None
    if source is None and data is None:
        if not resume:
            known = ", ".join(config.presets())
            raise UserError(f"name text to train on, as in cutaway pretrain mytext/, or a preset: {known}")
        source = str(output or run_folder.newest("pretrain"))
        console.note(f"Continuing {source}.")
    texts = [*places, *([] if data is None else [data])]
    if source is not None and own_text.is_text(source):
        texts, source = [source, *texts], None
    if len(texts) > 1:
        raise UserError(
            f"give one file or folder of text, not {' and '.join(texts)}; a YAML file mixes several"
        )
    own = own_text.OwnText.of(texts[0]) if source is None else None
    if own is None and texts:
        changes = [f"--data.sources={json.dumps([{'path': texts[0]}])}", *changes]
    run = config.read_run_config(own.entries() if own is not None else str(source), changes)
    folder = output or _folder(source or texts[0])
    if resume and (folder / RUN).is_file() and "steps" not in config.names(changes):
        run = replace(run, steps=config.read_run_config(str(folder / RUN)).steps)
    run_folder.check(folder, resume, "pretrain")
    if own is not None:
        console.note(own.described(run))
    from cutaway.train import distributed
    from cutaway.train.run import train

    def after() -> str:
        return continued(folder)

    with distributed.joined(run) as parallel, watched(parallel.rank == 0, folder, after) as callback:
        train(run, folder, callback, resume=resume, parallel=parallel)


@contextmanager
def watched(shown: bool, folder: Path, after: Callable[[], str]) -> Iterator[Callback]:
    """Shows a run's progress if ``shown``, and at its end the loss curves and what to type ``after``."""
    with console.watched() as progress:
        callback = Callback(progress if shown else None)
        if shown:
            progress.begin("Preparing the run")
        yield callback
        for name, points in curve.read_curve(folder).items():
            if len(points) > 1:
                callback.note(f"{name.replace('_', ' ')}\n{curve.text(points)}")
        page = f" {folder / curve.PAGE} shows the loss." if (folder / curve.PAGE).is_file() else ""
        callback.note(f"{folder}: trained.{page} {after()}")


def continued(folder: Path) -> str:
    """What to type when a run that continues texts has ended."""
    return f'`cutaway generate "..." --model {folder}` continues a text.'


def _folder(source: str) -> Path:
    """A run's default folder: the run that SOURCE is or is in, else runs/NAME."""
    path = Path(source)
    if source not in config.presets():
        if (path / RUN).is_file():
            return path
        if path.name == RUN:
            return path.parent
    return Path("runs") / path.expanduser().resolve().stem


@dataclass
class Callback:
    """Shows a run's progress; None shows nothing."""

    progress: console.Progress | None

    def note(self, text: str) -> None:
        if self.progress is not None:
            console.note(text)

    def step(self, numbers: dict[str, float], steps: int) -> None:
        bits = f"  {numbers['bits_per_byte']:.3f} bits/byte" if "bits_per_byte" in numbers else ""
        bits = f"  reward {numbers['reward']:.3f}" if "reward" in numbers else bits
        if self.progress is not None:
            self.progress(
                "step",
                int(numbers["step"]),
                steps,
                f"loss {numbers['loss']:.3f}{bits}  {numbers['tokens_per_second']:,.0f} tokens/s  "
                f"{numbers['flops_per_second'] / 1e9:,.0f} GFLOP/s ({numbers['mfu']:.0%} of peak)",
                took=numbers["seconds"],
            )

    def evaluated(self, step: int, numbers: dict[str, float]) -> None:
        if "validation_accuracy" in numbers and "validation_reward" in numbers:
            right, reward = numbers["validation_accuracy"], numbers["validation_reward"]
            self.note(f"step {step}: {right:.1%} of the held-out questions right, reward {reward:.3f}")
            return
        name = "validation_bits_per_byte"
        bits = f", {numbers[name]:.3f} bits/byte" if name in numbers else ""
        self.note(f"step {step}: validation loss {numbers['validation_loss']:.3f}{bits}")

    def stopping(self) -> None:
        if self.progress is not None:
            self.progress.rename("ends after this step")
