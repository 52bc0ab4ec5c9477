"""Names the layer where NaN begins, once a model's output is NaN."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from cutaway.errors import OperationalError


def nan_error(model: nn.Module, run: Callable[[], object]) -> OperationalError:
    """Run the model once more, and name the first layer whose output is NaN."""
    first: list[str] = []

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            x: Tensor = output[0] if isinstance(output, tuple) else output
            if x.isnan().any():
                first.append(name)

        return hook

    blocks: Any = model.blocks
    named = {"the embedding": model.embedding} | {f"layer {n}": block for n, block in enumerate(blocks)}
    with ExitStack() as hooks:
        for name, module in named.items():
            hooks.callback(module.register_forward_hook(watch(name)).remove)  # type: ignore[union-attr]
        run()
    where = first[0] if first else "the output head"
    return OperationalError(
        f"the model's output is NaN from {where} on: check its weights, or load them again"
    )
