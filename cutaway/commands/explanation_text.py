"""An explanation (``inspect/explanation.py``) in a terminal: seven steps, each one sentence and its numbers.

Made of rich's tables, so that columns line up for every script and colours go away where they cannot be
shown. Tokens are drawn and never obeyed: spaces as ␣, control characters as escapes.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cutaway.errors import escaped

if TYPE_CHECKING:
    from cutaway.inspect.explanation import Explanation, Head, RotatedPair, Score
    from cutaway.inspect.tokens import Merges, Token
    from cutaway.lm import LanguageModel

WIDTH = 100  # longer lines are hard to read
TITLE = 200  # characters of the text in the title, its last
LONGEST = 22  # cells of a token's text in a table
ROWS = 24  # tokens listed one by one
TERMS = 3  # products of a score written out
KEYS = 8  # tokens of a softmax written out
NEAREST = 3  # neighbours of a token
PER_LINE = 60  # layers side by side
CHANGED = 12  # next tokens before and after
EIGHTHS = " ▏▎▍▌▋▊▉█"
LEVELS = "▁▂▃▄▅▆▇█"

ACCENT, QUIET, UP, DOWN = "cyan", "bright_black", "green", "red"


Step = tuple[str, str, *tuple[RenderableType, ...]]  # its name, its sentence, its numbers


def drawn(text: str) -> str:
    """A token's text made visible: ␣ for a space, escapes for what is unprintable, ◌ under a lone accent."""
    out = escaped(text).replace(" ", "␣")
    return f"◌{out}" if out and unicodedata.category(out[0]).startswith("M") else out


def bar(part: float, width: int) -> str:
    """A bar that fills ``part`` (0 to 1) of ``width`` cells, to an eighth of a cell."""
    eighths = round(max(0.0, min(1.0, part)) * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (EIGHTHS[rest] if rest else "")


def spark(values: Iterable[float], top: float) -> str:
    """One cell a value, from nothing to ``top``; what is below a sixteenth of it is a dot."""
    return "".join("·" if value < top / 16 else LEVELS[min(7, int(value / top * 8))] for value in values)


def show(explanation: Explanation, model: str, console: Console, after_tokens: bool = False) -> None:
    """The whole explanation on a console; ``after_tokens``: without what `show_tokens` has shown."""
    steps = [_tokens, _embeddings, _attention, _heads, _lens, _residual, _next]
    steps += [_change] * (explanation.change is not None) + [_patch] * (explanation.patch is not None)
    if not after_tokens:
        console.print(_title(explanation, model), width=min(console.width, WIDTH))
    for number, step in enumerate(steps, 1):
        if number > 1 or not after_tokens:
            print_step(number, step(explanation), console)


def show_tokens(lm: LanguageModel, ids: Sequence[int], model: str, console: Console) -> None:
    """The title without its answer, and the first step: they need neither torch nor the weights."""
    from cutaway.inspect import tokens

    config, known = lm.config, min(lm.config.vocab, len(lm.tokenizer))
    title = Text.assemble((_shown(tokens.text(lm.tokenizer, ids)), "bold"), "\n")
    title.append(f"{model}: {len(config.blocks)} layers, width {config.width}", QUIET)
    console.print(title, width=min(console.width, WIDTH))
    merges = tokens.merges(lm.tokenizer, ids)[: tokens.PIECES]
    print_step(1, _token_step(tokens.tokens(lm.tokenizer, ids), merges, known), console)


def print_step(number: int, step: Step, console: Console) -> None:
    """One step: its number and name, its sentence, its numbers."""
    width = min(console.width, WIDTH)
    name, sentence, *shown = step
    console.print()
    console.print(Text.assemble((f"{number}  ", QUIET), (name, f"bold {ACCENT}")), width=width)
    console.print(Padding(Text(sentence), (0, 0, 0, 3)), width=width)
    for one in shown:
        console.print()
        console.print(Padding(_fitted(one, width - 3, console), (0, 0, 0, 3)), width=width)


def _fitted(shown: RenderableType, width: int, console: Console) -> RenderableType:
    """A table without its bars, and closer, if it is wider than so many cells."""
    if isinstance(shown, Table) and console.measure(shown).maximum > width:
        shown.padding = (0, 1, 0, 0)
        shown.columns[:] = [column for column in shown.columns if not column.highlight]
    return shown


def table(*columns: tuple[str, str]) -> Table:
    """A bare table: (heading, side) a column; no headings if none has one.

    Sides: "right" for numbers, which stay on one line; "left" for text, which a narrow terminal folds; "bar"
    for bars, which it leaves out.
    """
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(name for name, _ in columns))
    for name, side in columns:
        made.add_column(
            Text(name, QUIET),
            justify="right" if side == "right" else "left",
            no_wrap=side != "left",
            overflow="fold",
        )
        made.columns[-1].highlight = side == "bar"  # rich has no other mark of a column
    return made


def token(text: str, style: str = ACCENT) -> Text:
    """A token as a cell."""
    made = Text(drawn(text), style)
    made.truncate(LONGEST, overflow="ellipsis")
    return made


def percent(part: float) -> Text:
    """A probability or weight in percent; what is above 0 never looks like 0."""
    return Text("<0.1%" if 0 < part < 0.0005 else f"{part:.1%}")


def signed(value: float) -> Text:
    """A number of logits with its sign."""
    if round(value, 2) == 0:
        return Text("0.00", QUIET)
    return Text(f"{value:+.2f}".replace("-", "−"), UP if value > 0 else DOWN)


def number(value: float) -> str:
    """Four figures, with a minus sign."""
    return f"{value:.4g}".replace("-", "−")


def _short(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _fixed(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _title(explanation: Explanation, model: str) -> Text:
    best = explanation.next[0]
    shape = f"{explanation.layers} layers, {explanation.heads} heads, width {explanation.width}"
    return Text.assemble(
        (_shown(explanation.text), "bold"),
        (" → ", QUIET),
        (answer(best.text), f"bold {ACCENT}"),
        (f"  {percent(best.probability)}\n", "bold"),
        (f"{model}: {shape}", QUIET),
    )


def answer(text: str) -> str:
    """A predicted token without its spaces, or, if it has nothing else, with them drawn."""
    return drawn(text.strip(" ") or text)


def _shown(text: str) -> str:
    """A text in a title, of a long one its end."""
    end = text if len(text) <= TITLE else "…" + text[-TITLE:]
    return drawn(end).replace("␣", " ").strip()


def _tokens(explanation: Explanation) -> Step:
    return _token_step(explanation.tokens, explanation.merges, explanation.vocabulary)


def _token_step(tokens: Sequence[Token], merges: Sequence[Merges], vocabulary: int) -> Step:
    rows = table(("", "right"), ("token", "left"), ("id", "right"), ("bytes", "left"), ("", "left"))
    for one in _some(tokens, rows, 5):
        kind = Text("control token" if one.special else "", QUIET)
        rows.add_row(
            Text(str(one.position), QUIET), token(one.text), str(one.id), Text(one.bytes, QUIET), kind
        )
    sentence = (
        f"The tokenizer cuts the text into {_count(len(tokens), 'piece')} of its vocabulary of "
        f"{vocabulary:,}; from here on the model sees only their ids."
    )
    return "Tokens", sentence, rows, *_merges(merges)


def _merges(merges: Sequence[Merges]) -> Iterable[RenderableType]:
    if not merges:
        return
    rows = table(("most merged", "left"), ("merges, pair by pair", "left"))
    for one in merges:
        pairs = (Text.assemble(drawn(left), ("+", QUIET), drawn(right)) for left, right in one.joined)
        rows.add_row(token(one.piece), Text("  ").join(pairs))
    yield rows


def _embeddings(explanation: Explanation) -> Step:
    rows = table(("token", "left"), ("norm", "right"), ("nearest rows by cosine similarity", "left"))
    for one in _some(explanation.embeddings.tokens, rows, 3):
        near = Text("  ").join(
            Text.assemble(token(n.text, ""), (f" {n.cosine:.2f}", QUIET)) for n in one.neighbours[:NEAREST]
        )
        rows.add_row(token(explanation.tokens[one.position].text), f"{one.norm:.2f}", near)
    (height, width), made = explanation.embeddings.table, explanation.embeddings
    extra = (
        f" times {made.scale:.4g}" * (made.scale != 1)
        + ", plus a row for its position" * made.learned_positions
    )
    sentence = (
        f"Each id picks its row from a table of {height:,} × {width:,} numbers{extra}: {made.residual[0]} × "
        f"{made.residual[1]:,} numbers enter the first block. Tokens that are used alike have rows "
        "that point alike."
    )
    return "Embeddings", sentence, rows


def _attention(explanation: Explanation) -> Step:
    if explanation.attention is None:
        return "Attention", f"{_recurrent(explanation)} So there is no score to show."
    a, score = explanation.attention, explanation.attention.score
    last, at = score.query_position, score.key_position
    query, key = (drawn(explanation.tokens[i].text) for i in (last, at))
    (heads, _, size), groups = a.shapes["q"], a.shapes["k"][0]
    shared = f" Head {a.head} uses key-value head {a.kv_head}." if heads != groups else ""
    shapes = (
        f"In layer {a.layer} every token has {_count(heads, 'query', 'queries')}, {_count(groups, 'key')} "
        f"and {_count(groups, 'value')} of {size} numbers: q is {_by(a.shapes['q'])}, "
        f"k {_by(a.shapes['k'])}, v {_by(a.shapes['v'])}.{shared}"
    )
    if a.maps == 2:
        shapes += " It is a differential head: the first of its two attention maps is shown."
    if explanation.recurrent_layers:
        shapes += f" {_recurrent(explanation)}"
    inner = ", of tokens between the first and the last," if last > 1 else ""
    sentence = (
        f"Head {a.layer}.{a.head} (layer {a.layer}, head {a.head}), where {query} attends to "
        f"{key if at != last else 'itself'}: of all heads{inner} this one added most to the answer's logit, "
        f"{signed(a.source_contribution)}."
    )
    rotated = () if a.rope is None else (_rotated(a.rope),)
    return (
        "Attention: one score, step by step",
        sentence,
        Text(shapes),
        *rotated,
        _products(score),
        _softmax(explanation, score),
    )


def _recurrent(explanation: Explanation) -> str:
    """Which layers have no attention weights, and why."""
    layers = explanation.recurrent_layers
    if len(layers) == explanation.layers:
        which = "All layers are recurrent: they have"
    elif len(layers) == 1:
        which = f"Layer {layers[0]} is recurrent: it has"
    else:
        which = f"Layers {', '.join(map(str, layers))} are recurrent: they have"
    return f"{which} no attention weights, because each head keeps the past in one state."


def _rotated(rope: RotatedPair) -> RenderableType:
    rows = table(("", "left"), ("query", "right"), ("key", "right"))
    both = rope.query, rope.key
    rows.add_row("position", *(str(one.position) for one in both))
    rows.add_row("angle", *(f"{math.degrees(one.angle):.1f}°" for one in both))
    for name in ("before", "after"):
        pairs = (getattr(one, name) for one in both)
        rows.add_row(name, *(f"({_short(x)}, {_short(y)})" for x, y in pairs))
    rows.title = (
        f"Rotary position embedding (RoPE): dimensions {rope.dimensions[0]} and {rope.dimensions[1]} rotate "
        f"by {math.degrees(rope.radians_per_token):.3g}° a token"
    )
    rows.title_justify, rows.title_style = "left", QUIET
    return rows


def _products(score: Score) -> RenderableType:
    rows = table(("", "left"), ("", "right"), ("", "right"))
    products = sorted(
        ((q * k, i) for i, (q, k) in enumerate(zip(score.query, score.key, strict=True))),
        key=lambda one: -abs(one[0]),
    )
    for product, i in products[:TERMS]:
        rows.add_row(
            f"q[{i}] × k[{i}]", f"{number(score.query[i])} × {number(score.key[i])}", _fixed(product)
        )
    rest = sum(product for product, _ in products[TERMS:])
    rows.add_row(f"the other {len(products) - TERMS}", "", _fixed(rest))
    rows.add_row(Text("q · k", "bold"), "", _fixed(score.dot))
    last = f"× {number(score.scale)}"
    if score.softcap is not None:
        last += f", soft-capped at ±{number(score.softcap)}"
    if score.bias is not None:
        apart = score.query_position - score.key_position
        unbiased = score.score - score.bias
        rows.add_row("", last, _fixed(unbiased))
        rows.add_row(f"bias, distance {apart}", "", f"{score.bias:+.3f}".replace("-", "−"))
        last = ""
    rows.add_row(Text("score", "bold"), last, Text(_fixed(score.score), "bold"))
    return rows


def _softmax(explanation: Explanation, score: Score) -> RenderableType:
    rows = table(
        ("", "right"),
        ("token", "left"),
        ("score", "right"),
        ("exp", "right"),
        ("weight", "right"),
        ("", "bar"),
    )
    best = sorted((one for one in score.weights if one.visible), key=lambda one: -one.weight)

    def add(position: str, name: Text, value: str, exp: float, weight: float) -> None:
        shown = Text(bar(weight, 20), ACCENT)
        rows.add_row(Text(position, QUIET), name, value, f"{exp:.4f}", percent(weight), shown)

    for one in sorted(best[:KEYS], key=lambda one: one.position):
        name = token(explanation.tokens[one.position].text)
        add(str(one.position), name, _fixed(one.score), one.exp, one.weight)
    if others := best[KEYS:]:
        exp, weight = sum(one.exp for one in others), sum(one.weight for one in others)
        add("", Text(f"{len(others)} others", QUIET), "", exp, weight)
    total = sum(one.exp for one in best)
    if score.sink is not None:
        add("", Text("sink, no value", QUIET), _fixed(score.sink.score), score.sink.exp, score.sink.weight)
        total += score.sink.exp
    rows.add_row("", Text("sum", QUIET), "", f"{total:.4f}", "100.0%")
    return rows


def _heads(explanation: Explanation) -> Step:
    made = explanation.attribution
    attention, mlp = (sum(getattr(layer, name) for layer in made.layers) for name in ("attention", "mlp"))
    biases = f", biases {signed(made.biases)}" if round(made.biases, 2) else ""
    rest = f", edits {signed(made.rest)}" if round(made.rest, 2) else ""
    sentence = (
        f"The residual stream is a sum, so the logit of {drawn(made.text)}, {made.logit:.2f}, is one too: "
        f"embedding {signed(made.embed)}, heads {signed(attention)}, MLPs {signed(mlp)}{biases}{rest}. These "
        "are direct contributions, without what later layers make of them."
    )
    return "Direct logit attribution", sentence, _strongest(explanation, made.heads), _by_layer(explanation)


def _strongest(explanation: Explanation, heads: Sequence[Head]) -> RenderableType:
    rows = table(
        ("head", "right"), ("logits", "right"), ("", "bar"), ("attends most to", "left"), ("weight", "right")
    )
    most = max((abs(head.contribution) for head in heads), default=1) or 1
    for head in heads:
        style = UP if head.contribution > 0 else DOWN
        rows.add_row(
            f"{head.layer}.{head.head}",
            signed(head.contribution),
            Text(bar(abs(head.contribution) / most, 16), style),
            Text("recurrent", QUIET)
            if head.attends_to is None
            else token(explanation.tokens[head.attends_to].text),
            "" if head.weight is None else percent(head.weight),
        )
    return rows


def _by_layer(explanation: Explanation) -> RenderableType:
    layers = explanation.attribution.layers
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


def _lens(explanation: Explanation) -> Step:
    answer = explanation.next[0]
    rows = table(
        ("after", "right"), ("token", "left"), ("", "right"), ("", "bar"), (drawn(answer.text), "right")
    )
    for row in explanation.lens:
        name = row.name.removeprefix("blocks.").removesuffix(".out")
        style = ACCENT if row.id == answer.id else QUIET
        rows.add_row(
            Text(name, QUIET),
            token(row.text),
            percent(row.probability),
            Text(bar(row.probability, 24), style),
            percent(row.final) if row.id != answer.id else Text("leads", UP),
        )
    sentence = f"The next token if the model stopped after each block: {_settled(explanation)}."
    return "Logit lens", sentence, rows


def _settled(explanation: Explanation) -> str:
    """From which block on the answer leads."""
    answer = explanation.next[0]
    since = len(explanation.lens)
    while since and explanation.lens[since - 1].id == answer.id:
        since -= 1
    if since == len(explanation.lens):
        return f"{drawn(answer.text)} is never ahead"
    name = explanation.lens[since].name.removeprefix("blocks.").removesuffix(".out")
    return f"{drawn(answer.text)} leads from {'the embedding' if name == 'embed' else f'block {name}'} on"


def _residual(explanation: Explanation) -> Step:
    ends = [i for i, name in enumerate(explanation.stages) if not name.endswith(".middle")]
    lowest = math.log(max(min(min(one) for one in explanation.norms), 1e-9))
    highest = max(math.log(max(max(one), 1e-9)) for one in explanation.norms)
    rows = table(
        ("token", "left"), ("embed", "right"), ("norm after each block, log scale", "left"), ("end", "right")
    )
    for position in _some(range(len(explanation.tokens)), rows, 4):
        norms = [explanation.norms[position][i] for i in ends]
        levels = (8 * (math.log(max(one, 1e-9)) - lowest) / (highest - lowest + 1e-9) for one in norms[1:])
        line = "".join(LEVELS[min(7, max(0, int(level)))] for level in levels)
        rows.add_row(
            token(explanation.tokens[position].text),
            f"{norms[0]:.2f}",
            Text(line, ACCENT),
            f"{norms[-1]:,.0f}",
        )
    last = explanation.norms[-1]
    return (
        "Residual stream",
        f"Every block adds to it: at the last token its norm grows from {last[0]:.2f} to {last[-1]:,.0f}.",
        rows,
    )


def _next(explanation: Explanation) -> Step:
    rows = table(
        ("token", "left"), ("id", "right"), ("logit", "right"), ("probability", "right"), ("", "bar")
    )
    for one in explanation.next:
        logit, shown = f"{one.logit:.2f}".replace("-", "−"), Text(bar(one.probability, 30), ACCENT)
        rows.add_row(token(one.text), str(one.id), logit, percent(one.probability), shown)
    kept = sum(one.probability for one in explanation.next)
    sentence = (
        f"The last residual becomes {explanation.vocabulary:,} logits, and softmax makes them probabilities; "
        f"those shown sum to {percent(kept)}."
    )
    return "Next token", sentence, rows


def _change(explanation: Explanation) -> Step:
    assert explanation.change is not None
    rows = table(("token", "left"), ("before", "right"), ("after", "right"), ("", "bar"))
    for one in explanation.change.next[:CHANGED]:
        style = UP if one.after >= one.before else DOWN
        rows.add_row(
            token(one.text), percent(one.before), percent(one.after), Text(bar(one.after, 30), style)
        )
    return "Edited", f"The next token with {', '.join(explanation.change.what)}.", rows


def _patch(explanation: Explanation) -> Step:
    patch = explanation.patch
    assert patch is not None
    layers = len(patch.tokens[0].recovered)
    rows = table(("token", "left"), ("the other's", "left"), ("block", "left"))
    for start in range(0, layers, PER_LINE):
        rows.add_row("", "", Text(_ruler(start, min(PER_LINE, layers - start)), QUIET))
        for one in _some(patch.tokens, rows, 3):
            line = spark(one.recovered[start : start + PER_LINE], 1)
            rows.add_row(token(one.text), token(one.other_text), Text(line, ACCENT))
    other = drawn(patch.other).replace("␣", " ")
    sentence = (
        f"A token's residual stream after a block is replaced by that of “{other}”: how far the answer moves "
        f"from {drawn(patch.here)} (·) to {drawn(patch.there)} (█)."
    )
    return "Activation patching", sentence, rows


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
