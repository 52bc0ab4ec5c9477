"""Unigram's training: expectations by enumeration, a likelihood that never falls, pieces beside
SentencePiece's; WordPiece's two rules, beside Hugging Face's trainer.
"""

import io
import json
import math
import random
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Judge
from tokenizers import models, pre_tokenizers, trainers

import cutaway
from cutaway.errors import UserError
from cutaway.tokenizer import unigram_em, wordpiece_train
from cutaway.tokenizer.word_counts import WordCounts
from tests import inputs

WORDS = st.dictionaries(
    st.text(alphabet="abc", min_size=1, max_size=9), st.integers(1, 9), min_size=1, max_size=6
)


def novel() -> Path:
    return inputs.path("sentencepiece-fixtures") / "botchan.txt"


def cuts(word: str, pieces: dict[str, float]) -> list[list[str]]:
    if not word:
        return [[]]
    heads = [word[:size] for size in range(1, len(word) + 1) if word[:size] in pieces]
    return [[head, *rest] for head in heads for rest in cuts(word[len(head) :], pieces)]


@settings(max_examples=60, deadline=None)
@given(WORDS, st.integers(0, 1000))
def test_expectations_are_those_of_all_cuts(words: dict[str, int], seed: int) -> None:
    generator = random.Random(seed)
    found = {word[i:j] for word in words for i in range(len(word)) for j in range(i + 1, len(word) + 1)}
    kept = [piece for piece in sorted(found) if len(piece) == 1 or generator.random() < 0.4]
    pieces = unigram_em.probabilities({piece: generator.random() + 0.1 for piece in kept})
    uses, likelihood = unigram_em.expected(pieces, words)
    want: Counter[str] = Counter()
    whole = 0.0
    for word, count in words.items():
        ways = [(cut, math.prod(map(pieces.__getitem__, cut))) for cut in cuts(word, pieces)]
        total = sum(chance for _, chance in ways)
        whole += count * math.log(total)
        for cut, chance in ways:
            for piece in cut:
                want[piece] += count * chance / total
    assert likelihood == pytest.approx(whole)
    assert uses == pytest.approx({piece: want[piece] for piece in pieces})


def test_the_likelihood_never_falls() -> None:
    words = WordCounts.of(novel().read_text(encoding="utf-8")[:40_000], "metaspace").words
    pieces = unigram_em.seed(words, 3000, 2)
    before = -math.inf
    for _ in range(6):
        uses, likelihood = unigram_em.expected(pieces, words)
        assert likelihood >= before - 1e-6 * abs(likelihood)
        assert sum(pieces.values()) == pytest.approx(1, abs=1e-4)
        pieces, before = unigram_em.probabilities(uses), likelihood


def test_loss_is_what_leaving_a_piece_out_costs() -> None:
    """The piece that loss calls dearest costs more likelihood than the cheapest, when left out in truth."""
    words = {"abab": 20, "abc": 9, "cab": 4, "bcbc": 1}
    pieces = unigram_em.seed(words, 50, 1)
    for _ in range(3):
        uses, whole = unigram_em.expected(pieces, words)
        pieces = unigram_em.probabilities(uses)
    uses, whole = unigram_em.expected(pieces, words)
    lost = unigram_em.loss(pieces, uses)
    cheap, dear = min(lost, key=lost.__getitem__), max(lost, key=lost.__getitem__)

    def without(piece: str) -> float:
        left = unigram_em.probabilities(
            {other: probability for other, probability in pieces.items() if other != piece}
        )
        return whole - unigram_em.expected(left, words)[1]

    assert without(dear) > without(cheap)


def test_pieces_beside_sentencepiece() -> None:
    """As many pieces from the same text: at least its likelihood, and within 1% of its compression."""
    text = re.sub(r"\r\n", "\n", novel().read_text(encoding="utf-8"))[:40_000]
    counts = WordCounts.of(text, "metaspace")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_writer=model,
        vocab_size=400,
        model_type="unigram",
        normalization_rule_name="identity",
        character_coverage=1.0,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
        num_threads=1,
    )
    judge = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    theirs = {judge.id_to_piece(i): judge.get_score(i) for i in range(1, len(judge))}
    mass = sum(map(math.exp, theirs.values()))
    ours = unigram_em.train(counts.words, len(theirs), seeds=2_000)
    assert len(ours) == len(theirs)
    parts = unigram_em._parts(counts.words)
    likelihood = unigram_em.expected({piece: math.exp(score) for piece, score in ours.items()}, parts)[1]
    judged = unigram_em.expected({p: math.exp(score) / mass for p, score in theirs.items()}, parts)[1]
    assert likelihood > judged
    assert unigram_em.tokens(ours, counts.words) < 1.01 * unigram_em.tokens(theirs, counts.words)
    assert len(ours.keys() & theirs.keys()) > 0.7 * len(theirs)


def test_unigram_is_a_function_of_the_words() -> None:
    words = {"▁abc" * (i % 3 + 1) + chr(97 + i % 7): i + 1 for i in range(40)}
    one = unigram_em.train(words, 30)
    two = unigram_em.train(dict(reversed(words.items())), 30)
    assert one == two and list(one) == list(two) and len(one) == 30
    assert list(one.values()) == sorted(one.values(), reverse=True)


def test_unigram_of_hostile_corpora() -> None:
    assert unigram_em.train({}, 10) == {}
    assert unigram_em.train({"a": 1}, 10) == {"a": 0.0}
    assert set("".join(unigram_em.train({"a" * 100_000: 1}, 5))) == {"a"}
    assert unigram_em.train({"\0\0": 3}, 2)
    with pytest.raises(UserError, match="too few"):
        unigram_em.train({"abcdef": 1}, 5)


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_they_become_tokenizers(kind: str, tmp_path: Path) -> None:
    texts = ["the cat sat on the mat<|end|> the hat that the cat sat on"] * 4
    with pytest.warns(RuntimeWarning, match="tokens and not 330"):
        tok = cutaway.Tokenizer.train(texts, 330, special=["<|end|>"], kind=kind)
    text = "the cat that sat<|end|> on"
    assert tok.special["<|end|>"] in tok.encode(text, special="allow")
    assert tok.special["<|end|>"] not in tok.encode(text)
    again = cutaway.Tokenizer.load(tok.save(tmp_path / "tokenizer.json"))
    assert again.encode(text) == tok.encode(text)
    judge = Judge.from_file(str(tmp_path / "tokenizer.json"))
    assert judge.encode("the cat sat", add_special_tokens=False).ids == tok.encode("the cat sat")
    if kind == "unigram":
        assert tok.decode(tok.encode("the cat 🦜 hat")) == "the cat 🦜 hat"
    with pytest.raises(UserError, match="no kind"):
        cutaway.Tokenizer.train(texts, 330, kind="word")


def test_wordpiece_merges_are_hugging_faces_where_no_tie_decides() -> None:
    """Their ids of characters inside words are in random order, so ties fall anyhow: until the first."""
    counts = WordCounts.of(novel(), "bert")
    size = 400
    ours = wordpiece_train.train(counts.words, size)
    judge = Judge(models.WordPiece(unk_token="[UNK]"))
    judge.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(vocab_size=size, show_progress=False)
    judge.train_from_iterator((word for word, count in counts.words.items() for _ in range(count)), trainer)
    theirs = json.loads(judge.to_str())["model"]["vocab"]
    assert len(theirs) == size
    assert len(theirs.keys() & set(ours)) >= size - 2


def test_wordpiece_by_likelihood_is_the_formula() -> None:
    words = {"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}
    learned = wordpiece_train.by_likelihood(words, 12)
    assert learned[:2] == [("##g", "##s"), ("p", "##u")]  # as good as ("h", "##u"), and more frequent
    assert wordpiece_train.train(words, 12, "likelihood")[-1] == wordpiece_train.join(*learned[-1])
    single = Counter(s for word, n in words.items() for s in wordpiece_train.spelt(word) for _ in range(n))
    both = Counter(
        p for word, n in words.items() for p in pairwise(wordpiece_train.spelt(word)) for _ in range(n)
    )
    assert max(both, key=lambda p: both[p] / (single[p[0]] * single[p[1]])) == learned[0]
    with pytest.raises(UserError, match="rule"):
        wordpiece_train.train(words, 12, "other")
    with pytest.raises(UserError, match="too few"):
        wordpiece_train.train(words, 3)


def test_a_lessons_corpus_makes_a_vocabulary_of_forty_without_bytes(tmp_path: Path) -> None:
    corpus = ["low lower newest widest " * 3]
    with pytest.raises(
        UserError, match=r"257 tokens are bytes .* or leave the bytes out \(--no-byte-fallback\)"
    ):
        cutaway.Tokenizer.train(corpus, 40, kind="unigram")
    tok = cutaway.Tokenizer.train(corpus, 17, kind="unigram", byte_fallback=False)
    assert len(tok) == 17 and tok.decode(tok.encode("lowest")) == "lowest"
    path = tok.save(tmp_path / "forty.json")
    judge = Judge.from_file(str(path))
    for text in ("lowest newer", "a zé low"):
        assert tok.encode(text) == judge.encode(text).ids
    with pytest.raises(UserError, match="1 token is unknown, 0 special, 11 the corpus's characters"):
        cutaway.Tokenizer.train(corpus, 11, kind="unigram", byte_fallback=False)
