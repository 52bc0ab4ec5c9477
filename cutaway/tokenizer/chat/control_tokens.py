"""A chat template's control tokens, and where in a rendered text the template itself wrote one.

A control token is one that the tokenizer calls special, or any other added token whose text is in the
template (in a comment too). The template wrote a token if all its characters come from one constant, in
order. A few templates join a token from several constants ('<think{}>'.format(suffix)). Such a seam counts
only if the same constants meet again when every text of the conversation is replaced by a neutral, non-empty
one. So '<{{ name }}/s>' with an empty name is no token.

Content can lead a template to write its own control tokens, for instance where it splits an assistant's text
at '</think>' and joins the parts around a token. No origin shows that, for the token is the template's. A
comparison does: if the tokens differ from those that a neutral conversation of the same shape gets, the words
steered the template.
"""

import base64
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cutaway.tokenizer.added import any_of
from cutaway.tokenizer.unicode import utf8

# A constant that a template might look for in a text: with a letter and a sign that markers are made of.
MARKER = re.compile(r"(?=.*[^\W\d_])(?=.*[<>\[\]|/])", re.DOTALL)
PIECE = 1 << 18  # bytes of origins that are unpacked at once
PROSE = {
    "content",
    "text",
    "reasoning_content",
    "thinking",
    "reasoning",
}  # fields in which every word is free
Markers = Sequence[re.Pattern[str]]  # what a template might look for: control tokens, its own constants
Span = tuple[int, int, int]  # start, stop, id
Seam = tuple[int, ...]  # the origins of a token that was put together


@dataclass(frozen=True)
class Traced:
    """A rendered text and the origin of each character, int32 [n]; provenance.py says what it means."""

    text: str
    origins: np.ndarray

    @classmethod
    def of(cls, answer: Mapping[str, str]) -> "Traced":
        text, origins = answer["text"], _unpacked(base64.b64decode(answer["origins"]), len(answer["text"]))
        if not text.isascii():
            utf8(text, "what the chat template writes")
        return cls(text, origins)

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Start, stop and first origin of each stretch of one constant, one string, or unknown origin."""
        if not self.text:
            return
        expected = self.origins[:-1] + (self.origins[:-1] > 0)
        starts = [0, *(np.flatnonzero(self.origins[1:] != expected) + 1).tolist()]
        yield from zip(starts, [*starts[1:], len(self.text)], self.origins[starts].tolist(), strict=True)


class ControlTokens:
    """A template together with a tokenizer's tokens: what is a control token here, and which seams are known.

    `source` holds the template's constants, each where its origins say; from `own` on, words for roles.
    """

    def __init__(
        self,
        template: str,
        source: str,
        own: int,
        special: Mapping[str, int],
        added: Mapping[str, int],
        names: Mapping[str, str],
    ) -> None:
        self.names = dict(names)  # the tokenizer's own tokens, as the template's variables name them
        self.source, self.own, source = source, own, source[:own]
        plain = {
            token: id for token, id in added.items() if token.strip(" \t\r\n\u2581") and token not in special
        }
        spelt = {token: id for token, id in plain.items() if token in source or token in template}
        self.control = {**special, **spelt}
        self.candidates = {**special, **plain}
        self.whole = _any_of(frozenset(token for token in self.control if token in source))
        self.pieced = _any_of(frozenset(self.candidates))
        constants = (constant.strip() for constant in source.split("\0"))
        self.markers = (self.pieced, _any_of(frozenset(filter(MARKER.search, constants))))
        self.known: set[Seam] = set()
        self.ids = frozenset(self.control.values())

    def spans(self, traced: Traced, probe: Callable[[], Iterable[Traced]]) -> list[Span]:
        """The control tokens that the template wrote. `probe` is called if there is a seam not met before."""
        whole = self._whole(traced)
        seams = self._seams(traced, whole)
        if any(seam not in self.known for seam in seams.values()):
            self.learn(probe())
        return sorted(whole + [span for span, seam in seams.items() if seam in self.known])

    def learn(self, neutral: Iterable[Traced]) -> None:
        """Take each token that constants spell in neutral conversations for the template's own."""
        for traced in neutral:
            for (start, stop, id), seam in self._seams(traced, self._whole(traced)).items():
                self.known.add(seam)
                self.control[traced.text[start:stop]] = id
        self.ids = frozenset(self.control.values())

    def _whole(self, traced: Traced) -> list[Span]:
        found = []
        for start, stop, origin in traced.runs():
            if origin <= 0 or self.source[origin : origin + stop - start] != traced.text[start:stop]:
                continue
            for match in self.whole.finditer(traced.text, start, stop):
                found.append((match.start(), match.end(), self.control[match[0]]))
        return found

    def _seams(self, traced: Traced, whole: list[Span]) -> dict[Span, Seam]:
        """Tokens that the template alone spells, through several constants, outside its whole ones."""
        found = {}
        for start, stop in _gaps(traced, whole):
            for match in self.pieced.finditer(traced.text, start, stop):
                seam = tuple(traced.origins[match.start() : match.end()].tolist())
                found[match.start(), match.end(), self.candidates[match[0]]] = seam
        return found


def _unpacked(packed: bytes, count: int) -> np.ndarray:
    """So many packed origins. In pieces: put together at once, 8 MB hold up every other thread."""
    origins, unpacking = np.empty(count, np.int32), zlib.decompressobj()
    room, at = origins.view(np.uint8).data, 0
    while at < len(room):
        piece = unpacking.decompress(packed, min(PIECE, len(room) - at))
        if not piece:
            raise ValueError("the packed origins break off")
        room[at : at + len(piece)] = piece
        packed, at = unpacking.unconsumed_tail, at + len(piece)
    return origins


def _gaps(traced: Traced, whole: list[Span]) -> Iterator[tuple[int, int]]:
    """The template's own stretches outside its whole tokens, if constants meet in them."""
    free = traced.origins > 0
    for start, stop, _ in whole:
        free[start:stop] = False
    edges = np.flatnonzero(np.diff(free, prepend=False, append=False)).tolist()
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        if np.any(np.diff(traced.origins[start:stop]) != 1):
            yield start, stop


@lru_cache(maxsize=64)
def _any_of(words: frozenset[str]) -> re.Pattern[str]:
    return any_of(words) if words else re.compile("(?!)")


# ---- neutral conversations ---------------------------------------------------------------------------------


def neutral(value: object, markers: Markers, prose: bool = True, key: str = "") -> object:
    """The same data, prose fields (if `prose`) as nothing but x, markers taken out of the others.

    What is empty or white space stays so: whether there is a text at all is the conversation's shape.
    """
    if isinstance(value, dict):
        return {_blanked(name, markers): neutral(item, markers, prose, name) for name, item in value.items()}
    if isinstance(value, list):
        return [neutral(item, markers, prose, key) for item in value]
    if not isinstance(value, str):
        return value
    if prose and key in PROSE and value.strip():
        return "x" * len(value)
    return _blanked(value, markers)


def filled(value: object, key: str = "") -> object:
    """The same data, prose longer and an x in every other empty text: no constants meet through one."""
    if isinstance(value, dict):
        return {name or "x": filled(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [filled(item, key) for item in value]
    if not isinstance(value, str):
        return value
    return value + "x" * 20 if key in PROSE else value if value.strip() else "x"


def _blanked(text: str, markers: Markers) -> str:
    for pattern in markers:
        text = pattern.sub(lambda match: re.sub(r"\S", "x", match[0]), text)
    return text


def conversations() -> list[object]:
    """Conversations that lead a template through its usual branches, to see which tokens it puts together."""
    call = {
        "id": "call00001",
        "type": "function",
        "function": {"name": "look", "arguments": {"place": "here"}},
    }
    tool = {
        "type": "object",
        "properties": {"place": {"type": "string", "description": "x"}},
        "required": ["place"],
    }
    tools = [{"type": "function", "function": {"name": "look", "description": "x", "parameters": tool}}]
    ask, answer = {"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}
    thought = {**answer, "reasoning_content": "x", "thinking": "x"}
    acting = {"role": "assistant", "content": "x", "tool_calls": [call]}
    result = {"role": "tool", "name": "look", "tool_call_id": "call00001", "content": "x"}
    shapes = [[ask], [ask, answer, ask], [{"role": "system", "content": "x"}, ask, thought, ask, thought]]
    acted = [[ask, acting, result], [{"role": "system", "content": "x"}, ask, acting, result, answer, ask]]
    made = []
    for thinking in (True, False):
        for messages in shapes:
            made.append({"messages": messages, "tools": None, "documents": None, "enable_thinking": thinking})
        for messages in acted:
            made.append(
                {"messages": messages, "tools": tools, "documents": None, "enable_thinking": thinking}
            )
    return [filled({**context, "add_generation_prompt": True}) for context in made]
