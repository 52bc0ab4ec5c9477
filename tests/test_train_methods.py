"""The methods of finetuning: every objective's file is one, with usual settings, and no list names them."""

from pathlib import Path

import pytest

from cutaway.errors import UserError
from cutaway.train import config, methods, objectives

FILES = sorted(path.stem for path in Path(objectives.__path__[0]).glob("*.py") if path.stem != "__init__")


def test_every_objective_of_a_users_data_is_a_method() -> None:
    assert {*FILES, *methods.presets()} - {*methods.names()} == {"targets", "compression"}  # of `compare`


@pytest.mark.parametrize(
    ("name", "like", "task"),
    [
        ("cdpo", "dpo", False),
        ("robust_dpo", "dpo", False),
        ("dft", "sft", False),
        ("reward_model", "reward", False),
        ("rloo", "grpo", True),
        ("on_policy_distill", "grpo", True),
    ],
)
def test_a_method_has_the_settings_of_its_kin(name: str, like: str, task: bool) -> None:
    found, usual = methods.entries(name, ["--seed=7"]), methods.entries(like, [])
    assert found.pop("objective") == {"kind": name} and found.pop("seed") == 7
    usual.pop("objective", None)
    assert found == usual and methods.learns_task(name, ()) is task


def test_a_change_of_a_method_is_kept() -> None:
    changed = methods.entries("cdpo", ["--objective.label-smoothing=0.3"])
    assert changed["objective"] == {"kind": "cdpo", "label_smoothing": 0.3}


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("cdop", "did you mean cdpo?"),
        ("robust-dpo", "did you mean robust_dpo?"),
        ("nano", "is a preset of `cutaway pretrain`"),
        ("targets", "there is no such method"),
    ],
)
def test_a_word_that_is_no_method_is_answered_with_what_to_type(word: str, sentence: str) -> None:
    with pytest.raises(UserError) as problem:
        methods.check_source(word)
    assert sentence in str(problem.value) and "nano," not in str(problem.value)


@pytest.mark.parametrize(
    ("word", "sentence"), [("dpo", "method of `cutaway finetune`"), ("nan", "mean nano?")]
)
def test_pretraining_knows_its_own_presets(word: str, sentence: str) -> None:
    with pytest.raises(UserError) as problem:
        config.entries(word, ())
    assert sentence in str(problem.value)
