"""One pinned file from the user's own package index, resumed where the last try stopped.

pip is asked where the file lies, so that mirrors, proxies, find-links and certificates mean what they mean to
pip; the file itself is then streamed here, because pip's own download cannot be resumed by a later process.
Where the address needs what only pip can do (a keyring, a client certificate, a system trust store), `pip
download` fetches it instead.
"""

import contextlib
import http.client
import importlib.util
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from cutaway.errors import OperationalError, UserError
from cutaway.store.files import OTHER_HOME, Progress, digest, disk_errors, silent

BLOCK = 1 << 20
TRIES = 4
# `pip index versions -vv` names every candidate file and downloads none. The install report would be the
# documented way, but it fetches the whole wheel when the index serves no separate metadata, as is common.
LINK = re.compile(r"Found link (\S+) \(from ")
UNREACHABLE = ("Retrying (Retry(", "connection error", "Max retries exceeded")


class _Elsewhere(Exception):
    """This address cannot be streamed from here; pip itself may still reach it."""


def fetch(
    package: str, version: str, filename: str, sha256: str, into: Path, progress: Progress = silent
) -> Path:
    """Bring `filename` of `package` into the folder `into` and return its path, checked against `sha256`.

    Raises OperationalError when the index, the network, the disk or the checksum say no, UserError when
    there is no pip to ask.
    """
    target = into / filename
    if target.is_file() and digest(target) == sha256:
        return target
    progress("asking the package index", 0, None)
    address = _locate(package, version, filename)
    try:
        if address is None:
            raise _Elsewhere
        _stream(address, target, sha256, progress)
    except _Elsewhere:
        _pip_download(package, version, filename, into, progress)
        _check(target, sha256)
    return target


def _pip(*arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """pip as the user configured it: this environment's own, else the copy that Python carries."""
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", **(env or {})}
    if importlib.util.find_spec("pip") is None:
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
    raise UserError(
        "fetching a model asks pip, and this Python has none: install it (`uv pip install pip`, or apt's)"
    )


def _locate(package: str, version: str, filename: str) -> str | None:
    """The file's address in the user's index, or None when pip's words do not tell it."""
    process = _pip("-vv", "index", "versions", "--pre", package)
    said, complained = process.communicate()
    for address in LINK.findall(said + complained):
        address = address.partition("#")[0]
        if urllib.parse.unquote(urllib.parse.urlsplit(address).path).endswith("/" + filename):
            return None if "****" in address else address  # pip hides credentials, so only pip can use them
    if any(sign in said + complained for sign in UNREACHABLE):
        raise _unreachable(package, version)
    return None


def _stream(address: str, target: Path, sha256: str, progress: Progress) -> None:
    """Download to TARGET.part, going on from what is there, and rename it when its checksum is right."""
    part = target.with_name(target.name + ".part")
    opener = _opener(address)
    for left in reversed(range(TRIES)):
        resumed = part.stat().st_size if part.exists() else 0
        try:
            _receive(opener, address, part, resumed, progress)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as problem:
            if _final(problem) or (not left and not part.exists()):  # pip may know a way
                raise _Elsewhere from problem
            if not left:
                raise OperationalError(
                    f"the download of {target.name} broke off ({_words(problem)}): "
                    "try again, it goes on where it stopped"
                ) from problem
            time.sleep(2.0**-left)
            continue
        if not (left and resumed) or digest(part) == sha256:
            break
        part.unlink()  # the half found here was not this file's: once more from the start
    _check(part, sha256)
    os.replace(part, target)


def _receive(
    opener: urllib.request.OpenerDirector, address: str, part: Path, resumed: int, progress: Progress
) -> None:
    request = urllib.request.Request(address, headers={"Accept-Encoding": "identity"})
    if resumed:
        request.add_header("Range", f"bytes={resumed}-")
    try:
        answer = opener.open(request, timeout=60)
    except urllib.error.HTTPError as problem:
        if problem.code == 416:  # nothing is left to send: the part is whole, or longer than the file
            return
        raise
    with answer:
        resumed = resumed if answer.status == 206 else 0
        length = answer.headers.get("Content-Length")
        total = resumed + int(length) if length else None
        done = resumed
        with disk_errors(part.parent, OTHER_HOME):
            out = part.open("ab" if resumed else "wb")
        try:
            while block := answer.read(BLOCK):
                with disk_errors(part.parent, OTHER_HOME):
                    out.write(block)
                done += len(block)
                progress("downloading", done, total)
        finally:
            with disk_errors(part.parent, OTHER_HOME):
                out.close()
    if total is not None and done < total:
        raise ConnectionError(f"{done} of {total} bytes came")


def _final(problem: Exception) -> bool:
    """Whether asking again cannot help: the server's plain no, or a certificate this client does not know."""
    if isinstance(problem, urllib.error.HTTPError):
        return problem.code < 500
    return isinstance(problem, urllib.error.URLError) and isinstance(problem.reason, ssl.SSLError)


def _words(problem: Exception) -> str:
    return str(getattr(problem, "reason", None) or problem) or type(problem).__name__


def _opener(address: str) -> urllib.request.OpenerDirector:
    """An opener with pip's proxy, certificates and trusted hosts."""
    settings = _settings()
    if "client-cert" in settings:
        raise _Elsewhere
    handlers: list[urllib.request.BaseHandler] = []
    if proxy := settings.get("proxy"):
        handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
    certificates = settings.get("cert") or os.environ.get("REQUESTS_CA_BUNDLE")
    context = ssl.create_default_context()
    if certificates and Path(certificates).exists():
        folder = Path(certificates).is_dir()
        context.load_verify_locations(**{"capath" if folder else "cafile": certificates})
    host = urllib.parse.urlsplit(address)
    if {host.hostname, host.netloc} & set(settings.get("trusted-host", "").split()):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    handlers.append(urllib.request.HTTPSHandler(context=context))
    return urllib.request.build_opener(*handlers)


def _settings() -> dict[str, str]:
    """pip's configuration as one table: `download` over `global`, the environment over both."""
    said, _ = _pip("config", "list").communicate()
    found: dict[str, dict[str, str]] = {"global": {}, "download": {}, ":env:": {}}
    for section, key, value in re.findall(r"^(global|download|:env:)\.([\w-]+)='(.*)'$", said, re.MULTILINE):
        found[section][key] = value.replace("\\n", " ")
    return found["global"] | found["download"] | found[":env:"]


def _pip_download(package: str, version: str, filename: str, into: Path, progress: Progress) -> None:
    """Let pip fetch the file; its temporary folder is watched, so that progress is still seen."""
    kind = "--only-binary" if filename.endswith(".whl") else "--no-binary"
    for stale in into.glob(f"pip-{package}-*"):  # of a process that was killed
        shutil.rmtree(stale, ignore_errors=True)
    with (
        disk_errors(into, OTHER_HOME),
        tempfile.TemporaryDirectory(dir=into, prefix=f"pip-{package}-") as scratch,
    ):
        process = _pip(
            *("download", "--quiet", "--no-deps", "--no-cache-dir", kind, package, "--dest", scratch),
            f"{package}=={version}",
            env={"TMPDIR": scratch, "TEMP": scratch, "TMP": scratch},
        )
        with process:
            try:
                said, complained = _watched(process, Path(scratch), progress)
            except BaseException:
                process.kill()  # else leaving the block would wait for the whole download
                raise
        fetched = Path(scratch) / filename
        if process.returncode == 0 and fetched.is_file():
            os.replace(fetched, into / filename)
            return
    if "No space left" in complained:
        raise OperationalError(f"{into}: cannot be written: the disk is full: {OTHER_HOME}")
    if any(sign in said + complained for sign in UNREACHABLE):
        raise _unreachable(package, version)
    raise OperationalError(
        f"the package index that pip uses here does not give {package} {version}: "
        f"see what `pip download --no-deps {package}=={version}` says"
    )


def _watched(process: subprocess.Popen[str], scratch: Path, progress: Progress) -> tuple[str, str]:
    """What pip said and complained of, once it has ended; meanwhile the bytes in its folder are told."""
    while True:
        try:
            return process.communicate(timeout=0.2)
        except subprocess.TimeoutExpired:
            progress("downloading with pip", _size(scratch), None)


def _size(folder: Path) -> int:
    """Bytes in the folder's files; pip moves and removes files and folders while they are counted."""
    total = 0
    for place, _, names in os.walk(folder):  # which passes over a folder that has gone
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(place, name), follow_symlinks=False).st_size
    return total


def _check(path: Path, sha256: str) -> None:
    if digest(path) == sha256:
        return
    path.unlink()
    raise OperationalError(
        f"{path.name.removesuffix('.part')} arrived with another checksum than it is pinned to, "
        "so it was thrown away: try again, and ask whoever keeps the package index if it stays so"
    )


def _unreachable(package: str, version: str) -> OperationalError:
    return OperationalError(
        f"the package index that pip uses here could not be reached, so {package} {version} was not fetched: "
        "check the network, or pip's index-url and proxy (`pip config list`)"
    )
