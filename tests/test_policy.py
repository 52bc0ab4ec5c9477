"""Learning from rewards: tasks, completions as rows, objectives and KL against loops, and whole runs."""

import copy
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import cutaway
from cutaway.cli import main
from cutaway.data import run_tokenizer, tasks
from cutaway.data.packing import Batch
from cutaway.data.tasks import Problem
from cutaway.errors import UserError
from cutaway.generate.batch.request import Request
from cutaway.generate.sampling_params import SamplingParams
from cutaway.model.decoder import Decoder
from cutaway.quantization import formats
from cutaway.train import device, distributed, rewards_config, rollouts
from cutaway.train import run as training_run
from cutaway.train.adapted import reference
from cutaway.train.folder import SAMPLES
from cutaway.train.objectives import bnpo, dapo, dr_grpo, grpo, reinforce, rloo
from cutaway.train.objectives.common.policy_gradient import ADVANTAGES, OLD, SAMPLER
from cutaway.train.objectives.reward_model import RewardModel
from cutaway.train.recipes import finetune
from cutaway.train.recipes import rewards as rewards_recipe
from cutaway.train.rollouts import Group
from cutaway.train.sampler import Completion
from cutaway.train.trainable import REFERENCE, Trainable, TrainingBatch
from cutaway.train.training import Dataset, Training
from cutaway.weights import adapters, load, save
from cutaway.weights.named_tensors import Tensors
from tests.test_finetune import TEMPLATE
from tests.training import Quiet, chatting_model, model, pairs

CPU = torch.device("cpu")
VOCAB = len(run_tokenizer.of_bytes())
OBJECTIVES = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "bnpo": bnpo,
    "rloo": rloo,
    "reinforce": reinforce,
}
SCORER = """
def ascii(text, row):
    return sum(c.isascii() for c in text) / 8

def nothing(text, row):
    return 0
"""

# ---- tasks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chain_sum", "letter_counting", "gcd"])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_held_out_question_is_trained_on(name: str, seed: int) -> None:
    pytest.importorskip("reasoning_gym")
    options = (
        {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1} if name == "chain_sum" else {}
    )
    task = tasks.load(f"reasoning_gym:{name}", 100, 20, seed, options)
    held_out = [problem.question for problem in task.test]
    assert len(task.train) == 100 and len(set(held_out)) == len(held_out) == 20
    assert not set(held_out) & {problem.question for problem in task.train}
    assert all(task.score(f"so <answer>{one.answer}</answer>", one) == 1 for one in task.test)
    if name == "chain_sum":
        assert task.shared > 0, "one-digit sums repeat, however far the seeds are apart"


def test_runs_of_other_seeds_train_on_other_items_and_share_the_exam() -> None:
    pytest.importorskip("reasoning_gym")
    one, other = (tasks.load("reasoning_gym:gcd", 50, 10, seed) for seed in (0, 1))
    assert [p.question for p in one.train][1:] != [p.question for p in other.train][:-1]
    assert one.test == other.test


def test_answers_are_extracted_and_the_floor_is_the_commonest() -> None:
    assert (
        tasks.extract("a <answer>1</answer> or <answer> 2\n</answer>.") == "2" and tasks.extract(" 3 ") == "3"
    )
    train = tuple(Problem(str(n), "7" if n < 3 else str(n), None) for n in range(5))
    test = tuple(Problem(f"t{n}", "7" if n < 2 else "x", None) for n in range(8))
    task = tasks.RewardTask(
        "t", train, tuple(replace(p, item=p) for p in test), 0, lambda text, p: text == p.answer
    )
    assert task.floor() == 0.25


def test_a_task_of_ones_own(task: tuple[str, Path], tmp_path: Path) -> None:
    made = tasks.load(task[0], 30, 10, path=str(task[1]))
    assert len(made.train) == 30 and len(made.test) == 10 and made.score("aeio", made.test[0]) == 0.5
    (tmp_path / "same.jsonl").write_text('{"prompt": "x"}\n' * 30)
    for name, path, message in [
        (task[0], None, "with --data"),
        (task[0], str(tmp_path / "same.jsonl"), "every held-out question"),
        (f"{task[0]}s", str(task[1]), "no function"),
        ("nothing.py:f", str(task[1]), "no such file"),
        ("sums", None, "is no task"),
    ]:
        with pytest.raises(UserError, match=message):
            tasks.load(name, 30, 10, path=path)


def test_what_reasoning_gym_does_not_know() -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UserError, match="no such task"):
        tasks.load("reasoning_gym:chainsum", 3, 3)
    with pytest.raises(UserError, match=r"check data\.options"):
        tasks.load("reasoning_gym:chain_sum", 3, 3, 0, {"terms": 2})


# ---- a small base and its task -----------------------------------------------------------------------------


@pytest.fixture
def task(tmp_path: Path) -> tuple[str, Path]:
    (tmp_path / "score.py").write_text(SCORER)
    rows = [{"prompt": chr(97 + n % 26) * (1 + n // 26)} for n in range(60)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"{tmp_path / 'score.py'}:ascii", tmp_path / "questions.jsonl"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small llama whose vocabulary is its tokenizer's, with sharper choices than random weights give."""
    torch.manual_seed(1)
    made, tokenizer = Decoder(model(VOCAB, 128)), run_tokenizer.of_bytes()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    tensors = Tensors({name: formats.pack(p.detach().numpy(), "F32") for name, p in made.named_parameters()})
    words = run_tokenizer.save(tokenizer, tmp_path / "words")
    (words / "chat_template.jinja").write_text(TEMPLATE)
    checkpoint = load.Checkpoint(model(VOCAB, 128), tensors, None, words, lambda: tokenizer, TEMPLATE)
    save.write_checkpoint(tmp_path / "base", checkpoint, "safetensors")
    return tmp_path / "base"


def config(base: Path, task: tuple[str, Path], *more: str) -> rewards_config.RewardsConfig:
    words = f"--base {base} --data.task {task[0]} --data.path {task[1]} --data.options {{}} --data.test 10"
    words += " --data.group-size 4 --data.max-tokens 8 --data.context 64 --batch-size 2 --micro-batch-size 1"
    words += " --steps 6 --threads 1 --intervals.save 3 --intervals.evaluate 3 --adapter.rank 4"
    words += " --optimizer.learning-rate 0.01"
    return rewards_recipe.read_rewards_config("grpo", [*words.split(), *more])


def drawn(lengths: Sequence[int], seed: int = 0) -> list[Completion]:
    draw = np.random.default_rng(seed)
    return [
        Completion(
            draw.integers(0, 256, n), (draw.normal(size=n) * 0.3 - 5.5).astype(np.float32), "a" * n, True
        )
        for n in lengths
    ]


def of_model(decoder: Decoder, ids: Sequence[int], count: int) -> torch.Tensor:
    """log pi of the last ``count`` ids, each text by itself."""
    row = torch.tensor([list(ids)])
    logits = decoder(row[:, :-1], torch.arange(row.shape[1] - 1)[None])[0]
    return logits.log_softmax(-1).gather(-1, row[0, 1:, None])[-count:, 0]


# ---- rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [1, 2, 90])
@pytest.mark.parametrize("shares", [True, False])
def test_a_row_gives_each_completion_what_it_has_alone(prompt: int, shares: bool) -> None:
    """The longer row takes attention by blocks, where the shared beginning is out of a block's own reach."""
    torch.manual_seed(0)
    decoder = Decoder(model(VOCAB, 512)).double()
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    group = Group(Problem("", None, None), range(prompt), drawn([3, 1, 40, 70, 66, 9]), np.zeros(6))
    row = rollouts.row(group, shares)
    assert row.ids.shape[1] == (prompt - 1 if shares else 6 * (prompt - 1)) + sum([3, 1, 40, 70, 66, 9])
    wide = rollouts.padded(row, row.ids.shape[1] + 5)
    trainable = Trainable(decoder, grpo.Config(), torch.ones(VOCAB))
    found = trainable.log_probs(TrainingBatch.of(wide, CPU), 64)[0].detach()
    trained = torch.from_numpy(wide.loss_weights[0] > 0)
    alone = [of_model(decoder, [*range(prompt), *each.ids], len(each.ids)) for each in group.completions]
    torch.testing.assert_close(found[trained], torch.cat(alone).detach(), rtol=1e-9, atol=1e-9)
    scores = np.concatenate([each.log_probs for each in group.completions])
    assert np.array_equal(wide.extra[SAMPLER][0][trained.numpy()], scores)


def test_attention_by_blocks_sees_the_shared_beginning() -> None:
    from cutaway.attention.backends import blocked, naive, sdpa
    from cutaway.attention.backends.inputs import AttentionInputs
    from cutaway.attention.common.visibility import Causal, Positions

    documents = torch.cat([torch.full((130,), -1), *(torch.full((90,), n) for n in range(4))])[None]
    pos = torch.cat([torch.arange(130), *(torch.arange(130, 220) for _ in range(4))])[None]
    q, k, v = torch.randn(3, 1, 2, len(pos[0]), 8, dtype=torch.float64)
    where = Positions(pos, documents)
    inputs = AttentionInputs(q, k, v, where, where, Causal(), 0.4)
    wanted = naive.attend(inputs)
    for backend in (blocked, sdpa):
        torch.testing.assert_close(backend.attend(inputs), wanted)
    assert not blocked.reachable(inputs)[6, 3], "what no query can see is skipped"


# ---- objectives, against loops in float64 ------------------------------------------------------------------


def looped(kind: str, objective: Any, groups: Any, rewards: Any, limit: int, micro: int) -> torch.Tensor:
    """The loss of a step as the papers write it. Each group is a list of (new, old, sampler, reference)."""
    beta, estimator = objective.kl_coefficient, objective.kl_estimator
    rewards = [list(map(float, row)) for row in rewards]

    def apart(row: list[float], each: float) -> float:
        return each - (sum(row) - each) / (len(row) - 1)

    everyone = [r for row in rewards for r in row]
    advantages = []
    for row in rewards:
        mean = sum(row) / len(row)
        std = math.sqrt(sum((r - mean) ** 2 for r in row) / (len(row) - 1))
        if kind in ("grpo", "dapo", "bnpo"):
            advantages.append([(r - mean) / (std + 1e-4) for r in row])
        elif kind == "dr_grpo":
            advantages.append([r - mean for r in row])
        elif kind == "rloo":
            advantages.append([apart(row, r) for r in row])
        else:
            advantages.append([apart(everyone, r) for r in row])
    if estimator == "k1":
        kls = [
            [float((new.detach() - torch.tensor(ref)).sum()) for new, _, _, ref in group] for group in groups
        ]
        for row, own in zip(advantages, kls, strict=True):
            compared = [each for row in kls for each in row] if kind == "reinforce" else own
            row[:] = [a - beta * apart(compared, each) for a, each in zip(row, own, strict=True)]
    sequences, micro_batches = [], []
    for at, (group, own) in enumerate(zip(groups, advantages, strict=True)):
        if at % micro == 0:
            micro_batches.append([])
        for (new, old, sampler, before), advantage in zip(group, own, strict=True):
            tokens = []
            for t in range(len(new)):
                ratio = torch.exp(new[t] - old[t])
                clipped = torch.clamp(ratio, 1 - objective.clip_low, 1 + objective.clip_high)
                value = -torch.min(ratio * advantage, clipped * advantage)
                k1 = new[t] - before[t]
                if estimator == "k2":
                    value = value + beta * k1**2 / 2
                elif estimator == "k3":
                    value = value + beta * ratio * (torch.exp(-k1) + k1 - 1)
                tokens.append(value * min(math.exp(old[t] - sampler[t]), objective.importance_cap))
            sequences.append(tokens)
            micro_batches[-1] += tokens
    if kind == "grpo":
        return sum(sum(s) / len(s) for s in sequences) / len(sequences)
    if kind == "bnpo":
        return sum(sum(m) / len(m) for m in micro_batches) / len(micro_batches)
    total = sum(map(sum, sequences))
    return total / {"dr_grpo": len(sequences) * limit, "dapo": sum(map(len, sequences))}.get(
        kind, len(sequences)
    )


class Scripted:
    """A step of two questions whose completions and rewards are given, over a model in float64."""

    lengths, rewards = ((3, 8, 1, 5), (2, 2, 7, 4)), np.array([[1, 0, 0.2, 0], [0, 0, 1, 1.0]])

    def __init__(self, base: Path, task: tuple[str, Path], objective: Any, micro: int) -> None:
        run = config(base, task)
        run = replace(run, objective=objective, micro_batch_size=micro)
        self.decoder = finetune.trained_model(run, finetune.base(run)).double()
        torch.manual_seed(3)
        for name, parameter in self.decoder.named_parameters():
            if name.endswith(".b"):
                parameter.data.normal_(std=0.1)
        self.trainable = Trainable(self.decoder, objective, torch.ones(VOCAB))
        self.made = [drawn(lengths, n) for n, lengths in enumerate(self.lengths)]
        waiting = iter(self.rewards.ravel().tolist())
        scored = replace(rewards_recipe.of(run), scorer=lambda text, item: next(waiting))
        self.prompts = rewards_recipe.prompter(run, finetune.base(run))
        self.sampled = rollouts.Sampled(
            replace(run, data=replace(run.data, resample=0)),
            scored,
            run_tokenizer.of_bytes(),
            self.prompts,
            lambda requests, step, **_: self.asked(requests),
            SamplingParams(),
            self.trainable,
            None,
        )

    def asked(self, requests: Sequence[Request]) -> list[Completion]:
        self.requests = requests
        return [each for group in self.made for each in group]

    def batches(self) -> list[Batch]:
        size = self.sampled.run.micro_batch_size
        return [self.sampled.batch(first, size) for first in range(0, 2, size)]


def gradient(decoder: Decoder, loss: torch.Tensor) -> torch.Tensor:
    wanted = [p for p in decoder.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, wanted)])


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("kind", list(OBJECTIVES))
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_an_objective_is_its_papers_loop(
    kind: str, estimator: str, micro: int, base: Path, task: tuple[str, Path]
) -> None:
    objective = OBJECTIVES[kind].Config(kl_coefficient=0.3, kl_estimator=estimator, importance_cap=1.1)
    step = Scripted(base, task, objective, micro)
    draw = np.random.default_rng(5)
    batches = []
    for batch in step.batches():  # as after an update: the ratio is not 1
        fresh = step.trainable.log_probs(TrainingBatch.of(batch, CPU), 64).detach().numpy()
        moved = fresh + draw.normal(size=fresh.shape) * 0.3
        batches.append(replace(batch, extra={**batch.extra, OLD: moved.astype(np.float32)}))
    moved_batches = [TrainingBatch.of(batch, CPU) for batch in batches]
    found = [step.trainable(batch) for batch in moved_batches]
    loss = sum(part for part, _ in found) / sum(batch.weight for batch in moved_batches)
    groups = []
    rows = [(batch, n) for batch in batches for n in range(len(batch.ids))]
    for (batch, n), made, start in zip(rows, step.made, (0, 4), strict=True):
        group, trained = [], batch.loss_weights[n] > 0
        for g, each in enumerate(made):
            own = trained & (batch.documents[n] == g)
            new = of_model(step.decoder, [*step.requests[start + g].ids, *each.ids], len(each.ids))
            others = [batch.extra[name][n][own].tolist() for name in (OLD, SAMPLER, REFERENCE)]
            group.append((new, *others))
        groups.append(group)
    wanted = looped(kind, objective, groups, step.rewards, step.sampled.run.data.max_tokens, micro)
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5, abs=1e-6)
    grads = gradient(step.decoder, loss), gradient(step.decoder, wanted)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-7)
    assert sum(float(sums["clipped"]) for _, sums in found) > 0


def test_the_reference_is_the_base(base: Path, task: tuple[str, Path]) -> None:
    step = Scripted(base, task, grpo.Config(kl_coefficient=0.1), 2)
    batch = step.batches()[0]
    alone = finetune.trained_model(
        replace(step.sampled.run, adapter=None), finetune.base(step.sampled.run)
    ).double()
    for n, made in enumerate(step.made):
        own = [of_model(alone, [*step.requests[4 * n].ids, *each.ids], len(each.ids)) for each in made]
        found = batch.extra[REFERENCE][n][batch.loss_weights[n] > 0]
        assert np.allclose(found, torch.cat(own).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in OBJECTIVES if kind != "bnpo"])
def test_accumulation_changes_nothing(kind: str, base: Path, task: tuple[str, Path]) -> None:
    found = []
    for micro in (1, 2):
        step = Scripted(base, task, OBJECTIVES[kind].Config(), micro)
        batches = [TrainingBatch.of(batch, CPU) for batch in step.batches()]
        loss = sum(step.trainable(batch)[0] for batch in batches) / sum(batch.weight for batch in batches)
        found.append(gradient(step.decoder, loss))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-9)
    assert found[0].abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "dapo", "bnpo", "rloo"])
def test_groups_without_variance_have_no_gradient(kind: str, base: Path, task: tuple[str, Path]) -> None:
    step = Scripted(base, task, OBJECTIVES[kind].Config(), 2)
    step.rewards = None
    step.sampled.task = replace(step.sampled.task, scorer=lambda text, item: 0.7)
    loss = step.trainable(TrainingBatch.of(step.batches()[0], CPU))[0]
    assert gradient(step.decoder, loss).abs().max() < 1e-12
    assert step.sampled.report()["zero_variance"] == 1


@pytest.mark.parametrize("kind", list(OBJECTIVES))
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_equal_rewards_have_no_advantage_however_they_are_rounded(kind: str, size: float) -> None:
    """The mean of seven times 0.35 is not 0.35, and float32 scores of equal answers may differ in a bit."""
    objective = OBJECTIVES[kind].Config()
    noise = 1 + np.random.default_rng(0).uniform(-1, 1, (3, 7)) * float(np.finfo(np.float32).eps)
    for rewards in (np.full((3, 7), 0.35 * size), 0.35 * size * noise):
        assert not objective.advantages(rewards).any()
        assert Group(Problem("", None, None), [], [], rewards[0]).even
    different = np.array([[1.0, 1.0, 1.00001, 1.0]]) * size
    assert objective.advantages(different).all()


def test_advantages() -> None:
    rewards = np.array([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 3.0]])
    std = np.array([math.sqrt(1 / 3), 1.5])  # with Bessel's correction
    assert np.allclose(grpo.Config().advantages(rewards)[:, 1], [0.5, -0.75] / (std + 1e-4))
    assert np.allclose(dr_grpo.Config().advantages(rewards)[:, 1], [0.5, -0.75])
    assert np.allclose(rloo.Config().advantages(rewards)[:, 1], [1 - 1 / 3, -1])
    assert np.allclose(reinforce.Config().advantages(rewards)[:, 1], [1 - 4 / 7, -5 / 7])


def test_the_loss_is_trls() -> None:
    """trl's ``_compute_loss`` on the same log-probabilities, where both define the same."""
    trainer = pytest.importorskip("trl").GRPOTrainer
    draw = torch.Generator().manual_seed(0)
    b, t, limit = 4, 6, 6
    mask = torch.tensor([[1] * n + [0] * (t - n) for n in (6, 2, 4, 1)])
    new, old, ref = (torch.randn(b, t, generator=draw, dtype=torch.float64) * 0.3 - 2 for _ in range(3))
    rewards = np.array([[1.0, 0.0, 0.0, 0.3]])
    for kind in ("grpo", "dr_grpo", "dapo", "bnpo"):
        objective = OBJECTIVES[kind].Config(kl_coefficient=0.2)
        advantages = torch.from_numpy(objective.advantages(rewards)[0])
        own: dict[str, Any] = {"loss_type": kind, "beta": 0.2, "epsilon_low": 0.2}
        own |= {
            "epsilon_high": objective.clip_high,
            "max_completion_length": limit,
            "importance_sampling_level": "token",
        }
        own |= {"use_vllm": False, "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None}
        own |= {
            "aux_loss_enabled": False,
            "_entropy_bonus_enabled": False,
            "current_gradient_accumulation_steps": 1,
        }
        own |= {"accelerator": SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, **_: x)}
        own |= {"args": SimpleNamespace(use_bias_correction_kl=True, delta=None, steps_per_generation=1)}
        own |= {"model": SimpleNamespace(training=True), "_metrics": {"train": Metrics(), "eval": Metrics()}}
        own["_get_per_token_logps_and_entropies"] = lambda *a, new=new, **k: (new, torch.zeros(b, t), None)
        ids = torch.zeros(b, t, dtype=torch.long)
        inputs = {"prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": mask}
        inputs |= {"advantages": advantages, "old_per_token_logps": old, "ref_per_token_logps": ref}
        inputs |= {"num_items_in_batch": mask.sum()}
        theirs = trainer._compute_loss(Forgiving(**own), None, inputs)
        weights, divisor = objective.weights(mask.sum(1)[None].numpy(), limit)
        batch = TrainingBatch(
            ids, ids, ids, None, mask * torch.from_numpy(weights[0])[:, None], divisor,
            {ADVANTAGES: advantages[:, None].expand(b, t), SAMPLER: old, OLD: old, REFERENCE: ref},
        )  # fmt: skip
        ours = objective.loss(Table(new), batch)[0] / divisor
        assert float(ours) == pytest.approx(float(theirs), rel=1e-6), kind


class Metrics(dict):
    def __missing__(self, key: str) -> list[float]:
        return self.setdefault(key, [])


class Forgiving(SimpleNamespace):
    """What the loss asks of its trainer beside what is given is off."""

    def __getattr__(self, name: str) -> Any:
        return None


class Table:
    """A model that has these log-probabilities of id 0: its head reads two numbers."""

    decoder = SimpleNamespace(config=SimpleNamespace(softcap=None))
    head_weight = torch.eye(2, dtype=torch.float64)

    def __init__(self, log_probs: torch.Tensor) -> None:
        self.log_probs = log_probs

    def hidden(self, batch: TrainingBatch) -> Any:
        return torch.stack([self.log_probs, (1 - self.log_probs.exp()).log()], -1), ()

    def reference_log_probs(self, batch: TrainingBatch, *_: Any) -> torch.Tensor:
        return batch.extra[REFERENCE]


# ---- KL, against every sequence of a vocabulary of three ---------------------------------------------------

LENGTH = 3
SEQUENCES = list(itertools.product(range(3), repeat=LENGTH))
PREFIXES = [prefix for n in range(LENGTH) for prefix in itertools.product(range(3), repeat=n)]


class Tabled:
    """A policy that is a table: logits [prefix 3], float64."""

    decoder = SimpleNamespace(config=SimpleNamespace(softcap=None))
    head_weight = torch.eye(3, dtype=torch.float64)

    def __init__(self, logits: torch.Tensor, reference: torch.Tensor) -> None:
        self.logits, self.reference = logits, reference

    def log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        """[27 3], of each sequence's tokens."""
        rows = torch.tensor([[PREFIXES.index(s[:n]) for n in range(LENGTH)] for s in SEQUENCES])
        return logits.log_softmax(-1)[rows].gather(-1, torch.tensor(SEQUENCES)[..., None])[..., 0]

    def hidden(self, batch: TrainingBatch) -> Any:
        rows = torch.tensor([[PREFIXES.index(s[:n]) for n in range(LENGTH)] for s in SEQUENCES])
        return self.logits[rows], ()

    def reference_log_probs(self, *_: Any) -> torch.Tensor:
        return self.log_probs(self.reference)


def kl_gradients(estimator: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Expected over all sequences: of the objective with rewards 0; of the sequences' KL; of the tokens'."""
    torch.manual_seed(2)
    logits = torch.randn(len(PREFIXES), 3, dtype=torch.float64, requires_grad=True)
    table = Tabled(logits, torch.randn(len(PREFIXES), 3, dtype=torch.float64))
    log_p, reference = table.log_probs(logits), table.log_probs(table.reference)
    p = log_p.sum(1).exp()
    apart = (log_p.sum(1) - reference.sum(1)).detach()
    advantages = -apart if estimator == "k1" else torch.zeros(27, dtype=torch.float64)
    targets = torch.tensor(SEQUENCES)
    batch = TrainingBatch(
        targets, targets, targets, None, p.detach()[:, None].expand(27, LENGTH), 1.0,
        {ADVANTAGES: advantages[:, None].expand(27, LENGTH), SAMPLER: log_p.detach()},
    )  # fmt: skip
    objective = grpo.Config(kl_coefficient=1.0, kl_estimator=estimator)  # type: ignore[arg-type]
    loss = objective.loss(table, batch)[0]  # type: ignore[arg-type]
    of_sequences = (p * (log_p.sum(1) - reference.sum(1))).sum()
    ratio, ours = table.reference.log_softmax(-1), logits.log_softmax(-1)
    reached = torch.stack([p.detach()[[s[: len(f)] == f for s in SEQUENCES]].sum() for f in PREFIXES])
    of_tokens = (reached * (ours.exp() * (ours - ratio)).sum(-1)).sum()
    return tuple(
        torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (loss, of_sequences, of_tokens)
    )  # type: ignore[return-value]


def test_k1_in_the_reward_has_the_gradient_of_the_sequences_kl() -> None:
    found, of_sequences, _ = kl_gradients("k1")
    torch.testing.assert_close(found, of_sequences, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("beta", [0.001, 1.0])
@pytest.mark.parametrize("kind", list(OBJECTIVES))
def test_at_equal_rewards_k1_has_the_gradient_of_the_kl(kind: str, beta: float) -> None:
    """Expected over all pairs of sequences; whatever the objective divides rewards by."""
    torch.manual_seed(2)
    logits = torch.randn(len(PREFIXES), 3, dtype=torch.float64, requires_grad=True)
    table = Tabled(logits, torch.randn(len(PREFIXES), 3, dtype=torch.float64))
    log_p = table.log_probs(logits).sum(1)
    apart, p = log_p - table.log_probs(table.reference).sum(1), log_p.exp()
    objective = OBJECTIVES[kind].Config(kl_coefficient=beta, kl_estimator="k1")
    lengths = np.full((1, 2), LENGTH)
    weights, divisor = objective.weights(lengths, LENGTH)
    rewards = objective.advantages(np.full((1, 2), 0.7))
    loss = torch.zeros((), dtype=torch.float64)
    for pair in itertools.product(range(27), repeat=2):
        own = list(pair)
        found = rewards + objective.kl_advantages(apart.detach().numpy()[own][None])
        loss = (
            loss
            - p[own].prod().detach() * (torch.from_numpy(weights * found)[0] * log_p[own]).sum() / divisor
        )
    scale = beta * (weights[0] / divisor).sum()
    (wanted,) = torch.autograd.grad(scale * (p * apart).sum(), logits, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_in_the_loss_have_the_gradient_of_each_tokens_kl(estimator: str) -> None:
    found, _, of_tokens = kl_gradients(estimator)
    torch.testing.assert_close(found, of_tokens, rtol=1e-10, atol=1e-12)


# ---- sampling and whole runs -------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_definition_samples_what_the_trainer_scores(
    temperature: float, base: Path, task: tuple[str, Path], tmp_path: Path
) -> None:
    run = config(base, task, "--data.sampler", "pytorch", "--objective.temperature", str(temperature))
    data = rewards_recipe.ready(run, tmp_path, lambda _: None)
    batch = TrainingBatch.of(data.train.batch(0, 2), CPU)
    assert isinstance(data.train, rollouts.Sampled)
    assert data.model is not None and not data.model.training
    sums = data.train.trainable(batch)[1]
    assert float(sums["gap"] / sums["tokens"]) < 1e-5 and float(sums["ratio_max"]) < 1.0001
    ids = {tuple(row.ids[0]) for row in data.train.rows}
    assert len(ids) == 2 and len(set(map(str, batch.targets.tolist()))) == 2


def test_the_runtime_samples_nearly_that(base: Path, task: tuple[str, Path], tmp_path: Path) -> None:
    data = rewards_recipe.ready(config(base, task, "--data.sampler", "runtime"), tmp_path, lambda _: None)
    batch = TrainingBatch.of(data.train.batch(0, 2), CPU)
    assert isinstance(data.train, rollouts.Sampled)
    sums = data.train.trainable(batch)[1]
    assert 0 < float(sums["gap"] / sums["tokens"]) < 0.02


@pytest.mark.parametrize("kind", list(OBJECTIVES))
@pytest.mark.parametrize("adapter", [True, False])
def test_a_policy_that_is_its_reference_has_no_gradient_at_equal_rewards(
    kind: str, adapter: bool, base: Path, task: tuple[str, Path], tmp_path: Path
) -> None:
    """The runtime rounds otherwise than the trainer, which is no distance from the reference."""
    words = f"--objective.kind={kind}", "--objective.kl-coefficient=0.1", "--objective.kl-estimator=k1"
    run = config(base, task, *words, "--data.sampler=runtime", "--adapter.dropout=0.2")
    run = run if adapter else replace(run, adapter=None)
    data = rewards_recipe.ready(run, tmp_path, lambda _: None)
    assert isinstance(data.train, rollouts.Sampled)
    data.train.task = replace(data.train.task, scorer=lambda text, item: 0.7)
    numbers = Training(run, data, note=lambda _: None).advance()
    assert numbers["gradient_norm"] == 0 and numbers["sampler_gap"] > 0 and numbers["zero_variance"] == 1


def test_groups_without_variance_are_drawn_anew(base: Path, task: tuple[str, Path], tmp_path: Path) -> None:
    found = {}
    for resample in (0, 3):
        run = config(base, task, "--data.resample", str(resample), "--data.max-tokens", "1")
        data = rewards_recipe.ready(run, tmp_path, lambda _: None)
        assert isinstance(data.train, rollouts.Sampled)
        even = 0
        for step in range(6):
            batch = data.train.batch(2 * step, 2)
            even += int((np.abs(batch.extra[ADVANTAGES]).max(-1) == 0).sum())
        found[resample] = even
    assert found[3] < found[0]


@pytest.mark.parametrize("adapter", [True, False])
def test_a_run_resumes_to_the_same_weights_and_an_adapter_learns(
    adapter: bool, base: Path, task: tuple[str, Path], tmp_path: Path
) -> None:
    steps = 18 if adapter else 6
    run = config(
        base,
        task,
        "--objective.kl-coefficient=0.001",
        f"--steps={steps}",
        "--batch-size=8",
        "--data.group-size=8",
    )
    run = run if adapter else replace(run, adapter=None)
    seen = Quiet()
    training_run.train(run, tmp_path / "whole", seen, recipe=rewards_recipe)

    def stop(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training_run.train(run, tmp_path / "cut", Quiet(stop), recipe=rewards_recipe)
    training_run.train(run, tmp_path / "cut", Quiet(), recipe=rewards_recipe, resume=True)
    ids = [1, 2, 3, 250]
    whole, cut = (cutaway.load(tmp_path / name, engine="pytorch").logits(ids) for name in ("whole", "cut"))
    assert np.array_equal(whole, cut)
    assert not np.allclose(whole, cutaway.load(base, engine="pytorch").logits(ids), atol=1e-3)
    lines = [json.loads(line) for line in (tmp_path / "whole" / SAMPLES).read_text().splitlines()]
    assert {line["step"] for line in lines} == set(range(0, steps + 1, 3))
    if adapter:
        rewards = [step["reward"] for step in seen.steps]
        assert np.mean(rewards[-4:]) > np.mean(rewards[:4]) + 0.05, rewards
        first, *_, last = (each["validation_reward"] for each in seen.validation)
        assert len(seen.validation) == 7 and last > first


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return None", "late: gave None and no finite number"),
        ("return float('nan')", "late: gave nan and no finite number"),
        ("return '1.0'", "late: gave '1.0' and no finite number"),
        ("raise KeyError('a')", r"late: raised KeyError \('a'\) in .*late.py, line 7"),
    ],
)
def test_a_reward_that_is_no_number_ends_the_run_with_what_it_learned(
    body: str, sentence: str, base: Path, task: tuple[str, Path], tmp_path: Path
) -> None:
    """The reward breaks in the third step, which no checkpoint was due after."""
    lines = "seen = []", "def late(text, row):", "    seen.append(1)", "    if len(seen) <= 40:"
    (tmp_path / "late.py").write_text("\n".join([*lines, "        return len(text)", "", f"    {body}"]))
    late = f"{tmp_path / 'late.py'}:late", task[1]
    run = config(base, late, "--intervals.save=100", "--intervals.evaluate=100", "--data.resample=0")
    with pytest.raises(UserError, match=f"{sentence}; it was given .* Step [1-5] is saved: continue with"):
        training_run.train(run, tmp_path / "run", Quiet(), recipe=rewards_recipe)
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
    (tmp_path / "late.py").write_text("def late(text, row):\n    return len(text)")
    training_run.train(run, tmp_path / "run", Quiet(), recipe=rewards_recipe, resume=True)


def test_what_cannot_be_learned(base: Path, task: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="group_size is 1"):
        config(base, task, "--data.group-size", "1")
    assert replace(config(base, task), objective=reinforce.Config()).objective
    kl = "--objective.kl-coefficient=0.1", "--objective.kl-estimator=k1"
    with pytest.raises(UserError, match="objective compares none: use k2 or k3"):
        config(base, task, "--objective.kind=expert_iteration", *kl)
    with pytest.raises(UserError, match="the task's own answers: leave it 0"):
        config(base, task, "--objective.kind=imitation", *kl)
    with pytest.raises(UserError, match="grpo, rloo, reinforce"):
        config(base, task, "--objective.kind", "next_token")
    run = config(base, task, "--data.context", "20")
    with pytest.raises(UserError, match=r"do not fit data\.context"):
        rewards_recipe.ready(run, tmp_path, lambda _: None).train.batch(0, 1)


@pytest.mark.parametrize("kind", ["expert_iteration", "imitation"])
def test_imitating_is_cross_entropy(kind: str, base: Path, task: tuple[str, Path], tmp_path: Path) -> None:
    """Of the completions that are right, or of the task's own answers, with the end token."""
    rows = [{"prompt": str(n), "answer": "ab" * (1 + n % 3)} for n in range(40)]
    task[1].write_text("\n".join(map(json.dumps, rows)))
    run = config(base, task, f"--objective.kind={kind}", "--data.max-tokens=3", "--micro-batch-size=2")
    data = rewards_recipe.ready(run, tmp_path, lambda _: None)
    assert isinstance(data.train, rollouts.Sampled)
    found = []
    scores = itertools.cycle([0.5, 1.0, 0.0, 1.0])
    data.train.task = replace(data.train.task, scorer=lambda text, item: next(scores))
    seen = data.train.groups

    def groups(*asked: Any) -> list[Group]:
        found.extend(seen(*asked))
        return found

    data.train.groups = groups  # type: ignore[method-assign]
    batch = TrainingBatch.of(data.train.batch(0, 2), CPU)
    loss = data.train.trainable(batch)[0] / batch.weight
    losses = []
    for group in found:
        for each, reward in zip(group.completions, group.rewards, strict=True):
            if reward == 1 or kind == "imitation":
                new = of_model(data.train.trainable.model, [*group.prompt, *each.ids], len(each.ids))
                losses.append(-new.mean())
    assert len(losses) == (4 if kind == "expert_iteration" else 2)
    trained = [p for p in data.train.trainable.parameters() if p.requires_grad]
    grads = [
        torch.cat([g.flatten() for g in torch.autograd.grad(x, trained)])
        for x in (loss, sum(losses) / len(losses))
    ]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-6)
    if kind == "imitation":
        answer = run_tokenizer.of_bytes().encode(found[0].problem.answer or "")
        assert found[0].completions[0].ids.tolist() == [*answer, run_tokenizer.of_bytes().eos]


def test_the_verb_checks_and_trains(
    base: Path, task: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"--task {task[0]} --data {task[1]} --model {base} --data.test 5 --data.max-tokens 6 --threads 1"
    words += " --data.group-size 2 --batch-size 2 --micro-batch-size 2 --steps 2 --data.context 64"
    assert main(["finetune", "rloo", *words.split(), "--check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["questions"] == 55 and found["held_out"] == 5 and found["sampled"] == 16 and found["reward"] > 0
    )
    nothing = words.replace(":ascii", ":nothing").split()
    assert main(["finetune", "grpo", *nothing, "--check"]) == 2
    assert "have the reward 0" in capsys.readouterr().err
    assert main(["finetune", "rloo", *words.split(), "--output", str(tmp_path / "run")]) == 0
    assert "held-out questions right" in capsys.readouterr().err
    assert rewards_recipe.read_rewards_config(str(tmp_path / "run")).objective == rloo.Config()
    assert main(["finetune", str(tmp_path / "run"), "--resume", "--steps", "3"]) == 0
    assert cutaway.load(tmp_path / "run").generate("a", max_tokens=2)


def test_a_reward_model_is_a_scorer(base: Path, task: tuple[str, Path], tmp_path: Path) -> None:
    """It reads the question and the whole completion, and a run stores where it is."""
    words = f"--base={base} --data.path={pairs(tmp_path / 'pairs.jsonl')} --data.context=128 --steps=4"
    judge_run = finetune.read_finetuning_config(
        "reward", [*words.split(), "--threads=1", "--batch-size=4", "--adapter.rank=4"]
    )
    training_run.train(judge_run, tmp_path / "judge", Quiet(), recipe=finetune)
    run = config(base, (f"reward_model:{tmp_path / 'judge'}", task[1]), "--steps=1")
    made, judge = rewards_recipe.of(run), RewardModel(tmp_path / "judge")
    for text in ("<answer>xx</answer> z", "xx", ""):
        prompt = [{"role": "user", "content": made.test[0].question}]
        row = {"prompt": prompt, "completion": [{"role": "assistant", "content": text}]}
        assert [made.score(text, made.test[0])] == judge.scores([row])
    assert len({made.score(text, made.test[0]) for text in ("<answer>xx</answer>", "xx", "yy")}) == 3
    seen = Quiet()
    training_run.train(run, tmp_path / "run", seen, recipe=rewards_recipe)
    assert seen.steps[0]["reward"] != 0 and f"reward_model:{tmp_path / 'judge'}" in str(
        rewards_recipe.read_rewards_config(str(tmp_path / "run")).data.task
    )


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_on_policy_distillation_is_the_papers_loop(
    beta: float, base: Path, task: tuple[str, Path], tmp_path: Path
) -> None:
    """In float64, one completion at a time: the teacher's distribution at each token that was sampled."""
    (tmp_path / "other").mkdir()
    other = chatting_model(tmp_path / "other" / "teacher", VOCAB)
    words = "--objective.kind=on_policy_distill", f"--objective.teacher={other}"
    run = config(base, task, *words, f"--objective.beta={beta}", "--objective.temperature=1.3")
    data = rewards_recipe.ready(run, tmp_path, lambda _: None)
    assert isinstance(data.train, rollouts.Sampled) and data.model is not None and data.teacher is not None
    found, seen = [], data.train.groups
    data.train.groups = lambda *asked: found.extend(seen(*asked)) or found[-2:]  # type: ignore[method-assign]
    batches = [TrainingBatch.of(data.train.batch(n, 1), CPU) for n in (0, 1)]
    trainable = Trainable(data.model.eval(), run.objective, data.lengths, data.teacher)
    whole = sum(batch.weight for batch in batches)
    loss = torch.stack([trainable(batch)[0] for batch in batches]).sum() / whole
    trained = [p for p in data.model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, trained)
    student, teacher = data.model.double(), data.teacher.double()
    values = []
    for group in found[:2]:
        for each in group.completions:
            ids = torch.tensor([[*group.prompt, *each.ids]])[:, :-1]
            both = [m(ids, torch.arange(ids.shape[1])[None])[0, -len(each.ids) :] for m in (student, teacher)]
            s, t = ((logits / 1.3).softmax(-1) for logits in both)
            m = beta * t + (1 - beta) * s
            inner = beta * (t * (t / m).log()).sum(-1) + (1 - beta) * (s * (s / m).log()).sum(-1)
            ends = {0.0: (t * (t / s).log()).sum(-1), 1.0: (s * (s / t).log()).sum(-1)}
            values.extend(1.3**2 * ends.get(beta, inner))
    expected = torch.stack(values).mean()
    assert len(values) == whole and loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for one, other in zip(grads, torch.autograd.grad(expected, trained), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-3, atol=1e-6)
    seen_steps = Quiet()
    training_run.train(replace(run, steps=1), tmp_path / "run", seen_steps, recipe=rewards_recipe)
    assert seen_steps.steps[0]["loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_matrices_are_not_cut_where_a_model_is_sampled(
    base: Path, task: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with (
        pytest.raises(UserError, match="samples from whole weights"),
        distributed.joined(config(base, task, "--tensor-parallel=2")),
    ):
        pass


@pytest.mark.parametrize("kind", ["grpo", "dapo", "rloo"])
def test_three_updates_are_the_papers_loop(kind: str, base: Path, task: tuple[str, Path]) -> None:
    """In float64, AdamW on both sides: the old policy is that of before the first, and both bounds bite."""
    objective = OBJECTIVES[kind].Config(
        updates=3, clip_low=0.05, clip_high=0.1, kl_coefficient=0.1, kl_estimator="k3", importance_cap=1.1
    )
    step = Scripted(base, task, objective, 1)
    run = replace(step.sampled.run, optimizer=replace(step.sampled.run.optimizer, learning_rate=0.03))
    other = copy.deepcopy(step.decoder)
    data = Dataset(step.sampled, None, torch.ones(VOCAB), run_tokenizer.of_bytes(), list, print, step.decoder)
    training = Training(run, data, note=lambda _: None)
    numbers = training.advance()
    groups = [
        [
            (step.requests[start + g].ids, each.ids, each.log_probs.astype(np.float64).tolist())
            for g, each in enumerate(made)
        ]
        for made, start in zip(step.made, (0, 4), strict=True)
    ]

    def log_probs(model: Decoder) -> list[list[torch.Tensor]]:
        return [[of_model(model, [*p, *ids], len(ids)) for p, ids, _ in group] for group in groups]

    with torch.no_grad():
        old = [[each.tolist() for each in group] for group in log_probs(other)]
        with reference(other):
            before = [[each.tolist() for each in group] for group in log_probs(other)]
    named = [(name, p) for name, p in other.named_parameters() if p.requires_grad]
    (optimizer,) = run.optimizer.build(named)
    losses, clipped = [], {"low": 0, "high": 0}
    factor = run.schedule.factor(0, run.steps)
    for _ in range(3):
        new = log_probs(other)
        whole = [[(new[n][g], old[n][g], groups[n][g][2], before[n][g]) for g in range(4)] for n in range(2)]
        loss = looped(kind, objective, whole, step.rewards, run.data.max_tokens, 1)
        for n, g in itertools.product(range(2), range(4)):
            ratio, sign = (new[n][g].detach() - torch.tensor(old[n][g])).exp(), advantage(kind, step, n, g)
            clipped["high"] += int((ratio[sign > 0] > 1.1).sum()) if sign > 0 else 0
            clipped["low"] += int((ratio < 0.95).sum()) if sign < 0 else 0
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], run.gradient_clip)
        for group in optimizer.param_groups:
            group["lr"] = run.optimizer.learning_rate * factor
        optimizer.step()
        losses.append(loss.item())
    assert clipped["low"] and clipped["high"], "both bounds bite"
    assert numbers["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    tokens = sum(map(sum, step.lengths))
    assert numbers["clip_fraction"] * 3 * tokens == pytest.approx(sum(clipped.values()))
    ours = dict(training.model.named_parameters())
    for name, parameter in named:
        torch.testing.assert_close(ours[name], parameter, rtol=1e-4, atol=1e-7)


def test_the_old_policy_has_the_temperature_of_sampling(
    base: Path, task: tuple[str, Path], tmp_path: Path
) -> None:
    words = "--objective.updates=2", "--objective.temperature=0.5", "--optimizer.learning-rate=1e-12"
    run = config(base, task, *words, "--objective.clip-low=0.001", "--objective.clip-high=0.001")
    training = Training(run, rewards_recipe.ready(run, tmp_path, lambda _: None), note=lambda _: None)
    numbers = training.advance()
    assert numbers["clip_fraction"] == 0 and numbers["gradient_norm"] > 0 and numbers["sampler_gap"] < 0.02


def advantage(kind: str, step: Scripted, n: int, g: int) -> float:
    return float(OBJECTIVES[kind].Config().advantages(step.rewards)[n, g])


def test_a_run_of_several_updates_resumes_to_the_bit(
    base: Path, task: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies between the updates of a step, of which nothing is kept."""
    words = "--objective.updates=3", "--steps=4", "--intervals.save=1", "--adapter.dropout=0.3"
    run = config(base, task, *words)
    training_run.train(run, tmp_path / "whole", Quiet(), recipe=rewards_recipe)
    made, update = [], Training._update

    def dying(self: Training, *given: Any) -> dict[str, float]:
        made.append(self.step)
        if len(made) == 8:
            raise KeyboardInterrupt
        return update(self, *given)

    monkeypatch.setattr(Training, "_update", dying)
    with pytest.raises(KeyboardInterrupt):
        training_run.train(run, tmp_path / "cut", Quiet(), recipe=rewards_recipe)
    assert made == [0, 0, 0, 1, 1, 1, 2, 2]
    device.peak.cache_clear()
    monkeypatch.setattr(Training, "_update", update)
    training_run.train(run, tmp_path / "cut", Quiet(), recipe=rewards_recipe, resume=True)
    ids = [1, 2, 3, 250]
    whole, cut = (cutaway.load(tmp_path / name, engine="pytorch").logits(ids) for name in ("whole", "cut"))
    assert np.array_equal(whole, cut)
    with pytest.raises(UserError, match="no ratio to an old policy"):
        config(base, task, "--objective.kind=expert_iteration", "--objective.updates=2")


def test_a_tuned_base_is_sampled_with_both_adapters(
    base: Path, task: tuple[str, Path], tmp_path: Path
) -> None:
    training_run.train(config(base, task, "--steps=3"), tmp_path / "first", Quiet(), recipe=rewards_recipe)
    run = config(tmp_path / "first", task, "--data.sampler=runtime")
    data = rewards_recipe.ready(run, tmp_path, lambda _: None)
    assert isinstance(data.train, rollouts.Sampled)
    for name, parameter in data.train.trainable.model.named_parameters():
        if name.endswith(".b"):
            parameter.data.normal_(std=0.05)
    sums = data.train.trainable(TrainingBatch.of(data.train.batch(0, 2), CPU))[1]
    assert 0 < float(sums["gap"] / sums["tokens"]) < 0.02
    checkpoint = load.read_checkpoint(tmp_path / "first")
    root, first = load.base_and_adapter(checkpoint)
    assert first and root.source == base
    both = adapters.stacked(first, first)
    name = min(first)
    moved = formats.unpack(root.tensors[name]) + 2 * first[name].delta
    assert np.allclose(both[name](formats.unpack(root.tensors[name])), moved, atol=1e-6)
    assert load.base_and_adapter(root) == (root, {})
