"""The report card of a run as data: curves, samples, scores beside chance and base, attacks, costs."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cutaway
from cutaway.errors import UserError
from cutaway.evaluate import statistics
from cutaway.pipeline import card_page, card_text, costs
from cutaway.pipeline.card_text import percent
from cutaway.pipeline.folder import ENERGY, Folder
from cutaway.pipeline.run import spell
from cutaway.pipeline.verbs import ITEMS, RESULTS, VERBS
from cutaway.store.files import write_file
from cutaway.store.reading import json_lines, parsed
from cutaway.train import curve

PAGE, JSON, TEXT = "card.html", "card.json", "card.md"
MEASURES = {"acc": True, "bits_per_byte": False}  # of a task, and whether more is better
ANSWERED = 48  # tokens of a sample
CALIBRATED, BINS = 2048, 10  # tokens of held-out text, and bins of probability
POINTS = 300  # of a curve
SHEET = "sheet.json"


def write_card(folder: Folder) -> dict[str, Any]:
    """Write card.json, card.md and card.html, and return the first."""
    found = document(folder)
    write_file(folder.path / JSON, json.dumps(found, indent=1, ensure_ascii=False))
    write_file(folder.path / TEXT, card_text.markdown(found))
    write_file(folder.path / PAGE, card_page.html(found))
    return found


def document(folder: Folder) -> dict[str, Any]:
    """Everything that the card shows."""
    pipeline = folder.pipeline
    stages = [_stage(folder, name) for name in pipeline.names]
    scores = _scores(folder)
    energy = parsed(folder.path / ENERGY) if (folder.path / ENERGY).is_file() else None
    sheet = _sheet(folder)
    trained = [name for name in pipeline.names if VERBS[pipeline[name].verb].trains]
    return {
        "name": folder.path.name,
        "about": pipeline.about,
        "version": cutaway.__version__,
        "command": _command(folder),
        "machine": costs.machine(pipeline.threads),
        "budget": pipeline.budget,
        "stages": stages,
        "model": _model(folder, trained),
        "samples": _samples(folder, trained),
        "scores": scores,
        "verdicts": list(_verdicts(scores)),
        "contamination": sheet.get("overlap", {}),
        "calibration": _calibration(folder, trained),
        "attacks": _attacks(folder),
        "packed": _packed(folder),
        "costs": costs.counted(pipeline.costs, sum(folder.times().values()), energy),
        "data": {key: sheet[key] for key in ("texts", "programs", "documents", "characters") if key in sheet},
        "licences": list(pipeline.licences),
        "limits": pipeline.limits,
    }


def _command(folder: Folder) -> str:
    """What repeats the run."""
    threads = f" --threads {folder.pipeline.threads}" if folder.pipeline.threads else ""
    return f"cutaway pipeline {shlex.quote(str(folder.path / 'pipeline.yaml'))} --output AGAIN{threads}"


def _stage(folder: Folder, name: str) -> dict[str, Any]:
    """A stage's time against its plan, and its curves where it trained."""
    stage = folder.pipeline[name]
    out: dict[str, Any] = {"name": name, "verb": stage.verb, "seconds": folder.took(name)}
    out["done"] = folder.mark(name) is not None
    planned = folder.planned().get(name)
    out |= {} if planned is None else {"planned": planned}
    if VERBS[stage.verb].trains and (folder.stage(name) / curve.METRICS).is_file():
        out["steps"] = folder.config(name).get("steps")
        out["curves"] = {key: points for key, points in _curves(folder.stage(name)).items() if points}
    return out


def _curves(place: Path) -> dict[str, list[tuple[int, float]]]:
    """Loss, validation loss, and what methods that compare or reward report."""
    found = dict(curve.read_curve(place))
    for line in json_lines(place / curve.METRICS):
        for key in ("reward", "accuracy", "validation_accuracy", "validation_reward", "margin"):
            value = line.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(key, []).append((int(line["step"]), float(value)))
    return {key: _drawn(points) for key, points in found.items()}


def _drawn(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most ``POINTS`` points, each the mean of neighbours: a card of thousands of steps is small."""
    if len(points) <= POINTS:
        return points
    steps, values = (curve.means([point[i] for point in points], POINTS) for i in (0, 1))
    return [(round(step), value) for step, value in zip(steps, values, strict=True)]


# ---- scores ------------------------------------------------------------------------------------------------


def _scores(folder: Folder) -> dict[str, dict[str, Any]]:
    """Each task's figure for each model that was evaluated, and its difference from the first one."""
    found: dict[str, dict[str, Any]] = {}
    values: dict[str, dict[str, list[float]]] = {}
    for name in folder.pipeline.names:
        place = folder.stage(name)
        if folder.pipeline[name].verb != "eval" or not (place / RESULTS).is_file():
            continue
        model = str(folder.config(name)["model"])
        results = parsed(place / RESULTS)
        for task, figures in results["tasks"].items():
            measure = next((one for one in MEASURES if one in figures), None)
            if measure is None:
                continue
            entry = found.setdefault(task, {"measure": measure, "models": {}})
            if "chance" in figures:
                entry["chance"] = figures["chance"]
            own = {"value": figures[measure], "interval": figures[f"{measure}_interval"], "n": figures["n"]}
            entry["models"][model] = own
        for line in json_lines(place / ITEMS):
            if "acc" in line and line.get("model") == results.get("model"):  # not those of ``against``
                values.setdefault(line["task"], {}).setdefault(model, []).append(line["acc"])
    for task, own in values.items():
        base, *others = own
        for other in others:
            if task in found and len(own[base]) == len(own[other]) > 1:
                apart = statistics.paired(own[other], own[base])
                difference = {
                    "value": apart.difference.value,
                    "interval": apart.difference.ends,
                    "p": apart.p,
                }
                found[task]["models"][other]["against_base"] = {"base": base} | difference
    return found


def _verdicts(scores: Mapping[str, Any]) -> Iterator[str]:
    """In words: which scores are no better than chance, or than the first model's, and which are good."""
    for task, entry in scores.items():
        models = entry["models"]
        last = list(models)[-1]
        own = models[last]
        if entry["measure"] != "acc":
            continue
        low, chance = own["interval"][0] or 0.0, entry.get("chance")
        where = f"{task}: {last} is right in {percent(own['value'])}"
        if chance is not None and low <= chance:
            yield f"{where}, which is not shown to be better than chance ({percent(chance)})."
            continue
        base = own.get("against_base")
        if base is not None and base["p"] is not None and base["p"] >= 0.05:
            yield f"{where}, not separated from {base['base']} (p {base['p']:.2g})."
        else:
            high = own["interval"][1]
            yield f"{where} (95% interval: {percent(low)} to {percent(high)})" + (
                f"; chance is {percent(chance)}." if chance is not None else "."
            )


# ---- the models --------------------------------------------------------------------------------------------


def _model(folder: Folder, trained: list[str]) -> dict[str, Any]:
    """The last trained model's size."""
    lm = _last(folder, trained)
    if lm is None:
        return {}
    config = lm.config
    count = sum(math.prod(shape) for shape in config.weights().values())
    return {"stage": lm.stage, "weights": count, "layers": len(config.blocks), "width": config.width,
            "context": config.context, "vocabulary": config.vocab}  # fmt: skip


def _last(folder: Folder, trained: list[str]) -> Any:
    for name in reversed(trained):
        if folder.mark(name) is not None:
            lm = cutaway.load(folder.stage(name))
            lm.stage = name  # pyright: ignore[reportAttributeAccessIssue]
            return lm
    return None


def _samples(folder: Folder, trained: list[str]) -> dict[str, dict[str, str]]:
    """What each trained stage's model answers to the pipeline's prompts, greedily."""
    found: dict[str, dict[str, str]] = {prompt: {} for prompt in folder.pipeline.prompts}
    for name in trained:
        if folder.mark(name) is None or not found:
            continue
        lm = cutaway.load(folder.stage(name))
        chats = lm.checkpoint.chat_template is not None
        for prompt, answers in found.items():
            try:
                asked: Any = lm.chat_ids([{"role": "user", "content": prompt}]) if chats else prompt
                answers[name] = lm.generate(asked, max_tokens=ANSWERED, temperature=0).text.strip()
            except UserError as problem:  # a prompt that is longer than the model's context
                answers[name] = f"(not asked: {problem})"
    return found


def _calibration(folder: Folder, trained: list[str]) -> dict[str, Any]:
    """How often the likeliest next token of held-out text is right, by the probability it is given."""
    texts = sorted(folder.path.glob("*/held-out/text/*.txt"))
    lm = _last(folder, trained)
    if lm is None or not texts:
        return {}
    return costs.calibrated(lm, texts[0].read_text("utf-8"), CALIBRATED, BINS) | {"model": lm.stage}


# ---- other stages ------------------------------------------------------------------------------------------


def _sheet(folder: Folder) -> dict[str, Any]:
    for name in folder.pipeline.names:
        if (folder.stage(name) / SHEET).is_file():
            return parsed(folder.stage(name) / SHEET)
    return {}


def _attacks(folder: Folder) -> dict[str, Any]:
    """Each probe's rate with its interval and verdict."""
    for name in folder.pipeline.names:
        path = folder.stage(name) / RESULTS
        if folder.pipeline[name].verb == "attack" and path.is_file():
            probes = parsed(path)["probes"]
            kept = ("rate", "interval", "n", "verdict")
            return {probe: {key: one.get(key) for key in kept} for probe, one in probes.items()}
    return {}


def _packed(folder: Folder) -> dict[str, Any]:
    """The packed model's size, and what packing costs."""
    for name in folder.pipeline.names:
        path = folder.stage(name) / RESULTS
        if folder.pipeline[name].verb in ("quantize", "merge") and path.is_file():
            made = parsed(path)
            return {
                key: made[key] for key in ("path", "bytes", "bytes_before", "types", "cost") if key in made
            }
    return {}


def lines(found: Mapping[str, Any]) -> list[str]:
    """The card in a few lines of text."""
    spent = found["costs"]
    budget = f" of {spell(found['budget'])}" if found["budget"] else ""
    return [
        f"{found['name']}: {spell(spent['seconds'])}{budget}; {found['model'].get('weights', 0):,} weights.",
        *found["verdicts"],
    ]
