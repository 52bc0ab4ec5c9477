"""Charts and diagrams as SVG, by `render.chart` and `diagrams`: files that need no script."""
