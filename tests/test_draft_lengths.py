"""How much is drafted: as much as pays, by measured steps and accepted tokens; where it does not pay, next to
nothing, in a simulation whose clock is a function of the rows that a step reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from cutaway.generate.sample import History, Sampler
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.speculative import (
    KNOWN,
    LONGEST_REST,
    MOST,
    PROBE,
    ROWS,
    SPENT,
    STALE,
    TRIED,
    DraftedText,
    Drafting,
    DraftLengths,
    Drawing,
    PromptLookup,
    StepTimes,
)


def measured(lengths: DraftLengths, tokens: int, seconds: float, drafted: int = 0) -> None:
    """Steps that took so long, as many as are believed."""
    for _ in range(KNOWN):
        lengths.times.record(tokens, seconds, drafted)


def learned(times: dict[int, float], right: int, tried: int, texts: int = 1, rooms: int = MOST) -> list[int]:
    """The counts where steps take so long, and so many of the drafted tokens of each text were right."""
    lengths, all_texts = DraftLengths(), []
    for n in range(texts):
        text = DraftedText(History([1, 2]), Sampler(SamplingParams()), "a" if n else "b")
        for _ in range(tried):
            text.update(1, 1 if right > 0 else 0)
            right -= 1
        all_texts.append(text)
    for tokens, seconds in times.items():
        measured(lengths, tokens, seconds, tokens - texts)
    return lengths.choose(all_texts, [rooms] * texts, PromptLookup())


def test_as_much_is_drafted_as_pays():
    cheap, dear = {1: 1.0, 2: 1.05, 5: 1.1, 17: 1.4}, {1: 1.0, 2: 2.0, 17: 17.0}
    assert learned(cheap, 60, 60) == [MOST] and learned(cheap, 60, 60, rooms=3) == [3]
    assert 1 <= learned(cheap, 30, 60)[0] < MOST
    assert learned(cheap, 0, 60) == [0] and learned(dear, 60, 60)[0] == 0
    assert learned({}, 60, 60) == [0], "what a step takes without drafts is not known"
    assert sum(learned({8: 1.0, 60: 1.2}, 10**6, 60, texts=8)) == ROWS


def test_another_client_is_not_slowed_by_drafts():
    lengths = DraftLengths()
    text = DraftedText(History([1, 2]), Sampler(SamplingParams()), "a")
    for _ in range(60):
        text.update(4, 4)
    for tokens, seconds in ((2, 1.0), (3, 1.02), (4, 1.2), (18, 1.5)):
        measured(lengths, tokens, seconds, tokens - 2)
    assert lengths.choose([text], [MOST], PromptLookup(), ["a"]) == [MOST]
    assert lengths.choose([text], [MOST], PromptLookup(), ["b"]) == [1], "a step of 1.02 is within 1 / 0.97"


def test_steps_are_tried_now_and_then():
    lengths = DraftLengths()
    text = DraftedText(History([1, 2]), Sampler(SamplingParams()))
    for tokens, seconds in ((1, 1.0), (2, 2.5), (17, 40.0)):
        measured(lengths, tokens, seconds, tokens - 1)

    def chosen(steps: int) -> list[int]:
        counts = []
        for _ in range(steps):
            counts += lengths.choose([text], [MOST], PromptLookup())
            lengths.times.record(
                1 + counts[-1], 1.0 if lengths is cheap else 1 + 1.5 * counts[-1], counts[-1]
            )
        return counts

    cheap = None
    counts = chosen(30 * PROBE)
    assert set(counts) == {0, TRIED}
    first, second, third = (at for at, count in enumerate(counts) if count)
    assert first + 1 >= PROBE and second - first >= 3 / SPENT, "as seldom as what it costs asks for"
    assert third - second > second - first, "ever more seldom"
    for _ in range(20):
        measured(lengths, 2, 1.0, 1)
        measured(lengths, 17, 1.0, 16)
    cheap = lengths
    lengths.times.record(1, 1.0)
    counts = chosen(3 * PROBE)
    assert 2 <= counts.count(0) <= 3, "now and then a step without drafts is measured"


def test_what_a_step_takes_is_read_off_measured_ones():
    times = StepTimes()
    times.record(4, 2.0)
    assert times.seconds(4, 0) == [2.0] and 2.0 < times.seconds(4, 4)[-1] < 3.0
    times.record(6, 9.0, 2)
    assert times.seconds(4, 2)[-1] < 2.2 and times.reach(4) == TRIED, "one step alone may have been delayed"
    for seconds in (3.0, 3.0):
        times.record(6, seconds, 2)
    assert times.seconds(4, 4) == [2.0, 2.5, 3.0, 3.5, 4.0] and not times.knows(6)
    assert times.reach(4) == 4 and times.reach(40) == 10
    for _ in range(STALE):
        times.record(4, 2.0)
    assert times.seconds(4, 4)[-1] < 3.0, "a long time ago"


def test_a_few_steps_that_happened_to_be_fast_do_not_decide():
    times, dice = StepTimes(), np.random.default_rng(0)
    times.record(8, 1.0)
    for _ in range(120):
        more = int(dice.integers(1, ROWS))
        times.record(8 + more, float((1 + more / 16) * dice.uniform(0.7, 1.6)), more)
    found = np.array(times.seconds(8, ROWS))
    assert (found / (1 + np.arange(ROWS + 1) / 16)).min() > 0.85


def test_what_follows_a_rejected_token_says_nothing():
    text = DraftedText(History([1, 2]), Sampler(SamplingParams()))
    for _ in range(40):
        text.update(16, 1)
    assert text.chance(0.5) == pytest.approx(0.5, abs=0.01)


# ---- never slower than without -----------------------------------------------------------------------------


class Costs(PromptLookup):
    """Drafts that take so long a token before they are verified."""

    def __init__(self, a_token: float) -> None:
        self.a_token = a_token

    def seconds(self, rounds: int) -> float:
        return rounds * self.a_token


def pace(texts: int, right: float, step: Callable[[int], float], seed: int, a_token: float = 0.0) -> float:
    """How many times as fast as without drafts so many texts are written in 400 steps, where a drafted token
    is right so often, a step of so many rows takes so long, and what is measured of it is off by 15%, and
    three times as much in 3 of 100.
    """
    dice, lengths, proposer = np.random.default_rng(seed), DraftLengths(), Costs(a_token)
    all_texts = [DraftedText(History([1, 2]), Sampler(SamplingParams())) for _ in range(texts)]
    written, clock = 0, 0.0
    for _ in range(400):
        counts = lengths.choose(all_texts, [MOST] * texts, proposer)
        rows = texts + sum(counts)
        clock += step(rows) + proposer.seconds(max(counts))
        delayed = 3 if dice.random() < 0.03 else 1
        lengths.times.record(rows, step(rows) * float(np.exp(dice.normal(0, 0.15))) * delayed, sum(counts))
        for text, count in zip(all_texts, counts, strict=True):
            accepted = int(np.cumprod(dice.random(count) < right).sum())
            if count:
                lengths.update(text, count, accepted)
            written += accepted + 1
    return written / clock * step(texts) / texts


STEPS: dict[str, Callable[[int, int], float]] = {
    "a row costs a fiftieth": lambda rows, texts: 1 + 0.02 * (rows - texts),
    "six rows are nearly free": lambda rows, texts: (
        1 + 0.01 * (rows - texts) + 0.1 * max(0, rows - texts - 6)
    ),
    "a row costs as much as a text": lambda rows, texts: rows / texts,
}


@pytest.mark.parametrize("texts", [1, 8])
@pytest.mark.parametrize("name", STEPS)
def test_drafts_never_slow_a_text_by_more_than_3_percent(name: str, texts: int):
    def paces(right: float, a_token: float = 0.0) -> list[float]:
        return [pace(texts, right, lambda rows: STEPS[name](rows, texts), seed, a_token) for seed in range(2)]

    for right in (0.0, 0.2, 0.5):
        assert np.mean(paces(right)) > 0.975
    assert np.mean(paces(0.6, a_token=1.0)) > 0.975, "a draft that takes as long as a step"
    if name != "a row costs as much as a text":
        assert np.mean(paces(0.9)) > (3 if texts == 1 else 1.2), "where it pays, much is drafted"


def test_looking_for_drafts_that_do_not_pay_takes_a_hundredth_of_the_time():
    class Slow(PromptLookup):
        looks = 0

        def kind(self, text: DraftedText) -> int | None:
            self.looks += 1
            return None

    def looks(seconds: float) -> int:
        slow = Slow()
        drafting, text = Drafting(slow), DraftedText(History([1, 2]), Sampler(SamplingParams()))
        measured(drafting.lengths, 1, seconds)
        for _ in range(1000):
            assert drafting.drafts([text], [9]) == [[]]
        return slow.looks

    assert looks(1e3) == 1000 and looks(1e-9) == -(-1000 // (LONGEST_REST + 1))


class Watching(Costs):
    """A proposer that is shown the model's values, and knows a text only while it is."""

    watches = ("norm",)
    shown = True

    def kind(self, text: DraftedText) -> int | None:
        return 0 if self.shown else None

    def propose(self, texts: Sequence[DraftedText], counts: Sequence[int]) -> list[list[int]]:
        return [[0] * count for count in counts]


def shown_pace(right: float, a_token: float, steps: int = 3000) -> tuple[float, float]:
    """The pace of one text beside steps that show nothing, where showing takes a tenth of one; and the
    share of steps that showed.
    """
    dice, proposer = np.random.default_rng(1), Watching(a_token)
    drafting, text = Drafting(proposer), DraftedText(History([1, 2]), Sampler(SamplingParams()))
    written, clock, shown = 0, 0.0, 0
    for _ in range(steps):
        watches = drafting.watches()
        proposer.shown = bool(watches)
        (draft,) = drafting.drafts([text], [MOST])
        taken = 1 + 0.2 * len(draft) + 0.1 * proposer.shown
        clock += taken + proposer.seconds(len(draft))
        drafting.lengths.times.record(1 + len(draft), taken, len(draft), proposer.shown)
        accepted = int(np.cumprod(dice.random(len(draft)) < right).sum())
        if draft:
            drafting.lengths.update(text, len(draft), accepted)
        written, shown = written + accepted + 1, shown + proposer.shown
    return written / clock, shown / steps


def test_what_does_not_pay_is_not_shown_either():
    pace_of, shown = shown_pace(0.4, 0.3)
    assert pace_of > 0.985 and shown < 0.12
    pace_of, shown = shown_pace(0.8, 0.05)
    assert pace_of > 1.5 and shown == 1


def test_the_first_token_of_a_draft_counts_too(monkeypatch: pytest.MonkeyPatch):
    """Where one is drafted a step there is no other."""
    clock = iter(np.cumsum([0, 5.0, 0, 5.0, 0, 1.0, 0, 1.0]).tolist())
    monkeypatch.setattr("cutaway.generate.speculative.time.perf_counter", lambda: next(clock))

    class Sure(Drawing):
        def read(self, texts: Sequence[DraftedText], ahead: Sequence[np.ndarray], round: int) -> np.ndarray:
            return np.eye(1, 4, 2, dtype=np.float32)

    made, text = Sure(4), DraftedText(History([1, 2]), Sampler(SamplingParams(temperature=0)))
    assert made.seconds(1) == 0
    assert made.propose([text], [1]) == [[2]] and made.seconds(1) == 5 and made.seconds(3) == 15
    made.propose([text], [3])
    assert made.seconds(0) == 0 and made.seconds(3) == 5 + 1 + 1
