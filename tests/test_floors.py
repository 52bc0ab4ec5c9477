"""The floors that CONTRIBUTING.md shows are those that imports are held to."""

from scripts import floors


def test_contributing_shows_the_floors_of_pyproject() -> None:
    page = floors.PAGE.read_text()
    assert floors.written(page) == page, "run python -m scripts.floors"


def test_every_package_is_on_a_floor() -> None:
    """Else a new package would be held to nothing, and the page would not name it."""
    package = floors.ROOT / "cutaway"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    modules = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    assert {name for names in floors.layers() for name in names} == folders | modules


def test_a_page_that_lags_is_found() -> None:
    page = floors.PAGE.read_text()
    assert floors.written(page.replace("| `store` |", "| `shop` |")) == page
    assert floors.written(page.replace("| 0 | `errors`", "| 1 | `errors`")) != page.replace("| 0 |", "| 1 |")
