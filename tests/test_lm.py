"""The object users hold: what it says, what it saves, and what it refuses."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch

import cutaway
from cutaway import memory
from cutaway.errors import UserError
from cutaway.generate.sampling_params import SamplingOptions, SamplingParams
from cutaway.inspect.attribution import unembedded
from cutaway.inspect.instrumented_pytorch import InstrumentedPyTorch
from cutaway.layers import packed as packed_layers
from cutaway.lm import LanguageModel
from cutaway.quantization import formats
from cutaway.weights import build
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors
from tests import inputs
from tests.rounding import noise
from tests.small import _llama, model_file


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's first two layers as a GGUF file: real blocks, quickly read."""
    lm = cutaway.load(inputs.path("smollm2"))
    config = replace(lm.config, blocks=lm.config.blocks[:2])
    kept = Tensors({name: lm.checkpoint.tensors.later(name) for name in config.weights()})
    lm.checkpoint = replace(lm.checkpoint, config=config, tensors=kept)
    target = tmp_path_factory.mktemp("lm") / "two-layers.gguf"
    lm.save(target)
    return target


@pytest.fixture
def lm(source: Path) -> LanguageModel:
    return cutaway.load(source)


def test_logits_are_those_that_generation_chooses_from(lm: LanguageModel) -> None:
    ids = lm.ids("The capital of France is")
    logits = lm.logits(ids)
    assert logits.shape == (5, 49152) and logits.dtype == np.float32
    assert np.array_equal(lm.logits("The capital of France is"), logits)
    assert lm.generate(ids, max_tokens=1).ids == (int(logits[-1].argmax()),)


def test_a_misspelt_setting_is_named(lm: LanguageModel) -> None:
    messages = [{"role": "user", "content": "hi"}]
    calls: list[Any] = [lm.generate, lm.stream, lm.chat, lm.chat_stream]
    for call in calls:
        with pytest.raises(UserError, match=r"no sampling setting temprature: did you mean temperature\?"):
            call("hi" if call in calls[:2] else messages, temprature=0.5)
    with pytest.raises(UserError, match="no sampling setting zzz: use max_tokens, temperature"):
        calls[0]("hi", zzz=1)
    assert get_type_hints(SamplingOptions) == get_type_hints(SamplingParams)


def test_type_checkers_know_the_settings(tmp_path: Path) -> None:
    """`py.typed` is shipped, and pyright finds what is wrong in a user's program, and nothing else."""
    pytest.importorskip("pyright")
    program = tmp_path / "program.py"
    program.write_text(
        "import cutaway\n"
        'lm = cutaway.load("smollm2")\n'
        'text: str = lm.generate("hi", temperature=0, stop=["x"], seed=None).text\n'
        'for piece in lm.stream("hi", top_p=0.9, max_tokens=None):\n'
        "    text += piece.text\n"
        'lm.chat([{"role": "user", "content": "hi"}], temprature=0.5)\n'
        'lm.generate("hi", max_tokens="8")\n'
    )
    root = Path(cutaway.__file__).parent
    assert (root / "py.typed").is_file()
    (tmp_path / "cutaway").symlink_to(root)
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", str(program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    wrong = json.loads(done.stdout)["generalDiagnostics"]
    found = [(each["range"]["start"]["line"], each["rule"]) for each in wrong]
    assert found == [(5, "reportCallIssue"), (6, "reportArgumentType")]


@pytest.mark.parametrize("engine", ["pytorch", "runtime"])
def test_what_no_model_can_read_is_refused(source: Path, engine: str) -> None:
    lm = cutaway.load(source, engine=engine)
    for prompt, sentence in (
        ([], "there is nothing to read"),
        ([504, 49152], "id 49152 at position 1 is outside the model's 0 to 49151"),
        ([-1], "id -1 at position 0 is outside"),
        ([504] * 8193, "8193 ids long and the model's context holds 8192"),
    ):
        with pytest.raises(UserError, match=sentence):
            lm.logits(prompt)


def test_packed_says_what_float32_says(source: Path) -> None:
    """Within what torch's products of other shapes may differ by: four roundings of each weight."""
    packed = cutaway.load(source, dtype="packed")
    plain = cutaway.load(source, engine="pytorch")
    ids = [504, 3575]
    bound = 4 * noise(plain.model, lambda: torch.from_numpy(plain.logits(ids)))
    assert 0 < bound < 1e-5 * np.abs(plain.logits(ids)).max()
    assert np.abs(packed.logits(ids) - plain.logits(ids)).max() <= bound


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_not_changed_is_saved_to_the_bit(source: Path, dtype: str, tmp_path: Path) -> None:
    lm = cutaway.load(source, dtype=dtype)
    with torch.no_grad():
        lm.model.blocks[1].mlp.down.weight[0, 0] += 1
    lm.save(tmp_path / "changed.gguf")
    saved = cutaway.load(tmp_path / "changed.gguf").checkpoint.tensors
    for name in saved:
        read = lm.checkpoint.tensors[name]
        if name == "blocks.1.mlp.down.weight":
            now = lm.model.blocks[1].mlp.down.weight.detach().float().numpy()
            assert saved[name].type == "F32" and np.array_equal(formats.unpack(saved[name]), now)
        else:
            assert saved[name].type == read.type and np.array_equal(saved[name].data, read.data)


def test_the_makers_end_ids_end_an_answer(lm: LanguageModel) -> None:
    first = lm.generate("The capital of France is", max_tokens=1, ignore_eos=True).ids[0]
    lm.checkpoint = replace(lm.checkpoint, defaults={"eos_ids": (first,)})
    done = lm.generate("The capital of France is", max_tokens=3)
    assert (done.ids, done.finish_reason, done.stop) == ((), "stop", first)
    assert lm.generate("The capital of France is", max_tokens=1, ignore_eos=True).ids == (first,)


def test_a_begin_token_is_put_where_the_model_expects_one(lm: LanguageModel) -> None:
    assert lm.ids("hi") == lm.tokenizer.encode("hi")
    lm.tokenizer.before = (lm.tokenizer.bos,)
    assert lm.ids("hi") == [lm.tokenizer.bos, *lm.tokenizer.encode("hi")]


def test_what_cannot_be_honoured_is_refused(source: Path, lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dtype 'int3' is not known"):
        cutaway.load(source, dtype="int3")
    with pytest.raises(UserError, match="max_tokens"):
        lm.generate("hi", max_tokens=0)
    (tmp_path / "there.gguf").write_bytes(b"precious")
    with pytest.raises(UserError, match="already exists"):
        lm.save(tmp_path / "there.gguf")
    assert (tmp_path / "there.gguf").read_bytes() == b"precious"
    lm.checkpoint = replace(lm.checkpoint, chat_template=None)
    with pytest.raises(UserError, match="no chat template"):
        lm.chat([{"role": "user", "content": "hi"}])


def test_its_table_answers_and_is_drawn(lm: LanguageModel, tmp_path: Path) -> None:
    assert lm.vectors.nearest(" king", 1)[0].word == " King"
    drawn = lm.map(50)
    assert drawn.save(tmp_path / "map.html").read_text() == drawn.html
    assert "<iframe sandbox" in drawn._repr_html_()


def test_weights_stay_packed_where_memory_has_no_room_for_floats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model_file(tmp_path / "model.gguf", tied=False)
    tied = model_file(tmp_path / "tied.gguf")
    whole = [cutaway.load(path, engine="pytorch") for path in (source, tied)]
    expected = [lm.trace("what is read").logits for lm in whole]
    monkeypatch.setattr(memory, "available", lambda: 50_000)
    monkeypatch.setattr(packed_layers, "WHOLE", 1000)  # larger matrices are read in parts
    for path, logits in zip((source, tied), expected, strict=True):
        lm = cutaway.load(path, engine="pytorch")
        with pytest.warns(UserWarning, match="of memory are free: each stays packed"):
            found = lm.trace("what is read")
        assert isinstance(lm.model.embedding, packed_layers.PackedEmbedding)
        plain = whole[path == tied]
        read = lambda plain=plain: torch.from_numpy(plain.trace("what is read").logits)  # noqa: E731
        bound = 4 * noise(plain.model, read)
        assert np.abs(found.logits - logits).max() < bound < 1e-3 * np.abs(logits).max()
        one, other = found.attribution(7), plain.trace("what is read").attribution(7)
        np.testing.assert_allclose(one.mlps, other.mlps, rtol=1e-4, atol=1e-5)
        assert np.array_equal(found.lens().ids, plain.trace("what is read").lens().ids)
        directions = np.random.default_rng(1).standard_normal((3, 32), np.float32)
        pair = (unembedded(InstrumentedPyTorch(each.model), directions, 200) for each in (lm, plain))
        assert np.allclose(*pair, rtol=1e-5, atol=1e-5)
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(UserError, match='memory are free: load it with dtype="packed"'):
            _ = cutaway.load(source, engine="pytorch", dtype=dtype).model


def test_free_memory_is_the_containers_where_that_is_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = memory.available()
    assert most > 0
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("9000\n")
    (tmp_path / "memory.stat").write_text("anon 8000\ninactive_file 100\nactive_file 20\n")
    for limit, left in {"10000": 1120, "5000": 0}.items():
        (tmp_path / "memory.max").write_text(limit + "\n")
        assert memory.available() == left
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available() > 10**8


def test_a_packed_head_has_its_bias_in_logits_and_not_in_what_directions_add(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = replace(_llama(), tied=False, head_bias=True)
    drawn = np.random.default_rng(0)
    values = {name: drawn.standard_normal(shape, np.float32) for name, shape in of.weights().items()}
    tensors = Tensors({name: formats.pack(value, "F32") for name, value in values.items()})
    checkpoint, x = Checkpoint(of, tensors, None, Path("tiny")), torch.randn(1, 3, of.width)
    packed, whole = (build.decoder(checkpoint, dtype) for dtype in ("packed", "float32"))
    monkeypatch.setattr(packed_layers, "WHOLE", 1000)  # the head is read in parts
    torch.testing.assert_close(packed.logits(x), whole.logits(x), rtol=1e-5, atol=1e-5)
    found, expected = (unembedded(InstrumentedPyTorch(model), x[0].numpy(), 200) for model in (packed, whole))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    rows = packed_layers.rows_of(packed.embedding, 200)
    assert np.array_equal(rows[150:300], values["embedding.weight"][150:200]) and len(rows) == 200
