"""The keys of a config.json that transformers' own class of a model reads, from ``class_keys.txt``.

A key that neither the config class nor the modeling file of a model mentions changes nothing that it computes
there. The table is written by ``scripts/tables/class_keys.py``; transformers is not imported.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("class_keys.txt")


@cache
def _table() -> dict[str, frozenset[str]]:
    lines = (line for line in FILE.read_text("utf-8").splitlines() if not line.startswith("#"))
    return {kind: frozenset(keys.split()) for kind, _, keys in (line.partition(": ") for line in lines)}


def of(model_type: str) -> frozenset[str] | None:
    """The keys that transformers reads in a config of this type; None where it has no model of text by it."""
    table = _table()
    return table[model_type] | table["*"] if model_type in table else None


def is_known(model_type: str) -> bool:
    """Whether transformers has any model of this type, not only language models."""
    return model_type in _table() or model_type in _table()["others"]
