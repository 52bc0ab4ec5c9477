"""The evaluation tasks by name: the folder ``tasks/`` is the registry."""

from __future__ import annotations

import inspect
import pkgutil
import re
from functools import cache
from importlib import import_module
from pathlib import Path

from cutaway.data import rows
from cutaway.errors import UserError
from cutaway.evaluate import tasks
from cutaway.evaluate.task import EvaluationTask, Text

TASK = re.compile(r"^def task\((\w+): (\w+)", re.MULTILINE)  # its first parameter: a name, or a limit


@cache
def _files(folders: tuple[str, ...]) -> dict[str, bool]:
    """Each task's file, none of which is imported, and whether a name follows its own after a colon."""
    found = {}
    for module in sorted(pkgutil.iter_modules(folders), key=lambda module: module.name):
        path = Path(module.module_finder.path, f"{module.name}.py")  # type: ignore[union-attr]
        task = TASK.search(path.read_text("utf-8"))
        if task is None:
            raise UserError(f"{path}: defines no task(limit) or task(name, limit)")
        found[module.name] = task[2] == "str"
    return found


def names() -> list[str]:
    """The tasks that come with Cutaway."""
    return [name for name, named in _files(tuple(tasks.__path__)).items() if not named]


def named() -> list[str]:
    """The tasks that take a name after a colon: bigbench:NAME."""
    return [name for name, named in _files(tuple(tasks.__path__)).items() if named]


def known() -> str:
    """All of them, as a user writes them."""
    return ", ".join([*names(), *(f"{each}:NAME" for each in named())])


def find(name: str, limit: int | None = None, *, unsafe: bool = False) -> EvaluationTask | Text:
    """A task by its name, or by its file's and one of its own after a colon: ``text:FILE``.

    At most ``limit`` of its items. ``unsafe`` lets HumanEval's programs run where a layer of the sandbox does
    not hold. UserError for another name.
    """
    kind, colon, rest = name.partition(":")
    if colon and kind in named():
        return import_module(f"{tasks.__name__}.{kind}").task(rest, limit)
    if name in names():
        task = import_module(f"{tasks.__name__}.{name}").task
        runs = unsafe and "unsafe" in inspect.signature(task).parameters
        return task(limit, unsafe=True) if runs else task(limit)
    if Path(name.removesuffix(".gz")).suffix in rows.TABLES:
        return import_module(f"{tasks.__name__}.file").task(name, limit)
    if Path(name).exists():
        raise UserError(f"{name} is no table of questions: text:{name} asks how well its text is predicted")
    raise UserError(f"there is no task {name!r}: use {known()}")
