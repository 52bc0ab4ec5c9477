"""A tokenizer's spec read from a file or folder of any format, found by what it holds, and saved."""

import importlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from cutaway.errors import UserError
from cutaway.store.files import contents, read_errors
from cutaway.store.files import write_file as write_whole
from cutaway.tokenizer.spec import TokenizerSpec

RANKS = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")  # a line of a rank file
OTHERS = ("spiece.model", "sentencepiece.bpe.model", "vocab.json")  # alone they do not give a model's ids
KNOWN = "a .gguf, tokenizer.json, tekken.json, .model, .tiktoken or vocab.txt file, or a folder with one"
PARTS = (
    ".json",
    ".model",
    ".spm",
    ".txt",
    ".jinja",
    ".gguf",
    ".tiktoken",
)  # what a folder's tokenizer can be spread over
WRITERS = {
    ".json": "hf_json_write",
    ".model": "spm_model",
    ".tiktoken": "tiktoken",
    ".gguf": "gguf",
    ".txt": "vocab_txt",
}


def read_spec(
    source: str | os.PathLike[str], pattern: str | None = None, special: Mapping[str, int] | None = None
) -> TokenizerSpec:
    """The tokenizer at a path or of a model's name.

    Raises UserError for what is no tokenizer, OperationalError if reading fails.
    """
    path = _place(source)
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".gguf" or _head(path) == b"GGUF":
        from cutaway import gguf as container
        from cutaway.tokenizer.formats import gguf

        return gguf.read(container.read(path).metadata)
    data = contents(path)
    if path.suffix == ".tiktoken" or pattern is not None:
        from cutaway.tokenizer.formats import tiktoken

        return tiktoken.read(data, path.name, pattern, special or {})
    if data.lstrip()[:1] == b"{":
        return _read_json(data, path.name)
    if path.suffix == ".model" or ".model." in path.name:
        from cutaway.tokenizer.formats import spm_model

        return spm_model.read(data, path.name)
    if path.suffix == ".txt":
        from cutaway.tokenizer.formats import vocab_txt

        return vocab_txt.read(data, path.name)
    raise UserError(f"{path.name} is no tokenizer that is known: give {KNOWN}")


def target_of(path: str | os.PathLike[str]) -> Path:
    """The file that a tokenizer saved as ``path`` is written to. UserError for a name that says no format."""
    target = Path(path)
    target = target / "tokenizer.json" if target.is_dir() else target
    if target.suffix not in WRITERS:
        raise UserError(f"{target.name} does not say which format to write: end it in {', '.join(WRITERS)}")
    return target


def save_spec(spec: TokenizerSpec, path: str | os.PathLike[str], force: bool = True) -> Path:
    """Write a tokenizer, complete or not at all, in the format that the file's name says; returns the path.

    Raises UserError for a name that says none, for what a format cannot say, and for a file that exists
    unless `force`; OperationalError where writing fails.
    """
    target = target_of(path)
    module = importlib.import_module(f"cutaway.tokenizer.formats.{WRITERS[target.suffix]}")
    data = module.write_file(spec)
    write_whole(target, data, force=force)
    return target


def spec_digest(
    source: str | os.PathLike[str], pattern: str | None, special: Mapping[str, int] | None
) -> str | None:
    """A name for what `read_spec` would give; None where there is nothing to read."""
    from cutaway.tokenizer import compiled

    path = _place(source)
    files = [path] if path.is_file() else []
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix in PARTS and file.is_file()]
    if not files:
        return None
    names = [file.name for file in files] if path.is_dir() else [path.suffix]
    return compiled.digest(files, names, pattern, sorted((special or {}).items()))


def _place(source: str | os.PathLike[str]) -> Path:
    """The file or folder that holds the tokenizer: of a training run, its folder `tokenizer`."""
    from cutaway import store

    path = store.resolve(source if isinstance(source, str) else Path(source))
    inner = path / "tokenizer"
    return inner if inner.is_dir() and not (path / "tokenizer.json").is_file() else path


def _read_folder(folder: Path) -> TokenizerSpec:
    from cutaway.tokenizer.formats import folder as hugging_face

    if (folder / "tokenizer.json").is_file():
        path = folder / "tokenizer.json"
        return hugging_face.completed(_read_json(contents(path), path.name), folder)
    if (folder / "tekken.json").is_file():
        path = folder / "tekken.json"
        return hugging_face.completed(_read_json(contents(path), path.name), folder)
    if (ranks := _rank_file(folder)) is not None:
        from cutaway.tokenizer.formats import rank_folder

        return rank_folder.read(ranks)
    if (folder / "tokenizer.model").is_file():
        from cutaway.tokenizer.formats import spm_model

        path = folder / "tokenizer.model"
        return hugging_face.completed(spm_model.read(contents(path), path.name), folder)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        from cutaway.tokenizer.formats import gpt2_files

        return gpt2_files.read(folder)
    if (folder / "vocab.txt").is_file():
        return hugging_face.wordpiece(folder)
    if (folder / "source.spm").is_file():
        from cutaway.tokenizer.formats import marian

        return marian.read(folder)
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return read_spec(files[0])
    for name in OTHERS:
        if (folder / name).is_file():
            raise UserError(
                f"{folder}: {name} alone does not give a model's ids: put its tokenizer.json there"
            )
    raise UserError(
        f"{folder} holds no tokenizer.json, tekken.json, tokenizer.model, rank file, vocab.json with "
        f"merges.txt, vocab.txt or source.spm: give {KNOWN}"
    )


def _rank_file(folder: Path) -> Path | None:
    """The file of ranks that a folder has, under its own ending or as a model that is not SentencePiece's."""
    found = sorted(folder.glob("*.tiktoken"))
    if len(found) == 1:
        return found[0]
    for name in ("tiktoken.model", "tokenizer.model"):
        path = folder / name
        if path.is_file() and RANKS.match(_head(path, 256)):
            return path
    return None


def _read_json(data: bytes, name: str) -> TokenizerSpec:
    from cutaway.tokenizer.formats import hf_json, tekken, tiktoken
    from cutaway.tokenizer.formats.fields import parsed

    whole = parsed(data, name)
    if whole.has("bpe_ranks"):
        return tiktoken.read_encoder(whole)
    if isinstance(whole.value.get("vocab"), list) and whole.has("config"):
        return tekken.read(whole)
    return hf_json.read(whole)


def _head(path: Path, size: int = 4) -> bytes:
    with read_errors(path), path.open("rb") as file:
        return file.read(size)
