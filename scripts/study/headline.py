"""Three headline results that are no comparison of arms, re-run small: 3 seeds each, minutes on one core.

    python -m scripts.study.headline [extension] [sinks] [bahdanau] [--seeds 3] [--output runs/headline]

extension: a RoPE model trained on 64 bytes reads 256 after its frequencies were scaled (position
interpolation 2306.15595, NTK, YaRN 2309.00071), at once and after some steps on rows of 256.
sinks: SmolLM2 reads 1,024 tokens with all of them visible, with a window of 256, and with one that keeps the
first four (2309.17453), scored on the last half; a seed is another passage.
bahdanau: recurrent encoder-decoders reverse texts of 10 to 30 letters with Bahdanau's attention and without
(1409.0473), at equal parameters.

Prints Markdown tables with Student's intervals of 95% over seeds. Each seed's figures are kept: a run that
was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy, pad

import cutaway
from cutaway.attention import bahdanau, gqa, local, mha, streaming
from cutaway.compare.tasks import language
from cutaway.data import novels
from cutaway.evaluate.statistics import student
from cutaway.layers.config import MLP
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder as Config
from cutaway.model.decoder import Decoder
from cutaway.model.seq2seq import Recurrent
from cutaway.position import rope, scaling

SHORT, LONG, STREAM = 64, 256, 1024
WIDTH, HEADS, LAYERS, STEPS, BATCH, RATE = 64, 4, 2, 600, 16, 0.003
WINDOW, FIRST = 252, 4
Figures = dict[str, float]


def config(context: int, stretch: Any = None) -> Config:
    """Two layers; the whole head is rotated."""
    size = WIDTH // HEADS
    attention = mha.Config(heads=HEADS, key_size=size, position=rope.Config(size, scaling=stretch))
    vocab = language.Config().vocab
    return Config(vocab, WIDTH, context, (Block(attention, MLP(4 * WIDTH)),) * LAYERS)


def rows(length: int, count: int, seed: int, part: Any = "train") -> torch.Tensor:
    """``count`` rows of ``length`` + 1 bytes of Jane Austen's novels."""
    task, random = language.Config(length=length, part=part), np.random.default_rng(seed)
    return torch.from_numpy(np.stack([task.row(random)[0] for _ in range(count)]).astype(np.int64))


def read(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits [b t v] of rows from position 0 on."""
    return model(ids, torch.arange(ids.shape[1]).expand(ids.shape))


def loss_of(model: Any, batch: torch.Tensor, first: int = 0) -> torch.Tensor:
    """Bits per byte of what follows the position ``first``."""
    logits = read(model, batch[:, :-1])[:, first:]
    return cross_entropy(logits.flatten(0, 1), batch[:, 1 + first :].flatten()) / math.log(2)


def trained(model: Any, length: int, steps: int, seed: int, rate: float = RATE) -> None:
    """Trains with AdamW, warm-up and cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * s / steps))
    )
    for step in range(steps):
        loss = loss_of(model.train(), rows(length, BATCH, 1000 * seed + step + 1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def rebuilt(model: Decoder, of: Config) -> Decoder:
    """The same weights in another config of equal shapes."""
    other = Decoder(of)
    other.load_state_dict(model.state_dict(), strict=False)
    return other.eval()


def fresh(of: Config, seed: int) -> Decoder:
    """A model as it is before training."""
    torch.manual_seed(seed)
    return Decoder(of)


@torch.no_grad()
def measured(model: Any, length: int, first: int, seed: int, count: int = 64) -> float:
    """Held-out bits per byte beyond a position."""
    held_out = rows(length, count, 10**6 + seed, "test").split(8)
    return float(np.mean([float(loss_of(model, part, first)) for part in held_out]))


def extension(seed: int) -> Figures:
    """Bits per byte of bytes 65 to 256, by scaling and steps of further training."""
    base = fresh(config(LONG), seed)
    trained(base, SHORT, STEPS, seed)
    factor = LONG / SHORT
    kinds: dict[str, Any] = {
        "none": None,
        "interpolation": scaling.Linear(factor),
        "NTK": scaling.NTK(factor),
        "YaRN": scaling.YaRN(factor, SHORT),
    }
    found = {"bytes 33 to 64, as trained": measured(base, SHORT, SHORT // 2, seed)}
    for name, kind in kinds.items():
        for steps in (0, 30, 120):
            model = rebuilt(base, config(LONG, kind))
            if steps:
                trained(model, LONG, steps, seed + 50, RATE / 3)
            found[f"{name}, {steps} steps"] = measured(model, LONG, SHORT, seed)
    return found


@cache
def smollm2() -> Any:
    """SmolLM2 in float32, and Jane Austen's novels as its ids."""
    lm: Any = cutaway.load("smollm2", engine="pytorch")
    text = "\n\n".join(path.read_text("utf-8") for path in sorted(novels.folder().glob("*.txt")))
    return lm, lm.ids(text[100_000:400_000])


def sinks(seed: int) -> Figures:
    """Bits per token of SmolLM2 in the last half of a stream, by what of it stays visible."""
    lm, ids = smollm2()
    start = seed * 2 * STREAM
    stream = torch.tensor([ids[start : start + STREAM + 1]])

    def seen(change: Callable[[gqa.Config], Any]) -> float:
        blocks = tuple(replace(block, attention=change(block.attention)) for block in lm.config.blocks)
        with torch.device("meta"):
            model = Decoder(replace(lm.config, blocks=blocks))
        model.load_state_dict(lm.model.state_dict(), strict=False, assign=True)
        with torch.no_grad():
            return float(loss_of(model.eval(), stream, STREAM // 2))

    def shape(given: gqa.Config) -> dict[str, Any]:
        return {name: getattr(given, name) for name in ("heads", "kv_heads", "key_size", "position")}

    found = {"all of the stream": seen(lambda given: given)}
    size = WINDOW + FIRST
    found[f"a window of {size}"] = seen(lambda given: local.Config(window=size, **shape(given)))
    found[f"a window of {WINDOW} and the first {FIRST}"] = seen(
        lambda given: streaming.Config(window=WINDOW, first=FIRST, **shape(given))
    )
    return found


def bahdanau_(seed: int) -> Figures:
    """Letters right of reversed texts, by length, with attention and without."""
    found: Figures = {}
    begin, letters = 0, 16
    for name, attention, hidden in (("attention", bahdanau.Config(size=32), 64), ("no attention", None, 76)):
        torch.manual_seed(seed)
        of = Recurrent(source=letters + 1, target=letters + 1, width=32, hidden=hidden, attention=attention)
        model = of.build()
        found[f"{name}: parameters"] = sum(weight.numel() for weight in model.parameters())
        optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        random = torch.Generator().manual_seed(seed)

        def answered(words: torch.Tensor, model: Any = model) -> torch.Tensor:
            place = torch.arange(words.shape[1]).expand(words.shape)
            return model(words, place, pad(words.flip(1)[:, :-1], (1, 0), value=begin), place)

        for _ in range(1200):
            length = int(torch.randint(5, 21, (), generator=random))
            words = torch.randint(1, letters + 1, (32, length), generator=random)
            loss = cross_entropy(answered(words).flatten(0, 1), words.flip(1).flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            for length in (10, 20, 30):
                words = torch.randint(1, letters + 1, (256, length), generator=random)
                right = answered(words).argmax(-1) == words.flip(1)
                found[f"{name}, {length} letters"] = float(right.float().mean())
    return found


PARTS: dict[str, Callable[[int], Figures]] = {"extension": extension, "sinks": sinks, "bahdanau": bahdanau_}


def table(name: str, seeds: list[Figures]) -> Iterator[str]:
    """A row for each figure, over seeds."""
    yield f"\n{name}, {len(seeds)} seeds\n\n| | mean | 95% |\n|---|---|---|"
    for key in seeds[0]:
        values = [figures[key] for figures in seeds]
        low, high = student(values)
        yield f"| {key} | {np.mean(values):.3f} | {low:.3f} to {high:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/headline"))
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    for name in asked.parts or PARTS:
        found = []
        for seed in range(asked.seeds):
            kept = asked.output / f"{name}-{seed}.json"
            if not kept.is_file():
                kept.write_text(json.dumps(PARTS[name](seed)))
            found.append(json.loads(kept.read_text()))
        print("\n".join(table(name, found)), flush=True)


if __name__ == "__main__":
    main()
