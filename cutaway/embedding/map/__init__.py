"""A map of words as one HTML file that needs nothing else: search, zoom, and a word's neighbours on a click.

Plotly draws it; its program is taken from the installed package. Words are data, and never markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib
import json
import re
from importlib.resources import files

import numpy as np

from cutaway.embedding.neighbours import search
from cutaway.embedding.projection import Method, project
from cutaway.embedding.vectors import Vectors
from cutaway.errors import UserError

NEIGHBOURS = 10
BLOCK = 512  # words whose neighbours are looked for at once


def page(vectors: Vectors, name: str, count: int = 10_000, method: Method = "pca") -> str:
    """The map of the first ``count`` words of a table called ``name``; neighbours are of the words shown."""
    if count < 3:
        raise UserError(f"a map of {count} words shows nothing: 3 or more are needed")
    table, words = vectors.table[:count], list(vectors.words[:count])
    plane = project(table, method)
    near = [
        search(table, table[i : i + BLOCK], NEIGHBOURS, _themselves(i, table))
        for i in range(0, len(table), BLOCK)
    ]
    facts = {
        "name": name,
        "method": method,
        "kept": None if np.isnan(plane.kept) else round(plane.kept, 4),
        "all": len(vectors),
        "words": words,
        "x": np.round(plane.points[:, 0], 4).tolist(),
        "y": np.round(plane.points[:, 1], 4).tolist(),
        "near": np.concatenate([ids for ids, _ in near]).tolist(),
        "cosines": np.round(np.concatenate([cosines for _, cosines in near]), 3).tolist(),
    }
    plotly, script = _plotly(), _read("map.js")
    parts = {
        "title": html.escape(name),
        "style": _read("map.css"),
        "plotly": plotly,
        "script": script,
        # Plotly compiles its shaders' JavaScript, and styles what it draws.
        "policy": f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
        f"form-action 'none'; script-src 'unsafe-eval' {_hash(plotly)} {_hash(script)}",
        "data": base64.b64encode(json.dumps(facts, separators=(",", ":")).encode()).decode(),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read("map.html"))


def _themselves(first: int, table: np.ndarray) -> np.ndarray:
    return np.arange(first, min(first + BLOCK, len(table)))[:, None]


def _plotly() -> str:
    try:
        return importlib.import_module("plotly.offline").get_plotlyjs()
    except ImportError:
        raise UserError("the map needs plotly: pip install 'cutaway[embed]'") from None


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read(name: str) -> str:
    return (files(__name__) / name).read_text(encoding="utf-8")
