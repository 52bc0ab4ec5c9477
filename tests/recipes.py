"""The files that a recipe of docs/ shows, each a block of Python that begins with its name."""

import ast
import importlib
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def files(page: str) -> dict[str, str]:
    """What a page of docs/ shows, by the file's name in the repository."""
    return dict(BLOCK.findall((ROOT / "docs" / page).read_text("utf-8")))


@contextmanager
def followed(page: str, package: ModuleType, folder: Path) -> Iterator[list[str]]:
    """The package with the page's files that belong into it, from a folder beside its own; their names."""
    home = Path(*package.__name__.split("."))
    own = {Path(name).stem: text for name, text in files(page).items() if Path(name).parent == home}
    for name, text in own.items():
        (folder / f"{name}.py").write_text(text, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "__path__", [*package.__path__, str(folder)])
        importlib.invalidate_caches()
        yield list(own)
    for name in own:
        sys.modules.pop(f"{package.__name__}.{name}", None)
        vars(package).pop(name, None)


def unnamed(names: Iterable[str], package: ModuleType, tests: Iterable[Path]) -> list[str]:
    """Those of a package's files that no test names as a text, nor imports."""
    known: set[str] = set()
    for node in (node for path in tests for node in ast.walk(ast.parse(path.read_text("utf-8")))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            known.add(node.value.rpartition("=")[2])  # also of a word as a user types it, KIND=NAME
        elif isinstance(node, ast.ImportFrom) and node.module == package.__name__:
            known |= {alias.name for alias in node.names}
    return [name for name in names if name not in known]
