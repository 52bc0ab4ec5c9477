"""A config.json of each family with one key moved off its value, written as GGUF and judged by llama.cpp.

Weights are random and made for the moved config, so that no file of transformers is needed: what a key means
is transformers' to judge (``test_families.py``), and whether a GGUF file says the same is llama.cpp's. It
must give our log-probabilities, or the writing must be refused.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.nn import functional

from cutaway.errors import UserError
from cutaway.layers.mlp import ACTIVATIONS
from cutaway.model.config import Decoder, Encoder, Model
from cutaway.model.kinds import kind_of
from cutaway.position.scaling import LongRoPE
from cutaway.quantization import formats
from cutaway.weights import build, family_match, family_registry, save
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.family import Family
from cutaway.weights.fields import Fields
from cutaway.weights.named_tensors import Tensors
from tests import llama_cpp
from tests.parity import test_encoders, tiny
from tests.parity.words import VOCAB, WORDS

Config = dict[str, Any]
SMOOTH, TABLE = 5e-4, 1e-2  # on log-probabilities; llama.cpp's GELU is a table of half-precision numbers
CONTEXT = 256  # that llama.cpp is opened with, by which it chooses LongRoPE's divisors
LENGTH = 40  # of the text, beyond all windows and original lengths
LARGEST = 1 << 23  # weights of a model that is tried
TIES = 4
LEAST = -60.0  # of log-probabilities that are compared
SHORTEST = 6  # of a context in which llama.cpp writes
KEPT = {"vocab_size", "model_type", "architectures", "transformers_version", "torch_dtype", "dtype"}
NAMED = ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2", "quick_gelu", "gelu_new")
WORDS_OF = {
    "scoring_func": ("softmax", "sigmoid"),
    "topk_method": ("greedy", "group_limited_greedy", "noaux_tc"),
    "position_embedding_type": ("rope", "nope", "absolute", "relative_key"),
    "feed_forward_proj": ("relu", "gated-gelu", "gated-silu"),
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
POSITIONS: dict[str, Config] = {  # what rope_parameters may hold
    "base": {"rope_type": "default", "rope_theta": 333.0},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "llama3": LLAMA3,
    "llama3 low": LLAMA3 | {"low_freq_factor": 2.0},
    "yarn": YARN,
    "yarn attention": YARN | {"attention_factor": 1.9},
    "yarn attention 1": YARN | {"attention_factor": 1.0},
    "yarn mscale": YARN | {"mscale": 3.0, "mscale_all_dim": 0.5},
    "yarn mscales": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
    "yarn mscales 0.7": YARN | {"mscale": 0.7, "mscale_all_dim": 0.7},
    "yarn mscale alone": YARN | {"mscale": 2.0},
    "yarn mscale_all_dim alone": YARN | {"mscale_all_dim": 1.5},
    "yarn fast": YARN | {"beta_fast": 3.0},
    "yarn slow": YARN | {"beta_slow": 0.3},
    "yarn truncate": YARN | {"truncate": False, "rope_theta": 100.0},
    "yarn original": YARN | {"original_max_position_embeddings": 32},
    "yarn below one": YARN | {"factor": 0.5},
    "part": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    "proportional": {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
}


BERT = {"bert-1": ("BertConfig", test_encoders.SIZES)}


@dataclass(frozen=True)
class Base:
    """A case's config.json, as it is saved, and all keys with their values."""

    case: str
    family: str
    data: Config
    whole: Config


@dataclass(frozen=True)
class Move:
    """What was moved: a name for it, and the config.json with it."""

    name: str
    data: Config


@dataclass(frozen=True)
class Case:
    """A moved config that the family reads, as the first of those that read the same."""

    name: str
    family: str
    config: Model


@dataclass(frozen=True)
class Outcome:
    """``what``: agrees, refused (by the reading or the writing), unopened, wrong; and how it is seen."""

    what: str
    detail: str = ""
    apart: float = 0.0


def family_of(data: Config) -> Family:
    """The family that reads a config.json."""
    return family_registry.of_hf(Fields(data, "config.json"))


@cache
def bases(every: bool = False) -> dict[str, list[Base]]:
    """The tiny cases of each family that has names of its own in GGUF, or of ``every`` one."""
    found: dict[str, list[Base]] = {}
    for case, (name, own) in (tiny.CASES | test_encoders.CASES | BERT).items():
        sizes: Config = {}
        if case in tiny.CASES:
            sizes = {key: tiny.SIZES[key] for key in tiny.ALONE} if "n_layer" in own else tiny.SIZES
        sizes = {key: value for key, value in sizes.items() if key not in tiny.UNKNOWN.get(name, ())}
        config = getattr(tiny.transformers, name)(**copy.deepcopy(sizes | own))
        data, whole = (json.loads(config.to_json_string(use_diff=diff)) for diff in (True, False))
        if case.startswith("t5_encoder"):
            continue
        family = family_of(data)
        if family.gguf or every:
            found.setdefault(family.name, []).append(Base(case, family.name, data, whole))
    return found


def read(data: Config) -> tuple[Family, Model]:
    """The family and the config of a config.json."""
    family = family_of(data)
    return family, family.read(Fields(copy.deepcopy(data), "config.json"))


def keys(base: Base) -> list[str]:
    """The keys that the family reads."""
    fields = Fields(copy.deepcopy(base.data), "config.json")
    family_registry.of_hf(fields).read(fields)
    return sorted(fields.used - KEPT)


def moves(base: Base) -> Iterator[Move]:
    """The config with each key moved, by several values."""
    for key in keys(base):
        value = base.data.get(key, base.whole.get(key))
        if key in ("rope_scaling", "rope_parameters"):
            yield from _positions(base, key)
            continue
        for other in _others(key, value, base):
            if other != value:
                shown = json.dumps(other)
                shown = shown if len(shown) < 50 else f"{shown[:50]}..."
                yield Move(f"{key} = {shown}", base.data | {key: other})
    if "rope_parameters" not in keys(base):
        return
    parted = {"partial_rotary_factor": 0.5, "rope_parameters": POSITIONS["part"]}
    yield Move("partial_rotary_factor = 0.5", base.data | parted)


def _positions(base: Base, key: str) -> Iterator[Move]:
    """Every scaling, in place of each entry."""
    given = base.whole.get(key) or {}
    nested = {kind: one for kind, one in given.items() if isinstance(one, dict)} if given else {}
    own = {name for name in given if name not in YARN and name not in LLAMA3} - nested.keys()
    for name, scaling in POSITIONS.items():
        kept = {each: given[each] for each in own if not isinstance(given[each], dict)}
        if not nested:
            yield Move(f"{key}: {name}", base.data | {key: kept | scaling})
        elif key == "rope_parameters":
            for kind in nested:
                yield Move(f"{key}.{kind}: {name}", base.data | {key: {**given, kind: scaling}})
            yield Move(f"{key}: {name} everywhere", base.data | {key: dict.fromkeys(nested, scaling)})
    for inner in own:  # llama_4_scaling_beta and its like
        for other in _others(inner, given[inner], base):
            yield Move(f"{key}.{inner} = {other}", base.data | {key: {**given, inner: other}})


def _others(key: str, value: Any, base: Base) -> Iterator[Any]:
    """Other values of a key."""
    if isinstance(value, bool):
        yield not value
    elif key in WORDS_OF:
        yield from WORDS_OF[key]
    elif "act" in key and isinstance(value, str):
        yield from NAMED
    elif isinstance(value, int):
        yield from dict.fromkeys(
            n for n in (value + 1, 2 * value, value // 2, 1, value - 1, value + 4) if n >= 0
        )
    elif isinstance(value, float):
        yield from (0.05, 0.7, 2.5) if "eps" in key else (value * 0.5, value * 3 + 0.1, 1.0)
        if value == 1 or value == 0:
            yield 0.25
    elif value is None:
        yield from (True, 1, 2, 4, 16, 0.3, 5.0)
    elif isinstance(value, list) and value:
        yield value[::-1]
        kinds = list(dict.fromkeys(json.dumps(one) for one in value))
        for one in kinds:
            yield [json.loads(one)] * len(value)
        yield value[1:] + value[:1]
        if all(isinstance(one, float) for one in value):
            yield [2.0 * one + n for n, one in enumerate(value)]
            yield [1.0] * len(value)


# ---- what is made of a moved config ------------------------------------------------------------------------


def checkpoint_of(family: str, config: Model, seed: int) -> Checkpoint:
    """A checkpoint of random weights that leave no part of the config without effect."""
    rng = np.random.default_rng(seed)

    def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
        drawn = rng.standard_normal(shape)
        if "norm" in name and name.endswith("weight"):
            return 1 + 0.3 * drawn
        if name.endswith("embedding.weight") or name == "position.weight":
            return 0.4 * drawn
        return 0.4 * drawn if len(shape) < 2 else 1.2 * drawn / np.sqrt(shape[-1])

    packed = {
        name: formats.pack(np.ascontiguousarray(weight(name, shape), np.float32), "F32")
        for name, shape in config.weights().items()
    }
    return Checkpoint(config, Tensors(packed), family, Path("tiny"), metadata=WORDS)


def distinct(bases: Sequence[Base]) -> tuple[list[Case], int]:
    """Every config that the moves of a family's cases make, once, and how many moves reading refuses."""
    found: dict[Model, Case] = {}
    refused = 0
    for base in bases:
        for move in (Move("as it is", base.data), *moves(base)):
            try:
                family, config = read(move.data)
            except UserError:
                refused += 1
                continue
            if judgeable(config):
                found.setdefault(config, Case(f"{base.case}: {move.name}", family.name, config))
    return list(found.values()), refused


def judgeable(config: Model) -> bool:
    """Whether it is small, and llama.cpp takes divisors by its context as we by the text."""
    small = sum(map(math.prod, config.weights().values())) < LARGEST
    positions = [getattr(block.attention, "position", None) for block in config.blocks]
    lengths = [each.scaling.original for each in positions if each and isinstance(each.scaling, LongRoPE)]
    return small and config.context >= SHORTEST and not any(LENGTH <= one < CONTEXT for one in lengths)


def writes(family: str, work: Path) -> bool:
    """Whether some case of a family is written as GGUF, though by the names of another."""
    for base in bases(every=True)[family]:
        with suppress(UserError):
            save.write_checkpoint(
                work / "written.gguf", checkpoint_of(family, read(base.data)[1], 0), force=True
            )
            return True
    return False


def together(family: str, work: Path, seed: int = 0, most: int = 3) -> Case | None:
    """A config of the family with several keys moved at once, which is written; None if no case of it is."""
    draw = random.Random(f"{family} {seed}")
    for base in draw.sample(bases()[family], len(bases()[family])):
        every, data, config = list(moves(base)), base.data, read(base.data)[1]
        found = [Case(f"{base.case}: as it is", family, config)]
        for move in draw.sample(every, len(every)):
            changed = {key: one for key, one in move.data.items() if base.data.get(key) != one}
            if len(found) > most or any(data.get(key) != base.data.get(key) for key in changed):
                continue
            try:
                other = read(data | changed)[1]
            except UserError:
                continue
            if judgeable(other) and other != config:
                data, config = data | changed, other
                found.append(Case(f"{found[-1].name}; {move.name}", family, config))
        for case in reversed(found):  # the most keys of which none is refused
            with (
                suppress(UserError),
                patch.object(family_match, "_candidates", lambda _: [family_registry.get(family)]),
            ):
                save.write_checkpoint(
                    work / "together.gguf", checkpoint_of(family, case.config, seed), force=True
                )
                return case
    return None


def outcome(case: Case, work: Path, seed: int = 0) -> Outcome:
    """What becomes of a moved config.

    Where a tie may tip (of keys that are chosen, of halves in the table), other weights are tried, too.
    """
    tips = uses_gelu(case.config) or any(kind_of(block.attention) == "dsa" for block in case.config.blocks)
    for again in range(TIES if tips else 1):
        found = _outcome(case, work, seed + 1000 * again)
        if found.what != "wrong":
            break
    return found


def _outcome(case: Case, work: Path, seed: int) -> Outcome:
    config, checkpoint = case.config, checkpoint_of(case.family, case.config, seed)
    target = work / "model.gguf"
    target.unlink(missing_ok=True)
    try:
        save.write_checkpoint(target, checkpoint)
    except UserError as problem:
        return Outcome("refused", str(problem).partition("GGUF: ")[2])
    ids = np.random.default_rng(1).integers(2, VOCAB, LENGTH).tolist()
    ids = ids[: min(LENGTH, config.context)] if isinstance(config, Decoder | Encoder) else ids
    expected = ours(checkpoint, ids)
    try:
        found = _judged(target, config, ids)
    except RuntimeError as problem:
        return Outcome("unopened", str(problem)[:200])
    if isinstance(config, Decoder):  # below, llama.cpp's probabilities are 0 in float32
        found, expected = (np.maximum(each, LEAST) for each in (found, expected))
    apart = np.abs(found - expected).max() if np.isfinite(found).all() else np.inf
    bound = TABLE if uses_gelu(config) else SMOOTH
    return Outcome("agrees" if apart < bound else "wrong", f"apart by {apart:.2g}", float(apart))


def uses_gelu(config: Any) -> bool:
    """Whether llama.cpp computes some activation by its table."""
    return any("gelu" in str(getattr(block.mlp, "activation", "")) for block in config.blocks)


def ours(checkpoint: Checkpoint, ids: list[int]) -> np.ndarray:
    """Our log-probabilities after the text and after a third of it; an encoder's outputs of the last."""
    with torch.no_grad(), patch.dict(ACTIVATIONS, gelu=tabled, gelu_tanh=tabled):
        rows, pos = torch.tensor([ids]), torch.arange(len(ids))[None]
        if isinstance(checkpoint.config, Encoder):
            return build.encoder(checkpoint)(rows, pos)[0, -1].double().numpy()
        logits = build.decoder(checkpoint)(rows, pos)[0].double()
        return torch.log_softmax(logits, dim=-1).numpy()[[len(ids) // 3, len(ids) - 1]]


def tabled(x: torch.Tensor) -> torch.Tensor:
    """GELU as llama.cpp computes it: its tanh, of halves and rounded to them; 0 and x beyond 10."""
    inner = functional.gelu(x.half().float(), approximate="tanh").half().float()
    return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, inner))


def _judged(path: Path, config: Model, ids: list[int]) -> np.ndarray:
    """llama.cpp's."""
    if isinstance(config, Encoder):
        return llama_cpp.pooled(path, ids, "LAST").astype(np.float64)
    with llama_cpp.opened(path, VOCAB, CONTEXT) as scores:
        return np.stack([scores(ids[: len(ids) // 3 + 1]), scores(ids)])


def shown(outcomes: Mapping[str, int]) -> str:
    """Counts by outcome."""
    return ", ".join(f"{count} {what}" for what, count in sorted(outcomes.items()))
