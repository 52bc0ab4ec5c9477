"""Models from a Hugging Face repository, in the cache that other programs share.

Only safetensors, GGUF and the plain-text files beside them are taken: nothing that would have to be
unpickled. The cache's layout is documented by huggingface_hub: `models--ORG--NAME/` holds `refs/main` with a
commit, `blobs/` with files by their hashes, and `snapshots/COMMIT/` with links to them by their names.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path

from cutaway.errors import UserError
from cutaway.store.files import OTHER_HOME, Bytes, Progress, check_room, disk_errors, write_file
from cutaway.store.hub_http import OTHER_CACHE, Offered, cache_home, fetch, listing

TEXT = ["*.json", "*.model", "*.jinja", "*.txt", "*.tiktoken", "README.md", "LICENSE*"]
# Copies of the same weights for other programs, which would double the download.
COPIES = ["original/*", "onnx/*", "openvino/*", "coreml/*", "consolidated*.safetensors"]

Row = tuple[str, Path, int, str, datetime]


def find(source: str) -> Path | None:
    """The snapshot folder (or the one .gguf) of ORG/NAME, if all its weights are in the cache."""
    repository, revision, file = _spelt(source)
    snapshot = _snapshot(_cache() / _folder(repository), revision)
    if snapshot is None:
        return None
    if file is not None and not file.endswith(".gguf"):
        here = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.gguf")]
        parts = _of_type(here, file)
        return snapshot / parts[0] if parts and len(parts) == _parts(parts[0]) else None
    if file is not None:
        path = snapshot / file
        return path if path.is_file() else None
    return snapshot if _complete(snapshot) else None


def pull(source: str, progress: Progress) -> Path:
    """Fetch ORG/NAME or one of its .gguf files at the named branch, tag or commit; the path."""
    repository, revision, file = _spelt(source)
    progress(f"asking Hugging Face for {repository}", 0, None)
    commit, offered = listing(repository, revision)
    wanted = _wanted(repository, file, offered)
    if not any(fnmatch(name, wanted[0]) for name in offered):
        raise UserError(
            f"{repository} has no safetensors, and nothing is unpickled{_ggufs(repository, offered)}"
        )
    folder = _cache() / _folder(repository)
    snapshot = folder / "snapshots" / commit
    chosen = _chosen(offered, wanted)
    absent = [one for one in chosen.values() if not (snapshot / one.name).is_file()]
    with disk_errors(folder, OTHER_CACHE):
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        begun = (folder / "blobs" / f"{one.hash}.incomplete" for one in absent)
        there = sum(part.stat().st_size for part in begun if part.is_file())
        needed = sum(one.bytes for one in absent) - there
        check_room(folder, needed, repository, "set HF_HOME to another folder")
        _fetch(repository, commit, absent, folder, progress)
        if revision != commit:
            (reference := folder / "refs" / (revision or "main")).parent.mkdir(parents=True, exist_ok=True)
            write_file(reference, commit)
    progress(f"{repository} is at revision {commit}", 0, None)
    return snapshot if file is None else snapshot / wanted[0]


def _fetch(repository: str, commit: str, absent: list[Offered], folder: Path, progress: Progress) -> None:
    """Bring the files that the snapshot of a commit lacks, weights last, each under its lock and hash."""
    import filelock

    files = f"{len(absent)} files" if len(absent) != 1 else absent[0].name
    doing, total = f"fetching {files} of {repository}", Bytes(sum(one.bytes for one in absent))
    locks = _cache() / ".locks" / folder.name  # where huggingface_hub has them
    locks.mkdir(parents=True, exist_ok=True)
    before = 0
    for one in sorted(absent, key=lambda one: (one.name.endswith((".safetensors", ".gguf")), one.name)):
        blob, link = folder / "blobs" / one.hash, folder / "snapshots" / commit / one.name

        def report(done: int, before: int = before) -> None:
            progress(doing, Bytes(before + done), total)

        with filelock.FileLock(locks / f"{one.hash}.lock"):
            if not (blob.is_file() and blob.stat().st_size == one.bytes):
                fetch(repository, commit, one, blob, report)
        link.parent.mkdir(parents=True, exist_ok=True)
        _link(blob, link)
        before += one.bytes


def _link(blob: Path, link: Path) -> None:
    """Give a blob its name in the snapshot: a link, or a copy where the system makes none, as Windows."""
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(os.path.relpath(blob, link.parent))
    except OSError:
        shutil.copyfile(blob, link)


def size(source: str) -> int:
    """How many bytes the files have that a pull of `source` takes."""
    repository, revision, file = _spelt(source)
    offered = listing(repository, revision)[1]
    return sum(one.bytes for one in _chosen(offered, _wanted(repository, file, offered)).values())


def cached() -> list[Row]:
    """Every repository in the shared cache whose safetensors are whole, and every .gguf in it."""
    rows = []
    for folder in sorted(_cache().glob("models--*--*")):
        snapshot = _snapshot(folder)
        if snapshot is None:
            continue
        repository = folder.name.removeprefix("models--").replace("--", "/", 1)
        when = datetime.fromtimestamp(snapshot.stat().st_mtime)
        licence = _licence(snapshot)
        if _complete(snapshot):
            rows.append((repository, snapshot, _bytes(snapshot), licence, when))
        for file in sorted(snapshot.rglob("*.gguf")):
            name = f"{repository}:{file.relative_to(snapshot).as_posix()}"
            rows.append((name, file, file.stat().st_size, licence, when))
    return rows


def remove(source: str) -> int | None:
    """Delete ORG/NAME, or one .gguf of it, from the shared cache; the bytes freed, None if it is absent."""
    repository, revision, file = _spelt(source)
    folder = _cache() / _folder(repository)
    found = find(source) if file or revision else folder
    if found is None or not found.exists():
        return None
    freed = _bytes(found)
    with disk_errors(folder, OTHER_HOME):
        if file is None:
            shutil.rmtree(found)
            return freed
        blob = found.resolve()
        found.unlink()
        blob.unlink(missing_ok=True)
    return freed


def interrupted() -> list[Path]:
    """What pulls that were cut left to go on with, Cutaway's and other programs'."""
    return sorted(_cache().glob("models--*--*/blobs/*.incomplete"))


def _wanted(repository: str, file: str | None, offered: Iterable[str]) -> list[str]:
    """The weights that a pull takes: all safetensors, a .gguf by its name, or those of a type as Q4_K_M.

    UserError for what the repository does not have."""
    if file is None:
        return ["*.safetensors"]
    if file in offered:
        return [file]
    if file.endswith(".gguf") or not (found := _of_type(offered, file)):
        what = f"file {file}" if file.endswith(".gguf") else f".gguf of type {file}"
        raise UserError(f"{repository} has no {what}{_ggufs(repository, offered)}")
    if len(found) != _parts(found[0]):
        raise UserError(f"{repository} has several .gguf files of type {file}{_ggufs(repository, found)}")
    return found


def _of_type(names: Iterable[str], type: str) -> list[str]:
    """The .gguf files in whose name a type of weights, as Q4_K_M, is a word; the parts of one in order."""
    word = re.compile(rf"(?<![A-Za-z0-9_]){re.escape(type)}(?![A-Za-z0-9_])", re.IGNORECASE)
    models = (name for name in names if name.endswith(".gguf") and "mmproj" not in name)
    return sorted(name for name in models if word.search(name.removesuffix(".gguf")))


def _parts(name: str) -> int:
    """The number of files that a .gguf was split into, by its name."""
    part = re.search(r"-00001-of-(\d{5})\.gguf$", name)
    return int(part[1]) if part else 1


def _chosen(offered: Mapping[str, Offered], weights: list[str]) -> dict[str, Offered]:
    """The files of a repository that a pull takes."""
    return {
        name: one
        for name, one in offered.items()
        if any(fnmatch(name, wanted) for wanted in (*weights, *TEXT))
        and not any(fnmatch(name, copy) for copy in COPIES)
    }


def revision(path: Path) -> str | None:
    """The commit that a file or folder of the shared cache was fetched at, None for one outside of it."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None


def _ggufs(repository: str, offered: Iterable[str]) -> str:
    """The end of a refusal: which .gguf files there are to name instead."""
    files = [name for name in offered if name.endswith(".gguf")]
    if not files:
        return ""
    shown = ", ".join(files[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")
    return f": name one of its .gguf files, as in {repository}:{files[0]} (it has {shown})"


def _spelt(source: str) -> tuple[str, str | None, str | None]:
    """The repository, its revision, and the .gguf file in it or its type, that `source` names."""
    source = re.sub(r"^(hf:|(https://)?(hf\.co|huggingface\.co)/)", "", source)
    organisation, _, rest = source.partition("/")
    name, *file = re.split("[:/]", rest, maxsplit=1)
    if file and ".." in Path(file[0]).parts:
        raise UserError(f"{source}: a file inside a repository is named without ..")
    name, _, revision = name.partition("@")
    return f"{organisation}/{name}", revision or None, file[0] if file else None


def _cache() -> Path:
    """The cache of huggingface_hub, by the environment variables that it reads."""
    return Path(os.environ.get("HF_HUB_CACHE") or cache_home() / "hub").expanduser()


def _folder(repository: str) -> str:
    return "models--" + repository.replace("/", "--")


def _snapshot(folder: Path, revision: str | None = None) -> Path | None:
    """The folder of a branch, a tag or a commit; of the branch main, where none is named."""
    reference = folder / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    if commit is None:
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _complete(snapshot: Path) -> bool:
    """Whether the config and every safetensors file that the index names are there."""
    if not (snapshot / "config.json").is_file():
        return False
    index = snapshot / "model.safetensors.index.json"
    if not index.is_file():
        return any(path.is_file() for path in snapshot.glob("*.safetensors"))
    try:
        named = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        return False
    return all((snapshot / str(file)).is_file() for file in named)


def _bytes(path: Path) -> int:
    """The bytes of a file, or of all files under a folder; a blob that several names point to counts once."""
    files = {file.resolve() for file in path.rglob("*") if file.is_file()} if path.is_dir() else {path}
    return sum(file.stat().st_size for file in files)


def _licence(snapshot: Path) -> str:
    card = snapshot / "README.md"
    if not card.is_file():
        return "unknown"
    front = re.match(r"---\n(.*?)\n---", card.read_text("utf-8", "replace"), re.DOTALL)
    stated = re.search(r"^license:\s*(\S+)", front[1], re.MULTILINE) if front else None
    return stated[1] if stated else "unknown"
