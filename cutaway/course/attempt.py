"""Run the reader's file in a process of its own: an endless loop or a full memory ends that process alone.

`python -m cutaway.course.attempt NUMBER FILE SEED` prints the verdict as one line of JSON, the last of its
output. It is the reader's own code on the reader's own machine: the limits guard against mistakes.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from functools import wraps
from pathlib import Path
from typing import Any

from cutaway.course import chapters
from cutaway.course.exercise import Exercise, Verdict, check, raised
from cutaway.errors import OperationalError, UserError

MEMORY = 4 << 30  # bytes of address space beyond what is there at the start
PROCESSOR = 10.0  # seconds of processor time of one call: each solution takes some hundredths
SEED = 20261130
PRINTED = 2000  # characters of what the reader's file prints that are shown
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # so that times compare

OUT_OF_TIME = getattr(signal, "SIGPROF", 0)  # not on Windows, where ``Exercise.seconds`` alone bounds it


class Printed(io.StringIO):
    """Keeps the beginning of what is printed: a loop that prints for ever fills no memory."""

    def write(self, text: str, /) -> int:
        super().write(text[: max(0, PRINTED - self.tell())])
        return len(text)


def judged(exercise: Exercise, file: Path, seed: int = SEED) -> Verdict:
    """The verdict on a file. UserError where there is none."""
    if not file.is_file():
        raise UserError(
            f"{file} is not there: `cutaway course start {exercise.chapter}` writes it, and "
            "--file names another one"
        )
    command = [sys.executable, "-m", "cutaway.course.attempt", exercise.number, str(file), str(seed)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=exercise.seconds, check=False, env=ONE_THREAD
        )
    except subprocess.TimeoutExpired:
        return Verdict(False, f"it did not end within {exercise.seconds:.0f} seconds: {exercise.slow}")
    if done.returncode == -OUT_OF_TIME:
        return Verdict(
            False, f"it did not end within {PROCESSOR:.0f} seconds of processor time: {exercise.slow}"
        )
    lines = done.stdout.strip().splitlines()
    try:
        return Verdict(**json.loads(lines[-1]))
    except (IndexError, TypeError, ValueError):
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        if "MemoryError" in done.stderr:
            return Verdict(False, f"it took more than {MEMORY >> 30} GB of memory")
        raise OperationalError(f"the check of {file} did not end as it should: {reason}") from None


def function_of(exercise: Exercise, file: Path) -> Callable[..., Any] | Verdict:
    """The function that the exercise asks for, or what is wrong with the file."""
    spec = importlib.util.spec_from_file_location("answer", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        where = f"line {error.lineno}" if error.lineno else "the file"
        return Verdict(False, f"{where} is not Python: {error.msg}")
    except Exception as error:
        return Verdict(False, f"running the file raised {raised(error, spec.origin or '')}")
    except SystemExit:
        return Verdict(False, "running the file ends the program: take the exit() out")
    answer = getattr(module, exercise.name, None)
    if not callable(answer):
        return Verdict(False, f"the file has no function {exercise.name}({exercise.parameters})")
    return answer


def main(number: str, file: str, seed: str) -> None:
    """Check one file under limits, and print the verdict."""
    _limit()
    exercise = chapters.exercise(number)
    printed = Printed()
    with redirect_stdout(printed), redirect_stderr(printed):
        answer = _timed(function_of)(exercise, Path(file))
        verdict = answer if isinstance(answer, Verdict) else check(exercise, _timed(answer), int(seed))
    print("\n" + json.dumps(asdict(replace(verdict, printed=printed.getvalue()))))


def _timed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which ends the process when it has taken too much processor time: on a busy machine a
    clock on the wall would judge the others.
    """
    if not OUT_OF_TIME:
        return function

    @wraps(function)
    def bounded(*given: Any) -> Any:
        signal.setitimer(signal.ITIMER_PROF, PROCESSOR)
        try:
            return function(*given)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    return bounded


def _limit() -> None:
    """No core file; memory is bounded where the system can (not on macOS, nor on Windows)."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


if __name__ == "__main__":
    main(*sys.argv[1:])
