"""Damage to files of every form: bytes, text, and what JSON, JSON lines, YAML and archives hold."""

from __future__ import annotations

import json
import random
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from typing import Any

import yaml

NUMBERS = (
    0,
    1,
    2,
    7,
    127,
    255,
    1 << 16,
    (1 << 31) - 1,
    (1 << 32) - 1,
    1 << 40,
    1 << 60,
    1 << 63,
    (1 << 64) - 1,
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 1 << 31, 1 << 40, 1 << 63, 1 << 70, 10**400, -(10**30)),
    *(0.0, 0.5, -1.0, 1e-320, 1e38, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", "a", "0", "1", "true", "x" * 5000, "\x1b[31m\n", "\ud800", "..", "/etc/passwd", "\x00", "é" * 40),
    *([], {}, [[]], [1, 2], [None], ["a"], [1.5, "b"], [0] * 3000, {"a": 1}, {"": {}}, {"kind": "x"}, [{}]),
    *(r"(\w*\.?)*!", "{{ 1 }}", "LORA", "float32", "full", "<|im_end|>", "../../x", "a\nb"),
)
PIECES = (
    *(
        b"\0",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\n",
        b"\r\n",
        b"\r",
        b"\t",
        b'"',
        b"'",
        b",",
        b"{",
        b"}",
        b"[",
        b"]",
    ),
    *(
        b"\x1b[2J",
        b"\\u",
        b"\\",
        b"&a [*a]",
        b"!!int x",
        b"!!python/object:os.system x",
        b"<<: *a",
        b"%",
        b"--- \n",
    ),
    *(
        b"[" * 3000,
        b"{" * 3000,
        b'{"a":' * 3000,
        b"- " * 3000,
        b"x" * 200_000,
        b" " * 5000,
        b"9" * 5000,
        b"NaN",
        b"1e999",
    ),
    *(
        b"Infinity",
        b"-",
        b"null",
        b"<|im_start|>",
        b"{{ messages }}",
        b"{% for",
        b"\xef\xbb\xbf",
        b"PK\3\4",
        b"GGUF",
    ),
)


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bits flipped, numbers replaced, pieces moved, cut, repeated or put in, the end cut off or extended."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(made) + 1) if rng.random() < 0.6 else rng.randrange(min(len(made), 400) + 1)
        way = rng.randrange(9)
        if way == 0 and made:
            for _ in range(rng.choice((1, 1, 8, 64))):
                made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
        elif way == 1:
            width = rng.choice((1, 2, 4, 8))
            old = int.from_bytes(made[at : at + width], "little")
            new = rng.choice((*NUMBERS, old + 1, old - 1, old * 2, len(made), rng.getrandbits(64)))
            made[at : at + width] = (new % (1 << (8 * width))).to_bytes(width, "little")
        elif way == 2:
            size = rng.choice((1, 2, 8, 64, 1000))
            made[at : at + size] = rng.choice((rng.randbytes(size), bytes(size), b"\xff" * size))
        elif way == 3:
            del made[at : at + rng.choice((1, 2, 8, 100, len(made)))]
        elif way == 4:
            to, size = rng.randrange(len(made) + 1), rng.choice((1, 4, 40, 400))
            made[to:to] = made[at : at + size]
        elif way == 5:
            del made[rng.randrange(len(made) + 1) :]
        elif way == 6:
            made += rng.randbytes(rng.choice((1, 7, 64, 4096)))
        else:
            made[at:at] = rng.choice(PIECES)
    return bytes(made)


def of_text(data: bytes, rng: random.Random) -> bytes:
    """Lines dropped, doubled and swapped, or words replaced; else as bytes."""
    lines = data.split(b"\n")
    way = rng.randrange(6)
    if way == 0 and len(lines) > 2:
        del lines[rng.randrange(len(lines))]
    elif way == 1:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
    elif way == 2:
        rng.shuffle(lines)
    elif way == 3:
        n = rng.randrange(len(lines))
        words = lines[n].split(b" ")
        words[rng.randrange(len(words))] = rng.choice(
            (*PIECES, *(str(v).encode("utf-8", "replace") for v in VALUES[:60]))
        )
        lines[n] = b" ".join(words)
    else:
        return of_bytes(data, rng)
    return b"\n".join(lines)


def of_value(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """A value with one to three of its entries dropped, renamed, doubled, nested or of another type."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))) if depth == 0 else range(1):
        value = _changed(value, rng, depth)
    return value


def _changed(value: Any, rng: random.Random, depth: int) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.93:
        made, key = dict(value), rng.choice(list(value))
        way = rng.random()
        if way < 0.12:
            del made[key]
        elif way < 0.2:
            made[rng.choice((f"{key}x", "", "kind", "__class__", "a.b", 5))] = made.pop(key)
        elif way < 0.27:
            made[rng.choice(("extra", "\x1b[31m", "model", str(rng.random())))] = rng.choice(VALUES)
        else:
            made[key] = _changed(made[key], rng, depth + 1)
        return made
    if isinstance(value, list) and value and rng.random() < 0.85:
        made, n = list(value), rng.randrange(len(value))
        way = rng.random()
        if way < 0.12:
            del made[n]
        elif way < 0.25:
            made.insert(rng.randrange(len(made) + 1), rng.choice((made[n], *VALUES[:20])))
        else:
            made[n] = _changed(made[n], rng, depth + 1)
        return made
    if rng.random() < 0.04:
        for _ in range(rng.choice((3, 90, 900))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    if type(value) in (int, float) and rng.random() < 0.5:
        return rng.choice((value + 1, value - 1, value * 2, -value, value * 10**6, value / 3, str(value)))
    return rng.choice(VALUES)


def of_json(data: bytes, rng: random.Random) -> bytes:
    """The values of a JSON text changed; one time in four the text itself."""
    if rng.random() < 0.25:
        return of_text(data, rng)
    return json.dumps(of_value(json.loads(data), rng), ensure_ascii=rng.random() < 0.5).encode(
        "utf-8", "surrogatepass"
    )


def of_lines(data: bytes, rng: random.Random) -> bytes:
    """One line of JSON lines changed; one time in four the text."""
    if rng.random() < 0.25:
        return of_text(data, rng)
    lines = [line for line in data.split(b"\n") if line]
    n = rng.randrange(len(lines))
    lines[n] = of_json(lines[n], rng)
    return b"\n".join(lines) + b"\n"


def of_yaml(data: bytes, rng: random.Random) -> bytes:
    """The values of YAML changed; one time in three the text."""
    if rng.random() < 0.34:
        return of_text(data, rng)
    try:
        return yaml.safe_dump(
            of_value(yaml.safe_load(data), rng), sort_keys=False, allow_unicode=True
        ).encode()
    except (yaml.YAMLError, UnicodeEncodeError, ValueError, RecursionError):  # what YAML cannot write
        return of_text(data, rng)


def of_safetensors(data: bytes, rng: random.Random) -> bytes:
    """The header's JSON changed under its own length; one time in three the bytes."""
    if rng.random() < 0.34:
        return of_bytes(data, rng)
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    if rng.random() < 0.5:  # a file that is whole, of other tensors than are meant
        names = [name for name in header if name != "__metadata__"]
        name = rng.choice(names)
        entry = dict(header[name])
        way = rng.randrange(5)
        if way == 0:
            header[f"{name}x"] = header.pop(name)
        elif way == 1:
            length = entry["shape"]
            header[name] = entry | {
                "shape": rng.choice((length[::-1], [*length, 1], [1, *length], [int(_product(length))]))
            }
        elif way == 2 and len(names) > 1:
            other = rng.choice(names)
            header[name], header[other] = header[other], header[name]
        elif way == 3:
            widths = {
                "F32": ("I32", "U32"),
                "F16": ("BF16", "I16", "U16"),
                "BF16": ("F16", "I16"),
                "I32": ("F32", "U32"),
            }
            header[name] = entry | {"dtype": rng.choice(widths.get(entry["dtype"], ("U8",)))}
        else:
            floats = bytearray(data)
            begin, end = (8 + size + place for place in entry["data_offsets"])
            word = rng.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff" * 4, b"\0" * 4))
            floats[begin:end] = (word * ((end - begin) // 4 + 1))[: end - begin]
            return bytes(floats)
    else:
        header = of_value(header, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def _product(lengths: list[int]) -> int:
    out = 1
    for length in lengths:
        out *= length
    return out


def of_archive(data: bytes, rng: random.Random) -> bytes:
    """A member of an archive damaged, dropped or renamed, its directory as it should be; else the bytes."""
    if rng.random() < 0.4:
        return of_bytes(data, rng)
    with zipfile.ZipFile(BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = (
        rng.choice([*members, *(["manifest.json"] * 4)])
        if "manifest.json" in members
        else rng.choice(list(members))
    )
    way = rng.random()
    if way < 0.1:
        del members[name]
    elif way < 0.2:
        members[rng.choice(("../x", "a/b/c", "x" * 300, "é", name.upper()))] = members.pop(name)
    else:
        members[name] = (of_json if name.endswith(".json") else of_bytes)(members[name], rng)
    out = BytesIO()
    with zipfile.ZipFile(
        out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as archive:
        for each, content in members.items():
            archive.writestr(each, content)
    return out.getvalue()


Damage = Callable[[bytes, random.Random], bytes]
BY_ENDING: dict[str, Damage] = {
    ".json": of_json,
    ".jsonl": of_lines,
    ".ndjson": of_lines,
    ".sig": of_json,
    ".yaml": of_yaml,
    ".yml": of_yaml,
    ".safetensors": of_safetensors,
    ".cutaway": of_archive,
    ".npz": of_archive,
    ".txt": of_text,
    ".csv": of_text,
    ".tsv": of_text,
    ".jinja": of_text,
    ".md": of_text,
    ".tiktoken": of_text,
}


def of_file(name: str, data: bytes, rng: random.Random) -> bytes:
    """A file damaged as its ending says."""
    ending = name[name.rfind(".") :] if "." in name else ""
    return BY_ENDING.get(ending, of_bytes)(data, rng)
