"""Where escapes are tried: canaries outside the sandbox, and what is seen from outside."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutaway.sandbox import Bounds, Process, launcher
from tests.escapes import Escape, program

BOUNDS = {"memory": 256 << 20, "disk": 4 << 20}
MEMORY_SLACK = (
    90 << 20
)  # the interpreter itself, its starters, files in memory; measured as if none was shared
LATE = 8.0  # seconds that starting and ending may take on a busy machine
VICTIM = """
import ctypes, os, signal, sys, time
kept = ctypes.create_string_buffer(b"canary-memory")
def count(number, _):
    os.write(1, b"%d\\n" % number)
for number in (signal.SIGUSR1, signal.SIGIO, signal.SIGURG, signal.SIGUSR2):
    signal.signal(number, count)
os.write(1, b"%d\\n" % ctypes.addressof(kept))
while True: time.sleep(60)
"""


@dataclass
class Seen:
    """What was seen of a run from outside."""

    ended: str
    output: str
    error: str
    seconds: float
    memory: int = 0
    threads: int = 0
    disk: int = 0
    changes: list[str] = field(default_factory=list)


class Grounds:
    """Canaries: files, a process, sockets. Close it at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "outside"
        self.folder.mkdir()
        self.token = secrets.token_hex(4)
        self.victim = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", VICTIM], stdout=subprocess.PIPE, start_new_session=True
        )
        assert self.victim.stdout
        self.address = int(self.victim.stdout.readline())
        os.set_blocking(self.victim.stdout.fileno(), False)
        self.nice = os.getpriority(os.PRIO_PROCESS, self.victim.pid)
        self.key = 0x0CA9A000 + secrets.randbelow(1 << 12) * 16
        self.sockets = {
            "datagram": self._unix(socket.SOCK_DGRAM, str(self.folder / "daemon")),
            "abstract-datagram": self._unix(socket.SOCK_DGRAM, f"\0{self.token}-datagram"),
            "stream": self._unix(socket.SOCK_STREAM, str(self.folder / "stream")),
            "abstract": self._unix(socket.SOCK_STREAM, f"\0{self.token}"),
            "tcp": self._inet(socket.SOCK_STREAM),
            "udp": self._inet(socket.SOCK_DGRAM),
        }

    def _unix(self, kind: int, name: str) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, kind)
        made.bind(name)
        return self._ready(made)

    def _inet(self, kind: int) -> socket.socket:
        made = socket.socket(socket.AF_INET, kind)
        made.bind(("127.0.0.1", 0))
        return self._ready(made)

    def _ready(self, made: socket.socket) -> socket.socket:
        made.setblocking(False)
        if made.type == socket.SOCK_STREAM:
            made.listen()
        return made

    def close(self) -> None:
        """End the victim, close the sockets, remove what attacks left."""
        self.clean()
        self.victim.kill()
        self.victim.communicate()
        for each in self.sockets.values():
            each.close()

    def facts(self, escape: Escape) -> dict[str, Any]:
        """What an attack is given; its own folder and file are made."""
        folder = self.folder / re.sub(r"\W+", "-", escape.name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        file = folder / "file"
        file.write_text(f"canary {self.token}")
        file.chmod(0o644)
        return {
            "folder": str(folder), "file": str(file), "tmp": str(self.folder.parent),
            "home": str(Path.home()),
            "victim": self.victim.pid, "parent": os.getpid(), "address": self.address, "key": self.key,
            "mark": f"c{self.token}", "abstract": self.token,
            "datagram": str(self.folder / "daemon"), "stream": str(self.folder / "stream"),
            "tcp": self.sockets["tcp"].getsockname()[1], "udp": self.sockets["udp"].getsockname()[1],
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        """All that an attack could have changed."""
        found: dict[str, Any] = {}
        for path in sorted(self.folder.rglob("*")):
            about = path.lstat()
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8] if path.is_file() else ""
            attributes = os.listxattr(path, follow_symlinks=False)
            found[str(path.relative_to(self.folder))] = (
                about.st_mode, about.st_uid, about.st_gid, about.st_nlink, digest, attributes,
                about.st_mtime_ns if path.is_file() else 0,
            )  # fmt: skip
        found["the victim"] = (
            self.victim.poll(),
            os.getpriority(os.PRIO_PROCESS, self.victim.pid),
            sorted(os.sched_getaffinity(self.victim.pid)),
        )
        for kind in ("shm", "sem", "msg"):
            found[f"System V {kind}"] = self._ipc(kind)
        found["POSIX shared memory"] = [name for name in os.listdir("/dev/shm") if self.token in name]
        found["processes that are left"] = self._left()
        found["Python's library"] = self._planted().exists()
        return found

    def arrived(self) -> list[str]:
        """Signals and messages that came since it was last asked."""
        assert self.victim.stdout
        found = [f"the victim got signals {got.split()}" for got in [self.victim.stdout.read()] if got]
        for name, each in self.sockets.items():
            try:
                if each.type == socket.SOCK_STREAM:
                    each.accept()[0].close()
                else:
                    each.recv(4096)
                found.append(f"{name} was reached")
            except BlockingIOError:
                pass
        return found

    def clean(self) -> None:
        """Remove what an attack left."""
        libc = ctypes.CDLL(None)
        for identifier, _ in self._ipc("shm"):
            libc.shmctl(identifier, 0, None)
        for identifier, _ in self._ipc("sem"):
            libc.semctl(identifier, 0, 0)
        for identifier, _ in self._ipc("msg"):
            libc.msgctl(identifier, 0, None)
        for name in os.listdir("/dev/shm"):
            if self.token in name:
                os.unlink(f"/dev/shm/{name}")
        self._planted().unlink(missing_ok=True)
        self.victim.send_signal(signal.SIGCONT)
        os.setpriority(os.PRIO_PROCESS, self.victim.pid, self.nice)
        for number in self._left():
            os.kill(number, 9)

    def _planted(self) -> Path:
        return Path(os.path.dirname(os.__file__)) / "cutaway_canary.py"

    def _ipc(self, kind: str) -> list[tuple[int, int]]:
        """Identifiers and keys of what has one of our keys."""
        try:
            lines = Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]
        except OSError:
            return []
        pairs = [(int(line.split()[1]), int(line.split()[0])) for line in lines]
        return [(number, key) for number, key in pairs if 0 <= key - self.key < 16]

    def _left(self) -> list[int]:
        """Processes that carry our mark."""
        found = []
        for number in filter(str.isdigit, os.listdir("/proc")):
            try:
                if Path(f"/proc/{number}/comm").read_text().strip() == f"c{self.token}":
                    found.append(int(number))
            except OSError:
                continue
        return found

    def run(self, escapes: Sequence[Escape], left_out: Iterable[str] = ()) -> tuple[dict[str, str], Seen]:
        """Try these in one process. Gives the evidence of each that had any, and what was seen."""
        facts = {escape.name: self.facts(escape) for escape in escapes}
        before, _ = self.state(), self.arrived()
        seconds = max(escape.seconds for escape in escapes) if len(escapes) == 1 else 60.0
        old, launcher.LEFT_OUT = launcher.LEFT_OUT, frozenset(left_out)
        start = time.monotonic()
        try:
            bounds = Bounds(seconds=seconds, output=256 << 10, **BOUNDS)
            with Process(program(list(escapes), facts), bounds, unsafe=bool(launcher.LEFT_OUT)) as process:
                watch = Watch(process, self.key)
                outcome = process.outcome()
                watch.stop()
        finally:
            launcher.LEFT_OUT = old
        seen = Seen(outcome.ended, outcome.output, outcome.error, time.monotonic() - start)
        seen.memory, seen.threads, seen.disk = watch.memory, watch.threads, watch.disk
        seen.changes = self.arrived()
        after = self.state()
        seen.changes += [
            f"{name}: {before.get(name)} became {after.get(name)}"
            for name in sorted({*before, *after})
            if before.get(name) != after.get(name)
        ]
        if seen.memory > BOUNDS["memory"] + MEMORY_SLACK:
            seen.changes.append(f"{seen.memory >> 20} MB of memory")
        if seen.threads > 2000:
            seen.changes.append(f"{seen.threads} threads")
        if seen.disk > 4 * BOUNDS["disk"]:
            seen.changes.append(f"{seen.disk >> 20} MB on disk")
        if seen.seconds > seconds + LATE:
            seen.changes.append(f"it took {seen.seconds:.0f} s of {seconds:.0f}")
        if len(outcome.output) + len(outcome.error) > 2 * bounds.output:
            seen.changes.append("more output than its bound")
        self.clean()
        return evidence(outcome.output), seen


def evidence(output: str) -> dict[str, str]:
    """What the attacks printed of their success."""
    found = {}
    for line in output.splitlines():
        if line.startswith("@"):
            try:
                name, reason, _ = json.loads(line[1:])
            except ValueError:
                continue
            if reason:
                found[name] = reason
    return found


class Watch:
    """The largest memory, threads and disk of a sandbox, measured every 20 ms by code of the test's own."""

    def __init__(self, process: Process, key: int) -> None:
        self.process, self.key, self.memory, self.threads, self.disk, self.on = process, key, 0, 0, 0, True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Measure no more."""
        self.on = False
        self.thread.join()

    def _watch(self) -> None:
        while self.on:
            memory = threads = 0
            for number in self._tree():
                try:
                    about = Path(f"/proc/{number}/status").read_text()
                except OSError:
                    continue
                memory += sum(
                    int(n) << 10 for n in re.findall(r"^(?:Rss\w+|VmPTE|VmSwap):\s+(\d+)", about, re.M)
                )
                threads += int((re.findall(r"^Threads:\s+(\d+)", about, re.M) or ["0"])[0])
            self.memory, self.threads = max(self.memory, memory + self._shared()), max(self.threads, threads)
            disk = 0
            for folder, _, names in os.walk(self.process.folder):
                if folder.count("/") > 30:
                    break
                for name in names:
                    try:
                        disk += os.lstat(f"{folder}/{name}").st_blocks * 512
                    except OSError:
                        continue
            self.disk = max(self.disk, disk)
            time.sleep(0.02)

    def _shared(self) -> int:
        """System V memory with our keys, mapped or let go of."""
        try:
            lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
        except OSError:
            return 0
        return sum(int(line.split()[-2]) for line in lines if 0 <= int(line.split()[0]) - self.key < 16)

    def _tree(self) -> list[int]:
        """Every process whose session is the sandbox's, or whose ancestor is its first process."""
        parents = {}
        for number in filter(str.isdigit, os.listdir("/proc")):
            try:
                about = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(number)] = (int(about[1]), int(about[3]))
        found = {self.process.process.pid}
        while True:
            more = {
                n for n, (parent, session) in parents.items() if parent in found or session in found
            } - found
            if not more:
                return list(found)
            found |= more
