"""Helper processes with limits of time and memory, for work that untrusted input could make endless.

    helper = Helper("cutaway.tokenizer.chat.sandbox", "the chat template", Bounds(0.4, 192 << 20), 5.0)
    helper.ask({"template": ...})        # the answer of that module's `answer`, as a dictionary

A helper starts at the first request, by `exec` rather than by a fork (its parent may hold a model and run
threads). It imports one module without the package's `__init__`, and answers one line of JSON with another.
Long texts follow the line as they are (`packed`): no other thread of this process runs Python while the JSON
of a whole text is written or read.
The operating system limits its memory and its computing. The parent waits no longer than the time allowed,
ends a helper that is late, and starts another when one is next needed. Neither side trusts the other with
more than JSON.
"""

import atexit
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.errors import OperationalError, UserError

NICENESS = 5  # a quarter to a third of a processor beside a process of the usual priority
START_SECONDS = 60.0  # for a busy machine to start Python
OUT_OF_TIME = getattr(signal, "SIGPROF", 0)  # ends a helper that has computed for too long
LONG = 1 << 12  # characters: a longer text is sent beside the line
BESIDE = "\0"  # begins what the line has in place of a text that is sent beside it

# Parent packages are empty modules here: their own __init__ would bring in numpy and more.
BOOT = """
import importlib, json, sys, types
sys.path[:], root, name = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
parents = name.split(".")[:-1]
for i in range(len(parents)):
    package = types.ModuleType(".".join(parents[: i + 1]))
    package.__path__ = ["/".join([root, *parents[1 : i + 1]])]
    sys.modules[package.__name__] = package
importlib.import_module("cutaway.helper").serve(name)
"""


@dataclass(frozen=True)
class Bounds:
    """The limits of one request: seconds, and bytes beyond an idle helper's, each plus so much a byte."""

    seconds: float
    memory: int
    seconds_per_byte: float = 0.0
    memory_per_byte: int = 0


class Helper:
    """One helper process and the lock around it; `name` is what errors call the request.

    `module` has `load()`, which imports what it needs, and `answer(request)`. While this process is at work,
    one of `more` others answers, each started when it is first needed: so a slow request holds up no other.
    """

    def __init__(self, module: str, name: str, bounds: Bounds, wait_seconds: float, more: int = 0) -> None:
        self.module, self.name, self.bounds, self.wait_seconds = module, name, bounds, wait_seconds
        self.other = Helper(module, name, bounds, wait_seconds, more - 1) if more else None
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0  # the process that started it: after a fork its pipes belong to the parent
        atexit.register(self.close)

    def ask(self, request: dict) -> dict:
        """The answer; UserError past the bounds, OperationalError where no helper starts."""
        if self.other is not None and self.lock.locked():
            return self.other.ask(request)
        parts = packed(request)
        seconds = self.wait_seconds + 10 * self.bounds.seconds_per_byte * sum(map(len, parts))
        with self.lock:
            answer = self._exchange(self._running(), parts, seconds)
            if answer.get("last"):
                self._end()
        if "refused" in answer:
            raise UserError(answer["refused"])
        return answer

    def start(self) -> None:
        """Start the helper ahead of its first request."""
        with self.lock:
            self._running()

    def close(self) -> None:
        """End the helper; the next request starts another."""
        if self.other is not None:
            self.other.close()
        with self.lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is not None and self.owner == os.getpid() and self.process.poll() is None:
            return self.process
        self._end()
        root, bounds = str(Path(__file__).parent), [self.bounds.seconds, self.bounds.memory]
        bounds += [self.bounds.seconds_per_byte, self.bounds.memory_per_byte]
        command = [sys.executable, "-I", "-W", "ignore", "-c", BOOT, json.dumps(sys.path), root]
        command += [self.module, json.dumps(bounds)]
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        try:
            process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=nothing, start_new_session=True
            )
        except OSError as error:
            raise OperationalError(f"could not start Python to run {self.name} in: {error}") from error
        self.process, self.owner = process, os.getpid()
        try:
            answer = self._exchange(process, [], START_SECONDS)
        except UserError:
            raise OperationalError(
                f"the helper process for {self.name} did not start: check that `{sys.executable} -c 0` works"
            ) from None
        if "missing" in answer:
            self._end()
            raise OperationalError(f"{self.name} needs a package that cannot be used: {answer['missing']}")
        return process

    def _exchange(self, process: subprocess.Popen[bytes], parts: Sequence[bytes], seconds: float) -> dict:
        """Send a request and return the answer; end a helper that is late, forget one that died."""
        assert process.stdin
        assert process.stdout
        late = threading.Event()
        timer = threading.Timer(seconds, lambda: (late.set(), process.kill()))
        timer.start()
        try:
            for part in parts:
                process.stdin.write(part)
            process.stdin.flush()
            received = _received(process.stdout)
        except BrokenPipeError:
            received = None
        except BaseException:
            self._end()
            raise
        finally:
            timer.cancel()
        if received is not None:
            return received[0]
        status = self._end()
        if late.is_set() or status == -OUT_OF_TIME:
            raise UserError(f"{self.name} takes too long and was stopped: make it simpler")
        raise UserError(f"{self.name} takes too much memory, or nests too deep, and was stopped: simplify it")

    def _end(self) -> int | None:
        """End the helper, if it has not ended yet, and return its exit status."""
        process, self.process = self.process, None
        if process is None or self.owner != os.getpid():
            return None
        process.kill()
        process.communicate()
        return process.returncode


def serve(name: str) -> None:
    """The helper's own loop: a line in, a line out, until its parent closes the pipe. On a busy processor its
    parent comes first, which may be generating for others.
    """
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer

    def tell(answer: dict) -> None:
        answers.writelines(packed(answer))
        answers.flush()

    try:
        module = importlib.import_module(name)
        module.load()
    except ImportError as error:
        tell({"missing": str(error)})
        return
    tell({})
    bounds, idle = Bounds(*json.loads(sys.argv[4])), _address_space()
    while received := _received(requests):
        request, size = received
        _limit(
            idle + bounds.memory + bounds.memory_per_byte * size,
            bounds.seconds + bounds.seconds_per_byte * size,
        )
        answer = _answered(module.answer, request)
        _limit(0, 0)
        tell(answer)


def packed(value: Any) -> list[bytes]:
    """The parts of a message: a line of JSON, then the value's long texts, each with its size in the line.

    In the line a text that begins with NUL is the number of one beside it, whose place it takes.
    """
    beside: list[bytes] = []

    def short(value: Any) -> Any:
        if isinstance(value, str):
            if len(value) <= LONG and not value.startswith(BESIDE):
                return value
            beside.append(value.encode("utf-8", "surrogatepass"))
            return f"{BESIDE}{len(beside) - 1}"
        if isinstance(value, dict):
            return {name: short(item) for name, item in value.items()}
        return [short(item) for item in value] if isinstance(value, list | tuple) else value

    line = short(value)
    return [json.dumps([list(map(len, beside)), line]).encode() + b"\n", *beside]


def _received(pipe: Any) -> tuple[Any, int] | None:
    """The next message and its bytes, None where it breaks off."""
    line = pipe.readline()
    if not line.endswith(b"\n"):
        return None
    sizes, value = json.loads(line)
    texts = [pipe.read(max(0, int(size))) for size in sizes]
    if [len(text) for text in texts] != sizes:
        return None

    def whole(value: Any) -> Any:
        if isinstance(value, str):
            if not value.startswith(BESIDE):
                return value
            return texts[int(value[1:])].decode("utf-8", "surrogatepass")
        if isinstance(value, dict):
            return {name: whole(item) for name, item in value.items()}
        return [whole(item) for item in value] if isinstance(value, list) else value

    return whole(value), len(line) + sum(sizes)


def _answered(answer: Callable[[dict], dict], request: dict) -> dict:
    try:
        return answer(request)
    except MemoryError:
        return {"refused": "this takes too much memory, and was stopped: simplify it", "last": 1}


def _address_space() -> int:
    """Bytes of address space that this process uses, 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _limit(memory: int, seconds: float) -> None:
    """Limit this process's address space and computing; 0 is no limit."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock is the limit
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    amount = memory if most == resource.RLIM_INFINITY else min(memory, most)
    resource.setrlimit(resource.RLIMIT_AS, (amount or most, most))
