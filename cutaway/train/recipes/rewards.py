"""Learning from rewards: a task, what samples its answers (train/rollouts.py), and the held-out questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cutaway.data import tasks
from cutaway.data.tasks import RewardTask
from cutaway.errors import UserError, plural
from cutaway.generate.sampling_params import SamplingParams
from cutaway.model.decoder import Decoder as DecoderModel
from cutaway.tokenizer import Tokenizer
from cutaway.train import remote_sampler
from cutaway.train.examples import Note
from cutaway.train.local_sampler import local
from cutaway.train.objectives import on_policy_distill
from cutaway.train.objectives.common.policy_gradient import PolicyGradient
from cutaway.train.objectives.reward_model import RewardModel
from cutaway.train.recipes import finetune
from cutaway.train.remote_sampler import RemoteSampler
from cutaway.train.rewards_config import RewardsConfig
from cutaway.train.rollouts import Group, HeldOut, Sampled
from cutaway.train.trainable import Trainable
from cutaway.train.training import Dataset
from cutaway.weights import adapters, build, load
from cutaway.weights.checkpoint import Checkpoint

JUDGE = "reward_model"
TRIED = 8  # questions that ``check`` samples


def read_rewards_config(source: str, changes: Sequence[str] = ()) -> RewardsConfig:
    """The run of a method, a YAML file or a run's folder, changed; its model is the base's."""
    return finetune.read_finetuning_config(source, changes, RewardsConfig)


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
    checkpoint, task = finetune.base(run), of(run)
    note(
        f"{task.name}: {plural(len(task.train), 'question')} to train on and {len(task.test):,} held out, "
        "none of them in both; always giving the commonest answer is right for "
        f"{task.floor():.1%} of the latter."
    )
    model = finetune.trained_model(run, checkpoint)
    prompts, lengths = prompter(run, checkpoint), torch.zeros(run.model.vocab, dtype=torch.int64)
    sampler = (
        local(run, checkpoint, model, note) if not run.data.urls else remote(run, checkpoint, model, folder)
    )
    greedy, reference = settings(run, checkpoint), None
    if run.adapter is None and run.objective.kl_coefficient:
        reference = Trainable(build.decoder(checkpoint), run.objective, lengths)
    trainable = Trainable(model, run.objective, lengths)
    learns = isinstance(run.objective, on_policy_distill.Config)
    teacher = finetune.teacher(run.objective, checkpoint.tokenizer) if learns else None
    train = Sampled(run, task, checkpoint.tokenizer, prompts, sampler, greedy, trainable, reference, teacher)
    judge = sampler
    if run.data.urls and not run.data.sync:
        note(f"{run.data.sampler} samples from a policy that stays as it is; what is trained is judged here.")
        judge = local(run, checkpoint, model, note)
    held_out = HeldOut(task, prompts, judge, greedy, folder)
    export = finetune.export(run, checkpoint)
    given = train, held_out, lengths, checkpoint.tokenizer, prompts, export, model, teacher
    return Dataset(*given, report=train.report, join=train.join)


def check(run: RewardsConfig, note: Note) -> tuple[RewardTask, list[Group]]:
    """The task, and completions of its first questions by the model before training.

    Raises UserError where none of them has a reward above 0, so that there is nothing to learn from.
    """
    checkpoint, task = finetune.base(run), of(run)
    model = finetune.trained_model(run, checkpoint)
    data = replace(run.data, prompts=len(task.train))
    one = replace(run, data=data, batch_size=TRIED, micro_batch_size=TRIED)
    for url in run.data.urls:
        remote_sampler.served_model(remote_sampler.Server(url), run.data.sampler_model)
    prompts, sampler = prompter(run, checkpoint), local(run, checkpoint, model, note)
    trainable = Trainable(model, run.objective, torch.zeros(0))
    sampled = Sampled(
        one, task, checkpoint.tokenizer, prompts, sampler, settings(run, checkpoint), trainable, None
    )
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


def settings(run: RewardsConfig, checkpoint: Checkpoint) -> SamplingParams:
    """Greedy completions that end as the model's answers do."""
    ends = checkpoint.defaults.get("eos_ids", ())
    return SamplingParams(run.data.max_tokens, stop_ids=ends if isinstance(ends, tuple) else ())


def of(run: RewardsConfig) -> RewardTask:
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


def prompter(run: RewardsConfig, checkpoint: Checkpoint) -> Callable[[str], list[int]]:
    """Questions as prompts; UserError for one that leaves no room for a completion."""
    render, data = finetune.prompt(checkpoint), run.data

    def ids(question: str) -> list[int]:
        found = render(f"{question}\n{data.instruction}" if data.instruction else question)
        if len(found) + data.max_tokens > data.context:
            raise UserError(
                f"a question of {len(found)} tokens and a completion of data.max_tokens, {data.max_tokens}, "
                f"do not fit data.context, {data.context}: raise it, or lower data.max_tokens"
            )
        return found

    return ids


def remote(run: RewardsConfig, checkpoint: Checkpoint, model: DecoderModel, folder: Path) -> RemoteSampler:
    """Samples by the servers that the run names."""
    servers = tuple(map(remote_sampler.Server, run.data.urls))
    names = {remote_sampler.served_model(server, run.data.sampler_model) for server in servers}
    if len(names) > 1:
        raise UserError(
            f"config.data.sampler: the servers serve {' and '.join(map(repr, sorted(names)))}: replicas "
            "serve one model by one name (--data.sampler-model)"
        )
    tokenizer: Tokenizer = checkpoint.tokenizer
    root, first = load.base_and_adapter(checkpoint)

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
        servers,
        names.pop(),
        run.data.sync,
        run.data.max_sequences,
        tokenizer,
        frozenset({*tokenizer.eos_ids, *settings(run, checkpoint).stop_ids}),
        folder,
        write,
        scores,
    )
