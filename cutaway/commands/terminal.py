"""The terminal: text cannot act on it, and only `screen` draws.

Standard output and standard error are wrapped once, where the command line starts. What is printed on a
terminal, by this package, a library, a warning or a log, may be a stranger's words, so its control characters
are shown as escapes. A console of `screen` writes past that: its styles and cursor movements come from rich,
and the text in them is escaped by the console itself.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

from cutaway.errors import visible

if TYPE_CHECKING:
    from rich.console import Console


lock = threading.RLock()  # of what is printed and what is drawn


class Stream:
    """Standard output or standard error, which tells when something is printed for the first time."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.before_first: Callable[[], None] | None = None  # called once, before anything is printed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def begin(self) -> None:
        """Something is about to be printed."""
        with lock:
            if self.before_first is not None:
                first, self.before_first = self.before_first, None
                first()

    def write(self, text: str) -> int:
        with lock:
            self.begin()
            return self.stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)


class Terminal(Stream):
    """A terminal that shows control characters and does not obey them.

    While something is drawn at its bottom, whole lines go to ``above``, which prints them above that.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._above: Callable[[str], None] | None = None
        self._line = ""  # begun while something is drawn

    def write(self, text: str) -> int:
        shown = visible(text)
        with lock:
            self.begin()
            if self._above is None:
                self.stream.write(shown)
            else:
                lines, newline, self._line = (self._line + shown).rpartition("\n")
                if newline:
                    self._above(lines)
        return len(text)

    def print_above(self, above: Callable[[str], None] | None) -> None:
        """Hand lines to ``above`` from now on; with None print them, the one that was begun first."""
        self._above = above
        if above is None and self._line:
            self.stream.write(self._line)
            self._line = ""


@contextmanager
def guarded() -> Iterator[None]:
    """Wrap standard output and standard error."""

    def wrapped(stream: Any) -> Any:
        if stream is None or isinstance(stream, Stream):
            return stream
        return Terminal(stream) if stream.isatty() else Stream(stream)

    with redirect_stdout(wrapped(sys.stdout)), redirect_stderr(wrapped(sys.stderr)):
        yield


def screen(stderr: bool = False, **options: Any) -> Console:
    """A rich console for text from strangers: its styles act on the terminal, the text cannot."""
    from rich.console import Console
    from rich.segment import Segment

    class Screen(Console):
        def render(self, *what: Any, **how: Any) -> Iterator[Segment]:
            for text, style, control in super().render(*what, **how):
                yield Segment(text if control else visible(text), style, control)

        def show_cursor(self, show: bool = True) -> bool:
            """Never hide it: a process that is killed could not show it again."""
            return False

    stream = sys.stderr if stderr else sys.stdout
    file: Any = getattr(stream, "stream", stream)
    if isinstance(stream, Stream) and not stderr:
        stream.begin()  # what the console prints does not go through it
    return Screen(file=file, highlight=False, **options)


def moves_cursor() -> bool:
    """Whether standard error is a terminal on which a line can be drawn again."""
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def note(text: str) -> None:
    """Print sentences on standard error, on a terminal cut between words; one that is full stops nothing."""
    with suppress(OSError):
        print(_fitted(visible(text), sys.stderr), file=sys.stderr, flush=True)


def say(text: str, indent: int = 0) -> None:
    """Print sentences on standard output, on a terminal cut between words; later lines are indented."""
    print(_fitted(text, sys.stdout, indent))


def _fitted(text: str, stream: Any, indent: int = 0) -> str:
    if not stream.isatty():
        return text
    columns = 80
    with suppress(OSError):
        columns = os.get_terminal_size(stream.fileno()).columns or columns
    return _cut(text, columns, indent)


def _cut(text: str, columns: int, indent: int = 0) -> str:
    """The text with lines that are too long cut between words; commands and paths stay whole."""
    import textwrap

    cut = textwrap.TextWrapper(columns - 1, break_long_words=False, break_on_hyphens=False)
    cut.subsequent_indent = " " * indent
    return "\n".join(line if len(line) <= columns else cut.fill(line) for line in text.split("\n"))
