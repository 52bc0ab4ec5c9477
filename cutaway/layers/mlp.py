"""The MLP of a block: it works on each token alone, neuron by neuron."""

from collections.abc import Callable
from statistics import NormalDist

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cutaway.hooks import tap
from cutaway.layers.config import MLP as Config
from cutaway.layers.recompute import Recomputed
from cutaway.layers.swiglu import swiglu
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

    Taps ``hidden`` [... f]: each neuron's activation, the input of ``down``. Where it ``recomputes``, as
    beside an adapter, training on a CPU does not hold it, nor gate, up and the normed x: the backward pass
    makes them again from x, at the cost of two products. ``norm`` is what x passes first, frozen then. In
    ``one_pass``, there too, SwiGLU is one operation.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.activation = XIELU() if config.activation == "xielu" else ACTIVATIONS[config.activation]
        self.limit = config.limit
        self.gate_scale, self.out_scale = config.gate_scale, config.out_scale
        self.recomputes = self.one_pass = False
        self.gate = nn.Linear(width, config.hidden, config.bias) if config.gated else None
        self.up = nn.Linear(width, config.hidden, config.bias)
        self.down = nn.Linear(config.hidden, width, config.bias or config.down_bias)
        own = config.hidden_norm
        self.hidden_norm = nn.Identity() if own is None else own.build(config.hidden)
        self.above = NormalDist().inv_cdf(config.sparsity) if config.sparsity else None  # in deviations

    def forward(
        self, x: Float[Tensor, "... d"], norm: Callable[[Tensor], Tensor] | None = None
    ) -> Float[Tensor, "... d"]:
        out = self._out(x, norm or _same)
        return out if self.out_scale == 1.0 else out * self.out_scale

    def _out(self, x: Float[Tensor, "... d"], norm: Callable[[Tensor], Tensor]) -> Float[Tensor, "... d"]:
        makes_again = self.recomputes and x.requires_grad and torch.is_grad_enabled()
        if not makes_again or x.device.type != "cpu":
            return self._whole(x, norm)
        if torch.compiler.is_compiling():  # which leaves ``down`` out of what is made again: nothing reads it
            return checkpoint(self._whole, x, norm, use_reentrant=False)
        inside = [
            p for name, p in self.named_parameters() if p.requires_grad and not name.startswith("down.")
        ]
        remade = Recomputed(lambda x: self._hidden(norm(x)), x)
        hidden = remade.value(inside)
        with remade.forgotten(hidden):
            return self.down(tap("hidden", hidden))

    def _whole(self, x: Float[Tensor, "... d"], norm: Callable[[Tensor], Tensor]) -> Float[Tensor, "... d"]:
        return self.down(tap("hidden", self._hidden(norm(x))))

    def _hidden(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... f"]:
        return self.hidden_norm(self._activated(x))

    def _activated(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... f"]:
        if self.gate is None:
            return self.activation(self.up(x))
        gate, up = self.gate(x), self.up(x)
        gate = gate if self.gate_scale == 1.0 else gate * self.gate_scale
        if self.above is not None:
            gate = F.relu(
                gate - gate.mean(-1, keepdim=True) - self.above * gate.std(-1, correction=0, keepdim=True)
            )
        if self.limit is not None:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit) + 1
        if self.one_pass and self.activation is F.silu:
            return swiglu(gate, up)
        return self.activation(gate) * up


def _same(x: Tensor) -> Tensor:
    return x
