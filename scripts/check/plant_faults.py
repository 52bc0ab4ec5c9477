"""Plants listed faults one at a time in a copy of the package, and sees whether the tests catch each.

A list is a file of ``planted/``: files, the tests that judge them, and of each fault the text that it
replaces and what it puts there, as a hurried editor might. The third text of a fault, where it has one, says
why the program means the same with it; such a fault is not planted.

    python -m scripts.check.plant_faults security                   # 15 minutes on one core
    python -m scripts.check.plant_faults security --only dp_sgd     # those whose file or texts have this
    python -m scripts.check.plant_faults sweeps                     # patching and its sweeps

Leaves with 1 if a fault survives, or if the text that it replaces is not once in the file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from scripts.lib.planting import ROOT, copied, enter, logged

LISTS = Path(__file__).with_name("planted")
IGNORED = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # of what was imported before
SECONDS = 600  # after so long a fault counts as caught: the program hangs


@dataclass(frozen=True)
class Planted:
    """A fault of a list. Of its tests those that -k ``first`` chooses meet it before the others.

    ``reason`` says why it changes nothing, if it does not.
    """

    path: str
    tests: tuple[str, ...]
    first: str
    before: str
    after: str
    reason: str = ""

    @property
    def title(self) -> str:
        """The file and the two texts on one line."""
        before, after = (" ".join(text.split()) for text in (self.before, self.after))
        return f"{self.path}: {before[:60]} -> {after[:60] or '(nothing)'}"

    @property
    def key(self) -> str:
        """Which fault it is, of all lists."""
        return "\0".join((self.path, self.before, self.after))

    @property
    def source(self) -> str:
        """The whole file with the fault in it."""
        return (ROOT / self.path).read_text("utf-8").replace(self.before, self.after)

    @property
    def stale(self) -> bool:
        """Whether the text that it replaces is not once in the file."""
        return (ROOT / self.path).read_text("utf-8").count(self.before) != 1


def listed(name: str) -> tuple[list[str], list[Planted]]:
    """The modules that a list has imported before its faults are planted, none in them, and the faults."""
    found = tomllib.loads((LISTS / f"{name}.toml").read_text("utf-8"))
    faults = [
        Planted(of["path"], tuple(of["tests"]), of.get("first", ""), *texts)
        for of in found["file"]
        for texts in of["faults"]
    ]
    return found["warm"], faults


def main() -> int:
    """Judges the faults that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("list", choices=sorted(path.stem for path in LISTS.glob("*.toml")))
    parser.add_argument("--only", default="", help="faults whose file and texts this expression finds")
    parser.add_argument("--sample", type=int, help="so many of them, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", type=Path, help="verdicts of earlier runs: what was caught is left out")
    asked = parser.parse_args()
    warm, faults = listed(asked.list)
    faults = [fault for fault in faults if re.search(asked.only, fault.title)]
    if asked.sample is not None:
        faults = random.Random(asked.seed).sample(faults, min(asked.sample, len(faults)))
    stale = [fault for fault in faults if fault.stale]
    for fault in stale:
        print(f"stale     {fault.title}")
    equal = [fault for fault in faults if fault.reason]
    for fault in equal:
        print(f"the same  {fault.title}: {fault.reason}")
    planted = [fault for fault in faults if not fault.reason and not fault.stale]
    with tempfile.TemporaryDirectory() as made:
        survived = _judged(copied(Path(made)), warm, planted, asked.kept and asked.kept.resolve())
    print(f"{len(planted)} planted, {len(planted) - survived} caught, {survived} survived; ", end="")
    print(f"{len(equal)} change nothing, {len(stale)} are stale")
    return int(bool(survived or stale))


def _judged(folder: Path, warm: list[str], faults: list[Planted], kept: Path | None) -> int:
    """How many survive."""
    known: dict[str, bool] = json.loads(kept.read_text()) if kept is not None and kept.is_file() else {}
    enter(folder)
    for name in warm:  # so that a fork need not
        importlib.import_module(name)
    left = [fault for fault in faults if not known.get(fault.key)]
    sound_files: set[str] = set()
    for n, fault in enumerate(left):
        for file in sorted(set(fault.tests) - sound_files):
            if _tested(folder, [file]):
                raise SystemExit(f"{file} fails without a fault:\n{_log(folder)[-3000:]}")
            sound_files.add(file)
            print(f"sound     {file}", flush=True)
        target, started = folder / fault.path, time.monotonic()
        sound = target.read_text("utf-8")
        target.write_text(fault.source, "utf-8")
        os.utime(target, (1e9 + n, 1e9 + n))  # of its own, so that no bytecode of another is taken for it
        code = _tested(folder, [*fault.tests, "-k", fault.first]) if fault.first else 0
        if code in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
            code = _tested(folder, fault.tests)
        target.write_text(sound, "utf-8")
        known[fault.key] = bool(code)
        if kept is not None:
            kept.write_text(json.dumps(known))
        by = re.search(r"^(?:FAILED|ERROR) \S*?([^/\s]+)(?: |$)", _log(folder), re.MULTILINE)
        hung = "it hangs" if code == -signal.SIGALRM else "it crashes"
        how = (f"by {by[1]}" if by and code > 0 else hung) if code else ""
        seconds = time.monotonic() - started
        print(f"{'caught' if code else 'SURVIVED':<10}{fault.title} {how} ({seconds:.0f} s)", flush=True)
    return sum(not known[fault.key] for fault in faults)


def _log(folder: Path) -> str:
    return (folder / "log").read_text(errors="replace")


def _tested(folder: Path, asked: Sequence[str]) -> int:
    """The exit code of these tests in a child of its own."""
    pid = os.fork()
    if not pid:
        _child(folder, asked)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except KeyboardInterrupt:
        os.killpg(pid, signal.SIGKILL)
        raise


def _child(folder: Path, asked: Sequence[str]) -> NoReturn:
    code = 99
    try:
        os.setpgid(0, 0)
        signal.alarm(SECONDS)
        logged(folder)
        quiet = ["-q", "-x", "-p", "no:cacheprovider", "--no-header", "-o", "addopts=", *IGNORED]
        code = int(pytest.main([*quiet, *asked]))
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
