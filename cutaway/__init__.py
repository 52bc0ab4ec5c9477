"""Cutaway: a large language model with its side open.

Importing this loads no torch: what is used is imported when it is first named.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cutaway.version import __version__

if TYPE_CHECKING:
    from cutaway.errors import OperationalError, UserError
    from cutaway.hooks import tracing
    from cutaway.lm import LanguageModel, load
    from cutaway.tokenizer import Tokenizer

__all__ = ["OperationalError", "LanguageModel", "UserError", "Tokenizer", "__version__", "load", "tracing"]

_HOMES = {
    "OperationalError": "cutaway.errors",
    "LanguageModel": "cutaway.lm",
    "UserError": "cutaway.errors",
    "Tokenizer": "cutaway.tokenizer",
    "load": "cutaway.lm",
    "tracing": "cutaway.hooks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        try:
            return importlib.import_module(f"cutaway.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"cutaway.{name}":
                raise
            raise AttributeError(f"module 'cutaway' has no attribute {name!r}") from None
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
