"""Tokenizers of written folders: to transformers, the pairs and the roles of the folder that was read."""

import json
import shutil
from pathlib import Path

import pytest

import cutaway
from cutaway.errors import UserError
from cutaway.tokenizer import Tokenizer
from tests.parity.test_classifiers import worded

transformers = pytest.importorskip("transformers")
from tokenizers import processors  # noqa: E402

PAIR = ("The cat sat", "a cat that sat")
MARKS = {
    "BertProcessing": lambda a, b: processors.BertProcessing(b, a),
    "RobertaProcessing": lambda a, b: processors.RobertaProcessing(b, a),
    "template": lambda a, b: processors.TemplateProcessing(
        single=f"{a[0]}:0 $A:0 {b[0]}:0",
        pair=f"{a[0]}:0 $A:0 {b[0]}:0 $B:1 {b[0]}:1 {a[0]}:1",
        special_tokens=[a, b],
    ),
}


def same(one: Path, other: Path) -> None:
    """Both folders' tokenizers give a text, a pair and their segments alike, and name the same tokens."""
    theirs, ours = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (one, other))
    for texts in (PAIR[:1], PAIR):
        given, found = (each(*texts, return_token_type_ids=True) for each in (theirs, ours))
        assert found["input_ids"] == given["input_ids"]
        assert found["token_type_ids"] == given["token_type_ids"]
    assert ours.special_tokens_map == theirs.special_tokens_map


def folder_of(path: Path, **roles: str) -> Path:
    """A small BERT, whose tokenizer_config.json names these tokens."""
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    transformers.BertModel(config).save_pretrained(path)
    worded(path, "bert", False)
    named = path / "tokenizer_config.json"
    named.write_text(json.dumps(json.loads(named.read_text()) | roles))
    return path


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("bert"), cls_token="[CLS]", sep_token="[SEP]")


@pytest.mark.parametrize("lacking", ["vocab.txt", "tokenizer.json"])
def test_a_folder_keeps_its_pairs_and_its_roles(lacking: str, bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "read")
    (tmp_path / "read" / lacking).unlink()
    cutaway.load(tmp_path / "read").save(tmp_path / "written")
    same(tmp_path / "read", tmp_path / "written")


def test_a_gguf_file_gives_back_berts_pairs_and_roles(bert: Path, tmp_path: Path) -> None:
    cutaway.load(bert).save(tmp_path / "m.gguf")
    cutaway.load(tmp_path / "m.gguf").save(tmp_path / "written")
    same(bert, tmp_path / "written")


@pytest.mark.parametrize("marks", MARKS)
def test_a_written_tokenizer_has_the_pair_that_was_read(marks: str, bert: Path, tmp_path: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(bert)
    made = theirs.backend_tokenizer
    begin, end = ((text, made.token_to_id(text)) for text in ("[CLS]", "[SEP]"))
    made.post_processor = MARKS[marks](begin, end)
    made.save(str(tmp_path / "read.json"))
    ours = Tokenizer.load(tmp_path / "read.json")
    ours.save(tmp_path / "written.json")
    for name in ("read", "written"):
        found = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / f"{name}.json"))
        given = found(*PAIR, return_token_type_ids=True)
        ids, parts = given["input_ids"], given["token_type_ids"]
        assert ours.spec.template is not None
        one, two = map(ours.encode, PAIR)
        assert ours.spec.template.joined(one, two) == (ids, parts)


def test_a_unigram_that_gguf_cannot_say_is_refused_in_a_sentence(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "m")
    worded(tmp_path / "m", "unigram", False)
    path = tmp_path / "m" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": None}))
    with pytest.raises(
        UserError, match=r"/m: GGUF cannot say how .* cuts text .* \(Metaspace\): save a folder"
    ):
        cutaway.load(tmp_path / "m").save(tmp_path / "m.gguf")
