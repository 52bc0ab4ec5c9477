"""The model to train with its objective as one module, so that ``fully_shard`` sees the whole step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cutaway.data.example_packing import FIELDS, MISMATCHED
from cutaway.data.packing import Batch
from cutaway.errors import UserError
from cutaway.layers.moe import Routing
from cutaway.model.decoder import Decoder
from cutaway.model.seq2seq import TransformerSeq2Seq
from cutaway.shapes import Float, Int
from cutaway.train.adapted import reference
from cutaway.train.loss import log_probs

REFERENCE = "reference_log_probs"  # in ``extra``, where no adapter can be switched off
SOURCE = "source"  # in ``extra``: ids [b s] that an encoder reads


@dataclass(frozen=True)
class TrainingBatch:
    """A micro-batch on its device; ``weight`` is the sum of its loss weights, or the batch's divisor.

    ``documents`` is None where each row is one document, ``loss_weights`` where all are 1. ``extra`` is what
    the objective reads beside them.
    """

    ids: Int[Tensor, "b t"]
    targets: Int[Tensor, "b t"]
    pos: Int[Tensor, "b t"]
    documents: Int[Tensor, "b t"] | None
    loss_weights: Float[Tensor, "b t"] | None
    weight: float
    extra: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(batch: Batch, device: torch.device) -> TrainingBatch:
        """A batch of numpy arrays, moved."""

        def moved(array: Any) -> Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        return TrainingBatch(
            moved(batch.ids),
            moved(batch.targets),
            moved(batch.pos),
            None if batch.whole else moved(batch.documents),
            None if (batch.loss_weights == 1).all() else moved(batch.loss_weights),
            float(batch.loss_weights.sum(dtype="float64")) if batch.divisor is None else batch.divisor,
            {name: moved(array) for name, array in batch.extra.items()},
        )

    @property
    def blank(self) -> TrainingBatch:
        """Rows of the same size of which nothing counts."""
        weights = {name: torch.zeros_like(x) for name, x in self.extra.items() if name.endswith(FIELDS[-1])}
        nothing = torch.zeros(self.targets.shape, device=self.targets.device)
        return replace(self, loss_weights=nothing, weight=0.0, extra=self.extra | weights)

    @property
    def mismatched(self) -> TrainingBatch:
        """The rows of mismatched answers that go with rows of labelled ones."""
        ids, targets, pos, documents, weights = (self.extra[f"{MISMATCHED}{name}"] for name in FIELDS)
        known = self.extra.get(f"{MISMATCHED}{REFERENCE}")
        extra = {} if known is None else {REFERENCE: known}
        return TrainingBatch(ids, targets, pos, documents, weights, 0.0, extra)


@runtime_checkable
class Minimised(Protocol):
    """What is asked of an objective (``objectives/common/objective.py``) in a forward pass."""

    def loss(self, trainable: Trainable, batch: TrainingBatch, /) -> tuple[Tensor, dict[str, Tensor]]: ...


class Trainable(nn.Module):
    """A model and what training minimises. Parameters that do not require a gradient are frozen.

    ``teacher`` is a frozen model that the objective reads. The rows of an encoder-decoder are targets, whose
    sources are in the batch's ``extra``.
    """

    def __init__(
        self,
        model: Decoder | TransformerSeq2Seq,
        objective: Minimised,
        token_bytes: Tensor,
        teacher: Decoder | None = None,
    ) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        if self.decoder.config.head_bias:
            raise UserError("a model whose head has a bias cannot be trained: no objective reads it")
        self.teacher = None if teacher is None else Trainable(teacher, objective, token_bytes)
        self.token_bytes = token_bytes  # how many bytes of text each id decodes to
        self.routed = self.decoder.routed

    def forward(self, batch: TrainingBatch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The objective's weighted sum of losses, and the sums that it reports."""
        return self.objective.loss(self, batch)

    def outside_loss(self, compute: Callable[[], Tensor]) -> Tensor:
        """What it computes of this module's weights. Outside ``forward`` devices hold parts of them only."""
        return compute()

    def hidden(self, batch: TrainingBatch) -> tuple[Float[Tensor, "b t d"], tuple[Routing, ...]]:
        """What the head reads, and where sparse layers sent the tokens."""
        source = None
        if isinstance(self.model, TransformerSeq2Seq):
            ids = batch.extra[SOURCE]
            source = self.model.memory(ids, torch.arange(ids.shape[1], device=ids.device).expand_as(ids))
        x, routings = self.routed(
            batch.ids,
            batch.pos,
            documents=batch.documents,
            in_order=batch.documents is None,
            source=source,
        )
        return self.decoder.normed(x), routings

    def log_probs(
        self, batch: TrainingBatch, chunk_size: int, temperature: float = 1.0
    ) -> Float[Tensor, "b t"]:
        """The log-probability of each target, where the logits are divided by ``temperature``.

        It is 0 where the loss weight is: a prompt's tokens need no logits.
        """
        hidden = self.hidden(batch)[0].flatten(0, 1)
        weights = torch.ones_like(batch.targets) if batch.loss_weights is None else batch.loss_weights
        kept = weights.flatten().nonzero()[:, 0]
        read = hidden[kept], self.head_weight, batch.targets.flatten()[kept], chunk_size
        found = log_probs(*read, self.decoder.config.softcap, temperature)
        return found.new_zeros(len(hidden)).index_put((kept,), found).view_as(batch.targets)

    @torch.no_grad()
    def reference_log_probs(
        self, batch: TrainingBatch, chunk_size: int, temperature: float = 1.0
    ) -> Float[Tensor, "b t"]:
        """``log_probs`` of the model before training: what the batch holds of it, or the frozen base's."""
        if REFERENCE in batch.extra:
            return batch.extra[REFERENCE]
        with reference(self.model):
            return self.log_probs(batch, chunk_size, temperature)

    @property
    def decoder(self) -> Decoder:
        """The model, or the half of it that writes."""
        return self.model.decoder if isinstance(self.model, TransformerSeq2Seq) else self.model

    @property
    def head(self) -> Any:
        """The output head, or the table of embeddings that is one too."""
        return self.decoder.embedding if self.decoder.head is None else self.decoder.head

    @property
    def head_weight(self) -> Tensor:
        """The matrix of the output head [v d]."""
        return self.head.weight
