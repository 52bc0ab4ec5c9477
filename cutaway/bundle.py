"""One file for how a model is to be used: the model or its digests, adapter, template, tools, documents.

A bundle is an uncompressed ZIP archive. ``manifest.json`` has the SHA-256 of every other member, and of the
model's files where these are not in it; ``README.md`` is a card of what was measured. Nothing of a bundle is
run but its template, which the sandbox renders, and built-in tools, which ask. A signature is a file beside
it (``model-signing``: elliptic curve keys, the format of the OpenSSF).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from cutaway import store
from cutaway.agent import built_in_tools
from cutaway.embedding import passages, search
from cutaway.errors import UserError, quoted
from cutaway.extras import library
from cutaway.store.files import OTHER_HOME, atomic_file, atomic_folder, digest, disk_errors
from cutaway.weights import adapters, peft_names

FORMAT = "cutaway bundle 1"
MANIFEST, CARD, SIGNATURE = "manifest.json", "README.md", ".sig"
LARGEST_MANIFEST = 16 << 20
MODEL_FILES = (".safetensors", ".gguf", ".json", ".yaml", ".jinja", ".model", ".txt")
EPOCH = (1980, 1, 1, 0, 0, 0)  # the time of every member: the same contents are the same bytes
OF_DOCUMENTS = ("search", "read")  # tools that see a folder
# What zipfile raises for a damaged archive, beside its own.
DAMAGED = (NotImplementedError, RuntimeError, EOFError, UnicodeError)
LOCAL_HEADER = 30  # bytes before a member's name and data
TYPES: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "model_files": dict,
    "files": dict,
    "system": (str, type(None)),
    "sampling": dict,
    "adapter": bool,
    "template": bool,
    "documents": bool,
    "tools": list,
}


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself. ``model`` is a name, "" where ``model_files`` are in the bundle.

    ``files`` has the SHA-256 of each member, ``model_files`` of each of the model's files by its path.
    """

    model: str
    model_files: dict[str, str]
    files: dict[str, str]
    adapter: bool = False
    template: bool = False
    documents: bool = False
    system: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    tools: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opened:
    """A bundle whose members are checked and in the cache: ``folder`` holds them under their names."""

    manifest: Manifest
    folder: Path

    @property
    def adapter(self) -> Path | None:
        """The adapter's folder."""
        return self.folder / "adapter" if self.manifest.adapter else None

    @property
    def template(self) -> Path | None:
        """The file with the chat template that replaces the model's own."""
        return self.folder / "template.jinja" if self.manifest.template else None

    @property
    def documents(self) -> Path | None:
        """The folder that search and read see."""
        return self.folder / "documents" if self.manifest.documents else None

    @property
    def model(self) -> Path | None:
        """The model, where the bundle holds it."""
        if self.manifest.model:
            return None
        names = list(self.manifest.model_files)
        return self.folder / "model" / names[0] if len(names) == 1 else self.folder / "model"


def write_bundle(
    target: Path,
    name: str,
    model: Path,
    card: str,
    *,
    whole: bool = False,
    adapter: Path | None = None,
    template: Path | None = None,
    documents: Path | None = None,
    system: str | None = None,
    sampling: Mapping[str, Any] | None = None,
    tools: Sequence[str] = (),
    force: bool = False,
) -> Manifest:
    """Write a bundle. ``name`` is how others find the model, ``whole`` puts its files in.

    Of ``documents`` the index is put in too, if there is one. UserError for documents without a tool that
    reads them, and for a model that is neither named nor whole.
    """
    if documents is not None and not set(tools) & set(OF_DOCUMENTS):
        raise UserError("documents are read by tools: add --tools search,read")
    if not whole and not store.is_name(name):
        raise UserError(f"{name} is not a name that others could fetch: add --whole, which puts the model in")
    members: dict[str, Path | bytes] = {CARD: card.encode()}
    base = model.parent if model.is_file() else model
    own = {file.relative_to(base).as_posix(): file for file in _model_files(model)}
    if whole:
        members |= {f"model/{path}": file for path, file in own.items()}
    if adapter is not None:
        members |= {f"adapter/{file}": adapter / file for file in (adapters.CONFIG, peft_names.WEIGHTS)}
    if template is not None:
        members["template.jinja"] = template
    if documents is not None:
        found = list(passages.files(documents))
        members |= {f"documents/{file.relative_to(documents).as_posix()}": file for file in found}
        if (index := search.home_of(documents) / "index.sqlite").is_file():
            members["index/index.sqlite"] = index
    digests = {path: _sha256(content) for path, content in members.items()}
    manifest = Manifest(
        "" if whole else name,
        {path: digest(file) for path, file in own.items()},
        digests,
        adapter is not None,
        template is not None,
        documents is not None,
        system,
        dict(sampling or {}),
        tuple(tools),
    )
    with atomic_file(target, force=force) as out, zipfile.ZipFile(out, "w") as archive:
        about = {"format": FORMAT} | {each.name: getattr(manifest, each.name) for each in fields(manifest)}
        for path, content in {MANIFEST: json.dumps(about, indent=1).encode(), **members}.items():
            with archive.open(zipfile.ZipInfo(path, EPOCH), "w", force_zip64=True) as member:
                if isinstance(content, bytes):
                    member.write(content)
                else:
                    with content.open("rb") as file:
                        shutil.copyfileobj(file, member)
    return manifest


def open(file: Path) -> Opened:
    """A bundle, every member checked against its manifest and kept in the cache.

    UserError for a file that is none, or that was changed.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            about, stamp = _manifest(archive, file)
            folder = store.home() / "bundles" / stamp
            with store.locked(f"bundle-{stamp}"):
                if not folder.is_dir():
                    with disk_errors(store.home(), OTHER_HOME), atomic_folder(folder) as part:
                        _extract(archive, about, part, file)
    except FileNotFoundError:
        raise UserError(f"{file}: there is no such file") from None
    except (*DAMAGED, zipfile.BadZipFile):  # their texts quote the file's own bytes
        raise UserError(f"{file}: is no bundle that can be read: it is no whole zip archive") from None
    except OSError as error:
        raise UserError(f"{file}: is no bundle that can be read ({error})") from None
    opened = Opened(about, folder)
    index = folder / "index" / "index.sqlite"
    if opened.documents is not None and index.is_file():
        home = search.home_of(opened.documents)
        if not home.is_dir():
            home.mkdir(parents=True)
            shutil.copyfile(index, home / index.name)
    return opened


def check_model(manifest: Manifest, model: Path) -> None:
    """UserError where the files of a model are not those that a bundle was made with."""
    base = model.parent if model.is_file() else model
    for path, expected in manifest.model_files.items():
        if not (base / path).is_file() or digest(base / path) != expected:
            raise UserError(f"{base / path} is not the file that the bundle was made with")


def sign(file: Path, private_key: Path, force: bool = False) -> Path:
    """Sign a bundle with an elliptic curve key in a PEM file; the signature's file."""
    signature = file.with_name(file.name + SIGNATURE)
    if signature.exists() and not force:
        raise UserError(f"{signature}: already exists: give --force to replace it")
    signing = library("a signature", "model_signing.signing")
    try:
        signing.Config().use_elliptic_key_signer(private_key=private_key).sign(file, signature)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"{private_key}: cannot sign ({error})") from None
    return signature


def verify(file: Path, public_key: Path) -> None:
    """UserError unless the signature beside a bundle is of its bytes and by this key."""
    signature = file.with_name(file.name + SIGNATURE)
    if not signature.is_file():
        raise UserError(f"{file} is not signed: {signature} is missing")
    verifying = library("a signature", "model_signing.verifying")
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=public_key).verify(file, signature)
    except Exception as error:  # the library raises errors of its own and of its parsers
        why = str(error) or type(error).__name__
        if "Hash mismatch" in why:
            why = "the file is not the one that was signed"
        raise UserError(f"{file}: the signature does not hold: {why}") from None


def _model_files(model: Path) -> list[Path]:
    """The files that make a model, of a folder without its checkpoints, in order."""
    if model.is_file():
        return [model]
    every = sorted(path for path in model.rglob("*") if path.suffix in MODEL_FILES and path.is_file())
    return [path for path in every if "checkpoints" not in path.parts]


def _sha256(content: Path | bytes) -> str:
    return digest(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()


def _manifest(archive: zipfile.ZipFile, file: Path) -> tuple[Manifest, str]:
    """The manifest, checked against the archive's names, and the first digits of its digest."""
    try:
        info = archive.getinfo(MANIFEST)
        if info.file_size > LARGEST_MANIFEST:
            raise UserError(f"{file}: its manifest has {info.file_size:,} bytes")
        data = archive.read(info)
        about = json.loads(data)
        if about.pop("format", None) != FORMAT:
            raise ValueError("another format")
        if not all(isinstance(about[name], kind) for name, kind in TYPES.items() if name in about):
            raise ValueError("an entry of another type")
        manifest = Manifest(**about | {"tools": tuple(about["tools"])})
        files, named = manifest.files, manifest.model_files
        texts = (*files.values(), *named.values(), manifest.model, manifest.system or "")
        if not all(isinstance(value, str) for value in texts):
            raise ValueError("digests and the system message are texts")
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{file}: is no bundle: its manifest is missing or wrong") from None
    for tool in manifest.tools:  # a name alone: what else a tool could be spelt as would run code
        if tool not in built_in_tools.names():
            raise UserError(f"{file}: names the tool {quoted(tool)}, and a bundle has built-in ones alone")
    if manifest.model and not store.is_name(manifest.model):
        raise UserError(f"{file}: names the model {quoted(manifest.model)}, which is no name")
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        raise UserError(f"{file}: is compressed, which no bundle is")
    _check_room(archive, file)
    names = archive.namelist()
    if sorted(names) != sorted([MANIFEST, *files]):
        raise UserError(f"{file}: holds other files than its manifest names")
    for name in (*files, *named):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
            raise UserError(f"{file}: names a file {name[:80]!r}, which leaves its folder")
    return manifest, hashlib.sha256(data).hexdigest()[:32]


def _check_room(archive: zipfile.ZipFile, file: Path) -> None:
    """UserError where members share bytes: a small archive would be unpacked to any size."""
    end = 0
    for member in sorted(archive.infolist(), key=lambda each: each.header_offset):
        size = member.file_size
        if member.header_offset < end or member.compress_size != size:
            raise UserError(
                f"{file}: its members overlap, which makes more of them than there is in the file"
            )
        end = member.header_offset + LOCAL_HEADER + len(member.filename) + size
    if end > file.stat().st_size:
        raise UserError(f"{file}: its members have more bytes than the file")


def _extract(archive: zipfile.ZipFile, manifest: Manifest, folder: Path, file: Path) -> None:
    for name, expected in manifest.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(name) as member, target.open("wb") as out:
            shutil.copyfileobj(member, out)
        if digest(target) != expected:
            raise UserError(f"{file}: was changed: {name} is not what the manifest says")


def card(facts: Mapping[str, Any], about: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    """A model card in Markdown: facts read off the files, and figures of `cutaway eval --json`.

    UserError for an evaluation that is none. The card names what was not measured.
    """
    lines = [
        "# Model card",
        "",
        "## The model",
        "",
        *_table(facts),
        "",
        "## How it is used",
        "",
        *_table(about),
    ]
    lines += ["", "## What was measured", ""]
    if evaluation is None:
        return "\n".join([*lines, "Nothing: give the output of `cutaway eval --json` to `--evaluation`.", ""])
    try:
        lines += ["| task | metric | value | 95% interval | n |", "|---|---|---|---|---|"]
        for task, figures in evaluation["tasks"].items():
            for metric in [name.removesuffix("_interval") for name in figures if name.endswith("_interval")]:
                low, high = figures[f"{metric}_interval"]
                value = figures[metric]
                between = "no interval" if low is None or high is None else f"{low:.3f} to {high:.3f}"
                lines.append(f"| {task} | {metric} | {value:.3f} | {between} | {figures['n']} |")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError("the evaluation is no output of `cutaway eval --json`") from None
    return "\n".join([*lines, ""])


def _table(entries: Mapping[str, Any]) -> list[str]:
    rows = [f"| {name} | {_cell(value)} |" for name, value in entries.items() if value not in (None, "", ())]
    return ["| | |", "|---|---|", *rows]


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.replace("|", "\\|").replace("\n", "<br>")
