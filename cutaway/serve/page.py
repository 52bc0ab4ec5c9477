"""The page at the server's address: a shell that asks for the key itself, and the files that it loads.

Neither needs a key: both are files of the package, the same for everyone. The page gets what it
shows from the API, with the key that its user types.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.page import bundle
from cutaway.serve.api_error import APIError
from cutaway.serve.operations.access import PAGE
from cutaway.serve.routes import Route
from cutaway.serve.service import Service

TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".bin": "application/octet-stream",  # the recorded trace
}
POLICY = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types cutaway-tiles"
)
SHELL = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
MODULE = {"Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
PACKED = (".js", ".css", ".json")  # recordings are deflated already


def _names() -> frozenset[str]:
    """The modules, styles and recordings of the package, by the names that the page loads them by."""
    found, rest = [], [(files("cutaway.page"), "")]
    for folder, before in rest:
        for one in folder.iterdir():
            name = f"{before}{one.name}"
            if one.is_dir():
                rest.append((one, f"{name}/"))
            elif PurePosixPath(name).suffix in TYPES:
                found.append(name)
    return frozenset(found)


NAMES = _names()


async def shell(_: Service, body: None, http: HTTPRequest) -> Response:
    """The page: chat whose tokens open, and a text followed through the model. A client that takes no HTML is
    answered as Ollama answers, whose clients look here to see whether it runs.
    """
    if "text/html" not in http.headers.get("accept", ""):
        return Response("Ollama is running")
    return Response(bundle.read_asset("app/shell.html"), media_type="text/html", headers=SHELL)


async def explanation(_: Service, body: None, http: HTTPRequest) -> Response:
    """The document of a text's explanation without its data, which the page writes into it to save a file."""
    return Response(_document(), media_type="text/html", headers=SHELL)


@cache
def _document() -> str:
    from cutaway.inspect import page

    return bundle.document("Cutaway", page.BODY, entry=page.ENTRY, styles=page.STYLES, data=b"")


async def module(_: Service, body: None, http: HTTPRequest) -> Response:
    """A module, a style or a recording of the page."""
    name = http.path_params["name"]
    if name not in NAMES:
        raise APIError(404, f"There is no {http.url.path[:100]!r} here", code="not_found")
    kind = PurePosixPath(name).suffix
    packs = "gzip" in http.headers.get("accept-encoding", "") and kind in PACKED
    content, more = (packed(name), {"Content-Encoding": "gzip"}) if packs else (bundle.read_bytes(name), {})
    return Response(content, media_type=TYPES[kind], headers=MODULE | more)


@cache
def packed(name: str) -> bytes:
    """A file of the page as it is sent to a browser: text takes a third of its bytes so."""
    return gzip.compress(bundle.read_bytes(name), mtime=0)


ROUTES = [
    Route("GET", "/", (), shell, documented=False),
    Route("GET", f"{PAGE}explain.html", (), explanation, documented=False),
    Route("GET", f"{PAGE}{{name:path}}", (), module, documented=False),
]
