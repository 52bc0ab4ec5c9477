"""A small pipeline is killed with SIGKILL in each of its stages, and ends with the bits of one that was not.

    python -m scripts.check.pipeline_kills                 # eight minutes on one quiet core
    python -m scripts.check.pipeline_kills --kills 40      # at more moments
    python -m scripts.check.pipeline_kills --full-disk     # also with a disk that fills up (needs root)

Kills fall at moments that a seed draws, one in each stage at least. What is compared is what a stage leaves
for others: weights, tokens and the packed file.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cutaway.pipeline import folder
from cutaway.pipeline.config import parsed, written
from cutaway.pipeline.folder import DONE

SMALL: dict[str, Any] = {"blocks": [{"times": 1, "mlp": {"hidden": 64}}], "width": 32, "context": 128}
SMALL["blocks"][0]["attention"] = {
    "kind": "mqa", "heads": 2, "key_size": 16, "position": {"kind": "rope", "size": 16},
}  # fmt: skip
TRAINED = {
    "compile": "never", "threads": 1, "micro_batch_size": 2, "batch_size": 2,
    "intervals": {"evaluate": 3, "save": 1, "sample": 0, "evaluate_sequences": 4},
}  # fmt: skip
TUNED = {**TRAINED, "adapter": None, "schedule": {"kind": "cosine", "warmup_steps": 1}}
DATA = {"context": 128, "validation_fraction": 0.1}
TASK = {
    "task": "programs:refusals",
    "prompts": 8,
    "test": 2,
    "max_tokens": 8,
    "context": 128,
    "group_size": 2,
}
STAGES: dict[str, Any] = {
    "data": {
        "verb": "data",
        "config": {"texts": ["./text"], "programs": {"refusals": 24, "arithmetic": 8}, "pairs": 8,
                   "held_out": 8, "pieces": 8},
    },
    "tokenizer": {
        "verb": "tokenizer train",
        "config": {
            "files": ["data/tokenizer.txt"], "size": 320, "pattern": "gpt2", "end_of_text": "<|end|>",
            "special": ["<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<tool_call>", "</tool_call>"],
            "chat_template": "data/chat_template.jinja",
        },
    },
    "pretrain": {
        "verb": "pretrain",
        "config": {**TRAINED, "model": SMALL, "steps": 6,
                   "data": {"sources": [{"path": "data/text"}], "tokenizer": "tokenizer"}},
    },
    "midtrain": {
        "verb": "finetune",
        "config": {**TUNED, "base": "pretrain", "steps": 6, "data": {"path": "data/mix.jsonl", **DATA}},
    },
    "sft": {
        "verb": "finetune",
        "config": {**TUNED, "base": "midtrain", "steps": 6, "data": {"path": "data/sft.jsonl", **DATA}},
    },
    "preferences": {
        "verb": "finetune",
        "config": {**TUNED, "base": "sft", "steps": 4, "data": {"path": "data/pairs.jsonl", **DATA},
                   "objective": {"kind": "dpo"}},
    },
    "rewards": {
        "verb": "finetune",
        "config": {**TUNED, "base": "preferences", "steps": 3, "data": TASK, "objective": {"kind": "grpo"}},
    },
    "ask": {
        "verb": "eval",
        "config": {"model": "rewards", "tasks": "programs:refusals,text:data/held-out/text", "limit": 8,
                   "cache": False},
    },
    "pack": {"verb": "quantize", "config": {"source": "rewards", "type": "Q8_0", "measure": False}},
    "attack": {"verb": "attack", "config": {"model": "rewards", "probe": "forgery", "trials": 1}},
}  # fmt: skip
COMPARED = ("data", "tokenizer", "pretrain", "midtrain", "sft", "preferences", "rewards", "pack")


def main() -> int:
    """Run the pipeline whole, then killed; 1 where they differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=len(STAGES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full-disk", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        (home / "text").mkdir()
        for n in range(60):
            (home / "text" / f"{n:02}.txt").write_text(f"The {n} birds sat on a wall and sang of rain. " * 12)
        pipeline = parsed({"about": "every stage, small", "stages": STAGES, "threads": 1}, "small", home)
        (home / "small.yaml").write_text(written(pipeline))
        whole, killed = home / "whole", home / "killed"
        begun = time.monotonic()
        if ran := run(home, whole):
            print(f"the pipeline failed with the code {ran}")
            return 1
        seconds = {name: folder.Folder(whole, pipeline).took(name) for name in pipeline.names}
        each = ", ".join(f"{name} {took:.0f}" for name, took in seconds.items())
        print(f"whole: {time.monotonic() - begun:.0f} s: {each}")
        kill(home, killed, pipeline.names, seconds, given.kills, random.Random(given.seed))
        wrong = compare(folder.Folder(whole, pipeline), folder.Folder(killed, pipeline))
        if given.full_disk:
            wrong += full_disk(home, folder.Folder(whole, pipeline))
    return 1 if wrong else 0


def command(home: Path, place: Path) -> list[str]:
    """The command line that begins or continues the run."""
    return [sys.executable, "-m", "cutaway", "pipeline", str(home / "small.yaml"), "--output", str(place)]


def run(home: Path, place: Path) -> int:
    """The run to its end."""
    return subprocess.run(command(home, place), check=False, stdout=subprocess.DEVNULL).returncode


def kill(
    home: Path, place: Path, names: list[str], seconds: dict[str, float], kills: int, draw: random.Random
) -> None:
    """Begin the run again and again, killing it in each stage; then let it end."""
    wanted = list(names) + [draw.choice(names) for _ in range(kills - len(names))]
    for at in sorted(wanted, key=names.index):
        process = subprocess.Popen(command(home, place), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        log = place / "logs" / f"{at}.log"
        size = log.stat().st_size if log.is_file() else 0
        while process.poll() is None and not (log.is_file() and log.stat().st_size > size):
            time.sleep(0.02)
        time.sleep(draw.random() * seconds.get(at, 1.0))
        where = next((name for name in names if not (place / name / DONE).is_file()), "the card")
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            print(f"killed in {where}", flush=True)
        process.wait()
    print(f"the rest ends with the code {run(home, place)}")


def compare(whole: folder.Folder, killed: folder.Folder) -> int:
    """How many stages left other bits."""
    wrong = 0
    for name in COMPARED:
        same = whole.left(name) == killed.left(name)
        wrong += not same
        print(f"{'same' if same else 'DIFFERS':<8}{name}")
    return wrong


def full_disk(home: Path, whole: folder.Folder) -> int:
    """The run on a disk of 2 MB that fills, then on one with room: how many stages left other bits."""
    disk = home / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=True)
    try:
        first = subprocess.run(command(home, disk / "run"), check=False, capture_output=True, text=True)
        print(f"on a full disk: code {first.returncode}: {first.stderr.splitlines()[-1]}")
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        print(f"with room: code {run(home, disk / 'run')}")
        wrong = compare(whole, folder.Folder(disk / "run", whole.pipeline))
        return wrong + (first.returncode != 1)
    finally:
        shutil.rmtree(disk / "run", ignore_errors=True)
        subprocess.run(["umount", str(disk)], check=False)


if __name__ == "__main__":
    sys.exit(main())
