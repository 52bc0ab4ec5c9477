"""Which engine makes edits of activations, in every call, and what a batch of edited texts gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cutaway
from cutaway.errors import UserError
from cutaway.inspect.edits import Ablate, Add, Edit, Given, Project, Scale
from cutaway.lm import LanguageModel
from tests.small import model_file

VECTOR = np.random.default_rng(3).normal(size=32).tolist()
EDITS: list[Given | None] = [
    None,
    Ablate(1, "head", 1),
    [Add(0, VECTOR, strength=8.0), Scale(2, "mlp", strength=-2.0, positions=[-1])],
    Project(1, VECTOR),
    None,
    Add(1, VECTOR, strength=9.0, from_step=2),
]
PROMPTS = ["all of it", "the theory of it", "a", "and more than that", "all of it", "all of it"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def lm(file: Path) -> LanguageModel:
    return cutaway.load(file)


def test_the_engine_that_answers_makes_the_edits(lm: LanguageModel) -> None:
    edit, ids = Add(0, VECTOR, strength=8.0), lm.ids("all of it")
    own = lm.edited(edit)
    assert own.engine_choice == lm.engine_choice == ("runtime", "it is the fastest here")
    assert own.generate(ids, max_tokens=6).ids == lm.generate(ids, max_tokens=6, edit=edit).ids
    assert np.array_equal(own.logits(ids), lm.logits(ids, edit=edit))
    assert not np.array_equal(own.logits(ids), lm.logits(ids))
    assert own.edited(Project(1, VECTOR)).logits(ids).tolist() == own.logits(ids, Project(1, VECTOR)).tolist()
    assert not lm.engines.built, "no PyTorch model is made for what the runtime edits"
    guessed = own.generate("the thethethe", max_tokens=9, ignore_eos=True, speculate="lookup")
    assert guessed.ids == own.generate("the thethethe", max_tokens=9, ignore_eos=True).ids
    drafted = own.generate(ids, max_tokens=9, ignore_eos=True, speculate=lm.first_layers(1))
    assert drafted.ids == own.generate(ids, max_tokens=9, ignore_eos=True).ids
    with pytest.raises(UserError, match="leave out session or edit"):
        own.generate(ids, session=lm.session())


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        ({"blocks.0.out": lambda value: value * 0}, "the runtime cannot edit activations by a function"),
        ([Ablate(1), {"blocks.0.out": lambda value: value * 0}], "by a function"),
        (Ablate(name="blocks.1.mlp.gate"), "the runtime does not show 'blocks.1.mlp.gate'"),
    ],
    ids=["function", "function beside an edit", "not shown"],
)
def test_what_the_runtime_cannot_edit_is_the_pytorch_models(file: Path, edit: Any, why: str) -> None:
    lm, packed = cutaway.load(file), cutaway.load(file, engine="runtime")
    name, reason = lm.edited(edit).engine_choice
    assert (name == "pytorch" and reason.startswith(why)) or why in reason
    expected = cutaway.load(file, engine="pytorch").generate("all of it", max_tokens=6, edit=edit)
    assert lm.generate("all of it", max_tokens=6, edit=edit).ids == expected.ids
    assert lm.engine_choice[0] == "runtime", "what is not edited is answered as before"
    with pytest.raises(UserError, match='engine="pytorch"'):
        packed.generate("all of it", edit=edit)


def test_edits_that_fit_no_model_are_named(lm: LanguageModel) -> None:
    wrong: dict[str, Edit] = {
        "no layer 9": Ablate(9),
        "no position 20": Add(0, VECTOR, positions=[20]),
        "nothing is named": Ablate(name="blocks.0.nothing"),
    }
    for why, edit in wrong.items():
        with pytest.raises(UserError, match=why):
            lm.generate("all of it", edit=edit)


def test_after_the_model_was_asked_for_it_makes_the_edits(lm: LanguageModel) -> None:
    edited = lm.edited(Add(0, VECTOR, strength=8.0))
    before = edited.logits("all of it")
    with torch.no_grad():
        lm.model.blocks[1].mlp.down.weight *= 0
    for one in (lm, edited):
        assert one.engine_choice == ("pytorch", "lm.model was asked for and may have been changed")
    assert not np.allclose(edited.logits("all of it"), before, atol=1e-2)


def test_a_head_that_cannot_draft_says_what_to_do(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "asked for: leave out engine pytorch .--engine pytorch., or draft by lookup or a smaller model"
    with pytest.raises(UserError, match=f"the PyTorch model answers here, because it was {asked}"):
        cutaway.load(file, engine="pytorch").engines.check_heads_draft()
    lm = cutaway.load(file, engine="runtime")
    lm.engines.check_heads_draft()
    monkeypatch.setattr(cutaway.native, "available", lambda: False)
    with pytest.raises(UserError, match="the core is absent: draft by lookup"):
        lm.engines.check_heads_draft()


def test_a_batch_of_edited_texts_gives_what_each_gives_alone(lm: LanguageModel) -> None:
    """To the bit: each text's tokens and log-probabilities, and those of the texts that are not edited."""
    function = {"blocks.0.out": lambda value: value * 0.5}
    given = [*EDITS[:5], function]
    alone = [
        lm.generate(text, max_tokens=8, ignore_eos=True, edit=edit)
        for text, edit in zip(PROMPTS, given, strict=True)
    ]
    found = lm.generate_batch(PROMPTS, max_tokens=8, ignore_eos=True, edits=given)
    assert [one.ids for one in found] == [one.ids for one in alone]
    assert [one.logprobs for one in found[:5]] == [one.logprobs for one in alone[:5]]
    assert len({one.ids for one in found}) == 5, "the first prompt and the fifth are the same, unedited"
    everywhere = lm.generate_batch(PROMPTS[:3], max_tokens=8, ignore_eos=True, edit=EDITS[2])
    one_by_one = [lm.generate(text, max_tokens=8, ignore_eos=True, edit=EDITS[2]) for text in PROMPTS[:3]]
    assert [one.logprobs for one in everywhere] == [one.logprobs for one in one_by_one]
    edited = lm.edited(EDITS[2] or ()).generate_batch(PROMPTS[:3], max_tokens=8, ignore_eos=True)
    assert [one.ids for one in edited] == [one.ids for one in everywhere]
    with pytest.raises(UserError, match="6 prompts and 2 edits: give one a prompt, or `edit`"):
        lm.generate_batch(PROMPTS, edits=[None, None])


def test_a_decoders_vectors_are_its_engines(file: Path, lm: LanguageModel) -> None:
    edited = lm.edited(EDITS[2] or ())
    for model in (lm, edited):
        together = model.embed(PROMPTS, "mean")
        assert np.array_equal(together, np.concatenate([model.embed([text], "mean") for text in PROMPTS]))
        exact = cutaway.load(file, engine="pytorch").edited(model._edits).embed(PROMPTS, "mean")
        assert (together * exact).sum(1).min() > 0.9999
    assert (lm.embed(PROMPTS, "mean") * edited.embed(PROMPTS, "mean")).sum(1).max() < 0.995
    assert not lm.engines.built
    rounded = cutaway.load(file, engine="runtime").edited(EDITS[2] or ())
    last = rounded.trace(lm.ids("all of it"))["blocks.2.out"][-1]
    normed = lm.pytorch.model.norm(torch.as_tensor(last)).detach().numpy()
    assert np.allclose(edited.embed(["all of it"], "last", normalise=False)[0], normed, rtol=1e-4, atol=1e-4)
