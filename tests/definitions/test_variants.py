"""Each variant of softmax attention against its paper's equation, written as float64 loops over
single numbers.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from cutaway.attention import bidirectional
from cutaway.attention.backends.choice import MANY
from cutaway.attention.common.visibility import Positions
from cutaway.attention.modules.mla import Where
from cutaway.errors import UserError
from cutaway.hooks import FACTS, tracing
from cutaway.layers.config import Norm
from cutaway.position import alibi, rope, t5
from tests.definitions.loops import Vector, apply, dot, layer_norm, read, rms, turn
from tests.laws.mechanisms import SOFTMAX, attention

N, WIDTH, BASE = 13, 12, 50.0
POS = torch.arange(N)[None]


def _drawn(block: int, n: int) -> int:
    x = (block * 7919 + n * 104_729 + 1) % (2**31 - 1)
    for _ in range(2):
        x = (x * x + 48_271 * x + 11) % (2**31 - 1)
    return x % max(block, 1)


def _bigbird(c: Any, i: int, j: int) -> bool:
    at_random = any(_drawn(i // c.block, n) == j // c.block for n in range(c.random))
    return j <= i and (i - j < c.window or j < c.globals or i < c.globals or at_random)


# Who sees whom, in the papers' words: a config, the query's position, the key's.
SEES: dict[str, Callable[[Any, int, int], bool]] = {
    "mha": lambda c, i, j: j <= i,
    "gqa": lambda c, i, j: j <= i,
    "mqa": lambda c, i, j: j <= i,
    "gated": lambda c, i, j: j <= i,
    "gated_local": lambda c, i, j: 0 <= i - j < c.window,
    "sub_norm": lambda c, i, j: j <= i,
    "differential": lambda c, i, j: j <= i,
    "mla": lambda c, i, j: j <= i,
    "dsa": lambda c, i, j: j <= i,
    "cross": lambda c, i, j: True,
    "bidirectional": lambda c, i, j: True,
    "disentangled": lambda c, i, j: True,
    "local": lambda c, i, j: 0 <= i - j < c.window,
    "streaming": lambda c, i, j: j <= i and (i - j < c.window or j < c.first),
    "chunked": lambda c, i, j: j <= i and i // c.chunk == j // c.chunk,
    "longformer": lambda c, i, j: j <= i and (i - j < c.window or j < c.globals or i < c.globals),
    "bigbird": _bigbird,
    "strided": lambda c, i, j: j <= i and (i - j < c.stride or (i - j) % c.stride == 0),
    "fixed": lambda c, i, j: j <= i and (i // c.chunk == j // c.chunk or j % c.chunk >= c.chunk - c.summary),
}


def sees(kind: str) -> Callable[[Any, int, int], bool]:
    """Who sees whom in a mechanism."""
    assert kind in SEES, f"{kind}: say in SEES who sees whom, as its paper does (docs/adding-a-mechanism.md)"
    return SEES[kind]


@pytest.mark.parametrize("kind", SOFTMAX)
def test_each_kind_sees_what_its_paper_says(kind: str) -> None:
    config, n = attention(kind), 60
    pos = torch.arange(n)
    ours = config.visibility.sees(pos[:, None], pos[None, :])
    assert ours.tolist() == [[sees(kind)(config, i, j) for j in range(n)] for i in range(n)]


def test_an_encoder_sees_both_ways() -> None:
    config = bidirectional.Config(heads=2, kv_heads=2, key_size=4, reach=2, globals=1)
    pos = torch.arange(9)
    ours = config.visibility.sees(pos[:, None], pos[None, :])
    assert ours.tolist() == [[abs(i - j) <= 2 or i < 1 or j < 1 for j in range(9)] for i in range(9)]


def _made(config: Any) -> nn.Module:
    torch.manual_seed(1)
    module = config.build(WIDTH).double()
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn_like(weight) * 0.5 + (weight.ndim == 1) * 0.5)
    return module


def _x() -> torch.Tensor:
    return torch.randn(1, N, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def _output(module: nn.Module, config: Any) -> torch.Tensor:
    rotation = None if config.position is None else rope.RotaryEmbedding(config.position).rotation(POS)
    return module(_x(), Positions(POS), rotation, False, None)[0]


def _bias(config: Any, module: Any, h: int, i: int, j: int) -> float:
    if isinstance(config.relative, alibi.Config):
        return -(2 ** (-8 * (h + 1) / config.heads)) * abs(i - j)
    if isinstance(config.relative, t5.Config):
        apart, exact = i - j, config.relative.buckets // 2
        far = exact + int(
            math.log(max(apart, 1) / exact) / math.log(config.relative.distance / exact) * exact
        )
        bucket = apart if apart < exact else min(far, config.relative.buckets - 1)
        return module.relative.weight[bucket, h].item()
    return 0.0


def _heads(module: Any, config: Any, x: list[Vector], part: str, count: int) -> list[list[Vector]]:
    """Each token's vector for each head, normed and rotated."""
    out = []
    for position, token in enumerate(x):
        flat = apply(getattr(module, part).weight, token)
        norm = getattr(module, f"{part}_norm", None) if part != "value" else None
        if norm is not None and config.qk_norm_over == "width":
            flat = rms(flat, norm.weight, config.qk_norm.eps)
        size = len(flat) // count
        heads = [flat[h * size : (h + 1) * size] for h in range(count)]
        if norm is not None and config.qk_norm_over == "head":
            heads = [rms(head, norm.weight, config.qk_norm.eps) for head in heads]
        if norm is not None and config.position is not None:
            heads = [turn(head, position, BASE, False) for head in heads]
        out.append(heads)
    return out


def _softmax_loop(kind: str, config: Any, module: Any, x: list[Vector]) -> list[Vector]:
    q, k = _heads(module, config, x, "query", config.heads), _heads(module, config, x, "key", config.groups)
    v = _heads(module, config, x, "value", config.groups)
    out = []
    for i in range(N):
        gathered: Vector = []
        for h in range(config.heads):
            g = h * config.groups // config.heads
            scores = {}
            for j in range(N):
                if sees(kind)(config, i, j):
                    score = dot(q[i][h], k[j][g]) / math.sqrt(config.key_size)
                    scores[j] = config.softcap * math.tanh(score / config.softcap) + _bias(
                        config, module, h, i, j
                    )
            gathered += read(scores, lambda s, g=g: v[s][g], module.sinks[h].item())
        if kind in ("gated", "gated_local"):
            gate = apply(module.gate.weight, x[i])
            if config.per_head:
                gate = [g for g in gate for _ in range(config.values)]
            open_ = [math.log1p(math.exp(g)) if config.softplus else 1 / (1 + math.exp(-g)) for g in gate]
            gathered = [n * g for n, g in zip(gathered, open_, strict=True)]
        if kind == "sub_norm":
            gathered = rms(gathered, module.out_norm, config.eps)
        out.append(apply(module.out.weight, gathered))
    return out


@torch.no_grad()
@pytest.mark.parametrize("over", ["head", "width"])
@pytest.mark.parametrize("relative", [alibi.Config(), t5.Config(8, 10), None], ids=["alibi", "t5", "rope"])
@pytest.mark.parametrize(
    "kind",
    [k for k in SOFTMAX if k not in ("mla", "dsa", "cross", "differential", "bidirectional", "disentangled")],
)
def test_a_kind_is_its_equation(kind: str, relative: Any, over: str) -> None:
    config = attention(
        kind,
        position=None if relative else rope.Config(8, BASE),
        relative=relative,
        qk_norm=Norm(),
        qk_norm_over=over,
        softcap=3.0,
        sinks=True,
        value_size=5,
    )
    module = _made(config)
    expected = _softmax_loop(kind, config, module, _x()[0].tolist())
    assert_close(_output(module, config), torch.tensor(expected, dtype=torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
def test_gates_behind_a_window_are_their_equations(softplus: bool, per_head: bool) -> None:
    own: dict[str, Any] = {"softplus": softplus, "per_head": per_head, "window": 3, "qk_norm": Norm()}
    config = attention(
        "gated_local", position=rope.Config(8, BASE), softcap=3.0, sinks=True, value_size=5, **own
    )
    module = _made(config)
    expected = _softmax_loop("gated_local", config, module, _x()[0].tolist())
    assert_close(_output(module, config), torch.tensor(expected, dtype=torch.float64))


@torch.no_grad()
def test_scaled_values_are_scaled_outputs() -> None:
    config = attention("gqa", position=rope.Config(8, BASE), value_scale=0.7)
    module, plain = _made(config), _made(replace(config, value_scale=1.0))
    assert_close(_output(module, config), 0.7 * _output(plain, config))
    with pytest.raises(UserError, match="value_scale is not for attention to an encoder's memory"):
        attention("cross", value_scale=0.7)


@torch.no_grad()
def test_differential_is_its_equation() -> None:
    config = attention("differential", heads=8, kv_heads=4, position=rope.Config(8, BASE), qk_norm=Norm())
    module: Any = _made(config)
    x = _x()[0].tolist()
    q, k = _heads(module, config, x, "query", 8), _heads(module, config, x, "key", 4)
    v = _heads(module, config, x, "value", 4)
    start = config.lambda_start
    products = [dot(module.get_parameter(f"lambda_query_{n}").tolist(),
    module.get_parameter(f"lambda_key_{n}").tolist())
              for n in ("one", "two")]  # fmt: skip
    weight = math.exp(products[0]) - math.exp(products[1]) + start
    out = []
    for i in range(N):
        gathered: Vector = []
        for h in range(4):  # pairs of query heads over pairs of key heads
            g = h // 2
            one, two = (
                read(
                    {j: dot(q[i][h + 4 * half], k[j][g + 2 * half]) / math.sqrt(8) for j in range(i + 1)},
                    lambda s, g=g: v[s][g] + v[s][g + 2],
                )
                for half in (0, 1)
            )
            difference = [a - weight * b for a, b in zip(one, two, strict=True)]
            gathered += [(1 - start) * n for n in rms(difference, module.head_norm.weight, config.eps)]
        out.append(apply(module.out.weight, gathered))
    assert_close(_output(module, config), torch.tensor(out, dtype=torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("query_latent", [None, 7])
@pytest.mark.parametrize("kind", ["mla", "dsa"])
def test_latent_attention_is_its_equation(kind: str, query_latent: int | None) -> None:
    position = rope.Config(8, BASE, interleaved=True)
    config = attention(
        kind, position=position, value_size=5, query_latent=query_latent, index_heads=1, top_k=3
    )
    module: Any = _made(config)
    x, size = _x()[0].tolist(), config.key_size
    c, kr, q, index_q, index_k, index_w = [], [], [], [], [], []
    for position_of, token in enumerate(x):
        down = apply(module.down.weight, token)
        c.append(rms(down[: config.latent], module.latent_norm.weight, config.norm.eps))
        kr.append(turn(down[config.latent :], position_of, BASE, True))
        asked = token
        if query_latent is not None:
            asked = rms(apply(module.query_down.weight, token), module.query_norm.weight, config.norm.eps)
        flat, whole = apply(module.query.weight, asked), size + config.rope_dim
        heads = [flat[h * whole : (h + 1) * whole] for h in range(config.heads)]
        q.append([head[:size] + turn(head[size:], position_of, BASE, True) for head in heads])
        if kind == "dsa":
            norm = module.index_norm
            key = layer_norm(apply(module.index_key.weight, token), norm.weight, norm.bias, norm.eps)
            index_k.append(turn(key, position_of, BASE, False))
            index_q.append(turn(apply(module.index_query.weight, asked), position_of, BASE, False))
            index_w.append(apply(module.index_weight.weight, token)[0])
    out = []
    for i in range(N):
        seen = list(range(i + 1))
        if kind == "dsa":  # one index head, whose relu makes ties at 0: of equals the first
            index = [index_w[i] * max(dot(index_q[i], index_k[j]), 0.0) / math.sqrt(8) for j in seen]
            seen = sorted(seen, key=lambda j, index=index: (-index[j], j))[: config.top_k]
        gathered: Vector = []
        for h in range(config.heads):
            up_k = module.key_up.weight[h * size : (h + 1) * size]
            up_v = module.value_up.weight[h * 5 : (h + 1) * 5]
            scores = {
                j: dot(q[i][h], apply(up_k, c[j]) + kr[j]) / math.sqrt(size + config.rope_dim) for j in seen
            }
            gathered += read(scores, lambda s, up_v=up_v: apply(up_v, c[s]))
        out.append(apply(module.out.weight, gathered))
    assert_close(_output(module, config), torch.tensor(out, dtype=torch.float64))


@torch.no_grad()
@pytest.mark.parametrize("queries", [1, 5, 13])
def test_absorbed_and_expanded_are_the_same(queries: int) -> None:
    config = attention("mla", value_size=5)
    module: Any = _made(config)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(
        1,
        config.heads,
        queries,
        config.key_size + config.rope_dim,
        dtype=torch.float64,
        generator=generator,
    )
    latent = torch.randn(1, 1, N, config.latent + config.rope_dim, dtype=torch.float64, generator=generator)
    where = Where(Positions(POS[:, N - queries :]), Positions(POS))
    assert_close(module.absorbed(q, latent, where), module.expanded(q, latent, where))
    assert config.absorbs(1, 4096) and not config.absorbs(4096, 4096)


def test_the_cheaper_form_multiplies_less() -> None:
    """Counted a product of matrices at a time, for one head."""
    config = attention("mla", value_size=5)
    size, value, rope_dim, latent = config.key_size, 5, config.rope_dim, config.latent
    forms = set()
    for queries, keys in ((q, k) for q in range(1, 40) for k in range(q, 40)):
        reads = keys * latent * size + keys * latent * value  # keys and values out of latents
        expanded = reads + queries * keys * (size + rope_dim) + queries * keys * value
        moves = queries * size * latent + queries * latent * value  # queries in, what is mixed out
        absorbed = moves + queries * keys * (latent + rope_dim) + queries * keys * latent
        assert config.absorbs(queries, keys) == (absorbed < expanded)
        forms.add(absorbed < expanded)
    assert forms == {True, False}


@torch.no_grad()
@pytest.mark.parametrize("queries", [1, N])
def test_the_form_is_chosen_by_how_many_ask_how_many(queries: int) -> None:
    config = attention("mla")
    module, state = _made(config), config.state()
    if queries < N:
        module(_x()[:, :-queries], Positions(POS[:, :-queries]), None, False, state)
    with tracing(module, FACTS) as seen:
        module(_x()[:, -queries:], Positions(POS[:, -queries:]), None, False, state)
    form: Any = seen["form"]
    assert form.backend == ("absorbed" if config.absorbs(queries, N) else "expanded")
    assert form.why.startswith(f"{queries} against {N} keys")


@torch.no_grad()
def test_cross_attention_is_its_equation() -> None:
    config = attention("cross", memory_width=9, qk_norm=Norm())
    module: Any = _made(config)
    x, memory = _x()[0].tolist(), torch.randn(1, 6, 9, dtype=torch.float64)
    q = _heads(module, config, x, "query", 4)
    k, v = (_heads(module, config, memory[0].tolist(), part, 2) for part in ("key", "value"))
    there = Positions(torch.tensor([[0, 1, 2, 3, -1, -1]]))
    out = []
    for i in range(N):
        gathered: Vector = []
        for h in range(4):
            scores = {j: dot(q[i][h], k[j][h // 2]) / math.sqrt(8) for j in range(4)}
            gathered += read(scores, lambda s, h=h: v[s][h // 2])
        out.append(apply(module.out.weight, gathered))
    expected = torch.tensor(out, dtype=torch.float64)
    assert_close(module(_x(), Positions(POS), memory, there)[0], expected)
    state = config.state()
    for start, end in ((0, 4), (4, 13)):
        given = (memory, there) if start == 0 else (None, None)
        assert_close(
            module(_x()[:, start:end], Positions(POS[:, start:end]), *given, state)[0], expected[start:end]
        )
    assert state.nbytes == 6 * config.bytes_per_token(8)


@torch.no_grad()
def test_who_watches_a_long_text_sees_the_whole_index() -> None:
    """Unwatched, a long text is chosen for by blocks of queries, to the same end."""
    config = attention("dsa")
    torch.manual_seed(0)
    module, n = config.build(WIDTH).double(), MANY + 5
    x, positions = torch.randn(1, n, WIDTH, dtype=torch.float64), Positions(torch.arange(n)[None])
    with tracing(module, "index", "chosen") as seen:
        watched = module(x, positions, None, True, None)
    assert seen["index"].shape == seen["chosen"].shape == (1, n, n)
    assert (seen["chosen"].sum(-1)[0] == torch.arange(1, n + 1).clamp(max=config.top_k)).all()
    assert_close(module(x, positions, None, True, None), watched, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_the_index_is_its_equation() -> None:
    """DeepSeek-V3.2: I = sum over heads of w relu(q k), w and scores scaled by roots of their sizes."""
    config = attention("dsa", position=None, query_latent=None)
    module: Any = _made(config)
    x, heads, size = _x()[0].tolist(), config.index_heads, config.index_size
    assert heads > 1
    with tracing(module) as seen:
        module(_x(), Positions(POS), None, False, None)
    norm, expected = module.index_norm, torch.zeros(N, N, dtype=torch.float64)
    for s in range(N):
        key = layer_norm(apply(module.index_key.weight, x[s]), norm.weight, norm.bias, norm.eps)
        for t in range(N):
            query, weight = apply(module.index_query.weight, x[t]), apply(module.index_weight.weight, x[t])
            for h in range(heads):
                fits = max(dot(query[h * size : (h + 1) * size], key) / math.sqrt(size), 0.0)
                expected[t, s] += weight[h] / math.sqrt(heads) * fits
    assert_close(seen["index"][0], expected)
