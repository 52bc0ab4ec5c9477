"""No file of the package has more than 500 lines, and no function more than 60; tables have a reason."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cutaway"
FILE, FUNCTION = 500, 60
TABLES = {"course/chapter_*.py": "a chapter's exercises, which are read in their order"}
SUFFIXES = {".py", ".js", ".css", ".html"}


def files() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*")) if path.suffix in SUFFIXES]


def long_functions(code: str) -> list[str]:
    """The functions of more than 60 lines, without their docstring: that of a command is its help page."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docs = node.body[0] if ast.get_docstring(node) else None
            lines = node.end_lineno - node.lineno + 1  # pyright: ignore[reportOptionalOperand]
            lines -= docs.end_lineno - docs.lineno + 1 if docs else 0  # pyright: ignore[reportOptionalOperand]
            found += [f"{node.name}: {lines}"] if lines > FUNCTION else []
    return found


def long_files(sizes: dict[str, int]) -> dict[str, int]:
    """Those of more than 500 lines that are no tables."""
    return {
        name: lines
        for name, lines in sizes.items()
        if lines > FILE and not any(Path(name).match(pattern) for pattern in TABLES)
    }


def test_what_is_too_long_is_found() -> None:
    body = "    x = 1\n" * FUNCTION
    assert long_functions(f"def f():\n{body}") == ["f: 61"]
    assert not long_functions(f'def f():\n    """Docs.\n\n    More.\n    """\n{body[10:]}')
    assert long_files({"a.py": 501, "b.py": 500, "course/chapter_1.py": 501}) == {"a.py": 501}


def test_no_file_is_too_long() -> None:
    sizes = {str(path.relative_to(PACKAGE)): len(path.read_bytes().splitlines()) for path in files()}
    assert len(sizes) > 500 and not long_files(sizes)


@pytest.mark.parametrize("pattern", TABLES)
def test_each_table_is_there(pattern: str) -> None:
    assert list(PACKAGE.glob(pattern))


def test_no_function_is_too_long() -> None:
    codes = {path: path.read_text("utf-8") for path in files() if path.suffix == ".py"}
    found = {path: long_functions(code) for path, code in codes.items() if code.count("\n") > FUNCTION}
    assert not {path: each for path, each in found.items() if each}
