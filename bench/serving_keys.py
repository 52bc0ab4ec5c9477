"""One key's 150 requests beside one request of another: its first token, against that of a quiet server.

    python bench/serving_keys.py [--requests 150] [--rounds 9]

A server with two keys. In each round bob asks once while nothing else runs, then alice sends her requests
at once, 64 tokens each; when 100 of them run or wait, bob asks again, and alice's clients leave. Printed
are both times to bob's first token, as he sees them, and their ratio in each round. The median ratio must be
at most 3. Exits 1 if it is not, or if bob was refused. Takes a minute on an idle machine."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts.lib.serving import answering

ALICE, BOB, ADMIN = "the-key-of-alice", "the-key-of-bob", "the-key-of-the-admin"
KEYS = [{"name": "alice", "key": ALICE}, {"name": "bob", "key": BOB}]
KEYS += [{"name": "admin", "key": ADMIN, "roles": ["metrics"]}]
BAR = 3.0


def ask(port: int, key: str, text: str, tokens: int) -> http.client.HTTPConnection:
    """A streamed completion, sent and not read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    body = {"prompt": text, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    return connection


def first_token(port: int, n: int) -> float:
    """Seconds until bob's first token."""
    began = time.perf_counter()
    connection = ask(port, BOB, f"Question {n}: why is the sky blue, and the sea?", 8)
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"bob got {response.status}: {response.read()!r}")
    for line in response:
        if line.startswith(b"data: {"):
            break
    seconds = time.perf_counter() - began
    response.read()
    connection.close()
    return seconds


def under_way(port: int) -> tuple[int, int]:
    """Answers that run and requests that wait, by /metrics."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {ADMIN}"})
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    running, waiting = (
        next(line for line in lines if line.startswith(f"cutaway_requests_{what}{{"))
        for what in ("running", "waiting")
    )
    return int(float(running.rsplit(" ", 1)[1])), int(float(waiting.rsplit(" ", 1)[1]))


def crowded(port: int, requests: int, n: int) -> float:
    """Seconds until bob's first token beside alice's requests."""
    open_ones: list[http.client.HTTPConnection] = []

    def send(i: int) -> None:
        open_ones.append(ask(port, ALICE, f"Report {n}.{i}: the wind and the rain, the", 64))

    threads = [threading.Thread(target=send, args=(i,)) for i in range(requests)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    while sum(counts := under_way(port)) < min(requests, 100):  # a key may fill half of the queue
        time.sleep(0.01)
    seconds = first_token(port, 2 * n + 1)
    for one in open_ones:
        one.close()
    while any(under_way(port)):
        time.sleep(0.05)
    print(f"round {n + 1}: beside {counts[0]} that run and {counts[1]} that wait", end=", ")
    return seconds


def main() -> int:
    """Run it; 1 if the median is above the bar."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", default="smollm2")
    asked = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder, "keys.yaml")
        keys.write_text("keys: " + json.dumps(KEYS))
        command = [sys.executable, "-m", "cutaway", "serve", asked.model, "--log-level", "warning"]
        with answering([*command, "--api-key-file", str(keys)]) as (port, _):
            first_token(port, -1)
            for n in range(asked.rounds):
                quiet = first_token(port, 2 * n)
                beside = crowded(port, asked.requests, n)
                ratios.append(beside / quiet)
                print(
                    f"first token {1000 * beside:.0f} ms, alone {1000 * quiet:.0f} ms: {ratios[-1]:.2f}x",
                    flush=True,
                )
    median = statistics.median(ratios)
    print(f"median of {len(ratios)}: {median:.2f}x (bar {BAR:g}), load {os.getloadavg()[0]:.1f}")
    return int(median > BAR)


if __name__ == "__main__":
    sys.exit(main())
