"""PEFT's folders written, under the names of transformers' modules and in their order of rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.gguf import Packed
from cutaway.layers.config import MoE
from cutaway.model.config import Decoder, Encoder, EncoderDecoder
from cutaway.model.context import ContextExtension
from cutaway.quantization import formats
from cutaway.store.files import write_file
from cutaway.weights import layout, safetensors
from cutaway.weights.changes import Adapter, LowRank, Scaled
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.layout import Matrix
from cutaway.weights.peft_config import CONFIG, EXTENSION
from cutaway.weights.peft_names import INNER, PREFIX, WEIGHTS, Names, untied
from cutaway.weights.rules import Bound

# Ends of names that PEFT takes for experts in a mixture, whatever else has them.
TAKEN = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
# Families of whose models it does so without experts too: it converts the targets of the model types.
CONVERTED = (
    "afmoe",
    "cohere2_moe",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "dots1",
    "ernie4_5_moe",
    "exaone_moe",
    "flex_olmo",
    "glm4_moe",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "hunyuan_v1_moe",
    "mellum",
    "minimax_m2",
    "mixtral",
    "olmoe",
    "qwen3_moe",
    "qwen3_next",
    "sarvam_mla",
    "solar_open",
)
TABLES = ("embedding.weight", "position.weight", "segment.weight", "task.weight", ".relative.weight")
TWICE = ("laguna",)  # PEFT does not find the pairs of shared experts in its own folders
NO_MAMBA = ("out_proj", "conv1d")  # which PEFT refuses in models of these families
MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")


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
        self.mixture = base.family in CONVERTED or any(
            isinstance(block.mlp, MoE) for block in base.config.blocks
        )
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
            packed = formats.pack(np.ascontiguousarray(array, np.float32), "F32")
            self.tensors[f"{PREFIX}{module}.{part}"] = packed

    def _pair(self, found: list[Any], bound: Bound, matrix: Matrix, module: str) -> None:
        leaf = module.rpartition(".")[2]
        if leaf in self.names.bypassed:
            raise UserError(f"{module}: transformers reads this weight past PEFT: leave it out")
        if bound.ours[0].endswith("_norm.weight"):
            raise UserError(f"{module}: PEFT has no pair of a norm: leave it out")
        a, b = layout.joined_pair(found, matrix.orders, (matrix.outputs, matrix.inputs))
        if bound.ours[0].endswith(TABLES):
            if self.dora:
                raise UserError(f"{module}: DoRA of an embedding table is not written for PEFT")
            self.modules[module] = len(a)
            self._put(module, {"lora_embedding_A": b.T, "lora_embedding_B": a.T})
            return
        parts = {"lora_A.weight": a, "lora_B.weight": b}
        if self.dora:
            parts["lora_magnitude_vector"] = self._magnitude(found, bound, matrix)
        if self.base.family in TWICE and ".shared_experts." in module:
            raise UserError(
                f"{module}: transformers renames this module twice, so PEFT does not open its pair"
            )
        if leaf in NO_MAMBA and self.base.family in MAMBA:
            raise UserError(f"{module}: PEFT refuses LoRA of a Mamba's {leaf}: leave this matrix out")
        if bound.ours[0].endswith(".router.weight") or (self.mixture and leaf in TAKEN):
            if self.dora:
                raise UserError(
                    f"{module}: PEFT has no DoRA of this matrix in a mixture of experts or its family"
                )
            self.parameters[f"{module}.weight"] = len(a)
        else:
            self.modules[module] = len(a)
        self._put(module, parts)

    def _magnitude(self, found: list[Any], bound: Bound, matrix: Matrix) -> np.ndarray:
        """DoRA's magnitudes; the norms themselves where a part has none, so that nothing is scaled there."""
        made = np.empty(matrix.outputs, np.float32)
        for one, ours, order in zip(found, bound.ours, matrix.orders, strict=True):
            if one is None or one.magnitude is None:
                weight = formats.unpack(self.base.tensors[ours])
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
            layout.joined_pair(found[n : n + per], matrix.orders[n : n + per], shape)
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
    safetensors.write_safetensors(folder / WEIGHTS, made.tensors)
    write_file(folder / CONFIG, json.dumps(config, indent=1))
