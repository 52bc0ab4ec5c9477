"""Options that the verbs of `cutaway tokenizer` share: which tokenizer, and which text."""

import sys
from pathlib import Path

from cutaway.commands.console import model_path, read_text
from cutaway.errors import UserError
from cutaway.tokenizer import Tokenizer


def opened(source: str, pattern: str | None = None) -> Tokenizer:
    """The tokenizer that a file, a folder or a model's name means; a model of Cutaway's table is pulled."""
    return Tokenizer.load(model_path(source), pattern)


def text_of(text: str | None, file: Path | None) -> str:
    """The text of an argument, a file, or standard input (no file, or "-"); UserError unless it is UTF-8."""
    if text is not None and file is not None:
        raise UserError(f"both a text and --file {file} were given: give one")
    if text is not None:
        return text
    if file is None and sys.stdin.isatty():
        raise UserError("no text was given: give it as an argument, with --file, or on standard input")
    return read_text(file)
