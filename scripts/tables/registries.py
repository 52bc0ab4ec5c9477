"""Write the tables of docs/ that list a folder's files: mechanisms, objectives, and evaluation tasks.

    python -m scripts.tables.registries            # after a file of these folders came, went or changed
    python -m scripts.tables.registries --check    # exits 1 where a page says otherwise

What a mechanism, an objective or a task is, is the first sentence of its own file.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import cutaway.attention
from cutaway.attention.common import registry
from cutaway.evaluate import task_registry, tasks
from cutaway.train import methods, objectives
from scripts.tables import contributing

DOCS = contributing.ROOT / "docs"
MARK = "<!-- {}: python -m scripts.tables.registries -->\n"


def sentences(package: ModuleType) -> dict[str, str]:
    """What each file of a folder is, by its name."""
    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        if not module.ispkg:
            path = Path(module.module_finder.path, f"{module.name}.py")  # type: ignore[union-attr]
            found[module.name] = contributing.first_sentence(path).replace("``", "`")
    return found


def _table(head: str, rows: Iterable[str]) -> str:
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *rows]) + "\n"


def mechanisms() -> str:
    """Every mechanism, and how many numbers its state has."""
    of = sentences(cutaway.attention)
    rows = (f"| `{kind.name}` | {of[kind.name]} | {kind.cost.state} |" for kind in registry.kinds())
    return _table("| `kind` | what it is | numbers that its state keeps after n tokens |", rows)


def learned() -> str:
    """Every objective that a user's data can be trained with: the methods of ``cutaway finetune``."""
    of = sentences(objectives)
    data = {"examples": "examples", "pairs": "pairs", "labelled": "answers with labels"}
    rows = (
        f"| `{name}` | {'a task' if own.source == 'task' else data[own.rows]} | {of[name]} |"
        for name, own in methods.learned().items()
    )
    return _table("| `objective.kind` | trained on | what it is |", rows)


def asked() -> str:
    """Every task of ``cutaway eval``."""
    of = sentences(tasks)
    rows = [f"| `{name}` | {of[name]} |" for name in task_registry.names()]
    return _table(
        "| task | what it asks |",
        rows + [f"| `{name}:NAME` | {of[name]} |" for name in task_registry.named()],
    )


TABLES = {
    "attention.md": ("mechanisms", mechanisms),
    "finetuning.md": ("objectives", learned),
    "evaluation.md": ("tasks", asked),
}


def written(page: str, name: str) -> str:
    """The text of docs/NAME with its table as it is."""
    what, table = TABLES[name]
    begin, end = MARK.format(what), contributing.END.format(what)
    before, _, rest = page.partition(begin)
    assert rest, f"docs/{name} has no {begin}"
    return before + begin + table() + end + rest.partition(end)[2]


def main(arguments: list[str]) -> int:
    """Write the pages, or say which say otherwise."""
    late = 0
    for name in TABLES:
        page = (DOCS / name).read_text()
        new = written(page, name)
        late += new != page
        if "--check" in arguments and new != page:
            print(f"docs/{name} says otherwise: run python -m scripts.tables.registries")
        elif new != page:
            (DOCS / name).write_text(new)
    return int("--check" in arguments and late > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
