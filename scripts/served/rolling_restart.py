"""A rolling restart under streaming clients through nginx: what fails. Some 2 minutes; it needs nginx.

    python -m scripts.served.rolling_restart --clients 16 --rounds 2

Two servers behind deploy/nginx.conf. In each round each is told to stop (SIGTERM), drains, ends, and starts
again, while every client asks for one streamed answer after the other. An answer counts as failed unless its
status is 200, its last line is [DONE], and its text is the one that it had before the first restart.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import httpx2 as httpx

from scripts.lib.serving import free_port, proxied, until_healthy


class Replica:
    """One server on one port, restarted in place."""

    def __init__(self, model: str) -> None:
        self.port = free_port()
        self.command = [
            sys.executable,
            "-m",
            "cutaway",
            "serve",
            model,
            "--port",
            str(self.port),
            "--threads",
            "1",
        ]
        self.command += [
            "--max-sequences",
            "8",
            "--log-level",
            "warning",
            "--stop-delay",
            "1",
            "--drain",
            "60",
        ]
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.process = subprocess.Popen(self.command, stderr=subprocess.DEVNULL)
        until_healthy(self.port, self.process)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


def ask(client: httpx.Client, n: int) -> str:
    """One streamed answer's text; "failed: why" for what is none."""
    body = {"prompt": f"Once upon a time, {n}", "max_tokens": 24, "temperature": 0, "stream": True}
    text, last = "", ""
    try:
        with client.stream("POST", "/v1/completions", json=body, headers={"X-Session-Id": str(n)}) as going:
            for line in filter(None, going.iter_lines()):
                last = line
                if line != "data: [DONE]" and going.status_code == 200:
                    text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
    except (httpx.TransportError, KeyError) as error:
        return f"failed: {error!r}, after {last!r}"
    return text if last == "data: [DONE]" else f"failed: {going.status_code}, {last}"


def main() -> int:
    """Run it; 1 if a request failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    done, wrong, over = Counter[str](), list[str](), threading.Event()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        replicas = [Replica(asked.model) for _ in range(2)]
        stack.callback(lambda: [one.process.kill() for one in replicas])
        url = stack.enter_context(proxied("nginx", [f"127.0.0.1:{one.port}" for one in replicas], folder))

        def run(n: int) -> None:
            with httpx.Client(base_url=url, headers={"Host": "localhost"}, timeout=120) as client:
                while not over.is_set():
                    text = ask(client, n)
                    done["requests"] += 1
                    if text != expected[n]:
                        wrong.append(f"client {n}: {text}")

        with httpx.Client(base_url=url, headers={"Host": "localhost"}, timeout=120) as client:
            expected = [ask(client, n) for n in range(asked.clients)]
        threads = [threading.Thread(target=run, args=(n,)) for n in range(asked.clients)]
        for one in threads:
            one.start()
        time.sleep(3)
        for _ in range(asked.rounds):
            for replica in replicas:
                began = time.monotonic()
                code = replica.stop()
                stopped = time.monotonic()
                replica.start()
                print(
                    f"port {replica.port}: ended with {code} after {stopped - began:.1f} s, "
                    f"back after {time.monotonic() - began:.1f} s; {done['requests']} requests so far"
                )
                time.sleep(3)  # nginx tries it again
        over.set()
        for one in threads:
            one.join()
        for replica in replicas:
            replica.stop()
    print(f"{done['requests']} requests of {asked.clients} clients, {len(wrong)} failed")
    for one in wrong[:10]:
        print("  " + one[:200])
    return 1 if wrong or any(text.startswith("failed") for text in expected) else 0


if __name__ == "__main__":
    sys.exit(main())
