"""Help where it is read by a pipe or a program: each line wrapped once, commands never."""

from __future__ import annotations

import io
import textwrap
from typing import Any

from cyclopts.help.formatters.plain import PlainFormatter
from rich.console import Console

UNWRAPPED = 100_000  # columns: rich fills a paragraph's lines to the width that it is given


class PlainHelp(PlainFormatter):
    """cyclopts' plain help, whose texts came wrapped by rich and were wrapped again."""

    def render_description(self, console: Any, options: Any, description: Any) -> None:
        """Print what a verb does. An example keeps its line: a command that breaks cannot be pasted."""
        for line in _lines(description):
            whole = line.startswith("cutaway ")
            self._print_plain(console, line if whole else textwrap.fill(line, console.width))
        console.print()

    def _print_plain(self, console: Any, text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _format_parameter_entry(self, options: Any, desc: str, console: Any, entry: Any) -> None:
        options = options[:1] if options[0].isupper() else options  # MODELS is written without --models
        shown = [" ".join(_lines(entry.description))] if entry.description else []
        shown += [f"[choices: {', '.join(entry.choices)}]"] if entry.choices else []
        shown += [f"[default: {entry.default}]"] if entry.default is not None else []
        shown += ["[required]"] if entry.required else []
        self._print_entry(console, f"{', '.join(options)}: {' '.join(shown)}")

    def _format_command_entry(self, names: Any, shorts: Any, desc: str, console: Any) -> None:
        self._print_entry(console, f"{', '.join((*names, *shorts))}: {' '.join(desc.split())}")

    def _print_entry(self, console: Any, text: str) -> None:
        indent: Any = {"initial_indent": self.indent, "subsequent_indent": 3 * self.indent}
        self._print_plain(console, textwrap.fill(text, console.width, break_on_hyphens=False, **indent))


def _lines(text: Any) -> list[str]:
    """A text of rich's as plain lines, one a paragraph."""
    wide = Console(file=io.StringIO(), width=UNWRAPPED, no_color=True, highlight=False, markup=False)
    with wide.capture() as capture:
        wide.print(text, end="")
    return [line.rstrip() for line in capture.get().rstrip().splitlines()]
