"""The start of a draft model: a tiny decoder of a model's vocabulary, and the model's head in few dimensions.

Most weights of a tiny model are its table of tokens, which no hour of training would fill. The model's head W
[v d] is known, so the table begins as W V: V [d k] has the k directions in which W^T W is largest, so that
W V V^T is the best approximation of W by k dimensions (Eckart and Young, 1936). Blocks begin at random.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from cutaway.attention import mha
from cutaway.errors import UserError
from cutaway.layers.config import MLP
from cutaway.model import config
from cutaway.model.block_config import Block
from cutaway.model.decoder import Decoder
from cutaway.position import rope
from cutaway.quantization import formats
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors

SMALLER = 3  # times the model's width
KEY = 64  # dimensions of a head, of which the width is a multiple
BLOCKS = 4
SURE = 0.1  # of the size that the model gives logits: a draft that knows nothing is sure of nothing
HEAD, TABLE, NORM = "head.weight", "embedding.weight", "norm.weight"


def start(checkpoint: Checkpoint, seed: int = 0) -> Checkpoint:
    """An untrained draft for a model. UserError for one that is no decoder, or too small to have one."""
    of = checkpoint.config
    if not isinstance(of, config.Decoder) or of.table is not None:
        raise UserError(f"{checkpoint.source}: only a decoder with a table of its tokens has a draft model")
    width = max(KEY, round(of.width / SMALLER / KEY) * KEY)
    if width >= of.width:
        raise UserError(
            f"{checkpoint.source}: its width is {of.width}, and a draft's is {KEY} at least: it is too small"
        )
    heads = mha.Config(heads=width // KEY, key_size=KEY, position=rope.Config(KEY))
    block = Block(heads, MLP(round(width * 8 / 3 / KEY) * KEY))
    small = config.Decoder(of.vocab, width, of.context, (block,) * BLOCKS)
    torch.manual_seed(seed)
    weights = {name: weight.numpy() for name, weight in Decoder(small).state_dict().items()}
    weights[TABLE] = _table(checkpoint, of, width)
    weights[NORM] = np.full(width, SURE * (of.width / width) ** 0.5)
    tensors = {name: formats.pack(np.asarray(weights[name], np.float32), "F32") for name in small.weights()}
    return replace(checkpoint, config=small, tensors=Tensors(tensors), family=None)


def _table(checkpoint: Checkpoint, of: config.Decoder, width: int) -> np.ndarray:
    """float32 [v k]: the model's head, its last norm's weight in it, in its k largest directions."""
    head = formats.unpack(checkpoint.tensors[TABLE if of.tied else HEAD]) * np.float32(of.logit_scale)
    if NORM in checkpoint.tensors:
        head = head * formats.unpack(checkpoint.tensors[NORM])
    _, directions = np.linalg.eigh((head.T @ head).astype(np.float64))  # ascending
    return head @ directions[:, : -width - 1 : -1].astype(np.float32)
