"""OpenAI's rank files: a line for each token, its bytes in base64 and its rank, which is its id.

A rank file names neither its pattern nor its special tokens, which its reader gives; the JSON encoders of the
npm package `tiktoken` do.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping

from cutaway.errors import UserError, quoted
from cutaway.tokenizer.added import AddedToken
from cutaway.tokenizer.bpe import joined, merge, spell, unspell
from cutaway.tokenizer.formats.fields import Fields, limited
from cutaway.tokenizer.formats.hf_json import token_list
from cutaway.tokenizer.pretokenize import TIKTOKEN, Split, compiled
from cutaway.tokenizer.spec import ENDS, TokenizerSpec

HIGHEST = 10_000_000  # no vocabulary is a tenth as large


def read(data: bytes, name: str, pattern: str | None, special: Mapping[str, int]) -> TokenizerSpec:
    """The spec of a rank file. Raises UserError for what is none, or without a pattern."""
    if pattern is None:
        raise UserError(
            f"{name} does not say how text is split: give pattern= one of {', '.join(TIKTOKEN)}, or a regex"
        )
    return _spec(_ranks(_lines(data, name), name), special, TIKTOKEN.get(pattern, pattern), name)


def size(data: bytes, name: str) -> int:
    """How many tokens a rank file has."""
    return len(_lines(data, name))


def _lines(data: bytes, name: str) -> list[tuple[bytes, int]]:
    """The tokens in base64 with their ranks."""
    lines = [line.partition(b" ") for line in data.splitlines() if line]
    for number, (_, _, rank) in enumerate(lines, 1):
        if not rank.isdigit() or len(rank) > 9:
            raise UserError(f"{name}, line {number}: no token in base64 and its rank")
    return [(token, int(rank)) for token, _, rank in lines]


def read_encoder(whole: Fields) -> TokenizerSpec:
    """The spec of a JSON encoder; bpe_ranks has lines of "!, first rank, tokens"."""
    lines = [line.split(" ") for line in whole.need("bpe_ranks", str).split("\n") if line]
    for number, words in enumerate(lines, 1):
        if len(words) < 3 or not (words[1].isascii() and words[1].isdigit()) or len(words[1]) > 9:
            raise UserError(f"{whole.where}: bpe_ranks, line {number}: no first rank and tokens")
    pairs = ((token.encode(), rank) for words in lines for rank, token in enumerate(words[2:], int(words[1])))
    ranks = _ranks(pairs, whole.where)
    special = whole.need("special_tokens", dict)
    if not all(type(id) is int for id in special.values()):
        raise UserError(f"{whole.where}: the ids of special_tokens are not whole numbers")
    return _spec(ranks, special, whole.need("pat_str", str), whole.where)


def _ranks(pairs: Iterable[tuple[bytes, int]], where: str) -> dict[str, int]:
    """The ranks of tokens in base64, by the tokens' spelling."""
    ranks: dict[str, int] = {}
    for token, rank in pairs:
        try:
            text = spell(base64.b64decode(token, validate=True))
        except (binascii.Error, ValueError):
            raise UserError(f"{where}: rank {rank}: {quoted(token)} is not base64") from None
        if not text or text in ranks or rank > HIGHEST:
            raise UserError(f"{where}: rank {rank}: the token {quoted(text)} is empty, double or too high")
        ranks[text] = rank
    limited(len(ranks), where)
    return ranks


def _spec(ranks: dict[str, int], special: Mapping[str, int], pattern: str, where: str) -> TokenizerSpec:
    if not ranks:
        raise UserError(f"{where} holds no tokens")
    compiled(pattern)
    added = tuple(AddedToken(id, text, special=True) for text, id in special.items())
    taken = set(ranks.values())
    for text in (text for text, id in special.items() if id in taken):
        raise UserError(f"{where}: the special token {quoted(text)} has an id that is a rank")
    end = next((id for text, id in special.items() if text in ENDS), None)
    return TokenizerSpec(
        tokens=token_list(ranks, added, where),
        vocabulary=ranks,
        ranks=ranks,
        whole=True,
        pretokenizer=(Split(pattern),),
        added=added,
        eos=end,
    )


# Writing


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
    ranks = _ranks_of(spec)
    return b"".join(base64.b64encode(_bytes(text)) + b" %d\n" % rank for text, rank in ranks.items())


def _ranks_of(spec: TokenizerSpec) -> dict[str, int]:
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
    """Raise UserError unless ranks and merges give the same tokens.

    It is enough to check each token: merges are in the order of the ids that they make, each id is made by
    one merge, and encoding a token's text with the earlier ranks leaves the two sides of its merge.
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
