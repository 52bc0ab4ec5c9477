"""What watching costs: a reading of SmolLM2 unwatched and watched, turn about, for short and long texts.

    python -m scripts.study.bench_tracing [MODEL]

Prints milliseconds of one thread's CPU time (the fastest of many turns of each, so that what else the
machine does is left out as far as can be) and the cost of watching every value of the vocabulary, only the
attention patterns, and the residual stream. ``*`` also keeps what every other layer's output, not needed
to see the model whole. What bounds the cost is memory: a kept value is a fresh page instead of a reused one.
"""

import sys
import time

import torch

import cutaway

TURNS = {5: 30, 50: 20, 200: 12}
WATCHED = {
    "unwatched": None,
    "everything": (),
    "patterns": ("*.pattern",),
    "stream": ("embed", "*.middle", "blocks.*.out"),
    "*": ("*",),
}


@torch.inference_mode()
def reading(model: torch.nn.Module, ids: torch.Tensor, names: tuple[str, ...] | None) -> float:
    """CPU seconds of one reading, the trace's opening and closing included."""
    pos = torch.arange(ids.shape[1])[None]
    start = time.process_time()
    if names is None:
        model(ids, pos)
    else:
        with cutaway.tracing(model, *names):
            model(ids, pos)
    return time.process_time() - start


def main(source: str = "smollm2") -> None:
    lm = cutaway.load(source, engine="pytorch")
    torch.set_num_threads(1)
    print(f"{'tokens':>6} " + " ".join(f"{name:>18}" for name in WATCHED))
    for length, turns in TURNS.items():
        ids = torch.randint(lm.config.vocab, (1, length), generator=torch.Generator().manual_seed(0))
        reading(lm.model, ids, ())
        rounds = [
            {name: reading(lm.model, ids, names) for name, names in WATCHED.items()} for _ in range(turns)
        ]
        best = {name: min(one[name] for one in rounds) for name in WATCHED}
        usual = best["unwatched"]
        cells = (f"{1000 * one:8.1f} ms {one / usual - 1:+6.1%}" for one in best.values())
        print(f"{length:>6} " + " ".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
