"""Small random decoders to look into, one for each way in which a stream can be written, bytes as tokens,
and a small model as a whole file.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cutaway.attention import gqa, local, mha
from cutaway.layers.config import MLP, MoE, Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder as Config
from cutaway.model.decoder import Decoder
from cutaway.position import learned, rope
from cutaway.quantization import formats
from cutaway.tokenizer.bpe import BYTES
from cutaway.weights import save
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors

WIDTH, VOCAB, CONTEXT = 32, 256, 64


class Bytes:
    """One token a byte; 0 is a control token."""

    bos, add_bos = None, False

    def __len__(self) -> int:
        return VOCAB

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def token_bytes(self, id: int) -> bytes:
        return b"<end>" if id == 0 else bytes([id])

    def is_special(self, id: int) -> bool:
        return id == 0


def _llama() -> Config:
    heads = gqa.Config(heads=4, kv_heads=2, key_size=8, position=rope.Config(8))
    return Config(VOCAB, WIDTH, CONTEXT, (Block(heads, MLP(48)),) * 3)


def _gpt2() -> Config:
    heads = mha.Config(heads=4, key_size=8, bias=True, out_bias=True)
    mlp = MLP(48, activation="gelu_tanh", gated=False, bias=True)
    norm = Norm("layer")
    return Config(
        VOCAB, WIDTH, CONTEXT, (Block(heads, mlp, norm),) * 2, norm, position=learned.Config(CONTEXT)
    )


def _gemma() -> Config:
    shape = {"heads": 4, "kv_heads": 2, "key_size": 16, "qk_norm": Norm(), "scale": 0.3, "softcap": 5.0}
    near = local.Config(window=3, position=rope.Config(16), **shape)
    far = gqa.Config(position=rope.Config(16, 1e6), **shape)
    blocks = tuple(Block(heads, MLP(48, "gelu_tanh"), post_norm=True) for heads in (near, near, far))
    return Config(VOCAB, WIDTH, CONTEXT, blocks, embedding_scale=5.0, softcap=8.0, tied=False)


def _sandwich() -> Config:
    """Layer norms after attention too, with their means and biases: no model has them, the arithmetic allows
    them.
    """
    heads = mha.Config(heads=4, key_size=8, value_size=6, out_bias=True, position=rope.Config(4))
    return Config(
        VOCAB, WIDTH, CONTEXT, (Block(heads, MLP(48), Norm("layer"), post_norm=True),) * 2, Norm("layer")
    )


def _mixture() -> Config:
    """Sparse layers below and above a dense one."""
    heads = gqa.Config(heads=4, kv_heads=2, key_size=8, position=rope.Config(8))
    mlps = MoE(4, 2, 20), MLP(48), MoE(5, 3, 16, normalised=False, shared=24, shared_gate=True)
    return Config(VOCAB, WIDTH, CONTEXT, tuple(Block(heads, mlp) for mlp in mlps))


SHAPES = {"llama": _llama, "gpt2": _gpt2, "gemma": _gemma, "sandwich": _sandwich, "mixture": _mixture}


def decoder(shape: str = "llama", seed: int = 0) -> Decoder:
    """A decoder with every weight moved off the value it starts at."""
    torch.manual_seed(seed)
    model = Decoder(SHAPES[shape]()).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return model


TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEMPLATE += "<|im_start|>assistant\n"


def model_file(
    path: Path,
    control: Sequence[str] = ("<|im_start|>", "<|im_end|>"),
    tied: bool = True,
    **metadata: object,
) -> Path:
    """A random llama as a GGUF file: a vocabulary of bytes and control tokens, and a chat template."""
    tokens, random = [*BYTES, "th", "the", *control], np.random.default_rng(0)
    config = replace(_llama(), vocab=len(tokens), context=512, tied=tied)
    drawn = {name: random.standard_normal(shape, np.float32) for name, shape in config.weights().items()}
    words = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([1] * 258 + [3] * len(control), np.int32),
        "tokenizer.ggml.merges": ["t h", "th e"],
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
        "tokenizer.chat_template": TEMPLATE,
    }
    packed = Tensors({name: formats.pack(array, "F32") for name, array in drawn.items()})
    save.write_checkpoint(path, Checkpoint(config, packed, "llama", path, metadata=words | metadata))
    return path
