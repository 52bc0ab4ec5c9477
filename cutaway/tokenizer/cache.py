"""The ids of pieces that were met before: text repeats itself, so most pieces cost one look-up."""

from collections.abc import Callable

CACHED_PIECES = 1 << 18
LONGEST_CACHED = 64  # characters


class Cache(dict[str, list[int]]):
    """What `encode` makes of a piece; bounded, so that endless text does not fill memory."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        super().__init__()
        self.encode = encode

    def __missing__(self, piece: str) -> list[int]:
        ids = self.encode(piece)
        if len(piece) > LONGEST_CACHED:
            return ids
        if len(self) >= CACHED_PIECES:
            self.clear()
        self[piece] = ids
        return ids
