"""Names the weight that holds NaN, and the layer where NaN begins once a model's output is NaN."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from cutaway.errors import OperationalError
from cutaway.hooks import hooked


def check_weights(model: nn.Module) -> None:
    """OperationalError if a weight is not finite: CPU attention makes finite numbers of NaN queries."""
    for name, weight in model.named_parameters():
        # A finite sum has finite terms, and is several times faster than looking at each.
        if not weight.sum().isfinite() and not weight.isfinite().all():
            raise OperationalError(
                f"the weight {name} holds an infinity or NaN in {str(weight.dtype).removeprefix('torch.')}: "
                "load the model again, or train it again"
            )


def nan_error(model: nn.Module, run: Callable[[], object]) -> OperationalError:
    """Run the model once more, and name the first layer whose output is NaN."""
    first: list[str] = []

    def watch(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        x: Tensor = output[0] if isinstance(output, tuple) else output
        if x.isnan().any():
            first.append(name)

    parts: Any = model  # a Decoder or an Encoder
    named = [("the embedding", parts.embedding)]
    named += [(f"layer {n}", block) for n, block in enumerate(parts.blocks)]
    with hooked((module, None, partial(watch, name)) for name, module in named):
        run()
    where = first[0] if first else "the output head"
    return OperationalError(
        f"the model's output is NaN from {where} on: check its weights, or load them again"
    )
