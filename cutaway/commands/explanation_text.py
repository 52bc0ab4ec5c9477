"""The story of a text (``inspect/explanation.py``) as a terminal shows it: seven steps, each one sentence
and its numbers.

Built of rich's tables, so that columns line up for every script and colour goes away where it cannot be
shown. What a token spells is drawn, never obeyed: spaces as ␣, control characters as escapes.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from cutaway.inspect.explanation import Head, Pair, Score, Story

WIDTH = 100  # longer lines are hard to read
TITLE = 200  # characters of the text in the title, its last
LONGEST = 22  # cells of a token's text in a table
ROWS = 24  # tokens listed one by one
TERMS = 3  # products of a score written out
SHARES = 8  # tokens of a softmax written out
NEAREST = 3  # neighbours of a token
PER_LINE = 60  # layers side by side
CHANGED = 12  # next tokens before and after
NAMED = {" ": "␣", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
EIGHTHS = " ▏▎▍▌▋▊▉█"
LEVELS = "▁▂▃▄▅▆▇█"

ACCENT, QUIET, UP, DOWN = "cyan", "bright_black", "green", "red"


Step = tuple[str, str, *tuple[RenderableType, ...]]  # its name, its sentence, its numbers


def drawn(text: str) -> str:
    """A token's text made visible: ␣ for a space, escapes for what is not printable, ◌ under a lone
    accent.
    """
    out = "".join(NAMED.get(c) or (c if c.isprintable() else _escape(c)) for c in text)
    return f"◌{out}" if out and unicodedata.category(out[0]).startswith("M") else out


def _escape(c: str) -> str:
    return f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}"


def bar(share: float, width: int) -> str:
    """A bar of ``share`` (0 to 1) of ``width`` cells, to an eighth of a cell."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, part = divmod(eighths, 8)
    return "█" * full + (EIGHTHS[part] if part else "")


def spark(values: Iterable[float], top: float) -> str:
    """One cell a value, from nothing to ``top``; what is below a sixteenth of it is a dot."""
    return "".join("·" if value < top / 16 else LEVELS[min(7, int(value / top * 8))] for value in values)


def show(story: Story, model: str, console: Console) -> None:
    """The whole story on a console."""
    width = min(console.width, WIDTH)
    steps = [_tokens, _embeddings, _attention, _heads, _lens, _residual, _next]
    steps += [_change] * (story.change is not None) + [_patch] * (story.patch is not None)
    console.print(_title(story, model), width=width)
    for number, step in enumerate(steps, 1):
        name, sentence, *shown = step(story)
        console.print()
        console.print(Text.assemble((f"{number}  ", QUIET), (name, f"bold {ACCENT}")), width=width)
        console.print(Padding(Text(sentence), (0, 0, 0, 3)), width=width)
        for one in shown:
            console.print()
            console.print(Padding(one, (0, 0, 0, 3)), width=width)


def table(*columns: tuple[str, str]) -> Table:
    """A bare table: (heading, "left" or "right") a column; no headings if none has one."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(name for name, _ in columns))
    for name, side in columns:
        made.add_column(Text(name, QUIET), justify="right" if side == "right" else "left", no_wrap=True)
    return made


def token(text: str, style: str = ACCENT) -> Text:
    """A token as a cell."""
    made = Text(drawn(text), style, no_wrap=True)
    made.truncate(LONGEST, overflow="ellipsis")
    return made


def percent(share: float) -> Text:
    """A share as people read it; what is above nothing never looks like nothing."""
    return Text("<0.1%" if 0 < share < 0.0005 else f"{share:.1%}")


def signed(value: float) -> Text:
    """A number of logits with its sign."""
    if round(value, 2) == 0:
        return Text("0.00", QUIET)
    return Text(f"{value:+.2f}".replace("-", "−"), UP if value > 0 else DOWN)


def number(value: float) -> str:
    """Four figures, with a minus sign."""
    return f"{value:.4g}".replace("-", "−")


def _fixed(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _title(story: Story, model: str) -> Text:
    best = story.next[0]
    answer = best.text.strip(" ") or best.text
    text = story.text if len(story.text) <= TITLE else "…" + story.text[-TITLE:]
    shape = f"{Path(model).name}: {story.layers} layers of {story.heads} heads, {story.width} numbers a token"
    return Text.assemble(
        (drawn(text).replace("␣", " ").strip(), "bold"),
        (" → ", QUIET),
        (drawn(answer), f"bold {ACCENT}"),
        (f"  {percent(best.probability)}\n", "bold"),
        (shape, QUIET),
    )


def _tokens(story: Story) -> Step:
    rows = table(("", "right"), ("token", "left"), ("id", "right"), ("bytes", "left"), ("", "left"))
    for one in _some(story.tokens, rows, 5):
        kind = Text("control token" if one.special else "", QUIET)
        rows.add_row(
            Text(str(one.position), QUIET), token(one.text), str(one.id), Text(one.bytes, QUIET), kind
        )
    sentence = (
        f"The text is cut into {_count(len(story.tokens), 'piece')} that the vocabulary of "
        f"{story.vocabulary:,} knows; from here on the model sees only their ids."
    )
    return "Tokens", sentence, rows, *_merges(story)


def _merges(story: Story) -> Iterable[RenderableType]:
    if not story.merges:
        return
    rows = table(("longest", "left"), ("how it was joined, pair by pair", "left"))
    rows.columns[1].no_wrap = False
    for one in story.merges:
        pairs = (Text.assemble(drawn(left), ("+", QUIET), drawn(right)) for left, right in one.joined)
        rows.add_row(token(one.piece), Text("  ").join(pairs))
    yield rows


def _embeddings(story: Story) -> Step:
    rows = table(("token", "left"), ("length", "right"), ("nearest rows of the table, by cosine", "left"))
    for one in _some(story.embeddings.tokens, rows, 3):
        near = Text("  ").join(
            Text.assemble(token(n.text, ""), (f" {n.cosine:.2f}", QUIET)) for n in one.neighbours[:NEAREST]
        )
        rows.add_row(token(story.tokens[one.position].text), f"{one.norm:.2f}", near)
    (height, width), made = story.embeddings.table, story.embeddings
    extra = (
        f" times {made.scale:.4g}" * (made.scale != 1)
        + ", plus a row for its position" * made.learned_positions
    )
    sentence = (
        f"Each id picks its row from a table of {height:,} × {width:,} numbers{extra}: {made.stream[0]} × "
        f"{made.stream[1]:,} numbers enter the first block. Tokens that are used alike have rows that point "
        "alike."
    )
    return "Embeddings", sentence, rows


def _attention(story: Story) -> Step:
    if story.attention is None:
        return "Attention", f"{_memories(story)} So there is no score to work out by hand."
    a, worked = story.attention, story.attention.worked
    last, at = worked.query_position, worked.key_position
    reader, source = (drawn(story.tokens[i].text) for i in (last, at))
    (heads, _, size), groups = a.shapes["q"], a.shapes["k"][0]
    shared = f" Head {a.head} reads the keys and values of head {a.kv_head}." if heads != groups else ""
    said = (
        f"In layer {a.layer} every token makes {_count(heads, 'query', 'queries')}, {_count(groups, 'key')} "
        f"and {_count(groups, 'value')} of {size} numbers: q is {_by(a.shapes['q'])}, "
        f"k {_by(a.shapes['k'])}, v {_by(a.shapes['v'])}.{shared}"
    )
    if a.reads == 2:
        said += " It reads twice, and what the second reading says is taken from the first, which is shown."
    if story.memories:
        said += f" {_memories(story)}"
    inner = " of a token between the first and the last" if last > 1 else ""
    sentence = (
        f"Head {a.layer}.{a.head} (layer {a.layer}, head {a.head}), where {reader} looks at "
        f"{source if at != last else 'itself'}: of all readings{inner} it added most to the answer, "
        f"{signed(a.source_contribution)} logits."
    )
    turned = () if a.rope is None else (_turned(a.rope),)
    return (
        "Attention: one score by hand",
        sentence,
        Text(said),
        *turned,
        _products(worked),
        _softmax(story, worked),
    )


def _memories(story: Story) -> str:
    """Which layers have no pattern, and why."""
    if len(story.memories) == story.layers:
        which = "No layer here looks"
    elif len(story.memories) == 1:
        which = f"Layer {story.memories[0]} does not look"
    else:
        which = f"Layers {', '.join(map(str, story.memories))} do not look"
    return f"{which} at tokens one by one: their past is one memory a head, which is read whole."


def _turned(rope: Pair) -> RenderableType:
    rows = table(
        ("", "left"), ("position", "right"), ("turned by", "right"), ("from", "left"), ("to", "left")
    )
    for name, turn in (("query", rope.query), ("key", rope.key)):
        pairs = (f"({number(pair[0])}, {number(pair[1])})" for pair in (turn.before, turn.after))
        rows.add_row(name, str(turn.position), f"{math.degrees(turn.angle):.1f}°", *pairs)
    rows.title = f"RoPE turns pair {rope.dimensions} by {math.degrees(rope.radians_per_token):.3g}° a token"
    rows.title_justify, rows.title_style = "left", QUIET
    return rows


def _products(worked: Score) -> RenderableType:
    rows = table(("", "left"), ("", "right"), ("", "right"))
    products = sorted(
        ((q * k, i) for i, (q, k) in enumerate(zip(worked.query, worked.key, strict=True))),
        key=lambda one: -abs(one[0]),
    )
    for product, i in products[:TERMS]:
        rows.add_row(
            f"q[{i}] × k[{i}]", f"{number(worked.query[i])} × {number(worked.key[i])}", _fixed(product)
        )
    rest = sum(product for product, _ in products[TERMS:])
    rows.add_row(f"the other {len(products) - TERMS}", "", _fixed(rest))
    rows.add_row(Text("q · k", "bold"), "", _fixed(worked.dot))
    last = f"× {number(worked.scale)}"
    if worked.softcap is not None:
        last += f", bounded to ±{number(worked.softcap)}"
    if worked.bias is not None:
        apart = worked.query_position - worked.key_position
        unbiased = worked.score - worked.bias
        rows.add_row("", last, _fixed(unbiased))
        rows.add_row(f"{apart} token{'s' * (apart != 1)} apart", "", f"{worked.bias:+.3f}".replace("-", "−"))
        last = ""
    rows.add_row(Text("score", "bold"), last, Text(_fixed(worked.score), "bold"))
    return rows


def _softmax(story: Story, worked: Score) -> RenderableType:
    rows = table(
        ("", "right"),
        ("token", "left"),
        ("score", "right"),
        ("exp", "right"),
        ("share", "right"),
        ("", "left"),
    )
    best = sorted((one for one in worked.shares if one.seen), key=lambda one: -one.share)
    for one in sorted(best[:SHARES], key=lambda one: one.position):
        rows.add_row(
            Text(str(one.position), QUIET), token(story.tokens[one.position].text), _fixed(one.score),
            f"{one.weight:.4f}", percent(one.share), Text(bar(one.share, 20), ACCENT),
        )  # fmt: skip
    others = best[SHARES:]
    if others:
        weight, share = sum(one.weight for one in others), sum(one.share for one in others)
        rows.add_row(
            "",
            Text(f"{len(others)} others", QUIET),
            "",
            f"{weight:.4f}",
            percent(share),
            Text(bar(share, 20), ACCENT),
        )
    total = sum(one.weight for one in best)
    if worked.sink is not None:
        sink = worked.sink
        rows.add_row("", Text("sink, gives nothing", QUIET), _fixed(sink.score), f"{sink.weight:.4f}",
                     percent(sink.share), Text(bar(sink.share, 20), ACCENT))  # fmt: skip
        total += sink.weight
    rows.add_row("", Text("sum", QUIET), "", f"{total:.4f}", "100.0%")
    return rows


def _heads(story: Story) -> Step:
    moved = story.moved
    attention, mlp = (sum(getattr(layer, name) for layer in moved.layers) for name in ("attention", "mlp"))
    biases = f", biases {signed(moved.biases)}" if round(moved.biases, 2) else ""
    rest = f", edits {signed(moved.rest)}" if round(moved.rest, 2) else ""
    sentence = (
        f"All that is written to the stream adds up: the logit of {drawn(moved.text)}, {moved.logit:.2f}, "
        f"is a sum: embedding {signed(moved.embed)}, heads {signed(attention)}, MLPs {signed(mlp)}{biases}"
        f"{rest}. Counted is what each wrote itself, not what later layers made of it."
    )
    return "Strongest heads", sentence, _strongest(story, moved.heads), _by_layer(story)


def _strongest(story: Story, heads: Sequence[Head]) -> RenderableType:
    rows = table(
        ("head", "left"), ("logits", "right"), ("", "left"), ("looked most at", "left"), ("share", "right")
    )
    most = max((abs(head.contribution) for head in heads), default=1) or 1
    for head in heads:
        style = UP if head.contribution > 0 else DOWN
        rows.add_row(
            f"{head.layer}.{head.head}",
            signed(head.contribution),
            Text(bar(abs(head.contribution) / most, 16), style),
            Text("a memory", QUIET) if head.looked_at is None else token(story.tokens[head.looked_at].text),
            "" if head.share is None else percent(head.share),
        )
    return rows


def _by_layer(story: Story) -> RenderableType:
    layers = story.moved.layers
    top = max((max(abs(layer.attention), abs(layer.mlp)) for layer in layers), default=1) or 1
    rows = table(("", "left"), ("", "left"), ("", "left"))
    for start in range(0, len(layers), PER_LINE):
        part = layers[start : start + PER_LINE]
        rows.add_row(Text("layer", QUIET), "", Text(_ruler(start, len(part)), QUIET))
        for name in ("attention", "mlp"):
            values = [getattr(layer, name) for layer in part]
            rows.add_row(
                {"attention": "heads", "mlp": "MLPs"}[name], Text("+", UP), Text(spark(values, top), UP)
            )
            rows.add_row("", Text("−", DOWN), Text(spark([-value for value in values], top), DOWN))
    rows.add_row("", "", Text(f"█ = {top:.2f} logits", QUIET))
    return rows


def _ruler(start: int, count: int) -> str:
    marks = [" "] * (count + 3)
    for i in range(count):
        if (start + i) % 10 == 0:
            marks[i : i + len(str(start + i))] = str(start + i)
    return "".join(marks).rstrip()


def _lens(story: Story) -> Step:
    answer = story.next[0]
    rows = table(
        ("after", "right"), ("guess", "left"), ("", "right"), ("", "left"), (drawn(answer.text), "right")
    )
    for row in story.lens:
        name = row.name.removeprefix("blocks.").removesuffix(".out")
        style = ACCENT if row.id == answer.id else QUIET
        rows.add_row(
            Text(name, QUIET),
            token(row.text),
            percent(row.probability),
            Text(bar(row.probability, 24), style),
            percent(row.final) if row.id != answer.id else Text("leads", UP),
        )
    return "The lens", f"What the model would say if it stopped after each block: {_settled(story)}.", rows


def _settled(story: Story) -> str:
    """From which block on the guess is the answer."""
    answer = story.next[0]
    since = len(story.lens)
    while since and story.lens[since - 1].id == answer.id:
        since -= 1
    if since == len(story.lens):
        return f"{drawn(answer.text)} is never ahead"
    name = story.lens[since].name.removeprefix("blocks.").removesuffix(".out")
    return f"{drawn(answer.text)} leads from {'the embedding' if name == 'embed' else f'block {name}'} on"


def _residual(story: Story) -> Step:
    ends = [i for i, name in enumerate(story.stages) if not name.endswith(".middle")]
    lowest = math.log(max(min(min(one) for one in story.norms), 1e-9))
    highest = max(math.log(max(max(one), 1e-9)) for one in story.norms)
    rows = table(
        ("token", "left"), ("embed", "right"), ("after each block, log scale", "left"), ("end", "right")
    )
    for position in _some(range(len(story.tokens)), rows, 4):
        lengths = [story.norms[position][i] for i in ends]
        levels = (8 * (math.log(max(one, 1e-9)) - lowest) / (highest - lowest + 1e-9) for one in lengths[1:])
        line = "".join(LEVELS[min(7, max(0, int(level)))] for level in levels)
        rows.add_row(
            token(story.tokens[position].text), f"{lengths[0]:.2f}", Text(line, ACCENT), f"{lengths[-1]:,.0f}"
        )
    last = story.norms[-1]
    return (
        "The residual stream",
        f"Every block adds to it: at the last token its length goes from {last[0]:.2f} to {last[-1]:,.0f}.",
        rows,
    )


def _next(story: Story) -> Step:
    rows = table(
        ("token", "left"), ("id", "right"), ("logit", "right"), ("probability", "right"), ("", "left")
    )
    for one in story.next:
        logit, shown = f"{one.logit:.2f}".replace("-", "−"), Text(bar(one.probability, 30), ACCENT)
        rows.add_row(token(one.text), str(one.id), logit, percent(one.probability), shown)
    kept = sum(one.probability for one in story.next)
    sentence = (
        f"The last token's stream becomes {story.vocabulary:,} logits, and softmax makes them chances; those "
        f"shown hold {percent(kept)}."
    )
    return "The next token", sentence, rows


def _change(story: Story) -> Step:
    assert story.change is not None
    rows = table(("token", "left"), ("before", "right"), ("after", "right"), ("", "left"))
    for one in story.change.next[:CHANGED]:
        style = UP if one.after >= one.before else DOWN
        rows.add_row(
            token(one.text), percent(one.before), percent(one.after), Text(bar(one.after, 30), style)
        )
    return "Changed", f"The same text once more, with {', '.join(story.change.what)}.", rows


def _patch(story: Story) -> Step:
    patch = story.patch
    assert patch is not None
    layers = len(patch.tokens[0].moved)
    rows = table(("token", "left"), ("the other's", "left"), ("block", "left"))
    for start in range(0, layers, PER_LINE):
        rows.add_row("", "", Text(_ruler(start, min(PER_LINE, layers - start)), QUIET))
        for one in _some(patch.tokens, rows, 3):
            line = spark(one.moved[start : start + PER_LINE], 1)
            rows.add_row(token(one.text), token(one.other_text), Text(line, ACCENT))
    other = drawn(patch.other).replace("␣", " ")
    sentence = (
        f"Each token's stream after each block, taken from “{other}”: how far the answer goes from "
        f"{drawn(patch.here)} (·) to {drawn(patch.there)} (█)."
    )
    return "Patched", sentence, rows


def _some(items: Sequence, rows: Table, columns: int) -> Iterable:
    """The items, or of many the first and the last, with a row that says how many are left out."""
    if len(items) <= ROWS:
        yield from items
        return
    yield from items[: ROWS // 2]
    between = len(items) - ROWS
    cells = [Text("")] * columns
    cells[1 if columns == 5 else 0] = Text(f"… {between} more", QUIET)
    rows.add_row(*cells)
    yield from items[-ROWS // 2 :]


def _count(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _by(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
