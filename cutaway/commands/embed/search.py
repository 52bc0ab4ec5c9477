"""`cutaway embed search`: passages of the user's own files, found by what they mean."""

from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from cutaway import lm
from cutaway.commands import console
from cutaway.commands.options import Flag, Json
from cutaway.embedding.search import Hit, Index, Update, home_of
from cutaway.errors import UserError

SHOWN = 300  # characters of a passage


def search(
    folder: Path,
    query: str,
    *,
    count: int = 5,
    model: str = "minilm",
    index: Path | None = None,
    rebuild: Flag = False,
    as_json: Json = False,
) -> None:
    """Find the passages in a folder's text files that are nearest in meaning to a question.

    The first search reads all files; later ones only what changed since. Ctrl-C loses one file's work at
    most: the next search goes on. Hidden files are left out, and what is no text is skipped and counted.

    **Examples:**

    cutaway embed search ~/notes "how do I renew my passport"

    cutaway embed search docs "what is a residual stream" --count 3 --json

    :param folder: The folder, with all below it.
    :param query: What to look for, in words of your own.
    :param count: How many passages to print.
    :param model: The encoder: a known name, a folder, ORG/NAME.
    :param index: Where to keep the index; in Cutaway's cache by default.
    :param rebuild: Read everything anew, with this model.
    """
    if count < 1:
        raise UserError(f"--count {count} asks for nothing: use 1 or more")
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder to search in")
    path = console.model_path(model)
    home = index or home_of(folder)
    reader = lm.load(path)
    console.note_fallback(reader)
    with closing(Index(folder, home, model, rebuild)) as known, console.watched() as progress:
        done = known.update(
            reader.embed,
            lambda text: len(reader.whole_ids(text)) <= reader.config.context,
            progress,
        )
        hits = known.search(reader.embed([query])[0], count)
    if as_json:
        console.print_json(
            {"model": model, "index": home, "files": asdict(done), "passages": [asdict(hit) for hit in hits]}
        )
        return
    console.note(_summary(done))
    print("\n\n".join(_shown(hit) for hit in hits) or "There is no text in this folder.")


def _summary(done: Update) -> str:
    return (
        f"{done.passages:,} passages: {done.read:,} files read, {done.unchanged:,} unchanged, "
        f"{done.dropped:,} dropped, {done.skipped:,} skipped as no text"
    )


def _shown(hit: Hit) -> str:
    text = " ".join(hit.text.split())
    return f"{hit.path}:{hit.line}  {hit.score:.2f}\n  {text[:SHOWN]}{'...' if len(text) > SHOWN else ''}"
