"""Merges and vocabularies learned, beside Hugging Face's trainers, whose rule of ties is the same."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Judge

import cutaway
from cutaway.tokenizer import bpe_train
from cutaway.tokenizer.pretokenize import CL100K
from cutaway.tokenizer.word_counts import WordCounts
from tests import inputs


def judged(texts: Sequence[str], size: int, rarest: int) -> list[tuple[str, str]]:
    judge = Judge(models.BPE())
    judge.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CL100K), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=rarest,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    judge.train_from_iterator(texts, trainer)
    return [tuple(pair) for pair in json.loads(judge.to_str())["model"]["merges"]]


def learned(texts: Sequence[str], size: int, rarest: int) -> list[tuple[str, str]]:
    corpus = bpe_train.spelt_in_bytes(WordCounts.of(texts).arrays())
    return bpe_train.learn(corpus, size, rarest)


def test_merges_of_a_novel_are_those_of_hugging_face() -> None:
    text = (inputs.path("sentencepiece-fixtures") / "botchan.txt").read_text(encoding="utf-8")
    assert learned([text], 4000, 2) == judged([text], 4000, 2)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(alphabet="ab c\nñ界1", max_size=60), max_size=5), st.integers(1, 4))
def test_merges_of_small_corpora_are_those_of_hugging_face(texts: list[str], rarest: int) -> None:
    """The size is one at which both have merges left, or neither has."""
    assert learned(texts, 290, rarest) == judged(texts, 290, rarest)


def test_the_file_gives_hugging_face_the_same_ids(tmp_path: Path) -> None:
    text = (inputs.path("sentencepiece-fixtures") / "botchan.txt").read_text(encoding="utf-8")
    tok = cutaway.Tokenizer.train(text, 2000, special=["<|end|>"])
    judge = Judge.from_file(str(tok.save(tmp_path / "tokenizer.json")))
    sample = text[:20_000] + " 界🦜 naïve\n\n\n"
    assert judge.encode(sample).ids == tok.encode(sample)


@pytest.mark.parametrize("size", [700])
def test_character_level_merges_are_those_of_hugging_face(size: int) -> None:
    text = (inputs.path("sentencepiece-fixtures") / "botchan.txt").read_text(encoding="utf-8")
    judge = Judge(models.BPE())
    judge.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False)
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    judge.train_from_iterator(lines, trainer)
    theirs = [tuple(pair) for pair in json.loads(judge.to_str())["model"]["merges"]]
    corpus = bpe_train.spelt_in_characters(WordCounts.of(["\n".join(lines)], "metaspace").arrays())
    assert bpe_train.learn(corpus, size) == theirs
