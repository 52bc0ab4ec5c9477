"""A map of words as one HTML file: search, zoom, and a word's neighbours on a click."""

from __future__ import annotations

import html
import json
import zlib

import numpy as np

from cutaway.embedding.neighbours import search
from cutaway.embedding.projection import Method, project
from cutaway.embedding.vectors import Vectors
from cutaway.errors import UserError
from cutaway.page import bundle

NEIGHBOURS = 10
BLOCK = 512  # words whose neighbours are looked for at once
BODY = """<header id="head">
  <div class="top"><p class="mark">Cutaway</p><span id="theme"></span></div>
  <h1 class="sentence">TITLE</h1>
  <p class="quiet" id="about"></p>
  <form id="search">
    <label for="word">Find a word</label>
    <input id="word" type="search" list="words" autocomplete="off" spellcheck="false">
    <datalist id="words"></datalist>
    <button class="small" type="submit">Show</button>
    <button class="small" type="button" id="whole">Whole map</button>
    <button class="small" type="button" id="closer" aria-label="Zoom in">+</button>
    <button class="small" type="button" id="farther" aria-label="Zoom out">−</button>
  </form>
  <p id="message" role="status"></p>
</header>
<main class="sides">
  <div id="map" tabindex="0" role="application" aria-roledescription="map" aria-describedby="keys"
    aria-label="Map of words"><span id="hovered"></span></div>
  <aside aria-live="polite">
    <h2 id="chosen">Choose a word</h2>
    <ol id="near"></ol>
    <p class="quiet" id="keys">Drag to move, scroll to zoom, click a word for its neighbours.
      Keys: arrows move, + and − zoom, 0 shows all.</p>
  </aside>
</main>"""


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
        "method": method,
        "kept": None if np.isnan(plane.kept) else round(plane.kept, 4),
        "all": len(vectors),
        "words": words,
        "x": np.round(plane.points[:, 0], 4).tolist(),
        "y": np.round(plane.points[:, 1], 4).tolist(),
        "near": np.concatenate([ids for ids, _ in near]).tolist(),
        "cosines": np.round(np.concatenate([cosines for _, cosines in near]), 3).tolist(),
    }
    data = zlib.compress(json.dumps(facts, separators=(",", ":")).encode(), 9)
    body = BODY.replace("TITLE", html.escape(name))
    return bundle.document(name, body, entry="map/map.js", styles=("map/map.css",), data=data)


def _themselves(first: int, table: np.ndarray) -> np.ndarray:
    return np.arange(first, min(first + BLOCK, len(table)))[:, None]
