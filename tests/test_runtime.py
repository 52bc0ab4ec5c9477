"""The runtime: its panels and products against their twins to the bit, its reading against the definition's.

Logits are held to two laws. Against the definition whose matrices see the same 8-bit vectors they agree
closely; against the plain definition, by what rounding vectors to 8 bits costs."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cutaway import gguf, native
from cutaway.attention import gqa, local, mha, mqa
from cutaway.errors import UserError
from cutaway.gguf import TYPES, Packed
from cutaway.layers.config import MLP, MoE, Norm
from cutaway.model.config import Block, Decoder
from cutaway.native import library
from cutaway.native import runtime as door
from cutaway.position import alibi, rope
from cutaway.runtime import matmul, packing, panels
from cutaway.runtime.engine import RuntimeEngine
from cutaway.runtime.reference import ReferenceEngine
from cutaway.weights import quant
from cutaway.weights.rules import ROUTERS, Tensors
from tests.test_native import python

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=native.why_not() or "built")


def weights(type: str, rows: int, columns: int, seed: int = 0) -> Packed:
    """Random packed weights whose deviation is columns^-0.5: any bits for the quants, random scales."""
    generator = np.random.default_rng(seed)
    layout = TYPES[type]
    if layout.block == 1:
        return quant.pack((generator.normal(size=(rows, columns)) * columns**-0.5).astype(np.float32), type)
    data = generator.integers(0, 256, (rows, columns // layout.block, layout.bytes), dtype=np.uint8)
    halves = generator.normal(size=(*data.shape[:2], 2))
    for factor in (1.0, None):
        if factor is None:
            factor = (
                columns**-0.5
                / quant.unpack_reference(Packed(type, (rows, columns), data.reshape(rows, -1))).std()
            )
        for n, at in enumerate(halves_at(type)):
            data[..., at : at + 2] = (halves[..., n, None] * factor).astype(np.float16).view(np.uint8)
    return Packed(type, (rows, columns), data.reshape(rows, -1))


def halves_at(type: str) -> tuple[int, ...]:
    """Where a block's scale lies, and its least where it has one."""
    return (208,) if type == "Q6_K" else (0, 2) if type in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else (0,)


def laid(packed: Packed) -> np.ndarray:
    rows, columns = packed.shape
    out = np.empty(door.packed_bytes(packed.type, rows, columns), np.uint8)
    door.pack(packed.type, rows, columns, packed.data, out)
    return out


def sizes(type: str) -> list[tuple[int, int]]:
    block = TYPES[type].block
    return (
        [(16, 256), (37, 768)]
        if block == 256
        else [(16, 32), (37, 96)]
        if block == 32
        else [(16, 32), (37, 75)]
    )


@pytest.mark.parametrize("type", door.TYPES)
def test_panels_are_the_same_bytes(type: str):
    for rows, columns in sizes(type):
        packed = weights(type, rows, columns)
        assert np.array_equal(laid(packed), panels.pack_reference(packed))


def in_order(packed: Packed, x: np.ndarray) -> np.ndarray:
    """W x of bfloat16 as the kernels add it: every other pair of columns apart, of each the odd one first."""
    columns = x.shape[1]
    products = matmul.rounded(x, "BF16")[:, None] * quant.unpack_reference(
        packed
    )  # exact: 8 bits times 8 bits
    sums = np.zeros((2, len(x), packed.shape[0]), np.float32)
    for at in range(0, columns, 2):
        for column in (at + 1, at):
            if column < columns:
                sums[at // 2 % 2] += products[..., column]
    return sums[0] + sums[1]


# Products of every type and number of vectors in a fresh process, where the environment chooses the kernel.
PRODUCTS = """
import sys
import numpy as np
from cutaway import gguf, native
from cutaway.native import runtime as door
from cutaway.runtime import matmul
from tests.test_runtime import in_order, laid, sizes, weights

assert native.available() and native.isa() == sys.argv[1], native.isa()
for type in door.TYPES:
    for rows, columns in sizes(type):
        packed = weights(type, rows, columns)
        x = np.random.default_rng(1).normal(size=(7, columns)).astype(np.float32)
        x[2] = 0
        x[3, : columns // 2] = 0
        ours, twin = door.multiply(type, rows, columns, laid(packed), x), matmul.product(packed, x)
        if type in matmul.FLOATS:
            assert np.allclose(ours, twin, rtol=1e-5, atol=1e-5 * np.abs(twin).max()), type
        elif type == "BF16":
            assert np.allclose(ours, twin, rtol=1e-5, atol=1e-5 * np.abs(twin).max())
            assert np.array_equal(ours, in_order(packed, x))
        else:
            assert np.array_equal(ours, twin), (type, rows, columns, np.abs(ours - twin).max())
        for n in range(1, 7):
            assert np.array_equal(door.multiply(type, rows, columns, laid(packed), x[:n]), ours[:n]), (type,
            n)
print("same bits")
"""


@pytest.mark.parametrize("isa", library.SETS)
def test_each_instruction_set_gives_the_twins_products(isa: str):
    run = python(PRODUCTS, isa, CUTAWAY_ISA=isa)
    if "the best that this processor has" in run.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert run.stdout == "same bits\n", run.stderr


def test_the_largest_numbers_do_not_overflow():
    """All quants at their extremes: 16-bit sums are at their limit."""
    for type in door.TYPES[3:]:
        layout = TYPES[type]
        for byte in (0xFF, 0x80, 0x7F, 0x00):
            data = np.full((16, layout.bytes), byte, np.uint8)
            for at in halves_at(type):
                data[:, at : at + 2] = np.array([1.0], np.float16).view(np.uint8)
            packed = Packed(type, (16, layout.block), data)
            for sign in (1.0, -1.0):
                x = np.full((1, layout.block), sign, np.float32)
                assert np.array_equal(
                    door.multiply(type, 16, layout.block, laid(packed), x), matmul.product(packed, x)
                ), (type, byte)


def test_the_twin_is_the_definitions_product_of_rounded_vectors():
    x = np.random.default_rng(2).normal(size=(3, 256)).astype(np.float32)
    for type in door.TYPES[3:]:
        packed = weights(type, 16, 256)
        exact = (
            matmul.rounded(x, type).astype(np.float64) @ quant.unpack_reference(packed).astype(np.float64).T
        )
        assert np.allclose(matmul.product(packed, x), exact, rtol=1e-4, atol=1e-4 * np.abs(exact).max()), type


# ---- whole models ------------------------------------------------------------------------------------------

ROPE = rope.Config(24)
SHAPES = {
    "llama": {"attention": gqa.Config(heads=6, kv_heads=2, key_size=24, position=ROPE)},
    "odd": {
        "attention": mha.Config(heads=3, key_size=10, value_size=7, position=rope.Config(6, interleaved=True))
    },
    "qwen2": {"attention": mqa.Config(heads=5, key_size=24, position=ROPE, bias=True, out_bias=True)},
    "qwen3": {"attention": gqa.Config(heads=4, kv_heads=2, key_size=24, position=ROPE, qk_norm=Norm())},
    "gemma3": {
        "attention": local.Config(
            heads=4, kv_heads=1, key_size=24, position=ROPE, qk_norm=Norm(), window=20, softcap=5.0, scale=0.3
        ),
        "activation": "gelu_tanh",
        "post_norm": True,
    },
    "plain": {
        "attention": mha.Config(heads=2, key_size=16),
        "activation": "gelu",
        "gated": False,
        "bias": True,
    },
}


SHAPES["mixtral"] = {"attention": SHAPES["llama"]["attention"], "mlp": MoE(5, 2, 40)}
SHAPES["qwen2-moe"] = {
    "attention": SHAPES["qwen2"]["attention"],
    "mlp": MoE(17, 6, 24, normalised=False, shared=72, shared_gate=True),
}
SHAPES["deepseek"] = {
    "attention": SHAPES["qwen3"]["attention"],
    "mlp": MoE(6, 1, 33, "relu", gated=False, shared=20),
    "post_norm": True,
}


def config(name: str) -> Decoder:
    shape = dict(SHAPES[name])
    attention, post_norm = shape.pop("attention"), shape.pop("post_norm", False)
    block = Block(attention, shape.pop("mlp", None) or MLP(72, **shape), Norm(), post_norm)
    other = Block(SHAPES["llama"]["attention"], MLP(72), Norm())
    tied = name not in ("odd", "qwen2")
    softcap = 6.0 if name == "gemma3" else None
    scale = 2.5 if name == "gemma3" else 1.0
    return Decoder(101, 50, 400, (block, other, block), tied=tied, softcap=softcap, embedding_scale=scale)


def tensors(of: Decoder, type: str = "F32", seed: int = 0) -> Tensors:
    """Random weights, every one of them perturbed."""
    generator = np.random.default_rng(seed)
    entries = {}
    for name, shape in of.weights().items():
        size = shape[-1] ** -0.5 if len(shape) == 2 else 0.2
        values = generator.normal(size=shape).astype(np.float32) * size + (1.0 if "norm" in name else 0.0)
        entries[name] = quant.pack(values.astype(np.float32), type if len(shape) == 2 else "F32")
    return Tensors(entries)


def definition(of: Decoder, entries: Tensors):
    from cutaway.model.engine import DefinitionEngine
    from cutaway.weights.build import decoder
    from cutaway.weights.load import Checkpoint

    return DefinitionEngine(decoder(Checkpoint(of, entries, None, Path("tiny"))))


IDS = np.random.default_rng(3).integers(0, 101, 300).tolist()


@pytest.mark.parametrize("name", SHAPES)
def test_float_weights_give_the_definitions_logits(name: str):
    """The only difference is that keys and values are kept as halves: 5e-4 of each."""
    of = config(name)
    entries = tensors(of)
    expected = definition(of, entries).logits(IDS)
    ours = RuntimeEngine(of, entries).logits(IDS)
    assert np.abs(ours - expected).max() < 4e-3 * np.abs(expected).max()


@pytest.mark.parametrize("name", SHAPES)
def test_how_a_text_is_cut_changes_nothing(name: str):
    """The same bits: at once, in chunks, a token at a time, beside other texts, on any number of threads."""
    of = config(name)
    entries = tensors(of)
    engine = RuntimeEngine(of, entries)
    whole = engine.logits(IDS)
    state = engine.new_state()
    start = 0
    for length in (1, 5, 127, 2, 100, 64, 1):
        last = engine.prefill(IDS[start : start + length], state)
        start += length
        assert np.array_equal(last, whole[start - 1]), start
    one, two = engine.new_state(), engine.new_state()
    engine.prefill(IDS[:130], one)
    engine.prefill(IDS[:7], two)
    both = engine.step_each([IDS[130], IDS[7]], [one, two])
    assert np.array_equal(both, whole[[130, 7]])
    for threads in (1, 3):
        assert np.array_equal(RuntimeEngine(of, entries, threads).logits(IDS), whole)


@pytest.mark.parametrize("name", SHAPES)
def test_the_step_is_its_twin(name: str):
    """Float weights: nothing lies on an edge but keys and values, whose last bit may fall either way."""
    of = config(name)
    entries = tensors(of)
    ours, twin = RuntimeEngine(of, entries), ReferenceEngine(of, entries)
    expected = ours.logits(IDS[:200])
    assert np.abs(twin.logits(IDS[:200]) - expected).max() < 1e-3 * np.abs(expected).max()
    firsts = [_apart(twin.logits([id]), ours.logits([id]))[0] for id in IDS[:9]]
    assert max(firsts) < 1e-3 and np.median(firsts) < 1e-5, firsts


@pytest.mark.parametrize("engine", [RuntimeEngine, ReferenceEngine])
def test_of_equal_scores_the_first_expert_is_chosen(engine: type):
    """As in the definition (tests/laws/test_moe.py); random routers never score two experts alike."""
    of = config("mixtral")
    entries = dict(tensors(of))
    for name in [name for name in entries if name.endswith("router.weight")]:
        entries[name] = quant.pack(np.zeros(entries[name].shape, np.float32), "F32")
    expected = definition(of, Tensors(entries)).logits(IDS[:20])
    ours = engine(of, Tensors(entries)).logits(IDS[:20])
    assert np.abs(ours - expected).max() < 4e-3 * np.abs(expected).max()


MLPS = {"dense": MLP(512), "sparse": MoE(5, 2, 256, shared=256, shared_gate=True)}


@pytest.mark.parametrize("mlp", MLPS)
@pytest.mark.parametrize("type", ["Q4_1", "Q6_K", "BF16"])
def test_the_step_is_its_twin_on_packed_weights(type: str, mlp: str):
    of, entries = wide(type, MLPS[mlp])
    ours, twin = RuntimeEngine(of, entries), ReferenceEngine(of, entries)
    firsts = [_apart(twin.logits([id]), ours.logits([id]))[0] for id in IDS[:7]]
    assert np.median(firsts) < 1e-5, firsts
    assert _apart(twin.logits(IDS[:60]), ours.logits(IDS[:60])).max() < 0.06


def test_the_twin_reads_on_where_it_stopped():
    of = config("gemma3")
    engine = ReferenceEngine(of, tensors(of))
    whole, state = engine.logits(IDS[:150]), engine.new_state()
    engine.prefill(IDS[:140], state)
    copy = state.snapshot()
    engine.prefill(IDS[200:205], state)
    state.truncate(140)
    for each in (state, copy):
        assert np.allclose(engine.prefill(IDS[140:150], each), whole[-1], atol=5e-3)
        assert np.allclose(engine.step_each([IDS[150]], [each])[0], engine.logits(IDS[:151])[-1], atol=5e-3)
    with pytest.raises(UserError, match="outside the model's 0 to 100"):
        engine.step(101, state)
    with pytest.raises(UserError, match="context holds 400 ids, and this text has 401"):
        engine.prefill([1] * 401, engine.new_state())


WITHOUT_CORE = """
import warnings
from pathlib import Path
from cutaway.lm import LanguageModel
from cutaway.weights.load import Checkpoint
from tests.test_runtime import IDS, config, tensors

of = config("llama")
checkpoint = Checkpoint(of, tensors(of), None, Path("tiny"))
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    lm = LanguageModel(checkpoint, engine="runtime")
    lm.logits(IDS[:5]), LanguageModel(checkpoint, engine="runtime").logits(IDS[:5])
print(type(lm.engine).__name__, LanguageModel(checkpoint).engine_choice[0], len(told))
"""


def test_without_the_core_the_twin_serves_and_says_so_once():
    run = python(WITHOUT_CORE, CUTAWAY_PURE="1")
    assert run.stdout == "ReferenceEngine definition 1\n", run.stderr


def test_a_state_forgets_and_is_copied():
    of = config("gemma3")
    engine = RuntimeEngine(of, tensors(of))
    state = engine.new_state()
    engine.prefill(IDS[:200], state)
    copy = state.snapshot()
    expected = engine.step(IDS[200], state)
    state.truncate(100)
    assert (state.length, len(state.addresses)) == (100, 1)
    engine.prefill(IDS[100:200], state)
    assert np.array_equal(engine.step(IDS[200], state), expected)
    assert np.array_equal(engine.step(IDS[200], copy), expected)


def wide(type: str, mlp: MLP | MoE = MLPS["dense"]) -> tuple[Decoder, Tensors]:
    block = Block(gqa.Config(heads=4, kv_heads=2, key_size=64, position=rope.Config(64)), mlp, Norm())
    of = Decoder(160, 256, 300, (block, block), tied=type != "Q6_K")
    generator = np.random.default_rng(4)
    entries = {}
    for n, (name, shape) in enumerate(of.weights().items()):
        if len(shape) == 2:
            entries[name] = weights("F32" if name.endswith(ROUTERS) else type, *shape, seed=n)
        else:
            entries[name] = quant.pack(generator.normal(1, 0.1, shape).astype(np.float32), "F32")
    return of, Tensors(entries)


@pytest.mark.parametrize("mlp", MLPS)
@pytest.mark.parametrize("type", door.TYPES)
def test_packed_weights_give_the_logits_of_rounded_vectors(type: str, mlp: str):
    """Every type, against the trace that shows what the runtime computes with."""
    from cutaway.inspect import activation_quant
    from cutaway.inspect.trace import Trace
    from tests.small import Bytes

    of, entries = wide(type, MLPS[mlp])
    plain = definition(of, entries)
    edits = activation_quant.edits(of, entries)
    engine = RuntimeEngine(of, entries)
    watched = Trace.of(plain.model, Bytes(), IDS[:60], edit=edits).logits.numpy()
    ours = engine.logits(IDS[:60])
    # The same numbers, until one that lies on the edge between two roundings falls to either side; from there
    # on everything moves, by less than eight bits cost.
    alone = [Trace.of(plain.model, Bytes(), [id], edit=edits).logits.numpy() for id in IDS[:7]]
    firsts = [_apart(engine.logits([id]), one)[0] for id, one in zip(IDS, alone, strict=False)]
    # The head's second rounding has its edges too, 254 times lower: a stream that differs by 1e-6, which is
    # torch's order of adding, moves these logits by 1.4e-5 there, and by 1e-6 where the head rounds once.
    assert np.median(firsts) < (1e-5 if type in matmul.FLOATS else 3e-5), firsts
    assert _apart(ours, watched).max() < 0.06
    if type not in matmul.FLOATS:
        assert _apart(ours, plain.logits(IDS[:60]))[0] > 1e-3


@pytest.mark.parametrize("type", door.TYPES)
def test_a_tied_table_is_read_out_of_the_heads_panels(type: str):
    """As an untied model reads the same table from its rows: to the bit, out of a half-filled panel too."""
    of, entries = wide(type)
    table = weights(type, 155, of.width)
    held = Tensors({**entries, "embedding.weight": table, "head.weight": table})
    tied, untied = (RuntimeEngine(replace(of, vocab=155, tied=each), held) for each in (True, False))
    assert np.array_equal(tied.logits(range(155)), untied.logits(range(155)))


def _apart(ours: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The error of each position's logits as a share of their size."""
    return np.linalg.norm(ours - expected, axis=1) / np.linalg.norm(expected, axis=1)


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", door.TYPES)
def test_weights_that_are_no_numbers_are_refused(type: str):
    of, entries = wide(type)
    broken = dict(entries)
    name = "blocks.1.mlp.down.weight"
    data = broken[name].data.copy()
    at = 208 if type == "Q6_K" else 0
    bad = {"F32": b"\x00\x00\x80\x7f", "BF16": b"\x80\x7f"}.get(type, b"\x00\x7c")
    data[5, at : at + len(bad)] = np.frombuffer(bad, np.uint8)
    broken[name] = Packed(type, broken[name].shape, data)
    with pytest.raises(
        UserError, match=r"blocks.1.mlp.down.weight cannot be run: row 5 holds a weight that is infinite"
    ):
        RuntimeEngine(of, Tensors(broken))
    broken = dict(entries) | {"norm.weight": quant.pack(np.full(256, np.nan, np.float32), "F32")}
    with pytest.raises(UserError, match=r"norm.weight holds a number that is infinite"):
        RuntimeEngine(of, Tensors(broken))


PEAK = """
import sys
from pathlib import Path
from cutaway import gguf
from cutaway.runtime.engine import RuntimeEngine
from cutaway.weights.rules import Tensors
from tests.test_runtime import large

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

file, config = gguf.read(sys.argv[1]), large()
before = peak()
engine = RuntimeEngine(config, Tensors(file.tensors))
engine.prefill(range(0, config.vocab, 200), engine.new_state())  # rows from all over the table
print((peak() - before) / Path(sys.argv[1]).stat().st_size)
"""


def large() -> Decoder:
    return Decoder(
        40_000, 512, 300, (Block(gqa.Config(heads=8, kv_heads=4, key_size=64), MLP(1024), Norm()),)
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_memory_never_holds_the_weights_twice(tmp_path: Path):
    """The peak is at most 1.25 times the file: what was read of it leaves as panels are made, and no text
    brings it back.
    """
    of = large()
    vector = quant.pack(np.ones(512, np.float32), "F32")
    entries = {
        name: weights("Q8_0", *shape) if len(shape) == 2 else vector for name, shape in of.weights().items()
    }
    gguf.write(tmp_path / "large.gguf", {"general.architecture": "ours"}, entries)
    run = python(PEAK, str(tmp_path / "large.gguf"))
    assert float(run.stdout) < 1.25, run.stderr


def test_models_it_does_not_know_are_told_apart():
    of = config("llama")
    relative = replace(of.blocks[0].attention, position=None, relative=alibi.Config())
    other = replace(of, blocks=(replace(of.blocks[0], attention=relative),))
    assert packing.why_not(of, tensors(of)) is None
    assert packing.why_not(other, tensors(of)) == "block 0: its scores have biases of their own"
    layered = replace(of, blocks=(replace(of.blocks[0], norm=Norm("layer")),))
    assert packing.why_not(layered, tensors(of)) == "block 0: its norms are layer norms"
    with pytest.raises(
        UserError, match="because block 0: its norms are layer norms: use engine='definition'"
    ):
        RuntimeEngine(layered, tensors(of))


def test_what_does_not_fit_is_refused():
    of = config("llama")
    engine = RuntimeEngine(of, tensors(of))
    state = engine.new_state()
    with pytest.raises(UserError, match="outside the model's 0 to 100"):
        engine.step(101, state)
    with pytest.raises(UserError, match="context holds 400 ids, and this text has 401"):
        engine.prefill([1] * 401, state)
    with pytest.raises(UserError, match="one state"):
        engine.step_each([1, 2], [state, state])
    assert state.length == 0
    many = np.zeros(1, np.int32)
    with pytest.raises(UserError, match="0 pages do not hold positions 0 to 0"):
        door.read(engine.plan.model, many, np.array([0, 1], np.int32), many, [np.empty(0, np.uint64)], many)


def test_a_wrong_number_of_threads_is_no_weights_fault(monkeypatch: pytest.MonkeyPatch):
    of = config("llama")
    monkeypatch.setenv("CUTAWAY_THREADS", "many")
    with pytest.raises(UserError, match=r"^CUTAWAY_THREADS is 'many'; set it to a number of threads"):
        RuntimeEngine(of, tensors(of))


def test_the_structures_mirror_the_compilers():
    door._mirrored()
    assert ctypes.sizeof(door.Matrix) == 32


def test_a_token_alone_is_read_as_with_others():
    """A step has structures of its own; it gives the bits that reading gives, and refuses the same."""
    of = config("llama")
    engine = RuntimeEngine(of, tensors(of), 2)
    one, other = engine.new_state(), engine.new_state()
    for id in np.random.default_rng(5).integers(0, of.vocab, 9).tolist():
        assert np.array_equal(engine.step(id, one), engine.read([[id]], [other], [0])[0])
    assert one.length == other.length == 9
    for id in -1, of.vocab:
        with pytest.raises(UserError, match="An id lies outside"):
            engine.step(id, one)
    with pytest.raises(UserError, match="pages do not hold"):
        door.OneToken(engine.plan.model).read(0, 128, one.addresses[:1])
