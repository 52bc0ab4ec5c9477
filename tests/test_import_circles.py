"""No module of the package imports itself by way of others: at the top, within functions, or for types."""

import ast
from collections.abc import Iterator, Set
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cutaway"


def imports(package: Path) -> dict[str, set[str]]:
    """The modules of a package, and which of them each imports, wherever in the file."""
    paths = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts): path
        for path in package.rglob("*.py")
    }
    known = {name.removesuffix(".__init__"): path for name, path in sorted(paths.items())}
    return {name: set(imported(path, known.keys())) - {name} for name, path in known.items()}


def imported(path: Path, known: Set[str]) -> Iterator[str]:
    """The known modules that a file imports: of ``from a import b`` a.b where that is a module, else a."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{path}: imports are absolute"
            whole = [f"{node.module}.{one.name}" for one in node.names]
            found = [one if one in known else node.module for one in whole]
        yield from (one for one in found if one in known)


def circle(package: Path) -> list[str]:
    """The modules of one circle, in the order in which each is imported by the next; none: an empty list."""
    try:
        TopologicalSorter(imports(package)).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circle(PACKAGE) == []


@pytest.mark.parametrize(
    "late",
    [
        "from made.parts import a\n",
        "def late():\n    from made.parts.a import x\n",
        "import typing\nif typing.TYPE_CHECKING:\n    from made.parts.a import x\n",
        "import made.parts.a\n",
    ],
    ids=["at the top", "within a function", "for types", "by its whole name"],
)
def test_a_circle_is_found(tmp_path: Path, late: str) -> None:
    folder = tmp_path / "made" / "parts"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "a.py").write_text("from made.parts import b\n")
    assert circle(tmp_path / "made") == []
    (folder / "b.py").write_text(late)
    assert {"made.parts.a", "made.parts.b"} == set(circle(tmp_path / "made"))


def test_code_is_in_modules_with_names() -> None:
    """An ``__init__`` has a docstring and, where that is the public way in, names that it imports."""
    code = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    with_code = []
    for path in sorted(PACKAGE.rglob("__init__.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        if any(isinstance(node, code) for node in body):
            with_code.append(str(path.relative_to(PACKAGE)))
    assert with_code == ["__init__.py"]  # the package itself, whose names are imported when they are used
