"""A model's answer that a scorer would evaluate as Python is no program."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

from cutaway.data import tasks
from cutaway.data.expressions import evaluates, harmless

HARMLESS = [
    "3", "-1.5", "(1 + 2) * 3 - 4 / 5", "x**2 + C", "3*x**11/4 - sin(2*x)", "[[0, 1], [1, 0]]", "['a', 'b']",
    "x^2", "[1, 2, 3]", "exp(x)*cos(x) + log(x)", "2**x", "24", "", "1 0\n0 1", "_ _ Q", "three words, -2 .5",
]  # fmt: skip
HARMFUL = [
    "__import__('os').system('true')", "().__class__", "open('x', 'w')", "[x for x in (1,)]", "9**9**9",
    "(lambda: 1)()", "Symbol('x')", "x.y", "a[0]", "9**1000000", "f'{x}'", "(y := 1)", "'x' * 10**9",
    "[0] * 10**9", "1 << 10**10", "sqrt(*x)", "1 == 1 and quit()", "sqrt(x, y=open('z'))",
    "(" * 500, "1+" * 3000 + "1", "factorial(10**6)", "globals()['a']", "10**(10**10)", "5! + open('x')",
    "a b (c)", "x.__class__", "10000000!",
]  # fmt: skip


@pytest.mark.parametrize("text", HARMLESS)
def test_arithmetic_is_harmless(text: str):
    assert harmless(text)


@pytest.mark.parametrize("text", HARMFUL)
def test_what_acts_or_grows_is_not(text: str):
    assert not harmless(text)


GUARDED = (
    "binary_matrix", "countdown", "n_queens", "polynomial_multiplication", "puzzle24", "simple_integration",
    "spiral_matrix", "string_insertion",
)  # fmt: skip


@pytest.mark.parametrize("name", GUARDED)
def test_an_answer_is_not_run_by_a_scorer(name: str, tmp_path: Path):
    """`eval` and `parse_expr` of reasoning-gym's scorers ran what a model had written, in this process."""
    pytest.importorskip("reasoning_gym")
    task = tasks.load(f"reasoning_gym:{name}", 2, 2)
    canary = tmp_path / "canary"
    for payload in (
        f"open({str(canary)!r}, 'w')",
        f"[open({str(canary)!r}, 'w')]",
        f"[[open({str(canary)!r}, 'w')]]",
    ):
        for problem in (*task.train, *task.test):
            task.score(f"<answer>{payload}</answer>", problem)
    assert not canary.exists()
    for problem in task.train:
        if problem.answer is not None:
            assert task.score(f"<answer>{problem.answer}</answer>", problem) >= 0.99


def test_every_scorer_that_evaluates_is_known():
    gym = pytest.importorskip("reasoning_gym.factory")
    found = {name for name, (kind, _) in gym.DATASETS.items() if evaluates(kind.score_answer)}
    assert set(GUARDED) <= found
    modules = {
        name: inspect.getsource(sys.modules[kind.__module__]) for name, (kind, _) in gym.DATASETS.items()
    }
    assert all("eval(answer)" not in text or name in found for name, text in modules.items())
