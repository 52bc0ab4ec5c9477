"""Perplexity and divergence against float64 loops written from their definitions, and llama.cpp's windows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cutaway.errors import OperationalError, UserError
from cutaway.evaluate import perplexity as scoring
from cutaway.evaluate import statistics
from cutaway.generate.engine import AllLogits
from cutaway.model.engine import PyTorchEngine
from tests.small import CONTEXT, VOCAB, decoder

IDS = [int(id) for id in np.random.default_rng(0).integers(0, VOCAB, 70)]


@pytest.fixture(scope="module")
def one() -> PyTorchEngine:
    return PyTorchEngine(decoder())


@pytest.fixture(scope="module")
def other() -> PyTorchEngine:
    return PyTorchEngine(decoder(seed=1))


def softmax(logits: np.ndarray) -> list[float]:
    """The probabilities of one row, in Python's own floats."""
    values = [float(x) for x in logits]
    total = math.fsum(math.exp(x - max(values)) for x in values)
    return [math.exp(x - max(values)) / total for x in values]


def naive(engines: list[PyTorchEngine], window: int, begin: int | None = None):
    """For each scored place: its token, and each engine's probabilities, reading whole prefixes anew."""
    for start in range(0, len(IDS) - window + 1, window):
        piece = IDS[start : start + window]
        if begin is not None:
            piece[0] = begin
        for place in range(window // 2, window - 1):
            yield piece[place + 1], [softmax(e.logits(piece[: place + 1])[-1]) for e in engines]


@pytest.mark.parametrize(("window", "begin"), [(16, None), (16, 3), (22, None), (4, 0)])
def test_perplexity_is_its_definition(one: PyTorchEngine, window: int, begin: int | None):
    seen = [-math.log(p[0][id]) for id, p in naive([one], window, begin)]
    found = scoring.perplexity(one, IDS, window, begin)
    assert found.tokens == len(seen) == len(IDS) // window * (window // 2 - 1)
    assert found.surprise == pytest.approx(math.fsum(seen) / len(seen), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.surprise))
    blocks = np.reshape(seen, (len(IDS) // window, -1)).mean(axis=1)  # windows: tokens in one are alike
    assert found.error == pytest.approx(np.std(blocks, ddof=1) / len(blocks) ** 0.5, rel=1e-4)


def test_the_error_of_a_text_is_that_of_its_blocks():
    """Tokens that a block shares: taken for independent, they would cover in 1 of 3."""
    random = np.random.default_rng(0)
    covered = {"blocks": 0, "tokens": 0}
    for _ in range(300):
        parts = random.normal(size=(40, 1)) + 0.5 * random.normal(size=(40, 31))
        error, low = scoring.error(list(parts)), parts.mean()
        covered["blocks"] += abs(low) < statistics.student_quantile(19) * error
        covered["tokens"] += abs(low) < statistics.Z * parts.std() / parts.size**0.5
    assert covered["blocks"] / 300 >= 0.92 and covered["tokens"] / 300 < 0.6
    assert scoring.error([np.arange(31.0)]) == math.inf  # of one window nothing is known
    assert scoring.margin(math.inf) == "(one window: no error bar)"


def test_divergence_is_its_definition(one: PyTorchEngine, other: PyTorchEngine):
    places = list(naive([one, other], 16))
    each = [math.fsum(p * math.log(p / q) for p, q in zip(*both, strict=True)) for _, both in places]
    same = [np.argmax(p) == np.argmax(q) for _, (p, q) in places]
    found = scoring.divergence(one, other, IDS, 16)
    assert found.mean == pytest.approx(math.fsum(each) / len(each), rel=1e-5)
    assert found.largest == pytest.approx(max(each), rel=1e-5)
    assert found.median == pytest.approx(np.median(each), rel=1e-5)
    assert found.high == pytest.approx(np.quantile(each, 0.99), rel=1e-5)
    assert found.same_best == np.mean(same)
    assert found.reference == scoring.perplexity(one, IDS, 16)
    assert found.other == scoring.perplexity(other, IDS, 16)


def test_a_model_is_no_distance_from_itself(one: PyTorchEngine):
    found = scoring.divergence(one, one, IDS, 16)
    assert found.mean == found.largest == 0
    assert found.same_best == 1


def test_large_logits_do_not_overflow():
    logits = np.array([[1e4, 0.0, -1e4], [0.0, 3e38, -3e38]], np.float32)
    assert scoring.surprises(logits, [0, 1]).tolist() == [0, 0]
    assert scoring.surprises(logits, [1, 1]).tolist() == [1e4, 0]
    assert scoring.divergences(logits, logits).tolist() == [0, 0]


def test_many_places_are_each_their_own():
    p, q = np.random.default_rng(1).normal(size=(2, 3 * scoring.ROWS + 1, 9)).astype(np.float32) * 4
    each = [
        math.fsum(a * math.log(a / b) for a, b in zip(softmax(x), softmax(y), strict=True))
        for x, y in zip(p, q, strict=True)
    ]
    assert np.allclose(scoring.divergences(p, q), each, rtol=1e-12)
    ids = np.arange(len(p)) % 9
    assert np.allclose(
        scoring.surprises(p, ids.tolist()), [-math.log(softmax(x)[id]) for x, id in zip(p, ids, strict=True)]
    )


def test_reading_each_is_reading_one_by_one(one: PyTorchEngine):
    assert isinstance(one, AllLogits)
    state = one.new_state()
    one.prefill(IDS[:5], state)
    many = one.prefill_all_logits(IDS[5:12], state)
    assert state.length == 12
    assert np.allclose(many, one.logits(IDS[:12])[5:], atol=1e-5)


def test_progress_is_reported(one: PyTorchEngine):
    reported: list[tuple[str, int, int | None]] = []
    scoring.perplexity(one, IDS, 16, progress=lambda *each: reported.append(each))
    assert reported == [("measuring", n, 4) for n in range(5)]


@pytest.mark.parametrize(
    ("window", "sentence"),
    [
        (2, "cannot be halved"),
        (15, "cannot be halved"),
        (2 * CONTEXT, f"more than the context of {CONTEXT}"),
    ],
)
def test_windows_that_cannot_be_read_are_refused(one: PyTorchEngine, window: int, sentence: str):
    with pytest.raises(UserError, match=sentence):
        scoring.perplexity(one, IDS, window)
    with pytest.raises(UserError, match=sentence):
        scoring.divergence(one, one, IDS, window)


def test_other_mistakes_are_refused(one: PyTorchEngine):
    with pytest.raises(UserError, match="has 7 tokens, and a window takes 16"):
        scoring.perplexity(one, IDS[:7], 16)

    fewer = PyTorchEngine(one.model)
    fewer.vocab = 7
    with pytest.raises(UserError, match="256 logits, the other 7"):
        scoring.divergence(one, fewer, IDS, 16)


def test_logits_that_are_no_numbers_fail(one: PyTorchEngine):
    class Broken(PyTorchEngine):
        def prefill_all_logits(self, ids, state):
            return np.full((len(ids), self.vocab), np.nan, np.float32)

    with pytest.raises(OperationalError, match="not all numbers"):
        scoring.perplexity(Broken(one.model), IDS, 16)
