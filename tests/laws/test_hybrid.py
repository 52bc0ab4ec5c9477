"""One decoder of many mechanisms and of dense and sparse MLPs: layers are data, and a mixed stack obeys the
laws that a plain one does.
"""

import importlib
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from cutaway.attention.state.caches import Both, Elsewhere
from cutaway.attention.state.quantized import Quantized
from cutaway.attention.state.recurrent import Recurrent
from cutaway.hooks import tracing
from cutaway.layers.config import MLP, MoE, Norm
from cutaway.model.block_config import Beside, Block
from cutaway.model.config import Decoder as DecoderConfig
from cutaway.model.config_dict import from_dict, to_dict
from cutaway.model.decoder import Decoder
from cutaway.position import rope
from cutaway.quantization import formats
from cutaway.weights import load, save
from cutaway.weights.build import decoder as filled
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
WIDTH, VOCAB, LENGTH = 24, 37, 30
HEADS = {"heads": 4, "key_size": 8}
TURN = {"position": rope.Config(8)}


def _attention(kind: str, **options: Any) -> Any:
    return importlib.import_module(f"cutaway.attention.{kind}").Config(**HEADS, **options)


MIXERS = (
    _attention("gqa", kv_heads=2, **TURN),
    _attention("local", kv_heads=1, window=5, **TURN),
    _attention("linear", value_size=6),
    _attention("mla", latent=12, rope_dim=8, **TURN),
    _attention("gated_delta", key_heads=2),
    _attention("mamba2", groups=2),
    _attention("retention", **TURN),
    _attention("gla", rank=3),
    _attention("delta", conv=3),
    _attention("kda", value_size=6),
    importlib.import_module("cutaway.attention.short_conv").Config(channels=20, conv=4, bias=True),
)
MLPS = MLP(20), MoE(4, 2, 10, shared=6, shared_gate=True), MoE(5, 3, 8, normalised=False)
STRANGE = (  # no MLP; keys and values of an earlier layer; two mixers in one block; a value that is the key
    Block(_attention("mamba2", normed="first", least=0.01), None),
    Block(_attention("gqa", kv_heads=2, kv_layer=0, **TURN), MLPS[0], scaled=True),
    Block(_attention("local", kv_heads=1, window=5, kv_layer=1, **TURN), MLPS[1], post_norm=True),
    Block(
        _attention("mqa", value_of_key=True, value_norm=Norm(weight=False), **TURN),
        MLP(16, gate_scale=0.5, out_scale=2.0),
        beside=Beside(_attention("mamba2", multipliers=(0.5, 1.5, 2.0, 0.7, 1.2)), (0.8, 1.1), (0.6, 1.3)),
    ),
)
CONFIG = DecoderConfig(
    vocab=VOCAB,
    width=WIDTH,
    context=64,
    blocks=(*(Block(attention=mixer, mlp=MLPS[i % 3]) for i, mixer in enumerate(MIXERS)), *STRANGE),
)


def _model(dtype: torch.dtype = torch.float64) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(CONFIG).to(dtype).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def _text(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(length))
    return ids, torch.arange(length).expand(batch, -1)


def test_it_trains() -> None:
    torch.manual_seed(0)
    model = Decoder(CONFIG)
    ids, pos = _text(2, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = cross_entropy(model(ids[:, :-1], pos[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
        still = [name for name, weight in model.named_parameters() if not weight.grad.any()]
        assert all(".experts." in name for name in still)  # few tokens: some expert may have got none
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.2


@torch.no_grad()
def test_the_future_cannot_change_the_past() -> None:
    model = _model()
    ids, pos = _text(1, 20)
    before = model(ids, pos)
    for cut in (1, 7, 19):
        changed = ids.clone()
        changed[:, cut:] = (changed[:, cut:] + 1) % VOCAB
        assert_close(model(changed, pos)[:, :cut], before[:, :cut], **TIGHT)


@torch.no_grad()
def test_left_padded_equals_unpadded_and_watched_equals_unwatched() -> None:
    model = _model()
    ids, pos = _text(2, LENGTH)
    plain = model(ids, pos)
    padded = torch.cat((torch.zeros(2, 5, dtype=torch.long), ids), dim=1)
    positions = torch.cat((torch.full((2, 5), -1), pos), dim=1)
    assert_close(model(padded, positions)[:, 5:], plain, **TIGHT)
    with tracing(model, "*"):
        assert_close(model(ids, pos), plain, **TIGHT)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_cached_equals_reread(seed: int) -> None:
    model = _model()
    ids, pos = _text(2, LENGTH)
    cuts = [*range(1, LENGTH)] if seed == 0 else sorted(random.Random(seed).sample(range(1, LENGTH), 6))
    state, parts = model.new_state(), []
    for start, end in zip([0, *cuts], [*cuts, LENGTH], strict=True):
        parts.append(model(ids[:, start:end], pos[:, start:end], state))
    assert_close(torch.cat(parts, dim=1), model(ids, pos), **TIGHT)
    for mixer, memory in zip(MIXERS, state.blocks, strict=False):
        if mixer.bytes_per_token(8) == 0:
            assert memory.nbytes == 2 * mixer.state_bytes(8)


@torch.no_grad()
def test_quantized_it_keeps_its_recurrences_as_they_are() -> None:
    model = _model()
    ids, pos = _text(2, LENGTH)
    state = model.new_state(Quantized.of(8))
    parts = [model(ids[:, i : i + 7], pos[:, i : i + 7], state) for i in range(0, LENGTH, 7)]
    at_once = model(ids, pos, model.new_state(Quantized.of(8)))
    assert_close(torch.cat(parts, dim=1), at_once, **TIGHT)
    assert (at_once - model(ids, pos)).abs().max() > 0
    kinds = [type(memory) for memory in state.blocks]
    assert kinds == [*[Quantized] * 2, Recurrent, Quantized, *[Recurrent] * 8, Elsewhere, Elsewhere, Both]


@torch.no_grad()
def test_packed_equals_separate() -> None:
    model = _model()
    ids, _ = _text(1, LENGTH)
    lengths = (11, 1, 18)
    pos = torch.cat([torch.arange(n) for n in lengths])[None]
    documents = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    separate = [model(part, torch.arange(part.shape[1])[None]) for part in ids.split(lengths, dim=1)]
    assert_close(model(ids, pos, documents=documents), torch.cat(separate, dim=1), **TIGHT)


def test_config_round_trips() -> None:
    assert from_dict(to_dict(CONFIG)) == CONFIG
    kinds = [block["attention"]["kind"] for block in to_dict(CONFIG)["blocks"]]
    assert kinds == [
        "gqa",
        "local",
        "linear",
        "mla",
        "gated_delta",
        "mamba2",
        "retention",
        "gla",
        "delta",
        "kda",
        "short_conv",
        "mamba2",
        "gqa",
        "local",
        "mqa",
    ]
    made = {name: tuple(weight.shape) for name, weight in _model().named_parameters()}
    assert made == CONFIG.weights()


@torch.no_grad()
def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model = _model(torch.float32)
    tensors = {name: formats.pack(weight.numpy(), "F32") for name, weight in model.state_dict().items()}
    saved = save.write_checkpoint(tmp_path / "hybrid", Checkpoint(CONFIG, Tensors(tensors), None, tmp_path))
    assert saved.format == "cutaway"
    checkpoint = load.read_checkpoint(tmp_path / "hybrid")
    assert checkpoint.config == CONFIG
    ids, pos = _text(2, LENGTH)
    assert torch.equal(filled(checkpoint)(ids, pos), model(ids, pos))
