"""A small process of its own in which chat templates run, so that one that never ends or fills the memory
hurts nobody.

A template comes with a downloaded model, and it is a program. The helper starts at the first rendering, by
`exec` rather than by a fork (the process that asks may hold a model and run threads), imports Jinja and the
two files beside this one and no more, and then answers one line of JSON with another. What it may hold in
memory and how long it may compute are limited by the operating system; the one who asks waits no longer than
the time allowed, ends a helper that is late, and starts another when it is next needed. Neither side trusts
the other with more than JSON.
"""

import atexit
import base64
import json
import os
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from cutaway.errors import OperationalError, UserError

if TYPE_CHECKING:
    pass

SECONDS = (
    0.4  # of computing that a rendering may take, and a millionth for each character; real ones take 0.001
)
WAIT_SECONDS = 5.0  # by the clock, on a machine too busy to give it those, or one that cannot count them
START_SECONDS = 60.0  # for a busy machine to start Python
MEMORY = 192 << 20  # bytes that may be added to what an idle helper holds; and 64 for each character sent
PROGRAMS = 64  # compiled templates a helper remembers

OUT_OF_TIME = getattr(signal, "SIGPROF", 0)  # the signal that ends a helper which has computed for too long

# The helper imports these modules without running the package's own __init__, which would bring in numpy.
BOOT = """
import importlib, json, sys, types
sys.path[:], root = json.loads(sys.argv[1]), sys.argv[2]
for folder in ("", "/tokenizer", "/tokenizer/chat"):
    name = "cutaway" + folder.replace("/", ".")
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [root + folder]
importlib.import_module("cutaway.tokenizer.chat.sandbox").serve()
"""


class Helper:
    """One helper process and the lock around it. `ask` raises UserError for what a template does,
    OperationalError for the rest.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0  # the process that started it: after a fork its pipes are not ours to use

    def ask(self, request: dict) -> dict:
        line = json.dumps(request).encode() + b"\n"
        with self.lock:
            answer = self._exchange(self._running(), line, WAIT_SECONDS + 1e-5 * len(line))
            if answer.get("last"):
                self._end()
        if "refused" in answer:
            raise UserError(answer["refused"])
        return answer

    def start(self) -> None:
        """Starts the helper ahead of the first rendering, which then needs not wait for it."""
        with self.lock:
            self._running()

    def close(self) -> None:
        with self.lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is not None and self.owner == os.getpid() and self.process.poll() is None:
            return self.process
        self._end()
        root = str(Path(__file__).parents[2])
        command = [sys.executable, "-I", "-W", "ignore", "-c", BOOT, json.dumps(sys.path), root]
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        try:
            process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=nothing, start_new_session=True
            )
        except OSError as error:
            raise OperationalError(f"could not start Python to run the chat template in: {error}") from error
        self.process, self.owner = process, os.getpid()
        try:
            answer = self._exchange(process, b"", START_SECONDS)
        except UserError:
            raise OperationalError(
                "the process in which chat templates run did not start; does `python -c 0` work?"
            ) from None
        if "missing" in answer:
            self._end()
            raise OperationalError(
                f"chat templates need the package jinja2, which cannot be used here: {answer['missing']}"
            )
        return process

    def _exchange(self, process: subprocess.Popen[bytes], line: bytes, seconds: float) -> dict:
        """Sends a line and returns the answer; a helper that is late is ended, and one that died is
        forgotten.
        """
        assert process.stdin
        assert process.stdout
        late = threading.Event()
        timer = threading.Timer(seconds, lambda: (late.set(), process.kill()))
        timer.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            received = process.stdout.readline()
        except BrokenPipeError:
            received = b""
        except BaseException:
            self._end()
            raise
        finally:
            timer.cancel()
        if received.endswith(b"\n"):
            return json.loads(received)
        status = self._end()
        if late.is_set() or status == -OUT_OF_TIME:
            raise UserError("the chat template ran for longer than any conversation needs; it was stopped")
        raise UserError(
            "the chat template ended the process it ran in, by its memory or the depth of its calls"
        )

    def _end(self) -> int | None:
        """Ends the helper, if it has not ended yet, and returns its exit status."""
        process, self.process = self.process, None
        if process is None or self.owner != os.getpid():
            return None
        process.kill()
        process.communicate()
        return process.returncode


helper = Helper()
atexit.register(helper.close)


def serve() -> None:
    """The helper's own loop: a line in, a line out, until nobody asks any more."""
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    try:
        from cutaway.tokenizer.chat import jinja
    except ImportError as error:
        answers.write(json.dumps({"missing": str(error)}).encode() + b"\n")
        answers.flush()
        return
    answers.write(b"{}\n")
    answers.flush()
    idle = _address_space()
    programs: OrderedDict[str, jinja.Program] = OrderedDict()
    while line := asked.readline():
        request = json.loads(line)
        size = len(line) - len(request["template"])
        _limit(idle + MEMORY + 64 * size, SECONDS + 1e-6 * size)
        answer = _answer(request, programs)
        _limit(0, 0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _answer(request: dict, programs: OrderedDict) -> dict:
    """What to say to {template, names, contexts}: the constants, and each context's text and origins or why
    not.
    """
    from cutaway.tokenizer.chat import jinja

    try:
        key = json.dumps([request["template"], request["names"]])
        program = programs.pop(key, None) or jinja.Program(request["template"], request["names"])
        programs[key] = program
        if len(programs) > PROGRAMS:
            programs.popitem(last=False)
        rendered = [_rendered(program, context) for context in request["contexts"]]
        return {"rendered": rendered, "source": program.source}
    except MemoryError:
        return {
            "refused": "the chat template needs more memory than any conversation does; it was stopped",
            "last": 1,
        }
    except Exception as error:
        return {"refused": jinja.reason(error)}


def _rendered(program: "jinja.Program", context: dict) -> dict:
    from cutaway.tokenizer.chat import jinja

    try:
        text = program.render(context)
    except MemoryError:
        raise
    except Exception as error:
        return {"refused": jinja.reason(error)}
    return {"text": text, "origins": base64.b64encode(text._o.tobytes()).decode()}


def _address_space() -> int:
    """Bytes of address space that this process uses, 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _limit(memory: int, seconds: float) -> None:
    """Has the system refuse this process more memory than this, and end it when it has computed so long; 0 is
    no limit.
    """
    try:
        import resource
    except (
        ImportError
    ):  # Windows: there the asker's clock and the counted steps and characters are the limits
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    amount = memory if most == resource.RLIM_INFINITY else min(memory, most)
    resource.setrlimit(resource.RLIMIT_AS, (amount or most, most))
