"""The recipe of docs/adding-an-objective.md, followed: its one file is a method, judged and documented."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cutaway.cli import main
from cutaway.errors import UserError
from cutaway.train import methods, objectives
from scripts.tables import registries
from tests import recipes, test_objectives
from tests.training import chatting_model

PAGE = "adding-an-objective.md"
DEFINITIONS = "test_objectives.py", "test_policy.py", "test_training.py", "test_eagle3_training.py"


@pytest.fixture
def slic(tmp_path: Path) -> Iterator[str]:
    methods.learned.cache_clear()
    with recipes.followed(PAGE, objectives, tmp_path) as [name]:
        yield name
    methods.learned.cache_clear()


def without(names: Iterable[str]) -> list[str]:
    """A sentence for each objective that has no definition."""
    tests = [recipes.ROOT / "tests" / name for name in DEFINITIONS]
    return [
        f"cutaway/train/objectives/{name}.py: no test has its loss as a loop; "
        "docs/adding-an-objective.md shows how to write it"
        for name in recipes.unnamed(names, objectives, tests)
    ]


def test_every_objective_has_a_definition() -> None:
    assert not without(methods.learned())


def test_it_is_a_method(slic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert slic in methods.names()
    found = methods.entries(slic, ["--objective.delta=2"])
    assert found["objective"] == {"kind": slic, "delta": 2}
    pair = {"prompt": "Who are you?", "chosen": "A model.", "rejected": "A duck."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    model = str(chatting_model(tmp_path / "base"))
    words = ["finetune", slic, str(tmp_path / "pairs.jsonl"), "--model", model, "--check"]
    assert main(words) == 0 and "A duck." in capsys.readouterr().out
    assert main([words[0], "slik", *words[2:]]) == 2
    assert slic in capsys.readouterr().err
    assert f"| `{slic}` | pairs | SLiC-HF (2305.10425): the chosen answer" in registries.learned()


def test_its_loss_is_the_pages_loop(slic: str) -> None:
    [sentence] = without(methods.learned())
    assert sentence.startswith(f"cutaway/train/objectives/{slic}.py: no test has its loss as a loop")
    own: Any = methods.learned()[slic]
    loop: dict[str, Any] = {}
    exec(recipes.files(PAGE)["tests/slic_loop.py"], loop)
    test_objectives.test_one_step_is_the_papers(own(delta=30.0, chunk_size=17), loop["of_slic"])
    with pytest.raises(AssertionError):
        test_objectives.test_one_step_is_the_papers(
            own(delta=31.0), lambda *of: loop["of_slic"](*of[:3], own())
        )


def test_a_file_without_a_config_is_one_sentence(slic: str, tmp_path: Path) -> None:
    (tmp_path / f"{slic}.py").write_text('"""Nothing yet."""\n')
    with pytest.raises(UserError, match=f"{slic}.py has no Config: docs/adding-an-objective.md"):
        methods.learned()
