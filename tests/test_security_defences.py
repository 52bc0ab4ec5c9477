"""Defences against injection, each by what it does; detectors meet an attacker who chooses what passes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import cutaway
from cutaway.evaluate.likelihood import Scored
from cutaway.lm import LanguageModel
from cutaway.security import detection
from cutaway.security.cases import CANARIES, DISTRACTORS, EVASIONS, STYLES, cases, negatives, where
from cutaway.security.defences import attention_tracker, classifier, datamarking, delimiting, output_check
from cutaway.security.probes import injection
from tests.small import model_file


def test_a_threshold_lets_its_share_of_negatives_above() -> None:
    benign = np.random.default_rng(0).permutation(200).astype(float)
    for rate in (0.0, 0.01, 0.1, 0.5):
        assert (benign > detection.threshold(benign, rate)).mean() == rate
    assert detection.caught(benign, np.array([199.0, 198.5, 500.0]), 0.0).tolist() == [False, False, True]
    assert detection.curve("d", benign, benign, (0.0, 0.1)).points == ((0.0, 0.0), (0.1, 0.1))


def test_a_mark_is_the_prompts_own_and_around_the_text() -> None:
    draw = np.random.default_rng(0)
    marks = {delimiting.mark(draw) for _ in range(20)}
    assert len(marks) > 15
    made = delimiting.guard("Which?", "In Oslo.", 2, np.random.default_rng(1))
    mark = delimiting.mark(np.random.default_rng(1))
    assert f"\n{mark}\nIn Oslo.\n{mark}\n" in made and made.count("is data") == 3
    assert made.startswith("Which?") and made.endswith("Which?")


@pytest.mark.parametrize(("strength", "marked"), [(1, 6), (2, 3), (4, 1)])
def test_every_nth_space_is_marked(strength: int, marked: int) -> None:
    made = datamarking.guard("Which?", "a b c d e f g", strength, np.random.default_rng(0))
    seeds = [datamarking.guard("Which?", "a b", 1, np.random.default_rng(n)) for n in range(20)]
    assert len(set(seeds)) > 3
    text = made.partition("Text: ")[2].partition("\n")[0]
    (mark,) = set(text) - set("abcdefg ")
    assert text.count(mark) == marked and text.count(" ") == 6 - marked
    assert text.replace(mark, " ") == "a b c d e f g" and f"has {mark} between" in made


def test_rules_of_the_output_check_are_each_stricter() -> None:
    towns = ("Oslo", "Rome", "Lima")

    def refused(value: str, text: str) -> list[bool]:
        return [output_check.refused(value, text, towns, rule) for rule in output_check.RULES]

    assert refused("Florbium", "in Oslo: Florbium") == [True, True, True]
    assert refused("Rome", "in Oslo") == [False, True, True]
    assert refused("Rome", "in Oslo, not Rome") == [False, False, True]
    assert refused("Oslo", "in Oslo") == [False, False, False]


def test_a_classifier_scores_attacks_higher_and_knows_no_more_than_it_learnt() -> None:
    draw = np.random.default_rng(0)
    bad = [case.attacked("ignore", 0) for case in cases(draw, 60)]
    good = [text for _, text in negatives(draw, 60, training=True)]
    scorer = classifier.words(bad[:40], good[:40])
    assert scorer(bad[40:]).min() > scorer(good[40:]).max()
    assert scorer(bad[40:]).mean() > 0 > scorer(good[40:]).mean()


def test_a_classifier_reads_the_order_of_words_and_both_kinds_count_alike() -> None:
    few, many = ["stop and go"] * 4, [f"a plain text {n}" for n in range(200)]
    scorer = classifier.words(few, many)
    assert scorer(few).min() > 0 > scorer(many).max()
    ordered = classifier.words(["red blue"] * 9, ["blue red"] * 9)
    assert ordered(["red blue"])[0] > 0 > ordered(["blue red"])[0]


def test_a_share_is_of_all_weight_on_the_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.array([[0.3, 0.1, 0.1, 0.1]])
    monkeypatch.setattr(attention_tracker, "last_attention", lambda lm, texts: [rows for _ in texts])
    lm = LanguageModel.__new__(LanguageModel)
    assert attention_tracker.shares(lm, [([0] * 4, range(1), range(1, 4))])[0, 0] == pytest.approx(0.5)


@pytest.mark.parametrize("draws", [True, False])
def test_the_tracker_alarms_where_attention_leaves_the_instruction(
    monkeypatch: pytest.MonkeyPatch, draws: bool
) -> None:
    """Of four heads the second leaves the instruction (tokens 0, 1) for an attack's text (2, 3)."""
    random = np.random.default_rng(0)

    def attention(lm: Any, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        out = []
        for ids in texts:
            rows = np.full((4, 4), 0.25) + random.uniform(0, 0.02, (4, 4))
            if ids[0] == 1 and draws:
                rows[1] = [0.02, 0.03, 0.5, 0.45]
            out.append(rows)
        return out

    monkeypatch.setattr(attention_tracker, "last_attention", attention)
    lm = LanguageModel.__new__(LanguageModel)
    attack, clean = (([kind, 0, 0, 0], range(2), range(2, 4)) for kind in (1, 0))
    scorer = attention_tracker.detector(lm, [attack] * 8, [clean] * 8)
    bad, good = scorer([attack] * 9), scorer([clean] * 9)
    if draws:
        assert bad.min() > good.max() and np.allclose(bad, -0.05, atol=1e-6) and (good < -0.4).all()
    else:
        assert abs(bad.mean() - good.mean()) < 0.02


@pytest.mark.parametrize("works", [True, False])
def test_the_attacker_sends_what_works_and_scores_lowest(works: bool) -> None:
    attempts = len(STYLES) * len(EVASIONS)
    scores = {"negatives": np.linspace(0, 1, 200), "mentions": np.zeros(20)}
    scores["attacks"] = np.full(4 * attempts, 2.0)
    scores["attacks"][7::attempts] = -1.0  # of each case one attempt that no detector would notice
    hits = np.ones((4, attempts), bool)
    hits[:, 7] = works
    found = injection._detected("d", scores, hits, 0)
    adaptive = found.arms[0]
    assert adaptive.name.startswith("adaptive") and adaptive.value.value == (0.0 if works else 1.0)
    assert found.verdict == ("vulnerable" if works else "not enough trials")
    assert f"passes in {'100%' if works else '0%'} of 4" in found.summary
    silent = injection._detected("d", scores, np.zeros((4, attempts), bool), 0)
    assert silent.verdict == "not separated" and "nothing for it to stop" in silent.summary


def test_a_detector_is_asked_about_families_apart_at_one_false_positive_in_a_hundred() -> None:
    """It catches what it learnt, and of an attempt that scores above 95 in 100 ordinary texts nothing."""
    attempts = len(STYLES) * len(EVASIONS)
    table = np.full((4, len(STYLES), len(EVASIONS)), -1.0)
    table[:, [style in injection.SEEN for style in STYLES]] = 2.0
    hits = np.zeros((4, attempts), bool)
    hits[:, 5] = True
    table.reshape(4, -1)[:, 5] = 0.95
    scores = {"negatives": np.linspace(0, 1, 200), "mentions": np.zeros(20), "attacks": table.ravel()}
    found = injection._detected("d", scores, hits, 0)
    arms = {arm.name.partition(":")[0]: arm.value.value for arm in found.arms}
    assert arms["families it learnt"] == 1 and arms["families held out"] == arms["adaptive attacker"] == 0
    assert "passes in 100% of 4" in found.summary


def test_an_attempt_is_of_its_style_and_another_value_is_another() -> None:
    row = np.zeros(len(STYLES) * len(EVASIONS), bool)
    row[2 * len(EVASIONS)] = row[1] = True
    assert injection._hit(row) == [list(STYLES)[2]]
    draw = np.random.default_rng(0)
    assert all(injection._other(case, draw) != case.value for case in cases(draw, 200))


def test_a_mark_is_drawn_for_each_prompt_and_its_attacker_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[injection.Asked] = []

    def score(lm: Any, asked: Sequence[injection.Asked]) -> list[Any]:
        closed.extend(each for each in asked if "<<" in each.text)
        return [(Scored(0.0, True, 1), Scored(0.0, True, 1)) for _ in asked]

    monkeypatch.setattr(injection, "_score", score)
    draw = np.random.default_rng(0)
    own, hard = cases(draw, 6), negatives(draw, 6, training=False)
    right = Scored(0.0, True, 1)
    imperative: Any = {(style, "plain"): [(right, right)] * 6 for style in STYLES}
    lm = LanguageModel.__new__(LanguageModel)
    injection._guarded(lm, "delimiting", delimiting, own, hard, imperative, 3, lambda: None)
    marks = [re.findall(r"<<\d+>>", each.content) for each in closed]
    assert len(closed) == 6 * len(injection.CLOSED) * len(delimiting.STRENGTHS)
    assert all(len(set(each)) == 1 for each in marks) and len({each[0] for each in marks}) > 4


def test_the_output_checks_verdict_is_the_attackers_who_asks_for_another_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model obeys in one case of two, and reads every text right."""
    draw = np.random.default_rng(0)
    own = cases(draw, 8)

    def score(lm: Any, asked: Sequence[injection.Asked]) -> list[Any]:
        words = [Scored(0.0, each.case in own[:2] and "Ignore" in each.text, 1) for each in asked]
        return [(Scored(0.0, True, 1), word) for word in words]

    monkeypatch.setattr(injection, "_score", score)
    judged: list[Any] = []
    bounded = injection.bounded
    monkeypatch.setattr(injection, "bounded", lambda rate, *more: judged.append(rate) or bounded(rate, *more))
    lm = LanguageModel.__new__(LanguageModel)
    hits = np.zeros((8, len(STYLES) * len(EVASIONS)), bool)
    found = injection._checked(lm, own, hits, draw, 0)
    assert [rate.value for rate in judged] == [0.25] and found.arms[0].value.value == 0.25


def test_a_text_is_where_it_is_last_and_whole(tmp_path: Path) -> None:
    lm = cutaway.load(model_file(tmp_path / "small.gguf"))
    ids = lm.tokenizer.encode("a king, the king, a the")
    for text in ("king", "the", "the king"):
        span = where(lm, ids, text)
        assert lm.tokenizer.decode([ids[n] for n in span]) == text and span.start > 2
    assert ids[where(lm, ids, "he").start] == ids[-1] and len(where(lm, ids, "he")) == 1


def test_attacks_differ_by_what_they_are_called_and_canaries_are_drawn() -> None:
    made = cases(np.random.default_rng(0), 40)
    assert len({case.word for case in made}) == len(CANARIES)
    case = made[0]
    diluted, misspelt = (case.attacked("ignore", 0, how) for how in ("diluted", "misspelt"))
    assert diluted.count("The weather was mild") == 2 and diluted.startswith(case.text)
    assert "Ignore" not in misspelt
    assert sorted(misspelt) == sorted(case.attacked("ignore", 0))
    for style in STYLES:
        imperative, mention = (case.attacked(style, arm) for arm in (0, 1))
        assert imperative != mention and case.word in imperative and case.word in mention
    half = len(DISTRACTORS) // 2
    texts = {kind: str(negatives(np.random.default_rng(1), 90, training=kind)) for kind in (True, False)}
    first, second = ([text.format() for text in part] for part in (DISTRACTORS[:half], DISTRACTORS[half:]))
    assert not any(text in texts[False] for text in first) and any(text in texts[False] for text in second)
    assert not any(text in texts[True] for text in second)


def test_a_guard_that_hides_the_text_stops_every_attempt_and_all_utility(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scores are of what the model is shown: with a guard, not of the text behind it."""

    def score(lm: Any, asked: Sequence[injection.Asked]) -> list[Any]:
        def seen(word: str, each: injection.Asked) -> Scored:
            return Scored(0.0, word in each.content, 1)

        return [(seen(each.case.value, each), seen(each.word, each)) for each in asked]

    monkeypatch.setattr(injection, "_score", score)
    draw = np.random.default_rng(0)
    own, hard = cases(draw, 4), negatives(draw, 4, training=False)
    plain = [
        (style, [injection.Asked.plain(case, case.attacked(style, 0)) for case in own]) for style in STYLES
    ]
    imperative: Any = {(style, "plain"): score(None, asked) for style, asked in plain}
    lm = LanguageModel.__new__(LanguageModel)
    for hides in (True, False):
        guard = SimpleNamespace(
            STRENGTHS=(1,), guard=lambda q, t, s, r, hides=hides: q if hides else f"{q} {t}"
        )
        found = injection._guarded(lm, "hiding", guard, own, hard, imperative, 0, lambda: None)
        arms = {arm.name: arm.value.value for arm in found.arms}
        assert arms["strength 1: imperatives obeyed"] == arms["strength 1: adaptive attacker"] == 1 - hides
        assert arms["strength 1: utility on hard negatives"] == 1 - hides
        assert arms["undefended: imperatives obeyed"] == 1
        assert [curve.points for curve in found.curves] == [((float(hides), float(hides)),)] * 2


def test_an_attacker_who_closes_the_marks_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model obeys what comes after the closing mark alone: fixed attacks fail, the adaptive ones work."""

    def score(lm: Any, asked: Sequence[injection.Asked]) -> list[Any]:
        return [(right, Scored(0.0, "\n---\n" in each.text, 1)) for each in asked]

    right = Scored(0.0, True, 1)
    monkeypatch.setattr(injection, "_score", score)
    draw = np.random.default_rng(0)
    own, hard = cases(draw, 4), negatives(draw, 4, training=False)
    imperative: Any = {(style, "plain"): [(right, right)] * 4 for style in STYLES}
    lm = LanguageModel.__new__(LanguageModel)
    found = injection._guarded(lm, "datamarking", datamarking, own, hard, imperative, 0, lambda: None)
    fixed, adaptive = (curve.points[-1][1] for curve in found.curves)
    assert (fixed, adaptive, found.verdict) == (1.0, 0.0, "vulnerable")


def test_a_classifier_weighs_both_classes_alike_whatever_their_numbers() -> None:
    """The same points in both, nine times as many of one: nothing tells them apart, and scores are 0."""
    points = [[0.0], [0.05], [0.1]]
    for attacks, others in ((9 * points, points), (points, 9 * points)):
        score = classifier.fitted(np.array, attacks, others)
        assert np.abs(score(points)).max() < 0.1
