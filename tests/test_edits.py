"""Edits: each kind does its arithmetic, survives JSON, and does in a generation what it does in a trace."""

import json
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import cutaway
from cutaway.errors import UserError
from cutaway.generate.batch.request import finish
from cutaway.generate.decode import generate
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.session import Session
from cutaway.inspect import edits
from cutaway.inspect.edits import Ablate, Add, Patch, Project
from cutaway.inspect.trace import Trace
from cutaway.model.engine import DefinitionEngine
from tests import inputs
from tests.small import WIDTH, Bytes, decoder

TEXT = list(b"all of it adds up")
OTHER = list(b"all of us add up!")
VECTOR = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1)).tolist()
EVERY = [
    Ablate(1),
    Ablate(1, strength=0.5),
    Ablate(0, "head", 2),
    Ablate(0, "attention", strength=2.0),
    Ablate(1, "mlp"),
    Patch(1, OTHER, positions=[3, -1]),
    Patch(0, OTHER, "head", 1, positions=[5], strength=0.5),
    Patch(1, OTHER, "mlp", positions=[2]),
    Add(1, VECTOR, strength=3.0),
    Add(0, VECTOR, positions=[0, 4]),
    Project(1, VECTOR),
    Project(0, VECTOR, positions=[-1], strength=0.5),
]


class Words(Bytes):
    """Enough of a tokenizer to generate with."""

    eos_ids: tuple[int, ...] = ()

    def stream(self) -> Any:
        return self

    def push(self, id: int) -> str:
        return chr(id)

    def follow(self, ids: Any) -> None:
        pass

    def finish(self) -> str:
        return ""


def out(edit: edits.Given | None, name: str = "blocks.1.out") -> torch.Tensor:
    return Trace.of(decoder(), Bytes(), TEXT, ["blocks.*"], edit)[name]


@pytest.mark.parametrize("edit", EVERY, ids=repr)
def test_an_edit_round_trips_through_json(edit: edits.Edit) -> None:
    assert edits.from_json(json.loads(json.dumps(edits.to_json(edit)))) == edit
    assert edits.describe(edit)


@pytest.mark.parametrize("shape", ["gemma", "mixture"])
@pytest.mark.parametrize("edit", EVERY, ids=repr)
def test_an_edited_generation_is_the_greedy_loop_by_hand(shape: str, edit: edits.Edit) -> None:
    """With a KV cache, in chunks: the same tokens as tracing the whole text anew for every token."""
    model = decoder(shape)
    engine = DefinitionEngine(model)
    prepared = edits.prepare(model, edit, len(TEXT))
    by_hand = list(TEXT)
    for _ in range(6):
        logits = Trace.of(model, Bytes(), by_hand, ["logits"], prepared.at()).logits[-1]
        by_hand.append(int(logits.argmax()))
    settings = SamplingParams(max_tokens=6, ignore_eos=True)
    session = Session(engine, prepared.at)
    assert list(finish(generate(engine, Words(), TEXT, settings, session)).ids) == by_hand[len(TEXT) :]
    again = Trace.of(model, Bytes(), [*by_hand[:-1], 7], ["logits"], prepared.at())
    assert_close(torch.from_numpy(session.step(7)), again.logits[-1], rtol=1e-4, atol=1e-4)


def test_ablating_scales_the_output() -> None:
    usual, mlp = out(None), out(None, "blocks.1.out") - out(None, "blocks.1.middle")
    assert_close(out(Ablate(1, "mlp", strength=0.25)), usual - 0.25 * mlp)
    assert_close(out(Ablate(1, strength=0.5)), (usual + out(None, "blocks.0.out")) / 2)


def test_a_patch_mixes_in_the_other_prompts_activation() -> None:
    theirs = Trace.of(decoder(), Bytes(), OTHER)["blocks.1.out"]
    mixed, usual = out(Patch(1, OTHER, positions=[3], strength=0.5)), out(None)
    assert_close(mixed[3], (usual[3] + theirs[3]) / 2)
    assert torch.equal(mixed[4:], usual[4:])
    assert_close(out(Patch(1, OTHER)), theirs)


def test_projecting_leaves_nothing_along_the_direction() -> None:
    direction = torch.tensor(VECTOR) / torch.tensor(VECTOR).norm()
    usual, projected = out(None), out(Project(1, VECTOR))
    assert_close(projected @ direction, torch.zeros(len(TEXT)), rtol=0, atol=1e-5)
    assert_close(projected + (usual @ direction)[:, None] * direction, usual)
    half = out(Project(1, [5 * value for value in VECTOR], strength=0.5))
    assert_close(half @ direction, usual @ direction / 2, rtol=1e-4, atol=1e-5)


def test_later_edits_see_what_earlier_ones_made() -> None:
    both = out([Add(1, VECTOR), Project(1, VECTOR)])
    assert_close(both, out(Project(1, VECTOR)), rtol=1e-4, atol=1e-5)
    assert_close(out([Project(1, VECTOR), Add(1, VECTOR)]), both + torch.tensor(VECTOR), rtol=1e-4, atol=1e-5)
    assert torch.equal(out([Add(0, VECTOR), Ablate(1)]), out(Add(0, VECTOR), "blocks.0.out"))


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (Ablate(3), "no layer 3: this model's layers are 0 to 2"),
        (Ablate(-1), "no layer -1"),
        (Ablate(0, "head"), 'goes with part "head"'),
        (Ablate(0, "mlp", 1), 'goes with part "head"'),
        (Ablate(0, "head", 4), "no head 0.4: it has heads 0 to 3"),
        (Ablate(0, strength=float("nan")), "strength is nan"),
        (Patch(0, OTHER[:5]), "17 tokens, the other 5"),
        (Patch(0, OTHER[:5], positions=[5]), "no position 5: positions are 0 to 4"),
        (Add(0, [1.0]), "1 numbers"),
        (Add(0, [1e39] * WIDTH), "beyond float32"),
        (Project(0, [0.0] * WIDTH), "names no direction"),
        (Add(0, VECTOR, positions=[17]), "no position 17"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(edit: edits.Edit, why: str) -> None:
    with pytest.raises(UserError, match=why):
        edits.prepare(decoder(), [edit], len(TEXT))


@pytest.mark.parametrize("document", [{}, {"kind": "erase"}, {"kind": "ablate"}, {"kind": "add", "size": 1}])
def test_json_that_is_no_edit_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="edit"):
        edits.from_json(document)


@pytest.fixture(scope="module")
def smollm2() -> Any:
    return cutaway.load(inputs.path("smollm2"))


def test_a_model_generates_with_edits_for_one_call(smollm2: Any) -> None:
    prompt, edit = "The capital of France is", [Ablate(23, "head", 4), Ablate(29)]
    usual = smollm2.generate(prompt, max_tokens=8)
    edited = smollm2.generate(prompt, max_tokens=8, edit=edit)
    ids = smollm2.ids(prompt)
    for _ in range(8):
        ids.append(smollm2.trace(ids, edit=edit, names=["logits"]).top(1)[0].id)
    assert list(edited.ids) == ids[-8:] != list(usual.ids)
    assert "".join(piece.text for piece in smollm2.stream(prompt, max_tokens=8, edit=edit)) == edited.text
    assert smollm2.generate(prompt, max_tokens=8).ids == usual.ids, "an edit holds for its call alone"
    chat = [{"role": "user", "content": "Hi"}]
    assert smollm2.chat(chat, max_tokens=4, edit=edit).ids != smollm2.chat(chat, max_tokens=4).ids
    guessed = smollm2.generate(prompt, max_tokens=8, edit=edit, speculate="lookup")
    assert guessed.ids == edited.ids
    with pytest.raises(UserError, match="leave out session or edit"):
        smollm2.generate(prompt, edit=edit, session=smollm2.session())


def test_the_runtime_refuses_edits() -> None:
    lm = cutaway.load(inputs.path("smollm2"), engine="runtime")
    with pytest.raises(UserError, match="the runtime cannot edit"):
        lm.generate("Hi", edit=Ablate(0))


def test_a_model_shows_what_it_is(smollm2: Any) -> None:
    shown = repr(smollm2)
    assert shown.startswith("LanguageModel(") and "30 layers, width 576" in shown and "engine='auto'" in shown
