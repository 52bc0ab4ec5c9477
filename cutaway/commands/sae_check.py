"""`cutaway sae check`: replace activations by what a dictionary writes, and see what the loss becomes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from cutaway import lm
from cutaway.commands import console
from cutaway.commands.options import Json, Threads
from cutaway.data import sources
from cutaway.errors import UserError, plural
from cutaway.extras import need
from cutaway.inspect.activations import Activations
from cutaway.inspect.sae_folders import load_set
from cutaway.store import files

REPORT = "replacement.json"


def check(
    folder: Path,
    /,
    *texts: str,
    data: Path | None = None,
    model: str | None = None,
    limit: int = 20,
    context: int = 128,
    field: str = "text",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """See what a model becomes when activations are replaced by what a dictionary writes in their place.

    Prints the model's loss, and the KL divergence from its own predictions. Each layer of a set is replaced
    alone, then all at once. With --data the best linear map and the mean are replacements too, which a
    dictionary has to beat. The figures are also kept in the folder, in replacement.json.

    **Examples:**

    cutaway sae check transcoders prompts.txt --data acts

    cutaway sae check saes/layer15 questions.jsonl --field prompt --limit 5

    :param folder: A folder that `cutaway sae` wrote, or another tool's.
    :param texts: Text files, folders of them, .jsonl, .parquet, or hub:ORG/NAME: texts that it was not
        trained on.
    :param data: The activation dataset that it was trained on, for the linear map and the mean.
    :param model: The model; the one that the dictionary is of by default.
    :param limit: How many texts are read.
    :param context: How many tokens of each.
    :param field: The column of .jsonl, .parquet and datasets that holds the text.
    """
    need("replacing activations", "torch")
    if not texts:
        raise UserError("give texts: cutaway sae check FOLDER prompts.txt")
    if limit < 1 or context < 2:
        raise UserError("--limit goes from 1, --context from 2")
    made = load_set(folder)
    dataset = None if data is None else Activations.open(data)
    found = console.text_sources(texts, field)
    console.use_threads(threads)
    from cutaway.inspect import sae_check

    loaded = lm.load(console.model_path(model or made[0].card.model), engine="pytorch")
    ids = []
    for text in (text for source in found for text in sources.documents(source) if text):
        ids.append(loaded.ids(text)[:context])
        if len(ids) == limit:
            break
    with console.watched() as progress:
        figures = sae_check.check(loaded, made, ids, dataset, progress)
    document = asdict(figures) | {"model": str(loaded.checkpoint.source)}
    files.write_file(folder / REPORT, json.dumps(document, indent=1))
    if as_json:
        console.print_json(document)
        return
    console.say(
        f"{plural(figures.tokens, 'prediction')} in {plural(figures.texts, 'text')}: the model's own loss is "
        f"{figures.loss:.3f}; tokens that are attention sinks are not replaced"
    )
    rows = [(f"{row.what} by {row.by}", row) for row in figures.rows]
    width = max(len(label) for label, _ in rows)
    for label, row in rows:
        error = "" if row.kl_error is None else f" ± {row.kl_error:.4f}"
        console.say(f"{label:<{width}}  loss {row.loss:.3f}  KL {row.kl:.4f}{error}")
    if figures.texts == 1:
        console.note("one text gives no standard error: give more")
    if dataset is None:
        console.note("--data FOLDER adds the best linear map and the mean, which it has to beat")
