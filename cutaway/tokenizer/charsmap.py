"""SentencePiece's precompiled map of characters, by which it normalises text (nmt_nfkc and its kin).

The bytes are the size of a trie, the trie, and the replacements, each ended by a zero. The trie is a double
array (Aoe 1989) as darts-clone writes it: units of 32 bits, of which bits 0-7 and 31 are the label of the
edge that leads here, bit 8 says that a value hangs below, bits 10-30 are the offset to the children, times
256 if bit 9 is set. The child of a node by a byte is at (node XOR offset XOR byte) and carries that byte as
its label; a leaf, label 0, holds the place of its replacement.
"""

import re
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from cutaway.errors import UserError

LONGEST_ENTRY = 256  # bytes; a damaged trie can lead in circles
_DAMAGED = "the normaliser's precompiled map of characters is damaged"


@dataclass(frozen=True)
class Charsmap:
    """The longest entry that fits is replaced, from left to right; UserError past the map's end.

    Texts in `keep` (SentencePiece's user-defined symbols) stay as they are.
    """

    data: bytes
    keep: tuple[str, ...] = ()

    def __call__(self, text: str, first: bool, last: bool) -> str:
        if self._kept is None:
            return self._replaced(text)
        parts = self._kept.split(text)
        return "".join(part if i % 2 else self._replaced(part) for i, part in enumerate(parts))

    def entries_at(self, source: bytes, start: int) -> Iterator[tuple[int, bytes]]:
        """The entries that stand in `source` at `start`, shortest first: their sizes and replacements."""
        units, replacements = self._parts
        node = _offset(units[0])
        for place in range(start, min(len(source), start + LONGEST_ENTRY)):
            node ^= source[place]
            if node >= len(units) or units[node] & 0x800000FF != source[place]:
                return
            unit = units[node]
            node ^= _offset(unit)
            if unit & 0x100 and node < len(units):
                begin = units[node] & 0x7FFFFFFF
                end = replacements.find(b"\0", begin)
                if end < 0:
                    raise UserError(_DAMAGED)
                yield place + 1 - start, replacements[begin:end]

    def checked(self) -> "Charsmap":
        """Itself. Raises UserError if the trie is not there."""
        _ = self._parts
        return self

    def _replaced(self, text: str) -> str:
        source = text.encode()
        out: list[bytes] = []
        place = 0
        while place < len(source):
            alone = _character_size(source[place])
            found = deque(self.entries_at(source, place), maxlen=1)
            size, new = found[0] if found else (alone, source[place : place + alone])
            out.append(new)
            place += size
        return b"".join(out).decode("utf-8", "replace")

    @cached_property
    def _kept(self) -> re.Pattern[str] | None:
        longest_first = sorted(self.keep, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})") if self.keep else None

    @cached_property
    def _parts(self) -> tuple[memoryview, bytes]:
        size = struct.unpack_from("<I", self.data)[0] if len(self.data) >= 4 else 0
        if size == 0 or size % 4 or size > len(self.data) - 4:
            raise UserError(_DAMAGED)
        units = struct.unpack(f"<{size // 4}I", self.data[4 : 4 + size])
        return memoryview(struct.pack(f"={len(units)}I", *units)).cast("I"), self.data[4 + size :]


@dataclass(frozen=True)
class Precompiled:
    """The same map as `tokenizers` applies it (the crate spm_precompiled).

    A grapheme of under 6 bytes that begins with an entry becomes that entry's replacement, the shortest
    entry's; otherwise each of its characters is looked up by itself.
    """

    data: bytes

    def __call__(self, text: str, first: bool, last: bool) -> str:
        return "".join(map(self._grapheme, _graphemes().findall(text)))

    def checked(self) -> "Precompiled":
        """Itself. Raises UserError if the trie is not there."""
        self._map.checked()
        return self

    @cached_property
    def _map(self) -> Charsmap:
        return Charsmap(self.data)

    def _grapheme(self, grapheme: str) -> str:
        whole = self._shortest(grapheme) if len(grapheme.encode()) < 6 else None
        if whole is not None:
            return whole
        found = ((character, self._shortest(character)) for character in grapheme)
        return "".join(character if new is None else new for character, new in found)

    def _shortest(self, text: str) -> str | None:
        found = next(self._map.entries_at(text.encode(), 0), None)
        return None if found is None else found[1].decode("utf-8", "replace")


@cache
def _graphemes() -> Any:
    import regex

    return regex.compile(r"\X")


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


def _character_size(lead: int) -> int:
    return 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
