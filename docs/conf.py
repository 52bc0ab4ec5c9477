"""Sphinx configuration: pages are Markdown (MyST), one a topic; `sphinx-build -W docs site` builds.

Equations become MathML while the site is built: a page needs no network and no script to show them. A chapter
of the course ends with views of the page, on a recorded trace: files of their own, below ``views``.
"""

import json
import os
import re
import sys
import zlib
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from cutaway.inspect import page  # noqa: E402
from cutaway.page import bundle  # noqa: E402
from cutaway.version import __version__  # noqa: E402

project = "Cutaway"
copyright = "the Cutaway developers"
release = version = __version__
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "dollarmath", "attrs_inline"]
myst_heading_anchors = 3
smartquotes = False  # "--" is an option's, and quotes are code's
html_theme = "furo"
html_title = f"Cutaway {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
exclude_patterns = ["_build"]

# Edit links lead to the repository that builds the site: its workflow names it.
html_theme_options: dict[str, Any] = {"top_of_page_buttons": ["view"]}
if repository := os.environ.get("GITHUB_REPOSITORY"):
    html_theme_options = {
        "source_repository": f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{repository}/",
        "source_branch": os.environ.get("GITHUB_REF_NAME", "main"),
        "source_directory": "docs/",
        "top_of_page_buttons": ["view", "edit"],
    }

VIEWS = {  # of the page, by the chapter that they belong to
    "1": ("next",),
    "2": ("tokens",),
    "3": ("tokens",),
    "4": ("tokens",),
    "5": ("embeddings",),
    "6": ("attention", "score"),
    "7": ("attention", "sharing"),
    "8": ("residual", "lens", "mlp"),
    "9": ("rope", "distance"),
}
LANDMARKS = {
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="All pages">',
    '<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="On this page">',
    '<div class="content-icon-container">': '<div class="content-icon-container" role="navigation" '
    'aria-label="This page\'s tools">',
    '<div id="search-results"></div>': '<h1>Search</h1><div id="search-results"></div>',
}
RECORDING = DOCS.parent / "cutaway/page/app/recording.bin"
FRAME = """

## Try it on the page
SmolLM2 reads `The capital of France is`, recorded: move over it, click, or use the arrow keys. `cutaway open`
shows the same of any text.

```{{raw}} html
<iframe class="views" src="../views/{chapter}.html" title="Views: {names}" loading="lazy"></iframe>
```
"""


def _recorded(views: tuple[str, ...]) -> str:
    """The page of the recorded trace, with these views alone."""
    document = zlib.decompress(RECORDING.read_bytes())
    size = int.from_bytes(document[:4], "little")
    facts = json.loads(document[4 : 4 + size]) | {"views": list(views)}
    text = json.dumps(facts, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    data = zlib.compress(len(text).to_bytes(4, "little") + text + document[4 + size :], 9)
    title = f"The capital of France is: {', '.join(views)}"
    return bundle.document(title, page.BODY, entry=page.ENTRY, styles=page.STYLES, data=data)


def _with_views(app: Any, name: str, source: list[str]) -> None:
    """Add the views of a chapter before its exercises; the empty line that ends a doctest is not shown."""
    source[0] = re.sub(r"^(```pycon\n.*?\n)\n```$", r"\1```", source[0], flags=re.M | re.S)
    chapter = name.removeprefix("course/")[:1]
    if not name.startswith("course/") or chapter not in VIEWS or app.builder.format != "html":
        return
    frame = FRAME.format(chapter=chapter, names=", ".join(VIEWS[chapter])).strip() + "\n\n"
    before, heading, after = source[0].partition("## Exercises\n")
    source[0] = before + frame + heading + after


def _write_views(app: Any, failed: Exception | None) -> None:
    if failed is None and app.builder.format == "html":
        folder = Path(app.outdir, "views")
        folder.mkdir(exist_ok=True)
        for chapter, views in VIEWS.items():
            (folder / f"{chapter}.html").write_text(_recorded(views), "utf-8")


def _by_keyboard(app: Any, name: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """What scrolls can be reached by keyboard, and the captions of the theme's sidebar have a level."""
    level = ('role="heading"', 'role="heading" aria-level="2"')
    body = context.get("body", "").replace("<pre>", '<pre tabindex="0">').replace(*level)
    body = body.replace('<th class="head"><p></p></th>', "<td></td>")  # a table's empty corner is no heading
    context["body"] = body.replace('<table class="docutils', '<table tabindex="0" class="docutils')
    context["furo_navigation_tree"] = context.get("furo_navigation_tree", "").replace(*level)


def _name_landmarks(app: Any, failed: Exception | None) -> None:
    """Name the regions of the theme's pages for screen readers; the page of the search gets a title."""
    if failed is not None or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        if path.parent.name != "views":
            text = path.read_text("utf-8")
            for plain, named in LANDMARKS.items():
                text = text.replace(plain, named)
            path.write_text(text, "utf-8")


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math" tabindex="0">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("source-read", _with_views)
    app.connect("build-finished", _write_views)
    app.connect("build-finished", _name_landmarks)
    app.connect("html-page-context", _by_keyboard, priority=900)  # after the theme's own
