"""The six studies equal hooks on transformers within 1e-5, on families with norms after attention, soft-caps,
windows and normed queries; on the packed engine within its law. SmolLM2's: scripts/check/studies_parity.py.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cutaway.inspect.subject import Subject
from cutaway.weights import load
from cutaway.weights.build import decoder
from scripts.check.studies_parity import CLOSE, STUDIES, Task
from tests.parity import tiny
from tests.parity.words import VOCAB
from tests.small import Bytes

TASK = Task([5, 9, 17, 33, 8, 20, 71, 2], [5, 9, 44, 33, 8, 20, 12, 2], 7, 11, VOCAB)


class Words(Bytes):
    def __len__(self) -> int:
        return VOCAB


@pytest.mark.parametrize("case", ["gemma2-1", "qwen3"])
def test_the_six_studies_are_hooks_on_transformers(case: str, folder: Callable[[str], Path]) -> None:
    subject = Subject.of(decoder(load.read_checkpoint(folder(case)), "float32").double(), Words())
    hf = copy.deepcopy(tiny.model(case)).double()
    for name, (ours, by_hand) in STUDIES.items():
        found, judge = ours(subject, TASK), by_hand(hf, TASK)
        assert found.shape == judge.shape and np.abs(judge).max() > 1e-3, name
        assert np.abs(found - judge).max() < CLOSE, name
