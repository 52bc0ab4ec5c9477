"""A copy of the package for faults to be planted in, and a child process that runs pytest there."""

from __future__ import annotations

import compileall
import os
import shutil
import sys
from pathlib import Path

import jaxtyping

ROOT = Path(__file__).parents[2]


def copied(folder: Path) -> Path:
    """The package and its tests, apart from the tree."""
    for name in ("cutaway", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    compileall.compile_dir(folder / "cutaway", quiet=2)
    return folder


def enter(folder: Path, shapes: bool = False) -> None:
    """Into a copy, in a process that has not imported the package yet; ``shapes``: they are checked."""
    if not shapes:
        jaxtyping.install_import_hook = lambda *_: None
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = str(folder)  # of the processes that tests start
    # An editable install would bring the tree itself in place of the copy.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]


def logged(folder: Path) -> None:
    """All that this process prints goes to the copy's log."""
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
