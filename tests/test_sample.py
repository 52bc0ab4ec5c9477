"""Samplers against transformers' on random logits, draws against the distribution, settings' ranges."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as theirs

from cutaway.errors import OperationalError, UserError
from cutaway.generate import sample
from cutaway.generate.sample import History
from cutaway.generate.sampling_params import SamplingParams

NOTHING = History([])
seeds = st.integers(0, 2**32 - 1)
sizes = st.sampled_from([1, 2, 7, 64, 65, 500, 3000, 20000])
fractions = st.floats(0.01, 0.99)


def random_logits(seed: int, size: int, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def judge(processor, logits: np.ndarray, ids=()) -> np.ndarray:
    return processor(torch.tensor([list(ids)], dtype=torch.long), torch.from_numpy(logits.copy())[None])[
        0
    ].numpy()


def same_cut(ours: np.ndarray, judged: np.ndarray, logits: np.ndarray, key: np.ndarray) -> None:
    """Both keep the same, but for one token at the edge or as little mass as float32 sums are unsure of."""
    assert np.isfinite(ours).any()
    differing = np.flatnonzero(np.isfinite(ours) != np.isfinite(judged))
    if len(differing) == 0:
        return
    mass = np.exp(sample.log_softmax(logits.astype(np.float64)))[differing]
    assert mass.sum() <= 1e-3 + mass.max()
    assert np.allclose(key[differing], key[np.isfinite(ours)].max(), rtol=1e-3, atol=1e-4)


@settings(deadline=None, max_examples=60)
@given(seeds, sizes, st.floats(0.05, 5))
def test_temperature_is_transformers(seed, size, value):
    logits = random_logits(seed, size)
    ours = sample.log_softmax(sample.temperature(value)(logits, NOTHING))
    judged = sample.log_softmax(judge(theirs.TemperatureLogitsWarper(value), logits))
    assert np.allclose(ours, judged, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=80)
@given(seeds, sizes, st.integers(1, 25000), st.booleans())
def test_top_k_is_transformers_ties_included(seed, size, k, ties):
    logits = random_logits(seed, size)
    logits = np.round(logits) if ties else logits
    assert np.array_equal(sample.top_k(k)(logits, NOTHING), judge(theirs.TopKLogitsWarper(k), logits))


@settings(deadline=None, max_examples=80)
@given(seeds, sizes, fractions, st.sampled_from([0.01, 1.0, 5.0]))
def test_top_p_is_transformers(seed, size, mass, scale):
    logits = random_logits(seed, size, scale)
    same_cut(
        sample.top_p(mass)(logits, NOTHING), judge(theirs.TopPLogitsWarper(mass), logits), logits, -logits
    )


@settings(deadline=None, max_examples=80)
@given(seeds, sizes, fractions)
def test_min_p_is_transformers(seed, size, part):
    logits = random_logits(seed, size)
    same_cut(
        sample.min_p(part)(logits, NOTHING), judge(theirs.MinPLogitsWarper(part), logits), logits, -logits
    )


@settings(deadline=None, max_examples=80)
@given(seeds, sizes, fractions, st.sampled_from([0.01, 1.0, 5.0]))
def test_typical_is_transformers(seed, size, mass, scale):
    logits = random_logits(seed, size, scale)
    log_p = sample.log_softmax(logits.astype(np.float64))
    distance = np.abs(-log_p + (np.exp(log_p) * log_p).sum())
    # Two likely ones as far from the entropy, one on either side: the judge's float32 mistakes their order.
    p, order = np.exp(log_p), np.argsort(distance)
    edge = int(np.searchsorted(p[order].cumsum(), mass)) + 1
    last, next_ = order[edge - 1 : edge + 1] if edge < size else (0, 0)
    assume(edge >= size or distance[next_] - distance[last] > 1e-5 or p[next_] + p[last] < 1e-3)
    same_cut(
        sample.typical(mass)(logits, NOTHING),
        judge(theirs.TypicalLogitsWarper(mass), logits),
        logits,
        distance,
    )


@settings(deadline=None, max_examples=60)
@given(seeds, st.floats(0.1, 3), st.lists(st.integers(0, 63), max_size=40), st.integers(0, 40))
def test_repetition_penalty_is_transformers_over_prompt_and_answer(seed, penalty, ids, prompt):
    logits = random_logits(seed, 64)
    history = History(ids[:prompt])
    for id in ids[prompt:]:
        history.append(id)
    judged = judge(theirs.RepetitionPenaltyLogitsProcessor(penalty), logits, ids)
    before = logits.copy()
    assert np.allclose(sample.repetition_penalty(penalty)(logits, history), judged, rtol=1e-6)
    assert np.array_equal(logits, before)


def test_the_whole_chain_is_transformers_in_its_order():
    chosen = SamplingParams(
        logit_bias={3: 2.5, 5: -1.0},
        repetition_penalty=1.3,
        temperature=0.7,
        top_k=40,
        top_p=0.9,
        min_p=0.02,
        typical_p=0.8,
    )
    chain = [
        theirs.SequenceBiasLogitsProcessor([[[3], 2.5], [[5], -1.0]]),
        theirs.RepetitionPenaltyLogitsProcessor(1.3),
        theirs.TemperatureLogitsWarper(0.7),
        theirs.TopKLogitsWarper(40),
        theirs.TopPLogitsWarper(0.9),
        theirs.MinPLogitsWarper(0.02),
        theirs.TypicalLogitsWarper(0.8),
    ]
    history = History([1, 2, 3, 3, 90])
    for seed in range(20):
        ours = judged = random_logits(seed, 300)
        for transform in (*sample.penalties(chosen), *sample.warpers(chosen)):
            ours = transform(ours, history)
        for processor in chain:
            judged = judge(processor, judged, history.ids)
        assert np.array_equal(np.isfinite(ours), np.isfinite(judged))
        assert np.allclose(sample.log_softmax(ours), sample.log_softmax(judged), atol=1e-5)


def test_count_penalties_follow_openais_definition():
    history = History([0, 0, 0])
    for id in [1, 2, 2, 2]:
        history.append(id)
    penalised = sample.count_penalties(0.5, 0.25)(np.zeros(4, dtype=np.float32), history)
    assert penalised.tolist() == [0.0, -0.75, -1.75, 0.0]


def test_of_equal_tokens_top_p_keeps_the_lowest_ids_and_typical_all():
    equal = np.zeros(1000, dtype=np.float32)
    assert np.isfinite(sample.top_p(0.5)(equal, NOTHING)).tolist() == [True] * 500 + [False] * 500
    assert np.isfinite(sample.typical(0.5)(equal, NOTHING)).all()
    assert np.isfinite(judge(theirs.TypicalLogitsWarper(0.5), equal)).all()


@settings(deadline=None, max_examples=80)
@given(seeds, st.integers(2, 400), fractions, st.sampled_from([0.5, 1.0, 3.0]))
def test_typical_is_transformers_under_ties(seed, size, mass, scale):
    """Of logits in steps of a half, most are equal to others."""
    logits = np.round(2 * random_logits(seed, size, scale)) / 2
    log_p = sample.log_softmax(logits.astype(np.float64))
    p, distance = np.exp(log_p), np.abs(-log_p + (np.exp(log_p) * log_p).sum())
    each = np.unique(distance.round(9))
    assume(len(each) < 2 or np.diff(each).min() > 1e-5)  # steps on both sides of the entropy, as far from it
    reached = np.array([p[distance <= one + 1e-9].sum() for one in each])
    assume(np.abs(reached - mass).min() > 1e-5)
    ours = sample.typical(mass)(logits, NOTHING)
    judged = judge(theirs.TypicalLogitsWarper(mass), logits)
    assert np.array_equal(np.isfinite(ours), np.isfinite(judged))


def test_top_p_of_nothing_keeps_the_best_token():
    assert np.flatnonzero(np.isfinite(sample.top_p(0.0)(random_logits(1, 100), NOTHING))).tolist() == [
        int(random_logits(1, 100).argmax())
    ]


def test_greedy_takes_the_lowest_of_equal_ids_and_obeys_bias_and_penalties():
    logits = np.array([0.0, 2.0, 2.0, 1.0], dtype=np.float32)
    assert sample.Sampler(SamplingParams())(logits, NOTHING) == 1
    assert sample.Sampler(SamplingParams(logit_bias={1: -math.inf}))(logits, NOTHING) == 2
    assert sample.Sampler(SamplingParams(repetition_penalty=3.0))(logits, History([1, 2])) == 3
    assert sample.Sampler(SamplingParams(typical_p=0.01, top_k=1))(logits, NOTHING) == 1


def test_draws_follow_the_distribution():
    logits = np.array([1.0, 0.0, -1.0, -np.inf, 2.0, -3.0], dtype=np.float32)
    choose = sample.Sampler(SamplingParams(temperature=1.0, seed=7))
    draws = 40_000
    seen = np.bincount([choose(logits, NOTHING) for _ in range(draws)], minlength=6)
    expected = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum() * draws
    assert seen[3] == 0
    likely = expected > 0
    chi_square = ((seen - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi_square < 18.47  # 4 degrees of freedom, p = 0.001; the seed is fixed


def test_one_seed_gives_one_sequence_everywhere():
    logits = (np.arange(1000) * 37 % 101 / 25).astype(np.float32)

    def ids(seed):
        choose = sample.Sampler(SamplingParams(temperature=1.0, top_p=0.95, seed=seed))
        return [choose(logits, NOTHING) for _ in range(8)]

    assert ids(11) == ids(11) == [130, 499, 602, 30, 149, 930, 68, 131]
    assert ids(11) != ids(12)
    assert ids(None) != ids(None)


@pytest.mark.parametrize(("uniform", "id"), [(0.0, 2), (0.5, 3), (1 - 2**-53, 3)])
def test_draws_at_the_ends_are_tokens_with_a_probability(uniform, id):
    class Fixed(np.random.Generator):
        def random(self):
            return uniform

    logits = np.array([-np.inf, -800.0, 0.0, 0.0, -800.0, -np.inf], dtype=np.float32)
    assert sample.draw(logits, Fixed(np.random.PCG64(0))) == id


@pytest.mark.parametrize("value", [1e-300, 1e-38, 1e-6])
def test_a_tiny_temperature_is_greedy_without_a_warning(value):
    choose = sample.Sampler(SamplingParams(temperature=value, seed=1))
    logits = random_logits(5, 1000)
    assert {choose(logits, NOTHING) for _ in range(20)} == {int(logits.argmax())}


@settings(deadline=None, max_examples=40)
@given(seeds, sizes, st.integers(0, 30))
def test_logprobs_are_the_models_log_softmax(seed, size, n):
    logits = random_logits(seed, size, 8.0)
    judged = torch.log_softmax(torch.from_numpy(logits).double(), dim=0)
    n = min(n, size)
    own, best = sample.logprobs(logits, size // 2, n)
    assert own == pytest.approx(float(judged[size // 2]), abs=1e-5)
    assert [logprob for _, logprob in best] == pytest.approx(
        judged.sort(descending=True).values[:n].tolist(), abs=1e-5
    )
    assert [id for id, _ in best] == judged.sort(descending=True, stable=True).indices[:n].tolist()


@settings(deadline=None, max_examples=100)
@given(seeds, st.integers(1, 5000), st.data())
def test_the_kth_largest_is_that_of_a_full_sort(seed, size, data):
    k = data.draw(st.integers(1, size))
    values = np.round(random_logits(seed, size), 1)
    assert sample._kth_largest(values, k) == np.sort(values)[size - k]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_fail_and_a_ban_on_everything_is_refused(broken, temperature):
    choose = sample.Sampler(SamplingParams(temperature=temperature))
    with pytest.raises(OperationalError, match="logits hold"):
        choose(np.array([0.0, broken, 1.0], dtype=np.float32), NOTHING)
    bans = SamplingParams(temperature=temperature, logit_bias={0: -math.inf, 1: -math.inf})
    with pytest.raises(UserError, match="bans every one"):
        sample.Sampler(bans)(np.zeros(2, dtype=np.float32), NOTHING)


@pytest.mark.parametrize(
    ("option", "value", "range"),
    [
        ("max_tokens", 0, "1 or more"),
        ("max_tokens", 1.5, "1 or more"),
        ("temperature", -0.1, "0 or more"),
        ("temperature", math.nan, "0 or more"),
        ("temperature", math.inf, "0 or more"),
        ("temperature", "hot", "0 or more"),
        ("top_k", -1, "0 or more"),
        ("top_p", 1.01, "from 0 to 1"),
        ("min_p", -0.01, "from 0 to 1"),
        ("typical_p", 2, "from 0 to 1"),
        ("repetition_penalty", 0, "from 0.01 to 100"),
        ("frequency_penalty", 2.5, "from -2 to 2"),
        ("presence_penalty", -3, "from -2 to 2"),
        ("seed", -1, "0 or more"),
        ("logprobs", -1, "0 or more"),
        ("logprobs", True, "0 or more"),
        ("logit_bias", {-1: 1.0}, "0 or more"),
        ("logit_bias", {1: math.nan}, "below infinity"),
        ("stop_ids", [-4], "0 or more"),
        ("stop", ["a", ""], "at least one character"),
        ("stop", [3], "at least one character"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(option, value, range):
    untyped = SamplingParams()  # as from JSON: past the types that the tests check
    vars(untyped)[option] = value
    with pytest.raises(UserError) as refused:
        untyped.__post_init__()
    assert option in str(refused.value)
    assert range in str(refused.value)


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(UserError, match=r"logit_bias names the id 10: .* 0 to 9"):
        SamplingParams(logit_bias={10: 1.0}).check(10)
    with pytest.raises(UserError, match="stop_ids names the id 12"):
        SamplingParams(stop_ids=[12]).check(10)
    with pytest.raises(UserError, match="10 tokens"):
        SamplingParams(logprobs=11).check(10)
    SamplingParams(logit_bias={9: 1.0}, stop_ids=[0], logprobs=10).check(10)


def test_one_stop_string_may_stand_alone():
    assert SamplingParams(stop="end").stop == ("end",)
