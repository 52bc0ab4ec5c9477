"""The default model against transformers and llama.cpp: the same logits, the same tokens, through every
format.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cutaway.model.engine import PyTorchEngine
from cutaway.tokenizer import Tokenizer
from cutaway.weights import load, save
from cutaway.weights.build import decoder
from tests import llama_cpp
from tests.parity import smollm2
from tests.parity.tiny import transformers

CLOSE = 1e-3


@pytest.fixture(scope="module")
def checkpoint() -> load.Checkpoint:
    return load.read_checkpoint(smollm2.gguf_file())


@pytest.fixture(scope="module")
def engine(checkpoint: load.Checkpoint) -> PyTorchEngine:
    return PyTorchEngine(decoder(checkpoint))


@pytest.fixture(scope="module")
def tokenizer(checkpoint: load.Checkpoint) -> Tokenizer:
    return checkpoint.tokenizer


@pytest.fixture(scope="module")
def folder(checkpoint: load.Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The model as a safetensors folder, in half the size of float32."""
    path = tmp_path_factory.mktemp("smollm2") / "folder"
    save.write_checkpoint(path, checkpoint, type="BF16")
    yield path
    (path / "model.safetensors").unlink()


def test_logits_at_every_position(engine: PyTorchEngine, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(smollm2.TEXT * 3)
    assert len(ids) > 200
    with torch.no_grad():
        expected = smollm2.model(smollm2.gguf_file())(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(engine.logits(ids) - expected).max() < CLOSE


def test_greedy_tokens(engine: PyTorchEngine, tokenizer: Tokenizer) -> None:
    """Two prompts here; ``scripts/check/smollm2.py`` does twenty, of 64 tokens each."""
    for prompt in smollm2.PROMPTS[:2]:
        ids = tokenizer.encode(prompt)
        state, found = engine.new_state(), []
        logits = engine.prefill(ids, state)
        for _ in range(16):
            found.append(int(logits.argmax()))
            logits = engine.step(found[-1], state)
        assert found == smollm2.greedy(smollm2.model(smollm2.gguf_file()), ids, 16), prompt


def test_cached_is_reread(engine: PyTorchEngine, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(smollm2.TEXT)
    whole, state = engine.logits(ids), engine.new_state()
    for start, end in ((0, 7), (7, 8), (8, 40), (40, len(ids))):
        last = engine.prefill(ids[start:end], state)
        assert np.abs(last - whole[end - 1]).max() < 1e-4


def test_gguf_to_gguf_is_the_same_to_the_bit(checkpoint: load.Checkpoint, tmp_path: Path) -> None:
    save.write_checkpoint(tmp_path / "again.gguf", checkpoint)
    again = load.read_checkpoint(tmp_path / "again.gguf")
    assert again.config == checkpoint.config and again.chat_template == checkpoint.chat_template
    for name in checkpoint.tensors:
        ours, theirs = again.tensors[name], checkpoint.tensors[name]
        assert ours.type == theirs.type and np.array_equal(ours.data, theirs.data), name
    (tmp_path / "again.gguf").unlink()


def test_llama_cpp_reads_what_was_written(
    checkpoint: load.Checkpoint, engine: PyTorchEngine, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Packed, it scores as it does with the original; as F32, where it rounds no activations, it scores as we
    do.
    """
    ids = tokenizer.encode(smollm2.PROMPTS[0])
    expected = torch.log_softmax(torch.from_numpy(engine.logits(ids)[-1]).double(), dim=-1).numpy()
    save.write_checkpoint(tmp_path / "packed.gguf", checkpoint)
    save.write_checkpoint(tmp_path / "float.gguf", checkpoint, type="F32")
    found = {}
    for path in (smollm2.gguf_file(), tmp_path / "packed.gguf", tmp_path / "float.gguf"):
        with llama_cpp.opened(path, checkpoint.config.vocab) as scores:
            found[path.name] = scores(ids)
    assert np.array_equal(found["packed.gguf"], found[smollm2.gguf_file().name])
    assert np.abs(found["float.gguf"] - expected).max() < CLOSE
    (tmp_path / "float.gguf").unlink()


def test_transformers_reads_what_was_written(folder: Path, tokenizer: Tokenizer) -> None:
    """Weights, tokenizer, template and the ids that end an answer."""
    judge = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer.encode(smollm2.TEXT)
    with torch.no_grad():
        expected = judge(torch.tensor([ids])).logits[0].numpy()
    found = PyTorchEngine(decoder(load.read_checkpoint(folder))).logits(ids)
    assert np.abs(found - expected).max() < CLOSE
    words = transformers.AutoTokenizer.from_pretrained(folder)
    assert words(smollm2.TEXT)["input_ids"] == ids
    assert (
        words.eos_token_id == tokenizer.eos
        and words.chat_template == load.read_checkpoint(folder).chat_template
    )
    assert judge.generation_config.eos_token_id == list(tokenizer.eos_ids)


def test_safetensors_to_gguf_and_back_is_the_same_to_the_bit(folder: Path, tmp_path: Path) -> None:
    """BF16 through GGUF; llama.cpp's tokenizer metadata are made from tokenizer.json."""
    first = load.read_checkpoint(folder)
    save.write_checkpoint(tmp_path / "m.gguf", first)
    second = load.read_checkpoint(tmp_path / "m.gguf")
    assert second.config == first.config and second.chat_template == first.chat_template
    for name in first.tensors:
        ours, theirs = second.tensors[name], first.tensors[name]
        assert theirs.type == "BF16" and ours.type == ("BF16" if len(ours.shape) > 1 else "F32")
        if ours.type == "BF16":
            assert np.array_equal(ours.data, theirs.data), name
    text = smollm2.TEXT + smollm2.PROMPTS[2]
    assert second.tokenizer.encode(text) == first.tokenizer.encode(text)
    (tmp_path / "m.gguf").unlink()
