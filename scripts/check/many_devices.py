"""Training on 1, 2 and 4 gloo processes, weights and matrices cut in every way: equal losses, and
checkpoints that any number of processes goes on from. Takes about four minutes on two cores.

    python -m scripts.check.many_devices
"""

import sys
import tempfile
from pathlib import Path

from tests.many_devices import trained

CLOSE = 1e-5  # float32 sums in another order, of losses of about 5.7
GRIDS = ((1, 1), (2, 1), (2, 2), (4, 1), (4, 2))  # processes, and how many of them share each matrix


def main() -> int:
    """Prints how far every loss is from one process's."""
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        made = {}
        for processes, tensor in GRIDS:
            name = f"{processes}x{tensor}"
            words = ("--tensor", str(tensor), "--save", str(home / name))
            made[name] = trained(home / f"{name}.json", processes, *words)
            worst = max(
                worst, _apart(f"{processes} processes, {tensor} to a matrix", made[name], made["1x1"])
            )
        before = trained(home / "on.json", 1, "--resume", str(home / "1x1" / "step-00000004"))
        for saved in ("1x1", "2x1", "2x2", "4x2"):
            for processes, tensor in ((1, 1), (2, 1), (4, 1), (4, 2)):
                words = ("--tensor", str(tensor), "--resume", str(home / saved / "step-00000004"))
                found = trained(home / "on.json", processes, *words)
                worst = max(
                    worst, _apart(f"saved by {saved}, gone on with by {processes}x{tensor}", found, before)
                )
    print(f"largest difference of a loss: {worst:.1e}")
    return 0 if worst < CLOSE else 1


def _apart(what: str, found: dict, expected: dict) -> float:
    worst = max(abs(a - b) for a, b in zip(found["losses"], expected["losses"], strict=True))
    print(f"{what:45} {worst:.1e}   {found['spoken']}", flush=True)
    return worst


if __name__ == "__main__":
    sys.exit(main())
