"""Every family that is written as GGUF, each key of its config moved by several values, opened by llama.cpp.

Each tiny case of ``tests/parity`` is written with random weights and one key of its config.json moved.
llama.cpp must give our log-probabilities, or the writing must be refused. The script prints what is wrong,
what llama.cpp does not open or ends the process at, and counts by family. It ends with 1 if there is any.

    python -m scripts.check.perturbed_gguf                               # about 15 minutes of one core
    python -m scripts.check.perturbed_gguf --family llama --seed 7       # other weights
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from cutaway.weights import family_registry
from tests.parity import perturbed
from tests.parity.perturbed import Case, Outcome

WAIT = 60  # seconds for one file
GOOD = ("agrees", "refused", "refused by the reading")


def main() -> int:
    """Try them all; print what is wrong, and counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", action="append", help="one of them, or several by repeating it")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--every", action="store_true", help="print all outcomes, refusals too")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["GGML_NO_BACKTRACE"] = "1"
    for name in family_registry.names():  # before any process is forked
        family_registry.get(name)
    bases = perturbed.bases(every=True)
    if unknown := set(asked.family or ()) - bases.keys():
        parser.error(f"no family {', '.join(sorted(unknown))}: there are {', '.join(sorted(bases))}")
    whole: Counter[str] = Counter()
    tried_families = 0
    for family in sorted(asked.family or bases):
        start, counts = time.monotonic(), Counter()
        with tempfile.TemporaryDirectory() as work:
            if not family_registry.get(family).gguf and not perturbed.writes(family, Path(work)):
                continue
        cases, unread = perturbed.distinct(bases[family])
        counts["refused by the reading"] = unread
        for case, outcome in tried(cases, asked.seed):
            counts[outcome.what] += 1
            if asked.every or outcome.what not in GOOD:
                print(f"  {outcome.what:9} {case.name:80} {outcome.detail}", flush=True)
        print(f"{family:20} {perturbed.shown(counts)} ({time.monotonic() - start:.0f} s)", flush=True)
        whole += counts
        tried_families += 1
    print(f"{whole.total():,} configs of {tried_families} families: {perturbed.shown(whole)}")
    return int(bool(whole.keys() - set(GOOD)))


def tried(cases: Sequence[Case], seed: int) -> Iterator[tuple[Case, Outcome]]:
    """The outcome of each, in a process that llama.cpp may end."""
    forked, at = multiprocessing.get_context("fork"), 0
    while at < len(cases):
        here, there = forked.Pipe()
        worker = forked.Process(target=_work, args=(there, cases[at:], seed))
        worker.start()
        there.close()
        try:
            while at < len(cases):
                outcome = here.recv() if here.poll(WAIT) else Outcome("hangs")
                yield cases[at], outcome
                at += 1
                if outcome.what == "hangs":
                    break
        except EOFError:
            worker.join()
            yield cases[at], Outcome("aborts", f"exit code {worker.exitcode}")
            at += 1
        worker.kill()
        worker.join()


def _work(out: Connection, cases: Sequence[Case], seed: int) -> None:
    silent = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # llama.cpp's last words, and a debugger's where it ends the process
        os.dup2(silent, descriptor)
    with tempfile.TemporaryDirectory() as work:
        for case in cases:
            try:
                outcome = perturbed.outcome(case, Path(work), seed)
            except Exception:
                outcome = Outcome("raises", traceback.format_exc())
            out.send(outcome)


if __name__ == "__main__":
    sys.exit(main())
