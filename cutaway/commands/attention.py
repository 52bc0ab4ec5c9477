"""`cutaway attention`: every mechanism with its cost, and `show`, which draws its attention mask.

Beside it `distance` (``attention_distance.py``) and `align` (``attention_align.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App

from cutaway.attention.common import registry, usual
from cutaway.attention.common.registry import Kind, Sizes
from cutaway.commands import plots
from cutaway.commands.console import model_path, on_screen, print_json, size
from cutaway.commands.options import Force, Html, Json, Svg
from cutaway.errors import UserError
from cutaway.page.svg import render

if TYPE_CHECKING:
    from rich.console import Console

    from cutaway.attention.common.mask_plot import MaskPlot

attention = App(name="attention", result_action="return_value")
attention.command(
    "cutaway.commands.attention_distance:distance", name="distance", help="How a score falls with distance."
)
attention.command(
    "cutaway.commands.attention_align:align", name="align", help="Where Bahdanau's attention looks."
)
LONGEST = 128  # tokens that a drawing holds
SPACED = 40  # tokens up to which cells are drawn apart
SEEN, HIDDEN = "■", "·"


@attention.default
def every(
    *, model: str = "smollm2", tokens: int = 4096, bits: Literal[32, 16, 8, 4] = 32, as_json: Json = False
) -> None:
    """List every attention mechanism: a summary, its KV cache or state, and its cost.

    The figures are of one layer with the sizes of MODEL. `cutaway attention show KIND` draws the mask,
    `distance` how a score falls with distance, `align` where the first attention of all looked.

    **Examples:**

    cutaway attention

    cutaway attention --tokens 100000 --bits 16

    cutaway attention --json

    cutaway attention show local --window 4

    :param model: A model's name, a .gguf file or a folder: it gives the width, the heads and their size.
    :param tokens: The length of the text, n, in the formulas.
    :param bits: Bits of a cached number.
    """
    if tokens < 1:
        raise UserError(f"--tokens is {tokens}: it must be 1 or more")
    import cutaway

    config: Any = cutaway.load(model_path(model)).config
    if not config.blocks:
        raise UserError(f"{model} has no layers, so its attention has no sizes")
    sizes = usual.sizes_of(config.width, config.blocks[0].attention)
    rows = [usual.row(kind, sizes, tokens, bits) for kind in registry.kinds()]
    if as_json:
        letters = dict(zip("dhgkv", sizes, strict=True))
        print_json({"model": model, "sizes": letters, "tokens": tokens, "bits": bits, "mechanisms": rows})
    else:
        on_screen(lambda console: _list(rows, model, sizes, tokens, bits, console))


@attention.command
def show(
    kind: str,
    /,
    *,
    length: int = 12,
    seed: int = 0,
    html: Html = None,
    svg: Svg = None,
    force: Force = False,
    as_json: Json = False,
    **options: str,
) -> None:
    """Draw a mechanism's attention mask: a row a query, a column a key.

    A mechanism's own options are flags: --window, --chunk, --stride, ... Those left out are drawn to scale.

    **Examples:**

    cutaway attention show local --window 4

    cutaway attention show bigbird --window 3 --globals 2 --block 2 --random 1 --length 20

    cutaway attention show bidirectional --reach 2

    cutaway attention show dsa --top-k 3 --json

    cutaway attention show local --window 4 --html local.html

    cutaway attention show mla --svg drawings

    :param kind: A mechanism, as `cutaway attention` lists them.
    :param length: How many tokens to draw.
    :param seed: Of the example, where the mask depends on the text.
    """
    if not 1 <= length <= LONGEST:
        raise UserError(f"--length is {length}: a drawing holds 1 to {LONGEST} tokens")
    plots.check(html, svg, force)
    found = registry.kind(kind)
    chosen = _parsed(found, options | ({"seed": str(seed)} if "seed" in usual.options(found) else {}))
    config = found.like(usual.SMALL, usual.to_scale(found, length, chosen) | chosen)

    from cutaway.attention.common.mask_plot import draw

    picture = draw(config, length, seed)
    own = [*found.usual, *found.config.__annotations__, *chosen]
    shown = {name: getattr(config, name) for name in usual.options(found) if name in own}
    if html is not None or svg is not None:
        from cutaway.inspect import reports

        report = reports.mechanism(found, shown, picture, usual.by_length(found, usual.EXAMPLE))
        plots.write_plots(report, html, None, force)
    if svg is not None:
        shared = reports.shared_heads(found)
        plots.write_svg(svg, render.named(report.charts()) | ({"heads": shared} if shared else {}))
    if as_json:
        mask = None if picture.mask is None else [[int(cell) for cell in row] for row in picture.mask]
        document = {"kind": kind, "summary": found.summary, "options": shown}
        print_json(document | {"caption": picture.caption, "mask": mask})
    elif html is None and svg is None:
        on_screen(lambda console: _draw(found, shown, picture, console))


def _parsed(kind: Kind, given: Mapping[str, str]) -> dict[str, Any]:
    """The flags as the mechanism's options; UserError for one that it lacks, or of another type."""
    from cutaway.model.config_dict import from_dict, to_dict

    known = usual.options(kind)
    values = {name.replace("-", "_"): _plain(value) for name, value in given.items()}
    for name in values:
        if name not in known:
            flags = ", ".join(f"--{one.replace('_', '-')}" for one in known)
            raise UserError(f"{kind.name} has no option --{name.replace('_', '-')}; it has {flags or 'none'}")
    whole = to_dict(kind.like(usual.SMALL, {})) | values
    try:
        from_dict(whole, kind.config, kind.name)
    except UserError as problem:
        raise UserError(str(problem).replace(f"{kind.name}.", f"{kind.name}: --", 1)) from None
    return values


def _plain(text: str) -> Any:
    """A flag's value as a number or a word."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _list(
    rows: list[dict[str, Any]], model: str, sizes: Sizes, tokens: int, bits: int, console: Console
) -> None:
    from rich.padding import Padding
    from rich.text import Text

    width = min(console.width, 110)
    for row in rows:
        console.print(Text.assemble((row["kind"], "bold cyan"), f"  {row['summary']}"), width=width)
        for line in _lines(row):
            console.print(Padding(Text(line, "bright_black"), (0, 0, 0, 4)), width=width)
    letters = ", ".join(f"{name} {value:,}" for name, value in zip("dhgkv", sizes, strict=True))
    legend = (
        f"\nOne layer with the sizes of {model}: {letters} (width, query heads, key-value heads, key size, "
        f"value size), numbers of {bits} bits. n is the length of the text, here {tokens:,}, s that of an "
        "encoder's text, the same here; f are features, other names the mechanism's options. The formulas "
        "count multiplications over visible keys; the projections cost the same in every mechanism."
    )
    console.print(Text(legend), width=width)


def _lines(row: dict[str, Any]) -> list[str]:
    """A mechanism's cache, and the cost of prefill and of a decoding step."""
    if "refused" in row:
        return [f"does not fit this model: {row['refused']}"]
    names = [name for name in row["options"] if name in registry.kind(row["kind"]).usual]
    chosen = ", ".join(f"{name} {row['options'][name]:,}" for name in names)
    costs = [(name, row["cost"][name], row["at"][name]) for name in ("prefill", "decode")]
    shown = [f"{name}: {formula} = {_count(value)}" for name, formula, value in costs if formula is not None]
    return [_cache(row) + (f" (with {chosen})" if chosen else ""), *shown]


def _cache(row: dict[str, Any]) -> str:
    if row["reads"] == "all":
        return "no KV cache: an encoder reads the whole text at once"
    if "state_bytes" in row:
        return f"recurrent state: {size(row['state_bytes'])}, whatever the length"
    of = " of the encoder's text" if row["reads"] == "memory" else ""
    most = f", at most {row['max_tokens']:,} tokens" if row["max_tokens"] else ""
    return f"KV cache: {row['bytes_per_token']:,} bytes per token{of}{most}"


def _count(value: float) -> str:
    """A number with its unit: 9.66 G."""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.0f}"


def _draw(kind: Kind, options: Mapping[str, Any], picture: MaskPlot, console: Console) -> None:
    from rich.text import Text

    width = min(console.width, 100)
    console.print(Text.assemble((kind.name, "bold cyan"), f"  {kind.summary}"), width=width)
    if options:
        chosen = ", ".join(f"{name} {value}" for name, value in options.items())
        console.print(Text(chosen, "bright_black"), width=width)
    if picture.mask is not None:
        console.print()
        _matrix(picture, console)
    console.print()
    console.print(Text(picture.caption), width=width)


def _matrix(picture: MaskPlot, console: Console) -> None:
    """A line a query, a cell a key."""
    from rich.text import Text

    assert picture.mask is not None
    columns = len(picture.mask[0])
    gap = " " if columns <= SPACED else ""
    if 3 + columns * (1 + len(gap)) > console.width:
        raise UserError(
            f"{columns} tokens need a terminal of {3 + columns * (1 + len(gap))} columns: "
            f"it has {console.width}; use a smaller --length, or --json"
        )
    console.print(Text("    " + gap.join(str(j % 10) for j in range(columns)), "bright_black"), no_wrap=True)
    for i, row in enumerate(picture.mask):
        cells = Text(gap).join(Text(SEEN, "cyan") if cell else Text(HIDDEN, "bright_black") for cell in row)
        console.print(Text.assemble((f"{i:>3} ", "bright_black"), cells), no_wrap=True)
