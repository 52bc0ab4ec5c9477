"""Keeps activations over the passes of a generation with the PyTorch model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.hooks import Listener
from cutaway.inspect import names as naming
from cutaway.inspect import pytorch_edits
from cutaway.inspect.instrumented import SQUARE
from cutaway.inspect.instrumented_pytorch import array
from cutaway.inspect.subject import Subject
from cutaway.inspect.trace import Trace


class Recording:
    """Keeps activations over the passes of a generation: ``trace`` joins them along the text."""

    def __init__(self, subject: Subject, names: Sequence[str]) -> None:
        self.subject = subject
        every = subject.pytorch.shapes()
        self.names = [n for one in naming.resolve(every, names) for n in naming.expanded(every, one)]
        if late := [name for name in self.names if naming.layer(name) > len(subject.config.blocks)]:
            raise UserError(
                f"a generation computes {late[0]!r} of its last token alone: trace the whole text"
            )
        self.parts: dict[str, dict[int, np.ndarray]] = {name: {} for name in self.names}

    def after(self, prepared: pytorch_edits.Prepared) -> Callable[[int], Mapping[str, Listener]]:
        """The listeners of each pass: those of edits, and after them the recording's."""
        for name in self.names:
            prepared.changes.setdefault(name, []).append(self._keep(name))
        return prepared.at

    def _keep(self, name: str) -> pytorch_edits.Change:
        def keep(value: Any, start: int) -> None:
            self.parts[name][start] = array(value)[0]

        return keep

    def trace(self, ids: Sequence[int]) -> Trace:
        """What was kept of these ids, as of one pass; the last was not read where nothing followed it."""
        read = min(len(ids), *(max(at + x.shape[-2] for at, x in self._passes(n)) for n in self.names))
        values = {name: self._joined(name, read) for name in self.names}
        return Trace(self.subject, ids[:read], values, self.subject.pytorch)

    def _passes(self, name: str) -> list[tuple[int, np.ndarray]]:
        """Each pass's first position and values, in order; of keys, each pass has the whole text's."""
        found = sorted(self.parts[name].items())
        return [(0, found[-1][1])] if name.endswith(".attention.k") else found

    def _joined(self, name: str, read: int) -> np.ndarray:
        passes = self._passes(name)
        last = passes[-1][1]
        width = read if name.rpartition(".")[2] in SQUARE else last.shape[-1]
        whole = np.zeros((*last.shape[:-2], read, width), last.dtype)
        for start, part in passes:
            part = part[..., : read - start, :width]
            whole[..., start : start + part.shape[-2], : part.shape[-1]] = part
        return whole
