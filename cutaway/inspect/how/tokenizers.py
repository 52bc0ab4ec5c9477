"""One text, many tokenizers: words, characters, bytes, the model's own, and two learned from the text.

The two vocabularies that are learned from the text come with their training, step by step: BPE's merges with
the count of each pair, and Unigram's rounds with the pieces that each pruning removes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import log
from typing import Any

import regex

from cutaway.errors import UserError
from cutaway.inspect import tokens
from cutaway.tokenizer import baselines, bpe, bpe_train, unigram_em
from cutaway.tokenizer.unigram import Unigram
from cutaway.tokenizer.word_counts import WordCounts

LONGEST = 2_000  # characters
MERGES = 40  # learned from the text
PIECES = 12  # of Unigram besides the characters
WORD = r" ?\w+| ?[^\w\s]+|\s+"  # a word with the space before it
LISTED = 12


def tokenizers(tokenizer: Any, text: str) -> dict[str, Any]:
    """The text as each tokenizer cuts it, and how the two learned ones came about.

    Raises UserError for a text that is empty or longer than LONGEST characters.
    """
    check_text(text)
    counts = WordCounts.of([text], WORD)
    words = counts.words
    learned, rounds = learned_bpe(counts), unigram(words)
    first = Unigram(rounds[0]["scores"], dict.fromkeys(rounds[0]["scores"], 0))
    ids = tokenizer.encode(text)
    pieces = rounds[-1]["scores"]
    size = len(learned["alphabet"]) + len(learned["merges"])
    cuts = Unigram(pieces, {piece: i for i, piece in enumerate(pieces)})
    return {
        "cuts": [
            _cut("Words", found := regex.findall(baselines.WORD, text), len(set(found)) + 1),
            _cut("Characters", list(text), len(set(text))),
            _cut("Bytes", [f"{byte:02x}" for byte in text.encode()], 256),
            _cut("BPE, learned here", _replayed(learned, words, text), size),
            _cut(
                "Unigram, learned here",
                [
                    word[edge.start : edge.stop]
                    for word in regex.findall(WORD, text)
                    for edge in cuts.best(word)
                ],
                len(pieces),
            ),
            _cut("The model's own", [tokens.text(tokenizer, [id]) for id in ids], len(tokenizer)),
        ],
        "own": [
            {"piece": one.piece, "symbols": first_symbols(one), "joined": one.joined}
            for one in tokens.merges(tokenizer, ids)[:LISTED]
        ],
        "bpe": learned,
        "unigram": {"rounds": [{**one, "scores": None} for one in rounds], **_lattice(first, words)},
    }


def check_text(text: str) -> None:
    """UserError for a text that is empty or longer than LONGEST characters."""
    if not text.strip() or len(text) > LONGEST:
        raise UserError(f"The text has {len(text):,} characters: give 1 to {LONGEST:,}, not spaces alone")


def learned_bpe(counts: WordCounts) -> dict[str, Any]:
    """BPE's merges over words, each with how often its pair occurred, and the words with their counts."""
    words = counts.words
    spelt = bpe_train.spelt_in_characters(counts.arrays())
    merges = bpe_train.learn(spelt, len(spelt.alphabet) + MERGES, min_frequency=1)
    often = bpe_train.pair_counts(words, merges, bytewise=False)
    steps = [{"pair": list(pair), "count": n} for pair, n in zip(merges, often, strict=True)]
    listed = [{"word": word, "count": count} for word, count in Counter(words).most_common()]
    return {"alphabet": spelt.alphabet, "words": listed, "merges": steps}


def unigram(words: Mapping[str, int]) -> list[dict[str, Any]]:
    """The rounds of ``unigram_em.train``: log-likelihood, how many pieces, which pruning removes, scores."""
    parts = dict(words)
    pieces = unigram_em.seed(parts, unigram_em.SEEDS, 1)
    size = sum(len(piece) == 1 for piece in pieces) + PIECES
    rounds = []
    while True:
        likelihood = 0.0
        uses: dict[str, float] = {}
        for _ in range(unigram_em.ROUNDS):
            uses, likelihood = unigram_em.expected(pieces, parts)
            pieces = unigram_em.probabilities(uses)
        best = sorted(pieces.items(), key=lambda one: (-one[1], one[0]))
        made = {"pieces": len(pieces), "log_likelihood": likelihood, "removed": []}
        made |= {"best": [[piece, log(part)] for piece, part in best if len(piece) > 1][:LISTED]}
        rounds.append(made | {"scores": {piece: log(part) for piece, part in best}})
        if len(pieces) <= size:
            return rounds
        kept = unigram_em.pruned(pieces, uses, max(size, int(unigram_em.KEPT * len(pieces))))
        rounds[-1]["removed"] = [piece for piece, _ in best[::-1] if piece not in kept][:LISTED]
        pieces = kept


def _lattice(cuts: Unigram, words: Mapping[str, int]) -> dict[str, Any]:
    """Every way to cut the longest words: the pieces at each place with their scores, and the best cut."""
    found = []
    for word in sorted(words, key=lambda one: (-len(one), one))[:LISTED]:
        best = {(edge.start, edge.stop) for edge in cuts.best(word)}
        edges = [
            [edge.start, edge.stop, edge.score, (edge.start, edge.stop) in best]
            for start in range(len(word))
            for edge in cuts.edges(word, start)
        ]
        found.append({"word": word, "edges": edges})
    return {"lattice": found}


def _cut(name: str, pieces: list[str], vocabulary: int) -> dict[str, Any]:
    return {"name": name, "pieces": pieces, "vocabulary": vocabulary}


def first_symbols(piece: tokens.Merges) -> list[str]:
    """What a piece is before its merges: its bytes, where they are what is merged, else its characters."""
    in_bytes = [bytes([one]).decode(errors="backslashreplace") for one in piece.piece.encode()]
    made = {left + right for left, right in piece.joined}
    leaves = {symbol for pair in piece.joined for symbol in pair} - made
    return in_bytes if leaves <= set(in_bytes) else list(piece.piece)


def _replayed(learned: Mapping[str, Any], words: Mapping[str, int], text: str) -> list[str]:
    """The text by all merges, in their order."""
    now = {word: list(word) for word in words}
    for step in learned["merges"]:
        left, right = step["pair"]
        now = {word: bpe.replaced(symbols, (left, right), left + right) for word, symbols in now.items()}
    return [symbol for word in regex.findall(WORD, text) for symbol in now[word]]
