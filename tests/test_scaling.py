"""Scaling laws: planted exponents are found and lie in their intervals; what is asked too far is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import cutaway
from cutaway import cli
from cutaway.compare import scaling
from cutaway.compare.scaling import Ladder, Point, Rung
from cutaway.compare.tasks import parity
from cutaway.errors import UserError
from tests.pages import charts

TRUE = np.array([1.8172, 482.01, 2085.43, 0.3478, 0.3658])  # 2404.10102


def ladder(noise: float = 0.0, seed: int = 0) -> list[Point]:
    """Five sizes by three budgets, whose losses have so much noise of their logarithm."""
    random, out = np.random.default_rng(seed), []
    for n in 1e4 * 4.0 ** np.arange(5):
        for d in 1e6 * 4.0 ** np.arange(3):
            loss = TRUE[0] + TRUE[1] / n ** TRUE[3] + TRUE[2] / d ** TRUE[4]
            out.append(Point(n, d, float(loss * np.exp(noise * random.standard_normal()))))
    return out


def test_exact_losses_give_the_planted_law():
    law = scaling.fit(ladder(), draws=20)
    assert law.values == pytest.approx(TRUE, rel=1e-6)
    assert law.draws == pytest.approx(np.repeat(TRUE[None], 20, 0), rel=1e-5)
    points = ladder()
    points[4] = Point(points[4].n, points[4].d, 3 * points[4].loss)  # one bad run: a square would follow it
    assert scaling.fit(points, draws=1).values == pytest.approx(TRUE, rel=0.02)


def test_planted_exponents_are_in_the_90_percent_interval_in_90_percent_of_100_draws():
    hits = np.zeros(5)
    for seed in range(100):
        law = scaling.fit(ladder(1e-3, seed), draws=99, seed=seed)
        found = law.intervals.values()
        hits += [low <= true <= high for true, (_, low, high) in zip(TRUE, found, strict=True)]
    assert (hits >= 82).all() and (hits <= 98).all(), hits  # 2.7 standard deviations around 90


def test_the_optimum_is_the_least_loss_of_its_compute():
    law = scaling.fit(ladder(), draws=5)
    compute = 2 * law.compute
    n = np.geomspace(1e4, 1e9, 200_001)
    loss = TRUE[0] + TRUE[1] / n ** TRUE[3] + TRUE[2] / (compute / 6 / n) ** TRUE[4]
    best = law.optimum(compute)
    assert best["n"][0] == pytest.approx(n[loss.argmin()], rel=1e-3)
    assert best["loss"][0] == pytest.approx(loss.min())
    assert best["loss"][0] == pytest.approx(law.loss(best["n"][0], best["d"][0])[0])
    assert best["a"][0] == pytest.approx(TRUE[4] / (TRUE[3] + TRUE[4]))


def test_what_a_ladder_cannot_say_is_refused():
    points = ladder()
    law = scaling.fit(points, draws=5)
    law.loss(1e7, law.compute / 6e7 * 9.9)
    with pytest.raises(UserError, match=r"10\.1 times those of the ladder's largest"):
        law.loss(1e7, law.compute / 6e7 * 10.1)
    with pytest.raises(UserError, match="not asked beyond 10 times"):
        law.optimum(11 * law.compute)
    for few in (points[:6], points[:3] * 3, points[::3] * 2):
        with pytest.raises(UserError, match="3 sizes and 3 budgets"):
            scaling.fit(few)
    with pytest.raises(UserError, match="losses do not fall"):
        scaling.fit([Point(p.n, p.d, 1 / p.loss) for p in points])


def test_the_largest_run_is_predicted_from_the_others():
    points = ladder()
    largest, predicted = scaling.leave_largest_out(points)
    assert largest == points[-1] and predicted == pytest.approx(largest.loss, rel=1e-6)
    points[-1] = Point(largest.n, largest.d, 1.1 * largest.loss)
    assert scaling.leave_largest_out(points)[1] == pytest.approx(largest.loss, rel=1e-6)


def test_a_rung_is_trained_into_a_folder_that_other_verbs_open(tmp_path: Path):
    made = Ladder(parity.Config(4), (Rung(16, (2,)),), batch_size=4, test=8)
    (point,) = scaling.train(made, made.rungs, tmp_path)
    assert point.n == 2 * (4 * 16 * 16 + 3 * 64 * 16) + 4 * 16 and point.d == 2 * 4 * 4
    lm = cutaway.load(tmp_path / "16x2-2-0")
    assert lm.logits([0, 2]).shape == (2, 4)
    assert scaling.train(made, made.rungs, tmp_path) == [point]  # read from its folder
    with pytest.raises(UserError, match="width 20 is no multiple of head, 16"):
        made.model(Rung(20, (2,)))


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    points = ladder(1e-3)
    monkeypatch.setattr(scaling, "train", lambda made, rungs, *_: points if len(rungs) > 1 else points[-1:])
    monkeypatch.setattr(scaling, "DRAWS", 50)
    words = ["scale", "--preset", "small", "--output", str(tmp_path)]
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    low, high = found["fit"]["alpha"]["interval"]
    assert low < found["fit"]["alpha"]["value"] < high and len(found["points"]) == 15
    held_out = found["held_out"][0]
    assert held_out["predicted"]["value"] == pytest.approx(held_out["loss"], rel=0.01)
    assert json.loads((tmp_path / "laws.json").read_text()) == found
    assert "| alpha | 0.34" in (tmp_path / "report.md").read_text()
    [chart] = charts((tmp_path / "report.html").read_text())
    assert "Held-out loss" in (tmp_path / "plots" / "held-out-loss-by-compute.svg").read_text("utf-8")
    assert chart["x"]["unit"] == "floating-point operations" and chart["series"][-1]["line"] is False
    assert cli.main([*words, "--compute", "1e30"]) == 2
    assert "train larger runs" in capsys.readouterr().err
    assert cli.main(["scale"]) == 2 and "--preset small" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rungs", "more", "words", "sentence"),
    [
        ("{width: 16, steps: [1, 2, 3]}, {width: 32, steps: [1, 2, 3]}", "", [], "has 6 of 2 and 3"),
        ("{width: 16, steps: [1, 2, 3]}, {width: 32, steps: [1, 2]}, {width: 48, steps: [1, 3]}", "", [],
         "without its largest run"),
        ("{width: 20, steps: [1]}", "", [], "width 20 is no multiple of head"),
        (None, "held_out: [{width: 512, steps: [9]}]", [], "train larger runs"),
        (None, "held_out: [{width: 20, steps: [9]}]", [], "width 20 is no multiple of head"),
        (None, "", ["--compute", "1e30"], "train larger runs"),
        (None, "", ["--compute", "-1"], "above 0"),
        (None, "", ["--output", "ladder.yaml/laws"], "is a file: give a folder's name"),
    ],
)  # fmt: skip
def test_what_the_law_would_refuse_is_refused_before_the_first_run(
    rungs: str | None,
    more: str,
    words: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    whole = ", ".join(f"{{width: {width}, steps: [1, 2, 3]}}" for width in (16, 32, 48))
    (tmp_path / "ladder.yaml").write_text(
        f"task: {{kind: parity, length: 4}}\nrungs: [{rungs or whole}]\n{more}"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scaling, "train", lambda *_: pytest.fail("a run was trained first"))
    assert cli.main(["scale", "ladder.yaml", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_presets_are_ladders():
    for name in scaling.ladders():
        made = scaling.read_ladder(name)
        assert isinstance(made, Ladder) and len(made.rungs) >= 5
        made.check()
