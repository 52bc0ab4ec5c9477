"""A Huffman tree over words: frequent ones hang near its root, so that hierarchical softmax (Morin and
Bengio, AISTATS 2005; with this tree in word2vec, 1301.3781) asks few questions about them.

The chance of a word is the product of the turns on the way to it, each a logistic function of one inner
node's vector: about log2(v) of them instead of v scores.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np


class Paths(NamedTuple):
    """Each word's way from the root: where its part ends (int64 [v]), the inner nodes it passes (int32), and
    1 for a turn to the left, 0 to the right (float32).
    """

    ends: np.ndarray
    nodes: np.ndarray
    labels: np.ndarray


def paths(counts: np.ndarray) -> Paths:
    """The ways through the tree of words that came ``counts`` [v] times; inner nodes are 0 .. v-2, the root
    last.
    """
    size = len(counts)
    parent, label = np.zeros(2 * size, np.int64), np.zeros(2 * size, np.float32)
    heap = [(int(count), node) for node, count in enumerate(counts)]
    heapq.heapify(heap)
    for node in range(size, 2 * size - 1):
        (one, left), (other, right) = heapq.heappop(heap), heapq.heappop(heap)
        parent[left] = parent[right] = node
        label[left] = 1
        heapq.heappush(heap, (one + other, node))
    ways = [_way(word, size, parent, label) for word in range(size)]
    nodes = [node for way in ways for node, _ in way]
    labels = [turn for way in ways for _, turn in way]
    ends = np.cumsum([len(way) for way in ways], dtype=np.int64)
    return Paths(ends, np.array(nodes, np.int32), np.array(labels, np.float32))


def _way(word: int, size: int, parent: np.ndarray, label: np.ndarray) -> list[tuple[int, float]]:
    """(inner node, turn taken there) from the root to the word."""
    way, node, root = [], word, 2 * size - 2
    while node != root:
        way.append((int(parent[node]) - size, float(label[node])))
        node = int(parent[node])
    return way[::-1]
