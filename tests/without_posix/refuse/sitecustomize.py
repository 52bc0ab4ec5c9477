"""Python starts with this where its folder is on PYTHONPATH: the package finds nothing that Windows lacks."""

import os
import signal
import socket
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

ABSENT = {"fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "readline", "syslog", "curses"}
ATTRIBUTES = {
    os: (
        "fork",
        "pread",
        "sysconf",
        "sched_getaffinity",
        "nice",
        "killpg",
        "setsid",
        "getuid",
        "geteuid",
        "mkfifo",
    ),
    signal: ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGPROF", "ITIMER_PROF", "setitimer", "SIGWINCH", "SIGBUS"),
    socket: ("SO_REUSEPORT",),
}


class Windows(PathFinder):
    """What finds modules on the path, but for these, which the standard library may have."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return None if fullname in ABSENT and _asks() else super().find_spec(fullname, path, target)


def _asks() -> bool:
    """Whether it is a module of the package that imports."""
    frame = sys._getframe(2)
    while frame is not None and "importlib" in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == "cutaway"


def refuse() -> None:
    """From now on; what the standard library has imported by then it keeps."""
    sys.meta_path[sys.meta_path.index(PathFinder)] = Windows
    for name in ABSENT:
        sys.modules.pop(name, None)
    for module, names in ATTRIBUTES.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)


refuse()
