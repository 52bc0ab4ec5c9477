"""The tables of CONTRIBUTING.md are those of the tree: floors that imports are held to, and scripts."""

from scripts.tables import contributing, registries


def test_the_page_shows_the_tree() -> None:
    page = contributing.PAGE.read_text()
    assert contributing.written(page) == page, "run python -m scripts.tables.contributing"


def test_every_package_is_on_a_floor() -> None:
    """Else a new package would be held to nothing, and the page would not name it."""
    package = contributing.ROOT / "cutaway"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    modules = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    assert {name for names in contributing.layers() for name in names} == folders | modules


def test_a_page_that_lags_is_found() -> None:
    page = contributing.PAGE.read_text()
    assert contributing.written(page.replace("| `store` |", "| `shop` |")) == page
    assert contributing.written(page.replace("| 0 | `errors`", "| 1 | `errors`")) == page
    assert contributing.written(page.replace("scripts.fuzz.files`", "scripts.fuzz.papers`")) == page


def test_the_docs_list_every_mechanism_objective_and_task() -> None:
    for name in registries.TABLES:
        page = (registries.DOCS / name).read_text()
        assert registries.written(page, name) == page, "run python -m scripts.tables.registries"
        assert registries.written(page.replace("| `", "| `x"), name) != page.replace("| `", "| `x")


def test_every_script_is_in_a_folder_and_is_named_by_a_page() -> None:
    """A script that no page names is not found by those who need it."""
    root = contributing.ROOT
    assert not [path.name for path in (root / "scripts").iterdir() if path.is_file()]
    pages = "".join(path.read_text() for path in (root / "docs").rglob("*.md"))
    pages += (root / "CONTRIBUTING.md").read_text()
    assert not [name for name in contributing.commands() if name not in pages]
