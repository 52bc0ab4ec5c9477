"""One HTML file that needs no network and no other file, from the package's ES modules and styles.

The content policy names the file's one script and one style by their hash, and allows nothing else but images
that are data, by which a chart is saved as a PNG. What comes from a text or a model is in one block of data
in base64, which no text can break out of.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from posixpath import dirname, join, normpath

IMPORT = re.compile(r'^import \{([^}]*)\} from "(\.[^"]*)";\n', re.M)
EXPORT = re.compile(r"^export (?=(?:(?:async )?function|class|const) (\w+))", re.M)


def document(
    title: str, body: str, *, entry: str, styles: Sequence[str], data: bytes, frames: str = ""
) -> str:
    """The file: HTML ``body``, the module ``entry`` with what it imports, ``styles`` by name, and ``data``.

    ``frames``: the ``sources`` of a page that a frame of this one shows; it inherits the policy.
    """
    looks, code = style(*styles), script(entry)
    allowed = f"default-src 'none'; {sources(code, looks, frames)}; img-src data:"
    parts = {
        "title": html.escape(" ".join(title.split())),
        "style": looks,
        "script": code,
        "policy": f"{allowed}; base-uri 'none'; form-action 'none'",
        "body": body,
        "data": base64.b64encode(data).decode(),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], read_asset("page.html"))


def sources(code: str, looks: str, frames: str = "") -> str:
    """The policy of this script and this style, and of those of framed pages, in the same form."""
    others = dict(part.split(" ", 1) for part in frames.split("; ") if part)
    named = {"style-src": _hash(looks), "script-src": _hash(code)}
    return "; ".join(
        f"{kind} {' '.join(filter(None, (one, others.get(kind))))}" for kind, one in named.items()
    )


def style(*names: str) -> str:
    """The styles of these names, one after another, the common one first."""
    return "\n".join(map(read_asset, ("style.css", *names)))


@cache
def script(entry: str) -> str:
    """A module and its imports as one script: each is a function that returns what it exports."""
    made: list[str] = []
    _add(entry, made, {}, ())
    return "\n".join(['"use strict";', "{", *made, "}"])


def _add(name: str, made: list[str], known: dict[str, str], above: tuple[str, ...]) -> str:
    """Write a module after those that it imports; the name of the constant that holds its exports."""
    if name in above:
        raise ValueError(f"modules import each other: {' -> '.join((*above, name))}")
    if name not in known:
        text = read_asset(name)
        taken = [
            f"const {{ {' '.join(names.split()).rstrip(',')} }} = "
            f"{_add(normpath(join(dirname(name), path)), made, known, (*above, name))};"
            for names, path in IMPORT.findall(text)
        ]
        known[name] = f"module{len(known)}"
        given = ", ".join(found[1] for found in EXPORT.finditer(text))
        code = EXPORT.sub("", IMPORT.sub("", text)).strip()
        made.append(
            "\n".join([f"const {known[name]} = (() => {{", *taken, code, f"return {{ {given} }};", "})();"])
        )
    return known[name]


def frame(document: str, height: int | None = None) -> str:
    """The page inside another: it may run its script and touch nothing outside.

    ``height`` in pixels is for pages that are not ours, such as a notebook; ours have a style for it.
    """
    size = f'style="width:100%;height:{height}px;border:0"' if height else 'class="within"'
    made = html.escape(document)
    return f'<iframe sandbox="allow-scripts" title="Cutaway" {size} loading="lazy" srcdoc="{made}"></iframe>'


def read_asset(name: str) -> str:
    """A text of this package."""
    return read_bytes(name).decode()


@cache
def read_bytes(name: str) -> bytes:
    """A file of this package."""
    return (files(__package__ or "cutaway.page") / name).read_bytes()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
