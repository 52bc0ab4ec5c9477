"""The definition as an engine: it reads ids and answers with the next token's logits, as numpy arrays.

Generation, serving and evaluation speak to this protocol (``generate/engine.py``) and never ask which engine
they hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cutaway.model.decoder import Decoder, State

CHUNK = 512  # tokens read at once: bounds what a long prompt needs beside its state


class DefinitionEngine:
    """A Decoder on whatever device it is on, one sequence a state."""

    def __init__(self, model: Decoder) -> None:
        self.model = model.eval()
        self.vocab = model.config.vocab
        self.max_context = model.config.context
        self.device = next(iter(model.parameters())).device

    def new_state(self) -> State:
        return self.model.new_state()

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], state: State) -> np.ndarray:
        """Reads ids after what the state holds; float32 [v], the logits of what comes next."""
        logits = None
        for start in range(0, len(ids), CHUNK):
            logits = self._read(ids[start : start + CHUNK], state, last=True)
        if logits is None:
            raise ValueError("an engine reads at least one id")
        return logits[-1]

    def step(self, id: int, state: State) -> np.ndarray:
        """Reads one id; float32 [v]."""
        return self.prefill([id], state)

    @torch.inference_mode()
    def read_each(self, ids: Sequence[int], state: State) -> np.ndarray:
        """Reads ids after what the state holds: float32 [k v], the logits of what comes after each."""
        starts = range(0, len(ids), CHUNK)
        return np.concatenate([self._read(ids[at : at + CHUNK], state, last=False) for at in starts])

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """float32 [t v]: at each position, the logits of what comes next."""
        return self._read(ids, None, last=False)

    def _read(self, ids: Sequence[int], state: State | None, last: bool) -> np.ndarray:
        start = 0 if state is None else state.length
        row = torch.tensor([list(ids)], dtype=torch.long, device=self.device)
        pos = torch.arange(start, start + len(ids), device=self.device)[None]
        return self.model(row, pos, state, last=last)[0].float().cpu().numpy()
