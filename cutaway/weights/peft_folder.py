"""PEFT's folders read and written: ``adapter_config.json`` and ``adapter_model.safetensors``.

Names are those of transformers' modules. The family's rules say which of our weights each holds, and in
which order (``weights/layout.py``): a change passes through the rule that loads the weight itself. What PEFT
can and this cannot is refused by name.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.gguf import Packed
from cutaway.layers.config import MoE
from cutaway.model.config import Decoder, Encoder, EncoderDecoder
from cutaway.model.context import ContextExtension
from cutaway.store.files import write as write_file
from cutaway.weights import families, layout, pairs, quant, rules, safetensors, wrappers
from cutaway.weights.changes import Adapter, Added, Change, LowRank, Saved, Scaled, check
from cutaway.weights.layout import Matrix
from cutaway.weights.load import Checkpoint
from cutaway.weights.peft_config import CONFIG, EXTENSION, Settings
from cutaway.weights.rules import Bound, Tensors

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
INNER = ".base_layer"  # of a module that PEFT wraps
PART = re.compile(
    r"(.*)\.(lora_A|lora_B|lora_E|lora_magnitude_vector|lora_embedding_A|lora_embedding_B|ia3_l"
    r"|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|vera_lambda_[bd])(\.weight|\.bias)?"
)
SHARED = ("vera_A", "vera_B")  # of all modules together
IN_ORDER = ("gate_up_proj", "up_proj", "down_proj")  # as PEFT wraps the stacked parameters of a module
# Ends of names that PEFT takes for experts in a mixture, whatever else has them.
TAKEN = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
TABLES = ("embedding.weight", "position.weight", "segment.weight", ".relative.weight")
NO_MAMBA = ("out_proj", "conv1d")  # which PEFT refuses in models of these families
MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
SWAPPED = (
    "llama4",
)  # families that stack experts as [in out] without telling PEFT, whose pairs change sides
Parts = dict[str, np.ndarray]


class Names:
    """A model's weights by the names of transformers' parameters, newer and older, and by a wrapper's."""

    def __init__(self, base: Checkpoint) -> None:
        if base.family is None:
            raise UserError(
                f"{base.source}: no family describes this model, so PEFT has no names for its weights"
            )
        family = families.get(base.family)
        if isinstance(base.config, Decoder) and any(block.shared for block in base.config.blocks):
            raise UserError(
                f"{base.source}: several of its layers share a transformer, which PEFT changes apart in each"
            )
        self.prefix, self.spellings = family.prefix, family.spellings
        self.swapped = family.name in SWAPPED
        tables = {source for copy, source in family.copies if "embed_tokens" in copy}  # read as their copies
        self.bypassed = (*family.bypassed, *(source.split(".")[-2] for source in tables))
        more = family.also_ignored(base.config) if family.also_ignored else ()
        layers = str(len(base.config.blocks))
        self.ignored = [name.replace("{layers}", layers) for name in (*family.ignored_hf, *more)]
        self.parts = [part.removeprefix("model.") for part in base.left_out]  # of a multimodal model
        self.modules = {each.theirs: each for each in layout.modules(family, base.config)}
        self.all = {each.theirs: each for each in rules.bind(family.hf, base.config)} | self.modules
        self.stacks: dict[str, list[str]] = {}  # the parameters that stack matrices, of each module
        for name, each in self.modules.items():
            if len(each.how.shape(each.place)) == 3 and len(each.ours) > 1:
                self.stacks.setdefault(name.rpartition(".")[0], []).append(name.rpartition(".")[2])
        for found in self.stacks.values():
            found.sort(key=lambda name: IN_ORDER.index(name) if name in IN_ORDER else len(IN_ORDER))

    def biases(self, bound: Bound) -> tuple[str, ...]:
        """Our biases that are in the module of one of their matrices."""
        found = self.all.get(f"{bound.theirs.removesuffix('weight')}bias")
        return () if found is None else found.ours

    def left_out(self, name: str) -> bool:
        """Whether a weight is of a part of their model that takes no part in ours (a pooler, eyes)."""
        if any(name.removeprefix("model.").startswith(f"{part}.") for part in self.parts):
            return True
        return any(fnmatchcase(one, pattern) for one in self._spellings(name) for pattern in self.ignored)

    def spelled(self, name: str, known: Mapping[str, object]) -> str | None:
        """A name of PEFT's as ``known`` has it: the model's, a wrapper's, or one without its prefix."""
        return next((one for one in self._spellings(name) if one in known), None)

    def _spellings(self, name: str) -> list[str]:
        rest = wrappers.PREFIX.sub("", wrappers.HEAD.sub("", name, count=1), count=1)
        spellings = [name, rest, f"model.{rest}", f"{self.prefix}{name}"]
        for other, own in self.spellings:
            spellings += [name.replace(other, own)]
        return spellings


def read(folder: Path, base: Checkpoint) -> Adapter:
    """The adapter of a PEFT folder for ``base``. UserError for what is not read, or does not fit the base."""
    settings = Settings.read(folder / CONFIG)
    tied, base = "head.weight" not in base.tensors, untied(base)
    names, modules, whole = Names(base), {}, {}
    for name, packed in safetensors.read(folder / WEIGHTS).items():
        plain = name.removeprefix(PREFIX)
        if found := PART.fullmatch(plain):
            part = found[2] + (".bias" if found[3] == ".bias" else "")
            modules.setdefault(found[1], {})[part] = quant.unpack(packed)
        else:
            whole[plain.removeprefix("base_model.")] = packed
    changes: dict[str, Change] = {}
    shared = {name: quant.unpack(whole.pop(name)) for name in SHARED if name in whole}
    left_out = {name.rpartition(".")[0] for name in whole if names.left_out(name)}
    left_out |= {module for module in modules if names.left_out(f"{module}.weight")}
    _say_left_out(left_out, base, folder)
    for name, packed in whole.items():
        if name.rpartition(".")[0] not in left_out:
            changes |= _saved(name, packed, names, base, folder)
    stacks: dict[str, dict[int, Parts]] = {}
    for module, parts in modules.items():
        if module in left_out:
            continue
        plain = module
        while plain.endswith(INNER):
            plain = plain.removesuffix(INNER)
        if names.spelled(plain, names.stacks):
            depth = (len(module) - len(plain)) // len(INNER)
            stacks.setdefault(plain, {})[depth] = parts
            continue
        own = _changes(module, parts | _shared(shared, settings, folder), settings, names, base, folder)
        if module.rpartition(".")[2] not in names.bypassed:
            changes |= own
        elif settings.residual or any(map(_acts, own.values())):  # trained past PEFT it stays as it began
            raise UserError(
                f"{folder}: {quoted(module)}: transformers reads its weight past PEFT, so its change "
                "takes no part before it is merged: take its tensors out of the folder"
            )
    for module, levels in stacks.items():
        changes |= _stacked(module, levels, settings, names, base, folder)
    if not changes:
        raise UserError(f"{folder / WEIGHTS}: holds no tensors")
    if "embedding.weight" in changes and tied and not settings.ties:
        changes.setdefault("head.weight", Scaled(np.ones(base.config.vocab, np.float32), "out"))
    return changes


def _say_left_out(modules: Set[str], base: Checkpoint, folder: Path) -> None:
    """Warn of changes of parts that are not read. UserError where the base has a head that they replace."""
    if not modules:
        return
    named = ", ".join(sorted(quoted(module) for module in modules)[:3])
    heads = [module for module in modules if module.split(".")[0] in ("classifier", "score")]
    if heads and base.classifier:
        raise UserError(
            f"{folder}: holds a head of its own ({named}), and the base has one, which would remain"
        )
    more = f" and {len(modules) - 3} more" if len(modules) > 3 else ""
    warnings.warn(f"{folder}: changes {named}{more}, which take no part here and are left out", stacklevel=3)


def _acts(change: Change) -> bool:
    """Whether a change changes anything."""
    if isinstance(change, LowRank) and change.magnitude is None:
        return bool(change.b.any() and change.a.any())
    return not (isinstance(change, Scaled) and (change.factors == 1).all())


def _shared(shared: Parts, settings: Settings, folder: Path) -> Parts:
    if settings.kind != "VERA":
        return {}
    if shared.keys() != set(SHARED):
        raise UserError(
            f"{folder}: holds no vera_A and vera_B, which PEFT would draw anew: save it with "
            "save_projection set to true"
        )
    return shared


def untied(base: Checkpoint) -> Checkpoint:
    """The same model, its embedding table once more as the head of its own."""
    if not isinstance(base.config, Decoder) or not base.config.tied:
        return base
    tensors = {name: base.tensors.later(name) for name in base.tensors}
    tensors["head.weight"] = tensors["embedding.weight"]
    return replace(base, config=replace(base.config, tied=False), tensors=Tensors(tensors))


def _saved(name: str, packed: Packed, names: Names, base: Checkpoint, folder: Path) -> dict[str, Change]:
    """The changes that a tensor is which is stored whole."""
    inner = name.rpartition(".")[0].endswith(INNER)
    plain = name.replace(f"{INNER}.", ".") if inner else name
    where = f"{folder}: {quoted(plain.rpartition('.')[0])}"
    known = names.spelled(plain, names.all)
    if known is None and not plain.endswith((".weight", ".bias")):
        raise UserError(f"{folder / WEIGHTS}: {quoted(name)} is no tensor of an adapter that is read")
    if known is None:
        raise UserError(f"{where}: the base model has no such matrix")
    if known.split(".")[-2] in names.bypassed:
        raise UserError(f"{where}: transformers reads this table past PEFT, so it takes no part: take it out")
    bound = names.all[known]
    if packed.shape != bound.how.shape(bound.place):
        raise UserError(f"{where}: is of the shape {packed.shape}, the base's {bound.how.shape(bound.place)}")
    whole = quant.pack(np.ascontiguousarray(quant.unpack(packed)), "F32")
    parts = bound.how.load(whole, bound.place)
    found: dict[str, Change] = {ours: Saved(quant.unpack(parts[n])) for n, ours in enumerate(bound.ours)}
    for ours, change in found.items():
        check(change, base.tensors.later(ours).shape, where)
    if inner and plain.endswith(".weight"):  # PEFT saves the base of a tuned table or head beside its pair
        if any(not np.array_equal(change(kept), kept) for change, kept in _kept(found, base)):
            raise UserError(f"{where}: is beside another matrix than the base model's")
        return {}
    return found


def _kept(found: Mapping[str, Change], base: Checkpoint) -> Iterator[tuple[Change, np.ndarray]]:
    for ours, change in found.items():
        yield change, quant.unpack(base.tensors[ours])


def _changes(
    module: str, parts: Parts, settings: Settings, names: Names, base: Checkpoint, folder: Path
) -> dict[str, Change]:
    """The changes of our weights that a module's tensors are."""
    where = f"{folder}: {quoted(module)}"
    known = names.spelled(f"{module}.weight", names.all)
    if known is None:
        raise UserError(f"{where}: the base model has no such matrix")
    if not settings.targets(module):
        raise UserError(
            f"{where}: target_modules does not name it, so PEFT leaves its tensors out: take them out of "
            f"{WEIGHTS}, or name it"
        )
    bound = names.all[known]
    if settings.targets.linear and bound.ours == ("head.weight",):
        raise UserError(f"{where}: all-linear leaves the output layer out, so PEFT leaves its tensors out")
    try:
        matrix = layout.matrix(bound)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if parts.keys() == {"ia3_l"}:
        return _scaled(parts["ia3_l"], bound, matrix, names, where)
    if parts.keys() >= {"lora_embedding_A", "lora_embedding_B"}:
        if parts.keys() != {"lora_embedding_A", "lora_embedding_B"}:
            raise UserError(f"{where}: DoRA of an embedding table is not supported")
        parts = {"lora_A": parts["lora_embedding_B"].T, "lora_B": parts["lora_embedding_A"].T}
        settings = settings._replace(dora=False, residual=None)  # whose starts PEFT does not give to tables
    return _low_rank(module, parts, settings, bound, matrix, names, base, where)


def _scaled(factors: np.ndarray, bound: Bound, matrix: Matrix, names: Names, where: str) -> dict[str, Change]:
    reads = factors.ndim > 1 and factors.shape[0] == 1 and factors.size > 1  # [1 in]
    check(Scaled(factors.ravel(), "in" if reads else "out"), (matrix.outputs, matrix.inputs), where)
    found: dict[str, Change] = {}
    for ours, order in zip(bound.ours, matrix.orders, strict=True):
        if reads:
            found[ours] = Scaled(factors.ravel()[order.columns], "in")
            continue
        found[ours] = Scaled(factors.ravel()[order.rows], "out")
        bias = f"{ours.removesuffix('weight')}bias"
        if bias in names.biases(bound):
            found[bias] = found[ours]
    return found


def _low_rank(
    module: str,
    parts: Parts,
    settings: Settings,
    bound: Bound,
    matrix: Matrix,
    names: Names,
    base: Checkpoint,
    where: str,
) -> dict[str, Change]:
    shape = (matrix.outputs, matrix.inputs)
    magnitude, bias = parts.get("lora_magnitude_vector"), parts.get("lora_B.bias")
    if settings.dora is not (magnitude is not None):
        raise UserError(f"{where}: use_dora and the tensors do not agree")
    left = {
        name: part for name, part in parts.items() if name not in ("lora_magnitude_vector", "lora_B.bias")
    }
    by_weight = settings.targets.parameter(f"{module}.weight")  # which patterns then have the name of
    change = pairs.pair(left, f"{module}.weight" if by_weight else module, settings, where, shape)
    change = replace(change, magnitude=None if magnitude is None else magnitude.ravel())
    check(change, shape, where)
    found: dict[str, Change] = {}
    if bias is not None:
        check(Added(bias), shape[:1], where)
        for ours, order in zip(bound.ours, matrix.orders, strict=True):
            name = f"{ours.removesuffix('weight')}bias"
            if name not in names.biases(bound):
                raise UserError(f"{where}: has a bias, and the base's matrix has none")
            found[name] = Added(np.float32(change.scale) * bias[order.rows])
    if settings.residual:
        change = pairs.without(change, _taken(module, change, settings, bound, matrix, base, where))
    for ours, order in zip(bound.ours, matrix.orders, strict=True):
        own = None if change.magnitude is None else change.magnitude[order.rows]
        found[ours] = LowRank(change.a[:, order.columns], change.b[order.rows], change.scale, own)
    return found


def _taken(
    module: str,
    change: LowRank,
    settings: Settings,
    bound: Bound,
    matrix: Matrix,
    base: Checkpoint,
    where: str,
) -> LowRank:
    """What PiSSA or OLoRA takes out of the base."""
    if settings.residual == "olora" and matrix.transposed:
        raise UserError(f"{where}: OLoRA of a transposed matrix has no meaning in PEFT, which cannot open it")
    weight = np.empty((matrix.outputs, matrix.inputs), np.float32)
    for ours, order in zip(bound.ours, matrix.orders, strict=True):
        weight[np.ix_(order.rows, order.columns)] = quant.unpack(base.tensors[ours])
    taken = pairs.residual(weight, len(change.a), str(settings.residual))
    return replace(taken, scale=change.scale) if settings.residual == "olora" else taken


def _stacked(
    module: str, levels: Mapping[int, Parts], settings: Settings, names: Names, base: Checkpoint, folder: Path
) -> dict[str, Change]:
    """The changes of experts: PEFT wraps a module once for each of its parameters, the first innermost."""
    where = f"{folder}: {quoted(module)}"
    container = names.spelled(module, names.stacks) or module
    targets = [name for name in names.stacks[container] if settings.targets.parameter(f"{module}.{name}")]
    if sorted(levels) != list(range(len(targets))):
        raise UserError(
            f"{where}: target_parameters names {', '.join(targets) or 'none'} of its parameters, and it has "
            f"tensors for {len(levels)}"
        )
    found: dict[str, Change] = {}
    for depth, parts in levels.items():
        name = targets[len(targets) - 1 - depth]
        bound = names.modules[f"{container}.{name}"]
        matrix = layout.matrix(bound)
        experts = matrix.entries or 1
        if parts.keys() != {"lora_A", "lora_B"} or settings.kind != "LORA" or settings.dora:
            raise UserError(
                f"{where}: of stacked parameters LoRA alone is read, not {', '.join(sorted(parts))}"
            )
        if settings.residual:
            raise UserError(f"{where}: {settings.residual} of stacked parameters has no meaning in PEFT")
        a, b = parts["lora_A"], parts["lora_B"]
        if a.ndim != 2 or b.ndim != 2 or not len(a) or len(a) % experts or b.shape[1] != len(a):
            raise UserError(f"{where}: a pair for each of {experts} experts should be in {name}'s tensors")
        scale = pairs.scale(f"{module}.{name}", len(a) // experts, settings)
        a, b = a.reshape(experts, -1, a.shape[1]), b.reshape(len(b), -1, experts)
        if names.swapped:
            a, b = b.T, a.T
        for ours, order in zip(bound.ours, matrix.orders, strict=True):
            whole = LowRank(a[order.entry], b[:, :, order.entry], scale)
            check(whole, (matrix.outputs, matrix.inputs), where)
            found[ours] = LowRank(whole.a[:, order.columns], whole.b[order.rows], scale)
    return found


# ---- written -----------------------------------------------------------------------------------------------


def joined_pair(
    found: Sequence[LowRank | None], orders: Sequence[layout.Order], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of matrices that are one of theirs as one pair of the sum of their ranks, the scale in B."""
    rank = sum(len(one.a) for one in found if one is not None)
    a, b = np.zeros((rank, shape[1]), np.float32), np.zeros((shape[0], rank), np.float32)
    at = 0
    for one, order in zip(found, orders, strict=True):
        if one is not None:
            rows = slice(at, at + len(one.a))
            a[rows, order.columns] = one.a
            b[order.rows, rows] = np.float32(one.scale) * one.b
            at += len(one.a)
    return a, b


class Written:
    """The tensors of a folder, and what its config says of them."""

    def __init__(self, adapter: Adapter, base: Checkpoint) -> None:
        self.adapter, self.base, self.names = adapter, base, Names(base)
        self.tensors: dict[str, Packed] = {}
        self.modules: dict[str, int] = {}  # ranks
        self.parameters: dict[str, int] = {}
        self.feedforward: set[str] = set()
        self.transposed = False
        self.low_rank = any(isinstance(change, LowRank) for change in adapter.values())
        self.dora = any(getattr(change, "magnitude", None) is not None for change in adapter.values())
        self.mixture = any(isinstance(block.mlp, MoE) for block in base.config.blocks)
        self.written: set[str] = set()

    def fill(self) -> None:
        """Make all tensors. UserError for a change that PEFT has no form for."""
        stacks: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = {}
        for bound in self.names.modules.values():
            found: list[Any] = [self.adapter.get(ours) for ours in bound.ours]
            if not any(found) or not bound.ours[0].endswith(".weight"):
                continue
            matrix = layout.matrix(bound)
            self.transposed |= matrix.transposed and matrix.entries is None
            kinds = {type(change) for change in found if change is not None}
            if kinds != {LowRank if self.low_rank else Scaled}:
                raise UserError(f"{bound.theirs}: only LoRA, DoRA or IA3 alone are written for PEFT")
            self.written |= {ours for ours in bound.ours if ours in self.adapter}
            container, _, name = bound.theirs.rpartition(".")
            if matrix.entries is not None:
                stacks.setdefault(container, []).append((name, *self._stack(found, bound, matrix)))
            elif self.low_rank:
                self._pair(found, bound, matrix, container)
            else:
                self._factors(found, bound, matrix, container)
        for container, made in stacks.items():
            made.sort(key=lambda each: self.names.stacks[container].index(each[0]))
            for n, (name, a, b) in enumerate(made):
                inner = INNER * (len(made) - 1 - n)
                self._put(f"{container}{inner}", {"lora_A.weight": a, "lora_B.weight": b})
                experts = layout.matrix(self.names.modules[f"{container}.{name}"]).entries or 1
                self.parameters[f"{container}.{name}"] = len(a) // experts
        left = [name for name in self.adapter if name not in self.written and not self._follows(name)]
        if left:
            raise UserError(f"{self.base.source}: PEFT has no form for the change of {quoted(min(left))}")

    def _follows(self, name: str) -> bool:
        """Whether it is a bias that PEFT scales with its matrix."""
        change, weight = self.adapter[name], self.adapter.get(f"{name.removesuffix('bias')}weight")
        return (
            name.endswith(".bias")
            and isinstance(change, Scaled)
            and isinstance(weight, Scaled)
            and weight.side == "out"
            and np.array_equal(weight.factors, change.factors)
        )

    def _put(self, module: str, parts: Mapping[str, np.ndarray]) -> None:
        module = self._named(module)
        for part, array in parts.items():
            packed = quant.pack(np.ascontiguousarray(array, np.float32), "F32")
            self.tensors[f"{PREFIX}{module}.{part}"] = packed

    def _pair(self, found: list[Any], bound: Bound, matrix: Matrix, module: str) -> None:
        leaf = module.rpartition(".")[2]
        if leaf in self.names.bypassed:
            raise UserError(f"{module}: transformers reads this weight past PEFT: leave it out")
        if bound.ours[0].endswith("_norm.weight"):
            raise UserError(f"{module}: PEFT has no pair of a norm: leave it out")
        a, b = joined_pair(found, matrix.orders, (matrix.outputs, matrix.inputs))
        if bound.ours[0].endswith(TABLES):
            if self.dora:
                raise UserError(f"{module}: DoRA of an embedding table is not written for PEFT")
            self.modules[module] = len(a)
            self._put(module, {"lora_embedding_A": b.T, "lora_embedding_B": a.T})
            return
        parts = {"lora_A.weight": a, "lora_B.weight": b}
        if self.dora:
            parts["lora_magnitude_vector"] = self._magnitude(found, bound, matrix)
        if leaf in NO_MAMBA and self.base.family in MAMBA:
            raise UserError(f"{module}: PEFT refuses LoRA of a Mamba's {leaf}: leave this matrix out")
        if bound.ours[0].endswith(".router.weight") or (self.mixture and leaf in TAKEN):
            if self.dora:
                raise UserError(f"{module}: PEFT has no DoRA of this matrix in a mixture of experts")
            self.parameters[f"{module}.weight"] = len(a)
        else:
            self.modules[module] = len(a)
        self._put(module, parts)

    def _magnitude(self, found: list[Any], bound: Bound, matrix: Matrix) -> np.ndarray:
        """DoRA's magnitudes; the norms themselves where a part has none, so that nothing is scaled there."""
        made = np.empty(matrix.outputs, np.float32)
        for one, ours, order in zip(found, bound.ours, matrix.orders, strict=True):
            if one is None or one.magnitude is None:
                weight = quant.unpack(self.base.tensors[ours])
                weight = weight if one is None else weight + one.delta
                made[order.rows] = np.linalg.norm(weight.astype(np.float64), axis=1)
            else:
                made[order.rows] = one.magnitude
        return made

    def _stack(self, found: list[Any], bound: Bound, matrix: Matrix) -> tuple[np.ndarray, np.ndarray]:
        """A [experts r, in] and B [out, r experts] of pairs of a rank that all experts share."""
        if not self.low_rank or self.dora:
            raise UserError(f"{bound.theirs}: PEFT has LoRA alone for stacked experts")
        experts = matrix.entries or 1
        per, shape = len(found) // experts, (matrix.outputs, matrix.inputs)
        each = [
            joined_pair(found[n : n + per], matrix.orders[n : n + per], shape)
            for n in range(0, len(found), per)
        ]
        rank = max(len(a) for a, _ in each)
        a, b = (
            np.zeros((experts, rank, shape[1]), np.float32),
            np.zeros((experts, shape[0], rank), np.float32),
        )
        for n, (one, other) in enumerate(each):
            a[n, : len(one)], b[n, :, : len(one)] = one, other
        if self.names.swapped:
            a, b = b.transpose(0, 2, 1), a.transpose(0, 2, 1)
        return a.reshape(-1, a.shape[2]), b.transpose(1, 2, 0).reshape(b.shape[1], -1)

    def _factors(self, found: list[Any], bound: Bound, matrix: Matrix, module: str) -> None:
        sides = {change.side for change in found if change is not None}
        if len(sides) > 1:
            raise UserError(f"{module}: PEFT scales either what this matrix reads or what it gives: not both")
        self.modules[module] = 0
        if sides == {"out"}:
            factors = np.ones(matrix.outputs, np.float32)
            for change, ours, order in zip(found, bound.ours, matrix.orders, strict=True):
                if change is None:
                    continue
                factors[order.rows] = change.factors
                bias = f"{ours.removesuffix('weight')}bias"
                if bias in self.base.tensors and bias not in self.names.biases(bound):
                    raise UserError(f"{module}: PEFT does not scale the bias that is added after this matrix")
            self._put(module, {"ia3_l": factors[:, None]})
            return
        factors = np.empty(matrix.inputs, np.float32)
        for change, order in zip(found, matrix.orders, strict=True):
            if change is None or not np.array_equal(change.factors, found[0].factors):
                raise UserError(f"{module}: PEFT scales what all parts of this matrix read alike: train all")
            factors[order.columns] = change.factors
        self.feedforward.add(module)
        self._put(module, {"ia3_l": factors[None]})

    def _named(self, name: str) -> str:
        """A name as transformers' class of the model alone has it: of an encoder without a prefix."""
        return name.removeprefix(self.names.prefix) if isinstance(self.base.config, Encoder) else name

    def config(self, name: str) -> dict[str, Any]:
        """The folder's config."""
        every = {name.removesuffix(".weight") for name in self.names.modules if name.endswith(".weight")}
        short = _as_named(self.modules, every), _as_named(self.feedforward, self.modules)
        whole = set(self.modules), self.feedforward
        ends = short[0] != whole[0] and (short[1] != whole[1] or not whole[1])
        ends = ends and isinstance(self.base.config, Decoder)  # others have modules that are not read
        targets, feedforward = ({self._named(one) for one in each} for each in (short if ends else whole))
        task = "SEQ_2_SEQ_LM" if isinstance(self.base.config, EncoderDecoder) else "CAUSAL_LM"
        config: dict[str, Any] = {
            "peft_type": "LORA" if self.low_rank else "IA3",
            "task_type": task if isinstance(self.base.config, EncoderDecoder | Decoder) else None,
            "base_model_name_or_path": name,
            "inference_mode": True,
            "target_modules": sorted(targets),
            "fan_in_fan_out": self.transposed,
        }
        if not self.low_rank:
            return config | {"feedforward_modules": sorted(feedforward)}
        ranks = {self._named(name): rank for name, rank in (self.modules | self.parameters).items()}
        usual = max(set(ranks.values()), key=list(ranks.values()).count)
        others = {re.escape(module): rank for module, rank in ranks.items() if rank != usual}
        config |= {"r": usual, "lora_alpha": usual, "rank_pattern": others, "alpha_pattern": others}
        if self.parameters:
            config["target_parameters"] = sorted(map(self._named, self.parameters))
        return config | {"lora_dropout": 0.0, "bias": "none", "use_dora": self.dora}


def written(adapter: Adapter, base: Checkpoint) -> Written:
    """What a folder of the adapter holds. UserError for what PEFT has no form for."""
    table, config = adapter.get("embedding.weight"), base.config
    if table is not None and isinstance(config, Decoder) and config.tied:  # PEFT changes the table alone
        adapter = {"head.weight": table, **adapter}
    made = Written(adapter, untied(base) if "head.weight" in adapter else base)
    made.fill()
    return made


def _as_named(modules: Iterable[str], every: Iterable[str]) -> set[str]:
    """The ends of the modules' names, by which PEFT takes all of ``every`` that end so; the names themselves
    where that would be others too.
    """
    ends = {module.rpartition(".")[2] for module in modules}
    meant = {module for module in every if module.rpartition(".")[2] in ends}
    return ends if meant == set(modules) else set(modules)


def save(
    folder: Path,
    adapter: Mapping[str, LowRank] | Mapping[str, Scaled],
    base: Checkpoint,
    name: str,
    extension: ContextExtension | None = None,
) -> None:
    """Write low-rank changes, or scaled ones (IA3), as the two files of a folder, each replaced whole.

    Several of our matrices that are one of Hugging Face's become one pair of a higher rank, exactly. The
    scale is folded into B, so that alpha / r is 1 everywhere. ``extension`` is what ``base`` was extended by,
    which PEFT leaves out with a warning. Raises UserError for what PEFT has no form for.
    """
    made = written(adapter, base)
    config = made.config(name)
    if extension is not None:
        config[EXTENSION] = {"kind": extension.kind, "factor": extension.factor}
    safetensors.write(folder / WEIGHTS, made.tensors)
    write_file(folder / CONFIG, json.dumps(config, indent=1))
