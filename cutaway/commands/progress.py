"""Progress of long work: drawn at the bottom of a terminal, a few plain lines elsewhere.

A task is a name, how much is done, and of how much. On a terminal each running task has a line: the amount
done and the time left always, then its figures and a bar as far as the width goes. In a pipe or a log, and on
a terminal whose cursor cannot move (TERM=dumb), lines are printed now and then, and nothing is drawn.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cutaway.commands.terminal import Stream, Terminal, lock, moves_cursor, note, screen
from cutaway.errors import visible
from cutaway.store.files import Bytes

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

LINES = 20  # printed by a task with figures, where nothing is drawn
PATIENCE = 10.0  # seconds between the first lines of a long task, where nothing is drawn
SILENCE = 0.7  # seconds without a word, of a command or an answer
SHORT = 0.25  # of those seconds what a command has at least, however long its parser took
WINDOW = 30.0  # seconds that the speed is measured over
BAR = 10, 30  # columns of a bar: fewer show nothing, more say no more
FRAMES = 8  # a second
UNITS = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


def size(count: float) -> str:
    """A number of bytes with its unit: 98 MB."""
    unit = next((unit for unit in UNITS if count < 1000 * UNITS[unit]), "GB")
    number = count / UNITS[unit]
    return f"{number:.0f} {unit}" if number >= 10 or unit == "bytes" else f"{number:.1f} {unit}"


@dataclass
class ProgressTask:
    """What is being done: ``done`` of ``total`` (None: unknown), and figures about it.

    ``look`` is asked for both whenever the task is drawn, where nothing reports them.
    """

    doing: str
    begun: float
    look: Callable[[], tuple[int, int | None]] | None = None
    done: int = 0
    total: int | None = None
    detail: str = ""
    printed: float = 0.0
    _reports: deque[tuple[float, int]] = field(default_factory=deque)

    def report(self, done: int, total: int | None, detail: str, now: float) -> None:
        self.done, self.total, self.detail = done, total, detail
        reports = self._reports
        if reports and done < reports[-1][1]:
            reports.clear()  # it begins again
        if not reports or now - reports[-1][0] >= 0.1:
            reports.append((now, done))
        while len(reports) > 2 and now - reports[1][0] > WINDOW:
            reports.popleft()

    @property
    def speed(self) -> float | None:
        """How much is done in a second; None until it is known."""
        if len(self._reports) < 2:
            return None
        (began, before), (ended, after) = self._reports[0], self._reports[-1]
        return (after - before) / (ended - began) if after > before else None

    def left(self, now: float) -> str:
        """The time left; empty until it is known."""
        if self.total is None or not (speed := self.speed):
            return ""
        units, since = self.total - self.done, now - self._reports[-1][0]
        seconds = max(units / speed - since, (units - 1) / speed)  # the unit at hand may take longer
        return f"{_clock(seconds)} left"

    @property
    def amount(self) -> str:
        """How much is done, of how much."""
        if isinstance(self.done, Bytes):
            if self.total is None:
                return size(self.done)
            whole = size(self.total)
            number, unit = whole.split()
            places = 1 if "." in number else 0
            return f"{self.done / UNITS[unit]:.{places}f}/{whole}"
        return f"{self.done:,}" + (f"/{self.total:,}" if self.total is not None else "")

    @property
    def figures(self) -> list[str]:
        """Figures about it, the worthiest first."""
        found = [each for each in self.detail.split("  ") if each]
        if isinstance(self.done, Bytes) and (speed := self.speed):
            found.append(f"{size(speed)}/s")
        return found


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds; under an hour without hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def line(task: ProgressTask, width: int, now: float, unicode: bool = True) -> Text:
    """A task on one line of at most so many columns: the amount done and the time left before all else."""
    from rich.text import Text

    complete, rest, spinner = ("━", "─", "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏") if unicode else ("#", "-", "|/-\\")
    turning = spinner[int(now * FRAMES) % len(spinner)]
    name = Text(visible(task.doing))
    if task.total is None:
        fixed = [task.amount if task.done else "", _clock(now - task.begun)]
    else:
        fixed = [task.amount, task.left(now)]
    fixed = [each for each in fixed if each]
    if task.total and sum(len(each) + 2 for each in fixed) + 3 > width:
        fixed[0] = f"{100 * task.done / task.total:.0f}%"  # two numbers of a billion, on a narrow terminal
    room = width - 2 - sum(len(each) + 2 for each in fixed)
    name.truncate(max(room, 1), overflow="ellipsis")
    room -= name.cell_len
    figures, bar = [], 0
    wanted: list[str | None] = [*task.figures]
    if task.total is not None:
        wanted.insert(1, None)  # the bar: less than the first figure, more than the others
    for each in wanted:
        needed = 2 + (BAR[0] if each is None else len(each))
        if needed > room:
            break
        room -= needed
        if each is None:
            bar = BAR[0]
        else:
            figures.append(each)
    out = Text.assemble((turning, "green"), " ", name)
    if bar and task.total is not None:
        bar += min(room, BAR[1] - BAR[0])
        filled = min(bar, bar * task.done // max(task.total, 1))
        out.append("  ").append(complete * filled, "cyan").append(rest * (bar - filled), "dim")
    out.append("".join(f"  {each}" for each in [*fixed, *figures]))
    return out


class Display:
    """The running tasks at the bottom of the terminal, from the first to the last."""

    def __init__(self) -> None:
        self.tasks: list[ProgressTask] = []
        self.live: Any = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        now = time.monotonic()
        for task in list(self.tasks):
            if task.look is not None:
                task.report(*task.look(), task.detail, now)
            # Ctrl-C writes ^C behind it, which on the next line would not be erased with it
            yield line(task, options.max_width - 3, now, not options.ascii_only)

    def show(self, task: ProgressTask) -> None:
        with lock:
            self.tasks.append(task)
            if self.live is None:
                self._start()

    def drop(self, task: ProgressTask) -> None:
        with lock:
            if task in self.tasks:
                self.tasks.remove(task)
            if not self.tasks and self.live is not None:
                self._stop()

    def _start(self) -> None:
        from rich.live import Live
        from rich.text import Text

        console = screen(stderr=True)
        self.live = Live(
            self,
            console=console,
            transient=True,
            redirect_stdout=False,  # Terminal does that, and escapes
            redirect_stderr=False,
            refresh_per_second=FRAMES,
        )
        self.live.start()
        _route(lambda lines: console.print(Text(lines), soft_wrap=True))

    def _stop(self) -> None:
        live, self.live = self.live, None
        try:
            live.stop()
        finally:
            _route(None)


def _route(above: Any) -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Terminal):
            stream.print_above(above)


_display = Display()


class Progress:
    """Progress of named tasks."""

    def __init__(self) -> None:
        self.tasks: dict[str, ProgressTask] = {}
        self.draws = moves_cursor()

    def __call__(self, doing: str, done: int, total: int | None, detail: str = "", took: float = 0.0) -> None:
        """A task is ``done`` of ``total``, in Bytes or in pieces of work; ``detail``: figures about it.

        Figures are separated by two spaces, the worthiest first. ``took``: seconds of a piece that is
        reported when it is done, so that the task began so long before its first.
        """
        now = time.monotonic()
        task = self.tasks.get(doing)
        if first := task is None:
            self.end(open_ended=True)
            task = self.tasks[doing] = ProgressTask(doing, now - took)
        before = task.done
        task.report(done, total, detail, now)
        over = total is not None and done >= total
        if self.draws and over:
            _display.drop(task)
        elif self.draws and task not in _display.tasks:
            _starting.end()
            _display.show(task)
        if over and detail:
            note(f"{doing} {task.amount}  {detail}  took {_clock(now - task.begun)}")
        elif not self.draws and (first or _is_due(task, before, now)):
            parts = [f"{doing} {task.amount}", *task.figures, task.left(now)]
            if not detail and first:
                parts = [doing + (f" {size(total)}" if isinstance(total, Bytes) else "")]
            note("  ".join(each for each in parts if each))
            task.printed = now

    def begin(self, what: str) -> None:
        """Show that something is done until another task begins; where nothing is drawn, say nothing."""
        if self.draws:
            self(what, 0, None)

    def rename(self, name: str) -> None:
        """Show the running tasks by another name; where nothing is drawn, print it. For a signal's handler:
        without a lock, which the thread that it interrupts may hold.
        """
        for task in self.tasks.values():
            task.doing = name
        if not self.draws:
            os.write(2, f"{name}\n".encode())

    def end(self, open_ended: bool = False) -> None:
        """End all tasks, or those whose total is unknown: what follows shows that they are over."""
        for task in list(self.tasks.values()):
            if not open_ended or task.total is None:
                _display.drop(task)


def _is_due(task: ProgressTask, before: int, now: float) -> bool:
    """Whether a task prints its next line: with figures every twentieth, and ever more rarely over time."""
    if task.done == before or task.done == task.total:
        return False
    if now - task.printed > max(PATIENCE, (now - task.begun) / 4):
        return True
    twentieths = (done * LINES // task.total if task.total else 0 for done in (before, task.done))
    return bool(task.detail) and len(set(twentieths)) > 1


class Starting:
    """A command that has printed and drawn nothing for a second: it loads, or reads a long prompt."""

    def __init__(self) -> None:
        self.task: ProgressTask | None = None
        self._timer: threading.Timer | None = None

    def begin(
        self, what: str, since: float, look: Callable[[], tuple[int, int | None]] | None = None
    ) -> None:
        """Show it a second after ``since``, unless it has ended."""
        now = time.monotonic()
        self.task = task = ProgressTask(what, since, look)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, Stream):
                stream.before_first = self.end
        self._timer = threading.Timer(max(SHORT, SILENCE - (now - since)), self._show, [task])
        self._timer.daemon = True
        self._timer.start()

    def _show(self, task: ProgressTask) -> None:
        """Draw it, or where nothing is drawn print it, which ends it."""
        with lock:
            if self.task is task and isinstance(sys.stderr, Stream):
                if moves_cursor():
                    _display.show(task)
                elif not os.environ.get("CUTAWAY_QUIET"):
                    note(task.doing)

    def end(self) -> None:
        """It has something to say."""
        with lock:
            task, self.task = self.task, None
            if self._timer is not None:
                self._timer.cancel()
            if task is not None:
                _display.drop(task)


_starting = Starting()


@contextmanager
def started() -> Iterator[Callable[[str], None]]:
    """Say on standard error what a command does, unless it says something itself within a second. In a pipe
    not where CUTAWAY_QUIET is set.

    What this yields is called with the words when the command's own function begins.
    """
    since = time.monotonic()
    try:
        yield lambda what: _starting.begin(what, since)
    finally:
        _starting.end()


@contextmanager
def reading(what: str, look: Callable[[], tuple[int, int | None]]) -> Iterator[None]:
    """Draw how much of something is read, and the time left, until something is printed; ``look`` returns
    how much is done and of how much. Where nothing is drawn, say nothing.
    """
    if moves_cursor():
        _starting.begin(what, time.monotonic(), look)
    try:
        yield
    finally:
        _starting.end()


@contextmanager
def watched() -> Iterator[Progress]:
    """Progress on standard error."""
    progress = Progress()
    try:
        yield progress
    finally:
        progress.end()


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Show that something takes seconds; where nothing is drawn, after ten of them."""
    with watched() as progress:
        progress.begin(what)
        timer = threading.Timer(PATIENCE, lambda: None if progress.draws else note(f"{what} ..."))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
