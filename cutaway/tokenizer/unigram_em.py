"""Unigram's training (Kudo, arXiv:1804.10959): begin with far too many pieces, and drop those least missed.

A piece has a probability, and a word may be cut into pieces in many ways; the likelihood of a corpus sums
over all of them. Expectation maximisation raises it, and no round lowers it:

- `expected` counts how often each piece is used, over all cuts weighted by their probability
  (forward-backward over the lattice of a word). A piece's share of all uses is its new probability.
- `loss` is how far the likelihood would fall without a piece, if its uses went to the best cut of its text.
  The quarter with the least loss is dropped, until `size` pieces are left. Single characters always stay.

SentencePiece does the same with two differences: it starts from the repeated substrings that a suffix array
finds across words, and it shrinks counts by the digamma function, which favours sparse vocabularies.
Everything here is in a fixed order: the same words give the same pieces and scores to the last bit.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from math import fsum, inf, log

from cutaway.errors import UserError
from cutaway.store.files import Progress
from cutaway.tokenizer.unigram import Unigram

LONGEST_PIECE = 16  # characters
LONGEST_WORD = 32  # characters; longer words are learned from in parts, so that no probability is lost to 0
SEEDS = 1_000_000
KEPT = 0.75
ROUNDS = 2  # of expectation maximisation between two prunings
LEAST = 1e-9  # a probability; LONGEST_WORD of them multiplied are still a number


def train(
    words: Mapping[str, int],
    size: int,
    *,
    seeds: int = SEEDS,
    min_frequency: int = 2,
    progress: Progress | None = None,
) -> dict[str, float]:
    """The `size` pieces of words and their scores (natural logarithms of probabilities), best first.

    There are fewer where the corpus has fewer substrings that occur `min_frequency` times. Raises UserError
    for a size below the number of characters.
    """
    parts = _parts(words)
    pieces = seed(parts, seeds, min_frequency)
    characters = sum(len(piece) == 1 for piece in pieces)
    if size < characters:
        raise UserError(f"{size:,} pieces are too few: the corpus has {characters:,} characters")
    begun = len(pieces)
    while True:
        for _ in range(ROUNDS):
            uses, _ = expected(pieces, parts)
            pieces = probabilities(uses)
        if progress is not None:
            progress("learning pieces", begun - len(pieces), max(begun - size, 1))
        if len(pieces) <= size:
            break
        pieces = pruned(pieces, uses, max(size, int(KEPT * len(pieces))))
    return {
        piece: log(probability)
        for piece, probability in sorted(pieces.items(), key=lambda item: (-item[1], item[0]))
    }


def seed(words: Mapping[str, int], most: int, min_frequency: int) -> dict[str, float]:
    """Every character, and the substrings that cover most of the corpus, each with the fraction covered."""
    often: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for stop in range(start + 1, min(len(word), start + LONGEST_PIECE) + 1):
                often[word[start:stop]] += count
    longer = [
        (-count * len(piece), piece)
        for piece, count in often.items()
        if len(piece) > 1 and count >= min_frequency
    ]
    kept = {piece: float(often[piece]) for piece in sorted(often) if len(piece) == 1}
    kept |= {piece: float(-weight) for weight, piece in sorted(longer)[:most]}
    return probabilities(kept)


def probabilities(uses: Mapping[str, float]) -> dict[str, float]:
    """The fraction of all uses that each piece has; a longer piece that is hardly used is gone."""
    total = fsum(uses.values()) or 1.0
    return {
        piece: max(use / total, LEAST)
        for piece, use in uses.items()
        if len(piece) == 1 or use / total > LEAST
    }


def expected(pieces: Mapping[str, float], words: Mapping[str, int]) -> tuple[dict[str, float], float]:
    """How often each piece is used, over all cuts of all words, and the logarithm of the likelihood."""
    uses = dict.fromkeys(pieces, 0.0)
    likelihood: list[float] = []
    longest = max(map(len, pieces), default=0)
    probability_of = pieces.get
    for word, count in words.items():
        size = len(word)
        forward = [1.0] + [0.0] * size  # the probability of all cuts of what is before a place
        edges: list[tuple[int, int, float]] = []
        for start in range(size):
            for stop in range(start + 1, min(size, start + longest) + 1):
                probability = probability_of(word[start:stop])
                if probability is not None:
                    forward[stop] += forward[start] * probability
                    edges.append((start, stop, probability))
        backward = [0.0] * size + [1.0]  # and of what is behind it
        weight = count / forward[size]
        for start, stop, probability in reversed(edges):
            behind = probability * backward[stop]
            backward[start] += behind
            uses[word[start:stop]] += forward[start] * behind * weight
        likelihood.append(count * log(forward[size]))
    return uses, fsum(likelihood)


def pruned(pieces: Mapping[str, float], uses: Mapping[str, float], size: int) -> dict[str, float]:
    """The characters, and of the longer pieces those of the greatest loss, `size` in all."""
    lost = loss(pieces, uses)
    characters = [piece for piece in pieces if len(piece) == 1]
    longer = sorted(lost, key=lambda piece: (-lost[piece], piece))[: max(size - len(characters), 0)]
    kept = {*characters, *longer}
    return probabilities({piece: probability for piece, probability in pieces.items() if piece in kept})


def loss(pieces: Mapping[str, float], uses: Mapping[str, float]) -> dict[str, float]:
    """The drop in mean log-likelihood of a use if a longer piece is removed, by piece."""
    scores = {piece: log(probability) for piece, probability in pieces.items()}
    total = fsum(uses.values())
    out: dict[str, float] = {}
    for piece in pieces:
        if len(piece) == 1:
            continue
        use = uses.get(piece, 0.0)
        others = _best_without(piece, scores)
        grown = log(total + use * (len(others) - 1))
        after = sum(log(uses.get(other, 0.0) + use + LEAST) - grown for other in others)
        out[piece] = use / total * (log(use + LEAST) - log(total) - after)
    return out


def _best_without(piece: str, scores: Mapping[str, float]) -> list[str]:
    """The best cut of a piece's text into other pieces."""
    size = len(piece)
    best = [0.0] + [-inf] * size
    begin = [0] * (size + 1)
    for stop in range(1, size + 1):
        for start in range(stop):
            score = scores.get(piece[start:stop]) if stop - start < size else None
            if score is not None and best[start] + score > best[stop]:
                best[stop], begin[stop] = best[start] + score, start
    cut: list[str] = []
    place = size
    while place:
        cut.append(piece[begin[place] : place])
        place = begin[place]
    return cut[::-1]


def _parts(words: Mapping[str, int]) -> dict[str, int]:
    """Words, the long ones in parts, in the order of their characters."""
    parts: defaultdict[str, int] = defaultdict(int)
    for word, count in words.items():
        for start in range(0, len(word), LONGEST_WORD):
            parts[word[start : start + LONGEST_WORD]] += count
    return dict(sorted(parts.items()))


def tokens(scores: Mapping[str, float], words: Mapping[str, int]) -> int:
    """How many pieces the best cuts of all words have: what the vocabulary makes of the corpus."""
    model = Unigram(scores, dict(zip(scores, range(len(scores)), strict=True)))
    return sum(count * len(model.encode(word)) for word, count in words.items())
