"""Every kind of adapter that PEFT makes, random, on any of transformers' tiny models, and ours for PEFT.

A kind of reading is a config of PEFT's whose targets are the model's own modules; a kind of writing is a set
of changes of our matrices. ``reading`` and ``writing`` hold one cell of the matrix to PEFT, both ways.
"""

from __future__ import annotations

import copy
import random
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from cutaway.errors import UserError
from cutaway.model.config import Decoder
from cutaway.quantization import formats
from cutaway.runtime.engine import RuntimeEngine
from cutaway.weights import adapters, family_registry, gguf_adapters, layout, load, save
from cutaway.weights.changes import LowRank, Scaled
from tests import llama_cpp
from tests.parity import tiny, wrappers
from tests.rounding import ROUNDING, noise

peft = pytest.importorskip("peft")
Kind = Callable[[Any, random.Random], Any]


def matrices(model: Any) -> dict[str, Any]:
    """The modules that PEFT takes for linear layers, but the output layer, by name."""
    output = model.get_output_embeddings()
    kinds = ("Linear", "Conv1D")
    return {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__ in kinds and module is not output
    }


def leaves(model: Any) -> list[str]:
    """The last parts of their names, each once."""
    return sorted({name.rpartition(".")[2] for name in matrices(model)})


def table(model: Any) -> str:
    """The name of the embedding table's module."""
    found = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is found)


def head(model: Any) -> str | None:
    """The name of the output layer, None where there is none."""
    found = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is found), None) if found else None


def stacks(model: Any) -> list[str]:
    """The last parts of the names of parameters that hold a matrix for each expert."""
    return sorted(
        {
            name.rpartition(".")[2]
            for name, weight in model.named_parameters()
            if weight.dim() == 3 and name.endswith("_proj")
        }
    )


def some(names: list[str], draw: random.Random) -> list[str]:
    """At least half of them."""
    return sorted(draw.sample(names, draw.randint((len(names) + 1) // 2, len(names))))


def low_rank(model: Any, draw: random.Random, **own: Any) -> Any:
    """LoRA of every linear layer, or as ``own`` says."""
    usual = {"r": draw.randint(2, 5), "lora_alpha": draw.randint(2, 9), "target_modules": "all-linear"}
    return peft.LoraConfig(**(usual | own))


def initialised(how: Any) -> Kind:
    """LoRA whose pairs start in another way."""
    return lambda model, draw: low_rank(model, draw, init_lora_weights=how, r=4)


def patterns(model: Any, draw: random.Random) -> Any:
    names = leaves(model)
    own = {name: draw.randint(1, 6) for name in some(names, draw)}
    alphas = {rf".*\.{name}": draw.randint(1, 9) for name in some(names, draw)}
    return low_rank(model, draw, rank_pattern=own, alpha_pattern=alphas, use_rslora=draw.random() < 0.5)


def by_pattern(model: Any, draw: random.Random) -> Any:
    chosen = "|".join(some(leaves(model), draw))
    return low_rank(model, draw, target_modules=rf".*\.({chosen})")


def upper_layers(model: Any, draw: random.Random) -> Any:
    layers = model.config.num_hidden_layers
    chosen = sorted(draw.sample(range(layers), draw.randint(1, layers)))
    return low_rank(model, draw, target_modules=leaves(model), layers_to_transform=chosen)


def without(model: Any, draw: random.Random) -> Any:
    names = leaves(model)
    if len(names) < 2:
        return None
    return low_rank(model, draw, target_modules=names, exclude_modules=draw.sample(names, 1))


def scaled(model: Any, draw: random.Random) -> Any:
    names = some(leaves(model), draw)
    return peft.IA3Config(
        target_modules=names, feedforward_modules=draw.sample(names, draw.randint(0, len(names)))
    )


def tables(model: Any, draw: random.Random) -> Any:
    """LoRA of the embedding table, and of the output layer where it is a matrix of its own."""
    chosen = [table(model)] + [name for name in [head(model)] if name and not tied(model)]
    return low_rank(model, draw, target_modules=[*some(leaves(model), draw), *chosen])


def tied(model: Any) -> bool:
    """Whether the output layer is the embedding table."""
    output = model.get_output_embeddings()
    return output is not None and output.weight is model.get_input_embeddings().weight


def output(model: Any, draw: random.Random) -> Any:
    name = head(model)
    return name and low_rank(model, draw, target_modules=[*some(leaves(model), draw), name])


def whole(model: Any, draw: random.Random) -> Any:
    """LoRA beside modules that are saved whole: tables, and a norm."""
    norms = sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if "norm" in type(module).__name__.lower()
        }
    )
    chosen = draw.sample(norms, 1) + ([table(model)] if not tied(model) or draw.random() < 0.5 else [])
    return low_rank(model, draw, target_modules=leaves(model), modules_to_save=chosen)


def experts(model: Any, draw: random.Random) -> Any:
    """LoRA of the experts' stacked parameters."""
    names = stacks(model)
    return (
        low_rank(model, draw, target_modules=leaves(model), target_parameters=some(names, draw))
        if names
        else None
    )


def adaptive(model: Any, draw: random.Random) -> Any:
    return peft.AdaLoraConfig(
        init_r=4,
        target_r=2,
        total_step=10,
        lora_alpha=draw.randint(2, 9),
        target_modules=some(leaves(model), draw),
    )


def kept_tied(model: Any, draw: random.Random) -> Any:
    """LoRA of the table or the head under ``ensure_weight_tying``, which PEFT heeds by its names of them."""
    name, alphas = table(model).rpartition(".")[2], {}
    if name == "embed_tokens":
        name, alphas = draw.choice([name, "lm_head"]), draw.choice([{}, {"lm_head": 9}])
    return low_rank(model, draw, target_modules=[name], alpha_pattern=alphas, ensure_weight_tying=True)


KINDS: dict[str, Kind] = {
    "lora": low_rank,
    "some": lambda model, draw: low_rank(model, draw, target_modules=some(leaves(model), draw)),
    "rslora": lambda model, draw: low_rank(model, draw, use_rslora=True),
    "patterns": patterns,
    "regex": by_pattern,
    "layers": upper_layers,
    "excluded": without,
    "dora": lambda model, draw: low_rank(model, draw, use_dora=True),
    "rsdora": lambda model, draw: low_rank(model, draw, use_dora=True, use_rslora=True),
    "lora_bias": lambda model, draw: low_rank(model, draw, lora_bias=True),
    "biases": lambda model, draw: low_rank(model, draw, bias="all"),
    "own_biases": lambda model, draw: low_rank(model, draw, bias="lora_only"),
    "tables": tables,
    "tables_dora": lambda model, draw: low_rank(
        model, draw, target_modules=[*leaves(model), table(model)], use_dora=True
    ),
    "output": output,
    "whole": whole,
    "kept_tied": kept_tied,
    "kept_whole": lambda model, draw: low_rank(
        model, draw, modules_to_save=[table(model).rpartition(".")[2]], ensure_weight_tying=True
    ),
    "experts": experts,
    "ia3": scaled,
    "gaussian": initialised("gaussian"),
    "orthogonal": initialised("orthogonal"),
    "pissa": initialised("pissa"),
    "pissa_dora": lambda model, draw: low_rank(model, draw, init_lora_weights="pissa", use_dora=True),
    "pissa_niter": initialised("pissa_niter_4"),
    "olora": initialised("olora"),
    "eva": initialised("eva"),
    "adalora": adaptive,
    "loha": lambda model, draw: peft.LoHaConfig(r=3, alpha=5, target_modules=some(leaves(model), draw)),
    "lokr": lambda model, draw: peft.LoKrConfig(
        r=3, alpha=5, target_modules=some(leaves(model), draw), decompose_both=draw.random() < 0.5
    ),
    "vera": lambda model, draw: peft.VeraConfig(r=8, target_modules=some(leaves(model), draw)),
    "oft": lambda model, draw: peft.OFTConfig(
        r=0, oft_block_size=4, target_modules=some(leaves(model), draw)
    ),
    "prompt": lambda model, draw: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


def made(model: Any, kind: str, seed: int, folder: Path) -> bool:
    """Save a random adapter of the kind for the model, every number moved; False where it has none."""
    draw = random.Random(f"{kind} {seed}")
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = KINDS[kind](model, draw)
        if not config:
            return False
        wrapped = peft.get_peft_model(copy.deepcopy(model), config).eval()
        with torch.no_grad():
            for weight in wrapped.parameters():
                if weight.requires_grad:
                    weight.add_(torch.randn_like(weight) * 0.2)
        wrapped.save_pretrained(folder)
    return True


def opened(model: Any, folder: Path) -> Any:
    """The model with the folder's adapter, as PEFT opens it, all of whose tensors must have a place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", "Found missing adapter keys")
        return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()


# ---- one cell of the matrix --------------------------------------------------------------------------------

EXACT = 5e-5  # PEFT adds two products; here the changed weight is rounded to float32 first
HALVES = 4e-3  # the runtime keeps keys and values as halves (docs/runtime.md)
GELU = 5e-3  # llama.cpp's is a table of half-precision numbers


CHOOSING = ("moe", "mixtral", "deepseek", "kimi", "gpt_oss", "qwen3_next", "minimax", "jamba", "afmoe", "dsa")


class Found(NamedTuple):
    """ "equal", "refused", "wrong", "raised", or "none" where PEFT itself makes or opens no such adapter."""

    word: str
    why: str = ""


WRAPPER = "wrapper/"  # before the name of a multimodal model's case


def module(case: str) -> Any:
    """The module that has a case's model and its results, other than tests/parity/tiny.py."""
    from tests.parity import test_encoder_decoders, test_encoders

    return test_encoders if case in test_encoders.CASES else test_encoder_decoders


def cases(seed: int | None = None) -> list[str]:
    """All cases of decoders and encoders, or one of each family, which the seed chooses."""
    from tests.parity import test_encoders

    every = {case: own[0] for case, own in (tiny.CASES | test_encoders.CASES).items()}
    if seed is None:
        return sorted(every)
    draw = random.Random(seed)
    families = sorted(set(every.values()))
    return [draw.choice(sorted(case for case, own in every.items() if own == family)) for family in families]


def model(case: str) -> Any:
    """The case's model in transformers, to be read only."""
    if case.startswith(WRAPPER):
        return wrappers.model(case.removeprefix(WRAPPER))
    return tiny.model(case) if case in tiny.CASES else module(case).made(case)


def theirs(case: str, of: Any) -> torch.Tensor:
    """What transformers' model, or PEFT's around it, makes of the ids."""
    if case.startswith(WRAPPER):
        return wrappers.logits(of)
    return tiny.theirs(of) if case in tiny.CASES else module(case).theirs(of)


def ours(case: str, checkpoint: load.Checkpoint) -> torch.Tensor:
    """What ours makes of them."""
    if case.startswith(WRAPPER) or case in tiny.CASES:
        return tiny.ours(checkpoint)
    return module(case).ours(checkpoint)


def within(case: str, wrapped: Any, folder: Path) -> float:
    """How far results may be apart: four times what PEFT's own moves by when weights move by one rounding.

    Those of the base before the folder is opened too: some adapters are what a decomposition leaves of it.
    """
    expected = theirs(case, wrapped)
    most = noise(wrapped, lambda: theirs(case, wrapped))
    for seed in range(3):
        draw, moved = torch.Generator().manual_seed(seed), copy.deepcopy(model(case))
        with torch.no_grad():
            for weight in moved.parameters():
                weight.mul_(1 + ROUNDING * (torch.rand(weight.shape, generator=draw) * 2 - 1))
        most = max(most, float((theirs(case, opened(moved, folder)) - expected).abs().max()))
    return max(EXACT, 4 * most)


def compared(case: str, checkpoint: load.Checkpoint, wrapped: Any, folder: Path) -> Found:
    """Whether our model with a change has PEFT's results, but for rounding."""
    expected = theirs(case, wrapped)
    apart = (ours(case, checkpoint) - expected).abs().amax(-1)
    if float(apart.max()) < EXACT or float(apart.max()) < (most := within(case, wrapped, folder)):
        return Found("equal")
    # From the token on at which a near tie of experts or keys tips, results are others.
    before = float(apart.min()) < most and any(word in case for word in CHOOSING)
    if before and merged_alike(checkpoint, wrapped, folder):
        return Found("equal", "in every weight: a rounding tips a choice at a token")
    return Found("wrong", f"{float(apart.max()):.2g} apart, where {most:.2g} is rounding")


def merged_alike(checkpoint: load.Checkpoint, wrapped: Any, folder: Path) -> bool:
    """Whether PEFT merges to our weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.merge_and_unload().save_pretrained(folder / "merged")
    merged = load.read_checkpoint(folder / "merged").tensors
    return all(
        np.abs(formats.unpack(merged[name]) - formats.unpack(checkpoint.tensors[name])).max() < EXACT
        for name in merged
    )


def reading(case: str, base: load.Checkpoint, kind: str, seed: int, root: Path) -> Found:
    """PEFT's folder, read by us: our logits beside those of PEFT, which opens it too."""
    folder = root / kind
    try:
        if not made(model(case), kind, seed, folder):
            return Found("none")
        wrapped = opened(model(case), folder)
        theirs(case, wrapped)
    except Exception as problem:  # whatever PEFT raises for what it cannot do
        return Found("none", f"{type(problem).__name__}: {problem}")
    try:
        tuned = adapters.joined(base, adapters.read_adapter(folder, base))
        ours(case, tuned)
    except UserError as problem:
        return Found("refused", str(problem))
    except Exception as problem:  # no reader may raise another
        return Found("raised", f"{type(problem).__name__}: {problem}")
    return compared(case, tuned, wrapped, folder)


TRAINED = ("query", "key", "value", "out", "gate", "up", "down")  # what fine-tuning puts pairs beside
Ours = Callable[[load.Checkpoint, random.Random], dict[str, Any]]


def drawn(name: str, shape: tuple[int, ...], draw: random.Random, magnitude: bool) -> LowRank:
    """A random pair of a matrix, of a rank of its own."""
    generator = np.random.default_rng(draw.randrange(1 << 30))
    rank = draw.randint(1, 4)
    a = generator.normal(size=(rank, shape[1])).astype(np.float32) * 0.3
    b = generator.normal(size=(shape[0], rank)).astype(np.float32) * 0.3
    own = generator.uniform(0.5, 2, shape[0]).astype(np.float32) if magnitude else None
    return LowRank(a, b, draw.choice((0.5, 1.0, 1.7)), own)


def trained(base: load.Checkpoint) -> dict[str, tuple[int, ...]]:
    """The matrices that fine-tuning changes, and their shapes."""
    weights = base.config.weights()
    return {
        name: shape
        for name, shape in weights.items()
        if len(shape) == 2
        and name.split(".")[-2] in TRAINED
        and ".per_layer." not in name
        and ".conv." not in name
    }


def reached(base: load.Checkpoint) -> dict[str, tuple[int, ...]]:
    """All matrices that an adapter reaches, tables and routers too."""
    found = {}
    for bound in layout.modules(family_registry.get(base.family or ""), base.config):
        try:
            layout.matrix(bound)
        except UserError:
            continue
        found |= dict(zip(bound.ours, bound.place.shapes, strict=True))
    return {name: shape for name, shape in found.items() if name.endswith(".weight")}


def pairs(
    of: Callable[[load.Checkpoint], dict[str, tuple[int, ...]]], part: float, dora: bool = False
) -> Ours:
    """Pairs beside a part of the matrices."""

    def draw_all(base: load.Checkpoint, draw: random.Random) -> dict[str, Any]:
        chosen = {name: shape for name, shape in of(base).items() if draw.random() < part}
        return {name: drawn(name, shape, draw, dora) for name, shape in chosen.items()}

    return draw_all


def dense(base: load.Checkpoint) -> dict[str, tuple[int, ...]]:
    """Those of fine-tuning that are no experts'."""
    return {name: shape for name, shape in trained(base).items() if ".experts." not in name}


def factors(base: load.Checkpoint, draw: random.Random) -> dict[str, Any]:
    """IA3's factors: of what keys and values give, and of what the MLP's last matrix reads."""
    found: dict[str, Any] = {}
    for name, shape in dense(base).items():
        kind = name.split(".")[-2]
        if kind not in ("key", "value", "down"):
            continue
        generator = np.random.default_rng(draw.randrange(1 << 30))
        side: Any = "in" if kind == "down" else "out"
        found[name] = Scaled(generator.uniform(0.3, 2, shape[side == "in"]).astype(np.float32), side)
        if (bias := f"{name.removesuffix('weight')}bias") in base.tensors and side == "out":
            found[bias] = found[name]
    return found


OURS: dict[str, Ours] = {
    "all": pairs(trained, 1.0),
    "part": pairs(trained, 0.4),
    "reached": pairs(reached, 0.7),
    "dora": pairs(dense, 1.0, True),
    "dora_part": pairs(dense, 0.5, True),
    "ia3": factors,
    "runtime": pairs(dense, 0.5),
    "gguf": pairs(dense, 0.7),
}


def writing(case: str, base: load.Checkpoint, kind: str, seed: int, root: Path) -> Found:
    """Ours, written: what PEFT, or the runtime, or llama.cpp makes of it, beside our model with it."""
    changes = OURS[kind](base, random.Random(f"{case} {kind} {seed}"))
    if not changes or (kind == "runtime" and not isinstance(base.config, Decoder)):
        return Found("none")
    if kind == "gguf" and (case in tiny.NOT_IN_GGUF or case not in tiny.CASES):
        return Found("none")
    folder = root / f"ours-{kind}"
    try:
        if kind == "runtime":
            return in_the_runtime(base, changes)
        if kind == "gguf":
            return in_llama_cpp(base, changes, root)
        adapters.write_adapter(folder, changes, base, "base")
        again = adapters.joined(base, adapters.read_adapter(folder, base))
    except UserError as problem:
        return Found("refused", str(problem))
    except Exception as problem:  # no writer may raise another
        return Found("raised", f"{type(problem).__name__}: {problem}")
    try:
        wrapped = opened(model(case), folder)
        theirs(case, wrapped)
    except Exception as problem:  # whatever PEFT raises for a folder that it cannot open
        return Found("wrong", f"PEFT does not open it: {type(problem).__name__}: {problem}"[:200])
    found = compared(case, adapters.joined(base, changes), wrapped, folder)
    return found if found.word == "wrong" else compared(case, again, wrapped, folder)


def in_the_runtime(base: load.Checkpoint, changes: dict[str, Any]) -> Found:
    """The runtime's logits with the adapter beside packed weights, in a quarter of its size."""
    changes = {name: replace(change, scale=change.scale / 4) for name, change in changes.items()}
    expected = tiny.ours(adapters.joined(base, changes))
    engine = RuntimeEngine(base.config, base.tensors).adapted(changes)
    away = float(np.abs(engine.logits(tiny.IDS[0].tolist()) - expected[0].numpy()).max())
    most = HALVES * float(expected.abs().max())
    return (
        Found("equal") if away < most else Found("wrong", f"{away:.2g} apart, where {most:.2g} is rounding")
    )


def in_llama_cpp(base: load.Checkpoint, changes: dict[str, Any], root: Path) -> Found:
    """llama.cpp's scores with the adapter's file beside the base's; and the file read back."""
    save.write_checkpoint(root / "base.gguf", tiny.worded(base), force=True)
    packed = load.read_checkpoint(root / "base.gguf")
    gguf_adapters.write_gguf_adapter(root / "talk.gguf", changes, base, force=True)
    found = [
        torch.log_softmax(tiny.ours(each)[0, -1].double(), dim=-1).numpy()
        for each in (
            adapters.joined(base, changes),
            adapters.joined(packed, adapters.read_adapter(root / "talk.gguf", packed)),
        )
    ]
    ids = tiny.IDS[0].tolist()
    with llama_cpp.opened(root / "base.gguf", tiny.VOCAB, adapter=root / "talk.gguf") as scores:
        found.append(scores(ids))
    away = max(float(np.abs(found[0] - other).max()) for other in found[1:])
    return Found("equal") if away < GELU else Found("wrong", f"{away:.2g} apart in log-probabilities")


def shortened(why: str, root: Path) -> str:
    """A reason without what differs from case to case."""
    plain = re.sub(
        r"'(model|transformer|backbone|gpt_neox|encoder)\.[^']*'", "a module", why.replace(str(root), "")
    )
    return re.sub(r"\d+", "N", plain.splitlines()[0])[:150]
