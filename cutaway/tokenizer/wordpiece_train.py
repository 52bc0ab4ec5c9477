"""Learning a WordPiece vocabulary: merges as in BPE, over characters that know whether they begin a word.

Two rules go by this name. "frequency" merges the most frequent pair, and is what the field uses: Hugging
Face's WordPieceTrainer is its BPE trainer with `##` in front of characters inside a word (and, unlike here,
leaves ties between those to chance). "likelihood" merges the pair with the highest count(ab) / (count(a)
count(b)). Per occurrence, that pair raises the likelihood of a unigram model of tokens most, which is how
"Japanese and Korean voice search" (2012) describes its choice. It takes rare pairs of rare tokens first, so
give it a min_frequency. The trainer that made BERT's vocabulary was never published.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from cutaway.errors import UserError
from cutaway.store.files import Progress
from cutaway.tokenizer import bpe_train
from cutaway.tokenizer.bpe import Pair, replaced
from cutaway.tokenizer.bpe_train import Spelt
from cutaway.tokenizer.wordpiece import CONTINUES

FREQUENCY, LIKELIHOOD = "frequency", "likelihood"


def train(
    words: Mapping[str, int],
    size: int,
    rule: str = FREQUENCY,
    *,
    min_frequency: int = 1,
    progress: Progress | None = None,
) -> list[str]:
    """The `size` tokens of words: their characters, as they begin a word and as they go on, then the merged.

    Raises UserError for a size below the number of characters.
    """
    symbols, alphabet = _spelt(words)
    if size < len(alphabet):
        raise UserError(f"{size:,} tokens are too few: the corpus' characters alone are {len(alphabet):,}")
    if rule == FREQUENCY:
        pairs = _by_frequency(words, symbols, alphabet, size, min_frequency, progress)
    elif rule == LIKELIHOOD:
        pairs = by_likelihood(words, size, min_frequency)
    else:
        raise UserError(f'the rule is "frequency" or "likelihood", not {rule!r}')
    return [*alphabet, *(join(*pair) for pair in pairs)]


def spelt(word: str) -> list[str]:
    """A word's characters, those inside it with ## in front."""
    return [character if i == 0 else CONTINUES + character for i, character in enumerate(word)]


def join(left: str, right: str) -> str:
    """The token that two neighbours make."""
    return left + right.removeprefix(CONTINUES)


def by_likelihood(words: Mapping[str, int], size: int, min_frequency: int = 1) -> list[Pair]:
    """The likelihood rule's merges, counted anew each time; ties: the more frequent, then lower ids."""
    symbols, alphabet = _spelt(words)
    ids = {symbol: id for id, symbol in enumerate(alphabet)}
    learned: list[Pair] = []
    while len(ids) < size:
        single: Counter[str] = Counter()
        both: Counter[Pair] = Counter()
        for word, count in words.items():
            for symbol in symbols[word]:
                single[symbol] += count
            for pair in pairwise(symbols[word]):
                both[pair] += count
        often = [pair for pair, count in both.items() if count >= max(min_frequency, 1)]
        if not often:
            break
        scores = {(a, b): both[a, b] / (single[a] * single[b]) for a, b in often}
        best = min(often, key=lambda pair: (-scores[pair], -both[pair], ids[pair[0]], ids[pair[1]]))
        made = join(*best)
        ids[made] = len(ids)
        learned.append(best)
        symbols = {word: replaced(found, best, made) for word, found in symbols.items()}
    return learned


def _by_frequency(
    words: Mapping[str, int],
    symbols: Mapping[str, list[str]],
    alphabet: Sequence[str],
    size: int,
    min_frequency: int,
    progress: Progress | None,
) -> list[Pair]:
    places = {symbol: place for place, symbol in enumerate(alphabet)}
    flat = [places[symbol] for word in words for symbol in symbols[word]]
    offsets = np.concatenate([[0], np.cumsum([len(word) for word in words])]).astype(np.int64)
    counts = np.fromiter(words.values(), np.int64, len(words))
    corpus = Spelt(np.array(flat, np.int32), offsets, counts, list(alphabet))
    return bpe_train.learn(corpus, size, min_frequency, (), progress, join)


def _spelt(words: Iterable[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Each word's symbols, and all of them, those that begin words first."""
    symbols = {word: spelt(word) for word in words}
    return symbols, sorted({symbol for word in symbols.values() for symbol in word}, key=_place)


def _place(symbol: str) -> tuple[bool, str]:
    return symbol.startswith(CONTINUES) and len(symbol) > len(CONTINUES), symbol
