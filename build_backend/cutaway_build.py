"""The build backend: scikit-build-core's, and a compiler from the package index where none here works.

pip asks first what a build needs. A machine whose C++ compiler can build a small C++20 program needs
nothing more; any other gets ziglang, a package that holds a whole C++ compiler. With CUTAWAY_PURE=1, where
ziglang has no package for the machine, and when the build fails, the wheel is pure Python (the overrides in
pyproject.toml).
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scikit_build_core import build as backend
from scikit_build_core.build import build_sdist, get_requires_for_build_sdist

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
]

ZIG = "ziglang==0.17.1"
GLIBC = "2.28"  # the oldest that torch's own wheels run on

# What the native core needs of a compiler and its library; a compiler that is found may lack either.
PROGRAM = """
#include <atomic>
#include <span>
#include <thread>
int main() {
    int values[] = {1, 2};
    std::atomic<int> sum{0};
    std::thread adder([&] { for (int value : std::span(values)) sum += value; });
    adder.join();
    return sum == 3 ? 0 : 1;
}
"""

Settings = dict[str, list[str] | str] | None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return [*backend.get_requires_for_build_wheel(config_settings), *_compiler_package()]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return [*backend.get_requires_for_build_editable(config_settings), *_compiler_package()]


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    with _compiler():
        name = backend.build_wheel(wheel_directory, config_settings, metadata_directory)
    plain_modes(Path(wheel_directory, name))
    return name


def plain_modes(wheel: Path) -> None:
    """Give a wheel's files the modes 644 and 755: those of a checkout, by its umask, would change bytes."""
    part = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(part, "w") as new:
        for entry in old.infolist():
            mode = entry.external_attr >> 16
            entry.external_attr = ((mode & ~0o777) | (0o755 if mode & 0o100 else 0o644)) << 16
            new.writestr(entry, old.read(entry), entry.compress_type, 9)
    part.replace(wheel)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    with _compiler():
        return backend.build_editable(wheel_directory, config_settings, metadata_directory)


def _pure() -> bool:
    return os.environ.get("CUTAWAY_PURE", "0").lower() not in ("", "0", "false", "no", "off")


def _compiler_package() -> list[str]:
    """The requirement for a compiler: none where one works, none is wanted, or none is offered."""
    if _pure() or _working_compiler() or not _zig_target():
        return []
    return [ZIG]


def _zig_target() -> str | None:
    """zig's name for this machine, or None where the ziglang package does not exist."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    if machine not in ("x86_64", "aarch64"):
        return None
    if sys.platform == "darwin":
        return f"{machine}-macos"
    if sys.platform == "win32":
        return f"{machine}-windows-gnu"
    if sys.platform != "linux":
        return None
    return f"{machine}-linux-gnu.{GLIBC}" if platform.libc_ver()[0] == "glibc" else f"{machine}-linux-musl"


def _working_compiler() -> str | None:
    """The first compiler that builds and runs a C++20 program with threads: CXX, c++, g++, clang++.

    On Windows CXX alone: GCC there aligns the stack to 16 bytes, and kernels keep wider registers on it.
    """
    candidates = [os.environ.get("CXX", ""), "c++", "g++", "clang++"][: 1 if sys.platform == "win32" else 4]
    return next((compiler for compiler in candidates if compiler and _works(compiler)), None)


def _works(compiler: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "test.cpp"), Path(folder, "test")
        source.write_text(PROGRAM)
        command = [*shlex.split(compiler), "-std=c++20", "-pthread", str(source), "-o", str(program)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            subprocess.run([str(program)], check=True, capture_output=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return False
    return True


@contextmanager
def _compiler() -> Iterator[None]:
    """Points CXX at a compiler that works while the build runs."""
    if _pure():
        yield
        return
    compiler = _working_compiler()
    with tempfile.TemporaryDirectory(prefix="cutaway-zig-") as folder:
        changes = {"CXX": compiler} if compiler else _zig(Path(folder))
        before = {name: os.environ.get(name) for name in changes}
        os.environ.update(changes)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _zig(folder: Path) -> dict[str, str]:
    """Scripts that run zig as a compiler, and the variables that name them; nothing where there is no zig."""
    package, target = importlib.util.find_spec("ziglang"), _zig_target()
    if package is None or package.origin is None or target is None:
        return {}
    zig = Path(package.origin).parent / ("zig.exe" if sys.platform == "win32" else "zig")
    # The same flags for every call, CMake's tests too: zig builds its C++ library once for each set of flags.
    flags = f"-target {target} -O3 -g0 -fno-sanitize=undefined"  # -g0: it would write debug information
    if sys.platform == "win32":  # where no script is a program, and CMake takes the arguments with it
        caches = {"ZIG_LOCAL_CACHE_DIR": str(folder / "cache"), "CMAKE_GENERATOR": "Ninja"}
        return caches | {name: f'"{zig}" {tool} {flags}' for name, tool in (("CC", "cc"), ("CXX", "c++"))}
    tools = {"CC": f"cc {flags}", "CXX": f"c++ {flags}", "AR": "ar", "RANLIB": "ranlib"}
    variables = {name: str(_script(folder / name.lower(), zig, tool)) for name, tool in tools.items()}
    caches = {"ZIG_LOCAL_CACHE_DIR": str(folder / "cache")}
    if not os.access(
        os.environ.get("HOME", ""), os.W_OK
    ):  # where zig keeps its C++ library for the next build
        caches["ZIG_GLOBAL_CACHE_DIR"] = str(folder / "global")
    return variables | caches


def _script(path: Path, zig: Path, arguments: str) -> Path:
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(str(zig))} {arguments} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
