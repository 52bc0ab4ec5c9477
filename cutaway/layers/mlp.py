"""The MLP of a block: it works on each token alone, neuron by neuron."""

from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.hooks import tap
from cutaway.layers.config import MLP as Config
from cutaway.shapes import Float

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class MLP(nn.Module):
    """down(act(up x)), or gated down(act(gate x) * up x) (2002.05202).

    Taps ``hidden`` [... f]: each neuron's activation, the input of ``down``.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.gate = nn.Linear(width, config.hidden, config.bias) if config.gated else None
        self.up = nn.Linear(width, config.hidden, config.bias)
        self.down = nn.Linear(config.hidden, width, config.bias)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        if self.gate is None:
            hidden = self.activation(self.up(x))
        else:
            hidden = self.activation(self.gate(x)) * self.up(x)
        return self.down(tap("hidden", hidden))
