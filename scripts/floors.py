"""Write the floors of CONTRIBUTING.md: the layers that pyproject.toml holds imports to, and what is on each.

python -m scripts.floors            # after a change of the layers, or of a package's first line
python -m scripts.floors --check    # exits 1 where the page says otherwise
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- floors: python -m scripts.floors -->\n", "<!-- end of floors -->"


def layers() -> list[list[str]]:
    """The packages and modules of each floor, the top one first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (found,) = [contract["layers"] for contract in contracts if contract["id"] == "floors"]
    return [re.findall(r"\w+", layer) for layer in found]


def first_line(name: str) -> str:
    """The first line of a package's or module's docstring, which says in one sentence what it is."""
    path = ROOT / "cutaway" / name
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    text = ast.get_docstring(ast.parse(source))
    assert text, f"{name} has no docstring"
    return text.partition("\n")[0].rstrip(".").replace("|", r"\|")


def table() -> str:
    """The floors as a table."""
    rows = ["| floor | | what it is |", "|---|---|---|"]
    found = layers()
    for below, names in zip(range(len(found) - 1, -1, -1), found, strict=True):
        rows += [f"| {below} | `{name}` | {first_line(name)} |" for name in names]
    return "\n".join(rows) + "\n"


def written(page: str) -> str:
    """The page with the floors as they are."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


def main() -> int:
    page = PAGE.read_text()
    if "--check" in sys.argv:
        return int(written(page) != page)
    PAGE.write_text(written(page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
