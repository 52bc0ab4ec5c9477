"""Files and folders: what is read from each, what is written back, and what is refused by name."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway import gguf
from cutaway.data import run_tokenizer
from cutaway.errors import UserError
from cutaway.tokenizer import Tokenizer, compiled
from cutaway.tokenizer.bpe import BYTES
from tests import inputs

LETTERS = {character: id for id, character in enumerate(BYTES)}
PIECES = {**LETTERS, "th": 256, "the": 257, "Ġthe": 258, "ab": 259}
MERGES = [["t", "h"], ["th", "e"], ["Ġ", "the"], ["a", "b"]]
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


def whole(**changes: Any) -> dict[str, Any]:
    """A small tokenizer.json; `model__x` changes a field of its model."""
    made: dict[str, Any] = {
        "added_tokens": [
            {"id": 260, "content": "<s>", "special": True},
            {"id": 261, "content": "</s>", "special": True},
            {"id": 262, "content": "<think>", "special": False, "normalized": False},
        ],
        "normalizer": None,
        "pre_tokenizer": LEVEL,
        "post_processor": None,
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": dict(PIECES), "merges": MERGES},
    }
    for key, value in changes.items():
        where, _, field = key.rpartition("__")
        (made[where] if where else made)[field] = value
    return made


def load(folder: Path, made: Any, name: str = "tokenizer.json") -> Tokenizer:
    path = folder / name
    path.write_text(json.dumps(made))
    return Tokenizer.load(path)


def test_a_small_file(tmp_path: Path) -> None:
    tok = load(tmp_path, whole())
    assert tok.encode("the the") == [257, 258]
    assert tok.encode("<s>a<think>") == [*tok.encode("<s>"), LETTERS["a"], 262]
    assert tok.encode("<s>a", "allow") == [260, LETTERS["a"]]
    assert (tok.special, tok.added) == ({"<s>": 260, "</s>": 261}, {"<s>": 260, "</s>": 261, "<think>": 262})
    assert tok.eos_ids == (261,)
    assert len(tok) == 263
    old = load(tmp_path, whole(model__merges=["t h", "th e", "Ġ the", "a b"]))
    assert old.encode("the the") == [257, 258]


def test_ids_with_holes(tmp_path: Path) -> None:
    tok = load(tmp_path, whole(added_tokens=[{"id": 300, "content": "<s>", "special": True}]))
    assert len(tok) == 301
    with pytest.raises(UserError, match="280 is no id"):
        tok.decode([280])
    metadata = tok.to_gguf(size=320)
    assert metadata["tokenizer.ggml.tokens"][280] == "[PAD280]"
    assert metadata["tokenizer.ggml.token_type"][[280, 300, 319]].tolist() == [5, 3, 5]
    assert Tokenizer.from_gguf(metadata).encode("<s>the", "allow") == [300, 257]
    with pytest.raises(UserError, match="301 tokens, and the model's embedding 300 rows"):
        tok.to_gguf(size=300)


REFUSED = {
    "the model 'Chars' is not supported": {"model__type": "Chars"},
    r"unk_token '\[UNK\]' is not in": {"model__type": "WordPiece"},
    "vocab is an object|vocab is .* not a list": {"model__type": "Unigram"},
    "ByteLevel pre-tokenizer does not belong to a WordPiece": {
        "model__type": "WordPiece",
        "model__unk_token": "the",
    },
    "over 1,000": {"model__type": "WordPiece", "model__max_input_chars_per_word": 10**6},
    r"vocab\[1\] is": {"model": {"type": "Unigram", "vocab": [["a", 0], ["a", -1.0]]}},
    "unk_id is 3": {"model": {"type": "Unigram", "vocab": [["a", 0]], "unk_id": 3}},
    "decoder 'ByteLevel' does not belong to a vocabulary of words": {
        "model__type": "WordLevel",
        "model__unk_token": "the",
        "pre_tokenizer": None,
    },
    "dropout 0.1": {"model__dropout": 0.1},
    "end_of_word_suffix '</w>'": {"model__end_of_word_suffix": "</w>"},
    "continuing_subword_prefix '##'": {"model__continuing_subword_prefix": "##"},
    "unk_token '<what>'": {"model__unk_token": "<what>"},
    "merge 0 makes 'xy'": {"model__merges": [["x", "y"]]},
    r"merges\[0\] is 'a b c'": {"model__merges": ["a b c"]},
    r"the id of 'a' is '1'": {"model__vocab": {"a": "1"}},
    "have the same id 0": {"model__vocab": {"a": 0, "b": 0}},
    "ids run from 0 to 99,999,999": {"added_tokens": [{"id": 99999999, "content": "x"}]},
    "ids run from -1": {"added_tokens": [{"content": "x"}]},
    "no content": {"added_tokens": [{"id": 5}]},
    "map of characters is damaged": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
    "precompiled_charsmap is not base64": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}
    },
    "normalizer 'Nmt'": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Nmt"}]}},
    "neither a String nor a Regex": {
        "normalizer": {"type": "Replace", "pattern": {"Glob": "*"}, "content": ""}
    },
    "pre-tokenizer 'UnicodeScripts'": {"pre_tokenizer": {"type": "UnicodeScripts"}},
    "ByteLevel is there twice": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [LEVEL, LEVEL]}},
    "behavior 'Often'": {"pre_tokenizer": {"type": "Split", "pattern": {"String": "a"}, "behavior": "Often"}},
    "split pattern .* cannot be used": {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated"}
    },
    "the decoder null does not belong": {"decoder": None},
    "decoder 'WordPiece": {"decoder": {"type": "WordPiece"}, "pre_tokenizer": None},
    "post-processor 'Unknown'": {"post_processor": {"type": "Unknown"}},
    "model is null|has no model": {"model": None},
    "pre_tokenizer is 5, not an object": {"pre_tokenizer": 5},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_supported_is_refused_by_name(message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, whole(**REFUSED[message])).encode("the")


def test_a_hostile_pattern_ends_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutaway.tokenizer.pretokenize.SECONDS", 0.2)
    split = {"type": "Split", "pattern": {"Regex": "(?:a|aa)+$"}, "behavior": "Isolated"}
    tok = load(tmp_path, whole(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, LEVEL]}))
    with pytest.raises(UserError, match="takes too long on this text"):
        tok.encode("a" * 60 + "b")


# Folders


def folder(path: Path, **files: Any) -> Tokenizer:
    (path / "tokenizer.json").write_text(json.dumps(whole()))
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (path / name.replace("__", ".")).write_text(text)
    return Tokenizer.load(path)


def test_a_folder_says_which_tokens_have_roles(tmp_path: Path) -> None:
    tok = folder(
        tmp_path,
        tokenizer_config__json={
            "bos_token": "<s>",
            "eos_token": {"content": "</s>"},
            "pad_token": "ab",
            "add_bos_token": True,
            "chat_template": "from the config",
            "added_tokens_decoder": {
                "263": {"content": "<tool>", "special": True},
                "260": {"content": "<s>"},
            },
        },
        special_tokens_map__json={"unk_token": "the", "eos_token": "ab"},
        generation_config__json={"eos_token_id": [261, 262]},
    )
    assert (tok.bos, tok.eos, tok.pad, tok.unknown) == (260, 261, 259, 257)
    assert (tok.add_bos, tok.add_eos, tok.eos_ids) == (False, False, (261, 262))  # tokenizer.json says it
    assert tok.special["<tool>"] == 263
    assert tok.chat_template == "from the config"
    assert tok.is_special(259)  # what has a role is a control token
    assert tok.encode("ab") == [LETTERS["a"], LETTERS["b"]]


def test_a_template_in_its_own_file_wins(tmp_path: Path) -> None:
    config = {"chat_template": [{"name": "default", "template": "A"}, {"name": "rag", "template": "B"}]}
    assert folder(tmp_path, tokenizer_config__json=config).chat_template == "A"
    assert folder(tmp_path, chat_template__jinja="own").chat_template == "own"


def test_a_folder_that_says_nonsense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"generation_config.json: eos_token_id is 9999"):
        folder(tmp_path, generation_config__json={"eos_token_id": 9999})
    with pytest.raises(UserError, match=r"tokenizer_config.json: bos_token is 7"):
        folder(tmp_path, tokenizer_config__json={"bos_token": 7}, generation_config__json={})
    with pytest.raises(UserError, match="added_tokens_decoder: x is not a token"):
        folder(tmp_path, tokenizer_config__json={"added_tokens_decoder": {"x": {}}})


def test_a_folder_with_a_sentencepiece_model(tmp_path: Path) -> None:
    model = next(inputs.path("mistral").rglob("tokenizer.model.v1"))
    (tmp_path / "tokenizer.model").write_bytes(model.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}")
    tok = Tokenizer.load(tmp_path)
    assert (tok.bos, tok.eos, tok.add_bos, tok.chat_template) == (1, 2, True, "{{ bos_token }}")
    assert tok.encode("Hello world") == [22557, 1526]


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no tokenizer.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(UserError, match=r"x.txt is no tokenizer that is known"):
        Tokenizer.load(tmp_path / "x.txt")
    with pytest.raises(UserError, match="no such file"):
        Tokenizer.load(tmp_path / "absent.json")
    (tmp_path / "word.model").write_bytes(b"\x0a\x03\x0a\x01a\x12\x02\x18\x03")
    with pytest.raises(UserError, match="SentencePiece word model"):
        Tokenizer.load(tmp_path / "word.model")


def test_writing_where_it_cannot_be_written_fails(tmp_path: Path) -> None:
    tok = load(tmp_path, whole())
    with pytest.raises(UserError, match="cannot be written: its folder does not exist"):
        tok.save(tmp_path / "no" / "such" / "folder.json")
    tok.save(tmp_path / "again.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.json", "tokenizer.json"]


# Rank files


def test_a_rank_file_needs_a_pattern_and_takes_a_regex(tmp_path: Path) -> None:
    path = tmp_path / "small.tiktoken"
    tokens = [bytes([byte]) for byte in range(256)] + [b"ab", b"abc"]
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    with pytest.raises(UserError, match="give pattern="):
        Tokenizer.load(path)
    tok = Tokenizer.load(path, pattern=r"\w+|\W+", special={"<|end|>": 258})
    assert tok.encode("abc ab") == [257, 32, 256]
    assert tok.encode("<|end|>", "allow") == [258]
    assert tok.eos_ids == (258,)
    with pytest.raises(UserError, match="an id that is a rank"):
        Tokenizer.load(path, pattern="gpt2", special={"<|end|>": 5})
    with pytest.raises(UserError, match="GGUF has no name"):
        tok.to_gguf()


@pytest.mark.parametrize(
    "line", [b"YQ==", b"YQ== x", b"Y 1", b"\xff 1", b"YQ== -1", b"YQ== 99999999999999", b" 1"]
)
def test_a_damaged_rank_file_is_refused(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.tiktoken"
    path.write_bytes(b"Yg== 0\n" + line + b"\n")
    with pytest.raises(UserError, match=r"x\.tiktoken"):
        Tokenizer.load(path, pattern="gpt2")


# GGUF


def test_gguf_metadata_both_ways() -> None:
    for path in (inputs.path("smollm2"), inputs.path("llama-vocab") / "ggml-vocab-gemma-4.gguf"):
        metadata = gguf.read(path).metadata
        tok = Tokenizer.from_gguf(metadata)
        again = tok.to_gguf()
        for key in ("model", "tokens", "merges", "bos_token_id", "eos_token_id"):
            assert again[f"tokenizer.ggml.{key}"] == metadata[f"tokenizer.ggml.{key}"]
        tokens, kinds = metadata["tokenizer.ggml.tokens"], np.array(metadata["tokenizer.ggml.token_type"])
        if "<|tool_response>" in tokens:  # user-defined in Gemma 4's file; llama.cpp makes it a control token
            kinds[tokens.index("<|tool_response>")] = 3
        assert np.array_equal(again["tokenizer.ggml.token_type"], kinds)
        assert again["tokenizer.chat_template"] == metadata["tokenizer.chat_template"]
        assert again["tokenizer.ggml.add_bos_token"] == tok.add_bos


def test_gguf_metadata_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    metadata = gguf.read(inputs.path("smollm2")).metadata
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path))
    first = Tokenizer.from_gguf(metadata)
    ids = first.encode("The capital of France is")
    monkeypatch.setattr("cutaway.tokenizer.formats.gguf.read", lambda _: pytest.fail("it was read again"))
    again = Tokenizer.from_gguf(metadata)
    assert again.encode("The capital of France is") == ids and again.path == first.path
    monkeypatch.undo()
    # Another template, another number of a token: another tokenizer.
    for key, value in (("chat_template", "x"), ("ggml.bos_token_id", 5)):
        assert compiled.digest_of(metadata | {f"tokenizer.{key}": value}) != compiled.digest_of(metadata)
    assert compiled.digest_of({"tokenizer.ggml.model": b"gpt2"}) is None


def test_damaged_gguf_metadata_is_refused() -> None:
    good = load_metadata()
    for changes, message in (
        ({"model": None}, "no tokenizer"),
        ({"model": "rwkv"}, "'rwkv' is not supported"),
        ({"pre": "no-such"}, "pre-tokeniser 'no-such' is not known"),
        ({"pre": 7}, "pre is 7"),
        ({"tokens": []}, "not a list of texts"),
        ({"tokens": [1, 2]}, "not a list of texts"),
        ({"merges": None}, "merges is not a list"),
        ({"merges": ["ab"]}, "not two tokens"),
        ({"merges": ["x y"]}, "makes 'xy'"),
        ({"token_type": np.array([1], np.int32)}, "numbers, one a token"),
        ({"bos_token_id": "one"}, "not an id"),
        ({"add_bos_token": "yes"}, "not bool"),
    ):
        metadata = good | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
        with pytest.raises(UserError, match=message):
            Tokenizer.from_gguf({key: value for key, value in metadata.items() if value is not None}).encode(
                "the"
            )


def load_metadata() -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": list(PIECES),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in MERGES],
    }


def test_what_gguf_cannot_say_is_refused_or_warned_of(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="normalised"):
        load(tmp_path, whole(normalizer={"type": "Lowercase"})).to_gguf()
    with pytest.warns(RuntimeWarning, match="NFC"):
        load(tmp_path, whole(normalizer={"type": "NFC"})).to_gguf()


def test_end_tokens_are_control_tokens_only(tmp_path: Path) -> None:
    entry = {"id": 262, "content": "<|im_end|>", "special": False}
    made = whole()
    assert load(tmp_path, made | {"added_tokens": [*made["added_tokens"][:2], entry]}).eos_ids == (261,)
    entry["special"] = True
    assert load(tmp_path, made | {"added_tokens": [*made["added_tokens"][:2], entry]}).eos_ids == (261, 262)


def test_padding_rows_of_a_gguf_vocabulary_are_no_tokens() -> None:
    """What fills up a table that is longer than the vocabulary is neither shown nor drawn."""
    tokenizer = run_tokenizer.of_bytes()
    padded = tokenizer.to_gguf(320)
    assert padded["tokenizer.ggml.tokens"][319] == "[PAD319]"
    again = Tokenizer.from_gguf(padded)
    assert len(again) == len(tokenizer) == 257
    assert again.to_gguf(320)["tokenizer.ggml.tokens"] == padded["tokenizer.ggml.tokens"]
    with pytest.raises(UserError):
        Tokenizer.from_gguf(padded | {"tokenizer.ggml.scores": 3})
