"""Normal forms as `tokenizers` has them, Mistral's Tekken, and what a folder may leave out or get wrong."""

import base64
import json
import random
from pathlib import Path

import pytest
import tiktoken
import tokenizers

from cutaway.errors import UserError
from cutaway.tokenizer import Tokenizer
from cutaway.tokenizer.bpe import BYTES
from cutaway.tokenizer.normalize import FORMS, Lowercase
from cutaway.tokenizer.wordpiece import BertNormalizer
from tests import inputs
from tests.published import tokenizer_folders as published

MARKS = [0x301, 0x323, 0x327, 0x345, 0x1DF6, 0x1AC1, 0x897, 0x11930, 0x11935, 0x11938, 0x1611E, 0x16120]
MARKS += [0x113C9, 0x11382, 0x16D67, 0x9FE, 0x1109A, 0x110BA, 0x3099, 0x304B, 0x1100, 0x1161, 0x11A8, 0xAC00]


@pytest.mark.parametrize("form", FORMS)
def test_normal_forms_are_those_of_tokenizers(form: str) -> None:
    """Every code point of the planes in use, by itself and between marks; and 2,000 drawn sequences."""
    judge = getattr(tokenizers.normalizers, form)()
    codes = [*range(0xD800), *range(0xE000, 0x1FC00), *range(0xE0100, 0xE0110)]
    for start in range(0, len(codes), 256):
        for pattern in ("{}.", "a\u0345{}\u0327\u0301."):
            text = "".join(pattern.format(chr(code)) for code in codes[start : start + 256])
            assert FORMS[form](text, True, True) == judge.normalize_str(text), hex(codes[start])
    draw = random.Random(3)
    for _ in range(2_000):
        text = "".join(chr(draw.choice([*MARKS, draw.randint(0x61, 0x2FFF)])) for _ in range(8))
        assert FORMS[form](text, True, True) == judge.normalize_str(text), ascii(text)


def test_lower_case_is_that_of_tokenizers() -> None:
    every = "".join(chr(code) + "." for code in range(0x1FC00) if not 0xD800 <= code < 0xE000)
    assert Lowercase()(every, True, True) == tokenizers.normalizers.Lowercase().normalize_str(every)
    assert BertNormalizer()(every, True, True) == tokenizers.normalizers.BertNormalizer().normalize_str(every)


@pytest.fixture(scope="module")
def tekken() -> Path:
    return next(inputs.path("mistral").rglob("tekken_240718.json"))


def test_tekken_is_tiktoken_behind_its_control_tokens(tekken: Path, tmp_path: Path) -> None:
    """mistral-common's own class is that: tiktoken over the first ranks, ids behind 1,000 control tokens."""
    whole = json.loads(tekken.read_text("utf-8"))
    config = whole["config"]
    control = config["default_num_special_tokens"]
    entries = whole["vocab"][: config["default_vocab_size"] - control]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in entries}
    judge = tiktoken.Encoding("tekken", pat_str=config["pattern"], mergeable_ranks=ranks, special_tokens={})
    (tmp_path / "tekken.json").write_bytes(tekken.read_bytes())
    tok = Tokenizer.load(tmp_path)
    assert (len(tok), tok.bos, tok.eos, tok.pad, tok.unknown) == (131_072, 1, 2, 11, None)
    assert (
        tok.special["[INST]"] == 3
        and tok.special["[TOOL_CONTENT]"] == 19
        and tok.special["<SPECIAL_999>"] == 999
    )
    assert tok.path == "native: the scanner tekken"
    for text in published.texts(["[INST]", "</s>"], 200):
        expected = [1, *(id + control for id in judge.encode_ordinary(text))]
        assert tok.encode(text, add_special=True) == expected, text
        assert tok.decode(expected, skip_special=True) == text.encode().decode("utf-8", "replace")


def small_tekken(**changes: object) -> dict:
    """A tekken.json of bytes alone."""
    vocabulary = [
        {"rank": rank, "token_bytes": base64.b64encode(bytes([rank])).decode(), "token_str": None}
        for rank in range(256)
    ]
    config = {"pattern": r"\S+|\s+", "num_vocab_tokens": 256, "default_vocab_size": 266}
    config |= {"default_num_special_tokens": 10, "version": "v11"}
    special = [{"rank": 0, "token_str": "<unk>", "is_control": True}, {"rank": 1, "token_str": "<s>"}]
    return {"config": config | changes, "vocab": vocabulary, "special_tokens": special}


def test_a_tekken_file_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    def load(whole: dict) -> Tokenizer:
        (tmp_path / "tekken.json").write_text(json.dumps(whole))
        return Tokenizer.load(tmp_path)

    tok = load(small_tekken())
    assert tok.encode("<s>a", special="allow", add_special=True) == [1, 1, 10 + ord("a")]
    assert tok.token_text(2) == "<SPECIAL_2>" and len(tok) == 266
    nameless = small_tekken()
    del nameless["special_tokens"]
    with pytest.raises(UserError, match="names no special_tokens"):
        load(nameless)
    with pytest.raises(UserError, match="each rank from 0 to 289"):
        load(small_tekken(default_vocab_size=300))
    with pytest.raises(UserError, match="split pattern"):
        load(small_tekken(pattern="(a"))
    with pytest.raises(UserError, match="do not fit"):
        load(small_tekken(default_num_special_tokens=-1))
    with pytest.raises(UserError, match="holds 1,000,000 control tokens; the limit is 100,000"):
        load(small_tekken(default_num_special_tokens=10**6, default_vocab_size=10**6 + 256))
    nameless = small_tekken()
    nameless["special_tokens"][1]["token_str"] = ""
    with pytest.raises(UserError, match="token_str of a control token is empty"):
        load(nameless)


def test_steps_behind_byte_level_cut_inside_a_character(tmp_path: Path) -> None:
    """Falcon's Digits sees the byte 0xB2 of a letter as the digit that GPT-2 writes it as."""
    published.written("falcon-40b", tmp_path)
    tok, judge = Tokenizer.load(tmp_path), tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("в", "² 12345 a²b", "ӳӵӹ 3", "在²"):
        assert tok.encode(text) == judge.encode(text).ids
        assert tok.decode(tok.encode(text)) == text
    with pytest.raises(UserError, match="half a surrogate"):
        tok.encode("a\udcb2")


def test_two_files_of_another_class_are_refused(tmp_path: Path) -> None:
    published.written("roberta-base", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "WhisperTokenizer"}))
    with pytest.raises(UserError, match="rules of 'Whisper' are not known here, but those of GPT2"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(UserError, match=r"merges.txt: line 1 is 'a b c', not two tokens"):
        Tokenizer.load(tmp_path)
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "e": 1}))
    with pytest.raises(UserError, match="no vocabulary of byte-level BPE"):
        Tokenizer.load(tmp_path)


def test_a_rank_file_of_an_unknown_class_is_refused(tmp_path: Path) -> None:
    published.written("kimi-k2", tmp_path)
    tok = Tokenizer.load(tmp_path)
    assert len(tok) == len(BYTES) + (len(tok.spec.ranks or {}) - 256) + 258
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MyTokenizer"}))
    with pytest.raises(UserError, match="rules of 'MyTokenizer' are not known here"):
        Tokenizer.load(tmp_path)


def test_what_goes_around_a_text_is_tokenizer_jsons_to_say(tmp_path: Path) -> None:
    """tokenizer_config.json says add_bos_token, and there is no template: transformers 5 adds none."""
    published.written("bora", tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["add_bos_token"]
    assert Tokenizer.load(tmp_path).encode("a", add_special=True) == Tokenizer.load(tmp_path).encode("a")
    whisper = tmp_path / "whisper"
    whisper.mkdir()
    published.written("whisper-large-v3", whisper)
    tok = Tokenizer.load(whisper)
    names = [tok.token_text(id) for id in tok.encode("", add_special=True)]
    assert names == ["<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>"]


def test_a_token_with_a_role_is_a_control_token(tmp_path: Path) -> None:
    """Command R+ lists its end of a turn as no special token; typed by a user it stays text."""
    published.written("command-r-plus", tmp_path)
    tok = Tokenizer.load(tmp_path)
    assert tok.is_special(tok.added["<|END_OF_TURN_TOKEN|>"])
    assert tok.added["<|END_OF_TURN_TOKEN|>"] not in tok.encode("a<|END_OF_TURN_TOKEN|>b")
