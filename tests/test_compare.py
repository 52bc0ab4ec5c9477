"""Comparisons: tasks against their rules, budgets, sweeps that widen, statistics against scipy."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway import cli
from cutaway.compare import arms, report, sweep
from cutaway.compare.arms import Arm, Experiment
from cutaway.compare.sweep import ArmResult, Measured
from cutaway.compare.tasks import copying, induction, mqar, parity, selective_copying
from cutaway.errors import UserError

TASKS = [copying.Config(6, 5), induction.Config(16, 8), mqar.Config(32, 4, 64), parity.Config(6)]
TASKS.append(selective_copying.Config(10, 3, 4))


def drawn(task: Any, seed: int = 0) -> tuple[list[int], list[int], list[bool]]:
    """A row's inputs, targets, and which are scored."""
    batch = arms.Rows(task, seed, 0).row(0)
    return batch.ids[0].tolist(), batch.targets[0].tolist(), (batch.loss_weights[0] > 0).tolist()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__module__.rpartition(".")[2])
def test_a_tasks_scored_targets_follow_from_what_is_before_them(task: Any):
    for seed in range(20):
        ids, targets, scored = drawn(task, seed)
        assert len(ids) == task.context and max(ids + targets) < task.vocab and any(scored)
        for n in (n for n, own in enumerate(scored) if own):
            before = ids[: n + 1]
            if isinstance(task, copying.Config):
                expected = before[n - task.length]
            elif isinstance(task, induction.Config):
                expected = before[before.index(0) + 1]
            elif isinstance(task, mqar.Config):
                expected = before[before[: 2 * task.pairs : 2].index(before[n]) * 2 + 1]
            elif isinstance(task, parity.Config):
                expected = 2 + sum(bit for bit in before if bit < 2) % 2
            else:
                letters = [id for id in before[: task.length] if id > 1]
                expected = letters[n - task.length]
            assert targets[n] == expected


def test_rows_differ_by_seed_and_number_and_are_the_same_for_every_arm():
    rows = arms.Rows(TASKS[0], 3, 0)
    assert not np.array_equal(rows.row(0).ids, rows.row(1).ids)
    assert not np.array_equal(rows.row(0).ids, arms.Rows(TASKS[0], 4, 0).row(0).ids)
    assert np.array_equal(rows.batch(2, 3).ids[1:2], arms.Rows(TASKS[0], 3, 9).row(3).ids)


def small(**settings: Any) -> Experiment:
    """Two mechanisms on a few letters, for seconds."""
    chosen: dict[str, Any] = {"steps": 8, "trial_steps": 4, "batch_size": 8, "seeds": 2, "test": 16}
    chosen |= {"learning_rates": (0.01,)} | settings
    return arms.preset(copying.Config(4, 4), ["mha", "linear"], width=16, heads=2, **chosen)


def test_arms_have_the_same_budget_and_differ_in_one_part():
    kinds = ["mha", "gqa", "mqa", "mla", "local", "linear", "gated_delta", "mamba2"]
    made = arms.preset(copying.Config(), kinds)
    models = [arms.model_of(made, arm) for arm in made.arms]
    sizes = [arms.parameters(model) for model in models]
    step = 2 * 3 * 64  # a column of every MLP
    assert max(abs(size - sizes[0]) for size in sizes) <= step
    assert models[-1] == models[0] and made.arms[-1].first_seed
    for model in models[1:-1]:
        block = replace(model.blocks[0], attention=models[0].blocks[0].attention, mlp=models[0].blocks[0].mlp)
        assert block == models[0].blocks[0]


def test_a_change_that_fits_nothing_is_refused():
    made = small()
    for change, message in (("attention.kind=none", "no 'none'"), ("attention", "NAME=VALUE")):
        with pytest.raises(UserError, match=message):
            arms.model_of(made, Arm("x", (change,)))
    with pytest.raises(UserError, match="two arms"):
        replace(made, arms=made.arms[:1])
    with pytest.raises(UserError, match="no task"):
        arms.task("chess")


# ---- the sweep ---------------------------------------------------------------------------------------------


def sweeping(losses: dict[float, float], **settings: Any) -> tuple[ArmResult, list[tuple[float, int]]]:
    """A sweep over made-up losses, and the runs it asked for."""
    asked: list[tuple[float, int]] = []

    def measured(arm: Arm, rate: float, steps: int, seed: int) -> Measured:
        asked.append((round(rate, 6), steps))
        near = min(losses, key=lambda known: abs(math.log(known / rate)))
        return Measured(0.0, losses[near], [], 1.0)

    result = ArmResult(Arm("x"))
    sweep._sweep(small(**settings), result, measured)
    return result, asked


def test_a_sweep_halves_and_keeps_an_interior_optimum():
    losses = {0.001: 3.0, 0.003: 1.0, 0.009: 2.0}
    result, asked = sweeping(losses, learning_rates=(0.001, 0.003, 0.009))
    assert result.rate == 0.003 and not result.bound
    assert asked == [(0.001, 4), (0.003, 4), (0.009, 4), (0.003, 8), (0.009, 8)]


def test_a_sweep_widens_at_its_edge_and_says_where_it_did_not_help():
    losses = {0.001: 3.0, 0.003: 2.0, 0.009: 1.0, 0.027: 2.0}
    result, asked = sweeping(losses, learning_rates=(0.001, 0.003, 0.009))
    assert result.rate == 0.009 and not result.bound and (0.027, 4) in asked
    result, _ = sweeping({0.001: 3.0, 1.0: 1.0}, learning_rates=(0.001, 0.01), widen=1)
    assert result.bound


def test_an_experiment_that_was_stopped_ends_with_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = small()
    count = 0
    one = sweep.one

    def stopped(run: Any, folder: Path) -> Measured:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return one(run, folder)

    monkeypatch.setattr(sweep, "one", stopped)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(made, tmp_path / "a", lambda *_: None)
    monkeypatch.setattr(sweep, "one", one)
    resumed = report.save(made, sweep.run(made, tmp_path / "a", lambda *_: None), tmp_path / "a")
    whole = report.save(made, sweep.run(made, tmp_path / "b", lambda *_: None), tmp_path / "b")

    def table(document: dict[str, Any]) -> Any:
        return {
            name: {key: value for key, value in arm.items() if key != "tokens_per_second"}
            for name, arm in document["arms"].items()
        }

    assert table(resumed) == table(whole)
    text = (tmp_path / "a" / "report.md").read_text()
    assert "| mha again |" in text and "Chance is 0.250" in text
    page = (tmp_path / "a" / "report.html").read_text()
    assert "held-out accuracy by step" in page and "<script src=" not in page


def test_a_run_that_fails_is_reported(tmp_path: Path):
    made = small()
    bad = replace(arms.run_of(made, made.arms[0], 1e30, 8, 0), gradient_clip=None)
    found = sweep.one(bad, tmp_path / "run")
    assert found.failed is not None and " is nan" in found.failed and found.accuracy == 0


# ---- statistics --------------------------------------------------------------------------------------------


def test_the_statistics_are_scipys():
    from scipy import stats

    a, b = [0.5, 0.7, 0.6, 0.9], [0.4, 0.65, 0.7, 0.6]
    assert report.paired(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=1e-6)
    for freedom in (1, 2, 5, 30):
        assert report.quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-5)
    low, high = report.interval(a)
    expected = stats.t.interval(0.95, 3, np.mean(a), stats.sem(a))
    assert (low, high) == pytest.approx(expected)
    assert report.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_false_positives_are_five_percent():
    random = np.random.default_rng(3)
    wrong = sum(report.paired(*random.normal(size=(2, 4)).tolist()) < report.LEVEL for _ in range(1000))
    assert 30 <= wrong <= 70
    families = 0
    for _ in range(400):
        raw = [report.paired(*random.normal(size=(2, 4)).tolist()) for _ in range(5)]
        families += min(report.holm(raw)) < report.LEVEL
    assert families / 400 <= 0.08


def test_the_paragraph_says_what_separated_and_what_did_not():
    made = small(seeds=3)

    def result(arm: Arm, scores: list[float], bound: bool = False) -> ArmResult:
        runs = [Measured(score, 1.0, [(8, score)], 1.0) for score in scores]
        return ArmResult(arm, {0.01: {8: runs[0]}}, 0.01, bound, runs)

    results = [
        result(made.arms[0], [0.90, 0.91, 0.92]),
        result(made.arms[1], [0.30, 0.31, 0.325], bound=True),
        result(made.arms[2], [0.91, 0.90, 0.92]),
    ]
    table = report.rows(made, results)
    text = report.paragraph(made, table)
    assert "linear is below mha by 0.598" in text and "Not separated from mha: mha again" in text
    assert "no optimum: linear" in text
    assert table[0].state_numbers == 2 * 2 * 8 * 2 * 8  # layers, heads, tokens, keys and values


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["compare", "--attention", "mha,linear", "--task", "parity", "--steps", "4", "--seeds", "1"]
    words += ["--width", "16", "--learning-rates", "0.01", "--output", str(tmp_path / "c")]
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["arms"]) == {"mha", "linear", "mha again"}
    assert found["arms"]["linear"]["params"] == pytest.approx(found["arms"]["mha"]["params"], rel=0.05)
    assert cli.main(words) == 0  # read from its folder
    assert "| linear |" in capsys.readouterr().out
    assert cli.main(["compare", "--attention", "mha"]) == 2
    assert "two mechanisms" in capsys.readouterr().err
    assert cli.main(["compare"]) == 2
