"""The page's views as objects of a notebook: the last value of a cell draws itself.

trace.show()                      # the whole page
trace.show("lens", "next")        # some of its views
trace.attention(3).show()         # one layer's attention, which is a tensor besides
lm.map()                          # the rows of the embedding table on a plane
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cutaway.errors import UserError
from cutaway.store import files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cutaway.embedding.projection import Method
    from cutaway.embedding.vectors import Vectors
    from cutaway.inspect.trace_values import TraceValues

HEIGHT = 720  # pixels of a frame in a notebook
NAME = "this model"


class _Drawn:
    """What a notebook draws: ``html`` is its page."""

    html: Any

    def save(self, path: str | Path) -> Path:
        """Writes the page to a file, and returns its path."""
        files.write_file(path, self.html)
        return Path(path)

    def _repr_html_(self) -> str:
        from cutaway.page.bundle import frame

        return frame(self.html, HEIGHT)


class View(_Drawn):
    """Some views of a trace: a notebook draws it, ``html`` is the page and ``save`` writes it."""

    def __init__(
        self, trace: TraceValues, views: Sequence[str] = (), start: Mapping[str, int] | None = None
    ) -> None:
        self.trace = trace
        self.views = tuple(views)
        self.start = dict(start or {})

    def __repr__(self) -> str:
        return f"View({', '.join(self.views) or 'all'} of {len(self.trace.ids)} tokens)"

    @cached_property
    def html(self) -> str:
        """One HTML file that needs nothing else."""
        from cutaway.inspect import page, page_data

        return page.page([page_data.build(self.trace, NAME)], self.views or page.VIEWS, self.start)


class Map(_Drawn):
    """A table of vectors on a plane, as ``cutaway embed project`` draws it."""

    def __init__(self, vectors: Vectors, name: str, count: int, method: Method) -> None:
        from cutaway.embedding import map_page

        self.html = map_page.page(vectors, name, count, method)


class Pattern(np.ndarray):
    """A layer's attention [h t s], an array with ``show``; what is computed from it is a plain array."""

    trace: TraceValues
    layer: int

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        plain = (one.view(np.ndarray) if isinstance(one, Pattern) else one for one in inputs)
        return getattr(ufunc, method)(*plain, **options)

    def __getitem__(self, at: Any, /) -> Any:
        return self.view(np.ndarray)[at]

    @classmethod
    def of(cls, values: np.ndarray, trace: TraceValues, layer: int) -> Pattern:
        made = values.view(cls)
        made.trace, made.layer = trace, layer
        return made

    def show(self, head: int = 0) -> View:
        """The layer's heads as an interactive map, opened at one of them."""
        if not 0 <= head < len(self):
            raise UserError(f"there is no head {head}: layer {self.layer} has heads 0 to {len(self) - 1}")
        return View(self.trace, ("attention", "score"), {"layer": self.layer, "head": head})
