"""One key's heaviest requests to every route, beside another key's streams: gaps and counts. Some 10 minutes.

    python -m scripts.served.hostile_tenants [--seconds 6] [--only /v1/chat] [MODEL]

One `cutaway serve` with a key file. The key "honest" streams completions all the while and asks for JSON of
a schema in between. The key "hostile" has a quota of 4 requests at once and sends, with 8 threads, the
heaviest bodies that a route takes: all routes of /openapi.json, several bodies for some. Before and after
each, the honest key is measured in quiet. A line tells the 99th percentile of the gaps between the pieces of
honest streams, in quiet and beside the hostile key, their ratio (at most 4), the median and the slowest first
token of honest streams and the slowest honest answer of the schema, in both, and what was counted for the
hostile key: it must be what its answers, or the scheduler's counters, say. Exits 1 if one of these does not
hold, or a hostile request ends in a 5xx but 503 and 504.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.lib.serving import answering

HONEST, HOSTILE, ADMIN = "the-honest-key", "the-hostile-key", "the-admins-key"
KEYS = f"""
keys:
  - {{name: honest, key: {HONEST}, roles: [chat]}}
  - {{name: hostile, key: {HOSTILE}, roles: [chat, embed, internals, metrics], concurrent: 4}}
  - {{name: admin, key: {ADMIN}, roles: [admin, metrics]}}
"""
MOST_RATIO = 4.0
THREADS = 8
MEGABYTES = 2 << 20
TEXT = "The keeper of the lighthouse wrote down every ship that passed. "
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}}, "required": ["name"]}
EVIL = {"type": "string", "pattern": r"^(?=(a+)+$)[a-z ]{20,60}$"}  # a look-ahead, checked after the answer


def long(bytes: int) -> str:
    """A text of so many bytes."""
    return (TEXT * (bytes // len(TEXT) + 1))[:bytes]


def chat(text: str, **more: Any) -> dict[str, Any]:
    """A chat's body."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 16} | more


def formed(schema: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request for JSON of a schema."""
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


@dataclass(frozen=True)
class Attack:
    """Requests of one kind: a method, a path, and a body. ``count``: whether the answers' own usage is
    compared ("answers"), or the scheduler's counters ("scheduler"), or of those the generated tokens.
    """

    name: str
    method: str
    path: str
    body: bytes = b""
    count: str = "answers"
    lines: int | None = None  # of a stream, after which it is left
    prepare: Callable[[Client], str] | None = None  # makes what the path names


def bodies() -> dict[str, list[tuple[str, Any]]]:
    """The heaviest bodies of each path, by what is heavy about them."""
    full = long(MEGABYTES - 600)
    many = [{"role": "user", "content": "x"}] * 40_000
    tools = [
        {
            "type": "function",
            "function": {"name": f"f{i}", "parameters": SCHEMA | {"description": long(9000)}},
        }
        for i in range(100)
    ]
    item = {"type": "message", "role": "user", "content": full}
    ollama = {"messages": chat(long(33_000))["messages"]}
    reference = {"query": "ship", "documents": [TEXT] * 100, "pooling": "mean"}
    return {
        "/v1/chat/completions": [
            ("2 MB", chat(full)),
            ("7,500 tokens", chat(long(33_000))),
            ("a pattern that backtracks", chat("Write aaaa", max_tokens=60) | formed(EVIL)),
            (
                "a grammar that explodes",
                chat("x") | {"response_format": {"type": "regex", "regex": "(a?){99}" * 400}},
            ),
            ("100 tools", chat("x", tools=tools)),
        ],
        "/v1/completions": [
            ("200 texts", {"prompt": [TEXT] * 200, "max_tokens": 1}),
            ("2 MB", {"prompt": full}),
        ],
        "/v1/responses": [
            ("2 MB", {"input": full}),
            (
                "instructions of 30 kB, streamed",
                {"input": "x", "instructions": long(30_000), "max_output_tokens": 4},
            ),
            ("in the background", {"input": "Hello", "background": True, "max_output_tokens": 40}),
        ],
        "/v1/messages": [("2 MB", chat(full)), ("40,000 messages", {"messages": many, "max_tokens": 1})],
        "/v1/messages/count_tokens": [("2 MB", {"messages": chat(full)["messages"]})],
        "/v1/chat/count": [
            ("2 MB", {"messages": chat(full)["messages"]}),
            ("40,000 messages", {"messages": many}),
        ],
        "/v1/conversations": [("2 MB", {"items": [item]})],
        "/v1/conversations/{id}": [("metadata", {"metadata": {"a": "b"}})],
        "/v1/conversations/{id}/items": [("a message", {"items": [{"role": "user", "content": TEXT}]})],
        "/v1/responses/{id}/cancel": [("", {})],
        "/v1/embeddings": [("100 texts", {"input": [TEXT] * 100, "pooling": "mean"})],
        "/v1/rerank": [("100 texts", reference)],
        "/v1/trace": [("300 tokens", {"text": long(1300), "values": ["out"], "layers": [3]})],
        "/v1/attention": [("1,000 tokens", {"text": long(4300), "positions": [-1]})],
        "/v1/lens": [("1,000 tokens", {"text": long(4300)})],
        "/v1/features": [("1,000 tokens", {"text": long(4300)})],
        "/v1/features/card": [("", {"dictionary": 0, "feature": 0})],
        "/slots/{id}": [("save", {"filename": "one"})],
        "/v1/attribution": [("300 tokens", {"text": long(1300)})],
        "/v1/divergence": [
            ("300 tokens", {"text": long(1300), "edits": [{"kind": "ablate", "layer": 3, "part": "mlp"}]})
        ],
        "/v1/chat/sources": [("2 MB", {"messages": chat(full)["messages"]})],
        "/v1/runs/curves": [("of no run", {"runs": ["none"]})],
        "/v1/runs/samples": [("of no run", {"run": "none"})],
        "/v1/runs/checkpoint": [("of no run", {"run": "none", "step": 1, "text": long(30_000)})],
        "/v1/how/tokenizers": [("30 kB", {"text": long(30_000)})],
        "/v1/how/vectors": [("three words", {"words": ["king", "queen", "man"]})],
        "/v1/how/mechanisms": [("30 kB", {"text": long(30_000)})],
        "/v1/how/architecture": [("", {})],
        "/v1/how/alignments": [("30 kB", {"text": long(30_000)})],
        "/v1/how/plan": [("30 kB", {"text": long(30_000)})],
        "/v1/how/quantized": [("30 kB", {"text": long(30_000), "type": "Q4_K"})],
        "/tokenize": [("2 MB", {"content": full, "with_pieces": True})],
        "/detokenize": [("400,000 ids", {"ids": [400] * 400_000})],
        "/api/chat": [("7,500 tokens", ollama | {"stream": False, "options": {"num_predict": 60}})],
        "/api/generate": [("60 tokens", {"prompt": TEXT, "stream": False, "options": {"num_predict": 60}})],
        "/api/embed": [("100 texts", {"input": [TEXT] * 100, "pooling": "mean"})],
        "/api/show": [("", {})],
        "/api/embeddings": [("30 kB", {"prompt": long(30_000), "pooling": "mean"})],
        "/v1/responses/input_tokens": [("2 MB", {"input": full})],
        "/v1/responses/compact": [("7,500 tokens", {"input": long(33_000), "max_output_tokens": 60})],
        "/v1/score": [("100 texts", {"text_1": TEXT, "text_2": [TEXT] * 100, "pooling": "mean"})],
        "/completion": [("60 tokens", {"prompt": TEXT, "n_predict": 60})],
        "/infill": [("60 tokens", {"input_prefix": TEXT, "input_suffix": TEXT, "n_predict": 60})],
        "/apply-template": [("2 MB", {"messages": chat(full)["messages"]})],
        "/v1/admin/models/load": [("", {"model": "smollm2"})],
        "/v1/admin/models/unload": [("", {"model": "smollm2"})],
        "/v1/load_lora_adapter": [("", {"lora_name": "a", "lora_path": "a"})],
        "/v1/unload_lora_adapter": [("", {"lora_name": "a"})],
    }


class Client:
    """One connection of one key."""

    def __init__(self, port: int, key: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self.headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def ask(self, method: str, path: str, body: bytes = b"", lines: int | None = None) -> tuple[int, bytes]:
        """The status and the body; of a stream so many lines, after which the connection is closed."""
        try:
            self.connection.request(method, path, body or None, self.headers)
            answer = self.connection.getresponse()
            if lines is None:
                return answer.status, answer.read()
            found = b"".join(answer.readline() for _ in range(lines))
            self.connection.close()
            return answer.status, found
        except (OSError, http.client.HTTPException):
            self.connection.close()
            raise

    def json(self, method: str, path: str, body: Any = None) -> Any:
        """The body's JSON."""
        return json.loads(self.ask(method, path, b"" if body is None else json.dumps(body).encode())[1])


def conversation(client: Client) -> str:
    """The id of a conversation as long as one may be."""
    items = [{"role": "user", "content": long(MEGABYTES // 2)}]
    return client.json("POST", "/v1/conversations", {"items": items})["id"]


def response(client: Client) -> str:
    """The id of a stored response to a long input."""
    return client.json("POST", "/v1/responses", {"input": long(20_000), "max_output_tokens": 1})["id"]


def attacks(document: Any) -> Iterator[Attack]:
    """All routes of the OpenAPI document that need a key, each with its bodies. KeyError for a new one."""
    known = bodies()
    for path, methods in document["paths"].items():
        if path.startswith("/health"):
            continue
        make = conversation if "/conversations/{id}" in path else response if "/{id}" in path else None
        for method in (one.upper() for one in methods):
            for what, body in known[path] if method == "POST" else [("", None)]:
                name = f"{method} {path}" + (f", {what}" if what else "")
                raw = b"" if body is None else json.dumps(body).encode()
                count = (
                    "generated"
                    if "backtracks" in what
                    else "scheduler"
                    if "background" in what
                    else "answers"
                )
                yield Attack(name, method, path, raw, count, prepare=make)
    stream = json.dumps(chat(TEXT, stream=True, max_tokens=400)).encode()
    yield Attack("streams that are left", "POST", "/v1/chat/completions", stream, "scheduler", lines=12)
    yield Attack("prompts that are left", "POST", "/v1/chat/completions", json.dumps(
        chat(long(33_000), stream=True)).encode(), "scheduler", lines=0)  # fmt: skip


class Honest:
    """The honest key's clients, and what they measured since ``clear``."""

    def __init__(self, port: int) -> None:
        self.port, self.wrong = port, list[str]()
        self.gaps, self.forms, self.firsts = list[float](), list[float](), list[float]()
        self.going, self.resting = threading.Event(), [threading.Event(), threading.Event()]
        for work, resting in zip((self.stream, self.form), self.resting, strict=True):
            threading.Thread(target=self.repeat, args=(work, resting), daemon=True).start()

    def repeat(self, work: Callable[[Client], None], resting: threading.Event) -> None:
        """Work again and again while ``going`` is set."""
        client = Client(self.port, HONEST)
        while True:
            resting.set()
            self.going.wait()
            resting.clear()
            try:
                work(client)
            except http.client.RemoteDisconnected:  # it rested for longer than idle connections are kept
                client.connection.close()
            except (OSError, http.client.HTTPException) as error:
                client.connection.close()
                self.wrong.append(f"an honest request: {error!r}")

    def rest(self) -> tuple[list[float], list[float], list[float]]:
        """Have both finish what they do, and return what they measured, which is forgotten."""
        self.going.clear()
        time.sleep(0.05)
        for one in self.resting:
            one.wait()
        found = self.gaps, self.forms, self.firsts
        self.gaps, self.forms, self.firsts = [], [], []
        return found

    def stream(self, client: Client) -> None:
        """Stream a completion and note when its first piece came, and the gaps between the others."""
        fields = {"prompt": TEXT, "max_tokens": 100, "ignore_eos": True, "stream": True, "temperature": 0}
        began = time.perf_counter()
        client.connection.request("POST", "/v1/completions", json.dumps(fields), client.headers)
        answer, last = client.connection.getresponse(), 0.0
        for line in answer:
            if line.startswith(b"data: {"):
                now = time.perf_counter()
                (self.gaps if last else self.firsts).append(now - (last or began))
                last = now
        if answer.status != 200:
            self.wrong.append(f"an honest stream: {answer.status}")

    def form(self, client: Client) -> None:
        """Ask for JSON of a schema that no request had before."""
        time.sleep(0.3)
        schema = SCHEMA | {"title": f"schema {time.time()}"}
        body, began = json.dumps(chat("Hi") | formed(schema)).encode(), time.perf_counter()
        status, text = client.ask("POST", "/v1/chat/completions", body)
        self.forms.append(time.perf_counter() - began)
        if status != 200:
            self.wrong.append(f"an honest schema: {status} {text[:200]!r}")


def p99(values: list[float]) -> float:
    """The 99th percentile, in milliseconds."""
    return 1000 * sorted(values)[int(0.99 * len(values))] if values else float("nan")


def told(text: bytes) -> tuple[int, int]:
    """The tokens of prompt and answer that an answer's own usage tells."""
    try:
        answer = json.loads(text)
    except ValueError:
        return 0, 0
    if "prompt_eval_count" in answer:
        return answer["prompt_eval_count"], answer.get("eval_count", 0)
    if "tokens_predicted" in answer:
        return answer["tokens_evaluated"], answer["tokens_predicted"]
    if "values" in answer:
        return len(answer["tokens"]), 0
    usage = answer.get("usage") or {}
    read = usage.get("prompt_tokens", usage.get("input_tokens", 0)) + usage.get("cache_read_input_tokens", 0)
    return read, usage.get("completion_tokens", usage.get("output_tokens", 0))


def counters(port: int) -> dict[str, tuple[int, int]]:
    """Tokens of prompts and answers: of each key, and as the schedulers count them."""
    page = Client(port, ADMIN).ask("GET", "/metrics")[1].decode()

    def value(name: str) -> int:
        return int(sum(float(one) for one in re.findall(rf"^{name} (\S+)$", page, re.M)))

    names = {
        f"key {key}": ("cutaway_key_%s_tokens_total", f'{{key="{key}"}}') for key in ("honest", "hostile")
    }
    names["scheduler"] = ("cutaway_%s_tokens_total", "{.*}")
    return {
        who: (value(name % "prompt" + labels), value(name % "generated" + labels))
        for who, (name, labels) in names.items()
    }


def settled(port: int) -> None:
    """Wait until nothing of the hostile key is under way."""
    client = Client(port, HOSTILE)
    for _ in range(600):
        if not client.json("GET", "/v1/usage")["data"][0]["running"]:
            return
        time.sleep(0.1)
    raise SystemExit("the hostile key's requests do not end")


def attacked(port: int, attack: Attack, path: str, seconds: float) -> tuple[Counter[str], tuple[int, int]]:
    """The statuses of the hostile requests within so many seconds, and the tokens that their answers tell."""
    ends, statuses, tokens = time.monotonic() + seconds, Counter[str](), [0, 0]

    def run() -> None:
        client = Client(port, HOSTILE)
        while time.monotonic() < ends:
            with suppress(OSError, http.client.HTTPException):
                status, text = client.ask(attack.method, path, attack.body, attack.lines)
                statuses[str(status)] += 1
                for n, one in enumerate(told(text) if status == 200 and attack.method == "POST" else (0, 0)):
                    tokens[n] += one

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return statuses, (tokens[0], tokens[1])


def in_quiet(honest: Honest, seconds: float) -> tuple[list[float], list[float], list[float]]:
    """What the honest key measures alone in so many seconds."""
    honest.going.set()
    time.sleep(seconds)
    return honest.rest()


def row(port: int, honest: Honest, attackers: Any, attack: Attack, seconds: float) -> tuple[str, bool]:
    """A row of the table, and whether it holds."""
    path = attack.path
    if attack.prepare is not None:
        path = path.replace("{id}", attack.prepare(Client(port, HOSTILE)))
    path = re.sub(r"\{\w+\}", "none", path)
    before_it = in_quiet(honest, seconds / 2)
    before = counters(port)
    honest.going.set()
    time.sleep(0.3)
    statuses, answers = attackers.apply(attacked, (port, attack, path, seconds))
    loud, forms, firsts = honest.rest()
    settled(port)
    after = counters(port)
    after_it = in_quiet(honest, seconds / 2)
    quiet, quiet_forms, quiet_firsts = (one + two for one, two in zip(before_it, after_it, strict=True))
    more = {who: tuple(after[who][n] - before[who][n] for n in range(2)) for who in after}
    counted, expected = more["key hostile"], answers
    if attack.count != "answers":
        expected = tuple(all - own for all, own in zip(more["scheduler"], more["key honest"], strict=True))
    of = slice(1, 2) if attack.count == "generated" else slice(2)
    fits, ratio = counted[of] == expected[of], p99(loud) / p99(quiet)
    failed = [code for code in statuses if code[0] == "5" and code not in ("503", "504")]
    slowest = f"{max(quiet_forms, default=0):.2f}, {max(forms, default=0):.2f}"
    first = ", ".join(
        f"{statistics.median(one):.2f} to {max(one):.2f}" for one in (quiet_firsts, firsts) if one
    )
    codes = ", ".join(f"{count} of {code}" for code, count in sorted(statuses.items()))
    text = (
        f"| {attack.name} | {codes} | {p99(quiet):.1f}, {p99(loud):.1f} | {ratio:.1f} | {first} | {slowest} "
    )
    text += f"| {counted[0]:,} + {counted[1]:,}" + (
        "" if fits else f", not {expected[0]:,} + {expected[1]:,}"
    )
    return text + " |", fits and ratio <= MOST_RATIO and not failed


def main() -> int:
    """Run it; 1 if something does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--only", default="", help="attacks in whose name this pattern is found")
    parser.add_argument("--threads", default="2", help="the server's")
    parser.add_argument("model", nargs="?", default="smollm2")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.yaml"
        keys.write_text(KEYS)
        command = [sys.executable, "-m", "cutaway", "serve", asked.model, "--api-key-file", str(keys)]
        with (
            (Path(folder) / "log").open("w") as log,
            answering([*command, "--threads", asked.threads], log) as (port, _),
            # a process of its own, below the server's priority: it stands for another machine
            multiprocessing.get_context("spawn").Pool(1, os.nice, (10,)) as attackers,
        ):
            document = Client(port, HOSTILE).json("GET", "/openapi.json")
            honest, wrong = Honest(port), list[str]()
            print(
                "| hostile requests | answers | gap, 99%, ms | ratio | first token, s | schema, s | counted |"
            )
            print("|---|---|---|---|---|---|---|")
            for attack in attacks(document):
                if re.search(asked.only, attack.name):
                    text, fine = row(port, honest, attackers, attack, asked.seconds)
                    print(text, flush=True)
                    wrong += [] if fine else [attack.name]
        tracebacks = (Path(folder) / "log").read_text().count("Traceback")
    print(f"{len(wrong)} do not hold: {'; '.join(wrong)}" if wrong else "all hold")
    print(f"{len(honest.wrong)} honest requests failed, {tracebacks} tracebacks")
    for one in honest.wrong[:10]:
        print("  " + one)
    return int(bool(wrong or honest.wrong or tracebacks))


if __name__ == "__main__":
    sys.exit(main())
