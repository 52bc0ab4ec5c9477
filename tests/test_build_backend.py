"""What the build does beside scikit-build-core: a wheel's bytes do not depend on a checkout's umask."""

import importlib.util
import sys
import types
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def backend(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The build backend, beside a scikit-build-core that builds nothing."""
    core, build = types.ModuleType("scikit_build_core"), types.ModuleType("scikit_build_core.build")
    vars(build).update(build_sdist=None, get_requires_for_build_sdist=None)
    vars(core).update(build=build)
    for name, module in (("scikit_build_core", core), ("scikit_build_core.build", build)):
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location(
        "cutaway_build", ROOT / "build_backend" / "cutaway_build.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_wheel_has_the_same_bytes_under_any_umask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    build = backend(monkeypatch)
    made = []
    for umask in (0o002, 0o077):
        wheel = tmp_path / f"{umask}.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, mode in (("cutaway/a.py", 0o666), ("cutaway/_core.so", 0o777)):
                entry = zipfile.ZipInfo(name, (2026, 11, 30, 0, 0, 0))
                entry.external_attr = (0o100000 | mode & ~umask) << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, b"text " * 100)
        build.plain_modes(wheel)
        made.append(wheel.read_bytes())
        with zipfile.ZipFile(wheel) as archive:
            modes = [oct(entry.external_attr >> 16) for entry in archive.infolist()]
            assert modes == ["0o100644", "0o100755"] and archive.read("cutaway/a.py") == b"text " * 100
    assert made[0] == made[1]


def test_windows_takes_no_gcc_that_it_was_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    build, tried = backend(monkeypatch), []
    monkeypatch.setattr(build, "_works", lambda compiler: bool(tried.append(compiler)))
    monkeypatch.delenv("CXX", raising=False)
    assert build._working_compiler() is None and "g++" in tried
    tried.clear()
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(build.platform, "machine", lambda: "AMD64")
    assert build._working_compiler() is None and tried == []
    assert build._zig_target() == "x86_64-windows-gnu" and build._compiler_package() == [build.ZIG]
