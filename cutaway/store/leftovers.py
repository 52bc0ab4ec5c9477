"""Remove from the caches what interrupted pulls left, and what is made again when it is next needed."""

from contextlib import suppress
from pathlib import Path

from cutaway.store import files, hub, models

# Unpacked files, pages of prompts (serve --prefix-cache default), indexes of texts, compiled tokenizers.
MADE_AGAIN = ("bundles", "prefixes", "search", "vocabularies")


def found() -> list[Path]:
    """The files and folders that `prune` removes."""
    home = models.home()
    made = [home / name for name in MADE_AGAIN if (home / name).is_dir()]
    scratch = [*home.glob("models/*/pip-*"), *home.glob("data/*/pip-*")]  # of a pull that was killed
    return [*made, *scratch, *hub.interrupted()]


def bytes_of(paths: list[Path]) -> int:
    """Bytes of files, and of all files in folders."""
    total = 0
    for path in paths:
        inside = path.rglob("*") if path.is_dir() else (path,)
        with suppress(OSError):  # of what another process removes meanwhile
            total += sum(file.stat().st_size for file in inside if file.is_file())
    return total


def prune() -> int:
    """Remove them; the bytes freed."""
    paths = found()
    before = bytes_of(paths)
    for path in paths:
        files.remove(path)
    return before - bytes_of([path for path in paths if path.exists()])
