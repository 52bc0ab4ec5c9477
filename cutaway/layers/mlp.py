"""The MLP of a block: it works on each token alone, neuron by neuron."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.hooks import tap
from cutaway.layers.config import MLP as Config
from cutaway.shapes import Float


class XIELU(nn.Module):
    """xIELU (2411.13010): a quadratic above 0 and an exponential below, both with learned strengths.

    y = p x^2 + b x above 0, n (e^x - 1 - x) + b x below; p = softplus(alpha_p), n = b + softplus(alpha_n).
    b and the largest x of the exponential are not trained.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.tensor([0.8]).expm1().log())
        self.alpha_n = nn.Parameter(torch.tensor([0.3]).expm1().log())
        self.beta = nn.Parameter(torch.tensor(0.5), requires_grad=False)
        self.eps = nn.Parameter(torch.tensor(-1e-6), requires_grad=False)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        above, below = F.softplus(self.alpha_p), self.beta + F.softplus(self.alpha_n)
        curved = torch.expm1(x.minimum(self.eps)) - x
        return self.beta * x + torch.where(x > 0, above * x * x, below * curved)


ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_sigmoid": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


class MLP(nn.Module):
    """down(act(up x)), or gated down(act(gate x) * up x) (2002.05202), up and gate clamped where limited.

    Taps ``hidden`` [... f]: each neuron's activation, the input of ``down``. Where it is gated and
    ``forgets``, as beside an adapter, training holds two numbers a neuron and token in place of four: the
    rest is made again.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.activation = XIELU() if config.activation == "xielu" else ACTIVATIONS[config.activation]
        self.limit = config.limit
        self.gate_scale, self.out_scale = config.gate_scale, config.out_scale
        self.forgets = False
        self.gate = nn.Linear(width, config.hidden, config.bias) if config.gated else None
        self.up = nn.Linear(width, config.hidden, config.bias)
        self.down = nn.Linear(config.hidden, width, config.bias)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        out = self._out(x)
        return out if self.out_scale == 1.0 else out * self.out_scale

    def _out(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        if self.gate is None:
            return self.down(tap("hidden", self.activation(self.up(x))))
        gate, up = self.gate(x), self.up(x)
        gate = gate if self.gate_scale == 1.0 else gate * self.gate_scale
        if self.limit is not None:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit) + 1
        active = self.activation(gate)
        with self._forgotten(active, lambda: self.activation(gate)):
            hidden = active * up
        with self._forgotten(hidden, lambda: self.activation(gate) * up):
            return self.down(tap("hidden", hidden))

    def _forgotten(self, x: Tensor, again: Callable[[], Tensor]) -> AbstractContextManager[None]:
        """What is computed inside does not hold x for the backward pass, which makes it ``again``."""
        if not (self.forgets and x.requires_grad) or torch.compiler.is_compiling():
            return nullcontext()
        address = x.untyped_storage().data_ptr()

        def pack(kept: Tensor) -> Any:
            same = kept.untyped_storage().data_ptr() == address
            return (kept.shape, kept.stride(), kept.storage_offset()) if same else kept

        def unpack(kept: Any) -> Tensor:
            return kept if isinstance(kept, Tensor) else again().as_strided(*kept)

        return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
