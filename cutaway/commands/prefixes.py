"""Prefixes on disk, from the options that several verbs have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutaway import store
from cutaway.errors import UserError

if TYPE_CHECKING:
    from cutaway.generate.batch.prefix_store import PrefixStore
    from cutaway.store.sealed import Seal

VARIABLE = "CUTAWAY_PREFIX_CACHE_KEY"
DEFAULT, FOLDER = Path("default"), "prefixes"
SIZE = "10GiB"


def opened(lm: Any, folder: Path | None, size: str, key_file: Path | None) -> PrefixStore | None:
    """The model's pages in a folder, None for none. UserError for options or a model that fit no pages."""
    if folder is None:
        return None
    from cutaway.generate.batch.prefix_store import PrefixStore
    from cutaway.generate.engine import Storable

    name, why = lm.engine_choice
    if name != "runtime" or not isinstance(lm.engine, Storable):
        because = (
            f"the PyTorch model answers here, because {why}" if name != "runtime" else "the core is absent"
        )
        raise UserError(f"--prefix-cache keeps pages of the runtime, and {because}: leave it out")
    digest = lm.engines.pages_digest()
    return PrefixStore(place(folder), digest, size_of(size, "--prefix-cache-size"), seal(key_file))


def check(folder: Path | None, size: str, key_file: Path | None) -> None:
    """Before a model is loaded: UserError for options that fit no pages."""
    if folder is not None:
        from cutaway.generate.batch.prefix_store import check_folder

        size_of(size, "--prefix-cache-size")
        seal(key_file)
        check_folder(place(folder))


def place(folder: Path) -> Path:
    """The folder that an option names."""
    return store.home() / FOLDER if folder == DEFAULT else folder


def seal(key_file: Path | None) -> Seal:
    """How files of pages are written: encrypted where there is a key."""
    from cutaway.store.sealed import Seal, secret_from

    return Seal(secret_from(key_file, VARIABLE))


def size_of(text: str, option: str) -> int:
    """The bytes that a size such as 8GiB or 500MB means. UserError for what is none."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) *([KMGT]i?B|B)?", text.strip(), re.I | re.ASCII)
    if found is None:
        raise UserError(f"{option} is {text!r}: give a size such as 8GiB or 500MB")
    unit = (found[2] or "B").upper()
    base = 1024 if "I" in unit else 1000
    return int(float(found[1]) * base ** "BKMGT".index(unit[0]))
