"""A folder that hostile code wrote: how much is in it, and removing it, however deep or wide it is."""

from __future__ import annotations

import contextlib
import os
import stat

SEEN = 100_000  # entries that one look counts
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def size(folder: str) -> tuple[int, int]:
    """Bytes on disk and entries below a folder, counted to SEEN entries; what vanishes meanwhile is left out.

    Deep folders have names that no path can hold, so each is opened in its parent.
    """
    used = entries = 0
    waiting = [os.open(folder, FOLDER)]
    try:
        while waiting and entries < SEEN:
            opened = waiting.pop()
            try:
                names = os.listdir(opened)
                for name in names[: SEEN - entries]:
                    entries += 1
                    with contextlib.suppress(OSError):
                        found = os.stat(name, dir_fd=opened, follow_symlinks=False)
                        used += found.st_blocks * 512
                        if stat.S_ISDIR(found.st_mode) and len(waiting) < 256:  # open descriptors
                            waiting.append(os.open(name, FOLDER, dir_fd=opened))
            except OSError:
                pass
            finally:
                os.close(opened)
    finally:
        for opened in waiting:
            os.close(opened)
    return used, entries


def remove(folder: str) -> None:
    """Remove a folder, by steps down and up: no path that a deep folder makes too long, no recursion."""
    try:
        here = os.open(folder, FOLDER)
    except FileNotFoundError:
        return
    try:
        names: list[str] = []  # from the folder down to here
        left = [os.listdir(here)]  # at each of them
        while left[-1] or names:
            if not left[-1]:
                here = _moved(here, "..")
                os.rmdir(names.pop(), dir_fd=here)
                left.pop()
                continue
            name = left[-1].pop()
            if not stat.S_ISDIR(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=here)
                continue
            os.chmod(name, 0o700, dir_fd=here)
            here = _moved(here, name)
            names.append(name)
            left.append(os.listdir(here))
    finally:
        os.close(here)
    os.rmdir(folder)


def _moved(here: int, name: str) -> int:
    """The opened folder of this name; the folder that contains the name is closed."""
    there = os.open(name, FOLDER, dir_fd=here)
    os.close(here)
    return there
