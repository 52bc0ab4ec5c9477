"""The version of Unicode by which text is cut, whatever version the `regex` package carries.

tiktoken and Hugging Face's tokenizers cut by Unicode 16.0, and a character that was a letter to a model's
tokenizer is one here. `regex` moves on to each new version; so a character that it sees in another class than
16.0 does is shown to it as one that has the wanted class in both: the pattern then matches as the model's own
engine would have it. The table is read off those engines by scripts/unicode_tables.py.
"""

from bisect import bisect_left
from functools import cache
from itertools import accumulate, pairwise

from cutaway.tokenizer.unicode_tables import RUNS

CLASSES = (r"[\p{Lu}\p{Lt}]", r"\p{Ll}", r"[\p{Lm}\p{Lo}]", r"\p{M}", r"\p{N}", r"\p{P}", r"\p{S}", r"\s")


@cache
def classes() -> bytes:
    """The class of every code point, a byte each: 0 for none, else its place in CLASSES, from 1 on."""
    runs = [run.split(".") for run in RUNS.split()]
    starts = [*accumulate(int(step, 16) for step, _ in runs), 0x110000]
    sizes = (next - start for start, next in pairwise(starts))
    return b"".join(bytes([int(number)]) * size for (_, number), size in zip(runs, sizes, strict=True))


@cache
def stand_ins() -> dict[int, str]:
    """For each code point that `regex` sees in another class, the nearest one of the right class in both."""
    import regex

    theirs = bytearray(0x110000)
    every = "".join(map(chr, range(0x110000)))
    for number, pattern in enumerate(CLASSES, 1):
        for found in regex.finditer(f"{pattern}+", every):
            theirs[found.start() : found.end()] = bytes([number]) * (found.end() - found.start())
    ours = classes()
    differing = [code for code in range(0x110000) if ours[code] != theirs[code]]
    good: dict[int, list[int]] = {number: [] for number in range(len(CLASSES) + 1)}
    for code in range(0x110000):
        if ours[code] == theirs[code] and not 0xD800 <= code < 0xE000:
            good[ours[code]].append(code)
    return {code: chr(_nearest(good[ours[code]], code)) for code in differing}


def shown(text: str) -> str:
    """A text of the same length as `regex` is to see it."""
    return text if text.isascii() else text.translate(stand_ins())


def _nearest(codes: list[int], code: int) -> int:
    place = bisect_left(codes, code)
    return min(codes[max(0, place - 1) : place + 1], key=lambda other: abs(other - code))
