"""The process of one stage: ``python -m cutaway.pipeline.child PARENT VERB ...``, in the run's folder.

It ends with its parent, also where that is killed, so that no stage goes on in a run that is resumed. As
torchrun it ends the processes that it started, too, after they have saved.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
TORCHRUN = "torchrun"  # in place of a verb: its command line follows


def main(arguments: list[str]) -> int:
    """Run a verb; ``data`` is the one that only pipelines have."""
    parent, verb, *rest = arguments
    _follow(int(parent), signal.SIGTERM if verb == TORCHRUN else signal.SIGKILL)
    if verb == "data":
        from cutaway.pipeline import data

        return data.main(rest)
    sys.argv = [verb, *rest] if verb == TORCHRUN else ["cutaway", verb, *rest]
    runpy.run_module("torch.distributed.run" if verb == TORCHRUN else "cutaway", run_name="__main__")
    return 0  # unless that has exited


def _follow(parent: int, signal_number: int) -> None:
    """Have the system end this process by a signal when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal_number)
    if os.getppid() != parent:  # it has ended already
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
