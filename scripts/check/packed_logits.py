"""The runtime's law on real models: its logits beside the PyTorch model's on the same weights.

    python -m scripts.check.packed_logits [MODEL ...]

For each model (default: SmolLM2 as it is, and as Q4_K), over 500 tokens of code: how far the runtime is from
the PyTorch model that makes the same roundings, layer by layer on the same inputs, at a text's first token
and over the text, relative to the vectors' norms; the same beside the plain PyTorch model, with the KL
divergence and both perplexities; and how many of 20 greedy continuations of 32 tokens are equal: where one
first
differs, by how much the PyTorch model prefers its choice. Takes about five minutes a model."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import cutaway
from cutaway.inspect import activation_quant
from cutaway.model.config import Decoder
from cutaway.runtime.engine import RuntimeEngine
from cutaway.weights import save
from cutaway.weights.quantize import quantized
from tests.test_runtime import apart, definition, divergence, layer_alone, layer_inputs, watched

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


def row(name: str, values: np.ndarray) -> None:
    ranks = np.quantile(values, [0.5, 0.9, 1])
    print(f"  {name:<44}" + "".join(f"{value:>10.1e}" for value in ranks) + f"{values.size:>8}")


def surprise(logits: np.ndarray, ids: list[int]) -> float:
    """Mean negative log-probability of each id after those before it."""
    wide = logits[:-1].astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    total = np.log(np.exp(wide - top).sum(axis=1)) + top[:, 0]
    return float((total - wide[np.arange(len(ids) - 1), ids[1:]]).mean())


def check(source: str | Path) -> None:
    ours, exact = (cutaway.load(source, engine=name) for name in ("runtime", "pytorch"))
    of, entries = ours.config, ours.checkpoint.tensors
    assert isinstance(of, Decoder)
    ids = ours.tokenizer.encode(Path(cutaway.__file__).with_name("lm.py").read_text())[:500]
    edits = activation_quant.edits(of, entries)
    print(f"{source}\n  {'':<44}{'median':>10}{'90%':>10}{'most':>10}{'n':>8}")
    layers = []
    for n, inputs in enumerate(layer_inputs(exact.model, ids[:48], edits)):
        layer, held = layer_alone(of, entries, n, inputs)
        rows = list(range(len(inputs)))
        rounded = watched(definition(layer, held).model, [rows], activation_quant.edits(layer, held))[0]
        layers.append(apart(RuntimeEngine(layer, held).logits(rows), rounded))
    row("same roundings: first layer, same inputs", layers[0])
    row("same roundings: other layers, same inputs", np.ravel(layers[1:]))
    print(f"  of which within 1e-5: {np.mean(np.array(layers[1:]) < 1e-5):.0%}")
    alone = np.concatenate([ours.logits([id]) for id in ids[:100]])
    row(
        "same roundings: logits of a first token",
        apart(alone, watched(exact.model, [[i] for i in ids[:100]], edits)[:, 0]),
    )
    a, b = ours.logits(ids), exact.logits(ids)
    row("same roundings: logits over a text", apart(a, watched(exact.model, [ids], edits)[0]))
    row("plain PyTorch model: logits over a text", apart(a, b))
    row("plain PyTorch model: KL divergence, nats", divergence(b, a))
    costs = np.exp([surprise(a, ids), surprise(b, ids)])
    print(
        f"  perplexity: runtime {costs[0]:.4f}, PyTorch model {costs[1]:.4f}, "
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
            print(f"  {prompt!r}: differs at token {at}, which the PyTorch model prefers by {margin:.3f}")
    print(f"  greedy text: {equal} of {len(PROMPTS)} equal")


def main(sources: list[str]) -> None:
    for source in sources or ["smollm2"]:
        check(source)
    if not sources:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "smollm2-q4_k.gguf"
            save.write_checkpoint(made, quantized(cutaway.load("smollm2").checkpoint, "Q4_K").checkpoint)
            check(made)


if __name__ == "__main__":
    main(sys.argv[1:])
