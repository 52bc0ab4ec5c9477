"""A training run is killed with SIGKILL at 20 random moments and resumed each time. Every tensor of its last
checkpoint equals, to the bit, that of a run that was never interrupted. Takes about four minutes on two
cores.

    python scripts/kill_and_resume.py [--kills 20] [--steps 600] [--seed 0]
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cutaway.train import checkpoint, config
from tests.training import folder_of_text, model, run


def main() -> int:
    """Prints each kill, and whether the ends are equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    moments = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        every = config.Intervals(save=3, evaluate=10, sample=0, keep_checkpoints=2)
        tiny = run(
            folder_of_text(home / "texts"), model=model(0), ema=0.99, steps=asked.steps, intervals=every
        )
        (home / "tiny.yaml").write_text(config.write(tiny))
        start = time.monotonic()
        assert _trained(home, "unbroken").wait() == 0
        whole = time.monotonic() - start
        print(f"unbroken: {asked.steps} steps in {whole:.1f} s")
        done = 0
        while done < asked.kills:
            process = _trained(home, "killed")
            # Some fall before the first step, most into the steps, some into the writing of a checkpoint.
            wait = moments.uniform(0.1, 1.0) * whole * 0.6
            try:
                ended = process.wait(wait)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                done += 1
                found = checkpoint.all_in(home / "killed" / "checkpoints")
                left = list((home / "killed" / "checkpoints").glob(".*")) if found else []
                print(
                    f"kill {done:2} after {wait:4.1f} s: newest {found[-1].name if found else 'none'}"
                    + (", one half written" if left else ""),
                    flush=True,
                )
            else:
                if ended:
                    sys.exit(f"the run ended by itself, with {ended}, after {done} kills")
                print(f"the run is at its end after {done} kills; it is begun anew", flush=True)
                whole *= 0.7  # the machine has more time for it than it had
                _compare(home, asked.steps)
                subprocess.run(["rm", "-r", str(home / "killed")], check=True)
        assert _trained(home, "killed").wait() == 0
        return _compare(home, asked.steps)


def _trained(home: Path, name: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "cutaway", "pretrain", "tiny.yaml", "--output", name, "--resume"]
    return subprocess.Popen(words, cwd=home, stderr=subprocess.DEVNULL, env=None)


def _compare(home: Path, steps: int) -> int:
    found = [
        sorted((home / name / "checkpoints" / f"step-{steps:08}").glob("*.safetensors"))
        for name in ("unbroken", "killed")
    ]
    equal = [a.name == b.name and a.read_bytes() == b.read_bytes() for a, b in zip(*found, strict=True)]
    print(f"{sum(equal)} of {len(equal)} files of the last checkpoint are equal to the bit")
    return 0 if equal and all(equal) else 1


if __name__ == "__main__":
    sys.exit(main())
