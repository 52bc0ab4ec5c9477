"""What quantizing costs: our quantizer beside llama.cpp's, same mixes and text, with and without calibration.

    python bench/quantize.py --llama DIR --folder DIR --write docs/results/quantization.md
    python bench/quantize.py --llama DIR --folder DIR --write docs/results/quantization.md --model gemma.gguf

DIR holds llama-quantize and llama-imatrix. The source is first rewritten as F32 with its channels rescaled,
which changes no logit and takes every weight off the levels of the file it comes from, which another
quantizer may fall on or miss by luck: each norm's channel is multiplied by some s from 0.8 to 1.25 and the
columns that read it divided, and so for the rows of value and up and the columns of out and down. Both
quantizers get this file, and both get llama-imatrix's matrix of one text.

The PyTorch model reads every file, in float32, so that the weights alone count; --engine runtime adds the
runtime's rounding of activations. The text is held out from calibration: windows of 512 tokens of English
(Jane Austen) and code (Python's standard library), the second half of each scored. "bits" is the file's bits
a weight; "seconds" is processor time, of all threads, which other work on the machine changes little. The
interval is Student's of the difference, window by window. Each finished row is kept in --folder,
and a run that was stopped goes on from there."""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import cutaway
from cutaway import gguf, native, store
from cutaway.data import novels
from cutaway.evaluate import perplexity as scoring
from cutaway.evaluate import statistics
from cutaway.quantization import formats, mixes
from cutaway.weights import imatrix, load, quantize, save
from cutaway.weights.named_tensors import Tensors

SPREAD = 1.25
LIBRARY = Path(argparse.__file__).parent


def rescaled(checkpoint: load.Checkpoint) -> load.Checkpoint:
    """The same function in F32, its channels rescaled. For models of Llama's shape."""
    generator = np.random.default_rng(0)
    weights = {name: formats.unpack(checkpoint.tensors[name]).copy() for name in checkpoint.tensors}

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
        checkpoint, tensors=Tensors({name: formats.pack(value, "F32") for name, value in weights.items()})
    )


def texts() -> tuple[str, str, str]:
    """English and code to measure on, and a text to calibrate by."""
    chapters = [path.read_text("utf-8") for path in sorted(novels.folder().glob("*.txt"))]
    sources = [(LIBRARY / name).read_text("utf-8") for name in ("argparse.py", "ast.py")]
    return chapters[7], sources[0], chapters[60][:8_000] + "\n" + sources[1][:8_000]


def run(*command: object) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]}: {(done.stdout + done.stderr)[-500:]}")


def timed(work: Callable[[], object], who: int) -> float:
    """Seconds of processor time that a piece of work takes, in this process or in its children."""
    before = resource.getrusage(who)
    work()
    after = resource.getrusage(who)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


class Bench:
    """The reference model and its windows, and what was measured of each file."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.name = Path(asked.model).stem
        self.folder = asked.folder / self.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.source, self.matrix = self.folder / "reference.gguf", self.folder / "imatrix.gguf"
        path = Path(asked.model)
        if not self.source.exists():
            found = path if path.exists() else store.resolve(asked.model, pull=True)
            save.write_checkpoint(self.source, rescaled(load.read_checkpoint(found)), "gguf")
        self.checkpoint = load.read_checkpoint(self.source)
        self.record = self.folder / f"{asked.engine}-{asked.windows}.json"
        self.rows: dict[str, Any] = json.loads(self.record.read_text()) if self.record.exists() else {}
        self.windows: list[list[int]] = []
        self.reference: list[np.ndarray] = []

    def read(self) -> None:
        """What the reference makes of the windows."""
        english, code, _ = texts()
        lm = cutaway.load(self.source, engine=self.asked.engine)
        for text in (english, code):
            ids = lm.tokenizer.encode(text[:20_000])
            begin = lm.tokenizer.bos if lm.tokenizer.add_bos else None
            self.windows += scoring.windows(lm.engine, ids, scoring.WINDOW, begin)[: self.asked.windows]
        self.reference = [scoring.scores(lm.engine, window) for window in self.windows]
        if "F32" not in self.rows:
            self.keep("F32", {"perplexity": self.perplexity(self.reference)})

    def perplexity(self, found: list[np.ndarray]) -> float:
        half = scoring.WINDOW // 2 + 1
        each = [scoring.surprises(q, w[half:]) for q, w in zip(found, self.windows, strict=True)]
        return float(np.exp(np.concatenate(each).mean()))

    def keep(self, key: str, row: dict[str, Any]) -> None:
        self.rows[key] = row
        self.record.write_text(json.dumps(self.rows))
        print(key, {name: value for name, value in row.items() if name not in ("kl", "types")}, flush=True)

    def measure(self, type: str, who: str, calibrated: bool) -> None:
        """Write a file, read the windows with it, and keep what came out."""
        key = f"{type} {who}{' calibrated' * calibrated}"
        if key in self.rows:
            return
        if not self.reference:
            self.read()
        if calibrated and not self.matrix.exists():
            words = self.folder / "calibration.txt"
            words.write_text(texts()[2], "utf-8")
            run(
                *(self.asked.llama / "llama-imatrix", "-m", self.source, "-f", words, "-o", self.matrix),
                *("-t", native.threads(), "--no-ppl"),
            )
        target = self.folder / "made.gguf"
        write = self.ours if who == "ours" else self.theirs
        whose = resource.RUSAGE_SELF if who == "ours" else resource.RUSAGE_CHILDREN
        seconds = timed(lambda: write(type, target, calibrated), whose)
        stored = gguf.read(target).tensors
        weights = sum(int(np.prod(each.shape)) for each in stored.values())
        types = {name: each.type for name, each in stored.items() if each.type != "F32"}
        reader = cutaway.load(target, engine=self.asked.engine).engine
        found = [scoring.scores(reader, window) for window in self.windows]
        kl = [scoring.divergences(p, q) for p, q in zip(self.reference, found, strict=True)]
        row = {
            "bits": 8 * target.stat().st_size / weights,
            "seconds": seconds,
            "perplexity": self.perplexity(found),
            "kl": np.concatenate(kl).tolist(),
            "types": types,
        }
        self.keep(key, row)
        target.unlink()

    def ours(self, type: str, target: Path, calibrated: bool) -> None:
        by = imatrix.read_imatrix(self.matrix, self.checkpoint)[0] if calibrated else None
        made = quantize.quantized(self.checkpoint, type, by)
        save.write_checkpoint(target, made.checkpoint, "gguf", file_type=made.file_type, force=True)

    def theirs(self, type: str, target: Path, calibrated: bool) -> None:
        options = ("--imatrix", self.matrix) if calibrated else ()
        run(self.asked.llama / "llama-quantize", *options, self.source, target, type, native.threads())

    def table(self) -> str:
        """The finished rows in Markdown, and what the files hold."""
        lines = [
            "| type | calibrated | bits | KL, ours | theirs | apart | perplexity | theirs | s | theirs |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for type in mixes.MIXES:
            for words in ("", " calibrated"):
                pair = [self.rows.get(f"{type} {who}{words}") for who in ("ours", "theirs")]
                if None not in pair:
                    lines.append(_line(type, bool(words), *pair))
        held = [
            f"- {type}: {_held(self.rows[f'{type} ours'])}"
            for type in mixes.MIXES
            if f"{type} ours" in self.rows
        ]
        return "\n".join([*lines, "", "What the files hold, matrices of each type:", "", *held])


def _line(type: str, calibrated: bool, ours: Any, theirs: Any) -> str:
    if ours["types"] != theirs["types"]:
        sys.exit(f"{type}: the two files hold other types")
    kl, other = np.array(ours["kl"]), np.array(theirs["kl"])
    apart = kl - other
    best = "**" if kl.mean() <= other.mean() else ""
    windows = np.arange(len(apart)) // (scoring.WINDOW // 2 - 1)
    found = statistics.paired(kl, other, windows, share=False).difference
    return (
        f"| {type} | {'yes' if calibrated else 'no'} | {ours['bits']:.2f} | {best}{kl.mean():.5f}{best} | "
        f"{other.mean():.5f} | {found.value:+.5f} ({found.between('+.5f')}) | {ours['perplexity']:.3f} | "
        f"{theirs['perplexity']:.3f} | {ours['seconds']:.1f} | {theirs['seconds']:.1f} |"
    )


def _held(row: Any) -> str:
    types = list(row["types"].values())
    return ", ".join(
        f"{types.count(each)} {each}" for each in sorted(set(types), key=types.count, reverse=True)
    )


def replaced(page: str, name: str, table: str) -> str:
    """The page with the table between its marks."""
    begin, end = f"<!-- bench/quantize.py {name} -->", f"<!-- end {name} -->"
    if begin not in page or end not in page:
        sys.exit(f"the page has no marks {begin} and {end}")
    return re.sub(
        f"{re.escape(begin)}.*{re.escape(end)}", lambda _: f"{begin}\n{table}\n{end}", page, flags=re.DOTALL
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Our quantizer beside llama.cpp's.")
    parser.add_argument("--llama", type=Path, required=True)
    parser.add_argument("--model", default="smollm2", help="a name or a GGUF file of Llama's shape")
    parser.add_argument("--types", nargs="+", choices=mixes.MIXES, default=list(mixes.MIXES))
    parser.add_argument("--windows", type=int, default=4, help="of each of the two texts")
    parser.add_argument("--engine", choices=("runtime", "pytorch"), default="pytorch")
    parser.add_argument("--folder", type=Path, required=True, help="where the files and finished rows go")
    parser.add_argument("--write", type=Path, help="the page whose table this is")
    asked = parser.parse_args()
    bench = Bench(asked)
    for type in asked.types:
        for calibrated in (False, True):
            for who in ("ours", "theirs"):
                bench.measure(type, who, calibrated)
    found = f"F32: perplexity {bench.rows['F32']['perplexity']:.3f}\n\n{bench.table()}"
    print(found)
    if asked.write:
        asked.write.write_text(replaced(asked.write.read_text("utf-8"), bench.name, found), "utf-8")


if __name__ == "__main__":
    main()
