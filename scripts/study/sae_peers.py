"""TopK autoencoders or transcoders beside sae-lens's, from one activation dataset and as many steps.

    cutaway activations TEXTS --names blocks.15.out --output acts --max-tokens 20000
    python -m scripts.study.sae_peers acts [--features 1024] [--k 32] [--steps 400] [--batch 256] [--seeds 3]
    cutaway activations TEXTS --names blocks.13.mlp_norm --names blocks.13.mlp.down --output mlp ...
    python -m scripts.study.sae_peers mlp

Prints the fraction of variance unexplained of held-out tokens, every tenth, and the processor seconds of
training, for each seed: ours, and sae-lens's trainer fed by the other tokens, at its default learning rate
and at ours, with the same warm-up and decay. sae-lens reads transcoders and has no training of them: its
trainer gets its own TopK autoencoder with what the MLP writes as the target (``Transcoder``). Attention
sinks are left out of both. Needs sae-lens, in an environment of its own if need be. Exit code 1 if our mean
is above sae-lens's better one. Five minutes of one core.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig

from cutaway.evaluate.statistics import mean
from cutaway.inspect import sae, sae_training
from cutaway.inspect.activations import Activations

RATES = {"sae-lens, lr 3e-4 (its default)": 3e-4, "sae-lens, lr 1e-3 (ours)": 1e-3}


def chosen(data: Activations, rows: np.ndarray) -> Activations:
    """The dataset of some rows, in memory."""
    columns = {name: np.concatenate([shard[name] for shard in data.shards])[rows] for name in data.shards[0]}
    return Activations([columns], data.facts)


class Transcoder(TopKTrainingSAE):
    """Reads the first half of each row, and is trained to give the second."""

    read: torch.Tensor | None = None

    def training_forward_pass(self, step_input: Any) -> Any:
        self.read, written = step_input.sae_in.chunk(2, dim=-1)
        try:
            return super().training_forward_pass(replace(step_input, sae_in=written))
        finally:
            self.read = None

    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().encode_with_hidden_pre(x if self.read is None else self.read)


def rows(data: Activations, names: tuple[str, ...], scales: list[float]) -> np.ndarray:
    """float32 [n x]: activations side by side, each times its scale."""
    return np.concatenate([data[name] * np.float32(by) for name, by in zip(names, scales, strict=True)], 1)


def theirs(
    data: Activations, names: tuple[str, ...], rate: float, asked: argparse.Namespace, seed: int
) -> tuple[float, float]:
    """The fraction of variance that sae-lens's dictionary leaves of the held-out rows, and seconds."""
    held_out = np.arange(len(data)) % sae.TESTED == 0
    train, test = (chosen(data, np.flatnonzero(some)) for some in (~held_out, held_out))
    width = train.rows(names[0], [0]).shape[1]
    # as its "expected_average_only_in", which knows one activation
    scales = [width**0.5 / float(train.norms(name).mean()) for name in names]
    torch.manual_seed(seed)
    config = TopKTrainingSAEConfig(
        d_in=width, d_sae=asked.features, k=asked.k, apply_b_dec_to_input=len(names) == 1, device="cpu"
    )
    training = SAETrainerConfig(
        total_training_samples=asked.steps * asked.batch,
        train_batch_size_samples=asked.batch,
        lr=rate,
        lr_end=rate / 10,  # not read by its constant schedule, and asked for
        lr_warm_up_steps=asked.steps // 20,
        lr_decay_steps=asked.steps // 5,
        dead_feature_window=sae.DEAD,
        n_batches_for_norm_estimate=20,
    )
    kind = TopKTrainingSAE if len(names) == 1 else Transcoder
    drawn = batches(rows(train, names, scales), asked.batch, seed)
    trainer = SAETrainer(training, kind(config), drawn)
    start = time.process_time()
    made = trainer.fit()
    seconds = time.process_time() - start
    both = torch.from_numpy(rows(test, names, scales))
    x, y = both[:, :width], both[:, -width:]
    with torch.no_grad():
        left = y - made.decode(made.encode(x))
        return float(left.square().sum() / (y - y.mean(0)).square().sum()), seconds


def batches(rows: np.ndarray, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Shuffled rows without end, each once an epoch."""
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(len(rows))
        for start in range(0, len(order) - size + 1, size):
            yield torch.from_numpy(rows[order[start : start + size]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    for option, value in {"features": 1024, "k": 32, "steps": 400, "batch": 256, "seeds": 3}.items():
        parser.add_argument(f"--{option}", type=int, default=value)
    asked = parser.parse_args()
    data = Activations.open(asked.folder)
    names: tuple[str, ...] = data.names
    kind = "sae"
    if len(names) > 1:
        (names,), kind = sae_training.mlp_pairs(data), "transcoder"
    data = chosen(data, np.flatnonzero(~np.any([data.sinks(name) for name in names], axis=0)))
    sizes = {"features": asked.features, "k": asked.k, "steps": asked.steps, "batch": asked.batch}
    found: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for name in names:
        data.norms(name)  # kept, so that no training is charged for it
    for seed in range(asked.seeds):
        start = time.process_time()
        made = sae_training.train(data, names, kind=kind, seed=seed, **sizes)
        seconds.setdefault("cutaway sae", []).append(time.process_time() - start)
        found.setdefault("cutaway sae", []).append(made.card.unexplained or 0.0)
        for label, rate in RATES.items():
            left, took = theirs(data, names, rate, asked, seed)
            found.setdefault(label, []).append(left)
            seconds.setdefault(label, []).append(took)
        print(", ".join(f"{label} {rows[-1]:.4f}" for label, rows in found.items()), flush=True)
    print(f"sae-lens {version('sae-lens')}; {len(data):,} tokens of {', '.join(names)}, {sizes}")
    if made.card.linear is not None:
        print(f"the best linear map {made.card.linear:.4f}, our L0 {made.card.l0:.1f}")
    means = {label: statistics.mean(rows) for label, rows in found.items()}
    for label, rows in found.items():
        interval = mean(rows, share=False).between(".4f")
        took = statistics.mean(seconds[label])
        print(f"{label:<32} {means[label]:.4f}, 95% {interval}, {took:.1f} processor seconds")
    ours = means.pop("cutaway sae")
    return int(ours > min(means.values()))


if __name__ == "__main__":
    sys.exit(main())
