"""Measure memory, threads and files of a process and its descendants, through ``/proc``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from cutaway.sandbox import folders

MEMORY = re.compile(rb"^Vm(?:RSS|PTE|Swap):\s*(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Used:
    """Bytes of memory, page tables and swap; threads; bytes of files; and files."""

    memory: int = 0
    threads: int = 0
    disk: int = 0
    files: int = 0


def unavailable_reason() -> str | None:
    """Why processes cannot be measured here; None where they can."""
    if os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        return None
    return "/proc does not say which processes a process has (CONFIG_PROC_CHILDREN)"


def tree(process: int) -> list[int]:
    """A process and its descendants, as far as they are there."""
    found, waiting = [], [process]
    while waiting:
        number = waiting.pop()
        found.append(number)
        try:
            tasks = os.listdir(f"/proc/{number}/task")
        except OSError:
            continue
        for task in tasks:
            try:
                with open(f"/proc/{number}/task/{task}/children") as file:
                    waiting += map(int, file.read().split())
            except OSError:
                continue
    return found


def used(process: int, folder: str, view: str | None) -> Used:
    """What the tree uses, and its files: in ``folder``, or in ``view`` of a process's own root.

    A file system in memory says how much is in it; a folder of the machine is walked.
    """
    memory = threads = 0
    numbers = tree(process)
    for number in numbers:
        try:
            with open(f"/proc/{number}/status", "rb") as file:
                memory += sum(int(kb) << 10 for kb in MEMORY.findall(file.read()))
            threads += len(os.listdir(f"/proc/{number}/task"))
        except OSError:
            continue
    if view is None:
        disk, files = folders.size(folder)
        return Used(memory, threads, disk, files)
    for number in reversed(numbers):
        try:
            found = os.statvfs(f"/proc/{number}/root{view}")
        except OSError:
            continue
        disk, files = (found.f_blocks - found.f_bfree) * found.f_frsize, found.f_files - found.f_ffree
        return Used(memory, threads, disk, files)
    return Used(memory, threads)
