"""Every path computes what the naive one does, its gradients too, for every visibility and every way
to make scores. The native path, which has no float64, is in test_native_backend.py.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from cutaway.attention.backends import blocked, matmul, naive, native, sdpa
from cutaway.attention.backends.choice import BACKENDS, MANY, choose
from cutaway.attention.backends.inputs import AttentionInputs
from cutaway.attention.common.registry import kind
from cutaway.attention.common.visibility import All, Causal, Positions, Visibility, mask
from cutaway.errors import UserError
from cutaway.hooks import tracing
from cutaway.position import alibi, t5
from tests.laws.mechanisms import SOFTMAX, attention

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
FAST = {name: path for name, path in BACKENDS.items() if name not in ("naive", "native")} | {
    "blocks of 4": lambda inputs: blocked.attend(inputs, 4)
}
SCORES = ("plain", "softcap", "sinks", "alibi", "t5", "chosen")
REFUSED = {"sdpa": {"softcap"}, "products": {"softcap", "sinks", "alibi", "t5"}}


def _problem(
    kind: str, queries: int = 16, keys: int = 16, seed: int = 0, scores: str = "plain", **changes: Any
) -> AttentionInputs:
    config = attention(kind)
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    pos = torch.arange(keys).expand(2, -1).clone()
    pos[0, :3] = -1
    made: dict[str, Any] = {
        "q": random(2, 4, queries, 8),
        "k": random(2, 2, keys, 8),
        "v": random(2, 2, keys, 6),
        "query": Positions(pos[:, keys - queries :]),
        "key": Positions(pos),
        "visibility": config.visibility,
        "scale": 0.4,
    }
    if scores == "softcap":
        made["softcap"] = 1.5
    if scores == "sinks":
        made["sinks"] = random(4)
    if scores == "alibi":
        made["bias"] = alibi.Config().build(4)
    if scores == "t5":
        made["bias"] = t5.Config(8, 16).build(4).double()
    if scores == "chosen":
        made["chosen"] = torch.rand(2, queries, keys, generator=generator) < 0.5
    return AttentionInputs(**(made | changes))


def _gradients(inputs: AttentionInputs, out: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaves = [inputs.q, inputs.k, inputs.v]
    if inputs.sinks is not None:
        leaves.append(inputs.sinks)
    if isinstance(inputs.bias, torch.nn.Module):
        leaves += list(inputs.bias.parameters())
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return torch.autograd.grad((out * weights).sum(), leaves)


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("path", FAST)
@pytest.mark.parametrize("kind", SOFTMAX)
def test_every_path_equals_the_naive_one(kind: str, path: str, scores: str) -> None:
    for queries in (1, 16):
        inputs = _problem(kind, queries, seed=queries, scores=scores)
        if scores in REFUSED.get(path, ()):
            with pytest.raises(UserError, match=r"cannot bound scores|backward pass that is not written"):
                FAST[path](inputs)
            continue
        judge, ours = naive.attend(inputs), FAST[path](inputs)
        assert_close(ours, judge, **TIGHT)
        for mine, true in zip(_gradients(inputs, ours), _gradients(inputs, judge), strict=True):
            assert_close(mine, true, **TIGHT)


@pytest.mark.parametrize("scores", ["sinks", "alibi", "t5"])
@pytest.mark.parametrize("path", [*FAST, "naive"])
def test_what_is_added_to_scores_may_be_wider_than_they_are(path: str, scores: str) -> None:
    """As in autocast, where queries, keys and values are halves and weights are not."""
    if scores in REFUSED.get(path, ()):
        return
    wide = _problem("mha", seed=6, scores=scores)
    half = replace(wide, **{name: getattr(wide, name).bfloat16() for name in "qkv"})
    out = ({**FAST, **BACKENDS}[path])(half)
    assert out.dtype == torch.bfloat16
    assert_close(out.double(), naive.attend(wide), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("path", [*FAST, "naive"])
def test_what_sees_nothing_is_zero(path: str, scores: str) -> None:
    if scores in REFUSED.get(path, ()):
        return
    out = ({**FAST, **BACKENDS}[path])(_problem("mha", seed=5, scores=scores))
    assert (out[0, :, :3] == 0).all()
    assert out.isfinite().all()


@pytest.mark.parametrize("kind", SOFTMAX)
def test_documents_are_apart_on_every_path(kind: str) -> None:
    pos = torch.cat((torch.arange(9), torch.arange(7))).expand(2, -1)
    positions = Positions(pos, torch.tensor([0] * 9 + [1] * 7).expand(2, -1))
    inputs = _problem(kind, seed=2, query=positions, key=positions)
    judge = naive.attend(inputs)
    for path in FAST.values():
        assert_close(path(inputs), judge, **TIGHT)


@pytest.mark.parametrize("size", [5, 8, 11])
def test_keys_and_values_are_made_equally_long(size: int) -> None:
    """With another length torch's kernel would hold every score."""
    inputs = _problem("mha", v=torch.randn(2, 2, 16, size, dtype=torch.float64))
    even = sdpa.evened(inputs)
    assert even.q.shape[-1] == even.k.shape[-1] == even.v.shape[-1] == max(8, size)
    assert_close(naive.attend(even)[..., :size], naive.attend(inputs), **TIGHT)


def test_of_a_long_reach_only_keys_that_are_seen_are_read() -> None:
    """Every block holds something to see, and little: the first tokens of each chunk of 128."""
    n, random = 1400, torch.Generator().manual_seed(0)
    positions = Positions(torch.arange(n)[None])
    made = {name: torch.randn(1, 1, n, 4, generator=random, dtype=torch.float64) for name in "qkv"}
    visibility = kind("fixed").config(heads=1, kv_heads=1, key_size=4, chunk=128, summary=8).visibility
    read: list[int] = []
    inputs = AttentionInputs(**made, query=positions, key=positions, visibility=visibility, scale=0.4)
    with pytest.MonkeyPatch.context() as patch:
        real = sdpa.attend
        patch.setattr(sdpa, "attend", lambda part: (read.append(part.k.shape[2]), real(part))[1])
        assert_close(blocked.attend(inputs), naive.attend(inputs), **TIGHT)
    assert max(read) <= blocked.FAR * blocked.BLOCK  # of 1,400 before the last block


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("queries", [1, 5, 16])
@pytest.mark.parametrize("visibility", [Causal(), All()], ids=str)
def test_matrix_products_are_the_same_in_blocks(
    monkeypatch: pytest.MonkeyPatch, visibility: Visibility, queries: int, groups: int
) -> None:
    """In order, where a block of queries meets only the keys up to its last one; and with a mask."""
    monkeypatch.setattr(matmul, "BLOCK", 4)
    positions, made = Positions(torch.arange(queries).expand(2, -1)), torch.Generator().manual_seed(1)
    keys = torch.randn(2, groups, queries, 8, generator=made, dtype=torch.float64).requires_grad_()
    values = torch.randn(2, groups, queries, 6, generator=made, dtype=torch.float64).requires_grad_()
    masked = _problem("mha", queries, k=keys, v=values, query=positions, key=positions, visibility=visibility)
    for inputs in (masked, replace(masked, in_order=True)):
        judge, ours = naive.attend(masked), matmul.attend(inputs)
        assert_close(ours, judge, **TIGHT)
        for mine, true in zip(_gradients(inputs, ours), _gradients(inputs, judge), strict=True):
            assert_close(mine, true, **TIGHT)


def test_matrix_products_make_no_score_that_a_causal_block_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "BLOCK", 4)
    made: list[int] = []
    real = matmul._pattern
    monkeypatch.setattr(matmul, "_pattern", lambda *a: (made.append((p := real(*a)).shape[-1]), p)[1])
    positions = Positions(torch.arange(16).expand(2, -1))
    inputs = _problem("mha", query=positions, key=positions, in_order=True)
    _gradients(inputs, matmul.attend(inputs))
    assert made == 2 * [4, 8, 12, 16]


def test_matrix_products_are_for_bf16_with_a_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no native core."""
    monkeypatch.setattr(native, "KERNELS", False)
    positions = Positions(torch.arange(16).expand(2, -1))
    wide = _problem("mha", query=positions, key=positions, in_order=True)
    half = replace(wide, **{name: getattr(wide, name).bfloat16() for name in "qkv"})
    path, reason = choose(half)
    assert path == "products" and "bf16" in reason
    assert choose(wide)[0] == "sdpa"
    assert choose(replace(half, softcap=5.0))[0] == "naive"
    assert choose(replace(half, in_order=False))[0] == "products", "too few for blocks"
    with torch.no_grad():
        assert choose(half)[0] == "sdpa"
    out = naive.attend(half)
    assert_close(matmul.attend(half), out, rtol=0.02, atol=0.02)
    for mine, true in zip(_bf16(half, matmul.attend), _bf16(half, naive.attend), strict=True):
        assert_close(mine, true, rtol=0.02, atol=0.05)


def _bf16(inputs: AttentionInputs, path: Any) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(path(inputs).float().square().sum(), [inputs.q, inputs.k, inputs.v])


def test_blocks_use_matrix_products_where_they_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "KERNELS", False)
    ran: list[int] = []
    real = matmul.attend
    monkeypatch.setattr(matmul, "attend", lambda part: (ran.append(part.k.shape[2]), real(part))[1])
    long = Positions(torch.arange(96).expand(1, -1), torch.arange(96).expand(1, -1) // 32)
    made = {name: torch.randn(1, 2, 96, 8).bfloat16().requires_grad_() for name in "qkv"}
    inputs = AttentionInputs(**made, query=long, key=long, visibility=Causal(), scale=0.4)
    out = blocked.attend(inputs, 32)
    assert ran == [32, 32, 32]
    # Both round to bfloat16 on the way, in different places: each is held to the exact answer.
    doubles = {name: value.detach().double() for name, value in made.items()}
    exact = naive.attend(replace(inputs, **doubles))
    error = (naive.attend(inputs).double() - exact).abs().max()
    assert (out.double() - exact).abs().max() < 2 * error


def test_documents_that_one_side_alone_knows_part_nothing() -> None:
    pos = torch.arange(16).expand(2, -1)
    known, unknown = Positions(pos, (pos >= 9).long()), Positions(pos)
    judge = naive.attend(_problem("mha", seed=2, query=unknown, key=unknown))
    for query, key in ((known, unknown), (unknown, known)):
        for path in (naive.attend, *FAST.values()):
            assert_close(path(_problem("mha", seed=2, query=query, key=key)), judge, **TIGHT)


@pytest.mark.parametrize("kind", SOFTMAX)
def test_in_order_is_a_promise_that_changes_nothing(kind: str) -> None:
    pos = Positions(torch.arange(12).expand(2, -1))
    masked = _problem(kind, 12, 12, seed=3, query=pos, key=pos)
    ordered = _problem(kind, 12, 12, seed=3, query=pos, key=pos, in_order=True)
    for path in (naive.attend, *FAST.values()):
        assert_close(path(ordered), path(masked), **TIGHT)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("block", [3, 4, 16])
@pytest.mark.parametrize("kind", SOFTMAX)
def test_blocks_out_of_reach_hold_nothing_that_is_seen(kind: str, block: int, padded: bool) -> None:
    pos = torch.arange(96).expand(1, -1).clone()
    if padded:
        pos[0, 5:50] = -1
    positions = Positions(pos)
    reach = blocked.reachable(_problem(kind, query=positions, key=positions), block)
    dense = mask(attention(kind).visibility, positions, positions)[0]
    seen = dense.unflatten(1, (-1, block)).unflatten(0, (-1, block)).any(3).any(1)
    assert not (seen & ~reach).any()
    assert padded or torch.equal(seen, reach)


def test_a_window_leaves_few_blocks() -> None:
    pos = Positions(torch.arange(4096)[None])
    inputs = _problem("local", 16, 16, query=pos, key=pos)
    assert (
        blocked.reachable(inputs).sum() == 2 * (4096 // blocked.BLOCK) - 1
    )  # each its own and the one before


def test_documents_leave_few_blocks() -> None:
    numbers = torch.arange(96)
    positions = Positions(numbers[None] % 8, numbers[None] // 8)
    assert blocked.reachable(_problem("mha", query=positions, key=positions), 4).sum() == 12 * 3


def test_a_last_block_that_is_not_full_reaches_no_further() -> None:
    positions = Positions(torch.arange(4, 26)[None])
    assert blocked.reachable(_problem("streaming", query=positions, key=positions), 4)[-1].sum() == 2


@pytest.mark.parametrize("scores", ["plain", "softcap", "sinks"])
def test_blocks_of_padding_read_nothing_and_get_zeros(scores: str) -> None:
    """Whole blocks of queries, and of keys, that are padding in every row."""
    pos = torch.arange(16).expand(2, -1).clone()
    pos[:, 4:8] = -1
    pos[1, 12:] = -1
    inputs = _problem("mha", scores=scores, query=Positions(pos), key=Positions(pos))
    out = blocked.attend(inputs, 4)
    assert out.shape == (2, 4, 16, 6)
    assert_close(out, naive.attend(inputs), **TIGHT)
    assert (out[:, :, 4:8] == 0).all() and (out[1, :, 12:] == 0).all()
    assert blocked.reachable(inputs, 4).tolist() == [
        [True, False, False, False],
        [False, False, False, False],
        [True, False, True, False],
        [True, False, True, True],
    ]


@pytest.mark.parametrize("path", FAST)
def test_gradients_through_what_sees_nothing_are_zero(path: str) -> None:
    inputs = _problem("mha", seed=5)
    for gradient in _gradients(inputs, FAST[path](inputs)):
        assert gradient.isfinite().all() and gradient.any()
    (queries, *_) = _gradients(inputs, FAST[path](inputs))
    assert (queries[0, :, :3] == 0).all()


def test_a_compiler_that_cannot_follow_data_is_not_given_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    long = Positions(torch.arange(MANY).expand(2, -1))
    inputs = _problem("local", q=torch.zeros(2, 4, MANY, 8), query=long, key=long)
    assert choose(inputs)[0] == "blocked"
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    assert choose(inputs)[0] == "sdpa"


def test_a_listener_gets_the_path_that_has_its_values() -> None:
    from tests.laws.mechanisms import decoder, text

    model = decoder("mha")
    with tracing(model, "blocks.0.attention.pattern") as seen:
        model(*text(1, 5))
    assert_close(seen["blocks.0.attention.pattern"].sum(-1), torch.ones(1, 4, 5, dtype=torch.float64))


def test_the_choice_is_named_with_its_reason() -> None:
    assert choose(_problem("mha"))[0] == "sdpa"
    assert choose(_problem("mha", softcap=5.0))[0] == "naive"
    long = Positions(torch.arange(MANY).expand(2, -1))
    many = torch.zeros(2, 4, MANY, 8)
    assert choose(_problem("mha", q=many, query=long, key=long, in_order=True))[0] == "sdpa"
    path, reason = choose(_problem("local", q=many, query=long, key=long))
    assert path == "blocked" and "skipped" in reason
    everyone = _problem("local", q=many, query=long, key=long, visibility=All())
    assert choose(replace(everyone, in_order=True))[0] == "sdpa", "no mask is needed"
    path, reason = choose(everyone)
    assert path == "blocked" and "never for all at once" in reason
    packed = Positions(long.pos, long.pos // 100)
    assert choose(_problem("local", q=many, query=packed, key=packed, visibility=All()))[0] == "blocked"
    fewer = _problem("local", q=many[:, :, 1:], query=Positions(long.pos[:, 1:]), key=long)
    assert choose(fewer)[0] == "sdpa"
    capped = _problem("local", q=many, query=long, key=long, softcap=5.0)
    assert choose(capped)[0] == "blocked"
    few = Positions(torch.arange(16).expand(2, -1))
    ordered: dict[str, Any] = {"query": few, "key": few, "in_order": True}
    assert "no mask" in choose(_problem("mha", **ordered))[1]
    for scores in ("sinks", "alibi", "chosen"):
        assert "no mask" not in choose(_problem("mha", scores=scores, **ordered))[1]
    assert "no mask" not in choose(_problem("local", **ordered))[1]
    assert "no mask" not in choose(_problem("mha", **(ordered | {"in_order": False})))[1]
