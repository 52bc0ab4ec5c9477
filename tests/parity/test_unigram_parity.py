"""Unigram: ids equal to sentencepiece's and tokenizers', and the reference's best of all cuts."""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from cutaway.errors import UserError
from cutaway.tokenizer import Tokenizer
from cutaway.tokenizer.charsmap import Charsmap, Precompiled
from cutaway.tokenizer.unigram import Unigram
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

IDENTITY = {"normalization_rule_name": "identity"}
FIXTURES = ("botchan_en_unigram_1000", "kyoto_ja_unigram_8000")


def fixture(name: str) -> Path:
    return next(inputs.path("sentencepiece-fixtures").rglob(f"{name}.model"))


@cache
def both(name: str) -> tuple[Tokenizer, sentencepiece.SentencePieceProcessor]:
    path = fixture(name)
    return Tokenizer.load(path), sentencepiece.SentencePieceProcessor(model_file=str(path))


@cache
def botchan() -> list[str]:
    return (inputs.path("sentencepiece-fixtures") / "botchan.txt").read_text().splitlines()


@pytest.mark.parametrize("name", FIXTURES)
def test_ids_and_text_equal_to_sentencepiece(name: str) -> None:
    tok, theirs = both(name)
    over = [*texts(), *MARKED, *botchan()[:300], " ".join(botchan()[300:340])]
    assert differing(tok.encode, theirs.encode, over) == []
    for text in over:
        ids = theirs.encode(text)
        assert tok.decode(ids) == theirs.decode(ids)
    assert (tok.bos, tok.eos, tok.unknown, len(tok)) == (
        theirs.bos_id(),
        theirs.eos_id(),
        theirs.unk_id(),
        theirs.vocab_size(),
    )


@tried
@given(wild)
def test_sentencepiece_on_any_text(text: str) -> None:
    for name in FIXTURES:
        tok, theirs = both(name)
        assert tok.encode(text) == theirs.encode(text)


@pytest.mark.parametrize(
    "options",
    [
        {"user_defined_symbols": "<sep>,<mask>,é字,the end"},
        {"user_defined_symbols": "ﬁ,<sep>", **IDENTITY, "remove_extra_whitespaces": False},
        {"byte_fallback": True, "add_dummy_prefix": False, "split_by_whitespace": False},
        {"byte_fallback": True, "normalization_rule_name": "nmt_nfkc_cf", "control_symbols": "<ctl>"},
        {"model_type": "char", "vocab_size": 90, "user_defined_symbols": "<sep>"},
        {"pad_id": 3, "bos_id": 1, "eos_id": 2, "unk_id": 0, "unk_surface": "?", "unk_piece": "<what>"},
    ],
)
def test_models_of_other_settings(options: dict[str, object], tmp_path: Path) -> None:
    path = trained(tmp_path / "m", options)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tok = Tokenizer.load(path)
    extra = [
        "<sep>a",
        " <sep> a <sep>",
        "a<sep>b<mask> ",
        "é字 é字x",
        "<ctl>a",
        "  a   b  ",
        "   ",
        "ﬁn the end",
    ]
    assert differing(tok.encode, theirs.encode, texts() + extra) == []
    for text in texts() + extra:
        ids = theirs.encode(text)
        assert tok.decode(ids) == theirs.decode(ids)


def trained(path: Path, options: dict[str, object]) -> Path:
    lines = (DECLARATION * 3 + ODD.replace("\0", "")).split("\n") + botchan()[:600]
    common = {"vocab_size": 600, "model_type": "unigram", "character_coverage": 0.98, "minloglevel": 5}
    train: Callable[..., None] = sentencepiece.SentencePieceTrainer.train
    train(sentence_iterator=iter(lines), model_prefix=str(path), **common | options)
    return path.with_name(path.name + ".model")


def by_reference(text: str, pieces: dict[str, float], unknown: float) -> float:
    """The best sum over all ways to cut a text."""
    best = float("-inf")
    for count in range(len(text)):
        for cuts in itertools.combinations(range(1, len(text)), count):
            bounds = [0, *cuts, len(text)]
            parts = [text[start:stop] for start, stop in itertools.pairwise(bounds)]
            if all(part in pieces or len(part) == 1 for part in parts):
                best = max(best, sum(pieces.get(part, unknown) for part in parts))
    return best


@tried
@given(
    st.text("abc", min_size=1, max_size=8),
    st.dictionaries(st.text("abc", min_size=1, max_size=4), st.integers(-30, -1), min_size=1, max_size=12),
)
def test_the_best_of_all_cuts(text: str, scores: dict[str, int]) -> None:
    pieces = {piece: float(score) for piece, score in scores.items()}
    model = Unigram(pieces, {piece: id for id, piece in enumerate(pieces)})
    path = model.best(text)
    assert "".join(text[edge.start : edge.stop] for edge in path) == text
    assert sum(edge.score for edge in path) == by_reference(text, pieces, model.unknown_score)


# tokenizers


def small(fallback: bool = False) -> tokenizers.Tokenizer:
    """The botchan pieces in tokenizers, with byte tokens if asked for."""
    theirs = both(FIXTURES[0])[1]
    pieces = [(theirs.id_to_piece(id), theirs.get_score(id)) for id in range(theirs.vocab_size())]
    pieces += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)] if fallback else []
    return tokenizers.Tokenizer(models.Unigram(pieces, 0, fallback))  # pyright: ignore[reportCallIssue]


def charsmap() -> bytes:
    rule = both(FIXTURES[1])[0].spec.normalizer[0]
    assert isinstance(rule, Charsmap)
    return rule.data


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_ids_and_text_equal_to_tokenizers(fallback: bool, scheme: str, tmp_path: Path) -> None:
    theirs = small(fallback)
    theirs.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(charsmap()), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    theirs.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=scheme != "first")
    parts = [decoders.ByteFallback()] if fallback else []
    theirs.decoder = decoders.Sequence([*parts, decoders.Metaspace(prepend_scheme=scheme)])
    theirs.add_special_tokens(["<s>", "</s>", "<unk>"])
    theirs.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)]
    )
    path = tmp_path / "theirs.json"
    theirs.save(str(path))
    tok = Tokenizer.load(path)
    over = [*texts(), *MARKED, *botchan()[:60]]
    # A <unk> that a text spells is a piece for them, and plain text here.
    plain = [text for text in over if not any(marker in text for marker in tok.special)]
    assert differing(tok.encode, hugging_face(path), plain) == []
    assert differing(lambda text: tok.encode(text, "allow"), hugging_face(path, allow=True), over) == []
    for text in over:
        ids = tok.encode(text, "allow", add_special=True)
        assert ids == theirs.encode(text).ids
        assert tok.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    assert differing(tok.encode, hugging_face(tok.save(tmp_path)), plain) == []


def test_the_map_of_characters_as_tokenizers_applies_it() -> None:
    data = charsmap()
    theirs, ours = normalizers.Precompiled(data), Precompiled(data)
    noise = random.Random(0)
    assigned = [chr(code) for code in range(0x3000) if code != 0] + list("Ａｂ㍻㌔ﾊﾟ각한ｶﾞ️‍👩e\u0301")
    over = [*texts(), *("".join(noise.choices(assigned, k=30)) for _ in range(300)), *assigned]
    assert [text for text in over if ours(text, True, True) != theirs.normalize_str(text)] == []


# The files that are written


@pytest.mark.parametrize("name", [*FIXTURES, "botchan_en_bpe_1000", "users", "bytes", "mistral"])
def test_a_written_model_gives_sentencepiece_the_same_ids(name: str, tmp_path: Path) -> None:
    options: dict[str, dict[str, object]] = {
        "users": {"user_defined_symbols": "<sep>,é字"},
        "bytes": {"byte_fallback": True, "control_symbols": "<c>"},
    }
    if name == "mistral":
        source = next(inputs.path("mistral").rglob("tokenizer.model.v1"))
    else:
        source = trained(tmp_path / "m", options[name]) if name in options else fixture(name)
    tok = Tokenizer.load(source)
    written = tok.save(tmp_path / "again.model")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(written))
    over = [*texts(), *MARKED, "a<sep>é字 <c>"]
    assert differing(tok.encode, theirs.encode, over) == []
    assert all(theirs.decode(tok.encode(text)) == tok.decode(tok.encode(text)) for text in over)
    again = Tokenizer.load(written)
    assert again.spec == tok.spec
    assert (theirs.bos_id(), theirs.eos_id(), theirs.pad_id()) == tuple(
        -1 if id is None else id for id in (tok.bos, tok.eos, tok.pad)
    )


@pytest.mark.parametrize("name", FIXTURES)
def test_gguf_both_ways(name: str, tmp_path: Path) -> None:
    tok = both(name)[0]
    again = Tokenizer.load(tok.save(tmp_path / "x.gguf"))
    same_sums = Tokenizer(replace(tok.spec, single=False))  # GGUF's are summed in 64 bits, as llama.cpp does
    assert differing(same_sums.encode, again.encode) == []
    once_more = Tokenizer.load(again.save(tmp_path / "y.gguf"))
    assert once_more.spec == again.spec


def test_a_real_gguf_of_a_multilingual_encoder() -> None:
    tok = Tokenizer.load(inputs.path("llama-vocab") / "ggml-vocab-nomic-bert-moe.gguf")
    assert (tok.bos, tok.eos, tok.add_bos, tok.add_eos) == (0, 2, True, True)
    assert [tok.token_text(id) for id in tok.encode("Trong tiếng  Việt", add_special=True)] == [
        "<s>",
        "▁Trong",
        "▁tiếng",
        "▁Việt",
        "</s>",
    ]
    assert tok.decode(tok.encode("Всеобщая декларация")) == "Всеобщая декларация"


# Control tokens


@pytest.mark.parametrize("source", ["minilm", "botchan", "json", "gguf"])
def test_text_never_becomes_a_control_token_unless_allowed(source: str, tmp_path: Path) -> None:
    if source == "json":
        theirs = small()
        theirs.pre_tokenizer, theirs.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        theirs.add_special_tokens(["<s>", "</s>", "<unk>", "▁the"])
        theirs.save(str(tmp_path / "x.json"))
    if source == "gguf":
        both(FIXTURES[0])[0].save(tmp_path / "x.gguf")
    paths = {"minilm": inputs.path("minilm"), "botchan": fixture(FIXTURES[0])}
    tok = Tokenizer.load(paths.get(source) or tmp_path / f"x.{source}")
    for text, id in tok.special.items():
        for around in (text, f"a{text}b", f" {text} ", text * 2, text[:-1], text.replace("▁", " ")):
            ids = tok.encode(around)
            assert not any(tok.is_special(id) for id in ids if id != tok.unknown)
            assert around == text[:-1] or text not in around or id in tok.encode(around, "allow")
            if text in around:
                with pytest.raises(UserError, match="control token"):
                    tok.encode(around, "forbid")
