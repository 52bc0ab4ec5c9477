"""Pre-tokenisation: text is cut into pieces, across which nothing merges.

A pre-tokeniser is a list of steps, each of which cuts every piece of the one before. The patterns below are
those that the models were trained with, under the names that GGUF files give them (`tokenizer.ggml.pre`); the
meaning of \\p{L}, \\p{N} and \\s is that of Unicode 16.0 (unicode.py).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from time import monotonic
from typing import Any

from cutaway.errors import UserError, quoted
from cutaway.patterns import backtracking
from cutaway.tokenizer.bpe import spell, unspell
from cutaway.tokenizer.unicode import shown

BEHAVIOURS = ("isolated", "removed", "contiguous", "merged_with_previous", "merged_with_next")
# For all patterns of a file over one text, plus one a megabyte: no hostile one hangs.
SECONDS = 5.0
SPACE = "\u2581"  # the character that SentencePiece writes a space as

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
GPT2 = _WORDS + r"|\s+"
_ENDINGS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_CJK = r"[一-龥぀-ゟ゠-ヿ]+"
_CJK_LETTERS = r"[一-龥ࠀ-一가-퟿]+"
_ASCII_SIGN = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_CASED_LETTERS = (
    "[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴ"
    "ῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]"
)
_ANY_CASE = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
CL100K = rf"{_ANY_CASE}|{_LETTERS}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_SIGNS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
O200K = rf"{_CASED[0]}{_ANY_CASE}?|{_CASED[1]}{_ANY_CASE}?|\p{{N}}{{1,3}}|{_SIGNS_SLASH}|{_SPACES}"
TIKTOKEN = {"gpt2": GPT2, "r50k": GPT2, "p50k": GPT2, "cl100k": CL100K, "o200k": O200K}
_LLAMA3 = rf"{_ENDINGS}|{_LETTERS}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_QWEN2 = rf"{_ENDINGS}|{_LETTERS}|\p{{N}}|{_SIGNS}|{_SPACES}"
_MARKED = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
_QWEN35 = rf"{_ENDINGS}|{_MARKED}|{_SPACES}"
_DEEPSEEK3 = (
    rf"{_ASCII_SIGN}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*"
)
_LINES = r"[^\n]+|[\n]+"

# Under each of the names that GGUF files give it, the patterns of a model, to be applied one after the other.
PATTERNS: dict[str, tuple[str, ...]] = {}
for _names, _patterns in (
    (
        "gpt-2 phi-2 mpt olmo jais trillion mellum modern-bert exaone4 gigachat a.x-4.0 granite-docling",
        (GPT2,),
    ),
    ("jina-es jina-de jina-v2-es jina-v2-de", (GPT2,)),
    ("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", (r"\p{N}", GPT2)),
    ("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 dbrx smaug-bpe", (_LLAMA3,)),
    ("glm4 glm5 chatglm-bpe", (_LLAMA3,)),
    ("qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", (_QWEN2,)),
    ("qwen35", (_QWEN35,)),
    ("gpt-4o llama4 kanana2 minimax-m2", (O200K,)),
    ("tekken", ("|".join([*_CASED, r"\p{N}", _SIGNS_SLASH, _SPACES]),)),
    (
        "deepseek-llm",
        (
            "[\r\n]",
            rf"\s?{_CASED_LETTERS}+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"(?<!\s)\s+$",  # llama.cpp's \s+$, tried once a run of white space
            _CJK_LETTERS,
            r"\p{N}+",
        ),
    ),
    ("deepseek-coder", ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_LETTERS, r"\p{N}")),
    ("deepseek-v3 hunyuan-dense joyai-llm", (r"\p{N}{1,3}", _CJK, rf"{_DEEPSEEK3}|{_SPACES}")),
    ("falcon", (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]")),
    ("default", (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    ("gemma4", (_LINES,)),
):
    PATTERNS.update(dict.fromkeys(_names.split(), _patterns))
_WHOLE = "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 glm4 glm5 tekken"
WHOLE = frozenset(_WHOLE.split())  # here a piece that is a token stays whole, whatever the merges
# How tokenizer.json and rank files spell the same patterns, and the GGUF name of each.
SPELLINGS = (
    ("llama-bpe", (CL100K,)),
    ("qwen2", (_QWEN2.replace(_ENDINGS, _ANY_CASE),)),
    ("qwen35", (_QWEN35.replace(_ENDINGS, _ANY_CASE),)),
    ("smollm", (r"\p{N}", GPT2)),
    ("gpt-2", (GPT2,)),
    *PATTERNS.items(),
)
BEGINS = WHOLE - {"glm4", "glm5"}  # prompts begin with BOS unless the file has another setting


def named(pre: str) -> tuple["Split", ...]:
    """The steps of the pre-tokeniser that GGUF files call `pre`.

    Raises UserError for a name that is not known.
    """
    if pre not in PATTERNS:
        raise UserError(f"the pre-tokeniser {quoted(pre)} is not known: use {', '.join(sorted(PATTERNS))}")
    return tuple(Split(pattern) for pattern in PATTERNS[pre])


# A step cuts pieces into pieces; the flag says whether the first piece begins the text.
Step = Callable[[list[str], bool], list[str]]


_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextmanager
def time_limit(characters: int) -> Iterator[None]:
    """Bounds the time that a file's patterns take inside it, all together; the outermost limit holds."""
    if _deadline.get() is not None:
        yield
        return
    token = _deadline.set(monotonic() + SECONDS + characters / 1e6)
    try:
        yield
    finally:
        _deadline.reset(token)


def seconds_left() -> float:
    """What is left of the time limit; a new one where there is none."""
    deadline = _deadline.get()
    return SECONDS if deadline is None else max(deadline - monotonic(), 1e-3)


def compiled(pattern: str) -> Any:
    """A pattern, compiled by the `regex` package. Raises UserError where it is none, or has no bound."""
    return backtracking(pattern, "the split pattern")


@dataclass(frozen=True)
class Split:
    """Cuts at the matches of a pattern, or with `invert` between; `behaviour` is one of BEHAVIOURS."""

    pattern: str
    behaviour: str = "isolated"
    invert: bool = False

    def __call__(self, pieces: list[str], first: bool) -> list[str]:
        if self.behaviour != "isolated":
            return [part for piece in pieces for part in self._parts(piece)]
        try:
            return list(chain.from_iterable([_isolated(self.pattern, piece) for piece in pieces]))
        except (TimeoutError, MemoryError) as problem:
            raise self._slow(problem) from None

    def _parts(self, piece: str) -> list[str]:
        try:
            found = [
                match.span()
                for match in compiled(self.pattern).finditer(shown(piece), timeout=_seconds(self.pattern))
            ]
        except (TimeoutError, MemoryError) as problem:
            raise self._slow(problem) from None
        cuts = _covering(found, len(piece), self.invert)
        if self.behaviour == "removed":
            return [piece[start:stop] for start, stop, matched in cuts if not matched]
        return _joined(piece, cuts, self.behaviour)

    def _slow(self, problem: Exception) -> UserError:
        what = "long" if isinstance(problem, TimeoutError) else "much memory"
        return UserError(f"the split pattern {quoted(self.pattern)} takes too {what} on this text")


@dataclass(frozen=True)
class PrefixSpace:
    """Writes a space before a piece that begins with none (ByteLevel's add_prefix_space)."""

    def __call__(self, pieces: list[str], first: bool) -> list[str]:
        return [piece if piece.startswith(" ") else " " + piece for piece in pieces]


@dataclass(frozen=True)
class Metaspace:
    """Spaces as `replacement`, one in front (`prepend`: always, first, never), a cut before each."""

    replacement: str = SPACE
    prepend: str = "always"
    split: bool = True

    def __call__(self, pieces: list[str], first: bool) -> list[str]:
        out = [piece.replace(" ", self.replacement) for piece in pieces]
        for i, piece in enumerate(out):
            wanted = self.prepend == "always" or (self.prepend == "first" and first and i == 0)
            if wanted and not piece.startswith(self.replacement):
                out[i] = self.replacement + piece
        if not self.split:
            return out
        return Split(re.escape(self.replacement), "merged_with_next")(out, first)


@dataclass(frozen=True)
class InBytes:
    """Steps that cut bytes, each written as one of GPT-2's characters (what follows ByteLevel in a Sequence).

    A piece may end inside a character: its bytes are then lone surrogates (PEP 383).
    """

    steps: tuple[Step, ...]

    def __call__(self, pieces: list[str], first: bool) -> list[str]:
        spelt = [spell(piece.encode()) for piece in pieces]
        for step in self.steps:
            spelt = step(spelt, first)
        return [(unspell(piece) or b"").decode("utf-8", "surrogateescape") for piece in spelt]


def errors_of(steps: Sequence[Step]) -> str:
    """How pieces become bytes: those that may end inside a character by PEP 383."""
    return "surrogateescape" if any(isinstance(step, InBytes) for step in steps) else "strict"


# Two steps in one pass over the text: white space in front of a digit is whole, as it is at the end of a
# text.
_FUSED = {
    (Split(r"\p{N}"), Split(GPT2)): Split(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
    )
}


def fused(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Steps that cut the same pieces in one pass, where such are known."""
    known = _FUSED.get(steps)  # pyright: ignore[reportArgumentType]
    return steps if known is None else (known,)


def pretokenize(steps: Sequence[Step], text: str, first: bool = True) -> list[str]:
    """The pieces of a text; `first` says whether it begins what is encoded."""
    pieces = [text] if text else []
    with time_limit(len(text)):
        for step in steps:
            pieces = step(pieces, first)
    return pieces


def _isolated(pattern: str, piece: str) -> list[str]:
    """Matches and what is between them, in order."""
    expression, seconds, seen = compiled(pattern), _seconds(pattern), shown(piece)
    if expression.groups == 0 and seen == piece:
        found = expression.findall(piece, timeout=seconds)
        if sum(map(len, found)) == len(piece) and "" not in found:  # nothing is between them
            return found
    spans = [match.span() for match in expression.finditer(seen, timeout=seconds)]
    return [piece[start:stop] for start, stop, _ in _covering(spans, len(piece), False)]


def _covering(spans: list[tuple[int, int]], size: int, invert: bool) -> list[tuple[int, int, bool]]:
    """Matches and gaps that cover a piece, without what is empty; the flag says which is a match."""
    out, end = [], 0
    for start, stop in spans:
        out += [(end, start, invert), (start, stop, not invert)]
        end = stop
    out.append((end, size, invert))
    return [cut for cut in out if cut[0] < cut[1]]


def _joined(piece: str, cuts: list[tuple[int, int, bool]], behaviour: str) -> list[str]:
    bounds: list[tuple[int, int]] = []
    previous: bool | None = None
    for start, stop, matched in cuts:
        if behaviour == "contiguous":
            joins = previous is matched
        elif behaviour == "merged_with_previous":
            joins = matched and previous is False
        elif behaviour == "merged_with_next":
            joins = previous is True and not matched
        else:
            joins = False
        bounds.append((bounds.pop()[0] if joins else start, stop))
        previous = matched
    return [piece[start:stop] for start, stop in bounds]


def _seconds(pattern: str) -> float | None:
    """How long a pattern may take. Ours need no limit, and keeping one makes matching three times slower."""
    return None if pattern in _OURS else seconds_left()


_OURS = frozenset(
    [
        *chain.from_iterable(patterns for _, patterns in SPELLINGS),
        O200K,
        *(step.pattern for step in _FUSED.values()),
    ]
)
