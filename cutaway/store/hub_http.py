"""Hugging Face's HTTP API, as far as a pull needs it: what a repository offers, and one of its files.

A file is resumed where its download was cut, and its bytes have the checksum that the repository lists: the
SHA-256 of a large file, Git's hash of a small one. HF_ENDPOINT names a mirror, HF_TOKEN an account, and the
usual `https_proxy` and `SSL_CERT_FILE` are honoured.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.errors import OperationalError, UserError
from cutaway.store.files import disk_errors
from cutaway.version import __version__

SECONDS = 30.0  # without a byte, until the connection counts as broken
BLOCK = 1 << 20
MOST_JSON = 64 << 20  # bytes of a repository's list of files
TRIES = 5  # in a row that bring no byte
PAUSE = 1.0  # seconds before the second of them; each later one waits twice as long
BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
OTHER_CACHE = "free some space, or set HF_HOME to another folder; what was fetched is kept, pull again"


@dataclass(frozen=True)
class Offered:
    """One file of a repository: its size, and its hash, which is what the shared cache calls it."""

    name: str
    bytes: int
    hash: str

    def begun(self) -> Any:
        """The hash to be fed with the file's bytes: SHA-256, or SHA-1 as Git makes it of a file."""
        if len(self.hash) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.bytes, usedforsecurity=False)


def endpoint() -> str:
    """The address of Hugging Face: HF_ENDPOINT, for a mirror."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def offline() -> str | None:
    """The variable that forbids to ask the network, None if none does."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((one for one in names if os.environ.get(one, "").upper() in ("1", "ON", "YES", "TRUE")), None)


def cache_home() -> Path:
    """The folder of Hugging Face's programs, by the variables that they read."""
    general = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or os.path.join(general, "huggingface")).expanduser()


def listing(repository: str, revision: str | None) -> tuple[str, dict[str, Offered]]:
    """The commit that a revision is (by default of the branch main), and the repository's files at it."""
    place = f"{endpoint()}/api/models/{repository}/revision/{urllib.parse.quote(revision or 'main', safe='')}"
    with _in_words(repository, revision), _opened(f"{place}?blobs=true") as answer:
        body = answer.read(MOST_JSON + 1)
    try:
        about = json.loads(body)
        files = [_offered(one) for one in about["siblings"]]
        commit = about["sha"]
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise ValueError
    except (ValueError, LookupError, TypeError) as problem:
        raise OperationalError(
            f"{endpoint()} does not answer as Hugging Face does for {repository}: check HF_ENDPOINT"
        ) from problem
    return commit, {one.name: one for one in files}


def fetch(repository: str, commit: str, file: Offered, into: Path, progress: Callable[[int], None]) -> None:
    """Bring a file of a repository to the path `into`, going on with what `into`.incomplete holds.

    `progress` is called with the bytes that are there. OperationalError if disk or network fail, or if the
    bytes are others than the repository lists; the former keep what was fetched.
    """
    place = f"{endpoint()}/{repository}/resolve/{commit}/{urllib.parse.quote(file.name)}"
    part = into.with_name(into.name + ".incomplete")
    with disk_errors(into, OTHER_CACHE), _in_words(repository, commit):
        with part.open("ab+") as out:
            hashed = _resumed(out, file, progress)
            failures = 0
            while out.tell() < file.bytes:
                before = out.tell()
                try:
                    _append(place, out, hashed, file, progress)
                except BROKEN as problem:
                    failures = failures + 1 if out.tell() == before else 1
                    if not _passes(problem) or failures == TRIES:
                        raise
                    time.sleep(PAUSE * 2 ** (failures - 1))
            out.flush()
            os.fsync(out.fileno())
        if hashed.hexdigest() != file.hash:
            part.unlink()
            raise OperationalError(
                f"{file.name} of {repository} does not have the checksum that the repository lists: "
                "deleted; pull again, and report it to the operator of the mirror if it happens twice"
            )
        os.replace(part, into)


def _offered(listed: dict[str, Any]) -> Offered:
    """A file by its row of the list. ValueError for a name that leads out of the repository's folder."""
    name, large = listed["rfilename"], listed.get("lfs")
    size, hashed = (large["size"], large["sha256"]) if large else (listed["size"], listed["blobId"])
    safe = not any(part in ("", ".", "..") for part in re.split(r"[/\\]", name)) and ":" not in name
    if not safe or type(size) is not int or size < 0:
        raise ValueError(name)
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", hashed):
        raise ValueError(hashed)
    return Offered(name, size, hashed)


def _resumed(out: Any, file: Offered, progress: Callable[[int], None]) -> Any:
    """The hash of what an earlier pull left in `out`, which is emptied if it has more than the file."""
    hashed = file.begun()
    if out.seek(0, os.SEEK_END) > file.bytes:
        out.truncate(0)
    out.seek(0)
    while block := out.read(BLOCK):
        hashed.update(block)
    progress(out.tell())
    return hashed


def _append(place: str, out: Any, hashed: Any, file: Offered, progress: Callable[[int], None]) -> None:
    """Ask for what is missing of a file, and write it as it comes."""
    begin = out.tell()
    with _opened(place, {"Range": f"bytes={begin}-"} if begin else {}) as answer:
        if begin and answer.status != 206:  # a proxy that sends all of it again
            _skip(answer, begin)
        while out.tell() < file.bytes:
            block = answer.read(min(BLOCK, file.bytes - out.tell()))
            if not block:
                raise ConnectionError("the connection ended early")
            out.write(block)
            hashed.update(block)
            progress(out.tell())


def _skip(answer: Any, count: int) -> None:
    while count and (block := answer.read(min(BLOCK, count))):
        count -= len(block)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a redirection to where the files are stored, without the token where that is another host."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> Any:
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        if made is not None:
            one, other = (urllib.parse.urlsplit(url) for url in (req.full_url, newurl))
            if one.scheme == "https" and other.scheme != "https":
                raise UserError(
                    f"{one.netloc} redirects to {other.netloc} without TLS, which is not followed"
                )
            if (one.scheme, one.netloc) != (other.scheme, other.netloc):
                made.remove_header("Authorization")
        return made


def _opened(url: str, headers: dict[str, str] | None = None) -> Any:
    if not url.startswith(("https://", "http://")):
        raise UserError(f"HF_ENDPOINT is {endpoint()!r}: it begins with https:// or http://")
    sent = {"User-Agent": f"cutaway/{__version__}", "Accept-Encoding": "identity"} | (headers or {})
    if (token := _token()) is not None:
        sent["Authorization"] = f"Bearer {token}"
    opener = urllib.request.build_opener(_Redirects)
    return opener.open(urllib.request.Request(url, headers=sent), timeout=SECONDS)


def _token() -> str | None:
    """The user's token: HF_TOKEN, or what `hf auth login` stored."""
    found = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    with suppress(OSError, UnicodeDecodeError):
        file = Path(os.environ.get("HF_TOKEN_PATH") or cache_home() / "token")
        found = found or file.read_text("utf-8")
    found = found.strip()
    if found and not re.fullmatch(r"[!-~]+", found):
        raise UserError("HF_TOKEN is no token: it holds a space or another character that tokens have not")
    return found or None


def _passes(problem: Exception) -> bool:
    """Whether a failure may pass: a cut or slow connection, a busy server; not an answer that says no."""
    if isinstance(problem, urllib.error.HTTPError):
        return problem.code >= 500
    return not isinstance(getattr(problem, "reason", None), ssl.SSLCertVerificationError)


@contextmanager
def _in_words(repository: str, revision: str | None) -> Iterator[None]:
    """Say in a sentence what is wrong; the network is not asked where that is forbidden."""
    if (forbidden := offline()) is not None:
        raise UserError(f"{repository} is not on this machine: unset {forbidden} to pull it")
    try:
        yield
    except urllib.error.HTTPError as problem:
        with problem:
            raise _refusal(repository, revision, problem) from problem
    except BROKEN as problem:
        if isinstance(reason := getattr(problem, "reason", None), ssl.SSLCertVerificationError):
            raise OperationalError(
                f"{endpoint()} has a certificate that this Python does not trust ({reason.verify_message}): "
                "set SSL_CERT_FILE to your system's or your proxy's certificates"
            ) from problem
        raise OperationalError(
            f"Hugging Face could not be reached at {endpoint()}, so {repository} was not fetched whole: "
            "check the network, then pull again, it goes on where it stopped"
        ) from problem


def _refusal(repository: str, revision: str | None, problem: urllib.error.HTTPError) -> Exception:
    """What an answer of Hugging Face that says no means, and what to do."""
    kind, status = problem.headers.get("X-Error-Code", ""), problem.code
    has_token = _token() is not None
    if kind == "GatedRepo" or status == 403:
        what = "the account of your token" if has_token else "you"
        return UserError(
            f"{repository} has terms that {what} must accept: open {endpoint()}/{repository}, accept them, "
            + (
                "and pull again"
                if has_token
                else "make a token in your account's settings and set HF_TOKEN to it"
            )
        )
    if kind == "RevisionNotFound":
        return UserError(f"{repository} has no revision {revision}: name a branch, a tag or a commit of it")
    if kind == "RepoNotFound" or status == 404:
        return UserError(f"Hugging Face shows no model {repository}: check the name, or set HF_TOKEN")
    if status == 401:
        return UserError(f"Hugging Face does not let you read {repository}: set HF_TOKEN to a token that may")
    if status == 429:
        more = "" if has_token else ", or set HF_TOKEN, which may ask more often"
        return OperationalError(f"Hugging Face has had too many requests from here: wait some minutes{more}")
    return OperationalError(f"Hugging Face answered {status} for {repository}: try again later")
