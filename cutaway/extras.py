"""Libraries that only some installations have: each comes with an extra of pyproject.toml.

need("pretraining", "torch")  # UserError: pretraining needs PyTorch, ...: pip install 'cutaway[train]'
library("UMAP", "umap")       # the module umap, or the same UserError
install("train")              # pip install 'cutaway[train]', or what uv, pipx or a clone has instead
"""

import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from cutaway.errors import UserError

EXTRAS = {  # a library: what people call it, and the extra that brings it
    "torch": ("PyTorch", "train"),
    "llguidance": ("llguidance", "agent"),
    "jsonschema": ("jsonschema", "agent"),
    "docstring_parser": ("docstring-parser", "agent"),
    "pydantic": ("pydantic", "agent"),
    "mcp": ("the package mcp", "agent"),
    "cryptography": ("cryptography", "serve"),
    "model_signing": ("model-signing", "serve"),
    "datasets": ("Hugging Face datasets", "train"),
    "datasketch": ("datasketch", "train"),
    "pyarrow": ("pyarrow", "train"),
    "pandas": ("pandas", "research"),
    "sklearn": ("scikit-learn", "research"),
    "usearch": ("usearch", "research"),
    "xarray": ("xarray", "research"),
    "reasoning_gym": ("reasoning-gym", "eval"),
    "ray": ("Ray", "ray"),
    "umap": ("umap-learn", "umap"),
}


def need(what: str, *libraries: str) -> None:
    """UserError that names the extra to install, where one of these libraries is absent."""
    for library in libraries:
        if not installed(library):
            raise UserError(sentence(what, library))


def library(what: str, module: str) -> Any:
    """A module of a library, imported; UserError, as `need` raises it, where the library is absent."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(sentence(what, module.partition(".")[0])) from None


def installed(library: str) -> bool:
    """Whether it can be imported; it is not imported."""
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:
        return False


def sentence(what: str, library: str) -> str:
    """The error message for an absent library."""
    name, extra = EXTRAS[library]
    return f"{what} needs {name}, which is not installed: {install(extra)}"


def install(*wanted: str) -> str:
    """The command that adds extras, or what is absent, by the program that made this environment."""
    clone, names, prefix = _clone(), ",".join(wanted), Path(sys.prefix)
    quote = '"' if os.name == "nt" else "'"
    package = f"{quote}{clone or 'cutaway'}[{names}]{quote}" if names else clone or "cutaway"
    editable = "-e " if clone else ""
    if (prefix / "pipx_metadata.json").is_file():
        return f"pipx install --force {package}"
    if (prefix / "uv-receipt.toml").is_file():
        return f"uv tool install {editable}{package}"
    if any(part.startswith("archive-v") for part in prefix.parts):  # of uv's cache: uvx made it for this run
        return f"uvx --from {package} cutaway ..."
    if importlib.util.find_spec("pip") is None:
        return f"uv pip install {editable}{package}"
    return f"pip install {editable}{package}"


def _clone() -> str | None:
    """The folder of the source tree that this is an editable installation of, None for any other."""
    import importlib.metadata

    try:
        text = importlib.metadata.distribution("cutaway").read_text("direct_url.json")
        about = json.loads(text or "{}")
        if not about.get("dir_info", {}).get("editable"):
            return None
        return url2pathname(urlsplit(about["url"]).path)
    except (importlib.metadata.PackageNotFoundError, ValueError, LookupError):
        return None


def libraries() -> dict[str, list[tuple[str, str]]]:
    """The libraries of each extra with the least version of each, from the package's own metadata.

    An extra that contains others has them as this package with their names in brackets. What the plain
    installation needs is under "".
    """
    import importlib.metadata

    found: dict[str, list[tuple[str, str]]] = {}
    for line in importlib.metadata.requires("cutaway") or []:
        pattern = r"([\w.-]+(?:\[[\w,-]+\])?)\s*(?:>=([\d.]+))?(?:.*?extra == ['\"]([\w-]+)['\"])?"
        if match := re.match(pattern, line):
            name, least, extra = match.groups()
            if extra not in ("test", "dev", "docs"):
                found.setdefault(extra or "", []).append((name, least or "0"))
    return found


def complete() -> tuple[set[str], dict[str, tuple[str, str, str]]]:
    """The extras that are installed whole; and libraries: the version there, the least, for which extra.

    Those are too old, or absent ("") though the plain installation, whose extra is "", needs them.
    """
    import importlib.metadata

    wanted, old = libraries(), {}

    def whole(extra: str) -> bool:
        every = True
        for name, least in wanted.get(extra, []):
            if name.startswith("cutaway["):
                every &= all(whole(one) for one in name[len("cutaway[") : -1].split(","))
                continue
            try:
                version = importlib.metadata.version(name.partition("[")[0])
            except importlib.metadata.PackageNotFoundError:
                version, every = "", False
            if _numbers(version) < _numbers(least) and (version or not extra):
                old[name], every = (version, least, extra), False
        return every

    return {extra for extra in wanted if whole(extra)} - {""}, old


def _numbers(version: str) -> list[int]:
    """2.13.0+cpu as [2, 13, 0]."""
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3]]
