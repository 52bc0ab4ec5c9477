"""`cutaway detect`: whether a text has the watermark of a secret, that of `generate --watermark`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cutaway.commands.console import model_path, print_json, say
from cutaway.commands.generate import prompt_text
from cutaway.commands.options import Json, Model
from cutaway.generate import watermark as watermarks
from cutaway.weights import load


def detect(
    text: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    *,
    watermark: str,
    file: Path | None = None,
    model: Model = "smollm2",
    keys: int = 999,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Tell whether a text has a watermark: how well it fits the secret, beside random secrets.

    **Examples:**

    cutaway detect --file answer.txt --watermark kgw:SECRET

    cutaway detect - --watermark gumbel:SECRET --json < answer.txt

    :param text: The text; - reads it from standard input (without its last newline).
    :param watermark: The scheme and its secret: kgw:SECRET, gumbel:SECRET or synthid:SECRET.
    :param file: Read the text from this file (without its last newline).
    :param keys: Random secrets to compare with; the smallest p they can give is 1 / (keys + 1).
    :param seed: What the random secrets are drawn by.
    """
    marked = watermarks.parse(watermark)
    content = prompt_text(text, file)
    ids = load.read_checkpoint(model_path(model)).tokenizer.encode(content)
    found = watermarks.detect(marked, ids, keys=keys, seed=seed)
    if as_json:
        print_json(asdict(found))
        return
    start, stop = found.passage
    say(f"{found.tokens:,} tokens scored: z {found.z:.2f}, p {found.p:.2g}")
    say(f"p by {keys:,} random secrets: {found.p_keys:.3g} for the whole text,")
    say(f"{found.p_passage:.3g} for its best passage, tokens {start:,} to {stop:,}")
