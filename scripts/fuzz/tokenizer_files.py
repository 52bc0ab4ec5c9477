"""Damages tokenizer files in thousands of ways: each is refused in a sentence, or is a tokenizer that works.

tokenizer.json (BPE, WordPiece, Unigram), SentencePiece's .model (BPE, Unigram), OpenAI's rank files, BERT's
vocab.txt and GGUF metadata (byte-level, scored, bert, t5). A tokenizer that is read must encode and decode
a text and long runs of one character, look into its own tokens, and be written. Refusals are one line of
bounded length. No other exception, no crash, no hang over SECONDS, no memory over MEMORY. Some two minutes
a thousand:

    python -m scripts.fuzz.tokenizer_files --count 5000 --seed 1
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cutaway import gguf
from cutaway.errors import OperationalError, UserError
from cutaway.tokenizer import Tokenizer
from cutaway.tokenizer.bpe import BYTE_TOKENS, BYTES
from cutaway.tokenizer.formats import spm_model
from cutaway.tokenizer.normalize import OneSpace, Prefix, Replace
from cutaway.tokenizer.pieces import pieces
from cutaway.tokenizer.pretokenize import PATTERNS
from cutaway.tokenizer.sentencepiece import ranks
from cutaway.tokenizer.spec import TokenizerSpec
from cutaway.tokenizer.unicode import stand_ins

SECONDS = 10
MEMORY = 1 << 30  # bytes, on top of what the interpreter has mapped
LONGEST = 1000  # characters of a refusal
RUNS = [kind * 20_000 + end for kind in (*" \t\n\raAǅ日5!/'$", "\u0301", "\u3000", " a") for end in ("", "5")]
TEXT = "the theb <s> [CLS] abc 12\n\t Éa 日本 ▁the" * 3
STRANGE: list[Any] = [
    None, -1, 0, 2**70, 1.5, 1e999, "", "\ud800", "x" * 1000, "a\0b", [], {}, [[]], [None], True,
    {"type": "Sequence"}, {"type": "NFC"}, {"String": ""}, {"Regex": "(a*)*b"}, {"Regex": "("},
]  # fmt: skip
Damage = Callable[[random.Random], bytes]


def letters() -> list[str]:
    """A small vocabulary's texts."""
    return [
        *"abcdefghijklmnopqrstuvwxyz",
        *"<>[]019.",
        "▁",
        "th",
        "the",
        "▁the",
        "##b",
        "[UNK]",
        "[CLS]",
        "[SEP]",
    ]


def bpe_json() -> dict[str, Any]:
    """A byte-level tokenizer.json."""
    vocabulary = {character: id for id, character in enumerate(BYTES)} | {"th": 256, "the": 257}
    return {
        "added_tokens": [{"id": 258, "content": "<s>", "special": True, "lstrip": True}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
            "special_tokens": {"<s>": {"ids": [258]}},
        },
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [["t", "h"], ["th", "e"]]},
    }


def wordpiece_json() -> dict[str, Any]:
    """BERT's."""
    return {
        "added_tokens": [{"id": letters().index("[CLS]"), "content": "[CLS]", "special": True}],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "max_input_chars_per_word": 100,
            "vocab": {text: id for id, text in enumerate(letters())},
        },
    }


def unigram_json() -> dict[str, Any]:
    """SentencePiece's Unigram as Hugging Face writes it."""
    return {
        "added_tokens": [{"id": 0, "content": "<unk>", "special": True}],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap()).decode()},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            ],
        },
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "model": {
            "type": "Unigram",
            "unk_id": 0,
            "vocab": [["<unk>", 0.0], *([text, -float(id)] for id, text in enumerate(letters()))],
        },
    }


def charsmap() -> bytes:
    """A map of characters with nothing in it: one unit without children."""
    return (4).to_bytes(4, "little") + bytes(4) + b"\0"


def scored(model: str) -> TokenizerSpec:
    """The parts of a small SentencePiece model."""
    tokens = ["<unk>", "<s>", *BYTE_TOKENS, *letters()]
    vocabulary = {text: id for id, text in enumerate(tokens)}
    scores = [-float(len(tokens) - len(text)) for text in tokens]
    pieces = dict(zip(letters(), scores[-len(letters()) :], strict=True))
    unigram = {"pieces": pieces, "worst": min(pieces.values()), "single": True}
    return TokenizerSpec(
        tokens=tokens,
        vocabulary=vocabulary,
        model=model,  # pyright: ignore[reportArgumentType]
        scores=scores,
        **(unigram if model == "Unigram" else {"ranks": ranks(tokens, scores)}),
        bytewise=False,
        fallback=True,
        fuse=True,
        normalizer=(OneSpace(), Prefix(" "), Replace(" ", "▁")),
        unknown=0,
        bos=1,
    )


def mutated(value: Any, noise: random.Random) -> Any:
    """The same JSON with one thing in it changed."""
    if noise.random() < 0.04 or not isinstance(value, (dict, list)) or not value:
        return noise.choice(STRANGE)
    if isinstance(value, dict):
        key = noise.choice(sorted(value))
        if noise.random() < 0.2:
            return {other: item for other, item in value.items() if other != key}
        return value | {key: mutated(value[key], noise)}
    at = noise.randrange(len(value))
    return [*value[:at], mutated(value[at], noise), *value[at + 1 :]]


HOSTILE_PATTERNS = (
    *("(a+)+$", "(?:a|aa)+$", r"\s+$", r"(\s|[^a])*a{20}", "((?1)?a)*", "(?R)?"),
    *("(a{1,900}){1,900}b", r"(.*)*\1$", "(?:ab){e<=9}"),
)


def pathological(made: Any, noise: random.Random) -> dict[str, Any]:
    """A tokenizer.json with slow rules and steps, colliding ids, or a very long token."""
    match noise.randrange(5):
        case 4:  # the patterns of a real pre-tokenizer, on long runs
            splits = [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
                for pattern in PATTERNS[noise.choice(sorted(PATTERNS))]
            ]
            last = made["pre_tokenizer"]
            return made | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, last]}}
        case 0:
            rules = [
                {"type": "Replace", "pattern": {"Regex": noise.choice(HOSTILE_PATTERNS)}, "content": "a"}
                for _ in range(noise.choice([1, 10]))
            ]
            return made | {"normalizer": {"type": "Sequence", "normalizers": rules}}
        case 1:
            split = {"pattern": {"Regex": noise.choice(HOSTILE_PATTERNS)}, "behavior": "Isolated"}
            last = made["pre_tokenizer"]
            steps = [{"type": "Split", "invert": noise.random() < 0.5, **split}] * noise.choice([1, 5])
            return made | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, last]}}
        case 2:
            ids = [0, 1, 97, 257, 258, 10**6]
            names = ["a", "the", "<s>", "[CLS]", "<x>"]
            added = [{"id": noise.choice(ids), "content": noise.choice(names)} for _ in range(3)]
            return made | {"added_tokens": [{**token, "special": noise.random() < 0.5} for token in added]}
        case _:
            token = noise.choice("a▁t") * noise.choice([900, 20_000])
            vocabulary = made["model"]["vocab"]
            listed = isinstance(vocabulary, list)
            more = [*vocabulary, [token, -1.0]] if listed else vocabulary | {token: len(vocabulary)}
            return made | {"model": made["model"] | {"vocab": more}}


def damaged_json(make: Callable[[], dict[str, Any]], noise: random.Random) -> bytes:
    """A tokenizer.json with one to four fields changed, or with damaged bytes."""
    made: Any = make()
    if noise.random() < 0.3:
        return json.dumps(pathological(made, noise)).encode()
    if noise.random() < 0.2:
        return damaged_bytes(json.dumps(made).encode(), noise)
    for _ in range(noise.choice([1, 1, 2, 4])):
        key = noise.choice(sorted(made))
        made = made | {key: mutated(made[key], noise)}
    return json.dumps(made).encode()


def damaged_bytes(data: bytes, noise: random.Random) -> bytes:
    """Bytes changed, taken out, put in, doubled, or cut off."""
    bad = bytearray(data)
    if noise.random() < 0.5:  # nothing moves, so that what is inside is damaged more often than the frame
        for _ in range(noise.choice([1, 1, 2])):
            bad[noise.randrange(len(bad))] ^= 1 << noise.randrange(8)
        return bytes(bad)
    for _ in range(noise.choice([1, 1, 3, 10, 100])):
        at = noise.randrange(len(bad) + 1)
        match noise.randrange(6):
            case 0:
                bad[at : at + 1] = noise.randbytes(1)
            case 1:
                del bad[at : at + noise.choice([1, 2, 8])]
            case 2:
                bad[at:at] = noise.choice([b"\0", b"\xff" * 10, b"\n", b" ", noise.randbytes(4)])
            case 3:
                bad[at:at] = bad[at : at + 50]
            case 4 if noise.random() < 0.1:
                del bad[at:]
            case _ if bad:
                bad[at % len(bad)] ^= 1 << noise.randrange(8)
    return bytes(bad)


def metadata(model: str) -> dict[str, Any]:
    """GGUF metadata of one of llama.cpp's kinds."""
    if model == "gpt2":
        tokens = [*BYTES, "th", "the", "<s>"]
        kind = {"pre": "gpt-2", "merges": ["t h", "th e"]}
    else:
        tokens = ["<unk>", "<s>", *BYTE_TOKENS, *letters()]
        kind = {
            "scores": np.linspace(-9, -1, len(tokens), dtype=np.float32),
            "unknown_token_id": np.uint32(0),
        }
    if model == "t5":
        kind["precompiled_charsmap"] = np.frombuffer(charsmap(), np.uint8)
    kinds = np.ones(len(tokens), np.int32)
    kinds[: 2 if model != "gpt2" else 0] = 3
    common = {"model": model, "tokens": tokens, "token_type": kinds, "bos_token_id": np.uint32(1)}
    return {"general.architecture": "llama"} | {
        f"tokenizer.ggml.{key}": v for key, v in (common | kind).items()
    }


def damaged_metadata(model: str, noise: random.Random) -> bytes:
    """A GGUF file with a field changed, or with damaged bytes."""
    made = metadata(model)
    strange = [
        *(-1, 2**31, "", "x" * 100, True, 1.5, ["a"], ["a", "a"], np.zeros(3, np.float32), np.uint8(7)),
        *(np.zeros(0, np.int32), [True], np.array([1.0, np.nan], np.float32), ["<|im_end|>"] * 3),
    ]
    tokens = made["tokenizer.ggml.tokens"]
    if "tokenizer.ggml.pre" in made:
        made["tokenizer.ggml.pre"] = noise.choice(sorted(PATTERNS))
    if noise.random() < 0.2:  # two ids of one text, or a control token of a text that words have
        at, other = noise.randrange(len(tokens)), noise.randrange(len(tokens))
        made["tokenizer.ggml.tokens"] = [*tokens[:at], tokens[other], *tokens[at + 1 :]]
        made["tokenizer.ggml.token_type"][noise.choice((at, other))] = noise.choice((1, 3, 4, 6))
    elif noise.random() < 0.6:
        key = noise.choice(sorted(made)[1:])
        made[key] = noise.choice(strange)
        if noise.random() < 0.2:
            del made[key]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.gguf"
        gguf.write(path, made, {})
        data = path.read_bytes()
    return data if noise.random() < 0.5 else damaged_bytes(data, noise)


def rank_file() -> bytes:
    """A small rank file."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"the"]
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def damages() -> dict[str, tuple[str, Damage]]:
    """Each kind of file: its name on disk, and a function from noise to a damaged one."""
    plain = {
        "rank file": ("x.tiktoken", rank_file()),
        "vocab.txt": ("vocab.txt", "\n".join(letters()).encode()),
        "BPE model": ("x.model", spm_model.write_file(scored("BPE"))),
        "Unigram model": ("x.model", spm_model.write_file(scored("Unigram"))),
    }
    out: dict[str, tuple[str, Damage]] = {
        kind: (name, lambda noise, data=data: damaged_bytes(data, noise))
        for kind, (name, data) in plain.items()
    }
    for make in (bpe_json, wordpiece_json, unigram_json):
        out[make.__name__] = ("tokenizer.json", lambda noise, make=make: damaged_json(make, noise))
    for model in ("gpt2", "llama", "bert", "t5"):
        out[f"GGUF {model}"] = ("x.gguf", lambda noise, model=model: damaged_metadata(model, noise))
    return out


def tried(path: Path) -> str:
    """ "read" or "refused". Any other exception is the reader's failure."""
    options: dict[str, Any] = {"pattern": "gpt2"} if path.suffix == ".tiktoken" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            tok = Tokenizer.load(path, **options)
        except (UserError, OperationalError) as problem:
            check_sentence(problem)
            return "refused"
        try:
            for special in ("text", "allow"):
                tok.decode(tok.encode(TEXT, special, add_special=True))
                tok.encode("a" * 3000 + " " * 3000 + "5" + "the" * 500, special)
            for run in random.Random(path.stat().st_size).sample(RUNS, 3):
                tok.encode(run)
            pieces(tok, TEXT)
            tok.save(path.with_suffix(".json"))
        except (UserError, OperationalError) as problem:
            check_sentence(problem)
            return "refused later"
    return "read"


def check_sentence(problem: Exception) -> None:
    """AssertionError for a refusal that is not one line of printable characters, or is too long."""
    if not 0 < len(str(problem)) <= LONGEST or not str(problem).isprintable():
        raise AssertionError(f"no sentence: {problem!r:.3000}") from problem


def cases(count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """`count` damaged files: their kind, name and bytes."""
    kinds = list(damages().items())
    for number in range(count):
        kind, (name, damage) = kinds[number % len(kinds)]
        yield kind, name, damage(random.Random(seed * 1_000_003 + number))


def main(count: int, seed: int) -> int:
    """Try them all; the number of failures is the exit code, at most 100."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    signal.signal(signal.SIGPROF, _late)  # of the processor's time, whatever else the machine does
    stand_ins()  # is made once a process
    outcomes: Counter[tuple[str, str]] = Counter()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, (kind, name, data) in enumerate(cases(count, seed)):
            path = Path(folder) / name
            path.write_bytes(data)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                outcomes[kind, tried(path)] += 1
            except BaseException as problem:
                signal.setitimer(signal.ITIMER_PROF, 0)
                failures += 1
                if isinstance(problem, KeyboardInterrupt):
                    raise
                kept = Path(tempfile.gettempdir()) / f"fuzz-{seed}-{number}-{name}"
                kept.write_bytes(data)
                print(f"{kind}, number {number}: {problem!r}; the file is kept as {kept}")
                traceback.print_exc(limit=-3)
            signal.setitimer(signal.ITIMER_PROF, 0)
    for (kind, outcome), times in sorted(outcomes.items()):
        print(f"{kind:16} {outcome:14} {times:6,}")
    print(f"{count:,} files, {failures} failures")
    return min(failures, 100)


def _late(*_: object) -> None:
    raise AssertionError(f"took over {SECONDS} seconds")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    sys.exit(main(asked.count, asked.seed))
