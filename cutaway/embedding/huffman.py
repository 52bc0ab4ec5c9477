"""A Huffman tree over words, for hierarchical softmax (AISTATS 2005; 1301.3781).

Frequent words are near its root, so that few inner nodes are scored for them.

The probability of a word is the product of the branches on its path, each a logistic function of one inner
node's vector: about log2(v) of them instead of v scores.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np


class Paths(NamedTuple):
    """Each word's path from the root: ``ends`` int64 [v] of the paths, one after another.

    ``nodes`` int32 are the inner nodes on them, ``labels`` float32 are 1 for left and 0 for right.
    """

    ends: np.ndarray
    nodes: np.ndarray
    labels: np.ndarray


def paths(counts: np.ndarray) -> Paths:
    """The paths of words with ``counts`` [v]; inner nodes are 0 .. v-2, the root last."""
    size = len(counts)
    parent, label = np.zeros(2 * size, np.int64), np.zeros(2 * size, np.float32)
    heap = [(int(count), node) for node, count in enumerate(counts)]
    heapq.heapify(heap)
    for node in range(size, 2 * size - 1):
        (one, left), (other, right) = heapq.heappop(heap), heapq.heappop(heap)
        parent[left] = parent[right] = node
        label[left] = 1
        heapq.heappush(heap, (one + other, node))
    found = [_path(word, size, parent, label) for word in range(size)]
    nodes = [node for path in found for node, _ in path]
    labels = [branch for path in found for _, branch in path]
    ends = np.cumsum([len(path) for path in found], dtype=np.int64)
    return Paths(ends, np.array(nodes, np.int32), np.array(labels, np.float32))


def _path(word: int, size: int, parent: np.ndarray, label: np.ndarray) -> list[tuple[int, float]]:
    """(inner node, branch) from the root to the word."""
    path, node, root = [], word, 2 * size - 2
    while node != root:
        path.append((int(parent[node]) - size, float(label[node])))
        node = int(parent[node])
    return path[::-1]
