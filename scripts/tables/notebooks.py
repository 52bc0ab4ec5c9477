"""The chapters of the course as notebooks: text as it is, snippets as cells with the outputs they have.

    python -m scripts.tables.notebooks --output notebooks

One file a chapter, and the figures beside them. A cell is a run of lines up to one that prints;
`tests/course/test_notebooks.py` runs all.
"""

from __future__ import annotations

import argparse
import doctest
import json
import re
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def notebook(text: str) -> dict[str, Any]:
    """A chapter's Markdown as a notebook (nbformat 4.5)."""
    cells: list[dict[str, Any]] = []
    for part in re.split(r"^(```(?:pycon|sh)\n.*?^```\n?)", text, flags=re.M | re.S):
        if part.startswith("```pycon"):
            cells += _code_cells(part.partition("\n")[2].rpartition("```")[0])
        elif part.startswith("```sh"):
            lines = part.splitlines()[1:-1]
            cells.append(_cell("code", "\n".join(f"!{line}" for line in lines if line.strip())))
        elif part.strip():
            cells.append(_cell("markdown", part.strip()))
    for n, cell in enumerate(cells):
        cell["id"] = f"cell-{n}"
    return {"cells": cells, "metadata": KERNEL, "nbformat": 4, "nbformat_minor": 5}


def _code_cells(snippet: str) -> list[dict[str, Any]]:
    """The statements of a snippet; a cell ends where one shows its value."""
    cells, lines = [], []
    for example in doctest.DocTestParser().get_examples(snippet):
        lines.append(example.source.rstrip("\n"))
        if example.want:
            cells.append(_cell("code", "\n".join(lines), example.want.rstrip("\n")))
            lines = []
    return [*cells, _cell("code", "\n".join(lines))] if lines else cells


def _cell(kind: str, source: str, shown: str | None = None) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "metadata": {}, "source": source.splitlines(keepends=True)}
    if kind == "code":
        result = {"output_type": "execute_result", "execution_count": None, "metadata": {}}
        cell |= {"execution_count": None, "outputs": []}
        if shown is not None:
            cell["outputs"] = [result | {"data": {"text/plain": shown.splitlines(keepends=True)}}]
    return cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("notebooks"))
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "docs/course/figures", folder / "figures", dirs_exist_ok=True)
    for page in sorted((ROOT / "docs/course").glob("[0-9]*.md")):
        made = json.dumps(notebook(page.read_text("utf-8")), indent=1, ensure_ascii=False)
        (folder / f"{page.stem}.ipynb").write_text(made + "\n", "utf-8")
        print(folder / f"{page.stem}.ipynb")


if __name__ == "__main__":
    main()
