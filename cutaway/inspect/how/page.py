"""The chapters of "How it works" as one HTML file, on a recording."""

from __future__ import annotations

from cutaway.inspect.page_data import PageData, packed
from cutaway.page import bundle

ENTRY = "how/main.js"
STYLES = ("charts.css", "explain/explain.css", "explain/file.css", "how/how.css")
BODY = """<a class="skip" href="#views">Skip to the chapter</a>
<header id="head"></header>
<div id="strip"></div>
<main id="views" tabindex="-1"><p class="wait">Loading …</p></main>"""


def page(data: PageData) -> str:
    """The file of a trace whose facts have what each chapter's route answers, as "how"."""
    title = f"How it works: {data.facts['text']} ({data.facts['model']})"
    return bundle.document(title, BODY, entry=ENTRY, styles=STYLES, data=packed([data]))
