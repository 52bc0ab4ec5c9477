"""`cutaway lens show`: how a lens was fitted, and what it shows of a text beside the logit lens."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from cyclopts import Parameter

from cutaway import lm
from cutaway.commands import console
from cutaway.commands.options import Json, Model, Threads
from cutaway.errors import UserError

MOST = 1000  # tokens of a layer
HIDDEN = ("deviation", "done")  # what a fit needs to go on


def show(
    lens: str,
    text: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    *,
    model: Model = "smollm2",
    position: Annotated[int, Parameter(allow_leading_hyphen=True)] = -1,
    top: int = 3,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Say how a lens was fitted; with a text, what it shows after each layer beside the logit lens.

    The last column is a control: the same stream through a random rotation. What it shows is chance.

    **Examples:**

    cutaway lens show lens.safetensors

    cutaway lens show lens.safetensors "The currency of the country shaped like a boot is the"

    cutaway lens show jacobian "The capital of France is" --top 5 --position -2

    :param lens: A lens's file, of Cutaway or published, or jacobian: the model's own.
    :param text: A text to look into.
    :param position: Which token of the text; -1 is the last.
    :param top: How many of the likeliest tokens to show.
    """
    if not 1 <= top <= MOST:
        raise UserError(f"--top is {top}: it goes from 1 to {MOST}")
    console.use_threads(threads)
    if text is None and lens != "jacobian":
        from cutaway.inspect import jacobian_file

        _print(_facts(lens, jacobian_file.load(lens)), as_json)
        return
    from cutaway.inspect import lenses

    loaded = lm.load(console.model_path(model))
    by: Any = lenses.find(lens, loaded)
    if text is None:
        _print(_facts(lens, by), as_json)
        return
    ids = loaded.ids(text)
    if not ids:
        raise UserError("the text is empty: there is nothing to show")
    with console.doing("Running the model"):
        trace = loaded.trace(ids, names=["embed", "blocks.*.out"])
        shown = _shown(trace, by, position, top)
    if as_json:
        console.print_json({
            "model": model,
            "token": trace.tokens[position],
            "lenses": {kind: [_row(one) for one in rows] for kind, rows in shown.items()},
        })  # fmt: skip
        return
    console.on_screen(lambda screen: _draw(screen, shown, trace.tokens[position], top))


def _shown(trace: Any, by: Any, position: int, top: int) -> dict[str, Any]:
    """What each lens shows, by its kind."""
    from cutaway.inspect.lens_words import words
    from cutaway.inspect.lenses import with_control

    (kind, first), *control = with_control(by).items()
    kinds = {kind: first, "logit": "logit", **dict(control)}
    return {kind: words(trace, one, position, top) for kind, one in kinds.items()}


def _row(one: Any) -> dict[str, Any]:
    return {"after": one.name, "tokens": [asdict(token) for token in one.tokens], "final": one.final}


def _facts(path: str, lens: Any) -> dict[str, Any]:
    from cutaway.inspect.jacobian_lens import JacobianLens

    if not isinstance(lens, JacobianLens):
        raise UserError(f"{path} is a tuned lens, which keeps no facts: give a text, and it is shown")
    facts = {key: value for key, value in lens.facts.items() if key not in HIDDEN}
    return {
        "file": path,
        "layers": sorted(lens.matrices),
        "target": lens.target,
        "width": lens.width,
        "texts": lens.texts,
        **facts,
    }


def _print(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        console.print_json(facts)
        return
    from cutaway.inspect.jacobian_lens import ranges

    rows, width = facts.get("rows"), facts["width"]
    console.say(f"{facts['file']}: a Jacobian lens of layers {ranges(facts['layers'])}, width {width}")
    console.say(f"its matrices give the residual stream after layer {facts['target']}")
    how = "" if rows is None else "exact" if rows == width else f"sketched by {rows} directions a text"
    fitted = f", {how}, {facts['dtype']}" if how else ""
    console.say(f"fitted to {facts['texts']} texts{fitted}")
    if isinstance(facts.get("error"), float):
        console.say(f"standard error {100 * facts['error']:.1f}% of the matrices' norm (the median layer)")


def _draw(screen: Any, shown: dict[str, Any], token: str, top: int) -> None:
    from rich.text import Text

    from cutaway.commands.cells import QUIET, drawn, table

    def cell(one: Any) -> Text:
        return Text("" if one is None else " ".join(drawn(each.text) for each in one.tokens))

    heads = {"jacobian": "Jacobian lens", "tuned": "tuned lens", "logit": "logit lens", "random": "control"}
    made = table("after>", *(heads[kind] for kind in shown))
    by_name = {kind: {one.name: one for one in rows} for kind, rows in shown.items()}
    for name in by_name["logit"]:
        cells = (cell(rows.get(name)) for rows in by_name.values())
        made.add_row(Text("embed" if name == "embed" else name.split(".")[1], QUIET), *cells)
    many = "The likeliest token" if top == 1 else f"The {top} likeliest tokens"
    screen.print(f"{many} after each layer, at {drawn(token)}", markup=False, highlight=False)
    console.print_table(screen, made)
