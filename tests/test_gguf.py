"""The GGUF container against the independent `gguf` package, both ways, and against its own refusals."""

from __future__ import annotations

import filecmp
import io
import json
import mmap
import pickle
import struct
import weakref
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf as judge
import numpy as np
import pytest

from cutaway import gguf
from cutaway.errors import OperationalError, UserError
from cutaway.gguf import Later, Packed, ReadAhead
from tests import inputs

RNG = np.random.default_rng(0)
READABLE = [name for name in gguf.TYPES if name not in ("I8", "I16", "I32", "I64", "F64")]
SCALARS = {
    "a.u8": np.uint8(200),
    "a.i8": np.int8(-100),
    "a.u16": np.uint16(60_000),
    "a.i16": np.int16(-30_000),
    "a.u32": np.uint32(4_000_000_000),
    "a.i32": np.int32(-2_000_000_000),
    "a.u64": np.uint64(1 << 63),
    "a.i64": np.int64(-(1 << 62)),
    "a.f32": np.float32(0.1),
    "a.f64": np.float64(0.1),
    "a.true": True,
    "a.false": False,
    "a.text": "naïve 🦙\nline",
    "a.empty": "",
}


def random_packed(type: str, shape: tuple[int, ...]) -> Packed:
    return Packed(type, shape, RNG.integers(0, 256, gguf.packed_shape(type, shape), dtype=np.uint8))


def every_type() -> dict[str, Packed]:
    return {f"{type}.weight": random_packed(type, (3, 512)) for type in READABLE}


def metadata() -> dict[str, object]:
    return {
        "general.architecture": "llama",
        **SCALARS,
        "b.texts": ["a", "", "é", "🦙" * 100],
        "b.ints": np.arange(-5, 5, dtype=np.int32),
        "b.wide": np.arange(5, dtype=np.uint64),
        "b.bytes": np.arange(5, dtype=np.int8),
        "b.floats": np.linspace(0, 1, 7, dtype=np.float32),
        "b.bools": np.array([True, False, True]),
    }


def assert_same_metadata(left: dict[str, object], right: dict[str, object]) -> None:
    assert list(left) == list(right)
    for key, value in left.items():
        other = right[key]
        assert type(value) is type(other), key
        if isinstance(value, np.ndarray) and isinstance(other, np.ndarray):
            assert value.dtype == other.dtype and np.array_equal(value, other), key
        else:
            assert value == other, key


def test_types_are_the_judges() -> None:
    for name, kind in gguf.TYPES.items():
        theirs = judge.GGMLQuantizationType[name]
        assert (kind.id, kind.block, kind.bytes) == (theirs, *judge.GGML_QUANT_SIZES[theirs])
    for theirs in judge.GGMLQuantizationType:
        assert theirs.name in gguf.TYPES or gguf.UNSUPPORTED[theirs] == theirs.name


def test_judge_reads_what_we_write(tmp_path: Path) -> None:
    path, tensors = tmp_path / "ours.gguf", every_type()
    gguf.write(path, metadata(), tensors)
    theirs = judge.GGUFReader(path)
    for key, value in metadata().items():
        field = theirs.get_field(key)
        assert field is not None, key
        found = field.contents()
        expected = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        assert found == expected, key
        if isinstance(value, np.generic):
            assert field.types[0].name.lower().replace("float", "f") == _judge_name(value), key
    assert [tensor.name for tensor in theirs.tensors] == list(tensors)
    for tensor in theirs.tensors:
        ours = tensors[tensor.name]
        assert tensor.tensor_type.name == ours.type
        assert tuple(reversed(tensor.shape.tolist())) == ours.shape
        assert tensor.data.tobytes() == ours.data.tobytes()


def _judge_name(value: np.generic) -> str:
    return value.dtype.name.replace("float", "f")


def written_by_judge(path: Path, alignment: int | None = None) -> tuple[dict[str, object], dict[str, Packed]]:
    writer = judge.GGUFWriter(path, "llama")
    for key, value in SCALARS.items():
        if isinstance(value, str):
            writer.add_key_value(key, value, judge.GGUFValueType.STRING)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        else:
            kind = value.dtype.name.upper()
            writer.add_key_value(key, value.item(), judge.GGUFValueType[kind])
    writer.add_array("b.texts", ["a", "é", "🦙" * 100])
    writer.add_array("b.ints", list(range(-5, 5)))
    writer.add_array("b.floats", [0.5, 0.25])
    if alignment:
        writer.add_custom_alignment(alignment)
    tensors = every_type() | {"vector": random_packed("F32", (7,)), "cube": random_packed("F16", (2, 3, 5))}
    for name, packed in tensors.items():
        writer.add_tensor(name, packed.data, raw_dtype=judge.GGMLQuantizationType[packed.type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    arrays: dict[str, object] = {
        "b.texts": ["a", "é", "🦙" * 100],
        "b.ints": np.arange(-5, 5, dtype=np.int32),
        "b.floats": np.array([0.5, 0.25], np.float32),
    }
    expected = {"general.architecture": "llama"} | SCALARS | arrays
    return expected | ({"general.alignment": np.uint32(alignment)} if alignment else {}), tensors


@pytest.mark.parametrize("alignment", [None, 8, 256])
def test_we_read_what_judge_writes_and_write_it_back(tmp_path: Path, alignment: int | None) -> None:
    path = tmp_path / "theirs.gguf"
    expected, tensors = written_by_judge(path, alignment)
    found = gguf.read(path)
    assert found.version == 3 and found.path == path
    assert_same_metadata(found.metadata, expected)
    assert list(found.tensors) == list(tensors)
    for name, packed in found.tensors.items():
        ours = tensors[name]
        assert (packed.type, packed.shape) == (ours.type, ours.shape)
        assert np.array_equal(packed.data, ours.data) and not packed.data.flags.writeable
    gguf.write(tmp_path / "ours.gguf", found.metadata, found.tensors)
    assert filecmp.cmp(path, tmp_path / "ours.gguf", shallow=False)


def test_a_real_model_is_read_as_the_judge_reads_it_and_written_back_to_the_byte(tmp_path: Path) -> None:
    path = inputs.path("smollm2")
    ours, theirs = gguf.read(path), judge.GGUFReader(path)
    assert [tensor.name for tensor in theirs.tensors] == list(ours.tensors)
    for tensor in theirs.tensors:
        packed = ours.tensors[tensor.name]
        assert (packed.type, packed.shape) == (
            tensor.tensor_type.name,
            tuple(reversed(tensor.shape.tolist())),
        )
        assert packed.data.ctypes.data % 32 == 0 and np.array_equal(
            packed.data.reshape(-1), tensor.data.view(np.uint8).reshape(-1)
        )
    for key in (
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
        "tokenizer.chat_template",
        "llama.block_count",
    ):
        field = theirs.get_field(key)
        assert field is not None and ours.metadata[key] == field.contents(), key
    gguf.write(tmp_path / "again.gguf", ours.metadata, ours.tensors)
    assert filecmp.cmp(path, tmp_path / "again.gguf", shallow=False)


def test_metadata_round_trip_keeps_every_type(tmp_path: Path) -> None:
    gguf.write(tmp_path / "1.gguf", metadata(), {})
    first = gguf.read(tmp_path / "1.gguf")
    assert_same_metadata(first.metadata, metadata())
    gguf.write(tmp_path / "2.gguf", first.metadata, {})
    assert filecmp.cmp(tmp_path / "1.gguf", tmp_path / "2.gguf", shallow=False)


def test_python_values_choose_their_width(tmp_path: Path) -> None:
    given = {
        "i": 7,
        "n": -7,
        "l": 1 << 32,
        "m": -(1 << 40),
        "f": 0.5,
        "b": True,
        "li": [1, 2],
        "lf": [1, 0.5],
        "lb": [True],
    }
    path = tmp_path / "x.gguf"
    gguf.write(path, given | {"lu": [np.uint8(3)], "lt": ("x", "y"), "none": []}, {})
    found = gguf.read(path).metadata
    kinds = {
        key: value.dtype.name for key, value in found.items() if isinstance(value, (np.generic, np.ndarray))
    }
    assert kinds == {"i": "uint32", "n": "int32", "l": "uint64", "m": "int64", "f": "float32"} | {
        "li": "int32",
        "lf": "float32",
        "lb": "bool",
        "lu": "uint8",
    }
    assert found["b"] is True and found["lt"] == ["x", "y"] and found["none"] == []


@pytest.mark.parametrize(
    "value",
    [None, {"a": 1}, [1, "a"], [[1]], 1 << 70, 1e300, np.zeros((2, 2)), np.complex64(1), "\ud800", [None]],
)
def test_values_gguf_cannot_hold_are_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(UserError, match="key"):
        gguf.write(tmp_path / "x.gguf", {"key": value}, {})
    assert list(tmp_path.iterdir()) == []


def test_metadata_is_a_dict_whichever_way_it_is_read(tmp_path: Path) -> None:
    path, tokens, long = tmp_path / "x.gguf", ["a", "é"], "ü" * 100_000
    gguf.write(path, {"tokens": tokens, "long": long, "n": "short"}, {})

    def fresh() -> dict[str, object]:
        return gguf.read(path).metadata

    whole = {"tokens": tokens, "long": long, "n": "short"}
    assert fresh() == whole and whole == fresh() and isinstance(fresh(), dict)
    assert dict(fresh()) == {**fresh()} == fresh().copy() == (fresh() | {}) == ({} | fresh()) == whole
    assert (
        type(fresh()["tokens"]) is list
        and fresh().get("tokens") == tokens
        and fresh().pop("tokens") == tokens
    )
    assert list(fresh().values()) == [tokens, long, "short"] and list(fresh()) == list(whole)
    assert fresh().get("absent", 3) == 3 and fresh().pop("absent", 4) == 4
    assert json.loads(json.dumps(fresh())) == whole and pickle.loads(pickle.dumps(fresh())) == whole


@pytest.mark.parametrize("type", ["F32", "BF16", "Q4_1", "Q6_K"])
def test_rows_select_and_permute_without_unpacking(type: str) -> None:
    packed = random_packed(type, (6, 512))
    order = [5, 0, 3]
    chosen = packed.rows(order)
    assert chosen.shape == (3, 512) and np.array_equal(chosen.data, packed.data[order])
    assert np.shares_memory(packed.rows(slice(1, 3)).data, packed.data)
    assert packed.nbytes == 6 * 512 // gguf.TYPES[type].block * gguf.TYPES[type].bytes


def test_rows_of_vectors() -> None:
    values = np.arange(5, dtype=np.float32)
    vector = Packed("F32", (5,), values.view(np.uint8))
    assert vector.rows(np.array([4, 1])).data.view(np.float32).tolist() == [4, 1]
    with pytest.raises(UserError, match="share blocks"):
        random_packed("Q8_0", (64,)).rows([0])


def test_packed_refuses_data_that_does_not_fit() -> None:
    with pytest.raises(UserError, match="stored as uint8"):
        Packed("F32", (2, 2), np.zeros((2, 4), np.uint8))
    with pytest.raises(UserError, match="blocks"):
        gguf.row_bytes("Q4_0", 33)
    with pytest.raises(UserError, match="no storage type"):
        gguf.row_bytes("Q9_9", 32)


def test_writing_is_streamed_and_atomic(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"what was there")
    made: dict[str, weakref.ref[np.ndarray]] = {}
    held: list[int] = []

    def maker(name: str) -> Later:
        def make() -> Packed:
            held.append(sum(ref() is not None for ref in made.values()))
            packed = random_packed("F32", (4, 8))
            made[name] = weakref.ref(packed.data)
            return packed

        return Later("F32", (4, 8), make)

    gguf.write(path, {}, ((name, maker(name)) for name in "abcd"))
    assert list(made) == list("abcd") and max(held) <= 1  # of those that are written, the last at most

    def broken() -> Packed:
        raise OperationalError("the network went away")

    before = path.read_bytes()
    with pytest.raises(OperationalError, match="network"):
        gguf.write(path, {}, {"a": maker("a"), "b": Later("F32", (2,), broken)})
    with pytest.raises(UserError, match="announced"):
        gguf.write(path, {}, {"a": Later("F32", (2,), lambda: random_packed("F32", (3,)))})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_file_can_be_rewritten_onto_itself(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    gguf.write(path, {"n": 1}, {"w": random_packed("Q8_0", (4, 64))})
    opened = gguf.read(path)
    kept = opened.tensors["w"].data.copy()
    gguf.write(path, opened.metadata | {"n": 2}, opened.tensors)
    assert np.array_equal(gguf.read(path).tensors["w"].data, kept)


def test_writer_refuses_names_and_shapes_other_engines_cannot_read(tmp_path: Path) -> None:
    vector = random_packed("F32", (2,))
    with pytest.raises(UserError, match="twice"):
        gguf.write(tmp_path / "x.gguf", {}, [("a", vector), ("a", vector)])
    with pytest.raises(UserError, match="longer than"):
        gguf.write(tmp_path / "x.gguf", {}, {"a" * 64: vector})
    with pytest.raises(UserError, match="dimensions"):
        gguf.write(tmp_path / "x.gguf", {}, {"a": random_packed("F32", (1, 1, 1, 1, 1))})
    with pytest.raises(UserError, match="U8"):
        gguf.write(tmp_path / "x.gguf", {}, {"a": random_packed("U8", (2,))})
    with pytest.raises(UserError, match="power of two"):
        gguf.write(tmp_path / "x.gguf", {"general.alignment": 24}, {})
    with pytest.raises(UserError, match="folder does not exist"):
        gguf.write(tmp_path / "nowhere" / "x.gguf", {}, {})


# ---- several parts -----------------------------------------------------------------------------------------


def split_by_judge(folder: Path) -> dict[str, Packed]:
    writer = judge.GGUFWriter(folder / "model.gguf", "llama", split_max_tensors=2)
    tensors = {f"w{number}": random_packed("F32", (2, 8)) for number in range(5)}
    for name, packed in tensors.items():
        writer.add_tensor(name, packed.data, raw_dtype=judge.GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.mark.parametrize("part", [1, 2, 3])
def test_parts_are_joined_from_any_of_them(tmp_path: Path, part: int) -> None:
    tensors = split_by_judge(tmp_path)
    found = gguf.read(tmp_path / f"model-0000{part}-of-00003.gguf")
    assert dict(found.metadata) == {"general.architecture": "llama"}
    assert list(found.tensors) == list(tensors)
    assert all(np.array_equal(found.tensors[name].data, packed.data) for name, packed in tensors.items())


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    split_by_judge(tmp_path)
    first, second, third = sorted(tmp_path.iterdir())
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(first.read_bytes())
    with pytest.raises(UserError, match="one part of 3"):
        gguf.read(renamed)
    kept = third.read_bytes()
    third.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match="part 3 of 3"):
        gguf.read(first)
    third.unlink()
    with pytest.raises(UserError, match="no such file"):
        gguf.read(first)
    third.write_bytes(kept.replace(b"w4", b"w0"))
    with pytest.raises(UserError, match="earlier part"):
        gguf.read(first)


# ---- refusals, one by one ----------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def container(keys: list[bytes], tensors: list[bytes], data: int = 0, version: int = 3) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys + tensors)
    return header + bytes(-len(header) % 32 + data)


def zipped(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, b"x")
    return out.getvalue()


GOOD = container([key("k", 4, struct.pack("<I", 5))], [tensor("w", (4, 2), 0, 0)], 32)
U32, ARRAY = 4, 9
REFUSALS = {
    "pickle": (pickle.dumps([1]), "pickle.*never opened"),
    "torch": (zipped("archive/data.pkl"), "PyTorch checkpoint"),
    "zip": (zipped("readme"), "zip archive"),
    "safetensors": (struct.pack("<Q", 2) + b"{}", "looks like a safetensors file: give the folder"),
    "html": (b"<!DOCTYPE html><html>", "HTML page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    "json": (b'{"a": 1}', "JSON text"),
    "zeros": (bytes(100), "nothing but zeros"),
    "ggml": (b"tjgg" + bytes(100), "before GGUF"),
    "other": (b"abcdefgh", "unknown format.*61 62"),
    "empty": (b"", "is empty"),
    "stub": (b"GG", "cut short"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(64), "big-endian"),
    "version": (b"GGUF" + struct.pack("<I", 1) + bytes(64), "version 1"),
    "no counts": (GOOD[:12], "cut short"),
    "tensor count": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0) + bytes(64), "number of tensors"),
    "key count": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60) + bytes(64), "number of metadata keys"),
    "too many": (b"GGUF" + struct.pack("<IQQ", 3, 0, 70_000) + bytes(1 << 20), "at most 65536"),
    "cut data": (GOOD[:-1], "ends at byte"),
    "cut key": (container([struct.pack("<Q", 200) + bytes(20)], []), "cut short"),
    "key length": (
        container([struct.pack("<Q", 1 << 62) + bytes(8)], []),
        "metadata key is 4611686018427387904 bytes",
    ),
    "key utf-8": (container([key(b"\xff", U32, bytes(4))], []), "not UTF-8"),
    "key twice": (container([key("k", U32, bytes(4))] * 2, []), "'k' is there twice"),
    "value type": (container([key("k", 13, bytes(8))], []), "unknown type 13"),
    "string length": (container([key("k", 8, struct.pack("<Q", 1 << 40))], []), "past the end"),
    "string utf-8": (container([key("k", 8, text(b"\xc3"))], []), "not UTF-8"),
    "long string utf-8": (container([key("k", 8, text(b"a" * 70_000 + b"\xc3"))], []), "not UTF-8"),
    "split utf-8": (
        container([key("k", ARRAY, struct.pack("<IQ", 8, 2) + text(b"\xc3") + text(b"\xa9"))], []),
        "not UTF-8",
    ),
    "bool": (container([key("k", 7, b"\x02")], []), "bool is 0 or 1"),
    "nested": (container([key("k", ARRAY, struct.pack("<IQ", 9, 1))], []), "array of arrays"),
    "array type": (container([key("k", ARRAY, struct.pack("<IQ", 99, 1))], []), "unknown type 99"),
    "array count": (container([key("k", ARRAY, struct.pack("<IQ", 4, 1 << 61))], []), "more than the"),
    "strings count": (container([key("k", ARRAY, struct.pack("<IQ", 8, 1 << 61))], []), "more than the"),
    "strings cut": (
        container([key("k", ARRAY, struct.pack("<IQ", 8, 3) + text("a" * 40))], []).rstrip(b"\0"),
        "cut short",
    ),
    "alignment 0": (container([key("general.alignment", U32, bytes(4))], []), "not a power of two"),
    "alignment 24": (
        container([key("general.alignment", U32, struct.pack("<I", 24))], []),
        "not a power of two",
    ),
    "alignment text": (container([key("general.alignment", 8, text("32"))], []), "not an integer"),
    "split text": (container([key("split.count", 8, text("2"))], []), "not a whole number"),
    "tensor utf-8": (container([], [struct.pack("<Q", 1) + b"\xff" + bytes(24)]), "not UTF-8"),
    "tensor twice": (
        container([], [tensor("w", (4,), 0, 0), tensor("w", (4,), 0, 32)], 64),
        "'w' is there twice",
    ),
    "rank": (container([], [tensor("w", (1, 1, 1, 1, 1), 0, 0)], 64), "5 dimensions"),
    "huge rank": (
        container([], [text("w") + struct.pack("<IIQ", 1 << 31, 0, 0)], 64),
        "2147483648 dimensions",
    ),
    "huge": (container([], [tensor("w", (1 << 60,), 0, 0)], 64), "larger than the file"),
    "overflow": (container([], [tensor("w", (1 << 32, 1 << 32), 0, 0)], 64), "larger than the file"),
    "huge and none": (container([], [tensor("w", (0, 1 << 62), 0, 0)], 64), "larger than the file"),
    "Q8_K": (container([], [tensor("w", (256,), 15, 0)], 512), "Q8_K, which is not supported"),
    "Q4_0_4_4": (container([], [tensor("w", (256,), 31, 0)], 256), "Q4_0_4_4, which is not supported"),
    "type": (container([], [tensor("w", (256,), 77, 0)], 128), "unknown type 77"),
    "block": (container([], [tensor("w", (33,), 2, 0)], 64), "not whole blocks of 32"),
    "outside": (container([], [tensor("w", (4,), 0, 64)], 64), "ends at byte"),
    "far outside": (container([], [tensor("w", (4,), 0, (1 << 64) - 32)], 64), "ends at byte"),
    "misaligned": (container([], [tensor("w", (4,), 0, 4)], 64), "multiple of the alignment"),
    "overlap": (
        container([], [tensor("a", (16,), 0, 0), tensor("b", (4,), 0, 32)], 64),
        "'a' and 'b' overlap",
    ),
    "control name": (container([], [tensor("a\n\x1b[2J", (4,), 99, 0)], 64), r"'a\\n\\x1b\[2J'"),
}


def test_the_file_the_refusals_are_made_from_is_good(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(GOOD)
    found = gguf.read(path)
    assert found.metadata == {"k": 5} and found.tensors["w"].shape == (2, 4)
    path.write_bytes(
        container([], [tensor("scalar", (), 0, 0), tensor("none", (4, 0), 0, 32)], 32, version=2)
    )
    found = gguf.read(path)
    assert (
        found.version == 2 and found.tensors["scalar"].shape == () and found.tensors["none"].shape == (0, 4)
    )


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_in_one_line_that_names_the_file(tmp_path: Path, name: str) -> None:
    data, why = REFUSALS[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(UserError, match=why) as caught:
        gguf.read(path)
    assert "model.gguf" in str(caught.value) and str(caught.value).isprintable()


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        gguf.read(tmp_path / "absent.gguf")
    with pytest.raises(UserError, match="is a folder"):
        gguf.read(tmp_path)


class Watched(mmap.mmap):
    """A mapped file that notes what the system is asked to read."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.asked: list[tuple[int, int]] = []

    def madvise(self, option: int, *part: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert option == mmap.MADV_WILLNEED
        self.asked.append((part[0], part[0] + part[1]))


@pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="this system cannot be asked to read ahead")
def test_a_file_is_read_ahead_of_its_reader_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = mmap.PAGESIZE
    monkeypatch.setattr(ReadAhead, "AHEAD", 4 * page)
    (tmp_path / "file").write_bytes(bytes(16 * page))
    with open(tmp_path / "file", "rb") as file:
        mapping = Watched(file.fileno(), 0, access=mmap.ACCESS_READ)
    data, ahead = np.frombuffer(mapping, np.uint8), ReadAhead()
    for first in range(100, len(data), page // 2):
        ahead.before(data[first : first + 10])
        assert mapping.asked[-1][1] >= min(first + 2 * page, len(data)), first
    assert mapping.asked[0] == (0, 100 + 4 * page)
    assert all(a[1] - b[0] < page for a, b in pairwise(mapping.asked)), "nothing is asked for twice"
    assert mapping.asked[-1][1] == len(data)
    count = len(mapping.asked)
    ahead.before(data[10:20])  # back at the front: another reading
    assert mapping.asked[count:] == [(0, 10 + 4 * page)]
    ahead.before(np.zeros(5, np.uint8))
    assert len(mapping.asked) == count + 1
