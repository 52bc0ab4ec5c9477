"""The commit that a run starts at, read from git's files: git itself is not run."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from cutaway.version import __version__

SAFE = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "--no-pager")


def state(where: Path, diff: bool) -> dict[str, Any]:
    """Cutaway's version and the commit around ``where``; with ``diff``, git's diff from that commit."""
    known: dict[str, Any] = {"cutaway": __version__}
    found = commit(where)
    if found is None:
        return known
    known["commit"] = found
    if diff:
        known["diff"] = _git(where, "diff", "--no-ext-diff", "--no-textconv", "HEAD")
    return known


def commit(where: Path) -> str | None:
    """The commit that HEAD means; None outside a repository or before its first commit."""
    for folder in (where, *where.parents):
        if (folder / ".git").exists():
            try:
                return _head(_git_folder(folder / ".git"))
            except (OSError, UnicodeDecodeError):
                return None
    return None


def _git_folder(entry: Path) -> Path:
    """A repository's .git folder, or the folder that a worktree's ``.git`` file names."""
    if entry.is_dir():
        return entry
    return entry.parent / entry.read_text("utf-8").removeprefix("gitdir:").strip()


def _head(folder: Path) -> str | None:
    head = (folder / "HEAD").read_text("utf-8").strip()
    if not head.startswith("ref:"):
        return head
    name = head.removeprefix("ref:").strip()
    common = folder / "commondir"
    homes = [folder, folder / common.read_text("utf-8").strip()] if common.is_file() else [folder]
    for home in homes:
        if (home / name).is_file():
            return (home / name).read_text("utf-8").strip()
        packed = home / "packed-refs"
        for line in packed.read_text("utf-8").splitlines() if packed.is_file() else ():
            if line.endswith(f" {name}"):
                return line.split()[0]
    return None


def _git(where: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *SAFE, "-C", str(where), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
