"""What a latent costs: perplexity of a model converted to MLA against bytes of cache, and after healing.

    python -m scripts.study.conversion_curve                    # SmolLM2; about 40 minutes on two quiet cores
    python -m scripts.study.conversion_curve --steps 0             # without training
    python -m scripts.study.conversion_curve --steps 300 --characters 4000000 --cases none 128:3   # an hour

Calibration, training and measuring texts are thirds of one text, in this order. Each conversion is measured
as it is, then trained on next tokens for so many steps of 1,024 tokens and measured again; the original,
trained on the same tokens, is the control. Writes conversion.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

import cutaway
from cutaway.evaluate import perplexity
from cutaway.inspect.importance import moments
from cutaway.lm import LanguageModel
from cutaway.weights import conversion

CASES = ("none", "192:3", "128:3", "64:3", "192:1", "128:1", "64:1")  # latent and rotated key heads
WINDOW = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, help="a text of 200 KB or more; Jane Austen by default")
    parser.add_argument("--characters", type=int, default=1_000_000, help="of the text that are used")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="latent:rotated key heads")
    parser.add_argument("--steps", type=int, default=100, help="of training each")
    parser.add_argument("--windows", type=int, default=12, help="of 512 tokens that are measured")
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    lm = cutaway.load(asked.model, engine="pytorch")
    ids = lm.ids(text(asked.text)[: asked.characters])
    third = len(ids) // 3
    calibration, training = ids[: 40 * WINDOW], np.array(ids[third : 2 * third])
    held = ids[2 * third : 2 * third + asked.windows * WINDOW]
    seen = moments(lm.model, calibration)
    rows = []
    for case in asked.cases:
        of, latent, rotary = lm.checkpoint, None, None
        if case != "none":
            latent, rotary = map(int, case.split(":"))
            of = conversion.converted(of, "mla", latent=latent, rotary=rotary, moments=seen)
        one = LanguageModel(of, engine="pytorch")
        before = perplexity.perplexity(one.engine, held, WINDOW)
        minutes = heal(one.model, training, asked.steps)
        after = perplexity.perplexity(one.engine, held, WINDOW) if asked.steps else None
        rows.append((latent, rotary, of.config.bytes_per_token(2), before, minutes, after))
        print(rows[-1], flush=True)
        write(asked.results / "conversion.md", rows, asked, len(held))


def text(path: Path | None) -> str:
    if path is not None:
        return path.read_text("utf-8")
    from cutaway.data import novels

    chapters = sorted(novels.folder().rglob("*.txt"))
    return "\n".join(each.read_text("utf-8") for each in chapters)


def heal(module: torch.nn.Module, ids: np.ndarray, steps: int) -> float:
    """Train all weights on the text for so many steps; the minutes of processor time that it took."""
    draw, begin = np.random.default_rng(0), time.process_time()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, weight_decay=0.0)
    for _ in range(steps):
        starts = draw.integers(0, len(ids) - 257, 4)
        rows = torch.from_numpy(np.stack([ids[at : at + 257] for at in starts]))
        with torch.autocast("cpu", torch.bfloat16):
            logits = module(rows[:, :-1], torch.arange(256).expand(4, 256))
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    return (time.process_time() - begin) / 60


def write(path: Path, rows: list, asked: argparse.Namespace, tokens: int) -> None:
    options = f"--steps {asked.steps} --windows {asked.windows} --characters {asked.characters} --cases "
    options += " ".join(asked.cases)
    lines = [
        "# Attention converted: what a latent costs",
        "",
        f"`python -m scripts.study.conversion_curve {options}`:",
        f"{asked.model}, {tokens:,} held-out tokens, windows of {WINDOW} with the first half as context;",
        f"the cache is float16. Training: {asked.steps} steps of 1,024 tokens, all weights, AdamW at 1e-4.",
        "",
        "| latent | rotated heads | cache bytes a token | perplexity | after training | processor minutes |",
        "|---|---|---|---|---|---|",
    ]
    for latent, rotary, size, before, minutes, after in rows:
        name = "none: GQA as it is" if latent is None else latent
        healed = f"{after.perplexity:.2f} | {minutes:.1f}" if after else "- | -"
        lines.append(f"| {name} | {rotary or 3} | {size:,} | {before.perplexity:.2f} | {healed} |")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
