"""Damaged and malicious files: each is refused in a sentence; nothing crashes, hangs, or eats the memory."""

import importlib.util
import json
import random
import struct
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cutaway.errors import UserError
from cutaway.tokenizer import Tokenizer
from cutaway.tokenizer.charsmap import Charsmap
from tests import inputs
from tests.test_tokenizer_formats import whole


def _script() -> ModuleType:
    path = Path(__file__).parent.parent / "scripts" / "fuzz_tokenizer_files.py"
    spec = importlib.util.spec_from_file_location("fuzz_tokenizer_files", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_hundred_files_of_every_kind(tmp_path: Path) -> None:
    """`scripts/fuzz_tokenizer_files.py` runs thousands, with a limit on memory and time."""
    script = _script()
    outcomes = []
    for _, name, data in script.cases(220, seed=7):
        (tmp_path / name).write_bytes(data)
        outcomes.append(script.tried(tmp_path / name))
    assert 30 < outcomes.count("read") < 190


TEXT = "the <s> abc 12\n" * 3


def survives(path: Path, **options: Any) -> bool:
    """Whether the file was read and used, rather than refused. Anything but UserError is the test's
    failure.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            tok = Tokenizer.load(path, **options)
            tok.decode(tok.encode(TEXT, "allow"))
    except UserError:
        return False
    return True


def mutated(value: Any, noise: random.Random) -> Any:
    """The same JSON with one thing in it changed."""
    strange = [None, -1, 2**70, 1.5, "", "\ud800", "x" * 100, [], {}, [[]], True, {"type": "Sequence"}]
    if noise.random() < 0.15 or not isinstance(value, (dict, list)) or not value:
        return noise.choice(strange)
    if isinstance(value, dict):
        key = noise.choice(sorted(value))
        if noise.random() < 0.2:
            return {other: item for other, item in value.items() if other != key}
        return value | {key: mutated(value[key], noise)}
    at = noise.randrange(len(value))
    return [*value[:at], mutated(value[at], noise), *value[at + 1 :]]


def test_fuzzed_tokenizer_json(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    spaces = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    other = whole(
        normalizer={
            "type": "Sequence",
            "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "▁"}],
        },
        pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True},
        decoder={"type": "Sequence", "decoders": spaces},
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
            "special_tokens": {"<s>": {"ids": [260]}},
        },
    )
    outcomes = []
    for seed in range(400):
        noise = random.Random(seed)
        made = noise.choice([whole(), other])
        for _ in range(noise.choice([1, 1, 2, 4])):
            made = mutated(made, noise)
        path.write_text(json.dumps(made))
        outcomes.append(survives(path))
    assert 50 < sum(outcomes) < 350  # the fuzzing reaches both ends


def test_cut_and_flipped_tokenizer_json(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    data = json.dumps(whole()).encode()
    for seed in range(150):
        noise = random.Random(seed)
        bad = bytearray(data[: noise.randrange(len(data))] if seed % 2 else data)
        for _ in range(noise.randrange(1, 5)):
            bad[noise.randrange(len(bad)) :][:1] = bytes([noise.randrange(256)])
            bad[noise.randrange(max(len(bad), 1))] = noise.randrange(256)
        path.write_bytes(bad)
        survives(path)


def test_half_a_surrogate_pair_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    prepend = {"type": "Prepend", "prepend": "\ud800"}
    for changes in ({"normalizer": prepend}, {"model__vocab": {"\udc00": 0}}):
        path.write_text(json.dumps(whole(**changes)))
        with pytest.raises(UserError, match="half a surrogate pair"):
            Tokenizer.load(path)
    path.write_text(json.dumps(whole(normalizer={"type": "Prepend", "prepend": "\U0001f99c"})))
    assert Tokenizer.load(path).decode(Tokenizer.load(path).encode("a")) == "\U0001f99ca"


@pytest.mark.parametrize(
    "data",
    [
        b"{" * 100_000,
        b'{"model":' * 50_000,
        b'{"a":' + b"[" * 200_000,
        b"{}",
        b'{"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": 3}',
        b'{"model": 1e999}',
        b"{\xff}",
    ],
)
def test_json_bombs(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(UserError):
        Tokenizer.load(path)


def test_sequences_without_end(tmp_path: Path) -> None:
    nested: dict[str, Any] = {"type": "NFC"}
    for _ in range(100):
        nested = {"type": "Sequence", "normalizers": [nested]}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(whole(normalizer=nested)))
    with pytest.raises(UserError, match="20 deep"):
        Tokenizer.load(path)


def test_growing_normalisers_and_long_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    long = "x" * 200_000
    path.write_text(
        json.dumps(whole(added_tokens=[{"id": 260, "content": long}, {"id": 261, "content": ""}]))
    )
    assert survives(path)
    for pattern in ({"String": "a"}, {"Regex": "a"}):
        for times in (50, 1000, 10_000_000):
            growing = [{"type": "Replace", "pattern": pattern, "content": "a" * times}] * (
                20 if times < 10**6 else 1
            )
            path.write_text(json.dumps(whole(normalizer={"type": "Sequence", "normalizers": growing})))
            assert not survives(path)


def test_fuzzed_sentencepiece_models(tmp_path: Path) -> None:
    data = next(inputs.path("sentencepiece-fixtures").rglob("botchan_en_bpe_1000.model")).read_bytes()
    path = tmp_path / "x.model"
    outcomes = []
    for seed in range(100):
        noise = random.Random(seed)
        bad = bytearray(data[: noise.randrange(len(data))] if seed % 5 == 0 else data)
        for _ in range(noise.choice([1, 3, 30])):
            # the pieces and settings lie at the ends, the map of characters between them
            at = noise.choice([noise.randrange(len(bad)), noise.randrange(min(len(bad), 12_000))])
            bad[at] = noise.randrange(256)
        path.write_bytes(bad)
        outcomes.append(survives(path))
    assert 5 < sum(outcomes) < 95


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x0a\xff\xff\xff\xff\x7f",
        b"\x0b\x0c",
        b"\x12\x02\x18\x02",
        b"\x0d\x00\x00\x80\x7f",
        b"\x12\x02\x18\x01",
        b"\x0a\x03\x0a\x01\xff\x12\x02\x18\x02",
        b"\x0a\x05\x15\x00\x00\xc0\x7f\x12\x02\x18\x02",
    ],
)
def test_small_damaged_models(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.model"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.model"):
        Tokenizer.load(path)


def test_maps_of_characters_that_point_outside() -> None:
    noise = random.Random(0)
    for seed in range(300):
        noise.seed(seed)
        units = [
            noise.randrange(2**32) if noise.random() < 0.5 else noise.randrange(2**12) for _ in range(64)
        ]
        trie = struct.pack("<64I", *units)
        for data in (
            b"",
            b"\x01",
            struct.pack("<I", 256) + trie,
            struct.pack("<I", 256) + trie + b"a\0b\0" * 50,
        ):
            try:
                Charsmap(data)("a text é 日本\x00", True, True)
            except UserError:
                continue


def test_fuzzed_rank_files(tmp_path: Path) -> None:
    lines = [
        b"%s %d" % (word, rank) for rank, word in enumerate([b"YQ==", b"Yg==", b"YWI=", b"IA==", b"dGhl"])
    ]
    path = tmp_path / "x.tiktoken"
    for seed in range(300):
        noise = random.Random(seed)
        bad = bytearray(b"\n".join(lines))
        for _ in range(noise.choice([1, 2, 10])):
            bad[noise.randrange(len(bad))] = noise.randrange(256)
        path.write_bytes(bad)
        survives(path, pattern="gpt2")
