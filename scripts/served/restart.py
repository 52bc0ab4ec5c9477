"""A server that starts again: its first token after a long prompt, read anew and loaded from disk.

    python -m scripts.served.restart --rounds 5                         # SmolLM2, three minutes of two cores
    python -m scripts.served.restart --models smollm2 1b.Q4_K_M.gguf    # bench/shapes.py makes the second

Each round starts a server, sends the prompt twice and stops the server: the first answer has its pages from
disk, the second from memory. Before the rounds one server reads the prompt without them. All answers must
have the same log-probabilities, to the bit. Seconds are those of the whole request for one token.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx

from scripts.lib.serving import answering

LINE = "The harbour office keeps a list of every ship, its cargo, its captain and the day it is expected. "
KEY = "0123456789abcdef" * 4


def asked(port: int, ids: list[int]) -> tuple[float, Any, int]:
    """Seconds of a request for one token, its log-probabilities, and how many tokens were cached."""
    body = {"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": 5}
    began = time.perf_counter()
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=600).json()
    seconds = time.perf_counter() - began
    return (
        seconds,
        answer["choices"][0]["logprobs"],
        answer["usage"]["prompt_tokens_details"]["cached_tokens"],
    )


def measured(model: str, tokens: int, rounds: int, folder: Path, encrypted: bool) -> list[str]:
    """A row of the table: of one model, with plain or encrypted pages."""
    import cutaway

    text = cutaway.load(model).tokenizer.encode(LINE * (tokens // 16))
    ids = [int(id) for id in text[:tokens]]
    assert len(ids) == tokens
    os.environ["CUTAWAY_PREFIX_CACHE_KEY"] = KEY if encrypted else ""
    command = [sys.executable, "-m", "cutaway", "serve", model, "--log-level", "warning"]
    command += ["--prefix-cache", str(folder), "--context", "8192"]
    with answering(command) as (port, _):
        read, expected, _ = asked(port, ids)
    loaded, memory = [], []
    for _ in range(rounds):
        with answering(command) as (port, _):
            for into in (loaded, memory):
                seconds, found, cached = asked(port, ids)
                assert found == expected, "the log-probabilities are others"
                assert cached >= tokens - 512, f"{cached} tokens were cached"
                into.append(seconds)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    ways = [f"{read:.2f} s", f"{statistics.median(loaded):.3f} s", f"{min(loaded):.3f} s"]
    ways += [f"{statistics.median(memory):.3f} s", f"{size / 1e6:.0f} MB"]
    return [Path(model).stem, "encrypted" if encrypted else "plain", *ways]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["smollm2"])
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| model | pages | read | from disk, median | from disk, best | from memory | on disk |")
    print("|---|---|---|---|---|---|---|")
    for model in options.models:
        for encrypted in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                row = measured(model, options.tokens, options.rounds, Path(folder) / "prefixes", encrypted)
            print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
