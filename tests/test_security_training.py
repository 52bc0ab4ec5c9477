"""Extraction: each figure against its definition."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import cutaway
from cutaway.evaluate.likelihood import rolling
from cutaway.evaluate.statistics import area
from cutaway.generate.sampling_params import SamplingParams
from cutaway.lm import LanguageModel
from cutaway.security import training
from cutaway.security.finding import Budget
from cutaway.security.probes import extraction
from tests.small import model_file


@pytest.fixture(scope="module")
def random_lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return cutaway.load(model_file(tmp_path_factory.mktemp("random") / "small.gguf"))


def log_prob(lm: LanguageModel, prefix: str, text: str) -> float:
    """The log-probability of a text after a prefix, read in one piece."""
    before, after = lm.ids(prefix), lm.tokenizer.encode(text)
    rows = lm.logits([*before, *after])[len(before) - 1 : -1].astype(np.float64)
    return float(sum(row[id] - np.log(np.exp(row).sum()) for row, id in zip(rows, after, strict=True)))


def test_a_trie_has_the_probability_of_every_number(random_lm: LanguageModel) -> None:
    found = extraction.number_log_probs(random_lm, "the code is ", 3)
    assert found.shape == (1000,)
    for number in (0, 7, 123, 480, 999):
        assert found[number] == pytest.approx(log_prob(random_lm, "the code is ", f"{number:03}"), abs=2e-3)


def test_exposure_is_the_log_of_the_rank() -> None:
    log_probs = np.array([-3.0, -1.0, -2.0, -2.0])
    assert [extraction.exposure(log_probs, n) for n in range(4)] == pytest.approx(
        [0, 2, math.log2(4 / 3), math.log2(4 / 3)]
    )


def test_a_sampled_probability_is_the_samplers(random_lm: LanguageModel) -> None:
    canary = extraction.Canary("Bamo", "48", 1)
    plain = extraction.sampled_log_prob(random_lm, canary, SamplingParams(temperature=1.0))
    assert plain == pytest.approx(log_prob(random_lm, canary.prefix, "48"), abs=2e-3)
    assert extraction.sampled_log_prob(random_lm, canary, SamplingParams(temperature=1.0, top_k=1)) in (
        0,
        -math.inf,
    )


def test_the_area_counts_pairs_and_its_interval_covers() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.integers(0, 5, 30), draw.integers(0, 4, 20)
    pairs = [1.0 if x > y else 0.5 if x == y else 0.0 for x, y in itertools.product(a, b)]
    assert area(a, b).value == pytest.approx(np.mean(pairs))
    covered = [area(draw.normal(1, 1, 40), draw.normal(0, 1, 40)) for _ in range(300)]
    true = 0.5 * math.erfc(-0.5)  # Phi(1 / sqrt 2)
    assert 0.88 <= np.mean([one.low <= true <= one.high for one in covered]) <= 0.99


def test_membership_scores_are_their_definitions(random_lm: LanguageModel) -> None:
    text = "the king of the sea waits by the mill"
    ids = random_lm.ids(text)
    rows = random_lm.logits(ids)[:-1].astype(np.float64)
    log_p = rows - np.log(np.exp(rows).sum(1, keepdims=True))
    own = log_p[np.arange(len(rows)), ids[1:]]
    p = np.exp(log_p)
    mean = (p * log_p).sum(1)
    normed = (own - mean) / np.sqrt((p * (log_p - mean[:, None]) ** 2).sum(1))
    least = len(own) // 5
    found = extraction._scores(random_lm, random_lm, text)
    assert found["loss"] == pytest.approx(own.mean(), abs=2e-3)
    assert found["Min-20%"] == pytest.approx(np.sort(own)[:least].mean(), abs=2e-3)
    assert found["Min-20%++"] == pytest.approx(np.sort(normed)[:least].mean(), abs=2e-3)
    both = own.sum() - rolling(random_lm, text).sum()
    assert found["loss beside the reference's"] == pytest.approx(both, abs=1e-2)


def test_a_small_models_run_counts_what_it_read_and_is_trained_on(tmp_path: Path) -> None:
    size = training.Size(32, 1, 16, steps=3)
    documents = ["xxxxxxxxxxxxxxxx" * 4] * 90
    lm = training.trained(tmp_path / "a", documents, size, seed=0)
    (x,) = lm.tokenizer.encode("x")
    assert training.seen(tmp_path / "a", x) > 0.9 * 3 * 16 * 16
    before = [weight.detach().clone() for weight in lm.model.parameters()]
    assert training.continued(lm, tmp_path / "b", ["of it"] * 90, size, 1, seed=0) is lm
    assert any(not torch.equal(one, two) for one, two in zip(before, lm.model.parameters(), strict=True))
    runs = [training._run(tmp_path / "c", documents, size, 1, 0, drop).data for drop in (True, False)]
    assert [run.filters.exact for run in runs] == [True, False]


class Known:
    """A model of which only is known whether it remembers what it was trained on."""

    def __init__(self, canaries: list[extraction.Canary], remembers: bool) -> None:
        self.asked: list[list[str]] = []
        self.digits = {one.prefix: one.digits for one in canaries if remembers and one.copies >= 16}

    def generate_batch(self, prompts: list[str], max_tokens: int) -> list[SimpleNamespace]:
        self.asked.append(prompts)
        return [SimpleNamespace(text=self.digits.get(prompt, "none")) for prompt in prompts]


@pytest.mark.parametrize("remembers", [True, False])
def test_a_model_that_remembers_is_found_and_one_that_does_not_is_no_finding(
    random_lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remembers: bool
) -> None:
    planted: list[extraction.Canary] = []
    plant, draw = extraction.plant, np.random.default_rng(0)

    def number_log_probs(lm: Known, prefix: str, length: int) -> np.ndarray:
        row = np.random.default_rng(len(prefix) + ord(prefix[12])).normal(-9, 1, 10**length)
        if prefix in lm.digits:
            row[int(lm.digits[prefix])] = 0.0
        return row

    def scores(own: Known, reference: LanguageModel, text: str) -> dict[str, float]:
        return {"loss": float(draw.normal(2.0 * (bool(own.digits) and text in members))), "other": 0.0}

    members: set[str] = set()
    texts: list[list[str]] = []
    models: list[Known] = []

    def trained(folder: Path, documents: list[str], size: Any, *, seed: int, deduplicate: bool) -> Known:
        members.update(documents)
        texts.append(documents)
        models.append(Known(planted, remembers and not deduplicate))
        return models[-1]

    monkeypatch.setattr(extraction, "plant", lambda *given: planted.extend(plant(*given)) or planted)
    monkeypatch.setattr(extraction, "trained", trained)
    monkeypatch.setattr(extraction, "number_log_probs", number_log_probs)
    monkeypatch.setattr(
        extraction, "sampled_log_prob", lambda lm, one, _: -0.1 if one.prefix in lm.digits else -9.0
    )
    monkeypatch.setattr(extraction, "_scores", scores)
    found = extraction.run(random_lm, seed=0, budget=Budget(40, tmp_path), progress=lambda done, total: None)
    exposed, greedy, drawn, membership = found
    worst = "vulnerable" if remembers else "not separated"
    assert (exposed.verdict, membership.verdict) == (worst, worst)
    assert {greedy.verdict, drawn.verdict} == {"vulnerable" if remembers else "not enough trials"}
    arms = {arm.name: arm.value.value for arm in exposed.arms}
    assert (arms["32 copies"] > 13) is remembers and arms["32 copies, duplicates dropped"] < 6
    assert greedy.arms[2].value.value == 0 and greedy.arms[1].value.value == 0
    assert all(texts[0].count(one.text) == one.copies for one in planted)
    assert set(models[0].asked[1]) == {" is "}  # the last four characters of each prefix


@pytest.mark.parametrize(("apart", "words"), [(0.15, False), (1.0, True)])
def test_scores_that_words_or_chance_explain_are_no_membership(
    monkeypatch: pytest.MonkeyPatch, random_lm: LanguageModel, apart: float, words: bool
) -> None:
    """Members whose scores are higher by a little, or whose words alone distinguish them better."""
    draw = np.random.default_rng(1)
    monkeypatch.setattr(
        extraction, "_scores", lambda own, reference, text: {"loss": draw.normal(apart * ("in" in text))}
    )
    members = [f"in {n} {'old' if words else 'a'}" for n in range(60)]
    others = [f"other {n} {'new' if words else 'a'}" for n in range(60)]
    monkeypatch.setattr(extraction, "_words", lambda text: text.split()[2:])
    found = extraction._membership(random_lm, random_lm, members, others, 0)
    assert found.arms[0].value.value > 0.5 and found.verdict == "not separated"
