"""The safetensors container against the `safetensors` package, both ways, and its own refusals."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch as judge
import torch
from safetensors import safe_open

from cutaway.errors import UserError
from cutaway.gguf import Later, Packed, packed_shape
from cutaway.weights import safetensors

RNG = np.random.default_rng(0)
TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
TORCH |= {"I32": torch.int32, "I64": torch.int64}
SHAPES = ((3, 4), (7,), (), (2, 0, 3), (1, 2, 3, 4, 5))


def random_packed(type: str, shape: tuple[int, ...]) -> Packed:
    return Packed(type, shape, RNG.integers(0, 256, packed_shape(type, shape), dtype=np.uint8))


def every_kind() -> dict[str, Packed]:
    return {
        f'{type}.{len(shape)} "é\n': random_packed(type, shape)
        for shape in SHAPES
        for type in safetensors.WRITTEN
    }


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def same(left: Packed, right: Packed) -> bool:
    return (left.type, left.shape) == (
        right.type,
        right.shape,
    ) and left.data.tobytes() == right.data.tobytes()


def test_judge_reads_what_we_write(tmp_path: Path) -> None:
    path, tensors = tmp_path / "ours.safetensors", every_kind()
    texts = {"format": "pt", "note\n": 'é "quoted" \\ 🦙'}
    safetensors.write_safetensors(path, tensors, texts)
    with safe_open(path, framework="pt") as theirs:
        assert theirs.metadata() == texts
        assert set(theirs.keys()) == set(tensors)
        for name, packed in tensors.items():
            found = theirs.get_tensor(name)
            assert found.dtype == TORCH[packed.type] and found.shape == packed.shape
            assert raw(found) == packed.data.tobytes()


def test_we_read_what_judge_writes(tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    arrays = {
        f"{name}.{len(shape)}": torch.randn(shape).to(type)
        for shape in SHAPES
        for name, type in TORCH.items()
    }
    whole = {"ids": torch.arange(4), "mask": torch.ones(3, dtype=torch.bool), "wide": torch.zeros(2).double()}
    eight = {"bytes": torch.ones(5, dtype=torch.uint8), "e4m3": torch.ones(2).to(torch.float8_e4m3fn)}
    whole |= eight
    judge.save_file(arrays | whole, path, metadata={"format": "pt", "é": "ü\n"})
    found = safetensors.read_safetensors(path)
    assert safetensors.metadata(path) == {"format": "pt", "é": "ü\n"}
    assert found.keys() == arrays.keys() | whole.keys()
    for name, array in arrays.items():
        packed = found[name]
        assert packed.type == name.split(".")[0] and packed.shape == array.shape
        assert packed.data.tobytes() == raw(array) and not packed.data.flags.writeable
    types = {"ids": "I64", "mask": "BOOL", "wide": "F64", "bytes": "U8", "e4m3": "F8_E4M3"}
    assert {name: found[name].type for name in whole} == types


def test_arrays_can_be_written_as_they_are(tmp_path: Path) -> None:
    path, values = tmp_path / "x.safetensors", np.arange(6, dtype=np.float32).reshape(2, 3)
    safetensors.write_safetensors(
        path, {"a": ("F32", (2, 3), values.T.copy().T), "b": ("F16", (2,), np.ones(2, np.float16))}
    )
    assert np.array_equal(judge.load_file(path)["a"].numpy(), values)
    assert safetensors.metadata(path) == {}
    with pytest.raises(UserError, match="needs 24 bytes, not 48"):
        safetensors.write_safetensors(path, {"a": ("F32", (2, 3), values.astype(np.float64))})


def test_writing_is_streamed_and_atomic(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    made: list[str] = []

    def maker(name: str) -> Later:
        return Later("F32", (4,), lambda: made.append(name) or random_packed("F32", (4,)))

    safetensors.write_safetensors(path, {"a": maker("a"), "b": maker("b")})
    assert made == ["a", "b"]
    before = path.read_bytes()
    with pytest.raises(UserError, match="announced"):
        safetensors.write_safetensors(path, {"a": Later("F32", (4,), lambda: random_packed("F32", (5,)))})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_writer_refuses_what_it_does_not_write(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match="Q8_0"):
        safetensors.write_safetensors(path, {"a": random_packed("Q8_0", (32,))})
    with pytest.raises(UserError, match="F64"):
        safetensors.write_safetensors(path, {"a": ("F64", (2,), np.arange(2.0))})
    with pytest.raises(UserError, match="__metadata__"):
        safetensors.write_safetensors(path, {"__metadata__": random_packed("F32", (2,))})
    with pytest.raises(UserError, match="'steps' is not text"):
        safetensors.write_safetensors(path, {}, json.loads('{"steps": 3}'))
    assert list(tmp_path.iterdir()) == []


# ---- shards ------------------------------------------------------------------------------------------------


def sharded(folder: Path) -> dict[str, Packed]:
    tensors = {f"layer.{number}": random_packed("F32", (4, 4)) for number in range(5)}
    safetensors.write_safetensors(
        folder / "model.safetensors", tensors, {"format": "pt"}, max_shard_bytes=150
    )
    return tensors


def test_shards_are_written_for_the_judge_and_read_back(tmp_path: Path) -> None:
    tensors = sharded(tmp_path)
    index = json.loads((tmp_path / safetensors.INDEX).read_text())
    assert index["metadata"]["total_size"] == 5 * 64
    assert sorted(set(index["weight_map"].values())) == [
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    for name, shard in index["weight_map"].items():
        assert raw(judge.load_file(tmp_path / shard)[name]) == tensors[name].data.tobytes()
    for source in (tmp_path, tmp_path / safetensors.INDEX):
        found = safetensors.read_safetensors(source)
        assert list(found) == list(tensors) and all(same(found[name], tensors[name]) for name in tensors)
        assert safetensors.metadata(source) == {"format": "pt"}


def test_one_file_and_shards_replace_each_other(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.write_safetensors(path, {"old": random_packed("F32", (2,))}, max_shard_bytes=1000)
    assert list(safetensors.read_safetensors(tmp_path)) == ["old"]
    tensors = sharded(tmp_path)
    assert list(safetensors.read_safetensors(tmp_path)) == list(tensors)
    safetensors.write_safetensors(path, {"new": random_packed("F32", (2,))})
    assert list(safetensors.read_safetensors(tmp_path)) == ["new"]


def test_folders_are_searched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no model"):
        safetensors.read_safetensors(tmp_path)
    safetensors.write_safetensors(tmp_path / "adapter.safetensors", {"a": random_packed("F32", (2,))})
    assert list(safetensors.read_safetensors(tmp_path)) == ["a"]
    safetensors.write_safetensors(tmp_path / "other.safetensors", {"b": random_packed("F32", (2,))})
    with pytest.raises(UserError, match="name one of them"):
        safetensors.read_safetensors(tmp_path)


def set_index(folder: Path, change: dict[str, str | None]) -> None:
    path = folder / safetensors.INDEX
    where: dict[str, str | None] = json.loads(path.read_text())["weight_map"] | change
    path.write_text(
        json.dumps({"weight_map": {name: shard for name, shard in where.items() if shard is not None}})
    )


LAST = "model-00003-of-00003.safetensors"
INDEX_REFUSALS: dict[str, tuple[dict[str, str | None], str]] = {
    "missing": ({"more": "model-4.safetensors"}, "shard 'model-4.safetensors', which is missing"),
    "lacking": ({"more": LAST}, "lacks the tensor 'more'"),
    "unannounced": ({"layer.0": None}, "holds the tensor 'layer.0'"),
    "elsewhere": ({"layer.0": LAST}, "the tensor 'layer.0'"),
    "up": ({"layer.0": "../model.safetensors"}, "not a plain file name"),
    "absolute": ({"layer.0": "/etc/passwd"}, "not a plain file name"),
    "windows": ({"layer.0": "..\\model.safetensors"}, "not a plain file name"),
    "drive": ({"layer.0": "c:model.safetensors"}, "not a plain file name"),
    "dots": ({"layer.0": ".."}, "not a plain file name"),
    "null": ({"layer.0": "a\0b"}, "not a plain file name"),
    "nothing": ({"layer.0": ""}, "not a plain file name"),
}


@pytest.mark.parametrize("name", INDEX_REFUSALS)
def test_shards_that_are_not_what_the_index_says(tmp_path: Path, name: str) -> None:
    sharded(tmp_path)
    change, why = INDEX_REFUSALS[name]
    set_index(tmp_path, change)
    with pytest.raises(UserError, match=why) as caught:
        safetensors.read_safetensors(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "'{' was expected"),
        ("{}", "no weight_map"),
        ('{"weight_map": {"a": 1}}', "not a JSON text"),
        ('{"weight_map": {"a": "x", "a": "x"}}', "'a' is there twice"),
        ('{"weight_map": {"a": "x"}, "weight_map": {}}', "'weight_map' is there twice"),
        ('{"metadata": [1], "weight_map": {}}', "not JSON that an index holds"),
        ('{"metadata": {"total_size": 1}, "weight_map": {"a": "x"}} x', "after the JSON ends"),
        ("", "is empty"),
    ],
)
def test_an_index_that_is_none(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / safetensors.INDEX).write_text(text)
    with pytest.raises(UserError, match=why):
        safetensors.read_safetensors(tmp_path)


# ---- refusals, one by one ----------------------------------------------------------------------------------


def container(header: str | bytes, data: int = 0, length: int | None = None) -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(data)


def entry(name: str, dtype: object, shape: object, start: object, stop: object) -> str:
    return f"{json.dumps(name)}:" + json.dumps(
        {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
    )


def one(dtype: object, shape: object, start: object, stop: object, data: int) -> bytes:
    return container("{" + entry("w", dtype, shape, start, stop) + "}", data)


def two(first: tuple[int, int], second: tuple[int, int], names: str = "ab", data: int = 16) -> bytes:
    entries = [entry(name, "I8", [b - a], a, b) for name, (a, b) in zip(names, (first, second), strict=True)]
    return container("{" + ",".join(entries) + "}", data)


def zipped(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, b"x")
    return out.getvalue()


GOOD = one("F32", [2, 2], 0, 16, 16)
REFUSALS = {
    "pickle": (pickle.dumps([1] * 9), "pickle.*never opened"),
    "torch": (zipped("archive/data.pkl"), "PyTorch checkpoint"),
    "zip": (zipped("readme"), "zip archive"),
    "gguf": (b"GGUF" + bytes(60), "looks like a GGUF"),
    "html": (b"<html><body>", "HTML page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    "empty": (b"", "is empty"),
    "short": (b"\x08\0\0", "not a safetensors"),
    "not json": (container("hello"), "not a safetensors"),
    "header beyond": (container("{}", 0, 1000), "header of 1000 bytes but 2 follow"),
    "header huge": (container("{}", 0, 1 << 60), "at most 100000000"),
    "header cut": (GOOD[:40], "cut short"),
    "data cut": (GOOD[:-1], "outside the 15 bytes.*cut short"),
    "data long": (GOOD + b"x", "1 bytes after the last tensor"),
    "hole": (two((0, 8), (9, 16)), "leaves a hole after the tensor 'a'"),
    "hole at start": (two((1, 8), (8, 16)), "leaves a hole after the header"),
    "overlap": (two((0, 8), (7, 16)), "overlaps the tensor 'a'"),
    "twice": (two((0, 8), (8, 16), "aa"), "'a' is there twice"),
    "outside": (one("I8", [32], 0, 32, 16), "outside the 16 bytes"),
    "backwards": (one("I8", [8], 8, 0, 8), "is stored at 8 to 0"),
    "bytes": (one("F32", [3], 0, 16, 16), "needs 12 bytes but has 16"),
    "negative": (one("F32", [-1, -4], 0, 16, 16), "list of at most 32 sizes"),
    "negative place": (one("F32", [4], -16, 0, 16), "data_offsets"),
    "huge": (one("F32", [1 << 60], 0, 16, 16), "beyond any memory"),
    "overflow": (one("F32", [1 << 32, 1 << 32], 0, 16, 16), "beyond any memory"),
    "none and huge": (one("F32", [0, 1 << 40, 1 << 40], 0, 0, 0), "beyond any memory"),
    "beyond 64 bits": (one("F32", [1 << 64], 0, 16, 16), "list of at most"),
    "rank": (one("I8", [1] * 33, 0, 1, 1), "at most 32 sizes"),
    "fraction": (one("F32", [4.0], 0, 16, 16), "list of at most"),
    "true": (one("I8", [True], 0, 1, 1), "list of at most"),
    "three places": (
        container('{"w":{"dtype":"I8","shape":[1],"data_offsets":[0,1,1]}}', 1),
        "not two places",
    ),
    "dtype": (one("Q4_0", [32], 0, 18, 18), "the type 'Q4_0'"),
    "sub-byte": (one("F4", [2], 0, 1, 1), "the type 'F4'"),
    "dtype number": (one(3, [2], 0, 1, 1), "the type '3'"),
    "extra": (container('{"w":{"dtype":"I8","shape":[],"data_offsets":[0,1],"x":1}}', 1), "described by"),
    "lacking": (container('{"w":{"dtype":"I8","shape":[]}}', 1), "described by"),
    "same field": (
        container('{"w":{"dtype":"I8","dtype":"I8","shape":[],"data_offsets":[0,1]}}', 1),
        "same key twice",
    ),
    "deep": (container('{"w":{"dtype":' + "[" * 3000 + "]" * 3000 + "}}"), "description"),
    "shallow deep": (container('{"w":{"dtype":' + "[" * 1500 + "]" * 1500 + "}}"), "not JSON"),
    "deep objects": (container('{"a":' * 100_000), "description"),
    "not an object": (container('{"w":[1,2]}'), "description"),
    "broken": (container('{"w" 1}'), "JSON is broken at byte"),
    "unclosed": (container('{"w'), "not a JSON text"),
    "trailing": (container('{}{"a":1}'), "after the JSON ends"),
    "comma": (container("{,}"), "not a JSON text"),
    "utf-8": (container(b'{"\xff":{}}'), "not valid Unicode"),
    "utf-8 inside": (container(b'{"w":{"dtype":"\xff"}}'), "not JSON"),
    "surrogate": (container('{"\\ud800":{}}'), "not valid Unicode"),
    "escape": (container('{"\\q":{}}'), "not valid Unicode"),
    "metadata number": (container('{"__metadata__":{"a":1}}'), "not a JSON text"),
    "metadata list": (container('{"__metadata__":[]}'), "'__metadata__' is neither texts"),
    "metadata twice": (container('{"__metadata__":{},"__metadata__":{}}'), "'__metadata__' is there twice"),
    "metadata key": (container('{"__metadata__":{"a":"","a":""}}'), "'a' is there twice"),
    "control name": (container("{" + entry("a\n\x1b[2J", "F5", [1], 0, 1) + "}", 1), r"'a\\n\\x1b\[2J'"),
}


def test_the_file_the_refusals_are_made_from_is_good(tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(GOOD)
    assert safetensors.read_safetensors(path)["w"].shape == (2, 2)
    path.write_bytes(container("{}   \n"))
    assert safetensors.read_safetensors(path) == {}
    path.write_bytes(container('{"__metadata__":{"a":"b"} , ' + entry("w", "I8", [2], 0, 2) + "}  ", 2))
    assert safetensors.read_safetensors(path)["w"].type == "I8" and safetensors.metadata(path) == {"a": "b"}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_in_one_line_that_names_the_file(tmp_path: Path, name: str) -> None:
    data, why = REFUSALS[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(UserError, match=why) as caught:
        safetensors.read_safetensors(path)
    assert "model.safetensors" in str(caught.value) and str(caught.value).isprintable()
