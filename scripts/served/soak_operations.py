"""A server as an operator runs it, for an hour: keys rotate, a model comes and goes, proxies abort.

    python -m scripts.served.soak_operations --minutes 60

One `cutaway serve` of two models with a key file, behind two nginx with deploy/nginx.conf, scraped by
Prometheus every two seconds (both programs must be installed). All the while, beside each other:

- 16 honest clients of four keys ask for completions, whole and as streams, half of them through nginx.
- Every few seconds a key is replaced: both are listed, SIGHUP, the clients change, the old one is removed,
  SIGHUP; from then on it must get 401.
- The second model is loaded, by the admin's key or by a request, asked by the clients for ten seconds, and
  unloaded by the admin's key.
- Four clients leave their streams midway through the second nginx, and one of its workers is killed every
  20 s, so that the proxy breaks off its connections to the server.

Every answer must be the one that its model gives to the same request alone, which is found out in this
process before. Memory, open descriptors and threads are read every two seconds. They are flat if the median
of the last quarter is at most 5 % (descriptors and threads: 10 %) above that of the second quarter. The log
may hold no key, no prompt and no traceback; Prometheus may have missed no scrape; nothing may run or wait in
the end, and SIGTERM must end the server. Exits 1 if any of this does not hold.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cutaway
from cutaway.lm import LanguageModel
from cutaway.weights.named_tensors import Tensors
from scripts.lib.serving import answering, free_port, proxied

SECOND = "second"
LAYERS = 8  # of the first model, that the second one has
TEAMS = ("alice", "bob", "carol", "dave")
VISITORS = "visitors"  # the key of those who leave
KEYED = (*TEAMS, VISITORS)
ADMIN, METRICS = "the-key-of-the-admin", "the-key-of-prometheus"
ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection


@dataclass(frozen=True)
class Expected:
    """A request, and the text that its model gives to it alone."""

    body: dict[str, Any]
    text: str


def expected(lm: LanguageModel, name: str, count: int) -> list[Expected]:
    """Different requests to a model; some prompts begin alike."""
    dice, made = random.Random(name), []
    begin = "The keeper of the lighthouse wrote down every ship that passed. " * 10
    for n in range(count):
        prompt = begin * dice.choice((0, 0, 1)) + f"Entry {n}: " + "wind and rain, " * dice.randrange(12)
        settings: dict[str, Any] = {
            "max_tokens": dice.choice((4, 16, 48)),
            "temperature": dice.choice((0, 0, 0.8)),
            "seed": n,
            "stop": dice.choice(([], ["."])),
        }
        text = lm.generate(prompt, **settings).text
        made.append(Expected({"model": name, "prompt": prompt, **settings}, text))
    return made


def second_model(lm: LanguageModel, folder: Path) -> Path:
    """A model whose answers differ: the first layers of another, as a GGUF file."""
    config = replace(lm.config, blocks=lm.config.blocks[:LAYERS])
    kept = Tensors({name: lm.checkpoint.tensors.later(name) for name in config.weights()})
    path = folder / f"{SECOND}.gguf"
    LanguageModel(replace(lm.checkpoint, config=config, tensors=kept)).save(path, "gguf")
    return path


class Keys:
    """The key file of a running server, in which keys are replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.current = {name: f"key-0-of-{name}" for name in KEYED}
        self.used = {ADMIN, METRICS, *self.current.values()}
        self._starting: Counter[str] = Counter()  # requests whose key may not have been read yet
        self._changed = threading.Condition()
        self._write(())

    def _write(self, old: tuple[tuple[str, str], ...]) -> None:
        entries: list[dict[str, Any]] = [
            {"name": "admin", "key": ADMIN, "roles": ["admin"]},
            {"name": "prometheus", "key": METRICS, "roles": ["metrics"]},
        ]
        for name, key in self.current.items():
            entries.append({"name": name, "key": [key, *(old for owner, old in old if owner == name)]})
        new = self.path.with_suffix(".new")
        new.write_text(f"keys: {json.dumps(entries)}\n")
        new.replace(self.path)

    @contextmanager
    def of(self, name: str) -> Iterator[str]:
        """The key of a request, until the block ends, by when the server has read it."""
        with self._changed:
            key = self.current[name]
            self._starting[key] += 1
        try:
            yield key
        finally:
            with self._changed:
                self._starting[key] -= 1
                self._changed.notify_all()

    def replace(self, name: str, reload: Callable[[str, int], None]) -> None:
        """Replace a key. ``reload(key, status)`` has the file read, until the key gets this status."""
        with self._changed:
            old, new = self.current[name], f"key-{len(self.used)}-of-{name}"
            self.current[name] = new
            self.used.add(new)
            self._write(((name, old),))
            reload(new, 200)  # held: no request has the new key before the server knows it
        with self._changed:
            self._changed.wait_for(lambda: not self._starting[old])
            self._write(())
            reload(old, 401)


@dataclass
class Soak:
    """The clients, what came of what they did, and what was wrong."""

    server: subprocess.Popen
    port: int
    front: int  # nginx, for honest clients
    edge: int  # nginx, whose clients leave and whose workers are killed
    keys: Keys
    asked: list[Expected]
    asked_second: list[Expected]
    over: threading.Event = field(default_factory=threading.Event)
    second_is_open: threading.Event = field(default_factory=threading.Event)
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    # ---- requests ------------------------------------------------------------------------------------------

    def ask(self, port: int, key: str, path: str, body: Any = None) -> tuple[Any, Any]:
        """The connection and the response; the caller closes the connection."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "Host": "localhost"}
        method = "GET" if body is None else "POST"
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        return connection, connection.getresponse()

    def whole(self, port: int, key: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The status and the document of an answer."""
        connection, response = self.ask(port, key, path, body)
        text = response.read()
        connection.close()
        return response.status, json.loads(text)

    def repeat(self, number: int, act: Callable[[random.Random], None], pause: float = 0.0) -> None:
        """Act again and again; what raises is wrong."""
        dice = random.Random(number)
        while not self.over.wait(pause):
            try:
                act(dice)
            except Exception as error:
                self.wrong.append(f"{act.__name__}: {error!r}")
                time.sleep(0.2)

    # ---- what goes on --------------------------------------------------------------------------------------

    def honest(self, dice: random.Random) -> None:
        """One request, whole or as a stream, to the server or through nginx."""
        second = self.second_is_open.is_set() and dice.random() < 0.25
        wanted = dice.choice(self.asked_second if second else self.asked)
        port, stream, name = dice.choice((self.port, self.front)), dice.random() < 0.5, dice.choice(TEAMS)
        with self.keys.of(name) as key:
            connection, response = self.ask(port, key, "/v1/completions", wanted.body | {"stream": stream})
        if response.status != 200:
            raise ValueError(f"{response.status}: {response.read()[:200]!r}")
        if not stream:
            text = json.loads(response.read())["choices"][0]["text"]
        else:
            lines = [line.strip() for line in response if line.startswith(b"data: ")]
            if lines[-1] != b"data: [DONE]":
                raise ValueError(f"a stream ended with {lines[-1]!r}")
            text = "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1])
        connection.close()
        self.done[f"{'streamed' if stream else 'whole'} answers{' of the second model' * second}"] += 1
        if text != wanted.text:
            self.wrong.append(f"{text!r} is not what {wanted.body['model']} gives alone, {wanted.text!r}")

    def leave(self, dice: random.Random) -> None:
        """A stream through the second nginx that its client, or a killed worker, breaks off."""
        body = dice.choice(self.asked).body | {
            "stream": True,
            "max_tokens": 200,
            "stop": [],
            "ignore_eos": True,
        }
        try:
            with self.keys.of(VISITORS) as key:
                connection, response = self.ask(self.edge, key, "/v1/completions", body)
            if response.status != 200:
                raise ValueError(f"{response.status}: {response.read()[:200]!r}")
            for _ in range(dice.randrange(8)):
                response.readline()
            if dice.random() < 0.5 and connection.sock is not None:
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
            response.close()
            connection.close()
            self.done["streams left"] += 1
        except (OSError, http.client.HTTPException):
            self.done["streams that the proxy broke off"] += 1

    def rotate(self, dice: random.Random) -> None:
        """One key replaced."""

        def reload(key: str, status: int) -> None:
            self.server.send_signal(signal.SIGHUP)
            ends = time.monotonic() + 30
            while self.whole(self.port, key, "/v1/usage")[0] != status:
                if time.monotonic() > ends:
                    raise ValueError(f"a key has not {status} in 30 s after SIGHUP")
                time.sleep(0.02)

        self.keys.replace(dice.choice(KEYED), reload)
        self.done["keys replaced"] += 1

    def models(self, dice: random.Random) -> None:
        """The second model loaded, used and unloaded."""
        if dice.random() < 0.5:
            status, answer = self.whole(self.port, ADMIN, "/v1/admin/models/load", {"model": SECOND})
            if (status, answer.get("state")) != (200, "loaded"):
                raise ValueError(f"load: {status} {answer}")
        self.second_is_open.set()
        self.over.wait(10)
        self.second_is_open.clear()
        self.unload()
        self.done["loads and unloads"] += 1
        self.over.wait(3)

    def unload(self) -> None:
        """Unload the second model, as soon as no request uses it."""
        while True:
            status, answer = self.whole(self.port, ADMIN, "/v1/admin/models/unload", {"model": SECOND})
            if status == 200 and answer["state"] == "unloaded":
                return
            if status != 409:
                raise ValueError(f"unload: {status} {answer}")
            time.sleep(0.05)

    def kill_worker(self, master: int) -> None:
        """One of the second nginx's workers killed; nginx starts another."""
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        os.kill(int(random.choice(children)), signal.SIGKILL)
        self.done["workers of nginx killed"] += 1

    def left(self) -> float:
        """What runs or waits."""
        connection, response = self.ask(self.port, METRICS, "/metrics")
        lines = response.read().decode().splitlines()
        connection.close()
        names = ("cutaway_requests_running{", "cutaway_requests_waiting{")
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names))


# ---- what is measured --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Resident megabytes, open descriptors and threads of a process."""

    megabytes: float
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Sample:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        open_ones = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return cls(int(status["VmRSS"].split()[0]) / 1024, open_ones, int(status["Threads"]))


ALLOWED = {"megabytes": 1.05, "descriptors": 1.10, "threads": 1.10}


def medians(samples: list[Sample], name: str) -> tuple[float, float, list[float]]:
    """Of the second quarter, of the last, and of each tenth."""
    values = [getattr(one, name) for one in samples]
    quarter, tenth = len(values) // 4, len(values) / 10
    tenths = [statistics.median(values[int(n * tenth) : int((n + 1) * tenth)]) for n in range(10)]
    return statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:]), tenths


@contextmanager
def prometheus(port: int, folder: Path) -> Iterator[str]:
    """The address of a Prometheus that scrapes the server every two seconds."""
    job = {
        "job_name": "cutaway",
        "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
        "authorization": {"credentials": METRICS},
    }
    config = {"global": {"scrape_interval": "2s", "scrape_timeout": "2s"}, "scrape_configs": [job]}
    (folder / "prometheus.json").write_text(json.dumps(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={folder}/prometheus.json",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def queried(prometheus: str, query: str) -> float:
    """What Prometheus answers to a query whose result is one number."""
    url = f"{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(url, timeout=60) as answer:
        return float(json.load(answer)["data"]["result"][0]["value"][1])


def main() -> int:
    """Run it; 1 if something does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument(
        "--requests", type=int, default=40, help="different requests a model that are compared"
    )
    parser.add_argument("--model", default="smollm2")
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lm = cutaway.load(given.model, engine="runtime")
        second = second_model(lm, folder)
        asked = expected(lm, given.model, given.requests)
        asked_second = expected(cutaway.load(second, engine="runtime"), SECOND, given.requests)
        del lm
        keys, log = Keys(folder / "keys.yaml"), stack.enter_context((folder / "log").open("w"))
        command = [sys.executable, "-m", "cutaway", "serve", given.model, str(second), "--engine", "runtime"]
        command += ["--api-key-file", str(keys.path), "--stop-delay", "1", "--log-format", "json"]
        port, server = stack.enter_context(answering(command, log))
        ports = []
        for name in ("front", "edge"):
            (folder / name).mkdir()
            url = stack.enter_context(proxied("nginx", [f"127.0.0.1:{port}"], folder / name))
            ports.append(int(url.rpartition(":")[2]))
        scraper = stack.enter_context(prometheus(port, folder))
        run = Soak(server, port, ports[0], ports[1], keys, asked, asked_second)
        return soak(run, given.minutes, given.clients, scraper, folder)


def soak(run: Soak, minutes: float, clients: int, scraper: str, folder: Path) -> int:
    """Warm up, let everything go on for so long, and judge."""
    for one in (*run.asked, *run.asked_second):  # what is made once is made now
        _, answer = run.whole(run.port, run.keys.current["alice"], "/v1/completions", one.body)
        assert answer["choices"][0]["text"] == one.text, answer
    run.unload()
    time.sleep(20)  # idle connections are closed
    before, samples = Sample.of(run.server.pid), list[Sample]()
    master = int((folder / "edge" / "pid").read_text())
    work: list[tuple[Callable[..., None], float]] = [(run.honest, 0.0)] * clients + [(run.leave, 0.2)] * 4
    work += [(run.rotate, 5.0), (run.models, 0.0), (lambda _: run.kill_worker(master), 20.0)]
    threads = [
        threading.Thread(target=run.repeat, args=(n, act, pause)) for n, (act, pause) in enumerate(work)
    ]
    for one in threads:
        one.start()
    began = time.monotonic()
    while (passed := time.monotonic() - began) < 60 * minutes:
        time.sleep(2)
        if run.server.poll() is not None:
            run.over.set()
            raise SystemExit(f"the server ended with {run.server.returncode} after {passed / 60:.1f} minutes")
        samples.append(Sample.of(run.server.pid))
        if len(samples) % 150 == 0:
            print(f"{passed / 60:4.0f} min: {samples[-1]}, {len(run.wrong)} wrong", flush=True)
    run.over.set()
    for one in threads:
        one.join()
    run.unload()
    time.sleep(20)
    after, left = Sample.of(run.server.pid), run.left()
    span = f"[{int(60 * minutes)}s]"
    missed = queried(scraper, f"count_over_time(up{span}) - sum_over_time(up{span})")
    scrapes = queried(scraper, f"count_over_time(up{span})")
    counted = queried(scraper, 'sum(cutaway_requests_total{path="/v1/completions",status="200"})')
    run.server.send_signal(signal.SIGTERM)
    ended = run.server.wait(60)
    log = (folder / "log").read_text()
    leaks = [key for key in run.keys.used if key in log] + ["a prompt"] * ("lighthouse" in log)
    leaks += ["a traceback"] * ("Traceback" in log)
    print(", ".join(f"{count} {what}" for what, count in sorted(run.done.items())))
    fine = not run.wrong and not leaks and not missed and not left and ended in (0, -signal.SIGTERM)
    for name, allowed in ALLOWED.items():
        early, late, tenths = medians(samples, name)
        fine &= late <= allowed * early
        idle = f"idle {getattr(before, name):.0f} before, {getattr(after, name):.0f} after"
        print(f"{name}: {early:.0f} in the second quarter, {late:.0f} in the last; {idle}")
        print(f"  tenths: {', '.join(f'{one:.0f}' for one in tenths)}")
    print(
        f"Prometheus: {scrapes:.0f} scrapes, {missed:.0f} missed; {counted:.0f} completions with status 200"
    )
    print(f"log: {len(log.splitlines())} lines, {', '.join(leaks) or 'no key, prompt or traceback'}")
    print(f"{left:.0f} left running or waiting; the server ended with {ended}; {len(run.wrong)} wrong")
    for wrong in run.wrong[:10]:
        print("  " + wrong[:300])
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
