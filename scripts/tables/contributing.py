"""Write two tables of CONTRIBUTING.md: the floors that imports are held to, and the scripts.

    python -m scripts.tables.contributing            # after a change of the layers or of a first line
    python -m scripts.tables.contributing --check    # exits 1 where the page says otherwise

The floors are those of pyproject.toml; what a package or a script is, is the first sentence of its own file.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "CONTRIBUTING.md"
FOLDERS = ("check", "fuzz", "served", "study", "tables")
MARK = "<!-- {}: python -m scripts.tables.contributing -->\n"
END = "<!-- end of {} -->"


def layers() -> list[list[str]]:
    """The packages and modules of each floor, the top one first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (found,) = [contract["layers"] for contract in contracts if contract["id"] == "floors"]
    return [re.findall(r"\w+", layer) for layer in found]


def first_sentence(path: Path) -> str:
    """The first sentence of a Python file's docstring, or of a shell script's comment."""
    if path.suffix == ".sh":
        lines = path.read_text().splitlines()[1:]
        text = "\n".join(line[2:] for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")])
    else:
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert text, f"{path} does not say what it is"
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=\w\w\w)\. (?=[A-Z0-9])", paragraph)[0].rstrip(".:").replace("|", r"\|")


def floors() -> str:
    """The floors as a table."""
    rows = ["| floor | | what it is |", "|---|---|---|"]
    found = layers()
    for below, names in zip(range(len(found) - 1, -1, -1), found, strict=True):
        for name in names:
            path = ROOT / "cutaway" / name
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            rows.append(f"| {below} | `{name}` | {first_sentence(path)} |")
    return "\n".join(rows) + "\n"


def commands() -> dict[str, Path]:
    """The scripts that are run, by the command that runs them."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / "scripts" / folder).iterdir()):
            if path.suffix == ".sh":
                found[f"scripts/{folder}/{path.name}"] = path
            elif path.suffix == ".py" and "__main__" in path.read_text():
                found[f"python -m scripts.{folder}.{path.stem}"] = path
    return found


def scripts() -> str:
    """The scripts as a table."""
    rows = ["| command | shows |", "|---|---|"]
    rows += [f"| `{command}` | {first_sentence(path)} |" for command, path in commands().items()]
    return "\n".join(rows) + "\n"


def written(page: str) -> str:
    """The page with both tables as they are."""
    for name, table in (("floors", floors), ("scripts", scripts)):
        begin, end = MARK.format(name), END.format(name)
        before, _, rest = page.partition(begin)
        assert rest, f"CONTRIBUTING.md has no {begin}"
        page = before + begin + table() + end + rest.partition(end)[2]
    return page


def main() -> int:
    page = PAGE.read_text()
    if "--check" in sys.argv:
        return int(written(page) != page)
    PAGE.write_text(written(page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
