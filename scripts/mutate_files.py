"""Damages GGUF and safetensors files in thousands of ways and holds the readers to their law.

Every damaged file must either be read or be refused in one line that names it: no other exception, no crash,
no hang, and no memory beyond twice the file's size. Each is opened in a forked child with a limited address
space and an alarm.

    python scripts/mutate_files.py --count 5000 --seed 1
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NoReturn

import numpy as np

from cutaway import gguf
from cutaway.errors import UserError
from cutaway.weights import safetensors

SECONDS = 5
# What an interpreter may need beside the data: exceptions, allocator arenas.
SLACK = 2 << 20
NASTY = (
    0,
    1,
    2,
    7,
    127,
    128,
    255,
    1 << 16,
    (1 << 31) - 1,
    (1 << 32) - 1,
    1 << 40,
    1 << 60,
    1 << 63,
    (1 << 64) - 1,
)
IMPOSTORS = (
    b"",
    b"G",
    b"PK\x03\x04" + bytes(26) + b"archive/data.pkl",
    pickle.dumps({"weight": [1.0, 2.0]}),
    b"<!DOCTYPE html><html><body>404</body></html>",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    b"{}",
    bytes(4096),
    b"\xff" * 64,
)


@dataclass
class Layout:
    """Bytes under construction, with the place and width of every number that a reader believes."""

    data: bytearray = field(default_factory=bytearray)
    numbers: list[tuple[int, int]] = field(default_factory=list)
    header: int = 0

    def structural(self) -> list[tuple[int, int]]:
        """The numbers but for the vocabulary's string lengths, of which a few stand for all."""
        return self.numbers[:60] + self.numbers[-60:]

    def put(self, form: str, value: int) -> None:
        self.numbers.append((len(self.data), struct.calcsize("<" + form)))
        self.data += struct.pack("<" + form, value)

    def text(self, value: str) -> None:
        self.put("Q", len(value.encode()))
        self.data += value.encode()


def gguf_layout(scale: int) -> Layout:
    """A GGUF file written by hand: most metadata types, nine tensors of eight; about `scale` kilobytes."""
    out = Layout()
    out.data += b"GGUF"
    out.put("I", 3)
    tensors = [(f"blk.{i}.{name}", type) for i, (name, type) in enumerate(_tensor_names())]
    scalars = [(0, "B"), (1, "b"), (2, "H"), (3, "h"), (4, "I"), (5, "i"), (7, "B"), (10, "Q"), (11, "q")]
    out.put("Q", len(tensors))
    out.put("Q", len(scalars) + 7)
    for kind, form in scalars:
        out.text(f"test.scalar.{kind}")
        out.put("I", kind)
        out.put(form, 1)
    for key, text in ("general.architecture", "llama"), ("tokenizer.chat_template", "{{ messages }}" * 40):
        out.text(key)
        out.put("I", 8)
        out.text(text)
    out.text("general.alignment")
    out.put("I", 4)
    out.put("I", 64)
    for key, kind, form in ("test.ids", 5, "i"), ("test.scores", 6, "f"), ("test.flags", 7, "B"):
        out.text(key)
        out.put("I", 9)
        out.put("I", kind)
        out.put("Q", 3 * scale)
        out.data += struct.pack(f"<{3 * scale}{form}", *([1] * (3 * scale)))
    out.text("tokenizer.ggml.tokens")
    out.put("I", 9)
    out.put("I", 8)
    out.put("Q", 8 * scale)
    for number in range(8 * scale):
        out.text(f"toké{number}" + "x" * (200 if number % 50 == 0 else 0))
    _put_tensors(out, tensors, scale)
    return out


def _tensor_names() -> list[tuple[str, str]]:
    types = ("F32", "F16", "BF16", "Q8_0", "Q4_1", "Q6_K", "F32", "Q4_0", "Q4_K")
    return [("weight" if number % 2 else "bias", type) for number, type in enumerate(types)]


def _put_tensors(out: Layout, tensors: list[tuple[str, str]], scale: int) -> None:
    offset, rows = 0, max(scale // 8, 1)
    for name, type in tensors:
        kind = gguf.TYPES[type]
        out.text(name)
        out.put("I", 2)
        out.put("Q", 256)
        out.put("Q", rows)
        out.put("I", kind.id)
        out.put("Q", offset)
        size = rows * 256 // kind.block * kind.bytes
        offset += size + -size % 64
    out.header = len(out.data)
    out.data += bytes(-len(out.data) % 64 + offset)


def safetensors_layout(scale: int) -> Layout:
    """A safetensors file written by hand: eight tensors, texts with escapes; about `scale` kilobytes."""
    entries: dict[str, object] = {
        "__metadata__": {"format": "pt", "note\n": 'é "quoted" \\', "long": "x" * 500}
    }
    offset = 0
    for number, (dtype, width) in enumerate((("F32", 4), ("F16", 2), ("BF16", 2), ("I64", 8)) * 2):
        size = scale * 32 * width
        entries[f"layer.{number}.weight"] = {
            "dtype": dtype,
            "shape": [scale, 32],
            "data_offsets": [offset, offset + size],
        }
        offset += size
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    out = Layout()
    out.put("Q", len(header))
    out.data += header
    out.header = len(out.data)
    out.data += bytes(offset)
    return out


Damage = Callable[[random.Random, Layout], bytes]


def _truncated(rng: random.Random, base: Layout) -> bytes:
    whole = rng.random() < 0.5
    return bytes(base.data[: rng.randrange(len(base.data) if whole else base.header)])


def _bits_flipped(rng: random.Random, base: Layout) -> bytes:
    data = bytearray(base.data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(base.header)] ^= 1 << rng.randrange(8)
    return bytes(data)


def _numbers_replaced(rng: random.Random, base: Layout) -> bytes:
    data = bytearray(base.data)
    for at, width in rng.sample(base.numbers, min(rng.choice((1, 1, 1, 2, 5)), len(base.numbers))):
        old = int.from_bytes(data[at : at + width], "little")
        new = rng.choice((*NASTY, old + 1, old - 1, old * 2, len(data), len(data) // 8, rng.getrandbits(64)))
        data[at : at + width] = (new % (1 << (8 * width))).to_bytes(width, "little")
    return bytes(data)


def _late_number_replaced(rng: random.Random, base: Layout) -> bytes:
    """As above, where the tensor table is: a random field is nearly always a vocabulary's string length."""
    return _numbers_replaced(rng, Layout(base.data, base.structural(), base.header))


def _header_moved(rng: random.Random, base: Layout) -> bytes:
    """A piece of the header copied over, inserted at, or cut from another place."""
    data, at, to = bytes(base.data), rng.randrange(base.header), rng.randrange(base.header)
    piece = data[at : at + rng.choice((1, 4, 8, 40, 400))]
    over = rng.choice((0, len(piece)))
    return (
        data[:to] + piece + data[to + over :] if rng.random() < 0.7 else data[:at] + data[at + len(piece) :]
    )


def _noise(rng: random.Random, base: Layout) -> bytes:
    data, at, size = bytearray(base.data), rng.randrange(base.header), rng.choice((1, 2, 8, 64))
    data[at : at + size] = rng.choice((rng.randbytes(size), bytes(size), b"\xff" * size))
    return bytes(data)


def _impostor(rng: random.Random, base: Layout) -> bytes:
    start = rng.choice(IMPOSTORS)
    return start + bytes(base.data[len(start) :]) if rng.random() < 0.5 else start


def _appended(rng: random.Random, base: Layout) -> bytes:
    return bytes(base.data) + rng.randbytes(rng.choice((1, 7, 64, 4096)))


def _json_edited(rng: random.Random, base: Layout) -> bytes:
    """The JSON header changed as text, under a header length that fits it again."""
    text = bytes(base.data[8 : base.header]).decode()
    places = list(re.finditer(r"\d+", text))
    place = rng.choice(places)
    old = int(place.group())
    number = rng.choice(
        (*NASTY, -1, -old, old + 1, old * 2, 1 << 70, 10**400, "1e3", "1.0", "true", "null", "[[1]]")
    )
    edits = (
        text[: place.start()] + str(number) + text[place.end() :],
        text.replace("layer.1.", "layer.0.", 1),
        text.replace('"F16"', rng.choice(('"F64"', '"F4"', '"U8"', '"Q4_0"', '"f16"', "16", "null")), 1),
        text.replace('"shape"', rng.choice(('"dtype"', '"data_offsets"', '"extra"')), 1),
        text.replace("[", "[" * rng.choice((2, 100, 3000, 100_000)), 1),
        text.replace("{", rng.choice(("{" * 50_000, "[", "{}", '{"__metadata__":{},')), 1),
        text.replace("pt", rng.choice(("\\ud800", "\\q", "\x01", "\\u12", '"')), 1),
        text[: rng.randrange(len(text))],
        text.rstrip() + rng.choice((",", "}", "x", "{}", "\0")),
        "{" + ",".join(f'"{i}":{{"dtype":"I8","shape":[],"data_offsets":[0,1]}}' for i in range(500)) + "}",
    )
    header = rng.choice(edits).encode()
    return struct.pack("<Q", len(header)) + header + bytes(base.data[base.header :])


COMMON: tuple[Damage, ...] = (
    _truncated,
    _bits_flipped,
    _numbers_replaced,
    _header_moved,
    _noise,
    _impostor,
    _appended,
)
DAMAGES: dict[str, tuple[Damage, ...]] = {
    "gguf": (*COMMON, _numbers_replaced, _late_number_replaced, _late_number_replaced, _late_number_replaced),
    "safetensors": (*COMMON, _json_edited, _json_edited, _json_edited, _json_edited),
}
READERS: dict[str, Callable[[Path], gguf.File | dict[str, gguf.Packed]]] = {
    "gguf": gguf.read,
    "safetensors": safetensors.read,
}


def damaged(kind: str, base: Layout, seed: int) -> bytes:
    """The damaged file of this kind and seed, the same on every machine."""
    rng = random.Random(f"{kind} {seed}")
    return rng.choice(DAMAGES[kind])(rng, base)


def swept(kind: str, base: Layout, values: tuple[int, ...]) -> Iterator[bytes]:
    """Every structural number of the file, replaced by each of the values in turn."""
    if kind == "safetensors":
        text = bytes(base.data[8 : base.header]).decode()
        for place in re.finditer(r"(?<![\w.])\d+", text):
            for number in (*values, -1, int(place.group()) + 1):
                header = f"{text[: place.start()]}{number}{text[place.end() :]}".encode()
                yield struct.pack("<Q", len(header)) + header + bytes(base.data[base.header :])
    for at, width in dict.fromkeys(base.structural()):
        for number in values:
            data = bytearray(base.data)
            data[at : at + width] = (number % (1 << (8 * width))).to_bytes(width, "little")
            yield bytes(data)


def opened(kind: str, path: Path) -> gguf.File | dict[str, gguf.Packed] | None:
    """What the reader gives, None where it refused; AssertionError for a message that is no good."""
    try:
        return READERS[kind](path)
    except UserError as refusal:
        message = str(refusal)
        assert path.name in message, f"does not name the file: {message!r}"
        assert message.isprintable(), f"is not one line: {message!r}"
        assert len(message) < 600, f"is too long: {message!r}"
        return None


def touch(found: gguf.File | dict[str, gguf.Packed]) -> None:
    """Look at every byte of every tensor, and at every text."""
    for tensor in (found.tensors if isinstance(found, gguf.File) else found).values():
        assert int(tensor.data.sum(dtype=np.int64)) >= 0
    if isinstance(found, gguf.File):
        assert len(repr(found.metadata)) > 0


def _judge(kind: str, path: Path, size: int) -> NoReturn:
    """Open the file and leave with what became of it; what is raised is printed and unwinds no further."""
    signal.alarm(SECONDS)
    outcome = 12
    try:
        with _confined(size):
            found = opened(kind, path)
        if found is not None:
            touch(found)
        outcome = 11 if found is None else 10
    finally:
        if outcome == 12:
            traceback.print_exc()
        os._exit(outcome)


def _in_child(kind: str, path: Path) -> str:
    """What became of one file, opened by a child that may map it and allocate twice its size."""
    size = path.stat().st_size
    child = os.fork()
    if not child:
        _judge(kind, path, size)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return {10: "read", 11: "refused"}.get(os.WEXITSTATUS(status), "wrong exception")


@contextmanager
def _confined(size: int) -> Iterator[None]:
    """Room for the mapped file, twice its size, and the interpreter's own."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 3 * size + SLACK, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000, help="damaged files of each kind")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--kilobytes", type=int, default=1024, help="size of an undamaged file, about")
    chosen = parser.parse_args()
    outcomes: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for kind, layout in ("gguf", gguf_layout), ("safetensors", safetensors_layout):
            base = layout(chosen.kilobytes)
            seeds = range(chosen.seed, chosen.seed + chosen.count)
            drawn = ((f"seed {seed}", damaged(kind, base, seed)) for seed in seeds)
            every = ((f"sweep {number}", data) for number, data in enumerate(swept(kind, base, NASTY)))
            for name, data in chain(drawn, every):
                path = Path(folder) / f"{kind} {name}.{kind}"
                path.write_bytes(data)
                outcome = _in_child(kind, path)
                outcomes[kind, outcome] += 1
                if outcome not in ("read", "refused"):
                    print(f"{kind} {name}: {outcome}")
                path.unlink()
    for (kind, outcome), count in sorted(outcomes.items()):
        print(f"{kind:12} {outcome:16} {count}")
    return int(any(outcome not in ("read", "refused") for _, outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
