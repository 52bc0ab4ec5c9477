"""Which type each tensor gets: ours beside llama-quantize's, for every mix, with and without calibration.

    python -m scripts.check.quantize_layouts --llama DIR

DIR holds llama-quantize, which is asked for its plan alone (--dry-run). The models are small and random: a
Llama with grouped heads and with equal ones, rows that are whole blocks of 256 and rows that are not, tied
and untied, 80 layers, eight experts and three, and query, key and value in one matrix. Ends with 1 if a
tensor differs. Takes some seconds."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from cutaway.attention import gqa
from cutaway.layers.config import MLP, MoE
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.position import rope
from cutaway.quantization import formats, mixes
from cutaway.weights import family_registry, imatrix, quantize, rules, save
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors
from tests.small import decoder

LINE = re.compile(r"\] +(\S+) +- \[.*?type = +(\w+), +(?:size = .*?(?:\((\w+)\))?)?$", re.MULTILINE)


def model(layers: int, width: int = 256, groups: int = 2, tied: bool = True, experts: int = 0) -> Checkpoint:
    """A random Llama, or a Mixtral."""
    heads = gqa.Config(heads=8, kv_heads=groups, key_size=width // 8, position=rope.Config(width // 8))
    mlp = MoE(experts, 2, 256) if experts else MLP(256)
    config = Decoder(64, width, 64, (Block(heads, mlp),) * layers, tied=tied)
    tensors = {
        name: formats.pack(np.full(shape, 0.1, np.float32), "F32") for name, shape in config.weights().items()
    }
    return Checkpoint(config, Tensors(tensors), "mixtral" if experts else "llama", Path("tiny"))


def fused() -> Checkpoint:
    """A GPT-2, whose file has query, key and value in one matrix."""
    made = decoder("gpt2")
    tensors = {name: formats.pack(weight.detach().numpy(), "F32") for name, weight in made.named_parameters()}
    return Checkpoint(made.config, Tensors(tensors), "gpt2", Path("tiny"))


MODELS = {
    "16 layers": lambda: model(16),
    "17 layers, two heads a key": lambda: model(17, groups=4),
    "32 layers, untied": lambda: model(32, groups=4, tied=False),
    "rows of 96": lambda: model(9, width=96),
    "80 layers": lambda: model(80),
    "eight experts": lambda: model(9, experts=8),
    "three experts": lambda: model(9, experts=3),
    "one matrix of query, key and value": fused,
}


def theirs(llama: Path, source: Path, mix: str, matrix: Path | None) -> dict[str, str]:
    """The type of each tensor in llama-quantize's plan."""
    words = ["--imatrix", str(matrix)] if matrix else []
    command = [str(llama / "llama-quantize"), "--dry-run", *words, str(source), mix]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = {name: (new or old).upper() for name, old, new in LINE.findall(done.stdout + done.stderr)}
    if done.returncode or not found:
        sys.exit(f"{' '.join(command)}: {(done.stdout + done.stderr)[-2000:]}")
    return found


def ours(checkpoint: Checkpoint, mix: str, calibrated: bool) -> dict[str, str]:
    """The type of each tensor in the file that we would write."""
    made = quantize.quantized(checkpoint, mix, {} if calibrated else None).checkpoint
    table = family_registry.get(checkpoint.family or "").gguf
    return {
        each.theirs: made.tensors.later(each.ours[0]).type for each in rules.bind(table, checkpoint.config)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The types of every mix's tensors beside llama-quantize's.")
    parser.add_argument("--llama", type=Path, required=True)
    llama = parser.parse_args().llama
    wrong = compared = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, make in MODELS.items():
            checkpoint, source, matrix = make(), Path(folder) / "model.gguf", Path(folder) / "imatrix.gguf"
            save.write_checkpoint(source, checkpoint, "gguf", force=True)
            sums = {
                each: (np.ones(checkpoint.tensors.later(each).shape[-1]), 1) for each in checkpoint.tensors
            }
            imatrix.write_imatrix(matrix, checkpoint, sums, "ones", 512, force=True)
            for mix in mixes.KINDS:
                for calibrated in (False, True):
                    expected = theirs(llama, source, mix, matrix if calibrated else None)
                    found = ours(checkpoint, mix, calibrated)
                    compared += len(found)
                    for each in sorted(found):
                        if found[each] != expected.get(each):
                            wrong += 1
                            what = f"{each} {found[each]}, not {expected.get(each)}"
                            print(f"{name}, {mix}{' calibrated' * calibrated}: {what}")
    print(f"{compared:,} tensors of {len(MODELS)} models and {len(mixes.KINDS)} mixes, {wrong} differ")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
