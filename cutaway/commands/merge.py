"""`cutaway merge`: a base and its adapter written as one model, and what rounding takes of the adapter."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal, get_args

from cyclopts import Parameter

import cutaway
from cutaway.commands import console
from cutaway.commands.quantize import begin_of, to_measure, written
from cutaway.evaluate import perplexity as scoring
from cutaway.evaluate.perplexity import Divergence
from cutaway.lm import LanguageModel
from cutaway.store.files import Progress
from cutaway.weights import adapters, load, save
from cutaway.weights.rules import Tensors

Type = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]


def merge(
    adapter: Path,
    target: Path,
    /,
    *,
    type: Annotated[Type | None, Parameter(converter=console.any_case(*get_args(Type)))] = None,
    model: str | None = None,
    text: Path | None = None,
    measure: bool = True,
    force: Annotated[bool, Parameter(negative=())] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Write a base model with an adapter in its weights: TARGET ending in .gguf is a GGUF file, anything else
    a folder of safetensors.

    Rounding to few bits may take back what the adapter changed: the rounding error is printed beside the size
    of the adapter's change, and the KL divergences between the adapter beside its base, the merged weights in
    float32, and the merged model as written.

    Examples:

    cutaway merge runs/talk talk.gguf --type Q8_0

    cutaway merge runs/talk talk-folder

    Parameters
    ----------
    adapter
        A folder with a PEFT adapter, such as a run of `cutaway finetune`.
    target
        Where to write: NAME.gguf or a folder.
    type
        What matrices are stored as; without it each is as exact as the base's, and changed ones are F32.
    model
        The base model; without it the one that the adapter names.
    text
        Measure on this text; without it on what the tuned model writes itself.
    measure
        Read the models over the text.
    force
        Replace TARGET if it exists.
    as_json
        Print one JSON document.
    """
    texts = {} if text is None else {text: console.read_text(text)}
    save.check_free(target, "gguf" if target.suffix == ".gguf" else "safetensors", force)
    if model is None:
        base = adapters.base_of(adapter)
    else:
        base = load.read(console.model_path(model))
    changes = adapters.read(adapter, base)
    merged = adapters.joined(base, changes)
    measured = to_measure(LanguageModel(merged), text, texts) if measure else None
    with console.watched(counts=True) as bar:
        saved = save.write(target, merged, type=type, force=force, progress=bar)
        taken = adapters.rounding(base, changes, load.read(target))
        apart = _apart(*measured, target, type, bar) if measured else {}
    errors = [each.error for each in taken.values()]
    larger, changed = sum(error > 1 for error in errors), sum(each.changed for each in taken.values())
    lost = sum(each.lost for each in taken.values()) / max(changed, 1)
    if as_json:
        console.print_json(
            {
                "path": str(saved.path),
                "bytes": saved.nbytes,
                "matrices": len(taken),
                "rounding_to_change": {"median": median(errors), "largest": max(errors)},
                "rounding_above_change": larger,
                "changes_below_half_step": lost,
                "divergences": [
                    {
                        "from": one,
                        "to": other,
                        "kl_divergence": found.mean,
                        "kl_error": found.error,
                        "same_best_token": found.same_best,
                        "perplexities": [found.reference.perplexity, found.other.perplexity],
                        "tokens": found.tokens,
                    }
                    for (one, other), found in apart.items()
                ],
            }
        )
        return
    types = ", ".join(f"{count} {name}" for name, count in saved.types.items())
    print(f"{saved.path}: {console.size(saved.nbytes)}, {types}")
    print(
        f"The adapter changes {len(taken)} weights; rounding moves them by {median(errors):.2g} of that "
        f"change (median; at most {max(errors):.2g})."
    )
    if apart:
        tokens = next(iter(apart.values())).tokens
        print(
            f"KL divergence in nats a token on {text or 'what the model writes itself'}, {tokens:,} scored:"
        )
    for (one, other), found in apart.items():
        print(
            f"  {one:<8} -> {other:<8}  {found.mean:.6f} +/- {found.error:.6f}, same best token in "
            f"{found.same_best:.1%}, perplexity {found.reference.perplexity:.3f} -> "
            f"{found.other.perplexity:.3f}"
        )
    if lost > 0.5:
        console.note(
            f"Warning: {lost:.0%} of the adapter's changes are less than half a step of {type}, so that "
            "rounding may take them back: take a type of more bits, or leave --type out."
        )
    elif larger:
        console.note(
            f"Note: in {larger} of {len(taken)} weights rounding to {type} is larger than the adapter's "
            "change, which may be lost: take a type of more bits, such as Q8_0."
        )


def _apart(
    tuned: LanguageModel, window: int, ids: list[int] | None, target: Path, type: str | None, bar: Progress
) -> dict[tuple[str, str], Divergence]:
    """The KL divergences of the adapter beside its base, the merged floats and what was written, by name."""
    console.note_fallback(tuned)
    ids = written(tuned, window, bar) if ids is None else ids
    models: dict[str, Any] = {"adapter": tuned}
    if type is not None:
        tensors = tuned.checkpoint.tensors
        whole = Tensors({name: tensors.later(name) for name in tensors})
        models["float"] = LanguageModel(replace(tuned.checkpoint, tensors=whole))
    models["written"] = cutaway.load(target)
    return {
        (one, other): scoring.divergence(
            models[one].engine, models[other].engine, ids, window, begin_of(tuned), bar
        )
        for one, other in combinations(models, 2)
    }
