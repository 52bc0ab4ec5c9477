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
from contextlib import closing, contextmanager, suppress
from pathlib import Path
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
                until_healthy(int(found[1].rpartition(":")[2]), process)
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
        until_healthy(port, process)
        yield port, process
    finally:
        process.terminate()
        process.wait(60)


def until_healthy(port: int, process: subprocess.Popen) -> None:
    """Wait until /health is 200; SystemExit if the process ends, or after some three minutes."""
    for _ in range(1800):
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with closing(connection), suppress(OSError):
            connection.request("GET", "/health")
            with connection.getresponse() as answer:
                if answer.status == 200:
                    return
        time.sleep(0.1)
    raise SystemExit("the server does not answer")


@contextmanager
def proxied(program: str, servers: list[str], folder: Path) -> Iterator[str]:
    """The address of nginx or Caddy before servers (HOST:PORT), with the configuration of deploy/."""
    port = free_port()
    config, deploy = folder / f"{program}.conf", Path(__file__).parents[2] / "deploy"
    if program == "nginx":
        text = (deploy / "nginx.conf").read_text().replace("listen 8080", f"listen 127.0.0.1:{port}")
        line = re.search(r" *server cutaway:8000 (.*;).*\n", text)
        assert line is not None
        text = text.replace(line[0], "".join(f"server {one} {line[1]}\n" for one in servers))
        paths = "".join(
            f"{name}_temp_path {folder}/{name};\n"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        head = f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        config.write_text(f"{head}http {{ access_log off;\n{paths}{text}}}")
        command = ["nginx", "-e", f"{folder}/error.log", "-c", str(config)]
    else:
        text = (deploy / "Caddyfile").read_text().replace(":8080", f":{port}")
        config.write_text("{\n\tadmin off\n}\n" + text.replace("cutaway:8000", " ".join(servers)))
        command = ["caddy", "run", "--adapter", "caddyfile", "--config", str(config)]
    home = {"XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder), "HOME": str(folder)}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | home)
    try:
        until_healthy(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
