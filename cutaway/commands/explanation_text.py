"""An explanation (``inspect/explanation.py``) in a terminal: seven steps, a sentence and its numbers each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cutaway.commands.cells import (
    ACCENT,
    DOWN,
    LEVELS,
    QUIET,
    UP,
    WIDTH,
    Step,
    bar,
    drawn,
    heading,
    number,
    percent,
    print_step,
    signed,
    spark,
    table,
    token,
)

if TYPE_CHECKING:
    from cutaway.inspect.attention_score import RotatedPair, Score
    from cutaway.inspect.explanation import Explanation, Head
    from cutaway.inspect.tokens import Merges, Token
    from cutaway.lm import LanguageModel

TITLE = 200  # characters of the text in the title, its last
ROWS = 24  # tokens listed one by one
TERMS = 3  # products of a score written out
KEYS = 8  # tokens of a softmax written out
NEAREST = 3  # neighbours of a token
CHANGED = 12  # next tokens before and after


def show(explanation: Explanation, model: str, console: Console, after_tokens: bool = False) -> None:
    """The whole explanation on a console; ``after_tokens``: without what `show_tokens` has shown."""
    steps = [_tokens, _embeddings, _attention, _heads, _lens, _residual, _next]
    steps[5:5] = [_other_lenses] * bool(explanation.lenses)
    steps += [_change] * (explanation.change is not None) + [_patch] * (explanation.patch is not None)
    if not after_tokens:
        console.print(_title(explanation, model), width=min(console.width, WIDTH))
    else:
        console.print()
    console.print(Text(_engine(explanation), QUIET), width=min(console.width, WIDTH))
    for n, step in enumerate(steps, 1):
        if n > 1 or not after_tokens:
            print_step(n, step(explanation, min(console.width, WIDTH)), console)


def show_tokens(lm: LanguageModel, ids: Sequence[int], model: str, console: Console) -> None:
    """The title without its answer, and the first step: they need neither torch nor the weights."""
    from cutaway.inspect import tokens

    config, known = lm.config, min(lm.config.vocab, len(lm.tokenizer))
    title = Text.assemble((_shown(tokens.text(lm.tokenizer, ids)), "bold"), "\n")
    title.append(f"{model}: {len(config.blocks)} layers, width {config.width}", QUIET)
    console.print(title, width=min(console.width, WIDTH))
    merges = tokens.merges(lm.tokenizer, ids)[: tokens.PIECES]
    print_step(1, _token_step(tokens.tokens(lm.tokenizer, ids), merges, known), console)


def _title(explanation: Explanation, model: str) -> Text:
    best = explanation.next[0]
    shape = f"{explanation.layers} layers, {explanation.heads} heads, width {explanation.width}"
    return heading(_shown(explanation.text), best, f"\n{model}: {shape}")


def _engine(explanation: Explanation) -> str:
    name = {"runtime": "the runtime", "pytorch": "PyTorch"}[explanation.engine]
    return f"Computed by {name}, because {explanation.engine_reason}."


def _shown(text: str) -> str:
    """A text in a title, of a long one its end."""
    end = text if len(text) <= TITLE else "…" + text[-TITLE:]
    return drawn(end).replace("␣", " ").strip()


def _tokens(explanation: Explanation, _width: int) -> Step:
    return _token_step(explanation.tokens, explanation.merges, explanation.vocabulary)


def _token_step(tokens: Sequence[Token], merges: Sequence[Merges], vocabulary: int) -> Step:
    rows = table(">", "token", "id>", "bytes", "")
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
    rows = table("most merged", "merges, pair by pair")
    for one in merges:
        pairs = (Text.assemble(drawn(left), ("+", QUIET), drawn(right)) for left, right in one.joined)
        rows.add_row(token(one.piece), Text("  ").join(pairs))
    yield rows


def _embeddings(explanation: Explanation, _width: int) -> Step:
    rows = table("token", "norm>", "nearest rows by cosine similarity")
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


def _attention(explanation: Explanation, _width: int) -> Step:
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
        f"{key if at != last else 'itself'}: of all heads{inner} this one added most to the answer's logit: "
        f"{signed(a.source_contribution)} by this token alone, {signed(a.contribution)} by all its tokens."
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
    rows = table("", "query>", "key>")
    both = rope.query, rope.key
    rows.add_row("position", *(str(one.position) for one in both))
    rows.add_row("angle", *(f"{math.degrees(one.angle):.1f}°" for one in both))
    for name in ("before", "after"):
        pairs = (getattr(one, name) for one in both)
        rows.add_row(name, *(f"{number(x, '.2f')}, {number(y, '.2f')}" for x, y in pairs))
    one, other = rope.dimensions
    rate = f"{math.degrees(rope.radians_per_token):.3g}°"
    title = f"Rotary position embedding (RoPE): dimensions {one} and {other} rotate by {rate} a token"
    return Group(Text(title, QUIET), rows)


def _products(score: Score) -> RenderableType:
    rows = table("dimension", "q × k>", "product>")
    products = sorted(
        ((q * k, i) for i, (q, k) in enumerate(zip(score.query, score.key, strict=True))),
        key=lambda one: -abs(one[0]),
    )
    for product, i in products[:TERMS]:
        rows.add_row(str(i), f"{number(score.query[i])} × {number(score.key[i])}", number(product, ".3f"))
    rest = sum(product for product, _ in products[TERMS:])
    rows.add_row(f"{len(products) - TERMS} others", "", number(rest, ".3f"))
    rows.add_row(Text("q · k", "bold"), "", number(score.dot, ".3f"))
    last = f"× {number(score.scale)}"
    if score.softcap is not None:
        last += f", soft-capped at ±{number(score.softcap)}"
    if score.bias is not None:
        apart = score.query_position - score.key_position
        unbiased = score.score - score.bias
        rows.add_row("", last, number(unbiased, ".3f"))
        rows.add_row(f"bias, distance {apart}", "", number(score.bias, "+.3f"))
        last = ""
    rows.add_row(Text("score", "bold"), last, Text(number(score.score, ".3f"), "bold"))
    return rows


def _softmax(explanation: Explanation, score: Score) -> RenderableType:
    rows = table(">", "token", "score>", "exp>", "weight>", "|")
    best = sorted((one for one in score.weights if one.visible), key=lambda one: -one.weight)

    def add(position: str, name: Text, value: str, exp: float, weight: float) -> None:
        shown = Text(bar(weight, 20), ACCENT)
        rows.add_row(Text(position, QUIET), name, value, f"{exp:.4f}", percent(weight), shown)

    for one in sorted(best[:KEYS], key=lambda one: one.position):
        name = token(explanation.tokens[one.position].text)
        add(str(one.position), name, number(one.score, ".3f"), one.exp, one.weight)
    if others := best[KEYS:]:
        exp, weight = sum(one.exp for one in others), sum(one.weight for one in others)
        add("", Text(f"{len(others)} others", QUIET), "", exp, weight)
    total = sum(one.exp for one in best)
    if (sink := score.sink) is not None:
        add("", Text("sink, no value", QUIET), number(sink.score, ".3f"), sink.exp, sink.weight)
        total += sink.exp
    rows.add_row("", Text("sum", QUIET), "", f"{total:.4f}", "100.0%")
    return rows


def _heads(explanation: Explanation, width: int) -> Step:
    made = explanation.attribution
    attention, mlp = (sum(getattr(layer, name) for layer in made.layers) for name in ("attention", "mlp"))
    biases = f", biases {signed(made.biases)}" if round(made.biases, 2) else ""
    rest = f", rounding {signed(made.rest)}" if round(made.rest, 2) else ""  # the model here is unedited
    sentence = (
        f"The residual stream is a sum, so the logit of {drawn(made.text)}, {made.logit:.2f}, is one too: "
        f"embedding {signed(made.embed)}, heads {signed(attention)}, MLPs {signed(mlp)}{biases}{rest}. These "
        "are direct contributions, without what later layers make of them; a head's row sums over all tokens."
    )
    strongest, layers = _strongest(explanation, made.heads), _by_layer(explanation, width - 20)
    return "Direct logit attribution", sentence, strongest, layers


def _strongest(explanation: Explanation, heads: Sequence[Head]) -> RenderableType:
    rows = table("head>", "logits>", "|", "attends most to", "weight>")
    most = max((abs(head.contribution) for head in heads), default=1) or 1
    for head in heads:
        style = UP if head.contribution > 0 else DOWN
        rows.add_row(
            f"{head.layer}.{head.head}",
            signed(head.contribution),
            Text(bar(abs(head.contribution) / most, 16), style),
            attended(explanation, head.attends_to),
            "" if head.weight is None else percent(head.weight),
        )
    return rows


def attended(explanation: Explanation, position: int | None) -> Text:
    """The token with a head's largest attention weight; a recurrent head has none."""
    return Text("recurrent", QUIET) if position is None else token(explanation.tokens[position].text)


def _by_layer(explanation: Explanation, cells: int) -> RenderableType:
    layers = explanation.attribution.layers
    top = max((max(abs(layer.attention), abs(layer.mlp)) for layer in layers), default=1) or 1
    rows = table("", "", "")
    for start in range(0, len(layers), cells):
        part = layers[start : start + cells]
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


def _lens(explanation: Explanation, _width: int) -> Step:
    answer = explanation.next[0]
    rows = table("after>", "token", ">", "|", f"{drawn(answer.text)}>")
    for row in explanation.lens:
        name = stage(row.name)
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


def _other_lenses(explanation: Explanation, _width: int) -> Step:
    names = {"jacobian": "Jacobian lens", "tuned": "Tuned lens", "random": "random rotation"}
    kinds = explanation.lenses
    rows = table("after>", *(names[kind].lower().replace("jacobian", "Jacobian") for kind in kinds))
    for row in next(iter(kinds.values())):
        cells = (next(one for one in stages if one.name == row.name) for stages in kinds.values())
        words = (" ".join(drawn(token.text) for token in one.tokens) for one in cells)
        rows.add_row(Text(stage(row.name), QUIET), *map(Text, words))
    name = names[next(iter(kinds))]
    sentence = "The likeliest tokens that each block moves the model towards"
    control = "; a random rotation in its place shows chance." if "random" in kinds else "."
    return name, sentence + control, rows


def _settled(explanation: Explanation) -> str:
    """The block from which on the answer leads."""
    answer = explanation.next[0]
    since = len(explanation.lens)
    while since and explanation.lens[since - 1].id == answer.id:
        since -= 1
    if since == len(explanation.lens):
        return f"{drawn(answer.text)} is never ahead"
    return f"{drawn(answer.text)} leads from {since_stage(explanation.lens[since].name)} on"


def stage(name: str) -> str:
    """ "blocks.3.out" as 3, "embed" as it is."""
    return name.removeprefix("blocks.").removesuffix(".out")


def since_stage(name: str) -> str:
    """A stage in a sentence."""
    return "the embedding" if name == "embed" else f"block {stage(name)}"


def _residual(explanation: Explanation, width: int) -> Step:
    ends = [i for i, name in enumerate(explanation.stages) if not name.endswith(".middle")]
    lowest = math.log(max(min(min(one) for one in explanation.norms), 1e-9))
    highest = max(math.log(max(max(one), 1e-9)) for one in explanation.norms)
    rows = table("token", "embed>", "norm by block (log)", "end>")
    for position in _some(range(len(explanation.tokens)), rows, 4):
        norms = [explanation.norms[position][i] for i in ends]
        shown = norms[1 :: -(-len(ends) // max(8, width - 28))]  # every block, or every n-th where few fit
        levels = (8 * (math.log(max(one, 1e-9)) - lowest) / (highest - lowest + 1e-9) for one in shown)
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


def _next(explanation: Explanation, _width: int) -> Step:
    rows = table("token", "id>", "logit>", "probability>", "|")
    for one in explanation.next:
        logit, shown = number(one.logit, ".2f"), Text(bar(one.probability, 30), ACCENT)
        rows.add_row(token(one.text), str(one.id), logit, percent(one.probability), shown)
    kept = sum(one.probability for one in explanation.next)
    sentence = (
        f"The last residual becomes {explanation.vocabulary:,} logits, and softmax makes them probabilities; "
        f"those shown sum to {percent(kept)}."
    )
    return "Next token", sentence, rows


def _change(explanation: Explanation, _width: int) -> Step:
    assert explanation.change is not None
    rows = table("token", "before>", "after>", "|")
    for one in explanation.change.next[:CHANGED]:
        style = UP if one.after >= one.before else DOWN
        rows.add_row(
            token(one.text), percent(one.before), percent(one.after), Text(bar(one.after, 30), style)
        )
    return "Edited", f"The next token with {', '.join(explanation.change.what)}.", rows


def _patch(explanation: Explanation, width: int) -> Step:
    patch = explanation.patch
    assert patch is not None
    layers = len(patch.tokens[0].recovered)
    rows = table("token", "the other's", "block")
    cells = max(8, width - 40)
    for start in range(0, layers, cells):
        rows.add_row("", "", Text(_ruler(start, min(cells, layers - start)), QUIET))
        for one in _some(patch.tokens, rows, 3):
            line = spark(one.recovered[start : start + cells], 1)
            rows.add_row(token(one.text), token(one.other_text), Text(line, ACCENT))
    other = drawn(patch.other).replace("␣", " ")
    sentence = (
        f"A token's residual stream after a block is replaced by that of “{other}”: how far the answer moves "
        f"from {drawn(patch.here)} (·) to {drawn(patch.there)} (█)."
    )
    return "Activation patching", sentence, rows


def _some(items: Sequence, rows: Table, columns: int) -> Iterable[Any]:
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
