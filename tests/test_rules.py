"""Rule tables: each way of storing a weight is undone by its inverse, packed, and what does not fit is
refused.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.attention import gqa, local
from cutaway.errors import UserError
from cutaway.gguf import Packed
from cutaway.layers.config import MLP, Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.position import rope
from cutaway.quantization import formats
from cutaway.weights import family_registry, mtp, named_tensors, rules
from cutaway.weights.rules import Place
from cutaway.weights.tensor_maps import chain, plus_one, same, split, transpose, unpermute

ATTENTION = gqa.Config(heads=4, key_size=8, kv_heads=2, position=rope.Config(8))
CONFIG = Decoder(vocab=32, width=32, context=16, blocks=(Block(ATTENTION, MLP(64)),) * 2)
LLAMA = family_registry.get("llama")


def packed(*shape: int, type: str = "F32", seed: int = 0) -> Packed:
    return formats.pack(np.random.default_rng(seed).standard_normal(shape, np.float32), type)


def model_file(config: Decoder = CONFIG) -> dict[str, Packed]:
    """A llama file of this config, with Hugging Face's names."""
    ours = named_tensors.Tensors(
        {name: packed(*shape, seed=i) for i, (name, shape) in enumerate(config.weights().items())}
    )
    return dict(rules.save(LLAMA.hf, config, ours))


def test_rows_of_queries_go_from_side_by_side_to_half_split() -> None:
    """Pair i of a head is rows (2i, 2i + 1) of theirs and (i, i + k/2) of ours; written out for one head of
    8.
    """
    theirs = formats.pack(np.arange(8, dtype=np.float32)[:, None] * np.ones((1, 32), np.float32), "F32")
    one = replace(ATTENTION, heads=1, kv_heads=1)
    (ours,) = unpermute("heads").load(theirs, Place(((8, 32),), one))
    assert formats.unpack(ours)[:, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_keys_are_reordered_within_their_own_heads() -> None:
    theirs = formats.pack(np.arange(16, dtype=np.float32)[:, None] * np.ones((1, 32), np.float32), "F32")
    (ours,) = unpermute("groups").load(theirs, Place(((16, 32),), ATTENTION))
    assert formats.unpack(ours)[:, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]


@settings(max_examples=40, deadline=None)
@given(
    heads=st.sampled_from([1, 2, 3, 6]),
    half=st.integers(1, 5),
    type=st.sampled_from(["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]),
)
def test_permutation_is_undone_to_the_bit_and_stays_packed(heads: int, half: int, type: str) -> None:
    attention = gqa.Config(heads=heads, key_size=2 * half, kv_heads=1)
    stored = packed(heads * 2 * half, 64, type=type)
    place = Place((stored.shape,), attention)
    how = unpermute("heads")
    ours = how.load(stored, place)
    back = how.save(ours, place)
    assert ours[0].type == back.type == type
    assert np.array_equal(back.data, stored.data)


@pytest.mark.parametrize("type", ["F32", "F16", "BF16"])
def test_transposing_and_cutting_are_undone_to_the_bit(type: str) -> None:
    stored = packed(32, 96, type=type)
    place = Place(((48, 32), (24, 32), (24, 32)), None)
    how = chain(transpose, split)
    parts = how.load(stored, place)
    whole = formats.unpack(stored).T
    assert np.array_equal(formats.unpack(parts[1]), whole[48:72])
    assert np.array_equal(how.save(parts, place).data, stored.data)
    assert how.shape(place) == (32, 96)


def test_blocks_cannot_be_transposed() -> None:
    with pytest.raises(UserError, match="Q8_0 matrix cannot be transposed"):
        transpose.load(packed(32, 32, type="Q8_0"), Place(((32, 32),), None))


def test_norms_that_hold_one_less() -> None:
    stored = formats.pack(np.array([0.5, -1.0, 0.0], np.float32), "F32")
    place = Place(((3,),), None)
    (ours,) = plus_one.load(stored, place)
    assert formats.unpack(ours).tolist() == [1.5, 0.0, 1.0]
    assert np.array_equal(plus_one.save((ours,), place).data, stored.data)


# Families whose layers, or whose models, have one weight of ours under either of two names of theirs; which
# one a model has is judged by conversion both ways (tests/parity/test_families.py).
EITHER = {"deepseek_v2", "deepseek_v3", "falcon", "glm4_moe_lite", "lfm2", "lfm2_moe", "minicpm3"}
EITHER_IN_GGUF = {"deepseek_v2", "deepseek_v3", "glm4_moe_lite", "lfm2", "lfm2_moe"}
EITHER |= {
    "kimi_linear",
    "t5",
    "t5_encoder",
    "bamba",
    "deepseek_v32",
    "nemotron_h",
    "granitemoehybrid",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_next",
}
EITHER |= {"bailing_hybrid", "glm_moe_dsa", "jamba", "lfm3", "mt5", "olmo_hybrid", "recurrent_gemma"}
EITHER |= {"sarvam_mla", "umt5", "youtu", "zamba2"}
EITHER_IN_GGUF |= {"jamba", "sarvam_mla"}
EITHER_IN_GGUF |= {"deepseek_v32", "falcon", "kimi_linear", "minicpm3", "t5"}
EITHER_IN_GGUF |= {"granitemoehybrid", "nemotron_h", "qwen3_5", "qwen3_5_moe", "qwen3_next"}


def test_every_family_reads_back_what_it_writes() -> None:
    for family in map(family_registry.get, family_registry.names()):
        for table in (family.hf, family.gguf):
            heads = [rule for rule in table if mtp.has_names((rule,))]  # some in layers after the last
            assert len({rule.theirs for rule in heads}) == len(heads) or family.name in EITHER, family
            names = [rule.theirs for rule in table if rule not in heads]
            ours = [
                name for rule in table for name in ([rule.ours] if isinstance(rule.ours, str) else rule.ours)
            ]
            assert len(set(names)) == len(names) or family.name in (
                "bailing_hybrid",
                "falcon",
                "gemma4",
                "gemma4_unified",
                "granitemoehybrid",
                "kimi_linear",
                "nemotron_h",
                "olmo_hybrid",
            ), family
            either = EITHER if table is family.hf else EITHER_IN_GGUF
            assert len(set(ours)) == len(ours) or family.name in either, family


def test_an_unknown_name() -> None:
    file = model_file() | {"model.layers.0.self_attn.g_proj.weight": packed(4)}
    with pytest.raises(UserError, match=r"g_proj.weight' has no place"):
        rules.load(LLAMA.hf, CONFIG, file)


def test_a_bias_that_the_config_does_not_have() -> None:
    file = model_file() | {"model.layers.0.self_attn.q_proj.bias": packed(32)}
    with pytest.raises(UserError, match=r"q_proj.bias' has no place"):
        rules.load(LLAMA.hf, CONFIG, file)


def test_a_layer_too_many() -> None:
    file = model_file(replace(CONFIG, blocks=CONFIG.blocks[:1] * 3))
    with pytest.raises(UserError, match=r"layers.2.* has no place"):
        rules.load(LLAMA.hf, CONFIG, file)


def test_names_that_carry_nothing() -> None:
    file = model_file() | {"model.layers.1.self_attn.rotary_emb.inv_freq": packed(4)}
    assert list(rules.load(LLAMA.hf, CONFIG, file, LLAMA.ignored_hf)) == list(CONFIG.weights())


def test_a_missing_weight() -> None:
    file = model_file()
    del file["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(UserError, match=r"layers.1.mlp.up_proj.weight' is missing"):
        rules.load(LLAMA.hf, CONFIG, file)


def test_a_wrong_shape_names_both() -> None:
    file = model_file() | {"model.layers.0.self_attn.k_proj.weight": packed(32, 32)}
    with pytest.raises(
        UserError, match=r"k_proj.weight' has the shape \(32, 32\), where the config asks for \(16, 32\)"
    ):
        rules.load(LLAMA.hf, CONFIG, file)


@pytest.mark.parametrize("type", ["I32", "F64", "F8_E4M3"])
def test_types_that_are_no_weights(type: str) -> None:
    width = {"I32": 4, "F64": 8, "F8_E4M3": 1}[type]
    file = model_file() | {"model.norm.weight": Packed(type, (32,), np.zeros(32 * width, np.uint8))}
    with pytest.raises(UserError, match=f"stored as {type}, which is not read as weights"):
        rules.load(LLAMA.hf, CONFIG, file)


def test_nothing_is_made_before_it_is_asked_for() -> None:
    def exploding() -> Packed:
        raise AssertionError("made too early")

    file = named_tensors.Tensors(
        {name: rules.Later(p.type, p.shape, lambda p=p: p) for name, p in model_file().items()}
    )
    assert file.later("model.norm.weight").shape == (32,)
    lazy = named_tensors.Tensors({"a": rules.Later("F32", (2,), exploding)})
    assert list(lazy) == ["a"] and lazy.later("a").type == "F32"
    with pytest.raises(AssertionError):
        lazy["a"]


@pytest.mark.parametrize(
    "attention",
    [
        ATTENTION,
        replace(ATTENTION, bias=True, out_bias=True),
        replace(ATTENTION, qk_norm=Norm()),
        replace(ATTENTION, value_size=4),
        local.Config(heads=4, kv_heads=4, key_size=8, window=3),
    ],
)
@pytest.mark.parametrize("mlp", [MLP(16), MLP(16, gated=False, bias=True)])
@pytest.mark.parametrize("norm", [Norm(), Norm("layer")])
@pytest.mark.parametrize("post_norm", [False, True])
def test_a_config_knows_the_shapes_of_its_model(attention, mlp: MLP, norm: Norm, post_norm: bool) -> None:
    import torch

    from cutaway.model.decoder import Decoder as Model

    config = Decoder(32, 32, 16, (Block(attention, mlp, norm, post_norm),), norm, tied=post_norm)
    with torch.device("meta"):
        model = Model(config)
    assert {name: tuple(weight.shape) for name, weight in model.state_dict().items()} == config.weights()


def test_same_is_the_same() -> None:
    stored = packed(4, 32, type="Q4_0")
    place = Place(((4, 32),), None)
    assert same.load(stored, place) == (stored,) and same.save((stored,), place) is stored
