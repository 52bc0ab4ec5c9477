"""`cutaway activations`: keep what a model computes on many texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from cutaway import lm
from cutaway.commands import console
from cutaway.commands.options import Context, Engine, Flag, Force, Json, Threads, Words
from cutaway.data import sources
from cutaway.errors import UserError, plural

if TYPE_CHECKING:
    from cutaway.inspect.activations import Activations


def activations(
    *texts: str,
    names: Words,
    output: Annotated[Path, Parameter(alias="-o")],
    model: str = "smollm2",
    engine: Engine = "auto",
    dtype: Literal["float16", "bfloat16"] = "float16",
    context: Context = None,
    max_tokens: int | None = None,
    field: str = "text",
    threads: Threads = None,
    ray: Flag = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Read texts and write activations by name, a row for each token, as safetensors shards.

    A job that was stopped goes on where it was when the same command is given again, and ends in the same
    files.

    **Examples:**

    cutaway activations novels/ --names blocks.15.out --output acts --max-tokens 200000

    cutaway activations hub:roneneldan/TinyStories --names blocks.4.out --names blocks.5.out -o acts

    :param texts: Text files, folders of them, .jsonl, .parquet, or hub:ORG/NAME: each text is a document.
    :param names: An activation's name; again for more, * for several. docs/activations.md lists the
        runtime's.
    :param output: The folder to write, or to go on with.
    :param model: A model's name, a .gguf file or a folder.
    :param dtype: How numbers are kept.
    :param context: Longer documents are read in pieces of so many tokens; by default of all that the model
        holds.
    :param max_tokens: Stop after this many tokens.
    :param field: The column of .jsonl, .parquet and datasets that holds the text.
    :param ray: Read on a Ray cluster whose machines share the model and the folder, or on a local Ray.
    """
    if not texts or not names:
        raise UserError(
            "give texts and names: cutaway activations FILE --names blocks.15.out --output FOLDER"
        )
    found = console.text_sources(texts, field)
    console.use_threads(threads)
    place = str(console.model_path(model).absolute())
    loaded = _loaded(place, engine)
    expected = max_tokens or _expected(found, loaded.tokenizer.count)
    with console.watched() as bar:

        def progress(doing: str, done: int, total: int | None) -> None:
            bar(doing, done, total or (expected and max(expected, done + 1)))

        data = loaded.activations(
            console.documents(found),
            names,
            output,
            dtype=dtype,
            context=context,
            max_tokens=max_tokens,
            force=force,
            progress=progress,
            elsewhere=(_loaded, place, engine) if ray else None,
        )
    if as_json:
        console.print_json(data.facts)
        return
    console.say(
        f"{output}: {plural(len(data), 'token')} of {', '.join(data.names)} in "
        f"{plural(len(data.shards), 'shard')}"
    )
    console.note(f"read by the {data.facts['engine']}, kept as {dtype}")
    console.note(
        f"{_sinks(data)} (the first of each text, and norms above 10 times the median), which "
        "`cutaway sae` and `batches` leave out"
    )


def _loaded(place: str, engine: Engine) -> lm.LanguageModel:
    return lm.load(place, engine=engine)


def _sinks(data: Activations) -> str:
    """How many tokens are attention sinks: of one activation, or the fewest and the most of several."""
    counts = {name: int(data.sinks(name).sum()) for name in data.names}
    few, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    of = plural(counts[most], "token is an attention sink", "tokens are attention sinks")
    if len(counts) == 1:
        return f"{most}: {of}"
    if counts[few] == counts[most]:
        return f"each of {len(counts)} activations: {of}"
    return f"{len(counts)} activations: {counts[few]:,} ({few}) to {of} ({most})"


def _expected(found: list[sources.Source], count: Callable[[str], int]) -> int | None:
    """About how many tokens there are, by the first texts of each source; None where that is unknown."""
    total = 0.0
    for source in found:
        sample = sources.sampled(source)
        if sample is None or not sample[1]:
            return None
        total += sum(map(count, sample[0])) / sample[1]
    return round(total)
