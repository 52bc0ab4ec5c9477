"""`cutaway explain`: what a model does with a text, from its bytes to the next token, in its own numbers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cutaway.commands import explain_features, explain_how, plots
from cutaway.commands.console import base_of, doing, on_screen, print_json, use_threads
from cutaway.commands.explain_asked import Asked, load_model
from cutaway.commands.generate import prompt_text
from cutaway.commands.options import Flag, Force, Json, Open, Svg, Threads, Words
from cutaway.errors import UserError

if TYPE_CHECKING:
    from cutaway.inspect.against import Against
    from cutaway.inspect.explanation import Explanation
    from cutaway.lm import LanguageModel

PAGE = "explain.html"


def explain(
    text: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    *,
    file: Path | None = None,
    model: Annotated[
        str | None, Parameter(help="A model's name, a .gguf file or a folder [smollm2].")
    ] = None,
    chat: Flag = False,
    top: int = 10,
    ablate: Words = (),
    steer: Words = (),
    patch: str | None = None,
    compare: str | None = None,
    compare_model: str | None = None,
    against: str | None = None,
    backends: Flag = False,
    parallel: Flag = False,
    sae: Path | None = None,
    lens: str | None = None,
    how: Flag = False,
    html: Path | None = None,
    svg: Svg = None,
    force: Force = False,
    open_page: Open = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Explain what a model does with a text: tokens, embeddings, attention, residual stream, next token.

    **Examples:**

    cutaway explain "The capital of France is"

    cutaway explain "What is rain?" --chat --top 5

    cutaway explain "The capital of France is" --ablate 23.4

    cutaway explain "The capital of France is" --patch "The capital of Italy is"

    cutaway explain "The capital of France is" --html france.html --open

    cutaway explain "The capital of France is" --compare "The capital of Italy is"

    cutaway explain "The capital of France is" --against runs/talk

    cutaway explain "The currency of the country shaped like a boot is the" --lens lens.safetensors

    cutaway explain - --json < prompt.txt

    cutaway explain "The capital of France is" --backends

    cutaway explain "The capital of France is" --parallel

    :param text: The text to explain; - reads it from standard input. Control tokens spelt in it stay text.
    :param file: Read the text from this file (without its last newline).
    :param chat: Put the text as a question, through the model's chat template.
    :param top: How many of the likeliest next tokens to show.
    :param ablate: Ablate a head (5.3 is head 3 of layer 5) or a layer (5), and show what changes; again for
        more.
    :param steer: FILE:STRENGTH, add a steering vector times the strength, and show what changes; again for
        more.
    :param patch: Another text of as many tokens: activation patching shows where in the model the answers
        diverge.
    :param compare: Another text, of any length: both side by side.
    :param compare_model: Another model: both side by side, on this text or on the other one.
    :param against: A run's or adapter's folder, or a model of the same shape: show what training changed. The
        model, if none is named, is then the one that the run or the adapter began with.
    :param backends: Show instead which attention backend each layer uses for prefill and decode, and why.
    :param parallel: Show instead what can run at once for this text and for the token after it, and what must
        wait: operations, bytes and this machine's measured limits.
    :param sae: Show instead the strongest features of each token, of an autoencoder that `cutaway sae` wrote;
        on a page, besides.
    :param lens: Show a lens too: the file of a Jacobian or a tuned one, or jacobian, the model's own.
    :param how: With --html or --open: write instead the chapters of "How it works" on this text and model.
    :param html: Write an interactive page to this file: one file that needs no network. A model that
        --ablate or --steer changed is beside the unchanged one; --patch, --against and --sae add a view.
        --open alone writes a temporary file.
    """
    source = model or (against and base_of(Path(against))) or "smollm2"
    text = prompt_text(text, file)
    asked = Asked(text, source, chat, top, ablate, steer, patch, compare, compare_model, against, lens)
    asked.check(backends, parallel, sae is not None, html is not None or open_page, how)
    use_threads(threads)
    plots.check(html, svg, force)
    plots.check_alone(svg, asked.two or backends or parallel or sae is not None or html or open_page)
    features, labels = (None, {}) if sae is None else explain_features.autoencoder(sae)
    lm = load_model(source)
    ids, page = asked.ids(lm, asked.text), html is not None or open_page
    if how:
        plots.write_page(explain_how.document(lm, ids, asked.text, asked.name), html, PAGE, open_page)
    elif features is not None and not page:
        explain_features.show(lm, ids, features, labels, asked.name, as_json)
    elif parallel:
        _print_parallel(lm, ids, asked.name, threads, as_json)
    elif backends:
        asked.check_edits(lm, ids)
        _print_backends(lm, ids, asked.name, as_json)
    else:
        early = sys.stdout.isatty() and not (as_json or html or svg or open_page or asked.two)
        if early:
            _show_tokens(lm, ids, asked)
        asked.check_edits(lm, ids)
        with asked.layers_counted(lm, ids, page):
            if svg is not None:
                _write_svg(asked, lm, ids, svg)
            elif page:
                plots.write_page(asked.document(lm, ids, features), html, PAGE, open_page)
            else:
                _explain(asked, lm, ids, early, as_json)


def _write_svg(asked: Asked, lm: LanguageModel, ids: list[int], folder: Path) -> None:
    from cutaway.inspect import explanation_svg

    plots.write_svg(folder, explanation_svg.drawn(asked.explanation(lm, ids)))


def _explain(asked: Asked, lm: LanguageModel, ids: list[int], early: bool, as_json: bool) -> None:
    """Run one model or both, and print what was asked."""
    if asked.against is not None:
        _print_against(asked.against_base(lm, ids), asked, as_json)
    elif asked.two:
        _print_two(asked.both(lm, ids), asked, as_json)
    else:
        with doing("Running the model"):
            explanation = asked.explanation(lm, ids)
        _print(explanation, asked, lm, early, as_json)


def _show_tokens(lm: LanguageModel, ids: Sequence[int], asked: Asked) -> None:
    """The title and the first step, which need no torch."""
    from cutaway.commands import explanation_text

    asked.print_origins(lm)
    on_screen(lambda console: explanation_text.show_tokens(lm, ids, asked.name, console))


def _print(explanation: Explanation, asked: Asked, lm: LanguageModel, early: bool, as_json: bool) -> None:
    from cutaway.commands import explanation_text

    if as_json:
        print_json({"model": asked.name, **asdict(explanation)})
        return
    if not early:
        asked.print_origins(lm)
    on_screen(lambda console: explanation_text.show(explanation, asked.name, console, early))


def _print_two(explanations: tuple[Explanation, Explanation], asked: Asked, as_json: bool) -> None:
    from cutaway.commands import explanation_compare

    names, same_model = (asked.name, asked.other_name), asked.compare_model is None
    if as_json:
        one, other = ({"model": name, **asdict(each)} for name, each in zip(names, explanations, strict=True))
        print_json(one | {"compare": other})
    else:
        on_screen(lambda console: explanation_compare.show(*explanations, names, same_model, console))


def _print_against(found: Against, asked: Asked, as_json: bool) -> None:
    from cutaway.commands import explanation_against

    names = asked.name, asked.other_name
    if as_json:
        print_json({"model": names[0], "against": names[1], **asdict(found)})
    else:
        on_screen(lambda console: explanation_against.show(found, names, console))


def _print_backends(lm: LanguageModel, ids: list[int], name: str, as_json: bool) -> None:
    with doing("Loading PyTorch and the weights"):
        _ = lm.model
    from cutaway.commands import backends_text
    from cutaway.inspect import backends

    passes = backends.backends(lm.model, ids)
    if as_json:
        print_json({"model": name, "passes": [one.to_json() for one in passes]})
    else:
        on_screen(lambda console: backends_text.show(passes, name, console))


def _print_parallel(lm: LanguageModel, ids: list[int], name: str, threads: int | None, as_json: bool) -> None:
    from cutaway import native
    from cutaway.commands import parallel_text
    from cutaway.inspect import parallel

    if lm.is_encoder:
        raise UserError(f"{name}: is an encoder, which reads a text at once and decodes nothing")
    with doing("Measuring this machine"):
        here = parallel.machine(lm, threads or native.threads())
    found = parallel.passes(lm, len(ids))
    if as_json:
        passes = [{**asdict(one), "waits": one.waits} for one in found]
        print_json({"model": name, "machine": asdict(here), "passes": passes})
    else:
        on_screen(lambda console: parallel_text.show(found, here, name, console))
