"""RoPE's scalings against transformers' own, frequency by frequency."""

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from cutaway.position import rope
from cutaway.position.scaling import (
    DynamicNTK,
    Linear,
    Llama3,
    LongRoPE,
    Proportional,
    Scaling,
    YaRN,
    sharpening,
)

SIZE = 64
SHORT = tuple(1.0 + i / 50 for i in range(SIZE // 2))
LONG = tuple(1.0 + i / 5 for i in range(SIZE // 2))

CASES: dict[str, tuple[dict, Scaling]] = {
    "linear": ({"rope_type": "linear", "factor": 4.0}, Linear(4.0)),
    "llama3": (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 2048,
        },
        Llama3(8.0, 1.0, 4.0, 2048),
    ),
    "yarn": (
        {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 2048},
        YaRN(16.0, 2048),
    ),
    "yarn, DeepSeek's": (
        {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "mscale": 0.7,
            "mscale_all_dim": 1.2,
            "beta_fast": 20,
            "beta_slow": 2,
        },
        YaRN(40.0, 4096, fast=20.0, slow=2.0, attention=sharpening(40.0, 0.7) / sharpening(40.0, 1.2)),
    ),
    "yarn, not whole": (
        {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 2048, "truncate": False},
        YaRN(16.0, 2048, whole=False),
    ),
    "proportional": (
        {"rope_type": "proportional", "partial_rotary_factor": 0.25, "factor": 2.0},
        Proportional(0.25, 2.0),
    ),
    "dynamic": ({"rope_type": "dynamic", "factor": 3.0}, DynamicNTK(3.0, 2048)),
    "longrope": (
        {
            "rope_type": "longrope",
            "factor": 4.0,
            "short_factor": list(SHORT),
            "long_factor": list(LONG),
            "original_max_position_embeddings": 2048,
        },
        LongRoPE(SHORT, LONG, 2048, 4.0),
    ),
}


@pytest.mark.parametrize("length", [1, 2048, 2049, 5000])
@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
@pytest.mark.parametrize("name", CASES)
def test_scaling_equals_transformers(name: str, base: float, length: int) -> None:
    parameters, scaling = CASES[name]
    theirs = LlamaConfig(
        hidden_size=SIZE,
        num_attention_heads=1,
        max_position_embeddings=2048,
        rope_parameters=parameters | {"rope_theta": base},
    )
    expected, magnitude = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](theirs, "cpu", seq_len=length)
    ours = rope.Config(SIZE, base, scaling)
    np.testing.assert_allclose(ours.frequencies(length), expected.double().numpy(), rtol=3e-6, atol=0)
    assert ours.magnitude == pytest.approx(magnitude, rel=1e-12)
