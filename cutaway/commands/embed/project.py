"""`cutaway embed project`: a map of words as one page: search, zoom, neighbours on a click."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cutaway.commands import console
from cutaway.commands.embed.sources import opened
from cutaway.commands.options import Force, Open
from cutaway.embedding import map_page
from cutaway.embedding.projection import Method
from cutaway.store import files


def project(
    source: str,
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")] = Path("map.html"),
    count: int = 10_000,
    method: Method = "pca",
    open_page: Open = False,
    force: Force = False,
) -> None:
    """Lay words out on a plane and write the map as an HTML page that needs nothing else.

    **Examples:**

    cutaway embed project words.safetensors --output map.html

    cutaway embed project smollm2 --count 5000 --open

    :param source: A file of word vectors, or a model, whose own table is shown.
    :param output: The page to write.
    :param count: How many words, the first of the table.
    :param method: pca: the two directions of largest variance; umap: who is near whom (pip install
        'cutaway[umap]').
    """
    files.check_file(output, force)
    document = map_page.page(opened(source), Path(source).name, count, method)
    files.write(output, document, force=force)
    print(f"{output}: {console.size(len(document.encode()))}")
    if open_page:
        import webbrowser

        webbrowser.open(output.resolve().as_uri())
