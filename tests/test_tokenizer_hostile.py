"""Damaged and malicious files: each is refused in a sentence; nothing crashes, hangs, or eats the memory."""

import importlib.util
import json
import random
import struct
import warnings
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cutaway.errors import UserError
from cutaway.native import library
from cutaway.native.bpe import Core
from cutaway.tokenizer import Tokenizer, normalize, pretokenize
from cutaway.tokenizer.added import any_of
from cutaway.tokenizer.charsmap import Charsmap
from cutaway.tokenizer.pretokenize import PATTERNS, Split, compiled
from tests import inputs
from tests.test_tokenizer_formats import whole


def _script() -> ModuleType:
    path = Path(__file__).parent.parent / "scripts" / "fuzz" / "tokenizer_files.py"
    spec = importlib.util.spec_from_file_location("tokenizer_files", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_files_of_every_kind(tmp_path: Path) -> None:
    """`scripts/fuzz/tokenizer_files.py` runs thousands, with a limit on memory and time."""
    script = _script()
    outcomes = []
    for _, name, data in script.cases(88, seed=7):
        (tmp_path / name).write_bytes(data)
        outcomes.append(script.tried(tmp_path / name))
    assert 12 < outcomes.count("read") < 76


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
            "special_tokens": {"<s>": {"ids": [257]}},
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


def test_half_a_surrogate_pair_is_refused_at_any_place(tmp_path: Path) -> None:
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


def refused(path: Path, made: dict[str, Any], sentence: str) -> None:
    path.write_text(json.dumps(made))
    with pytest.raises(UserError, match=sentence):
        Tokenizer.load(path)


def test_an_added_token_takes_no_id_of_the_vocabulary(tmp_path: Path) -> None:
    """Ordinary text that spells the other one would become the control token."""
    path = tmp_path / "tokenizer.json"
    control = {"id": 97, "content": "<s>", "special": True}
    refused(path, whole(added_tokens=[control]), "the added token '<s>' has the id 97, which is")
    two = [{"id": 260, "content": "<s>"}, {"id": 261, "content": "<s>"}]
    refused(path, whole(added_tokens=two), "the token '<s>' has two ids, 260 and 261")
    same = [{"id": 260, "content": "<s>"}, {"id": 260, "content": "<t>"}]
    refused(path, whole(added_tokens=same), "the added token '<t>' has the id 260, which is '<s>'")
    refused(path, whole(added_tokens=[{"id": 300, "content": "the"}]), "two ids")
    path.write_text(json.dumps(whole()))
    config = {"added_tokens_decoder": {"97": {"content": "<x>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="'<x>' has the id 97"):
        Tokenizer.load(tmp_path)


def test_a_post_processor_adds_tokens_that_there_are(tmp_path: Path) -> None:
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}, {"Sequence": {}}]}
    template |= {"special_tokens": {"x": {"ids": [99_999]}}}
    refused(tmp_path / "tokenizer.json", whole(post_processor=template), "the id 99999, which is no token")


def test_vocabularies_beyond_all_models(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    many = {str(id): id for id in range((1 << 20) + 1)}
    refused(path, whole(model__vocab=many, model__merges=[]), "1,048,577 tokens; the limit is 1,048,576")
    pieces = [["<unk>", 0.0], ["a" * 20_000, -1.0]]
    refused(
        path, whole(model={"type": "Unigram", "unk_id": 0, "vocab": pieces}), "20,000 characters; the limit"
    )


@pytest.mark.parametrize("pattern", ["((?1)?a)*", "(?R)?a", r"\\(?P<x>a)(?&x)", "(?P<x>a)(?P>x)", "(?-1)"])
def test_patterns_that_call_themselves(pattern: str, tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    steps = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    refused(tmp_path / "tokenizer.json", whole(pre_tokenizer=steps), "calls itself")


def test_slow_patterns_share_one_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten rules, each under the limit by itself, over many stretches: the clock counts all of them."""
    clock = [0.0]
    monkeypatch.setattr(pretokenize, "monotonic", lambda: clock[0])
    left = []

    class Slow:
        def sub(self, new: object, text: str, timeout: float) -> str:
            left.append(timeout)
            clock[0] += 1.0
            return text

    path = tmp_path / "tokenizer.json"
    rule = {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"}
    normalizer = {"type": "Sequence", "normalizers": [rule] * 10}
    path.write_text(json.dumps(whole(normalizer=normalizer)))
    tok = Tokenizer.load(path)
    monkeypatch.setattr(normalize, "compiled", lambda pattern: Slow())
    tok.encode("a the <x> b the")
    assert left[:5] == pytest.approx([5, 4, 3, 2, 1], abs=0.01)
    assert left[6:] == [0.001] * len(left[6:])  # so that the first step of `regex` ends them


def worst_cases(pattern: str) -> list[str]:
    """For each alternative, long runs of what it begins with and then fails on, or takes one by one."""
    kinds = [" ", "\t", "\n", "\r", "a", "A", "ǅ", "ʰ", "日", "\u0301", "5", "!", "/", "'", "\u3000", "$"]
    pairs = [one + other for one in kinds for other in kinds if one != other]
    return [kind * 100_000 + end for kind in kinds for end in ("", "5", "a")] + [pair * 500 for pair in pairs]


@pytest.mark.parametrize("name", sorted(set(PATTERNS)))
def test_every_pattern_is_linear(name: str) -> None:
    """A quadratic one takes minutes for a run of 100,000, of which `regex` is given twenty seconds."""
    for pattern in PATTERNS[name]:
        if pattern in _seen:
            continue
        _seen.add(pattern)
        for text in worst_cases(pattern):
            compiled(pattern).findall(text, timeout=20)


_seen: set[str] = set()


def test_the_pattern_of_deepseek_llm_cuts_as_it_is_written() -> None:
    noise = random.Random(5)
    steps = PATTERNS["deepseek-llm"]
    written = [r"\s+$" if "$" in step and step.endswith("$") else step for step in steps]
    for _ in range(3000):
        text = "".join(noise.choices(" \t\n\r\u2028a日5!", k=noise.randrange(12)))
        ours = pretokenize.pretokenize([Split(step) for step in steps], text)
        assert ours == pretokenize.pretokenize([Split(step) for step in written], text)


def test_tokens_that_share_a_beginning_are_found_in_one_look() -> None:
    texts = {f"<unused{number}>" for number in range(6000)} | {"<", "<<", "<unused", "<unused12"}
    texts |= {"a" * size for size in range(1, 200)}
    pattern = any_of(texts)
    assert pattern.findall("<unused5999><unused12<unused999999><<<" + "a" * 250) == [
        *("<unused5999>", "<unused12", "<unused", "<<", "<"),
        *("a" * 199, "a" * 51),
    ]


@pytest.mark.skipif(library.unavailable_reason() is not None, reason=library.unavailable_reason() or "built")
def test_a_forged_compiled_vocabulary_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With words of it changed under a checksum that holds: read or refused, and never out of bounds."""
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path / "home"))
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(whole()))
    good = Tokenizer.load(path)
    ids = good.encode(TEXT)
    kept = next((tmp_path / "home" / "vocabularies").glob("*.bin"))
    data = kept.read_bytes()
    start = len(b"cutaway vocabulary\n") + 8
    begin = -(-(start + int.from_bytes(data[start - 8 : start - 4], "little")) // 64) * 64
    core = np.frombuffer(data[begin:], np.uint32)
    noise = np.random.default_rng(1)
    opened = 0
    for _ in range(300):
        forged = core.copy()
        at = noise.integers(6, len(core)) if noise.random() < 0.7 else noise.integers(6, 640)
        strange = [0xFFFFFFFF, 0x7FFFFFFF, forged[at] ^ 1, len(core), noise.integers(1 << 32)]
        forged[at] = noise.choice(strange)
        held = signed(forged.tobytes())
        try:
            made = Core(np.frombuffer(held, np.uint8).copy())
        except ValueError:
            continue
        opened += 1
        made.encode("gpt2", TEXT)
        made.pieces([b"the", b" the", TEXT.encode()])
        [made.token(id) for id in range(-1, 300)]
    assert 0 < opened < 300
    small = json.loads(data[start : start + int.from_bytes(data[start - 8 : start - 4], "little")])
    for change in ({"normalizer": [["Rule", {}]]}, {"added": [{"no": 1}]}, {"lead": []}, {"eot": 3}):
        block = json.dumps(small | change).encode()
        block = len(block).to_bytes(4, "little") + zlib.crc32(block).to_bytes(4, "little") + block
        head = data[: start - 8] + block
        kept.write_bytes(head + bytes(-len(head) % 64) + data[begin:])
        assert Tokenizer.load(path).encode(TEXT) == ids


def signed(data: bytes) -> bytes:
    """The core's checksums over forged bytes (native/tokenizer/vocabulary.cpp)."""
    size = header_size()
    rest = checksum(data[size:])
    inside = checksum(data[:16] + rest.to_bytes(8, "little") + data[24:size])
    return data[:16] + inside.to_bytes(8, "little") + data[24:]


def header_size() -> int:
    return 24 + 4 * 12 + 4 * 512 + 8 * 11


def checksum(data: bytes) -> int:
    whole, mask = len(data) // 32 * 32, (1 << 64) - 1
    words = np.frombuffer(data[:whole], np.uint64).reshape(-1, 4)
    out = []
    for lane, own in zip((1, 2, 3, len(data)), words.T.tolist(), strict=True):
        for word in own:
            lane = (lane ^ word) * 0x9E3779B97F4A7C15 & mask
            lane ^= lane >> 29
        out.append(lane)
    for i in range(whole, len(data)):
        out[i & 3] = (out[i & 3] ^ data[i]) * 0x9E3779B97F4A7C15 & mask
    made = 0
    for lane in reversed(out):
        made = (lane ^ made) * 0x9E3779B97F4A7C15 & mask
        made ^= made >> 32
    return made
