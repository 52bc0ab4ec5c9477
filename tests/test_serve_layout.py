"""The modules of the server: none imports itself by way of others, and each is short enough to be read."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cutaway"
LINES = 500


def imports(package: Path, folder: str) -> dict[str, set[str]]:
    """The modules of a folder, and which of them each imports: within functions and for types too."""
    found = {path: ".".join(path.relative_to(package.parent).with_suffix("").parts) for path in sorted(
        (package / folder).rglob("*.py")
    )}  # fmt: skip
    known = {name.removesuffix(".__init__") for name in found.values()}
    made: dict[str, set[str]] = {}
    for path, name in found.items():
        used: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                for one in node.names:
                    used.add(whole if (whole := f"{node.module}.{one.name}") in known else node.module)
        made[name.removesuffix(".__init__")] = used & known - {name}
    return made


def test_no_module_of_the_server_imports_itself_by_way_of_others() -> None:
    TopologicalSorter(imports(PACKAGE, "serve")).prepare()


def test_a_circle_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "cutaway" / "serve"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text("from cutaway.serve import b\n")
    (folder / "b.py").write_text("def late():\n    from cutaway.serve.a import x\n")
    with pytest.raises(CycleError):
        TopologicalSorter(imports(tmp_path / "cutaway", "serve")).prepare()


def test_no_file_of_the_server_is_long() -> None:
    lengths = {
        path: path.read_text(encoding="utf-8").count("\n") for path in (PACKAGE / "serve").rglob("*.py")
    }
    assert not {path.name: lines for path, lines in lengths.items() if lines > LINES}
