"""Text in which some tokens are not looked for, to ids: found, normalised, cut into pieces, each encoded.

The compiled path encodes what it can; the model of the vocabulary (BPE, Unigram, WordPiece) is its reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from cutaway.native import library
from cutaway.tokenizer import bpe, fast
from cutaway.tokenizer.added import Finder, Match
from cutaway.tokenizer.bpe import BPE
from cutaway.tokenizer.normalize import normalize
from cutaway.tokenizer.pretokenize import SPACE, Step, errors_of, fused, pretokenize, time_limit
from cutaway.tokenizer.spec import TokenizerSpec

if TYPE_CHECKING:
    import numpy as np

    from cutaway.tokenizer.baselines import WordLevel
    from cutaway.tokenizer.unigram import Unigram
    from cutaway.tokenizer.wordpiece import WordPiece

SHORT = 2048  # characters: a text below is encoded without numpy


class TextEncoder:
    """Encodes text in which the added tokens in `never` are not looked for."""

    def __init__(
        self,
        spec: TokenizerSpec,
        never: frozenset[int],
        control: frozenset[int],
        others: Mapping[frozenset[int], TextEncoder],
        path: Callable[[], fast.Path | str],
    ) -> None:
        """``others``: the tokenizer's encoders; ``path``: its fast path, which hides ``control`` tokens."""
        looked_for = [token for token in spec.added if token.id not in never]
        self.spec, self.control, self.hides = spec, control, never | control
        self._others, self._fast = others, path
        self.raw = Finder({token.text: token for token in looked_for if not token.normalized})
        late = [token for token in looked_for if token.normalized]
        with time_limit(sum(len(token.text) for token in late)):
            self.late = Finder({normalize(spec.normalizer, token.text): token for token in late})

    @cached_property
    def hidden(self) -> frozenset[str]:
        """The texts of tokens that text must not become."""
        size = len(self.spec.tokens)
        texts = (self.spec.tokens[id] for id in self.hides if id < size)
        return frozenset(text for text in texts if text is not None and text in self.spec.vocabulary)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        return fused(self.spec.pretokenizer)

    @cached_property
    def model(self) -> BPE | WordPiece | Unigram | WordLevel:
        """The reference, which another encoder that hides the same tokens may have built already."""
        for other in self._others.values():
            if other.hides == self.hides and "model" in vars(other):
                return other.model
        return model_of(self.spec, self.hidden)

    @cached_property
    def words(self) -> Callable[[str], list[str]] | None:
        return _words(self.spec)

    @cached_property
    def path(self) -> fast.Path | None:
        """The fast path, if it hides what this encoder hides."""
        path = self._fast() if self.hides == self.control else None
        return None if isinstance(path, str) else path

    @cached_property
    def cut_in_core(self) -> bool:
        """Whether texts come to the core as they are, which has a scanner for the patterns."""
        return not self.spec.normalizer and self.path is not None and self.path.scanner is not None

    def time_limit(self, characters: int) -> AbstractContextManager[None]:
        """Bounds the time that a file's own patterns take inside, of which there may be none."""
        return nullcontext() if self.cut_in_core else time_limit(characters)

    def segments(self, text: str, control: Sequence[Match] = ()) -> list[str | int]:
        """The text cut at the added tokens in it, outside of ``control``'s; no part is empty."""
        # most vocabularies have no added tokens but those of control, which are not looked for
        return _cut(text, control if self.raw.pattern is None else self.raw.found(text, control))

    def encoded(self, segments: Iterable[str | int]) -> Iterable[list[int]]:
        """The ids of segments, stretch by stretch."""
        return map(self.ids, self.stretches(segments))

    def ids(self, part: tuple[str, bool] | int) -> list[int]:
        """The ids of a stretch."""
        if isinstance(part, int):
            return [part]
        path, (text, first) = self.path, part
        if path is None:
            found = None
        elif path.scanner is None:
            found = path.pieces(text, first)
        else:
            given = path.given(text) if path.prefix else text
            if len(given) <= SHORT:
                found = path.core.short(path.scanner, given.encode())
            else:
                array = path.core.encode(path.scanner, given)
                found = None if array is None else fast.listed(array)
        return self._by_model(text, first) if found is None else found

    def array(self, part: tuple[str, bool] | int, threads: int) -> np.ndarray:
        """The same as int32 [n]."""
        import numpy as np

        path, found = self.path, None
        if path is not None and path.scanner is not None and not isinstance(part, int):
            found = path.core.encode(path.scanner, path.given(part[0]), threads)
        return np.array(self.ids(part), np.int32) if found is None else found

    def count(self, part: tuple[str, bool] | int) -> int:
        """How many ids a stretch has."""
        path, found = self.path, None
        if path is not None and path.scanner is not None and not isinstance(part, int):
            found = path.core.count(path.scanner, path.given(part[0]), library.threads())
        return len(self.ids(part)) if found is None else found

    def _by_model(self, text: str, first: bool) -> list[int]:
        return list(chain.from_iterable(map(self.model.cache.__getitem__, self._pieces(text, first))))

    def cut(self, segments: Iterable[str | int]) -> Iterable[list[str] | int]:
        """Segments with their text normalised and cut into pieces."""
        for part in self.stretches(segments):
            yield part if isinstance(part, int) else self._pieces(*part)

    def stretches(self, segments: Iterable[str | int]) -> Iterable[tuple[str, bool] | int]:
        """Segments with their text normalised, and whether it begins what is encoded."""
        segments = list(segments)
        begun = False
        for i, segment in enumerate(segments):
            if isinstance(segment, int):
                ends = segment in self.control
                if not begun and not ends:
                    yield normalize(self.spec.normalizer, "", True, False), True
                begun = not ends
                yield segment
                continue
            last = i + 1 == len(segments) or segments[i + 1] in self.control
            rules = self.spec.normalizer
            text = normalize(rules, segment, not begun, last) if rules else segment
            begun = True
            if self.late.pattern is None:
                if text:
                    yield text, i == 0
                continue
            for j, part in enumerate(_cut(text, self.late.found(text, ()))):
                yield part if isinstance(part, int) else (part, i == j == 0)

    def _pieces(self, text: str, first: bool) -> list[str]:
        pieces = pretokenize(self.steps, text, first)
        return pieces if self.words is None else list(chain.from_iterable(map(self.words, pieces)))


def _cut(text: str, found: Iterable[Match]) -> list[str | int]:
    """A text cut at the tokens found in it, which become ids; no part is empty."""
    out: list[str | int] = []
    done = 0
    for token, start, stop in found:
        if token.lstrip or token.rstrip:
            start, stop = token.stripped(text, done, start, stop)
        if done < start:
            out.append(text[done:start])
        out.append(token.id)
        done = stop
    return [*out, text[done:]] if done < len(text) else out


def model_of(spec: TokenizerSpec, hidden: frozenset[str]) -> BPE | WordPiece | Unigram | WordLevel:
    """The model of a vocabulary without the ``hidden`` tokens."""
    ids = dict(spec.vocabulary)
    for text in hidden:
        del ids[text]
    unknown = -1 if spec.unknown is None else spec.unknown
    match spec.model:
        case "WordPiece":
            from cutaway.tokenizer.wordpiece import WordPiece

            return WordPiece(ids, unknown, continues=spec.continues, longest=spec.longest)
        case "WordLevel":
            from cutaway.tokenizer.baselines import WordLevel

            return WordLevel(ids, unknown)
        case "Unigram":
            return _unigram(spec, ids, hidden)
    return _bpe(spec, ids, hidden)


def _unigram(spec: TokenizerSpec, ids: dict[str, int], hidden: frozenset[str]) -> Unigram:
    from cutaway.tokenizer.unigram import Unigram

    pieces = {text: score for text, score in (spec.pieces or {}).items() if text not in hidden}
    rules: dict[str, Any] = {name: getattr(spec, name) for name in ("worst", "unknown", "fallback", "single")}
    return Unigram(pieces, ids, beyond=spec.beyond, **rules)


def _bpe(spec: TokenizerSpec, ids: dict[str, int], hidden: frozenset[str]) -> BPE:
    if spec.merges is not None:
        rank_of = bpe.listed(spec.merges, spec.vocabulary, hidden)
    else:
        rank_of = bpe.joined({text: rank for text, rank in (spec.ranks or {}).items() if text not in hidden})
    return BPE(
        ids,
        rank_of,
        bytewise=spec.bytewise,
        whole=spec.whole,
        fallback=spec.fallback,
        # A byte without a token is left out: it must not become the control token that some files name.
        unknown=None if spec.bytewise else spec.unknown,
        fuse=spec.fuse,
        dropped=frozenset(bpe.BYTES).difference(spec.vocabulary) if spec.drops_first else frozenset(),
        unused=frozenset(text for text in map(spec.tokens.__getitem__, spec.unused) if text is not None),
        errors=errors_of(spec.pretokenizer),
    )


def _words(spec: TokenizerSpec) -> Callable[[str], list[str]] | None:
    """Cuts a text that the model would take as one piece at the spaces that no token reaches across.

    The ids stay the same and pieces are met again. None where pieces are bytes, or no token is a space.
    """
    if spec.model != "BPE" or spec.bytewise or SPACE not in spec.vocabulary:
        return None
    crossed = {found[0] for text in spec.vocabulary for found in re.findall(f"[^{SPACE}]{SPACE}", text)}
    inside = "".join(map(re.escape, sorted(crossed)))
    reach = rf"(?:(?<=[{inside}]){SPACE}+[^{SPACE}]*)*" if crossed else ""
    return re.compile(rf"(?:{SPACE}+[^{SPACE}]*|[^{SPACE}]+){reach}").findall
