"""A model with its weights in it, where the PyTorch model meets a file: this floor's torch.

The model is laid out without memory first; then each weight is unpacked and takes its place, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cutaway.errors import UserError
from cutaway.gguf import Packed, give_back
from cutaway.layers.meta import on_meta
from cutaway.layers.packed import PackedEmbedding, PackedLinear
from cutaway.model.config import Decoder as DecoderConfig
from cutaway.model.config import Encoder as EncoderConfig
from cutaway.model.config import EncoderDecoder as EncoderDecoderConfig
from cutaway.model.decoder import Decoder
from cutaway.model.encoder import Encoder
from cutaway.model.seq2seq import TransformerSeq2Seq
from cutaway.quantization import formats
from cutaway.weights.checkpoint import Checkpoint

C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)
ROWS = 4096
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def decoder(checkpoint: Checkpoint, dtype: str = "float32", device: str | torch.device = "cpu") -> Decoder:
    """The checkpoint's decoder on ``device``, ready to read. ``dtype``: float32, bfloat16, float16, packed.

    Packed leaves matrices and tables as small as they are in their file, on the CPU; its logits are those of
    float32.
    """
    config = _config(checkpoint, DecoderConfig, "a decoder")
    return _built(Decoder, config, checkpoint.tensors, dtype, device)


def encoder(checkpoint: Checkpoint, dtype: str = "float32", device: str | torch.device = "cpu") -> Encoder:
    """The checkpoint's encoder, as ``decoder`` gives a decoder."""
    config = _config(checkpoint, EncoderConfig, "an encoder")
    return _built(Encoder, config, checkpoint.tensors, dtype, device)


def encoder_decoder(
    checkpoint: Checkpoint, dtype: str = "float32", device: str | torch.device = "cpu"
) -> TransformerSeq2Seq:
    """The checkpoint's encoder-decoder, as ``decoder`` gives a decoder; not packed."""
    config = _config(checkpoint, EncoderDecoderConfig, "an encoder-decoder")
    if dtype == "packed":
        raise UserError(f"{checkpoint.source}: an encoder-decoder is not kept packed: load it as float32")
    return _built(TransformerSeq2Seq, config, checkpoint.tensors, dtype, device)


def _config(checkpoint: Checkpoint, kind: type[C], what: str) -> C:
    """The checkpoint's config. UserError for one of another kind."""
    if not isinstance(checkpoint.config, kind):
        raise UserError(f"{checkpoint.source}: is not {what}, which is wanted here")
    return checkpoint.config


def _built(make: Callable[[C], M], config: C, tensors: Mapping, dtype: str, device: str | torch.device) -> M:
    """The module of a config, each weight unpacked and in its place."""
    if dtype not in (*DTYPES, "packed"):
        raise UserError(f"a model can be loaded as {', '.join(DTYPES)} or packed, not as {dtype!r}")
    if dtype == "packed" and torch.device(device).type != "cpu":
        raise UserError(f"packed weights are unpacked on the CPU: load as float32 or bfloat16 for {device}")
    with on_meta():
        model = make(config)
    for path, module in list(model.named_modules()):
        if dtype == "packed" and isinstance(module, nn.Linear | nn.Embedding):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, _packed(path, module, tensors))
            continue
        for name, _ in list(module.named_parameters(recurse=False)):
            value = _tensor(f"{path}.{name}", tensors).to(device, DTYPES.get(dtype, torch.float32))
            module.register_parameter(name, nn.Parameter(value))
    return model.eval()


def _packed(path: str, module: nn.Module, tensors: Mapping[str, Packed]) -> nn.Module:
    weight = tensors[f"{path}.weight"]
    for first in range(0, weight.shape[0], ROWS):  # some at a time: whole, the largest is a block's size
        formats.finite(f"{path}.weight", weight.rows(slice(first, first + ROWS)))
    if isinstance(module, nn.Embedding):
        return PackedEmbedding(weight, formats.unpack)
    bias = f"{path}.bias"
    return PackedLinear(weight, _tensor(bias, tensors) if bias in tensors else None, formats.unpack)


def _tensor(name: str, tensors: Mapping[str, Packed]) -> Tensor:
    """The weight as a float32 tensor of its own: what is mapped from a file must not be trained in place."""
    array = formats.finite(name, tensors[name])
    own = array if array.flags.writeable and array.flags.owndata else np.array(array)
    give_back(tensors[name].data)  # or the file would be in memory beside its weights
    return torch.from_numpy(own)
