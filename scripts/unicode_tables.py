"""Writes the tables of character classes: native/tokenizer/unicode_tables.hpp and
cutaway/tokenizer/unicode_tables.py.

    python scripts/unicode_tables.py [--check]

A table says for every code point which of the classes that split patterns ask for it is in. Engines carry
different versions of Unicode, so a table belongs to a version, and is read off an engine that has it, code
point by code point: 16.0 off tiktoken (Rust's regex), which must agree with tokenizers (Oniguruma). With
--check nothing is written: the engines installed here must give what the files hold. Takes 20 seconds.
"""

import argparse
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import tiktoken
import tokenizers

# A class's number in the tables, and what patterns call it. Whatever is in none has number 0.
CLASSES = {
    1: r"[\p{Lu}\p{Lt}]",
    2: r"\p{Ll}",
    3: r"[\p{Lm}\p{Lo}]",
    4: r"\p{M}",
    5: r"\p{N}",
    6: r"\p{P}",
    7: r"\p{S}",
    8: r"\s",
}
VERSION = "16.0"
ALL = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
EVERY = "".join(map(chr, ALL))
TREE = Path(__file__).resolve().parents[1]
HPP, PY = TREE / "native/tokenizer/unicode_tables.hpp", TREE / "cutaway/tokenizer/unicode_tables.py"


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
    for number, pattern in CLASSES.items():
        for character in matching(pattern):
            code = ord(character)
            if classes[code]:
                raise SystemExit(f"U+{code:04X} is in two classes, {classes[code]} and {number}")
            classes[code] = number
    return bytes(classes)


def runs(classes: bytes) -> list[tuple[int, int]]:
    """Where each run of code points of one class begins, and the class."""
    starts = [0, *(code for code, (one, next) in enumerate(pairwise(classes), 1) if one != next)]
    return [(start, classes[start]) for start in starts]


def header(rows: list[tuple[int, int]]) -> str:
    words = [f"0x{start << 4 | number:x}" for start, number in rows]
    return (
        "// Written by scripts/unicode_tables.py. Runs of code points of one class: the first one's number\n"
        "// times 16, and the class (unicode.hpp).\n"
        "#pragma once\n\n#include <cstdint>\n\nnamespace cutaway {\n\n"
        f"inline constexpr uint32_t kUnicode{VERSION.replace('.', '_')}[] = {{\n"
        f"{_lines(words, ', ', '    ')},\n}};\n\n"
        "}  // namespace cutaway\n"
    )


def module(rows: list[tuple[int, int]]) -> str:
    words, last = [], 0
    for start, number in rows:
        words.append(f"{start - last:x}.{number}")
        last = start
    return (
        '"""Written by scripts/unicode_tables.py: the character classes of a version of Unicode.\n\n'
        "Runs of code points of one class: how many code points after the last run each begins, in hex, and\n"
        f'its class: 0 for none, else its place in unicode.CLASSES, from 1 on.\n"""\n\n'
        f'VERSION = "{VERSION}"\nRUNS = """\n{_lines(words, " ", "")}\n"""\n'
    )


def _lines(words: list[str], between: str, margin: str) -> str:
    lines, line = [], ""
    for word in words:
        if len(margin + line + word) > 104:
            lines.append(margin + line.rstrip())
            line = ""
        line += word + between
    return "\n".join([*lines, margin + line.removesuffix(between)])


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
    rows = runs(classes)
    for path, text in ((HPP, header(rows)), (PY, module(rows))):
        if not check:
            path.write_text(text)
        elif path.read_text() != text:
            return _fail(f"{path.relative_to(TREE)} is not what these engines say")
    print(f"Unicode {VERSION}: {len(ALL):,} code points, {len(rows):,} runs; tiktoken and tokenizers agree")
    return 0


def _fail(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
