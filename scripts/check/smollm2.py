"""The default model against transformers, at length: 64 greedy tokens on 20 prompts, and logits over a long
text.

    python -m scripts.check.smollm2

Exit code 1 if a token differs (with the two likeliest scores where it does) or a logit is further off than
1e-3.
"""

import sys

import numpy as np
import torch

from cutaway.model.engine import PyTorchEngine
from cutaway.weights import load
from cutaway.weights.build import decoder
from tests.parity import smollm2

TOKENS, LONG, CLOSE = 64, 2000, 1e-3


def continued(engine: PyTorchEngine, ids: list[int]) -> tuple[list[int], list[float]]:
    """The likeliest tokens, and by how much each beat the second."""
    state, found, margins = engine.new_state(), [], []
    logits = engine.prefill(ids, state)
    for _ in range(TOKENS):
        second, first = np.sort(logits)[-2:]
        margins.append(float(first - second))
        found.append(int(logits.argmax()))
        logits = engine.step(found[-1], state)
    return found, margins


def main() -> int:
    checkpoint = load.read_checkpoint(smollm2.gguf_file())
    tokenizer, engine, judge = (
        checkpoint.tokenizer,
        PyTorchEngine(decoder(checkpoint)),
        smollm2.model(smollm2.gguf_file()),
    )
    wrong = 0
    for prompt in smollm2.PROMPTS:
        ids = tokenizer.encode(prompt, special="allow")
        found, margins = continued(engine, ids)
        expected = smollm2.greedy(judge, ids, TOKENS)
        differs = next((i for i in range(TOKENS) if found[i] != expected[i]), None)
        wrong += differs is not None
        verdict = "equal" if differs is None else f"differs at token {differs}, margin {margins[differs]:.2g}"
        print(f"{verdict:10}  least margin {min(margins):.2g}  {prompt!r}", flush=True)
    ids = tokenizer.encode(smollm2.TEXT * (LONG // 80 + 1))[:LONG]
    with torch.no_grad():
        expected = judge(torch.tensor([ids])).logits[0].numpy()
    furthest = float(np.abs(engine.logits(ids) - expected).max())
    print(f"{len(smollm2.PROMPTS) - wrong} of {len(smollm2.PROMPTS)} prompts give the same {TOKENS} tokens")
    print(f"logits over {len(ids)} positions: at most {furthest:.2g} apart, of {np.abs(expected).max():.3g}")
    return int(wrong > 0 or furthest > CLOSE)


if __name__ == "__main__":
    sys.exit(main())
