"""Importance matrices as llama.cpp writes and reads them."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import gguf as peer
import numpy as np
import pytest

from cutaway import cli
from cutaway.errors import UserError
from cutaway.gguf import read
from cutaway.layers.config import MoE
from cutaway.quantization import formats
from cutaway.weights import imatrix, quantize, save
from cutaway.weights.checkpoint import Checkpoint
from tests.test_quantize import checkpoint

NAME = "blocks.0.mlp.down.weight"


def written(path: Path, entries: dict[str, tuple[np.ndarray, list[float]]]) -> Path:
    """A file by the gguf package: sums [matrices columns] and the count of each matrix, by GGUF name."""
    writer = peer.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["text.txt"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (sums, counts) in entries.items():
        writer.add_tensor(f"{name}.in_sum2", sums.astype(np.float32))
        writer.add_tensor(f"{name}.counts", np.array(counts, np.float32)[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sums_of(small: Checkpoint) -> dict[str, tuple[np.ndarray, int]]:
    generator = np.random.default_rng(3)
    return {
        name: (generator.lognormal(size=small.tensors.later(name).shape[-1]), 7 + n)
        for n, name in enumerate(small.tensors)
    }


def test_what_llama_cpp_writes_is_read(tmp_path: Path):
    small = checkpoint(layers=1)
    sums = np.random.default_rng(0).lognormal(size=(1, 512))
    path = written(tmp_path / "im.gguf", {"blk.0.ffn_down.weight": (sums, [100])})
    found, notes = imatrix.read_imatrix(path, small)
    assert set(found) == {NAME} and np.allclose(found[NAME], sums[0] / 100, rtol=1e-6)
    assert notes == (f"7 matrices without an entry in {path}, whose columns count the same",)


def test_experts_have_a_matrix_each_and_one_without_a_token_has_none(tmp_path: Path):
    small = checkpoint(layers=1, experts=MoE(3, 2, 256))
    sums = np.random.default_rng(0).lognormal(size=(3, 256))
    path = written(tmp_path / "im.gguf", {"blk.0.ffn_down_exps.weight": (sums, [10, 0, 40])})
    found, notes = imatrix.read_imatrix(path, small)
    down = [f"blocks.0.mlp.experts.{e}.down.weight" for e in range(3)]
    assert set(found) == {down[0], down[2]}
    assert np.allclose(found[down[0]], sums[0] / 10) and np.allclose(found[down[2]], sums[2] / 40)
    assert notes[0] == "1 matrix of an expert that its calibration did not reach"


@pytest.mark.parametrize("experts", [None, MoE(3, 2, 256)])
def test_what_is_written_is_llama_cpps_and_comes_back(tmp_path: Path, experts: MoE | None):
    small = checkpoint(layers=2, experts=experts)
    sums = sums_of(small)
    idle = "blocks.1.mlp.experts.1.up.weight"
    sums.pop(idle, None)
    imatrix.write_imatrix(tmp_path / "im.gguf", small, sums, "text.txt", 4)
    file = read(tmp_path / "im.gguf")
    assert file.metadata["general.type"] == "imatrix" and file.metadata["imatrix.datasets"] == ["text.txt"]
    assert file.metadata["imatrix.chunk_size"] == 4 and file.metadata["imatrix.chunk_count"] > 1
    stored = file.tensors["blk.1.attn_q.weight.in_sum2"]
    assert stored.type == "F32" and stored.shape == (1, 256)
    assert file.tensors["blk.1.attn_q.weight.counts"].shape == (1, 1)
    if experts:
        assert file.tensors["blk.1.ffn_up_exps.weight.in_sum2"].shape == (3, 256)
        assert formats.unpack(file.tensors["blk.1.ffn_up_exps.weight.counts"])[1] == 0
    found, _ = imatrix.read_imatrix(tmp_path / "im.gguf", small)
    assert idle not in found
    for name, mean in found.items():
        total, rows = sums[name]
        assert np.allclose(mean, total / rows, rtol=1e-6), name
    with pytest.raises(UserError, match="already exists"):
        imatrix.write_imatrix(tmp_path / "im.gguf", small, sums, "text.txt", 4)


def test_what_is_no_importance_matrix_of_the_model_is_refused(tmp_path: Path):
    small, ones = checkpoint(layers=1), np.ones((1, 512))
    old = tmp_path / "old.dat"
    old.write_bytes(struct.pack("<ii", 3, 22) + b"blk.0.attn_q.weight abc" + bytes(400))
    with pytest.raises(
        UserError, match=r"before GGUF: convert it with `llama-imatrix --in-file .*old.dat -o .*old.gguf`"
    ):
        imatrix.read_imatrix(old, small)
    save.write_checkpoint(tmp_path / "model.gguf", small)
    nan, infinite = ones.copy(), ones.copy()
    nan[0, 3], infinite[0, 3] = np.nan, np.inf
    down = "blk.0.ffn_down.weight"
    for path, sentence in (
        (tmp_path / "model.gguf", "is a GGUF file, but no importance matrix"),
        (tmp_path / "absent.gguf", "there is no such file"),
        (
            written(tmp_path / "a", {down: (ones[:, :256], [1])}),
            "'blk.0.ffn_down.weight' has 256 columns, the model 512",
        ),
        (written(tmp_path / "b", {down: (np.ones((2, 512)), [1, 1])}), "has 2 matrices, the model 1"),
        (written(tmp_path / "c", {"blk.9.ffn_down.weight": (ones, [1])}), "none of its 1 entries"),
        (written(tmp_path / "d", {down: (nan, [1])}), "holds an infinity, NaN or negative sum"),
        (written(tmp_path / "e", {down: (infinite, [1])}), "holds an infinity, NaN or negative sum"),
    ):
        with pytest.raises(UserError, match=re.escape(sentence)):
            imatrix.read_imatrix(path, small)
    with pytest.raises(UserError, match="no names in GGUF, which importance matrices go by"):
        imatrix.read_imatrix(tmp_path / "c", Checkpoint(small.config, small.tensors, None, Path("tiny")))


def test_the_command_takes_a_matrix_and_writes_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    small = checkpoint(layers=1)
    save.write_checkpoint("tiny.gguf", small)
    imatrix.write_imatrix(Path("im.gguf"), small, sums_of(small), "text.txt", 4)
    words = ["quantize", "tiny.gguf", "--type", "Q2_K", "--no-measure"]
    assert cli.main([*words, "-o", "plain.gguf"]) == 0
    assert cli.main([*words, "-o", "weighted.gguf", "--imatrix", "im.gguf"]) == 0
    expected = quantize.quantized(small, "Q2_K", imatrix.read_imatrix(Path("im.gguf"), small)[0])
    stored = read("weighted.gguf").tensors["blk.0.ffn_up.weight"]
    assert np.array_equal(stored.data, expected.checkpoint.tensors["blocks.0.mlp.up.weight"].data)
    assert not np.array_equal(stored.data, read("plain.gguf").tensors["blk.0.ffn_up.weight"].data)
    capsys.readouterr()
    for more, sentence in (
        (["--imatrix", "im.gguf", "--calibration", "tiny.gguf"], "give one of them"),
        (["--imatrix-output", "new.gguf"], "give a text there"),
        (["--imatrix", "tiny.gguf"], "no importance matrix"),
    ):
        assert cli.main([*words, "-o", "other.gguf", *more]) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
    assert not Path("other.gguf").exists()
