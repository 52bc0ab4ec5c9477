"""Every attention mechanism in the folder, each with a small config: a new file is tested without a test
being edited.
"""

import importlib
import pkgutil
from dataclasses import MISSING, fields
from functools import cache
from typing import Any

import torch

import cutaway.attention
from cutaway.layers.config import MLP, Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder as DecoderConfig
from cutaway.model.decoder import Decoder
from cutaway.position import alibi, rope, t5

WIDTH, VOCAB, CONTEXT = 32, 61, 64
SIZES = {
    "heads": 4,
    "kv_heads": 2,
    "key_size": 8,
    "window": 5,
    "rope_dim": 8,
    "latent": 12,
    "index_size": 8,
    "index_heads": 2,
    "summary": 2,
    "channels": 8,
}


def _config(kind: str) -> Any:
    return getattr(importlib.import_module(f"cutaway.attention.{kind}"), "Config", None)


ALL = sorted(
    module.name for module in pkgutil.iter_modules(cutaway.attention.__path__) if _config(module.name)
)
# Those that a decoder's block can hold: they read the past. Encoders and readers of a memory have laws of
# their own.
KINDS = [k for k in ALL if hasattr(_config(k), "state") and getattr(_config(k), "reads", "past") == "past"]
# Those that are the softmax of score.py over heads, and differ in who sees whom.
SOFTMAX = [k for k in ALL if hasattr(_config(k), "visibility")]


def attention(kind: str, **changes: Any) -> Any:
    """A small config of this kind, whose required numbers are taken from SIZES, or 4 where it has none.

    Of the changes those are made that the kind has a field for.
    """
    known = fields(_config(kind))
    required = {f.name: SIZES.get(f.name, 4) for f in known if f.default is MISSING}
    return _config(kind)(**(required | {f.name: changes[f.name] for f in known if f.name in changes}))


def decoder_config(kind: str) -> DecoderConfig:
    """Three blocks: with rotary positions and all parts plain, with every option on, and with no
    position at all.
    """
    plain = attention(kind, position=rope.Config(8))
    adorned = attention(
        kind,
        position=rope.Config(4, interleaved=True),
        relative=t5.Config(8, 16),
        qk_norm=Norm(),
        qk_norm_over="width",
        softcap=20.0,
        sinks=True,
        bias=True,
        out_bias=True,
        scale=0.3,
        query_latent=10,
    )
    bare = attention(kind, value_size=6, qk_norm=Norm(), relative=alibi.Config())
    mlps = MLP(48), MLP(40, activation="gelu_tanh", gated=False, bias=True), MLP(24, activation="relu")
    blocks = tuple(
        Block(attention=a, mlp=m, post_norm=i == 1)
        for i, (a, m) in enumerate(zip((plain, adorned, bare), mlps, strict=True))
    )
    return DecoderConfig(vocab=VOCAB, width=WIDTH, context=CONTEXT, blocks=blocks)


@cache
def decoder(kind: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Decoder:
    """A decoder with every weight perturbed, norms and biases too, made once and only read. float64, so that
    laws hold to the last digits.
    """
    torch.manual_seed(seed)
    model = Decoder(decoder_config(kind)).to(dtype).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def text(batch: int, length: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids and their positions 0, 1, 2, ..."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, (batch, length), generator=generator)
    return ids, torch.arange(length).expand(batch, -1)
