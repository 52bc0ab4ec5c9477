"""`cutaway lens fit`: a Jacobian lens of every layer, from texts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from cutaway import lm
from cutaway.commands import console
from cutaway.commands.options import Force, Json, Threads, Words
from cutaway.errors import UserError, plural
from cutaway.extras import need
from cutaway.store import files


def fit(
    model: str = "smollm2",
    /,
    *,
    texts: Words,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    count: int = 100,
    tokens: int = 128,
    rows: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    shard: str = "1/1",
    seed: int = 0,
    field: str = "text",
    threads: Threads = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Fit a Jacobian lens to a model: how each layer moves the last one, on average over texts.

    The lens is written twice a minute, and Ctrl-C leaves a lens of the texts so far. The same command, or one
    with a larger --count, goes on from it.

    **Examples:**

    cutaway lens fit smollm2 --texts novels/ --output lens.safetensors

    cutaway lens fit smollm2 --texts web.jsonl --count 32 --dtype bfloat16

    cutaway lens fit smollm2 --texts web.jsonl --shard 2/4 --output part2.safetensors

    :param model: A model's name, a .gguf file or a folder.
    :param texts: Text files, folders of them, .jsonl, .parquet, or hub:ORG/NAME; again for more.
    :param output: The lens to write, or to go on with; by default the model's own, in Cutaway's cache, which
        `--lens jacobian` and the server's page find.
    :param count: How many texts; 100 give a usable lens.
    :param tokens: Tokens of each text; positions from 16 on are measured.
    :param rows: Backward passes a text, in random directions; by default one for each number of the residual
        stream, which is exact.
    :param dtype: What the backward pass multiplies: bfloat16 takes a third of the time on a processor that
        has it, and moves the matrices by less than one percent.
    :param shard: I/N: fit every N-th text from the I-th on; `cutaway lens merge` joins the parts.
    :param seed: Of the random directions.
    :param field: The column of .jsonl, .parquet and datasets that holds the text.
    """
    need("fitting a lens", "torch")  # before anything is read
    from cutaway.inspect.jacobian_state import LEAST

    part, parts = _shard(shard)
    smallest = (("count", count, 1), ("tokens", tokens, LEAST), ("rows", rows, 1), ("seed", seed, 0))
    for name, value, least in smallest:
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}: it must be {least} or more")
    if not texts:
        raise UserError("give texts: cutaway lens fit smollm2 --texts FILE")
    if output is not None and output.suffix in (".pt", ".pth"):
        raise UserError(f"{output}: a fit is a .safetensors file: `cutaway lens convert` writes a .pt of it")
    found = console.text_sources(texts, field)
    console.use_threads(threads)
    loaded = lm.load(console.model_path(model))
    from cutaway.inspect import lenses
    from cutaway.inspect.jacobian_fit import settings_of
    from cutaway.inspect.jacobian_state import Fit, pieces

    subject = loaded.subject
    settings = settings_of(subject, rows, seed, dtype)
    target = lenses.cached(subject) if output is None else output
    if output is None:
        target.parent.mkdir(parents=True, exist_ok=True)
    begun = not force and target.exists()
    state = Fit.resume(target, settings) if begun else Fit.begin(settings, subject.config.width)
    files.check_file(target, force=True)
    with console.watched() as bar:
        chosen = pieces(subject.encode, console.documents(found), tokens, count, subject.config.context, bar)
    if not (some := chosen[part - 1 :: parts]):
        raise UserError(
            f"there are no texts of {max(LEAST, tokens // 2)} tokens or more for shard {shard}: give longer"
        )
    _fit(subject, some, state, target)
    _report(state, target, len(chosen), count, as_json)


def _fit(subject: Any, some: list[list[int]], state: Any, target: Path) -> None:
    from cutaway.inspect.jacobian_fit import fit

    with console.watched() as bar:
        figures = [""]

        def settled(now: Any) -> None:
            figures[0] = plural(now.texts, "text")
            if now.texts > 1:
                figures[0] += f"  error {100 * now.error:.1f}%  last text moved it by {100 * now.change:.2f}%"

        def progress(doing: str, done: int, total: int | None) -> None:
            bar(doing, done, total, figures[0])

        try:
            fit(subject, some, state, target, each=settled, progress=progress)
        except KeyboardInterrupt:
            if state.texts:
                console.note(
                    f"stopped: {target} is a lens of {plural(state.texts, 'text')}; the same command goes on"
                )
            raise


def _report(state: Any, target: Path, found: int, asked: int, as_json: bool) -> None:
    if as_json:
        facts = {key: value for key, value in state.lens.facts.items() if key not in ("deviation", "done")}
        console.print_json(
            {"file": str(target), "texts": state.texts, "target": state.settings.target} | facts
        )
        return
    layers = len(state.mean)
    console.say(f"{target}: a Jacobian lens of layers 0 to {layers - 1}, from {plural(state.texts, 'text')}")
    if state.texts > 1:
        console.say(
            f"standard error of its matrices: {100 * state.error:.1f}% of their norm (the median layer)"
        )
    if found < asked:
        console.note(
            f"the texts gave {found} of the {asked} pieces that --count asks for: more lower the error"
        )


def _shard(given: str) -> tuple[int, int]:
    """I and N of I/N."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", given)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard is {given!r}: write I/N, as 2/4 for the second of four parts")
    return int(match[1]), int(match[2])
