"""Merges as files have them: checked, and made for a vocabulary that has ranks instead."""

from collections.abc import Mapping

from cutaway.errors import UserError, quoted
from cutaway.tokenizer.bpe import Pair
from cutaway.tokenizer.spec import TokenizerSpec

LONGEST_TOKEN = 4096  # characters; finding the splits of one takes a time that grows with its square


def checked(merges: list[Pair], vocabulary: Mapping[str, int], where: str) -> list[Pair]:
    """The merges themselves. Raises UserError for one that makes no token."""
    for rank, (left, right) in enumerate(merges):
        if left + right not in vocabulary:
            raise UserError(f"{where}: merge {rank} makes {quoted(left + right)}, which is no token")
    return merges


def all_splits(spec: TokenizerSpec) -> list[Pair]:
    """Pairs in the order in which the ranks would merge them; of equal ranks, the longest left side first.

    That comes to "the leftmost first" for runs of one character. Where two pairs of one token overlap
    otherwise ("ab" "a" "ba"), a list of pairs cannot say it.
    """
    if spec.ranks is None:
        raise UserError("this vocabulary has neither merges nor ranks")
    hidden = {token.id for token in spec.added if token.special}
    longest = max(map(len, spec.ranks), default=0)
    if longest > LONGEST_TOKEN:
        raise UserError(f"a token has {longest:,} characters; merges are found for {LONGEST_TOKEN:,} at most")
    ranks = {text: rank for text, rank in spec.ranks.items() if spec.vocabulary.get(text) not in hidden}
    pairs: list[tuple[int, int, int, Pair]] = []
    for text, rank in ranks.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ranks and right in ranks:
                pairs.append((rank, -cut, cut - len(text), (left, right)))
    return [pair for *_, pair in sorted(pairs)]
