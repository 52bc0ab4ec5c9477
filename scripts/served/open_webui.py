"""open-webui in front of `cutaway serve`, by its OpenAI and by its Ollama connection: the model in its list,
and a chat answered through it, streamed and whole.

    python -m venv /tmp/webui && /tmp/webui/bin/pip install open-webui
    python -m scripts.served.open_webui /tmp/webui/bin/open-webui

It keeps its data in a folder that is deleted and fetches nothing (OFFLINE_MODE). Exit code 1 if the model is
not listed, or an answer is another than the server's own. Takes two minutes, most of it open-webui's starts.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from scripts.lib.serving import free_port, served

ASKED = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Name three colours."}],
    "max_tokens": 24,
    "temperature": 0,
}
STARTS_IN = 300  # seconds


# What open-webui hands on to an Ollama of a request: not its temperature, but all of `options`.
MORE: dict[str, dict[str, Any]] = {"OpenAI": {}, "Ollama": {"options": {"temperature": 0}}}


def connections(url: str) -> dict[str, dict[str, str]]:
    """Of each of open-webui's connections its settings for a server."""
    return {
        "OpenAI": {
            "OPENAI_API_BASE_URL": f"{url}/v1",
            "OPENAI_API_KEY": "none",
            "ENABLE_OLLAMA_API": "false",
        },
        "Ollama": {"OLLAMA_BASE_URL": url, "ENABLE_OPENAI_API": "false"},
    }


@contextmanager
def webui(command: str, connection: dict[str, str]) -> Iterator[str]:
    """The address of an open-webui with one connection."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        settings = connection | {
            "DATA_DIR": folder,
            "WEBUI_AUTH": "false",
            "OFFLINE_MODE": "true",
            "RAG_EMBEDDING_ENGINE": "openai",
        }
        process = subprocess.Popen(
            [command, "serve", "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,  # where it writes its secret key
            env=os.environ | settings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield from _when_up(f"http://127.0.0.1:{port}", process)
        finally:
            process.terminate()
            process.wait(60)


def _when_up(url: str, process: subprocess.Popen) -> Iterator[str]:
    until = time.monotonic() + STARTS_IN
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SystemExit(f"open-webui ended with {process.returncode}")
        try:
            if ask(url, "GET", "/health")[0] == 200:
                yield url
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"open-webui does not answer after {STARTS_IN} seconds")


def ask(url: str, method: str, path: str, body: Any = None, token: str = "") -> tuple[int, str]:
    """The status and the text of an answer."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def content(text: str) -> str:
    """What a chat's answer says, whole or in the events of a stream."""
    if not text.startswith("data:"):
        return json.loads(text)["choices"][0]["message"]["content"]
    events = (line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:"))
    chunks = (json.loads(event) for event in events if event != "[DONE]")
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def models_and_answers(front: str, asked: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The models that an open-webui lists, and what is answered through it, whole and streamed."""
    user = {"email": "admin@localhost", "password": "admin"}  # whom it makes where there is no login
    token = json.loads(ask(front, "POST", "/api/v1/auths/signin", user)[1])["token"]
    models = [one["id"] for one in json.loads(ask(front, "GET", "/api/models", token=token)[1])["data"]]
    name = next((one for one in models if one.startswith(asked["model"])), asked["model"])
    answers = [
        content(
            ask(front, "POST", "/api/chat/completions", asked | {"model": name, "stream": stream}, token)[1]
        )
        for stream in (False, True)
    ]
    return models, answers


def main() -> int:
    """Prints what each connection lists and answers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", help="open-webui's own, in the environment that it is installed in")
    options, wrong = parser.parse_args(), False
    with served() as url:
        own = content(ask(url, "POST", "/v1/chat/completions", ASKED)[1])
        print(f"the server itself: {own!r}")
        for name, connection in connections(url).items():
            with webui(options.command, connection) as front:
                models, answers = models_and_answers(front, ASKED | MORE[name])
            print(f"{name}: lists {', '.join(models)}; whole and streamed: {answers[0]!r}, {answers[1]!r}")
            wrong = wrong or not any(one.startswith("smollm2") for one in models) or answers != [own, own]
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
