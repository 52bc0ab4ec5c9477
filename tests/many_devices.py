"""One process of a small training run: alone, or one of several that torchrun started.

    torchrun --nproc-per-node 2 -m tests.many_devices OUT.json --tensor 2 --save FOLDER --resume CHECKPOINT

The first process writes OUT.json: the losses of the steps, and how often processes spoke. Then each of
``--stages``, the run.yaml of a fine-tuning, is trained by the command into the folder beside it.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from cutaway import cli
from cutaway.train import distributed
from cutaway.train.training import Training
from tests.training import losses, run, text

STEPS = 4


def main() -> None:
    """Trains, and writes what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--micro_batch_size", type=int, default=1)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--stages", type=Path, nargs="*", default=[])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    own = run(batch_size=4, micro_batch_size=asked.micro_batch_size, tensor_parallel=asked.tensor, ema=0.9)
    with distributed.joined(own) as parallel:
        training = Training(own, text(), parallel, note=lambda _: None)
        if asked.resume:
            training.restore(asked.resume)
        with Counted() as spoken:
            curve = losses(training, STEPS)
        validation, odd = training.evaluate(4), training.evaluate(3)
        if asked.save:
            training.save(asked.save)
        weights = {
            n: parallel.full_tensor(p.detach()).double().square().sum().item()
            for p, n in training.names.items()
        }
        if parallel.rank == 0:
            asked.out.write_text(
                json.dumps(
                    {
                        "losses": curve,
                        "validation": validation,
                        "odd": odd,
                        "weights": weights,
                        "spoken": spoken.counts,
                    }
                )
            )
        dist.init_process_group = dist.destroy_process_group = lambda *_, **__: None  # one group for all
        for stage in asked.stages:
            code = cli.main(["finetune", str(stage), "--output", str(stage.with_suffix(""))])
            assert code == 0, f"{stage.stem} ended with {code}"


class Counted(TorchDispatchMode):
    """How many collectives of each kind ran while it was entered."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def trained(out: Path, processes: int, *words: str) -> dict[str, Any]:
    """What so many processes made of it; one runs without torchrun."""
    start = [
        "torch.distributed.run",
        "--nproc-per-node",
        str(processes),
        "--master-port",
        "0",
        "--standalone",
        "-m",
    ]
    command = [
        sys.executable,
        "-m",
        *(start if processes > 1 else []),
        "tests.many_devices",
        str(out),
        *words,
    ]
    plain = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=plain | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


if __name__ == "__main__":
    main()
