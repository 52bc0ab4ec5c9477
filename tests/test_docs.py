"""Every page of the documentation runs: its Python as doctests, its `cutaway` commands as a user would type
them.
"""

import doctest
import io
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest

from cutaway import store
from cutaway.cli import main
from cutaway.data import novels
from cutaway.evaluate import data as evaluation
from scripts.tables import extras as tables
from scripts.tables import headline

ROOT = Path(__file__).parent.parent
TOPICS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDES = sorted((ROOT / "docs/how-to").glob("*.md"))
PAGES = [*TOPICS, *GUIDES, *sorted((ROOT / "docs/course").glob("*.md"))]  # tests/course runs their Python
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _id(page: Path) -> str:
    return f"how-to/{page.name}" if page in GUIDES else page.name


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def _commands(page: Path) -> list[str]:
    lines = "".join(_blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip().startswith("cutaway ")]


@pytest.mark.parametrize("page", [*TOPICS, *GUIDES], ids=_id)
def test_python_of_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = "\n".join(_blocks(page, "pycon"))
    parsed = doctest.DocTestParser().get_doctest(source, {}, page.name, str(page), 0)
    report: list[str] = []
    failed = doctest.DocTestRunner(optionflags=FLAGS).run(parsed, out=report.append).failed
    assert not failed, "".join(report)


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_commands_of_the_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "docs" / "examples", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    elsewhere = {one for topic in TOPICS for one in _commands(topic)} if page in GUIDES else set()
    for command in _commands(page):
        if command in elsewhere:
            continue  # it runs as that page's
        code = main(shlex.split(command, comments=True)[1:])
        printed = capsys.readouterr()
        assert code == 0, f"{command}\n{printed.out}\n{printed.err}"


def test_the_page_of_extras_has_all_of_them() -> None:
    """And what the package, its pages and its messages tell people to install is one of them."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "install.md").read_text("utf-8"), re.M)
    assert set(listed) == extras.keys() - {"test", "dev", "docs"}
    files = [*PAGES, *(ROOT / "cutaway").rglob("*.py")]
    texts = [file.read_text("utf-8") for file in files]
    named = {name for text in texts for name in re.findall(r"(?:cutaway\[|\binstall\([\"'])(\w+)", text)}
    assert named <= extras.keys() and {"serve", "agent", "train", "eval", "research"} <= named
    page = (ROOT / "docs" / "install.md").read_text("utf-8")
    assert tables.words(page) == tables.words(tables.table(sizes=False)), "python -m scripts.tables.extras"


def test_the_page_of_licences_has_every_package_that_is_fetched() -> None:
    page = (ROOT / "docs" / "fetching.md").read_text("utf-8")
    data = [one for one in vars(evaluation).values() if isinstance(one, evaluation.Pinned)]
    fetched = [(one.package, one.version) for one in (*store.NAMES.values(), *data)]
    fetched.append((novels.PACKAGE, novels.VERSION.partition("-")[0]))
    assert len(fetched) > 6 and all(f"| `{name}` {version} |" in page for name, version in fetched)
    for name, model in store.NAMES.items():
        assert re.search(rf"\| `{model.package}` .*`{name}`.*\| {re.escape(model.licence)} \|", page)


def test_the_headline_figures_are_those_of_the_pages_of_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["headline", "--check"])
    assert headline.main() == 0, "python -m scripts.tables.headline"
    with monkeypatch.context() as changed:
        changed.setattr(headline, "found", lambda figure: ("1", "1", 1.0))
        assert headline.main() == 1
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < 120


def test_the_index_lists_every_page() -> None:
    docs = ROOT / "docs"
    pages = {str(page.relative_to(docs).with_suffix("")) for page in docs.rglob("*.md")} - {"index"}
    listed: list[str] = []
    for folder in ("", "course/", "how-to/", "reference/"):
        blocks = re.findall(
            r"```{toctree}\n.*?\n\n(.*?)```", (docs / folder / "index.md").read_text("utf-8"), re.S
        )
        listed += [f"{folder}{page}" for page in " ".join(blocks).split()]
    assert sorted(listed) == sorted(pages)


def test_ci_runs_the_test_command_of_the_readme_and_pip_talks() -> None:
    """An installation of minutes says what it does; CI does what a reader of the README does."""
    installs = [line for block in _blocks(ROOT / "README.md", "sh") for line in block.splitlines()]
    [tests] = [line for line in installs if "pytest" in line]
    assert tests in (ROOT / ".ci" / "run").read_text().splitlines()
    assert not any(re.search(r"pip install.* (-q|--quiet)\b", line) for line in installs)


def test_what_the_readme_says_to_do_first_runs_on_the_page_that_it_links_to() -> None:
    """A command of the table is the beginning of one there, which may add sizes that a test has time for."""
    text = (ROOT / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| [^|`]+ \| `([^`|]+)` \| \[[^]]+\]\(([^)]+)\)", text, re.M)
    assert len(rows) == 8
    for command, page in rows:
        run = [f"{line} " for block in _blocks(ROOT / page, "sh") for line in block.splitlines()]
        assert any(line.startswith(f"{command} ") for line in run), f"{page} does not run {command}"


def test_the_guides_name_options_that_there_are() -> None:
    """Commands that are too long to run here are held to the parser all the same."""
    verbs = (ROOT / "docs/reference/cli.md").read_text("utf-8").split("\n### ")
    options = {part.partition("\n")[0]: set(re.findall(r"--[\w-]+", part)) for part in verbs}
    for page in GUIDES:
        for line in "".join(_blocks(page, "console")).splitlines():
            words = shlex.split(line.removeprefix("$ "))
            if words[0] != "cutaway":
                continue
            verb = " ".join(words[1:3]) if " ".join(words[1:3]) in options else words[1]
            given = {word.partition("=")[0] for word in words if word.startswith("--")}
            unknown = given - options[verb]
            free = {one for one in unknown if verb in ("pretrain", "finetune", "finetune grpo")}
            assert not unknown - free, f"{page.name}: {line}"
