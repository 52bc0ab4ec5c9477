"""Shapes of gpt-oss, a gated-delta hybrid and latent attention: the runtime beside llama.cpp on one file.

    python -m bench.families --llama-bench PATH --folder FOLDER [--rounds 3] [--mix Q4_0] [--shapes mla]

Weights are random, about 300 MB a file (bench/shapes.py), written once. In each round both read 512 tokens
and decode 128, in turns, llama.cpp without and with flash attention; the best of a test's rounds counts,
since a machine that others use only ever makes a round slower, and the median of the rounds' ratios is
beside it. Prints a Markdown table. A round of all shapes takes about two minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
from pathlib import Path
from typing import Any

from bench import shapes
from bench.llama_bench import speeds
from cutaway.model.config import Decoder
from cutaway.native import library
from cutaway.quantization import mixes
from cutaway.runtime import prefetching
from cutaway.runtime.engine import RuntimeEngine
from cutaway.runtime.measure import Test, prepared
from cutaway.weights import family_registry, load
from cutaway.weights.fields import Fields

PLAIN = {"vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": False}
YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "rope_theta": 150000.0}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {  # the family, and what its config.json has
    "gpt-oss": (
        "gpt_oss",
        {"hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 4}
        | {"head_dim": 64, "num_local_experts": 16, "num_experts_per_tok": 4, "intermediate_size": 1024}
        | {"sliding_window": 128, "rope_parameters": YARN},
    ),
    "gated-delta": (
        "qwen3_5",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 8, "num_key_value_heads": 2}
        | {"head_dim": 256, "intermediate_size": 3584, "linear_num_value_heads": 16},
    ),
    "mla": (
        "deepseek_v3",
        {"hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 16, "num_key_value_heads": 16}
        | {
            "q_lora_rank": 768,
            "n_routed_experts": 16,
            "num_experts_per_tok": 4,
            "n_group": 1,
            "topk_group": 1,
        }
        | {"moe_intermediate_size": 768, "intermediate_size": 4096, "first_k_dense_replace": 1},
    ),
}
TESTS = (Test(prompt=512), Test(tokens=128))


def written(folder: Path, shape: str, mix: str) -> Path:
    """The file of a shape in a mix, made if it is not there."""
    path = folder / f"{shape}.{mix}.gguf"
    if not path.exists():
        family, words = SHAPES[shape]
        config = family_registry.get(family).read(Fields(PLAIN | words, shape))
        assert isinstance(config, Decoder)
        shapes.of_config(path, config, family, mix)
    return path


def theirs(program: Path, path: Path, test: Test, threads: int) -> float:
    """llama.cpp's tokens/s, the better of without and with flash attention.

    Where its buffers for AMX take the matrices of latent attention's heads it aborts, without a product for
    them: there it runs without those buffers.
    """
    sizes = ("-p", test.prompt, "-n", test.tokens, "-fa", "0,1")
    try:
        return max(speeds(program, path, threads, *sizes))
    except subprocess.CalledProcessError as error:
        if error.returncode >= 0:
            raise
        return max(speeds(program, path, threads, *sizes, "--repack", 0))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mix", choices=mixes.MIXES, default="Q4_0")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    threads = library.threads()
    print(f"{threads} threads, {asked.mix}, {asked.rounds} rounds; tokens/s, best of the rounds\n")
    print("| shape | MB | test | Cutaway | llama.cpp | ratio | median ratio |\n|---|---|---|---|---|---|---|")
    for shape in asked.shapes:
        path = written(asked.folder, shape, asked.mix)
        checkpoint = load.read_checkpoint(path)
        assert isinstance(checkpoint.config, Decoder)
        engine = RuntimeEngine(checkpoint.config, checkpoint.tensors, threads)
        prefetching.choose(engine)
        runs = {test: prepared(engine, test) for test in TESTS}
        found: dict[Test, list[tuple[float, float]]] = {test: [] for test in TESTS}
        for _ in range(asked.rounds):
            for test, ours in runs.items():
                found[test].append((ours(), theirs(asked.llama_bench, path, test, threads)))
        for test, pairs in found.items():
            best, peer = (max(each) for each in zip(*pairs, strict=True))
            ratio = statistics.median(one / other for one, other in pairs)
            print(
                f"| {shape} | {path.stat().st_size / 1e6:.0f} | {test.name} | {best:.0f} | {peer:.0f} | "
                f"{best / peer:.2f} | {ratio:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
