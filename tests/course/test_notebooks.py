"""The chapters as notebooks: every cell runs, in order, and shows what is kept as its output."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from scripts.tables import notebooks
from scripts.tables.notebooks import notebook

PAGES = sorted((Path(__file__).parents[2] / "docs/course").glob("[0-9]*.md"))


def run(source: str, space: dict[str, Any]) -> str | None:
    """Run a cell as a notebook does: the value of a last expression is what it shows."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), space)
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), space) if last is not None else None
    return None if value is None else repr(value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_chapters_notebook_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made, space = notebook(page.read_text("utf-8")), dict[str, Any](__name__="notebook")
    cells = [cell for cell in made["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 4 and made["cells"][0]["source"][0].startswith("# ")
    for cell in cells:
        source = "".join(cell["source"])
        if source.startswith("!"):
            assert source.startswith("!cutaway ")  # tests/test_docs.py runs the commands
            continue
        shown, printed = run(source, space), capsys.readouterr().out.rstrip("\n")
        kept = "".join("".join(one["data"]["text/plain"]) for one in cell["outputs"])
        assert (shown or printed) == kept if kept else shown is None


def test_the_figures_are_beside_the_notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["notebooks", "--output", str(tmp_path)])
    notebooks.main()
    text = "".join(page.read_text("utf-8") for page in tmp_path.glob("*.ipynb"))
    shown = re.findall(r"\]\((figures/[\w-]+\.svg)\)", text)
    assert len(shown) > 9 and all((tmp_path / one).is_file() for one in shown)
