"""Writing models: which type each weight gets, what goes along, what is replaced and what is not."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cutaway import gguf
from cutaway.attention import gqa
from cutaway.cli import main
from cutaway.errors import OperationalError, UserError
from cutaway.gguf import Later, Packed
from cutaway.layers.config import MLP
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.position import rope
from cutaway.quantization import formats
from cutaway.weights import load, save
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors
from tests.parity.words import WORDS

ATTENTION = gqa.Config(heads=4, key_size=16, kv_heads=2, position=rope.Config(16))
CONFIG = Decoder(vocab=96, width=64, context=32, blocks=(Block(ATTENTION, MLP(80)),) * 2)


def checkpoint(config: Decoder = CONFIG, type: str = "F32", scale: float = 1.0) -> Checkpoint:
    random = np.random.default_rng(0)

    def weight(shape: tuple[int, ...]) -> Packed:
        fits = len(shape) == 2 and not shape[-1] % gguf.TYPES[type].block
        return formats.pack(
            random.standard_normal(shape, np.float32) * np.float32(scale), type if fits else "F32"
        )

    tensors = Tensors({name: weight(shape) for name, shape in config.weights().items()})
    return Checkpoint(config, tensors, "llama", Path("nowhere"), metadata=WORDS)


def types(path: Path) -> dict[str, str]:
    return {name: packed.type for name, packed in gguf.read(path).tensors.items()}


def same_weights(one: Checkpoint, other: Checkpoint) -> bool:
    names = set(one.tensors) | set(other.tensors)
    return all(
        one.tensors[n].type == other.tensors[n].type
        and np.array_equal(one.tensors[n].data, other.tensors[n].data)
        for n in names
    )


@pytest.mark.parametrize("type", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_gguf_keeps_every_bit_both_ways(type: str, tmp_path: Path) -> None:
    """Blocks go through the permutation of queries and keys and back without being unpacked."""
    first = checkpoint(type=type)
    save.write_checkpoint(tmp_path / "a.gguf", first)
    second = load.read_checkpoint(tmp_path / "a.gguf")
    save.write_checkpoint(tmp_path / "b.gguf", second)
    assert same_weights(first, second)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("type", ["F32", "F16", "BF16"])
def test_gguf_to_safetensors_to_gguf_keeps_every_bit(type: str, tmp_path: Path) -> None:
    save.write_checkpoint(tmp_path / "a.gguf", checkpoint(type=type))
    save.write_checkpoint(
        tmp_path / "folder", replace(load.read_checkpoint(tmp_path / "a.gguf"), read_tokenizer=None)
    )
    save.write_checkpoint(
        tmp_path / "b.gguf", replace(load.read_checkpoint(tmp_path / "folder"), metadata=WORDS)
    )
    assert types(tmp_path / "a.gguf") == types(tmp_path / "b.gguf")
    assert same_weights(load.read_checkpoint(tmp_path / "a.gguf"), load.read_checkpoint(tmp_path / "b.gguf"))


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0", "Q4_1"])
def test_blocks_become_float32_in_a_folder_without_loss(type: str, tmp_path: Path) -> None:
    first = checkpoint(type=type)
    saved = save.write_checkpoint(tmp_path / "folder", first)
    assert set(saved.types) == {"F32"} and any("unpacked to F32" in note for note in saved.notes)
    second = load.read_checkpoint(tmp_path / "folder")
    for name in first.tensors:
        assert np.array_equal(formats.unpack(first.tensors[name]), formats.unpack(second.tensors[name]))


def test_which_types_quantizing_gives(tmp_path: Path) -> None:
    saved = save.write_checkpoint(tmp_path / "m.gguf", checkpoint(), type="Q4_0")
    found = types(tmp_path / "m.gguf")
    assert found["token_embd.weight"] == "Q8_0"
    assert found["blk.0.attn_q.weight"] == found["blk.1.ffn_up.weight"] == "Q4_0"
    assert found["blk.0.attn_norm.weight"] == found["output_norm.weight"] == "F32"
    assert found["blk.0.ffn_down.weight"] == "F16"
    assert any(
        "2 matrices stored as F16 instead of Q4_0 (rows not of whole blocks of 32)" in note
        for note in saved.notes
    )
    assert any("makes the logits is Q8_0" in note for note in saved.notes)
    assert saved.types == {"Q4_0": 12, "F32": 5, "F16": 2, "Q8_0": 1}


def test_an_untied_table_is_like_any_matrix_and_the_head_is_not(tmp_path: Path) -> None:
    save.write_checkpoint(tmp_path / "m.gguf", checkpoint(replace(CONFIG, tied=False)), type="Q4_1")
    found = types(tmp_path / "m.gguf")
    assert (found["token_embd.weight"], found["output.weight"]) == ("Q4_1", "Q8_0")


def test_rounding_what_was_rounded_is_reported(tmp_path: Path) -> None:
    saved = save.write_checkpoint(tmp_path / "m.gguf", checkpoint(type="Q8_0"), type="Q4_0")
    assert any("rounded again, from Q8_0 to Q4_0" in note for note in saved.notes)


def test_a_number_that_a_type_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be stored as F16: .* as BF16 or F32"):
        save.write_checkpoint(tmp_path / "m.gguf", checkpoint(scale=1e6), type="F16")
    assert not list(tmp_path.iterdir())
    save.write_checkpoint(tmp_path / "m.gguf", checkpoint(scale=1e6), type="BF16")


def test_folders_of_one_type(tmp_path: Path) -> None:
    saved = save.write_checkpoint(tmp_path / "folder", checkpoint(), type="BF16")
    assert set(saved.types) == {"BF16"}
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_what_gguf_says_of_itself(tmp_path: Path) -> None:
    source = replace(checkpoint(), metadata={**WORDS, "general.name": "Owl", "general.license": "mit"})
    save.write_checkpoint(tmp_path / "m.gguf", source, type="Q8_0")
    metadata = gguf.read(tmp_path / "m.gguf").metadata
    assert (metadata["general.name"], metadata["general.license"]) == ("Owl", "mit")
    assert metadata["general.architecture"] == "llama" and metadata["general.file_type"] == 7
    assert metadata["llama.attention.head_count_kv"] == 2 and metadata["llama.rope.dimension_count"] == 16
    assert metadata["tokenizer.ggml.tokens"] == WORDS["tokenizer.ggml.tokens"]


def test_advice_and_template_go_along(tmp_path: Path) -> None:
    source = replace(checkpoint(), chat_template="{{ x }}", defaults={"temperature": 0.5, "top_k": 7})
    save.write_checkpoint(tmp_path / "m.gguf", source)
    again = load.read_checkpoint(tmp_path / "m.gguf")
    assert again.chat_template == "{{ x }}" and again.defaults == {"temperature": 0.5, "top_k": 7}
    save.write_checkpoint(tmp_path / "folder", again)
    last = load.read_checkpoint(tmp_path / "folder")
    assert last.chat_template == "{{ x }}" and last.defaults == {
        "temperature": 0.5,
        "top_k": 7,
        "eos_ids": (1,),
    }
    text = "ab#c"
    assert last.tokenizer.encode(text) == again.tokenizer.encode(text)


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    for target in (tmp_path / "m.gguf", tmp_path / "folder"):
        save.write_checkpoint(target, checkpoint())
        with pytest.raises(UserError, match="already exists"):
            save.write_checkpoint(target, checkpoint())
        save.write_checkpoint(target, checkpoint(scale=2.0), force=True)
        assert same_weights(load.read_checkpoint(target), checkpoint(scale=2.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "m.gguf"]


def test_a_folder_that_holds_no_model_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "secrets.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no model, and is not replaced"):
        save.write_checkpoint(tmp_path / "diary", checkpoint(), force=True)
    (tmp_path / "a.gguf").mkdir()
    with pytest.raises(UserError):
        save.write_checkpoint(tmp_path / "a.gguf", checkpoint(), force=True)
    assert (tmp_path / "diary" / "secrets.txt").read_text() == "mine"


def test_a_model_may_replace_the_one_it_was_read_from(tmp_path: Path) -> None:
    for target in (tmp_path / "m.gguf", tmp_path / "folder"):
        save.write_checkpoint(target, checkpoint())
        save.write_checkpoint(target, load.read_checkpoint(target), force=True)
        assert same_weights(load.read_checkpoint(target), checkpoint())


@pytest.mark.parametrize("name", ["m.gguf", "folder"])
def test_what_fails_halfway_leaves_nothing(name: str, tmp_path: Path) -> None:
    def broken() -> Packed:
        raise OperationalError("the disk is gone")

    whole = checkpoint()
    parts = {n: whole.tensors.later(n) for n in whole.tensors}
    parts["norm.weight"] = Later("F32", (64,), broken)
    with pytest.raises(OperationalError, match="the disk is gone"):
        save.write_checkpoint(tmp_path / name, replace(whole, tensors=Tensors(parts)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "type"), [("folder", "Q8_0"), ("m.gguf", "Q6_K"), ("m.safetensors", None)])
def test_what_cannot_be_written(name: str, type: str | None, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        save.write_checkpoint(tmp_path / name, checkpoint(), type=type)


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    save.write_checkpoint(
        tmp_path / "m.gguf", checkpoint(), progress=lambda _, done, total: seen.append((done, total))
    )
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    save.write_checkpoint(tmp_path / "a.gguf", checkpoint())
    assert main(["convert", str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf"), "--type", "q4_0"]) == 0
    captured = capsys.readouterr()
    assert "12 Q4_0" in captured.out and "as F16 instead of Q4_0" in captured.err
    assert main(["convert", str(tmp_path / "b.gguf"), str(tmp_path / "folder"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "safetensors" and document["family"] == "llama" and document["notes"]
    assert main(["convert", str(tmp_path / "b.gguf"), str(tmp_path / "folder")]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "a.gguf"), str(tmp_path / "c.gguf"), "--type", "Q6_K"]) == 2
