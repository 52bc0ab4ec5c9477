"""Training speed, side by side in one run: Cutaway, nanoGPT, transformers' Trainer and litgpt train a
model of one shape on the same tokens, each in a process of its own, so that its peak memory is its own.

    python bench/training.py --nanogpt CHECKOUT [--layers 6 --heads 6 --width 384 --vocab 4096 --context
    256 --rows 8]
                             [--steps 6] [--rounds 2] [--threads 2] [--only NAME ...] [--json]
                             [--clock processor] [--device cuda]

Every variant steps AdamW in float32 unless its name says bf16; the first two steps are not counted
(compiling, warming up), of the others the median counts, and of the rounds over all variants the best. The
peak is the best of repeated 1024-cubed matrix products of the variant's own type, measured before and after.
A round takes about two minutes, four with bf16 (--bf16), which a processor without it only emulates. On a
machine that is not free, --threads 1 --clock processor counts seconds that the process itself worked. Leaves
with 1 if Cutaway's losses differ compiled.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WARM = 2
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
OURS = ("Cutaway eager", "Cutaway compiled")
CLOSE = 1e-5  # of a loss: sums in another order
VARIANTS = {
    "nanoGPT": "its default: eager",
    "nanoGPT compiled": "torch.compile",
    "transformers Trainer": "GPT2LMHeadModel, eager, sdpa",
    "litgpt": "its model, eager",
    "Cutaway eager": "no compiler needed",
    "Cutaway compiled": "torch.compile",
}


def main() -> int:
    """Runs every variant, or, in a process of its own, one."""
    asked = _arguments()
    if asked.one:
        print(json.dumps(_measured(asked.one, asked)))
        return 0
    names = asked.only or [name for name in VARIANTS if asked.nanogpt or not name.startswith("nanoGPT")]
    if asked.bf16:
        names = [name + bf16 for name in names for bf16 in ("", " bf16")]
    types = sorted({_type(name) for name in names})
    before = {one: _peak(asked, one) for one in types}
    rounds = [{name: _apart(name) for name in names} for _ in range(asked.rounds)]
    found = {name: max((one[name] for one in rounds), key=_speed) for name in names}
    peaks = {one: max(before[one], _peak(asked, one)) for one in types}
    _print(found, peaks, asked)
    return _compiling_changes(found)


def _type(name: str) -> str:
    return "bfloat16" if name.endswith("bf16") else "float32"


def _speed(numbers: dict[str, Any]) -> float:
    return numbers.get("tokens_per_second", 0.0)


def _compiling_changes(found: dict[str, dict[str, Any]]) -> int:
    """1 if the same steps have other losses when compiled."""
    curves = [numbers["losses"] for name, numbers in found.items() if name in OURS and "losses" in numbers]
    if len(curves) < len(OURS):
        return 0
    apart = max(abs(a - b) / a for a, b in zip(*curves, strict=True))
    print(f"losses of {len(curves[0])} steps, compiled and not: {apart:.1e} apart at most", file=sys.stderr)
    return int(apart > CLOSE)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT")
    for name, value in (
        ("layers", 6),
        ("heads", 6),
        ("width", 384),
        ("vocab", 4096),
        ("context", 256),
        ("rows", 8),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def _apart(name: str) -> dict[str, Any]:
    words = [sys.executable, *sys.argv, "--one", name]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        return {
            "error": done.stderr.strip().splitlines()[-1]
            if done.stderr.strip()
            else "it ended without a word"
        }
    return json.loads(done.stdout.splitlines()[-1])


def _measured(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    plain = name.removesuffix(" bf16")
    step = STEPS[plain.split()[0]](plain.endswith("compiled"), name.endswith("bf16"), asked)
    seconds, losses, now = [], [], CLOCKS[asked.clock]
    for _ in range(WARM + asked.steps):
        start = now()
        loss = next(step)
        seconds.append(loss[1] if isinstance(loss, tuple) else now() - start)
        losses.append(loss[0] if isinstance(loss, tuple) else loss)
    tokens = asked.rows * asked.context
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if asked.device != "cpu":
        memory = torch.cuda.max_memory_allocated() / 2**20
    return {
        "tokens_per_second": tokens / statistics.median(seconds[WARM:]),
        "first_step_seconds": seconds[0],
        "peak_memory_mb": memory,
        "losses": losses,
    }


def _batches(asked: argparse.Namespace) -> Iterator[Any]:
    """The same random rows for all: ids and what follows each."""
    import torch

    draw = torch.Generator().manual_seed(1)
    while True:
        rows = torch.randint(0, asked.vocab, (asked.rows, asked.context + 1), generator=draw)
        yield rows[:, :-1].contiguous().to(asked.device), rows[:, 1:].contiguous().to(asked.device)


def _cutaway(compiled: bool, bf16: bool, asked: argparse.Namespace) -> Iterator[float]:
    import numpy as np
    import torch

    from cutaway.attention import mha
    from cutaway.data import run_tokenizer
    from cutaway.data.packing import Batch
    from cutaway.data.sources import Source
    from cutaway.layers.config import MLP, Norm
    from cutaway.model.block_config import Block
    from cutaway.model.config import Decoder
    from cutaway.position import learned
    from cutaway.train.config import DataConfig, TrainingConfig
    from cutaway.train.training import Dataset, Training

    heads = mha.Config(heads=asked.heads, key_size=asked.width // asked.heads)
    block = Block(heads, MLP(4 * asked.width, activation="gelu", gated=False), Norm("layer"))
    model = Decoder(
        asked.vocab,
        asked.width,
        asked.context,
        (block,) * asked.layers,
        Norm("layer"),
        position=learned.Config(asked.context),
    )
    run = TrainingConfig(
        model,
        DataConfig((Source(""),)),
        steps=10_000,
        batch_size=asked.rows,
        micro_batch_size=asked.rows,
        threads=asked.threads,
        device=asked.device,
        compile="always" if compiled else "never",
        precision="bfloat16" if bf16 else "float32",
    )
    batches = _batches(asked)

    class Same:
        """The rows that all get."""

        def batch(self, first: int, count: int) -> Batch:
            ids, targets = (x.cpu().numpy() for x in next(batches))
            pos = torch.arange(asked.context).expand(asked.rows, -1).numpy()
            weights = np.ones(ids.shape, np.float32)
            return Batch(ids, targets, pos, pos * 0, weights)

    lengths, words = torch.ones(asked.vocab, dtype=torch.int64), run_tokenizer.of_bytes()
    training = Training(run, Dataset(Same(), None, lengths, words, list, print), note=lambda _: None)
    while True:
        yield training.advance()["loss"]


def _nanogpt(compiled: bool, bf16: bool, asked: argparse.Namespace) -> Iterator[float]:
    """As its train.py does it: autocast, backward, clip, its own AdamW."""
    import torch

    sys.path.insert(0, str(asked.nanogpt))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    config = GPTConfig(
        block_size=asked.context,
        vocab_size=asked.vocab,
        n_layer=asked.layers,
        n_head=asked.heads,
        n_embd=asked.width,
        dropout=0.0,
        bias=False,
    )
    model = GPT(config).to(asked.device)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), asked.device)
    ready = torch.compile(model) if compiled else model
    yield from _stepped(ready, lambda ids, targets: ready(ids, targets)[1], optimizer, bf16, asked)


def _litgpt(compiled: bool, bf16: bool, asked: argparse.Namespace) -> Iterator[float]:
    """Its GPT in the loop of its pretrain.py: chunked cross-entropy, fused AdamW, clipping."""
    import torch
    from litgpt.config import Config  # type: ignore[import-not-found]
    from litgpt.model import GPT  # type: ignore[import-not-found]
    from litgpt.utils import chunked_cross_entropy  # type: ignore[import-not-found]

    config = Config(
        block_size=asked.context,
        vocab_size=asked.vocab,
        padded_vocab_size=asked.vocab,
        n_layer=asked.layers,
        n_head=asked.heads,
        n_embd=asked.width,
        bias=False,
        mlp_class_name="GptNeoxMLP",
        intermediate_size=4 * asked.width,
        rotary_percentage=1.0,
        parallel_residual=False,
    )
    model = GPT(config).to(asked.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    yield from _stepped(
        model,
        lambda ids, targets: chunked_cross_entropy(model(ids), targets, chunk_size=0),
        optimizer,
        bf16,
        asked,
    )


def _stepped(
    model: Any, loss_of: Callable[..., Any], optimizer: Any, bf16: bool, asked: argparse.Namespace
) -> Iterator[float]:
    import torch

    for ids, targets in _batches(asked):
        with torch.autocast(asked.device, torch.bfloat16, enabled=bf16):
            loss = loss_of(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield float(loss.detach())


def _transformers(compiled: bool, bf16: bool, asked: argparse.Namespace) -> Iterator[tuple[float, float]]:
    """Its Trainer holds the loop, so it trains first, timing its own steps, and then tells the mean loss
    and each time.
    """
    import tempfile

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    config = GPT2Config(
        vocab_size=asked.vocab,
        n_positions=asked.context,
        n_embd=asked.width,
        n_layer=asked.layers,
        n_head=asked.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    batches = _batches(asked)
    steps = WARM + asked.steps
    rows = [{"input_ids": row, "labels": row} for row in torch.cat([next(batches)[0] for _ in range(steps)])]
    seconds: list[float] = []
    now = CLOCKS[asked.clock]

    class Timer(TrainerCallback):
        """When each step ends."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(now() - self.start)

    with tempfile.TemporaryDirectory() as scratch:
        wanted = TrainingArguments(
            scratch,
            per_device_train_batch_size=asked.rows,
            max_steps=steps,
            use_cpu=asked.device == "cpu",
            report_to=[],
            logging_steps=10_000,
            save_strategy="no",
            bf16=bf16,
            optim="adamw_torch_fused",
            dataloader_pin_memory=False,
            disable_tqdm=True,
        )
        trained = Trainer(GPT2LMHeadModel(config), wanted, train_dataset=rows, callbacks=[Timer()]).train()
    for each in seconds:
        yield float(trained.training_loss), each


STEPS: dict[str, Callable[..., Iterator[Any]]] = {
    "Cutaway": _cutaway,
    "nanoGPT": _nanogpt,
    "litgpt": _litgpt,
    "transformers": _transformers,
}


def _peak(asked: argparse.Namespace, precision: str) -> float:
    import torch

    from cutaway.train import device

    torch.set_num_threads(asked.threads)
    return device.measured_peak(torch.device(asked.device), precision, 2.0)


def _print(found: dict[str, dict[str, Any]], peaks: dict[str, float], asked: argparse.Namespace) -> None:
    weights = 12 * asked.layers * asked.width**2 + asked.vocab * asked.width
    flops = 6 * weights + 12 * asked.layers * asked.width * asked.context
    for name, numbers in found.items():
        if "error" not in numbers:
            numbers["gflops"] = numbers["tokens_per_second"] * flops / 1e9
            numbers["mfu"] = numbers["gflops"] * 1e9 / peaks[_type(name)]
    if asked.json:
        reached = {one: peak / 1e9 for one, peak in peaks.items()}
        machine = {"peak_gflops": reached, "threads": asked.threads, "cpu": os.uname().machine}
        print(json.dumps(machine | found))
        return
    reached = ", ".join(f"{peak / 1e9:.0f} GFLOP/s in {one}" for one, peak in peaks.items())
    print(
        f"{asked.layers}/{asked.heads}/{asked.width}, vocabulary {asked.vocab}, {asked.rows} rows of "
        f"{asked.context}; {asked.threads} threads, matrix products at {reached}\n"
    )
    print(f"{'':24}{'tokens/s':>10}{'GFLOP/s':>10}{'of peak':>9}{'memory MB':>11}{'first step s':>14}")
    for name, numbers in found.items():
        if "error" in numbers:
            print(f"{name:24}{numbers['error'][:80]}")
            continue
        print(
            f"{name:24}{numbers['tokens_per_second']:10,.0f}{numbers['gflops']:10.0f}{numbers['mfu']:9.0%}"
            f"{numbers['peak_memory_mb']:11,.0f}{numbers['first_step_seconds']:14.1f}"
        )


if __name__ == "__main__":
    sys.exit(main())
