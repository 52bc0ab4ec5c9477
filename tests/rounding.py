"""How far a result may move because a processor adds in another order: measured, not guessed."""

from collections.abc import Callable

import torch

ROUNDING = 2.0**-23  # the distance from 1 to the next float32


def noise(model: torch.nn.Module, output: Callable[[], torch.Tensor], draws: int = 3) -> float:
    """How far ``output()`` moves when each of the model's float32 weights moves by up to one rounding.

    Products of the same numbers in another order differ by roundings; a model in which small differences grow
    shows here how much they grow. A tolerance is a multiple of this on every processor.
    """
    weights = [weight for weight in model.parameters() if weight.dtype == torch.float32]
    with torch.no_grad():
        before, held = output(), [weight.clone() for weight in weights]
        most = 0.0
        for seed in range(draws):
            draw = torch.Generator().manual_seed(seed)
            for weight, value in zip(weights, held, strict=True):
                step = torch.rand(value.shape, generator=draw) * 2 - 1
                weight.copy_(value * (1 + ROUNDING * step))
            most = max(most, float((output() - before).abs().max()))
        for weight, value in zip(weights, held, strict=True):
            weight.copy_(value)
    return most
