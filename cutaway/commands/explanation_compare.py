"""Two explanations side by side in a terminal."""

from __future__ import annotations

from difflib import SequenceMatcher
from itertools import zip_longest
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.text import Text

from cutaway.commands.cells import (
    ACCENT,
    QUIET,
    WIDTH,
    bar,
    drawn,
    heading,
    percent,
    print_step,
    signed,
    table,
    token,
)
from cutaway.commands.explanation_text import attended, since_stage, stage

if TYPE_CHECKING:
    from cutaway.inspect.explanation import Explanation, LensRow

NEXT = 8
HEADS = 6
BAR = 12


def show(
    one: Explanation, other: Explanation, models: tuple[str, str], same_model: bool, console: Console
) -> None:
    """Print both explanations."""
    for explanation, model in zip((one, other), models, strict=True):
        text = drawn(explanation.text).replace("␣", " ").strip()
        console.print(heading(text, explanation.next[0], f"  {model}"), width=min(console.width, WIDTH))
    steps = (
        ("Tokens", *_tokens(one, other)),
        ("Next token", *_next(one, other)),
        ("Logit lens", *_lens(one, other)),
        ("Direct logit attribution", *_heads(one, other, same_model)),
    )
    for number, step in enumerate(steps, 1):
        print_step(number, step, console)


def _tokens(one: Explanation, other: Explanation) -> tuple[str, RenderableType]:
    """The tokens in step, those that differ in colour."""
    texts = [[part.text for part in explanation.tokens] for explanation in (one, other)]
    rows = table(">", "one", ">", "other")
    same = 0
    for tag, i, to_i, j, to_j in SequenceMatcher(None, *texts, autojunk=False).get_opcodes():
        style = "" if tag == "equal" else ACCENT
        same += (to_i - i) * (tag == "equal")
        for left, right in zip_longest(range(i, to_i), range(j, to_j)):
            rows.add_row(*_cells(one, left, style), *_cells(other, right, style))
    return f"{same} of {len(texts[0])} and {len(texts[1])} tokens are the same, in order.", rows


def _cells(explanation: Explanation, position: int | None, style: str) -> tuple[Text, Text]:
    if position is None:
        return Text(""), Text("")
    return Text(str(position), QUIET), token(explanation.tokens[position].text, style)


def _next(one: Explanation, other: Explanation) -> tuple[str, RenderableType]:
    rows = table("one", ">", "|", "other", ">", "|")
    for pair in zip_longest(one.next[:NEXT], other.next[:NEXT]):
        cells = [
            (token(guess.text), percent(guess.probability), Text(bar(guess.probability, BAR), ACCENT))
            if guess
            else [""] * 3
            for guess in pair
        ]
        rows.add_row(*cells[0], *cells[1])
    shared = {guess.text for guess in one.next} & {guess.text for guess in other.next}
    return f"{len(shared)} of the {len(one.next)} likeliest tokens are likely in both.", rows


def _lens(one: Explanation, other: Explanation) -> tuple[str, RenderableType]:
    rows = table("after>", "one", ">", "other", ">")
    for left, right in zip_longest(one.lens, other.lens):
        row = left or right
        apart = left is None or right is None or left.text != right.text
        rows.add_row(Text(stage(row.name), QUIET), *_guess(left, apart), *_guess(right, apart))
    return f"The next token if each stopped after each block: {_apart(one, other)}.", rows


def _guess(row: LensRow | None, apart: bool) -> tuple[Text, Text]:
    if row is None:
        return Text(""), Text("")
    return token(row.text, ACCENT if apart else QUIET), percent(row.probability)


def _apart(one: Explanation, other: Explanation) -> str:
    """The block from which on the tokens differ, to the end."""
    pairs = list(zip(one.lens, other.lens, strict=False))
    if len(one.lens) != len(other.lens):
        return f"they have {len(one.lens) - 1} and {len(other.lens) - 1} blocks"
    since = len(pairs)
    while since and pairs[since - 1][0].text != pairs[since - 1][1].text:
        since -= 1
    if since == len(pairs):
        return "they end with the same token"
    return f"they stay apart from {since_stage(pairs[since][0].name)} on"


def _heads(one: Explanation, other: Explanation, same_model: bool) -> tuple[str, RenderableType]:
    rows = table(*("head>", "logits>", "key") * 2)
    for pair in zip_longest(one.attribution.heads[:HEADS], other.attribution.heads[:HEADS]):
        cells = [
            (f"{head.layer}.{head.head}", signed(head.contribution), attended(explanation, head.attends_to))
            if head
            else [""] * 3
            for explanation, head in zip((one, other), pair, strict=True)
        ]
        rows.add_row(*cells[0], *cells[1])
    answers = " and ".join(drawn(explanation.attribution.text) for explanation in (one, other))
    sentence = f"Contributions to the logits of {answers}. {_shared(one, other, same_model)}"
    return sentence, rows


def _shared(one: Explanation, other: Explanation, same_model: bool) -> str:
    """Which heads are strong in both; those of two models do not correspond."""
    if not same_model:
        return "Heads of different models do not correspond."
    mine, theirs = ({(head.layer, head.head) for head in each.attribution.heads} for each in (one, other))
    return (
        f"Strong in both: {', '.join(f'{layer}.{head}' for layer, head in sorted(mine & theirs)) or 'none'}."
    )
