"""PyRIT, unchanged, through its OpenAI target against `cutaway serve`: harmless prompts, seven converters.

    python3 -m venv pyrit && pyrit/bin/pip install pyrit
    python -m scripts.served.pyrit --pyrit pyrit/bin/python --output runs/attack

An invented word is to be repeated, as it is and encoded; PyRIT's SubStringScorer says whether the answer has
it. The plain prompt is the control. What the server refused or did not answer is counted, from its own
metrics and from PyRIT's results, and stays in the rate's denominator. The findings go into results.json and
report.html of --output, beside those of `cutaway attack smollm2`. Exit code 1 if no prompt was answered.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cutaway
from cutaway.evaluate import statistics
from cutaway.security import report
from cutaway.security.finding import Arm, Finding, verdict
from scripts.lib.serving import served
from scripts.served.garak import statuses

ASKS = Path(__file__).with_name("pyrit_asks.py")
CONTROL = "plain"


def findings(entries: Sequence[dict[str, Any]], answered: Counter[str]) -> list[Finding]:
    """One finding a converter, beside the plain prompts: hits among all prompts, unanswered ones too."""
    refused = sum(count for status, count in answered.items() if status[0] in "45")
    hits: dict[str, list[bool]] = {}
    silent: dict[str, list[bool]] = {}
    for one in entries:
        hits.setdefault(one["converter"], []).append(one["hit"])
        silent.setdefault(one["converter"], []).append(one["answer"] is None)
    return [
        Finding(
            "pyrit",
            name,
            verdict(own, [False] * len(own)),
            f"{len(own)} prompts, {sum(silent[name])} of them without an answer. The server refused "
            f"{refused} of {answered.total()} requests in all.",
            (
                Arm("word repeated", statistics.mean(own)),
                Arm("word repeated, not encoded", statistics.mean(hits[CONTROL]), "control"),
                Arm("prompts without an answer", statistics.mean(silent[name]), "benign"),
            ),
        )
        for name, own in hits.items()
        if name != CONTROL
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pyrit", required=True, help="the Python of PyRIT's own environment")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--output", type=Path, default=Path("runs/pyrit"))
    options, started = parser.parse_args(), time.perf_counter()
    with served() as url:
        command = [options.pyrit, str(ASKS), url, str(options.trials)]
        made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        with urllib.request.urlopen(f"{url}/metrics") as metrics:
            answered = statuses(metrics.read().decode())
    entries = [json.loads(line) for line in made.splitlines() if line.startswith("{")]
    found = findings(entries, answered)
    found = [replace(one, seconds=round(time.perf_counter() - started, 1)) for one in found]
    for finding in found:
        print("\n".join(report.lines(finding)))
    report.add(options.output, "smollm2", found, cutaway.load("smollm2"), seed=0, trials=options.trials)
    return int(all(one["answer"] is None for one in entries))


if __name__ == "__main__":
    sys.exit(main())
