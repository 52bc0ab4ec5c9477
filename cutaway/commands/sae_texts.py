"""`cutaway sae texts`: keep beside dictionaries the texts at which their features are strongest."""

from __future__ import annotations

from pathlib import Path

from cutaway.commands import console
from cutaway.commands.options import Threads
from cutaway.errors import UserError
from cutaway.inspect import dictionaries, sae_folders
from cutaway.inspect.activations import Activations
from cutaway.inspect.features import Scan


def texts(folder: Path, data: Path, /, *, threads: Threads = None) -> None:
    """Keep beside each dictionary how often its features fire, and the texts at which they are strongest.

    `cutaway serve --features FOLDER` shows them: any token of an answer opens to its features, and a feature
    to its texts. One text in five of the dataset is held out, as in `cutaway sae features`.

    **Examples:**

    cutaway sae texts saes/layer15 acts

    cutaway sae texts transcoders acts

    :param folder: A folder that `cutaway sae` wrote, or another tool's of one dictionary.
    :param data: An activation dataset of what they read.
    """
    found = sae_folders.with_folders(folder)
    console.use_threads(threads)
    dataset = Activations.open(data)
    for made, own in found:
        if own is None:
            raise UserError(
                f"{folder}: is a set of another tool, and texts are kept beside one dictionary: "
                "`cutaway sae convert` writes one folder for each"
            )
        with console.watched() as progress:
            scan = Scan(made, dataset, progress=progress)
        dictionaries.keep(own, scan)
        console.note(f"Wrote {own / dictionaries.CONTEXTS}: {(scan.often > 0).sum():,} features fire")
