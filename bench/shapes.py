"""GGUF files of the shapes that people run, 1 to 8 billion random weights, in `cutaway quantize`'s mixes.

    python -m bench.shapes 1b Q4_K_M Q8_0 --folder FOLDER     # a second or two a gigabyte

Widths, heads and vocabulary are those of Llama 3.2 (1B, 3B) and 3.1 (8B). Nothing is learned in them, and the
rows of a matrix repeat after 64: speed and memory do not ask. The tokenizer is SmolLM2's, whose vocabulary
is smaller: the other ids have no text.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import cutaway
from cutaway.attention import gqa
from cutaway.gguf import Later, Packed
from cutaway.layers.config import MLP
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.position import rope
from cutaway.quantization import formats, mixes, search
from cutaway.weights import load, named_tensors, quantize, save
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors

VOCAB, CONTEXT, ROWS = 128256, 131072, 64
SHAPES = {  # width, layers, heads, key-value heads, size of a head, neurons, head is the embedding table
    "1b": (2048, 16, 32, 8, 64, 8192, True),
    "3b": (3072, 28, 24, 8, 128, 8192, True),
    "8b": (4096, 32, 32, 8, 128, 14336, False),
}


def written(folder: Path, shape: str, mix: str) -> Path:
    """The file of a shape in a mix, made if it is not there."""
    path = folder / f"{shape}.{mix}.gguf"
    if path.exists():
        return path
    width, layers, heads, kv_heads, size, hidden, tied = SHAPES[shape]
    attention = gqa.Config(
        heads=heads, kv_heads=kv_heads, key_size=size, position=rope.Config(size, base=500000.0)
    )
    config = Decoder(VOCAB, width, CONTEXT, (Block(attention, MLP(hidden)),) * layers, tied=tied)
    return of_config(path, config, "llama", mix)


def of_config(path: Path, config: Decoder, family: str, mix: str) -> Path:
    """The file of a config in a mix."""
    generator = np.random.default_rng(0)
    floats = Tensors(
        {
            name: Later("F32", shape, lambda: formats.pack(np.ones(1, np.float32), "F32"))
            for name, shape in config.weights().items()
        }
    )
    source = load.read_checkpoint(cutaway.store.resolve("smollm2", pull=True))
    bare = Checkpoint(config, floats, family, path, source.read_tokenizer, source.chat_template)
    small = quantize.quantized(bare, mix)

    def entry(type: str, shape: tuple[int, ...]) -> Later:
        def make() -> Packed:
            if len(shape) < 2:
                return formats.pack(np.ones(shape, np.float32), type)
            rows = generator.standard_normal((ROWS, shape[-1]), np.float32) * np.float32(shape[-1] ** -0.5)
            few = (search if type in search.FITTED else formats).pack(rows, type)
            return Packed(type, shape, np.resize(few.data, (shape[0], few.data.shape[-1])))

        return Later(type, shape, make)

    kinds = {name: small.checkpoint.tensors.later(name) for name in config.weights()}

    def alike(one: Packed | Later) -> Packed | Later:
        if isinstance(one, named_tensors.Absorbed):
            return named_tensors.of_absorbed(alike(one.stored), one.shape[0] // one.stored.shape[1])
        return entry(one.type, one.shape)

    tensors = Tensors({name: alike(one) for name, one in kinds.items()})
    save.write_checkpoint(
        path, Checkpoint(config, tensors, family, path, bare.read_tokenizer, bare.chat_template)
    )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("mixes", nargs="+", choices=mixes.MIXES)
    parser.add_argument("--folder", type=Path, required=True)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    for mix in asked.mixes:
        path = written(asked.folder, asked.shape, mix)
        print(f"{path}  {path.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
