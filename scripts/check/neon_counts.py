"""Instructions that each matrix product takes on 64-bit ARM, ours beside llama.cpp's, counted under qemu.

    apt-get install g++-aarch64-linux-gnu qemu-user cmake ninja-build
    python -m scripts.check.neon_counts LLAMA_CPP FOLDER

LLAMA_CPP is llama.cpp's source, and FOLDER keeps what is compiled: 20 minutes, 5 the next time.
qemu logs the address of each instruction that it executes. What 32 more rows add is counted, without the
vectors' rounding and llama.cpp's graph. llama.cpp chooses its kernels itself, for weights where its loader
puts them. Prints tables of instructions per 1,000 products, ours / llama.cpp, then each product's kernel and
its most frequent instructions.
"""

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
DRIVER = ROOT / "scripts/check/neon_counts.cpp"
PREFIX = "aarch64-linux-gnu-"
TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "BF16": 30}
VECTORS = (1, 2, 4, 16)
CASES = [(name, vectors) for name in TYPES for vectors in VECTORS]
COLUMNS, ROWS = 512, 32
# A set of instructions: an emulated processor that has it, and GCC's name for it.
SETS = {
    "NEON": ("cortex-a72", "armv8-a"),
    "dotprod": ("cortex-a76", "armv8.2-a+fp16+dotprod"),
    "dotprod, i8mm": ("neoverse-v1", "armv8.2-a+fp16+dotprod+i8mm"),
}
CMAKE = f"""
    -GNinja -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
    -DCMAKE_C_COMPILER={PREFIX}gcc -DCMAKE_CXX_COMPILER={PREFIX}g++ -DBUILD_SHARED_LIBS=OFF
    -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DGGML_LLAMAFILE=ON
    -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
    -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF
""".split()

# Instructions of one product, by their names and by the functions that they are in.
Mix = tuple[Counter[str], Counter[str]]


def run(*command: str | Path) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def ours(folder: Path) -> Path:
    """Compile our kernels as scripts/check/neon.sh does."""
    out = folder / "ours"
    if not out.exists():
        run("env", f"MAIN={DRIVER}", f"OUT={out}", ROOT / "scripts/check/neon.sh")
    return out


def theirs(source: Path, folder: Path, architecture: str) -> Path:
    """Compile llama.cpp's kernels as its release build does, for one set of instructions."""
    build = folder / architecture
    out = build / "counts"
    if not out.exists():
        run("cmake", "-S", source, "-B", build, f"-DGGML_CPU_ARM_ARCH={architecture}", *CMAKE)
        run("cmake", "--build", build, "--target", "ggml")
        parts = [build / f"ggml/src/lib{name}.a" for name in ("ggml", "ggml-cpu", "ggml-base")]
        options = ["-O2", "-std=c++20", "-DGGML", "-static", "-pthread", "-I", source / "ggml/include"]
        run(f"{PREFIX}g++", *options, DRIVER, *parts, "-o", out)
    return out


def instructions(binary: Path) -> dict[bytes, tuple[str, str]]:
    """By each address in a program, as qemu writes it: the instruction's name and its function."""
    found, function = {}, ""
    for line in run(f"{PREFIX}objdump", "-d", "-C", "--no-show-raw-insn", binary).splitlines():
        if head := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            function = re.sub(r"\(anonymous namespace\)::|cutaway::|^\w+ |\(.*", "", head[1])
        elif each := re.match(r" +([0-9a-f]+):\t(\S+)", line):
            found[b"%016x" % int(each[1], 16)] = (each[2], function)
    return found


def executed(binary: Path, processor: str, mark: bytes, cases: str) -> list[Counter[bytes]]:
    """How often each address is executed between the two calls of `mark` around each case's product."""
    qemu = ["qemu-aarch64", "-cpu", processor, "-one-insn-per-tb", "-d", "nochain,exec", binary]
    counts = [Counter[bytes]()]
    with tempfile.TemporaryFile() as given:
        given.write(cases.encode())
        given.seek(0)
        with subprocess.Popen(
            qemu, stdin=given, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:  # Trace 0: 0x7f... [00000000/0000000000400580/...] name
                at = line.partition(b"/")[2][:16]
                if at == mark:
                    counts.append(Counter())
                counts[-1][at] += 1
    if process.returncode or len(counts) != 1 + 2 * len(cases.splitlines()):
        sys.exit(f"{binary} ended before the last product under {processor}: exit code {process.returncode}")
    return counts[1::2]


def count(binary: Path, processor: str) -> dict[tuple[str, int], Mix]:
    """Count each case's product, as what ROWS more rows add."""
    known = instructions(binary)
    mark = next(at for at, (_, function) in known.items() if function == "mark")
    sizes = [f"{COLUMNS} {rows} {vectors}" for vectors in VECTORS for rows in (ROWS, 2 * ROWS)]
    lines = [f"{number} {size}\n" for number in TYPES.values() for size in sizes]
    # One more before the first that counts, for what a program does once.
    runs = executed(binary, processor, mark, "".join(lines[:1] + lines))[1:]
    counts = {}
    for case, once, twice in zip(CASES, runs[::2], runs[1::2], strict=True):
        mix: Mix = (Counter(), Counter())
        for at in once | twice:
            for of, name in zip(mix, known[at], strict=True):
                of[name] += twice[at] - once[at]
        counts[case] = mix
    return counts


def main(source: Path, folder: Path) -> None:
    """Compile both and count, for each set of instructions."""
    folder.mkdir(parents=True, exist_ok=True)
    for title, (processor, architecture) in SETS.items():
        left = count(ours(folder), processor)
        right = count(theirs(source, folder, architecture), processor)
        print(f"\n| {title}: vectors | {' | '.join(map(str, VECTORS))} |\n{'|---' * (1 + len(VECTORS))}|")
        scale = {case: 1000 / (COLUMNS * ROWS * case[1]) for case in CASES}
        cells = {
            at: " / ".join(f"{n[at][0].total() * scale[at]:,.0f}" for n in (left, right)) for at in CASES
        }
        for name in TYPES:
            print(f"| {name} | {' | '.join(cells[name, vectors] for vectors in VECTORS)} |")
        for (name, vectors), (names, functions) in [*left.items(), *right.items()]:
            most = (f"{key} {n * scale[name, vectors]:.0f}" for key, n in names.most_common(9))
            print(f"{name}, {vectors}: {functions.most_common(1)[0][0]}: {', '.join(most)}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
