"""The tokenizer by itself: merges against a definition, control tokens, decoding, streams, and what is
refused.
"""

import itertools
import random
import subprocess
import sys
import warnings

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cutaway import gguf
from cutaway.errors import UserError
from cutaway.tokenizer import Tokenizer, bpe, cache, pretokenize
from cutaway.tokenizer.added import AddedToken
from cutaway.tokenizer.decode import EACH, FIRST, KEEP, ONE, Lead
from cutaway.tokenizer.spec import TokenizerSpec
from tests import inputs

tried = settings(max_examples=200, deadline=None)
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return Tokenizer.from_gguf(gguf.read(inputs.path("smollm2")).metadata)


@pytest.fixture(scope="module")
def spm() -> Tokenizer:
    return Tokenizer.load(inputs.path("llama-vocab") / "ggml-vocab-llama-spm.gguf")


# Merging


def by_reference(symbols: list[str], rank_of: bpe.RankOf) -> list[str]:
    """The lowest rank among all neighbours, the leftmost of equal ones, until there is none."""
    while True:
        ranked = [
            (found[0], i) for i, pair in enumerate(itertools.pairwise(symbols)) if (found := rank_of(pair))
        ]
        if not ranked:
            return symbols
        i = min(ranked)[1]
        symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]


@tried
@given(
    st.text("abc", max_size=40),
    st.lists(
        st.tuples(st.text("abc", min_size=1, max_size=3), st.text("abc", min_size=1, max_size=3)), max_size=25
    ),
    st.dictionaries(st.text("abc", min_size=2, max_size=5), st.integers(0, 6), max_size=25),
)
def test_merging_is_the_definition(text: str, pairs: list[tuple[str, str]], ranks: dict[str, int]) -> None:
    listed = bpe.listed(pairs, {left + right: 0 for left, right in pairs})
    for rank_of in (listed, bpe.joined(ranks)):
        history: list[bpe.Pair] = []
        assert bpe.merge(list(text), rank_of, history) == by_reference(list(text), rank_of)
        assert all(rank_of(pair) for pair in history)


def test_merges_of_equal_rank_go_from_the_left() -> None:
    assert bpe.merge(list("aaaaa"), bpe.joined({"aa": 0})) == ["aa", "aa", "a"]
    assert bpe.merge(list("abab"), bpe.joined({"ab": 1, "ba": 1})) == ["ab", "ab"]


def test_a_long_run_is_not_quadratic(smollm2: Tokenizer) -> None:
    """20 times as long takes about 20 times as many look-ups of a rank, not 400 times."""
    counts = []
    for size in (2_000, 40_000):
        looked = 0
        rank_of = smollm2._encoder(smollm2._control).model.rank_of

        def counting(pair: bpe.Pair, rank_of: bpe.RankOf = rank_of) -> bpe.Ranked | None:
            nonlocal looked
            looked += 1
            return rank_of(pair)

        bpe.merge(["a"] * size, counting)
        counts.append(looked)
    assert counts[1] < 25 * counts[0]


@tried
@given(st.binary(max_size=60))
def test_bytes_and_their_spelling(data: bytes) -> None:
    assert bpe.unspell(bpe.spell(data)) == data
    assert bpe.unspell("日") is None


def test_merges_are_given_as_they_happened(smollm2: Tokenizer) -> None:
    pieces = smollm2.merges_of("The capital 42")
    assert [piece for piece, _ in pieces] == ["The", "Ġcapital", "Ġ", "4", "2"]
    assert pieces[0][1] == [("h", "e"), ("T", "he")]
    for piece, history in pieces:
        symbols = list(piece)
        for left, right in history:
            i = next(i for i in range(len(symbols)) if symbols[i : i + 2] == [left, right])
            symbols[i : i + 2] = [left + right]
        assert [smollm2.id_of(symbol) for symbol in symbols] == [
            smollm2.id_of(symbol)
            for symbol in smollm2._encoder(smollm2._control).model.symbols(bpe.unspell(piece).decode())  # pyright: ignore[reportOptionalMemberAccess]
        ]


@tried
@given(
    st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("  019'sa\n٣½")), max_size=40)
)
@example("a  5 5\n\n 7  x ")
def test_fused_steps_cut_the_same_pieces(text: str) -> None:
    steps = pretokenize.named("smollm")
    fused = pretokenize.fused(steps)
    assert len(fused) == 1
    assert pretokenize.pretokenize(fused, text) == pretokenize.pretokenize(steps, text)


@tried
@given(st.text(st.sampled_from("▁▁▁ab.\n日"), max_size=40))
def test_cutting_at_spaces_changes_no_ids(text: str) -> None:
    for name in ("llama-spm", "gemma-4"):
        tok = _vocabulary(name)
        plain = tok._encoder(tok._control)
        assert plain.words is not None
        assert [id for word in plain.words(text) for id in plain.model.encode(word)] == plain.model.encode(
            text
        )


_loaded: dict[str, Tokenizer] = {}


def _vocabulary(name: str) -> Tokenizer:
    if name not in _loaded:
        _loaded[name] = Tokenizer.load(inputs.path("llama-vocab") / f"ggml-vocab-{name}.gguf")
    return _loaded[name]


# Control tokens


def test_text_never_becomes_a_control_token(smollm2: Tokenizer, spm: Tokenizer) -> None:
    for tok in (smollm2, spm):
        for text in tok.special:
            for around in (text, f"a{text}b", f" {text} ", text * 2):
                ids = tok.encode(around)
                assert not any(map(tok.is_special, ids))
                assert tok.decode(ids) == around


@tried
@given(
    st.lists(
        st.sampled_from(["<|im_end|>", "<|im_", "start|>", "<", "|", ">", "end", " ", "\n", "é"]), max_size=8
    )
)
def test_pieces_of_control_tokens_stay_text(smollm2: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    assert not any(map(smollm2.is_special, smollm2.encode(text)))
    assert smollm2.decode(smollm2.encode(text)) == text
    assert smollm2.decode(smollm2.encode(text, "allow")) == text


def test_control_tokens_are_allowed_or_forbidden(smollm2: Tokenizer) -> None:
    text = "<|im_start|>user\nhi<|im_end|>"
    assert smollm2.encode(text, "allow") == [1, *smollm2.encode("user\nhi"), 2]
    with pytest.raises(UserError, match=r"<\|im_end\|>.* at character 3"):
        smollm2.encode("abc<|im_end|>", special="forbid")
    assert smollm2.encode("abc", special="forbid") == smollm2.encode("abc")
    with pytest.raises(UserError, match='"text", "allow" or "forbid"'):
        smollm2.encode("abc", special="maybe")


def test_what_the_default_model_says_of_itself(smollm2: Tokenizer) -> None:
    assert (smollm2.bos, smollm2.eos, smollm2.pad, smollm2.unknown) == (1, 2, 2, 0)
    assert smollm2.eos_ids == (2, 0)  # <|im_end|>, which the file names, and <|endoftext|>
    assert (smollm2.add_bos, smollm2.add_eos, len(smollm2)) == (False, False, 49152)
    assert smollm2.special["<|im_end|>"] == 2
    assert smollm2.is_special(2)
    assert not smollm2.is_special(500)
    assert "<|im_start|>" in (smollm2.chat_template or "")
    assert smollm2.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    assert smollm2.token_text(3575) == "Ġcapital"
    assert smollm2.token_bytes(3575) == b" capital"
    assert smollm2.id_of("Ġcapital") == 3575
    assert smollm2.id_of("no such token") is None


def test_encode_parts(smollm2: Tokenizer) -> None:
    text = "<|im_start|>user\n<|im_end|> x<|im_end|>"
    ids = smollm2.encode_parts(text, [(0, 12, 1), (29, 39, 2)], never=frozenset())
    assert ids == [1, *smollm2.encode("user\n<|im_end|> x"), 2]
    assert smollm2.encode_parts("", []) == []


def test_encode_parts_never_makes_what_is_excluded() -> None:
    """Also where the model's own merges, or a whole piece, would make the token."""
    vocabulary = {"a": 0, "b": 1, "ab": 2, "aba": 3}
    common = {
        "tokens": list(vocabulary),
        "vocabulary": vocabulary,
        "pretokenizer": (),
        "added": (AddedToken(2, "ab"),),
    }
    for parts in (
        TokenizerSpec(**common, merges=[("a", "b"), ("ab", "a")]),
        TokenizerSpec(**common, ranks=vocabulary, whole=True),
    ):
        tok = Tokenizer(parts)
        assert tok.encode_parts("ab", [], never=frozenset()) == [2]
        assert tok.encode_parts("ab", [], never=frozenset({2})) == [0, 1]
        assert tok.encode_parts("abab", [(0, 2, 2)], never=frozenset({2})) == [2, 0, 1]


def test_arrays_batches_and_counts_are_the_same_ids(smollm2: Tokenizer) -> None:
    lines = ["", "Hello", "42 is 6 * 7", "日本語"]
    ids, offsets = smollm2.encode_batch(lines)
    assert ids.dtype == "int32"
    assert offsets.tolist()[0] == 0
    for i, line in enumerate(lines):
        assert ids[offsets[i] : offsets[i + 1]].tolist() == smollm2.encode(line)
        assert smollm2.encode_array(line).tolist() == smollm2.encode(line)
        assert smollm2.count(line) == len(smollm2.encode(line))
    assert smollm2.encode_batch([])[0].size == 0
    with pytest.raises(UserError, match="this is one: give a list"):
        smollm2.encode_batch("one")


def test_lone_surrogates_and_other_types_are_refused(smollm2: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"surrogate pair \(U\+D83D\) at character 1"):
        smollm2.encode("a\ud83d")
    with pytest.raises(UserError, match="surrogate"):
        smollm2.count("\udc80")
    for bad in (-1, len(smollm2), 10**12):
        with pytest.raises(UserError, match=f"{bad} is no id"):
            smollm2.decode([bad])


def test_a_byte_without_a_token_is_left_out_with_a_warning(smollm2: Tokenizer) -> None:
    fresh = Tokenizer(smollm2.spec)
    with pytest.warns(RuntimeWarning, match="no token for byte 0x04"):
        assert fresh.encode("a\x04b") == smollm2.encode("a") + smollm2.encode("b")


# Decoding


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 49151), max_size=30), st.booleans(), st.integers(0, 30))
def test_a_stream_shows_what_decoding_at_once_does(
    smollm2: Tokenizer, ids: list[int], skip: bool, followed: int
) -> None:
    stream, later = smollm2.stream(skip), smollm2.stream(skip)
    pieces = [stream.push(id) for id in ids]
    later.follow(ids[:followed])
    assert [later.push(id) for id in ids[followed:]] == pieces[followed:]
    rest = stream.finish()
    assert "".join(pieces) + rest == smollm2.decode(ids, skip) and later.finish() == rest


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(st.integers(0, 31999), st.integers(0, 300), st.sampled_from([29871, 259])), max_size=20
    ),
    st.integers(0, 20),
)
def test_a_stream_of_sentencepiece_too(spm: Tokenizer, ids: list[int], followed: int) -> None:
    stream, later = spm.stream(), spm.stream()
    pieces = [stream.push(id) for id in ids]
    later.follow(ids[:followed])
    assert [later.push(id) for id in ids[followed:]] == pieces[followed:]
    assert "".join(pieces) + stream.finish() == spm.decode(ids)
    assert spm.decode_bytes(ids).decode("utf-8", "replace") == spm.decode(ids)


@tried
@given(anything)
def test_text_comes_back(smollm2: Tokenizer, spm: Tokenizer, text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "no token" not in str(_encoding_warnings(smollm2, text)):
            assert smollm2.decode(smollm2.encode(text)) == text
    assert spm.decode(spm.encode(text)) == text.replace("▁", " ")


def _encoding_warnings(tok: Tokenizer, text: str) -> list[str]:
    lacking = [byte for byte in range(256) if tok.id_of(bpe.BYTES[byte]) is None]
    return ["no token" for byte in lacking if byte in text.encode()]


def test_half_a_character_is_held_back(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("🎉")
    assert len(ids) > 1
    stream = smollm2.stream()
    assert [stream.push(id) for id in ids] == [""] * (len(ids) - 1) + ["🎉"]
    assert stream.push(ids[0]) == ""
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""
    assert stream.push(smollm2.encode("a")[0]) == "a"


def test_control_tokens_are_left_out_of_decoded_text_on_request(smollm2: Tokenizer) -> None:
    ids = [1, *smollm2.encode("hi"), 2]
    assert smollm2.decode(ids) == "<|im_start|>hi<|im_end|>"
    assert smollm2.decode(ids, skip_special=True) == "hi"


@pytest.mark.parametrize(
    ("rule", "ids", "expected"),
    [
        (KEEP, [0, 1, 2], "  a b"),
        (ONE, [0, 1, 2], " a b"),
        (EACH, [0, 1, 2], "a b"),
        (FIRST, [0, 1, 2], " a b"),
        (ONE, [3, 1], "  a"),
        (EACH, [3, 1], "  a"),
        (FIRST, [3, 1], " a"),
        (FIRST, [4, 1], "ab a"),
    ],
)
def test_what_is_taken_off_the_front(rule: str, ids: list[int], expected: str) -> None:
    texts = ["▁", "▁a", "▁b", "▁▁", "a▁b"]
    vocabulary = {text: id for id, text in enumerate(texts)}
    tok = Tokenizer(
        TokenizerSpec(tokens=texts, vocabulary=vocabulary, ranks={}, bytewise=False, lead=Lead(rule))
    )
    assert tok.decode(ids) == expected


# Importing


def test_importing_the_tokenizer_loads_neither_torch_nor_what_it_does_not_need() -> None:
    unwanted = ("torch", "jinja2", "tokenizers", "numpy")
    code = f"import sys, cutaway.tokenizer; print(*(m for m in {unwanted} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_cache_of_pieces_is_bounded(smollm2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CACHED_PIECES", 10)
    fresh = Tokenizer(smollm2.spec)
    text = " ".join(str(random.Random(i).random()) for i in range(50)) + "x" * 100
    assert fresh.encode(text) == smollm2.encode(text)
    assert len(fresh._encoder(fresh._control).model.cache) <= 10
