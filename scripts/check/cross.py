"""The native core compiled and linked for Windows and macOS on Linux, and tried under wine where that is.

    python -m scripts.check.cross                      # a quarter of an hour, half of it under wine
    python -m scripts.check.cross x86_64-windows-gnu --folder FOLDER   # goes on with what FOLDER has

The compiler is that of the ziglang package, which holds the headers of both. Each source of CMakeLists.txt
must compile without a warning of -Wall -Wextra, and the linked file export every function that Linux's does.
Under wine a program loads the file and asks it for its version, and another (native/check/isa.cpp) holds the
kernels to the portable ones. The core does not include Python, so none is needed. Exit code 1 if one fails.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cutaway.native.library import ABI
from scripts.check.wheels import TOOLS_FOLDER, tools

ROOT = Path(__file__).parents[2]
TARGETS = ("x86_64-windows-gnu", "aarch64-macos", "x86_64-macos")
FLAGS = "-std=c++20 -O1 -g0 -ffp-contract=off -fno-sanitize=undefined -fvisibility=hidden"
FLAGS += " -Wall -Wextra -Wno-psabi -Wno-bitwise-instead-of-logical"  # clang's, and meant: no branch
FLAGS += " -Wno-pass-failed"  # -O1, which is quick, does not widen the loops that ask for it
CHECKED = "core/isa core/thread_pool runtime weights/quant"  # what native/check/isa.cpp calls
LOAD = """
#include <windows.h>
#include <cstdio>
int main(int, char** words) {
    auto core = LoadLibraryA(words[1]);
    if (!core) return std::printf("not loaded: error %lu\\n", GetLastError()), 1;
    auto found = [core](const char* name) {
        return reinterpret_cast<int (*)()>(reinterpret_cast<void*>(GetProcAddress(core, name)));
    };
    std::printf("abi %d, instruction set %d\\n", found("cutaway_abi")(), found("cutaway_isa_best")());
}
"""


def sources() -> list[Path]:
    """The files that CMakeLists.txt builds the core of."""
    named = re.findall(r"native/\w+/\*\.cpp", (ROOT / "CMakeLists.txt").read_text())
    return sorted(path for pattern in named for path in ROOT.glob(pattern))


def exported() -> set[str]:
    """The functions that the sources export."""
    text = "".join(path.read_text() for path in (ROOT / "native").rglob("*.[chi]*"))
    return set(re.findall(r"CUTAWAY_API\s+[\w*\s]+?\b(cutaway_\w+)\(", text))


class Target:
    """One system: its compiler, and a folder of what was compiled."""

    def __init__(self, name: str, zig: list[str], folder: Path) -> None:
        self.name, self.folder = name, folder / name
        self.command = [*zig, "c++", "-target", name, *FLAGS.split(), "-I", str(ROOT / "native")]
        self.folder.mkdir(parents=True, exist_ok=True)

    def compiled(self, source: Path) -> str:
        """What the compiler has against a source; an object that is newer than all sources is kept."""
        made = self.object(source)
        newest = max(path.stat().st_mtime for path in (ROOT / "native").rglob("*") if path.is_file())
        if made.exists() and made.stat().st_mtime > newest:
            return ""
        part = made.with_suffix(".part.o")
        wrong = said(*self.command, "-c", source, "-o", part)
        if not wrong:
            part.replace(made)
        return wrong

    def object(self, source: Path) -> Path:
        return self.folder / f"{source.parent.name}-{source.stem}.o"

    def linked(self) -> tuple[Path, str]:
        """The core as one file, and what is wrong with it."""
        made = self.folder / ("_core.pyd" if "windows" in self.name else "_core.so")
        objects = [self.object(source) for source in sources()]
        if wrong := said(*self.command, "-shared", "-s", *objects, "-o", made):
            return made, wrong
        content = made.read_bytes()
        absent = sorted(name for name in exported() if f"{name}\0".encode() not in content)
        return made, f"exports no {', '.join(absent)}" if absent else ""

    def under_wine(self, core: Path) -> str:
        """What is wrong with the core under wine, and with its kernels beside the portable ones."""
        load, kernels = self.folder / "load.exe", self.folder / "kernels.exe"
        (self.folder / "load.cpp").write_text(LOAD)
        parts = [self.object(one) for one in sources() if any(name in str(one) for name in CHECKED.split())]
        check = ROOT / "native" / "check" / "isa.cpp"
        wrong = said(*self.command, self.folder / "load.cpp", "-o", load)
        wrong = wrong or said(*self.command, check, *parts, "-o", kernels)
        if wrong:
            return wrong
        found = subprocess.run(["wine", load, core], capture_output=True, text=True, env=QUIET)
        if f"abi {ABI}," not in found.stdout:
            return f"{found.stdout}{found.stderr}"
        print(f"{'':10} {self.name}: under wine: {found.stdout.strip()}", flush=True)
        held = subprocess.run(["wine", kernels], capture_output=True, text=True, env=QUIET)
        print(f"{'':10} {self.name}: kernels under wine: {held.stdout.strip()}", flush=True)
        return f"{held.stdout}{held.stderr}" if held.returncode else ""


QUIET = os.environ | {"WINEDEBUG": "-all"}


def said(*command: object) -> str:
    """What a compiler prints, of which nothing is wanted; nothing where all is right."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    return f"{done.stdout}{done.stderr}".strip() or ("failed" if done.returncode else "")


def checked(target: Target) -> bool:
    """Compile, link and try the core for one system; whether all of it is right."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        wrong = [
            f"{one.name}: {found}"
            for one, found in zip(sources(), pool.map(target.compiled, sources()), strict=True)
            if found
        ]
    core, found = (Path(), "") if wrong else target.linked()
    wrong += [found] * bool(found)
    if not wrong and "windows" in target.name and shutil.which("wine"):
        found = target.under_wine(core)
        wrong += [found] * bool(found)
    size = "" if wrong else f", linked, {core.stat().st_size / 1e6:.1f} MB, {len(exported())} functions"
    print(
        f"{time.perf_counter() - begun:8.1f} s {target.name}: {len(sources())} files{size}", *wrong, sep="\n"
    )
    return not wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", default=TARGETS, help="zig's names of systems")
    parser.add_argument("--tools", type=Path, default=TOOLS_FOLDER, help="the environment with ziglang")
    parser.add_argument("--folder", type=Path, help="where what is compiled is kept")
    asked = parser.parse_args()
    zig = [str(tools(asked.tools.absolute()) / "python"), "-m", "ziglang"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = (asked.folder or Path(temporary)).absolute()
        os.environ["ZIG_LOCAL_CACHE_DIR"] = str(folder / "cache")
        right = [checked(Target(name, zig, folder)) for name in asked.targets]
    return int(not all(right))


if __name__ == "__main__":
    sys.exit(main())
