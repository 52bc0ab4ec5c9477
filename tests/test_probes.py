"""Probes at several positions, on texts apart, beside a control task, with intervals."""

import numpy as np
import pytest

from cutaway.errors import UserError
from cutaway.inspect import probes
from cutaway.inspect.subject import Subject
from tests.small import Bytes, decoder


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject.of(decoder(), Bytes())


def drawn(count: int, seed: int) -> tuple[list[list[int]], list[str]]:
    """Random texts, whose third token is one of two, which is the label."""
    draw = np.random.default_rng(seed)
    rows = [
        [*draw.integers(1, 250, 2).tolist(), 251 + n % 2, *draw.integers(1, 250, 2).tolist()]
        for n in range(count)
    ]
    return rows, ["ab"[row[2] - 251] for row in rows]


def test_a_probe_reads_each_position(subject: Subject) -> None:
    texts, labels = drawn(40, 0)
    found = probes.probe(subject, texts, labels, ["embed"], positions=[0, 2, 4], folds=4, control=False)
    assert found.values.shape == (1, 3) and found.axes["position"] == [0, 2, 4]
    assert found[0, 1] == 1.0 and max(found[0, 0], found[0, 2]) < 0.75, (
        "embeddings have their own token alone"
    )
    assert found.margin[0, 1] == 0 and 0.1 < found.margin[0, 0] < 0.2
    right = found[0, 0] * 40
    want = 2.0227 * np.sqrt(right / 40 * (1 - right / 40) * 40 / 39 / 40)
    assert found.margin[0, 0] == pytest.approx(want, rel=1e-3), "Student's, of 40 texts each held out once"


def test_a_control_task_is_learnt_by_heart_or_not_at_all(subject: Subject) -> None:
    texts, labels = drawn(40, 0)
    found = probes.probe(subject, texts, labels, ["embed"], position=2, folds=4)
    assert found.facts["selectivity"][0] == pytest.approx(found[0] - found.facts["control"][0])
    assert found.facts["control"][0] < 0.8 and found.facts["selectivity"][0] > 0.2
    few = [[n % 20 + 1] for n in range(60)]  # twenty tokens, three times each: their labels can be remembered
    known = probes.probe(subject, few, ["ab"[n % 20 < 10] for n in range(60)], ["embed"], folds=3)
    assert known.facts["control"][0] > 0.9 > known.facts["selectivity"][0] + 0.5
    assert "control" not in probes.probe(subject, texts, labels, ["embed"], folds=4, control=False).facts


def test_a_probe_is_scored_on_texts_apart(subject: Subject) -> None:
    (texts, labels), (others, theirs) = drawn(40, 0), drawn(24, 1)
    found = probes.probe(
        subject, texts, labels, ["embed"], position=2, folds=4, test=(others, theirs), control=False
    )
    assert found[0] == 1.0
    wrong = probes.probe(
        subject, texts, labels, ["embed"], position=2, folds=4, test=(others, theirs[1:] + theirs[:1])
    )
    assert wrong[0] == 0.0, "of labels that are all wrong"
    for test, why in (((others, theirs[1:]), "24 and 23"), (([[1, 2, 3]], ["c"]), "the label 'c'")):
        with pytest.raises(UserError, match=why):
            probes.probe(subject, texts, labels, ["embed"], folds=4, test=test)
    for wrong, why in (
        ({"positions": [0, 9]}, r"there is no position 9 in every text: the shortest has \d+ tokens"),
        ({"position": -9}, "there is no position -9 in every text"),
        ({"positions": []}, "positions is empty"),
        ({"folds": 1}, "folds is 1: it goes from 2"),
    ):
        with pytest.raises(UserError, match=why):
            probes.probe(subject, texts, labels, ["embed"], **wrong)
