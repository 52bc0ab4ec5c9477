"""Damages model files in thousands of ways and holds the readers to their law.

Every damaged file must either be read or be refused in one line that names it: no other exception, no crash,
no hang, and no memory beyond twice the file's size. Each is opened in a forked child with a limited address
space and an alarm. Containers (GGUF, safetensors) are damaged byte by byte. In a whole GGUF model and a
config.json of each family the settings are damaged: dropped, doubled, of another type, an array for a scalar.

    python -m scripts.fuzz.files --count 5000 --seed 1
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
from typing import Any, NoReturn

import numpy as np

from cutaway import gguf
from cutaway.errors import UserError
from cutaway.quantization import formats
from cutaway.store.reading import parsed
from cutaway.weights import family_registry, load, rules, safetensors
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.fields import Fields
from cutaway.weights.named_tensors import Tensors

SECONDS = 5
# What an interpreter may need beside the data: exceptions, allocator arenas.
SLACK = 4 << 20
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
    models: list[Any] = field(default_factory=list)

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


SIZES: dict[str, Any] = {
    "vocab": 40,
    "width": 32,
    "context": 64,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "head_size": 8,
    "hidden": 64,
    "experts": 4,
    "top_k": 2,
    "expert_hidden": 16,
    "shared": 16,
    "window": None,
    "eps": 1e-5,
    "segments": 2,
    "causal": True,
    "rope_base": 1e4,
}
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        3,
        1 << 31,
        1 << 40,
        0.0,
        0.5,
        1.0,
        -1.0,
        1e38,
        float("nan"),
        float("inf"),
    ),
    *("", "linear", "llama3", "yarn", "full_attention", "x" * 5000, "\x1b[31m\n"),
    *([], [1, 2], [1, 1], [4, 4], [0.5, 0.25], [True, False], [False, False, True], ["a", "b"], [1] * 5000),
)


def _configs() -> Iterator[tuple[str, Any]]:
    """A small model of each family."""
    for name in family_registry.names():
        own = family_registry.get(name)
        known = {key: value for key, value in (own.defaults | SIZES).items() if not callable(value)}
        known |= {"kv_heads": 4} if own.prefix != "model." else {}
        entries = {"layer_types": ["sliding_attention", "full_attention"]} if name == "gemma3" else {}
        for row in own.rows:
            if getattr(row, "hf", None) and getattr(row, "name", None) in known and own.name != "gemma3":
                entries |= row.write(known, gguf=False)
            elif getattr(row, "hf", None) and getattr(row, "name", "") in SIZES:
                entries[row.hf] = known[row.name]  # type: ignore[attr-defined]
        yield name, own.read(Fields(entries, name))


def _models() -> Iterator[tuple[dict[str, object], dict[str, gguf.Packed]]]:
    """The same as the metadata and tensors of GGUF files."""
    random = np.random.default_rng(0)
    for name, config in _configs():
        own, shapes = family_registry.get(name), config.weights()
        drawn = {key: formats.pack(random.random(shape, np.float32), "F32") for key, shape in shapes.items()}
        words = {f"{own.gguf_name}.{key}": value for key, value in own.write(config, gguf=True).items()}
        yield (
            {"general.architecture": own.gguf_name, **words},
            dict(rules.save(own.gguf, config, Tensors(drawn))),
        )


def _settings_edited(rng: random.Random, entries: dict[str, Any], more: tuple[str, ...]) -> dict[str, Any]:
    """One to three keys dropped, or with another value, or of another family."""
    entries = dict(entries)
    for _ in range(rng.choice((1, 1, 2, 3))):
        key = rng.choice((*entries, *more))
        if rng.random() < 0.15:
            entries.pop(key, None)
        elif isinstance(entries.get(key), dict) and rng.random() < 0.7:
            entries[key] = _settings_edited(rng, entries[key], ("rope_type", "factor", "rope_theta", "foo"))
        else:
            old = entries.get(key)
            near = (old + 1, old * 2, -old) if type(old) in (int, float) else ()
            entries[key] = rng.choice((*VALUES, *near, {"rope_type": "linear", "factor": 2.0}))
    return entries


def _metadata_edited(rng: random.Random, base: Layout) -> bytes:
    metadata, tensors = rng.choice(base.models)
    prefix = metadata["general.architecture"]
    keys = {key.partition(".")[2] for other, _ in base.models for key in other} | set(MORE_GGUF)
    edited = _settings_edited(rng, metadata, tuple(f"{prefix}.{key}" for key in sorted(keys)))
    held = {key: value for key, value in edited.items() if not isinstance(value, dict | type(None))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        try:
            gguf.write(path, held, tensors)
        except (UserError, OverflowError):  # a value that GGUF cannot hold, which no file has
            gguf.write(path, metadata, tensors)
        return path.read_bytes()


def _config_edited(rng: random.Random, base: Layout) -> bytes:
    keys = {key for entries in base.models for key in entries} | set(MORE_HF)
    return json.dumps(_settings_edited(rng, rng.choice(base.models), tuple(sorted(keys)))).encode()


MORE_GGUF = tuple(f"rope.scaling.{name}" for name in ("type", "factor", "attn_factor", "finetuned"))
MORE_GGUF += (
    "attention.causal",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "pooling_type",
)
MORE_GGUF += ("expert_count", "expert_used_count", "expert_group_count", "expert_gating_func", "logit_scale")
MORE_GGUF += ("nextn_predict_layers", "rope.scale_linear", "rope.freq_base_swa", "final_logit_softcapping")
MORE_HF = (
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "is_causal",
    "layer_types",
    "sliding_window_pattern",
)
MORE_HF += ("mlp_only_layers", "quantization_config", "original_max_position_embeddings", "torch_dtype")


def model_layout(scale: int) -> Layout:
    out = Layout()
    out.models = list(_models())
    return out


def config_layout(scale: int) -> Layout:
    out = Layout()
    entries = [family_registry.get(name).write(config, gguf=False) for name, config in _configs()]
    out.models = json.loads(json.dumps(entries))
    return out


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
    "model": (_metadata_edited,),
    "config": (_config_edited,),
}
LAYOUTS = {
    "gguf": gguf_layout,
    "safetensors": safetensors_layout,
    "model": model_layout,
    "config": config_layout,
}


def _config(path: Path) -> dict[str, gguf.Packed]:
    fields = Fields(parsed(path), path)
    family_registry.of_hf(fields).read(fields)
    return {}


READERS: dict[str, Callable[[Path], Any]] = {
    "gguf": gguf.read,
    "safetensors": safetensors.read_safetensors,
    "model": load.read_checkpoint,
    "config": _config,
}


def damaged(kind: str, base: Layout, seed: int) -> bytes:
    """The damaged file of this kind and seed, the same on every machine."""
    rng = random.Random(f"{kind} {seed}")
    return rng.choice(DAMAGES[kind])(rng, base)


def swept(kind: str, base: Layout, values: tuple[int, ...]) -> Iterator[bytes]:
    """Every structural number of the file, replaced by each of the values in turn."""
    if kind in ("model", "config"):
        return
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


def opened(kind: str, path: Path) -> Any:
    """What the reader gives, None where it refused; AssertionError for a message that is no good."""
    try:
        return READERS[kind](path)
    except UserError as refusal:
        message = str(refusal)
        assert path.name in message, f"does not name the file: {message!r}"
        assert message.isprintable(), f"is not one line: {message!r}"
        assert len(message) < 600, f"is too long: {message!r}"
        return None


def touch(found: gguf.File | Checkpoint | dict[str, gguf.Packed]) -> None:
    """Look at every byte of every tensor, and at every text."""
    for tensor in (found if isinstance(found, dict) else found.tensors).values():
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
    parser.add_argument("--kinds", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="what to damage")
    chosen = parser.parse_args()
    outcomes: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for kind in chosen.kinds:
            base = LAYOUTS[kind](chosen.kilobytes)
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
