"""Nothing but the naive form holds a number for each pair of tokens: every tensor that reaches torch's
kernel, every mask, bias and choice of keys, is that of one block of queries at most.
"""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from cutaway.attention.backends import blocked, naive, sdpa
from cutaway.attention.common.registry import Sizes, kind
from cutaway.attention.common.visibility import Positions
from cutaway.attention.modules import dsa
from cutaway.position import alibi, t5
from tests.laws.mechanisms import SOFTMAX

SIZES = Sizes(width=16, heads=2, groups=2, key_size=8, value_size=8)
TOKENS = 1280
OPTIONS = {
    "window": 32, "first": 2, "globals": 2, "chunk": 64, "summary": 4, "stride": 16, "block": 16, "random": 2,
    "latent": 12, "rope_dim": 4, "index_size": 8, "index_heads": 2, "top_k": 8,
}  # fmt: skip
ADDED: dict[str, dict[str, Any]] = {
    "plain": {},
    "alibi": {"relative": alibi.Config()},
    "t5 and sinks": {"relative": t5.Config(8, 16), "sinks": True},
    "softcap": {"softcap": 5.0},
}


def _cases() -> list[tuple[str, str]]:
    plain = [(name, "plain") for name in SOFTMAX if name != "disentangled"]  # which holds every score
    return plain + [(name, how) for name in ("gqa", "local", "bidirectional", "cross") for how in ADDED]


def _module(name: str, how: str) -> Any:
    found = kind(name)
    added = {} if name == "cross" and "relative" in ADDED[how] else ADDED[how]
    torch.manual_seed(0)
    return found.like(SIZES, {n: OPTIONS[n] for n in found.usual if n in OPTIONS} | added).build(16).eval()


def _read(module: Any, name: str, x: torch.Tensor, positions: Positions) -> torch.Tensor:
    with torch.no_grad():
        return (
            module(x, positions, x, positions) if name == "cross" else module(x, positions, None, False, None)
        )


@pytest.mark.parametrize(("name", "how"), _cases())
def test_no_tensor_grows_with_the_square(monkeypatch: pytest.MonkeyPatch, name: str, how: str) -> None:
    most = 2 * SIZES.heads * blocked.BLOCK * (TOKENS + 1)
    assert most < TOKENS**2
    kernel, scores, best = sdpa.scaled_dot_product_attention, naive.tap, dsa.best

    def checked(q, k, v, *, attn_mask=None, **rest):
        assert k.shape[-1] == v.shape[-1], "torch's kernel would hold every score"
        assert attn_mask is None or attn_mask.numel() <= most
        return kernel(q, k, v, attn_mask=attn_mask, **rest)

    def small(value_of: Any) -> Any:
        def check(first, second):
            value = second if isinstance(second, torch.Tensor) else first
            assert value.numel() <= most
            return value_of(first, second)

        return check

    monkeypatch.setattr(sdpa, "scaled_dot_product_attention", checked)
    monkeypatch.setattr(naive, "tap", small(scores))
    monkeypatch.setattr(dsa, "best", small(best))
    positions = Positions(torch.arange(TOKENS)[None])
    _read(_module(name, how), name, torch.randn(1, TOKENS, 16), positions)


@pytest.mark.parametrize("name", ["fixed", "strided", "dsa", "bidirectional"])
def test_far_and_thin_patterns_read_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Against the naive form, at a length where keys that no query of a block sees are left out."""
    module, x = _module(name, "plain"), torch.randn(1, TOKENS, 16)
    pos = torch.arange(TOKENS)[None].clone()
    pos[0, 40:45] = -1
    ours = _read(module, name, x, Positions(pos))
    monkeypatch.setattr("cutaway.attention.backends.choice.choose", lambda problem: ("naive", "the judge"))
    assert_close(ours, _read(module, name, x, Positions(pos)), rtol=1e-4, atol=1e-5)


def test_keys_that_no_query_sees_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[int] = []
    real = sdpa.attend
    monkeypatch.setattr(sdpa, "attend", lambda problem: (met.append(problem.k.shape[2]), real(problem))[1])
    _read(
        _module("fixed", "plain"), "fixed", torch.randn(1, TOKENS, 16), Positions(torch.arange(TOKENS)[None])
    )
    assert max(met) <= blocked.FAR * blocked.BLOCK and met[-1] < TOKENS / 4
