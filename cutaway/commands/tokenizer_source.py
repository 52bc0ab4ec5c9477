"""What the verbs of `cutaway tokenizer` share: the tokenizer that is meant, and the text."""

import sys
from pathlib import Path

from cutaway.errors import UserError
from cutaway.tokenizer import Tokenizer


def opened(source: str, pattern: str | None = None) -> Tokenizer:
    """The tokenizer that a file, a folder or a model's name means; a model of Cutaway's table is pulled."""
    from cutaway.commands.console import model_path

    return Tokenizer.load(model_path(source), pattern)


def text_of(text: str | None, file: Path | None) -> str:
    """The text of an argument, a file, or standard input (no file, or "-"); UserError unless it is UTF-8."""
    if text is not None and file is not None:
        raise UserError(f"both a text and --file {file} were given: give one")
    if text is not None:
        return text
    if file is None and sys.stdin.isatty():
        raise UserError("no text was given: give it as an argument, with --file, or on standard input")
    file = None if str(file) == "-" else file
    name = "standard input" if file is None else str(file)
    try:
        data = sys.stdin.buffer.read() if file is None else file.read_bytes()
        return data.decode()
    except OSError as problem:
        raise UserError(f"{name} cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError as problem:
        raise UserError(f"{name} is not UTF-8: byte {problem.start:,}") from None
