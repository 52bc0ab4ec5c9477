"""A mixture of experts beside a dense model that costs a token as much, in the runtime and in llama.cpp.

    python bench/moe.py [--llama-bench PATH] [--rounds N] [--folder FOLDER] [--types TYPE ...]

Two random models of 12 layers of width 1,024 are written as GGUF, in Q4_0 and in Q8_0: one whose MLP has
3,584 neurons, and one with eight experts of 1,792, of which a token passes two. Nothing is learned in them;
speed does not ask. Each is decoded (64 tokens), read (512 tokens) and decoded for eight texts at once, by us
and by llama-bench and llama-batched-bench, rounds in turn and the best of each counting. The files take
1.7 GB while it runs, unless --folder keeps them; three rounds take about four minutes on two cores."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from runtime import theirs

from cutaway import native
from cutaway.attention import gqa
from cutaway.gguf import Later, Packed
from cutaway.layers.config import MLP, MoE
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.position import rope
from cutaway.quantization import formats
from cutaway.runtime import prefetching
from cutaway.runtime.engine import RuntimeEngine
from cutaway.runtime.measure import figures
from cutaway.weights import load, save
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors, is_kept_whole

WIDTH, LAYERS, VOCAB, CONTEXT = 1024, 12, 8192, 2560
MLPS = {"dense": MLP(3584), "sparse": MoE(experts=8, top_k=2, hidden=1792)}
NAMES = ("decode", "read 512", "8 texts")


def written(folder: Path, name: str, type: str) -> Path:
    """The file of a random model, made if it is not there."""
    path = folder / f"{name}.{type}.gguf"
    if path.exists():
        return path
    heads = gqa.Config(heads=16, kv_heads=4, key_size=64, position=rope.Config(64))
    config = Decoder(VOCAB, WIDTH, CONTEXT, (Block(heads, MLPS[name]),) * LAYERS)
    generator = np.random.default_rng(0)

    def entry(weight: str, shape: tuple[int, ...]) -> Later:
        wanted = "F32" if is_kept_whole(weight, shape) else type

        def make() -> Packed:
            if len(shape) == 1:
                return formats.pack(np.ones(shape, np.float32), wanted)
            values = generator.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
            return formats.pack(values, wanted)

        return Later(wanted, shape, make)

    tensors = Tensors({weight: entry(weight, shape) for weight, shape in config.weights().items()})
    save.write_checkpoint(path, Checkpoint(config, tensors, None, path))
    return path


def ours(path: Path) -> dict[str, float]:
    checkpoint = load.read_checkpoint(path)
    assert isinstance(checkpoint.config, Decoder)
    engine = RuntimeEngine(checkpoint.config, checkpoint.tensors)
    prefetching.choose(engine)
    return figures(engine, decode=64)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--types", nargs="+", default=["Q4_0", "Q8_0"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as beside:
        for type in asked.types:
            for name in MLPS:
                path = written(asked.folder or Path(beside), name, type)
                best: dict[str, float] = {}
                peer: dict[str, float] = {}
                for _ in range(asked.rounds):
                    best = better(best, ours(path))
                    if asked.llama_bench:
                        peer = better(peer, theirs(asked.llama_bench, path, native.threads()))
                show(path, best, peer)


def show(path: Path, best: dict[str, float], peer: dict[str, float]) -> None:
    print(f"{path.name}, {path.stat().st_size / 1e6:.0f} MB, {best['bytes a token'] / 1e6:.0f} MB a token")
    for name in NAMES:
        beside = f"  {peer[name]:8.1f}  {best[name] / peer[name]:5.2f}x" if name in peer else ""
        print(f"  {name:<12}{best[name]:8.1f} tokens/s{beside}")


def better(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {name: max(value, one.get(name, 0.0)) for name, value in other.items()}


if __name__ == "__main__":
    main()
