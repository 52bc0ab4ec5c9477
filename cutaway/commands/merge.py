"""`cutaway merge`: a base and its adapter written as one model, and what rounding takes of the adapter."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated, Literal, get_args

from cyclopts import Parameter

from cutaway.commands import console
from cutaway.commands.quantize import cost_of, summary, to_measure
from cutaway.lm import LanguageModel
from cutaway.weights import adapters, load, save

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
    of the adapter's change, and the KL divergence between the merged model as written and before rounding.

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
        Measure on this text; without it on what the merged model writes itself.
    measure
        Read both models over the text.
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
    measured = to_measure(LanguageModel(merged), text, texts) if measure and type is not None else None
    with console.watched(counts=True) as bar:
        saved = save.write(
            target,
            merged,
            type=type,
            force=force,
            progress=bar,
        )
        taken = adapters.rounding(base, changes, load.read(target))
        cost = cost_of(*measured, target, bar) if measured else None
    larger = sum(ratio > 1 for ratio in taken.values())
    if as_json:
        kl = (
            None
            if cost is None
            else {"kl_divergence": cost.mean, "kl_error": cost.error, "tokens": cost.tokens}
        )
        console.print_json(
            {
                "path": str(saved.path),
                "bytes": saved.nbytes,
                "matrices": len(taken),
                "rounding_to_change": {"median": median(taken.values()), "largest": max(taken.values())},
                "rounding_above_change": larger,
                "cost": kl,
            }
        )
        return
    types = ", ".join(f"{count} {name}" for name, count in saved.types.items())
    print(f"{saved.path}: {console.size(saved.nbytes)}, {types}")
    usual, most = median(taken.values()), max(taken.values())
    print(
        f"The adapter changes {len(taken)} weights; rounding moves them by {usual:.2g} of that change "
        f"(median; at most {most:.2g})."
    )
    if larger:
        console.note(
            f"Note: in {larger} of {len(taken)} weights rounding to {type} is larger than the adapter's "
            "change, which may be lost: take a type of more bits, such as Q8_0."
        )
    if cost is not None:
        print(summary(cost, text))
