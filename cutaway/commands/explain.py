"""`cutaway explain`: the path of a text through a model, from its bytes to the next token, with the model's
own numbers.
"""

from __future__ import annotations

import sys
import tempfile
import webbrowser
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

import cutaway
from cutaway.commands.console import model_path, note, print_json, size
from cutaway.errors import OperationalError, UserError
from cutaway.store import files

if TYPE_CHECKING:
    from rich.console import Console

    from cutaway.hooks import Edit
    from cutaway.inspect.explanation import Story
    from cutaway.inspect.page_data import Sheet
    from cutaway.inspect.paths import Reading
    from cutaway.lm import LanguageModel
    from cutaway.model.decoder import Decoder
    from cutaway.tokenizer.chat import Rendered

Strength = tuple[str, float]


def explain(
    text: str,
    /,
    *,
    model: str = "smollm2",
    chat: Annotated[bool, Parameter(negative=())] = False,
    top: int = 10,
    ablate: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    steer: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    patch: str | None = None,
    compare: str | None = None,
    compare_model: str | None = None,
    paths: Annotated[bool, Parameter(negative=())] = False,
    html: Path | None = None,
    force: Annotated[bool, Parameter(negative=())] = False,
    open_page: Annotated[bool, Parameter(name="--open", negative=())] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Follow a text through a model: tokens, embeddings, attention, the residual stream, the next token.

    Examples:

    cutaway explain "The capital of France is"

    cutaway explain "What is rain?" --chat --top 5

    cutaway explain "The capital of France is" --ablate 23.4

    cutaway explain "The capital of France is" --patch "The capital of Italy is"

    cutaway explain "The capital of France is" --html france.html --open

    cutaway explain "The capital of France is" --compare "The capital of Italy is"

    cutaway explain "2 + 2 =" --json

    cutaway explain "The capital of France is" --paths

    Parameters
    ----------
    text
        The text to follow. Control tokens spelt in it stay text.
    model
        A model's name, a .gguf file or a folder.
    chat
        Put the text as a question, through the model's chat template.
    top
        How many of the likeliest next tokens to show.
    ablate
        Take out a head (5.3 is head 3 of layer 5) or a layer (5), and show what changes; again for more.
    steer
        FILE:STRENGTH, add a steering vector so many times over, and show what changes; again for more.
    patch
        Another text of as many tokens: where in the model do the two answers part?
    compare
        Another text, of any length: both side by side.
    compare_model
        Another model: both side by side, on this text or on the other one.
    paths
        Show instead how each layer computes this prompt and a decoding step, and why not in another way.
    html
        Write an interactive page to this file instead: one file that needs nothing else. A model that was
        changed by --ablate or --steer is shown beside itself.
    force
        Replace the page if it exists.
    open_page
        Open the page in the browser.
    as_json
        Print the whole story as one JSON document, every number at full precision.
    """
    if not text:
        raise UserError("there is nothing to follow: the text is empty")
    if top < 1:
        raise UserError(f"--top is {top}: it must be 1 or more")
    two = compare is not None or compare_model is not None
    if compare == "":
        raise UserError("there is nothing to compare with: the other text is empty")
    if two and (ablate or steer or patch is not None):
        raise UserError("--compare shows two as they are: leave out --ablate, --steer and --patch")
    if paths and (two or ablate or steer or patch is not None or html or open_page):
        raise UserError("--paths shows how the model reads: leave out the options that change or draw it")
    if patch is not None and (html or open_page):
        raise UserError("--patch is told in the terminal: leave out --html and --open, or use --compare")
    if html is not None:
        files.check_overwrite(html, force)
    strengths = [_strength(one) for one in steer]
    lm = cutaway.load(model_path(model), engine="definition")
    if paths:
        _paths(lm, _ids(lm, text, chat), model, as_json)
        return
    if html or open_page:
        edit = _edit(lm.model, ablate, strengths)
        sheets = [_sheet(lm, _ids(lm, text, chat), model)]
        if edit:
            name = f"{model}, {', '.join(_changes(ablate, strengths))}"
            sheets.append(_sheet(lm, _ids(lm, text, chat), name, edit))
        elif two:
            other = _other(lm, compare_model)
            sheets.append(_sheet(other, _ids(other, compare or text, chat), compare_model or model))
        _page(sheets, html, open_page, force)
        return
    if two:
        other = _other(lm, compare_model)
        models = (model, compare_model or model)
        stories = (
            _story(lm, _ids(lm, text, chat), None, top, (), []),
            _story(other, _ids(other, compare or text, chat), None, top, (), []),
        )
        _print_two(stories, models, as_json)
        return
    story = _story(
        lm, _ids(lm, text, chat), None if patch is None else _ids(lm, patch, chat), top, ablate, strengths
    )
    if as_json:
        print_json({"model": model, **asdict(story)})
    else:
        _print(story, model, lm.chat_text([{"role": "user", "content": text}]) if chat else None)


def _ids(lm: LanguageModel, text: str, chat: bool) -> list[int]:
    return lm.chat_ids([{"role": "user", "content": text}]) if chat else lm.ids(text)


def _story(
    lm: LanguageModel,
    ids: list[int],
    other: list[int] | None,
    top: int,
    ablate: tuple[str, ...],
    strengths: list[Strength],
) -> Story:
    from cutaway.inspect import explanation
    from cutaway.inspect.trace import Trace

    edit = _edit(lm.model, ablate, strengths)
    trace = Trace.of(lm.model, lm.tokenizer, ids, explanation.names(lm.model))
    told = explanation.tell(trace, top)
    if edit:
        after = Trace.of(lm.model, lm.tokenizer, ids, ("logits",), edit)
        told = replace(told, change=explanation.changed(trace, after, _changes(ablate, strengths), top))
    return told if other is None else replace(told, patch=explanation.patched(trace, other))


def _edit(model: Decoder, ablate: tuple[str, ...], strengths: list[Strength]) -> dict[str, Edit]:
    from cutaway.inspect.ablate import together, without
    from cutaway.inspect.steer import load, steer

    return together(
        without(model, ablate), *(steer(model, load(path), strength) for path, strength in strengths)
    )


def _changes(ablate: tuple[str, ...], strengths: list[Strength]) -> list[str]:
    """What was done to the model, in words."""
    added = (f"{path} added {strength:g} times" for path, strength in strengths)
    return [*map(_named, ablate), *added]


def _named(part: str) -> str:
    return f"head {part} taken out" if "." in part else f"layer {part} skipped"


def _strength(given: str) -> Strength:
    path, colon, strength = given.rpartition(":")
    try:
        if not colon or not path:
            raise ValueError
        value = float(strength)
    except ValueError:
        raise UserError(
            f"--steer is {given!r}: it must be FILE:STRENGTH, such as calm.safetensors:0.8"
        ) from None
    if not Path(path).exists():
        raise UserError(f"--steer: there is no file {path}")
    return path, value


def _print(story: Story, model: str, asked: Rendered | None) -> None:
    from cutaway.commands import explanation_text, origins

    if asked is not None:
        _on_console(lambda console: origins.show(asked, console))
    _on_console(lambda console: explanation_text.show(story, model, console))


def _on_console(show: Callable[[Console], None]) -> None:
    """What goes into a file or a pipe has no colours and no spaces at the ends of lines."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        show(console)
        return
    with console.capture() as captured:
        show(console)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def _other(lm: LanguageModel, compare_model: str | None) -> LanguageModel:
    return lm if compare_model is None else cutaway.load(model_path(compare_model), engine="definition")


def _sheet(lm: LanguageModel, ids: list[int], name: str, edit: Mapping[str, Edit] | None = None) -> Sheet:
    from cutaway.inspect import page_data
    from cutaway.inspect.trace import Trace

    return page_data.draw(Trace.of(lm.model, lm.tokenizer, ids, page_data.names(lm.model), edit), name)


def _page(sheets: list[Sheet], target: Path | None, open_page: bool, force: bool) -> None:
    """Writes the page, to a temporary file if none was named, and opens it if asked to."""
    from cutaway.inspect.page import page

    target = target or Path(tempfile.mkdtemp(prefix="cutaway-")) / "explain.html"
    files.write(target, page(sheets), force=force)
    note(f"Wrote {target} ({size(target.stat().st_size)}).")
    if open_page and not webbrowser.open(target.resolve().as_uri()):
        raise OperationalError(f"no browser could be opened: open {target} yourself")


def _paths(lm: LanguageModel, ids: list[int], model: str, as_json: bool) -> None:
    from cutaway.commands import paths_text
    from cutaway.inspect import paths

    readings = paths.paths(lm.model, ids)
    if as_json:
        print_json({"model": model, "readings": [_reading(reading) for reading in readings]})
    else:
        _on_console(lambda console: paths_text.show(readings, model, console))


def _reading(reading: Reading) -> dict[str, Any]:
    layers = [
        {"layer": one.layer, "backend": one.backend._asdict(), "form": one.form and one.form._asdict()}
        for one in reading.layers
    ]
    return {"tokens": reading.tokens, "after": reading.after, "layers": layers}


def _print_two(stories: tuple[Story, Story], models: tuple[str, str], as_json: bool) -> None:
    from cutaway.commands import explanation_compare

    if as_json:
        one, other = ({"model": model, **asdict(story)} for model, story in zip(models, stories, strict=True))
        print_json(one | {"compare": other})
    else:
        _on_console(lambda console: explanation_compare.show(*stories, models, console))
