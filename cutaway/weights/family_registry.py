"""The families of models by name: the folder ``families/`` is the registry."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Collection
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from cutaway.errors import UserError, quoted
from cutaway.weights import class_keys, families
from cutaway.weights.family import Family
from cutaway.weights.fields import Fields

ALIASES = re.compile(r"^ALIASES = (\(.*\))$", re.MULTILINE)


def names() -> dict[str, tuple[str, ...]]:
    """Each family's file and its aliases."""
    return _names(tuple(families.__path__))


@cache
def _names(folders: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    found = {}
    for module in sorted(pkgutil.iter_modules(folders), key=lambda module: module.name):
        path = Path(module.module_finder.path, f"{module.name}.py")  # type: ignore[union-attr]
        line = ALIASES.search(path.read_text("utf-8"))
        found[module.name] = ast.literal_eval(line[1]) if line else ()
    return found


def get(name: str) -> Family:
    """The family of this file."""
    module = importlib.import_module(f"{families.__name__}.{name}")
    if not hasattr(module, "FAMILY"):
        raise UserError(f"{name}.py has no FAMILY: docs/adding-a-family.md shows what one has")
    return module.FAMILY


def of_hf(fields: Fields) -> Family:
    """The family of a config.json, by its ``model_type``; UserError if there is none."""
    known = {alias: name for name, aliases in names().items() for alias in aliases if alias not in names()}
    found = {name: name for name in names()} | known
    word = fields.kind = fields.text("model_type")
    if word not in found:
        raise _unknown(fields, word, found)
    family = get(found[word])
    other = family.instead and family.instead(fields)
    return get(other) if other else family


def _unknown(fields: Fields, word: str, found: Collection[str]) -> UserError:
    """What a type of model is that no family reads."""
    near = ", ".join((*get_close_matches(word, found, cutoff=0.5), "..."))
    near = f"{len(found)} that docs/families.md names" if near == "..." else near
    own, what = fields.get("auto_map"), ""
    if class_keys.is_known(word):
        what = ": transformers has such models, and Cutaway does not read them"
    elif isinstance(own, dict) and own:
        names = {name.partition(".")[0].rpartition("--")[2] for name in own.values() if isinstance(name, str)}
        code = " and ".join(f"{name}.py" for name in sorted(names))
        what = f": only code of its own knows such a model ({code}, by auto_map), which Cutaway never runs"
    return fields.refusal("model_type", f"is {quoted(word)}, not one of {near}{what}")


def of_gguf(fields: Fields) -> Family:
    """The family of a GGUF file, by its architecture and whether it has experts, or UserError."""
    words: dict[str, list[str]] = {}
    for name, aliases in names().items():
        for word in {name.replace("_", ""), *aliases}:
            words.setdefault(word, []).append(name)
    found = [get(name) for name in fields.choice("general.architecture", words)]
    found = [family for family in found if family.gguf] or found
    if not found[0].gguf:
        raise UserError(
            f"{fields.where}: GGUF files of {found[0].name} are not read: take its folder of safetensors"
        )
    sparse = bool(fields.integer(f"{fields.text('general.architecture')}.expert_count", 0, low=0))
    family = next((family for family in found if family.sparse == sparse), found[0])
    other = family.instead and family.instead(fields)
    return get(other) if other else family
