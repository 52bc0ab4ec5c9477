"""The kind of a part: ``kind: gqa`` of an attention is the class ``Config`` of ``attention/gqa.py``."""

import importlib
import pkgutil
from dataclasses import is_dataclass
from typing import Any

from cutaway.errors import UserError, quoted


def mixer(kind: str, **fields: Any) -> Any:
    """The config of a mechanism of ``attention/`` by its kind; its file, imported here, may need torch."""
    return variant("cutaway.attention", kind, "attention")(**fields)


def kind_of(config: Any) -> str:
    cls = type(config)
    return cls.__module__.rsplit(".", 1)[1] if cls.__name__ == "Config" else cls.__name__.lower()


def variant(home: str, kind: Any, where: str) -> type[Any]:
    """The config class of a kind: ``Config`` of a file in a folder, or a class of a file."""
    module = importlib.import_module(home)
    if hasattr(module, "__path__"):
        names = [m.name for m in pkgutil.iter_modules(module.__path__) if not m.ispkg]
        if kind in names and hasattr(found := importlib.import_module(f"{home}.{kind}"), "Config"):
            return found.Config
        modules = {name: importlib.import_module(f"{home}.{name}") for name in names}
        classes = {name: each.Config for name, each in modules.items() if hasattr(each, "Config")}
    else:
        classes = {
            n.lower(): c
            for n, c in vars(module).items()
            if isinstance(c, type) and is_dataclass(c) and c.__module__ == home
        }
    if isinstance(kind, str) and kind in classes:
        return classes[kind]
    wrong = "is missing" if kind is None else f"there is no {quoted(kind)}"
    raise UserError(f"{where}.kind: {wrong}; known: {', '.join(classes)}")
