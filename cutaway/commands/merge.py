"""`cutaway merge`: a base and its adapter, or several models, written as one; and what rounding takes."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal, get_args

from cyclopts import Parameter

import cutaway
from cutaway.commands import console
from cutaway.commands.options import Force, Json
from cutaway.commands.quantize import begin_of, to_measure, written
from cutaway.errors import UserError
from cutaway.evaluate import perplexity as scoring
from cutaway.evaluate.perplexity import Divergence
from cutaway.evaluate.statistics import finite
from cutaway.lm import LanguageModel
from cutaway.store.files import Progress
from cutaway.weights import adapters, load, quantize, save, soups
from cutaway.weights.adapters import Rounding
from cutaway.weights.changes import Adapter
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors
from cutaway.weights.retype import stored_bytes
from cutaway.weights.save import Saved

Method = Literal["average", "slerp", "task", "ties"]
Type = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]


def merge(
    *paths: Annotated[Path, Parameter(negative=())],
    method: Method | None = None,
    weights: str | None = None,
    density: float | None = None,
    scale: float | None = None,
    type: Annotated[Type | None, Parameter(converter=console.any_case(*get_args(Type)))] = None,
    model: str | None = None,
    text: Path | None = None,
    measure: bool = True,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a base model with an adapter in its weights, or several models of one base as one.

    The last path is where to write: one that ends in .gguf is a GGUF file, anything else a folder of
    safetensors. Rounding to few bits may take back what an adapter changed: the rounding error is printed
    beside the size of the adapter's change, and the KL divergences between the adapter beside its base, the
    merged weights in float32, and the merged model as written.

    **Examples:**

    cutaway merge runs/talk talk.gguf --type Q8_0

    cutaway merge runs/talk runs/sums both --method ties

    cutaway merge runs/one runs/two runs/three soup.gguf --method average --type BF16

    :param paths: An adapter's folder, such as a run of `cutaway finetune`; with --method models, runs and
        adapters. Then where to write.
    :param method: average, slerp (of two), task (task arithmetic) or ties.
    :param weights: A number for each model, as 0.3,0.7; without it 1 for each.
    :param density: Of ties: the fraction of each change that is kept, its largest values; 0.2 by default.
    :param scale: Of task and ties: what multiplies the sum of the changes; 1 by default.
    :param type: What matrices are stored as. Without it a GGUF file has the base's types, rounded again where
        the adapter changes them, and a folder of safetensors, which holds no blocks, has F32.
    :param model: The base model; without it the one that the adapter, or all runs, began with.
    :param text: Measure on this text; without it on what the merged model writes itself.
    :param measure: Read the models over the text.
    """
    sources, target = _places(paths)
    texts = {} if text is None else {text: console.read_text(text)}
    save.check_free(target, "gguf" if target.suffix == ".gguf" else "safetensors", force)
    options = {"density": density, "scale": scale}
    given = {name: value for name, value in options.items() if value is not None}
    base, changes = None, {}
    if method is not None:
        merged = _soup(method, sources, weights, model, given)
    elif len(sources) > 1 or weights or given:
        raise UserError("several models, --weights, --density, --scale need a method: add --method average")
    else:
        base, changes = _adapted(sources[0], model)
        merged = adapters.joined(base, changes)
    measured = to_measure(LanguageModel(merged), text, texts) if measure and (base or type) else None
    own_types = base is not None and type is None and target.suffix == ".gguf"
    rounded = type or ("the base's types" if own_types else None)
    with console.watched() as bar:
        stored = quantize.in_types_of(merged, base) if base is not None and own_types else merged
        saved = save.write_checkpoint(target, stored, type=type, force=force, progress=bar)
        taken = adapters.rounding(base, changes, load.read_checkpoint(target)) if base else {}
        apart = _apart(*measured, target, rounded, bar) if measured else {}
    if as_json:
        about = _rounding(taken) if method is None else {"method": method, "models": list(map(str, sources))}
        figures = {"path": str(saved.path), "bytes": saved.nbytes} | about
        console.print_json(figures | {"divergences": _divergences(apart)})
        return
    _say_sizes(saved, saved.nbytes if base is None else stored_bytes(base.tensors))
    _say_rounding(taken)
    _say_divergences(apart, text)
    _warn(taken, rounded)


def _places(paths: tuple[Path, ...]) -> tuple[list[Path], Path]:
    """What to merge, and where to write."""
    if len(paths) < 2:
        raise UserError("write what to merge, and where to: cutaway merge runs/talk talk.gguf")
    *sources, target = paths
    if any((target / name).is_file() for name in (load.ADAPTER, load.RUN)):
        raise UserError(
            f"{target} is a run or an adapter, not where to write: name a new file or folder last, talk.gguf"
        )
    return sources, target


def _adapted(source: Path, model: str | None) -> tuple[Checkpoint, Adapter]:
    """An adapter's base, and its changes."""
    base = load.read_checkpoint(console.model_path(model)) if model else load.adapter_base(source)
    base = adapters.extended(base, source)
    return base, adapters.read_adapter(source, base)


# ---- what is printed ---------------------------------------------------------------------------------------


def _rounding(taken: dict[str, Rounding]) -> dict[str, Any]:
    """What rounding does to an adapter's changes, in figures."""
    errors, changed = [each.error for each in taken.values()], sum(each.changed for each in taken.values())
    return {
        "matrices": len(taken),
        "rounding_to_change": {"median": median(errors), "largest": max(errors)} if errors else None,
        "rounding_above_change": sum(error > 1 for error in errors),
        "changes_below_half_step": sum(each.lost for each in taken.values()) / max(changed, 1),
    }


def _divergences(apart: dict[tuple[str, str], Divergence]) -> list[dict[str, Any]]:
    return [
        {
            "from": one,
            "to": other,
            "kl_divergence": found.mean,
            "kl_error": finite(found.error),
            "same_best_token": found.same_best,
            "perplexities": [found.reference.perplexity, found.other.perplexity],
            "tokens": found.tokens,
        }
        for (one, other), found in apart.items()
    ]


def _say_sizes(saved: Saved, before: int) -> None:
    types = ", ".join(f"{count} {name}" for name, count in saved.types.items())
    console.say(f"{saved.path}: {console.size(saved.nbytes)}, {types}")
    if saved.nbytes > 1.5 * before:
        folder = "a folder of safetensors holds no blocks of few bits, a name that ends in .gguf keeps them"
        why = folder if saved.format == "safetensors" else "without --type the file has the base's types"
        console.note(f"Note: the base has {console.size(before)}: {why}.")


def _say_rounding(taken: dict[str, Rounding]) -> None:
    if taken:
        errors = [each.error for each in taken.values()]
        console.say(
            f"The adapter changes {len(taken)} weights. The rounding error of a weight is "
            f"{median(errors):.2g} times the size of its change (median; at most {max(errors):.2g})."
        )


def _say_divergences(apart: dict[tuple[str, str], Divergence], text: Path | None) -> None:
    if apart:
        tokens = next(iter(apart.values())).tokens
        where = text or "what the model writes itself"
        console.say(f"KL divergence in nats a token on {where}, {tokens:,} scored:")
    for (one, other), found in apart.items():
        console.say(
            f"  {one:<8} -> {other:<8}  {found.mean:.6f} {scoring.margin(found.error, 6)}, same best token "
            f"in {found.same_best:.1%}, perplexity {found.reference.perplexity:.3f} -> "
            f"{found.other.perplexity:.3f}"
        )


def _warn(taken: dict[str, Rounding], rounded: str | None) -> None:
    """Say where rounding may take back what the adapter changed."""
    figures = _rounding(taken)
    lost, larger = figures["changes_below_half_step"], figures["rounding_above_change"]
    more = (
        "--type F32 keeps all of them"
        if rounded == "Q8_0"
        else "take a type of more bits: --type Q8_0 or F32"
    )
    if lost > 0.5:
        console.note(
            f"Warning: {lost:.0%} of the adapter's changes are less than half a step of {rounded}, so that "
            f"rounding may take them back: {more}."
        )
    elif larger:
        console.note(
            f"Note: in {larger} of {len(taken)} weights rounding to {rounded} is larger than the adapter's "
            f"change, which may be lost: {more}."
        )


# ---- what is merged ----------------------------------------------------------------------------------------


def _soup(
    method: Method, sources: list[Path], weights: str | None, model: str | None, options: dict[str, float]
) -> Checkpoint:
    """The models as one; task and ties start at the base that all of them began with."""
    known = {"task": {"scale"}, "ties": {"density", "scale"}}.get(method, set())
    if wrong := options.keys() - known:
        raise UserError(f"--{min(wrong)} is no option of {method}: leave it out")
    try:
        numbers = [1.0] * len(sources) if weights is None else [float(each) for each in weights.split(",")]
    except ValueError:
        raise UserError(f"--weights is {weights!r}: write a number for each model, as 0.3,0.7") from None
    models = [load.read_checkpoint(console.model_path(str(source))) for source in sources]
    base = None
    if known:
        named = {model} if model else {console.base_of(source) for source in sources}
        if len(named) > 1 or None in named:
            raise UserError(f"{method} starts at the models' base, and they name no common one: add --model")
        base = load.read_checkpoint(console.model_path(str(named.pop())))
    return soups.soup(method, models, numbers, base, **options)


def _apart(
    tuned: LanguageModel, window: int, ids: list[int] | None, target: Path, type: str | None, bar: Progress
) -> dict[tuple[str, str], Divergence]:
    """The KL divergences of the adapter beside its base, the merged floats and what was written, by name."""
    console.note_fallback(tuned)
    ids = written(tuned, window, bar) if ids is None else ids
    tensors = tuned.checkpoint.tensors
    models: dict[str, Any] = {"adapter": tuned} if isinstance(tensors, adapters.AdaptedTensors) else {}
    if type is not None:
        whole = Tensors({name: tensors.later(name) for name in tensors})
        models["float"] = LanguageModel(replace(tuned.checkpoint, tensors=whole))
    models["written"] = cutaway.load(target)
    return {
        (one, other): scoring.divergence(
            models[one].engine, models[other].engine, ids, window, begin_of(tuned), bar
        )
        for one, other in combinations(models, 2)
    }
