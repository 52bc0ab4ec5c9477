"""A run's log, read as it grows: curves by name, samples, and answers to held-out questions."""

from __future__ import annotations

import json
import os
import stat
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.store.files import read_errors

LARGEST = 128 << 20  # bytes of a log
NAMES = 64  # curves
NAME = 80  # characters of a curve's name
KEPT = 400  # samples, and answers, the newest ones
LONGEST = 4_000  # characters of one
HUGE = 1e300  # no number of a log is larger, and JSON has no infinity


@dataclass
class _Tail:
    """What was read of a file: up to where, and which file that was."""

    inode: int = 0
    read: int = 0


@dataclass
class Log:
    """``curves``: each measured number's (step, value) by name; ``samples`` and ``answers`` as they are."""

    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    samples: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT))
    answers: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT))
    step: int = 0
    _metrics: _Tail = field(default_factory=_Tail)
    _answers: _Tail = field(default_factory=_Tail)

    def last(self, name: str) -> float | None:
        """A curve's newest value."""
        points = self.curves.get(name)
        return points[-1][1] if points else None

    def update(self, metrics: Path, answers: Path) -> None:
        """Read what was added. A file that is another one now, as a resumed run's is, is read anew."""
        if self._replaced(metrics, self._metrics):
            self.curves.clear()
            self.samples.clear()
            self.step = 0
        for line in self._added(metrics, self._metrics):
            self._measured(line)
        if self._replaced(answers, self._answers):
            self.answers.clear()
        for line in self._added(answers, self._answers):
            known = ("question", "answer", "completion")
            texts = {name: str(line.get(name, ""))[:LONGEST] for name in known}
            score = line.get("score")
            self.answers.append({"step": _step(line), **texts, "score": score if _is_number(score) else None})

    def _replaced(self, path: Path, tail: _Tail) -> bool:
        try:
            found = path.stat()
        except OSError:
            found = None
        if found is not None and not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
            found = None
        same = found is not None and found.st_ino == tail.inode and found.st_size >= tail.read
        if not same:
            tail.inode, tail.read = (0 if found is None else found.st_ino), 0
        return not same

    def _added(self, path: Path, tail: _Tail) -> list[dict[str, Any]]:
        """The whole lines after what was read; a last line that is being written is left for later."""
        if not tail.inode:
            return []
        with read_errors(path), path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > LARGEST:
                raise UserError(f"{path}: is longer than {LARGEST >> 20} MB, which is not shown")
            file.seek(tail.read)
            data = file.read(LARGEST)
        whole = data[: data.rfind(b"\n") + 1]
        tail.read += len(whole)
        found = []
        for number, text in enumerate(whole.splitlines(), 1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                raise UserError(f"{path}: line {number} of what was added is not JSON") from None
            if isinstance(line, dict):
                found.append(line)
        return found

    def _measured(self, line: dict[str, Any]) -> None:
        step = _step(line)
        self.step = max(self.step, step)
        if isinstance(line.get("sample"), str):
            texts = {"prompt": str(line.get("prompt", "")), "text": line["sample"]}
            self.samples.append({"step": step, **{name: one[:LONGEST] for name, one in texts.items()}})
            return
        for name, value in line.items():
            if name == "step" or not _is_number(value) or len(name) > NAME:
                continue
            if name in self.curves or len(self.curves) < NAMES:
                self.curves.setdefault(name, []).append((step, float(value)))


def _step(line: dict[str, Any]) -> int:
    step = line.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**53 else 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < HUGE


def pooled(points: list[tuple[int, float]], most: int) -> dict[str, Any]:
    """A curve of at most so many points, each the mean of its neighbours: {"x", "y", "points"}."""
    x, y = (np.array([one[axis] for one in points], np.float64) for axis in (0, 1))
    if len(points) > most:
        edges = np.linspace(0, len(points), most + 1).astype(int)
        sizes = np.diff(edges)
        x, y = (np.add.reduceat(axis, edges[:-1]) / sizes for axis in (x, y))
    return {"x": x.tolist(), "y": y.tolist(), "points": len(points)}
