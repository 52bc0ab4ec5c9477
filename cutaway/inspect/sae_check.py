"""Evaluate sparse autoencoders: the model's loss when their outputs replace its activations.

    check(lm, sae_folders.load_set("transcoders"), texts, data)
    layer 3: loss 3.41 (the model's own 3.32), KL 0.11; the best linear map 0.19, the mean 0.42

All tokens' outputs are replaced but those of attention sinks, which dictionaries are not trained on. With the
error term (what the dictionary misses on the unchanged text) the logits are the model's own, which tests the
measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect.activations import Activations
from cutaway.inspect.arrays import log_softmax
from cutaway.inspect.sae import SAE
from cutaway.inspect.sae_training import LINEAR, linear_map
from cutaway.store import files

ALL, ERRORS = "all at once", "all at once, errors added"


@dataclass(frozen=True)
class Replaced:
    """A replacement: of ``what`` (an activation, or all), by ``by``.

    ``loss``: the mean cross-entropy of the next token; ``kl``: the mean KL divergence from the model's own
    prediction, in nats, with its standard error over texts (None of one text).
    """

    what: str
    by: str
    loss: float
    kl: float
    kl_error: float | None


@dataclass(frozen=True)
class Replacement:
    """The figures of all replacements, and the model's own loss, over ``tokens`` predictions in ``texts``."""

    loss: float
    texts: int
    tokens: int
    rows: tuple[Replaced, ...]


def check(
    lm: Any,
    made: Sequence[SAE],
    texts: Sequence[Any],
    data: Activations | None = None,
    progress: files.Progress = files.silent,
) -> Replacement:
    """Replacement figures on texts; with a dataset also of the best linear map and of the mean.

    Raises UserError for texts of a single token and for activations that the model does not have.
    """
    if any(one.parts_against is not None for one in made):
        raise UserError(
            "a crosscoder of two models writes activations of both: none of them can be run with it"
        )
    ids = [lm.ids(text)[: lm.context] for text in texts]
    ids = [one for one in ids if len(one) > 1]
    if not ids:
        raise UserError("there is nothing to predict: give texts of two tokens or more")
    jobs = _jobs(made, data)
    sums: dict[tuple[str, str], list[tuple[float, float]]] = {job: [] for job in jobs}
    own: list[float] = []
    for n, text in enumerate(ids):
        clean = _clean(lm, made, text)
        before = log_softmax(clean["logits"][:-1])
        own.append(_loss(before, text))
        for m, (job, replacing) in enumerate(jobs.items()):
            after = log_softmax(lm.logits(text, edit=replacing(clean))[:-1])
            divergence = float((np.exp(before) * (before - after)).sum() / (len(text) - 1))
            sums[job].append((_loss(after, text), divergence))
            progress("replacements", n * len(jobs) + m + 1, len(ids) * len(jobs))
    weights = np.array([len(text) - 1 for text in ids], float)
    rows = [Replaced(*job, *_means(np.array(found), weights)) for job, found in sums.items()]
    return Replacement(float(np.average(own, weights=weights)), len(ids), int(weights.sum()), tuple(rows))


def _means(found: np.ndarray, weights: np.ndarray) -> tuple[float, float, float | None]:
    loss, divergence = np.average(found, axis=0, weights=weights)
    spread = math.sqrt(np.average(np.square(found[:, 1] - divergence), weights=weights))
    error = spread / math.sqrt(len(found) - 1) if len(found) > 1 else None
    return float(loss), float(divergence), error


def _loss(predicted: np.ndarray, ids: Sequence[int]) -> float:
    return -float(predicted[np.arange(len(ids) - 1), ids[1:]].mean())


def _clean(lm: Any, made: Sequence[SAE], ids: Sequence[int]) -> dict[str, np.ndarray]:
    """A text's unchanged activations and logits, by the engine that computes the replaced ones."""
    seen: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[[Any], None]:
        def listen(value: Any) -> None:
            seen[name] = _rows(value).copy()

        return listen

    names = {name for one in made for name in (*one.reads, *one.writes)}
    seen["logits"] = lm.logits(ids, edit={name: keep(name) for name in names})
    return seen


def _rows(value: Any) -> np.ndarray:
    """A value of one text [1 t ...] as rows [t x]."""
    return value.detach().numpy()[0].reshape(value.shape[1], -1)


Job = Callable[[Mapping[str, np.ndarray]], dict[str, Callable[[Any], Any]]]


def _jobs(made: Sequence[SAE], data: Activations | None) -> dict[tuple[str, str], Job]:
    """What is replaced, by what: from a text's own values to listeners."""
    names = list(dict.fromkeys(name for one in made for name in one.writes))
    jobs: dict[tuple[str, str], Job] = {}
    scopes = [(name, [name]) for name in names] + ([(ALL, names)] if len(names) > 1 else [])
    baselines = _baselines(made, names, data)
    for label, some in scopes:
        jobs[label, "features"] = lambda clean, some=some: _listeners(made, some, clean, errors=False)
        for by, maps in baselines.items():
            chosen = {name: maps[name] for name in some if name in maps}
            jobs[label, by] = lambda clean, chosen=chosen: _mapped(made, chosen)
    jobs[ERRORS, "features"] = lambda clean: _listeners(made, names, clean, errors=True)
    return jobs


def _listeners(
    made: Sequence[SAE], names: Sequence[str], clean: Mapping[str, np.ndarray], errors: bool
) -> dict[str, Callable[[Any], Any]]:
    """Listeners that replace what dictionaries write to ``names``, by what they read in this pass.

    A crosscoder reads layers that come after what it writes: it reads the text's own values.
    """
    read: dict[str, np.ndarray] = {}
    later = any(len(one.reads) > 1 for one in made)

    def written(name: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
        parts = []
        for one in made:
            if name in one.writes:
                x = one.rows(values)
                parts.append(one.parts(one.decode(one.encode(x), x))[name])
        return np.sum(parts, axis=0)

    def listen(name: str, value: Any) -> Any:
        rows = _rows(value)
        read[name] = rows.copy()
        if name not in names:
            return None
        y = written(name, clean if later else read)
        if errors:
            y = y + clean[name] - written(name, clean)
        sinks = _sinks(made, name, clean)
        return np.where(sinks[:, None], rows, y).reshape(value.shape)

    every = {name for one in made for name in one.reads} | set(names)
    return {name: lambda value, name=name: listen(name, value) for name in every}


def _sinks(made: Sequence[SAE], name: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which tokens a dictionary of this activation was not trained on."""
    return np.any([one.sinks(one.rows(values)) for one in made if name in one.writes], axis=0)


def _baselines(
    made: Sequence[SAE], names: Sequence[str], data: Activations | None
) -> dict[str, dict[str, tuple[str, np.ndarray, np.ndarray]]]:
    """Maps [y x] and biases [y] by the activation that they write, with what each reads."""
    if data is None:
        return {}
    index = np.flatnonzero(~data.sinks(names[0]))
    index = index[np.linspace(0, len(index) - 1, min(len(index), LINEAR)).astype(np.int64)]
    mean, linear = {}, {}
    for name in names:
        one = next(each for each in made if name in each.writes)
        read = next((each.reads[0] for each in made if each.writes[0] == name), one.reads[0])
        center = data.rows(name, index).reshape(len(index), -1).mean(0)
        mean[name] = (read, np.zeros((len(center), one.card.widths[0]), np.float32), center)
        if read != name:
            linear[name] = (read, *linear_map(data, read, name, index))
    return {"mean": mean} | ({"linear map": linear} if linear else {})


def _mapped(
    made: Sequence[SAE], maps: Mapping[str, tuple[str, np.ndarray, np.ndarray]]
) -> dict[str, Callable[[Any], Any]]:
    """Listeners that replace activations by a map of what is read."""
    read: dict[str, np.ndarray] = {}

    def listen(name: str, value: Any) -> Any:
        rows = _rows(value)
        read[name] = rows.copy()
        if name not in maps:
            return None
        source, weights, bias = maps[name]
        sinks = _sinks(made, name, read) if len(made[0].reads) == 1 else np.arange(len(rows)) == 0
        return np.where(sinks[:, None], rows, read[source] @ weights.T + bias).reshape(value.shape)

    every = {source for source, _, _ in maps.values()} | set(maps)
    every |= {name for one in made if len(one.reads) == 1 for name in one.reads}
    return {name: lambda value, name=name: listen(name, value) for name in every}
