"""Every mechanism compiles without a graph break, and says the same compiled; so do the paths of training,
there and back.

In a process of its own, because the shape checks that tests switch on are not made for torch's tracer.
"""

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.testing import assert_close

from cutaway.attention.backends import BACKENDS, choose, native
from cutaway.attention.backends.inputs import AttentionInputs
from cutaway.attention.common.visibility import Causal, Positions
from tests.laws.mechanisms import KINDS, decoder, text


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
    if native.KERNELS:
        _there_and_back("native")
        native.KERNELS = False
    _there_and_back("products")


def _there_and_back(path: str) -> None:
    """Packed documents too: their mask is whole while torch compiles."""
    torch._dynamo.reset()
    draw = torch.Generator().manual_seed(0)
    made = [torch.randn(2, 4, 200, 8, generator=draw).bfloat16().requires_grad_() for _ in range(3)]
    pos = torch.arange(200).expand(2, -1)
    for documents in (None, pos // 70):
        positions = Positions(pos, documents)

        def read(q: Tensor, k: Tensor, v: Tensor, positions: Positions = positions) -> Tensor:
            inputs = AttentionInputs(
                q, k, v, positions, positions, Causal(), 0.3, in_order=positions.documents is None
            )
            assert choose(inputs)[0] == path
            return BACKENDS[path](inputs)

        out, plain = torch.compile(read, fullgraph=True, backend="aot_eager")(*made), read(*made)
        assert_close(out, plain)
        weights = torch.randn(out.shape, generator=draw).bfloat16()
        ours, theirs = (torch.autograd.grad((x * weights).sum(), made) for x in (out, plain))
        assert_close(ours, theirs)


if __name__ == "__main__":
    _main()
