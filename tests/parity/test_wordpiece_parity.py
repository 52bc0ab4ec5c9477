"""WordPiece: ids equal to tokenizers', and transformers'; written files are read."""

import random
import unicodedata
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from cutaway.tokenizer import Tokenizer
from cutaway.tokenizer.normalize import StripAccents
from cutaway.tokenizer.wordpiece import BertNormalizer, BertPreTokenizer, WordPiece
from tests import inputs
from tests.parity.test_tokenizer_parity import (
    DECLARATION,
    MARKED,
    ODD,
    differing,
    hugging_face,
    texts,
    tried,
    wild,
)

MORE = ["[CLS] a [SEP]", "[UNK] [MASK]", "don't 've do not , . ! x", "x" * 100, "x" * 101, "é" * 100 + " a"]
ALL = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]


@cache
def minilm() -> tuple[Tokenizer, Path]:
    path = inputs.path("minilm") / "tokenizer.json"
    return Tokenizer.load(path), path


def test_ids_and_text_equal_to_tokenizers() -> None:
    tok, path = minilm()
    over = texts() + MORE + MARKED
    assert differing(tok.encode, hugging_face(path), over) == []
    assert differing(lambda text: tok.encode(text, "allow"), hugging_face(path, allow=True), over) == []
    theirs = tokenizers.Tokenizer.from_file(str(path))
    theirs.no_padding()
    theirs.no_truncation()
    for text in over:
        ids = theirs.encode(text).ids
        assert tok.encode(text, "allow", add_special=True) == ids
        assert tok.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
        assert tok.decode(ids, skip_special=True) == theirs.decode(ids)
    ids = random.Random(0).choices(range(len(tok)), k=3000)
    assert tok.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    for id in range(0, len(tok), 7):
        assert tok.decode([id]) == theirs.decode([id], skip_special_tokens=False)


@tried
@given(wild)
def test_tokenizers_on_any_text(text: str) -> None:
    tok, path = minilm()
    assert tok.encode(text) == hugging_face_once(path)(text)


@cache
def hugging_face_once(path: Path) -> object:
    return hugging_face(path)


def test_ids_equal_to_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(inputs.path("minilm")))
    tok = Tokenizer.load(inputs.path("minilm"))
    assert (tok.bos, tok.eos, tok.pad, tok.unknown) == (
        theirs.cls_token_id,
        theirs.sep_token_id,
        theirs.pad_token_id,
        theirs.unk_token_id,
    )
    for text in [*texts(), *MORE]:
        assert tok.encode(text, "allow", add_special=True) == theirs.encode(text)


def test_vocab_txt_alone_and_in_a_folder(tmp_path: Path) -> None:
    tok, path = minilm()
    source = path.with_name("vocab.txt")
    (tmp_path / "vocab.txt").write_bytes(source.read_bytes())
    for given_path in (tmp_path / "vocab.txt", tmp_path):
        alone = Tokenizer.load(given_path)
        assert differing(alone.encode, tok.encode, texts() + MORE) == []
        assert (alone.framed([]), alone.special, len(alone)) == (tok.framed([]), tok.special, len(tok))
    tok.save(tmp_path / "again.txt")
    assert (tmp_path / "again.txt").read_bytes() == source.read_bytes()
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert Tokenizer.load(tmp_path).encode("Hello") == [tok.unknown]


def test_a_written_tokenizer_json_gives_tokenizers_the_same_ids(tmp_path: Path) -> None:
    tok, _ = minilm()
    again = tok.save(tmp_path)
    assert differing(tok.encode, hugging_face(again), texts() + MORE) == []
    theirs = tokenizers.Tokenizer.from_file(str(again))
    for text in MORE:
        ids = theirs.encode(text).ids
        assert ids == tok.encode(text, "allow", add_special=True)
        assert tok.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("flags", range(12))
def test_every_setting_of_the_cleaning(flags: int) -> None:
    settings = {
        "clean_text": bool(flags & 1),
        "handle_chinese_chars": bool(flags & 2),
        "lowercase": flags >= 6,
        "strip_accents": (None, True, False)[flags % 3],
    }
    theirs, ours = normalizers.BertNormalizer(**settings), BertNormalizer(**settings)
    assert [text for text in texts() if ours(text, True, True) != theirs.normalize_str(text)] == []


def chunks() -> list[str]:
    """Every code point that a rule may hold for, with a letter between any two, and some of the other ones.

    One is left out, whose decomposition is another one in tokenizers.
    """
    plain = [c for i, c in enumerate(ALL) if unicodedata.category(c) not in ("Lo", "Cn", "Co") or i % 97 == 0]
    plain.remove("\U00011938")
    return ["a".join(plain[start : start + 64]) for start in range(0, len(plain), 64)]


def test_every_code_point_is_cleaned_and_cut_alike() -> None:
    ours = BertNormalizer(lowercase=False, strip_accents=True)
    theirs = normalizers.BertNormalizer(lowercase=False, strip_accents=True)
    cut, marks = pre_tokenizers.BertPreTokenizer(), normalizers.StripAccents()
    for text in chunks():
        assert ours(text, True, True) == theirs.normalize_str(text)
        assert BertPreTokenizer()([text], True) == [piece for piece, _ in cut.pre_tokenize_str(text)]
        assert StripAccents()(text, True, True) == marks.normalize_str(text)


def test_lower_case_differs_only_in_letters_newer_than_a_table() -> None:
    flags = (False, False, False, True)
    theirs, ours = normalizers.BertNormalizer(*flags), BertNormalizer(*flags)
    cased = [c for c in ALL if c.lower() != c or theirs.normalize_str(c) != c]
    assert [c for c in cased if ours(c, True, True) != theirs.normalize_str(c) and ord(c) < 0x1C89] == []


@tried
@given(
    st.text("abé", max_size=12),
    st.sets(st.text("abé", min_size=1, max_size=4), max_size=8),
    st.sets(st.text("abé", min_size=1, max_size=3), max_size=8),
    st.sampled_from(["##", "@", ""]),
)
def test_longest_match_first_on_any_vocabulary(
    word: str, starts: set[str], goes_on: set[str], front: str
) -> None:
    tokens = ["[UNK]", *sorted(starts | {front + text for text in goes_on})]
    ids = {text: id for id, text in enumerate(tokens)}
    model = models.WordPiece(  # pyright: ignore
        ids, unk_token="[UNK]", continuing_subword_prefix=front, max_input_chars_per_word=9
    )
    theirs = tokenizers.Tokenizer(model)
    assert WordPiece(ids, 0, continues=front, longest=9).encode(word) == theirs.encode(word).ids


def test_other_cutting_and_word_vocabularies(tmp_path: Path) -> None:
    ids = {text: id for id, text in enumerate(["[UNK]", "the", "##s", "to", "##ken", "ü", ".", "[", "a"])}
    cutters = (pre_tokenizers.Whitespace(), pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation())
    for kind in (models.WordPiece, models.WordLevel):
        for cutter in cutters:
            theirs = tokenizers.Tokenizer(kind(ids, unk_token="[UNK]"))  # pyright: ignore
            theirs.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
            theirs.pre_tokenizer = cutter
            theirs.save(str(tmp_path / "theirs.json"))
            tok = Tokenizer.load(tmp_path / "theirs.json")
            over = [*filter(str.isascii, texts()), DECLARATION, ODD, "the tokens. [a tóken ü"]
            assert differing(tok.encode, hugging_face(tmp_path / "theirs.json"), over) == []
            assert all(tok.decode(tok.encode(text)) == theirs.decode(tok.encode(text)) for text in over)
            assert differing(tok.encode, hugging_face(tok.save(tmp_path)), over) == []
