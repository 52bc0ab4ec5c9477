"""`cutaway models`: what is in the cache, and what could be."""

from cutaway import memory, store
from cutaway.commands.console import print_json, size
from cutaway.commands.options import Json
from cutaway.errors import UserError, quoted
from cutaway.store import leftovers


def models(
    text: str | None = None,
    /,
    *,
    known: bool = False,
    remove: str | None = None,
    prune: bool = False,
    as_json: Json = False,
) -> None:
    """List the models in the cache: name, size, licence, the day they came, and path.

    Hugging Face repositories are in the cache that other programs share, so one of them may be listed, and
    removed, that another program fetched. `--known` lists the short names that any verb takes, and whether
    the memory that is free here is enough for each.

    **Examples:**

    cutaway models

    cutaway models --known

    cutaway models --known qwen

    cutaway models --remove smollm2

    cutaway models --prune

    :param text: Only models in whose name, or in whose description, this is.
    :param known: List the models that are fetched by a short name, as `cutaway chat qwen3-0.6b` does.
    :param remove: Delete this model from the cache.
    :param prune: Delete what interrupted pulls left, and what is made again when it is next needed: compiled
        tokenizers, indexes of texts, unpacked bundles, and the pages of prompts that
        `cutaway serve --prefix-cache default` keeps.
    """
    if (remove is not None) + prune + bool(text or known) > 1:
        raise UserError("--remove NAME and --prune delete, and list nothing: give one of them alone")
    freed = store.remove(remove) if remove is not None else leftovers.prune() if prune else None
    entries = [one for one in store.cached() if _has(text, one.name)]
    if as_json:
        print_json(_document(entries, text, remove, freed))
    elif freed is not None:
        print(f"Removed {remove or 'what can be made again'}: {size(freed)} freed")
    elif known:
        print("\n".join(_names(text)))
    else:
        print("\n".join(_table(entries, text)))


def _has(text: str | None, *where: str) -> bool:
    return text is None or any(text.lower() in one.lower() for one in where)


def _document(entries: list[store.Entry], text: str | None, removed: str | None, freed: int | None) -> dict:
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
    free = memory.available()
    listed = [
        {
            "name": name,
            "source": model.source,
            "bytes": model.bytes,
            "licence": model.licence,
            "about": model.about,
            "memory": model.memory,
            "fits": model.memory <= free,
        }
        for name, model in sorted(store.catalogue.every().items())
        if _has(text, name, model.about)
    ]
    return {
        "home": str(store.home()),
        "known": sorted(store.NAMES),
        "catalogue": listed,
        "cached": rows,
        "removed": removed,
        "freed": freed,
    }


def _table(entries: list[store.Entry], text: str | None) -> list[str]:
    here = {entry.name for entry in entries}
    absent = [
        f"{name} is not here: `cutaway pull {name}` fetches it "
        f"({model.about}, {size(model.bytes)}, {model.licence})"
        for name, model in sorted(store.NAMES.items())
        if name not in here and _has(text, name)
    ]
    cells = [
        (entry.name, size(entry.bytes), entry.licence, f"{entry.when:%Y-%m-%d}", str(entry.path))
        for entry in entries
    ]
    others = f"`cutaway models --known` lists {len(store.catalogue.every())} more that have a short name"
    kept = f"the cache is {store.home()}, {size(leftovers.bytes_of([store.home()]))}"
    spare = leftovers.bytes_of(leftovers.found())
    kept += f"; `cutaway models --prune` frees {size(spare)}" if spare else ""
    return [*_columns(cells), *absent, others, kept]


def _names(text: str | None) -> list[str]:
    """A line for each short name; those that the memory is too small for say so."""
    free, cells = memory.available(), []
    for name, model in sorted(store.NAMES.items()):
        cells.append((name, size(model.bytes), "", model.licence, model.about))
    for name, one in sorted(store.catalogue.every().items()):
        fits = "" if one.memory <= free else f"needs {size(one.memory)} of memory"
        cells.append((name, size(one.bytes), fits, one.licence, f"{one.about} ({one.source})"))
    cells = [row for row in cells if _has(text, row[0], row[-1])]
    if not cells:
        raise UserError(f"no known model has {quoted(text)} in its name: `cutaway models --known` lists all")
    return _columns(cells)


def _columns(cells: list[tuple[str, ...]]) -> list[str]:
    if not cells:
        return []
    kept = [column for column in zip(*cells, strict=True) if any(column)]
    widths = [max(map(len, column)) for column in kept]
    rows = zip(*kept, strict=True)
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
