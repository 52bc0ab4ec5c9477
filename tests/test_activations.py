"""The runtime's values and edits: its reference's to the bit, PyTorch's within the law; datasets."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import cutaway
from cutaway import cli, native
from cutaway.errors import UserError
from cutaway.generate.batch.request import Request
from cutaway.generate.batch.scheduler import Scheduler
from cutaway.generate.decode import finish
from cutaway.generate.sampling_params import SamplingParams
from cutaway.hooks import tracing
from cutaway.inspect import activation_quant, activations, runtime_edits
from cutaway.inspect.edits import Ablate, Add, Noise, Patch, Project, Scale, Swap
from cutaway.runtime import edits as changes
from cutaway.runtime import values
from cutaway.runtime.engine import RuntimeEngine
from cutaway.runtime.reference import ReferenceEngine
from scripts.check import studies_parity
from tests.small import model_file
from tests.test_runtime import IDS, SHAPES, config, definition, tensors

compiled = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built"
)
TEXTS = [IDS[:140], IDS[3:10], IDS[200:201], IDS[:30]]
VECTOR = np.random.default_rng(1).normal(size=50).astype(np.float32)
UNIT = VECTOR / np.linalg.norm(VECTOR)
EDITS = [
    changes.Edit(0, VECTOR, 1.5),
    changes.Edit(1, UNIT, -0.7, read=UNIT),
    changes.Edit(1, VECTOR, -2.0, positions=frozenset({1, 131})),
    changes.Edit(2, VECTOR, 0.5, first=129),
]


@compiled
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_all_values_have_the_references_bits(name: str) -> None:
    """Of every mechanism that the runtime runs; attention patterns alone are summed in another order."""
    of = config(name)
    engines: list[Any] = [engine(of, tensors(of)) for engine in (RuntimeEngine, ReferenceEngine)]
    ours, theirs = (values.of_texts(engine, [IDS[:20], IDS[3:5]], ["*", "logits"]) for engine in engines)
    assert list(ours) == list(theirs) == [*values.every(of), "logits"]
    for value in ours:
        if value.endswith(("pattern", "scores", "chosen")):
            pairs = list(zip(ours[value], theirs[value], strict=True))
            assert len(pairs) == 22 and all(np.array_equal(*pair) for pair in pairs), value
        else:
            assert ours[value].shape == (22, *values.named(of, (value,))[0].shape)
            assert np.array_equal(ours[value], theirs[value]), value


def edits_of_everything(of: Any, seed: int) -> list[changes.Edit]:
    """An edit of each value of a model: some of its units scaled, emptied, moved, set to rows of their own,
    moved along a direction or exchanged, a stream returned to its layer's input.
    """
    dice, found = np.random.default_rng(seed), []
    for one in values.named(
        of, tuple(name for name in values.every(of) if name[-7:] != "pattern" and values.editable(name))
    ):
        what = one.name if one.name == "embed" else one.name.partition(f".{one.layer}.")[2]
        size = int(np.prod(one.shape))
        first = int(dice.integers(max(1, size - 1)))
        units = (first, int(dice.integers(first + 1, size + 1)))
        where = frozenset({2, 5, 6, 131}) if dice.random() < 0.3 else None
        made = partial(changes.Edit, one.layer, positions=where, first=int(dice.integers(4)) * 43, what=what)
        moves = values.moved_alone(of, one.layer, what)
        found += [changed(made, units, size, dice, moves) for _ in range(2)]
    for one in values.named(of, tuple(name for name in values.every(of) if name.endswith("pattern"))):
        where = frozenset({3, 130}) if dice.random() < 0.5 else None
        start = int(dice.integers(3)) * 60
        made = partial(changes.Edit, one.layer, positions=where, first=start, what=values.PATTERN)
        found += [reweighed(made, one.shape[0], dice) for _ in range(2)]
    return found


def reweighed(made: Any, heads: int, dice: np.random.Generator) -> changes.Edit:
    """Attention weights of a head or of all scaled, emptied, set at some keys, or of two heads exchanged."""
    head, renormalises = int(dice.integers(heads - 1)), bool(dice.random() < 0.5)
    units = (head, head + 1) if dice.random() < 0.7 else None
    keys = frozenset(dice.choice(140, 50, replace=False).tolist()) | {0, 1}
    shape = (200, 1 if units else heads, max(keys) + 1)
    rows = (np.sin(np.arange(np.prod(shape))) ** 2 / 50).astype(np.float32).reshape(shape)
    made = partial(made, renormalises=renormalises)
    kinds = [
        made(None, factor=float(dice.choice([0.0, 2.0])), units=units, keys=keys),
        made(None, factor=0.5, units=units),
        made(lambda at: rows[at][..., min(keys) :], 0.7, 0.3, units=units, keys=keys),
        made(None, float(dice.choice([1.0, 0.5])), units=(head, head + 1), other=head + 1, keys=keys),
    ]
    return kinds[int(dice.integers(len(kinds)))]


def changed(
    made: Any, units: tuple[int, int], size: int, dice: np.random.Generator, moves: bool
) -> changes.Edit:
    vectors = dice.normal(size=(2, units[1] - units[0])) / np.sqrt(units[1] - units[0])
    vector, read = vectors.astype(np.float32)
    rows = np.outer(np.sin(np.arange(200)), vector).astype(np.float32)
    half = (units[0], max(units[0] + 1, min(units[1], (units[0] + size) // 2)))
    kinds = [
        made(None, 0.6, 0.5, units=units),
        made(vector, 0.6, 0.0, units=units),
        made(rows.__getitem__, 1.0, 0.0, units=units),
        made(rows.__getitem__, 0.4, 0.6, units=units),
        made(vector, 0.6, units=units, read=read),
        made(None, float(dice.choice([1.0, 0.5])), units=half, other=half[1]),
        made(None, float(dice.choice([1.0, 0.5])), returns=True),
    ]
    fitting = 7 if made.keywords["what"] == "out" else 4 if moves else 6 if size > 1 else 5
    return kinds[int(dice.integers(fitting))]


@compiled
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_an_edit_of_everything_has_the_references_bits_and_changes_no_text_beside_it(name: str) -> None:
    of = config(name)
    engines: list[Any] = [engine(of, tensors(of)) for engine in (RuntimeEngine, ReferenceEngine)]
    made = edits_of_everything(of, len(name))
    read = []
    for engine in engines:
        state = engine.edited_state(made)
        read += [[engine.prefill(IDS[:131], state), *(engine.step(id, state) for id in IDS[131:134])]]
    assert all(np.array_equal(*pair) for pair in zip(*read, strict=True))
    ours, plain = engines[0], engines[0].new_state()
    edited, beside = ours.edited_state(made), ours.new_state()
    both = ours.read([IDS[:131], IDS[7:20]], [edited, beside], [130, 143])
    assert np.array_equal(both[0], read[0][0]) and np.array_equal(both[1], ours.prefill(IDS[7:20], plain))
    assert not np.array_equal(both[0], ours.logits(IDS[:131])[-1])
    both = ours.step_each([IDS[131], IDS[20]], [edited, beside])
    assert np.array_equal(both[0], read[0][1]) and np.array_equal(both[1], ours.step(IDS[20], plain))


@compiled
@pytest.mark.parametrize("name", ["llama", "odd", "gemma3", "qwen2-moe"])
def test_native_values_and_edits_have_the_references_bits(name: str) -> None:
    of = config(name)
    engines: list[Any] = [engine(of, tensors(of)) for engine in (RuntimeEngine, ReferenceEngine)]
    ours, theirs = (values.of_texts(engine, TEXTS, ["*"]) for engine in engines)
    assert list(ours) == list(theirs) == values.every(of)
    for value in ours:
        if value.endswith(("pattern", "scores", "chosen")):
            assert all(np.array_equal(*pair) for pair in zip(ours[value], theirs[value], strict=True)), value
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
@pytest.mark.parametrize("name", sorted(SHAPES.keys() - {"deepseek-v3.2"}))
def test_values_are_the_definitions_within_the_law(name: str) -> None:
    """Float weights round nothing but keys and values; a decoded token has the values that prefill gives."""
    of = config(name)
    entries = tensors(of)
    engine, model, ids = RuntimeEngine(of, entries), definition(of, entries).model, IDS[:40]
    ours = values.of_texts(engine, [ids], ["*", "logits"])
    theirs = {
        value: value.replace("attention.state", "attention.S")
        for value in ours
        if not value.endswith("expert_hidden")  # which its experts have apart: test_instrumented.py
    }
    with torch.no_grad(), tracing(model, *theirs.values(), edit=activation_quant.edits(of, entries)) as seen:
        model(torch.tensor([ids]), torch.arange(len(ids))[None])
    for value in theirs:
        rows, found = ours[value], seen[theirs[value]][0].numpy()
        if value.endswith("state"):  # what is left after the last token is what the PyTorch model shows
            assert np.abs(rows[-1] - found).max() < 4e-3 * np.abs(found).max(), value
            continue
        if value.endswith(("pattern", "scores", "chosen")):
            rows = np.stack([np.pad(row, ((0, 0), (0, len(ids) - row.shape[1]))) for row in rows])
            found = np.tril(found)
        ours_too = rows if rows.ndim == 2 else rows.swapaxes(0, 1)
        assert ours_too.shape == found.shape
        assert np.abs(ours_too - found).max() < 4e-3 * np.abs(found).max(), value
    state = engine.new_state()
    for at, id in enumerate(ids[:5]):
        logits, step = engine.observe([[id]], [state], list(ours), [0])
        assert all(np.array_equal(step[value][0], ours[value][at]) for value in ours), at
    assert np.array_equal(logits[0], engine.logits(ids[:5])[-1])


def test_what_the_runtime_does_not_show_is_refused_first() -> None:
    of = config("llama")
    engine = ReferenceEngine(of, tensors(of))
    state = engine.new_state()
    for name, why in {
        "blocks.1.mlp.up": 'the runtime does not show .*load with engine="pytorch"',
        "blocks.3.out": "there is no blocks.3.out: this model's layers are 0 to 2",
    }.items():
        with pytest.raises(UserError, match=why):
            engine.observe([[1]], [state], [name])
    assert state.length == 0


@compiled
def test_edited_attention_weights_are_shown_and_other_heads_keep_their_bits() -> None:
    of = config("llama")
    names = ["blocks.1.attention.pattern", "blocks.1.attention.z"]
    edit = changes.Edit(1, None, factor=0.0, what=values.PATTERN, units=(1, 2), positions=frozenset({5}))
    seen = []
    for engine in (RuntimeEngine(of, tensors(of)), ReferenceEngine(of, tensors(of))):
        for one in ((), [edit._replace(keys=frozenset({0, 3}), renormalises=True)]):
            seen.append(engine.observe([IDS[:9]], [engine.edited_state(one)], names)[1])
    plain, edited, _, theirs = seen
    for name in names:
        assert all(np.array_equal(*pair) for pair in zip(edited[name], theirs[name], strict=True)), name
    row, before = edited[names[0]][5][1], plain[names[0]][5][1]
    assert not row[[0, 3]].any() and before[[0, 3]].all()
    assert np.allclose(row[1:3] / before[1:3], 1 / (1 - before[[0, 3]].sum())) and abs(row.sum() - 1) < 1e-6
    for t in range(9):
        others = [head for head in range(len(plain[names[0]][t])) if (t, head) != (5, 1)]
        assert all(np.array_equal(edited[name][t][others], plain[name][t][others]) for name in names)
    assert not np.array_equal(edited[names[1]][5][1], plain[names[1]][5][1])


@compiled
@pytest.mark.parametrize(
    "name", ["norm", "logits", "blocks.0.attention.scores", "blocks.0.mlp.expert_indices"]
)
def test_what_is_shown_alone_is_not_edited(name: str) -> None:
    of = config("mixtral")
    with pytest.raises(UserError, match=f"the runtime shows {name} and does not edit it"):
        RuntimeEngine(of, tensors(of)).edited_state([changes.Edit(0, None, what=name.split(".", 2)[-1])])
    with pytest.raises(UserError, match=f"the runtime shows {name} and does not edit it; load with engine="):
        runtime_edits.check(of, Scale(name=name), 4)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file(tmp_path_factory.mktemp("model") / "tiny.gguf")


@compiled
def test_the_runtime_generates_with_edits_as_the_definition_does(file: Path) -> None:
    """In a generation, beside others in a server's batch, and refused before anything is read."""
    vector = np.random.default_rng(2).normal(size=32).tolist()
    edit = [Add(0, vector, strength=40.0), Project(1, vector), Add(2, vector, [0, -1], 60.0)]
    ours, theirs = (cutaway.load(file, engine=engine) for engine in ("runtime", "pytorch"))
    edited = [lm.generate("all of it", max_tokens=12, edit=edit).ids for lm in (ours, theirs)]
    assert edited[0] == edited[1] != ours.generate("all of it", max_tokens=12).ids
    for step in (1, 2, 3):
        later = Add(0, vector, strength=40.0, from_step=step)
        one, other = (lm.generate("all of it", max_tokens=8, edit=later).ids for lm in (ours, theirs))
        assert one == other, step
    scheduler, ids = Scheduler(ours.engine, ours.tokenizer), ours.ids("all of it")
    asked = [ours.edited_engine(edit, ids).hooks, None, ours.edited_engine(edit[:1], ids).hooks]
    params = ours.ending(SamplingParams(max_tokens=12))
    streams = [scheduler.submit(Request(tuple(ids), params, edit=one)) for one in asked]
    found = [finish(iter(stream)).ids for stream in streams]
    scheduler.close()
    alone = [ours.generate(ids, max_tokens=12, edit=one).ids for one in (edit, None, edit[:1])]
    assert found == alone
    with pytest.raises(UserError, match=r'the runtime cannot edit .* engine="pytorch" or "auto"'):
        ours.generate("all of it", edit={"blocks.0.out": lambda value: value})


OTHER = list(b"all of us, no less!")
EVERYWHERE: list[Any] = [
    Ablate(1),
    Ablate(0, positions=[0, -1]),
    Ablate(1, "head", 1),
    Ablate(2, "attention", strength=0.5),
    Ablate(0, "mlp", from_step=2),
    Scale(1, "mlp", strength=-1.5, positions=[1]),
    Scale(2, "head", 0, 3.0),
    Scale(name="blocks.1.mlp.hidden", units=[0, 1, 5, 47], strength=4.0),
    Scale(name="blocks.*.attention_norm", units=[2], strength=2.0),
    Ablate(name="blocks.1.hook_resid_mid", units=[3]),
    Ablate(name="blocks.2.attn.hook_v"),
    Add(name="blocks.1.attention.q", vector=[0.3] * 8, head=1),
    Add(name="blocks.0.attention.k_unrotated", vector=[0.5] * 8, units=[0, 7]),
    Add(name="embed", vector=[0.1] * 32, positions=[2]),
    Project(name="blocks.2.attention.z", vector=[1.0, *[0.5] * 7]),
    Project(name="blocks.1.mlp.down", vector=[1.0, *[-0.5] * 31], strength=0.5),
    Project(name="blocks.1.mlp.hidden", vector=[1.0, *[-0.5] * 47], units=[3, 40]),
    Ablate(1, strength=0.5),
    Ablate(0, strength=-1.0, positions=[1, -1]),
    Patch(0, OTHER),
    Patch(1, OTHER, "head", 2, positions=[3, -1], strength=0.5),
    Patch(name="blocks.1.attention.k", ids=OTHER, head=1, positions=[8], units=[0, -1]),
    Patch(name="blocks.1.mlp.hidden", ids=OTHER, positions=[8, -1], from_step=1),
    Ablate(1, "mlp", to="mean", reference=[OTHER, OTHER[:4]]),
    Ablate(2, "head", 0, to="resample", reference=[OTHER, OTHER[:4]], seed=5, strength=0.7),
    Swap(1, 0, 3),
    Swap(name="blocks.1.attention.v", head=0, other=1, units=[0, 5], strength=0.5),
    Swap(name="blocks.1.mlp.hidden", units=[0, 33], others=[40, 1], from_step=1),
    Swap(0, vectors=[[1.0, *[0.5] * 31], [0.5, -1.0, *[0.25, -0.5] * 15]]),
    Noise(0, strength=0.5, seed=3, positions=[0, 4, -1]),
    Noise(1, "head", 2, strength=0.5, from_step=1),
    Noise(name="blocks.*.mlp.hidden", units=[1, 5], seed=1),
    Ablate(name="blocks.1.attention.pattern", positions=[-1], keys=range(12)),
    Ablate(name="blocks.*.attention.pattern", keys=[0], renormalise=True),
    Scale(name="blocks.2.attention.pattern", head=0, strength=0.5, from_step=1),
    Patch(name="blocks.1.attn.hook_pattern", ids=OTHER, head=2, positions=[8, -1], strength=0.5),
    Patch(name="blocks.1.attention.pattern", ids=OTHER[:10], positions=[8, 9], keys=[1, 7], renormalise=True),
    Swap(name="blocks.0.attention.pattern", head=0, other=2, keys=[0, 5]),
    Add(name="blocks.1.attention.pattern", vector=[0.5, 0.2, -0.1], head=1, positions=[5, -1]),
    Add(name="blocks.2.attention.pattern", vector=[0.1] * 30, keys=[1, 2, 25], from_step=1, renormalise=True),
]


@compiled
@pytest.mark.parametrize("n", range(len(EVERYWHERE)))
def test_each_edit_is_the_definitions_within_the_law(file: Path, n: int) -> None:
    """Of a prompt and of decoded tokens; of a file of floats, keys and values alone are rounded."""
    ours, theirs = (cutaway.load(file, engine=engine) for engine in ("runtime", "pytorch"))
    ids = ours.ids("all of it, and more")
    logits = []
    for lm in (ours, theirs):
        edited = lm.edited_engine(EVERYWHERE[n], ids)
        engine, state = edited.engine, edited.new_state()
        logits += [np.stack([engine.prefill(ids, state), *(engine.step(id, state) for id in (5, 9, 2))])]
    plain = ours.engine.logits([*ids, 5, 9, 2])[-4:]
    assert np.abs(logits[0] - logits[1]).max() < 4e-3 * np.abs(logits[1]).max()
    assert np.abs(logits[0] - plain).max() > 1e-4 * np.abs(plain).max(), "the edit changes something"


KEPT = ["blocks.1.hook_resid_post", "blocks.*.attention.pattern", "blocks.2.mlp.hidden", "logits"]


@compiled
def test_a_generation_keeps_what_the_runtime_computed(file: Path) -> None:
    """To the bit what its own passes show, with edits, guesses, an end token, in a stream and in a batch."""
    lm = cutaway.load(file, engine="runtime")
    ids, params = lm.ids("all of it"), {"max_tokens": 9, "ignore_eos": True}
    vector = np.random.default_rng(2).normal(size=32).tolist()
    edits: Any = [None, [Add(0, vector, from_step=2, strength=20.0), Ablate(1, "head", 1, positions=[0, -1])]]
    made = []
    for edit in edits:
        edited = lm.edited_engine(edit or (), ids)
        state = edited.new_state()
        one = lm.generate(ids, keep=KEPT, edit=edit, **params)
        assert one.ids == lm.generate(ids, edit=edit, **params).ids and one.trace.engine.name == "runtime"
        assert one.trace.ids == (*ids, *one.ids[:-1])
        names = [name for name in one.trace if name != "logits"]
        seen = [edited.engine.observe([[id]], [state], [*names, "logits"], [0])[1] for id in one.trace.ids]
        for name in one.trace:
            rows, kept = [each[name][0] for each in seen], one.trace[name]
            if name.endswith("pattern"):
                assert all(np.array_equal(row, kept[:, t, : t + 1]) for t, row in enumerate(rows)), name
            else:
                assert np.array_equal(np.stack(rows), kept), name
        guessed = lm.generate(ids, keep=KEPT, edit=edit, speculate="lookup", **params)
        *_, last = lm.stream(ids, keep=KEPT, edit=edit, **params)
        for other in (guessed.trace, last.generation and last.generation.trace):
            assert all(np.array_equal(other[name], one.trace[name]) for name in one.trace)
        made.append(one)
    assert not np.array_equal(made[0].trace["logits"], made[1].trace["logits"])
    both = lm.generate_batch([ids, ids], keep=KEPT, edits=edits, **params)
    for one, other in zip(made, both, strict=True):
        assert all(np.array_equal(other.trace[name], one.trace[name]) for name in one.trace)
    ended = lm.generate(ids, keep=["embed"], max_tokens=9, stop_ids=[made[0].ids[2]])
    assert ended.trace.ids == (*ids, *ended.ids) and len(ended.ids) == 2
    with pytest.raises(UserError, match=r"does not show 'blocks\.0\.mlp\.up': load with engine=\"pytorch\""):
        lm.generate(ids, keep=["blocks.0.mlp.up"])
    other = cutaway.load(file)
    assert other.generate(ids, keep=["blocks.0.mlp.up"], **params).trace.engine.name == "pytorch"
    alone = other.generate_batch([ids], keep=["blocks.0.mlp.up"], **params)[0].trace
    assert alone["blocks.0.mlp.up"].shape == (len(ids) + 8, 48)


@pytest.mark.parametrize(("units", "runs"), [(None, [(0, 9)]), ((), []), ((3,), [(3, 4)])])
def test_units_are_edited_in_runs(units: Any, runs: list[tuple[int, int]]) -> None:
    assert runtime_edits._runs(Scale(0, "mlp", units=units), 9) == runs
    assert changes.runs((8, 0, 1, 2, 5, 1)) == [(0, 3), (5, 6), (8, 9)]


@compiled
def test_studies_of_a_packed_model_are_what_its_engine_computes(file: Path, tmp_path: Path) -> None:
    """Float weights, and weights of 8 bits whose inputs are rounded too."""
    eight = tmp_path / "eight.gguf"
    cutaway.load(file).save(eight, format="gguf", type="Q8_0")
    for path in (file, eight):
        lm = cutaway.load(path, engine="runtime")
        ids, other = lm.ids("all of it"), lm.ids("all of us")
        task = studies_parity.Task(ids, other, 40, 70, len(lm.tokenizer))
        differences = studies_parity.packed_differences(lm, task)
        assert max(differences.values()) < 2e-3, differences
        with pytest.raises(UserError, match=r'the runtime cannot edit .* engine="pytorch"'):
            lm.generate(ids, edit={"logits": lambda x: x})


# ---- datasets ----------------------------------------------------------------------------------------------

DOCUMENTS = ["the first of them", "", "a second one, longer than a context of eight " * 4, "third"]
NAMES = ["blocks.1.out", "blocks.0.attention.q"]


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("engine", ["runtime", "pytorch"])
def test_a_dataset_has_a_row_for_each_token(file: Path, tmp_path: Path, engine: Any) -> None:
    lm = cutaway.load(file, engine=engine)
    options: Any = {"context": 32, "shard_tokens": 50}
    data = lm.activations(DOCUMENTS, NAMES, tmp_path / "acts", **options)
    assert data.facts["engine"] == engine and list(data.names) == sorted(NAMES)
    assert len(data.shards) == 3 and data["blocks.0.attention.q"].shape == (len(data), 4, 8)
    pieces = [ids[at : at + 32] for ids in map(lm.ids, DOCUMENTS) for at in range(0, len(ids), 32)]
    assert data.token_ids.tolist() == [id for ids in pieces for id in ids]
    assert data.positions.tolist() == [at for ids in pieces for at in range(len(ids))]
    assert sorted(set(data.documents.tolist())) == [0, 2, 3]
    traced = [lm.trace(ids, names=NAMES) for ids in pieces]
    for name in NAMES:
        values = [trace[name] if trace[name].ndim == 2 else trace[name].swapaxes(0, 1) for trace in traced]
        wanted = np.concatenate(values)
        assert np.abs(data[name] - wanted).max() < 4e-3 * np.abs(wanted).max()
    with safe_open(tmp_path / "acts" / "00001.safetensors", framework="pt") as theirs:
        assert theirs.get_tensor("blocks.1.out").dtype == torch.float16
        assert np.array_equal(theirs.get_tensor("positions").numpy(), data.shards[1]["positions"])
    memory = lm.activations(DOCUMENTS, NAMES, dtype="bfloat16", **options)
    assert memory.shards[0]["blocks.1.out"].dtype == np.uint16
    assert np.allclose(memory["blocks.1.out"], data["blocks.1.out"], rtol=1e-2, atol=1e-3)
    assert np.array_equal(data.sinks("blocks.1.out"), data.positions == 0)
    every = {"keep_sinks": True}
    rows = np.concatenate(list(data.batches("blocks.1.out", 16, epochs=2, **every)))
    assert rows.shape == (2 * (len(data) // 16) * 16, 32)
    assert not np.array_equal(*np.split(rows, 2)), "each epoch has an order of its own"
    for options, kept in (({}, data.positions > 0), (every, data.positions >= 0)):
        whole = np.sort(np.concatenate(list(data.batches("blocks.1.out", 1, **options)))[:, 0])
        assert np.array_equal(whole, np.sort(data["blocks.1.out"][kept, 0]))


def test_a_stopped_job_ends_in_the_same_files(file: Path, tmp_path: Path) -> None:
    lm = cutaway.load(file, engine="pytorch")
    options: Any = {"context": 32, "shard_tokens": 50, "max_tokens": 170}
    lm.activations(DOCUMENTS, NAMES, tmp_path / "whole", **options)
    whole = folder_bytes(tmp_path / "whole")
    assert len(whole) == 4 and len(activations.Activations.open(tmp_path / "whole")) == 170

    def stop(_doing: str, done: int, _total: int | None) -> None:
        if done > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lm.activations(DOCUMENTS, NAMES, tmp_path / "stopped", progress=stop, **options)
    with pytest.raises(UserError, match="not complete"):
        activations.Activations.open(tmp_path / "stopped")
    with pytest.raises(UserError, match="of other texts"):
        lm.activations(DOCUMENTS[::-1], NAMES, tmp_path / "stopped", **options)
    with pytest.raises(UserError, match="was begun with context 32, and 16 is asked for"):
        lm.activations(DOCUMENTS, NAMES, tmp_path / "stopped", **(options | {"context": 16}))
    first = tmp_path / "stopped" / "00000.safetensors"
    written = first.stat().st_mtime_ns
    lm.activations(DOCUMENTS, NAMES, tmp_path / "stopped", **options)
    assert folder_bytes(tmp_path / "stopped") == whole and first.stat().st_mtime_ns == written
    again = lm.activations(["another"], ["embed"], tmp_path / "stopped", force=True)
    assert len(again) == len(lm.ids("another")) and len(folder_bytes(tmp_path / "stopped")) == 2


def test_names_choose_the_engine_or_are_refused(file: Path, tmp_path: Path) -> None:
    lm = cutaway.load(file)
    assert lm.activations(["abc"], ["blocks.1.mlp.hidden"])["blocks.1.mlp.hidden"].shape == (3, 48)
    found = lm.activations(["abc"], ["*.mlp.hidden"])
    assert found.facts["engine"] == lm.engine_choice[0]
    assert found.facts["mlp_inputs"] == [f"blocks.{n}.mlp_norm" for n in range(len(lm.config.blocks))]
    assert lm.activations(["abc"], ["*.mlp.gate"]).facts["engine"] == "pytorch"
    asked = ["blocks.1.hook_resid_post", "blocks.*.attn.hook_z", "blocks.0.hook_resid_pre"]
    theirs = lm.activations(["abc"], asked)
    assert theirs.facts["engine"] == lm.engine_choice[0]
    assert set(theirs.names) == {"blocks.1.out", "embed", *(f"blocks.{i}.attention.z" for i in range(3))}
    unrotated = lm.activations(["abc"], ["blocks.1.attn.hook_k"])
    trace = lm.trace("abc", names=["blocks.1.attention.k_unrotated"])
    assert unrotated.facts["engine"] == lm.engine_choice[0]
    (name,), keys = unrotated.names, trace["blocks.1.attention.k_unrotated"]
    assert np.allclose(unrotated[name][:, 0], keys[0], rtol=1e-2, atol=1e-2)
    with pytest.raises(UserError, match=r"a batch of 4 rows: this dataset has 3 tokens$"):
        next(theirs.batches("embed", 4, keep_sinks=True))
    with pytest.raises(UserError, match="square of a text"):
        lm.activations(["abc"], ["blocks.1.attention.pattern"])
    with pytest.raises(UserError, match="write \\[text\\]"):
        lm.activations("abc", ["embed"])
    whole = tmp_path / "whole"
    lm.activations(["abc"], ["embed"], whole)
    before = folder_bytes(whole)
    for folder, force in ((None, False), (tmp_path / "none", False), (whole, True)):
        with pytest.raises(UserError, match="have no tokens"):
            lm.activations([""], ["embed"], folder, max_tokens=9, force=force)
    with pytest.raises(UserError, match="nothing is named"):
        lm.activations(["abc"], ["blocks.9.out"], tmp_path / "none")
    assert not (tmp_path / "none").exists() and folder_bytes(whole) == before


@compiled
def test_the_command_writes_a_dataset(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = tmp_path / "texts.jsonl"
    lines.write_text('{"text": "one text"}\n{"text": "and another"}\n')
    line = [str(lines), "--names", "blocks.*.out", "--output", str(tmp_path / "acts"), "--model", str(file)]
    assert cli.main(["activations", *line]) == 0
    out, err = capsys.readouterr()
    names = ", ".join(f"blocks.{n}.{what}" for n in range(3) for what in ("attention.out", "out"))
    assert f"tokens of {names} in 1 shard" in " ".join(out.split())  # a star is any text, dots too
    err = " ".join(err.split())
    assert "read by the runtime" in err and "each of 6 activations: 2 tokens are attention sinks" in err
    assert err.count("attention sink") == 1
    data = activations.Activations.open(tmp_path / "acts")
    ids = [cutaway.load(file).ids(text) for text in ("one text", "and another")]
    assert np.array_equal(data.token_ids, np.concatenate(ids))
    index = tmp_path / "acts" / "dataset.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"mlp_inputs": 3}))
    with pytest.raises(UserError, match="mlp_inputs is no list"):
        activations.Activations.open(tmp_path / "acts")


@compiled
@pytest.mark.parametrize("name", ["llama", "mamba2"])
def test_an_edited_text_shares_pages_up_to_where_its_edits_begin(name: str) -> None:
    """With texts that have other edits or none, before and after it; to the bit what it gives alone."""
    of = replace(config(name), context=2048)
    engine = RuntimeEngine(of, tensors(of))
    page, ids = engine.page, (IDS * 8)[: 3 * engine.page + 5]
    early, late = (
        [changes.Edit(1, VECTOR, 2.0, positions=frozenset({at, 3 * page + 1}))] for at in (page - 1, 2 * page)
    )
    never = [changes.Edit(1, VECTOR, 2.0, positions=frozenset())]
    assert [engine.edits_begin(one) for one in (early, late, [*late, *early])] == [
        page - 1,
        2 * page,
        page - 1,
    ]
    assert engine.edits_begin([early[0]._replace(first=page + 1)]) == page + 1, "from_step after a position"
    alone = [engine.prefill(ids, engine.edited_state(one)) for one in ((), early, late)]
    assert not np.array_equal(alone[0], alone[1]) and not np.array_equal(alone[0], alone[2])
    kept = []
    state = engine.edited_state(late)
    for n in range(2):
        engine.prefill(ids[n * page : (n + 1) * page], state)
        kept.append(engine.keep(state, n))
    for edits, logits in ((), alone[0]), (late, alone[2]), (never, alone[0]):
        shared = engine.edited_state(edits, kept)
        assert shared.length == 2 * page and np.array_equal(engine.prefill(ids[2 * page :], shared), logits)


@compiled
def test_the_scheduler_shares_an_edited_texts_pages(file: Path) -> None:
    lm = cutaway.load(file, engine="runtime")
    ids, away = [*range(3, 140), *range(3, 180)], np.random.default_rng(3).normal(size=(2, 32)).tolist()
    edit = Add(1, away[0], positions=range(200, 314), strength=30.0)
    other = Add(0, away[1], positions=range(100, 314), strength=30.0)
    params = lm.ending(SamplingParams(max_tokens=4, ignore_eos=True))
    alone = [lm.generate(ids, max_tokens=4, ignore_eos=True, edit=one).logprobs for one in (edit, other, ())]
    assert len(set(map(str, alone))) == 3
    scheduler = Scheduler(lm.engine, lm.tokenizer)
    cached = []
    for one, wanted in zip((edit, other, None, edit), (*alone, alone[0]), strict=True):
        hooks = None if one is None else lm.edited_engine(one, ids).hooks
        found = finish(iter(scheduler.submit(Request(tuple(ids), params, edit=hooks))))
        assert found.logprobs == wanted
        cached.append(len(ids) - found.timings.prefill_tokens)
    scheduler.close()
    assert cached == [0, 0, 128, 128], "pages up to position 200 are any text's, up to 100 none"
