"""The command line: every verb with its examples and options, as its parser has them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from cutaway import cli
from cutaway.commands.plain_help import PlainHelp
from scripts.lib.reference.markdown import HEAD, code, escaped

INTRODUCTION = """# The command line

Every verb of `cutaway` with its options. `cutaway VERB --help` prints the same. `--json` prints for
programs. The exit code is 0, or 2 for a user's mistake, 1 for a failure, 130 for Ctrl-C.
"""


class MarkdownHelp(PlainHelp):
    """Help as Markdown: an option is an item of a list, examples are one block."""

    def render_usage(self, console: Any, options: Any, usage: Any) -> None:
        """Leave it out: the heading has the verb, and the lists have the rest."""

    def render_description(self, console: Any, options: Any, description: Any) -> None:
        """Print what a verb does, then its examples."""
        lines = [line for line in _plain(description).splitlines() if line]
        at = lines.index("Examples:") if "Examples:" in lines else len(lines)
        examples = [line for line in lines[at + 1 :] if line.startswith("cutaway ")]
        for line in lines[:at] + [one for one in lines[at + 1 :] if one not in examples]:
            self._print_plain(console, escaped(line) + "\n")
        if examples:
            self._print_plain(console, "```console\n" + "\n".join(f"$ {one}" for one in examples) + "\n```\n")

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        """Print a list of arguments or options; commands have sections of their own."""
        if panel.format != "parameter":
            return
        for entry in panel.entries:
            if entry.display_labels:
                about = " ".join(_plain(entry.description).split())
                self._format_parameter_entry(entry.display_labels_with_metavar, about, console, entry)
        if panel.entries:
            console.print()

    def _print_entry(self, console: Any, text: str) -> None:
        name, _, about = text.partition(": ")
        self._print_plain(
            console, f"- {code(name)}: {escaped(about)}" if about else f"- {code(name.rstrip(':'))}"
        )


def _plain(text: Any) -> str:
    wide = Console(file=io.StringIO(), width=100_000, no_color=True, highlight=False, markup=False)
    with wide.capture() as capture:
        wide.print("" if text is None else text, end="")
    return "\n".join(line.strip() for line in capture.get().splitlines())


def _commands(app: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """A verb and the verbs below it."""
    yield words
    for name in sorted(name for name in app if not name.startswith("-")):
        app[name].help = None  # its own docstring, as its --help has it, not the line that lists it
        yield from _commands(app[name], (*words, name))


def page() -> str:
    """The page of all verbs."""
    verbs = [verb for group in cli.VERBS.values() for verb in group]
    app = cli._parser(*verbs, helps=True)
    app.help_formatter = MarkdownHelp()
    parts = [HEAD, INTRODUCTION]
    for group, names in cli.VERBS.items():
        parts.append(f"## {group}\n")
        for words in (found for name in names for found in _commands(app[name], (name,))):
            written = io.StringIO()
            console = Console(file=written, width=100_000, no_color=True, highlight=False, markup=False)
            app.help_print(list(words), console=console)
            parts.append(f"### {' '.join(words)}\n\n{written.getvalue().strip()}\n")
    return "\n".join(parts)
