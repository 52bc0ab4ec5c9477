"""The process of one stage: ``python -m cutaway.pipeline.child PARENT VERB ...``, in the run's folder.

It ends with its parent, also where that is killed, so that no stage goes on in a run that is resumed.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def main(arguments: list[str]) -> int:
    """Run a verb; ``data`` is the one that only pipelines have."""
    parent, verb, *rest = arguments
    _follow(int(parent))
    if verb == "data":
        from cutaway.pipeline import data

        return data.main(rest)
    sys.argv = ["cutaway", verb, *rest]
    runpy.run_module("cutaway", run_name="__main__")  # which exits
    return 0


def _follow(parent: int) -> None:
    """Have the system end this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
