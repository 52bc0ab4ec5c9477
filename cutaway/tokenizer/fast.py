"""The fast path: the reference's ids from the native core (native/tokenizer/scan.cpp, bpe.cpp).

A vocabulary is compiled once into a flat layout; text is cut by a scanner written for its pattern, or,
where there
is none, by the pattern itself, and its pieces are then encoded in the core. What a text is normalised to, and
where its added tokens are, is found in Python, as in the reference; so is a text with a byte that the
vocabulary
cannot write.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from cutaway.native import bpe as native
from cutaway.native import library
from cutaway.native.bpe import Core, Source
from cutaway.tokenizer import bpe
from cutaway.tokenizer.pretokenize import (
    CL100K,
    PATTERNS,
    SPELLINGS,
    Metaspace,
    PrefixSpace,
    Split,
    Step,
    errors_of,
    fused,
    pretokenize,
)
from cutaway.tokenizer.spec import TokenizerSpec

if TYPE_CHECKING:
    import numpy as np

LONGEST_TOKEN = 4096  # bytes; compiling takes the square of it

_SPELT = dict(SPELLINGS[:4])

# The steps that a scanner in native/tokenizer/scan.cpp stands for.
SCANNED: dict[tuple[Step, ...], str] = {
    fused(tuple(map(Split, patterns))): scanner
    for scanner, patterns in {
        "lines": PATTERNS["gemma4"],
        "gpt2": PATTERNS["gpt-2"],
        "smollm": PATTERNS["smollm"],
        "cl100k": (CL100K,),
        "llama3": PATTERNS["llama3"],
        "qwen2": PATTERNS["qwen2"],
        "qwen2_any": _SPELT["qwen2"],
        "qwen35": PATTERNS["qwen35"],
        "qwen35_any": _SPELT["qwen35"],
        "o200k": PATTERNS["gpt-4o"],
        "tekken": PATTERNS["tekken"],
        "deepseek3": PATTERNS["deepseek-v3"],
    }.items()
}
# DeepSeek's tokenizer.json has the line ends as they are, and the quotation mark unescaped.
_UNESCAPED = tuple(
    Split(pattern.replace(r"[!\"#", '[!"#').replace(r"\r\n", "\r\n")) for pattern in PATTERNS["deepseek-v3"]
)
SCANNED[_UNESCAPED] = "deepseek3"


class Path:
    """A vocabulary open in the core, and how its text is cut: by `scanner`, or else by `steps` in Python."""

    def __init__(self, core: Core, steps: tuple[Step, ...]) -> None:
        self.core = core
        self.prefix = bool(steps) and steps[0] == PrefixSpace()
        self.steps = steps
        self.errors = errors_of(steps)
        self.scanner = SCANNED.get(fused(steps[1:] if self.prefix else steps))

    def __str__(self) -> str:
        if self.scanner is not None:
            return f"native: the scanner {self.scanner}"
        return "native merges; no scanner is written for this pre-tokeniser, so text is cut in Python"

    def given(self, text: str) -> str:
        """A text as the scanner is given it."""
        return " " + text if self.prefix and text and not text.startswith(" ") else text

    def pieces(self, text: str, first: bool) -> list[int] | None:
        """The ids of a normalised text, which is cut in Python; None where the vocabulary lacks a byte."""
        pieces = pretokenize(self.steps, text, first)
        return self.core.pieces([piece.encode("utf-8", self.errors) for piece in pieces if piece])

    def decoded(self, ids: Iterable[int] | np.ndarray) -> bytearray | None:
        """The bytes of ids; None where one is no id, or has no bytes."""
        import numpy as np

        if not isinstance(ids, np.ndarray):
            if not isinstance(ids, list):
                return None
            try:
                read = native.integers(ids)
            except (TypeError, OverflowError):
                return None
            if read is None:
                return None
            ids = read
        if ids.dtype.kind not in "iu" or (
            ids.dtype != np.int32 and ids.size and ids.max() > np.iinfo(np.int32).max
        ):
            return None
        return self.core.decode(np.ascontiguousarray(ids, np.int32))


def unsupported_reason(spec: TokenizerSpec) -> str | None:
    """Why a tokenizer has no fast path, in a sentence; None when it can have one."""
    if (absent := library.unavailable_reason()) is not None:
        return absent
    if spec.model != "BPE":
        return f"The Python code encodes: the core has no {spec.model}."
    if any(len(text or "") > LONGEST_TOKEN for text in spec.tokens):
        return f"The Python code encodes: a token has more than {LONGEST_TOKEN:,} characters."
    if any(isinstance(step, Metaspace) for step in spec.pretokenizer) and spec.bytewise:
        return "The Python code encodes: bytes are cut by Metaspace."
    return None


def compiled(spec: TokenizerSpec, hidden: frozenset[str], tokens: list[bytes]) -> bytes | None:
    """The vocabulary laid out for the core, without the tokens in `hidden`; `tokens` are every id's bytes.

    None where its ids or its merges are of a kind that the layout cannot say.
    """
    ids = {text: id for text, id in spec.vocabulary.items() if text not in hidden and text}
    spelt = {text: data for text in ids if (data := _bytes(spec, text)) is not None}
    base = _base(spec, ids, hidden)
    symbols = {**dict.fromkeys(spelt), **dict.fromkeys(base)}
    number = {text: i for i, text in enumerate(symbols)}
    texts = [spelt[text] if text in spelt else base[text] for text in symbols]
    ranks = pairs = None
    if spec.merges is None:
        held = spec.ranks or {}
        if any(text not in ids for text in held if text and text not in hidden):
            return None
        dense = {rank: i for i, rank in enumerate(sorted(set(held.values())))}
        ranks = [dense[held[text]] if text in held else -1 for text in symbols]
    else:
        pairs = list(_pairs(spec, number, hidden))
    unused = {spec.tokens[id] for id in spec.unused}
    in_bytes = bpe.byte_ids(ids) if spec.fallback else {}
    return native.compile(
        Source(
            texts=texts,
            ids=[ids.get(text, -1) for text in symbols],
            ranks=ranks,
            pairs=pairs,
            unused=bytes(text in unused for text in symbols),
            whole=spec.whole,
            byte_ids=[in_bytes.get(byte, -1) for byte in range(256)],
            byte_symbols=[number[character] for character in bpe.BYTES] if spec.bytewise else [],
            unknown=-1 if spec.bytewise or spec.unknown is None else spec.unknown,
            fuse=spec.fuse,
            tokens=tokens,
        )
    )


def _bytes(spec: TokenizerSpec, text: str) -> bytes | None:
    """What a symbol is in a text; None where no text comes to it."""
    if spec.bytewise:
        return bpe.unspell(text)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None


def _base(spec: TokenizerSpec, ids: Mapping[str, int], hidden: frozenset[str]) -> dict[str, bytes]:
    """The symbols that merging begins with: bytes, or the characters that tokens are made of."""
    if spec.bytewise:
        return {character: bytes([byte]) for byte, character in enumerate(bpe.BYTES)}
    characters = sorted(set().union(*ids, *hidden))
    return {one: data for one in characters if (data := _bytes(spec, one)) is not None}


def _pairs(spec: TokenizerSpec, number: Mapping[str, int], hidden: frozenset[str]) -> Iterable[int]:
    for left, right in spec.merges or ():
        made = left + right
        if made not in hidden and left in number and right in number and made in number:
            yield from (number[left], number[right], number[made])


_INTEGERS: list[object] = []


def listed(ids: object) -> list[int]:
    """An array of ids as a list of Python's integers, which are kept and not made anew."""
    import numpy as np

    held = np.asarray(ids)
    if not held.size:
        return []
    top = int(held.max()) + 1
    if not _INTEGERS or len(_INTEGERS[0]) < top:  # pyright: ignore[reportArgumentType]
        _INTEGERS[:] = [np.arange(max(top, 1 << 18), dtype=object)]
    return _INTEGERS[0].take(held).tolist()  # pyright: ignore[reportAttributeAccessIssue]
