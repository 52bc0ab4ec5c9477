"""`cutaway tokenizer encode`, `decode` and `count`: a text as ids, ids as a text."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from cutaway.commands.console import print_json
from cutaway.commands.options import Flag, Json
from cutaway.commands.tokenizer_source import opened, text_of
from cutaway.errors import UserError

Special = Annotated[
    Literal["text", "allow", "forbid"],
    Parameter(help="What spells a control token: plain text, the token, or an error."),
]
Name = Annotated[str, Parameter(name=("--tokenizer", "-t"), help="A file, a folder, or a model's name.")]
Pattern = Annotated[
    str | None, Parameter(help="How a .tiktoken file's text is cut: gpt2, cl100k, o200k, or a regex.")
]
File = Annotated[Path | None, Parameter(help="Read the text from this file.")]


def encode(
    text: str | None = None,
    /,
    *,
    tokenizer: Name = "smollm2",
    file: File = None,
    special: Special = "text",
    add_special: Flag = False,
    pattern: Pattern = None,
    as_json: Json = False,
) -> None:
    """Print the ids of a text.

    **Examples:**

    cutaway tokenizer encode "The capital of France is"

    cutaway tokenizer encode --file README.md --tokenizer tokenizer.json --json

    :param text: The text; without one, and without --file, standard input is read.
    :param add_special: Add the model's own tokens around it.
    """
    ids = opened(tokenizer, pattern).encode(text_of(text, file), special, add_special)
    if as_json:
        print_json({"ids": ids, "count": len(ids)})
    else:
        print(*ids)


def decode(
    *ids: int,
    tokenizer: Name = "smollm2",
    skip_special: Flag = False,
    pattern: Pattern = None,
    as_json: Json = False,
) -> None:
    """Print the text of ids, given as arguments or on standard input.

    **Examples:**

    cutaway tokenizer decode 504 3575 282 4649 314

    :param ids: The ids; without any, standard input is read.
    :param skip_special: Leave control tokens out.
    """
    tok = opened(tokenizer, pattern)
    numbers = list(ids) if ids else _ids(sys.stdin.read())
    if as_json:
        print_json({"text": tok.decode(numbers, skip_special), "count": len(numbers)})
        return
    data = tok.decode_bytes(numbers, skip_special)
    if sys.stdout.isatty():
        print(data.decode("utf-8", "backslashreplace"))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(data + b"\n")
    sys.stdout.buffer.flush()


def count(
    text: str | None = None,
    /,
    *,
    tokenizer: Name = "smollm2",
    file: File = None,
    special: Special = "text",
    pattern: Pattern = None,
    as_json: Json = False,
) -> None:
    """Print how many tokens a text has.

    **Examples:**

    cutaway tokenizer count "The capital of France is"

    cutaway tokenizer count --file README.md --json

    :param text: The text; without one, and without --file, standard input is read.
    """
    read = text_of(text, file)
    tokens = opened(tokenizer, pattern).count(read, special)
    if as_json:
        size = len(read.encode("utf-8", "replace"))
        print_json({"tokens": tokens, "characters": len(read), "bytes": size})
    else:
        print(tokens)


def _ids(text: str) -> list[int]:
    words = text.replace(",", " ").replace("[", " ").replace("]", " ").split()
    for word in words:
        if not word.isascii() or not word.isdigit():
            raise UserError(f"standard input holds {word[:40]!r}, which is no id")
    return list(map(int, words))
