"""The server beside llama.cpp's: same file, same threads, the same clients, in one run.

    python bench/serving.py --llama-server PATH [MODEL.gguf]

Clients stream completions of prompts of about 60 ids that begin differently, 64 tokens each, greedy, past the
end token: one client, four, sixteen. Tokens a second are all that were written over the time from the first
request to the last answer; times to the first token and between tokens are milliseconds that the clients saw;
"processor ms" is the server's own processor time a token, prompts included, which other load hardly changes.
Then four clients write 160 tokens each and a prompt of about 1,500 ids arrives: the longest that any of them
waits for a token while it is read, over their usual gap, the median of those before it came. The last line is
what it costs to ask for internals at one layer. Rounds alternate and the better of each counts (build
llama-server from llama.cpp with -DGGML_NATIVE=ON)."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from cutaway import native, store
from scripts.lib.serving import answering

TOKENS, LONG_TOKENS = 64, 160
WORDS = [
    "river",
    "stone",
    "lamp",
    "winter",
    "copper",
    "garden",
    "letter",
    "shadow",
    "market",
    "engine",
    "violin",
    "harbour",
]


@dataclass
class Answer:
    """When a request was sent, when each chunk of text came, and how many tokens were written."""

    sent: float
    chunks: list[float] = field(default_factory=list)
    tokens: int = 0


def prompt(number: int, words: int = 45) -> str:
    """A text that begins like no other."""
    return (
        f"Report {number}: "
        + " ".join(WORDS[(number * 5 + n * n) % len(WORDS)] for n in range(words))
        + ". The"
    )


def ask(port: int, text: str, tokens: int, answer: Answer | None = None, **more: Any) -> Answer:
    """One streamed completion, kept in the answer that is given as it comes."""
    body = {
        "prompt": text,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    answer = answer or Answer(0.0)
    answer.sent = time.perf_counter()
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body | more), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"port {port} answered {response.status}: {response.read(500)!r}")
    for line in response:
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        event = json.loads(line[6:])
        if event.get("choices"):
            answer.chunks.append(time.perf_counter())
        if event.get("usage"):
            answer.tokens = event["usage"]["completion_tokens"]
    connection.close()
    return answer


def together(port: int, clients: int, each: int, start: int, **more: Any) -> tuple[list[Answer], float]:
    """So many clients, each with its requests one after another: the answers, and the seconds of it all."""
    answers: list[Answer] = []

    def client(number: int) -> None:
        for n in range(each):
            answers.append(ask(port, prompt(start + number * each + n), TOKENS, **more))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers, time.perf_counter() - began


def gaps(answer: Answer) -> list[float]:
    return [later - earlier for earlier, later in zip(answer.chunks, answer.chunks[1:], strict=False)]


def percentile(values: list[float], fraction: float) -> float:
    return sorted(values)[min(len(values) - 1, int(fraction * len(values)))]


def processor(pid: int) -> float:
    """Seconds that a process has computed for, by all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def figures(port: int, pid: int, clients: int, start: int) -> dict[str, float]:
    before = processor(pid)
    answers, seconds = together(port, clients, max(1, 4 // clients), start)
    spent, tokens = processor(pid) - before, sum(answer.tokens for answer in answers)
    firsts = [answer.chunks[0] - answer.sent for answer in answers]
    between = [gap for answer in answers for gap in gaps(answer)]
    return {
        "tokens/s": tokens / seconds,
        "first token p50": 1000 * percentile(firsts, 0.5),
        "first token p99": 1000 * percentile(firsts, 0.99),
        "between p50": 1000 * percentile(between, 0.5),
        "between p99": 1000 * percentile(between, 0.99),
        "processor ms": 1000 * spent / tokens,
    }


def stall(port: int, start: int) -> dict[str, float]:
    """Four write, and a long prompt comes: their longest gap meanwhile over the usual one."""
    answers = [Answer(0.0) for _ in range(4)]
    threads = [
        threading.Thread(target=ask, args=(port, prompt(start + n), LONG_TOKENS, answer))
        for n, answer in enumerate(answers)
    ]
    for thread in threads:
        thread.start()
    while any(len(answer.chunks) < 24 for answer in answers) and all(map(threading.Thread.is_alive, threads)):
        time.sleep(0.01)
    long = ask(port, prompt(start + 9, words=1500), 1)
    for thread in threads:
        thread.join()
    came, read = long.sent, long.chunks[0]
    writing = max(answer.chunks[0] for answer in answers)  # from here on all four write
    usual = [
        gap
        for answer in answers
        for at, gap in zip(answer.chunks[1:], gaps(answer), strict=True)
        if writing < at < came
    ]
    meanwhile = [
        gap
        for answer in answers
        for at, gap in zip(answer.chunks[1:], gaps(answer), strict=True)
        if came < at and at - gap < read
    ]
    return {
        "usual gap": 1000 * statistics.median(usual),
        "longest before": 1000 * max(usual),
        "gap meanwhile": 1000 * statistics.median(meanwhile),
        "longest gap": 1000 * max(meanwhile),
        "stall": max(meanwhile) / statistics.median(usual),
        "read in": read - came,
    }


@contextmanager
def server(command: list[str]) -> Iterator[tuple[int, int]]:
    """A server that has answered once: its port, and its process."""
    with answering(command) as (port, process):
        ask(port, prompt(999), 4)
        yield port, process.pid


def internals(port: int, pid: int, start: int) -> dict[str, float]:
    """Percent of its speed that one client keeps with internals at one layer; the same by processor time."""
    speeds, costs = [0.0, 0.0], [float("inf")] * 2
    for n in range(8):
        more = {"internals": {"layers": [15]}} if n % 2 else {}
        before = processor(pid)
        answer = ask(port, prompt(start + n), TOKENS, **more)
        costs[n % 2] = min(costs[n % 2], processor(pid) - before)
        speeds[n % 2] = max(speeds[n % 2], (TOKENS - 1) / (answer.chunks[-1] - answer.chunks[0]))
    return {"speed": 100 * speeds[1] / speeds[0], "processor": 100 * costs[0] / costs[1]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-server")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("model", nargs="?", type=Path)
    asked = parser.parse_args()
    model = asked.model or store.resolve("smollm2", pull=True)
    threads = str(native.threads())
    commands = {"cutaway": [sys.executable, "-m", "cutaway", "serve", str(model)]}
    if asked.llama_server:
        base = [asked.llama_server, "-m", str(model), "-t", threads, "-np", "16", "-c", str(16 * 2048)]
        commands["llama.cpp"] = base
    best: dict[str, dict[str, dict[str, float]]] = {name: {} for name in commands}
    watched: dict[str, dict[str, float]] = {}
    for n in range(asked.rounds):
        for name, command in commands.items():
            with server(command) as (port, pid):
                for clients in asked.clients:
                    _better(
                        best[name], f"{clients} clients", figures(port, pid, clients, 1000 * n + 50 * clients)
                    )
                _better(best[name], "long prompt", stall(port, 1000 * n + 900))
                if name == "cutaway":
                    _better(watched, "internals", internals(port, pid, 1000 * n + 950))
    print(f"{model.name}, {native.isa()}, {threads} threads, load {os.getloadavg()[0]:.1f}")
    for what in next(iter(best.values())):
        print(what)
        for figure in next(iter(best.values()))[what]:
            values = [best[name][what][figure] for name in commands]
            ratio = f"{values[0] / values[1]:8.2f}x" if len(values) > 1 else ""
            print(f"  {figure:<18}" + "".join(f"{value:10.2f}" for value in values) + ratio)
    kept = watched["internals"]
    print(
        f"internals at one layer: {kept['speed']:.0f} % of the speed, {kept['processor']:.0f} % by processor"
    )


def _better(best: dict[str, dict[str, float]], what: str, found: dict[str, float]) -> None:
    """Of two rounds the one with more tokens a second, or the shorter stall."""
    print(f"# {what}: " + ", ".join(f"{name} {value:.1f}" for name, value in found.items()), flush=True)
    known = best.get(what)
    if known is None or found.get("tokens/s", -found.get("stall", 0)) > known.get(
        "tokens/s", -known.get("stall", 0)
    ):
        best[what] = found


if __name__ == "__main__":
    main()
