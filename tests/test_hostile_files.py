"""Damaged files of every kind: each is read or refused in one line, and containers take twice their size.

`scripts/fuzz/mutants` makes them; `python -m scripts.fuzz.files` runs thousands, in watched processes.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

import cutaway
from cutaway import gguf
from cutaway.errors import OperationalError, UserError
from scripts.fuzz import files as driver
from scripts.fuzz.mutants import containers as mutate
from scripts.fuzz.mutants import damage, kinds

COUNT = 100
# Python's own objects: about a kilobyte for each of the few dozen named things in these files.
SLACK = 64 << 10


BASES = {"gguf": mutate.gguf_layout(128), "safetensors": mutate.safetensors_layout(128)}


def peak_of_opening(kind: str, path: Path) -> tuple[object, int]:
    mutate.opened(kind, path)  # once unmeasured: checks of signatures are made at a first call
    tracemalloc.start()
    try:
        found = mutate.opened(kind, path)
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", BASES)
def test_damaged_files_are_read_or_refused_within_their_size(tmp_path: Path, kind: str) -> None:
    base = tmp_path / f"base.{kind}"
    base.write_bytes(BASES[kind].data)
    found, _ = peak_of_opening(kind, base)
    assert found is not None, "the undamaged file must be readable"
    outcomes = {"read": 0, "refused": 0}
    for seed in range(COUNT):
        path = tmp_path / f"{seed}.{kind}"
        path.write_bytes(mutate.damaged(kind, BASES[kind], seed))
        found, peak = peak_of_opening(kind, path)
        assert peak <= 2 * path.stat().st_size + SLACK, f"seed {seed} took {peak} bytes"
        outcomes["refused" if found is None else "read"] += 1
        if found is not None:
            mutate.touch(found)
        path.unlink()
    assert min(outcomes.values()) >= 3, outcomes


@pytest.mark.parametrize(("kind", "files"), [("gguf", 300), ("safetensors", 100)])
def test_every_number_a_reader_believes_may_lie(tmp_path: Path, kind: str, files: int) -> None:
    layout = mutate.gguf_layout(4) if kind == "gguf" else mutate.safetensors_layout(4)
    path, seen = tmp_path / f"x.{kind}", 0
    for data in mutate.swept(kind, layout, (1 << 20, 1 << 40, (1 << 64) - 1)):
        path.write_bytes(data)
        _, peak = peak_of_opening(kind, path)
        assert peak <= 2 * len(data) + SLACK, f"file {seen} took {peak} bytes"
        seen += 1
    assert seen >= files


def test_a_vocabulary_of_tiny_strings_costs_no_more_than_its_file(tmp_path: Path) -> None:
    path, count = tmp_path / "tiny.gguf", 200_000
    strings = (struct.pack("<Q", 2) + b"ab") * count
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, count)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + strings)
    found, peak = peak_of_opening("gguf", path)
    assert isinstance(found, gguf.File) and peak <= 2 * path.stat().st_size
    assert found.metadata["k"] == ["ab"] * count


def test_a_long_text_of_wide_characters_costs_no_more_than_its_file(tmp_path: Path) -> None:
    path, value = tmp_path / "wide.gguf", b"a" * 2_000_000 + "🦙".encode()
    path.write_bytes(
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + struct.pack("<Q", 1)
        + b"k"
        + struct.pack("<IQ", 8, len(value))
        + value
    )
    found, peak = peak_of_opening("gguf", path)
    assert isinstance(found, gguf.File) and peak <= 2 * path.stat().st_size
    assert found.metadata["k"] == value.decode()


@pytest.mark.parametrize("piece", ["[],", '{"":0},', "1,", '"",'])
def test_json_that_would_grow_when_parsed_is_not_parsed(tmp_path: Path, piece: str) -> None:
    path = tmp_path / "bomb.safetensors"
    for header in ('{"w":[' + piece * 300_000, '{"w":{"shape":[' + piece * 300_000):
        path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
        found, peak = peak_of_opening("safetensors", path)
        assert found is None and peak <= SLACK


def test_metadata_texts_that_were_not_asked_for_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "texts.safetensors"
    header = json.dumps(
        {"__metadata__": {str(number): "é" * 1000 for number in range(2000)}}, ensure_ascii=False
    )
    path.write_bytes(struct.pack("<Q", len(header.encode())) + header.encode())
    found, peak = peak_of_opening("safetensors", path)
    assert found == {} and peak <= path.stat().st_size // 4


def test_the_judge_can_say_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.gguf"
    for message in ("nameless", f"{path}: two\nlines"):

        def refuse(_: Path, message: str = message) -> None:
            raise UserError(message)

        monkeypatch.setitem(mutate.READERS, "gguf", refuse)
        with pytest.raises(AssertionError):
            mutate.opened("gguf", path)


# ---- every kind that a verb opens --------------------------------------------------------------------------

READS = re.compile(
    r"(?<!def )\b(read_text|read_bytes|parsed|json_lines|arrays)\(|\bnp\.(load|memmap|fromfile)\("
    r"|sqlite3\.connect\(|\b(gguf|safetensors)\.(read|read_shaped|metadata)\(|\bZipFile\(|\.open\((\"rb\"|encoding|mode)?|gzip\.open\("
    r"|\bmmap\.mmap\(|parquet\.(rows|columns|ParquetFile)\(|container\.read\(|tarfile\.open\(|lzma\.|yaml\.load"
)


def test_the_table_of_kinds_has_every_module_that_reads_files() -> None:
    root = Path(gguf.__file__).parents[1]
    reading = {
        str(file.relative_to(root)) for file in root.rglob("*.py") if READS.search(file.read_text("utf-8"))
    }
    assert reading - kinds.READERS.keys() == set(), (
        "name the kind of file, and add it to scripts/fuzz/mutants/kinds.py"
    )
    assert [name for name in kinds.READERS if not (root / name).is_file()] == []
    stated = {name for text in kinds.READERS.values() for name in text.split(", ")}
    assert kinds.KINDS.keys() <= stated, kinds.KINDS.keys() - stated


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small model, which is the base of every kind."""
    folder = tmp_path_factory.mktemp("mutants")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUTAWAY_MUTANTS", str(folder))
        patch.setenv("CUTAWAY_HOME", str(folder / "cache"))
        kinds.small(folder)
        yield folder


LIGHT = sorted(
    kinds.KINDS.keys() - {"GGUF model", "Hugging Face folder", "folder in shards", "Cutaway's own folder"}
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LIGHT)
def test_a_few_damaged_files_of_each_kind_are_read_or_refused(name: str, home: Path, tmp_path: Path) -> None:
    """Of each kind the sound files are read; any other error than a refusal is the reader's fault."""
    one, sound = kinds.KINDS[name], tmp_path / "sound"
    sound.mkdir()
    one.make(sound)
    for file in driver.targets(one, sound):
        for n in range(4):
            rng, work = random.Random(f"{name} {file} {n}"), tmp_path / f"{n}"
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(sound, work)
            if n:
                (work / file).write_bytes(damage.of_file(file, (sound / file).read_bytes(), rng))
            (work / ".damaged").write_text(file)
            with nullcontext() if n == 0 else suppress(UserError, OperationalError):
                one.open(work, rng)


def test_a_long_name_of_an_activation_is_quoted_in_part(home: Path) -> None:
    """An autoencoder's folder names what it reads: a name of 100,000 letters filled the terminal."""
    with pytest.raises(UserError, match="nothing is named 'xxx") as found:
        cutaway.load(home / "model.gguf").trace("a", names=["x" * 100_000])
    assert len(str(found.value)) < 400
