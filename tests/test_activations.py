"""The runtime's values and edits: its reference's to the bit, the definition's within the law."""

from typing import Any

import numpy as np
import pytest
import torch

from cutaway import native
from cutaway.errors import UserError
from cutaway.hooks import tracing
from cutaway.inspect import activation_quant
from cutaway.runtime import values
from cutaway.runtime.engine import RuntimeEngine
from cutaway.runtime.reference import ReferenceEngine
from tests.test_runtime import IDS, config, definition, tensors

compiled = pytest.mark.skipif(native.why_not() is not None, reason=native.why_not() or "built")
TEXTS = [IDS[:140], IDS[3:10], IDS[200:201], IDS[:30]]
VECTOR = np.random.default_rng(1).normal(size=50).astype(np.float32)
EDITS = [
    values.Edit(0, VECTOR, 1.5),
    values.Edit(1, VECTOR / np.linalg.norm(VECTOR), 0.7, True),
    values.Edit(1, VECTOR, -2.0, positions=frozenset({1, 131})),
    values.Edit(2, VECTOR, 0.5, first=129),
]


@compiled
@pytest.mark.parametrize("name", ["llama", "odd", "gemma3", "qwen2-moe"])
def test_native_values_and_edits_have_the_references_bits(name: str) -> None:
    of = config(name)
    engines: list[Any] = [engine(of, tensors(of)) for engine in (RuntimeEngine, ReferenceEngine)]
    ours, theirs = (values.of_texts(engine, TEXTS, ["*"]) for engine in engines)
    assert list(ours) == list(theirs) and len(ours) == 1 + 3 * 7
    for value in ours:
        if value.endswith("pattern"):
            pairs = zip(ours[value], theirs[value], strict=True)
            assert all(a.shape == b.shape and np.allclose(a, b, atol=1e-6) for a, b in pairs), value
        else:
            assert np.array_equal(ours[value], theirs[value]), value
    states = [engine.edited_state(EDITS) for engine in engines]
    plain = engines[0].logits(IDS[:132])[-1]
    assert np.array_equal(*(e.prefill(IDS[:130], s) for e, s in zip(engines, states, strict=True)))
    for id in IDS[130:132]:
        last, other = (e.step(id, s) for e, s in zip(engines, states, strict=True))
        assert np.array_equal(last, other)
    whole = engines[0].edited_state(EDITS)
    assert engines[0].fork(whole).edits == whole.snapshot().edits == tuple(EDITS)
    seen = engines[0].observe([IDS[:132]], [whole], ["blocks.2.out"], [131])
    assert np.array_equal(seen[0][0], last) and not np.allclose(last, plain)
    apart = (
        seen[1]["blocks.2.out"]
        - engines[0].observe([IDS[:132]], [engines[0].edited_state(EDITS[:3])], ["blocks.2.out"])[1][
            "blocks.2.out"
        ]
    )
    assert not apart[:129].any() and np.allclose(apart[129:], 0.5 * VECTOR, atol=1e-4)


@compiled
@pytest.mark.parametrize("name", ["llama", "gemma3", "deepseek"])
def test_values_are_the_definitions_within_the_law(name: str) -> None:
    """Float weights round nothing but keys and values; a decoded token has the values that prefill gives."""
    of = config(name)
    entries = tensors(of)
    engine, model, ids = RuntimeEngine(of, entries), definition(of, entries).model, IDS[:40]
    ours = values.of_texts(engine, [ids], ["*"])
    with torch.no_grad(), tracing(model, *ours, edit=activation_quant.edits(of, entries)) as seen:
        model(torch.tensor([ids]), torch.arange(len(ids))[None])
    for value, rows in ours.items():
        found = seen[value][0].numpy()
        if value.endswith("pattern"):
            rows = np.stack([np.pad(row, ((0, 0), (0, len(ids) - row.shape[1]))) for row in rows])
        ours_too = rows if rows.ndim == 2 else rows.swapaxes(0, 1)
        assert ours_too.shape == found.shape
        assert np.abs(ours_too - found).max() < 4e-3 * np.abs(found).max(), value
    state = engine.new_state()
    for at, id in enumerate(ids[:5]):
        logits, step = engine.observe([[id]], [state], list(ours), [0])
        assert all(np.array_equal(step[value][0], ours[value][at]) for value in ours)
    assert np.array_equal(logits[0], engine.logits(ids[:5])[-1])


def test_what_the_runtime_does_not_show_is_refused_first() -> None:
    of = config("llama")
    engine = ReferenceEngine(of, tensors(of))
    state = engine.new_state()
    for name, why in {
        "blocks.1.mlp.hidden": 'the runtime does not show .*load with engine="definition"',
        "blocks.3.out": "there is no blocks.3.out: this model's layers are 0 to 2",
    }.items():
        with pytest.raises(UserError, match=why):
            engine.observe([[1]], [state], [name])
    assert state.length == 0
