"""A trained decoder's attention made another mechanism: exact where algebra allows, else approximated.

    GQA -> MHA        each key-value head is copied for each of its query heads: the same function
    MHA -> GQA, MQA   the key-value heads of a group become their mean (2305.13245): to be trained further
    any -> local      the same weights behind a window: the same function within the window
    GQA -> MLA        the same function at the same cache, then less cache (as in TransMLA, 2502.07864)

How GQA becomes MLA. Write pair j of head g's rotated key as a complex number z_gj. RoPE multiplies the z_gj
of all heads by the same number, so mixing the heads by a unitary matrix U_j commutes with it: y = U'z rotates
as z does, and a query of head g meets y_c through conj(U_gc) q.

1. All heads' y in kr ("rotary" = the number of heads): nothing is lost. kr holds all keys, the latent all
   values.
2. Less cache: U_j are the principal axes of z_j on a text, so the first few y hold most of the keys. The
   other y lose their rotation and move into the latent beside the values.
3. One SVD finds the best N directions of that latent. An error of a key is weighed by the queries that meet
   it, an error of a value by the output matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np

from cutaway.attention.common.heads import Heads
from cutaway.errors import UserError
from cutaway.gguf import Later, Packed
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.kinds import kind_of, mixer
from cutaway.position import rope
from cutaway.position.scaling import GROWING
from cutaway.quantization import formats
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors

Array = np.ndarray
Weights = Mapping[str, Array]  # of one layer's attention, by their names in it
Moments = Mapping[str, Array]  # of each layer's ``query.weight``: the mean of x x' over a text
SOFTMAX = ("mha", "gqa", "mqa", "local")


def converted(
    checkpoint: Checkpoint,
    kind: str,
    *,
    kv_heads: int | None = None,
    window: int | None = None,
    latent: int | None = None,
    rotary: int | None = None,
    moments: Moments | None = None,
) -> Checkpoint:
    """The checkpoint with each softmax layer as ``kind``; weights are made when asked for.

    ``kind`` is mha, gqa, mqa, local or mla; ``kv_heads`` is gqa's, ``window`` local's. Of mla: ``latent``
    numbers of the cache for what is not rotated, as many as lose nothing by default; ``rotary``: how many
    heads' worth of keys stays rotated, all by default, 1 with a latent; where that is fewer than all,
    ``moments`` are needed. Layers that are ``kind`` already and layers that are no softmax stay. Raises
    UserError for what the mechanism cannot hold.
    """
    if not isinstance(checkpoint.config, Decoder):
        raise UserError(f"{checkpoint.source}: is not a decoder, and only a decoder's attention is converted")
    given = {"kv_heads": kv_heads, "window": window, "latent": latent, "rotary": rotary}
    wanted = {"gqa": {"kv_heads"}, "local": {"window"}, "mla": {"latent", "rotary"}}.get(kind, set())
    for name, value in given.items():
        if value is not None and name not in wanted:
            raise UserError(f"{name} is no setting of {kind}: leave it out")
    for name in wanted & {"kv_heads", "window"}:
        if given[name] is None:
            raise UserError(f"{kind} needs {name}: give a number")
    blocks, layers = list(checkpoint.config.blocks), {}
    for n, block in enumerate(blocks):
        if kind_of(block.attention) not in SOFTMAX or (kind_of(block.attention) == kind in ("mha", "mqa")):
            continue
        of = _Layer(checkpoint, n, block, (moments or {}).get(f"blocks.{n}.attention.query.weight"))
        if kind == "mla":
            attention, make = of.latent(latent, rotary)
        else:
            attention, make = of.heads(kind, kv_heads, window)
        blocks[n], layers[n] = replace(block, attention=attention), make
    if not layers:
        raise UserError(f"{checkpoint.source}: has no layer of softmax attention that is not {kind} already")
    config = replace(checkpoint.config, blocks=tuple(blocks))
    return replace(checkpoint, config=config, tensors=_tensors(checkpoint, config, layers))


def _tensors(checkpoint: Checkpoint, config: Decoder, layers: dict[int, Callable[[], Weights]]) -> Tensors:
    """The checkpoint's weights with those of converted layers, each layer made once."""

    @cache
    def made(n: int) -> Weights:
        return layers[n]()

    def weight(n: int, name: str) -> Packed:
        return formats.pack(np.ascontiguousarray(made(n)[name], dtype=np.float32), "F32")

    found: dict[str, Packed | Later] = {}
    for name, shape in config.weights().items():
        parts = name.split(".", 3)
        if parts[0] == "blocks" and parts[2] == "attention" and int(parts[1]) in layers:
            n, inner = int(parts[1]), parts[3]
            found[name] = Later("F32", shape, lambda n=n, inner=inner: weight(n, inner))
        else:
            found[name] = checkpoint.tensors.later(name)
    return Tensors(found)


class _Layer:
    """One layer of softmax attention to be converted; ``moment`` is the mean of x x' [width width]."""

    def __init__(self, checkpoint: Checkpoint, n: int, block: Block, moment: Array | None) -> None:
        self.of: Heads = block.attention
        self.where = f"{checkpoint.source}: layer {n}"
        self.kind = kind_of(block.attention)
        self.prefix = f"blocks.{n}.attention."
        self.width = checkpoint.config.width
        self.tensors = checkpoint.tensors
        self.moment = np.eye(self.width) if moment is None else moment.astype(np.float64)
        self.measured = moment is not None

    def weights(self) -> dict[str, Array]:
        """The layer's own weights, unpacked."""
        return {
            name.removeprefix(self.prefix): formats.unpack(self.tensors[name])
            for name in self.tensors
            if name.startswith(self.prefix)
        }

    # ---- other heads ---------------------------------------------------------------------------------------

    def heads(self, kind: str, kv_heads: int | None, window: int | None) -> tuple[Any, Callable[[], Weights]]:
        """The config as mha, gqa, mqa or local, and what makes its weights."""
        of = self.of
        shared = {f.name: getattr(of, f.name) for f in fields(Heads)}
        if self.kind == "local" and kind != "local":
            raise UserError(f"{self.where} sees a window alone, which {kind} does not have")
        if kind == "local":
            return mixer("local", **shared, kv_heads=of.groups, window=window), self.weights
        groups = {"mha": of.heads, "mqa": 1}.get(kind, kv_heads or 1)
        own = {"kv_heads": groups} if kind == "gqa" else {}
        if of.heads % groups or (groups % of.groups and of.groups % groups):
            raise UserError(
                f"{self.where}: {of.groups} key-value heads of {of.heads} heads cannot become {groups}: "
                "one number must divide the other"
            )
        if groups != of.groups and of.qk_norm is not None and of.qk_norm_over != "head":
            raise UserError(f"{self.where} norms its key heads with weights for each, which none can share")

        def make() -> Weights:
            found = self.weights()
            for name in ("key.weight", "value.weight", "key.bias", "value.bias"):
                if name not in found:
                    continue
                rows = found[name].reshape(of.groups, -1, *found[name].shape[1:])
                if groups < of.groups:
                    rows = rows.reshape(groups, -1, *rows.shape[1:]).mean(axis=1)
                rows = rows.repeat(max(groups // of.groups, 1), axis=0)
                found[name] = rows.reshape(-1, *found[name].shape[1:])
            return found

        return mixer(kind, **shared, **own), make

    # ---- a latent ------------------------------------------------------------------------------------------

    def latent(self, size: int | None, rotary: int | None) -> tuple[Any, Callable[[], Weights]]:
        """The config as mla, and what makes its weights."""
        of = self.of
        refused = {
            "a bias": of.bias or of.out_bias,
            "norms of queries and keys": of.qk_norm is not None,
            "a window": self.kind == "local",
            "a soft cap": of.softcap is not None,
            "sinks": of.sinks,
            "clipped numbers": of.clip is not None,
            "a temperature": of.temperature is not None,
            "biases by distance": of.relative is not None,
            "no rotary positions": of.position is None,
        }
        if named := [what for what, there in refused.items() if there]:
            raise UserError(f"{self.where} has {' and '.join(named)}, which latent attention cannot hold")
        position, groups = of.position, of.groups
        assert position is not None
        if isinstance(position.scaling, GROWING):
            raise UserError(f"{self.where} rotates by frequencies that change with the text's length")
        copies = rotary or (groups if size is None else 1)
        if copies > groups:
            raise UserError(f"rotary is {copies}, and {self.where} has {groups} key-value heads")
        if copies < groups and not self.measured:
            raise UserError("a latent for keys needs their moments on a text: measure them first")
        plain = of.key_size - position.size if copies == groups else of.key_size
        all_of_it = groups * (plain + of.values)
        size = min(size or all_of_it, all_of_it)
        config = mixer(
            "mla",
            heads=of.heads,
            key_size=max(plain, 1),  # a head has one number, 0, where all of it is rotated
            rope_dim=copies * position.size,
            latent=size,
            value_size=of.values,
            position=replace(position, size=copies * position.size, copies=copies, interleaved=False),
            norm=None,
            scale=of.key_size**-0.5 if of.scale is None else of.scale,
        )
        return config, lambda: self._latent(size, copies, plain)

    def _latent(self, size: int, copies: int, plain: int) -> Weights:
        of, own = self.of, self.weights()
        query, key, value = (
            own[f"{name}.weight"].astype(np.float64).reshape(heads, -1, self.width)
            for name, heads in (("query", of.heads), ("key", of.groups), ("value", of.groups))
        )
        assert of.position is not None
        first, second = _pairs(of.position)
        each = of.heads // of.groups  # query heads that read one key-value head
        z, q = key[:, first] + 1j * key[:, second], query[:, first] + 1j * query[:, second]  # [heads pairs d]
        axes = self._axes(z)[:, :, :copies]  # [pairs g c]
        kept = np.einsum("jgc,gjd->cjd", axes.conj(), z)
        met = np.einsum("jgc,gnjd->gncjd", axes.conj(), q.reshape(of.groups, each, *q.shape[1:]))
        lost = z - np.einsum("jgc,cjd->gjd", axes, kept)
        if plain == of.key_size:  # some of each key is not rotated any more
            rest, asked = key.copy(), query
            rest[:, first], rest[:, second] = lost.real, lost.imag
        else:
            left = np.setdiff1d(np.arange(of.key_size), np.concatenate((first, second)))
            rest, asked = key[:, left], query[:, left]
        down, key_up, value_up = self._shared(rest, value, asked, own["out.weight"], size)
        rotated = _halves(met.real, met.imag).reshape(of.heads, -1, self.width)
        nothing = np.zeros((of.heads, 1, self.width))
        heads = np.concatenate((asked if plain else nothing, rotated), axis=1)
        up = key_up.repeat(each, axis=0) if plain else np.zeros((of.heads, 1, size))
        return {
            "query.weight": heads.reshape(-1, self.width),
            "down.weight": np.concatenate((down, _halves(kept.real, kept.imag))),
            "key_up.weight": up.reshape(-1, size),
            "value_up.weight": value_up.repeat(each, axis=0).reshape(-1, size),
            "out.weight": own["out.weight"],
        }

    def _axes(self, z: Array) -> Array:
        """For each pair, the unitary matrix [pairs g c] of the principal axes of the heads' numbers."""
        covariance = np.einsum("gjd,de,hje->jgh", z, self.moment, z.conj(), optimize=True)
        return np.linalg.eigh(covariance)[1][:, :, ::-1]

    def _shared(
        self, keys: Array, values: Array, queries: Array, out: Array, size: int
    ) -> tuple[Array, Array, Array]:
        """The latent [size d] of keys [g k d] and values [g v d], and what makes them of it, [g k size]."""
        groups, each = len(keys), self.of.heads // len(keys)
        rows = np.concatenate((keys, values), axis=1)  # [g k+v d]
        flat, counts = rows.reshape(-1, self.width), keys.shape[1]
        if size == len(flat):
            up = np.eye(size).reshape(groups, -1, size)
            return flat, up[:, :counts], up[:, counts:]
        scores = np.einsum("hkd,de,hle->hkl", queries, self.moment, queries, optimize=True)
        scores = scores.reshape(groups, each, counts, counts).sum(axis=1) / self.of.key_size
        written = out.astype(np.float64).reshape(self.width, self.of.heads, -1)
        written = np.einsum("dhv,dhw->hvw", written, written, optimize=True)
        written = written.reshape(groups, each, *written.shape[1:]).sum(axis=1)
        roots = [_root(metric) for metric in (scores, written)]  # [g k k], [g v v]
        root = np.zeros((groups, rows.shape[1], rows.shape[1]))
        for part, here in zip(roots, (slice(None, counts), slice(counts, None)), strict=True):
            # Both changes are compared relative to their values: scores and outputs have no common unit.
            moved = np.einsum("gkl,gld->gkd", part, rows[:, here])
            whole = np.einsum("gkd,de,gke->", moved, self.moment, moved, optimize=True)
            root[:, here, here] = part / np.sqrt(max(whole, 1e-300))
        weighed = np.einsum("gkl,gld->gkd", root, rows).reshape(-1, self.width)
        best = np.linalg.svd(weighed @ _root(self.moment[None])[0])[0][:, :size]
        inverse = np.linalg.pinv(root, rcond=1e-9)
        up = np.einsum("gkl,gln->gkn", inverse, best.reshape(groups, -1, size))
        return best.T @ weighed, up[:, :counts], up[:, counts:]


def _pairs(position: rope.Config) -> tuple[Array, Array]:
    """The dimensions of a head that are the first and the second of each rotated pair."""
    if position.interleaved:
        return np.arange(0, position.size, 2), np.arange(1, position.size, 2)
    half = position.size // 2
    return np.arange(half), np.arange(half, 2 * half)


def _halves(real: Array, imaginary: Array) -> Array:
    """Rows of complex numbers [... c pairs d] as RoPE's halves: [... 2 c pairs, d]."""
    flat = [part.reshape(*part.shape[:-3], -1, part.shape[-1]) for part in (real, imaginary)]
    return np.concatenate(flat, axis=-2)


def _root(metric: Array) -> Array:
    """The symmetric square root of each matrix [g n n]."""
    values, vectors = np.linalg.eigh(metric)
    return np.einsum("gij,gj,gkj->gik", vectors, np.sqrt(np.clip(values, 0, None)), vectors)
