"""Configs: every field of a model's, a run's and a comparison's config, with its type and default."""

from __future__ import annotations

import importlib
import pkgutil
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from cutaway.bounds import bounds_of
from cutaway.model.config import Decoder, Encoder, EncoderDecoder
from cutaway.train.config import TrainingConfig
from cutaway.train.recipes.finetune import FinetuningConfig
from cutaway.train.rewards_config import RewardsConfig
from scripts.lib.reference.markdown import HEAD, code, escaped, kind, prose, table

INTRODUCTION = """# Configs

A config is a YAML or JSON file, such as a run's `run.yaml`. The options of `cutaway pretrain` and `cutaway
finetune` change it: `--optimizer.learning-rate 3e-4` sets the entry `optimizer.learning_rate`. A `kind`
chooses among the configs of a folder: `kind: gqa` is the one called gqa below. "required" means that it has
no default.
"""
ROOTS = {
    "Runs": (TrainingConfig, FinetuningConfig, RewardsConfig),
    "Models": (Decoder, Encoder, EncoderDecoder),
}
FOLDERS = {
    "Attention: `attention.kind`": "cutaway.attention",
    "Positions: `position.kind`": "cutaway.position",
    "Objectives: `objective.kind`": "cutaway.train.objectives",
    "Adapters: `adapter.kind`": "cutaway.train.adapters",
    "Tasks of a comparison: `task.kind`": "cutaway.compare.tasks",
    "Slow thinking": "cutaway.generate.thinking",
    "Watermarks": "cutaway.generate.watermark",
}


def _variants(home: str) -> list[Any]:
    """The configs of a folder's files."""
    package = importlib.import_module(home)
    names = sorted(one.name for one in pkgutil.iter_modules(package.__path__) if not one.ispkg)
    found = [getattr(importlib.import_module(f"{home}.{name}"), "Config", None) for name in names]
    return [cls for cls in found if cls is not None and is_dataclass(cls)]


def _within(hint: Any) -> Iterator[type[Any]]:
    """The configs that a field's type names."""
    if isinstance(hint, type) and is_dataclass(hint):
        yield hint
    for inner in typing.get_args(hint):
        yield from _within(inner)


def _bases(cls: type[Any]) -> list[type[Any]]:
    """The configs whose fields it has too."""
    return [base for base in cls.__bases__ if is_dataclass(base) and fields(base)]


def _parts(cls: type[Any], done: set[type[Any]]) -> Iterator[type[Any]]:
    """A config with those that it inherits from and that are within it, which were not there before."""
    if cls in done:
        return
    done.add(cls)
    for base in _bases(cls):
        yield from _parts(base, done)
    yield cls
    for hint in bounds_of(cls).values():
        for part in _within(hint):
            yield from _parts(part, done)


def _default(one: Field[Any]) -> str:
    if one.default is MISSING and one.default_factory is MISSING:
        return "required"
    value = one.default if one.default is not MISSING else one.default_factory()  # type: ignore[misc]
    if value is None:
        return "null"
    if is_dataclass(value):
        return _name(type(value))
    return code(str(value) if not isinstance(value, str) else f'"{value}"')


def _name(cls: type[Any]) -> str:
    """How the page calls a config: its kind where it is one of a folder."""
    return cls.__module__.rpartition(".")[2] if cls.__name__ == "Config" else cls.__name__


def _section(cls: type[Any]) -> str:
    documented = cls.__doc__ if "(" not in (cls.__doc__ or "").partition(" ")[0] else None
    if documented is None or cls.__name__ == "Config":
        documented = (
            documented or (importlib.import_module(cls.__module__).__doc__ or "").partition("\n\n")[0]
        )
    hints = bounds_of(cls)
    shown = [(code(one.name), escaped(kind(hints[one.name])), _default(one)) for one in _own(cls)]
    body = table(("field", "type", "default"), shown) if shown else ""
    above = " and ".join(f"[{_name(base)}](#{_name(base).lower()})" for base in _bases(cls))
    more = f"{'And the' if shown else 'The'} fields of {above}.\n" if above else ""
    return f"### {_name(cls)}\n\n" + "\n".join(part for part in (prose(documented), body, more) if part)


def _own(cls: type[Any]) -> list[Field[Any]]:
    """Its fields, but for those that it has as the configs do from which it inherits."""
    above = {(one.name, _default(one)) for base in _bases(cls) for one in fields(base)}
    return [one for one in fields(cls) if (one.name, _default(one)) not in above]


def page() -> str:
    """The page of all configs."""
    parts, done = [HEAD, INTRODUCTION], set[type[Any]]()
    kinds = {title: _variants(home) for title, home in FOLDERS.items()}
    named = {cls for found in kinds.values() for cls in found}
    done |= named
    for title, roots in ROOTS.items():
        parts += [f"## {title}\n", *(_section(part) for root in roots for part in _parts(root, done))]
    for title, found in kinds.items():
        done -= named
        parts.append(f"## {title}\n")
        parts += [_section(part) for cls in found for part in _parts(cls, done)]
    return "\n".join(parts)
