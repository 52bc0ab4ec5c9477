"""`cutaway serve` as a process of its own, for the scripts that ask it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def served(*options: str) -> Iterator[str]:
    """The address of a server on a free port, stopped at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cutaway", "serve", "smollm2", "--port", "0", *options],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"CUTAWAY_API_KEY": ""},
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"serves smollm2 on (http://\S+)", line):
                yield found[1]
                break
        else:
            raise RuntimeError("the server did not start")
    finally:
        process.terminate()
        process.communicate(timeout=60)
