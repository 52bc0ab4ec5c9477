"""The test suite as other processors run it, and which tests fail where.

PyTorch, oneDNN, MKL and the native core are held to the instruction sets of lesser processors, at one thread
and at two; a row for each, and each failure. A set that this processor lacks is named and left out.

    python -m scripts.check.other_processors           # five sets at one and two threads, ten minutes each
    python -m scripts.check.other_processors --sets sse4.1,avx2 --threads 1 tests/test_runtime.py tests/parity
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

SETS = {  # oneDNN's, ATen's, the native core's, MKL's
    "sse4.1": ("SSE41", "default", "portable", "COMPATIBLE"),
    "avx2": ("AVX2", "avx2", "avx2", "AVX2"),
    "avx_vnni": ("AVX2_VNNI", "avx2", "avx_vnni", "AVX2"),
    "avx512": ("AVX512_CORE", "avx512", "avx512", "AVX512"),
    "avx512_bf16": ("AVX512_CORE_BF16", "avx512", "avx512_bf16", "AVX512"),
}
NAMES = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "CUTAWAY_ISA", "MKL_CBWR")
COUNTED = re.compile(r"(\d+) (passed|failed|skipped|error)")


def environment(name: str, threads: int) -> dict[str, str]:
    counts = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "CUTAWAY_THREADS": str(threads),
    }
    return os.environ | dict(zip(NAMES, SETS[name], strict=True)) | counts


def absent(name: str) -> bool:
    """Whether the native core says that this processor lacks the set."""
    ask = [sys.executable, "-c", "from cutaway import native; native.isa(); native.available()"]
    return subprocess.run(ask, env=environment(name, 1), capture_output=True).returncode != 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", default=",".join(SETS), help=", ".join(SETS))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--workers", default="2", help="pytest-xdist's -n")
    parser.add_argument("--logs", type=Path, default=Path("build/other_processors"))
    parser.add_argument("tests", nargs="*", default=["--ignore", "tests/browser"])
    asked = parser.parse_args()
    asked.logs.mkdir(parents=True, exist_ok=True)
    worst = 0
    for name in asked.sets.split(","):
        if name not in SETS:
            parser.error(f"there is no set {name}: {', '.join(SETS)}")
        if absent(name):
            print(f"{name:<12} absent on this processor", flush=True)
            continue
        for threads in map(int, asked.threads.split(",")):
            start, log = time.monotonic(), asked.logs / f"{name}-{threads}.log"
            command = [sys.executable, "-m", "pytest", "-q", "-n", asked.workers, *asked.tests]
            with log.open("w") as written:
                done = subprocess.run(command, env=environment(name, threads), stdout=written, stderr=written)
            text, worst = log.read_text(), max(worst, done.returncode)
            last = text.rstrip().rpartition("\n")[2]
            counts = {kind: count for count, kind in COUNTED.findall(last)}
            row = " ".join(f"{counts.get(kind, 0):>6} {kind}" for kind in ("passed", "failed", "skipped"))
            print(f"{name:<12} {threads} threads {row} {time.monotonic() - start:>6.0f} s", flush=True)
            for failure in re.findall(r"^(?:FAILED|ERROR) .*", text, re.M):
                print(f"    {failure}", flush=True)
    return worst


if __name__ == "__main__":
    sys.exit(main())
