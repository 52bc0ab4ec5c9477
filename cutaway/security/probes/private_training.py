"""Private training: what DP-SGD takes from the extraction of canaries, and what it costs in loss.

The canaries of ``extraction`` among invented sentences, one document a row. A model is trained without
privacy, and one for each budget epsilon; each is measured by the exposure of its canaries, and by the loss of
sentences that none has read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cutaway.data import run_tokenizer
from cutaway.evaluate.likelihood import rolling
from cutaway.evaluate.statistics import mean
from cutaway.lm import LanguageModel
from cutaway.quantization import formats
from cutaway.security.defences import dp_sgd
from cutaway.security.finding import Arm, Budget, Curve, Finding, Progress
from cutaway.security.probes import extraction
from cutaway.security.training import Size, sentence
from cutaway.store.files import write_file
from cutaway.store.reading import parsed
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors

if TYPE_CHECKING:
    from cutaway.model.decoder import Decoder

TRAINS = True
EPSILONS = (None, 8.0, 4.0, 1.0)
SENTENCES, HELD_OUT = 300, 100
SIZE = Size(32, 2, 96)
SETTINGS = dp_sgd.PrivacySettings(steps=400)


def run(lm: LanguageModel, *, seed: int, budget: Budget, progress: Progress) -> list[Finding]:
    """Exposure and loss at each budget; budget.trials / 16 canaries a group."""
    draw = np.random.default_rng((seed, 4))
    canaries = extraction.plant(draw, max(2, budget.trials // 16))
    texts = [sentence(draw) for _ in range(SENTENCES)]
    texts += [canary.text for canary in canaries for _ in range(canary.copies)]
    held_out = [sentence(draw) for _ in range(HELD_OUT)]
    tokenizer = run_tokenizer.of_bytes()
    documents = [[tokenizer.eos or 0, *tokenizer.encode(text)] for text in texts]
    delta, q = 1 / len(documents) ** 1.1, SETTINGS.batch / len(documents)
    figures: dict[float | None, dict[str, Any]] = {}
    for n, target in enumerate(EPSILONS):
        settings = replace(SETTINGS, clip=None)
        if target is not None:
            settings = replace(SETTINGS, sigma=dp_sgd.noise(target, q, SETTINGS.steps, delta))
        kept = budget.folder / f"private-{seed}-{target}.json"
        key = [asdict(settings), asdict(SIZE), len(documents), HELD_OUT]
        if not kept.is_file() or parsed(kept).get("key") != key:
            config = replace(SIZE.model, vocab=run_tokenizer.padded(len(tokenizer)))
            total = len(EPSILONS) * SETTINGS.steps
            done = n * SETTINGS.steps
            model = dp_sgd.trained(
                config,
                documents,
                settings,
                seed=seed,
                progress=lambda step, _, done=done, total=total: progress(done + step, total),
            )
            found = measured(held(model, tokenizer), canaries, held_out)
            _write(kept, found | {"sigma": settings.sigma, "key": key})
        figures[target] = parsed(kept)
    progress(1, 1)
    return [_finding(figures, canaries, len(documents), delta, seed)]


def held(model: Decoder, tokenizer: Any) -> LanguageModel:
    """A trained decoder as a language model, in memory."""
    named = {name: formats.pack(weight.detach().numpy(), "F32") for name, weight in model.named_parameters()}
    return LanguageModel(Checkpoint(model.config, Tensors(named), None, Path("trained"), lambda: tokenizer))


def measured(
    lm: LanguageModel, canaries: Sequence[extraction.Canary], held_out: Sequence[str]
) -> dict[str, Any]:
    """The exposure of each canary, and the loss of each text in nats a token."""
    digits = extraction.DIGITS
    bits = [
        extraction.exposure(extraction.number_log_probs(lm, one.prefix, digits), int(one.digits))
        for one in canaries
    ]
    return {"bits": bits, "loss": [-float(rolling(lm, text).mean()) for text in held_out]}


def _write(path: Path, figures: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(figures))


def _finding(
    figures: dict[float | None, dict[str, Any]],
    canaries: Sequence[extraction.Canary],
    documents: int,
    delta: float,
    seed: int,
) -> Finding:
    groups = sorted({canary.copies for canary in canaries})
    most = groups[-1]
    arms, curves, words = [], [], []
    bounds = {}
    for target, found in figures.items():
        name = "without privacy" if target is None else f"epsilon {target:g}"
        own = {
            k: extraction.mean_exposure(
                [bits for bits, one in zip(found["bits"], canaries, strict=True) if one.copies == k]
            )
            for k in groups
        }
        price = mean(found["loss"], share=False)
        arms += [
            Arm(f"{name}, {most} copies", own[most], "attack" if target is None else "defence", "bits"),
            Arm(f"{name}, never trained on", own[0], "control", "bits"),
            Arm(f"{name}, loss of held-out text", price, "benign", "nats a token"),
        ]
        points = tuple((float(k), own[k].value) for k in groups)
        curves.append(Curve(name, "copies", "exposure, bits", points))
        bounds[target] = own[most].low > own[0].high
        noise = "" if target is None else f", noise {found['sigma']:.2f}"
        words.append(f"{name}{noise}: {own[most].value:.1f} bits, loss {price.value:.2f}")
    private = [leaks for target, leaks in bounds.items() if target is not None]
    return Finding(
        "private_training",
        "DP-SGD against extraction",
        "vulnerable" if any(private) else "sound" if bounds[None] else "not separated",
        f"Exposure of canaries in {most} documents and loss of held-out text: {'; '.join(words)}. "
        f"{documents:,} documents, delta {delta:.1e}; the unit is a document, so a canary in {most} of them "
        f"has {most} times the budget.",
        tuple(arms),
        seeds=(seed,),
        curves=tuple(curves),
    )
