"""Sphinx configuration: pages are Markdown (MyST), one a topic. Build with `sphinx-build -W docs
docs/_build`.
"""

project = "Cutaway"
copyright = "the Cutaway developers"
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "Cutaway"
exclude_patterns = ["_build"]
