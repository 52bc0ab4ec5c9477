"""One HTML file of one or two sheets: it needs no network, no library and no other file.

All that comes from a text or a model is in one block of data, deflated and in base64, which no token can
break out of; the page draws it as text and never as markup. The content policy names its one script and its
one style by their hash, and allows nothing else.
"""

import base64
import hashlib
import html
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect.page_data import Sheet, links

VIEWS = ("tokens", "embeddings", "attention", "score", "turning", "mlp", "stream", "lens", "next")
SCRIPTS = ("story", "elements", "state", "heat", *VIEWS, "main")  # in this order, each a story of its own


def page(
    sheets: Sequence[Sheet], views: Sequence[str] = VIEWS, start: Mapping[str, int] | None = None
) -> str:
    """The page of one sheet, or of two side by side. ``views``: which parts; ``start``: the layer, head or
    token to open at.

    Raises UserError for a view there is not.
    """
    for view in views:
        if view not in VIEWS:
            raise UserError(f"there is no view {view!r}: the views are {', '.join(VIEWS)}")
    style, script = _read("page.css"), _script()
    title = " · ".join(f"{sheet.facts['text']} ({sheet.facts['model']})" for sheet in sheets)
    parts = {
        "title": html.escape(" ".join(title.split())),
        "style": style,
        "script": script,
        "policy": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        "data": _packed(sheets, views, start or {}),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read("page.html"))


def frame(document: str, height: int) -> str:
    """The page inside another, such as a notebook: it may run its script and touch nothing outside."""
    return (
        f'<iframe sandbox="allow-scripts" title="Cutaway" srcdoc="{html.escape(document)}" '
        f'style="width:100%;height:{height}px;border:0"></iframe>'
    )


def _packed(sheets: Sequence[Sheet], views: Sequence[str], start: Mapping[str, int]) -> str:
    """A length, JSON, then the arrays it names by type, shape and offset, each at a multiple of 4."""
    chunks: list[bytes] = []
    told = {
        "stories": [sheet.facts | {"arrays": _placed(sheet.arrays, chunks)} for sheet in sheets],
        "links": links(*sheets) if len(sheets) == 2 else [],
        "views": list(views),
        "start": dict(start),
    }
    facts = json.dumps(told, separators=(",", ":"), ensure_ascii=True).encode()
    facts += b" " * (-len(facts) % 4)
    blob = len(facts).to_bytes(4, "little") + facts + b"".join(chunks)
    return base64.b64encode(zlib.compress(blob, 6)).decode()


def _placed(arrays: Mapping[str, np.ndarray], chunks: list[bytes]) -> dict[str, Any]:
    """Where each array lies, after it was added to the chunks."""
    places: dict[str, Any] = {}
    offset = sum(map(len, chunks))
    for name, array in arrays.items():
        data = array.tobytes()
        places[name] = [array.dtype.str[1:], list(array.shape), offset]
        chunks.append(data + bytes(-len(data) % 4))
        offset += len(chunks[-1])
    return places


def _script() -> str:
    parts = "\n".join(_read(f"{name}.js") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}\n}})();'


def _read(name: str) -> str:
    return (files("cutaway.inspect") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
