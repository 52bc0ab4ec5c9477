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
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from cutaway.attention.common.heads import Heads
from cutaway.bounds import Bounded, Count, Natural
from cutaway.data import tasks
from cutaway.data.packing import Batch, number, permuted, stacked
from cutaway.data.tasks import RIGHT, Problem, Task
from cutaway.errors import UserError, plural
from cutaway.generate.batch.request import Request
from cutaway.generate.batch.scheduler import answer_all
from cutaway.generate.engine import Engine
from cutaway.generate.sampling_params import SamplingParams
from cutaway.model.decoder import Decoder as DecoderModel
from cutaway.model.engine import DefinitionEngine
from cutaway.quantization import formats
from cutaway.runtime.engine import RuntimeEngine
from cutaway.tokenizer import Tokenizer
from cutaway.train import finetune, remote_sampler
from cutaway.train.examples import Note
from cutaway.train.finetune import FinetuningConfig
from cutaway.train.folder import SAMPLES
from cutaway.train.loop import Dataset, Training
from cutaway.train.objectives import grpo, on_policy_distill, reinforce
from cutaway.train.objectives.common.policy_gradient import ADVANTAGES, SAMPLER, PolicyGradient, even
from cutaway.train.objectives.reward_model import RewardModel
from cutaway.train.parallel import SINGLE_PROCESS, Parallel
from cutaway.train.remote_sampler import RemoteSampler, all_or_none
from cutaway.train.sampler import Completion, Sampler
from cutaway.train.trainable import REFERENCE, Trainable, TrainingBatch
from cutaway.weights import adapters, build
from cutaway.weights.load import Checkpoint
from cutaway.weights.rules import Tensors

JUDGE = "reward_model"
SHOWN = 5  # held-out questions whose answers an evaluation stores
LOCAL = ("auto", "runtime", "definition")
SEEDS = 1 << 63  # that every server takes
TRIED = 8  # questions that ``check`` samples


@dataclass(frozen=True)
class Rollouts(Bounded):
    """What is asked, how often, and by what it is sampled.

    ``task``: "reasoning_gym:NAME" with its ``options``, or, for the questions of ``path``,
    "file.py:function" or "reward_model:FOLDER".
    ``prompts`` questions are trained on and ``test`` others held out; ``instruction`` is added to each.
    A completion has at most ``max_tokens`` tokens, with its question at most ``context``. A group whose
    rewards are all equal teaches nothing: it is drawn anew, at most ``resample`` times. ``max_sequences`` are
    sampled at once. ``sampler``: "runtime" or "definition"; "auto" is the runtime where it can apply the
    adapter; or the address of a server (``remote_sampler.py``), which serves the base as ``sampler_model``
    and is handed the adapter every ``sync`` steps (0: never).
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
    def url(self) -> str | None:
        """The address of the server that samples; None: this machine does."""
        return self.sampler.rstrip("/") if self.sampler.startswith(("http://", "https://")) else None


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
        data, beside = self.data, self.data.url is not None
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
        task: Task,
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

    task: Task
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


# ---- the recipe (train/run.py) -----------------------------------------------------------------------------


def read(source: str, changes: Sequence[str] = ()) -> RewardsConfig:
    """The run of a method, a YAML file or a run's folder, changed; its model is the base's."""
    return finetune.read(source, changes, RewardsConfig)


def resolved(run: RewardsConfig, folder: Path, note: Note) -> RewardsConfig:
    """The run as it is stored: paths whole."""
    task = run.data.task
    file, colon, own = task.rpartition(":")
    if file.endswith(".py"):
        task = f"{Path(file).absolute()}{colon}{own}"
    elif file == JUDGE:
        task = f"{file}{colon}{Path(own).absolute()}"
    if isinstance(run.objective, on_policy_distill.Config):
        run = replace(run, objective=replace(run.objective, teacher=finetune.whole(run.objective.teacher)))
    path = None if run.data.path is None else str(Path(run.data.path).absolute())
    return replace(run, data=replace(run.data, task=task, path=path), base=finetune.whole(run.base))


def ready(run: RewardsConfig, folder: Path, note: Note) -> Dataset:
    """The task's questions, and the model with what is trained of it."""
    at_rest, task = finetune.base(run), of(run)
    note(
        f"{task.name}: {plural(len(task.train), 'question')} to train on and {len(task.test):,} held out, "
        "none of them in both; always giving the commonest answer is right for "
        f"{task.floor():.1%} of the latter."
    )
    model = finetune.trained_model(run, at_rest)
    prompts, lengths = prompter(run, at_rest), torch.zeros(run.model.vocab, dtype=torch.int64)
    sampler = (
        local(run, at_rest, model, note) if run.data.url is None else remote(run, at_rest, model, folder)
    )
    greedy, reference = settings(run, at_rest), None
    if run.adapter is None and run.objective.kl_coefficient:
        reference = Trainable(build.decoder(at_rest), run.objective, lengths)
    trainable = Trainable(model, run.objective, lengths)
    learns = isinstance(run.objective, on_policy_distill.Config)
    teacher = finetune.teacher(run.objective, at_rest.tokenizer) if learns else None
    train = Sampled(run, task, at_rest.tokenizer, prompts, sampler, greedy, trainable, reference, teacher)
    judge = sampler
    if run.data.url is not None and not run.data.sync:
        note(f"{run.data.url} samples from a policy that stays as it is; what is trained is judged here.")
        judge = local(run, at_rest, model, note)
    held_out = HeldOut(task, prompts, judge, greedy, folder)
    export = finetune.export(run, at_rest)
    given = train, held_out, lengths, at_rest.tokenizer, prompts, export, model, teacher
    return Dataset(*given, report=train.report, join=train.join)


def check(run: RewardsConfig, note: Note) -> tuple[Task, list[Group]]:
    """The task, and completions of its first questions by the model before training.

    Raises UserError where none of them has a reward above 0, so that there is nothing to learn from.
    """
    at_rest, task = finetune.base(run), of(run)
    model = finetune.trained_model(run, at_rest)
    data = replace(run.data, prompts=len(task.train))
    one = replace(run, data=data, batch_size=TRIED, micro_batch_size=TRIED)
    if run.data.url is not None:
        remote_sampler.served_model(remote_sampler.Server(run.data.url), run.data.sampler_model)
    prompts, sampler = prompter(run, at_rest), local(run, at_rest, model, note)
    trainable = Trainable(model, run.objective, torch.zeros(0))
    sampled = Sampled(one, task, at_rest.tokenizer, prompts, sampler, settings(run, at_rest), trainable, None)
    groups = sampled.groups(0, range(TRIED), 0)
    if isinstance(run.objective, PolicyGradient) and not any(group.rewards.any() for group in groups):
        first = groups[0]
        raise UserError(
            f"{task.name}: all {TRIED * len(first.rewards)} sampled answers have the reward 0, so that "
            f"nothing can be learned from them; to {first.problem.question!r} the first was "
            f"{first.completions[0].text!r}. Train the form of the answers first, cutaway finetune imitation "
            "--task ..., and give its run as --model"
        )
    return task, groups


def settings(run: RewardsConfig, at_rest: Checkpoint) -> SamplingParams:
    """Greedy completions that end as the model's answers do."""
    ends = at_rest.defaults.get("eos_ids", ())
    return SamplingParams(run.data.max_tokens, stop_ids=ends if isinstance(ends, tuple) else ())


def of(run: RewardsConfig) -> Task:
    """A run's task."""
    data = run.data
    kind, _, folder = data.task.partition(":")
    scorer = judged(folder) if kind == JUDGE else None
    return tasks.load(data.task, data.prompts, data.test, run.seed, data.options, data.path, scorer)


def judged(folder: str) -> tasks.Score:
    """A reward model's rewards of answers to a row's "prompt"."""
    judge = RewardModel(folder)

    def score(text: str, row: dict[str, Any]) -> float:
        given: dict[str, Any] = {"prompt": row["prompt"].strip(), "completion": text}
        if judge.reader.template is not None:
            roles = zip(given.items(), ("user", "assistant"), strict=True)
            given = {name: [{"role": role, "content": content}] for (name, content), role in roles}
        return judge.scores([given])[0]

    return score


def prompter(run: RewardsConfig, at_rest: Checkpoint) -> Callable[[str], list[int]]:
    """Questions as prompts; UserError for one that leaves no room for a completion."""
    render, data = finetune.prompt(at_rest), run.data

    def ids(question: str) -> list[int]:
        found = render(f"{question}\n{data.instruction}" if data.instruction else question)
        if len(found) + data.max_tokens > data.context:
            raise UserError(
                f"a question of {len(found)} tokens and a completion of data.max_tokens, {data.max_tokens}, "
                f"do not fit data.context, {data.context}: raise it, or lower data.max_tokens"
            )
        return found

    return ids


def local(run: RewardsConfig, at_rest: Checkpoint, model: DecoderModel, note: Note) -> Sampler:
    """Samples from the model as it is now, on this machine."""
    engine_of = _engine(run, at_rest, model, note)
    tokenizer: Tokenizer = at_rest.tokenizer

    def sample(requests: Sequence[Request], step: int, /, *, current: bool = False) -> list[Completion]:
        del step, current  # this model's weights are always those of now
        training = model.training
        made = answer_all(engine_of(), tokenizer, requests, max_sequences=run.data.max_sequences)
        model.train(training)
        return [Completion.of(each) for each in made]

    return sample


def remote(run: RewardsConfig, at_rest: Checkpoint, model: DecoderModel, folder: Path) -> RemoteSampler:
    """Samples by the server that the run names."""
    assert run.data.url is not None
    server = remote_sampler.Server(run.data.url)
    tokenizer: Tokenizer = at_rest.tokenizer
    root, first = adapters.apart(at_rest)

    def write(into: Path) -> None:
        """What is to be added to the base's base, so that an adapter of the base's own is in it."""
        assert run.adapter is not None
        changes: Any = adapters.stacked(first, run.adapter.changes(model))
        adapters.save(into, changes, root, str(root.source), run.context_extension)

    def scores(prompt: Sequence[int], ids: np.ndarray) -> np.ndarray:
        read = torch.tensor([[*prompt, *ids.tolist()]], device=next(model.parameters()).device)
        pos = torch.arange(read.shape[1] - 1, device=read.device)[None]
        training = model.training
        with torch.no_grad():
            logits = model.eval()(read[:, :-1], pos)[0, len(prompt) - 1 :].float()
        model.train(training)
        return logits.log_softmax(-1).gather(-1, read[0, len(prompt) :, None])[:, 0].cpu().numpy()

    return RemoteSampler(
        server,
        remote_sampler.served_model(server, run.data.sampler_model),
        run.data.sync,
        run.data.max_sequences,
        tokenizer,
        frozenset({*tokenizer.eos_ids, *settings(run, at_rest).stop_ids}),
        folder,
        write,
        scores,
    )


def _engine(run: RewardsConfig, at_rest: Checkpoint, model: DecoderModel, note: Note) -> Callable[[], Engine]:
    """The engine of the model as it is when it is asked for."""

    def runtime() -> RuntimeEngine:
        if run.adapter is None:
            weights = {
                name: formats.pack(p.detach().cpu().numpy(), "F32") for name, p in model.named_parameters()
            }
            return RuntimeEngine(run.model, Tensors(weights), run.threads)
        engine, first = packed()
        return engine.adapted(adapters.stacked(first, run.adapter.changes(model)))

    @cache
    def packed() -> tuple[RuntimeEngine, adapters.Adapter]:
        """The base as it lies in its file, and the adapter that it came with."""
        root, first = adapters.apart(at_rest)
        return RuntimeEngine(run.model, root.tensors, run.threads), first

    if run.data.sampler == "definition":
        return lambda: DefinitionEngine(model)
    try:
        runtime()
    except UserError as error:
        if run.data.sampler == "runtime":
            raise
        note(f"PyTorch samples, which is slower: {error}.")
        return lambda: DefinitionEngine(model)
    return runtime
