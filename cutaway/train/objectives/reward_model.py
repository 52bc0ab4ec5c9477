"""A reward model: a number for an answer, learned from pairs (Bradley-Terry; 2203.02155, 2307.09288).

    r(y) = w . h        h: what the head would read at the answer's last token, its end token
    loss = mean over pairs of -log sigmoid(r(chosen) - r(rejected) - margin) + c (r(chosen) + r(rejected))^2

The margin is the pair's own, 0 where the data has none. c keeps rewards near zero (2312.09244), on which the
first term does not depend. A run's folder holds w [d] in ``reward.safetensors`` beside adapter or model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cutaway.bounds import NonNegative
from cutaway.data.conversations import Kind
from cutaway.errors import UserError
from cutaway.train.objectives.common.answers import compared, documents, sums
from cutaway.train.objectives.common.objective import Objective
from cutaway.weights.load import REWARD

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.model.decoder import Decoder
    from cutaway.train.trainable import Trainable, TrainingBatch

HEAD = "reward"


@dataclass(frozen=True)
class Config(Objective):
    """``centre`` is c."""

    rows: ClassVar[Kind] = "pairs"
    reads_end: ClassVar[bool] = True
    centre: NonNegative = 0.01

    def attach(self, model: Decoder) -> None:
        """The head w, which starts at zero: no answer is better than another."""
        import torch
        from torch import nn

        model.register_parameter(HEAD, nn.Parameter(torch.zeros(model.config.width)))

    def save(self, model: Decoder, folder: Path | None) -> None:
        """Write w into a run's folder."""
        from cutaway.quantization import formats
        from cutaway.train.adapted import array
        from cutaway.weights import safetensors

        weight = array(model.get_parameter(HEAD)).astype("float32")
        if folder is not None:
            safetensors.write_safetensors(folder / REWARD, {HEAD: formats.pack(weight, "F32")})

    def loss(self, trainable: Trainable, batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the pairs' losses, and the sums that ``report`` reads."""
        import torch
        from torch.nn.functional import logsigmoid, pad

        hidden, _ = trainable.hidden(batch)
        scores = hidden.float() @ trainable.model.get_parameter(HEAD)
        numbers, count = documents(batch)
        places = torch.arange(scores.shape[1], device=scores.device).expand_as(numbers)
        last = numbers.new_zeros(len(numbers), count).scatter_reduce(1, numbers, places, "amax")
        rewards, real = scores.gather(1, last), sums(batch)[:, ::2] > 0
        chosen, rejected = rewards[:, ::2][real], rewards[:, 1::2][real]
        margins = pad(batch.extra["margins"], (0, 1))[:, : real.shape[1]][real]
        losses = -logsigmoid(chosen - rejected - margins) + self.centre * (chosen + rejected).square()
        return losses.sum(), compared(chosen, rejected)


class RewardModel:
    """A trained reward model of a run's folder. Raises UserError for a folder that holds none."""

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        from cutaway.quantization import formats
        from cutaway.train.examples import reader
        from cutaway.weights import build, load, safetensors

        folder = Path(folder)
        if not (folder / REWARD).is_file():
            raise UserError(f"{folder}: holds no reward model: there is no {REWARD} in it")
        checkpoint = (
            load.with_adapter(folder)
            if (folder / load.ADAPTER).is_file()
            else load.read_checkpoint(folder / "model")
        )
        self.model = build.decoder(checkpoint, device=device)
        import torch

        found = safetensors.read_shaped(folder / REWARD, {HEAD: (self.model.config.width,)})
        self.weight = torch.from_numpy(formats.unpack(found[HEAD])).to(device)
        self.reader = reader(checkpoint)

    def scores(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """The rewards of prompts with completions, or of conversations, written as training data is."""
        found = [self.reader.example(row, f"row {n}") for n, row in enumerate(rows)]
        return [self.score(example.to_end.ids.tolist()) for example in found]

    def score(self, ids: Sequence[int]) -> float:
        """The reward of a text, read at its last id."""
        import torch

        with torch.no_grad():
            given = torch.tensor([ids], device=self.weight.device)
            x, _ = self.model.routed(given, torch.arange(len(ids), device=given.device)[None])
            return float(self.model.norm(x[0, -1]) @ self.weight)
