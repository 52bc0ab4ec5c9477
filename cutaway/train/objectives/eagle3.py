"""A head that drafts for a frozen model, by what the model itself would say (EAGLE-3, 2503.01840).

    loss = sum over steps k of decay^k times the mean over tokens of KL(model || head)

Step k drafts the (k + 1)th token after the one that is known, from the head's own hidden state of step k - 1
(train/eagle3_head.py). Both distributions are over the ids that the head scores, of which the model's are
taken as if it had no others. Only a token of an answer counts, and only behind its own text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cutaway.bounds import Count, Fraction
from cutaway.errors import UserError
from cutaway.train.objectives.common.objective import Objective
from cutaway.weights.run_checkpoint import OF_DRAFT

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.model.decoder import Decoder
    from cutaway.train.trainable import Trainable, TrainingBatch

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class Config(Objective):
    """``head``: the folder of the head to train, which is read and not changed; ``steps``: tokens that are
    drafted one from the other.
    """

    alone: ClassVar[bool] = True
    head: str = ""
    steps: Count = 3
    decay: Fraction = 0.8

    def attach(self, model: Decoder) -> None:
        """Freeze the model and put the head beside it. UserError for a head of another model."""
        from cutaway.train.adapted import freeze
        from cutaway.train.eagle3_head import Eagle3Head
        from cutaway.weights import eagle3

        folder = Path(self.head)
        if not self.head or not eagle3.is_head(folder):
            raise UserError(
                f"config.objective.head: {self.head or 'names no folder'}: give the folder of an EAGLE-3 "
                "head, such as one that `cutaway finetune distill PROMPTS --draft` trains"
            )
        head = eagle3.read(folder)
        eagle3.check_fits(head, model.config)
        freeze(model)
        model.add_module(OF_DRAFT, Eagle3Head(head, eagle3.weights(folder)))

    def save(self, model: Decoder, folder: Path | None) -> None:
        """Write the head into a run's folder, in its published format."""
        from cutaway.quantization import formats
        from cutaway.store.files import atomic_file, contents
        from cutaway.train.adapted import array
        from cutaway.weights import eagle3, safetensors

        head: Any = model.get_submodule(OF_DRAFT)
        trained = {name: array(value) for name, value in head.trained().items()}
        if folder is None:
            return
        out = folder / OF_DRAFT
        out.mkdir(exist_ok=True)
        packed = {
            name: formats.pack(value.astype("float32"), "BF16" if value.ndim == 2 else "F32")
            for name, value in trained.items()
        }
        as_they_were = {
            name: each for name, each in eagle3.weights(Path(self.head)).items() if name not in packed
        }
        safetensors.write_safetensors(out / WEIGHTS, eagle3.named(as_they_were | packed))
        with atomic_file(out / CONFIG) as file:  # last: it says that there is a head
            file.write(contents(eagle3.own_folder(Path(self.head)) / CONFIG))

    def loss(self, trainable: Trainable, batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of a micro-batch's divergences, and how often the likeliest ids were the same."""
        import torch

        from cutaway.hooks import tracing

        model = trainable.decoder
        head: Any = model.get_submodule(OF_DRAFT)
        names = head.watches(len(model.blocks))
        with torch.no_grad(), tracing(model, *names) as seen:
            hidden, _ = trainable.hidden(batch)
        length = batch.ids.shape[1] - self.steps
        if length < 1:
            raise UserError(
                f"rows of {batch.ids.shape[1]} tokens are too short to draft {self.steps} from each"
            )
        table = model.embedding if head.table is None else head.table.to(hidden.device).__getitem__
        embedded = [table(batch.ids[:, 1 + k : 1 + k + length]) for k in range(self.steps)]
        streams = torch.cat([seen[name] for name in names], dim=-1)[:, :length]
        text = torch.zeros_like(batch.pos) if batch.documents is None else batch.documents
        same = text[:, :length, None] == text[:, None, :length]
        drafted = head.unrolled(embedded, streams, batch.pos[:, :length], same.tril())
        weights = torch.ones_like(hidden[..., 0]) if batch.loss_weights is None else batch.loss_weights
        loss, report = hidden.new_zeros(()), {}
        for k, h in enumerate(drafted):
            span = slice(1 + k, 1 + k + length)
            counts = weights[:, span] * (text[:, span] == text[:, :length])
            given = self._step(head, h, hidden[:, span], counts, model, trainable.head_weight)
            loss, report[f"agreement_{k + 1}"] = loss + self.decay**k * given[0], given[1]
        return loss, report

    def _step(
        self, head: Any, h: Tensor, hidden: Tensor, counts: Tensor, model: Decoder, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The weighted sum of the divergences of a step, and that of the agreements."""
        import torch

        kept = counts.flatten().nonzero()[:, 0]
        loss = agreed = hidden.new_zeros(())
        scored = weight if head.ids is None else weight[torch.from_numpy(head.ids).to(weight.device)]
        for rows in kept.split(self.chunk_size):
            own = head.log_probs(h.flatten(0, 1)[rows])
            with torch.no_grad():
                logits = (hidden.flatten(0, 1)[rows] @ scored.T).float()
                cap = model.config.softcap
                theirs = (logits if cap is None else cap * (logits / cap).tanh()).log_softmax(-1)
            share = counts.flatten()[rows]
            loss = loss + (share * (theirs.exp() * (theirs - own)).sum(-1)).sum()
            agreed = agreed + (share * (own.argmax(-1) == theirs.argmax(-1))).sum()
        return loss, agreed
