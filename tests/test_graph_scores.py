"""The parts of an attention score sum to it, and each is that of its part alone."""

import numpy as np
import pytest

from cutaway.attention import gqa
from cutaway.attention.common.heads import Temperature
from cutaway.errors import UserError
from cutaway.inspect.graph.qk import score_parts
from cutaway.inspect.subject import Subject
from cutaway.layers.config import MLP, Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder as Config
from cutaway.position import rope
from tests.small import CONTEXT, VOCAB, WIDTH, Bytes, decoder
from tests.test_graph import model_of, perturbed

TEXT = list(b"all of it adds")


SHARPER = {"each": {"qk_norm_over": "each"}, "after": {"qk_norm_after": True}}


def _sharper(family: str) -> Config:
    """A norm with weights for each head, or one after the rotation; queries that grow with the position."""
    own = {"qk_norm": Norm(), "temperature": Temperature(0.3, 2, 1), **SHARPER[family]}
    heads = gqa.Config(heads=4, kv_heads=2, key_size=8, position=rope.Config(8), **own)
    return Config(VOCAB, WIDTH, CONTEXT, (Block(heads, MLP(48)),) * 2)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma", "sandwich", "olmo2", "latent", *SHARPER])
def test_parts_sum_to_the_score(family: str) -> None:
    model = perturbed(_sharper(family)) if family in SHARPER else model_of(family)
    subject = Subject.of(model, Bytes())
    layer = len(model.config.blocks) - 1
    for head, query, key in ((0, -1, 3), (3, 9, 9), (2, -1, 11)):
        found = score_parts(subject, TEXT, layer, head, key, query)
        assert found.values.sum() == pytest.approx(found.facts["score"], abs=1e-4)
        (seen,) = subject.values([TEXT], [f"blocks.{layer}.attention.scores"])
        score = float(seen[f"blocks.{layer}.attention.scores"][head, query, key])
        cap = getattr(model.config.blocks[layer].attention, "softcap", None)
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
