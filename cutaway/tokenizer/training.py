"""A new vocabulary from a corpus: its words are counted, tokens are learned, and both become a tokenizer.

Ids: the alphabet first (256 bytes, or the corpus' characters behind the byte tokens), then what was learned in
the order in which it was, special tokens last; `size` is all of them.
"""

import warnings
from collections.abc import Iterable, Sequence

from cutaway.errors import Refused
from cutaway.tokenizer import bpe_train
from cutaway.tokenizer.added import AddedToken
from cutaway.tokenizer.bpe import BYTE_TOKENS
from cutaway.tokenizer.bpe_train import Learned, Progress
from cutaway.tokenizer.counts import Counts
from cutaway.tokenizer.cuts import METASPACE, cut_by
from cutaway.tokenizer.decode import NOTHING, ONE, Lead
from cutaway.tokenizer.parts import ENDS, Parts

BYTE, CHARACTER = "byte", "character"


def bpe(
    counts: Counts,
    size: int = 32768,
    *,
    level: str = BYTE,
    min_frequency: int = 1,
    alphabet: int | None = None,
    progress: Progress | None = None,
) -> Parts:
    """A byte pair vocabulary of `size` tokens with the special tokens that `counts` left out.

    `level` is "byte" or "character"; then a character that is not in the alphabet (all of the corpus, or the
    `alphabet` most frequent) becomes its bytes. Merges go down to pairs seen `min_frequency` times. A
    RuntimeWarning says so when the corpus has less to merge. Raises Refused for a size below the alphabet's.
    """
    words = counts.arrays()
    if level == BYTE:
        spelt, fallback = bpe_train.spelt_in_bytes(words), ()
    elif level == CHARACTER:
        spelt, fallback = bpe_train.spelt_in_characters(words, alphabet), BYTE_TOKENS
    else:
        raise Refused(f'level is "byte" or "character", not {level!r}')
    least = len(fallback) + len(spelt.alphabet) + len(counts.special)
    if size < least:
        raise Refused(
            f"a vocabulary of {size:,} tokens is too small: {len(fallback) + len(spelt.alphabet):,} are its "
            f"alphabet and {len(counts.special):,} are special; ask for {least:,} or more"
        )
    room = size - len(fallback) - len(counts.special)
    reserved = {*fallback, *counts.special}
    learned = bpe_train.learn(spelt, room, min_frequency, reserved, progress)
    parts = _bpe_parts(counts, [*fallback, *spelt.alphabet], learned, level)
    if len(parts.tokens) < size:
        warnings.warn(
            f"the corpus gives {len(parts.tokens):,} tokens and not {size:,}: no pair is left that occurs "
            f"{max(min_frequency, 1):,} times",
            RuntimeWarning,
            stacklevel=3,
        )
    return parts


def _bpe_parts(counts: Counts, alphabet: Sequence[str], learned: Iterable[Learned], level: str) -> Parts:
    merges = [merge.pair for merge in learned]
    tokens = list(dict.fromkeys([*alphabet, *(left + right for left, right in merges)]))
    cut = cut_by(counts.pattern)
    added = special_tokens(counts.special, len(tokens))
    return Parts(
        tokens=[*tokens, *counts.special],
        vocabulary={token: id for id, token in enumerate(tokens)},
        merges=merges,
        bytewise=level == BYTE,
        fallback=level == CHARACTER,
        normalizer=cut.normalizer,
        pretokenizer=cut.steps,
        added=added,
        lead=Lead(ONE) if counts.pattern == METASPACE else NOTHING,
        eos=next((token.id for token in added if token.text in ENDS), None),
    )


def special_tokens(texts: Sequence[str], first: int) -> tuple[AddedToken, ...]:
    """Special tokens with ids from `first` on."""
    return tuple(AddedToken(id, text, special=True) for id, text in enumerate(texts, first))
