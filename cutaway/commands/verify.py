"""`cutaway verify`: does another engine, given the same weights, compute the same?"""

from dataclasses import asdict
from typing import TYPE_CHECKING

from cutaway.commands import console
from cutaway.commands.options import Json, Strict
from cutaway.errors import OperationalError, UserError
from cutaway.extras import install, installed

if TYPE_CHECKING:
    from cutaway.inspect.verify import Verdict
    from cutaway.lm import LanguageModel


def verify(
    model: str = "smollm2",
    /,
    *,
    text: str | None = None,
    tokens: int = 32,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Compare MODEL with the independent engines here: transformers, and llama.cpp for GGUF files.

    Without PyTorch the runtime is compared, with llama.cpp. Shows the largest difference after each layer and
    of the logits, and the first token where greedy text differs. The exit code is 1 if an engine disagrees,
    and the layer where it starts is named.

    **Examples:**

    cutaway verify smollm2

    cutaway verify my-model-folder --text "Once upon a time" --json

    :param model: A model's name, a .gguf file, a Hugging Face folder, or a folder that Cutaway wrote.
    :param text: What both engines read; a mixed paragraph without it.
    :param tokens: How many tokens must follow alike, chosen greedily.
    """
    if tokens < 1:
        raise UserError(f"--tokens is {tokens}: at least one token must be compared")
    path = console.model_path(model)

    import cutaway
    from cutaway.inspect import verify as judge

    engines = judge.engines(path)
    if not engines:
        raise UserError(f"no other engine here reads {path}: {install('eval')}")
    console.note(f"Comparing {model} with {' and '.join(engines)}.")
    if installed("torch"):
        with console.doing("Loading PyTorch and the weights"):
            lm = cutaway.load(path, engine="pytorch", strict=strict)
            _ = lm.model
    else:
        lm = cutaway.load(path, engine="runtime", strict=strict)
    verdicts = _judged(lm, text if text is not None else judge.TEXT, tokens)
    if as_json:
        console.print_json({"model": str(path), "engines": [asdict(verdict) for verdict in verdicts]})
    else:
        for verdict in verdicts:
            _show(verdict, lm)
    wrong = [verdict for verdict in verdicts if not verdict.agrees]
    if wrong:
        raise OperationalError(_blame(wrong[0]))


def _judged(lm: "LanguageModel", text: str, tokens: int) -> "list[Verdict]":
    from cutaway.inspect import verify as judge

    path = lm.checkpoint.source
    ids = lm.ids(text)
    ours: list[int] = []
    verdicts = []
    with console.watched() as progress:
        for piece in lm.stream(ids, max_tokens=tokens, ignore_eos=True):
            ours += [] if piece.id is None else [piece.id]
            progress("generating with Cutaway", len(ours), tokens)
        for engine in judge.engines(path):
            console.note(f"Reading {len(ids)} tokens and {tokens} that follow with {engine}.")
            if engine == "transformers":
                from cutaway.inspect import verify_layers

                verdicts.append(verify_layers.against(lm.pytorch, path, ids, ours, progress))
            else:
                verdicts.append(judge.against_llama_cpp(lm.engine, path, ids, ours, progress))
    return verdicts


def _show(verdict: "Verdict", lm: "LanguageModel") -> None:
    from rich.table import Table

    table = Table(title=verdict.engine, title_justify="left", box=None, pad_edge=False)
    for heading in ("layer", "largest difference", "relative to the vector"):
        is_name = (
            heading == "layer"
        )  # a name stays whole on a narrow terminal: figures' headings break instead
        table.add_column(heading, justify="left" if is_name else "right", overflow="fold", no_wrap=is_name)
    for layer in verdict.layers:
        style = "bold red" if layer.name == verdict.differs_from else None
        table.add_row(layer.name, f"{layer.largest:.2e}", f"{layer.relative:.2e}", style=style)
    shown = console.screen()
    shown.print(table)
    if verdict.token is None:
        shown.print(f"{len(verdict.ours)} greedy tokens are equal.\n")
        return
    mine, theirs = (lm.tokenizer.decode([ids[verdict.token]]) for ids in (verdict.ours, verdict.theirs))
    answer = (
        f"Greedy token {verdict.token + 1} differs: {mine!r} here, {theirs!r} there; in our logits they are"
    )
    why = " A near tie: rounding decides it." if verdict.close_call else ""
    shown.print(f"{answer} {verdict.margin:.3f} apart.{why}\n", markup=False)


def _blame(verdict: "Verdict") -> str:
    if verdict.differs_from is not None:
        return f"{verdict.engine} disagrees from {verdict.differs_from} on"
    return f"{verdict.engine} agrees on the prompt's logits, and then chooses another token"
