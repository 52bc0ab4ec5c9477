"""`cutaway embed project`: a map of words as one page: search, zoom, neighbours on a click."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

from cutaway.commands import console, plots
from cutaway.commands.embed.sources import opened
from cutaway.commands.options import Force, Open, Svg
from cutaway.embedding import map_page
from cutaway.embedding.projection import Method
from cutaway.embedding.projection import project as on_plane
from cutaway.embedding.vectors import Vectors
from cutaway.errors import UserError, plural
from cutaway.page.charts import Axis, Plot, Series
from cutaway.page.svg import render
from cutaway.store import files


def project(
    source: str,
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")] = Path("map.html"),
    count: int = 10_000,
    method: Method = "pca",
    words: str | None = None,
    svg: Svg = None,
    open_page: Open = False,
    force: Force = False,
) -> None:
    """Lay words out on a plane and write the map as an HTML page that needs nothing else.

    **Examples:**

    cutaway embed project words.safetensors --output map.html

    cutaway embed project smollm2 --count 5000 --open

    cutaway embed project smollm2 --words " king, queen, man, woman" --svg map

    :param source: A file of word vectors, or a model, whose own table is shown.
    :param output: The page to write.
    :param count: How many words, the first of the table.
    :param words: With --svg: map these words alone, each with its label; a space before a word is part of it.
    :param method: pca: the two directions of largest variance; umap: who is near whom (pip install
        'cutaway[umap]').
    """
    if (words is None) != (svg is None):
        raise UserError(
            "a drawing is of chosen words: give both, --words ' king, queen, man' and --svg FOLDER"
        )
    if svg is not None and words is not None:
        plots.check(None, svg, force)
        plots.write_svg(svg, {"map": _chosen(opened(source), words, method)})
        return
    files.check_file(output, force)
    document = map_page.page(opened(source), Path(source).name, count, method)
    files.write_file(output, document, force=force)
    print(f"{output}: {console.size(len(document.encode()))}")
    if open_page:
        import webbrowser

        webbrowser.open(output.resolve().as_uri())


def _chosen(vectors: Vectors, words: str, method: Method) -> str:
    """An SVG of the words' directions on a plane, each with its label."""
    first = " " if words.startswith(" ") else ""  # in a model's table most words begin with their space
    chosen = [first + word.strip() for word in words.split(",") if word.strip()]
    if len(chosen) < 3:
        raise UserError(
            f"--words has {plural(len(chosen), 'word')}: a map needs 3 or more, with commas between"
        )
    rows = np.stack([vectors.vector(word) for word in chosen])
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    plane = on_plane(rows / np.maximum(lengths, 1e-12), method)
    labels = [word.strip() for word in chosen]
    x, y = plane.points.T.tolist()
    axes = ("first direction", "second") if method == "pca" else ("UMAP", "UMAP")
    series = Series("words", x, y, labels=labels, line=False, points=True)
    note = f"They keep {plane.kept:.0%} of the differences." if method == "pca" else ""
    drawn = render.chart(Plot(f"{len(chosen)} words", Axis(axes[0]), Axis(axes[1]), [series], note=note))
    assert drawn is not None
    return drawn
