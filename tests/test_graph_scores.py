"""The parts of an attention score sum to it, and each is that of its part alone."""

import numpy as np
import pytest

from cutaway.errors import UserError
from cutaway.inspect.graph.qk import score_parts
from cutaway.inspect.subject import Subject
from tests.small import Bytes, decoder

TEXT = list(b"all of it adds")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma", "sandwich"])
def test_parts_sum_to_the_score(family: str) -> None:
    model = decoder(family)
    subject = Subject.of(model, Bytes())
    layer = len(model.config.blocks) - 1
    for head, query, key in ((0, -1, 3), (3, 9, 9), (2, -1, 11)):
        found = score_parts(subject, TEXT, layer, head, key, query)
        assert found.values.sum() == pytest.approx(found.facts["score"], abs=1e-4)
        (seen,) = subject.values([TEXT], [f"blocks.{layer}.attention.scores"])
        score = float(seen[f"blocks.{layer}.attention.scores"][head, query, key])
        cap = model.config.blocks[layer].attention.softcap
        plain = score if cap is None else cap * np.arctanh(score / cap)
        assert found.facts["score"] == pytest.approx(plain, abs=1e-4)
        assert found.axes["query part"][0] == "embedding" and found.axes["key part"][-1] == "constant"
        assert len(found.axes["query part"]) == 2 + 5 * layer, "four heads and an MLP a layer, and biases"


def test_a_part_that_wrote_nothing_adds_nothing() -> None:
    model = decoder("llama")
    model.blocks[0].mlp.down.weight.data.zero_()
    found = score_parts(Subject.of(model, Bytes()), TEXT, 2, 1, 4)
    at = list(found.axes["key part"]).index("MLP 0")
    assert np.abs(found.values[:, at]).max() == 0 and np.abs(found.values).max() > 0.01


def test_places_that_there_are_not() -> None:
    subject = Subject.of(decoder(), Bytes())
    for place, why in (
        ({"layer": 3, "head": 0, "key": 0}, "no layer 3"),
        ({"layer": 0, "head": 4, "key": 0}, "no head 4"),
        ({"layer": 0, "head": 0, "key": 14}, "no key at 14"),
        ({"layer": 0, "head": 0, "key": 5, "query": 2}, "after the query at 2"),
    ):
        with pytest.raises(UserError, match=why):
            score_parts(subject, TEXT, **place)
