"""Python code of a model, in a process that may do little: the kernel's own layers, no interpreter's tricks.

    outcome = sandbox.run("print(6 * 7)")
    outcome.output, outcome.error, outcome.ended, outcome.layers

``confine.py`` says what each layer takes away. Where the kernel closes files, network and processes
(Landlock and seccomp, Linux 5.13 and later), code runs; elsewhere it is refused, for limits alone are no
boundary. The parent reads at most ``output`` bytes, waits at most ``seconds`` and kills with SIGKILL.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cutaway.bounds import Bounded, Count, Positive
from cutaway.errors import UserError

LAYERS = ("namespaces", "limits", "landlock", "seccomp")
REQUIRED = ("limits", "landlock", "seccomp")
CONFINE = Path(__file__).with_name("confine.py")
Ended = Literal["finished", "failed", "out of time", "too much output", "killed"]

START_SECONDS = 30.0  # for Python to start and confine itself


@dataclass(frozen=True)
class Bounds(Bounded):
    """What one run may take: wall-clock ``seconds``, bytes of address space, of files and of output."""

    seconds: Positive = 5.0
    memory: Count = 512 << 20
    disk: Count = 16 << 20
    output: Count = 64 << 10


@dataclass(frozen=True)
class Outcome:
    """What came of a run; ``layers`` held while it ran, ``missing`` says why others did not."""

    output: str
    error: str
    ended: Ended
    layers: tuple[str, ...]
    missing: dict[str, str]


def run(code: str, bounds: Bounds | None = None) -> Outcome:
    """Run Python code. Raises UserError where the kernel gives no boundary."""
    bounds = bounds or Bounds()
    if not sys.platform.startswith("linux"):
        raise UserError(
            "sandboxed Python needs Linux's Landlock and seccomp, which this system has not: leave out the "
            "python tool"
        )
    with tempfile.TemporaryDirectory(prefix="cutaway-sandbox-") as folder:
        reading, writing = os.pipe()
        settings = {
            "folder": folder,
            "report": writing,
            "layers": LAYERS,
            "required": REQUIRED,
            "memory": bounds.memory,
            "seconds": int(bounds.seconds) + 1,
            "file_size": bounds.disk,
            "disk": bounds.disk,
        }
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(CONFINE), json.dumps(settings)],
            env={"PYTHONIOENCODING": "utf-8", "LC_ALL": "C.UTF-8"},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[writing],
            start_new_session=True,
        )
        os.close(writing)
        try:
            texts, ended = _watched(process, reading, code, bounds)
        finally:
            _kill(process)
        with os.fdopen(reading, "rb") as report:
            found = report.read(1 << 16)
    layers = json.loads(found) if found else {"holding": [], "missing": {}}
    holding, missing = tuple(layers["holding"]), layers["missing"]
    if not set(REQUIRED) <= set(holding):
        why = "; ".join(f"{name}: {reason}" for name, reason in missing.items()) or "it did not start"
        raise UserError(f"sandboxed Python is refused, for the kernel gives no boundary ({why})")
    output, error = (text.decode("utf-8", "replace") for text in texts)
    return Outcome(output, error, ended, holding, missing)


def _watched(
    process: subprocess.Popen[bytes], report: int, code: str, bounds: Bounds
) -> tuple[list[bytes], Ended]:
    """Both streams as far as they were read, and how it ended. The code's time begins with the report of the
    layers: on a busy machine Python alone may take seconds to start.
    """
    assert process.stdin
    assert process.stdout
    assert process.stderr
    texts = [b"", b""]
    end = time.monotonic() + START_SECONDS
    waiting = memoryview(code.encode("utf-8", "surrogateescape"))
    with selectors.DefaultSelector() as ready:
        os.set_blocking(process.stdin.fileno(), False)
        ready.register(process.stdin, selectors.EVENT_WRITE)
        for n, stream in enumerate((process.stdout, process.stderr)):
            ready.register(stream, selectors.EVENT_READ, n)
        ready.register(report, selectors.EVENT_READ)
        while ready.get_map():
            left = end - time.monotonic()
            if left <= 0:
                return texts, "out of time"
            for key, _ in ready.select(left):
                if key.fileobj == report:  # which is read when all is over
                    ready.unregister(report)
                    end = time.monotonic() + bounds.seconds
                    continue
                if key.fileobj is process.stdin:
                    try:
                        waiting = waiting[os.write(key.fd, waiting[: 1 << 16]) :]
                    except BrokenPipeError:
                        waiting = waiting[:0]
                    if not waiting:
                        ready.unregister(process.stdin)
                        process.stdin.close()
                    continue
                data = os.read(key.fd, 1 << 14)
                if not data:
                    ready.unregister(key.fileobj)
                texts[key.data] += data
                if sum(map(len, texts)) > bounds.output:
                    return [text[: bounds.output] for text in texts], "too much output"
    try:
        code_of = process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return texts, "out of time"
    return texts, "finished" if code_of == 0 else "killed" if code_of < 0 else "failed"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that belong to its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None and not stream.closed:
            stream.close()
