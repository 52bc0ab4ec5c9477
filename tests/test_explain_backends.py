"""`cutaway explain --backends`: what it says is what the dispatchers do, layer by layer, and why."""

import json

import pytest
import torch

import cutaway
from cutaway import tracing
from cutaway.attention.backends import choice
from cutaway.attention.common import linear_recurrence
from cutaway.attention.common.registry import Sizes, kind
from cutaway.cli import main
from cutaway.commands import explain_asked as asked
from cutaway.errors import UserError
from cutaway.hooks import FACTS
from cutaway.inspect.backends import backends
from cutaway.layers.config import MLP
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder as Config
from cutaway.model.decoder import Decoder
from tests.small import Bytes

SIZES = Sizes(width=32, heads=4, groups=2, key_size=8, value_size=8)
LAYERS = ("gqa", "local", "linear", "mla", "dsa", "gated_delta", "differential", "gqa", "gqa")


@pytest.fixture(scope="module")
def model() -> Decoder:
    torch.manual_seed(0)
    mixers = [kind(name).like(SIZES, {"window": 8} if name == "local" else {}) for name in LAYERS[:-1]]
    mixers.append(kind("gqa").like(SIZES, {"softcap": 5.0}))
    blocks = tuple(Block(mixer, MLP(16)) for mixer in mixers)
    return Decoder(Config(vocab=256, width=32, context=2048, blocks=blocks)).eval()


def test_it_tells_what_is_really_computed(model, monkeypatch) -> None:
    """Each backend that runs writes its name down: the same names in the same order."""
    ran: list[str] = []
    real = {**choice.BACKENDS}
    for name, backend in real.items():
        monkeypatch.setitem(
            choice.BACKENDS, name, lambda inputs, n=name, p=backend: (ran.append(n), p(inputs))[1]
        )
    for table in (linear_recurrence.GATED_LINEAR, linear_recurrence.DELTA):
        for name, form in {**table}.items():
            monkeypatch.setitem(table, name, lambda *a, n=name, f=form: (ran.append(n), f(*a))[1])
    prompt, step = backends(model, list(range(200)))
    document = [layer.backend.backend for reading in (prompt, step) for layer in reading.layers]
    assert document == ran
    assert (prompt.tokens, prompt.after, step.tokens, step.after) == (200, 0, 1, 200)
    assert document[len(LAYERS) :][2] == "recurrent" and document[2] == "chunked"
    assert [reading.layers[3].form.backend for reading in (prompt, step)] == ["expanded", "absorbed"]
    assert prompt.layers[0].form is None


def test_every_other_way_has_its_reason(model) -> None:
    for reading in backends(model, list(range(200)) * 4):
        for layer in reading.layers:
            known = {"naive", "sdpa", "blocked", "products", "native", "flex"}
            if LAYERS[layer.layer] in ("linear", "gated_delta"):
                known = {"recurrent", "chunked"}
            assert {layer.backend.backend, *layer.backend.refused} == known
            assert layer.backend.why and all(layer.backend.refused.values())


def test_a_long_prompt_is_shown_by_its_chunks(model) -> None:
    first, last, step = backends(model, [7] * 1100)
    assert [(one.tokens, one.after) for one in (first, last, step)] == [(512, 0), (76, 1024), (1, 1100)]
    assert [first.layers[i].backend.backend for i in (0, 1, 8)] == ["sdpa", "blocked", "blocked"]
    assert first.layers[8].backend.refused["sdpa"] == "torch's fused kernel has no soft-cap"
    assert step.layers[8].backend.backend == "naive"


def test_facts_are_kept_for_who_asks_alone(model) -> None:
    row, pos = torch.tensor([[1, 2, 3]]), torch.arange(3)[None]
    with torch.no_grad(), tracing(model) as seen:
        model(row, pos)
    assert not any(name.endswith(".backend") for name in seen)
    with torch.no_grad(), tracing(model, FACTS) as seen:
        model(row, pos)
    assert {name.rpartition(".")[2] for name in seen} == {"backend", "form"}


def test_a_text_that_does_not_fit_is_refused(model) -> None:
    with pytest.raises(UserError, match="one more must fit"):
        backends(model, [1] * 2048)
    with pytest.raises(UserError, match="no tokens"):
        backends(model, [])


def test_the_verb(model, monkeypatch, capsys) -> None:
    class Loaded:
        def __init__(self) -> None:
            self.model, self.config = model, model.config

        def ids(self, text: str) -> list[int]:
            return Bytes().encode(text)

    monkeypatch.setattr(asked, "model_path", lambda source: source)
    monkeypatch.setattr(cutaway, "load", lambda source: Loaded(), raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["explain", "some text", "--backends", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [one["tokens"] for one in document["passes"]] == [9, 1]
    assert document["passes"][0]["layers"][2]["backend"]["backend"] == "chunked"
    assert main(["explain", "some text", "--backends"]) == 0
    out = capsys.readouterr().out
    assert "layer 2" in out and "not recurrent" in out and max(map(len, out.splitlines())) <= 100
    assert main(["explain", "some text", "--backends", "--ablate", "0.1"]) == 2
    assert "--backends is a view of its own" in capsys.readouterr().err
