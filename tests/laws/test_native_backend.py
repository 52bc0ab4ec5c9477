"""Attention by the native core is what the naive path says in float64, to float32's and bf16's rounding:
there and back, for every visibility, however tensors lie in memory, on every instruction set.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cutaway import native as core
from cutaway.attention.backends import blocked, naive, native
from cutaway.attention.backends.choice import choose
from cutaway.attention.backends.inputs import AttentionInputs
from cutaway.attention.common.visibility import All, Causal, Positions
from cutaway.errors import UserError
from cutaway.position import alibi
from tests.laws.mechanisms import SOFTMAX, attention
from tests.test_native import Run, on_each_set

built = pytest.mark.skipif(
    not native.KERNELS, reason=core.unavailable_reason() or "no kernels for this processor"
)
NEAR = {torch.float32: 2e-5, torch.bfloat16: 2e-2}  # of the largest number
TYPES = pytest.mark.parametrize("type", NEAR, ids=str)
SHAPES = [(16, 16, 4, 2, 8, 6), (1, 16, 4, 1, 8, 8), (77, 77, 3, 3, 40, 16), (300, 300, 2, 1, 64, 64)]


def _problem(t: int, s: int, h: int, g: int, size: int, values: int, **changes: Any) -> AttentionInputs:
    """Some rows begin with padding."""
    draw = torch.Generator().manual_seed(t)
    made: dict[str, Any] = {
        name: torch.randn(2, n, heads, width, generator=draw, dtype=torch.float64).transpose(1, 2)
        for name, n, heads, width in (("q", t, h, size), ("k", s, g, size), ("v", s, g, values))
    }
    pos = torch.arange(s).expand(2, -1).clone()
    pos[0, :3] = -1
    positions = {
        "query": Positions(pos[:, s - t :]),
        "key": Positions(pos),
        "visibility": Causal(),
        "scale": 0.4,
    }
    return AttentionInputs(**(made | positions | changes))


def _compare(inputs: AttentionInputs, type: torch.dtype = torch.float32, more: float = 1.0) -> None:
    """What comes out and every gradient, against float64 numbers that were rounded to the type before."""
    ours = {name: getattr(inputs, name).detach().to(type).requires_grad_() for name in "qkv"}
    true = {name: x.detach().double().requires_grad_() for name, x in ours.items()}
    out, judge = native.attend(replace(inputs, **ours)), naive.attend(replace(inputs, **true))
    assert out.dtype == type
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(type)
    back = torch.autograd.grad((out * weights).sum(), list(ours.values()))
    judges = torch.autograd.grad((judge * weights.double()).sum(), list(true.values()))
    for mine, right in zip((out, *back), (judge, *judges), strict=True):
        most = right.abs().max().item()
        assert_close(mine.double(), right, rtol=0, atol=more * NEAR[type] * most)


@built
@TYPES
@pytest.mark.parametrize("kind", SOFTMAX)
def test_every_kind_is_what_the_naive_path_says(kind: str, type: torch.dtype) -> None:
    for shape in ((1, 16, 4, 2, 8, 6), (16, 16, 4, 2, 8, 6)):
        _compare(_problem(*shape, visibility=attention(kind).visibility), type)


@built
@TYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_order_and_with_a_mask(shape: tuple[int, ...], type: torch.dtype) -> None:
    t, s = shape[:2]
    positions = Positions(torch.arange(s).expand(2, -1))
    for visibility in (Causal(), All()):
        _compare(_problem(*shape, visibility=visibility), type)
        if t == s:
            _compare(
                _problem(*shape, visibility=visibility, query=positions, key=positions, in_order=True), type
            )


@built
@TYPES
def test_documents_and_chosen_keys(type: torch.dtype) -> None:
    pos = torch.arange(300).expand(2, -1)
    positions = Positions(pos, pos // 70)
    chosen = torch.rand(2, 300, 300, generator=torch.Generator().manual_seed(3)) < 0.2
    for changes in ({"query": positions, "key": positions}, {"chosen": chosen}):
        _compare(_problem(*SHAPES[-1], **changes), type)


@built
def test_what_sees_nothing_is_zero_and_so_are_its_gradients() -> None:
    inputs = _problem(*SHAPES[0])
    made = {name: getattr(inputs, name).float().requires_grad_() for name in "qkv"}
    out = native.attend(replace(inputs, **made))
    assert (out[0, :, :3] == 0).all() and out.isfinite().all()
    q, k, v = torch.autograd.grad(out.square().sum(), list(made.values()))
    for gradient in (q, k, v):
        assert gradient.isfinite().all() and gradient.any()
        assert (gradient[0, :, :3] == 0).all()


@built
def test_great_scores_overflow_nothing() -> None:
    inputs = _problem(*SHAPES[2])
    _compare(replace(inputs, q=inputs.q * 30), more=10.0)  # what float32 leaves of scores in the hundreds


@built
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_what_is_no_number_is_not_lost(name: str) -> None:
    """Whatever sees it has none either, as on the naive path: a run that went wrong stops."""
    inputs = _problem(*SHAPES[2])
    wide = replace(inputs, **{each: getattr(inputs, each).float() for each in "qkv"})
    getattr(wide, name)[1, 2, 40, 3] = torch.nan
    for path in (native.attend, naive.attend):
        lost = path(wide)[1, 2].isnan().any(-1)
        assert lost[40 if name == "q" else slice(40, None)].all()
        assert name == "v" or not lost[:40].any(), "of hidden values the naive path makes 0 times none"


def _layouts(x: Tensor) -> Iterator[Tensor]:
    """Head after head; among other numbers; those of a vector not neighbours; one row for all."""
    yield x.contiguous()
    yield torch.cat((x, x + 1), dim=-1)[..., : x.shape[-1]]
    yield x.mT.contiguous().mT
    yield x[:1].expand_as(x)


@built
def test_any_layout() -> None:
    inputs = _problem(*SHAPES[2])
    for name in "qkv":
        for laid in _layouts(getattr(inputs, name)):
            numbers = {name: laid.float()}
            wide = replace(inputs, **{each: getattr(inputs, each).float() for each in "qkv"})
            ours = native.attend(replace(wide, **numbers))
            assert_close(ours, naive.attend(replace(wide, **numbers)), rtol=0, atol=1e-5)


@built
def test_a_gradient_that_is_one_number_everywhere() -> None:
    """As ``sum`` gives it: a tensor whose steps are all zero."""
    inputs = _problem(*SHAPES[2])
    for path in (native.attend, naive.attend):
        made = [getattr(inputs, name).float().requires_grad_() for name in "qkv"]
        path(replace(inputs, **dict(zip("qkv", made, strict=True)))).sum().backward()
        if path is native.attend:
            ours = [x.grad for x in made]
    for mine, x in zip(ours, made, strict=True):
        assert_close(mine, x.grad, rtol=0, atol=1e-5)


@built
def test_threads_change_no_bit() -> None:
    inputs = _problem(*SHAPES[2])
    made = [getattr(inputs, name).float().requires_grad_() for name in "qkv"]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out = native.attend(replace(inputs, **dict(zip("qkv", made, strict=True))))
            found.append([out, *torch.autograd.grad(out.square().sum(), made)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            assert torch.equal(one, same)


IMPORTS = """
import os
import pytest
from tests.laws import test_native_backend

os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
names = "every_kind or in_order or sees_nothing or great"
words = ["-q", "-x", "-p", "no:cacheprovider", test_native_backend.__file__, "-k", names]
"""
ON_EACH_SET = """
done = pytest.main(words)
print("all passed" if done == 0 else "not passed")
"""


@pytest.fixture(scope="module")
def tested() -> dict[str, Run]:
    return on_each_set(IMPORTS, ON_EACH_SET)


@built
@pytest.mark.parametrize("isa", ["avx2", "avx_vnni", "avx512", "avx512_bf16", "amx", "neon"])
def test_every_instruction_set(isa: str, tested: dict[str, Run]) -> None:
    """In a process of its own, in which the environment chooses; one that this processor lacks is refused."""
    run = tested[isa]
    if "the best that this processor has" in run.stdout + run.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert run.stdout.endswith("all passed\n"), run.stdout + run.stderr


def test_it_is_chosen_where_there_is_a_way_back() -> None:
    positions = Positions(torch.arange(16).expand(2, -1))
    wide = _problem(*SHAPES[0], query=positions, key=positions, in_order=True)
    made = {name: getattr(wide, name).float().requires_grad_() for name in "qkv"}
    inputs = replace(wide, **made)
    assert (choose(inputs)[0] == "native") == native.KERNELS
    with torch.no_grad():
        assert choose(inputs)[0] == "sdpa"
    assert choose(replace(inputs, softcap=5.0))[0] == "naive"
    assert choose(replace(wide, q=wide.q.clone().requires_grad_()))[0] == "sdpa", "no float64"


def test_what_it_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = _problem(*SHAPES[0])
    with pytest.raises(UserError, match=r"this is torch\.float64, torch\.float64 on cpu"):
        native.attend(wide)
    single = replace(wide, **{name: getattr(wide, name).float() for name in "qkv"})
    odd: list[dict[str, Any]] = [
        {"softcap": 1.0},
        {"sinks": torch.zeros(4)},
        {"bias": alibi.Config().build(4)},
    ]
    if native.KERNELS:
        for changes in odd:
            with pytest.raises(UserError, match="backward pass that is not written"):
                native.attend(replace(single, **changes))
    monkeypatch.setattr(native, "KERNELS", False)
    with pytest.raises(UserError, match="no native core"):
        native.attend(single)


@built
def test_blocks_go_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    real = native.attend
    monkeypatch.setattr(native, "attend", lambda part: (ran.append(part.k.shape[2]), real(part))[1])
    long = Positions(torch.arange(96).expand(1, -1), torch.arange(96).expand(1, -1) // 32)
    made = {name: torch.randn(1, 2, 96, 8).requires_grad_() for name in "qkv"}
    inputs = AttentionInputs(**made, query=long, key=long, visibility=Causal(), scale=0.4)
    out = blocked.attend(inputs, 32)
    assert ran == [32, 32, 32]
    assert_close(out, naive.attend(inputs), rtol=0, atol=1e-5)
