"""Plants faults in attention and position, one at a time, and sees whether the tests catch each.

The tests run once undisturbed, to learn which lines each of them reaches and how long it takes. Then every
fault is planted in a copy of the package, and the tests that reach its line run against it, the cheap and
various ones first, until one fails. Who survives meets them once more with the shape checks on, which take
two seconds to set up. A process that has torch imported forks for each fault, so that one costs a second.
Verdicts are kept: run it again and only what is new, or survived other tests, is tried.

    python -m scripts.check.mutate_attention --sample 600 --seed 1     # minutes; without --sample every fault
    python -m scripts.check.mutate_attention --sample 600 --seed 1 --only state/paged

A survivor that cannot be caught, because the program means the same with it, is listed by its key with the
reason in docs/results/mutation.md. Leaves with 1 if one survives that is not.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytest

from scripts.lib.faults import Fault, plant
from scripts.lib.planting import ROOT, copied, enter, logged

JUDGED = ("attention", "position", "layers/norm.py", "layers/conv.py", "layers/config.py", "layers/mlp.py")
JUDGED += ("model/decoder.py", "model/block.py", "model/seq2seq.py")
TESTS = ("laws", "definitions", "parity/test_attention_parity.py", "parity/test_linear_parity.py")
TESTS += ("parity/test_layout_parity.py", "parity/test_rope.py", "test_attention_command.py")
REPORT = ROOT / "docs" / "results" / "mutation.md"
FEW = 12  # tests that meet a fault before the files of all others are read
SECONDS = 240  # after so long a fault counts as caught: the program hangs
# Tests in processes of their own, whose lines are not seen: run last, for faults in what they are about.
UNSEEN = {
    "flex.py": "tests/laws/test_flex.py::test_it_computes_what_the_naive_path_does",
    "backends/choice.py": "tests/laws/test_compile.py::test_every_kind_compiles_whole",
    "model/decoder.py": "tests/laws/test_compile.py::test_every_kind_compiles_whole",
}
SLOW = "test_it_learns_to_reverse"  # left out: seconds a fault, and others reach the same lines


class Watch:
    """A pytest plugin: which lines of the package each test reaches, its seconds, and what it imports."""

    def __init__(self, folder: Path) -> None:
        self.folder = f"{folder}/"
        self.judged = tuple(f"{folder}/cutaway/{name}" for name in JUDGED)
        self.tests: dict[str, dict[str, Any]] = {}
        self.failed: list[str] = []
        self.lines: dict[str, set[int]] = defaultdict(set)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.lines = defaultdict(set)
        started = time.process_time()
        sys.settrace(self._called)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            seconds = time.process_time() - started
            lines = {name: sorted(found) for name, found in self.lines.items()}
            self.tests[item.nodeid] = {"seconds": seconds, "lines": lines}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def _called(self, frame: FrameType, event: str, _: Any) -> Any:
        return self._ran if frame.f_code.co_filename.startswith(self.judged) else None

    def _ran(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            self.lines[frame.f_code.co_filename.removeprefix(self.folder)].add(frame.f_lineno)
        return self._ran


class Order:
    """A pytest plugin: these tests alone, in this order; remembers which failed first."""

    def __init__(self, order: list[str]) -> None:
        self.place = {test: n for n, test in enumerate(order)}
        self.failed = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self.place), key=lambda i: self.place[i.nodeid]
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


def _enter(folder: Path, shapes: bool) -> None:
    """A child becomes a group of its own, which can be ended whole, and works and prints in a copy."""
    os.setpgid(0, 0)
    enter(folder, shapes)
    logged(folder)


def _tested(files: Iterable[str], plugin: object) -> int:
    """pytest's exit code."""
    quiet = ["-q", "-x", "-p", "no:cacheprovider", "--no-header", "-o", "addopts=", "-k", f"not {SLOW}"]
    return int(pytest.main([*quiet, *files], plugins=[plugin]))


def _child_records(folder: Path, file: str) -> NoReturn:
    code = 99
    try:
        watch = Watch(folder)
        _enter(folder, shapes=False)
        _forget_models()
        code = _tested([file], watch)
        imported = [
            name for name in sys.modules if name.split(".")[0] not in ("cutaway", "tests", "__main__")
        ]
        (folder / "record").write_text(
            json.dumps({"tests": watch.tests, "failed": watch.failed, "imported": imported})
        )
    finally:
        os._exit(code)


def _forget_models() -> None:
    """A model that is made once and kept is reached by the test that makes it and by those that only read it:
    while lines are recorded, each makes its own.
    """
    kinds = importlib.import_module("tests.laws.mechanisms")
    for name, made in list(vars(kinds).items()):
        if hasattr(made, "cache_clear"):
            setattr(kinds, name, made.__wrapped__)


def _child_judges(folder: Path, order: list[str], shapes: bool) -> NoReturn:
    """The first few tests alone, which catch most; then the others."""
    code = 99
    try:
        # Where the variable is set, the tests' conftest would undo the next line but one.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        sys.dont_write_bytecode = True
        _enter(folder, shapes)
        for some in filter(None, (order[:FEW], order[FEW:])):
            plugin = Order(some)
            code = _tested(dict.fromkeys(map(_file, some)), plugin)
            (folder / "failed").write_text(plugin.failed)
            if code == pytest.ExitCode.NO_TESTS_COLLECTED:  # catches nothing
                code = 0
            if code:
                break
    finally:
        os._exit(code)


def _digests() -> dict[str, str]:
    """Of each file of tests with all that it may lean on: what was learnt of another does not count."""
    common = hashlib.sha256()
    helpers = [path for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith("test_")]
    for path in sorted([*(ROOT / "cutaway").rglob("*.py"), *helpers]):
        common.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    out = {}
    for name in TESTS:
        place = ROOT / "tests" / name
        for path in sorted(place.glob("test_*.py")) if place.is_dir() else [place]:
            whole = common.copy()
            whole.update(path.read_bytes())
            out[str(path.relative_to(ROOT))] = whole.hexdigest()[:16]
    return out


def _recorded(folder: Path, kept: dict[str, Any], file: Path) -> dict[str, Any]:
    """What each test reaches, from a run without faults, written down after each file of tests; its bytecode
    stays in the folder.
    """
    digests, record = _digests(), kept.setdefault("record", {"tests": {}, "imported": [], "digests": {}})
    known = {name for name, digest in record["digests"].items() if digests.get(name) == digest}
    record["tests"] = {test: seen for test, seen in record["tests"].items() if _file(test) in known}
    started = time.monotonic()
    for name in (name for name in digests if name not in known):
        pid = os.fork()
        if not pid:
            _child_records(folder, name)
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) != 0:
            raise SystemExit(f"the tests fail without any fault:\n{(folder / 'log').read_text()[-3000:]}")
        new = json.loads((folder / "record").read_text())
        record["tests"] |= new["tests"]
        record["imported"] = list(dict.fromkeys([*record["imported"], *new["imported"]]))
        record["digests"][name] = digests[name]
        _write(file, kept)
        print(f"{name}: {len(new['tests'])} tests, {time.monotonic() - started:.0f} s", flush=True)
    record["digests"] = digests
    return record


def _file(test: str) -> str:
    return test.split("::")[0]


def _warm(record: dict[str, Any]) -> None:
    """Imports what the tests import, so that a fork need not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in record["imported"]:
            if not name.startswith(("_pytest", "pytest", "py.")):
                with suppress(Exception):
                    importlib.import_module(name)


def _order(fault: Fault, tests: dict[str, dict[str, Any]]) -> list[str]:
    """The tests that reach the fault, one of each function in turn and the quick ones first; where it runs at
    import, those that reach its file, then all.
    """
    lines = range(fault.lines[0], fault.lines[1] + 1)
    if fault.inside:
        reach = [t for t, seen in tests.items() if any(n in lines for n in seen["lines"].get(fault.path, ()))]
    else:
        near = [t for t, seen in tests.items() if fault.path in seen["lines"]]
        reach = near + [t for t in tests if t not in set(near)]
    functions: dict[str, list[str]] = defaultdict(list)
    for test in sorted(reach, key=lambda t: tests[t]["seconds"]):
        functions[test.split("[")[0]].append(test)
    turn = {test: n for same in functions.values() for n, test in enumerate(same)}
    order = sorted(turn, key=lambda t: (turn[t], tests[t]["seconds"]))
    unseen = [test for end, test in UNSEEN.items() if fault.path.endswith(end)]
    return [t for t in order if t not in UNSEEN.values()] + unseen


@dataclass
class Running:
    """A fault that is being judged, in a copy of its own."""

    fault: Fault
    folder: Path
    shapes: bool
    started: float


class Judge:
    """Two or more copies of the package, in each of which one fault at a time is judged."""

    def __init__(self, folders: list[Path], tests: dict[str, dict[str, Any]]) -> None:
        self.free, self.tests = folders, tests
        self.running: dict[int, Running] = {}
        self.count = 0

    def start(self, fault: Fault, shapes: bool = False) -> None:
        folder, order = self.free.pop(), _order(fault, self.tests)
        (folder / "failed").write_text("")
        target = folder / fault.path
        shutil.copy2(target, folder / "kept")
        target.write_text(fault.source)
        self.count += 1  # a time of its own, so that no bytecode of another is taken for this
        os.utime(target, (1e9 + self.count, 1e9 + self.count))
        pid = os.fork()
        if not pid:
            _child_judges(folder, order, shapes)
        self.running[pid] = Running(fault, folder, shapes, time.monotonic())

    def wait(self) -> tuple[Fault, str, str]:
        """The next that is done: the fault, its verdict, and what caught it."""
        while True:
            for pid, one in list(self.running.items()):
                hung = time.monotonic() - one.started > SECONDS
                if hung:
                    os.killpg(pid, signal.SIGKILL)
                done, status = os.waitpid(pid, 0 if hung else os.WNOHANG)
                if done:
                    fault, by = self._over(pid, "hangs" if hung else "", os.waitstatus_to_exitcode(status))
                    if by or one.shapes:
                        return fault, "caught" if by else "survived", by
                    self.start(fault, shapes=True)
            time.sleep(0.02)

    def stop(self) -> None:
        """Interrupted: what is being judged is not."""
        for pid in self.running:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _over(self, pid: int, reason: str, code: int) -> tuple[Fault, str]:
        one = self.running.pop(pid)
        (one.folder / "kept").replace(one.folder / one.fault.path)
        by = reason or (one.folder / "failed").read_text() or ("crashes" if code else "")
        self.free.append(one.folder)
        return one.fault, by


def _faults(only: str) -> list[Fault]:
    out = []
    for name in JUDGED:
        place = ROOT / "cutaway" / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            if only in str(path):
                out += plant(path, ROOT)
    return out


def _sampled(faults: list[Fault], count: int | None, seed: int) -> list[Fault]:
    """So many, drawn by the seed and each fault's key, one at least of every file. The draw of one does not
    depend on the others, so that a change elsewhere leaves the sample as it is.
    """
    drawn = sorted(faults, key=lambda f: hashlib.sha256(f"{seed} {f.key}".encode()).digest())
    if count is None:
        return drawn
    first = list({fault.path: fault for fault in reversed(drawn)}.values())
    keys = {fault.key for fault in first}
    return first + [fault for fault in drawn if fault.key not in keys][: max(count - len(first), 0)]


def _equivalent() -> set[str]:
    """The keys that the report lists, with a reason each."""
    return set(re.findall(r"^\| `([0-9a-f]{10})` \|", REPORT.read_text(), re.M)) if REPORT.exists() else set()


def _judged(faults: list[Fault], kept: dict[str, Any], processes: int, file: Path) -> None:
    """Fills in the verdicts that are missing, and writes them down as they come."""
    with tempfile.TemporaryDirectory() as temporary:
        first = copied(Path(temporary) / "0")
        record = _recorded(first, kept, file)
        verdicts, tests = kept.setdefault("verdicts", {}), record["tests"]
        digest = hashlib.sha256(json.dumps(record["digests"]).encode()).hexdigest()[:16]
        _warm(record)
        folders = [first]
        for n in range(1, processes):
            folders.append(Path(shutil.copytree(first, Path(temporary) / str(n))))
        left = [f for f in faults if _open(verdicts.get(f.key), digest)]
        judge, started, done = Judge(folders, tests), time.monotonic(), 0
        for fault in [f for f in left if not _order(f, tests)]:
            verdicts[fault.key] = {"verdict": "survived", "by": "no test reaches it", "digest": digest}
            left.remove(fault)
        try:
            while left or judge.running:
                while left and judge.free:
                    judge.start(left.pop(0))
                fault, verdict, by = judge.wait()
                done += 1
                verdicts[fault.key] = {"verdict": verdict, "by": by, "digest": digest}
                if verdict == "survived" or done % 10 == 0:
                    _write(file, kept)
                    eta = (time.monotonic() - started) / done * (len(left) + len(judge.running)) / 60
                    note = f"  survived: {_line(fault)}" if verdict == "survived" else ""
                    print(f"{done} judged, {len(left)} left, {eta:.0f} minutes{note}", flush=True)
        finally:
            judge.stop()
            _write(file, kept)


def _open(verdict: dict[str, str] | None, digest: str) -> bool:
    """Whether a fault is still to be judged: caught is caught, survivors meet the tests that are new."""
    return verdict is None or (verdict["verdict"] == "survived" and verdict["digest"] != digest)


def _write(file: Path, kept: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(json.dumps(kept))
    new.replace(file)


def _line(fault: Fault) -> str:
    before, after = fault.before[:90], fault.after[:90]
    return f"{fault.key} {fault.path}:{fault.lines[0]} {fault.kind}: {before}  ->  {after}"


def _report(faults: list[Fault], verdicts: dict[str, dict[str, str]]) -> int:
    """Prints the fraction caught and who survived; how many did that are not known as equivalent."""
    equivalent = _equivalent()
    survived = [f for f in faults if verdicts[f.key]["verdict"] == "survived"]
    open_ = [f for f in survived if f.key not in equivalent]
    for fault in sorted(open_, key=lambda f: (f.path, f.lines)):
        print(f"survived: {_line(fault)}  {verdicts[fault.key]['by']}")
    total, caught, same = len(faults), len(faults) - len(survived), len(survived) - len(open_)
    files = len({fault.path for fault in faults})
    print(f"{total} faults in {files} files: {caught} caught, {same} equivalent, {len(open_)} survived")
    print(
        f"caught of all {caught / total:.1%}, of those that change the program {caught / (total - same):.1%}"
    )
    return len(open_)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=int, help="how many faults to draw; every fault if left out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="only files whose path contains this")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--verdicts", type=Path, default=ROOT / "build" / "mutation.json")
    chosen = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "HF_HUB_OFFLINE": "1"}
    kept = json.loads(chosen.verdicts.read_text()) if chosen.verdicts.exists() else {}
    faults = _sampled(_faults(chosen.only), chosen.sample, chosen.seed)
    _judged(faults, kept, chosen.processes, chosen.verdicts)
    return int(_report(faults, kept["verdicts"]) > 0)


if __name__ == "__main__":
    sys.exit(main())
