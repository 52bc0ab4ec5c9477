"""Tokens/s by llama-bench, of llama.cpp or of ik_llama.cpp, for the scripts that run it beside ours."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path


def speeds(program: Path, model: Path, threads: int, *arguments: object) -> list[float]:
    """One repetition of each test that the arguments ask for. CalledProcessError where it fails."""
    command = [program, "-m", model, "-t", threads, "-r", 1, "-o", "json", *arguments]
    run = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    return [row["avg_ts"] for row in json.loads(run.stdout)]


def speed(program: Path, model: Path, threads: int, *arguments: object) -> float:
    """Of one test."""
    return speeds(program, model, threads, *arguments)[0]


def speed_of_ik(program: Path, model: Path, threads: int, *arguments: object) -> float:
    """Of one test by ik_llama.cpp: the better with weights as they are in the file, or repacked."""
    return max(speed(program, model, threads, *arguments, "-rtr", repacked) for repacked in (0, 1))
