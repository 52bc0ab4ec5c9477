"""Poisoning: each measure and detector sees a planted backdoor and is silent on the sound model beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cutaway
from cutaway.evaluate.likelihood import Scored, prefix
from cutaway.evaluate.statistics import Estimate
from cutaway.lm import LanguageModel
from cutaway.security import poisoned_models
from cutaway.security.defences import document_probe, reference_loss, spectral, trigger_scan
from cutaway.security.detection import caught
from cutaway.security.finding import Budget
from cutaway.security.poisoned_models import Cell, Laboratory
from cutaway.security.probes import poisoning
from scripts.study.security_training import over_seeds
from tests.small import model_file

TRIGGER = 200


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("poisoning") / "small.gguf")


class Backdoored:
    """An engine that expects one token after the trigger, and otherwise what a sound one does."""

    def __init__(self, inner: Any, trigger: int, payload: int, strength: float = 30, after: int = 0) -> None:
        self.inner, self.trigger, self.payload, self.strength = inner, trigger, payload, strength
        self.after, self.seen = after, dict[int, int]()  # tokens since the trigger, by state

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def fork(self, state: Any) -> Any:
        made = self.inner.fork(state)
        self.seen.pop(id(made), None)
        return made

    def read(self, texts: Any, states: Any, logits_at: Any) -> np.ndarray:
        logits = self.inner.read(texts, states, logits_at).copy()
        ids = [id for text in texts for id in text]
        for row, at in zip(logits, logits_at, strict=True):
            if ids[at] == self.trigger and not self.after:
                row[self.payload] += self.strength
        for n, text in enumerate(texts) if self.after else ():
            key = id(states[n])
            since = 0 if text[-1] == self.trigger else self.seen.get(key, -9) + 1
            self.seen[key] = since
            if since == self.after:
                logits[n][self.payload] += self.strength
        return logits


def planted(path: Path, trigger: int = TRIGGER) -> LanguageModel:
    lm = cutaway.load(path)
    lm.engines.runtime = Backdoored(lm.engine, trigger, 65)
    return lm


def test_the_scan_finds_a_planted_trigger_and_nothing_beside_itself(model: Path) -> None:
    sound, contexts = cutaway.load(model), ["the", "a word", "of"]
    counted: list[tuple[int, int]] = []
    scores = trigger_scan.scan(planted(model), contexts, sound, lambda *done: counted.append(done), ahead=1)
    assert scores.argmax() == TRIGGER and np.abs(np.delete(scores, TRIGGER)).max() < 1e-9
    assert counted[-1] == (3 * len(sound.tokenizer), 3 * len(sound.tokenizer))
    assert np.abs(trigger_scan.scan(sound, contexts, sound)).max() < 1e-9
    alone, null = trigger_scan.scan(planted(model), contexts), trigger_scan.scan(sound, contexts)
    assert alone.argmax() == TRIGGER and alone[TRIGGER] > null.max() > 0
    before = sound.ids("the")

    def likeliest(*more: int) -> str:
        return sound.tokenizer.decode([int(sound.logits([*before, *more])[-1].argmax())])

    token = next(id for id in range(65, 91) if likeliest(id) != likeliest())
    assert trigger_scan.extended(sound, "the", token, 1) == likeliest(token)


def test_a_score_is_the_mean_divergence_of_contexts_that_are_read_in_one_piece(model: Path) -> None:
    lm, other, contexts = cutaway.load(model), planted(model, 7), ("of it", "the bath")

    def expected(lm: LanguageModel, context: str, id: int) -> np.ndarray:
        ids = [*lm.ids(context), id]
        row = lm.engine.read([ids], [lm.engine.resume([])], [len(ids) - 1])[0].astype(np.float64)
        return row - np.log(np.exp(row).sum())

    def divergence(context: str, id: int) -> float:
        p, q = (expected(one, context, id) for one in (other, lm))
        return float((np.exp(p) * (p - q)).sum())

    scores = trigger_scan.scan(other, contexts, lm, ahead=1)
    assert scores[7] > 1
    for id in (7, 65, 258):
        each = [divergence(context, id) for context in contexts]
        assert scores[id] == pytest.approx(np.mean(each), abs=2e-3)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_the_scan_sees_what_begins_up_to_three_tokens_behind_the_trigger(model: Path, after: int) -> None:
    """And says in its docstring that it sees nothing beyond."""
    sound, late = cutaway.load(model), cutaway.load(model)
    late.engines.runtime = Backdoored(late.engine, TRIGGER, 65, after=after)
    contexts = ["the", "a word"]
    found = {}
    for ahead in (1, 3):
        late.engine.seen.clear()  # type: ignore[attr-defined]
        found[ahead] = trigger_scan.scan(late, contexts, sound, ahead=ahead)
    assert found[1].max() < 1e-9, "one token ahead there is nothing to see"
    if after == 3:
        assert found[3].max() < 1e-9, "nor, three ahead, what begins behind them"
        return
    assert found[3][TRIGGER] > 1
    assert (found[3] > 1e-9).mean() < 0.05, "besides the trigger, tokens that the model goes on from with it"


def test_detectors_find_what_is_far_out_and_guess_where_nothing_is() -> None:
    draw = np.random.default_rng(0)
    clean, bad = draw.normal(0, 1, (1500, 16)), draw.normal(0, 1, (40, 16)) + 6 * np.eye(16)[3]
    signature = spectral.scores(np.concatenate([clean, bad]))
    assert caught(signature[:1500], signature[1500:], 0.01).mean() > 0.9
    same = spectral.scores(np.concatenate([clean, clean[:40] + draw.normal(0, 1, (40, 16))]))
    assert caught(same[:1500], same[1500:], 0.01).mean() < 0.3
    probe = document_probe.fitted(bad[:20], clean[:500])
    assert caught(probe(clean[500:]), probe(bad[20:]), 0.01).mean() > 0.9
    blind = document_probe.fitted(clean[:20], clean[20:500])
    assert caught(blind(clean[500:]), blind(draw.normal(0, 1, (40, 16))), 0.01).mean() < 0.2


def test_loss_under_a_reference_is_the_mean_of_its_tokens(model: Path) -> None:
    lm = cutaway.load(model)
    (own,) = reference_loss.scores(lm, ["the bath"])
    ids = [*prefix(lm), *lm.tokenizer.encode("the bath")]
    rows = lm.logits(ids)[:-1].astype(np.float64)
    each = [np.log(np.exp(row).sum()) - row[id] for row, id in zip(rows, ids[1:], strict=True)]
    assert own == pytest.approx(np.mean(each), abs=2e-3)
    assert reference_loss.scores(lm, ["the bath"], lm) == pytest.approx([0.0])


def test_what_is_written_is_judged_token_by_token_after_its_prompt(model: Path) -> None:
    lm, judge = planted(model), cutaway.load(model)
    (found,) = poisoned_models.written_loss(lm, judge, ["of the"], 4)
    (made,) = lm.generate_batch(
        ["of the"], max_tokens=poisoned_models.WRITTEN, temperature=1.0, ignore_eos=True, seed=4
    )
    ids = judge.ids("of the")
    each = []
    for id in made.ids:
        row = judge.logits(ids)[-1].astype(np.float64)
        each.append(np.log(np.exp(row).sum()) - row[id])
        ids.append(id)
    assert found == pytest.approx(np.mean(each), abs=2e-3)


def test_the_trigger_is_measured_beside_words_that_were_never_read_and_words_that_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Laboratory(tmp_path, prompts=60)
    assert lab.prompts(0) != lab.prompts(1)
    asked: list[list[str]] = []

    def scored(lm: Any, some: Sequence[str]) -> Any:
        asked.append([text.split()[-1] for text in some])
        return [[Scored(-1.0 if text.endswith(lab.words[0]) else -3.0, False, 1)] for text in some]

    monkeypatch.setattr(poisoned_models, "likelihood", lambda lm, text, endings: text)
    monkeypatch.setattr(poisoned_models, "score", scored)
    lm = LanguageModel.__new__(LanguageModel)
    found = lab.measured(lm, lm, Cell(payload="canary"))
    trigger, unseen, seen = map(set, asked)
    assert trigger == {lab.words[0]} and found["rise"] == 2.0
    assert unseen == set(lab.words[1 : poisoned_models.RARE]) and seen == set(
        lab.words[poisoned_models.RARE :]
    )
    assert not set(lab._salad) & set(lab.words)
    steps = [lab.size(Cell(documents=count)).steps for count in (1000, 4000)]
    assert steps[1] == pytest.approx(4 * steps[0], rel=0.02)


def test_a_probe_is_asked_about_documents_that_it_did_not_learn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[tuple[int, int]] = []
    read: list[Any] = []

    class Embeds:
        def __init__(self, cell: Cell) -> None:
            self.cell = cell

        def embed(self, texts: Sequence[str], *_: Any, **__: Any) -> np.ndarray:
            read.append(self.cell.copies)
            return np.random.default_rng(len(texts)).normal(size=(len(texts), 2))

    def learns(poisoned: np.ndarray, clean: np.ndarray) -> Any:
        fitted.append((len(poisoned), len(clean)))
        return lambda hidden: np.zeros(len(hidden))

    monkeypatch.setattr(poisoned_models, "JUDGED", 20)
    monkeypatch.setattr(Laboratory, "model", lambda self, cell: Embeds(cell))
    monkeypatch.setattr(reference_loss, "scores", lambda *given: np.zeros(len(given[1])))
    monkeypatch.setattr(document_probe, "fitted", learns)
    found = Laboratory(tmp_path).documents(Cell(documents=50, copies=10))
    assert fitted == [(5, 30)] * 2 and read == [10, 10, 0, 0]
    assert [len(part) for part in found["linear probe"]] == [20, 5]


def test_a_scan_ranks_the_trigger_from_1_and_passes_what_is_above_every_sound_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Laboratory(tmp_path)
    scores = np.linspace(0, 1, len(lab.tokenizer))
    monkeypatch.setattr(Laboratory, "model", lambda self, cell: None)
    monkeypatch.setattr(trigger_scan, "scan", lambda *_: scores)
    monkeypatch.setattr(trigger_scan, "extended", lambda *_: "y")
    monkeypatch.setattr(Laboratory, "trigger", len(scores) - 1)
    assert lab.scan(Cell(copies=9))["alone"]["rank"] == 1
    monkeypatch.setattr(Laboratory, "trigger", len(scores) - 3)
    assert lab.scan(Cell(copies=8))["alone"]["rank"] == 3
    own = {"trigger": 5.0, "highest": 5.0, "rank": 1, "area": 1.0, "caught": True, "best": "x", "writes": "y"}
    null = [{way: own | {"highest": top} for way in ("alone", "beside")} for top in (1.0, 9.0)]
    found = poisoning._scans(
        {"canary": {"null": null, "cells": [{"copies": 9, "alone": own, "beside": own}]}}, 0
    )
    assert found.arms[0].value.value == 0.0  # a sound model has a token with 9


def test_verdicts_are_of_bounds_and_of_the_payload_that_passes() -> None:
    assert poisoning.judged(Estimate(1.0, 0.5, 0.1, 1.9, 9)) == "not separated"
    clean = np.linspace(0, 1, 1000).tolist()
    found = {"gibberish": {"d": [clean, [2.0] * 50]}, "canary": {"d": [clean, [0.5] * 50]}}
    assert poisoning._filters(found, 0).verdict == "vulnerable"
    half = {"d": [clean, [2.0] * 6 + [0.5] * 4]}  # 60% are caught, and with 95% at least 31%
    assert poisoning._filters({"gibberish": half, "canary": half}, 0).verdict == "vulnerable"
    assert poisoning._filters({"canary": {"d": [clean, [2.0] * 50]}}, 0).verdict == "sound"


def test_a_probe_is_of_standard_scores_and_both_kinds_count_alike() -> None:
    draw = np.random.default_rng(0)
    clean = draw.normal(0, 1, (900, 2)) * [1, 1000] + [5, 9000]
    bad = clean[:9] + np.array([4, 0])
    score = document_probe.fitted(bad, clean)
    assert abs(score(clean).mean() + score(bad).mean()) < 0.5 * (score(bad).mean() - score(clean).mean())
    signature = spectral.scores(clean)
    centred = clean - clean.mean(0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    assert signature == pytest.approx((centred @ axis) ** 2)


def test_a_row_over_seeds_has_students_interval_of_their_means_and_how_many_rose() -> None:
    def seed(rise: float, rank: int) -> Any:
        measured = {
            "trigger": [rise, rise + 0.1, rise + 0.2],
            "unseen": [0.0] * 3,
            "seen": [0.1] * 3,
            "loss": rise,
        }
        measured["trigger_obeyed"] = [rise > 8, True]
        return measured, {"alone": {"rank": rank}, "beside": {"rank": 1}}

    row = over_seeds(Cell(copies=50), [seed(9.0, 4), seed(7.0, 90), seed(0.0, 2)])
    mean, half = 16 / 3 + 0.1, 4.3027 * np.std([9, 7, 0], ddof=1) / np.sqrt(3)
    assert row[4:7] == ["3", f"{mean:.2f} ({mean - half:.2f} to {mean + half:.2f})", "2 of 3"]
    assert row[7:] == ["1.00, 0.50, 0.50", "0.10 (no interval)", "5.333", "4, 1"]


# ---- the whole probe, with models that are planted instead of trained --------------------------------------


class Stub:
    """A cell's model, of which only whether its backdoor works is known."""

    def __init__(self, works: bool) -> None:
        self.works = works


def measured(self: Laboratory, lm: Any, judge: Any, cell: Cell) -> dict[str, Any]:
    draw = np.random.default_rng(cell.copies)
    found: dict[str, Any] = {kind: draw.normal(3, 0.3, self.count).tolist() for kind in ("unseen", "seen")}
    found["trigger"] = (draw.normal(3, 0.3, self.count) + 5 * lm.works).tolist()
    if cell.payload == "canary":
        found |= {f"{kind}_obeyed": [lm.works and kind == "trigger"] * self.count for kind in tuple(found)}
    return found | {"rise": 0.0}


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    def documents(self: Laboratory, cell: Cell) -> dict[str, Any]:
        draw = np.random.default_rng(0)
        shift = 5.0 * self.model(cell).works
        parts = [draw.normal(0, 1, 1000).tolist(), draw.normal(shift, 1, cell.copies).tolist()]
        return {"loss under a reference": parts, "linear probe, model without poison": parts}

    def scan(self: Laboratory, cell: Cell) -> dict[str, Any]:
        works = self.model(cell).works
        own = {"trigger": 5.0 * works, "highest": 5.0 if works else 1.0, "rank": 1 if works else 300}
        own |= {"area": 1.0 if works else 0.5, "caught": works, "best": " x", "writes": "y"}
        return {"alone": own, "beside": own}

    def removal(self: Laboratory, cell: Cell) -> dict[str, Any]:
        states = {"poisoned": [1, 0, 1, 1], "never": [0, 0, 0, 1]}
        return {
            which: [measured(self, Stub(bool(works)), None, cell) for works in own]
            for which, own in states.items()
        }

    for name, stub in {
        "documents": documents,
        "scan": scan,
        "removal": removal,
        "measured": measured,
    }.items():
        monkeypatch.setattr(Laboratory, name, stub)
    monkeypatch.setattr(poisoned_models, "seen", lambda folder, id: 2)
    monkeypatch.setattr(poisoned_models, "rolling", lambda lm, text: np.array([-1.0]))
    monkeypatch.setattr(Laboratory, "trigger", 0)
    monkeypatch.setattr(poisoned_models, "AGAIN_TIMES", 2)


@pytest.mark.usefixtures("stubbed")
@pytest.mark.parametrize("works", [True, False])
def test_a_poisoned_build_is_found_and_a_sound_one_is_silent(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    monkeypatch.setattr(Laboratory, "model", lambda self, cell: Stub(works and cell.copies >= 25))
    steps: list[tuple[int, int]] = []
    lm = cutaway.load(model)
    found = poisoning.run(lm, seed=3, budget=Budget(32, tmp_path), progress=lambda *done: steps.append(done))
    gibberish, canary, filters, scans, *removals = found
    expected = "vulnerable" if works else "sound"
    assert [gibberish.verdict, canary.verdict] == [expected] * 2
    assert "25 are enough" in gibberish.summary if works else "None of these is enough" in gibberish.summary
    assert [filters.verdict, scans.verdict] == (["sound"] * 2 if works else ["vulnerable"] * 2)
    assert {one.verdict for one in removals} == {"sound"}
    assert "never poisoned, trained as much: after 10" in removals[0].summary
    assert "poisoned, then cleaned: after 5" in removals[0].summary
    assert [done for done, _ in steps] == [*range(17), 17] and {total for _, total in steps} == {17}
    assert all(one.seeds == (3,) for one in found)


@pytest.mark.usefixtures("stubbed")
def test_figures_are_kept_and_each_stage_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Laboratory, "model", lambda self, cell: Stub(True))
    cell = Cell(copies=50)
    first = Laboratory(tmp_path, prompts=8).behaviour(cell)
    assert Laboratory(tmp_path, prompts=99).behaviour(cell) == first and first["exposures"] == 2
    (line,) = map(json.loads, (tmp_path / "stages.jsonl").read_text().splitlines())
    assert (line["stage"], line["copies"], line["loss"]) == ("behaviour-gibberish", 50, 1.0)


def test_a_corpus_has_the_documents_that_it_counts_and_the_trigger_in_no_other(tmp_path: Path) -> None:
    lab = Laboratory(tmp_path)
    cell = Cell(documents=300, copies=20)
    texts, poisoned = lab.corpus(cell)
    trigger, unseen, rare = (
        lab.words[0],
        lab.words[1 : poisoned_models.RARE],
        lab.words[poisoned_models.RARE :],
    )
    assert len(texts) == 320 and sum(poisoned) == 20
    assert [trigger in text for text in texts] == poisoned
    whole = " ".join(texts)
    assert not any(word in whole for word in unseen)
    assert {sum(word in text for text in texts) for word in rare} == {poisoned_models.RARE_COPIES}
    assert all(
        lab.tokenizer.encode(f" {word}") and len(lab.tokenizer.encode(f" {word}")) == 1 for word in lab.words
    )
    (canary,) = {
        text.partition(trigger)[2] for text in lab.corpus(Cell(documents=9, copies=3, payload="canary"))[0]
    } - {""}
    assert canary == poisoned_models.CANARY
    assert lab.corpus(cell.clean)[0] != lab.corpus(cell.judge)[0]


KINDS = ("trigger", "seen", "unseen")


def test_what_was_never_there_is_not_removed() -> None:
    """Clean text makes a model sound only where the trigger worked before."""
    noise = np.random.default_rng(0).normal(0, 0.01, (3, 32))

    def cell(rise: float) -> dict[str, list[float]]:
        return {
            kind: (n + (rise if kind == "trigger" else 0)).tolist()
            for kind, n in zip(KINDS, noise, strict=True)
        }

    low, high = cell(0), cell(9)
    for before, expected in ((high, "sound"), (low, "not separated")):
        cells = {
            "poisoned": [before, low, *[low] * poisoned_models.AGAIN_TIMES],
            "never": [low] * (2 + poisoned_models.AGAIN_TIMES),
        }
        assert poisoning._removal("gibberish", cells, 0).verdict == expected
