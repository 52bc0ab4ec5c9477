"""Estimate a run on N devices: memory, communication and seconds. Imports no torch.

    stays    weights, gradients, AdamW's two moments: 4 + 4 + 8 bytes a weight, over all devices (1910.02054)
    passes   activations kept for the backward pass; a block's weights while it is computed; a chunk of logits
    moves    fully_shard gathers every weight twice a micro-batch and scatters gradients once a step, (n-1)/n
             of the bytes each; tensor parallelism sums the residual stream twice in a block's forward pass,
             and once for each matrix that reads it in the backward pass
    takes    6 operations a weight and token and attention's (``flops``), over a device's speed; and the bytes
             moved, over the wire's. They overlap at best and add up at worst: both are given.

The activations are those of a Llama-like block in float32 as ``model/`` computes it, in numbers a token: both
norms 6 d, attention 3 h k + 2 g k + h, a gated MLP 4 f; of a mixture of experts each that a token passes 4 f,
and its input, output and weighted output 3 d; the shared one 4 f, and its gate d. tests/test_plan.py compares
all this with torch's memory tracker and its fake process group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cutaway.attention.common.heads import Heads
from cutaway.errors import UserError
from cutaway.layers.config import MLP, MoE
from cutaway.model.block_config import Block
from cutaway.train.config import TrainingConfig
from cutaway.train.flops import per_token

STAYS = {"weights": 4, "gradients": 4}  # bytes a weight
SUMS_FORTH, SUMS_BACK = 2, 5  # out and down; query, key, value, gate and up


@dataclass(frozen=True)
class Plan:
    """Bytes of one device, and of one step over its wire; seconds of a step, and of the run."""

    devices: int
    weights: int
    active: int  # weights that one token passes
    stays: dict[str, float]
    passes: dict[str, float]
    moves: dict[str, float]
    flops: float
    computing: float
    moving: float
    steps: int

    @property
    def memory(self) -> float:
        """Bytes that a device needs at the worst moment."""
        return sum(self.stays.values()) + sum(self.passes.values())

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds of a step: with communication hidden behind computing, and without."""
        return max(self.computing, self.moving), self.computing + self.moving


def plan(run: TrainingConfig, devices: int, flops: float, bandwidth: float) -> Plan:
    """Estimate a run on ``devices``, each of ``flops`` operations and ``bandwidth`` bytes a second."""
    if devices < 1 or devices % run.tensor_parallel:
        raise UserError(
            f"{devices} devices cannot be grouped by config.tensor_parallel, {run.tensor_parallel}"
        )
    model, tensor = run.model, run.tensor_parallel
    readers = devices // tensor
    micro_batches = run.share(readers)
    count = sum(math.prod(shape) for shape in model.weights().values())
    active = sum(math.prod(shape) for shape in model.active().values())
    inner = sum(block_weights(block, model.width) for block in model.blocks)
    outer = count - inner
    held = (inner / tensor + outer) / readers
    matrices = sum(
        math.prod(s) for n, s in model.weights().items() if n.startswith("blocks.") and len(s) == 2
    )
    matrices /= tensor * readers
    stays = {name: size * held for name, size in STAYS.items()}
    stays |= run.optimizer.state_bytes(matrices, held - matrices)
    if run.ema is not None:
        stays["averaged weights"] = 4 * held
    tokens = run.micro_batch_size * model.context
    kept = [activations(block, model.width, tensor) for block in model.blocks]
    own = 4 * tokens * (len(kept) * model.width + max(kept) if run.activation_checkpointing else sum(kept))
    width = 2 if run.precision == "bfloat16" else 4
    largest = max(block_weights(block, model.width) for block in model.blocks) / tensor
    passes = {
        "activations": own,
        "logits of a chunk": 2 * 4 * min(run.objective.chunk_size, tokens) * model.vocab,
        "head's gradient": 4 * model.vocab * model.width,
    }
    if readers > 1:
        passes["gathered weights"] = width * (outer + 2 * largest)
    moves = {}
    part = (readers - 1) / readers
    if readers > 1:
        moves["gathering weights"] = micro_batches * width * part * (2 * inner / tensor + outer)
        moves["scattering gradients"] = 4 * part * (inner / tensor + outer)
    if tensor > 1:
        sums = (SUMS_FORTH + SUMS_BACK) * len(model.blocks) * micro_batches
        moves["residual stream sums"] = sums * 2 * (tensor - 1) / tensor * width * tokens * model.width
    work = (
        run.batch_size
        * model.context
        * per_token(model)
        * (4 / 3 if run.activation_checkpointing else 1)
        / devices
    )
    return Plan(
        devices,
        count,
        active,
        stays,
        passes,
        moves,
        work,
        work / flops,
        sum(moves.values()) / bandwidth,
        run.steps,
    )


def activations(block: Block, width: int, tensor: int = 1) -> float:
    """Numbers a token that a block keeps for the backward pass; matrices are cut over ``tensor`` devices."""
    heads = block.attention
    plain = isinstance(heads, Heads) and block.mlp and block.mlp.gated and not block.beside
    if not plain or block.norm.kind != "rms":
        kind = type(heads).__module__.rpartition(".")[2]
        raise UserError(
            f"what a block of {kind} keeps is not known on paper: plan is for RMS-normed gated models"
        )
    queries, keys = heads.heads * heads.key_size, heads.groups * (heads.key_size + heads.values)
    return 6 * width + (3 * queries + keys + heads.heads + _mlp_keeps(block.mlp, width)) / tensor


def _mlp_keeps(mlp: MLP | MoE | None, width: int) -> float:
    if mlp is None:
        return 0
    if isinstance(mlp, MLP):
        return 4 * mlp.hidden
    experts = mlp.top_k * (4 * mlp.hidden + 3 * width)
    return experts + 4 * mlp.shared + (width if mlp.shared_gate else 0)


def block_weights(block: Block, width: int) -> int:
    """How many weights a block has."""
    return sum(math.prod(shape) for shape in block.weights(width).values())
