"""A server as a process of its own, for the scripts and benchmarks that ask it."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO


def free_port() -> int:
    """A port of this machine that no program listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def served(*options: str) -> Iterator[str]:
    """The address of a server on a free port, stopped at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cutaway", "serve", "smollm2", "--port", "0", *options],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"CUTAWAY_API_KEY": ""},
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"serves smollm2 on (http://\S+)", line):
                yield found[1]
                break
        else:
            raise RuntimeError("the server did not start")
    finally:
        process.terminate()
        process.communicate(timeout=60)


@contextmanager
def answering(
    command: list[str], log: int | IO = subprocess.DEVNULL
) -> Iterator[tuple[int, subprocess.Popen]]:
    """Any server that takes --port and has /health, once it answers: its port, and its process, which is
    stopped at the end of the block. ``log`` takes its standard error.
    """
    port = free_port()
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=log)
    try:
        _until_healthy(port, process)
        yield port, process
    finally:
        process.terminate()
        process.wait(60)


def _until_healthy(port: int, process: subprocess.Popen) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("the server does not answer")
