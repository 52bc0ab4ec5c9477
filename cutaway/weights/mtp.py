"""Heads that predict further tokens (model/mtp.py): their number and their names, in both formats.

Published folders have them as layers after the last (DeepSeek, GLM), or apart (Qwen); GGUF after the last.
Copies of the embedding table and the head in such layers are not read: those are the model's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cutaway.gguf import Packed
from cutaway.model.config import Decoder
from cutaway.weights.family import Entries, Family, Row, Settings
from cutaway.weights.fields import LAYERS, Fields
from cutaway.weights.rules import How, Rule, bind
from cutaway.weights.tensor_maps import same

PARTS = ("embedding_norm", "hidden_norm", "join", "norm")
OURS, BLOCK = "mtp.{n}.", "blocks.{n}."
AFTER = ("enorm", "hnorm", "eh_proj", "shared_head.norm")  # DeepSeek's names
APART = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm")  # Qwen's
IN_GGUF = ("nextn.enorm", "nextn.hnorm", "nextn.eh_proj", "nextn.shared_head_norm")


class Heads(Row):
    """How many there are, by the first of these keys that config.json has; GGUF's is `LayerCount`'s.

    ``usual``: how many a config without a number has.
    """

    name = "mtp"

    def __init__(self, *keys: str, usual: int = 1) -> None:
        self.keys, self.usual = keys, usual

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return {}
        there = [key for key in self.keys if fields.get(key) is not None]
        stated = [fields.integer(key, low=0, high=LAYERS) for key in there]
        return {self.name: stated[0] if stated else self.usual}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {} if gguf else {self.keys[0]: known.get(self.name, 0)}


def _following(config: Any) -> range:
    """The numbers of the layers after the last."""
    return range(len(config.blocks), len(config.blocks) + len(config.mtp))


def _from_zero(config: Any) -> range:
    return range(len(config.mtp))


def _of_blocks(
    rules: Sequence[Rule], *changes: tuple[str, str], after_last: bool = False
) -> tuple[Rule, ...]:
    """The rules of layers, for the blocks of heads: of layers after the last, or with parts of their names
    changed.
    """
    found, number = [], _following if after_last else _from_zero
    for rule in rules:
        names = rule.names
        if rule.number is not None or not all(name.startswith(BLOCK) for name in names):
            continue
        ours = tuple(f"{OURS}block.{name.removeprefix(BLOCK)}" for name in names)
        theirs = rule.theirs
        for change in changes:
            theirs = theirs.replace(*change)
        own = ours[0] if isinstance(rule.ours, str) else ours
        found.append(replace(rule, ours=own, theirs=theirs, number=number))
    return tuple(found)


def _heads(prefix: str, names: Sequence[str], number: Any) -> tuple[Rule, ...]:
    return tuple(
        Rule(f"{prefix}{theirs}.weight", f"{OURS}{ours}.weight", same, number=number)
        for theirs, ours in zip(names, PARTS, strict=True)
    )


def after(
    rules: Sequence[Rule], prefix: str = "model.layers.{n}.", names: Sequence[str] = AFTER
) -> tuple[Rule, ...]:
    """The rules, and those of heads in the layers after the last."""
    return (*rules, *_of_blocks(rules, after_last=True), *_heads(prefix, names, _following))


def in_gguf(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules of a GGUF file, and those of heads in the layers after the last."""
    return after(rules, "blk.{n}.", IN_GGUF)


def under(
    rules: Sequence[Rule], prefix: str, names: Sequence[str], *changes: tuple[str, str]
) -> tuple[Rule, ...]:
    """The rules, and those of heads in layers under another prefix, with other parts of names changed."""
    own = _of_blocks(rules, ("model.layers.{n}.", prefix), *changes)
    return (*rules, *own, *_heads(prefix, names, _from_zero))


def apart(rules: Sequence[Rule], norms: How = same) -> tuple[Rule, ...]:
    """The rules, and those of one head under names of its own, as Qwen has them."""
    own = (
        Rule(f"mtp.{theirs}.weight", f"mtp.0.{ours}.weight", norms if "norm" in ours else same)
        for theirs, ours in zip(APART, PARTS, strict=True)
    )
    return (*rules, *_of_blocks(rules, ("model.layers.", "mtp.layers.")), *own)


def has_names(rules: Sequence[Rule]) -> bool:
    """Whether some of these rules name heads."""
    ours = (rule.names[0] for rule in rules)
    return any(name.startswith("mtp.") for name in ours)


def stored(config: Any, rules: Sequence[Rule], theirs: Mapping[str, Packed]) -> Any:
    """The config with the heads of which the file has all weights, from the first on: many leave them out."""
    if not isinstance(config, Decoder) or not config.mtp:
        return config
    bound = bind(rules, config) if has_names(rules) else ()
    heads = [
        (int(each.ours[0].split(".")[1]), each.theirs) for each in bound if each.ours[0].startswith("mtp.")
    ]
    absent = [number for number, name in heads if name not in theirs]
    return replace(config, mtp=config.mtp[: min(absent, default=len(config.mtp))] if heads else ())
