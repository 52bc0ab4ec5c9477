"""Damages every kind of file that a verb opens, thousands of times, and holds the verbs to their law.

Each damaged file is opened as the verb opens it, in a forked process. It must be read or refused in a
sentence: no other exception, no traceback, no crash, no more than 10 seconds of computing and no more than a
gigabyte of memory. What fails is kept beside the report with its seed. ``--kinds`` chooses some of the table.

    python -m scripts.fuzz.files --count 20000 --seed 1          # an hour of one core
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from cutaway.errors import OperationalError, UserError
from scripts.fuzz.mutants import damage

SECONDS, MEMORY = 10, 1 << 30
WAIT = 180  # seconds of the clock, on a machine that is busy
RESIDENT = 1 << 30  # of the process before a mutant is opened, at most
BATCH = 50  # mutants of a process, whose threads keep addresses
ADDRESSES = 8 << 30  # that a process may add: what is resident is bounded by MEMORY


def main() -> int:
    """Try them all; print the table of kinds and outcomes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20_000, help="damaged files, over all kinds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", help="a pattern of kinds, such as '*model*'")
    parser.add_argument("--keep", type=Path, help="a folder for what fails")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    keep = asked.keep or Path(tempfile.mkdtemp(prefix="mutants-"))
    os.environ["CUTAWAY_KEEP"] = str(keep)
    with tempfile.TemporaryDirectory() as work:
        home = Path(work)
        os.environ |= {
            "CUTAWAY_HOME": str(home / "cache"),
            "CUTAWAY_MUTANTS": str(home),
            "CUTAWAY_OFFLINE": "1",
        }
        from scripts.fuzz.mutants import kinds

        kinds.small(home)
        kinds.lm()
        chosen = [name for name in kinds.KINDS if fnmatch.fnmatch(name, asked.kinds or "*")]
        total: dict[str, Counter[str]] = {}
        for name in chosen:
            one = kinds.KINDS[name]
            sound = home / "sound" / name
            sound.mkdir(parents=True)
            one.make(sound)
            check_sound(one, sound, home / "work")
            total[name] = tried(one, sound, home / "work", asked.seed, asked.count // len(chosen), keep)
            print(f"{name:22} {one.verbs:40} {row(total[name])}", flush=True)
    whole = sum(total.values(), Counter())
    print(f"{'all':63} {row(whole)}")
    failed = sum(n for outcome, n in whole.items() if outcome not in ("read", "refused"))
    print(f"{whole.total():,} mutants, {failed} failures" + (f", kept in {keep}" if failed else ""))
    return min(failed, 100)


def check_sound(one, sound: Path, work: Path) -> None:
    """Undamaged files must be read, every one: else all would be refused for another reason."""
    for name in targets(one, sound):
        for n in range(6):  # of the verbs that open it
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(sound, work)
            (work / ".damaged").write_text(name)
            one.open(work, random.Random(n))


def row(counts: Counter[str]) -> str:
    return "  ".join(f"{outcome} {n:,}" for outcome, n in sorted(counts.items(), key=lambda item: item[0]))


def targets(one, sound: Path) -> list[str]:
    """The files of a kind that are damaged."""
    every = sorted(str(file.relative_to(sound)) for file in sound.rglob("*") if file.is_file())
    found = [name for name in every if any(fnmatch.fnmatch(name, pattern) for pattern in one.damaged)]
    assert found, one.name
    return found


def tried(one, sound: Path, work: Path, seed: int, count: int, keep: Path) -> Counter[str]:
    """What became of so many mutants of a kind, in forked processes."""
    outcomes: Counter[str] = Counter()
    n = 0
    while n < count:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            _child(one, sound, work, seed, range(n, min(n + BATCH, count)), writing)
        os.close(writing)
        n, died = _watched(child, reading, n, outcomes)
        if died:
            outcomes[died] += 1
            _keep(keep, one.name, seed, n, died, work)
            n += 1
    return outcomes


def _watched(child: int, reading: int, n: int, outcomes: Counter[str]) -> tuple[int, str | None]:
    """Follow a child mutant by mutant; the number it reached, and how it ended if not by itself."""
    os.set_blocking(reading, False)
    began, used, killed = time.monotonic(), _seconds(child), None
    text = b""
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        while True:
            try:
                piece = os.read(reading, 1 << 16)
            except BlockingIOError:
                break
            if not piece:
                break
            text += piece
        *lines, text = text.split(b"\n")
        for line in lines:
            outcomes[line.decode()] += 1
            n += 1
            began, used = time.monotonic(), _seconds(child)
        if done:
            os.close(reading)
            if killed:
                return n, killed
            if os.WIFSIGNALED(status):
                return n, f"crash ({signal.Signals(os.WTERMSIG(status)).name})"
            return n, None
        if not killed and (_seconds(child) - used > SECONDS or time.monotonic() - began > WAIT):
            killed = "hang"
        if not killed and not done and _kilobytes("VmRSS", child) << 10 > RESIDENT + 2 * MEMORY:
            killed = "memory"
        if killed:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)


def _seconds(child: int) -> float:
    """Seconds that a process has computed."""
    try:
        words = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _child(one, sound: Path, work: Path, seed: int, numbers: range, writing: int) -> None:
    """Open mutants one after another, telling what became of each."""
    names = targets(one, sound)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + ADDRESSES, pages + ADDRESSES))
    try:
        for n in numbers:
            rng = random.Random(f"{one.name} {seed} {n}")
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(sound, work)
            name = rng.choice(names)
            try:
                (work / name).write_bytes(damage.of_file(name, (sound / name).read_bytes(), rng))
            except (RecursionError, ValueError, OverflowError):  # what no file of this form can hold
                (work / name).write_bytes(damage.of_bytes((sound / name).read_bytes(), rng))
            (work / ".damaged").write_text(name)
            outcome = _opened(one, work, rng)
            if outcome not in ("read", "refused"):
                _keep(Path(os.environ["CUTAWAY_KEEP"]), one.name, seed, n, outcome, work)
            os.write(writing, outcome.splitlines()[0].encode() + b"\n")
    finally:
        os._exit(0)


def _opened(one, work: Path, rng: random.Random) -> str:
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident size is counted from here
    before = _kilobytes("VmRSS")
    try:
        one.open(work, rng)
        outcome = "read"
    except (UserError, OperationalError) as problem:
        outcome = "refused"
        text = str(problem)
        if not text or "\x1b" in text or len(text) > 3000:
            outcome = f"no sentence\n{text!r:.2000}"
    except MemoryError:
        outcome = f"memory\n{traceback.format_exc()}"
    except BaseException as error:
        outcome = f"traceback ({type(error).__name__})\n{traceback.format_exc()}"
    if (_kilobytes("VmHWM") - before) << 10 > MEMORY:
        outcome = f"memory\n{_kilobytes('VmHWM') - before} kB"
    return outcome


def _kilobytes(name: str, process: int | str = "self") -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def _keep(keep: Path, name: str, seed: int, n: int, outcome: str, work: Path) -> None:
    """Put a failing mutant, and what was raised, beside the report."""
    target = keep / f"{name.replace(' ', '-')}-{seed}-{n}".replace("'", "")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(work, target)
    (target / "why.txt").write_text(outcome)


if __name__ == "__main__":
    sys.exit(main())
