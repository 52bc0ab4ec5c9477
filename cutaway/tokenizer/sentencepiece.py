"""SentencePiece (arXiv:1808.06226): what its scores mean, for BPE and for Unigram.

BPE: neighbours merge if the text they make is a piece, best score first. A space is written U+2581. A
character that no piece covers becomes its bytes, or the unknown piece. Of equal scores the leftmost pair
merges first; a merge may go through a piece that is never written (unused), which is then cut again.
"""

from collections.abc import Sequence

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)  # the kinds of pieces


def pieces(
    tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int]
) -> tuple[dict[str, float], float]:
    """Unigram: the scores of the texts that text can come to, and the worst score of a normal piece.

    A user-defined symbol has the best score for each of its bytes, less a little, so that it is taken.
    """
    normal = [score for score, kind in zip(scores, kinds, strict=True) if kind == NORMAL]
    best, worst = max(normal, default=0.0), min(normal, default=0.0)
    found = {
        text: score if kind == NORMAL else len(text.encode()) * best - 0.1
        for text, score, kind in zip(tokens, scores, kinds, strict=True)
        if kind in (NORMAL, USER)
    }
    return found, worst


def ranks(tokens: Sequence[str | None], scores: Sequence[float]) -> dict[str, int]:
    """BPE: the rank of every piece: 0 for the best score, equal scores share one."""
    places = {score: rank for rank, score in enumerate(sorted(set(scores), reverse=True))}
    return {text: places[score] for text, score in zip(tokens, scores, strict=True) if text is not None}
