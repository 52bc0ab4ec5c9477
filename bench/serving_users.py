"""Many users at once, by locust, beside llama.cpp's server: the same file, threads and users, in turns.

    python bench/serving_users.py --locust PATH --llama-server PATH [--users 64] [--rounds 2] [--seconds 90]

Each user (bench/locustfile.py) streams one completion after the other: prompts of about 60 ids that begin
differently, 32 tokens, past the end token. Both servers have as many places as there are users
(--max-sequences, -np). A round is one server, started anew; they take turns. Printed for each: tokens a
second of complete answers, the first token's time that users saw (50th and 99th percentile), answers, and
failures: an answer that is no 200, breaks off or has another number of tokens. Beside them is the load of
the machine, which others may use; a ratio in turns is less moved by it than a figure. locust has its own
environment: pip install locust."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from cutaway import native, store
from scripts.lib.serving import answering

TOKENS = 32


def percentile(stats: dict, fraction: float) -> float:
    """Of the response times that locust has counted, in milliseconds."""
    seen, wanted = 0, fraction * stats["num_requests"]
    for milliseconds, times in sorted((float(ms), times) for ms, times in stats["response_times"].items()):
        seen += times
        if seen >= wanted:
            return milliseconds
    return float("nan")


def load(locust: str, port: int, users: int, seconds: int) -> dict[str, float]:
    """The figures of so many users for so long."""
    command = [locust, "-f", str(Path(__file__).parent / "locustfile.py"), "--headless", "--json"]
    command += ["--host", f"http://127.0.0.1:{port}", "-u", str(users), "-r", str(users), "-t", f"{seconds}s"]
    command += ["--stop-timeout", "600", "--exit-code-on-error", "0", "--loglevel", "ERROR"]
    environment = os.environ | {"CUTAWAY_BENCH_TOKENS": str(TOKENS)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    try:
        named = {one["name"]: one for one in json.loads(done.stdout)}
        answers, firsts = named["answer"], named["first token"]
    except (ValueError, KeyError):
        raise SystemExit(f"locust reported nothing: {done.stdout[-500:]} {done.stderr[-500:]}") from None
    lasted = answers["last_request_timestamp"] - named["sent"]["start_time"]
    whole = answers["num_requests"] - answers["num_failures"]
    return {
        "tokens/s": whole * TOKENS / lasted,
        "first token p50, s": percentile(firsts, 0.5) / 1000,
        "first token p99, s": percentile(firsts, 0.99) / 1000,
        "answers": answers["num_requests"],
        "failures": answers["num_failures"],
        "load": os.getloadavg()[0],
    }


def main() -> int:
    """Run it; 1 if a request to Cutaway failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--locust", default="locust")
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=90)
    parser.add_argument("model", nargs="?", type=Path)
    asked = parser.parse_args()
    model = asked.model or store.resolve("smollm2", pull=True)
    threads, users = str(native.threads()), str(asked.users)
    commands = {
        "cutaway": [sys.executable, "-m", "cutaway", "serve", str(model), "--max-sequences", users],
        "llama.cpp": [asked.llama_server, "-m", str(model), "-t", threads, "-np", users],
    }
    commands["cutaway"] += ["--threads", threads, "--log-level", "warning"]
    commands["llama.cpp"] += ["-c", str(asked.users * 512)]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for n in range(asked.rounds):
        for name, command in commands.items():
            with answering(command) as (port, _):
                figures = load(asked.locust, port, asked.users, asked.seconds)
            found[name].append(figures)
            shown = ", ".join(f"{what} {value:.2f}" for what, value in figures.items())
            print(f"round {n + 1}, {name}: {shown}", flush=True)
    print(f"{model.name}, {native.isa()}, {threads} threads, {users} users")
    for ours, theirs in zip(*found.values(), strict=True):
        speed = ours["tokens/s"] / theirs["tokens/s"]
        first = theirs["first token p50, s"] / ours["first token p50, s"]
        print(f"cutaway has {speed:.2f}x the tokens a second, and the first token {first:.2f}x as soon")
    return int(any(one["failures"] for one in found["cutaway"]))


if __name__ == "__main__":
    sys.exit(main())
