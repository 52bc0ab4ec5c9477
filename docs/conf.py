"""Sphinx configuration: pages are Markdown (MyST), one a topic; `sphinx-build -W docs docs/_build` builds.

Equations become MathML while the site is built: a page needs no network and no script to show them.
"""

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

project = "Cutaway"
copyright = "the Cutaway developers"
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "Cutaway"
html_math_renderer = "mathml"
exclude_patterns = ["_build"]


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
