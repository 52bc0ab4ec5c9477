"""Edits: each kind does its arithmetic, survives JSON, and does in a generation what it does in a trace."""

import inspect
import json
import random
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import cutaway
from cutaway.errors import UserError
from cutaway.generate.decode import finish, generate
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.session import Session
from cutaway.inspect import edits, pytorch_edits
from cutaway.inspect.edits import Ablate, Add, Noise, Patch, Project, Scale, Swap
from cutaway.inspect.subject import Subject
from cutaway.inspect.trace import Trace, trace, trace_texts
from cutaway.model.engine import PyTorchEngine
from tests import inputs
from tests.rounding import noise
from tests.small import CONTEXT, WIDTH, Bytes, decoder, model_file

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
    Scale(1, "head", 3, strength=2.0, positions=[2]),
    Ablate(0, "mlp", to="mean", reference=[OTHER, TEXT[:3]]),
    Ablate(1, "head", 0, to="resample", reference=[OTHER], seed=3, strength=0.5),
    Ablate(1, positions=[0, -1], from_step=1),
    Ablate(name="blocks.*.mlp.hidden", units=[0, 7], from_step=2),
    Add(name="blocks.1.hook_resid_mid", vector=VECTOR, strength=0.5),
    Project(name="blocks.*.middle", vector=VECTOR),
    Scale(name="blocks.*.attention.z", head=1, strength=0.5),
    Swap(1, 0, 3),
    Swap(name="blocks.1.attention.v", head=0, other=1, units=[0, -2], strength=0.5, positions=[2, -1]),
    Swap(name="blocks.*.mlp.hidden", units=[0, 33], others=[40, 1], from_step=1),
    Swap(0, vectors=[VECTOR, VECTOR[::-1]]),
    Noise(0, strength=0.5, seed=3),
    Noise(1, "head", 2, strength=3.0, positions=[0, -1]),
    Noise(name="blocks.*.mlp.hidden", units=[1, 5], seed=1),
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
    return torch.from_numpy(Trace.of(decoder(), Bytes(), TEXT, ["blocks.*"], edit)[name])


@pytest.mark.parametrize("edit", EVERY, ids=repr)
def test_an_edit_round_trips_through_json(edit: edits.Edit) -> None:
    assert edits.from_json(json.loads(json.dumps(edits.to_json(edit)))) == edit
    assert edits.describe(edit)


@pytest.mark.parametrize("shape", ["gemma", "mixture"])
@pytest.mark.parametrize("edit", EVERY, ids=repr)
def test_an_edited_generation_is_the_greedy_loop_by_hand(shape: str, edit: edits.Edit) -> None:
    """With a KV cache, in chunks: the same tokens as tracing the whole text anew for every token."""
    model = decoder(shape)
    engine = PyTorchEngine(model)
    prepared = pytorch_edits.prepare(model, edit, len(TEXT))
    by_hand = list(TEXT)
    for _ in range(6):
        logits = Trace.of(model, Bytes(), by_hand, ["logits"], prepared.at()).logits[-1]
        by_hand.append(int(logits.argmax()))
    settings = SamplingParams(max_tokens=6, ignore_eos=True)
    session = Session(engine, prepared.at)
    assert list(finish(generate(engine, Words(), TEXT, settings, session)).ids) == by_hand[len(TEXT) :]
    again = Trace.of(model, Bytes(), [*by_hand[:-1], 7], ["logits"], prepared.at())
    assert np.allclose(session.step(7), again.logits[-1], rtol=1e-4, atol=1e-4)


def test_ablating_scales_the_output() -> None:
    usual, mlp = out(None), out(None, "blocks.1.out") - out(None, "blocks.1.middle")
    assert_close(out(Ablate(1, "mlp", strength=0.25)), usual - 0.25 * mlp)
    assert_close(out(Ablate(1, strength=0.5)), (usual + out(None, "blocks.0.out")) / 2)


def test_a_patch_mixes_in_the_other_prompts_activation() -> None:
    theirs = torch.from_numpy(Trace.of(decoder(), Bytes(), OTHER)["blocks.1.out"])
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


@pytest.mark.parametrize("renormalise", [False, True])
def test_added_attention_weights_are_of_keys_up_to_the_query(renormalise: bool) -> None:
    edit = Add(name="blocks.1.attention.pattern", vector=[0.1] * len(TEXT), head=1, renormalise=renormalise)
    whole, part = (Trace.of(decoder(), Bytes(), ids, edit=edit) for ids in (TEXT, TEXT[:5]))
    pattern = whole["blocks.1.attention.pattern"][1]
    assert not pattern[np.triu_indices(len(TEXT), 1)].any() and pattern[np.tril_indices(len(TEXT))].all()
    assert_close(whole["logits"][:5], part["logits"], atol=1e-5, rtol=0)


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
        (Ablate(0, strength=1e39), "strength is 1e.39: it must be a finite number within float32"),
        (Ablate(0, "mlp", to="resample", reference=[TEXT], seed=-1), "seed is -1"),
        (Patch(0, OTHER[:5]), "17 tokens, the other 5"),
        (Patch(0, OTHER[:5], positions=[5]), "no position 5: positions are 0 to 4"),
        (Add(0, [1.0]), "1 numbers"),
        (Add(0, [1e39] * WIDTH), "beyond float32"),
        (Project(0, [0.0] * WIDTH), "names no direction"),
        (Add(0, VECTOR, positions=[17]), "no position 17"),
        (Ablate(0, "mlp", to="mean"), "needs a reference"),
        (Ablate(0, to="mean", reference=[TEXT]), "a layer has no mean of its own"),
        (Ablate(0, "mlp", to="mean", reference=[[300]]), "unknown ids"),
        (Patch(0), "give its ids"),
        (Patch(0, [1, 2], positions=[-1]), "the other has 2 tokens"),
        (Scale(0, "mlp", from_step=-1), "from_step is -1"),
        (Noise(0, seed=-1), "seed is -1"),
        (Noise(name="blocks.0.attention.pattern"), "takes no noise"),
        (Project(name="blocks.0.attention.pattern", vector=[1.0]), "no projection"),
        (
            Ablate(name="blocks.0.attention.scores", to="mean", reference=[TEXT, OTHER[:3]]),
            "is ablated to zero alone",
        ),
        (Add(name="blocks.0.attention.pattern", vector=[]), "the vector is empty"),
        (Add(0, VECTOR, head=2), "the residual stream has no head 2"),
        (Scale(name="blocks.0.attention.result"), "is shown, not edited: edit attention.z"),
        (Swap(0, 1), "give one"),
        (Swap(0, 1, 1), "1 and 1 are not two"),
        (Swap(0, 1, 4), "no head 0.4"),
        (Swap(name="blocks.0.attention.z", head=1, other=4), "no head 4"),
        (Swap(name="blocks.0.mlp.hidden", units=[1, 2], others=[2, 3]), "none of them twice"),
        (Swap(name="blocks.0.mlp.hidden", units=[1], others=[-3]), "-3 is none"),
        (Swap(name="blocks.0.mlp.hidden", units=[1], others=[48]), "none of the last axis"),
        (Swap(0, vectors=[VECTOR, [2 * x for x in VECTOR]]), "one direction"),
        (Swap(0, vectors=[VECTOR[1:], VECTOR[1:]]), "two whole vectors"),
        (Scale(name="blocks.0.mlp.hiden"), r"near are .*blocks\.0\.mlp\.hidden"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(edit: edits.Edit, why: str) -> None:
    with pytest.raises(UserError, match=why):
        pytorch_edits.prepare(decoder(), [edit], len(TEXT))


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (
            Scale(name="blocks.0.mlp.hidden", units=[48]),
            r"units .48. are none of the last axis of blocks\.0\.mlp\.hidden",
        ),
        (Scale(name="blocks.0.attention.z", head=4), "no head 4"),
        (Add(name="blocks.0.mlp.hidden", vector=VECTOR), r"32 numbers, blocks\.0\.mlp\.hidden 48"),
    ],
)
def test_an_edit_by_name_that_does_not_fit_its_activation_is_refused(edit: edits.Edit, why: str) -> None:
    with pytest.raises(UserError, match=why):
        pytorch_edits.prepare(decoder(), edit, len(TEXT))
    with pytest.raises(UserError, match="give one of the two"):
        Scale(0, "mlp", name="embed")


class Hooked:
    """Edits written anew as torch's own hooks, one a kind, in the order in which they are given."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def logits(self, ids: list[int], given: Sequence[edits.Edit]) -> torch.Tensor:
        pools = [self._pool(edit) for edit in given]
        handles = [self._hooked(edit, pool, len(ids)) for edit, pool in zip(given, pools, strict=True)]
        logits = self._read(ids)
        for handle in handles:
            handle.remove()
        return logits

    def _read(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return self.model(torch.tensor([ids]), torch.arange(len(ids))[None])[0]

    def _pool(self, edit: Any) -> torch.Tensor | None:
        texts = [edit.ids] if isinstance(edit, Patch) else getattr(edit, "reference", ())
        return torch.cat([self._values(edit, list(text)) for text in texts]) if texts else None

    def _hooked(self, edit: Any, pool: Any, length: int) -> Any:
        return self._at(edit, lambda x, before: self._changed(edit, x, before, pool, length))

    def _values(self, edit: Any, ids: list[int]) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        handle = self._at(edit, lambda x, before: kept.append(x[0]) or x)
        self._read(ids)
        handle.remove()
        return kept[0]

    def _at(self, edit: Any, change: Any) -> Any:
        block = self.model.blocks[edit.layer or int((edit.name or "..0").split(".")[1] or 0)]
        part = "hidden" if edit.name else getattr(edit, "part", "residual")
        if part in ("head", "hidden"):
            module = block.attention.out if part == "head" else block.mlp.down
            return module.register_forward_pre_hook(lambda _, inputs: (change(inputs[0], inputs[0]),))
        if part in ("attention", "mlp"):
            module = block.attention.out if part == "attention" else block.mlp.down
            return module.register_forward_hook(lambda _, inputs, output: change(output, None))
        return block.register_forward_hook(
            lambda _, inputs, output: (change(output[0], inputs[0]), output[1])
        )

    def _name(self, edit: Any) -> str:
        inside = {"head": "attention.z", "attention": "attention.out", "mlp": "mlp.down", "residual": "out"}
        return edit.name or f"blocks.{edit.layer}.{inside[edit.part]}"

    def _changed(self, edit: Any, x: torch.Tensor, before: Any, pool: Any, length: int) -> torch.Tensor:
        x = x.clone()
        size = x.shape[-1] // 4
        for p in range(length):
            if edit.positions is not None and p not in [at % length for at in edit.positions]:
                continue
            if edit.from_step and p < length - 2 + edit.from_step:
                continue
            here = slice(None)
            if getattr(edit, "part", "") == "head" and not edit.name and not isinstance(edit, Swap):
                here = slice(edit.head * size, (edit.head + 1) * size)
            if edit.units is not None:
                here = list(edit.units)
            x[0, p, here] = self._value(edit, x, before, pool, p)[here]
        return x

    def _value(self, edit: Any, x: torch.Tensor, before: Any, pool: Any, p: int) -> torch.Tensor:
        now, v = x[0, p], torch.tensor(getattr(edit, "vector", [0.0]))
        if isinstance(edit, Add):
            return now + edit.strength * v
        if isinstance(edit, Project):
            return now - edit.strength * (now @ v) / (v @ v) * v
        if isinstance(edit, Scale):
            return now * edit.strength
        if isinstance(edit, Noise):
            key = np.array([edit.seed, zlib.crc32(self._name(edit).encode())], np.uint64)
            dice = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, p]))
            return now + edit.strength * torch.from_numpy(dice.standard_normal(len(now), np.float32))
        if isinstance(edit, Swap) and edit.vectors is not None:
            both = torch.tensor(edit.vectors, dtype=torch.float64).T
            there = now + (both @ (torch.linalg.pinv(both) @ now.double()).flip(0)).to(now)
            there = there - (both @ (torch.linalg.pinv(both) @ now.double())).to(now)
        elif isinstance(edit, Swap):
            there, size = now.clone(), len(now) // 4
            here, other = (list(range(at * size, at * size + size)) for at in (edit.head, edit.other))
            there[here], there[other] = now[other], now[here]
        elif isinstance(edit, Patch):
            there = pool[p]
        elif edit.to == "mean":
            there = pool.mean(0)
        elif edit.to == "resample":
            there = pool[np.random.default_rng(edit.seed).integers(len(pool), size=CONTEXT)[p]]
        else:
            there = before[0, p] if edit.part == "layer" and not edit.name else torch.zeros_like(now)
        return now + edit.strength * (there - now)


def random_edit(draw: random.Random) -> edits.Edit:
    layer, strength = draw.randrange(3), draw.choice([1.0, 0.5, -1.0, 2.0])
    part = draw.choice(["head", "attention", "mlp"])
    where: dict[str, Any] = {"strength": strength, "from_step": draw.choice([0, 0, 0, 1])}
    where["positions"] = draw.choice([None, [draw.randrange(17), -2], [-1]])
    head = draw.randrange(4) if part == "head" else None
    vector = [draw.gauss(0, 1) for _ in range(WIDTH)]
    reference = [OTHER[:9], list(b"words")]
    to = draw.choice(["mean", "resample"])
    return draw.choice(
        [
            Ablate(layer, part, head, **where),
            Ablate(layer, **where),
            Ablate(layer, part, head, to=to, reference=reference, seed=draw.randrange(9), **where),
            Scale(layer, part, head, **where),
            Scale(name=f"blocks.{layer}.mlp.hidden", units=[draw.randrange(48), -1], **where),
            Patch(layer, OTHER, draw.choice([part, "residual"] if head is None else [part]), head, **where),
            Add(layer, vector, **where),
            Project(layer, vector, **where),
            Swap(layer, *draw.sample(range(4), 2), **where),
            Swap(layer, vectors=[vector, vector[::-1]], **where),
            Noise(
                layer, draw.choice([part, "residual"] if head is None else [part]), head, seed=layer, **where
            ),
            Noise(name=f"blocks.{layer}.mlp.hidden", units=[draw.randrange(48), -1], **where),
        ]
    )


def test_a_hundred_random_compositions_are_those_of_hooks_by_hand() -> None:
    draw, models = random.Random(0), [decoder("llama", seed=seed) for seed in range(3)]
    for n in range(100):
        model, given = models[n % 3], [random_edit(draw) for _ in range(draw.randint(2, 5))]
        subject = Subject.of(model, Bytes())
        cut = draw.randrange(len(given))
        ours = trace_texts(subject.edited(given[:cut]), [TEXT], ["logits"], given[cut:])[0].logits
        assert_close(
            torch.from_numpy(ours),
            Hooked(model).logits(TEXT, given),
            rtol=1e-5,
            atol=1e-5,
            msg=lambda m, g=given: f"{m} {g}",
        )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def test_eight_threads_with_their_own_edits_get_the_solo_results(tiny: Path) -> None:
    lm, packed = cutaway.load(tiny), cutaway.load(tiny, engine="runtime")
    vectors = [[float(i == n) * 3 for i in range(WIDTH)] for n in range(8)]
    given = [[Add(n % 3, vectors[n]), Ablate((n + 1) % 3, "head", n % 4)] for n in range(8)]

    def results(n: int) -> list[Any]:
        edited, ids = lm.edited(given[n][0]), lm.ids("the theory")
        found = [edited.logits(ids, given[n][1]), edited.trace(ids, given[n][1])["blocks.2.out"]]
        found += [packed.edited(given[n]).trace(ids).logits, packed.logits(ids)]
        return [*found, edited.generate(ids, edit=given[n][1], max_tokens=6, ignore_eos=True).ids]

    solo = [results(n) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for n, together in enumerate(pool.map(results, range(8))):
            for ours, alone in zip(together, solo[n % 8], strict=True):
                assert np.array_equal(np.asarray(ours), np.asarray(alone))
    assert len({one[-1] for one in solo}) > 4, "the edits differ in what they do"


def test_an_edited_model_has_its_edits_in_every_call(tiny: Path) -> None:
    lm = cutaway.load(tiny, engine="pytorch")
    first, then = Add(1, VECTOR), Ablate(2, "head", 1)
    edited, ids = lm.edited(first).edited(then), lm.ids("the theory of it")
    assert np.array_equal(edited.trace(ids).logits, lm.trace(ids, edit=[first, then]).logits)
    assert np.array_equal(edited.logits(ids), lm.logits(ids, edit=[first, then]))
    assert edited.generate(ids, max_tokens=5).ids == lm.generate(ids, max_tokens=5, edit=[first, then]).ids
    assert edited.generate_batch([ids], max_tokens=5)[0].ids == edited.generate(ids, max_tokens=5).ids
    assert edited.engine_choice == ("pytorch", "it was asked for")
    with pytest.raises(UserError, match="an engine has no edits"):
        edited.session()
    last = edited.trace(ids)["blocks.2.out"]
    assert_close(
        torch.tensor(edited.embed([ids], "last", normalise=False)[0]),
        edited.model.norm(torch.from_numpy(last[-1])),
    )
    assert not np.allclose(edited.embed([ids], "last"), lm.embed([ids], "last"))


def test_a_generation_keeps_activations_as_one_trace(tiny: Path) -> None:
    lm = cutaway.load(tiny, engine="pytorch")
    names = ["blocks.1.hook_resid_post", "blocks.0.attention.*", "embed"]
    edit = [Add(0, VECTOR, from_step=2), Ablate(1, "mlp", positions=[1])]
    for speculate in (None, "lookup"):
        made = lm.generate(
            "the thethethe", max_tokens=9, ignore_eos=True, keep=names, edit=edit, speculate=speculate
        )
        read = [*made.prompt_ids, *made.ids[:-1]]
        hooks: Any = pytorch_edits.prepare(lm.model, edit, len(made.prompt_ids)).at(0)
        whole = lm.trace(read, hooks, names)
        assert made.trace.ids == tuple(read) and set(made.trace) < set(whole)
        for name in made.trace:
            seen = np.tril if name.endswith("scores") else np.array
            again = partial(lm.trace, read, hooks, names)
            moved = noise(
                lm.model, lambda again=again, name=name, seen=seen: torch.from_numpy(seen(again()[name]))
            )
            assert moved < 1e-4 * float(np.abs(seen(whole[name])).max())
            bound = {"rtol": 1e-4, "atol": max(1e-4, 4 * moved)}
            np.testing.assert_allclose(seen(made.trace[name]), seen(whole[name]), **bound)
    with pytest.raises(UserError, match="'logits' of its last token alone"):
        lm.generate("the", keep=["logits"])


@pytest.mark.parametrize(("torch", "answers"), [(True, "pytorch"), (False, "runtime")])
def test_without_core_pytorch_answers_or_where_it_is_absent_the_reference(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, torch: bool, answers: str
) -> None:
    monkeypatch.setattr(cutaway.native, "unavailable_reason", lambda: "The native core is absent.")
    monkeypatch.setattr(cutaway.engines, "installed", lambda library: torch)
    monkeypatch.setattr(cutaway.native, "available", lambda: False)
    lm = cutaway.load(tiny)
    assert lm.engine_choice[0] == answers
    if answers == "runtime":
        assert lm.generate("the", max_tokens=2).ids
        with pytest.raises(UserError, match="reads one text only"):
            lm.generate_batch(["the", "a"], max_tokens=2)


def test_which_engine_answers_is_what_was_asked_for(tiny: Path) -> None:
    packed = cutaway.load(tiny, engine="runtime")
    with (
        pytest.raises(UserError, match=r"the runtime answers, which a trace of lm\.model does not see"),
        cutaway.tracing(packed.model, edit={"blocks.0.out": lambda value: value * 0}),
    ):
        packed.generate("the", max_tokens=2)
    assert packed.generate("the", max_tokens=2).ids and packed.engine_choice[0] == "runtime"
    ids = packed.ids("the theory of it")
    residual = packed.trace(ids)["blocks.2.out"]
    assert_close(
        torch.tensor(packed.embed([ids], "last", normalise=False)[0]),
        packed.model.norm(torch.from_numpy(residual[-1])),
    )


def test_what_is_no_list_of_names_no_text_and_no_count_is_refused(tiny: Path) -> None:
    lm = cutaway.load(tiny)
    asks: list[Callable[[], Any]] = [
        lambda: lm.trace("the", names="embed"),
        lambda: lm.generate("the", max_tokens=1, keep="embed"),
        lambda: lm.generate_batch(["the"], max_tokens=1, keep="embed"),
        lambda: lm.activations(["the"], "embed"),
    ]
    for ask in asks:
        with pytest.raises(UserError, match="a list of texts, and this is 'embed'"):
            ask()
    encoded = inspect.unwrap(type(lm)._encoded)  # past the types that the tests check
    for text in (None, 3, {"a": 1}):
        encode = partial(encoded, SimpleNamespace(ids=lambda given: list(f"{given}".encode())))
        read = trace(replace(lm.subject, encode=encode), text, ["logits"], ())
        assert read.ids == tuple(f"{text}".encode()), "what is no list is the encoder's to refuse"
    with pytest.raises(UserError, match="count is 0: ask for 1 token or more"):
        lm.trace("the").top(0)


@pytest.mark.parametrize(
    ("kind", "fields", "why"),
    [
        (Patch, {"layer": 0, "ids": "The sea"}, r"ids is of whole numbers, not 'The sea'; lm\.ids"),
        (Patch, {"layer": 0, "ids": [1.5]}, r"not \[1.5\]"),
        (Ablate, {"layer": 0, "part": "mlp", "to": "mean", "reference": ["at sea"]}, r"reference .* lm\.ids"),
        (Ablate, {"layer": 0, "part": "mlp", "to": "mean", "reference": [3, 4]}, "reference .* not 3"),
        (Scale, {"layer": "1"}, r"layer is of whole numbers, not \['1'\]"),
        (Scale, {"layer": 0, "positions": 1}, "positions is of whole numbers, not 1"),
        (Scale, {"name": 3}, "name is the text of an activation's, not 3"),
        (Add, {"layer": 0, "vector": [[1.0]]}, r"vector is a list of numbers, not \[\[1.0\]\]"),
        (Swap, {"layer": 0, "vectors": ["a", "b"]}, "vector is a list of numbers, not 'a'"),
        (Ablate, {"layer": 0, "strength": "2"}, "strength is '2': it must be a finite number"),
        (Ablate, {"layer": 0, "part": "MLP"}, "is head, attention, mlp, layer, not 'MLP'"),
        (Scale, {"layer": 0, "part": "layer"}, "is head, attention, mlp, not 'layer'"),
    ],
)
def test_a_field_of_the_wrong_type_is_refused(kind: type[Any], fields: dict[str, Any], why: str) -> None:
    edit, untyped = object.__new__(kind), inspect.unwrap(kind.__init__)  # past the types that the tests check

    def checked() -> None:
        untyped(edit, **fields)
        edits.check(decoder().config, edit, len(TEXT))

    with pytest.raises(UserError, match=why):
        checked()


@pytest.mark.parametrize("document", [{}, {"kind": "erase"}, {"kind": "ablate"}, {"kind": "add", "size": 1}])
def test_json_that_is_no_edit_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="edit"):
        edits.from_json(document)


@pytest.fixture(scope="module")
def smollm2() -> Any:
    return cutaway.load(inputs.path("smollm2"))


def test_a_model_generates_with_edits_for_one_call(smollm2: Any) -> None:
    prompt, edit = "The capital of France is", [Ablate(23, "head", 4), Ablate(29)]
    usual = smollm2.generate(prompt, max_tokens=4)
    edited = smollm2.generate(prompt, max_tokens=4, edit=edit)
    ids = smollm2.ids(prompt)
    for _ in range(4):
        ids.append(smollm2.trace(ids, edit=edit, names=["logits"]).top(1)[0].id)
    assert list(edited.ids) == ids[-4:] != list(usual.ids)
    assert "".join(piece.text for piece in smollm2.stream(prompt, max_tokens=4, edit=edit)) == edited.text
    assert smollm2.generate(prompt, max_tokens=4).ids == usual.ids, "an edit holds for its call alone"
    chat = [{"role": "user", "content": "Hi"}]
    assert smollm2.chat(chat, max_tokens=3, edit=edit).ids != smollm2.chat(chat, max_tokens=3).ids
    guessed = smollm2.generate(prompt, max_tokens=4, edit=edit, speculate="lookup")
    assert guessed.ids == edited.ids
    with pytest.raises(UserError, match="leave out session or edit"):
        smollm2.generate(prompt, edit=edit, session=smollm2.session())


def test_the_runtime_refuses_functions() -> None:
    lm = cutaway.load(inputs.path("smollm2"), engine="runtime")
    with pytest.raises(UserError, match="the runtime cannot edit activations by a function"):
        lm.generate("Hi", edit={"blocks.0.out": lambda value: value})


def test_a_model_shows_what_it_is(smollm2: Any) -> None:
    shown = repr(smollm2)
    assert shown.startswith("LanguageModel(") and "30 layers, width 576" in shown and "engine='auto'" in shown
