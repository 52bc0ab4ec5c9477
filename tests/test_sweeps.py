"""Sweeps: cells that share steps have the bits of being read alone; both engines give the same numbers."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway import native
from cutaway.errors import UserError
from cutaway.inspect import patching, sae, sweep_runtime
from cutaway.inspect.edits import Ablate, Add, Scale
from cutaway.inspect.instrumented_runtime import InstrumentedRuntime
from cutaway.inspect.pairs import pairs
from cutaway.inspect.result import Result, student
from cutaway.inspect.subject import Subject
from cutaway.inspect.sweep import WholeTexts, sweep_of
from cutaway.inspect.sweep_cells import Cell, Setting
from cutaway.runtime.engine import RuntimeEngine
from cutaway.runtime.reference import ReferenceEngine
from cutaway.runtime.values import HEADS, NORMS, UNROTATED
from tests.small import model_file
from tests.test_instrumented import by_pytorch, subject, within_noise
from tests.test_runtime import IDS, config, tensors, wide
from tests.test_runtime_adapters import changed, low_rank

compiled = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built"
)
TEXT, OTHER = IDS[:12], [*IDS[:3], *IDS[50:53], *IDS[6:9], *IDS[70:73]]
LATER = [*IDS[:10], *IDS[80:82]]  # differs at the end alone
ANSWERS = (7, 9)
EDITED = {"middle", "out", *NORMS, *HEADS, *UNROTATED, "attention.out", "mlp.hidden", "mlp.down", "mlp.out"}
EDITED |= {"attention.out_input", "attention.gate", "attention.latent", "attention.pattern"}
HEADED = ("attention.q", "attention.k", "attention.v", "attention.z", "attention.out_input", "pattern")


def cells(engine: Any, texts: Sequence[list[int]], count: int, seed: int = 0) -> list[Cell]:
    """Settings of random values, layers, heads and positions of texts, some two in a cell."""
    draw = np.random.default_rng(seed)
    names = [name for name in engine.shapes() if name.partition(".")[2].partition(".")[2] in EDITED]
    names = [name for name in names if engine.unsupported_reason((), [Scale(name=name)], ()) is None]
    found = []
    for _ in range(count):
        text = int(draw.integers(len(texts)))
        settings = []
        for _ in range(1 + int(draw.integers(2))):
            name = names[draw.integers(len(names))]
            shape = list(engine.shapes()[name])
            at = sorted(set(draw.integers(len(texts[text]), size=2).tolist()))
            head = int(draw.integers(shape[0])) if name.endswith(HEADED) and draw.integers(2) else None
            shape[-2] = len(at)
            if name.endswith("pattern"):
                shape[-1] = len(texts[text])
            rows = draw.standard_normal(shape).astype(np.float32)
            settings.append(Setting(name, rows if head is None else rows[head], at, head))
        found.append(Cell(text, settings))
    return found


def read(sweep: Any, of: Sequence[Cell], *asked: Any) -> list[Any]:
    found: list[Any] = [None] * len(of)
    for batch in sweep.batches(of):
        for i, seen in sweep.run([of[n] for n in batch], *asked):
            found[batch[i]] = seen
    return found


SHAPES = [
    "llama",
    "gpt2",
    "gemma3",
    "phi3",
    "gemma4",
    "e2b",
    "deepseek-v3.2",
    "falcon-h1",
    "diffllama",
    "qwen2-moe",
    "qwen3-next",
]


@compiled
@pytest.mark.parametrize("name", SHAPES)
def test_cells_have_the_bits_of_being_read_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of texts of other lengths in one step, edited or not; with a page of keys before what changes."""
    engine, texts = subject(name).engine, [TEXT, IDS[20:29], IDS[:133]]
    edit = (Ablate(1, "mlp", positions=[2]), Add(0, [0.1] * 50, [1])) if name in ("llama", "gemma3") else ()
    some = cells(engine, texts, 10)
    fast, whole = sweep_of(engine, texts, edit), WholeTexts(engine, texts, edit)
    assert type(fast) is not type(whole)
    for position, tokens in ((-1, None), (6, [3, 100, 40]), (None, None)):
        ours, theirs = (read(of, some, ("blocks.1.out",), position, tokens) for of in (fast, whole))
        for one, other in zip(ours, theirs, strict=True):
            assert np.array_equal(one.logits, other.logits)
            assert np.array_equal(one.values["blocks.1.out"], other.values["blocks.1.out"])
    assert len({one.logits.tobytes() for one in ours}) == len(some), "each cell has an effect of its own"
    monkeypatch.setattr(sweep_runtime, "CALL", 4)  # calls of one cell, and a long one in pieces
    for one, other in zip(read(fast, some[:5], ("blocks.1.out",)), theirs, strict=False):
        assert np.array_equal(one.logits, other.logits)
        assert np.array_equal(one.values["blocks.1.out"], other.values["blocks.1.out"])


@compiled
def test_an_adapter_beside_the_weights_is_in_every_cell() -> None:
    of = config("llama")
    entries, adapter = tensors(of), low_rank(of)
    plain = RuntimeEngine(of, entries)
    engine = InstrumentedRuntime(plain.adapted(adapter), changed(of, entries, adapter))
    some = cells(engine, [TEXT], 5)
    for one, other in zip(
        read(sweep_of(engine, [TEXT]), some), read(WholeTexts(engine, [TEXT]), some), strict=True
    ):
        assert np.array_equal(one.logits, other.logits)


@compiled
@pytest.mark.parametrize("type", ["Q4_0", "Q4_K", "BF16"])
def test_a_part_of_a_packed_head_has_the_bits_of_the_whole(type: str) -> None:
    of, entries = wide(type)
    engine = InstrumentedRuntime(RuntimeEngine(of, entries), entries)
    some = cells(engine, [TEXT], 6)
    fast, whole = sweep_of(engine, [TEXT]), WholeTexts(engine, [TEXT])
    for one, other in zip(read(fast, some, (), -1, [100, 3]), read(whole, some, (), -1), strict=True):
        assert np.array_equal(one.logits, other.logits[[100, 3]])


def test_the_reference_reads_cells_whole() -> None:
    of = config("gpt2")
    entries = tensors(of)
    slow = sweep_of(engine := InstrumentedRuntime(ReferenceEngine(of, entries), entries), [TEXT])
    some = cells(engine, [TEXT], 4)
    assert isinstance(slow, WholeTexts)
    if native.unavailable_reason() is None:
        fast = sweep_of(InstrumentedRuntime(RuntimeEngine(of, entries), entries), [TEXT])
        for one, other in zip(read(slow, some, (), -1), read(fast, some, (), -1), strict=True):
            assert np.array_equal(one.logits, other.logits)


def studies(of: Subject, over: Sequence[patching.Over]) -> np.ndarray:
    """Studies of some parts as one vector; of all of them, every study."""
    text, other = TEXT[:6], OTHER[:6]
    found = [
        patching.patching(of, text, other, one, answers=ANSWERS, positions=[3, -1], layers=[1]).values
        for one in over
    ]
    if over == patching.OVERS:
        for receivers in ([], [("blocks.2.attention.q", 1)]):
            paths = patching.path_patching(of, text, other, receivers, answers=ANSWERS, layers=[1])
            found.append(paths.values)
        found.append(patching.head_effects(of, text, 7).values)
        found.append(patching.causal_tracing(of, text, [2, 3], 7, seed=1, layers=[1]).values)
    return np.nan_to_num(np.concatenate([one.ravel() for one in found]))


@compiled
@pytest.mark.parametrize(
    ("name", "over"),
    [
        ("llama", patching.OVERS),
        ("gpt2", ("q", "pattern", "mlp")),
        ("gemma3", ("k", "pattern", "residual")),
        ("diffllama", ("z", "pattern")),
        ("qwen2-moe", ("v", "mlp")),
        ("deepseek-v3", ("z", "attention")),
    ],
)
def test_both_engines_give_one_studys_numbers(name: str, over: Sequence[patching.Over]) -> None:
    of = subject(name)
    within_noise(of, lambda some: studies(some, over), 16, 6)  # effects are differences of two readings


def test_lists_of_pairs_are_each_pairs_study() -> None:
    of = subject("llama") if native.unavailable_reason() is None else by_pytorch(subject("llama"))
    texts, others = [TEXT, IDS[40:52]], [OTHER, [*IDS[40:51], 5]]
    both = patching.patching(of, texts, others, "z", answers=[ANSWERS, (3, 8)], positions=range(12))
    assert both.values.shape == (2, 3, 12, 6) and list(both.axes) == ["pair", "layer", "position", "head"]
    for n, answers in enumerate((ANSWERS, (3, 8))):
        alone = patching.patching(of, texts[n], others[n], "z", answers=answers, positions=range(12))
        assert np.array_equal(alone.values, both[n])
    paths = patching.path_patching(of, texts, others, answers=ANSWERS)
    assert np.array_equal(paths[1], patching.path_patching(of, texts[1], others[1], answers=ANSWERS).values)
    mean = both.mean()
    assert mean.facts["pairs"] == 2 and "±" not in (shown := repr(mean.show())) and "pairs 2" in shown
    assert mean.values == pytest.approx(both.values.mean(0)) and np.isnan(np.asarray(mean.margin)).all()
    longer = patching.patching(of, [TEXT, IDS[:9]], [OTHER, [*IDS[:8], 5]], "heads", answers=ANSWERS)
    assert longer.values.shape == (2, 3, 6)
    for given, options, why in (
        (([TEXT, IDS[:9]], [OTHER, [*IDS[:8], 5]]), {}, "no positions in common"),
        (([TEXT], OTHER), {}, "or two lists of texts"),
        (([TEXT], [OTHER, OTHER]), {}, "these are 1 and 2"),
        ((texts, others), {"answers": [ANSWERS] * 3}, "answers are of 3 pairs, and there are 2"),
    ):
        with pytest.raises(UserError, match=why):
            patching.patching(of, *given, **options)


@compiled
def test_what_a_patch_cannot_move_is_not_read() -> None:
    """Before the first difference both texts have the same activations, to the bit."""
    of = subject("llama")
    found = patching.patching(of, TEXT, LATER, "z", answers=ANSWERS, positions=range(12))
    assert not found[:, :10].any() and np.abs(found[:-1, 10:]).min() > 0
    seen = []
    patching.patching(
        of, TEXT, LATER, "z", answers=ANSWERS, positions=range(12), progress=lambda *at: seen.append(at[1:])
    )
    assert seen[-1] == (2 * 3 * 6, 2 * 3 * 6)


@compiled
def test_causal_tracing_restores_what_noise_took() -> None:
    of = subject("llama")
    found = patching.causal_tracing(of, TEXT, [2, 3], 7, seed=1, positions=range(12))
    assert found.values.shape == (3, 12) and found.facts["there"] != found.facts["here"]
    assert found[0, :2] == pytest.approx(0) and found[-1, -1] == pytest.approx(1)
    again = patching.causal_tracing(of, TEXT, [2, 3], 7, seed=1, positions=range(12))
    assert np.array_equal(found.values, again.values)
    assert not np.array_equal(found.values, patching.causal_tracing(of, TEXT, [2, 3], 7, seed=2).values)
    with pytest.raises(UserError, match="no position 12"):
        patching.causal_tracing(of, TEXT, [12], 7)


def test_half_an_interval_is_students() -> None:
    assert student(1) == 12.706 and student(10) == 2.228
    assert student(19) == pytest.approx(2.0930, abs=1e-3) and student(1000) == pytest.approx(1.9623, abs=1e-3)
    values = np.array([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]])
    made = Result(values, {"pair": range(3), "layer": range(2)}, "a study")
    assert made.mean().margin == pytest.approx([4.303 * 2 / 3**0.5, 0])
    assert "3.00 ±4.97" in repr(made.mean().show()) and "pairs 3" in repr(made.mean().show())
    assert np.isnan(np.asarray(made.mean("layer").margin)).all(), "two values bound nothing"
    with pytest.raises(UserError, match="no axis 'head'"):
        made.mean("head")


def test_pairs_read_the_logits_that_their_metric_reads() -> None:
    of = by_pytorch(subject("llama"))
    by_answers = patching.patching(of, TEXT, OTHER, "z", answers=ANSWERS, layers=[1])
    by_function = patching.patching(
        of, TEXT, OTHER, "z", metric=lambda logits: logits[-1, 9] - logits[-1, 7], layers=[1]
    )
    assert by_function.values == pytest.approx(by_answers.values, abs=1e-5)
    assert pairs(of, TEXT, OTHER, ANSWERS, None).tokens == [7, 9]


ALONE = """
import sys
sys.modules["torch"] = None
import cutaway
from cutaway.errors import UserError
from cutaway.inspect import against, patching, importance, parallel, probes, sae, sae_folders, sae_training
from cutaway.inspect import steering, tuned_lens
lm = cutaway.load(sys.argv[1])
texts, others = ["the cat sat", "the dog ran"], ["the hat sat", "the dog sat"]
found = patching.patching(lm, texts, others, "heads", metric=lambda logits: logits[-1, 5] - logits[-1, 9])
assert found.values.shape == (2, 3, 4), found.values.shape
assert patching.head_effects(lm, texts[0], 5).values.any()
assert importance.runs(lm.subject.engine) and importance.sums(lm.subject.engine, lm.ids(texts[0]))
steering.difference(lm, [lm.ids(texts[0])], [lm.ids(texts[1])], 1)
saved = sae_folders.load(sys.argv[2])
rows = saved.rows(lm.activations([texts[0]], saved.reads))
assert saved.top(rows)[-1] and lm.logits(texts[0], edit=saved.add(saved.top(rows)[-1][0].feature, 9.0)).any()
machine = parallel.machine(lm, 1, 0.01)
assert machine.flops > 0, machine
for training in (
    lambda: tuned_lens.train(lm, texts),
    lambda: sae_training.train(lm.activations(texts, ["blocks.1.out"]), "blocks.1.out", features=8, k=2),
):
    try:
        training()
    except UserError as error:
        print(error)
"""


@compiled
def test_studies_of_the_runtime_need_no_torch(tmp_path: Path) -> None:
    path, features = model_file(tmp_path / "small.gguf"), tmp_path / "features"
    drawn = np.random.default_rng(0).normal(size=(2, 8, 32)).astype(np.float32)
    tensors = {"W_enc": drawn[0], "b_enc": np.zeros(8, np.float32), "W_dec": drawn[1]}
    names = ("blocks.1.out",)
    card = sae.Card("sae", "topk", names, names, (32, 32), "small", 8, 2)
    sae.SAE(card, tensors | {"b_dec": np.zeros(32, np.float32)}).save(features)
    command = [sys.executable, "-c", ALONE, path, features]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "training a lens needs PyTorch, which is not installed: pip install" in ran.stdout
    assert "training a sparse autoencoder needs PyTorch, which is not installed: pip install" in ran.stdout
