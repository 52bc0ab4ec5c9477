"""Chapter 2, tokenization: cutting before merging, bytes, control tokens, streams, batches, languages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from cutaway.course.exercise import Arguments, Exercise, Mistake, Property

TITLE = "Tokenization"
QUESTION = "A model reads numbers. How does a text become numbers, and what can go wrong on the way?"
WORD = re.compile(r" ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]+|\s+")
CONTROL = ["<|im_start|>", "<|im_end|>", "<|im_start|>user"]


# ---- 2.1 ---------------------------------------------------------------------------------------------------


def _cut(text: str) -> list[str]:
    return WORD.findall(text)


def _split(text: str) -> list[str]:
    return text.split()


def _cut_behind(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+ ?|[0-9] ?|[^\sA-Za-z0-9]+ ?|\s+", text)


def _cut_numbers_whole(text: str) -> list[str]:
    return re.findall(r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+", text)


def _cut_signs_apart(text: str) -> list[str]:
    return re.findall(r" ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]|\s+", text)


def _cut_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield ("Hello, world!",)
    yield ("a  b",)
    yield ("In 1969 it was $12.50...",)
    yield ("a naïve café: é!",)
    yield ("tabs\tand\nlines  ?!",)
    letters = list("ab 12 ,.!")
    for _ in range(5):
        yield ("".join(map(str, rng.choice(letters, 14))),)


# ---- 2.2 ---------------------------------------------------------------------------------------------------


def _utf_8(text: str) -> list[int]:
    return list(text.encode("utf-8"))


def _code_points(text: str) -> list[int]:
    return [ord(one) for one in text]


def _utf_16(text: str) -> list[int]:
    return list(text.encode("utf-16-le"))


def _latin(text: str) -> list[int]:
    return list(text.encode("latin-1", errors="replace"))


def _ascii_alone(text: str) -> list[int]:
    return list(text.encode("ascii", errors="ignore"))


def _utf_8_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    for text in ("abc", "né", "€", "日本", "🦜", "naïve 🦜 日", "\x80\u0800\U00010000", ""):
        yield (text,)


# ---- 2.3 ---------------------------------------------------------------------------------------------------

Part = tuple[str, bool]


def _parts(text: str, controls: list[str]) -> list[Part]:
    found: list[Part] = []
    longest = sorted(controls, key=len, reverse=True)
    at = begun = 0
    while at < len(text):
        control = next((one for one in longest if text.startswith(one, at)), None)
        if control is None:
            at += 1
            continue
        if at > begun:
            found.append((text[begun:at], False))
        found.append((control, True))
        at = begun = at + len(control)
    return [*found, (text[begun:], False)] if begun < len(text) else found


def _parts_shortest(text: str, controls: list[str]) -> list[Part]:
    found: list[Part] = []
    pattern = "|".join(re.escape(one) for one in sorted(controls, key=len))
    for part in re.split(f"({pattern})", text):
        if part:
            found.append((part, part in controls))
    return found


def _parts_all_text(text: str, controls: list[str]) -> list[Part]:
    return [(part, False) for part, _ in _parts(text, controls)]


def _parts_with_empty(text: str, controls: list[str]) -> list[Part]:
    pattern = "|".join(re.escape(one) for one in sorted(controls, key=len, reverse=True))
    return [(part, part in controls) for part in re.split(f"({pattern})", text)]


def _parts_without_controls(text: str, controls: list[str]) -> list[Part]:
    return [(part, control) for part, control in _parts(text, controls) if not control]


def _part_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield "Hi", CONTROL
    yield "<|im_start|>Hi<|im_end|>", CONTROL
    yield "<|im_start|>user\nHi", CONTROL
    yield "a<|im_end|><|im_end|>b<|im_", CONTROL
    for _ in range(4):
        yield "".join(map(str, rng.choice([*CONTROL, "x", " y", "<|"], 6))), CONTROL


# ---- 2.4 ---------------------------------------------------------------------------------------------------


def _stream(tokens: list[bytes]) -> list[str]:
    shown, kept = [], b""
    for token in tokens:
        kept += token
        whole = len(kept)
        for back in range(1, min(4, len(kept)) + 1):
            first = kept[-back]
            if first >= 0xC0:  # the first byte of a character says how many it has
                needs = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
                whole = len(kept) - back if back < needs else len(kept)
                break
            if first < 0x80:
                break
        shown.append(kept[:whole].decode("utf-8"))
        kept = kept[whole:]
    return shown


def _stream_by_token(tokens: list[bytes]) -> list[str]:
    return [token.decode("utf-8", errors="replace") for token in tokens]


def _stream_dropping(tokens: list[bytes]) -> list[str]:
    return [token.decode("utf-8", errors="ignore") for token in tokens]


def _stream_at_the_end(tokens: list[bytes]) -> list[str]:
    return [""] * (len(tokens) - 1) + [b"".join(tokens).decode("utf-8")]


def _stream_whole_text(tokens: list[bytes]) -> list[str]:
    texts = _stream(tokens)
    return ["".join(texts[: n + 1]) for n in range(len(texts))]


def _stream_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield ([b"Hel", b"lo"],)
    yield ([b"na", b"\xc3", b"\xaf", b"ve"],)
    yield ([b"\xf0\x9f", b"\xa6", b"\x9c!"],)
    text = "é日🦜ab".encode() * 3
    for _ in range(4):
        edges = sorted({0, len(text), *(int(one) for one in rng.integers(1, len(text), 9))})
        yield ([text[a:b] for a, b in pairwise(edges)],)


# ---- 2.5 ---------------------------------------------------------------------------------------------------


def _padded(rows: list[list[int]], padding: int) -> tuple[np.ndarray, np.ndarray]:
    most = max(map(len, rows))
    ids = np.full((len(rows), most), padding)
    real = np.zeros((len(rows), most), dtype=bool)
    for n, row in enumerate(rows):
        ids[n, : len(row)], real[n, : len(row)] = row, True
    return ids, real


def _padded_left(rows: list[list[int]], padding: int) -> tuple[np.ndarray, np.ndarray]:
    ids, real = _padded([row[::-1] for row in rows], padding)
    return ids[:, ::-1].copy(), real[:, ::-1].copy()


def _cut_off(rows: list[list[int]], padding: int) -> tuple[np.ndarray, np.ndarray]:
    fewest = min(map(len, rows))
    return np.array([row[:fewest] for row in rows]), np.ones((len(rows), fewest), dtype=bool)


def _mask_by_value(rows: list[list[int]], padding: int) -> tuple[np.ndarray, np.ndarray]:
    ids, _ = _padded(rows, padding)
    return ids, ids != padding


def _mask_of_padding(rows: list[list[int]], padding: int) -> tuple[np.ndarray, np.ndarray]:
    ids, real = _padded(rows, padding)
    return ids, ~real


def _padded_with_zero(rows: list[list[int]], padding: int) -> tuple[np.ndarray, np.ndarray]:
    return _padded(rows, 0)


def _padding_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield [[5, 6, 7], [8]], 2
    yield [[2, 2], [3], [4, 5, 6]], 2  # a text may hold the padding token itself
    yield [[int(one) for one in rng.integers(0, 50, int(n))] for n in rng.integers(1, 9, 6)], 49


# ---- 2.6 ---------------------------------------------------------------------------------------------------


def _parity(counts: dict[str, list[int]]) -> dict[str, float]:
    english = sum(counts["eng"])
    return {language: sum(own) / english for language, own in counts.items()}


def _parity_by_sentence(counts: dict[str, list[int]]) -> dict[str, float]:
    return {
        language: float(np.mean([a / b for a, b in zip(own, counts["eng"], strict=True)]))
        for language, own in counts.items()
    }


def _parity_upside_down(counts: dict[str, list[int]]) -> dict[str, float]:
    return {language: 1 / one for language, one in _parity(counts).items()}


def _parity_without_english(counts: dict[str, list[int]]) -> dict[str, float]:
    return {language: one for language, one in _parity(counts).items() if language != "eng"}


def _parity_of_all(counts: dict[str, list[int]]) -> dict[str, float]:
    mean = float(np.mean([sum(own) for own in counts.values()]))
    return {language: sum(own) / mean for language, own in counts.items()}


def _parity_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield ({"eng": [10, 20], "deu": [15, 30], "tha": [50, 40]},)
    yield ({"zho": [15, 20], "eng": [20, 20]},)
    yield ({name: [int(one) for one in rng.integers(5, 90, 8)] for name in ("eng", "fra", "hin", "mya")},)


EXERCISES = [
    Exercise(
        number="2.1",
        title="Cut before you merge",
        name="cut",
        parameters="text",
        task="""
A tokenizer first cuts a text into words, so that no token crosses one. A simplified pattern of GPT-2's
kind:

text: a string. Returns the list of its pieces, which joined give the text again. A piece is one of:
letters a to z and A to Z; one digit; signs that are neither letters, digits nor white space; each with
one space before it, if there is one. What white space is left is a piece of its own, all that follows one
another together. `re.findall` is a way.
""",
        cases=_cut_cases,
        reference=_cut,
        mistakes=(
            Mistake("white space is lost: a space belongs to the piece behind it", _split),
            Mistake("the space belongs to the piece behind it, not to the one before", _cut_behind),
            Mistake("digits stay alone: each is a piece", _cut_numbers_whole),
            Mistake("signs that follow one another are one piece", _cut_signs_apart),
        ),
        properties=(Property("joined, the pieces must give the text", lambda g, f: "".join(f) == g[0]),),
        imports="import re",
    ),
    Exercise(
        number="2.2",
        title="Letters as bytes",
        name="utf_8",
        parameters="text",
        task="""
There are 150,000 characters, but only 256 bytes. Returns the bytes of a string in UTF-8 as a list of
numbers from 0 to 255: one for an English letter, two for é, three for 日, four for 🦜.
""",
        cases=_utf_8_cases,
        reference=_utf_8,
        mistakes=(
            Mistake("those are code points: the numbers of characters, not bytes", _code_points),
            Mistake("that is UTF-16: it has two bytes for a letter", _utf_16),
            Mistake("that is Latin-1, which has no other scripts", _latin),
            Mistake("what is not ASCII was dropped", _ascii_alone),
        ),
        properties=(
            Property(
                "a byte should be a number from 0 to 255", lambda g, f: all(0 <= int(one) < 256 for one in f)
            ),
        ),
        imports="",
    ),
    Exercise(
        number="2.3",
        title="Control tokens",
        name="parts",
        parameters="text, controls",
        task="""
A template writes control tokens between the turns of a chat. Find them, before anything else is cut.

text: a string that the template wrote; controls: a list of texts, each of which is one token. Goes
through the text from left to right; where several controls begin at one place, the longest is meant.
Returns a list of pairs (part, is it a control token?), without empty parts. In a user's own text none is
looked for: that is how words forge no turn.
""",
        cases=_part_cases,
        reference=_parts,
        mistakes=(
            Mistake("where several begin at one place the longest is meant", _parts_shortest),
            Mistake("the control tokens are not marked", _parts_all_text),
            Mistake("there are empty parts", _parts_with_empty),
            Mistake("the control tokens are missing", _parts_without_controls),
        ),
        properties=(
            Property(
                "joined, the parts must give the text", lambda g, f: "".join(part for part, _ in f) == g[0]
            ),
        ),
        imports="",
    ),
    Exercise(
        number="2.4",
        title="A stream without half characters",
        name="stream",
        parameters="tokens",
        task="""
An answer arrives token by token, and a character may be spread over several tokens.

tokens: a list of bytes; together they are UTF-8. Returns a list of strings, one for each token: the text
that can be shown when it has come. Bytes of a character that is not complete wait for the next token, so
"" is a right entry. In UTF-8 the first byte of a character is 0xxxxxxx (one byte), 110xxxxx (two),
1110xxxx (three) or 11110xxx (four); all others are 10xxxxxx.
""",
        cases=_stream_cases,
        reference=_stream,
        mistakes=(
            Mistake("a token is decoded by itself: half a character becomes U+FFFD", _stream_by_token),
            Mistake(
                "bytes of a character that is not complete are dropped: keep them for the next token",
                _stream_dropping,
            ),
            Mistake("everything waits for the end: show what is complete at once", _stream_at_the_end),
            Mistake("each entry is the whole text so far: what is new is asked for", _stream_whole_text),
        ),
        properties=(
            Property(
                "joined, the strings must give the text", lambda g, f: "".join(f) == b"".join(g[0]).decode()
            ),
            Property("there should be one string for each token", lambda g, f: len(f) == len(g[0])),
        ),
        imports="",
    ),
    Exercise(
        number="2.5",
        title="A batch",
        name="pad",
        parameters="rows, padding",
        task="""
Texts of several lengths in one array.

rows: a list of lists of ids; padding: an id. Returns two arrays [n longest]: the ids, shorter texts
followed by the padding's id, and booleans, True where an id is the text's own. A text may hold the
padding's id itself.
""",
        cases=_padding_cases,
        reference=_padded,
        mistakes=(
            Mistake("the padding is on the left: it follows the text", _padded_left),
            Mistake("texts were cut to the shortest", _cut_off),
            Mistake(
                "the mask asks whether an id is the padding's: a text may hold that id itself", _mask_by_value
            ),
            Mistake("the mask is True at the padding: it is True at the text", _mask_of_padding),
            Mistake("it is padded with 0: the padding's id was given", _padded_with_zero),
        ),
    ),
    Exercise(
        number="2.6",
        title="What a language costs",
        name="parity",
        parameters="counts",
        task="""
The same sentences in many languages, and how many tokens each has (2305.15425).

counts: a dictionary of languages and their numbers of tokens, sentence by sentence; English is "eng".
Returns a dictionary: for each language, English among them, how many times as many tokens all its
sentences together have as all the English ones.
""",
        cases=_parity_cases,
        reference=_parity,
        mistakes=(
            Mistake(
                "it is the mean of the sentences' ratios: all tokens over all tokens is asked for",
                _parity_by_sentence,
            ),
            Mistake("it is upside down: a costly language has more than 1", _parity_upside_down),
            Mistake("English is missing: it has 1", _parity_without_english),
            Mistake("it is relative to the mean of all languages: English has 1", _parity_of_all),
        ),
        imports="",
    ),
]
