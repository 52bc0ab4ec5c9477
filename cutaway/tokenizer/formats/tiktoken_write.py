"""A byte-level BPE written as OpenAI's rank file: a line for each token, its bytes in base64 and its id.

The format has no place for the pattern and the special tokens: the reader of the file gives them.
"""

import base64

from cutaway.errors import UserError, quoted
from cutaway.tokenizer.bpe import joined, merge, unspell
from cutaway.tokenizer.spec import TokenizerSpec


def write_file(spec: TokenizerSpec) -> bytes:
    """The spec as a rank file. Raises UserError where ranks would not give the same ids."""
    if spec.model != "BPE" or not spec.bytewise:
        named = "BPE over characters" if spec.model == "BPE" else spec.model
        raise UserError(f"a rank file holds byte-level BPE, and this is {named}")
    if spec.normalizer or len(spec.pretokenizer) > 1:
        raise UserError("a rank file cannot say that text is normalised, or cut by more than one pattern")
    plain = [token.text for token in spec.added if not token.special]
    if plain:
        raise UserError(
            f"a rank file cannot hold the added token {quoted(plain[0])}, which is no control token"
        )
    ranks = _ranks(spec)
    return b"".join(base64.b64encode(_bytes(text)) + b" %d\n" % rank for text, rank in ranks.items())


def _ranks(spec: TokenizerSpec) -> dict[str, int]:
    """The tokens that text can come to, in the order of their ids, which are the ranks."""
    control = {token.id for token in spec.added if token.special}
    tokens = {text: id for text, id in spec.vocabulary.items() if id not in control}
    ranks = dict(sorted(tokens.items(), key=lambda item: item[1]))
    if spec.merges is None:
        if any((spec.ranks or {}).get(text) != id for text, id in ranks.items()):
            raise UserError("a rank file's ranks are ids, and this vocabulary merges in another order")
        return ranks
    _agree(spec, ranks)
    return ranks


def _agree(spec: TokenizerSpec, ranks: dict[str, int]) -> None:
    """UserError unless ranks and merges give the same tokens, which holds if they do for each token.

    That is: merges come in the order of the ids that they make, each id is made by one, and the two sides of
    a merge are what the ranks before it leave of its text.
    """
    made = [(left + right, (left, right)) for left, right in spec.merges or ()]
    ids = [ranks.get(text, -1) for text, _ in made]
    whole = {text for text, _ in made}
    if ids != sorted(set(ids)) or any(len(text) > 1 and text not in whole for text in ranks):
        raise UserError("a rank file's ranks are ids, and this vocabulary merges in another order")
    rank_of = joined(ranks)
    for text, pair in made:
        earlier = merge(list(text), lambda two, limit=ranks[text]: _below(rank_of(two), limit))
        if earlier != list(pair):
            raise UserError(f"ranks would make the token {quoted(text)} of other parts than the merges do")


def _below(found: tuple[int, str] | None, limit: int) -> tuple[int, str] | None:
    return found if found is not None and found[0] < limit else None


def _bytes(text: str) -> bytes:
    data = unspell(text)
    if data is None:
        raise UserError(f"the token {quoted(text)} is not bytes, which is all that a rank file can hold")
    return data
