"""One HTML file for one explanation or two: it needs no network, no library and no other file.

All that comes from a text or a model is in one block of data, deflated and in base64, which no token can
break out of; the page draws it as text and never as markup. The content policy names its one script and its
one style by their hash, and allows nothing else.
"""

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files

from cutaway.errors import UserError
from cutaway.inspect.page_data import PageData, packed

VIEWS = ("tokens", "embeddings", "attention", "score", "rope", "mlp", "residual", "lens", "next")
SCRIPTS = ("explanation", "elements", "state", "heat", *VIEWS, "main")  # in this order


def page(
    shown: Sequence[PageData], views: Sequence[str] = VIEWS, start: Mapping[str, int] | None = None
) -> str:
    """The page of one explanation, or of two side by side. ``start``: the layer, head or token to open at.

    Raises UserError for an unknown view.
    """
    for view in views:
        if view not in VIEWS:
            raise UserError(f"there is no view {view!r}: the views are {', '.join(VIEWS)}")
    style, script = _read("page.css"), _script()
    title = " · ".join(f"{data.facts['text']} ({data.facts['model']})" for data in shown)
    parts = {
        "title": html.escape(" ".join(title.split())),
        "style": style,
        "script": script,
        "policy": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        "data": base64.b64encode(packed(shown, views, start)).decode(),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read("page.html"))


def frame(document: str, height: int) -> str:
    """The page inside another, such as a notebook: it may run its script and touch nothing outside."""
    return (
        f'<iframe sandbox="allow-scripts" title="Cutaway" srcdoc="{html.escape(document)}" '
        f'style="width:100%;height:{height}px;border:0"></iframe>'
    )


def _script() -> str:
    parts = "\n".join(_read(f"{name}.js") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}\n}})();'


def _read(name: str) -> str:
    return (files("cutaway.inspect") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
