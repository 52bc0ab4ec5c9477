"""Our TopK autoencoder beside sae-lens's, trained from one activation dataset for as many steps; ten minutes.

    cutaway activations TEXTS --names blocks.15.out --output acts --max-tokens 20000
    python -m scripts.study.sae_peers acts [--features 1024] [--k 32] [--steps 400] [--batch 256] [--seeds 3]

Prints the fraction of variance unexplained of held-out tokens, every tenth, and the processor seconds of
training, for each seed: ours, and
sae-lens's trainer fed by ``Activations.batches`` without them, at its default learning rate and at ours, with
the same warm-up and decay. Attention sinks are left out of both. Needs sae-lens, in an environment of its own
if need be. Exit code 1 if our mean is above sae-lens's better one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from importlib.metadata import version

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


def theirs(
    data: Activations, name: str, rate: float, asked: argparse.Namespace, seed: int
) -> tuple[float, float]:
    """The fraction of variance that sae-lens's autoencoder leaves of the held-out rows, and seconds."""
    held_out = np.arange(len(data)) % sae.TESTED == 0
    train, test = (chosen(data, np.flatnonzero(some)) for some in (~held_out, held_out))
    x = torch.from_numpy(test[name])
    torch.manual_seed(seed)
    config = TopKTrainingSAEConfig(
        d_in=x.shape[1],
        d_sae=asked.features,
        k=asked.k,
        normalize_activations="expected_average_only_in",
        device="cpu",
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
    batches = train.batches(name, asked.batch, seed, epochs=1_000_000)
    trainer = SAETrainer(training, TopKTrainingSAE(config), map(torch.from_numpy, batches))
    start = time.process_time()
    made = trainer.fit()
    seconds = time.process_time() - start
    with torch.no_grad():
        return float((x - made(x)).square().sum() / (x - x.mean(0)).square().sum()), seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    for option, value in {"features": 1024, "k": 32, "steps": 400, "batch": 256, "seeds": 3}.items():
        parser.add_argument(f"--{option}", type=int, default=value)
    asked = parser.parse_args()
    data = Activations.open(asked.folder)
    (name,) = data.names
    data = chosen(data, np.flatnonzero(~data.sinks(name)))
    sizes = {"features": asked.features, "k": asked.k, "steps": asked.steps, "batch": asked.batch}
    found: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    data.norms(name)  # kept, so that no training is charged for it
    for seed in range(asked.seeds):
        start = time.process_time()
        made = sae_training.train(data, name, seed=seed, **sizes)
        seconds.setdefault("cutaway sae", []).append(time.process_time() - start)
        found.setdefault("cutaway sae", []).append(made.card.unexplained or 0.0)
        for label, rate in RATES.items():
            left, took = theirs(data, name, rate, asked, seed)
            found.setdefault(label, []).append(left)
            seconds.setdefault(label, []).append(took)
        print(", ".join(f"{label} {rows[-1]:.4f}" for label, rows in found.items()), flush=True)
    print(f"sae-lens {version('sae-lens')}; {len(data):,} tokens of {name}, {sizes}")
    means = {label: statistics.mean(rows) for label, rows in found.items()}
    for label, rows in found.items():
        interval = mean(rows, share=False).between(".4f")
        took = statistics.mean(seconds[label])
        print(f"{label:<32} {means[label]:.4f}, 95% {interval}, {took:.1f} processor seconds")
    ours = means.pop("cutaway sae")
    return int(ours > min(means.values()))


if __name__ == "__main__":
    sys.exit(main())
