"""A sandboxed process, from its start to the end of all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from cutaway.bounds import Bounded, Count, Positive
from cutaway.errors import OperationalError, UserError
from cutaway.sandbox import folders, meter, policy, starters
from cutaway.sandbox.starters import FILES, START_SECONDS, VIEW

LAYERS = ("namespaces", "limits", "privileges", "landlock", "seccomp", "meter")
LEFT_OUT: frozenset[str] = frozenset()  # layers that a test does not set, to see what the others hold
LANDLOCK = 7  # the newest version whose rights inside.py knows

END_SECONDS = 5.0  # for killed processes to be gone
PERIOD = 0.05  # seconds between measurements
THREADS = 64
# The most that starters and an idle interpreter use. Not measured: the code could have begun by then.
STARTERS = meter.Used(memory=64 << 20, threads=4)

Ended = Literal[
    "finished", "failed", "killed", "out of time", "too much output", "too much memory", "too many threads",
    "too much disk",
]  # fmt: skip

INSTALL = {
    "namespaces": "install bubblewrap (apt install bubblewrap) or allow user namespaces "
    "(kernel.unprivileged_userns_clone=1, user.max_user_namespaces, on Ubuntu "
    "kernel.apparmor_restrict_unprivileged_userns=0; in a container a seccomp profile that allows unshare)",
    "limits": "raise the hard limits of this user (ulimit -H)",
    "privileges": "use Linux 3.5 or later",
    "landlock": "use Linux 5.13 or later with landlock among its security modules (lsm=landlock,...)",
    "seccomp": "use x86-64 or ARM64 with a kernel that has seccomp filters",
    "meter": "mount /proc with the kernel option CONFIG_PROC_CHILDREN",
}
OPEN = {
    "namespaces": "the machine's processes and the names of its files are in view, and disk is only measured",
    "limits": "memory and processor time are measured, not bounded",
    "privileges": "the code has this user's capabilities",
    "landlock": "what this user may read and write is open where no other layer closes it",
    "seccomp": "every system call is open",
    "meter": "nothing is measured from outside",
}


@dataclass(frozen=True)
class Bounds(Bounded):
    """What one run may take: wall-clock ``seconds``; bytes of memory, of files and of output."""

    seconds: Positive = 5.0
    memory: Count = 512 << 20
    disk: Count = 16 << 20
    output: Count = 64 << 10


@dataclass(frozen=True)
class Outcome:
    """What came of a run; ``layers`` held while it ran, ``missing`` says why others did not."""

    output: str
    error: str
    ended: Ended
    layers: tuple[str, ...]
    missing: dict[str, str]


class Process:
    """Python code in the sandbox. Use as a context manager, at whose end nothing of it is left.

    With ``conversation`` the code reads lines from descriptor 0 and answers on descriptor 3, a line each.
    """

    def __init__(
        self, code: str, bounds: Bounds, *, unsafe: bool = False, conversation: bool = False
    ) -> None:
        self.bounds = bounds
        self.ended: Ended | None = None
        self.layers: tuple[str, ...] = ()
        self.missing = _missing()
        self.required = () if unsafe else LAYERS
        self._refuse_missing()
        tried = [name for name in LAYERS if name not in self.missing]
        self.metered = "meter" in tried
        self.view = VIEW if "namespaces" in tried else None
        self.texts = [b"", b""]
        self.answers = b""
        self.reported = b""
        self.folder = tempfile.mkdtemp(prefix="cutaway-sandbox-")
        self.deadline = time.monotonic() + START_SECONDS
        self.measured = 0.0
        self.selector = selectors.DefaultSelector()
        self.report, report = os.pipe()
        self.answering, answers = os.pipe() if conversation else (None, None)
        settings = self._settings(tried, code, report, answers)
        given = [report] if answers is None else [report, answers]
        try:
            self.process = subprocess.Popen(
                starters.command(self.folder, bounds.disk, report, self.view is not None),
                env={
                    "PYTHONIOENCODING": "utf-8",
                    "LC_ALL": "C.UTF-8",
                    "OPENBLAS_NUM_THREADS": "1",  # the memory of more threads would not fit
                },
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=given,
                start_new_session=True,
            )
        except OSError as error:
            folders.remove(self.folder)
            raise OperationalError(f"could not start Python for the sandbox: {error}") from error
        finally:
            for descriptor in given:
                os.close(descriptor)
        assert self.process.stdin
        self.stdin = self.process.stdin
        os.set_blocking(self.stdin.fileno(), False)
        self.sending = b""
        self.closing = False
        for name, stream in (("0", self.process.stdout), ("1", self.process.stderr), ("report", self.report)):
            self.selector.register(stream, selectors.EVENT_READ, name)  # type: ignore[arg-type]
        if self.answering is not None:
            self.selector.register(self.answering, selectors.EVENT_READ, "answers")
        self._send(json.dumps(settings).encode() + b"\n" + code.encode("utf-8", "surrogateescape"))

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def outcome(self) -> Outcome:
        """Wait for the end, and say how it was."""
        self.closing = True
        self._send(b"")
        self._pump(lambda: False)
        self._check_report()
        assert self.ended is not None
        output, error = (text.decode("utf-8", "replace") for text in self.texts)
        return Outcome(output, error, self.ended, self.layers, self.missing)

    def ask(self, line: bytes) -> bytes | None:
        """Send a line and give the line that answers; None where the process ended, which ``ended`` says."""
        self._send(line + b"\n")
        return self.hear()

    def hear(self) -> bytes | None:
        """The next line that the code answers, or None."""
        self._pump(lambda: b"\n" in self.answers)
        self._check_report()
        line, end, rest = self.answers.partition(b"\n")
        if not end:
            return None
        self.answers = rest
        return line

    def _settings(self, tried: list[str], code: str, report: int, answers: int | None) -> dict[str, Any]:
        program, no_program = [], ""
        try:
            program = policy.instructions(platform.machine())
        except ValueError as error:
            no_program = str(error)
        return {
            "layers": tried,
            "required": [name for name in self.required if name != "meter"],
            "report": report,
            "answers": answers,
            "code_bytes": len(code.encode("utf-8", "surrogateescape")),
            "folder": self.view or os.path.realpath(self.folder),
            "readable": starters.readable(),
            "listable": starters.packages(),
            "landlock": LANDLOCK,
            "program": program,
            "no_program": no_program,
            "memory": self.bounds.memory,
            "disk": self.bounds.disk,
            "seconds": int(self.bounds.seconds) + 1,
            "threads": THREADS,
        }

    def _refuse_missing(self) -> None:
        """UserError for a layer that is required and does not hold."""
        absent = [name for name in self.required if name in self.missing]
        if absent:
            why = "; ".join(f"{name}: {self.missing[name]}: {INSTALL[name]}" for name in absent)
            raise UserError(
                f"sandboxed Python is refused, for a layer of the sandbox does not hold here ({why}); to run "
                f"it all the same use unsafe=True, on the command line --unsafe: then "
                f"{'; '.join(OPEN[name] for name in absent)}"
            )

    def _check_report(self) -> None:
        """Take over what the process reported. UserError for a layer that does not hold."""
        if self.layers:
            return
        report = (
            json.loads(self.reported) if self.reported.endswith(b"\n") else {"holding": [], "missing": {}}
        )
        self.missing |= report["missing"]
        if not self.reported:
            error = self.texts[1].decode("utf-8", "replace").strip()[-300:]
            raise OperationalError(f"sandboxed Python did not start ({error or self.ended})")
        self.layers = tuple(
            name for name in LAYERS if name in report["holding"] or (name == "meter" and self.metered)
        )
        self._refuse_missing()

    def _send(self, data: bytes) -> None:
        self.sending += data
        if not self.stdin.closed and self.stdin.fileno() not in self.selector.get_map():
            self.selector.register(self.stdin, selectors.EVENT_WRITE, "stdin")

    def _pump(self, until: Callable[[], bool]) -> None:
        """Move data and measure until something is there or the process has ended."""
        while self.ended is None and not until():
            now = time.monotonic()
            if now >= self.deadline:
                self._stop("out of time")
                return
            if now >= self.measured and self.layers_reported and self.metered:
                self._measure()
                self.measured = time.monotonic() + max(PERIOD, 4 * (time.monotonic() - now))
                continue
            if not self._open():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = self.process.wait(min(PERIOD, self.deadline - now))
                    self.ended = "finished" if code == 0 else "killed" if not 0 < code <= 128 else "failed"
                continue
            for key, _ in self.selector.select(min(PERIOD, self.deadline - now)):
                self._move(key)

    @property
    def layers_reported(self) -> bool:
        """Whether the code's own time has begun."""
        return self.reported.endswith(b"\n")

    def _open(self) -> bool:
        """Whether output may still come."""
        return any(key.data in ("0", "1", "answers") for key in self.selector.get_map().values())

    def _move(self, key: selectors.SelectorKey) -> None:
        if key.data == "stdin":
            try:
                self.sending = self.sending[os.write(key.fd, self.sending[: 1 << 16]) :]
            except BrokenPipeError:
                self.sending, self.closing = b"", True
            if not self.sending:
                self.selector.unregister(key.fileobj)
                if self.closing:
                    self.stdin.close()
            return
        data = os.read(key.fd, 1 << 14)
        if not data:
            self.selector.unregister(key.fileobj)
        elif key.data == "report":
            self.reported += data
            if self.layers_reported:  # the end of this pipe is read when all is over
                self.selector.unregister(key.fileobj)
                self.deadline = time.monotonic() + self.bounds.seconds
        elif key.data == "answers":
            self.answers += data
            if len(self.answers) > self.bounds.output:
                self._stop("too much output")
        else:
            self.texts[int(key.data)] += data
            if sum(map(len, self.texts)) > self.bounds.output:
                self.texts = [text[: self.bounds.output] for text in self.texts]
                self._stop("too much output")

    def _measure(self) -> None:
        used = meter.used(self.process.pid, self.folder, self.view)
        if used.memory - STARTERS.memory > self.bounds.memory:
            self._stop("too much memory")
        elif used.threads - STARTERS.threads > THREADS:
            self._stop("too many threads")
        elif used.disk > self.bounds.disk or used.files > FILES:
            self._stop("too much disk")

    def _stop(self, ended: Ended) -> None:
        self.ended = ended
        self._kill()

    def _kill(self) -> None:
        """Kill the process, its session and its descendants. The first process of a namespace takes all
        others of it along.
        """
        if self.process.returncode is not None:
            return
        for number in meter.tree(self.process.pid)[1:] if self.metered else ():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(number, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _end(self) -> None:
        """End all of it and remove its folder."""
        self._kill()
        self.selector.close()
        os.set_blocking(self.report, False)
        end = time.monotonic() + END_SECONDS
        while time.monotonic() < end:  # the outer processes hold the other end until all inside are gone
            try:
                if not os.read(self.report, 1 << 16):
                    break
            except BlockingIOError:
                time.sleep(0.002)
        os.close(self.report)
        if self.answering is not None:
            os.close(self.answering)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            folders.remove(self.folder)
        except OSError as error:
            raise OperationalError(f"could not remove {self.folder}: {error}") from error


def _missing() -> dict[str, str]:
    """Layers that cannot be had here, with the reason."""
    if not sys.platform.startswith("linux"):
        missing = dict.fromkeys(("namespaces", "privileges", "landlock", "seccomp", "meter"), "it is Linux's")
    else:
        missing = {}
        if why := starters.starter()[1]:
            missing["namespaces"] = why
        if why := meter.unavailable_reason():
            missing["meter"] = why
    return missing | dict.fromkeys(LEFT_OUT, "left out by a test")


def run(code: str, bounds: Bounds | None = None, *, unsafe: bool = False) -> Outcome:
    """Run Python code. Raises UserError where a layer does not hold, unless that is allowed by ``unsafe``."""
    with Process(code, bounds or Bounds(), unsafe=unsafe) as process:
        return process.outcome()
