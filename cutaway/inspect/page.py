"""One HTML file for one explanation or two: the views of a text, side by side where there are two."""

from collections.abc import Mapping, Sequence

from cutaway.errors import UserError
from cutaway.inspect.page_data import PageData, packed
from cutaway.inspect.page_topics import TOPICS
from cutaway.page import bundle

VIEWS = (
    *("tokens", "embeddings", "attention", "projection", "sharing", "score", "rope", "distance"),
    *("mlp", "residual", "lens", "next"),
)
ENTRY, STYLES = "explain/main.js", ("charts.css", "explain/explain.css", "explain/file.css")
BODY = """<a class="skip" href="#views">Skip to the explanation</a>
<header id="head"></header>
<div id="strip" role="region" aria-label="The text's tokens"></div>
<main id="views" tabindex="-1"><p class="wait">Loading the explanation …</p></main>
<footer id="foot"></footer>"""


def page(
    shown: Sequence[PageData], views: Sequence[str] = VIEWS, start: Mapping[str, int] | None = None
) -> str:
    """The page of one explanation, or of two side by side. ``start``: the layer, head or token to open at.

    Before the views it shows the topics that the first explanation has.

    Raises UserError for an unknown view.
    """
    for view in views:
        if view not in VIEWS:
            raise UserError(f"there is no view {view!r}: the views are {', '.join(VIEWS)}")
    views = [*(one for one in TOPICS if one in shown[0].facts), *views]
    title = " · ".join(f"{data.facts['text']} ({data.facts['model']})" for data in shown)
    return bundle.document(title, BODY, entry=ENTRY, styles=STYLES, data=packed(shown, views, start))


def sources() -> str:
    """What the content policy of a page must allow that shows this page in a frame."""
    return bundle.sources(bundle.script(ENTRY), bundle.style(*STYLES))
