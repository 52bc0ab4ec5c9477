"""A table of vectors on a plane: principal components by numpy, or UMAP (1802.03426) where it is installed.

Components keep what distances they can (``kept``: how much); UMAP keeps neighbourhoods.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from cutaway.errors import UserError
from cutaway.extras import library
from cutaway.shapes import Float

Method = Literal["pca", "umap"]
ROWS = 1 << 14


class Plane(NamedTuple):
    """Each row's point on the plane [v 2], and the part of the variance the plane keeps (NaN for UMAP)."""

    points: np.ndarray
    kept: float


def project(table: Float[np.ndarray, "v d"], method: Method = "pca", seed: int = 0) -> Plane:
    """The rows on a plane. UserError for fewer than three rows, and for UMAP where it is not installed."""
    if len(table) < 3 or table.shape[1] < 2:
        raise UserError(f"a table {list(table.shape)} has no map: 3 rows of 2 numbers are needed")
    return _components(table) if method == "pca" else _umap(table, seed)


def _components(table: np.ndarray) -> Plane:
    """The two directions of largest variance, of the covariance summed block by block.

    Each direction's largest number is made positive, so that the map is the same each time.
    """
    mean = table.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((table.shape[1],) * 2)
    for first in range(0, len(table), ROWS):
        part = table[first : first + ROWS] - mean
        covariance += part.T @ part
    sizes, directions = np.linalg.eigh(covariance)
    axes = directions[:, [-1, -2]]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    total = float(sizes.sum())
    kept = float(sizes[-1] + sizes[-2]) / total if total > 0 else 1.0
    return Plane(((table - mean) @ axes).astype(np.float32), kept)


def _umap(table: np.ndarray, seed: int) -> Plane:
    made = library("--method umap", "umap").UMAP(n_components=2, metric="cosine", random_state=seed)
    return Plane(np.asarray(made.fit_transform(table), np.float32), float("nan"))
