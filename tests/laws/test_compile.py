"""Every mechanism compiles without a graph break, and says the same compiled.

In a process of its own, because the shape checks that tests switch on are not made for torch's tracer.
"""

import subprocess
import sys
from pathlib import Path

import torch
from torch.testing import assert_close

from tests.laws.kinds import KINDS, decoder, text


def test_every_kind_compiles_whole() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.laws.test_compile"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == KINDS


def _main() -> None:
    torch.set_num_threads(1)  # tiny models: threads would only wait for each other
    for kind in KINDS:
        torch._dynamo.reset()  # else all kinds together count as recompilations of one model
        model = decoder(kind)
        model.blocks = model.blocks[1:2]  # the one with every option on
        ids, pos = text(2, 9)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        with torch.no_grad():
            assert_close(compiled(ids, pos), model(ids, pos), rtol=1e-9, atol=1e-9)
        print(kind)


if __name__ == "__main__":
    _main()
