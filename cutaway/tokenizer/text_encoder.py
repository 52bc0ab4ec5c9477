"""Text in which some tokens are not looked for, to ids: found, normalised, cut into pieces, each encoded.

The compiled path encodes what it can; the model of the vocabulary (BPE, Unigram, WordPiece) is its reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from cutaway.tokenizer import bpe, fast
from cutaway.tokenizer.added import Finder
from cutaway.tokenizer.bpe import BPE
from cutaway.tokenizer.normalize import normalize
from cutaway.tokenizer.pretokenize import SPACE, Step, errors_of, fused, pretokenize, time_limit
from cutaway.tokenizer.spec import TokenizerSpec

if TYPE_CHECKING:
    import numpy as np

    from cutaway.tokenizer.baselines import WordLevel
    from cutaway.tokenizer.unigram import Unigram
    from cutaway.tokenizer.wordpiece import WordPiece


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

    def encoded(self, segments: Iterable[str | int]) -> Iterable[list[int]]:
        """The ids of segments, stretch by stretch."""
        return map(self.ids, self.stretches(segments))

    def ids(self, part: tuple[str, bool] | int) -> list[int]:
        """The ids of a stretch."""
        if isinstance(part, int):
            return [part]
        found = self.path.ids(*part) if self.path else None
        return self._by_model(*part) if found is None else found

    def array(self, part: tuple[str, bool] | int, threads: int) -> np.ndarray:
        """The same as int32 [n]."""
        import numpy as np

        found = self.path.array(*part, threads) if self.path and not isinstance(part, int) else None
        return np.array(self.ids(part), np.int32) if found is None else found

    def count(self, part: tuple[str, bool] | int) -> int:
        """How many ids a stretch has."""
        found = self.path.count(*part) if self.path and not isinstance(part, int) else None
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
            for j, part in enumerate(self.late.split(text)):
                yield part if isinstance(part, int) else (part, i == j == 0)

    def _pieces(self, text: str, first: bool) -> list[str]:
        pieces = pretokenize(self.steps, text, first)
        return pieces if self.words is None else list(chain.from_iterable(map(self.words, pieces)))


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
