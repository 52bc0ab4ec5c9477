"""`cutaway models`: what is in the cache, and what could be."""

from cutaway import store
from cutaway.commands.console import print_json, size
from cutaway.commands.options import Json


def models(*, remove: str | None = None, as_json: Json = False) -> None:
    """List the models in the cache: name, size, licence, the day they came, and path.

    Hugging Face repositories are in the cache that other programs share, so one of them may be listed, and
    removed, that another program fetched.

    **Examples:**

    cutaway models

    cutaway models --json

    cutaway models --remove smollm2

    :param remove: Delete this model from the cache.
    """
    freed = store.remove(remove) if remove is not None else None
    entries = store.cached()
    if as_json:
        print_json(_document(entries, remove, freed))
    elif freed is not None:
        print(f"Removed {remove}: {size(freed)} freed")
    else:
        print("\n".join(_table(entries)))


def _document(entries: list[store.Entry], removed: str | None, freed: int | None) -> dict:
    rows = [
        {
            "name": entry.name,
            "path": str(entry.path),
            "bytes": entry.bytes,
            "licence": entry.licence,
            "when": entry.when.isoformat(timespec="seconds"),
        }
        for entry in entries
    ]
    known = sorted(store.NAMES)
    return {"home": str(store.home()), "known": known, "cached": rows, "removed": removed, "freed": freed}


def _table(entries: list[store.Entry]) -> list[str]:
    here = {entry.name for entry in entries}
    absent = [
        f"{name} is not here: `cutaway pull {name}` fetches it "
        f"({model.about}, {size(model.bytes)}, {model.licence})"
        for name, model in sorted(store.NAMES.items())
        if name not in here
    ]
    if not entries:
        return absent
    cells = [
        (entry.name, size(entry.bytes), entry.licence, f"{entry.when:%Y-%m-%d}", str(entry.path))
        for entry in entries
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return rows + absent
