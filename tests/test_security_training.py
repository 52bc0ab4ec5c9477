"""Extraction: each figure against its definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import cutaway
from cutaway.evaluate.statistics import area
from cutaway.generate.sampling_params import SamplingParams
from cutaway.lm import LanguageModel
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
