"""What the README's first command takes: seconds, disk and imports of an environment without PyTorch.

    python -m scripts.check.plain_install                # minutes; a quiet machine, the index's files warm
    python -m scripts.check.plain_install --python python3.13

It clones this repository, makes an environment, installs, and runs `cutaway explain` and `cutaway generate`
twice each. Exit code 1 if its files have more than 150 MB, or the command more than 40 seconds.
"""

import argparse
import os
import re
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = "The capital of France is"
MOST_BYTES, MOST_SECONDS = 150e6, 40.0


def timed(*command: str | Path, folder: Path) -> float:
    """Seconds of a command that must succeed."""
    started = time.perf_counter()
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - started


def on_disk(folder: Path) -> tuple[float, float]:
    """Bytes of the files under a folder, and of the blocks that they and their folders take."""
    found = [path.lstat() for path in folder.rglob("*") if not path.is_symlink()]
    files = sum(one.st_size for one in found if stat.S_ISREG(one.st_mode))
    return float(files), 512.0 * sum(one.st_blocks for one in found)


def imports(python: Path, *verb: str) -> list[tuple[float, str]]:
    """The modules that a verb imports: milliseconds with what each brings, the longest first."""
    command = [str(python), "-X", "importtime", "-m", "cutaway", *verb]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    rows = re.findall(r"^import time: +\d+ \| +(\d+) \| (.*)$", shown, re.MULTILINE)
    return sorted(((int(took) / 1e3, name.strip()) for took, name in rows), reverse=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="python3", help="what makes the environment")
    python = parser.parse_args().python
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["CUTAWAY_HOME"] = str(Path(temporary, "models"))  # the model is fetched too
        clone, bin = Path(temporary, "clone"), Path(temporary, "clone", ".venv", "bin")
        timed("git", "clone", "--quiet", ROOT, clone, folder=ROOT)
        steps = {"python -m venv": timed(python, "-m", "venv", ".venv", folder=clone)}
        empty = on_disk(clone / ".venv")
        steps["pip install -e ."] = timed(bin / "pip", "install", "-e", ".", folder=clone)
        steps["cutaway explain"] = timed(bin / "cutaway", "explain", TEXT, folder=clone)
        files, blocks = on_disk(clone / ".venv")
        print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
        for step, seconds in steps.items():
            print(f"{seconds:7.1f} s  {step}")
        whole = sum(steps.values())
        print(f"{whole:7.1f} s  in all")
        print(f"{files / 1e6:7.1f} MB of files, {blocks / 1e6:.1f} MB in the disk's blocks")
        own = f"{empty[0] / 1e6:.1f} MB and {empty[1] / 1e6:.1f} MB"
        print(f"        of them {own} were there before: pip's own")
        for verb in (("explain", TEXT), ("generate", TEXT, "--max-tokens", "8")):
            again = min(timed(bin / "cutaway", *verb, folder=clone) for _ in range(2))
            print(f"{again:7.2f} s  cutaway {verb[0]} again; its imports, in ms:")
            print(
                "          "
                + ", ".join(f"{name} {took:.0f}" for took, name in imports(bin / "python", *verb)[:12])
            )
    return int(files > MOST_BYTES or whole > MOST_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
