"""How much of a prompt a step reads beside answers, on an invented machine."""

import random
import statistics
from collections import Counter
from itertools import pairwise

import pytest

from cutaway.generate.batch.step_budget import (
    LATEST,
    LEAST,
    MOST_STRETCH,
    SHORT,
    STRETCH,
    PrefillBudget,
    prompts_waiting,
)


def steps(an_id: float, grows: float = 0.0, held_up: float = 0.0, most: int = 256, length: int = 1500):
    """The seconds of steps that read a prompt beside four answers, and how many ids each read.

    A step takes 8 ms, and `an_id` for each of the prompt, which grows by `grows` times over the prompt; one
    in ten is held up by `held_up`. The answers were alone for a while before.
    """
    dice, pace = random.Random(0), PrefillBudget(most)

    def seconds(ids: int, at: int) -> float:
        return 0.008 + ids * an_id * (1 + grows * at / length) + held_up * (dice.random() < 0.1)

    for _ in range(40):
        pace.record(4, 0, seconds(0, 0))
    taken, read = [], []
    while sum(read) < length:
        ids = pace.allowed(4)
        taken.append(seconds(ids, sum(read)))
        pace.record(4, ids, taken[-1])
        read.append(ids)
    return taken, read


@pytest.mark.parametrize("an_id", [0.00005, 0.0003, 0.0009])
@pytest.mark.parametrize("grows", [0.0, 1.0])
def test_a_step_takes_what_it_may(an_id: float, grows: float) -> None:
    taken, read = steps(an_id, grows)
    assert all(
        seconds < 1.15 * STRETCH * 0.008
        for seconds, ids in zip(taken[1:], read[1:], strict=True)
        if ids > LEAST
    )
    assert statistics.median(taken[1:]) > 0.85 * STRETCH * 0.008


def test_steps_that_the_machine_held_up_teach_nothing() -> None:
    held, free = steps(0.0003, held_up=0.02)[1], steps(0.0003)[1]
    assert statistics.median(held) == pytest.approx(statistics.median(free), abs=1)
    assert free[-1] / 2 < min(held[LATEST:]) and max(held[LATEST:]) < 2 * free[-1]


def test_prompts_are_read_on_where_an_id_takes_longer_than_there_is_room_for() -> None:
    assert set(steps(0.1, length=50)[1][1:]) == {LEAST}


@pytest.mark.parametrize("an_id", [0.0, 0.00001])
def test_what_the_last_prompt_took_is_not_relied_on_at_the_next(an_id: float) -> None:
    pace = PrefillBudget(256)
    for _ in range(40):
        pace.record(4, 0, 0.008)
    for _ in range(40):
        pace.record(4, 64, 0.008 + 64 * an_id)
    assert pace.allowed(4) == (128 if an_id else LEAST)
    pace.record(4, 0, 0.008)
    read = []
    while len(read) < 12:  # the next takes a hundred times as long
        read.append(pace.allowed(4))
        pace.record(4, read[-1], 0.008 + read[-1] * 0.001)
    assert read[0] == LEAST and read[-1] == int((STRETCH - 1) * 0.008 / 0.001)
    assert all(0.008 + ids * 0.001 < 1.15 * STRETCH * 0.008 for ids in read)


def test_steps_read_more_while_they_have_room() -> None:
    read = steps(0.000001, most=1000, length=3000)[1]
    assert read[0] == LEAST and all(after <= 2 * before for before, after in pairwise(read))
    assert max(read) > 500


def test_no_answer_waits_for_a_prompt_that_is_read_alone() -> None:
    pace = PrefillBudget(256)
    pace.record(4, 0, 0.008)
    pace.record(4, 4, 0.012)
    pace.record(0, 256, 0.2)
    assert pace.allowed(0) == 256 and pace.allowed(4) <= LEAST


def test_a_step_without_prefill_is_measured_first() -> None:
    pace = PrefillBudget(256)
    assert pace.allowed(0) == 256 and pace.allowed(3) == 0
    pace.record(0, 256, 0.1)  # no answer waited: says nothing about what an id adds beside answers
    assert pace.allowed(3) == 0
    pace.record(2, 0, 0.010)
    assert pace.allowed(3) == LEAST
    pace.record(3, 16, 0.014)
    assert pace.allowed(3) == int((STRETCH - 1) * 0.010 / (0.004 / 16))
    assert PrefillBudget(1).allowed(0) == 1 and PrefillBudget(1).allowed(1) == 0


def test_steps_that_read_and_took_no_longer_are_no_reason_to_stop() -> None:
    pace = PrefillBudget(256)
    pace.record(4, 0, 0.02)
    for seconds in (0.02, 0.01, 0.02, 0.03):  # the usual step was slower than most that read
        pace.record(4, 16, seconds)
    assert pace.allowed(4) == LEAST


def test_many_answers_leave_room_for_a_few_ids_at_once() -> None:
    pace = PrefillBudget(256)
    pace.record(1, 0, 0.02)
    assert [pace.allowed(n) for n in (1, 5, 14, 64)] == [LEAST, LEAST, 5, 25]
    pace.record(14, 0, 0.02)
    assert pace.allowed(14) == 5
    pace.record(14, 5, 0.021)
    assert pace.allowed(14) == 10
    pace.record(14, 10, 0.2)  # what an id takes was more than is allowed: no more than the least
    pace.record(14, 10, 0.2)
    assert pace.allowed(14) == 5


@pytest.mark.parametrize(("waiting", "stretch"), [(1, STRETCH), (2, 2.0), (4, 4.0), (100, MOST_STRETCH)])
def test_many_prompts_that_wait_may_take_more_of_a_step(waiting: int, stretch: float) -> None:
    pace = PrefillBudget(256)
    for _ in range(5):
        pace.record(4, 0, 0.008)
    taken = [0.0]
    for _ in range(12):
        ids = pace.allowed(4, waiting)
        taken.append(0.008 + ids * 0.0002)
        pace.record(4, ids, taken[-1], waiting)
    assert 0.97 * stretch < taken[-1] / 0.008 <= stretch


@pytest.mark.parametrize("an_id", [0.0002, 0.001, 0.01])
def test_beside_other_clients_a_step_that_decodes_none_is_short_too(an_id: float) -> None:
    pace = PrefillBudget(512)
    assert pace.allowed(0, 1, True) == SHORT and pace.allowed(0, 1, False) == 512
    pace.record(1, 0, 0.02)
    pace.record(0, 512, 0.02 + 512 * an_id)  # of a client alone
    for _ in range(20):
        ids = pace.allowed(0, 1, True)
        assert ids == pytest.approx(max(SHORT, (MOST_STRETCH - 1) * 0.02 / an_id), abs=1)
        pace.record(0, ids, 0.02 + ids * an_id)
    assert pace.allowed(0) == 512


def test_short_prompts_say_little_of_what_a_long_one_takes() -> None:
    pace = PrefillBudget(512)
    pace.record(1, 0, 0.02)
    for _ in range(20):
        pace.record(0, 3, 0.02)
    ids, taken = [], []
    for _ in range(12):
        ids.append(pace.allowed(0, 1, True))
        taken.append(0.02 + ids[-1] * 0.002)
        pace.record(0, ids[-1], taken[-1])
    assert ids[0] == SHORT and all(after <= 2 * before for before, after in pairwise(ids))
    assert max(taken) < 1.5 * MOST_STRETCH * 0.02 and taken[-1] <= MOST_STRETCH * 0.02


@pytest.mark.parametrize(
    ("decode", "wait", "found"),
    [
        ("", "aab", 3),  # none is slowed
        ("a", "aaa", 3),
        ("a", "bbbb", 1),  # another client's many are one
        ("a", "aabbc", 4),
        ("ab", "aaaab", 2),  # of a: five, of b: one of its own and one of a's
        ("ab", "", 0),
    ],
)
def test_a_client_slows_its_own_answers_by_many_prompts(decode: str, wait: str, found: int) -> None:
    assert prompts_waiting(Counter(wait), set(decode)) == found
