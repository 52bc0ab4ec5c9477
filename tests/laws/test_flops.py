"""Every mechanism's floating-point operations by its formula, beside those that torch counts."""

from contextlib import nullcontext
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cutaway.attention.common.cost import at
from cutaway.attention.common.visibility import Positions, mask
from cutaway.hooks import tracing
from cutaway.layers.config import MLP
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.decoder import Decoder as Model
from cutaway.train.flops import Operations, between, per_token, spans
from tests.laws.mechanisms import KINDS, SOFTMAX, attention

WIDTH, VOCAB, SEEN = 32, 7, 24
WINDOWS = {"window": SEEN, "chunk": SEEN, "stride": SEEN, "top_k": SEEN, "block": 8, "globals": 4}
# What torch's counter does not see, a token and head: products by elements, and triangular systems.
UNCOUNTED = {"gla": "16 k", "kda": "32 k + 8 v", "delta": "32 v", "gated_delta": "32 v"}
UNCOUNTED |= {"mamba": "12 channels state_size", "rg_lru": "11 channels / h"}
OVERLAP = {"bigbird": 0.15}  # random blocks may be those of the window, which the formula does not know


def products(mixer: Any, n: int) -> tuple[float, float]:
    """Multiplications of a layer between n tokens, as torch counts them, and the part of pairs seen."""
    model = Model(Decoder(VOCAB, WIDTH, n, (Block(mixer, None),))).eval()
    softmax = type(mixer).__module__.rpartition(".")[2] in SOFTMAX
    listening = (
        tracing(model, "*.pattern") if softmax else nullcontext({})
    )  # a pattern is of products, no kernel
    with torch.no_grad(), FlopCounterMode(display=False) as counter, listening as found:
        model(torch.zeros(1, n, dtype=torch.long), torch.arange(n)[None])
    part = float((next(iter(found.values())) > 0).double().mean()) if softmax else 1.0
    weights = {name: shape for name, shape in mixer.weights(WIDTH).items() if len(shape) > 1}
    matrices = sum(prod(shape) for name, shape in weights.items() if "conv" not in name and name != "A_log")
    return counter.get_total_flops() / 2 - n * (matrices + VOCAB * WIDTH), part


@pytest.mark.parametrize("n", [128, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mechanism_costs_what_its_formula_says(kind: str, n: int) -> None:
    """Products as torch counts them; of a masked square what is seen, through windows of 24 tokens."""
    mixer = attention(kind, **WINDOWS)
    total, part = products(mixer, n)
    indexer = 0.0
    if kind == "dsa":  # reads each pair that is past, then attends to the best
        indexer = n * n * mixer.index_heads * mixer.index_size
    counted = (total - indexer) * part + indexer * (n + 1) / (2 * n)
    counted += n * mixer.heads * at(UNCOUNTED[kind], mixer) if kind in UNCOUNTED else 0.0
    assert between(mixer, WIDTH, n=n) == pytest.approx(counted, rel=OVERLAP.get(kind, 0.03), abs=1e-6)


@pytest.mark.parametrize("reach", [None, 8])
def test_readers_of_all_and_of_a_memory_cost_what_they_see(reach: int | None) -> None:
    both, across = replace(attention("bidirectional"), reach=reach), attention("cross")
    here = Positions(torch.arange(256)[None])
    seen = int(mask(both.visibility, here, here).sum())
    per_pair = both.heads * (both.key_size + both.values)
    assert between(both, WIDTH, n=256) == pytest.approx(seen * per_pair, rel=0.03)
    assert between(across, WIDTH, n=10, s=30) == 10 * 30 * across.heads * (across.key_size + across.values)


def test_arms_that_see_less_cost_less() -> None:
    """At 2,048 tokens; a window as wide as the text is the whole of it."""
    cost = {kind: between(attention(kind, **WINDOWS), WIDTH, n=2048) for kind in KINDS}
    for kind in ("linear", "delta", "gated_delta", "retention", "mamba2", "local", "streaming", "chunked"):
        assert cost[kind] < 0.25 * cost["mha"], kind
    whole = between(attention("local", window=4096), WIDTH, n=2048)
    assert whole == pytest.approx(between(attention("gqa"), WIDTH, n=2048))


def decoder(kind: str = "mha", context: int = 4096) -> Decoder:
    return Decoder(VOCAB, WIDTH, context, (Block(attention(kind, **WINDOWS), MLP(48)),) * 2)


@pytest.mark.parametrize("kind", ["mha", "local", "linear"])
def test_a_step_costs_what_its_documents_do(kind: str) -> None:
    """Whatever the model's context is; padding costs nothing; a frozen weight has no gradient."""
    of = Operations(decoder(kind))
    documents = [[0] * 40 + [1] * 9 + [2] * 15, [0] * 60 + [1] * 4]
    pos = [[*range(40), *range(9), *[-1] * 15], [*range(60), *[-1] * 4]]
    found = spans(np.array(pos), np.array(documents))
    assert found == [(0, 40), (0, 9), (0, 60)]
    alone = sum(per_token(decoder(kind, 64), n) * n for n in (40, 9, 60))
    assert of.of(found) == pytest.approx(alone)
    assert per_token(decoder(kind), 64) == per_token(decoder(kind, 64)) < per_token(decoder(kind)) * 1.001
    weights = 2 * (2 * sum(prod(s) for s in attention(kind).weights(WIDTH).values()) + 2 * 3 * 48 * WIDTH)
    weights += 2 * VOCAB * WIDTH
    frozen = Operations(decoder(kind), frozen=True).of(found)
    assert of.of(found) - frozen == pytest.approx(weights * 109)


def test_a_shared_beginning_is_paid_once() -> None:
    """Completions of one prompt read it; only their own tokens are computed."""
    of = Operations(decoder())
    found = spans(np.array([[0, 1, 2, 3, 4, 5, 6, 4, 5, -1]]), np.array([[-1] * 4 + [0] * 3 + [1] * 2 + [2]]))
    assert found == [(0, 4), (4, 7), (4, 6)]
    whole = of.of([(0, 7)])
    assert of.of(found[:2]) == pytest.approx(whole) and of.of(found) < whole + of.of([(0, 6)])


def test_masked_scores_and_the_models_context_are_not_counted() -> None:
    """Forward and backward of a model, by torch's count, less the half of each square that is masked."""
    config = replace(decoder(context=512), vocab=64)
    model = Model(config)
    ids = torch.zeros(1, 128, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, tracing(model, "blocks.*.attention.pattern"):
        model(ids, torch.arange(128)[None]).sum().backward()
    heads = config.blocks[0].attention
    square = 2 * 6 * heads.heads * 128**2 * (heads.key_size + heads.values)
    assert per_token(config, 128) * 128 == pytest.approx(counter.get_total_flops() - square / 2, rel=0.01)
