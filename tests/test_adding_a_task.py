"""The recipe of docs/adding-a-task.md, followed: its one file is asked, scored, listed and documented."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cutaway
from cutaway.cli import main
from cutaway.errors import UserError
from cutaway.evaluate import cache, run, task_registry, tasks
from scripts.tables import registries
from tests import recipes
from tests.training import chatting_model

PAGE = "adding-a-task.md"


@pytest.fixture
def backwards(tmp_path: Path) -> Iterator[str]:
    with recipes.followed(PAGE, tasks, tmp_path) as [name]:
        yield name


def test_it_is_found_and_scored(backwards: str) -> None:
    task: Any = task_registry.find(backwards, 3)
    assert [item.prompt.split()[3] for item in task.items] == ["river", "stone", "garden"]
    check = task.items[0].check
    assert [check(answer) for answer in ("revir", "It is:\nRevir.", "river", "", "revir river")] == [
        1,
        1,
        0,
        0,
        0,
    ]
    assert (
        "backwards, gsm8k" in ", ".join(task_registry.names()) and task_registry.find(backwards).prompt_hash
    )


def test_a_model_is_asked(backwards: str, tmp_path: Path) -> None:
    lm = cutaway.load(chatting_model(tmp_path / "base"))
    result = run.run_tasks(
        lm, task_registry.find(backwards, 2), cache.Cache(lm, None), run.Options(max_tokens=3)
    )
    assert len(result.answers) == 2 and result.metrics["acc"].value == 0


def test_help_and_docs_name_it(backwards: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--help"]) == 0
    assert "backwards, gsm8k" in " ".join(capsys.readouterr().out.split())
    assert main(["eval", "--tasks", "backward"]) == 2
    assert "use backwards, gsm8k" in capsys.readouterr().err
    assert "| `backwards` | Words backwards: a word is to be written" in registries.asked()


def test_a_file_without_a_task_is_one_sentence(tmp_path: Path) -> None:
    with recipes.followed(PAGE, tasks, tmp_path) as [name]:
        (tmp_path / f"{name}.py").write_text('"""Nothing yet."""\n')
        with pytest.raises(UserError, match=f"{name}.py: defines no task"):
            task_registry.find("gsm8k", 1)
