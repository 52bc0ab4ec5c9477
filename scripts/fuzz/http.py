"""Hostile and odd requests against `cutaway serve`, beside honest ones, on both engines.

Broken HTTP, broken JSON, strange values, grammars, schemas and expressions that explode, edits and traces
beyond the model, answers left early. Eight clients send them to a server in a process of its own, which
serves a random tiny model. Every fourth request is honest, and its answer must be the one that the server
gave while it was quiet. No answer may be a 5xx or take over SECONDS, the log may hold no traceback, and the
server must live. A request is a function of seed and number. Some half a minute a thousand:

    python -m scripts.fuzz.http --count 2000 --seed 1
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from scripts.lib.serving import answering
from tests.small import model_file

SECONDS = 10
FIRST = 120  # seconds for an answer of the quiet server, which imports and compiles what it needs at first
CLIENTS = 8
TEXT = "the cat and the bath"

Request = tuple[str, Any]
HI = [{"role": "user", "content": "hi"}]
AB = {"type": "regex", "regex": "[ab]{4}"}
HONEST: list[Request] = [
    ("/v1/completions", {"prompt": TEXT, "max_tokens": 6, "temperature": 0, "logprobs": 2}),
    ("/v1/completions", {"prompt": [TEXT, "b"], "max_tokens": 5, "seed": 3, "temperature": 0.9}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 6, "seed": 4, "response_format": AB}),
    ("/v1/chat/completions", {"messages": HI, "max_tokens": 5, "temperature": 0}),
    ("/v1/responses", {"input": TEXT, "max_output_tokens": 5, "temperature": 0}),
    ("/v1/responses/compact", {"input": TEXT, "max_output_tokens": 5}),
    ("/v1/embeddings", {"input": [TEXT, "b"], "pooling": "mean"}),
    ("/v1/trace", {"text": TEXT, "values": ["out", "attention.pattern"], "positions": [-1]}),
    ("/v1/chat/count", {"messages": HI}),
    ("/tokenize", {"text": TEXT}),
    ("/detokenize", {"ids": [5, 6, 256]}),
]
TRACE = {"text": TEXT, "values": ["out"], "positions": [-1]}
PER_REQUEST = {"id", "created", "created_at", "completed_at", "item_id", "usage"}
FORMATS: list[Any] = [
    *({"type": "regex", "regex": x} for x in ("(a*)*b", "a?" * 5000 + "a" * 5000, "(", "\ud800", "(?R)", "")),
    *(
        {"type": "regex", "regex": x}
        for x in ("[ab]{1,100000}", "((a{1,100}){1,100}){1,100}", ".*" * 500, "$^")
    ),
    *(
        {"type": "grammar", "grammar": x}
        for x in ("start: start", "start: /a/ start", "x", 'start: "\ud800"')
    ),
    *({"type": "grammar", "grammar": x} for x in ("start: " + "(" * 5000, "start: /(a?){5000}a{5000}/")),
    *(
        {"type": "json_schema", "json_schema": {"name": "x", "schema": x}}
        for x in (
            {"$ref": "#"},
            {"$ref": "#/nowhere"},
            {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5000)}},
            {"enum": ["x" * 100] * 5000},
            {"type": "array", "minItems": 10**9},
            {"type": "string", "pattern": "(a+)+$", "maxLength": 2**40},
            {"allOf": [{"anyOf": [{"type": "integer"}] * 30}] * 30},
            {"const": "\ud800"},
        )
    ),
    {"type": "json_object"},
]
SCHEMA: Any = {}
for _ in range(400):
    SCHEMA = {"type": "object", "properties": {"a": SCHEMA}}
EDITS: list[Any] = [
    {"kind": "patch", "layer": 0, "text": "a" * 3000},
    {"kind": "patch", "layer": 1, "part": "head", "head": 99, "text": "b"},
    {"kind": "patch", "layer": -1, "messages": HI},
    {"kind": "add", "layer": 0, "vector": [1e308] * 32, "strength": 1e308},
    {"kind": "add", "layer": 0, "vector": [1.0], "positions": [10**9]},
    {"kind": "project", "layer": 2, "vector": [0.0] * 32},
    {"kind": "ablate", "layer": 10**12, "part": "head", "head": -5, "strength": -1e300},
]
MORE: dict[str, list[Any]] = {
    "response_format": FORMATS,
    "edits": [[edit] for edit in EDITS] + [EDITS, [EDITS[0]] * 200],
    "tools": [
        [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
        [{"type": "function", "function": {"name": "f" * 65}}],
        [{"type": "function", "function": {"name": "f", "parameters": FORMATS[0]}}] * 200,
    ],
    "tool_choice": ["required", {"type": "function", "function": {"name": "nobody"}}],
    "internals": [{"layers": [0, 1, 99]}, {"layers": [0] * 1000, "lens": 100}, {"layers": [-1]}],
    "logit_bias": [{"999999999": 1}, {"x": 1}, {str(i): 100 for i in range(5000)}, {"1": 1e999}],
    "stop": ["", ["a"] * 17, ["a"] * 16, "x" * 100_000, ["\0"], ["\ud800"]],
    "n": [0, 2, 16, 10**6],
    "best_of": [3],
    "stream": [True, 1, "yes"],
    "stream_options": [{"include_usage": True}, {}, {"x": 1}],
    "max_tokens": [0, 1, 10**9, -1, 3.5, 2**70],
    "seed": [-(2**63), 2**63, 1.5],
    "temperature": [0, 100, 101, 1e-320, -0.0],
    "values": [["out"], ["*"], ["embed"] * 1000, ["nothing"], ["blocks.0.attention.scores"], []],
    "positions": [[-1, 0, 10**9], [], list(range(5000)), [2**70]],
    "top": [0, 5, 10**9],
    "prompt": ["a " * 100_000, [0] * 300, [[1], [10**9]], [[]], "", [1, "a"], ["a"] * 3000],
    "input": ["a " * 100_000, ["a"] * 3000, [[1], [10**9]], [], [{"role": "user", "content": "a"}]],
    "ids": [[10**9], [-1], list(range(250)) * 20, [2**70], [[1]]],
    "cache_salt": ["x", "", 1],
}
NO_JSON = [
    b"{" * 50_000,
    b"[" * 50_000,
    b"\xff\xfe",
    b"1e99999",
    b"NaN",
    b'{"prompt":',
    b'"' + b"\\u" * 99,
    b"",
]
NO_JSON += [b'{"a":' * 900 + b"1" + b"}" * 900, b"9" * 10_000, b"null", b"[]"]
STRANGE: list[Any] = [
    *(
        None,
        -1,
        0,
        2**70,
        1.5,
        1e308,
        "",
        "\ud800",
        "x" * 1000,
        "a\0b",
        "\x1b[2J",
        [],
        {},
        [[]],
        [None],
        True,
    ),
    *([[[[[[[[]]]]]]]], ["a"] * 2000, {"a": {"b": {"c": {}}}}, "<|im_end|>", "🦜" * 500, {"type": "text"}),
]
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
RAW = [
    b"",
    b"\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    POST + b"Content-Length: -5\r\n\r\n",
    POST + b"Content-Length: 99999999999999999999\r\n\r\n{}",
    POST + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}abc",
    POST + CHUNKED + b"\r\nzz\r\n{}\r\n0\r\n\r\n",
    POST + CHUNKED + b"Content-Length: 3\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
    POST + b"Content-Type: multipart/form-data\r\nContent-Length: 2\r\n\r\n{}",
    POST.replace(b"localhost", b"evil.example") + b"Content-Length: 2\r\n\r\n{}",
    GET.replace(b"/health", b"/v1/trace") + b"\r\n",
    GET.replace(b"/health", b"/v1/models/../../etc/passwd") + b"\r\n",
    GET.replace(b"/health", b"/v1/models/%00%ff%ed%a0%80") + b"\r\n",
    GET.replace(b"/health", b"/" + b"a" * 70_000) + b"\r\n",
    GET.replace(b"GET /health", b"DELETE /v1/models") + b"\r\n",
    GET.replace(b"GET /health", b"OPTIONS *") + b"\r\n",
    GET + b"X: y\r\n" * 20_000 + b"\r\n",
    GET + b"Authorization: Bearer \xff\xfe\x00\r\n\r\n",
    GET + b" bad fold\r\n\r\n",
    GET + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\r\n",
    (GET + b"\r\n") * 50,
]


def posted(path: str, body: bytes) -> bytes:
    """A POST of JSON as bytes."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    )
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def spelt(body: Any) -> bytes:
    """JSON with half surrogate pairs as escapes."""
    return json.dumps(body).encode()


def changed(value: Any, dice: random.Random) -> Any:
    """The same JSON with one thing in it changed."""
    if not isinstance(value, dict | list) or not value or dice.random() < 0.1:
        return dice.choice(STRANGE)
    if isinstance(value, list):
        at = dice.randrange(len(value))
        return [*value[:at], changed(value[at], dice), *value[at + 1 :]]
    key = dice.choice([*value, "x"])
    if dice.random() < 0.2:
        return {other: item for other, item in value.items() if other != key}
    return value | {key: changed(value.get(key, {}), dice)}


def hostile(dice: random.Random) -> tuple[bytes, bool]:
    """One request that no friend would send, and whether it may be incomplete."""
    path, body = dice.choice([*HONEST, ("/v1/trace", TRACE)])
    match dice.randrange(8):
        case 0:
            return dice.choice(RAW), True
        case 1:
            raw = bytearray(posted(path, spelt(body)))
            for _ in range(dice.choice((1, 2, 8))):
                raw[dice.randrange(len(raw))] = dice.randrange(256)
            return bytes(raw), True
        case 2:
            return posted(path, dice.choice([*NO_JSON, spelt(body)[:-1]])), False
        case 3 | 4:
            for _ in range(dice.choice((1, 1, 2, 4))):
                body = changed(body, dice)
        case _:
            for name in dice.sample(sorted(MORE), dice.choice((1, 1, 2, 3))):
                body = body | {name: dice.choice(MORE[name])}
    return posted(path, spelt(body)), False


def exchanged(
    port: int, request: bytes, incomplete: bool = False, leave: int = 1 << 40, seconds: float = SECONDS
) -> bytes:
    """What the server answers until it closes, or the client leaves after so many bytes. TimeoutError if it
    takes too long. An incomplete request ends with the client's side of the connection.
    """
    answer, ends = b"", time.monotonic() + seconds
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        try:
            connection.sendall(request)
            if incomplete:
                connection.shutdown(socket.SHUT_WR)
            while len(answer) < leave:
                connection.settimeout(max(0.01, ends - time.monotonic()))
                data = connection.recv(1 << 16)
                if not data:
                    break
                answer += data
        except (BrokenPipeError, ConnectionResetError):
            pass
    return answer


def answer_of(answer: bytes) -> Any:
    """The parts of an honest answer that depend on its request alone."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise ValueError(f"an honest request was answered with {answer[:300]!r}")
    if b"chunked" in head.lower():
        chunks, rest = [], body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            chunks.append(rest[: int(size, 16)])
            rest = rest[int(size, 16) + 2 :]
        body = b"".join(chunks)
    return _kept(json.loads(body))


def _kept(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _kept(one) for name, one in value.items() if name not in PER_REQUEST}
    return [_kept(one) for one in value] if isinstance(value, list) else value


class Fuzz:
    """The requests of one server, and what came of them."""

    def __init__(self, port: int, seed: int) -> None:
        self.port, self.seed = port, seed
        self.alone = [
            answer_of(exchanged(port, posted(path, spelt(body)), seconds=FIRST)) for path, body in HONEST
        ]
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []

    def send(self, number: int) -> None:
        """The request of this number, and what is wrong with its answer."""
        dice = random.Random(self.seed * 1_000_003 + number)
        try:
            self._honest(dice.randrange(len(HONEST))) if number % 4 == 0 else self._hostile(number, dice)
        except TimeoutError:
            self.wrong.append(f"request {number}: no whole answer in {SECONDS} s")
        except Exception as problem:
            self.wrong.append(f"request {number}: {problem!r:.300}")

    def _honest(self, which: int) -> None:
        path, body = HONEST[which]
        answer = answer_of(exchanged(self.port, posted(path, spelt(body))))
        self.seen["honest"] += 1
        if answer != self.alone[which]:
            self.wrong.append(f"honest {path} {body}: {answer!r:.300} is not {self.alone[which]!r:.300}")

    def _hostile(self, number: int, dice: random.Random) -> None:
        request, incomplete = hostile(dice)
        leave = dice.choice((0, 1, 200, 1000)) if dice.random() < 0.1 else 1 << 40
        answer = exchanged(self.port, request, incomplete, leave)
        status = answer[9:12].decode("latin-1") or "closed"
        self.seen[status] += 1
        if status.startswith("5") or b'"server_error"' in answer:
            self.wrong.append(f"request {number}: {answer[:200]!r} to {request[:300]!r}")


def fuzzed(engine: str, count: int, seed: int) -> list[str]:
    """What was wrong with one engine's server under `count` requests."""
    with tempfile.TemporaryDirectory() as folder:
        model, log = model_file(Path(folder) / "tiny.gguf"), Path(folder) / "log"
        command = [sys.executable, "-m", "cutaway", "serve", str(model), "--engine", engine]
        command += ["--max-tokens", "64"]
        began = time.monotonic()
        with log.open("wb") as out, answering(command, out) as (port, server):
            fuzz = Fuzz(port, seed)
            with ThreadPoolExecutor(CLIENTS) as clients:
                list(clients.map(fuzz.send, range(count)))
            if server.poll() is not None:
                fuzz.wrong.append(f"the server ended with {server.returncode}")
        text = log.read_text(errors="replace")
    if "Traceback" in text:
        fuzz.wrong.append(f"the log holds {text.count('Traceback')} tracebacks: {text[:3000]}")
    seconds = time.monotonic() - began
    print(f"{engine}: {count:,} requests in {seconds:.0f} s, {dict(sorted(fuzz.seen.items()))}", flush=True)
    return fuzz.wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000, help="requests, half to each engine")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    wrong = [one for engine in ("runtime", "pytorch") for one in fuzzed(engine, asked.count // 2, asked.seed)]
    print(f"{asked.count:,} requests, {len(wrong)} wrong")
    print("\n".join(wrong[:20]))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
