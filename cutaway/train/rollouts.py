"""Learning from rewards: completions are sampled from the model that is trained, scored, and trained on.

Each step draws ``batch_size`` questions of a task and ``group_size`` completions of each, by the scheduler of
``generate/batch``: the completions of a question share its keys and values. A row of training is a question
with all of its completions, so that the question is read once there too (``documents`` -1).

What is sampled is a function of the weights, the seed and the step: a run that was stopped continues to the
same weights. The runtime samples from the packed base with the adapter beside it, and rounds otherwise than
the trainer: the log-probabilities of both are kept apart (``objectives/common/policy_gradient.py``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cutaway.attention.common.heads import Heads
from cutaway.data.packing import Batch, number, permuted, stacked
from cutaway.data.tasks import RIGHT, Problem, RewardTask
from cutaway.errors import UserError
from cutaway.generate.batch.request import Request
from cutaway.generate.sampling_params import SamplingParams
from cutaway.model.decoder import Decoder as DecoderModel
from cutaway.tokenizer import Tokenizer
from cutaway.train.folder import SAMPLES
from cutaway.train.objectives.common.policy_gradient import ADVANTAGES, SAMPLER, even
from cutaway.train.parallel import SINGLE_PROCESS, Parallel
from cutaway.train.remote_sampler import RemoteSampler, all_or_none
from cutaway.train.rewards_config import RewardsConfig
from cutaway.train.sampler import Completion, Sampler
from cutaway.train.trainable import REFERENCE, Trainable, TrainingBatch
from cutaway.train.training import Training

SHOWN = 5  # held-out questions whose answers an evaluation stores
SEEDS = 1 << 63  # below it, which every server accepts


@dataclass
class Group:
    """A question's completions and their rewards [g]."""

    problem: Problem
    prompt: Sequence[int]
    completions: list[Completion]
    rewards: np.ndarray

    @property
    def even(self) -> bool:
        """Whether all rewards are equal but for rounding, so that nothing is learned from them."""
        return bool(even(self.rewards))


def row(group: Group, shares: bool) -> Batch:
    """One row [1 t]: the question but its last token, then that token and a completion for each of them.

    ``shares`` says whether the model's attention reads what documents share; without, each completion
    follows a copy of the question. Loss weights are 1 at the completions' tokens.
    """
    prompt = np.array(group.prompt, np.int64)
    shared = prompt[:-1] if shares else prompt[:0]
    own = prompt[len(shared) :]
    ids, targets, pos, documents, weights, log_probs = ([] for _ in range(6))

    def add(read: np.ndarray, wanted: np.ndarray, start: int, document: int, scores: np.ndarray) -> None:
        idle = np.zeros(len(read) - len(scores), np.float32)
        ids.append(read)
        targets.append(np.concatenate([np.zeros(len(read) - len(wanted), np.int64), wanted]))
        pos.append(np.arange(start, start + len(read)))
        documents.append(np.full(len(read), document))
        weights.append(np.concatenate([idle, np.ones(len(scores), np.float32)]))
        log_probs.append(np.concatenate([idle, scores]))

    add(shared, shared[:0], 0, -1, np.zeros(0, np.float32))
    for n, each in enumerate(group.completions):
        add(np.concatenate([own, each.ids[:-1]]), each.ids, len(shared), n, each.log_probs)
    fields = {"ids": ids, "targets": targets, "pos": pos, "documents": documents, "loss_weights": weights}
    whole: dict[str, Any] = {name: np.concatenate(parts)[None] for name, parts in fields.items()}
    return Batch(**whole, extra={SAMPLER: np.concatenate(log_probs)[None]})


def padded(batch: Batch, width: int) -> Batch:
    """The row with padding up to this many tokens."""

    def wide(array: np.ndarray, value: int = 0) -> np.ndarray:
        return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=value)

    return Batch(
        wide(batch.ids),
        wide(batch.targets),
        wide(batch.pos, -1),
        wide(batch.documents, int(batch.documents.max()) + 1),
        wide(batch.loss_weights),
        {name: wide(array) for name, array in batch.extra.items()},
    )


def by_completion(values: np.ndarray, row: Batch, count: int) -> np.ndarray:
    """[t]: one of ``count`` values for each token that a completion trains, 0 elsewhere."""
    documents = np.where(row.loss_weights[0] > 0, row.documents[0], count)
    return np.append(values, 0).astype(np.float32)[documents]


class Sampled:
    """The batches of a run: a step's completions, sampled when its first batch is asked for.

    Each of several processes samples the questions of its own micro-batches.
    """

    def __init__(
        self,
        run: RewardsConfig,
        task: RewardTask,
        tokenizer: Tokenizer,
        prompts: Callable[[str], list[int]],
        sampler: Sampler,
        settings: SamplingParams,
        trainable: Trainable,
        reference: Trainable | None,
        teacher: DecoderModel | None = None,
    ) -> None:
        self.run, self.task, self.prompts, self.sampler = run, task, prompts, sampler
        self.settings, self.tokenizer = settings, tokenizer
        self.trainable, self.reference = trainable, reference
        read = (run.model, *([] if teacher is None else [teacher.config]))
        self.shares = all(isinstance(block.attention, Heads) for each in read for block in each.blocks)
        self.step = -1
        self.rows: list[Batch] = []  # of ``slots``
        self.lengths = np.zeros((0, 0))
        self.figures: dict[str, float] = {}
        self.join(SINGLE_PROCESS)

    def join(self, parallel: Parallel) -> None:
        """Sample as one of these processes."""
        self.parallel = parallel
        starts, size = parallel.micro_batches(self.run), self.run.micro_batch_size
        self.slots = [slot for start in starts for slot in range(start, start + size)]
        if isinstance(self.sampler, RemoteSampler):
            self.sampler.parallel = parallel

    def batch(self, first: int, count: int) -> Batch:
        """``count`` questions of the run from the ``first`` on, with their completions."""
        step, place = divmod(first, self.run.batch_size)
        if step != self.step:
            self._sample(step)
        at = self.slots.index(place)
        rows, lengths = self.rows[at : at + count], self.lengths[at : at + count]
        weights, divisor = self.run.objective.weights(lengths, self.run.data.max_tokens)
        size = lengths.shape[1]
        rows = [
            replace(one, loss_weights=by_completion(weight, one, size)[None])
            for one, weight in zip(rows, weights, strict=True)
        ]
        width = max(one.ids.shape[1] for one in rows)
        return replace(stacked([padded(one, width) for one in rows]), divisor=float(divisor))

    def report(self) -> dict[str, float]:
        """Figures of the step's completions."""
        return self.figures

    def _sample(self, step: int) -> None:
        """A step's completions, their rewards and advantages."""
        started, run = time.perf_counter(), self.run
        with all_or_none(self.parallel):
            groups, drawn, even = self._drawn(step)
        self.rows = [row(group, self.shares) for group in groups]
        rewards = np.array([group.rewards for group in groups])
        self.lengths = np.array([[len(each.ids) for each in group.completions] for group in groups])
        found = run.objective.advantages(self._everyones(rewards))
        if run.objective.kl_coefficient:
            self.rows = [self._with_reference(one) for one in self.rows]
            if run.objective.kl_estimator == "k1":
                k1 = np.array([self._k1(one, rewards.shape[1]) for one in self.rows])
                found = found + run.objective.kl_advantages(self._everyones(k1))
        self.rows = [
            replace(one, extra={**one.extra, ADVANTAGES: by_completion(own, one, len(own))[None]})
            for one, own in zip(self.rows, found[self.slots], strict=True)
        ]
        self.step = step
        scores = np.concatenate([group.rewards for group in drawn])
        made = [each for group in drawn for each in group.completions]
        counts = {
            "reward": scores.sum(),
            "accuracy": (scores >= RIGHT).sum(),
            "completion_length": sum(len(each.ids) for each in made),
            "unfinished": sum(not each.finished for each in made),
        }
        more = len(made), *even
        *sums, count, evens, of = self._sum(np.array([*counts.values(), *more], np.float64)).tolist()
        self.figures = {name: value / count for name, value in zip(counts, sums, strict=True)}
        self.figures["zero_variance"] = evens / of
        self.figures["sampling_seconds"] = time.perf_counter() - started

    def _drawn(self, step: int) -> tuple[list[Group], list[Group], tuple[int, int]]:
        """The groups to train on, those of the first draw, and how many of all drawn are even."""
        groups = drawn = self.groups(step, self.slots, 0)
        even, total = sum(group.even for group in groups), len(groups)
        for attempt in range(1, self.run.data.resample + 1):
            again = [slot for slot, group in zip(self.slots, groups, strict=True) if group.even]
            if not (again and self.run.objective.compares):
                break
            fresh = dict(zip(again, self.groups(step, again, attempt), strict=True))
            groups = [fresh.get(slot, group) for slot, group in zip(self.slots, groups, strict=True)]
            even, total = even + sum(group.even for group in fresh.values()), total + len(fresh)
        return groups, drawn, (even, total)

    def _everyones(self, own: np.ndarray) -> np.ndarray:
        """Numbers of this process's completions [slots g] with the other processes' [batch g]."""
        numbers = np.zeros((self.run.batch_size, own.shape[1]))
        numbers[self.slots] = own
        return self._sum(numbers)

    def _sum(self, numbers: np.ndarray) -> np.ndarray:
        """Over the processes."""
        return self.parallel.all_reduce(torch.from_numpy(numbers)).numpy()

    def groups(self, step: int, slots: Sequence[int], attempt: int) -> list[Group]:
        """Completions of the step's questions, each one's random numbers those of its place."""
        run, size = self.run, self.run.data.group_size
        problems = [self.task.train[self._place(step, slot, attempt)] for slot in slots]
        prompts = [tuple(self.prompts(problem.question)) for problem in problems]
        settings = replace(self.settings, temperature=run.objective.temperature)
        requests = [
            Request(
                prompt,
                replace(settings, seed=number(run.seed, "completion", step, slot, attempt, n) % SEEDS),
                drawn_logprobs=True,
            )
            for slot, prompt in zip(slots, prompts, strict=True)
            for n in range(size)
        ]
        sampled = run.objective.sampled
        made = self.sampler(requests, step) if sampled else [self._written(one) for one in problems]
        size, groups = len(made) // max(1, len(problems)), []
        for n, (problem, prompt) in enumerate(zip(problems, prompts, strict=True)):
            own = made[n * size : (n + 1) * size]
            rewards = np.array([self.task.score(each.text, problem) for each in own])
            groups.append(Group(problem, prompt, own, rewards))
        return groups

    def _written(self, problem: Problem) -> Completion:
        """The task's own answer as a completion. Raises UserError where it has none."""
        if problem.answer is None:
            raise UserError(f"{self.task.name} has no answers of its own to imitate")
        ids = [*self.tokenizer.encode(problem.answer), self.tokenizer.eos_ids[0]]
        return Completion(np.array(ids), np.zeros(len(ids), np.float32), problem.answer, True)

    def _place(self, step: int, slot: int, attempt: int) -> int:
        """Which question is asked: all of them once an epoch; a new draw takes any."""
        count, seed = len(self.task.train), self.run.seed
        if attempt:
            return number(seed, "again", step, slot, attempt) % count
        epoch, place = divmod(step * self.run.batch_size + slot, count)
        return permuted(place, count, number(seed, "questions", epoch))

    def _with_reference(self, one: Batch) -> Batch:
        """The row with the log-probabilities of the model before training."""
        of = self.trainable.reference_log_probs if self.reference is None else self.reference.log_probs
        return replace(one, extra={**one.extra, REFERENCE: self._log_probs(one, of)})

    def _k1(self, one: Batch, count: int) -> np.ndarray:
        """The sum of k1 over each completion's tokens [g].

        The trainer computes both sides: the sampler rounds otherwise, and would be found to differ from a
        reference with the same weights.
        """
        trained = one.loss_weights[0] > 0
        apart = self._log_probs(one, self.trainable.log_probs) - one.extra[REFERENCE]
        return np.bincount(one.documents[0][trained], apart[0][trained].astype(np.float64), count)

    def _log_probs(self, one: Batch, of: Callable[[TrainingBatch, int, float], torch.Tensor]) -> np.ndarray:
        """The log-probabilities of a row's targets [1 t], without dropout."""
        objective, device = self.run.objective, self.trainable.head_weight.device
        half, model = self.run.precision == "bfloat16", self.trainable.model
        training = model.training
        model.eval()
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
            found = of(TrainingBatch.of(one, device), objective.chunk_size, objective.temperature)
        model.train(training)
        return found.float().cpu().numpy()


@dataclass(frozen=True)
class HeldOut:
    """The held-out questions, answered greedily; the first answers are stored in ``folder``."""

    task: RewardTask
    prompts: Callable[[str], list[int]]
    sampler: Sampler
    settings: SamplingParams
    folder: Path

    def evaluate(self, training: Training, count: int) -> dict[str, float]:
        """Accuracy, mean reward and length over the first ``count`` questions; each process asks some."""
        parallel, problems = training.parallel, self.task.test[:count]
        problems = problems[parallel.data_rank :: parallel.data_size]
        asked = [Request(tuple(self.prompts(one.question)), self.settings) for one in problems]
        with all_or_none(parallel):
            made = self.sampler(asked, training.step, current=True)
        scores = [self.task.score(each.text, one) for one, each in zip(problems, made, strict=True)]
        right, lengths = sum(score >= RIGHT for score in scores), sum(len(each.ids) for each in made)
        sums = torch.tensor([right, sum(scores), lengths, len(made)], dtype=torch.float64)
        right, reward, lengths, asked_in_all = parallel.all_reduce(sums).tolist()
        if parallel.rank == 0:
            self._store(training.step, problems, made, scores)
        return {
            "validation_accuracy": right / asked_in_all,
            "validation_reward": reward / asked_in_all,
            "validation_completion_length": lengths / asked_in_all,
        }

    def _store(
        self, step: int, problems: Sequence[Problem], made: Sequence[Completion], scores: Sequence[float]
    ) -> None:
        with (self.folder / SAMPLES).open("a", encoding="utf-8") as out:
            for one, each, score in list(zip(problems, made, scores, strict=True))[:SHOWN]:
                line = {
                    "question": one.question,
                    "answer": one.answer,
                    "completion": each.text,
                    "score": score,
                }
                out.write(json.dumps({"step": step, **line}) + "\n")
