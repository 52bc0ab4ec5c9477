"""Writes the table of character classes that the native core and the reference read:
cutaway/tokenizer/unicode-16.0.inc.

    python -m scripts.tables.unicode_tables [--check]

It says for every code point which of the classes that split patterns ask for it is in. Engines carry
different versions of Unicode, so a table belongs to a version, and is read off an engine that has it, code
point by code point: 16.0 off tiktoken (Rust's regex), which must agree with tokenizers (Oniguruma). With
--check nothing is written: the engines installed here must give what the file holds. Takes 20 seconds.
"""

import argparse
import sys
import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import tiktoken
import tokenizers

from cutaway.tokenizer.unicode import CLASSES

VERSION = "16.0"
ALL = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
EVERY = "".join(map(chr, ALL))
PATH = Path(__file__).resolve().parents[2] / f"cutaway/tokenizer/unicode-{VERSION}.inc"


def by_tiktoken(pattern: str) -> str:
    """The characters that match: text that no match covers is dropped."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    cutter = tiktoken.Encoding("classes", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return bytes(cutter.encode_ordinary(EVERY)).decode()


def by_tokenizers(pattern: str) -> str:
    """The characters that match, by what `removed` leaves over."""
    cutter = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "removed")
    out: list[str] = []
    for start in range(0, len(EVERY), 50_000):
        part = EVERY[start : start + 50_000]
        done = 0
        for _, (begin, end) in cutter.pre_tokenize_str(part):
            out.append(part[done:begin])
            done = end
        out.append(part[done:])
    return "".join(out)


def table(matching: Callable[[str], str]) -> bytes:
    """The class of every code point, a byte each."""
    classes = bytearray(0x110000)
    for number, pattern in enumerate(CLASSES, 1):
        for character in matching(pattern):
            code = ord(character)
            if classes[code]:
                raise SystemExit(f"U+{code:04X} is in two classes, {classes[code]} and {number}")
            classes[code] = number
    return bytes(classes)


def written(rows: list[tuple[int, int]]) -> str:
    """The file that says where each run of code points of one class begins, and the class."""
    words = " ".join(f"0x{start << 4 | number:x}," for start, number in rows)
    about = f"// Unicode {VERSION}: runs of code points of one class, each the first one's number times 16,"
    source = "// and the class (cutaway/tokenizer/unicode.py). Written by scripts/tables/unicode_tables.py."
    return f"{about}\n{source}\n{textwrap.fill(words, 108)}\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    check = parser.parse_args().check
    classes = table(by_tiktoken)
    others = table(by_tokenizers)
    differing = [code for code in ALL if classes[code] != others[code]]
    if differing:
        return _fail(
            f"tiktoken and tokenizers differ at {len(differing):,} code points: U+{differing[0]:04X}"
        )
    starts = [0, *(code for code, (one, next) in enumerate(pairwise(classes), 1) if one != next)]
    text = written([(start, classes[start]) for start in starts])
    if not check:
        PATH.write_text(text)
    elif PATH.read_text() != text:
        return _fail(f"{PATH.name} is not what these engines say")
    print(f"Unicode {VERSION}: {len(ALL):,} code points, {len(starts):,} runs; tiktoken and tokenizers agree")
    return 0


def _fail(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
