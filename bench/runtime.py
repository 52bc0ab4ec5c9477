"""The runtime beside llama.cpp: same file, same threads, in one run; and what limits each figure.

    python bench/runtime.py [--llama-bench PATH] [--ik-llama-bench PATH] [--rounds N] [MODEL.gguf ...]

Without files: the default model's own (Q4_1), and Q4_0, Q8_0 and BF16 made of it by the llama-quantize
beside llama-bench. Each is decoded (128 tokens, and 32 at depth 2,000), read (512 tokens), and decoded for
eight texts at once, by us, by llama-bench and llama-batched-bench (build them from llama.cpp with
-DGGML_NATIVE=ON), and but for the eight texts by ik_llama.cpp's llama-bench (the better of -rtr 0 and 1).
Rounds of all alternate and the best of each counts, since a machine that others use only ever makes a round
slower. "of read" is decoding's fraction of the speed of a loop that only reads as many bytes, both in turns
of eight tokens. Then, for the first file, processes: seconds from the start of `cutaway generate`, with its
bytecode compiled as an installed package has it, to the first byte of its text, beside llama-simple and
llama-cli from start to end; and our peak memory as a multiple of the file. Last, the peers of
bench/runtime_peers.py that are installed (openvino-genai, ctranslate2, transformers), on the same weights
in the forms they read. Takes about eight minutes on two cores. --files-only measures the files alone: a
minute for one of a billion weights and a round (three with ik_llama.cpp)."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from llama_bench import speed, speed_of_ik
from runtime_peers import PEERS

import cutaway
from cutaway import native, store
from cutaway.model.config import Decoder
from cutaway.runtime import prefetching
from cutaway.runtime.engine import RuntimeEngine
from cutaway.runtime.measure import figures
from cutaway.weights import load as reader

ROUNDS = 3
PROMPT = "The capital of France is"
BARS = {"decode": {"Q4_1": 2.0, "Q4_0": 1.5, "Q8_0": 1.5, "BF16": 1.2}, "decode at 2000": 1.5, "8 texts": 1.5}
READING_BAR = 2.0  # times llama.cpp's best format
PEAK = """
import runpy, sys
from pathlib import Path
sys.argv = sys.argv[1:]
try:
    runpy.run_module("cutaway", run_name="__main__", alter_sys=True)
finally:
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(line.split()[1] for line in lines if line.startswith("VmHWM")), file=sys.stderr)
"""


def ours(path: Path, threads: int) -> dict[str, float]:
    checkpoint = reader.read_checkpoint(path)
    config = checkpoint.config
    if not isinstance(config, Decoder):
        raise SystemExit(f"{path} is an encoder: there is nothing to decode")
    engine = RuntimeEngine(config, checkpoint.tensors, threads)
    prefetching.choose(engine)
    return figures(engine)


def theirs(program: Path, path: Path, threads: int) -> dict[str, float]:
    """llama-bench's figures; eight texts are what llama-batched-bench, which is beside it, says."""
    tests = {
        "decode": ("-p", 0, "-n", 128),
        "decode at 2000": ("-p", 0, "-n", 32, "-d", 2000),
        "read 512": ("-p", 512, "-n", 0),
    }
    out = {name: speed(program, path, threads, *arguments) for name, arguments in tests.items()}
    batched = program.with_name("llama-batched-bench")
    if batched.exists():
        sizes = ["-npp", "32", "-ntg", "32", "-npl", "8", "-c", "2048"]
        rows = output([batched, "-m", path, "-t", threads, *sizes]).splitlines()
        out["8 texts"] = float(
            next(row for row in rows if row.startswith("|") and " 8 |" in row).split("|")[8]
        )
    return out


def theirs_of_ik(program: Path, path: Path, threads: int) -> dict[str, float]:
    """The figures of ik_llama.cpp's llama-bench."""
    tests = {"decode": ("-n", 128), "decode at 2000": ("-gp", "2000,32"), "read 512": ("-p", 512)}
    return {
        name: speed_of_ik(program, path, threads, "-p", 0, "-n", 0, *arguments)
        for name, arguments in tests.items()
    }


def output(command: list[object]) -> str:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout


def to_first_byte(command: list[str], environment: dict[str, str]) -> float:
    """Seconds from the start of a process to the first byte that it writes."""
    before = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - before
        process.stdout.read()
    return seconds


def to_end(command: list[object]) -> float:
    before = time.perf_counter()
    output(command)
    return time.perf_counter() - before


def starts(path: Path, llama_bench: Path | None, threads: int, bytecode: Path) -> None:
    """Prints what processes take that say one token, and our peak memory."""
    verb = ["generate", PROMPT, "--model", str(path), "--max-tokens", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(bytecode)
    command = [sys.executable, "-m", "cutaway", *verb]
    line = f"  to first token  {min(to_first_byte(command, environment) for _ in range(6)):8.2f} s"
    for name, times, more in (
        ("llama-simple", 5, ["-n", "1", PROMPT]),
        ("llama-cli", 1, ["-n", "1", "-st", "-p", PROMPT, "-t", threads]),
    ):
        program = llama_bench and llama_bench.with_name(name)
        if program and program.exists():
            line += f"  {name} {min(to_end([program, '-m', path, *more]) for _ in range(times)):.2f} s"
    print(line)
    if Path("/proc/self/status").exists():
        run = subprocess.run(
            [sys.executable, "-c", PEAK, "cutaway", *verb], capture_output=True, text=True, check=True
        )
        peak, size = int(run.stderr.split()[-1]) * 1024, path.stat().st_size
        print(f"  peak memory     {peak / size:8.2f} of the file ({peak / 1e6:.0f} MB of {size / 1e6:.0f})")


def made(folder: Path, llama_bench: Path | None) -> list[Path]:
    """The default model, and where there is a llama-quantize, the same in other types."""
    default = store.resolve("smollm2", pull=True)
    out = [default]
    quantize = llama_bench and llama_bench.with_name("llama-quantize")
    if quantize and quantize.exists():
        for type in "Q4_0", "Q8_0", "BF16":
            out.append(folder / f"{default.name.split('.')[0]}.{type}.gguf")
            output([quantize, "--allow-requantize", default, out[-1], type])
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--ik-llama-bench", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--files-only",
        action="store_true",
        help="leave out processes and the peers of bench/runtime_peers.py",
    )
    parser.add_argument("models", nargs="*", type=Path)
    asked = parser.parse_args()
    threads = native.threads()
    with tempfile.TemporaryDirectory() as folder:
        reading: dict[str, tuple[float, float]] = {}
        paths = asked.models or made(Path(folder), asked.llama_bench)
        for path in paths:
            peers = {}
            if asked.llama_bench:
                peers["llama.cpp"] = partial(theirs, asked.llama_bench)
            if asked.ik_llama_bench:
                peers["ik_llama.cpp"] = partial(theirs_of_ik, asked.ik_llama_bench)
            best, found = compared(path, peers, asked.rounds, threads)
            reading[path.name] = best["read 512"], found.get("llama.cpp", {}).get("read 512", 0.0)
            if len(reading) == 1 and not asked.files_only:
                starts(path, asked.llama_bench, threads, Path(folder))
        if not asked.files_only:
            others(paths, threads, Path(folder) / "as-hugging-face")
    fastest = max(peer for _, peer in reading.values())
    if fastest:
        print(f"reading 512, beside llama.cpp's fastest format ({fastest:.0f} tokens/s; bar {READING_BAR}x):")
        for name, (rate, _) in reading.items():
            print(f"  {name:<40}{rate:8.1f} tokens/s  {rate / fastest:5.2f}x")


def compared(
    path: Path, peers: Mapping[str, Callable[[Path, int], dict[str, float]]], rounds: int, threads: int
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Prints one file's figures: ours, each peer's, our multiple of it, and the bar it is held to."""
    best: dict[str, float] = {}
    found: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        best = _better(best, ours(path, threads))
        for peer, measure in peers.items():
            found[peer] = _better(found.get(peer, {}), measure(path, threads))
    print(
        f"{path.name}, {native.isa()}, {threads} threads, load {os.getloadavg()[0]:.1f}, "
        f"bytes of a token alone read at {best['bytes a second'] / 1e9:.1f} GB/s"
    )
    type = path.name.split(".")[-2]
    for name in ("decode", "decode at 2000", "read 512", "8 texts"):
        bar = BARS.get(name)
        bar = bar.get(type) if isinstance(bar, dict) else bar
        line = f"  {name:<16}{best[name]:8.1f} tokens/s"
        for peer, speeds in found.items():
            if name in speeds:
                line += f"  {peer} {speeds[name]:8.1f}  {best[name] / speeds[name]:5.2f}x"
        print(line + (f" (bar {bar}x)" if bar and found else ""))
    print(f"  of read         {100 * best['fraction of reading']:8.0f} % (bar 90)", flush=True)
    return best, found


def others(paths: list[Path], threads: int, folder: Path) -> None:
    """Prints what each further peer reaches, in a process of its own."""
    cutaway.load(paths[0], engine="pytorch").save(folder, format="safetensors")
    print(f"{'':<28}{'read 512':>10}{'decode':>10} tokens/s")
    for peer in PEERS:
        if importlib.util.find_spec(peer) is None:
            print(f"  {peer} is not installed")
            continue
        for source in paths if peer == "openvino_genai" else [folder]:
            command = [sys.executable, Path(__file__).with_name("runtime_peers.py"), peer, source, threads]
            run = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
            if run.returncode:
                print(f"  {peer} does not run {source.name}: {run.stderr.strip().splitlines()[-1]}")
                continue
            for form, rates in json.loads(run.stdout.splitlines()[-1]).items():
                print(f"  {peer + ' ' + form:<26}{rates['read 512']:10.1f}{rates['decode']:10.1f}")


def _better(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {name: max(value, one.get(name, 0.0)) for name, value in other.items()}


if __name__ == "__main__":
    main()
