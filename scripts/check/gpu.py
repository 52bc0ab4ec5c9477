"""What a CUDA device computes beside this CPU, and how fast: written to docs/results/gpu.md in one command.

    python -m scripts.check.gpu --nanogpt CHECKOUT     # of karpathy/nanoGPT; half an hour on one GPU
    python -m scripts.check.gpu --device cpu --small --output /tmp/gpu.md     # its logic, in seconds

Parts: the PyTorch model and each attention backend beside float32 on the CPU; one process of FSDP2 beside
none; tokens a second of the presets 10m and 100m, as a part of what matrix products reach; training of
GPT-2's small shape beside nanoGPT's own loop (`bench/training.py`); generation; two steps of GRPO that sample
with the PyTorch model. A part that fails is written as failed, with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cutaway.attention import gqa
from cutaway.attention.backends import choice, flex
from cutaway.data.packing import Mixture, Span
from cutaway.layers.config import MLP
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.decoder import Decoder as Model
from cutaway.position import rope
from cutaway.train import config, device, distributed
from cutaway.train.config import TrainingConfig
from cutaway.train.parallel import SINGLE_PROCESS, Parallel
from cutaway.train.training import Training
from tests.training import Stream, losses, run, text

Rows = list[tuple[str, str]]
BARS = {"float32": 1e-4, "bfloat16": 3e-2}  # of the logits' largest difference, over their largest value
BACKENDS = ("naive", "sdpa", "blocked", "products", "native", "flex")
CLOSE = 1e-4  # of losses: sums in another order
WARM = 3  # steps that compile, and fill caches
ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "docs/results/gpu.md"
SHAPE = {"layers": 12, "heads": 12, "width": 768, "vocab": 50304, "context": 1024, "rows": 12, "steps": 20}
SMALL = {"layers": 1, "heads": 2, "width": 32, "vocab": 64, "context": 32, "rows": 2, "steps": 1}


def main(arguments: list[str] | None = None) -> int:
    """Run the parts and write the page; 1 where one failed or is beyond its bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--parts", default=",".join(PARTS))
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("gpu: torch finds no CUDA device here: --device cpu --small tries the logic", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False
    found: dict[str, Rows | str] = {}
    for name in given.parts.split(","):
        print(f"{name} ...", flush=True)
        try:
            found[name] = PARTS[name](given.device, given.small, given.nanogpt)
        except Exception as error:  # one part must not lose the others' figures
            found[name] = f"failed: {type(error).__name__}: {error}"
    given.output.write_text(page(found, given.device), "utf-8")
    print(page(found, given.device))
    return 1 if any(isinstance(rows, str) or "beyond" in str(rows) for rows in found.values()) else 0


def page(found: dict[str, Rows | str], on: str) -> str:
    """The results as Markdown."""
    name = torch.cuda.get_device_name() if on == "cuda" else "this CPU"
    lines = [f"# On {name} (`python -m scripts.check.gpu`)", "", f"torch {torch.__version__}."]
    for part, rows in found.items():
        lines += ["", f"## {part.capitalize()}", ""]
        if isinstance(rows, str):
            lines.append(f"**{rows}**")
            continue
        lines += ["| | |", "|---|---|", *(f"| {what} | {figure} |" for what, figure in rows)]
    return "\n".join([*lines, ""])


# ---- the same numbers --------------------------------------------------------------------------------------


def small_model() -> Decoder:
    """Four blocks, 128 wide, with grouped heads."""
    heads = gqa.Config(heads=4, kv_heads=2, key_size=32, position=rope.Config(32))
    return Decoder(512, 128, 512, (Block(heads, MLP(352)),) * 4)


def parity(on: str, small: bool, _: Path | None = None) -> Rows:
    """The logits of a small model on the device, by type and by backend, beside float32 on the CPU."""
    torch.manual_seed(0)
    model = Model(small_model()).eval()
    ids = torch.randint(0, 512, (2, 64 if small else 512))
    with torch.no_grad():
        reference = logits(model, ids)
    rows: Rows = []
    for kind in ("float32", "bfloat16"):
        own = Model(small_model()).eval()
        own.load_state_dict(model.state_dict())
        own = own.to(on, getattr(torch, kind))
        for backend in BACKENDS:
            rows.append((f"{kind}, {backend}", _apart(own, ids.to(on), reference, kind, backend)))
    return rows


def _apart(model: Any, ids: torch.Tensor, reference: torch.Tensor, kind: str, backend: str) -> str:
    """How far a backend's logits are from the reference, or why it does not compute them."""
    try:
        with chosen(backend), torch.no_grad():
            made = logits(model, ids).float().cpu()
    except Exception as error:  # a backend refuses in a sentence, torch in its own way
        return f"not here: {str(error).splitlines()[0][:90]}"
    apart = ((made - reference).abs().max() / reference.abs().max()).item()
    return f"{apart:.1e}" + ("" if apart <= BARS[kind] else f", beyond {BARS[kind]:g}")


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The logits [b t v] of rows that begin at position 0."""
    made = model(ids, torch.arange(ids.shape[1], device=ids.device).expand(ids.shape))
    return made[0] if isinstance(made, tuple) else made


@contextmanager
def chosen(backend: str) -> Iterator[None]:
    """Attention by this backend alone."""
    before, known = choice.choose, dict(choice.BACKENDS)
    choice.BACKENDS["flex"] = flex.attend
    choice.choose = lambda inputs: (backend, "asked for")
    try:
        yield
    finally:
        choice.choose = before
        choice.BACKENDS.clear()
        choice.BACKENDS.update(known)


def fsdp(on: str, small: bool, _: Path | None = None) -> Rows:
    """The losses of one process of FSDP2 beside those of a plain process."""
    own = run(batch_size=4, micro_batch_size=2, device=on)
    plain = losses(Training(own, text(), SINGLE_PROCESS, note=lambda _: None), 2)
    with alone(), distributed.joined(own) as parallel:
        cut = losses(Training(own, text(), parallel, note=lambda _: None), 2)
    apart = max(abs(a - b) for a, b in zip(plain, cut, strict=True))
    beyond = "" if apart < CLOSE else f", beyond {CLOSE:g}"
    return [("largest difference of two losses", f"{apart:.1e}{beyond}")]


@contextmanager
def alone() -> Iterator[None]:
    """The environment of the one process of a torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    given |= {"MASTER_PORT": str(port)}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


# ---- speed -------------------------------------------------------------------------------------------------


def speed(on: str, small: bool, _: Path | None = None) -> Rows:
    """Tokens a second of presets, and what part of matrix products' own speed that is."""
    rows: Rows = []
    for name in ("nano",) if small else ("10m", "100m"):
        given = config.read_run_config(name)
        vocab = given.model.vocab or 512 if small else 32_768
        given = replace(given, model=replace(given.model, vocab=vocab), device=on, precision="bfloat16")
        for compiles in ("never",) if small else ("never", "always"):
            seconds, training = timed(replace(given, compile=compiles), 1 if small else 40)
            reached = training.operations / seconds
            peak = device.peak(training.device, "bfloat16")
            rate = f"{training.tokens / seconds:,.0f} tokens/s, {reached / 1e12:.3g} TFLOP/s"
            part = f"{reached / peak:.0%} of the {peak / 1e12:.3g} that matrix products reach"
            rows.append((f"{name}, compile {compiles}", f"{rate}, {part}"))
    return rows


def timed(given: TrainingConfig, steps: int, parallel: Parallel = SINGLE_PROCESS) -> tuple[float, Training]:
    """The median seconds of a step, after some that are not counted."""
    context = given.model.context
    stream = Stream(200 * context, longest=None)
    made = Mixture([Span(stream, 0, 200 * context, context, 0)], [1.0], 0)
    data = replace(text(), train=made, lengths=torch.ones(given.model.vocab, dtype=torch.int64))
    training = Training(given, data, parallel, note=lambda _: None)
    times = []
    for n in range(min(WARM, steps) + steps):
        begun = time.perf_counter()
        training.advance()
        if training.device.type == "cuda":
            torch.cuda.synchronize()
        if n >= min(WARM, steps):
            times.append(time.perf_counter() - begun)
    return statistics.median(times), training


def peers(on: str, small: bool, nanogpt: Path | None = None) -> Rows:
    """Tokens a second of one shape in Cutaway's loop and in nanoGPT's, and torch's own limit beside both."""
    names = ["Cutaway eager bf16", *([] if nanogpt is None else ["nanoGPT bf16"])]
    if not small:
        names += [name.replace(" eager", "").replace(" bf16", " compiled bf16") for name in names]
    shape = [f"--{name}={value}" for name, value in (SMALL if small else SHAPE).items()]
    words = [*shape, "--rounds=1", f"--device={on}", "--json", "--only", *names]
    words += [] if nanogpt is None else ["--nanogpt", str(nanogpt)]
    made = subprocess.run(
        [sys.executable, str(ROOT / "bench/training.py"), *words], capture_output=True, text=True, cwd=ROOT
    )
    if made.returncode:
        raise RuntimeError(made.stderr.strip().splitlines()[-1])
    found = json.loads(made.stdout)
    rows: Rows = [("matrix products in bf16", f"{found['peak_gflops']['bfloat16'] / 1e3:,.3g} TFLOP/s")]
    for name in names:
        each = found[name]
        if "error" in each:
            raise RuntimeError(f"{name}: {each['error']}")
        part = f"{each['mfu']:.0%} of what matrix products reach, {each['peak_memory_mb'] / 1024:.1f} GiB"
        rows.append((name, f"{each['tokens_per_second']:,.0f} tokens/s, {part}"))
    if nanogpt is None:
        rows.append(("nanoGPT", "not measured: give --nanogpt CHECKOUT"))
    return rows


def generation(on: str, small: bool, _: Path | None = None) -> Rows:
    """Tokens a second that the PyTorch model writes, one text and sixteen at a time."""
    from cutaway.data import run_tokenizer
    from cutaway.generate.batch.many_prompts import generate_batch
    from cutaway.generate.sampling_params import SamplingParams
    from cutaway.model.engine import PyTorchEngine

    engine = PyTorchEngine(Model(small_model()).eval().to(on))
    tokenizer = run_tokenizer.of_bytes()
    rows: Rows = []
    for texts in (1, 2 if small else 16):
        params = SamplingParams(max_tokens=4 if small else 128, seed=0, stop_ids=())
        begun = time.perf_counter()
        made = generate_batch(engine, tokenizer, iter([[256, 65]] * texts), params)
        written = sum(len(one.ids) for one in made)
        rows.append((f"{texts} at a time", f"{written / (time.perf_counter() - begun):,.0f} tokens/s"))
    return rows


def grpo(on: str, small: bool, _: Path | None = None) -> Rows:
    """Two steps of GRPO on the default model, sampled by the PyTorch model on the device."""
    with tempfile.TemporaryDirectory() as scratch:
        words = ["finetune", "grpo", "--task", "programs:spelling", "--model", "smollm2", "--steps", "2"]
        words += ["--data.sampler", "pytorch", "--device", on, "--output", f"{scratch}/run"]
        words += ["--data.test", "4", "--batch-size", "2", "--data.group-size", "4"]
        begun = time.perf_counter()
        made = subprocess.run([sys.executable, "-m", "cutaway", *words], capture_output=True, text=True)
        if made.returncode:
            raise RuntimeError(made.stderr.strip().splitlines()[-1])
        return [("two steps of 2 questions, 4 answers each", f"{time.perf_counter() - begun:.0f} s")]


PARTS: dict[str, Callable[[str, bool, Path | None], Rows]] = {
    "parity": parity,
    "fsdp": fsdp,
    "speed": speed,
    "peers": peers,
    "generation": generation,
    "grpo": grpo,
}


if __name__ == "__main__":
    sys.exit(main())
