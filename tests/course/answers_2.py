"""Chapter 2: solutions, and wrong answers with words of the hint that each must get."""

import codecs
import re

import numpy as np


def cut(text):
    def kind(c):
        return (
            "l" if c.isascii() and c.isalpha() else "d" if c in "0123456789" else "w" if c.isspace() else "s"
        )

    pieces, at = [], 0
    while at < len(text):
        begin = at
        if text[at] == " " and at + 1 < len(text) and kind(text[at + 1]) != "w":
            at += 1
        own = kind(text[at])
        at += 1
        while at < len(text) and own != "d" and kind(text[at]) == own:
            at += 1
        pieces.append(text[begin:at])
    return pieces


def utf_8(text):
    found = []
    for c in map(ord, text):
        if c < 0x80:
            found += [c]
        elif c < 0x800:
            found += [0xC0 | c >> 6, 0x80 | c & 63]
        elif c < 0x10000:
            found += [0xE0 | c >> 12, 0x80 | c >> 6 & 63, 0x80 | c & 63]
        else:
            found += [0xF0 | c >> 18, 0x80 | c >> 12 & 63, 0x80 | c >> 6 & 63, 0x80 | c & 63]
    return found


def parts(text, controls):
    pattern = "|".join(map(re.escape, sorted(controls, key=lambda one: -len(one))))
    found, at = [], 0
    for match in re.finditer(pattern, text):
        if match.start() > at:
            found.append((text[at : match.start()], False))
        found.append((match[0], True))
        at = match.end()
    return found + ([(text[at:], False)] if at < len(text) else [])


def stream(tokens):
    decoder = codecs.getincrementaldecoder("utf-8")()
    return [decoder.decode(token) for token in tokens]


def pad(rows, padding):
    most = max(len(row) for row in rows)
    ids = np.array([row + [padding] * (most - len(row)) for row in rows])
    real = np.array([[True] * len(row) + [False] * (most - len(row)) for row in rows])
    return ids, real


def parity(counts):
    return {name: sum(own) / sum(counts["eng"]) for name, own in counts.items()}


SOLUTIONS = {"2.1": cut, "2.2": utf_8, "2.3": parts, "2.4": stream, "2.5": pad, "2.6": parity}
WRONG = {
    "2.1": [
        (lambda t: t.split(), "white space is lost"),
        (lambda t: list(t), "differs"),
        (lambda t: re.findall(r" ?[a-zA-Z]+| ?\d+| ?[^\sA-Za-z0-9]+|\s+", t), "each is a piece"),
        (lambda t: [p.strip() or p for p in cut(t)], "must give the text"),
    ],
    "2.2": [
        (lambda t: [ord(c) for c in t], "code points"),
        (lambda t: list(t.encode("utf-16"))[2:], "UTF-16"),
        (lambda t: [ord(c) % 256 for c in t], "differs"),
        (lambda t: t.encode().hex(), "type list"),
    ],
    "2.3": [
        (lambda t, c: parts(t, sorted(c, key=len)[:2]), "the longest is meant"),
        (lambda t, c: [(p, False) for p, _ in parts(t, c)], "not marked"),
        (lambda t, c: [p for p in parts(t, c) if not p[1]], "are missing"),
        (lambda t, c: [("", False), *parts(t, c)], "differs"),
    ],
    "2.4": [
        (lambda ts: [t.decode(errors="replace") for t in ts], "by itself"),
        (lambda ts: [t.decode(errors="ignore") for t in ts], "are dropped"),
        (lambda ts: [b"".join(ts).decode()], "one string for each"),
        (lambda ts: [t.decode() for t in ts], "UnicodeDecodeError"),
    ],
    "2.5": [
        (lambda r, p: pad(r, p)[0], "2 parts"),
        (lambda r, p: (pad(r, p)[0], pad(r, p)[0] != p), "itself"),
        (lambda r, p: pad(r, 0), "padded with 0"),
        (lambda r, p: (pad(r, p)[0], ~pad(r, p)[1]), "True at the text"),
    ],
    "2.6": [
        (lambda c: {n: np.mean(np.divide(o, c["eng"])) for n, o in c.items()}, "mean of the sentences"),
        (lambda c: {n: sum(c["eng"]) / sum(o) for n, o in c.items()}, "upside down"),
        (lambda c: {n: sum(o) for n, o in c.items()}, "differs"),
        (lambda c: [sum(o) / sum(c["eng"]) for o in c.values()], "type dict"),
    ],
}
