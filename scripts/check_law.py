"""The runtime's law on SmolLM2: its logits beside the definition's on the same weights, and greedy text on 20
prompts.

    python scripts/check_law.py [MODEL]

Prints the largest and the mean difference of logits over 500 tokens, the perplexity both give them, and how
many of 20 greedy continuations of 32 tokens are equal; where one first differs, by how much the definition
prefers its choice. Takes a few minutes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import cutaway

PROMPTS = (
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):",
    "The three primary colours are",
    "Water boils at",
    "In 1969, the first",
    "The opposite of hot is",
    "import numpy as np\n",
    "Dear Sir or Madam,",
    "The largest planet",
    "To make bread you need",
    "E = mc^2 means",
    "She opened the door and",
    "1, 2, 3, 4,",
    "The meaning of life",
    "HTTP status 404",
    "A haiku about rain:",
    "Photosynthesis is",
    "The first rule of",
    "SELECT",
)


def surprise(logits: np.ndarray, ids: list[int]) -> float:
    """Mean negative log-probability of each id after those before it."""
    wide = logits[:-1].astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    total = np.log(np.exp(wide - top).sum(axis=1)) + top[:, 0]
    return float((total - wide[np.arange(len(ids) - 1), ids[1:]]).mean())


def main(source: str = "smollm2") -> None:
    ours, exact = (cutaway.load(source, engine=name) for name in ("runtime", "definition"))
    text = Path(cutaway.__file__).with_name("lm.py").read_text()
    ids = ours.tokenizer.encode(text)[:500]
    a, b = ours.logits(ids), exact.logits(ids)
    print(
        f"logits: {np.abs(a - b).max():.3f} apart at most, {np.abs(a - b).mean():.4f} in the mean, "
        f"of {np.abs(b).max():.0f}"
    )
    costs = np.exp([surprise(a, ids), surprise(b, ids)])
    print(
        f"perplexity: runtime {costs[0]:.4f}, definition {costs[1]:.4f}, "
        f"{100 * (costs[0] / costs[1] - 1):+.2f}%"
    )
    equal = 0
    made = [lm.generate_batch(PROMPTS, max_tokens=32, ignore_eos=True) for lm in (ours, exact)]
    for prompt, one, other in zip(PROMPTS, *made, strict=True):
        at = next((i for i, (x, y) in enumerate(zip(one.ids, other.ids, strict=True)) if x != y), None)
        equal += at is None
        if at is not None:
            scores = exact.logits([*other.prompt_ids, *other.ids[:at]])[-1]
            margin = scores[other.ids[at]] - scores[one.ids[at]]
            print(f"  {prompt!r}: differs at token {at}, which the definition prefers by {margin:.3f}")
    print(f"greedy text: {equal} of {len(PROMPTS)} equal")


if __name__ == "__main__":
    main(*sys.argv[1:])
