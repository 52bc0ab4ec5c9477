"""A new vocabulary from a corpus: its words are counted, tokens are learned, and both become a tokenizer.

Ids: the alphabet first (256 bytes, or the corpus' characters behind the byte tokens), then learned tokens
in their order, special tokens last (BERT's first); `size` is all of them.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from cutaway.errors import UserError, quoted
from cutaway.store.files import Progress
from cutaway.tokenizer import bpe_train, unigram_em, wordpiece_train
from cutaway.tokenizer.added import AddedToken
from cutaway.tokenizer.bpe import BYTE_TOKENS, Pair
from cutaway.tokenizer.decode import NOTHING, ONE, Lead
from cutaway.tokenizer.formats import vocab_txt
from cutaway.tokenizer.pretokenize import SPELLINGS, WHOLE, Split
from cutaway.tokenizer.spec import ENDS, TokenizerSpec
from cutaway.tokenizer.word_counts import WordCounts
from cutaway.tokenizer.word_split import BERT, METASPACE, splitter

BYTE, CHARACTER = "byte", "character"
UNKNOWN = "<unk>"


def bpe(
    counts: WordCounts,
    size: int = 32768,
    *,
    level: str = BYTE,
    min_frequency: int = 1,
    alphabet: int | None = None,
    progress: Progress | None = None,
) -> TokenizerSpec:
    """A byte pair vocabulary of `size` tokens with the special tokens that `counts` left out.

    `level` is "byte" or "character"; then a character that is not in the alphabet (all of the corpus, or the
    `alphabet` most frequent) becomes its bytes. Merges go down to pairs seen `min_frequency` times. A
    RuntimeWarning says so when the corpus has less to merge. Raises UserError for a size below the
    alphabet's.
    """
    words = counts.arrays()
    if level == BYTE:
        spelt, fallback = bpe_train.spelt_in_bytes(words), ()
    elif level == CHARACTER:
        spelt, fallback = bpe_train.spelt_in_characters(words, alphabet), BYTE_TOKENS
    else:
        raise UserError(f'level is "byte" or "character", not {quoted(level)}')
    least = len(fallback) + len(spelt.alphabet) + len(counts.special)
    if size < least:
        raise UserError(
            f"a vocabulary of {size:,} tokens is too small: {len(fallback) + len(spelt.alphabet):,} are its "
            f"alphabet and {len(counts.special):,} are special; ask for {least:,} or more"
        )
    clash = {*fallback, *spelt.alphabet} & {*counts.special}
    if clash:
        raise UserError(f"{quoted(min(clash))} cannot be a special token: the alphabet has one of that text")
    room = size - len(fallback) - len(counts.special)
    reserved = {*fallback, *counts.special}
    merges = bpe_train.learn(spelt, room, min_frequency, reserved, progress)
    spec = _bpe_spec(counts, [*fallback, *spelt.alphabet], merges, level)
    _say_if_fewer(spec, size, f"no pair is left that occurs {max(min_frequency, 1):,} times")
    return spec


def unigram(
    counts: WordCounts,
    size: int = 32768,
    *,
    min_frequency: int = 2,
    seeds: int = unigram_em.SEEDS,
    byte_fallback: bool = True,
    progress: Progress | None = None,
) -> TokenizerSpec:
    """A Unigram vocabulary of `size` tokens: <unk>, the byte tokens, the pieces, and the special tokens.

    Pieces start as the substrings of words seen `min_frequency` times, `seeds` at most. A RuntimeWarning
    says so when there are too few of them. Without `byte_fallback` there are no byte tokens, and a character
    that the corpus lacks is <unk>. Raises UserError for a size below the characters'.
    """
    fixed = [UNKNOWN, *BYTE_TOKENS] if byte_fallback else [UNKNOWN]
    taken = {*fixed, *counts.special}
    words = {word: count for word, count in counts.words.items() if word not in taken}
    room = size - len(fixed) - len(counts.special)
    characters = len(set().union(*words))
    if room < characters:
        own = (
            f"{len(fixed):,} tokens are bytes and the unknown one" if byte_fallback else "1 token is unknown"
        )
        fewer = "; or leave the bytes out (--no-byte-fallback)" if byte_fallback else ""
        raise UserError(
            f"a vocabulary of {size:,} tokens is too small: {own}, {len(counts.special):,} special, "
            f"{characters:,} the corpus's characters; ask for {size - room + characters:,} or more{fewer}"
        )
    pieces = unigram_em.train(words, room, seeds=seeds, min_frequency=min_frequency, progress=progress)
    pieces = {piece: score for piece, score in pieces.items() if piece not in taken}
    tokens = [*fixed, *pieces]
    common = _common(counts, tokens)
    common["added"] = (AddedToken(0, UNKNOWN, special=True), *common["added"])
    spec = TokenizerSpec(
        **common,
        model="Unigram",
        pieces=pieces,
        worst=min(pieces.values(), default=0.0),
        scores=[pieces.get(token, 0.0) for token in [*tokens, *counts.special]],
        bytewise=False,
        fallback=byte_fallback,
        fuse=True,
        unknown=0,
    )
    _say_if_fewer(spec, size, f"no more substrings occur {min_frequency:,} times")
    return spec


def wordpiece(
    counts: WordCounts,
    size: int = 32768,
    *,
    rule: str = wordpiece_train.FREQUENCY,
    min_frequency: int = 1,
    progress: Progress | None = None,
) -> TokenizerSpec:
    """A WordPiece vocabulary of `size` tokens with BERT's control tokens, and the special ones of `counts`.

    `rule` is "frequency" or "likelihood" (wordpiece_train.py). Raises UserError for counts that were not
    cut by "bert" or "bert-cased", or a size below the characters'.
    """
    if counts.pattern not in BERT:
        raise UserError(f"WordPiece cuts text as BERT does: the pattern is one of {', '.join(BERT)}")
    control = [*vocab_txt.CONTROL, *(text for text in counts.special if text not in vocab_txt.CONTROL)]
    room = size - len(control)
    learned = wordpiece_train.train(counts.words, room, rule, min_frequency=min_frequency, progress=progress)
    tokens = [*control, *(token for token in learned if token not in control)]
    spec = vocab_txt.bert(tokens, BERT[counts.pattern])
    added = [AddedToken(id, text, special=True) for id, text in enumerate(control)]
    _say_if_fewer(spec, size, f"no pair is left that occurs {max(min_frequency, 1):,} times")
    return replace(spec, added=tuple(added))


KINDS: dict[str, tuple[Callable[..., TokenizerSpec], str]] = {
    "bpe": (bpe, "cl100k"),
    "unigram": (unigram, METASPACE),
    "wordpiece": (wordpiece, "bert"),
}


def kind(name: str) -> tuple[Callable[..., TokenizerSpec], str]:
    """The function that learns a kind of vocabulary, and the pattern that it usually goes with."""
    if name not in KINDS:
        raise UserError(f"there is no kind of vocabulary {quoted(name)}: known are {', '.join(KINDS)}")
    return KINDS[name]


def with_end(special: Iterable[str], end: str | None) -> tuple[str, ...]:
    """Special tokens and the end of text, which may be one of them."""
    texts = tuple(special)
    return texts if end is None or end in texts else (*texts, end)


def usual_end(kind: str, special: Iterable[str]) -> str | None:
    """The end of text where none is asked for: a special token of a known name, else <|endoftext|>."""
    known = (text for text in special if text in ENDS)
    return None if kind == "wordpiece" else next(known, "<|endoftext|>")


def learned(
    learn: Callable[..., TokenizerSpec], counts: WordCounts, size: int, end: str | None, **rules: Any
) -> TokenizerSpec:
    """What `learn` makes of the counts, with the end of text as its `eos`."""
    if end is None:
        return learn(counts, size, **rules)
    counts = copy(counts)
    counts.special = with_end(counts.special, end)
    spec = learn(counts, size, **rules)
    return replace(spec, eos=next(token.id for token in spec.added if token.text == end))


def _say_if_fewer(spec: TokenizerSpec, size: int, why: str) -> None:
    if len(spec.tokens) < size:
        warnings.warn(
            f"the corpus gives {len(spec.tokens):,} tokens and not {size:,}: {why}",
            RuntimeWarning,
            stacklevel=5,
        )


def _bpe_spec(counts: WordCounts, alphabet: Sequence[str], merges: list[Pair], level: str) -> TokenizerSpec:
    common = _common(counts, [*alphabet, *(left + right for left, right in merges)])
    cut = common["pretokenizer"]
    return TokenizerSpec(
        **common,
        merges=merges,
        bytewise=level == BYTE,
        # Merging comes to every learned token, so `whole` changes no ids; llama.cpp's llama-bpe has it.
        whole=level == BYTE
        and any(pre in WHOLE and cut == tuple(map(Split, patterns)) for pre, patterns in SPELLINGS),
        fallback=level == CHARACTER,
    )


def _common(counts: WordCounts, tokens: Sequence[str]) -> dict[str, Any]:
    """What a learned vocabulary has of any kind: its tokens, and how text was split to learn them."""
    split, added = splitter(counts.pattern), special_tokens(counts.special, len(tokens))
    return {
        "tokens": [*tokens, *counts.special],
        "vocabulary": {token: id for id, token in enumerate(tokens)},
        "normalizer": split.normalizer,
        "pretokenizer": split.steps,
        "added": added,
        "lead": Lead(ONE) if counts.pattern == METASPACE else NOTHING,
        "eos": next((token.id for token in added if token.text in ENDS), None),
    }


def special_tokens(texts: Sequence[str], first: int) -> tuple[AddedToken, ...]:
    """Special tokens with ids from `first` on."""
    return tuple(AddedToken(id, text, special=True) for id, text in enumerate(texts, first))
