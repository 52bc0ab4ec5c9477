"""`cutaway explain`: the path of a text through a model, from its bytes to the next token, with the model's
own numbers.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

import cutaway
from cutaway.commands.console import model_path, print_json
from cutaway.errors import Refused

if TYPE_CHECKING:
    from cutaway.inspect.story import Story
    from cutaway.lm import LanguageModel
    from cutaway.model.decoder import Decoder
    from cutaway.trace import Edit

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
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Follow a text through a model: tokens, embeddings, attention, the residual stream, the next token.

    Examples:

    cutaway explain "The capital of France is"

    cutaway explain "What is rain?" --chat --top 5

    cutaway explain "The capital of France is" --ablate 23.4

    cutaway explain "The capital of France is" --patch "The capital of Italy is"

    cutaway explain "2 + 2 =" --json

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
    as_json
        Print the whole story as one JSON document, every number at full precision.
    """
    if not text:
        raise Refused("there is nothing to follow: the text is empty")
    if top < 1:
        raise Refused(f"--top is {top}: it must be 1 or more")
    strengths = [_strength(one) for one in steer]
    lm = cutaway.load(model_path(model), engine="definition")
    story = _story(
        lm, _ids(lm, text, chat), None if patch is None else _ids(lm, patch, chat), top, ablate, strengths
    )
    if as_json:
        print_json({"model": model, **asdict(story)})
    else:
        _print(story, model)


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
    from cutaway.inspect import story
    from cutaway.inspect.trace import Trace

    edit = _edit(lm.model, ablate, strengths)
    trace = Trace.of(lm.model, lm.tokenizer, ids, story.NAMES)
    told = story.tell(trace, top)
    if edit:
        after = Trace.of(lm.model, lm.tokenizer, ids, ("logits",), edit)
        what = [
            *(_named(part) for part in ablate),
            *(f"{path} added {strength:g} times" for path, strength in strengths),
        ]
        told = replace(told, change=story.changed(trace, after, what, top))
    return told if other is None else replace(told, patch=story.patched(trace, other))


def _edit(model: Decoder, ablate: tuple[str, ...], strengths: list[Strength]) -> dict[str, Edit]:
    from cutaway.inspect.ablate import together, without
    from cutaway.inspect.steer import load, steer

    return together(
        without(model, ablate), *(steer(model, load(path), strength) for path, strength in strengths)
    )


def _named(part: str) -> str:
    return f"head {part} taken out" if "." in part else f"layer {part} skipped"


def _strength(given: str) -> Strength:
    path, colon, strength = given.rpartition(":")
    try:
        if not colon or not path:
            raise ValueError
        value = float(strength)
    except ValueError:
        raise Refused(
            f"--steer is {given!r}: it must be FILE:STRENGTH, such as calm.safetensors:0.8"
        ) from None
    if not Path(path).exists():
        raise Refused(f"--steer: there is no file {path}")
    return path, value


def _print(story: Story, model: str) -> None:
    """Shows the story; what goes into a file or a pipe has no colours and no spaces at the ends of lines."""
    from rich.console import Console

    from cutaway.commands import story_text

    console = Console(highlight=False)
    if console.is_terminal:
        story_text.show(story, model, console)
        return
    with console.capture() as captured:
        story_text.show(story, model, console)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))
