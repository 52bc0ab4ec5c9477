"""Files of word vectors, read and written: word2vec's text and binary, GloVe's text, and safetensors.

    word2vec text    "v d", then a line a word: the word and d numbers      what gensim and fastText exchange
    word2vec binary  "v d", then a word, a space and d float32 each time    GoogleNews
    glove            word2vec's text without its first line                 glove.6B
    safetensors      the tensor "table" [v d]; the words are in its metadata, and fastText's n-grams beside
    them

Nothing is guessed: a number that is missing, too many or not finite is refused by its line or byte. The
embedding table inside a language model is read as vectors too, its tokens the words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

import numpy as np

from cutaway.embedding.subwords import Subwords
from cutaway.embedding.vectors import Vectors
from cutaway.errors import UserError, quoted
from cutaway.quantization import formats
from cutaway.store.files import atomic_file, read_errors
from cutaway.weights import safetensors
from cutaway.weights.checkpoint import Checkpoint

Format = Literal["text", "binary", "glove", "safetensors"]
ENDINGS: dict[str, Format] = {".safetensors": "safetensors", ".bin": "binary", ".vec": "text", ".w2v": "text"}
MARK = "cutaway.vectors"
CHUNK = 1 << 19  # characters of one metadata value
LONGEST = 4096  # bytes of a word, and more than a header has
HEADER = re.compile(rb"(\d{1,12}) (\d{1,6}) *\r?\n")


def is_vectors(path: Path) -> bool:
    """Whether a file looks like word vectors, and not like a model."""
    if not path.is_file() or path.suffix == ".gguf":
        return False
    if path.suffix == ".safetensors":
        return MARK in safetensors.metadata(path)
    return True


def read_vectors(path: Path, format: Format | None = None) -> Vectors:
    """The vectors in a file; its format is found by looking unless given. UserError if damaged."""
    if not path.is_file():
        raise UserError(f"{path} is not a file of word vectors")
    with read_errors(path), path.open("rb") as file:
        return _READERS[format or _format(path, file)](path, file)


def write_vectors(path: Path, vectors: Vectors, format: Format | None = None, *, force: bool = True) -> None:
    """Write vectors, complete or not at all.

    The format is the ending's: .safetensors, .bin, .vec or .w2v, and GloVe's text for any other. UserError if
    the file exists, unless `force`.
    """
    if not np.isfinite(vectors.table).all():
        raise UserError("these vectors hold numbers that are not finite, so they are not written")
    chosen = format or ENDINGS.get(path.suffix, "glove")
    if chosen == "safetensors":
        _write_safetensors(path, vectors, force)
        return
    spaced = next((word for word in vectors.words if not word or re.search(r"\s", word)), None)
    if spaced is not None:
        raise UserError(f"the word {quoted(spaced)} has a space, which a {chosen} file cannot hold")
    with atomic_file(path, force=force) as out:
        if chosen != "glove":
            out.write(f"{len(vectors)} {vectors.table.shape[1]}\n".encode())
        for word, row in zip(vectors.words, vectors.table.astype("<f4", copy=False), strict=True):
            if chosen == "binary":
                out.write(word.encode() + b" " + row.tobytes() + b"\n")
            else:
                out.write(f"{word} {' '.join(map(str, row))}\n".encode())


def of_model(checkpoint: Checkpoint) -> Vectors:
    """A language model's own embedding table: a row a token, named by the text it stands for."""
    if "embedding.weight" not in checkpoint.tensors:
        raise UserError(f"{checkpoint.source}: its table is not one matrix of vectors")
    tokenizer, table = checkpoint.tokenizer, formats.unpack(checkpoint.tensors["embedding.weight"])
    named = min(len(tokenizer), len(table))
    words = [tokenizer.token_bytes(id).decode(errors="backslashreplace") for id in range(named)]
    return Vectors(words, table[:named])


def _format(path: Path, file: IO[bytes]) -> Format:
    if path.suffix == ".safetensors":
        return "safetensors"
    header = HEADER.fullmatch(file.readline(LONGEST))
    second = file.read(LONGEST + 16 * int(header[2])) if header else b""
    file.seek(0)
    if header is None:
        return "glove"
    line = second.partition(b"\n")[0].split(b" ")
    return (
        "text" if _numbers(line[-int(header[2]) :]) is not None and len(line) > int(header[2]) else "binary"
    )


def _numbers(fields: list[bytes]) -> list[float] | None:
    try:
        return list(map(float, fields))
    except ValueError:
        return None


def _header(path: Path, file: IO[bytes], least: int) -> tuple[int, int]:
    """How many words of how many numbers, if the file can hold them: ``least`` bytes a number."""
    found = HEADER.fullmatch(file.readline(LONGEST))
    if found is None:
        raise UserError(f"{path}: its first line is not the number of words and of dimensions, as `400 100`")
    words, dim = int(found[1]), int(found[2])
    if not words or not dim:
        raise UserError(f"{path}: its first line announces {words} words of {dim} numbers: there is nothing")
    if words * (dim * least + 2) > path.stat().st_size + 2:
        raise UserError(f"{path}: its first line promises {words} words of {dim} numbers, more than it holds")
    return words, dim


def _read_text(path: Path, file: IO[bytes]) -> Vectors:
    count, dim = _header(path, file, 2)
    words, table = _lines(path, file, dim, 2)
    if len(words) != count:
        raise UserError(f"{path}: its first line promises {count} words, and {len(words)} follow")
    return Vectors(words, table)


def _read_glove(path: Path, file: IO[bytes]) -> Vectors:
    dim = len(file.readline(1 << 20).split()) - 1
    if dim < 1:
        raise UserError(f"{path}: its first line is not a word and numbers, so these are not word vectors")
    file.seek(0)
    return Vectors(*_lines(path, file, dim, 1))


def _lines(path: Path, file: IO[bytes], dim: int, first: int) -> tuple[list[str], np.ndarray]:
    """Lines of a word and ``dim`` numbers; a word may hold spaces, as some of GloVe's do."""
    words: list[str] = []
    rows: list[np.ndarray] = []
    limit = LONGEST + 64 * dim
    for number, line in enumerate(iter(lambda: file.readline(limit), b""), first):
        if len(line) == limit and not line.endswith(b"\n"):
            raise UserError(f"{path}:{number}: the line is longer than a word and {dim} numbers can be")
        fields = line.strip(b"\r\n ").rsplit(b" ", dim)
        numbers = _numbers(fields[1:])
        if len(fields) != dim + 1 or numbers is None:
            raise UserError(f"{path}:{number}: expected a word and {dim} numbers")
        rows.append(np.array(numbers, np.float32))
        words.append(_word(path, f":{number}", fields[0]))
    return words, _finite(path, words, np.array(rows, np.float32).reshape(len(rows), dim))


def _read_binary(path: Path, file: IO[bytes]) -> Vectors:
    count, dim = _header(path, file, 4)
    table = np.empty((count, dim), np.float32)
    words = []
    for row in table:
        at = file.tell()
        words.append(_word(path, f", byte {at}", _until_space(path, file)))
        data = file.read(4 * dim)
        if len(data) != 4 * dim:
            raise UserError(f"{path}: ends after {len(words) - 1} of the {count} words it promises")
        row[:] = np.frombuffer(data, "<f4")
    if file.read(LONGEST).strip():
        raise UserError(f"{path}: goes on after the {count} words that its first line promises")
    return Vectors(words, _finite(path, words, table))


def _until_space(path: Path, file: IO[bytes]) -> bytes:
    word = bytearray()
    while (byte := file.read(1)) not in (b" ", b""):
        word += byte
        if len(word) > LONGEST:
            raise UserError(f"{path}: a word has more than {LONGEST} bytes: this is no word2vec binary")
    return bytes(word).lstrip(b"\n")


def _word(path: Path, where: str, word: bytes) -> str:
    try:
        return word.decode()
    except UnicodeDecodeError:
        raise UserError(f"{path}{where}: the word {quoted(word)} is not UTF-8") from None


def _finite(path: Path, words: list[str], table: np.ndarray) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if len(bad):
        raise UserError(f"{path}: the vector of {quoted(words[bad[0]])} holds a number that is not finite")
    return table


def _write_safetensors(path: Path, vectors: Vectors, force: bool) -> None:
    table = np.ascontiguousarray(vectors.table, np.float32)
    tensors = {"table": formats.pack(table, "F32")}
    about: dict[str, str] = {MARK: "1", **_texts("words", list(vectors.words))}
    if vectors.subwords is not None and vectors.grams is not None:
        parts = vectors.subwords
        tensors["grams"] = formats.pack(np.ascontiguousarray(vectors.grams, np.float32), "F32")
        about["subwords"] = json.dumps({"least": parts.least, "most": parts.most, "buckets": parts.buckets})
        about |= _texts("used", parts.used.tolist())
    safetensors.write_safetensors(path, tensors, about, force=force)


def _texts(name: str, items: list) -> dict[str, str]:
    """A list as JSON, in pieces that the container takes."""
    whole = json.dumps(items)
    return {f"{name}.{i}": whole[at : at + CHUNK] for i, at in enumerate(range(0, len(whole), CHUNK))}


def _list(path: Path, about: dict[str, str], name: str, kind: type) -> list:
    pieces = _pieces(about, name)
    try:
        found = json.loads("".join(pieces))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(type(item) is kind for item in found):
        raise UserError(f"{path}: its metadata holds no list of {name}, so these are not word vectors")
    return found


def _pieces(about: dict[str, str], name: str) -> Iterator[str]:
    number = 0
    while f"{name}.{number}" in about:
        yield about[f"{name}.{number}"]
        number += 1


def _read_safetensors(path: Path, file: IO[bytes]) -> Vectors:
    tensors, about = safetensors.read_safetensors(path), safetensors.metadata(path)
    if "table" not in tensors or len(tensors["table"].shape) != 2:
        raise UserError(f"{path}: has no tensor `table` of two axes, so these are not word vectors")
    words = _list(path, about, "words", str)
    table = _finite(path, words, formats.unpack(tensors["table"]))
    if len(words) != len(table):
        raise UserError(f"{path}: names {len(words)} words for {len(table)} vectors")
    if "grams" not in tensors:
        return Vectors(words, table)
    parts = _subwords(path, about, len(words))
    grams = formats.unpack(tensors["grams"])
    if grams.shape != (len(parts.used), table.shape[1]):
        raise UserError(f"{path}: its n-grams' vectors do not fit the {len(parts.used)} n-grams it names")
    return Vectors(words, table, parts, grams)


def _subwords(path: Path, about: dict[str, str], words: int) -> Subwords:
    used = np.array(_list(path, about, "used", int), np.int64)
    try:
        found = json.loads(about.get("subwords", ""))
        least, most, buckets = (int(found[name]) for name in ("least", "most", "buckets"))
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{path}: does not say how its n-grams are made") from None
    if not 1 <= least <= most <= 100 or not 1 <= buckets < 1 << 31 or (np.diff(used) <= 0).any():
        raise UserError(f"{path}: its n-grams of {least} to {most} in {buckets} buckets cannot be")
    return Subwords(least, most, buckets, words, used)


_READERS = {
    "text": _read_text,
    "binary": _read_binary,
    "glove": _read_glove,
    "safetensors": _read_safetensors,
}
