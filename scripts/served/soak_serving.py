"""Honest clients beside attackers for a long time: nothing is lost, crossed, leaked or held up.

    python -m scripts.served.soak_serving [--minutes 30] [--clients 16] [MODEL]

Honest clients ask for completions, whole and as streams, alone for a fifth of the time (at most 3 minutes).
Then attackers join them, each from an address of its own: bodies that are no request, sockets that say
nothing, grammars and expressions that explode, streams left early or read slowly, floods of traces, and
once a second a process that begins a stream and is killed.

Every answer must be the one that the model gives to the same request alone, which is found out in this
process before the server starts. The gaps between the pieces of honest streams are measured: their 99th
percentile under attack must be under 10 times that of the quiet time. No attack may be answered by a 5xx
but 503 (too many connections) and 504 (too late); a full queue (429) is a refusal, and the client comes
back. The server's memory is looked at all the while: its median over the last quarter of the attack may not
lie more than 5 % above that over the second. In the end nothing may run or wait, and the server must end at
SIGTERM, with 0 or with the signal. Exits 1 if any of this does not hold."""

from __future__ import annotations

import argparse
import http.client
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import cutaway
from scripts.fuzz.http import FORMATS
from scripts.lib.serving import answering

BAD = (
    b"",
    b"{",
    b"null",
    b"[1, 2",
    b'{"prompt": 5}',
    b'{"prompt": "a", "max_tokens": -1}',
    b'{"prompt": "a", "best_of": 3}',
    b'{"prompt": [999999999]}',
    b'{"prompt": "a", "temperature": "hot"}',
    b'{"prompt": "a", "seed": 1.5}',
    b'{"prompt": "a", "n": 100000}',
    b'{"prompt": "a", "logit_bias": {"x": 1}}',
    b"\xff\xfe\x00",
    b'{"prompt": ' + b"[" * 5000,
)
KILLED = """
import socket, sys
c = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
c.sendall(sys.argv[2].encode())
while c.recv(64): pass
"""


def requests(lm: cutaway.lm.LanguageModel, count: int) -> list[tuple[dict[str, Any], str]]:
    """Different requests and the text that the model gives to each alone; some prompts begin alike."""
    dice, made = random.Random(0), []
    begin = "The keeper of the lighthouse wrote down every ship that passed. " * 20
    for n in range(count):
        prompt = begin * dice.choice((0, 0, 1)) + f"Note {n}: " + "wind and rain, " * dice.randrange(12)
        settings: dict[str, Any] = {
            "max_tokens": dice.choice((4, 16, 48)),
            "temperature": dice.choice((0, 0, 0.8, 1.2)),
            "top_p": dice.choice((1, 0.9)),
            "seed": n,
            "stop": dice.choice(([], ["."], ["\n\n"])),
        }
        made.append(({"prompt": prompt, **settings}, lm.generate(prompt, **settings).text))
    return made


class Soak:
    """The clients, what came of what they did, and what was wrong."""

    def __init__(self, port: int, asked: list[tuple[dict[str, Any], str]]) -> None:
        self.port, self.asked = port, asked
        self.over = threading.Event()
        self.address = threading.local()  # an attacker's own; honest clients share one
        self.gaps: list[float] = []  # seconds between the pieces of honest streams
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    def client(self, number: int) -> None:
        """An honest client."""
        self._act(number, [self.whole, self.stream])

    def attackers(self) -> list[threading.Thread]:
        """Two of each kind of attack, and the killer."""
        kinds = [self.bad, self.silent, self.bomb, self.leave, self.slow, self.trace]
        args = [(1000 + n, [kind], f"127.0.0.{n + 2}") for n, kind in enumerate(kinds * 2)]
        return [threading.Thread(target=self._act, args=one) for one in args] + [
            threading.Thread(target=self.killer)
        ]

    def _act(
        self, number: int, acts: list[Callable[[random.Random], None]], address: str = "127.0.0.1"
    ) -> None:
        dice, self.address.own = random.Random(number), address
        while not self.over.is_set():
            act = dice.choice(acts)
            try:
                act(dice)
            except Exception as error:
                self.wrong.append(f"{act.__name__}: {error!r}")
                time.sleep(0.2)

    def post(self, body: bytes, path: str = "/v1/completions") -> tuple[http.client.HTTPConnection, Any]:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=300, source_address=(self.address.own, 0)
        )
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    def begin(self, dice: random.Random, **more: Any) -> tuple[http.client.HTTPConnection, Any, str] | None:
        """A request that is accepted: the connection, the response, and the text it must bring."""
        request, text = dice.choice(self.asked)
        connection, response = self.post(json.dumps(request | more).encode())
        if response.status == 200:
            return connection, response, text
        response.read()
        connection.close()
        if response.status != 429:
            raise ValueError(f"an honest request was answered with {response.status}")
        self.done["refused, as the queue was full"] += 1
        time.sleep(dice.random())
        return None

    def whole(self, dice: random.Random) -> None:
        if (begun := self.begin(dice)) is not None:
            connection, response, text = begun
            self.compare("whole", json.loads(response.read())["choices"][0]["text"], text)
            connection.close()

    def stream(self, dice: random.Random, pause: float = 0) -> None:
        if (begun := self.begin(dice, stream=True)) is not None:
            connection, response, text = begun
            received, ended, last = "", False, None
            for line in response:
                time.sleep(pause)
                now = time.monotonic()
                if not pause and line.startswith(b"data: "):
                    if last is not None:
                        self.gaps.append(now - last)
                    last = now
                ended |= line.strip() == b"data: [DONE]"
                if line.startswith(b"data: {"):
                    received += json.loads(line[6:])["choices"][0]["text"]
            if not ended:
                raise ValueError("a stream ended without [DONE]")
            self.compare("slow" if pause else "stream", received, text)
            connection.close()

    def slow(self, dice: random.Random) -> None:
        self.stream(dice, pause=0.1)

    def leave(self, dice: random.Random) -> None:
        if (begun := self.begin(dice, stream=True, max_tokens=200)) is not None:
            connection, response, _ = begun
            for _ in range(dice.randrange(6)):
                response.readline()
            connection.close()
            self.done["left"] += 1

    def bad(self, dice: random.Random) -> None:
        self.attack("bad body", dice.choice(BAD), refused=True)

    def bomb(self, dice: random.Random) -> None:
        """A grammar that explodes."""
        body = {"prompt": "a", "max_tokens": 8, "response_format": dice.choice(FORMATS)}
        self.attack("bomb", json.dumps(body).encode())

    def trace(self, dice: random.Random) -> None:
        body = {"text": dice.choice(self.asked)[0]["prompt"], "values": ["out", "attention.pattern"]}
        self.attack("trace", json.dumps(body).encode(), "/v1/trace")

    def silent(self, dice: random.Random) -> None:
        """A hundred sockets that say nothing, or begin a request, until they are closed."""
        mine = [
            socket.create_connection(("127.0.0.1", self.port), 30, (self.address.own, 0)) for _ in range(100)
        ]
        for one in mine[::2]:
            one.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: ")
        self.over.wait(12)
        for one in mine:
            one.close()
        self.done["silent sockets"] += len(mine)

    def attack(self, what: str, body: bytes, path: str = "/v1/completions", refused: bool = False) -> None:
        connection, response = self.post(body, path)
        response.read()
        connection.close()
        self.done[what] += 1
        if response.status not in (503, 504) and not (200 + 200 * refused <= response.status < 500):
            self.wrong.append(f"{what}: answered with {response.status}")

    def killer(self) -> None:
        """Once a second a client that is killed in the midst of its stream."""
        dice = random.Random(-1)
        while not self.over.wait(1):
            request, _ = dice.choice(self.asked)
            body = json.dumps(request | {"stream": True, "max_tokens": 200})
            head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            victim = subprocess.Popen([sys.executable, "-I", "-S", "-c", KILLED, str(self.port), head + body])
            time.sleep(dice.random())
            victim.kill()
            victim.wait()
            self.done["killed"] += 1

    def compare(self, what: str, received: str, text: str) -> None:
        self.done[what] += 1
        if received != text:
            self.wrong.append(f"{what}: {received!r} is not what the model says alone, {text!r}")


def p99(gaps: list[float]) -> float:
    """The 99th percentile, in seconds."""
    return sorted(gaps)[int(0.99 * len(gaps))]


def memory(pid: int) -> int:
    """Resident kilobytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def gauge(port: int, name: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"cutaway_{name}{{")).split()[1])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=40, help="different requests that are compared")
    parser.add_argument("model", nargs="?", default="smollm2")
    asked = parser.parse_args()
    expected = requests(cutaway.load(asked.model, engine="runtime"), asked.requests)
    command = [sys.executable, "-m", "cutaway", "serve", asked.model, "--engine", "runtime"]
    with answering(command) as (port, server):
        return soak(server, port, expected, asked.minutes, asked.clients)


def soak(server: subprocess.Popen, port: int, expected: list, minutes: float, clients: int) -> int:
    run, sizes = Soak(port, expected), []
    threads = [threading.Thread(target=run.client, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    quiet_seconds = min(180, 12 * minutes)
    time.sleep(quiet_seconds)
    alone = len(run.gaps)
    attackers = run.attackers()
    for thread in attackers:
        thread.start()
    began = time.monotonic()
    while time.monotonic() - began < 60 * minutes - quiet_seconds:
        time.sleep(2)
        if server.poll() is not None:
            run.over.set()
            sys.exit(f"the server ended by itself, with {server.poll()}, after {len(sizes) // 30} minutes")
        sizes.append(memory(server.pid))
    quiet, attacked = p99(run.gaps[:alone]), p99(run.gaps[alone:])
    threads += attackers
    run.over.set()
    for thread in threads:
        thread.join()
    quarter = max(1, len(sizes) // 4)
    early, late = statistics.median(sizes[quarter : 2 * quarter]), statistics.median(sizes[-quarter:])
    time.sleep(2)
    left = gauge(port, "requests_running") + gauge(port, "requests_waiting")
    server.send_signal(signal.SIGTERM)
    ended = server.wait(60)
    print(", ".join(f"{count} {what}" for what, count in sorted(run.done.items())))
    print(f"99 % of gaps: {1000 * quiet:.0f} ms alone, {1000 * attacked:.0f} ms under attack")
    tenths = [sizes[len(sizes) * n // 10] // 1024 for n in range(10)] + [sizes[-1] // 1024]
    print(f"memory over time, MB: {tenths}")
    print(f"memory: {early / 1024:.0f} MB in the second quarter, {late / 1024:.0f} MB in the last")
    print(f"{left:.0f} left running or waiting; the server ended with {ended}; {len(run.wrong)} wrong")
    for wrong in run.wrong[:10]:
        print("  " + wrong)
    fine = (
        not run.wrong
        and attacked < 10 * quiet
        and late <= 1.05 * early
        and left == 0
        and ended in (0, -signal.SIGTERM)
    )
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
