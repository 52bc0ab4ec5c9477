"""Fitted blocks: kernels and reference give the same bits, others read them, and they cost less than what
ggml's reference quantizer makes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize

from cutaway import native
from cutaway.errors import UserError
from cutaway.gguf import TYPES, Packed
from cutaway.native import library
from cutaway.quantization import formats, search
from tests.test_native import python

built = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built"
)


def matrices() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(5)
    normal = generator.standard_normal((13, 512)).astype(np.float32)
    heavy = (normal**3).astype(np.float32)
    shifted = (normal * 0.1 + 3).astype(np.float32)
    edge = normal.copy()
    edge[0] = 0
    edge[1] = -0.0
    edge[2, ::2], edge[2, 1::2] = 0.0, -0.0
    edge[3] = 0.25
    edge[4] = -65504
    edge[5, ::32] = 65504
    edge[6] *= 1e-40
    edge[7] *= 1e-7
    edge[8] = np.abs(edge[8])
    edge[9] = -np.abs(edge[9])
    edge[10, 64:] = 0
    return {"normal": normal, "heavy": heavy, "shifted": shifted, "edge": edge}


def columns(size: int = 512) -> np.ndarray:
    """Importance as models have it: a few columns count a hundredfold, some not at all."""
    generator = np.random.default_rng(6)
    out = generator.lognormal(sigma=1.5, size=size).astype(np.float32)
    out[::37] = 0
    out[5] *= 1000
    return out


def cost(array: np.ndarray, packed: Packed, importance: np.ndarray | None = None) -> float:
    weights = 1.0 if importance is None else importance.astype(np.float64)
    return float((weights * (array.astype(np.float64) - formats.unpack(packed)) ** 2).sum())


@built
@pytest.mark.parametrize("type", search.FITTED)
@pytest.mark.parametrize("name", matrices())
def test_kernel_and_reference_give_the_same_bits(type: str, name: str):
    array = matrices()[name]
    for importance in (None, columns()):
        reference = search.pack_reference(array, type, importance)
        assert np.array_equal(search.pack(array, type, importance).data, reference.data)


def digest(pack: Callable[[np.ndarray, str, np.ndarray], Packed]) -> str:
    """Of what a function packs, every type and matrix."""
    found = hashlib.sha256()
    for array in matrices().values():
        for type in search.FITTED:
            found.update(pack(array[:3, :256], type, columns(256)).data.tobytes())
    return found.hexdigest()


SAME = """
import sys
from cutaway import native
from cutaway.quantization import search
from tests.test_quant_search import digest

assert native.available() and native.isa() == sys.argv[1], native.isa()
print(digest(search.pack))
"""


@pytest.fixture(scope="module")
def expected() -> str:
    return digest(search.pack_reference)


@built
@pytest.mark.parametrize("isa", library.SETS)
def test_each_instruction_set_gives_the_same_bits(isa: str, expected: str):
    run = python(SAME, isa, CUTAWAY_ISA=isa)
    if "the best that this processor has" in run.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert run.stdout.strip() == expected, run.stderr


@built
@pytest.mark.parametrize("type", search.FITTED)
def test_any_number_of_rows_and_threads(type: str):
    array = matrices()["heavy"][:, :256]
    whole = search.pack(array, type)
    for rows in (0, 1, 5, 16, 17):
        assert np.array_equal(search.pack(array[:rows], type).data, whole.data[:rows])
    out = np.empty_like(whole.data)
    native.fit(type, np.ascontiguousarray(array), None, out, threads=3)
    assert np.array_equal(out, whole.data)


@pytest.mark.parametrize("type", search.FITTED)
def test_the_gguf_package_reads_the_same_numbers(type: str):
    packed = search.pack(matrices()["heavy"], type)
    theirs = dequantize(packed.data, gguf.GGMLQuantizationType[type])
    assert np.array_equal(theirs, formats.unpack(packed))


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("name", ["normal", "heavy", "shifted"])
def test_it_costs_less_than_the_reference(type: str, name: str):
    array = matrices()[name]
    plain = formats.pack(array, type)
    assert cost(array, search.pack(array, type)) < cost(array, plain)
    assert cost(array, search.pack(array, type, columns()), columns()) < cost(array, plain, columns())


@pytest.mark.parametrize("type", search.FITTED)
def test_importance_is_obeyed(type: str):
    """What counts a lot is nearer than without importance; to the last bit it does not matter how importance
    is scaled."""
    array, importance = matrices()["heavy"], columns()
    weighted, plain = search.pack(array, type, importance), search.pack(array, type)
    assert cost(array, weighted, importance) < cost(array, plain, importance)
    assert cost(array, plain) < cost(array, weighted)
    assert np.array_equal(search.pack(array, type, importance * np.float32(4)).data, weighted.data)
    assert np.array_equal(search.pack(array, type, np.ones(512, np.float32)).data, plain.data)
    assert np.array_equal(search.pack(array, type, np.zeros(512, np.float32)).data, plain.data)


@pytest.mark.parametrize(("type", "low", "high"), [("Q4_0", -8, 7), ("Q5_0", -16, 15)])
def test_no_scale_is_much_better(type: str, low: int, high: int):
    """Every half as a scale, tried one after the other: the search comes within 1% of the best of them."""
    array = matrices()["normal"][:1, :32]
    size = float(np.abs(array).max())
    halves = np.arange(1 << 15, dtype=np.uint16).view(np.float16).astype(np.float64)
    scales = halves[(halves > size / 40) & (halves < size)]
    scales = np.concatenate([scales, -scales])[:, None]
    best = ((array - scales * np.clip(np.rint(array / scales), low, high)) ** 2).sum(axis=1).min()
    assert best * 0.999999 <= cost(array, search.pack(array, type)) <= best * 1.01


def test_numbers_on_the_grid_come_back():
    """Weights that a type holds exactly are exact."""
    generator = np.random.default_rng(9)
    whole = generator.integers(-8, 8, (4, 256)).astype(np.float32)
    whole[:, ::32] = -8
    for type in ("Q4_0", "Q5_0"):
        assert cost(whole * np.float32(0.5), search.pack(whole * np.float32(0.5), type)) == 0
    up = (generator.integers(0, 16, (4, 256)) * 0.25 + 1).astype(np.float32)
    up[:, ::32], up[:, 1::32] = 1, 4.75
    assert cost(up, search.pack(up, "Q4_1")) == 0
    for type, low, high in (("Q4_1", 1, 13), ("Q5_1", 2, 29)):  # neither the least nor the largest is there
        inside = generator.integers(low, high + 1, (4, 256)).astype(np.float32)
        inside[:, ::32], inside[:, 1::32] = low, high
        for importance in (None, columns(256)):
            assert cost(inside, search.pack(inside, type, importance)) == 0
    levels = formats.LEVELS[generator.integers(0, 16, (4, 256))].astype(np.float32)
    levels[:, ::32] = -127
    for type in ("IQ4_NL", "IQ4_XS"):
        assert cost(levels, search.pack(levels, type)) == 0


def plainly(array: np.ndarray, groups: int, high: int, most: int) -> np.ndarray:
    """Super-blocks without a search: each group from its least to its largest value, no least above zero."""
    x = array.astype(np.float64).reshape(-1, groups, 256 // groups)
    low = np.minimum(x.min(axis=2, keepdims=True), 0)
    scale = (x.max(axis=2, keepdims=True) - low) / high
    d, m = scale.max(axis=1, keepdims=True) / most, -low.min(axis=1, keepdims=True) / most
    scale, low = d * np.rint(scale / d), -m * np.rint(low / -m)
    return (scale * np.clip(np.rint((x - low) / scale), 0, high) + low).reshape(array.shape)


@pytest.mark.parametrize(
    ("type", "groups", "high", "most", "least"),
    [("Q2_K", 16, 3, 15, 0.70), ("Q4_K", 8, 15, 63, 0.83), ("Q5_K", 8, 31, 63, 0.83)],
)
def test_super_blocks_cost_less_than_without_a_search(
    type: str, groups: int, high: int, most: int, least: float
):
    """Beside plain rounding, and by as much as this search gains on normal weights."""
    array = matrices()["normal"]
    plain = ((array - plainly(array, groups, high, most)) ** 2).sum()
    assert cost(array, search.pack(array, type)) < least * plain


@pytest.mark.parametrize(("type", "bits"), [("Q3_K", 3.4375), ("Q6_K", 6.5625), ("IQ4_XS", 4.25)])
def test_signed_super_blocks_come_near_the_best_of_their_size(type: str, bits: float):
    """Rounding normal weights at a rate of b bits cannot cost less than 4^-b of their size."""
    array = matrices()["normal"]
    found = cost(array, search.pack(array, type)) / (array.astype(np.float64) ** 2).sum()
    assert 4**-bits < found < {"Q3_K": 4.05, "Q6_K": 6.0, "IQ4_XS": 3.3}[type] * 4**-bits


@pytest.mark.parametrize("type", search.FITTED)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 65520])
def test_weights_that_cannot_be_packed_are_refused(type: str, bad: float):
    array = np.ones((2, 256), np.float32)
    array[1, 40] = bad
    with pytest.raises(UserError, match="infinite, NaN or beyond 65504"):
        search.pack(array, type)


def test_other_mistakes_are_refused():
    array = np.ones((2, 256), np.float32)
    with pytest.raises(UserError, match="not fitted to 'MXFP4'"):
        search.pack(array, "MXFP4")
    with pytest.raises(UserError, match="Rows of 96 values cannot be packed as Q4_K"):
        search.pack(array[:, :96].copy(), "Q4_K")
    with pytest.raises(UserError, match="Only float32"):
        search.pack(array.astype(np.float64), "Q4_0")
    for importance in (np.ones(255), np.ones((2, 256)), -np.ones(256), np.full(256, np.nan)):
        with pytest.raises(UserError, match="importance of 256 columns"):
            search.pack(array, "Q4_0", importance.astype(np.float32))


@built
def test_sizes_are_checked_before_the_core():
    array, out = np.ones((2, 256), np.float32), np.empty((2, 144), np.uint8)
    with pytest.raises(UserError, match="do not hold 512 values"):
        native.fit("Q4_K", array, None, out[:1])
    with pytest.raises(UserError, match="256 numbers are needed"):
        native.fit("Q4_K", array, np.ones(255, np.float32), out)
    with pytest.raises(UserError, match="does not fit weights to F16"):
        native.fit("F16", array, None, np.empty((2, 512), np.uint8))
    assert TYPES["Q4_K"].bytes == 144
