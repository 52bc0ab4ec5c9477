"""Parallel work in a forward pass: what is computed at once, what must wait, and the roofline.

A step reads what the step before it wrote; inside a step nothing depends on anything else in it. So the
number of steps, layer after layer, is what no number of processors shortens, and ``outputs`` is how many
could work in a step. Decoding adds another wait: a token needs the one before it.

The roofline (Williams et al. 2009): a step takes at least its operations over the machine's peak, and at
least the bytes it must move over the machine's bandwidth; the intensity, operations a byte, says which is
more. Weights are counted as they are stored, once a step; the cache as float16; norms, rotation and
activations are left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from cutaway import native
from cutaway.attention.common.cost import at
from cutaway.attention.common.registry import kind
from cutaway.inspect.loaded import Loaded
from cutaway.layers.config import MoE
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.kinds import kind_of
from cutaway.native import packed_product

NUMBER = 2  # bytes of a number in the cache
VECTORS = 256  # in the product that is measured
LATER = {"mla": ("query", "key_up", "value_up"), "dsa": ("query", "key_up", "value_up", "index_query")}


@dataclass(frozen=True)
class Machine:
    """Measured: operations a second of products with ``type`` weights, bytes a second of a reading loop."""

    flops: float
    bandwidth: float
    threads: int
    type: str

    @property
    def balance(self) -> float:
        """Operations a byte above which arithmetic is the limit, not memory."""
        return self.flops / self.bandwidth


@dataclass(frozen=True)
class Step:
    """What is computed at once: ``at_once`` in words, ``outputs`` numbers none of which waits for another."""

    name: str
    at_once: str
    outputs: int
    flops: float
    bytes: float

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flops / max(self.bytes, 1)

    def seconds(self, machine: Machine) -> float:
        """The least time on the machine."""
        return max(self.flops / machine.flops, self.bytes / machine.bandwidth)


@dataclass(frozen=True)
class Layers:
    """Equal neighbouring layers, from ``first`` to ``last``: each waits for the one before it."""

    first: int
    last: int
    kind: str
    steps: tuple[Step, ...]

    @property
    def count(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True)
class Pass:
    """One forward pass of ``sequences`` texts: ``tokens`` of each, ``after`` so many in the cache."""

    tokens: int
    after: int
    sequences: int
    layers: tuple[Layers, ...]
    head: Step

    @property
    def waits(self) -> int:
        """Steps one after another."""
        return sum(each.count * len(each.steps) for each in self.layers) + 1

    def steps(self) -> list[tuple[int, Step]]:
        """Each step, and how many layers have it."""
        return [(each.count, step) for each in self.layers for step in each.steps] + [(1, self.head)]

    def total(self, machine: Machine) -> tuple[float, float, float]:
        """Operations, bytes and the least seconds."""
        each = [(n * s.flops, n * s.bytes, n * s.seconds(machine)) for n, s in self.steps()]
        flops, moved, seconds = (sum(column) for column in zip(*each, strict=True))
        return flops, moved, seconds


def passes(lm: Loaded, tokens: int, sequences: int = 16) -> tuple[Pass, Pass, Pass]:
    """A prompt of so many tokens, the token after it, and that token of several texts together."""
    config: Any = lm.config
    stored = {name: lm.checkpoint.tensors.later(name).nbytes for name in lm.checkpoint.tensors}
    return (
        forward(config, stored, tokens),
        forward(config, stored, 1, tokens),
        forward(config, stored, 1, tokens, sequences),
    )


def forward(
    config: Decoder, stored: Mapping[str, int], tokens: int, after: int = 0, sequences: int = 1
) -> Pass:
    """One pass of a model whose weights take ``stored`` bytes by name."""
    found, first = [], 0
    for block, same in groupby(config.blocks):
        last = first + len(list(same)) - 1
        of = {name: shape for name, shape in block.weights(config.width).items() if len(shape) == 2}
        sizes = {name: stored[f"blocks.{first}.{name}"] for name in of}
        steps = _block(config.width, block, of, sizes, tokens, after, sequences)
        found.append(Layers(first, last, kind_of(block.attention), steps))
        first = last + 1
    name = "embedding.weight" if config.tied else "head.weight"
    head = _matrices(
        "head",
        f"{config.vocab:,} logits of the last token",
        {name: (config.vocab, config.width)},
        {name: stored.get(name, 0)},
        sequences,
    )
    return Pass(tokens, after, sequences, tuple(found), head)


def _block(
    width: int,
    block: Block,
    shapes: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, int],
    tokens: int,
    after: int,
    sequences: int,
) -> tuple[Step, ...]:
    """The steps of one layer. In a parallel block the MLP's go beside attention's."""
    rows = tokens * sequences
    attention = [name for name in shapes if name.startswith("attention.")]
    out = [name for name in attention if name.split(".")[1] == "out"]
    late = [name for name in attention if name.split(".")[1] in LATER.get(kind_of(block.attention), ())]
    late = late if any("down" in name for name in attention) else []
    early = [name for name in attention if name not in out and name not in late]

    def product(name: str, words: str, names: list[str]) -> Step:
        picked = {each: shapes[each] for each in names}
        return _matrices(name, f"{words}, {_texts(tokens, sequences)}", picked, sizes, rows)

    first = [product(_named(early), f"{len(early)} matrices", early)]
    if late:
        first.append(product(_named(late), f"{len(late)} matrices", late))
    first += [
        _mixing(width, block.attention, tokens, after, sequences),
        *([product("out", "1 matrix", out)] if out else []),
    ]
    second = _mlp(block, shapes, sizes, rows, _texts(tokens, sequences))
    if block.parallel:
        longer, shorter = (first, second) if len(first) >= len(second) else (second, first)
        return tuple(_beside(a, shorter[n] if n < len(shorter) else None) for n, a in enumerate(longer))
    return (*first, *second)


def _mixing(width: int, attention: Any, tokens: int, after: int, sequences: int) -> Step:
    """The work of mixing tokens, by the formulas of the mechanism's file."""
    cost, n = kind(kind_of(attention)).cost, tokens + after
    formula = cost.decode if after and cost.decode else cost.prefill
    state = at(cost.state, attention, n=n, d=width, s=0) * NUMBER
    heads = getattr(attention, "heads", 1)
    return Step(
        "tokens meet",
        f"{heads} heads, {_texts(tokens, sequences)}",
        heads * tokens * sequences,
        2 * at(formula, attention, n=n, d=width, s=0) * sequences,
        state * sequences,
    )


def _mlp(
    block: Block, shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], rows: int, texts: str
) -> list[Step]:
    names = [name for name in shapes if name.startswith("mlp.")]
    if block.mlp is None:
        return []
    if not isinstance(block.mlp, MoE):
        wide = [name for name in names if "down" not in name]
        down = [name for name in names if "down" in name]
        return [
            _matrices(_named(group), f"{words}, {texts}", {n: shapes[n] for n in group}, sizes, rows)
            for group, words in ((wide, f"{len(wide)} matrices"), (down, "1 matrix"))
        ]
    moe = block.mlp
    router = [name for name in names if "router" in name]
    steps = [
        _matrices("router", f"{moe.experts} scores, {texts}", {n: shapes[n] for n in router}, sizes, rows)
    ]
    for down in (False, True):
        one = [n for n in names if n.startswith("mlp.experts.0.") and ("down" in n) == down]
        shared = [n for n in names if n.startswith("mlp.shared.") and ("down" in n) == down]
        active = moe.top_k * rows
        read = min(moe.experts, active)  # the experts that some token chose, at most
        flops = 2 * active * sum(math.prod(shapes[n]) for n in one)
        flops += 2 * rows * sum(math.prod(shapes[n]) for n in shared)
        outputs = active * sum(shapes[n][0] for n in one) + rows * sum(shapes[n][0] for n in shared)
        moved = read * sum(sizes[n] for n in one) + sum(sizes[n] for n in shared)
        words = f"{moe.top_k} of {moe.experts} experts{' and the shared one' if shared else ''}, {texts}"
        steps.append(Step(f"experts: {_named(one)}", words, outputs, flops, moved))
    return steps


def _matrices(
    name: str,
    words: str,
    shapes: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, int],
    rows: int,
) -> Step:
    """Products of so many rows with matrices that are read once for all of them."""
    numbers, outputs = (sum(f(shape) for shape in shapes.values()) for f in (math.prod, lambda s: s[0]))
    return Step(name, words, outputs * rows, 2.0 * numbers * rows, float(sum(sizes[n] for n in shapes)))


def _beside(one: Step, other: Step | None) -> Step:
    """Two steps that wait for the same: one step."""
    if other is None:
        return one
    return Step(
        f"{one.name} | {other.name}",
        f"{one.at_once} | {other.at_once}",
        one.outputs + other.outputs,
        one.flops + other.flops,
        one.bytes + other.bytes,
    )


def _named(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(name.split(".")[-2].replace("_", " ") for name in names))


def _texts(tokens: int, sequences: int) -> str:
    what = "1 token" if tokens == 1 else f"{tokens:,} tokens"
    return what if sequences == 1 else f"{what} of {sequences} texts"


def machine(lm: Loaded, threads: int, seconds: float = 0.3) -> Machine:
    """This machine as far as these measurements reach: memory read by all threads, and products.

    The product is that of the runtime's kernel with the model's own largest matrix where there is a kernel,
    else of float32 matrices.
    """
    parts = [np.ones((64 << 20) // threads, np.uint8) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        reading = _least(lambda: list(pool.map(np.max, parts)), seconds)
    tensors = lm.checkpoint.tensors
    inside = {name: tensors.later(name) for name in tensors if name.startswith("blocks.")}
    matrices = {name: entry for name, entry in inside.items() if len(entry.shape) == 2}
    largest = max(matrices, key=lambda name: matrices[name].nbytes)
    rows, columns = matrices[largest].shape
    type = matrices[largest].type
    if native.available() and type in packed_product.TYPES:
        panels = np.empty(packed_product.packed_bytes(type, rows, columns), np.uint8)
        packed_product.pack(type, rows, columns, np.ascontiguousarray(tensors[largest].data).ravel(), panels)
        x = np.ones((VECTORS, columns), np.float32)
        multiplying = _least(
            lambda: packed_product.multiply(type, rows, columns, panels, x, threads), seconds
        )
    else:
        type, one = "float32", np.ones((VECTORS, columns), np.float32)
        other = np.ones((columns, rows), np.float32)
        multiplying = _least(lambda: one @ other, seconds)
    flops = 2.0 * VECTORS * rows * columns / multiplying
    return Machine(flops, sum(part.nbytes for part in parts) / reading, threads, type)


def _least(work: Any, seconds: float) -> float:
    """The shortest of the runs that fit so many seconds."""
    least, until = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < until:
        begin = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - begin)
    return least
