"""Encoders that are decoders whose tokens see both sides: config, settings, the name of the last norm."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any

from cutaway.attention import bidirectional
from cutaway.attention.common.heads import Heads
from cutaway.model.config import Decoder, Encoder
from cutaway.weights import decoders
from cutaway.weights.family import Settings
from cutaway.weights.rules import Rule


def _changed(config: Decoder | Encoder, change: Callable[[Any], Any]) -> tuple[Any, ...]:
    return tuple(replace(block, attention=change(block.attention)) for block in config.blocks)


def _shared(attention: Heads) -> dict[str, Any]:
    return {field.name: getattr(attention, field.name) for field in fields(Heads)}


def half(window: int) -> int:
    """What is seen to each side of a window's middle."""
    return window // 2


def encoder(known: Settings, near: Callable[[int], int] = half) -> Encoder:
    """The encoder of these settings; ``near``: how far a local layer sees to each side."""
    of = decoders.decoder(known)

    def both_sides(attention: Heads) -> Heads:
        window = decoders.window_of(attention)
        reach = None if window is None else near(window)
        return bidirectional.Config(kv_heads=attention.groups, reach=reach, **_shared(attention))

    return Encoder(
        of.vocab,
        of.width,
        of.context,
        _changed(of, both_sides),
        of.norm,
        segments=0,
        learned=False,
        norm_first=True,
        embedding_norm=False,
        embedding_scale=of.embedding_scale,
    )


def settings(config: Decoder | Encoder, near: Callable[[int], int] = half) -> Settings:
    """The settings of a config."""

    def past_alone(attention: Any) -> Heads:
        reach = attention.reach
        window = None if reach is None else 2 * reach if near is half else reach
        own = {name: value for name, value in _shared(attention).items() if name != "heads"}
        return decoders.heads(attention.heads, attention.groups, window, **own)

    of = Decoder(config.vocab, config.width, config.context, _changed(config, past_alone), config.norm)
    return decoders.settings(of) | {"causal": False}


def last_norm(rules: Iterable[Rule], theirs: str) -> tuple[Rule, ...]:
    """The rules, where the norm after the last block has an encoder's name."""
    return tuple(
        replace(rule, ours=rule.ours.replace("norm.", "last_norm."))
        if rule.theirs.startswith(theirs)
        else rule
        for rule in rules
        if isinstance(rule.ours, str)
    )
