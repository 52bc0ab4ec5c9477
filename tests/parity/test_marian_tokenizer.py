"""Marian's folder of source.spm, target.spm and vocab.json: transformers' ids and texts.

One thing differs: a language that the model has not is text here, and an unknown token there.
"""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.errors import UserError
from cutaway.tokenizer import Tokenizer

SOURCE = [
    "The old lamp hangs by the harbour.",
    "She reads a letter, and smiles.",
    "Boats come at dawn & leave.",
]
TARGET = [
    "Die alte Lampe steht am Hafen.",
    "Sie liest einen Brief und lächelt.",
    "Boote kommen früh & gehen.",
]
TEXTS = [*SOURCE, *TARGET, "", " ", "  two  spaces ", "ﬁne “quotes”", "üü ü", ">>fra<< The lamp", ">>fra<<"]
TEXTS += [
    "The >>fra<< lamp",
    "</s> <unk> <pad>",
    "a\u0000b\ud7ff\U0001f600",
    "<s>",
    ">>fra<<>>fra<< a",
]


def trained(texts: list[str], kind: str = "unigram") -> bytes:
    import sentencepiece

    made = io.BytesIO()
    roles = {"bos_id": -1, "eos_id": 0, "unk_id": 1, "hard_vocab_limit": False, "minloglevel": 9}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(40 * texts), model_writer=made, vocab_size=70, model_type=kind, **roles
    )
    return made.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the source's pieces have no id, and most of the target's no score."""
    import sentencepiece

    place = tmp_path_factory.mktemp("marian")
    ids = {"</s>": 0, "<unk>": 1}
    for name, texts in (("source", SOURCE), ("target", TARGET)):
        (place / f"{name}.spm").write_bytes(trained(texts))
        model: Any = sentencepiece.SentencePieceProcessor(model_file=str(place / f"{name}.spm"))
        for n in range(model.get_piece_size()):
            if name == "target" or n % 9 != 5:
                ids.setdefault(model.id_to_piece(n), len(ids))
    for text in (">>fra<<", ">>deu<<", "<pad>"):
        ids[text] = len(ids)
    (place / "vocab.json").write_text(json.dumps(ids))
    (place / "tokenizer_config.json").write_text(json.dumps({"source_lang": "en", "target_lang": "de"}))
    return place


@pytest.fixture(scope="module")
def judge(folder: Path) -> Any:
    from transformers import MarianTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sacremoses is not there
        return MarianTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_transformers(folder: Path, judge: Any, text: str) -> None:
    mine = Tokenizer.load(folder)
    assert mine.encode(text, add_special=True) == plain(judge, text)
    assert mine.encode_array(text).tolist() == plain(judge, text)[:-1]


@given(st.text("The lamp&üﬁ <>fra/s\u2581\n", max_size=24))
def test_any_text_has_transformers_ids(folder: Path, judge: Any, text: str) -> None:
    assert Tokenizer.load(folder).encode(text, add_special=True) == plain(judge, text)


def plain(judge: Any, text: str) -> list[int]:
    """Its ids, where control tokens spelt in a text are text."""
    return judge(text, split_special_tokens=True).input_ids


@pytest.mark.parametrize("text", TARGET)
def test_targets_are_written_as_transformers_writes_them(folder: Path, judge: Any, text: str) -> None:
    ids = judge(text_target=text).input_ids
    assert Tokenizer.load(folder).decode(ids[:-1]) == judge.decode(ids, skip_special_tokens=True)


def test_a_wrong_file_is_refused(folder: Path, tmp_path: Path) -> None:
    def refused(name: str, data: bytes, why: str) -> None:
        for file in folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=why):
            Tokenizer.load(tmp_path)

    ids = json.loads((folder / "vocab.json").read_text())
    refused("source.spm", trained(SOURCE, "bpe"), "Unigram")
    refused("target.spm", b"nothing", "target.spm")
    refused("vocab.json", json.dumps(ids | {"</s>": 5}).encode(), "id of its own")
    refused(
        "vocab.json", json.dumps({k: v for k, v in ids.items() if k != "<pad>"} | {"x": True}).encode(), "own"
    )
    refused("vocab.json", json.dumps({"a": 0, "<unk>": 1}).encode(), "has no")
    with pytest.raises(UserError, match="keep those"):
        Tokenizer.load(folder).save(tmp_path / "tokenizer.json")
