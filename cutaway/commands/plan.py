"""`cutaway plan`: the memory, communication and time that training needs, computed without a device."""

import math
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Annotated

from cyclopts import Parameter

from cutaway.commands import console
from cutaway.commands.options import Json
from cutaway.data import run_tokenizer
from cutaway.errors import UserError
from cutaway.train import config
from cutaway.train.plan import plan as estimate

H100 = 4e14, 2e11  # 40% of its 989 TFLOP/s in bfloat16; bytes a second that it gets through NVLink


def plan(
    source: str,
    /,
    *changes: Annotated[str, Parameter(allow_leading_hyphen=True)],
    devices: Annotated[int, Parameter(help="How many.")] = 1,
    flops: Annotated[float, Parameter(help="Operations a second that a device reaches.")] = H100[0],
    bandwidth: Annotated[float, Parameter(help="Bytes a second that go in and out of a device.")] = H100[1],
    as_json: Json = False,
) -> None:
    """Memory, communication and time of `cutaway pretrain SOURCE` on DEVICES, by formula.

    Without --flops and --bandwidth a device is an NVIDIA H100 that reaches 40% of its bfloat16 peak, among
    others on NVLink. For this machine give the FLOP/s that `cutaway pretrain` prints here.

    **Examples:**

    cutaway plan 1b --devices 8

    cutaway plan 1b --devices 16 --tensor-parallel 2 --micro-batch-size 8

    cutaway plan mine.yaml --devices 4 --flops 1e14 --bandwidth 2.5e10

    :param source: A run's YAML file, or a preset: nano, book, 10m, 100m, 1b.
    :param changes: Changes to its entries, written --name.of.entry VALUE.
    """
    for option, value in {"--flops": flops, "--bandwidth": bandwidth}.items():
        if not 0 < value < math.inf:
            raise UserError(f"plan: {option} is {value:g}: give a number above 0, as 1e12")
    run = config.read_run_config(source, changes)
    if not run.model.vocab:
        vocab = run_tokenizer.size_of(run.data.tokenizer)
        if vocab is None:
            raise UserError(
                f"plan: the vocabulary of {run.data.tokenizer} is unknown until it is loaded: "
                "give --model.vocab SIZE"
            )
        run = replace(run, model=replace(run.model, vocab=vocab))
    made = estimate(run, devices, flops, bandwidth)
    if as_json:
        device = {"flops_per_second": flops, "bytes_per_second": bandwidth}
        document = asdict(made) | {"memory": made.memory, "seconds": made.seconds, "device": device}
        console.print_json(document)
        return
    tokens = run.batch_size * run.model.context
    active = "" if made.active == made.weights else f" ({made.active:,} active per token)"
    work = f"{tokens:,} tokens a step, {run.steps:,} steps"
    console.say(f"{made.weights:,} weights{active} on {devices} device{'s' * (devices > 1)}, {work}")
    console.say(f"Each device: {flops:.3g} operations a second, {bandwidth:.3g} bytes a second in and out")
    if (flops, bandwidth) == H100:
        console.say(
            "(an NVIDIA H100 at 40% of its peak, on NVLink; --flops and --bandwidth describe another)"
        )
    print(f"\nOf each device's memory, {console.size(made.memory)}:")
    for name, size in (made.stays | made.passes).items():
        print(f"  {name:<22}{console.size(size):>8}")
    if made.moves:
        print(f"\nThrough each device's wire a step, {console.size(sum(made.moves.values()))}:")
        for name, size in made.moves.items():
            print(f"  {name:<22}{console.size(size):>8}")
    best, worst = (_long(seconds * run.steps) for seconds in made.seconds)
    moving = f"; moving {_long(made.moving)}" if made.moves else ""
    console.say(f"\nA step: {made.flops:.2e} operations, {_long(made.computing)}{moving}")
    console.say(
        f"The run: {best}" + (f" if moving hides behind computing, {worst} if not" if made.moves else "")
    )


def _long(seconds: float) -> str:
    """A time with its unit: 27.9 µs, 3.2 s, 1:02:03."""
    if seconds >= 10:
        return str(timedelta(seconds=round(seconds)))
    scale, unit = next(
        one for one in ((1, "s"), (1e3, "ms"), (1e6, "µs")) if seconds * one[0] >= 1 or one[0] == 1e6
    )
    return f"{seconds * scale:.3g} {unit}"
