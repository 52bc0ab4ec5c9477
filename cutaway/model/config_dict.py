"""A model's config to plain dictionaries, for YAML and JSON, and back to equal dataclasses.

``kind`` names the variant of a part: ``attention: {kind: gqa, heads: 9, ...}``. Equal neighbouring blocks are
written once, with their number: ``{times: 30, attention: ..., mlp: ...}``. An MLP is dense without
``kind: moe``. What equals its default is left out.
"""

from __future__ import annotations

import typing
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from itertools import groupby
from typing import Any

from cutaway.bounds import UNIONS, bounds_of, check, is_finite
from cutaway.errors import UserError, escaped, quoted
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.kinds import kind_of, variant


def to_dict(config: Any) -> Any:
    """Plain dictionaries, lists and numbers for JSON or YAML, without the values that equal their default."""
    if not is_dataclass(config):
        return [to_dict(item) for item in config] if isinstance(config, tuple) else config
    out: dict[str, Any] = {}
    hints = _hints(type(config))
    for f in fields(config):
        value = getattr(config, f.name)
        if f.default is not MISSING and value == f.default:
            continue
        if f.name == "blocks":
            out["blocks"] = [{"times": len(list(same)), **to_dict(block)} for block, same in groupby(value)]
        elif ("variants" in f.metadata and value is not None) or type(value) in _unusual(hints[f.name]):
            out[f.name] = {"kind": kind_of(value), **to_dict(value)}
        else:
            out[f.name] = to_dict(value)
    return out


def from_dict(data: Any, cls: type = Decoder, where: str = "config") -> Any:
    """The dataclass that ``to_dict`` wrote. UserError for an unknown, missing or wrong entry."""
    if not isinstance(data, dict):
        raise UserError(f"{where} is {quoted(data)}; it must be entries by name")
    hints = _hints(cls)
    known = {f.name: f for f in fields(cls)}
    for name in data:
        if name not in known:
            shown = escaped(f"{name}")[:80]
            raise UserError(f"{where}.{shown}: there is no such entry here; known: {', '.join(known)}")
    for name, f in known.items():
        if name not in data and f.default is MISSING and f.default_factory is MISSING:
            raise UserError(f"{where}.{name}: is missing")
    values = {
        name: _entry(known[name], hints[name], value, f"{where}.{name}") for name, value in data.items()
    }
    for name, value in values.items():
        check(value, bounds_of(cls)[name], f"{where}.{name}")
    return cls(**values)


def _entry(f: Any, hint: Any, value: Any, where: str) -> Any:
    if f.name == "blocks":
        return _blocks(value, where)
    if value is None and type(None) in typing.get_args(hint):
        return None
    if "variants" in f.metadata:
        if not isinstance(value, dict):
            raise UserError(f"{where} is {quoted(value)}; it must be an entry with a kind")
        cls = variant(f.metadata["variants"], value.get("kind"), where)
        return from_dict({name: v for name, v in value.items() if name != "kind"}, cls, where)
    classes = _classes(hint)
    if classes:
        kind = next(iter(classes))
        if len(classes) > 1 and isinstance(value, dict):
            kind = value.get("kind", kind)
            value = {name: v for name, v in value.items() if name != "kind"}
        if not isinstance(kind, str) or kind not in classes:
            raise UserError(f"{where}.kind: there is no {quoted(kind)}; known: {', '.join(classes)}")
        return from_dict(value, classes[kind], where)
    return _plain(_choices(hint), value, where)


def _plain(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    for choice in choices:
        origin = typing.get_origin(choice)
        if origin is typing.Literal and value in typing.get_args(choice):
            return value
        if origin is tuple and isinstance(value, list | tuple):
            inner = typing.get_args(choice)[0]
            if is_dataclass(inner):
                return tuple(
                    from_dict(item, typing.cast(type, inner), f"{where}[{i}]") for i, item in enumerate(value)
                )
            return tuple(_plain((inner,), item, where) for item in value)
        if choice is float and (type(value) is float or (type(value) is int and is_finite(value))):
            return float(value)
        if isinstance(choice, type) and type(value) is choice:
            return value
    names = " or ".join(getattr(choice, "__name__", str(choice)) for choice in choices)
    raise UserError(f"{where} is {quoted(value)}; it must be {names}")


def _blocks(value: Any, where: str) -> tuple[Block, ...]:
    if not isinstance(value, list):
        raise UserError(f"{where} is {quoted(value)}; it must be a list of blocks")
    blocks: list[Block] = []
    for i, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise UserError(f"{where}[{i}] is {quoted(entry)}; it must be a block")
        times = entry.get("times", 1)
        if type(times) is not int or not 1 <= times <= 10_000:
            raise UserError(f"{where}[{i}].times is {quoted(times)}; it must be from 1 to 10000")
        block = from_dict({k: v for k, v in entry.items() if k != "times"}, Block, f"{where}[{i}]")
        blocks += [block] * times
    return tuple(blocks)


@cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of a class's entries."""
    return typing.get_type_hints(cls)


def _choices(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in UNIONS else (hint,)


def _classes(hint: Any) -> dict[str, type]:
    """The config classes that a type allows, by kind; the first is the default."""
    found = [typing.cast(type, choice) for choice in _choices(hint) if is_dataclass(choice)]
    return {choice.__name__.lower(): choice for choice in found}


def _unusual(hint: Any) -> list[type]:
    """All but the default: a file must name their kind."""
    return list(_classes(hint).values())[1:]
