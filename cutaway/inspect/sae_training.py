"""Train sparse autoencoders: their data, units and figures; ``sae_training_pytorch.py`` has the steps.

train(data, "blocks.15.out", features=4096, k=32)                                        an autoencoder
train(data, ["blocks.9.out", "blocks.15.out"], kind="crosscoder", features=4096)
train_set(data, kind="transcoder", features=4096)       of each layer whose MLP's input and output it has
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cutaway import memory
from cutaway.errors import UserError
from cutaway.extras import need
from cutaway.inspect.activations import Activations, norm_limit
from cutaway.inspect.sae import CARD, KINDS, LAYER, SAE, TESTED, Activation, Card, Kind
from cutaway.inspect.sae_folders import load_set
from cutaway.store import files

FIRST, MEASURED, LINEAR = 8192, 1 << 15, 1 << 15  # rows: of means, of figures, of the linear map
CHUNK = 2048  # rows that are encoded at a time
READ, WRITTEN = "mlp_norm", ("mlp_post_norm", "mlp.out", "mlp.down")
RIDGE = 1e-4  # of the mean variance


@dataclass(frozen=True)
class Training:
    """How dictionaries are trained; see ``sae_training.train``."""

    features: int | None = None
    activation: Activation = "topk"
    k: int = 32
    skip: bool = False
    steps: int = 2000
    batch: int = 1024
    learning_rate: float = 1e-3
    seed: int = 0
    keep_sinks: bool = False

    def __post_init__(self) -> None:
        if self.k < 1 or self.steps < 1 or self.batch < 1 or (self.features or 1) < 1:
            raise UserError("k, features, steps and batch go from 1")
        if self.features is not None and self.k > self.features:
            raise UserError(f"k is {self.k}: it goes from 1 to the number of features, {self.features}")
        if not 0 < self.learning_rate < float("inf"):
            raise UserError(f"the learning rate is {self.learning_rate}: it is a number above 0")


def train(
    data: Activations,
    names: str | Sequence[str],
    *,
    kind: Kind = "sae",
    checkpoint: Path | None = None,
    progress: files.Progress = files.silent,
    **options: Any,
) -> SAE:
    """A dictionary of the rows of ``names``: of one an autoencoder, of several a crosscoder; of the input and
    the output of an MLP a transcoder.

    ``options`` are those of ``Training``: Adam with a linear warm-up and decay. A tenth of tokens is held
    out, and attention sinks are not trained on, unless ``keep_sinks``. A ``checkpoint`` is gone on with where
    it is there. Raises UserError for a kind that is not known, sizes that do not fit, and too few tokens.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    need("training a sparse autoencoder", "torch")
    counts = {"sae": 1, "transcoder": 2}
    if kind == "cross_layer" or kind not in KINDS:
        known = "sae, transcoder, crosscoder (train_set trains cross_layer)"
        raise UserError(f"kind {kind!r} is not known: use one of {known}")
    if counts.get(kind, len(names)) != len(names) or (kind == "crosscoder" and len(names) < 2):
        needs = {"sae": "one activation", "transcoder": "what an MLP reads and what it writes"}
        raise UserError(f"kind {kind} takes {needs.get(kind, 'two activations or more')}, not {len(names)}")
    reads, writes = (names[:1], names[1:]) if kind == "transcoder" else (names, names)
    card = _card(data, kind, reads, writes, Training(**options))
    return trained(data, [card], Training(**options), checkpoint, progress)[0]


def train_set(
    data: Activations,
    *,
    kind: Kind = "transcoder",
    output: Path | None = None,
    progress: files.Progress = files.silent,
    **options: Any,
) -> list[SAE]:
    """Transcoders of every layer whose MLP's input and output the dataset has, each by itself or cross-layer.

    With an ``output`` folder each is saved when it is ready, and a stopped training goes on there.
    """
    need("training a sparse autoencoder", "torch")
    training = Training(**options)
    pairs = mlp_pairs(data)
    cards = [
        _card(
            data,
            kind,
            (read,),
            tuple(w for _, w in pairs[n:]) if kind == "cross_layer" else (write,),
            training,
        )
        for n, (read, write) in enumerate(pairs)
    ]
    if output is not None:
        with files.disk_errors(output):
            output.mkdir(parents=True, exist_ok=True)
    jobs = [cards] if kind == "cross_layer" else [[card] for card in cards]
    made: list[SAE] = []
    for n, job in enumerate(jobs):
        folders = [output / f"layer_{_layer(card.reads[0])}" for card in job] if output else []
        if (found := _finished(folders, job)) is None:

            def overall(doing: str, done: int, total: int | None, n: int = n) -> None:
                total = total or 0
                progress(
                    f"{doing} of {len(jobs)} layers" if len(jobs) > 1 else doing,
                    n * total + done,
                    len(jobs) * total,
                )

            checkpoint = folders[0].with_name(f"{folders[0].name}.part.safetensors") if folders else None
            found = trained(data, job, training, checkpoint, overall)
            for one, folder in zip(found, folders, strict=False):
                one.save(folder, force=True)
            if checkpoint is not None:
                checkpoint.unlink(missing_ok=True)
        made += found
    return made


def mlp_pairs(data: Activations) -> list[tuple[str, str]]:
    """What each MLP of the dataset reads and writes, by layer; UserError where it has none."""
    found, inputs = [], data.facts.get("mlp_inputs") or None  # which datasets of before have not
    for name in data.names:
        match = LAYER.fullmatch(name)
        if match is not None and (match[2] == READ if inputs is None else name in inputs):
            written = [one for one in WRITTEN if f"blocks.{match[1]}.{one}" in data.names]
            found += [(int(match[1]), name, f"blocks.{match[1]}.{one}") for one in written[:1]]
    if not found:
        read = f"blocks.0.{READ}" if inputs is None else inputs[0]
        raise UserError(
            "transcoders need what an MLP reads and writes, and the dataset has "
            f"{', '.join(data.names)}: keep both by `cutaway activations TEXTS --names {read} "
            "--names blocks.0.mlp.down --output FOLDER`"
        )
    return [(read, write) for _, read, write in sorted(found)]


def _layer(name: str) -> str:
    found = LAYER.fullmatch(name)
    return found[1] if found else name


def _finished(folders: list[Path], cards: list[Card]) -> list[SAE] | None:
    """The dictionaries of these folders, if all are there; UserError where they are of other options."""
    if not folders or not all((folder / CARD).is_file() for folder in folders):
        return None
    found = [load_set(folder)[0] for folder in folders]
    for one, card, folder in zip(found, cards, folders, strict=True):
        asked = (
            "kind",
            "activation",
            "reads",
            "writes",
            "features",
            "k",
            "skip",
            "steps",
            "batch",
            "seed",
            "keep_sinks",
        )
        other = [name for name in asked if getattr(one.card, name) != getattr(card, name)]
        if other:
            has, wants = getattr(one.card, other[0]), getattr(card, other[0])
            raise UserError(
                f"{folder} has {other[0]} {has}, and {wants} is asked for: give the same options to go on, "
                "or --force to begin anew"
            )
    return found


def _card(
    data: Activations, kind: Kind, reads: tuple[str, ...], writes: tuple[str, ...], asked: Training
) -> Card:
    widths = tuple(int(data.rows(name, [0]).size) for name in (*reads, *writes))
    if asked.skip and kind != "transcoder":
        raise UserError(f"a linear skip goes with --kind transcoder, not with {kind}")
    features = 8 * widths[0] if asked.features is None else asked.features
    facts = (asked.skip, asked.steps, asked.batch, asked.seed, asked.keep_sinks)
    return Card(
        kind, asked.activation, reads, writes, widths, str(data.facts["model"]), features, asked.k, *facts
    )


# ---- rows --------------------------------------------------------------------------------------------------


@dataclass
class _Rows:
    """The rows of several activations side by side, in unit variance where ``normed``."""

    data: Activations
    names: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, data: Activations, names: tuple[str, ...], index: np.ndarray) -> _Rows:
        """Mean [n] and scale [n], one for each activation, by some rows."""
        parts = [data.rows(name, index).reshape(len(index), -1) for name in names]
        scales = [np.sqrt(np.square(part - part.mean(0)).mean()) for part in parts]
        if not all(scales):
            raise UserError(f"{names[scales.index(0)]} is the same at every token: there is nothing to learn")
        scale = np.concatenate([np.full(part.shape[1], of) for part, of in zip(parts, scales, strict=True)])
        return cls(data, names, np.concatenate(parts, 1).mean(0), scale.astype(np.float32))

    def raw(self, index: np.ndarray) -> np.ndarray:
        return np.concatenate([self.data.rows(n, index).reshape(len(index), -1) for n in self.names], 1)

    def normed(self, index: np.ndarray) -> np.ndarray:
        return (self.raw(index) - self.mean) / self.scale

    def columns(self, names: tuple[str, ...]) -> slice:
        """The columns of neighbouring names."""
        widths = [int(self.data.rows(name, [0]).size) for name in self.names]
        first, last = self.names.index(names[0]), self.names.index(names[-1])
        return slice(sum(widths[:first]), sum(widths[: last + 1]))


def trained(
    data: Activations,
    cards: Sequence[Card],
    training: Training,
    checkpoint: Path | None = None,
    progress: files.Progress = files.silent,
) -> list[SAE]:
    """The dictionaries that cards describe, trained together; UserError for too few tokens."""
    from cutaway.inspect import sae_training_pytorch

    _check_memory(cards, training)
    reads = tuple(dict.fromkeys(name for card in cards for name in card.reads))
    writes = tuple(dict.fromkeys(name for card in cards for name in card.writes))
    sinks = np.any([data.sinks(name) for name in {*reads, *writes}], axis=0)
    usual = np.flatnonzero(~sinks)
    if len(usual) < 2 * TESTED:
        raise UserError(
            f"the dataset has {len(usual)} tokens beside {int(sinks.sum())} attention sinks, and at least "
            f"{2 * TESTED} are needed"
        )
    held_out = usual[::TESTED]
    also = np.sort(np.concatenate([held_out, np.flatnonzero(sinks)[::TESTED]]))
    rows = np.setdiff1d(np.arange(len(data)) if training.keep_sinks else usual, also)
    first = np.random.default_rng(training.seed).choice(rows, min(len(rows), FIRST), replace=False)
    x = _Rows.of(data, reads, first)
    y = x if reads == writes else _Rows.of(data, writes, first)

    def batches(step: int) -> tuple[np.ndarray, np.ndarray]:
        drawn = np.random.default_rng([training.seed, step]).choice(rows, training.batch)
        read = x.normed(drawn)
        return read, read if y is x else y.normed(drawn)

    parts = [
        sae_training_pytorch.begun(card, x.columns(card.reads), y.columns(card.writes), number)
        for number, card in enumerate(cards)
    ]
    blocks = [y.columns((name,)) for name in writes]
    sae_training_pytorch.optimize(parts, blocks, batches, training.learning_rate, checkpoint, progress)
    limits = [norm_limit(data.norms(card.reads[0]), data.positions) for card in cards]
    made = []
    for part, limit in zip(parts, limits, strict=True):
        card = replace(part.card, tokens=len(data), sinks=int(sinks.sum()))
        card = replace(card, norm_limit=limit if len(card.reads) == 1 else float("inf"))
        own = {name: tensor.numpy() for name, tensor in part.of.items() if name != "silent"}
        made.append(SAE(card, _in_own_units(own, card, x, y, (part.reads, part.writes))))
    return _measured(made, (x, y), rows, held_out, also)


def _check_memory(cards: Sequence[Card], training: Training) -> None:
    """UserError for sizes that this machine's memory cannot hold."""
    width = max(sum(card.widths) for card in cards)
    weights = sum(card.features * (sum(card.widths) + 2) for card in cards)
    numbers = 4 * weights + training.batch * (
        cards[0].features + 4 * width
    )  # gradients and Adam's moments too
    if 4 * numbers > (free := memory.available()):
        raise UserError(
            f"{cards[0].features:,} features in batches of {training.batch:,} tokens take "
            f"{4 * numbers / 1e9:,.0f} GB, and {free / 1e9:,.0f} are free: give fewer features, or a smaller "
            "batch"
        )


def _in_own_units(
    of: dict[str, np.ndarray], card: Card, x: _Rows, y: _Rows, columns: tuple[slice, slice]
) -> dict[str, np.ndarray]:
    """The same function of what is read as ``of`` is of its normed values, and of what is written."""
    (mean_x, scale_x), (mean_y, scale_y) = (
        (side.mean[at].astype(np.float64), side.scale[at].astype(np.float64))
        for side, at in zip((x, y), columns, strict=True)
    )
    own = {name: tensor.astype(np.float64) for name, tensor in of.items()}
    own["W_enc"] = own["W_enc"] / scale_x
    own["b_enc"] = own["b_enc"] - own["W_enc"] @ mean_x
    own["W_dec"] = own["W_dec"] * scale_y
    own["b_dec"] = scale_y * own["b_dec"]
    if card.skip:
        own["W_skip"] = own["W_skip"] * scale_y[:, None] / scale_x
        own["b_dec"] = own["b_dec"] - own["W_skip"] @ mean_x
    first = card.widths[len(card.reads)]  # of a cross-layer set each layer's mean is its own dictionary's
    own["b_dec"][: first if card.kind == "cross_layer" else None] += (
        mean_y[:first] if card.kind == "cross_layer" else mean_y
    )
    if card.activation == "topk":
        del own["threshold"]
    return {name: tensor.astype(np.float32) for name, tensor in own.items()}


# ---- figures -----------------------------------------------------------------------------------------------


def _measured(
    made: list[SAE],
    sides: tuple[_Rows, _Rows],
    rows: np.ndarray,
    held_out: np.ndarray,
    with_sinks: np.ndarray,
) -> list[SAE]:
    """The dictionaries with their cards' figures on held-out rows.

    Of a cross-layer set each card's ``unexplained`` is of its own layer, written by all that write it.
    """
    (usual, active), (both, _) = (_left(made, sides, index[:MEASURED]) for index in (held_out, with_sinks))
    linear = _linear_left(sides, rows, held_out[:MEASURED]) if sides[0] is not sides[1] else {}
    out = []
    for one, often in zip(made, active, strict=True):
        own = one.writes[:1] if one.card.kind == "cross_layer" else one.writes
        card = replace(
            one.card,
            unexplained=float(np.mean([usual[name] for name in own])),
            unexplained_with_sinks=float(np.mean([both[name] for name in own])),
            linear=float(np.mean([linear[name] for name in own])) if linear else None,
            l0=float(often.sum()),
            dead=int((often == 0).sum()),
        )
        out.append(SAE(card, one.tensors))
    return out


def _left(
    made: list[SAE], sides: tuple[_Rows, _Rows], index: np.ndarray
) -> tuple[dict[str, float], list[np.ndarray]]:
    """The fraction of variance unexplained of each activation written, and how often features fire."""
    (reads, writes), data = sides, sides[0].data
    total = {name: np.zeros((len(index), data.rows(name, [0]).size), np.float32) for name in writes.names}
    often = [np.zeros(one.card.features) for one in made]
    for start in range(0, len(index), CHUNK):
        values = {name: data.rows(name, index[start : start + CHUNK]) for name in reads.names}
        for one, fired in zip(made, often, strict=True):
            x = one.rows(values)
            f = one.encode(x)
            fired += (f > 0).sum(0) / len(index)
            for name, y in one.parts(one.decode(f, x)).items():
                total[name][start : start + CHUNK] += y
    true = ((name, data.rows(name, index).reshape(len(index), -1)) for name in total)
    return {name: _fraction(rows, total[name]) for name, rows in true}, often


def _fraction(true: np.ndarray, made: np.ndarray) -> float:
    left, whole = true - made, true - true.mean(0)
    return float(np.square(left, dtype=np.float64).sum() / np.square(whole, dtype=np.float64).sum())


def _linear_left(sides: tuple[_Rows, _Rows], rows: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """The same of the best linear map (ridge regression on training rows) of the same layer."""
    x, y = sides
    out = {}
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), LINEAR)).astype(np.int64)]
    for read, write in zip(x.names, y.names, strict=True):
        weights, bias = linear_map(x.data, read, write, some)
        own = x.data.rows(read, held_out).reshape(len(held_out), -1)
        true = x.data.rows(write, held_out).reshape(len(held_out), -1)
        out[write] = _fraction(true, own @ weights.T + bias)
    return out


def linear_map(data: Activations, read: str, write: str, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best linear map [y x] and bias [y] from one activation to another, by ridge regression on rows."""
    x, y = (data.rows(name, index).reshape(len(index), -1).astype(np.float64) for name in (read, write))
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    gram = x.T @ x
    gram[np.diag_indices_from(gram)] += RIDGE * np.trace(gram) / len(gram)
    weights = np.linalg.solve(gram, x.T @ y).T
    return weights.astype(np.float32), (mean_y - weights @ mean_x).astype(np.float32)
