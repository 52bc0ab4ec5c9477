"""An encoder-decoder that has read a source, as an engine: what is written from here on is its target.

Generation continues the target as it continues any text (``generate/engine.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cutaway.errors import UserError
from cutaway.model.nan import check_weights, nan_error
from cutaway.model.seq2seq import TransformerSeq2Seq, TransformerState


class TargetEngine:
    """``model`` after the ids of ``source``, which it reads once. UserError for what it cannot read."""

    @torch.inference_mode()
    def __init__(self, model: TransformerSeq2Seq, source: Sequence[int]) -> None:
        self.model = model.eval()
        check_weights(model)
        of = model.config.encoder
        self.vocab = model.config.vocab
        self.max_context = model.config.context
        self.device = next(iter(model.parameters())).device
        if not source:
            raise UserError("there is nothing to read: the source has no tokens")
        if wrong := [id for id in source if not 0 <= id < of.vocab]:
            raise UserError(f"the source has the id {wrong[0]}, and this model's go from 0 to {of.vocab - 1}")
        if of.learned and len(source) > of.context:
            raise UserError(f"the source is {len(source)} ids long and the model reads at most {of.context}")
        row, pos = self._row(source, 0)
        self.source = model.memory(row, pos)
        if self.source.values.isnan().any():
            raise nan_error(model.encoder, lambda: model.encode(row, pos))

    def new_state(self) -> TransformerState:
        """The state before the target's first id."""
        return TransformerState(self.source, self.model.decoder.new_state())

    def prefill(self, ids: Sequence[int], state: TransformerState) -> np.ndarray:
        """Reads ids of the target after what the state holds; float32 [v], the logits of what comes next."""
        return self.prefill_all_logits(ids, state)[-1]

    def step(self, id: int, state: TransformerState) -> np.ndarray:
        """Reads one id; float32 [v]."""
        return self.prefill([id], state)

    @torch.inference_mode()
    def prefill_all_logits(self, ids: Sequence[int], state: TransformerState) -> np.ndarray:
        """Reads ids after what the state holds: float32 [k v], the logits of what comes after each."""
        row, pos = self._row(ids, state.length)
        logits = self.model.read(row, pos, state)[0].float().cpu().numpy()
        if np.isnan(logits.max()):
            raise nan_error(self.model.decoder, lambda: self.model.read(row, pos, self.new_state()))
        return logits

    def _row(self, ids: Sequence[int], start: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The ids and their positions, [1 t]."""
        row = torch.tensor([list(ids)], dtype=torch.long, device=self.device)
        return row, torch.arange(start, start + len(ids), device=self.device)[None]
