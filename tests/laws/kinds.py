"""Every attention mechanism in the folder, each with a small config: a new file is tested without a test
being edited.
"""

import importlib
import pkgutil
from dataclasses import MISSING, fields
from typing import Any

import torch

import cutaway.attention
from cutaway.layers.config import MLP, Norm
from cutaway.model.config import Block
from cutaway.model.config import Decoder as DecoderConfig
from cutaway.model.decoder import Decoder
from cutaway.position import rope

WIDTH, VOCAB, CONTEXT = 32, 61, 64
SIZES = {"heads": 4, "kv_heads": 2, "key_size": 8, "window": 5}

KINDS = sorted(
    module.name
    for module in pkgutil.iter_modules(cutaway.attention.__path__)
    if not module.ispkg and hasattr(importlib.import_module(f"cutaway.attention.{module.name}"), "Config")
)


def attention(kind: str, **changes: Any) -> Any:
    """A small config of this kind, whose required numbers are taken from SIZES, or 4 where it has none."""
    cls = importlib.import_module(f"cutaway.attention.{kind}").Config
    required = {f.name: SIZES.get(f.name, 4) for f in fields(cls) if f.default is MISSING}
    return cls(**required, **changes)


def decoder_config(kind: str) -> DecoderConfig:
    """Three blocks: with rotary positions and all parts plain, with every option on, and with no position at
    all.
    """
    plain = attention(kind, position=rope.Config(8))
    adorned = attention(
        kind, position=rope.Config(4), qk_norm=Norm(), softcap=20.0, bias=True, out_bias=True, scale=0.3
    )
    bare = attention(kind, value_size=6)
    mlps = MLP(48), MLP(40, activation="gelu_tanh", gated=False, bias=True), MLP(24, activation="relu")
    blocks = tuple(
        Block(attention=a, mlp=m, post_norm=i == 1)
        for i, (a, m) in enumerate(zip((plain, adorned, bare), mlps, strict=True))
    )
    return DecoderConfig(vocab=VOCAB, width=WIDTH, context=CONTEXT, blocks=blocks)


def decoder(kind: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Decoder:
    """A decoder with every weight perturbed, norms and biases too. float64, so that laws hold to the last
    digits.
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
