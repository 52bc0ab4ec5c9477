"""What a mechanism takes when its sizes are not chosen: those of the paper or model it comes from."""

import pytest

from cutaway.attention.common.registry import Sizes, kind
from cutaway.layers.config import Norm

DEEPSEEK = Sizes(width=7168, heads=128, groups=128, key_size=128, value_size=128)
PUBLISHED = {
    "bahdanau": (Sizes(1000, 1, 1, 1000, 1000), {"size": 1000}),  # 1409.0473: 1000 hidden units throughout
    "bigbird": (
        DEEPSEEK,
        {"window": 192, "globals": 128, "block": 64, "random": 3},
    ),  # 2007.14062: 3, 2, 3 blocks
    "chunked": (DEEPSEEK, {"chunk": 8192}),  # Llama 4
    "dsa": (
        DEEPSEEK,
        {"latent": 512, "rope_dim": 64, "index_heads": 64, "index_size": 128, "top_k": 2048},
    ),
    "fixed": (DEEPSEEK, {"chunk": 128, "summary": 8}),  # 1904.10509: l = 128, c = 8
    "local": (DEEPSEEK, {"window": 1024}),  # Gemma 3
    "longformer": (DEEPSEEK, {"window": 512, "globals": 64}),  # 2004.05150: windows of 512
    "mla": (DEEPSEEK, {"latent": 512, "rope_dim": 64}),  # DeepSeek-V2 and V3
    "streaming": (DEEPSEEK, {"window": 1020, "first": 4}),  # 2309.17453: 4 + 1020
    "strided": (DEEPSEEK, {"stride": 128}),  # 1904.10509: l = 128
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name: str) -> None:
    sizes, usual = PUBLISHED[name]
    assert kind(name).usual_in(sizes) == usual


def test_sizes_never_come_to_nothing() -> None:
    one = Sizes(width=4, heads=1, groups=1, key_size=1, value_size=1)
    assert kind("dsa").usual_in(one) == {
        "latent": 4, "rope_dim": 1, "index_heads": 1, "index_size": 1, "top_k": 2048,
    }  # fmt: skip


def test_gated_delta_is_qwen3_nexts() -> None:
    config = kind("gated_delta").config(heads=2, key_size=4)
    assert (config.conv, config.norm) == (4, Norm(eps=1e-6))


def test_mla_norms_latents_as_deepseek_does() -> None:
    assert kind("mla").config(heads=2, key_size=4, rope_dim=2, latent=8).norm == Norm(eps=1e-6)
