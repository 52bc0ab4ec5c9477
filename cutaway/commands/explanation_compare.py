"""Two stories side by side as a terminal shows them: what each says next, the guess after every block, the
heads that moved each answer, and where the two come apart.
"""

from __future__ import annotations

from difflib import SequenceMatcher
from itertools import zip_longest
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cutaway.commands.explanation_text import ACCENT, QUIET, WIDTH, bar, drawn, percent, signed, table, token

if TYPE_CHECKING:
    from cutaway.inspect.explanation import LensRow, Story

NEXT = 8
HEADS = 6
BAR = 12


def show(one: Story, other: Story, models: tuple[str, str], console: Console) -> None:
    """Both stories on a console."""
    width = min(console.width, WIDTH)
    console.print(_title(one, models[0]), width=width)
    console.print(_title(other, models[1]), width=width)
    steps = (
        ("Tokens", _tokens),
        ("The next token", _next),
        ("The lens", _lens),
        ("Heads that moved the answer", _heads),
    )
    for number, (name, step) in enumerate(steps, 1):
        sentence, shown = step(one, other)
        console.print()
        console.print(Text.assemble((f"{number}  ", QUIET), (name, f"bold {ACCENT}")), width=width)
        console.print(Padding(Text(sentence), (0, 0, 0, 3)), width=width)
        console.print()
        console.print(Padding(shown, (0, 0, 0, 3)), width=width)


def _title(story: Story, model: str) -> Text:
    best = story.next[0]
    return Text.assemble(
        (drawn(story.text).replace("␣", " ").strip(), "bold"),
        (" → ", QUIET),
        (drawn(best.text.strip(" ") or best.text), f"bold {ACCENT}"),
        (f"  {percent(best.probability)}", "bold"),
        (f"  {model}", QUIET),
    )


def _tokens(one: Story, other: Story) -> tuple[str, RenderableType]:
    """The tokens in step, those that differ in colour."""
    texts = [[part.text for part in story.tokens] for story in (one, other)]
    rows = table(("", "right"), ("one", "left"), ("", "right"), ("other", "left"))
    same = 0
    for tag, i, to_i, j, to_j in SequenceMatcher(None, *texts, autojunk=False).get_opcodes():
        style = "" if tag == "equal" else ACCENT
        same += (to_i - i) * (tag == "equal")
        for left, right in zip_longest(range(i, to_i), range(j, to_j)):
            rows.add_row(*_placed(one, left, style), *_placed(other, right, style))
    return f"{same} of {len(texts[0])} and {len(texts[1])} tokens are the same, in order.", rows


def _placed(story: Story, position: int | None, style: str) -> tuple[Text, Text]:
    if position is None:
        return Text(""), Text("")
    return Text(str(position), QUIET), token(story.tokens[position].text, style)


def _next(one: Story, other: Story) -> tuple[str, RenderableType]:
    rows = _pair(("token", "left"), ("chance", "right"), ("", "left"))
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


def _lens(one: Story, other: Story) -> tuple[str, RenderableType]:
    rows = table(("after", "right"), ("one", "left"), ("", "right"), ("other", "left"), ("", "right"))
    for left, right in zip_longest(one.lens, other.lens):
        row = left or right
        apart = left is None or right is None or left.text != right.text
        rows.add_row(Text(_stage(row.name), QUIET), *_guess(left, apart), *_guess(right, apart))
    return f"What each would say if it stopped after each block: {_apart(one, other)}.", rows


def _guess(row: LensRow | None, apart: bool) -> tuple[Text, Text]:
    if row is None:
        return Text(""), Text("")
    return token(row.text, ACCENT if apart else QUIET), percent(row.probability)


def _apart(one: Story, other: Story) -> str:
    """From which block on the guesses differ, to the end."""
    pairs = list(zip(one.lens, other.lens, strict=False))
    if len(one.lens) != len(other.lens):
        return f"they have {len(one.lens) - 1} and {len(other.lens) - 1} blocks"
    since = len(pairs)
    while since and pairs[since - 1][0].text != pairs[since - 1][1].text:
        since -= 1
    if since == len(pairs):
        return "they end with the same guess"
    name = _stage(pairs[since][0].name)
    return f"they stay apart from {'the embedding' if name == 'embed' else f'block {name}'} on"


def _heads(one: Story, other: Story) -> tuple[str, RenderableType]:
    rows = _pair(("head", "left"), ("logits", "right"), ("looked at", "left"))
    for pair in zip_longest(one.moved.heads[:HEADS], other.moved.heads[:HEADS]):
        cells = [
            (f"{head.layer}.{head.head}", signed(head.contribution), _looked(story, head.looked_at))
            if head
            else [""] * 3
            for story, head in zip((one, other), pair, strict=True)
        ]
        rows.add_row(*cells[0], *cells[1])
    both = {(h.layer, h.head) for h in one.moved.heads} & {(h.layer, h.head) for h in other.moved.heads}
    names = ", ".join(f"{layer}.{head}" for layer, head in sorted(both)) or "none"
    answers = " and ".join(drawn(story.moved.text) for story in (one, other))
    return f"What they added to the score of {answers}. Strong in both: {names}.", rows


def _looked(story: Story, at: int | None) -> Text:
    return Text("a memory", QUIET) if at is None else token(story.tokens[at].text)


def _pair(*columns: tuple[str, str]) -> Table:
    return table(*columns, *columns)


def _stage(name: str) -> str:
    return name.removeprefix("blocks.").removesuffix(".out")
