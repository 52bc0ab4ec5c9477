"""LoRA training, side by side in one run: Cutaway on a float32 base and on the packed one, and peft with
transformers, eager and compiled, each in a process of its own, so that its peak memory is its own.

    python bench/finetune.py [--model smollm2] [--shapes 4x512 1x512] [--steps 5] [--rounds 2] [--threads 2]
                             [--rank 16] [--only NAME ...] [--output results.json]

All train the same pairs, from the same start, beside every linear layer of the blocks, on the same tokens
(of this repository's documentation) with the same AdamW in float32; the float bases are the packed file's
weights, unpacked. trl's SFTTrainer adds data handling to the step that is timed here (peft's model,
transformers' loss, torch's AdamW), and can only be slower. The first two steps are not counted (compiling,
warming up); of the others the median counts, of the rounds the best. The limit is the best of repeated
2048-cubed matrix products, at 4 operations a weight and token. Prints a Markdown table, and JSON with
--output. With two shapes a round takes about 8 minutes on two cores. Leaves with 1 if the loss curves part.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WARM, RATE = 2, 2e-4
FLOAT_CLOSE, PACKED_CLOSE = 2e-3, 3e-2  # nats: sums in another order; activations rounded to eight bits
VARIANTS = (
    "peft",
    "peft compiled",
    "Cutaway",
    "Cutaway compiled",
    "Cutaway packed",
    "Cutaway packed recomputed",
)
Step = Callable[[np.ndarray], float]  # ids [b t + 1] to the loss


def main() -> int:
    """Every variant and shape, or, in a process of its own, one."""
    asked = _arguments()
    if asked.one:
        print(json.dumps(_measured(asked)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        _prepare(Path(folder), asked)
        found = {
            shape: {name: _best(name, shape, Path(folder), asked) for name in asked.only or VARIANTS}
            for shape in asked.shapes
        }
    limit = _limit(asked)
    document = {"model": asked.model, "rank": asked.rank, "limit_tokens_per_second": limit, "shapes": found}
    if asked.output:
        asked.output.write_text(json.dumps(document, indent=1))
    return _report(found, limit)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--shapes", nargs="*", default=["4x512", "1x512"])
    for name, value in ("steps", 5), ("rounds", 2), ("threads", 2), ("rank", 16):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", nargs="*", choices=VARIANTS)
    parser.add_argument("--output", type=Path)
    for name in ("one", "shape", "folder"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    return parser.parse_args()


def _prepare(folder: Path, asked: argparse.Namespace) -> None:
    """The float base as a Hugging Face folder, the pairs at their start, and the tokens."""
    import cutaway
    from cutaway.weights import adapters

    lm = cutaway.load(asked.model)
    lm.save(folder / "base", type="F32")
    base = cutaway.weights.load.read_checkpoint(folder / "base")
    generator = np.random.default_rng(0)
    pairs = {}
    for name, (rows, columns) in _matrices(lm.config):
        a = generator.uniform(-1, 1, (asked.rank, columns)) * columns**-0.5
        pairs[name] = adapters.LowRank(a.astype(np.float32), np.zeros((rows, asked.rank), np.float32), 1.0)
    adapters.write_adapter(folder / "start", pairs, base, str(folder / "base"))
    text = "\n".join(path.read_text() for path in sorted(Path(__file__).parents[1].glob("docs/**/*.md")))
    np.save(folder / "ids.npy", np.array(lm.tokenizer.encode(text), np.int64))


def _matrices(config: Any) -> list[tuple[str, tuple[int, int]]]:
    return [(n, s) for n, s in config.weights().items() if n.startswith("blocks.") and len(s) == 2]


def _best(name: str, shape: str, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    words = [sys.executable, __file__, "--one", name, "--shape", shape, "--folder", str(folder)]
    words += ["--model", asked.model, *(f"--{k}={getattr(asked, k)}" for k in ("steps", "threads", "rank"))]
    rounds = []
    for _ in range(asked.rounds):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"error": (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]}
        rounds.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{shape} {name}: {rounds[-1]['tokens_per_second']:.0f} tokens/s", file=sys.stderr)
    return max(rounds, key=lambda one: one["tokens_per_second"])


def _measured(asked: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    rows, width = map(int, asked.shape.split("x"))
    ids = np.load(Path(asked.folder) / "ids.npy")
    step = (_peft if asked.one.startswith("peft") else _cutaway)(asked)
    seconds, losses = [], []
    for n in range(WARM + asked.steps):
        at = np.arange(rows)[:, None] * width + np.arange(width + 1) + n * rows * width
        batch, start = ids[at % len(ids)], time.perf_counter()
        losses.append(step(batch))
        seconds.append(time.perf_counter() - start)
    return {
        "tokens_per_second": rows * width / statistics.median(seconds[WARM:]),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "losses": losses,
    }


def _peft(asked: argparse.Namespace) -> Step:
    import torch
    from peft import PeftModel  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]

    base = AutoModelForCausalLM.from_pretrained(f"{asked.folder}/base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, f"{asked.folder}/start", is_trainable=True).train()
    optimizer = _adamw(model)
    ready = torch.compile(model) if asked.one.endswith("compiled") else model

    def step(batch: np.ndarray) -> float:
        ids = torch.from_numpy(batch)
        loss = ready(input_ids=ids[:, :-1], labels=ids[:, :-1], shift_labels=ids[:, 1:].contiguous()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def _cutaway(asked: argparse.Namespace) -> Step:
    import torch

    from cutaway import store
    from cutaway.train import device
    from cutaway.train.adapters import lora
    from cutaway.train.objectives import next_token
    from cutaway.train.prepare import checkpoint_activations
    from cutaway.train.trainable import Trainable, TrainingBatch
    from cutaway.weights import adapters, build, load

    packed = "packed" in asked.one
    checkpoint = load.read_checkpoint(store.resolve(asked.model) if packed else Path(asked.folder) / "base")
    model = build.decoder(checkpoint, "packed" if packed else "float32")
    lora.Config(asked.rank, float(asked.rank)).attach(model)
    start: Any = adapters.read_adapter(f"{asked.folder}/start", checkpoint)
    for name, module in model.named_modules():
        if isinstance(module, lora.LoRALinear):
            module.a.data = torch.from_numpy(np.array(start[f"{name}.weight"].a))
    model.train()
    if asked.one.endswith("recomputed"):
        checkpoint_activations(model)
    trainable = Trainable(model, next_token.Config(chunk_size=256), torch.ones(model.config.vocab))
    optimizer = _adamw(model)
    ready = torch.compile(trainable) if asked.one.endswith("compiled") else trainable

    def step(batch: np.ndarray) -> float:
        ids = torch.from_numpy(batch)
        pos = torch.arange(ids.shape[1] - 1).expand(len(ids), -1)
        count = float(pos.numel())
        loss, _ = ready(
            TrainingBatch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), pos, None, None, count)
        )
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        device.keep_memory()
        return loss.item() / count

    return step


def _adamw(model: Any) -> Any:
    import torch

    trained = [each for each in model.parameters() if each.requires_grad]
    return torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)


def _limit(asked: argparse.Namespace) -> float:
    """Tokens a second at the speed of large matrix products."""
    import torch

    import cutaway

    torch.set_num_threads(asked.threads)
    a, best = torch.randn(2048, 2048), float("inf")
    for _ in range(10):
        start = time.perf_counter()
        torch.matmul(a, a)
        best = min(best, time.perf_counter() - start)
    config: Any = cutaway.load(asked.model).config
    weights = sum(rows * columns for _, (rows, columns) in _matrices(config)) + config.vocab * config.width
    return 2 * 2048**3 / best / (4 * weights)


def _report(found: dict[str, dict[str, Any]], limit: float) -> int:
    """Prints the tables; 1 if a loss curve is another than peft's."""
    apart = 0
    for shape, variants in found.items():
        theirs = variants.get("peft", {})
        print(f"\n{shape}, limit of float32 products {limit:.0f} tokens/s\n")
        print("| | tokens/s | of peft | peak MB | of peft | loss apart |\n|---|---|---|---|---|---|")
        for name, one in variants.items():
            if "error" in one:
                print(f"| {name} | {one['error']} | | | | |")
                continue
            ratios, difference = [], ""
            for key in ("tokens_per_second", "peak_memory_mb"):
                ratios.append(f"{one[key] / theirs[key]:.2f}" if key in theirs else "")
            if "losses" in theirs:
                most = max(abs(a - b) for a, b in zip(one["losses"], theirs["losses"], strict=True))
                apart |= most > (PACKED_CLOSE if "packed" in name else FLOAT_CLOSE)
                difference = f"{most:.1e}"
            speed, memory = one["tokens_per_second"], one["peak_memory_mb"]
            print(f"| {name} | {speed:.0f} | {ratios[0]} | {memory:.0f} | {ratios[1]} | {difference} |")
    return int(apart)


if __name__ == "__main__":
    sys.exit(main())
