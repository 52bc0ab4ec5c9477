"""Adapters at rest: PEFT's folders read and written, and a checkpoint whose weights they change.

    LoRA (2106.09685)     W' = W + s B A       s = alpha / r, or alpha / sqrt(r) (rsLoRA, 2312.03732)
    DoRA (2402.09353)     W' = m (W + s B A) / |W + s B A|, the norm of each row
    IA3 (2205.05638)      W' = diag(l) W, or W diag(l) where l scales what a matrix reads (feed-forward)
    saved modules         W' = what is stored, whole

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``, whose names are those of Hugging
Face's modules; the family's table of weight names maps them to ours. What PEFT can and this cannot is refused
by name.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from cutaway import store
from cutaway.errors import UserError, quoted
from cutaway.gguf import Later, Packed
from cutaway.model.config import Decoder, from_dict
from cutaway.model.context import ContextExtension
from cutaway.patterns import linear
from cutaway.store.files import atomic_folder
from cutaway.store.files import write as write_file
from cutaway.store.reading import parsed
from cutaway.weights import families, quant, rules, safetensors
from cutaway.weights.fields import Fields
from cutaway.weights.load import ADAPTER as CONFIG
from cutaway.weights.load import Checkpoint
from cutaway.weights.load import read as read_model
from cutaway.weights.rules import Bound, Tensors

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
EXTENSION = "context_extension"  # ours: what the base's positions were when the adapter was trained
READ = f"""peft_type r lora_alpha use_rslora use_dora rank_pattern alpha_pattern fan_in_fan_out {EXTENSION}"""
# What training used, or what the tensors say again.
HARMLESS = """task_type base_model_name_or_path revision inference_mode lora_dropout target_modules
    exclude_modules bias modules_to_save layers_to_transform layers_pattern init_lora_weights
    peft_version auto_mapping feedforward_modules init_ia3_weights ensure_weight_tying runtime_config
    eva_config corda_config megatron_core qalora_group_size loftq_config"""
HIGHEST = 1e30  # of any number in a config
SECONDS = 5  # for all patterns of a config over all modules
KNOWN = frozenset(f"{READ} {HARMLESS}".split())
PART = re.compile(
    r"(.*)\.(lora_A|lora_B|lora_magnitude_vector|ia3_l|lora_embedding_A|lora_embedding_B)(\.weight)?$"
)


@dataclass(frozen=True)
class LowRank:
    """W' = W + scale B A with A [r in], B [out r]; with a ``magnitude`` [out] it is DoRA's."""

    a: np.ndarray
    b: np.ndarray
    scale: float
    magnitude: np.ndarray | None = None

    @property
    def delta(self) -> np.ndarray:
        """What LoRA adds, [out in]."""
        return np.float32(self.scale) * (self.b @ self.a)

    def __call__(self, weight: np.ndarray) -> np.ndarray:
        if self.magnitude is None:
            return weight + self.delta
        return (weight + self.delta) * self.factor(weight)[:, None]

    def factor(self, weight: np.ndarray) -> np.ndarray:
        """DoRA's magnitude / norm of each row, float32 [out]."""
        norm = np.linalg.norm((weight + self.delta).astype(np.float64), axis=1)
        return (self.magnitude / norm).astype(np.float32)


@dataclass(frozen=True)
class Scaled:
    """W' = diag(l) W for ``side`` "out", W diag(l) for "in"."""

    factors: np.ndarray
    side: Literal["out", "in"]

    def __call__(self, weight: np.ndarray) -> np.ndarray:
        if self.side == "in":
            return weight * self.factors
        return weight * self.factors.reshape(-1, *(1,) * (weight.ndim - 1))  # a bias too


@dataclass(frozen=True)
class Saved:
    """W' = the stored weight."""

    weight: np.ndarray

    def __call__(self, weight: np.ndarray) -> np.ndarray:
        if weight.shape != self.weight.shape:
            raise UserError(
                f"an adapter's weight has the shape {self.weight.shape}, the base's {weight.shape}"
            )
        return self.weight


Change = LowRank | Scaled | Saved
Adapter = Mapping[str, Change]  # by our names of weights


class ByModule:
    """A number by module, as PEFT looks it up: of the first pattern that the module's name matches, whole or
    after a dot; ``usual`` where none does. Patterns are matched in linear time.
    """

    def __init__(self, patterns: Mapping[str, float], usual: float, where: str) -> None:
        self.patterns, self.usual, self.where = patterns, usual, where
        self.end = time.monotonic() + SECONDS
        self.compiled: list[tuple[Any, float]] = []
        for one, value in patterns.items():
            self.compiled.append((linear(rf"(.*\.)?({one})", where), value))
            self._in_time()

    def __call__(self, module: str) -> float:
        self._in_time()
        found = (value for pattern, value in self.compiled if pattern.fullmatch(module))
        return next(found, self.usual)

    def _in_time(self) -> None:
        if time.monotonic() > self.end:
            raise UserError(f"{self.where}: its {len(self.patterns):,} patterns take over {SECONDS} seconds")


class Settings(NamedTuple):
    """What PEFT's config says of the tensors beside it."""

    ranks: ByModule
    alphas: ByModule
    rs: bool
    dora: bool
    ties: bool

    @classmethod
    def read(cls, path: Path) -> Settings:
        """UserError for an entry of another type than PEFT's, and for one that is not supported."""
        data = parsed(path)
        fields = Fields(data, path)
        kind = fields.get("peft_type")
        if kind not in ("LORA", "IA3"):
            raise UserError(f"{path}: peft_type is {quoted(kind)}: LORA and IA3 are read")
        for key, value in data.items():
            if key not in KNOWN and value not in (None, False, {}, [], ()):
                raise UserError(f"{path}: {quoted(key)} is set, which is not supported")
        rank, alpha = fields.integer("r", 8), fields.number("lora_alpha", 8.0, low=-HIGHEST)
        return cls(
            ByModule(_numbers(fields, "rank_pattern"), rank, f"{path}: rank_pattern"),
            ByModule(_numbers(fields, "alpha_pattern"), alpha, f"{path}: alpha_pattern"),
            fields.flag("use_rslora", False),
            fields.flag("use_dora", False),
            fields.flag("ensure_weight_tying", False),
        )


def _numbers(fields: Fields, name: str) -> dict[str, float]:
    """A number by pattern."""
    section = fields.section(name)
    if section is None:
        return {}
    keys = [key.removeprefix(section.prefix) for key in section.data]
    return {key: section.number(key, low=-HIGHEST) for key in keys}


def read(folder: str | Path, base: Checkpoint) -> Adapter:
    """The adapter of a PEFT folder, or of llama.cpp's GGUF file, for ``base``. UserError for what is not
    read, or does not fit the base.

    PEFT changes a tied table and head apart, unless its config says ``ensure_weight_tying``: an adapter of
    either then has a change of ``head.weight``, which ``joined`` unties.
    """
    folder = Path(folder)
    if folder.suffix == ".gguf" and not folder.is_dir():
        from cutaway.weights import gguf_adapters

        return gguf_adapters.read(folder, base)
    check_folder(folder)
    config = Settings.read(folder / CONFIG)
    tied, base = "head.weight" not in base.tensors, _untied(base)
    names = {each.theirs: each for each in _family(base)}
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, packed in safetensors.read(folder / WEIGHTS).items():
        module, part = _split(name, folder)
        parts.setdefault(module, {})[part] = quant.unpack(packed)
    changes: dict[str, Change] = {}
    for module in [module for module in parts if module.endswith(".base_layer")]:  # PEFT saves a tuned head's
        own = _changes(module.removesuffix(".base_layer"), parts.pop(module), config, names, folder)
        if any(
            not np.array_equal(change(kept := quant.unpack(base.tensors[ours])), kept) for ours, change in own
        ):
            raise UserError(f"{folder}: {quoted(module)} is another matrix than the base model's")
    for module, found in parts.items():
        for ours, change in _changes(module, found, config, names, folder):
            shape = base.tensors.later(ours).shape
            check(change, shape, f"{folder}: {quoted(module)}")
            changes[ours] = change
            bias = f"{ours.removesuffix('weight')}bias"
            if isinstance(change, Scaled) and change.side == "out" and bias in base.tensors:
                changes[bias] = change
    if not changes:
        raise UserError(f"{folder / WEIGHTS}: holds no tensors")
    if "embedding.weight" in changes and tied and not config.ties:
        changes.setdefault("head.weight", Scaled(np.ones(base.config.vocab, np.float32), "out"))
    return changes


def opened(folder: Path) -> Checkpoint:
    """The base that an adapter's folder names, with the adapter in its weights."""
    base = extended(base_of(folder), folder)
    return replace(joined(base, read(folder, base)), source=folder)


def extended(base: Checkpoint, folder: str | Path) -> Checkpoint:
    """The base with the positions that the adapter was trained with (``model/context.py``)."""
    path = Path(folder) / CONFIG
    entry = parsed(path).get(EXTENSION) if path.is_file() else None
    if entry is None:
        return base
    extension = from_dict(entry, ContextExtension, f"{path}: {EXTENSION}")
    return replace(base, config=extension.extended(base.config))


def apart(model: Checkpoint) -> tuple[Checkpoint, Adapter]:
    """A checkpoint that was ``opened`` from an adapter's folder as its base and that adapter.

    Any other is its own base, and so is one whose adapter is no low-rank change without a magnitude.
    """
    if isinstance(model.source, Path) and (model.source / CONFIG).is_file():
        base = extended(base_of(model.source), model.source)
        changes = read(model.source, base)
        plain = (isinstance(change, LowRank) and change.magnitude is None for change in changes.values())
        if all(plain) and changes.keys() <= set(base.tensors):
            return base, changes
    return model, {}


def stacked(first: Adapter, second: Adapter) -> Adapter:
    """Both low-rank changes as one of the sum of their ranks; UserError where one is of another kind."""
    made = {**first, **second}
    for name in first.keys() & second.keys():
        one, other = first[name], second[name]
        if not (isinstance(one, LowRank) and isinstance(other, LowRank)) or other.magnitude is not None:
            raise UserError(f"{name} is changed by two adapters, of which one is no LoRA: merge the first")
        b = np.concatenate([one.scale * one.b, other.scale * other.b], axis=1, dtype=np.float32)
        made[name] = LowRank(np.concatenate([one.a, other.a]), b, 1.0)
    return made


def base_of(folder: Path) -> Checkpoint:
    """The base that an adapter's folder names."""
    if folder.suffix == ".gguf" and not folder.is_dir():
        raise UserError(f"{folder}: a GGUF adapter names no base model: name it by --model")
    check_folder(folder)
    name = parsed(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(
            f"{folder / CONFIG}: names no base model: load the base, and give this as its adapter"
        )
    return read_model(store.resolve(name, pull=True))


class Rounding(NamedTuple):
    """What rounding does to one changed weight.

    ``error``: |written - exact| / |exact - base|, above 1 where it outweighs the change. ``changed``: how
    many values the adapter changes; ``lost``: how many of them by less than half a step of the type.
    """

    error: float
    changed: int
    lost: int


def rounding(base: Checkpoint, adapter: Adapter, written: Checkpoint) -> dict[str, Rounding]:
    """What the type that a model was written in does to each changed weight."""
    if "head.weight" in adapter:
        base = _untied(base)
    found: dict[str, Rounding] = {}
    for name, change in adapter.items():
        before, stored = quant.unpack(base.tensors[name]), written.tensors[name]
        exact = change(before)
        moved = np.abs(exact - before)
        size, away = (float(np.linalg.norm(each)) for each in (moved, quant.unpack(stored) - exact))
        lost = int(((moved > 0) & (moved < quant.steps(stored) / 2)).sum())
        found[name] = Rounding(away / size if size else 0.0, int(np.count_nonzero(moved)), lost)
    return found


class AdaptedTensors(Tensors):
    """A base's weights with an adapter's changes in them, each computed in float32 when it is asked for.

    ``base`` and ``adapter`` are both apart, for an engine that applies the one beside the other."""

    def __init__(self, base: Tensors, adapter: Adapter) -> None:
        self.base, self.adapter = base, adapter

        def later(name: str) -> Packed | Later:
            entry, change = base.later(name), adapter.get(name)
            if change is None:
                return entry
            return Later("F32", entry.shape, lambda: quant.pack(change(quant.unpack(base[name])), "F32"))

        super().__init__({name: later(name) for name in base})


def joined(base: Checkpoint, adapter: Adapter) -> Checkpoint:
    """The base with the adapter's changes in its weights; untied where they are of the head alone."""
    if "head.weight" in adapter:
        base = _untied(base)
    return replace(base, tensors=AdaptedTensors(base.tensors, adapter))


def _untied(base: Checkpoint) -> Checkpoint:
    """The same model, its embedding table once more as the head of its own."""
    if not isinstance(base.config, Decoder) or not base.config.tied:
        return base
    tensors = {name: base.tensors.later(name) for name in base.tensors}
    tensors["head.weight"] = tensors["embedding.weight"]
    return replace(base, config=replace(base.config, tied=False), tensors=Tensors(tensors))


def write(
    folder: str | Path,
    adapter: Mapping[str, LowRank] | Mapping[str, Scaled],
    base: Checkpoint,
    name: str,
    force: bool = False,
) -> None:
    """Write low-rank changes, or scaled ones (IA3), as a new folder that PEFT and ``read`` open.

    ``name`` is the base's, for ``base_model_name_or_path``. Raises UserError for a base that no family
    describes.
    """
    with atomic_folder(folder, force=force) as made:
        save(made, adapter, base, name)


def save(
    folder: Path,
    adapter: Mapping[str, LowRank] | Mapping[str, Scaled],
    base: Checkpoint,
    name: str,
    extension: ContextExtension | None = None,
) -> None:
    """The two files of ``write``, each replaced whole, in a folder that holds more.

    Several of our matrices that are one of Hugging Face's become one pair of a higher rank, exactly. The
    scale is folded into B, so that alpha / r is 1 everywhere. ``extension`` is what ``base`` was extended by,
    which PEFT leaves out with a warning.
    """
    tensors: dict[str, Packed] = {}
    ranks: dict[str, int] = {}
    feedforward: set[str] = set()
    low_rank = any(isinstance(change, LowRank) for change in adapter.values())
    family = _family(base)
    for bound in family:
        found = [adapter.get(ours) for ours in bound.ours]
        if not any(found) or not bound.theirs.endswith(".weight"):
            continue
        module = bound.theirs.removesuffix(".weight")
        if low_rank:
            a, b, magnitude = side_by_side(found, bound.place.shapes)
            ranks[module] = len(a)
            parts = {"lora_A.weight": a, "lora_B.weight": b, "lora_magnitude_vector": magnitude}
        else:
            factors, reads = _factors(found, module)
            parts, ranks[module] = {"ia3_l": factors}, 0
            feedforward |= {module.rpartition(".")[2]} if reads else set()
        for part, array in parts.items():
            if array is not None:
                tensors[f"{PREFIX}{module}.{part}"] = quant.pack(array, "F32")
    short = {module.rpartition(".")[2] for module in ranks}  # PEFT takes every module whose name ends so
    meant = {
        one for one in (b.theirs.removesuffix(".weight") for b in family) if one.rpartition(".")[2] in short
    }
    config: dict[str, Any] = {
        "peft_type": "LORA" if low_rank else "IA3",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "inference_mode": True,
        "target_modules": sorted(short if meant == ranks.keys() else ranks),
        "fan_in_fan_out": base.family == "gpt2",
    }
    if low_rank:
        usual = max(set(ranks.values()), key=list(ranks.values()).count)
        others = {module: rank for module, rank in ranks.items() if rank != usual}
        config |= {"r": usual, "lora_alpha": usual, "rank_pattern": others, "alpha_pattern": others}
        config |= {"lora_dropout": 0.0, "bias": "none"}
        config |= {
            "use_dora": any(getattr(change, "magnitude", None) is not None for change in adapter.values())
        }
    else:
        config |= {"feedforward_modules": sorted(feedforward)}
    if extension is not None:
        config[EXTENSION] = {"kind": extension.kind, "factor": extension.factor}
    safetensors.write(folder / WEIGHTS, tensors)
    write_file(folder / CONFIG, json.dumps(config, indent=1))


def check_folder(folder: Path) -> None:
    """UserError unless the folder holds an adapter."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: holds no adapter: there is no {CONFIG} in it")


def _family(base: Checkpoint) -> list[Bound]:
    """The base's weights by Hugging Face's names."""
    if base.family is None:
        raise UserError(
            f"{base.source}: no family describes this model, so PEFT has no names for its weights"
        )
    return rules.bind(families.get(base.family).hf, base.config)


def _factors(found: Sequence[Any], module: str) -> tuple[np.ndarray, bool]:
    """IA3's factors of one of Hugging Face's matrices, and whether they scale what it reads."""
    sides = {change.side if change is not None else None for change in found}
    if len(sides) > 1 or (sides == {"in"} and len(found) > 1):
        raise UserError(f"{module}: PEFT scales all parts of this matrix alike: train all, or none")
    factors = np.concatenate([change.factors for change in found])
    return (factors[None], True) if sides == {"in"} else (factors[:, None], False)


def side_by_side(
    pairs: Sequence[Any], shapes: Sequence[tuple[int, ...]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Pairs of matrices that are stored one above the other as one pair, B block by block."""
    a = np.concatenate([pair.a if pair else np.zeros((0, shapes[0][1]), np.float32) for pair in pairs])
    b = np.zeros((sum(shape[0] for shape in shapes), len(a)), np.float32)
    row = column = 0
    for pair, (count, _) in zip(pairs, shapes, strict=True):
        if pair is not None:
            rank = len(pair.a)
            b[row : row + count, column : column + rank] = np.float32(pair.scale) * pair.b
            column += rank
        row += count
    magnitudes = [pair.magnitude for pair in pairs if pair is not None and pair.magnitude is not None]
    if magnitudes and len(magnitudes) < len(pairs):
        raise UserError(
            "DoRA of a part of one of Hugging Face's matrices cannot be written: train all its parts"
        )
    return a, b, np.concatenate(magnitudes) if magnitudes else None


def _split(name: str, folder: Path) -> tuple[str, str]:
    plain = name.removeprefix(PREFIX)
    found = PART.match(plain)
    if found:
        return found[1], found[2]
    module, _, part = plain.rpartition(".")
    if part in ("weight", "bias"):
        return module, part
    raise UserError(f"{folder / WEIGHTS}: {quoted(name)} is no tensor of an adapter that is read")


def _changes(
    module: str,
    found: dict[str, np.ndarray],
    config: Settings,
    names: Mapping[str, Bound],
    folder: Path,
) -> list[tuple[str, Change]]:
    """The changes of our weights that a module's tensors are."""
    where = f"{folder}: {quoted(module)}"
    bound = names.get(f"{module}.weight")
    if bound is None:
        raise UserError(f"{where}: the base model has no such matrix")
    cuts = np.cumsum([shape[0] for shape in bound.place.shapes])[:-1].tolist()
    if found.keys() == {"lora_A", "lora_B"} or found.keys() == {"lora_A", "lora_B", "lora_magnitude_vector"}:
        if config.dora is not ("lora_magnitude_vector" in found):
            raise UserError(f"{where}: use_dora and the tensors do not agree")
        a, b = found["lora_A"], found["lora_B"]
        if a.ndim != 2 or b.ndim != 2 or not a.size:
            raise UserError(f"{where}: lora_A and lora_B should be matrices, not {a.shape} and {b.shape}")
        scale = _scale(module, len(a), config)
        magnitude = found.get("lora_magnitude_vector")
        magnitudes = np.split(magnitude.ravel(), cuts) if magnitude is not None else [None] * len(bound.ours)
        return [
            (ours, LowRank(a, rows, scale, part))
            for ours, rows, part in zip(bound.ours, np.split(b, cuts), magnitudes, strict=True)
        ]
    if found.keys() == {"ia3_l"}:
        factors = found["ia3_l"]
        if (
            factors.ndim > 1 and factors.shape[0] == 1 and factors.size > 1
        ):  # [1 in]: it scales what the matrix reads
            return [(ours, Scaled(factors.ravel(), "in")) for ours in bound.ours]
        return [
            (ours, Scaled(part, "out"))
            for ours, part in zip(bound.ours, np.split(factors.ravel(), cuts), strict=True)
        ]
    if found.keys() == {"weight"} and len(bound.ours) == 1:
        packed = bound.how.load(quant.pack(np.ascontiguousarray(found["weight"]), "F32"), bound.place)[0]
        return [(bound.ours[0], Saved(quant.unpack(packed)))]
    raise UserError(
        f"{where}: has {', '.join(sorted(found))}, which is not read: LoRA, DoRA, IA3 and saved modules are"
    )


def _scale(module: str, rank: int, config: Settings) -> float:
    expected = config.ranks(module)
    if rank != expected:
        raise UserError(
            f"{quoted(module)}: the adapter's config says rank {expected}, its tensors have {rank}"
        )
    return config.alphas(module) / (math.sqrt(rank) if config.rs else rank)


def check(change: Change, shape: tuple[int, ...], where: str) -> None:
    """UserError unless the change fits a weight of this shape and is finite."""
    arrays: list[np.ndarray] = [value for value in vars(change).values() if isinstance(value, np.ndarray)]
    if not all(np.isfinite(array).all() for array in arrays):
        raise UserError(f"{where}: holds a number that is NaN or infinite")
    if isinstance(change, LowRank):
        fits = change.a.ndim == change.b.ndim == len(shape) == 2
        fits = fits and (change.b.shape[0], change.a.shape[1]) == shape
        fits = fits and change.b.shape[1] == change.a.shape[0]
        fits &= change.magnitude is None or change.magnitude.shape == shape[:1]
    elif isinstance(change, Scaled):
        fits = len(change.factors) == shape[0 if change.side == "out" else 1]
    else:
        fits = change.weight.shape == shape
    if not fits:
        raise UserError(f"{where}: does not fit the base's matrix of {shape[0]} x {shape[-1]}")
