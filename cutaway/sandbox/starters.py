"""Start a sandboxed process: Python with the source of ``inside.py``, in namespaces of its own.

``bwrap`` makes the namespaces where bubblewrap is installed and works, else ``namespaces.py``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

INSIDE = Path(__file__).with_name("inside.py")
NAMESPACES = Path(__file__).with_name("namespaces.py")
VIEW = "/sandbox"  # the working folder in the namespace's own root
START_SECONDS = 30.0  # for Python to start and confine itself: on a busy machine that takes seconds
FILES = 4096  # in the working folder


@cache
def starter() -> tuple[str | None, str]:
    """What makes namespaces here: the path of ``bwrap``, or "own"; None and the reason where nothing does."""
    found = [path] if (path := shutil.which("bwrap")) else []
    reasons = []
    for how in (*found, "own"):
        with tempfile.TemporaryDirectory(prefix="cutaway-sandbox-") as folder:
            reading, writing = os.pipe()
            try:
                command = _separated(how, folder, 1 << 20, writing, [executable(), "-I", "-S", "-c", ""])
                tried = subprocess.run(
                    command, env={}, capture_output=True, pass_fds=[writing], timeout=START_SECONDS
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                reasons.append(f"{how}: {error}")
                continue
            finally:
                os.close(writing)
                answer = os.read(reading, 1 << 12)
                os.close(reading)
        if tried.returncode == 0:
            return how, ""
        reasons.append(
            json.loads(answer)["missing"]["namespaces"] if answer else tried.stderr.decode()[-200:].strip()
        )
    return None, "; ".join(reasons)


def command(folder: str, disk: int, report: int, separated: bool) -> list[str]:
    """What starts: Python with the source of inside.py, in namespaces where they are had."""
    python = [executable(), "-I", "-S", "-B", "-c", INSIDE.read_text()]
    how = starter()[0] if separated else None
    return _separated(how, folder, disk, report, python) if how else python


def _separated(how: str, folder: str, disk: int, report: int, command: list[str]) -> list[str]:
    """The command in namespaces of its own."""
    places, links = _places()
    if how == "own":
        settings = {
            "folder": os.path.realpath(folder),
            "places": places,
            "links": links,
            "disk": disk,
            "files": FILES,
            "report": report,
            "command": command,
        }
        return [sys.executable, "-I", "-S", "-B", str(NAMESPACES), json.dumps(settings)]
    options = [
        "--unshare-all",
        "--unshare-user",
        "--die-with-parent",
        "--cap-drop",
        "ALL",
        "--hostname",
        "sandbox",
    ]
    for path in places:
        options += ["--ro-bind", path, path]
    for path, target in links:
        options += ["--symlink", target, path]
    options += ["--dev-bind", "/dev/null", "/dev/null", "--perms", "0700", "--size", str(disk)]
    options += ["--tmpfs", VIEW, "--remount-ro", "/", "--chdir", VIEW, "--"]
    return [how, *options, *command]


def executable() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@cache
def readable() -> list[str]:
    """The machine's folders and files that Python and numpy read."""
    prefix = os.path.realpath(sys.base_prefix)
    found = [
        f"{prefix}/lib",
        f"{prefix}/lib64",
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/lib64",
        "/etc/ld.so.cache",
    ]
    found.append("/usr/share/zoneinfo")
    found += [f"{folder}/{name}" for folder in packages() for name in ("numpy", "numpy.libs")]
    return [path for path in dict.fromkeys(found) if os.path.exists(path)]


@cache
def packages() -> list[str]:
    """The folder that has numpy."""
    found = importlib.util.find_spec("numpy")
    return [os.path.dirname(os.path.dirname(found.origin))] if found and found.origin else []


def _places() -> tuple[list[str], list[tuple[str, str]]]:
    """What a new root shows, without what is in another place of it; and its links."""
    paths = [*readable(), executable()]
    links = [(path, os.readlink(path)) for path in paths if os.path.islink(path)]
    whole = [path for path in paths if not os.path.islink(path)]
    kept = [path for path in whole if not any(path.startswith(f"{other}/") for other in whole)]
    return kept, links
