"""The scanners in C++ against the patterns that they stand for, and the classes of every code point."""

import inspect
import random
from itertools import accumulate, pairwise

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cutaway import native
from cutaway.native import scan
from cutaway.tokenizer import pretokenize, unicode
from cutaway.tokenizer.fast import SCANNED
from tests.test_native import python

built = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built"
)
tried = settings(max_examples=80, deadline=None)

MARKED = list("aAbBzZsStTreREvVeElLdDmM''''  \n\r\t.,!-_/0123 9") + list(
    "éÉſªʰ中国あゟ゙́̈ǅ½٣Ⅷ\u3000\u2028\x85\xa0\x00\x1c\x7f«€🎉\u200d\ufeff\u0378\U000323b0\u0558\u05c8\u0295\ua7ce龦가\U0010ffff"
)
wild = st.text(st.one_of(st.sampled_from(MARKED), st.characters(exclude_categories=["Cs"])), max_size=60)


def by_pattern(scanner: str, text: str) -> list[str]:
    return pretokenize.pretokenize(PATTERN_OF[scanner], text)


PATTERN_OF = {scanner: steps for steps, scanner in SCANNED.items()}


def test_every_scanner_has_its_pattern() -> None:
    assert set(PATTERN_OF) == set(scan.SCANNERS)


@built
@pytest.mark.parametrize("scanner", scan.SCANNERS)
def test_pieces_are_the_patterns(scanner: str) -> None:
    @tried
    @given(wild)
    @example("a  5 5\n\n 7  x ")
    @example("́ABC 'S'll'RE'ſ don't I'VE")
    @example("中A ǅa ʰA'Re \r\n / !/\n/")
    def same(text: str) -> None:
        assert scan.pieces(scanner, text) == by_pattern(scanner, text)

    same()


@built
@pytest.mark.parametrize("scanner", ["gpt2", "smollm", "cl100k", "qwen35", "o200k", "deepseek3"])
def test_code_points_of_every_kind(scanner: str) -> None:
    """Every 37th between a letter, a space, a digit and a sign (all: scripts/tables/unicode_tables.py)."""
    every = [chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000]
    text = "".join(f"a{one} {one}1{one}!" for one in every[::37] if not one.isascii())
    assert scan.pieces(scanner, text) == by_pattern(scanner, text)


@built
@pytest.mark.parametrize("scanner", scan.SCANNERS)
def test_windows_do_not_show(scanner: str) -> None:
    """Long texts, with and without a place where the scanner may cut them for itself."""
    code = inspect.getsource(random) * 2
    noise = random.Random(3)
    for text in (
        code,
        code.replace(" ", "\t"),
        "日本語の文章、" * 9_000,
        "a" * 70_000,
        " " * 40_000 + "x",
        "".join(noise.choices(MARKED, k=60_000)),
    ):
        assert scan.pieces(scanner, text) == by_pattern(scanner, text)


@built
@pytest.mark.parametrize("isa", ["avx2", "portable"])
def test_each_instruction_set_cuts_alike(isa: str) -> None:
    run = python(
        "import random, hashlib\nfrom cutaway.native import scan\nfrom tests.test_scan import MARKED\n"
        "text = ''.join(random.Random(1).choices(MARKED, k=30_000))\n"
        "pieces = [scan.pieces(scanner, text) for scanner in scan.SCANNERS]\n"
        "print(hashlib.sha256(repr(pieces).encode()).hexdigest())",
        CUTAWAY_ISA=isa,
    )
    if "the best that this processor has" in run.stderr:
        pytest.skip(f"this processor has no {isa}")
    text = "".join(random.Random(1).choices(MARKED, k=30_000))
    import hashlib

    pieces = [scan.pieces(scanner, text) for scanner in scan.SCANNERS]
    assert run.stdout.strip() == hashlib.sha256(repr(pieces).encode()).hexdigest(), run.stderr


def test_stand_ins_have_the_wanted_class() -> None:
    """What `regex` is shown is of the class that Unicode 16.0 gives the character itself."""
    classes = unicode.classes()
    assert len(classes) == 0x110000
    assert [classes[ord(one)] for one in "Aaª̈1.+ \x00"] == [1, 2, 3, 4, 5, 6, 7, 8, 0]
    assert classes[0x323B0] == 0  # a letter since Unicode 17
    for number, pattern in enumerate(unicode.CLASSES, 1):
        matches = regex.compile(pattern).match
        for code in range(0x110000):
            if classes[code] == number or code in unicode.stand_ins():
                shown = unicode.shown(chr(code))
                assert bool(matches(shown)) == (classes[code] == number), hex(code)


def test_pieces_tile_a_text() -> None:
    text = "".join(random.Random(2).choices(MARKED, k=500))
    for steps in PATTERN_OF.values():
        pieces = pretokenize.pretokenize(steps, text)
        spans = list(pairwise(accumulate(map(len, pieces), initial=0)))
        assert [text[start:stop] for start, stop in spans] == pieces
