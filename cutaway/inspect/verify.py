"""The same weights in an independent engine: where, if anywhere, do the two disagree?

One text is compared layer by layer: the embeddings, the residual stream after each block, the logits, and the
tokens that follow greedily. A difference is relative to the norm of the other engine's vector at each
position, since the residual streams of real models hold a few huge numbers that would hide everything else.
Rounding alone stays near 1e-6; the first layer past ``TOLERANCE`` is the one at fault, and all after it
inherit it. transformers shows each layer (``verify_layers.py``), llama.cpp its logits and tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.errors import OperationalError
from cutaway.extras import installed
from cutaway.generate.engine import Engine
from cutaway.store.files import Progress, silent

TOLERANCE = 1e-3
ROUNDED = 0.1
TEXT = (
    "The quick brown fox jumps over the lazy dog, and 12 + 30 = 42. Le vin est bon. "
    "def f(x):\n    return x ** 2\n"
    "In the beginning there was a question, and the one who asked it wanted to see the machine at work."
)


@dataclass(frozen=True)
class Difference:
    """``largest``: of any number; ``relative``: of any position, |ours - theirs| / |theirs|."""

    name: str
    largest: float
    relative: float


@dataclass(frozen=True)
class Verdict:
    """``layers`` in the order of the forward pass, logits last; of llama.cpp the last position's alone.

    ``differs_from``: the first layer past the tolerance, or None; ``token``: how many greedy tokens were
    equal before the first that differs, or None, and ``margin`` by how much of a logit we preferred ours
    there; ``ours`` and ``theirs`` are the greedy ids.
    """

    engine: str
    layers: tuple[Difference, ...]
    differs_from: str | None
    token: int | None
    ours: tuple[int, ...]
    theirs: tuple[int, ...]
    margin: float | None = None

    @property
    def close_call(self) -> bool:
        """Whether the differing token is a near tie: within twice the logits' largest difference."""
        return self.margin is not None and self.margin <= 2 * self.layers[-1].largest

    @property
    def agrees(self) -> bool:
        return self.differs_from is None and (self.token is None or self.close_call)


def engines(source: Path) -> list[str]:
    """The independent engines that are installed here and can read this source."""
    found = []
    if all(map(installed, ("torch", "transformers", *(() if source.is_dir() else ("gguf", "accelerate"))))):
        found.append("transformers")
    if installed("xllamacpp") and source.suffix == ".gguf":
        found.append("llama.cpp")
    return found


def against_llama_cpp(
    engine: Engine,
    source: Path,
    ids: Sequence[int],
    ours: Sequence[int],
    progress: Progress = silent,
) -> Verdict:
    """Our last logits and greedy continuation against llama.cpp's.

    llama.cpp rounds activations to 8 bits where weights are quantized, so its logits are off by a few
    hundredths: ``ROUNDED`` is the tolerance."""
    progress("generating with llama.cpp", 0, None)
    scores, followed = _llama_cpp(source, ids, len(ours), engine.vocab)
    mine, theirs = engine.prefill(ids, engine.new_state()).astype(np.float64), scores
    # Only differences between logits mean something: both are taken from their mean.
    layer = difference("logits", (mine - mine.mean())[None], (theirs - theirs.mean())[None])
    return verdict(
        f"llama.cpp (xllamacpp {version('xllamacpp')})", engine, (layer,), ids, ours, followed, ROUNDED
    )


def verdict(
    name: str,
    engine: Engine,
    layers: tuple[Difference, ...],
    ids: Sequence[int],
    ours: Sequence[int],
    theirs: Sequence[int],
    tolerance: float,
) -> Verdict:
    """The verdict on differences and tokens."""
    differs = next((layer.name for layer in layers if not layer.relative <= tolerance), None)
    token = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    margin = None
    if token is not None:
        logits = engine.prefill([*ids, *ours[:token]], engine.new_state())
        margin = float(logits[ours[token]] - logits[theirs[token]])
    return Verdict(name, layers, differs, token, tuple(ours), tuple(theirs), margin)


def difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """The difference of two arrays [t n] of float64, absolute and relative to theirs."""
    if ours.shape != theirs.shape:
        raise OperationalError(f"{name} is {list(ours.shape)} here and {list(theirs.shape)} there")
    away = np.abs(ours - theirs)
    relative = np.linalg.norm(away, axis=-1) / np.maximum(np.linalg.norm(theirs, axis=-1), 1e-30)
    return Difference(name, float(away.max()), float(relative.max()))


def _llama_cpp(source: Path, ids: Sequence[int], count: int, vocab: int) -> tuple[np.ndarray, list[int]]:
    """Log-probabilities [v] of what follows the ids, and the ids that follow greedily."""
    xllamacpp: Any = import_module("xllamacpp")  # compiled, and without types
    params = xllamacpp.CommonParams()
    params.model.path = str(source)
    params.n_ctx, params.n_parallel, params.n_gpu_layers = len(ids) + count + 8, 1, 0
    params.warmup, params.cache_prompt, params.verbosity = False, False, -1
    complete: Callable[[dict], Any] = xllamacpp.Server(params).handle_completions
    asked = {"prompt": list(ids), "temperature": 1.0, "cache_prompt": False}
    first = complete(asked | {"n_predict": 1, "n_probs": vocab})["choices"][0]["logprobs"]["content"][0]
    scores = np.full(vocab, -np.inf)
    for each in first["top_logprobs"]:
        scores[each["id"]] = each["logprob"]
    greedy = asked | {"n_predict": count, "n_probs": 1, "temperature": 0.0, "ignore_eos": True}
    followed = complete(greedy)["choices"][0]["logprobs"]["content"]
    return scores, [each["id"] for each in followed]
