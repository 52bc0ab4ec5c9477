"""Learning merges: the native trainer, its reference and the reference give the same for any corpus."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cutaway
from cutaway import native
from cutaway.cli import main
from cutaway.data import run_tokenizer
from cutaway.errors import UserError
from cutaway.native import bpe_train as native_train
from cutaway.tokenizer import Tokenizer, bpe, bpe_train, training
from cutaway.tokenizer.word_counter import packed
from cutaway.tokenizer.word_counts import WordCounts

built = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built"
)
CORPORA = st.dictionaries(st.text(alphabet="abc", min_size=1, max_size=24), st.integers(1, 9), max_size=8)


def spelt(words: dict[str, int], most: int | None = None) -> bpe_train.Spelt:
    return bpe_train.spelt_in_characters(packed({word.encode(): n for word, n in words.items()}), most)


def rows(make: object, words: bpe_train.Spelt, *rest: object) -> list[list[int]]:
    made = make(*words[:3], len(words.alphabet), *rest)  # type: ignore[operator]
    return [row for block in made for row in block.tolist()]


@settings(max_examples=150, deadline=None)
@given(
    CORPORA,
    st.integers(0, 30),
    st.integers(0, 4),
    st.lists(st.text(alphabet="abc", min_size=2, max_size=3), max_size=2),
    st.sampled_from([None, 2]),
)
@example({"aaaaaaa": 1, "aa": 3, "ab" * 9: 2}, 30, 1, [], None)
@example({"abcabc": 5, "bcab": 4, "abc": 1, "cabc": 3}, 12, 1, ["abc"], None)
def test_merges_are_the_definitions(
    words: dict[str, int], more: int, rarest: int, reserved: Sequence[str], most: int | None
) -> None:
    corpus = spelt(words, most)
    size = len(corpus.alphabet) + more
    want = bpe.train(words, corpus.alphabet, size, rarest, reserved)
    assert bpe_train.learn(corpus, size, rarest, reserved) == want
    places = {symbol: place for place, symbol in enumerate(corpus.alphabet)}
    forbidden = [[places[s] for s in text] for text in reserved if set(text) <= places.keys()]
    reference = rows(bpe_train.merges_reference, corpus, size, rarest, forbidden)
    tokens = [*corpus.alphabet, *map("".join, want)]
    assert len(set(tokens)) == len(tokens)
    assert [(tokens[left], tokens[right]) for left, right, _, _ in reference] == want
    if native.unavailable_reason() is None:
        assert rows(native_train.merges, corpus, size, rarest, forbidden) == reference


def zipf(seed: int, words: int) -> dict[str, int]:
    """Words like a language's: few frequent ones, many rare ones, made of the same syllables."""
    generator = random.Random(seed)
    syllables = [
        "".join(generator.choices("aeioubcdfgklmnprst", k=generator.randint(1, 4))) for _ in range(90)
    ]
    made = {"".join(generator.choices(syllables, k=generator.randint(1, 5))) for _ in range(words)}
    return {word: 1 + (20 * words // rank) ** 2 for rank, word in enumerate(sorted(made), 1)}


@built
def test_merges_go_on_below_the_first_threshold() -> None:
    """Rare pairs are not followed until they are needed; then everything is counted anew, to the same end."""
    corpus = spelt(zipf(3, 1500))
    for size in (400, 2500):
        reference = rows(bpe_train.merges_reference, corpus, size, 1, [])
        ours = rows(native_train.merges, corpus, size, 1, [])
        assert ours == reference
    weight = int(np.repeat(corpus.counts, np.diff(corpus.offsets)).sum())
    assert weight // (64 * 400) > 4 * reference[-1][3]  # the last merges are rarer than the first threshold


@built
def test_merges_do_not_depend_on_the_order_of_words() -> None:
    words = list(zipf(4, 800).items())
    one = bpe_train.learn(spelt(dict(words)), 600)
    random.Random(1).shuffle(words)
    assert bpe_train.learn(spelt(dict(words)), 600) == one
    assert bpe_train.learn(spelt({word: 3 * count for word, count in words}), 600) == one


@built
@pytest.mark.parametrize("word", ["a" * 300_000, "ab" * 100_000, "".join(map(chr, range(0x4E00, 0x9E00)))])
def test_one_huge_word(word: str) -> None:
    learned = bpe_train.learn(spelt({word: 2}), 300 + len(set(word)))
    assert learned
    if len(set(word)) <= 2:
        assert max(len(left + right) for left, right in learned) > 1000


@built
def test_what_does_not_fit_is_refused_before_the_core() -> None:
    symbols, offsets, counts = np.zeros(3, np.int32), np.array([0, 1, 3]), np.array([1, 1])
    good = (symbols, offsets, counts)
    assert rows(native_train.merges, bpe_train.Spelt(*good, ["a"]), 5, 1)
    for bad in (
        (symbols.astype(np.int64), offsets, counts),
        (symbols, offsets[:-1], counts),
        (symbols, np.array([0, 4, 3]), counts),
        (symbols, np.array([0, 1, 2]), counts),
        (symbols + 1, offsets, counts),
        (symbols - 2, offsets, counts),
        (symbols, offsets, -counts),
        (symbols, offsets, counts << 61),
    ):
        with pytest.raises(UserError):
            next(native_train.merges(*bad, 1, 5, 1))
    with pytest.raises(UserError):
        next(native_train.merges(*good, 1, 1 << 30, 1))


# The whole: from a corpus to a tokenizer.

TEXTS = ["the cat sat on the mat, the hat that the cat sat on", "naïve café 世界 世界 1234 1234\n\n"] * 3


def test_a_tokenizer_from_texts_round_trips(tmp_path: Path) -> None:
    for pattern, level in (("cl100k", "byte"), ("gpt2", "byte"), ("metaspace", "character")):
        tok = cutaway.Tokenizer.train(TEXTS, 290, pattern, ["<|end|>", "<|pad|>"], level=level)
        assert len(tok) == 290
        assert tok.special == {"<|end|>": 288, "<|pad|>": 289}
        assert tok.eos == 288
        text = "the naïve cat 🦜 <|end|> sat"
        assert tok.decode(tok.encode(text)) == text
        assert 288 in tok.encode(text, special="allow") and 288 not in tok.encode(text)
        again = cutaway.Tokenizer.load(tok.save(tmp_path / f"{pattern}.json"))
        assert again.encode(text) == tok.encode(text)
        assert tok.count(TEXTS[0]) < len(TEXTS[0]) / 2


def test_training_on_texts_files_and_counts_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("".join(TEXTS), encoding="utf-8")
    one = cutaway.Tokenizer.train("".join(TEXTS), 290)
    two = cutaway.Tokenizer.train(file, 290)
    three = cutaway.Tokenizer.train(WordCounts.load(WordCounts.of([file]).save(tmp_path / "counts")), 290)
    assert one.spec == two.spec == three.spec


@pytest.mark.parametrize("corpus", ["", "a", "\0", "\0\0\0\0", "🦜", "\ufffd\uffff"])
def test_a_corpus_with_less_to_merge_says_so(corpus: str) -> None:
    with pytest.warns(RuntimeWarning, match=r"gives \d+ tokens and not 300"):
        tok = cutaway.Tokenizer.train(corpus, 300, special=["<|end|>"])
    assert tok.decode(tok.encode(corpus)) == corpus
    assert tok.decode(tok.encode("anything 🦜")) == "anything 🦜"


def test_min_frequency_stops() -> None:
    with pytest.warns(RuntimeWarning, match="occurs 4 times"):
        tok = cutaway.Tokenizer.train(["ab ab ab cd cd cd cd"], 300, min_frequency=4)
    assert "cd" in map(tok.token_text, range(len(tok))) and tok.id_of("ab") is None


def cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["tokenizer", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_trains_from_texts_and_from_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = [tmp_path / f"{i}.txt" for i in range(2)]
    for shard, text in zip(shards, (TEXTS[0], TEXTS[1] + "<|end|>"), strict=True):
        shard.write_text(text, encoding="utf-8")
    options = ("--special", "<|end|>")
    code, out, _ = cli(capsys, "train", *shards, "--size", 285, *options, "--output", tmp_path / "a.json")
    assert code == 0 and "285 tokens" in out
    for shard in shards:
        made = shard.with_suffix(".counts")
        code, out, _ = cli(capsys, "count-words", shard, *options, "--output", made, "--json")
        assert code == 0 and json.loads(out)["documents"] == 1
    counts = sorted(tmp_path.glob("*.counts"))
    code, out, _ = cli(capsys, "train", *counts, "--size", 285, "--output", tmp_path / "b.json", "--json")
    assert code == 0 and json.loads(out)["tokens"] == 285
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    code, _, err = cli(capsys, "train", *counts, shards[0])
    assert code == 2 and "is text among counts" in err
    code, _, err = cli(capsys, "train", *counts, "--pattern", "gpt2")
    assert code == 2 and "bring their own" in err
    code, _, err = cli(capsys, "train", shards[0], "--size", 100)
    assert code == 2 and "256 bytes are tokens" in err and "Traceback" not in err
    code, _, err = cli(capsys, "train", shards[0], "--size", 4000, "--output", tmp_path / "c.json")
    assert code == 0 and "not 4,000" in err
    for kind in ("unigram", "wordpiece"):
        size = 330 if kind == "unigram" else 50
        code, out, _ = cli(
            capsys, "train", shards[0], "--kind", kind, "--size", size, "--output", tmp_path / f"{kind}.json"
        )
        assert code == 0 and "tokens" in out


def test_mistakes_are_refused() -> None:
    with pytest.raises(UserError, match="too small"):
        cutaway.Tokenizer.train("abc", 256, special=["<s>"])
    with pytest.raises(UserError, match="of that text"):
        cutaway.Tokenizer.train("abc", 300, special=["!"])
    with pytest.raises(UserError, match="level"):
        cutaway.Tokenizer.train("abc", 300, level="word")


def test_rare_characters_fall_back_to_bytes() -> None:
    counts = WordCounts.of(["aaaa bbbb cccc " * 9 + "d"], "metaspace")
    parts = training.bpe(counts, 256 + 4 + 3, level="character", alphabet=4)
    tok = cutaway.Tokenizer(parts)
    assert [tok.token_text(id) for id in tok.encode("d")][-1] == "<0x64>"
    assert parts.tokens[256:260] == ["a", "b", "c", "▁"]


def test_no_merge_makes_a_byte_token_or_a_special_one() -> None:
    texts = ["<0x41> <0x41> <0x41> <s> "] * 50
    with pytest.warns(RuntimeWarning):
        tok = cutaway.Tokenizer.train(texts, 400, r"\S+|\s", level="character", special=["</s>"])
    assert len(set(tok.spec.tokens)) == len(tok.spec.tokens)
    assert tok.decode(tok.encode("<0x41>A")) == "<0x41>A"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_end_of_text_is_kept_in_every_format(kind: str, tmp_path: Path) -> None:
    """A name that no list knows; pretraining finds it, and `tokenizers` reads the same file."""
    size = 270 if kind == "bpe" else 275
    text = "the cat sat on the mat, and the dog sat on the log. " * 20
    tok = Tokenizer.train([text], size, kind=kind, special=["<|x|>"], end_of_text="<|stop|>")
    assert tok.token_text(tok.eos or 0) == "<|stop|>" and tok.is_special(tok.eos or 0)
    assert run_tokenizer.ends(tok) == (tok.eos, tok.eos)
    for suffix in ("json", "gguf") if kind == "bpe" else ("json",):
        again = Tokenizer.load(tok.save(tmp_path / f"tokenizer.{suffix}"))
        assert (again.eos, again.add_eos) == (tok.eos, False)
        assert again.encode(text, add_special=True) == tok.encode(text)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode(text).ids == Tokenizer.load(tmp_path / "tokenizer.json").encode(text)


def test_counts_without_the_end_of_text_get_it() -> None:
    counts = WordCounts.of(["ab ab ab cd"], "gpt2", ["<|x|>"])
    tok = Tokenizer.train(counts, 262, end_of_text="<|endoftext|>")
    assert tok.special == {"<|x|>": len(tok) - 2, "<|endoftext|>": len(tok) - 1}
    assert tok.eos == len(tok) - 1 and counts.special == ("<|x|>",)
