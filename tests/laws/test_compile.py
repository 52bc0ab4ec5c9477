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

from cutaway.attention.backends import native
from cutaway.attention.backends.choice import BACKENDS, choose
from cutaway.attention.backends.inputs import AttentionInputs
from cutaway.attention.common.visibility import Causal, Positions
from cutaway.layers.config import MLP as Config
from cutaway.layers.mlp import MLP
from cutaway.layers.norm import RMSNorm
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
    for dropout in (0.0, 0.5):
        _mlp_made_again(dropout)


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


def _mlp_made_again(dropout: float) -> None:
    """Beside an adapter nothing as wide as the hidden layer is held; gradients have the same bits."""

    def gradients(recomputes: bool) -> tuple[list[Tensor], int]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        mlp, norm, dropped = MLP(Config(24), 8), RMSNorm(8, 1e-5), torch.nn.Dropout(dropout)
        mlp.recomputes = recomputes
        norm.requires_grad_(False)
        x, held = torch.randn(2, 5, 8, requires_grad=True), []

        def hold(saved: Tensor) -> Tensor:
            held.append(saved.numel() == 2 * 5 * 24)
            return saved

        read = torch.compile(
            lambda x: mlp(x, lambda x: dropped(norm(x))), fullgraph=True, backend="aot_eager"
        )
        with torch.autograd.graph.saved_tensors_hooks(hold, lambda saved: saved):
            out = read(x)
        return [out, *torch.autograd.grad(out.square().sum(), [x, *mlp.parameters()])], sum(held)

    (found, none), (wanted, some) = gradients(True), gradients(False)
    assert all(map(torch.equal, found, wanted)) and none == 0 and some > 0, (dropout, none, some)


if __name__ == "__main__":
    _main()
