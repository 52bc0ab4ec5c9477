"""The fast path against the reference: ids, counts, batches and text back; streams, threads and the
kept vocabulary.
"""

import random
import re
import threading
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cutaway import native
from cutaway.errors import UserError
from cutaway.native.bpe import Core
from cutaway.tokenizer import Tokenizer, bpe, compiled, fast
from cutaway.tokenizer.pretokenize import GPT2, PrefixSpace, Split
from cutaway.tokenizer.spec import TokenizerSpec
from tests import inputs
from tests.test_scan import MARKED, wild

built = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built"
)
tried = settings(max_examples=50, deadline=None)


@cache
def reference(tok: Tokenizer) -> Tokenizer:
    """The reference of the same tokenizer."""
    made = Tokenizer(tok.spec)
    vars(made)["_path"] = "The Python code encodes, as the judge."
    return made


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return Tokenizer.load(inputs.path("smollm2"))


def small(merges: list[tuple[str, str]] | None, ranks: list[str] | None, **more: object) -> Tokenizer:
    """A byte-level vocabulary of the bytes and what merging makes of them."""
    texts = [left + right for left, right in merges or ()] + (ranks or [])
    tokens = list(dict.fromkeys([*bpe.BYTES, *texts]))
    vocabulary = {text: id for id, text in enumerate(tokens)}
    return Tokenizer(
        TokenizerSpec(
            tokens=tokens,
            vocabulary=vocabulary,
            merges=merges,
            ranks=vocabulary if merges is None else None,
            pretokenizer=more.pop("pretokenizer", (Split(GPT2),)),  # pyright: ignore[reportArgumentType]
            **more,  # pyright: ignore[reportArgumentType]
        )
    )


few = st.text("abc", min_size=1, max_size=3)


@built
@tried
@given(
    st.lists(st.tuples(few, few), max_size=25),
    st.lists(st.text("abc", min_size=2, max_size=6), max_size=25),
    st.lists(st.text("abc ", max_size=40), max_size=6),
    st.booleans(),
)
def test_any_merges_give_the_definitions_ids(
    pairs: list[tuple[str, str]], ranks: list[str], texts: list[str], whole: bool
) -> None:
    """Also those that rank a merge before its parts, reach a token in no way, or in two."""
    for tok in (small(pairs, None, whole=whole), small(None, ranks, whole=whole)):
        assert "native" in tok.path
        for text in texts:
            assert tok.encode(text) == reference(tok).encode(text)


@built
@pytest.mark.filterwarnings("ignore:the vocabulary has no token for byte")
@tried
@given(st.lists(wild, max_size=5))
@example([" ", "", "a"])
def test_texts_of_every_kind(smollm2: Tokenizer, texts: list[str]) -> None:
    judge = reference(smollm2)
    expected = [judge.encode(text) for text in texts]
    assert [smollm2.encode(text) for text in texts] == expected
    assert [smollm2.encode_array(text).tolist() for text in texts] == expected
    assert [smollm2.count(text) for text in texts] == list(map(len, expected))
    ids, offsets = smollm2.encode_batch(texts, threads=2)
    assert [ids[start:stop].tolist() for start, stop in pairwise(offsets)] == expected
    for text, one in zip(texts, expected, strict=True):
        assert smollm2.decode(one) == judge.decode(one)
        assert smollm2.decode(np.array(one, np.int32)) == smollm2.decode(one)
        assert "".join(smollm2.decode_stream(one)) == smollm2.decode(one)
        assert smollm2.encode(text, special="allow") == judge.encode(text, special="allow")


@built
@pytest.mark.filterwarnings("ignore:the vocabulary has no token for byte")
@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "phi-3", "gemma-4", "deepseek-llm", "qwen35"])
def test_vocabularies_of_every_kind(name: str) -> None:
    tok = Tokenizer.load(inputs.path("llama-vocab") / f"ggml-vocab-{name}.gguf")
    judge, noise = reference(tok), random.Random(7)
    for size in (3, 30, 300):
        for _ in range(20):
            text = "".join(noise.choices(MARKED, k=size))
            assert tok.encode(text) == judge.encode(text)


@built
def test_threads_and_long_texts_change_nothing(smollm2: Tokenizer) -> None:
    noise = random.Random(1)
    text = " ".join("".join(noise.choices("etaoin", k=noise.randint(1, 9))) for _ in range(120_000))
    one = smollm2.encode_array(text, threads=1)
    assert (smollm2.encode_array(text, threads=4) == one).all()
    assert smollm2.encode(text) == one.tolist()
    assert smollm2.decode(one) == text
    found: list[bool] = []
    workers = [
        threading.Thread(target=lambda: found.append(bool((smollm2.encode_array(text) == one).all())))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [True] * 4


@built
def test_more_ids_than_there_was_room_for(smollm2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A digit is an id: where so many were not expected, the core asks for longer memory."""
    monkeypatch.setattr(native.bpe, "SURE", 8)
    texts = ["words between " * 9_000, "", "7" * 150_000, *["123 é", "of it"] * 500, "0" * 60_000, ""]
    expected = [reference(smollm2).encode(text) for text in texts]
    for threads in (1, 3):
        ids, offsets = smollm2.encode_batch(texts, threads=threads)
        assert [ids[start:stop].tolist() for start, stop in pairwise(offsets)] == expected
        for text, one in zip(texts, expected, strict=True):
            assert smollm2.encode_array(text, threads=threads).tolist() == one


@built
def test_a_text_without_utf8_or_none_at_all_in_a_batch(smollm2: Tokenizer) -> None:
    with pytest.raises(UserError):
        smollm2.encode_batch(["a", "b\ud800"])
    with pytest.raises(TypeError):
        smollm2._path.core.batch("smollm", ["a", 5])  # pyright: ignore
    assert [array.tolist() for array in smollm2.encode_batch([])] == [[], [0]]


@built
def test_unbroken_texts(smollm2: Tokenizer) -> None:
    judge = reference(smollm2)
    for text in ("a" * 20_000, " " * 20_000, "\n" * 20_000, "日本" * 5_000, "aé" * 5_000):
        assert smollm2.encode(text) == judge.encode(text)


@built
@pytest.mark.parametrize(
    "file",
    [
        "tiktoken/cl100k_base.json",
        "llama-vocab/ggml-vocab-deepseek-llm.gguf",
        "llama-vocab/ggml-vocab-phi-3.gguf",
    ],
)
def test_words_run_together(file: str) -> None:
    """In a long piece the longest token often does not fit the one before, or leads nowhere."""
    folder, name = file.split("/")
    tok = Tokenizer.load(inputs.path(folder) / name)
    noise = random.Random(3)
    some = (tok.decode([id]).strip() for id in noise.sample(range(len(tok.spec.vocabulary)), 5_000))
    words = [text for text in some if text.isalpha()]
    han = [chr(point) for point in range(0x4E00, 0x9FA6)]
    for letters, count in ((words, 1_000), (han, 10_000), ("etaoin", 4_000)):
        text = "".join(noise.choices(letters, k=count))
        assert tok.encode(text) == reference(tok).encode(text)


@built
def test_a_space_in_front(smollm2: Tokenizer) -> None:
    tok = small([("a", "b"), ("Ġ", "ab")], None, pretokenizer=(PrefixSpace(), Split(GPT2)))
    assert tok.path == "native: the scanner gpt2"
    for text in ("ab", " ab", "", " "):
        assert tok.encode(text) == reference(tok).encode(text)


@built
def test_a_pattern_without_a_scanner_says_so() -> None:
    tok = small([("a", "b")], None, pretokenizer=(Split(r"\w+|\W"),))
    assert "cut in Python" in tok.path
    assert tok.encode("ab, abb") == reference(tok).encode("ab, abb")


def test_half_a_surrogate_pair_is_refused(smollm2: Tokenizer) -> None:
    for call in (
        smollm2.encode,
        smollm2.encode_array,
        smollm2.count,
        lambda text: smollm2.encode_batch([text]),
    ):
        with pytest.raises(UserError, match="half a surrogate pair"):
            call("a\ud800")


@built
def test_ids_that_are_none_are_refused(smollm2: Tokenizer) -> None:
    for bad in (-1, len(smollm2), 1 << 40):
        with pytest.raises(UserError, match="is no id"):
            smollm2.decode([1, bad])
    with pytest.raises(UserError, match="is no id"):
        smollm2.decode(np.array([len(smollm2)]))


@built
def test_a_vocabulary_is_kept_and_made_anew_when_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path / "home"))
    source = tmp_path / "tokenizer.json"
    small([("a", "b")], None).save(source)
    text = "abab <|x|>"
    expected = Tokenizer.load(source).encode(text)
    (kept,) = (tmp_path / "home").rglob("*.bin")
    again = Tokenizer.load(source)
    assert isinstance(again.spec, compiled.Recalled)
    assert again.encode(text) == expected
    assert again.decode(expected) == text
    assert again.token_text(expected[0]) == "ab"
    whole = kept.read_bytes()
    for damaged in (
        b"",
        whole[:100],
        whole[:-1],
        *(_flipped(whole, at) for at in (0, 25, 60, 3000, len(whole) - 9)),
    ):
        kept.write_bytes(damaged)
        found = Tokenizer.load(source)
        assert found.encode(text) == expected
        assert kept.read_bytes() == whole


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


@built
def test_a_damaged_layout_is_no_vocabulary() -> None:
    tok = small([("a", "b")], None)
    laid_out = fast.compiled(tok.spec, frozenset(), [tok.token_bytes(id) for id in range(len(tok))])
    assert laid_out is not None
    Core(laid_out)
    noise = random.Random(2)
    for _ in range(200):
        with pytest.raises(ValueError, match="not a compiled vocabulary"):
            Core(_flipped(laid_out, noise.randrange(len(laid_out))))


class _Emptying:
    """An integer that empties its list while it is read."""

    def __init__(self, ids: list) -> None:
        self.ids = ids

    def __index__(self) -> int:
        self.ids.clear()
        return 5


def test_lists_of_ids_are_read_whole_or_refused() -> None:
    tok = Tokenizer.load(inputs.path("tiktoken") / "cl100k_base.json")
    for size in (0, 1, 31, 32, 33, 100):
        ids = list(range(3000, 3000 + size))
        assert tok.decode_bytes(ids) == b"".join(map(tok.token_bytes, ids))
        for odd in (-1, 1 << 31, 1 << 70, len(tok)):
            with pytest.raises(UserError):
                tok.decode([*ids, odd])
        with pytest.raises(TypeError):
            tok.decode([*ids, None])  # pyright: ignore[reportArgumentType]
    ids = list(range(3000, 3100))
    ids.insert(40, _Emptying(ids))  # pyright: ignore[reportArgumentType]
    with pytest.raises(IndexError):
        tok.decode(ids)


def test_every_word_of_a_vocabulary_merges_to_itself() -> None:
    # Each has a pair of its own, so that pairs which found their bucket full are looked for too.
    tok = Tokenizer.load(inputs.path("tiktoken") / "cl100k_base.json")
    words = {tok.decode([id]): id for id in range(100_000)}
    words = {text: id for text, id in words.items() if re.fullmatch(" ?[a-z]{2,14}", text)}
    ids, offsets = tok.encode_batch(list(words))
    assert len(words) > 30_000 and offsets.tolist() == list(range(len(words) + 1))
    assert ids.tolist() == list(words.values())
