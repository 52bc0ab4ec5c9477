"""A circuit is found where it is planted, and its figures are those of the model with the rest left out."""

import numpy as np
import pytest
import torch

from cutaway.errors import UserError
from cutaway.hooks import tracing
from cutaway.inspect import circuit_search
from cutaway.inspect.subject import Subject
from tests.small import Bytes, decoder

TEXT, OTHER = list(b"all of it adds"), list(b"all of us add!")
ANSWERS = (7, 9)


@pytest.fixture(scope="module", params=["llama", "gemma"])
def subject(request) -> Subject:
    """A model whose every head and MLP writes nothing but a head of layer 1 and the MLP of layer 2."""
    model = decoder(request.param)
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            out = block.attention.out.weight.unflatten(1, (4, -1))
            for head in range(4):
                out[:, head] *= 1.0 if (i, head) == (1, 2) else 0.0
            block.mlp.down.weight *= 1.0 if i == 2 else 0.0
    return Subject.of(model, Bytes())


def by_hand(subject: Subject, kept: set[circuit_search.Part]) -> float:
    """The metric with all parts outside a circuit as in the other text, by torch's own hooks."""
    model, names = (
        subject.pytorch.model,
        [f"blocks.{i}.{p}" for i in range(3) for p in ("attention.z", "mlp.down")],
    )
    theirs = subject.pytorch.run([OTHER], names)

    def of(ids: list[int], edit: dict) -> float:
        with torch.no_grad(), tracing(model, edit=edit or {"embed": lambda x: x}):
            row = model(torch.tensor([ids]), torch.arange(len(ids))[None])[0, -1]
        return float(row[9] - row[7])

    def changed(name: str):
        layer, heads = int(name.split(".")[1]), name.endswith("z")

        def change(value: torch.Tensor) -> torch.Tensor:
            value = value.clone()
            for head in range(4) if heads else [None]:
                if (layer, head) not in kept:
                    at = (0, head) if heads else 0
                    value[at] = theirs[name][at]
            return value

        return change

    here, there, now = of(TEXT, {}), of(OTHER, {}), of(TEXT, {name: changed(name) for name in names})
    return 1 - (now - here) / (there - here)


def test_the_planted_parts_are_found(subject: Subject) -> None:
    found = circuit_search.search(subject, TEXT, OTHER, answers=ANSWERS, threshold=1e-3)
    assert set(found.circuit) <= {(1, 2), (2, None)} and found.circuit and found.parts == 15
    assert found.faithfulness == pytest.approx(by_hand(subject, set(found.circuit)), abs=1e-4)
    outside = {(i, h) for i in range(3) for h in (0, 1, 2, 3, None)} - set(found.circuit)
    assert found.completeness == pytest.approx(by_hand(subject, outside), abs=1e-4)
    for part, loss in zip(found.circuit, found.minimality, strict=True):
        without = by_hand(subject, set(found.circuit) - {part})
        assert loss == pytest.approx(found.faithfulness - without, abs=1e-4)
        assert loss > 1e-3, "or the search had left it out"


def test_curves_order_parts_by_what_they_lose(subject: Subject) -> None:
    found = circuit_search.curves(subject, TEXT, OTHER, answers=ANSWERS, sizes=[1, 2, 15, 99])
    assert found.axes["parts"] == [1, 2, 15], "no size is larger than the model"
    assert found[0, 2] == pytest.approx(1, abs=1e-4) and found[2, 2] == pytest.approx(1, abs=1e-4)
    options = {"answers": ANSWERS, "sizes": [2], "order": [(1, 2), (2, None)]}
    both = circuit_search.curves(subject, TEXT, OTHER, **options)
    assert both[0, 0] == pytest.approx(1, abs=1e-3), "two parts are all that there is"
    assert abs(both[0, 0] - 1) < abs(both[2, 0] - 1), "random ones keep less"
    own = circuit_search.curves(subject, TEXT, OTHER, answers=ANSWERS, sizes=[1], order=[(0, 0)])
    assert own[0, 0] == pytest.approx(by_hand(subject, {(0, 0)}), abs=1e-4)
    with pytest.raises(UserError, match="there is no part"):
        circuit_search.curves(subject, TEXT, OTHER, answers=ANSWERS, order=[(9, 0)])
    for wrong, why in (
        ({"sizes": [-1, 1]}, "sizes go from 1 to the parts in the order, 1"),
        ({"sizes": [2]}, "sizes go from 1"),
        ({"order": [(0, 0), (0, 0)]}, "a part is in the order twice"),
    ):
        with pytest.raises(UserError, match=why):
            circuit_search.curves(
                subject, TEXT, OTHER, **{"answers": ANSWERS, "sizes": [1], "order": [(0, 0)]} | wrong
            )
    with pytest.raises(UserError, match="threshold is 2"):
        circuit_search.search(subject, TEXT, OTHER, answers=ANSWERS, threshold=2)


def test_figures_of_several_pairs_have_intervals() -> None:
    subject = Subject.of(decoder(), Bytes())
    texts = [TEXT, list(b"All of it adds"), list(b"ALL of it adds")]
    found = circuit_search.search(subject, texts, [OTHER] * 3, answers=ANSWERS, threshold=0.5)
    assert all(np.isfinite(found.margins))
    one = circuit_search.search(subject, TEXT, OTHER, answers=ANSWERS, threshold=0.5)
    assert all(np.isnan(one.margins)), "one pair has none"
