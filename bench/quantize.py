"""What quantizing costs: our quantizer beside llama.cpp's, same types and text, with and without calibration.

    python bench/quantize.py --llama DIR [--types Q4_0 Q4_K ...] [--windows 4] [--folder DIR]

DIR holds llama-quantize, and llama-imatrix for the calibrated rows. The model is SmolLM2, whose file is Q4_1
already: its weights lie on sixteen levels a block, which another quantizer may fall on or miss by luck. So it
is first rewritten as F32 with its channels rescaled, which changes no logit and takes every weight off its
level: each norm's channel is multiplied by some s from 0.8 to 1.25 and the columns that read it divided, and
so for the rows of value and up and the columns of out and down. Both quantizers get this file.

Every file is read by the runtime, which rounds activations to 8 bits for packed types; --engine definition
leaves that out, so that the weights alone count, and takes some times longer. The text is held out from
calibration (--calibrate): windows of 512 tokens of English (Jane Austen) and code (Python's standard
library), the second half of each scored. "bits" is the file's bits a weight."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import cutaway
from cutaway import native, store
from cutaway.data import novels
from cutaway.evaluate import perplexity as scoring
from cutaway.inspect.importance import importance
from cutaway.lm import LanguageModel
from cutaway.weights import load, quant, quantize, save
from cutaway.weights.rules import Tensors

THEIRS = {"Q8_0": "Q8_0", "Q6_K": "Q6_K", "Q4_K": "Q4_K_M", "Q4_1": "Q4_1", "Q4_0": "Q4_0"}
SPREAD = 1.25
Writer = Callable[[str, Path], object]
LIBRARY = Path(argparse.__file__).parent


def rescaled(checkpoint: load.Checkpoint) -> load.Checkpoint:
    """The same function in F32, its channels rescaled. For models of Llama's shape."""
    generator = np.random.default_rng(0)
    weights = {name: quant.unpack(checkpoint.tensors[name]).copy() for name in checkpoint.tensors}

    def factors(n: int) -> np.ndarray:
        return np.exp(generator.uniform(-np.log(SPREAD), np.log(SPREAD), n)).astype(np.float32)

    for n, block in enumerate(checkpoint.config.blocks):
        path, attention = f"blocks.{n}", block.attention
        for norm, readers in (
            ("attention_norm", ("attention.query", "attention.key", "attention.value")),
            ("mlp_norm", ("mlp.gate", "mlp.up")),
        ):
            s = factors(len(weights[f"{path}.{norm}.weight"]))
            weights[f"{path}.{norm}.weight"] *= s
            for reader in readers:
                weights[f"{path}.{reader}.weight"] /= s
        s = factors(attention.groups * attention.values)
        weights[f"{path}.attention.value.weight"] *= s[:, None]
        shared = s.reshape(attention.groups, 1, -1).repeat(attention.heads // attention.groups, 1)
        weights[f"{path}.attention.out.weight"] /= shared.ravel()
        s = factors(len(weights[f"{path}.mlp.up.weight"]))
        weights[f"{path}.mlp.up.weight"] *= s[:, None]
        weights[f"{path}.mlp.down.weight"] /= s
    return replace(
        checkpoint, tensors=Tensors({name: quant.pack(value, "F32") for name, value in weights.items()})
    )


def texts() -> tuple[str, str, str]:
    """English and code to measure on, and a text to calibrate by."""
    chapters = [path.read_text("utf-8") for path in sorted(novels.folder().glob("*.txt"))]
    sources = [(LIBRARY / name).read_text("utf-8") for name in ("argparse.py", "ast.py")]
    return chapters[7], sources[0], chapters[60][:8_000] + "\n" + sources[1][:8_000]


def row(name: str, path: Path, engine: Any, windows: list[list[int]], reference: list[np.ndarray]) -> str:
    reader = cutaway.load(path, engine=engine).engine
    found = [scoring.scores(reader, window) for window in windows]
    half = scoring.WINDOW // 2 + 1
    kl = np.concatenate([scoring.divergences(p, q) for p, q in zip(reference, found, strict=True)])
    seen = [scoring.surprises(q, window[half:]) for q, window in zip(found, windows, strict=True)]
    weights = sum(int(np.prod(shape)) for shape in cutaway.load(path).config.weights().values())
    bits = 8 * path.stat().st_size / weights
    error = kl.std(ddof=1) / len(kl) ** 0.5
    halves = [part.mean() for part in np.split(kl, 2)]
    return (
        f"{name:<28}{bits:6.2f}{np.exp(np.concatenate(seen).mean()):11.3f}{kl.mean():11.5f} +/- {error:.5f}"
        f"{halves[0]:11.5f}{halves[1]:11.5f}"
    )


def run(*command: object) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]}: {done.stderr[-500:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Our quantizer beside llama.cpp's.")
    parser.add_argument("--llama", type=Path, required=True)
    parser.add_argument("--types", nargs="+", choices=THEIRS, default=list(THEIRS))
    parser.add_argument("--windows", type=int, default=4, help="of each of the two texts")
    parser.add_argument("--engine", choices=("runtime", "definition"), default="runtime")
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the files go, and are found again; else removed")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        compare(asked, asked.folder or Path(scratch))


def compare(asked: argparse.Namespace, folder: Path) -> None:
    source = folder / "reference.gguf"
    if not source.exists():
        save.write(source, rescaled(load.read(store.resolve("smollm2", pull=True))), "gguf")
    english, code, calibration = texts()
    lm = cutaway.load(source, engine=asked.engine)
    windows = [
        window
        for text in (english, code)
        for window in scoring.windows(lm.engine, lm.tokenizer.encode(text), scoring.WINDOW, None)[
            : asked.windows
        ]
    ]
    reference = [scoring.scores(lm.engine, window) for window in windows]
    writers = {"ours": ours(lm.checkpoint, None), "llama.cpp": theirs(asked.llama, source)}
    if asked.calibrate:
        writers |= calibrated(asked.llama, lm, calibration, folder)
    print(f"{len(windows)} windows of {scoring.WINDOW}, by the {asked.engine}; KL divergence in nats a token")
    print(f"{'':<28}{'bits':>6}{'perplexity':>11}{'KL':>11}{'':>12}{'English':>11}{'code':>11}")
    print(row("F32", source, asked.engine, windows, reference), flush=True)
    for type in asked.types:
        for name, write in writers.items():
            target = folder / f"{type}-{name.replace(' ', '-')}.gguf"
            write(type, target)
            print(row(f"{type} {name}", target, asked.engine, windows, reference), flush=True)


def ours(checkpoint: load.Checkpoint, by: quantize.Importance | None) -> Writer:
    return lambda type, target: save.write(
        target, quantize.quantized(checkpoint, type, by).checkpoint, "gguf", force=True
    )


def theirs(llama: Path, source: Path, *options: object) -> Writer:
    return lambda type, target: run(
        llama / "llama-quantize", *options, source, target, THEIRS[type], native.threads()
    )


def calibrated(llama: Path, lm: LanguageModel, text: str, folder: Path) -> dict[str, Writer]:
    """Both quantizers, weighted by the importance from the same text."""
    words, seen, matrix = (folder / name for name in ("calibration.txt", "seen.npz", "imatrix.gguf"))
    source = folder / "reference.gguf"
    words.write_text(text, "utf-8")
    if not seen.exists():
        found = importance(cutaway.load(source, engine="definition").model, lm.ids(text))
        np.savez(seen, **found)
    if not matrix.exists():
        run(llama / "llama-imatrix", "-m", source, "-f", words, "-o", matrix, "-t", native.threads())
    return {
        "ours calibrated": ours(lm.checkpoint, dict(np.load(seen))),
        "llama.cpp calibrated": theirs(llama, source, "--imatrix", matrix),
    }


if __name__ == "__main__":
    main()
