"""SentencePiece's BPE (arXiv:1808.06226): neighbours merge if the text they make is a piece, best score
first.

A space is written U+2581. A character that no piece covers becomes its bytes, or the unknown piece. Of equal
scores the leftmost pair merges first; a merge may go through a piece that is never written (unused), which is
then cut again.
"""

from collections.abc import Sequence


def ranks(tokens: Sequence[str | None], scores: Sequence[float]) -> dict[str, int]:
    """The rank of every piece: 0 for the best score, equal scores share one."""
    places = {score: rank for rank, score in enumerate(sorted(set(scores), reverse=True))}
    return {text: places[score] for text, score in zip(tokens, scores, strict=True) if text is not None}
