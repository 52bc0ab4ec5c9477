"""An encoder-decoder of a decoder's own parts (1706.03762), so that both can be arms of one experiment.

The encoder's blocks are the decoder's first one with attention to both sides; the decoder's blocks get
cross-attention of the same heads. Both halves and the head share one embedding table.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

from cutaway.attention import bidirectional, cross, gqa
from cutaway.attention.common.heads import Heads
from cutaway.errors import UserError
from cutaway.model.config import Decoder, Encoder, EncoderDecoder
from cutaway.model.kinds import kind_of
from cutaway.position import learned

KINDS = ("mha", "gqa", "mqa")  # attention whose heads an encoder and cross-attention can have too
Attention = TypeVar("Attention", bound=gqa.Config)


def with_encoder(model: Decoder, layers: int, source: int, target: int) -> EncoderDecoder:
    """The model's blocks write ``target`` tokens; ``layers`` blocks like its first read ``source`` tokens.

    UserError for attention that has no heads to share, or adds numbers for distances.
    """
    attention, position = model.blocks[0].attention, model.position
    reading = replace(model.blocks[0], attention=_like(bidirectional.Config, attention))
    table = isinstance(position, learned.Config)
    reader = Encoder(
        model.vocab,
        model.width,
        source,
        (reading,) * layers,
        model.norm,
        segments=0,
        learned=table,
        norm_first=True,
        embedding_norm=False,
        embedding_scale=model.embedding_scale,
        sines=None if isinstance(position, learned.Config) else position,
    )
    writing = (
        replace(block, cross=_like(cross.Config, block.attention, position=None)) for block in model.blocks
    )
    own = learned.Config(target) if table else position
    writer = replace(model, context=target, blocks=tuple(writing), position=own)
    return EncoderDecoder(reader, writer, shared=True)


def _like(kind: type[Attention], attention: Any, **options: Any) -> Attention:
    """A config of this kind with the heads of another."""
    if kind_of(attention) not in KINDS or attention.relative is not None:
        raise UserError(
            f"an encoder-decoder's attention is {', '.join(KINDS)} without relative positions, and here "
            f"it is {kind_of(attention)}"
        )
    known = {f.name: getattr(attention, f.name) for f in fields(Heads)}
    return kind(**known | options, kv_heads=attention.groups)
