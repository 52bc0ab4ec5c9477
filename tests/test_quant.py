"""Packed weights: the numpy definitions, the compiled kernels and the gguf package give the same bits."""

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.errors import UserError
from cutaway.gguf import NO_WEIGHTS, TYPES, Packed
from cutaway.quantization import formats

# Halves that the scales of a block are set to: zeros, subnormals, the largest, infinities, NaN.
EDGES = np.array(
    [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0xFE01], np.uint16
)
# Where each type keeps its halves.
HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ1_S": [0],
    "IQ2_XXS": [0],
    "IQ2_XS": [0],
    "IQ2_S": [0],
    "IQ3_XXS": [0],
    "IQ3_S": [0],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "TQ1_0": [52],
    "TQ2_0": [64],
    "Q1_0": [0],
}


def same_bits(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Equal in every bit; of NaN only that it is one: which NaN a product gives is the processor's choice."""
    equal = ours.view(np.uint32) == theirs.view(np.uint32)
    return ours.shape == theirs.shape and bool((equal | (np.isnan(ours) & np.isnan(theirs))).all())


def random_packed(type: str, rows: int, blocks: int, seed: int = 0) -> Packed:
    """Random bytes: every scale, every quant, and NaN and infinities among them."""
    generator = np.random.default_rng(seed)
    data = generator.integers(0, 256, (rows, blocks * TYPES[type].bytes), dtype=np.uint8)
    return Packed(type, (rows, blocks * TYPES[type].block), data)


def judged(packed: Packed) -> np.ndarray:
    if packed.type == "Q1_0":  # which the gguf package sizes and does not unpack
        return one_bit(packed)
    with np.errstate(all="ignore"):
        return dequantize(packed.data, gguf.GGMLQuantizationType[packed.type])


def one_bit(packed: Packed) -> np.ndarray:
    """ggml's dequantize_row_q1_0, value by value: d where the bit is set, else -d."""
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q1_0] == (128, 18)
    values = []
    for block in np.ascontiguousarray(packed.data).reshape(-1, 18):
        d = block[:2].copy().view(np.float16)[0].astype(np.float32)
        values += [d if block[2 + j // 8] >> (j % 8) & 1 else -d for j in range(128)]
    return np.array(values, np.float32).reshape(packed.shape)


def test_every_weight_type_has_a_definition():
    assert set(formats.READERS) == TYPES.keys() - set(NO_WEIGHTS)
    assert set(HALVES) == set(formats.PARTS) - {"IQ1_M", "MXFP4", "NVFP4"}  # which keep no half in one piece


@pytest.mark.parametrize("type", formats.READERS)
@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (3, 7), (65, 33)])
def test_random_bytes(type: str, rows: int, blocks: int):
    packed = random_packed(type, rows, blocks)
    reference = formats.unpack_reference(packed)
    assert reference.dtype == np.float32
    assert reference.shape == packed.shape
    assert same_bits(reference, judged(packed))
    assert same_bits(formats.unpack(packed), reference)


@pytest.mark.parametrize("type", HALVES)
def test_scales_at_the_edges(type: str):
    """Every pair of special halves, over random quants."""
    packed = random_packed(type, 1, len(EDGES) ** 2)
    blocks = packed.data.reshape(-1, TYPES[type].bytes)
    pairs = np.stack(np.meshgrid(EDGES, EDGES), axis=-1).reshape(-1, 2)
    for at, column in zip(HALVES[type], pairs.T, strict=False):
        blocks[:, at : at + 2] = column.copy().view(np.uint8).reshape(-1, 2)
    reference = formats.unpack_reference(packed)
    assert same_bits(reference, judged(packed))
    assert same_bits(formats.unpack(packed), reference)


@pytest.mark.parametrize("type", ["F16", "BF16"])
def test_every_16_bit_number(type: str):
    data = np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(1, -1)
    packed = Packed(type, (1, 1 << 16), data)
    reference = formats.unpack_reference(packed)
    assert same_bits(reference, judged(packed))
    assert same_bits(formats.unpack(packed), reference)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(formats.READERS)), st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**32 - 1)
)
def test_any_shape(type: str, rows: int, blocks: int, seed: int):
    packed = random_packed(type, rows, blocks, seed)
    assert same_bits(formats.unpack(packed), judged(packed))


@pytest.mark.parametrize("type", formats.READERS)
def test_a_mapped_view_at_an_odd_address(type: str, tmp_path):
    expected = random_packed(type, 5, 3)
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 13 + expected.data.tobytes())
    mapped = np.memmap(path, np.uint8, "r", offset=13, shape=expected.data.shape)
    packed = Packed(type, expected.shape, mapped)
    assert same_bits(formats.unpack(packed), judged(expected))
    assert same_bits(formats.unpack_reference(packed), judged(expected))


@pytest.mark.parametrize("type", formats.READERS)
def test_chosen_rows(type: str):
    packed = random_packed(type, 9, 2)
    index = np.array([8, 0, 3])
    assert same_bits(formats.unpack(packed.rows(index)), formats.unpack(packed)[index])
    assert same_bits(formats.unpack(packed.rows(slice(1, 9, 2))), formats.unpack(packed)[1:9:2])


def test_more_axes_none_and_no_rows():
    packed = random_packed("Q4_0", 6, 2)
    cube = Packed("Q4_0", (2, 3, 64), packed.data.reshape(2, 3, -1))
    assert same_bits(formats.unpack(cube), judged(packed).reshape(2, 3, 64))
    assert formats.unpack(random_packed("Q6_K", 0, 2)).shape == (0, 512)
    scalar = formats.pack(np.array(2.5, np.float32), "F32")
    assert formats.unpack(scalar).shape == ()
    assert formats.unpack(scalar) == 2.5


def test_the_result_is_the_callers():
    packed = random_packed("F32", 2, 32)
    formats.unpack(packed)[:] = 0
    formats.unpack_reference(packed)[:] = 0
    assert packed.data.any()


@pytest.mark.parametrize("type", ["I32", "F64", "I8"])
def test_what_is_no_weight_is_refused(type: str):
    packed = Packed(type, (2, 4), np.zeros((2, 4 * TYPES[type].bytes), np.uint8))
    with pytest.raises(UserError, match=f"type {type} is not one of weights"):
        formats.unpack(packed)
    with pytest.raises(UserError, match=f"type {type} is not one of weights"):
        formats.unpack_reference(packed)


def arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    normal = generator.standard_normal((33, 96)).astype(np.float32)
    ties = (generator.integers(-254, 255, (17, 64)) / 2).astype(np.float32)
    ties[:, 0] = 127  # scale 1: every other value is halfway between two integers
    ties[:, 32] = -127
    flat = np.full((3, 32), 0.25, np.float32)
    subnormal = (generator.standard_normal((5, 64)) * 1e-40).astype(np.float32)
    equal_sizes = np.where(generator.random((8, 32)) < 0.5, -1.5, 1.5).astype(np.float32)
    return {
        "normal": normal,
        "tiny": normal * np.float32(1e-7),
        "large": normal * np.float32(1e4),
        "ties": ties,
        "flat": flat,
        "zero": np.zeros((2, 64), np.float32),
        "negative zero": -np.zeros((2, 64), np.float32),
        "subnormal": subnormal,
        "equal sizes": equal_sizes,
    }


@pytest.mark.parametrize("name", arrays())
@pytest.mark.parametrize("type", formats.WRITERS)
def test_packing_is_ggmls(type: str, name: str):
    array = arrays()[name]
    with np.errstate(all="ignore"):
        theirs = quantize(array, gguf.GGMLQuantizationType[type])
    ours = formats.pack(array, type)
    assert ours.type == type
    assert ours.shape == array.shape
    assert ours.data.tobytes() == theirs.tobytes()


@pytest.mark.parametrize(("type", "steps"), [("Q8_0", 127), ("Q4_0", 8), ("Q4_1", 15)])
def test_packing_errs_by_little(type: str, steps: int):
    """Half a step and the scale's own rounding; for Q4_0 a whole step, at the end its scale leaves out."""
    array = arrays()["normal"]
    blocks = array.reshape(-1, 32)
    size = np.ptp(blocks, axis=1) if type == "Q4_1" else np.abs(blocks).max(axis=1)
    error = np.abs(formats.unpack(formats.pack(array, type)).reshape(-1, 32) - blocks).max(axis=1)
    assert (error <= size / steps * (1.02 if type == "Q4_0" else 0.57)).all()


@pytest.mark.parametrize("type", ["F32", "F16", "BF16"])
def test_floats_come_back(type: str):
    array = np.array([[0, -0.0, 1, -2.5, 65504, np.inf, -np.inf]], np.float32)
    array = array if type != "BF16" else array[:, [0, 1, 2, 3, 5, 6]]
    assert same_bits(formats.unpack(formats.pack(array, type)), array)
    assert np.isnan(formats.unpack(formats.pack(np.array([np.nan], np.float32), type))).all()


@pytest.mark.parametrize("bits", [0x7F800001, 0xFFBFFFFF, 0x7FC00000, 0x7FFFFFFF, 0xFF800001])
def test_bf16_keeps_nan(bits: int):
    array = np.array([[bits]], np.uint32).view(np.float32)
    theirs = quantize(array, gguf.GGMLQuantizationType.BF16)
    assert formats.pack(array, "BF16").data.tobytes() == theirs.tobytes()


def test_packing_a_view():
    array = arrays()["normal"]
    assert (
        formats.pack(array[::2], "Q8_0").data.tobytes()
        == formats.pack(array[::2].copy(), "Q8_0").data.tobytes()
    )
    wide = np.ascontiguousarray(array.T[:32]).T
    assert formats.pack(wide, "Q4_1").data.tobytes() == formats.pack(wide.copy("C"), "Q4_1").data.tobytes()


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0", "Q4_1"])
def test_rows_that_are_not_whole_blocks_are_refused(type: str):
    with pytest.raises(
        UserError, match=f"Rows of 33 values cannot be packed as {type}, which takes blocks of 32"
    ):
        formats.pack(np.ones((4, 33), np.float32), type)
    with pytest.raises(UserError, match="Rows of 1 values"):
        formats.pack(np.array(1, np.float32), type)


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 3e38])
def test_weights_without_a_scale_are_refused(type: str, bad: float):
    array = np.ones((2, 64), np.float32)
    array[1, 40] = bad
    with pytest.raises(UserError, match="infinite, NaN or too large"):
        formats.pack(array, type)


def test_f16_overflow_and_other_mistakes_are_refused():
    with pytest.raises(UserError, match="beyond the range of F16"):
        formats.pack(np.array([65520], np.float32), "F16")
    with pytest.raises(UserError, match="weights are not written as 'Q4_K'"):
        formats.pack(np.ones((1, 256), np.float32), "Q4_K")
    with pytest.raises(UserError, match="Only float32"):
        formats.pack(np.ones((1, 32)), "Q8_0")


@pytest.mark.parametrize(("type", "word"), [("F32", "<u4"), ("F16", "<u2"), ("BF16", "<u2")])
def test_a_step_is_the_distance_to_the_next_value_of_the_type(type: str, word: str) -> None:
    values = np.abs(np.random.default_rng(0).standard_normal((4, 8), np.float32)) * np.float32(3)
    packed = formats.pack(values, type)
    following = Packed(type, packed.shape, (packed.data.view(word) + 1).astype(word).view(np.uint8))
    assert np.array_equal(formats.steps(packed), formats.unpack(following) - formats.unpack(packed))
