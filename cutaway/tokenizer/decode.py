"""Ids back to text: each id has its bytes, and text appears as soon as whole characters do.

What is not UTF-8 becomes U+FFFD, one for each maximal part that cannot be completed (the Unicode standard's
way, and Python's); a stream shows exactly what decoding all ids at once would. SentencePiece-like
vocabularies write a space in front of a text, and decoding takes it off again.
"""

import codecs
from collections.abc import Callable, Iterable
from dataclasses import dataclass

KEEP, ONE, EACH, FIRST = "keep", "one", "each", "first"


@dataclass(frozen=True)
class Lead:
    """What is taken off the front of decoded text.

    keep: nothing; one: one space; each: one space of every token until something is written (SentencePiece,
    when it removes extra spaces); first: every U+2581 of the first token (Hugging Face's Metaspace decoder,
    done by the caller's `first_of`).
    """

    rule: str = KEEP

    def __call__(self, data: bytes, written: bool, taken: bool) -> tuple[bytes, bool]:
        """A token's bytes without what is taken off. The flag: a space was taken."""
        if (
            self.rule not in (ONE, EACH)
            or written
            or not data.startswith(b" ")
            or (self.rule == ONE and taken)
        ):
            return data, taken
        return data[1:], True


NOTHING = Lead()


@dataclass(frozen=True)
class Words:
    """How words and their parts become text: a space before each token but the first, unless it goes on.

    A token that begins with `continues` goes on. `cleanup` takes the space off before punctuation and English
    endings.
    """

    continues: str = ""
    cleanup: bool = False

    def first(self, token: str) -> str:
        """A token that begins the text."""
        return self._clean(token)

    def later(self, token: str) -> str:
        """A token behind another."""
        goes_on = bool(self.continues) and token.startswith(self.continues)
        return self._clean(token[len(self.continues) :] if goes_on else " " + token)

    def _clean(self, text: str) -> str:
        for untidy, tidy in _UNTIDY if self.cleanup else ():
            text = text.replace(untidy, tidy)
        return text


_UNTIDY = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    *((f" {ending}", ending) for ending in ("'s", "'ve", "'re")),
)


LONGEST = 4  # bytes of a character


class Decoder:
    """Text from ids as they come: `push` returns what is certain now, `finish` what is left.

    Ids that `skip` holds for are left out. `surface` is an id whose bytes stand as they are. `first_of`, if
    given, are the bytes of the id that begins the text.
    """

    def __init__(
        self,
        bytes_of: Callable[[int], bytes],
        lead: Lead,
        skip: Callable[[int], bool] | None = None,
        surface: int | None = None,
        first_of: Callable[[int], bytes] | None = None,
    ) -> None:
        self.bytes_of = bytes_of
        self.lead = lead
        self.skip = skip
        self.surface = surface
        self.first_of = bytes_of if first_of is None else first_of
        self._restart()

    def push(self, id: int) -> str:
        """The characters that this id completes; maybe none."""
        if self.skip is not None and self.skip(id):
            return ""
        return self._characters.decode(self._bytes(id))

    def follow(self, ids: Iterable[int]) -> None:
        """Pushes ids and drops their characters: what is pushed from now on goes on from them.

        Of all but the first and the last of them nothing is kept, so that their bytes are not asked for: the
        time that this takes does not say which tokens were written before.
        """
        kept = iter([id for id in ids if self.skip is None or not self.skip(id)])
        data = b""
        for id in kept:
            data = self._bytes(id)
            if self._written:
                break
        tail = b""
        for id in reversed(list(kept)):
            if len(tail) >= LONGEST:
                break
            tail = self.bytes_of(id) + tail
        self._characters.decode(data + tail)

    def finish(self) -> str:
        """What is held back, an incomplete character as U+FFFD; the decoder is then as new."""
        rest = self._characters.decode(b"", final=True)
        self._restart()
        return rest

    def all(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids, pushed at once."""
        kept = ids if self.skip is None else (id for id in ids if not self.skip(id))
        waiting = iter(kept)
        out = []
        for id in waiting:
            out.append(self._bytes(id))
            if self._written:
                break
        out.extend(map(self.bytes_of, waiting))
        return b"".join(out)

    def _bytes(self, id: int) -> bytes:
        data = self.bytes_of(id) if self._count else self.first_of(id)
        if id != self.surface:
            data, self._taken = self.lead(data, self._written, self._taken)
        self._count += 1
        self._written = self._written or bool(data)
        return data

    def _restart(self) -> None:
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._count = 0
        self._written = self._taken = False
