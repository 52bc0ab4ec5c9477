"""`cutaway verify` finds a planted fault and names its layer."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gguf
import pytest
import torch

import cutaway
from cutaway.commands import verify as command
from cutaway.errors import OperationalError
from cutaway.inspect import verify, verify_layers
from cutaway.lm import LanguageModel
from cutaway.model.engine import PyTorchEngine
from tests import inputs
from tests.small import model_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's first three layers as a Hugging Face folder: real weights, quickly read."""
    from dataclasses import replace

    lm = cutaway.load(inputs.path("smollm2"))
    config = replace(lm.config, blocks=lm.config.blocks[:3])
    lm.checkpoint = replace(
        lm.checkpoint,
        config=config,
        tensors=type(lm.checkpoint.tensors)({n: lm.checkpoint.tensors.later(n) for n in config.weights()}),
    )
    target = tmp_path_factory.mktemp("verify") / "three-layers"
    lm.save(target)
    return target


@pytest.fixture
def lm(folder: Path) -> LanguageModel:
    return cutaway.load(folder, engine="pytorch")


def _verdict(lm: LanguageModel) -> verify.Verdict:
    ids = lm.ids("The capital of France is Paris, and 2 + 2 = 4.")
    ours = lm.generate(ids, max_tokens=4, ignore_eos=True).ids
    return verify_layers.against(PyTorchEngine(lm.model), lm.checkpoint.source, ids, ours)


def test_a_sound_model_agrees(lm: LanguageModel) -> None:
    verdict = _verdict(lm)
    assert verdict.agrees and verdict.ours == verdict.theirs
    assert [layer.name for layer in verdict.layers] == [
        "embed",
        "blocks.0.out",
        "blocks.1.out",
        "blocks.2.out",
        "logits",
    ]
    assert max(layer.relative for layer in verdict.layers) < 1e-4


def test_a_swapped_head_is_found_in_its_layer(lm: LanguageModel) -> None:
    with torch.no_grad():
        weight = lm.model.blocks[1].attention.query.weight.view(9, 64, 576)
        weight[[2, 7]] = weight[[7, 2]].clone()
    assert _verdict(lm).differs_from == "blocks.1.out"


def test_a_wrong_rope_base_is_found_in_the_first_layer(lm: LanguageModel) -> None:
    from cutaway.position import rope

    lm.model.rotary = [rope.RotaryEmbedding(rope.Config(64, base=10_000.0))]
    assert _verdict(lm).differs_from == "blocks.0.out"


def test_a_missing_norm_is_found_in_its_layer(lm: LanguageModel) -> None:
    lm.model.blocks[2].mlp_norm = torch.nn.Identity()
    assert _verdict(lm).differs_from == "blocks.2.out"


def test_the_command_says_what_it_found(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    command.verify(str(folder), tokens=3, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["engines"][0]["differs_from"] is None
    load = cutaway.load

    def broken(*args: object, **kwargs: object) -> LanguageModel:
        lm = load(*args, **kwargs)
        lm.model.blocks[0].attention_norm.weight.data.mul_(1.1)
        return lm

    monkeypatch.setattr(cutaway, "load", broken)
    with pytest.raises(OperationalError, match=r"disagrees from blocks.0.out on"):
        command.verify(str(folder), tokens=3)
    assert "blocks.0.out" in capsys.readouterr().out


def test_it_says_what_it_does_before_it_loads(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = list[str]()

    def load(*args: object, **kwargs: Any) -> LanguageModel:
        notes.append(capsys.readouterr().err)
        raise KeyboardInterrupt

    monkeypatch.setattr(cutaway, "load", load)
    with pytest.raises(KeyboardInterrupt):
        command.verify(str(folder))
    assert notes == [f"Comparing {folder} with transformers.\n"]


def test_llama_cpp_judges_gguf(lm: LanguageModel, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    lm.save(tmp_path / "three.gguf")
    read = cutaway.load(tmp_path / "three.gguf")
    ids = read.ids("The capital of France is")
    ours = read.generate(ids, max_tokens=4, ignore_eos=True).ids
    assert "llama.cpp" in verify.engines(tmp_path / "three.gguf")
    verdict = verify.against_llama_cpp(PyTorchEngine(read.model), tmp_path / "three.gguf", ids, ours)
    assert verdict.agrees
    read.model.blocks[1].mlp_norm = torch.nn.Identity()
    assert not verify.against_llama_cpp(PyTorchEngine(read.model), tmp_path / "three.gguf", ids, ours).agrees


def test_layers_names_stay_whole_at_40_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    layers = [SimpleNamespace(name=f"blocks.{n}.out", largest=3e-4, relative=1e-6) for n in (9, 10, 29)]
    verdict: Any = SimpleNamespace(engine="a", layers=layers, differs_from=None, token=None, ours=[1])
    command._show(verdict, cast(Any, None))
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 40 for line in lines)
    assert [line.split()[0] for line in lines if "e-04" in line] == [
        "blocks.9.out",
        "blocks.10.out",
        "blocks.29.out",
    ]


def test_a_file_is_read_once_inside_and_as_before_outside(tmp_path: Path) -> None:
    """What transformers asks for again and again is one object, and gguf is as it was after."""
    (before, reader), asked = (gguf.get_tensor_name_map, gguf.GGUFReader), (gguf.MODEL_ARCH.LLAMA, 2)
    path = model_file(tmp_path / "tiny.gguf")
    with verify_layers.read_once():
        assert gguf.get_tensor_name_map(*asked) is gguf.get_tensor_name_map(*asked)
        found = gguf.GGUFReader(path)
        assert gguf.GGUFReader(path) is found
    assert gguf.get_tensor_name_map is before and gguf.GGUFReader is reader
    for one, other in zip(found.tensors, reader(path).tensors, strict=True):
        assert one.name == other.name and (one.data == other.data).all()
    assert before(*asked) is not before(*asked)
