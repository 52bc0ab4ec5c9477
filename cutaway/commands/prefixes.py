"""Pages of KV cache in files, from the options that several verbs have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutaway import store
from cutaway.errors import UserError

if TYPE_CHECKING:
    from cutaway.generate.batch.prefix_store import PrefixStore
    from cutaway.generate.batch.saved_text import Saver
    from cutaway.serve.saved_slots import SavedSlots
    from cutaway.store.sealed import Seal

VARIABLE = "CUTAWAY_PREFIX_CACHE_KEY"
DEFAULT, FOLDER = Path("default"), "prefixes"  # which `cutaway models --prune` knows
SIZE = "10GiB"


def check(size: str, key_file: Path | None, pages: Path | None, slots: Path | None) -> None:
    """Before a model is loaded: UserError for options that fit no pages, or no slots."""
    given = {"--prefix-cache": None if pages is None else place(pages), "--slot-save-path": slots}
    folders = {option: folder for option, folder in given.items() if folder is not None}
    if not folders:
        if key_file is not None:
            raise UserError(
                f"--prefix-cache-key-file encrypts what {' and '.join(given)} write, and none is given: "
                "give one, or leave the key out"
            )
        return
    from cutaway.generate.batch.prefix_store import check_folder

    size_of(size, "--prefix-cache-size")
    seal(key_file)
    for option, folder in folders.items():
        if folder.is_file():
            raise UserError(f"{option}: {folder} is a file: give a folder")
        check_folder(folder)
    if len(folders) > len({folder.resolve() for folder in folders.values()}):
        raise UserError(
            f"{pages}: --prefix-cache and --slot-save-path name one folder, each with a limit of its "
            "own: give them two"
        )


def opened(lm: Any, folder: Path | None, size: str, key_file: Path | None) -> PrefixStore | None:
    """The model's pages in a folder, None for none. UserError where another engine answers."""
    if folder is None:
        return None
    from cutaway.generate.batch.prefix_store import PrefixStore

    made = saver(lm, key_file, "--prefix-cache")
    return PrefixStore(place(folder), made.digest, size_of(size, "--prefix-cache-size"), made.seal)


def slots(lm: Any, folder: Path | None, size: str, key_file: Path | None) -> SavedSlots | None:
    """The slots of a model whose texts are saved in a folder, None for none. UserError as `opened`."""
    if folder is None:
        return None
    from cutaway.serve.saved_slots import SavedSlots

    made = saver(lm, key_file, "--slot-save-path")
    return SavedSlots(folder, made, size_of(size, "--prefix-cache-size"))


def saver(lm: Any, key_file: Path | None, option: str) -> Saver:
    """How a model's pages are written. UserError where another engine than the runtime answers."""
    from cutaway.generate.batch.saved_text import Saver

    if not storable(lm):
        name, why = lm.engine_choice
        why = f"the PyTorch model answers here, because {why}" if name != "runtime" else "the core is absent"
        asked = "--engine pytorch or " if lm.engine_asked == "pytorch" else ""
        raise UserError(f"{option} stores the runtime's KV cache, and {why}: leave out {asked}{option}")
    return Saver(lm.engines.pages_digest, seal(key_file))


def storable(lm: Any) -> bool:
    """Whether a model's pages can be written."""
    from cutaway.generate.engine import Storable

    return lm.engine_choice[0] == "runtime" and isinstance(lm.engine, Storable)


def place(folder: Path) -> Path:
    """The folder that --prefix-cache names."""
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
