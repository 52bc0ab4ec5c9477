"""Faults in the native core, all in one build: the environment says which of them is on.

A statement that a fault replaces becomes ``if (on) after else before``, and an expression ``on ? after :
before``; so a core is built once, not once a fault.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.lib.planting import ROOT

NUMBER = "CUTAWAY_FAULT"  # in the environment: the fault that is on, counted from 1
SWITCH = f"""#include <cstdlib>
static bool fault_is(int number) {{
    static const int on = std::getenv("{NUMBER}") == nullptr ? 0 : std::atoi(std::getenv("{NUMBER}"));
    return on == number;
}}
"""


def guarded(source: str, faults: Sequence[tuple[int, str, str]]) -> str:
    """A file with faults (number, before, after), each behind its switch."""
    for number, before, after in faults:
        if before.rstrip().endswith((";", "}")):
            both = f"if (fault_is({number})) {{ {after} }} else {{ {before} }}"
        else:
            both = f"(fault_is({number}) ? ({after}) : ({before}))"
        source = source.replace(before, both)
    return SWITCH + source


def build(folder: Path, faults: dict[str, list[tuple[int, str, str]]], objects: Path | None = None) -> None:
    """Puts a core with these faults, by file, into the package's copy in ``folder``.

    ``objects``: a folder that keeps the sources and objects of an earlier build, whose unchanged files are
    not compiled again.
    """
    if not faults:
        # In a process of its own: here the package must not be imported before the copy is.
        code = (
            "from importlib.util import find_spec as f; s = f('cutaway._core'); print(s.origin if s else '')"
        )
        found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        if origin := found.stdout.strip():
            shutil.copy(origin, folder / "cutaway" / "_core.so")
        return
    source, made = folder, folder / "build"
    if objects is not None:
        source, made = objects / "source", objects / "build"
        for path in (ROOT / "cutaway").rglob("*.inc"):  # tables that the core includes
            (source / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, source / path.relative_to(ROOT))
    shutil.copytree(ROOT / "native", source / "native", dirs_exist_ok=True)
    for name in ("CMakeLists.txt", "LICENSE", "README.md"):
        shutil.copy2(ROOT / name, source / name)
    for path, own in faults.items():
        (source / path).write_text(guarded((ROOT / path).read_text("utf-8"), own), "utf-8")
    options = ["-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run(["cmake", "-S", source, "-B", made, *options], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", made, "-j", str(os.cpu_count() or 1)], check=True, stdout=2)
    shutil.copy(made / "_core.so", folder / "cutaway" / "_core.so")
