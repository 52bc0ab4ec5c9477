"""A tuned lens (2303.08112) as it is used: its maps and their file; tuned_lens.py trains them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect.subject import Subject, subject_of
from cutaway.quantization import formats
from cutaway.weights import safetensors


@dataclass(frozen=True, repr=False)
class TunedLens:
    """float32 ``weights`` [n d d], ``biases`` [n d]: x + x W^T + b, of the streams from the embedding on."""

    subject: Subject
    weights: np.ndarray
    biases: np.ndarray
    losses: tuple[float, ...] = ()

    def __repr__(self) -> str:
        layers, width, _ = self.weights.shape
        return f"TunedLens({layers} layers, width {width}, {len(self.losses)} steps)"

    def translated(self, residuals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Residual streams [t d], some or all of them, as the head is to read them."""
        found = {}
        for name, rows in residuals.items():
            stage = 0 if name == "embed" else 1 + int(name.split(".")[1])
            last = stage == len(self.weights)
            found[name] = rows if last else rows + rows @ self.weights[stage].T + self.biases[stage]
        return found

    def save(self, path: str | Path) -> None:
        """Writes the maps as a safetensors file."""
        arrays = {"weights": self.weights, "biases": self.biases}
        safetensors.write_safetensors(
            path, {n: formats.pack(a, "F32") for n, a in arrays.items()}, {"format": "cutaway-lens"}
        )


def load(path: str | Path, lm: Any) -> TunedLens:
    """Reads what ``save`` wrote; UserError for maps of another model."""
    subject = subject_of(lm)
    layers, width = len(subject.config.blocks), subject.config.width
    try:
        shapes = {"weights": (layers, width, width), "biases": (layers, width)}
        read = safetensors.read_shaped(path, shapes)
    except UserError as error:
        raise UserError(
            f"{path} is no tuned lens of this model, of {layers} layers and width {width}: {error}"
        ) from None
    weights, biases = (np.array(formats.unpack(read[name])) for name in shapes)
    return TunedLens(subject, weights, biases)
