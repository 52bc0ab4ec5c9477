"""The config of a run that learns from rewards: its task, how often it is asked, and what samples answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from cutaway.bounds import Bounded, Count, Natural
from cutaway.errors import UserError
from cutaway.train.objectives import grpo, on_policy_distill, reinforce
from cutaway.train.objectives.common.policy_gradient import PolicyGradient
from cutaway.train.recipes.finetune import FinetuningConfig

LOCAL = ("auto", "runtime", "pytorch")


@dataclass(frozen=True)
class Rollouts(Bounded):
    """What is asked, how often, and by what it is sampled.

    ``task``: "reasoning_gym:NAME" with its ``options``, or, for the questions of ``path``,
    "file.py:function" or "reward_model:FOLDER".
    ``prompts`` questions are trained on and ``test`` others held out; ``instruction`` is added to each.
    A completion has at most ``max_tokens`` tokens, with its question at most ``context``. A group whose
    rewards are all equal teaches nothing: it is drawn anew, at most ``resample`` times. ``max_sequences`` are
    sampled at once. ``sampler``: "runtime" or "pytorch"; "auto" is the runtime where it can apply the
    adapter; or the address of a server (``remote_sampler.py``), or several with commas between, which serve
    the base as ``sampler_model`` and are handed the adapter every ``sync`` steps (0: never).
    """

    task: str
    path: str | None = None
    options: dict = field(default_factory=dict)
    instruction: str = ""
    prompts: Count = 2048
    test: Count = 200
    group_size: Count = 8
    max_tokens: Count = 64
    context: Count = 512
    resample: Natural = 1
    sampler: str = "auto"
    sampler_model: str | None = None
    sync: Natural = 1
    max_sequences: Count = 32

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses of the servers that sample; none: this machine does."""
        found = tuple(each.strip().rstrip("/") for each in self.sampler.split(","))
        return found if all(each.startswith(("http://", "https://")) for each in found) else ()


@dataclass(frozen=True)
class RewardsConfig(FinetuningConfig):
    """A fine-tuning config whose data are a task, and whose step reads ``batch_size`` questions."""

    replicated: ClassVar[bool] = True
    data: Rollouts  # type: ignore[assignment]
    objective: Any = field(default=grpo.Config(), metadata={"variants": "cutaway.train.objectives"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.steps or not self.batch_size:
            raise UserError(
                "config.steps, config.batch_size: a task has no epochs: give --steps and --batch-size"
            )
        if not isinstance(self.objective, PolicyGradient | on_policy_distill.Config):
            raise UserError(
                "config.objective: a task is learned by grpo, rloo, reinforce or one of their kin"
            )
        self._check_sampler()
        compared = self.data.group_size
        if isinstance(self.objective, reinforce.Config):
            compared *= self.batch_size
        if self.objective.compares and compared < 2:
            raise UserError(
                "config.data.group_size is 1: a completion is compared with others, so give 2 or more"
            )

    def _check_sampler(self) -> None:
        data, beside = self.data, bool(self.data.urls)
        if not beside and data.sampler not in LOCAL:
            raise UserError(
                f"config.data.sampler is {data.sampler!r}; it must be {', '.join(LOCAL)}, or the address "
                "of an OpenAI API such as http://127.0.0.1:8000/v1"
            )
        if not beside and (data.sync != 1 or data.sampler_model is not None):
            raise UserError(
                "config.data.sync and config.data.sampler_model are of a sampler that is an address"
            )
        if beside and self.objective.temperature != 1:
            raise UserError(
                "config.objective.temperature must be 1 where a server samples, because servers report the "
                f"model's log-probabilities before temperature; it is {self.objective.temperature:g}"
            )
        if beside and data.sync and self.adapter is None:
            raise UserError(
                "config.data.sampler: a server is handed an adapter, and all weights are trained here: name "
                "an adapter, or sample from a policy that stays as it is (--data.sync 0)"
            )
