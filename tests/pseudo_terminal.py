"""A command on a pseudo-terminal, and what a terminal emulator (pyte) shows of it."""

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyte

LITERAL = re.compile(r"\\x1b\[|\^\[\[|\[\d+(?:;\d+)*m|\[[0-9]?[KAJ]\b|\[\?25[lh]|\\r\\x1b")
"""Escapes that a terminal shows instead of obeying them."""
STYLES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""Colours, and movements of the cursor."""
DRAWN = re.compile("[━─]{3}|[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]")
"""What only progress draws: a bar or a spinner."""


class Emulator:
    """An emulated terminal that also keeps the lines that progress has drawn and erased."""

    def __init__(self, columns: int, rows: int = 50) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=20_000, ratio=1e-9)
        self.stream, self.columns = pyte.Stream(self.screen), columns
        self.frames: list[str] = []

    def feed(self, text: str) -> None:
        """Show a text; before each erased line look at what has been drawn."""
        for part in re.split("(?=\r\x1b\\[2K)", text):
            self._look()
            self.stream.feed(part)
        self._look()

    def _look(self) -> None:
        for row in self.screen.display:
            if DRAWN.search(row) and row.rstrip() not in self.frames:
                self.frames.append(row.rstrip())

    @property
    def lines(self) -> list[str]:
        """All lines, those that have scrolled off first; none below the last."""
        above = ["".join(row[x].data for x in range(self.columns)) for row in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self.screen.display]).rstrip().split("\n")


@dataclass
class Shown:
    """What a terminal has shown of a command."""

    columns: int
    code: int
    lines: list[str]
    frames: list[str]
    cursor: bool
    seconds: float = 0.0
    silence: float = 0.0  # the longest time without a byte
    literal: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Its lines, those joined that the terminal has broken."""
        return "".join(line if len(line) == self.columns else line + "\n" for line in self.lines)

    def faults(self) -> list[str]:
        """What no command may leave on a screen."""
        found = [f"literal escape: {line}" for line in self.literal]
        found += [f"progress is left: {line}" for line in self.lines if re.search("[━⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", line)]
        found += [f"as wide as the screen: {line}" for line in self.frames if len(line) >= self.columns]
        found += [] if self.cursor else ["the cursor is hidden"]
        found += ["a traceback"] if any(line.startswith("Traceback") for line in self.lines) else []
        return found


def rendered(data: str, columns: int, code: int) -> Shown:
    """What a terminal shows of some output."""
    emulator = Emulator(columns)
    emulator.feed(data)
    lines, frames = emulator.lines, emulator.frames
    literal = [line for line in [*lines, *frames] if LITERAL.search(line)]
    return Shown(columns, code, lines, frames, not emulator.screen.cursor.hidden, literal=literal)


def typist(typed: Sequence[tuple[str, bytes]]) -> Callable[[str], bytes]:
    """What types each text once, after the pattern that it waits for; b"\\x03" is Ctrl-C."""
    waiting, seen = list(typed), 0

    def answer(shown: str) -> bytes:
        nonlocal seen
        if not waiting or not re.search(waiting[0][0], STYLES.sub("", shown[seen:]).replace("\r", "")):
            return b""
        seen = len(shown)
        return waiting.pop(0)[1]

    return answer


def run(
    command: Sequence[str],
    columns: int,
    *,
    environment: Mapping[str, str] | None = None,
    answer: Callable[[str], bytes] = lambda shown: b"",
    rows: int = 50,
    timeout: float = 300.0,
) -> tuple[str, int, float, float]:
    """Run a command on a terminal of so many columns: its output, exit code, seconds, longest silence.

    ``answer`` is given all output whenever some came, and returns what is typed then.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def begin() -> None:  # the terminal becomes the new session's own, so that Ctrl-C reaches it
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")
    }
    given = inherited | {"TERM": "xterm-256color"} | dict(environment or {})
    begun = last = time.monotonic()
    shown, silence = "", 0.0
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=given,
        start_new_session=True,
        preexec_fn=begin,
    )
    os.close(theirs)
    try:
        while True:
            if not select.select([ours], [], [], 1.0)[0]:
                if time.monotonic() - begun > timeout:
                    process.kill()
                continue
            try:
                data = os.read(ours, 1 << 16)
            except OSError:  # the other end was closed
                break
            if not data:
                break
            now = time.monotonic()
            silence, last = max(silence, now - last), now
            shown += decode(data)
            if typed := answer(shown):
                os.write(ours, typed)
    finally:
        os.close(ours)
    return shown, process.wait(60), time.monotonic() - begun, silence
