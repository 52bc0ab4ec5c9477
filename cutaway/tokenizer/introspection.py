"""Tokens that no text becomes, and tokens that are no text.

A token is *unreachable* if encoding its own text gives other tokens. Only its id brings it into a model's
input, so training never used it, and models misbehave on such tokens (Land & Bartolo, arXiv:2405.05417). A
*partial* token is a piece of a character's UTF-8, which is no text by itself.
"""

from collections.abc import Iterator

from cutaway.tokenizer.bpe import BPE, BYTE_TOKENS, merge
from cutaway.tokenizer.charsmap import Charsmap, Precompiled
from cutaway.tokenizer.normalize import Lowercase, StripAccents, Unicode, normalize
from cutaway.tokenizer.pretokenize import SPACE, pretokenize
from cutaway.tokenizer.tokenizer import Tokenizer
from cutaway.tokenizer.wordpiece import BertNormalizer, WordPiece


def partial(tokenizer: Tokenizer) -> list[int]:
    """The ids of tokens that are no whole UTF-8."""
    return [id for id in _ordinary(tokenizer) if _text_of(tokenizer, id) is None]


def unreachable(tokenizer: Tokenizer) -> list[int]:
    """The ordinary ids that no text becomes; byte tokens, a last resort, are left out."""
    return [id for id in _ordinary(tokenizer) if not _reached(tokenizer, id)]


def _ordinary(tokenizer: Tokenizer) -> Iterator[int]:
    added = set(tokenizer.added.values())
    spare = set(BYTE_TOKENS) if tokenizer.spec.fallback else set()
    for id, text in enumerate(tokenizer.spec.tokens):
        if text is not None and text not in spare and id not in added and id != tokenizer.unknown:
            yield id


def _text_of(tokenizer: Tokenizer, id: int) -> str | None:
    try:
        return tokenizer.token_bytes(id).decode()
    except UnicodeDecodeError:
        return None


def _reached(tokenizer: Tokenizer, id: int) -> bool:
    """Whether the token's own text encodes to it: by itself, or as a part of a word if it can be no more."""
    token, encoder = tokenizer.token_text(id), tokenizer.plain
    model = encoder.model
    if tokenizer.spec.bytewise:
        text = _text_of(tokenizer, id)
        if text is not None:
            return tokenizer.encode(text) == [id]
        if not isinstance(model, BPE):
            return False
        return (model.whole and token in model.ids) or merge(list(token), model.rank_of) == [token]
    if isinstance(model, WordPiece):
        goes_on = token.startswith(model.continues)
        word = "a" + token.removeprefix(model.continues) if goes_on else token
        kept = pretokenize(encoder.steps, normalize(tokenizer.spec.normalizer, word)) == [word]
        return kept and (goes_on or model.encode(word) == [id])
    rules = tuple(rule for rule in tokenizer.spec.normalizer if _changes_letters(rule))
    plain = normalize(rules, token.replace(SPACE, " ")).replace(" ", SPACE)
    return plain == token and model.encode(token) == [id]


def _changes_letters(rule: object) -> bool:
    """Whether a rule is about characters, rather than about where spaces go."""
    return isinstance(rule, (Charsmap, Precompiled, Unicode, Lowercase, StripAccents, BertNormalizer))
