"""PEFT's folders read: ``adapter_config.json`` and ``adapter_model.safetensors``.

The family's rules say which of our weights each module holds, and in which order (``weights/layout.py``): a
change passes through the rule that loads the weight itself. What PEFT can and this cannot is refused by name.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Set
from dataclasses import replace
from pathlib import Path

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.gguf import Packed
from cutaway.model.config import Decoder
from cutaway.quantization import formats
from cutaway.weights import classifier, layout, pairs, peft_head, safetensors
from cutaway.weights.changes import Adapter, Added, Change, LowRank, Saved, Scaled, check
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.layout import Matrix
from cutaway.weights.peft_config import CONFIG, PeftSettings
from cutaway.weights.peft_names import INNER, PREFIX, WEIGHTS, Names, untied
from cutaway.weights.rules import Bound

PART = re.compile(
    r"(.*)\.(lora_A|lora_B|lora_E|lora_magnitude_vector|lora_embedding_A|lora_embedding_B|ia3_l"
    r"|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|vera_lambda_[bd])(\.weight|\.bias)?"
)
SHARED = ("vera_A", "vera_B")  # of all modules together
Parts = dict[str, np.ndarray]


def read_peft_adapter(folder: Path, base: Checkpoint) -> Adapter:
    """The adapter of a PEFT folder for ``base``. UserError for what is not read, or does not fit the base."""
    settings = PeftSettings.read(folder / CONFIG)
    tied, base = "head.weight" not in base.tensors, untied(base)
    settings = settings._replace(ties=settings.ties and tied)
    if settings.ties and not isinstance(base.config, Decoder):
        raise UserError(f"{folder / CONFIG}: ensure_weight_tying is read for decoders alone: set it to false")
    names, modules, whole = Names(base), {}, {}
    head = classifier.parameters(base) if base.classifier else {}  # which weights/peft_head.py reads
    for name, packed in safetensors.read_safetensors(folder / WEIGHTS).items():
        plain = name.removeprefix(PREFIX)
        found = PART.fullmatch(plain)
        if plain in head or (found and f"{found[1]}.weight" in head):
            continue
        if found:
            part = found[2] + (".bias" if found[3] == ".bias" else "")
            modules.setdefault(found[1], {})[part] = formats.unpack(packed)
        else:
            whole[plain.removeprefix("base_model.")] = packed
    changes: dict[str, Change] = {}
    shared = {name: formats.unpack(whole.pop(name)) for name in SHARED if name in whole}
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
        elif settings.residual or any(map(_acts, own.values())):  # PEFT does not train it: it keeps its start
            raise UserError(
                f"{folder}: {quoted(module)}: transformers reads its weight past PEFT, so its change "
                "takes no part before it is merged: take its tensors out of the folder"
            )
    for module, levels in stacks.items():
        changes |= _stacked(module, levels, settings, names, folder)
    if not changes and not (head and peft_head.read_peft_head(folder, base)):
        alone = "none but of parts that take no part here" if left_out else "no tensors"
        raise UserError(f"{folder / WEIGHTS}: holds {alone}")
    if settings.ties:
        _tie(changes, settings, folder)
    elif "embedding.weight" in changes and tied:
        changes.setdefault("head.weight", Scaled(np.ones(base.config.vocab, np.float32), "out"))
    return changes


def _tie(changes: dict[str, Change], settings: PeftSettings, folder: Path) -> None:
    """Leave out a tied head's change that is the table's. UserError where PEFT would have two meanings."""
    table, head = changes.get("embedding.weight"), changes.get("head.weight")
    where = f"{folder}: ensure_weight_tying is true"
    low_rank = isinstance(table, LowRank) or isinstance(head, LowRank)
    if low_rank and settings.residual:
        raise UserError(f"{where}, which {settings.residual} of a tied head contradicts: set it to false")
    patterns = settings.alphas.patterns or settings.ranks.patterns  # with them, a head may have another scale
    if (head and not table) or (table and not head and low_rank and patterns):
        other = "the head" if table else "the table"
        raise UserError(f"{where}, and {WEIGHTS} has no tensors of {other}: save the adapter with both")
    if not head:
        return
    same = alike = False
    if isinstance(table, LowRank) and isinstance(head, LowRank):
        same = np.array_equal(table.a, head.a) and np.array_equal(table.b, head.b) and head.magnitude is None
        alike = table.scale == head.scale
    elif isinstance(table, Saved) and isinstance(head, Saved):
        same = alike = np.array_equal(table.weight, head.weight)
    if not same:
        raise UserError(f"{where}, but the tensors of the table and the head differ: set it to false")
    if alike:
        del changes["head.weight"]


def _say_left_out(modules: Set[str], base: Checkpoint, folder: Path) -> None:
    """Warn of changes of parts that are not read. UserError where the base has a head that they replace."""
    if not modules:
        return
    named = ", ".join(sorted(quoted(module) for module in modules)[:3])
    heads = [module for module in modules if module.split(".")[0] in ("classifier", "score")]
    if heads and base.classifier:
        raise UserError(
            f"{folder}: holds a head of its own ({named}), and the base's has no such part: "
            "load the model that it was trained on"
        )
    more = f" and {len(modules) - 3} more" if len(modules) > 3 else ""
    warnings.warn(f"{folder}: changes {named}{more}, which take no part here and are left out", stacklevel=3)


def _acts(change: Change) -> bool:
    """Whether a change changes anything."""
    if isinstance(change, LowRank) and change.magnitude is None:
        return bool(change.b.any() and change.a.any())
    return not (isinstance(change, Scaled) and (change.factors == 1).all())


def _shared(shared: Parts, settings: PeftSettings, folder: Path) -> Parts:
    if settings.kind != "VERA":
        return {}
    if shared.keys() != set(SHARED):
        raise UserError(
            f"{folder}: holds no vera_A and vera_B, which PEFT would draw anew: save it with "
            "save_projection set to true"
        )
    return shared


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
    whole = formats.pack(np.ascontiguousarray(formats.unpack(packed)), "F32")
    parts = bound.how.load(whole, bound.place)
    found: dict[str, Change] = {ours: Saved(formats.unpack(parts[n])) for n, ours in enumerate(bound.ours)}
    for ours, change in found.items():
        check(change, base.tensors.later(ours).shape, where)
    if inner and plain.endswith(".weight"):  # PEFT saves the base of a tuned table or head beside its pair
        if any(not np.array_equal(change(kept), kept) for change, kept in _kept(found, base)):
            raise UserError(f"{where}: is beside another matrix than the base model's")
        return {}
    return found


def _kept(found: Mapping[str, Change], base: Checkpoint) -> Iterator[tuple[Change, np.ndarray]]:
    for ours, change in found.items():
        yield change, formats.unpack(base.tensors[ours])


def _changes(
    module: str, parts: Parts, settings: PeftSettings, names: Names, base: Checkpoint, folder: Path
) -> dict[str, Change]:
    """The changes of our weights that a module's tensors are."""
    where = f"{folder}: {quoted(module)}"
    known = names.spelled(f"{module}.weight", names.all)
    if known is None:
        raise UserError(f"{where}: the base model has no such matrix")
    bound = names.all[known]
    tied = settings.ties and bound.ours == ("head.weight",)  # PEFT takes it out of target_modules
    if not tied and not settings.targets(module):
        raise UserError(
            f"{where}: target_modules does not name it, so PEFT leaves its tensors out: take them out of "
            f"{WEIGHTS}, or name it"
        )
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
        settings = settings._replace(dora=False, residual=None)  # PEFT does not initialise tables by these
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
    settings: PeftSettings,
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
        change = pairs.without(change, _taken(change, settings, bound, matrix, base, where))
    for ours, order in zip(bound.ours, matrix.orders, strict=True):
        own = None if change.magnitude is None else change.magnitude[order.rows]
        found[ours] = LowRank(change.a[:, order.columns], change.b[order.rows], change.scale, own)
    return found


def _taken(
    change: LowRank, settings: PeftSettings, bound: Bound, matrix: Matrix, base: Checkpoint, where: str
) -> LowRank:
    """What PiSSA or OLoRA takes out of the base."""
    if settings.residual == "olora" and matrix.transposed:
        raise UserError(f"{where}: OLoRA of a transposed matrix has no meaning in PEFT, which cannot open it")
    weight = np.empty((matrix.outputs, matrix.inputs), np.float32)
    for ours, order in zip(bound.ours, matrix.orders, strict=True):
        weight[np.ix_(order.rows, order.columns)] = formats.unpack(base.tensors[ours])
    taken = pairs.residual(weight, len(change.a), str(settings.residual))
    return replace(taken, scale=change.scale) if settings.residual == "olora" else taken


def _stacked(
    module: str, levels: Mapping[int, Parts], settings: PeftSettings, names: Names, folder: Path
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
