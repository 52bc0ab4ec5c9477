"""Every objective: one step's loss and gradient equal a float64 loop written from the paper, one answer at a
time; packed or alone, in one micro-batch or in four.
"""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cutaway.data.conversations import Example, Item, Labelled, Pair
from cutaway.data.example_packing import Packed, mismatched
from cutaway.data.packing import stacked
from cutaway.model.decoder import Decoder
from cutaway.train.adapters import lora
from cutaway.train.objectives import (
    cdpo,
    dft,
    distill,
    dpo,
    ipo,
    kto,
    orpo,
    reward_model,
    robust_dpo,
    simpo,
)
from cutaway.train.trainable import REFERENCE, Trainable, TrainingBatch
from tests.rounding import noise
from tests.training import model

WIDTH = 128
CPU = torch.device("cpu")


def answer(draw: Any, prompt: Sequence[int], length: int, tail: int = 1) -> Example:
    """A prompt, and an answer of ``length`` tokens behind which ``tail`` more are no targets."""
    ids = [*prompt, *draw.integers(0, 256, length + tail)]
    trained = [False] * len(prompt) + [True] * length + [False] * tail
    return Example(np.array(ids, np.int32), np.array(trained))


def pairs() -> list[Item]:
    """Of lengths from 3 to 90."""
    draw = np.random.default_rng(0)
    sizes = [(2, 1, 90), (5, 30, 3), (9, 14, 14), (1, 2, 2)]
    return [
        Pair(answer(draw, prompt, one), answer(draw, prompt, other), margin)
        for (size, one, other), margin in zip(sizes, (0.0, 0.5, 0.0, 1.5), strict=True)
        for prompt in [draw.integers(0, 256, size).tolist()]
    ]


def labelled() -> list[Item]:
    """Four answers with their labels, the mismatched ones of the next prompt."""
    draw = np.random.default_rng(1)
    made = [
        Labelled(answer(draw, draw.integers(0, 256, size).tolist(), length), label)
        for size, length, label in ((3, 3, True), (7, 90, False), (2, 9, True), (4, 21, True))
    ]
    return [*mismatched(made, WIDTH)]


def examples() -> list[Item]:
    draw = np.random.default_rng(2)
    return [answer(draw, [1, 2, 3], length) for length in (3, 90, 17, 5)]


ITEMS = {"pairs": pairs, "labelled": labelled, "examples": examples}


def teacher() -> Decoder:
    torch.manual_seed(7)
    return Decoder(model(context=WIDTH)).requires_grad_(False)


def trainable(objective: Any, adapter: Any = None, moved: bool = True) -> Trainable:
    """A small model with an adapter; where it has moved the logits are far from even."""
    torch.manual_seed(3)
    made = Decoder(model(context=WIDTH))
    for parameter in made.parameters():
        if moved and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    (adapter or lora.Config(4)).attach(made)
    for parameter in made.parameters():
        if parameter.requires_grad and moved:
            torch.nn.init.normal_(parameter, std=0.1)
    objective.attach(made)
    if isinstance(objective, reward_model.Config):
        torch.nn.init.normal_(made.get_parameter("reward"))
    return Trainable(
        made,
        objective,
        torch.ones(320, dtype=torch.int64),
        teacher() if isinstance(objective, distill.Config) else None,
    )


def step(made: Trainable, batches: Sequence[Any]) -> tuple[float, dict[str, Tensor], dict[str, float]]:
    """Loss, gradients and report of these micro-batches, as the loop computes them."""
    read = made.objective.before(made, [TrainingBatch.of(b, CPU) for b in batches], lambda x: x)
    weight, total, sums = sum(batch.weight for batch in read), 0.0, dict[str, float]()
    for batch in read:
        loss, extra = made(batch)
        (loss / weight).backward()
        total += float(loss.detach()) / weight
        for name, value in extra.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
    grads = {name: p.grad for name, p in made.model.named_parameters() if p.grad is not None}
    return total, grads, made.objective.report(sums, weight)


def rows(items: Sequence[Item]) -> list[Any]:
    packed = Packed.of(items, WIDTH, 0)
    assert packed.rows < len(items)
    return [packed.row(n) for n in range(packed.rows)]


# ---- the definitions ---------------------------------------------------------------------------------------


def log_probs(decoder: Any, example: Example) -> list[Tensor]:
    """log p of each trained token, alone, float64."""
    ids = torch.from_numpy(example.ids).long()[None]
    logits = decoder(ids, torch.arange(ids.shape[1])[None])[0]
    return [
        logits[t - 1].log_softmax(-1)[example.ids[t]] for t in range(1, ids.shape[1]) if example.trained[t]
    ]


def total(decoder: Any, example: Example) -> Tensor:
    return torch.stack(log_probs(decoder, example)).sum()


def mean(decoder: Any, example: Example) -> Tensor:
    return torch.stack(log_probs(decoder, example)).mean()


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def logratio(policy: Any, base: Any, example: Example) -> Tensor:
    return total(policy, example) - total(base, example)


def by_pairs(of_pair: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def loss(policy: Any, base: Any, items: Sequence[Pair], c: Any) -> Tensor:
        return torch.stack([of_pair(policy, base, pair, c) for pair in items]).mean()

    return loss


def preferred(policy: Any, base: Any, pair: Pair, c: Any) -> Tensor:
    """The probability of the pair's order."""
    return sigmoid(c.beta * (logratio(policy, base, pair.chosen) - logratio(policy, base, pair.rejected)))


@by_pairs
def of_dpo(policy: Any, base: Any, pair: Pair, c: Any) -> Tensor:
    return -preferred(policy, base, pair, c).log()


@by_pairs
def of_cdpo(policy: Any, base: Any, pair: Pair, c: Any) -> Tensor:
    p, e = preferred(policy, base, pair, c), c.label_smoothing
    return -(1 - e) * p.log() - e * (1 - p).log()


@by_pairs
def of_robust_dpo(policy: Any, base: Any, pair: Pair, c: Any) -> Tensor:
    p, e = preferred(policy, base, pair, c), c.label_smoothing
    return (-(1 - e) * p.log() + e * (1 - p).log()) / (1 - 2 * e)


@by_pairs
def of_ipo(policy: Any, base: Any, pair: Pair, c: Any) -> Tensor:
    chosen, rejected = (mean(policy, y) - mean(base, y) for y in (pair.chosen, pair.rejected))
    return (chosen - rejected - 1 / (2 * c.beta)) ** 2


@by_pairs
def of_orpo(policy: Any, base: Any, pair: Pair, c: Any) -> Tensor:
    p, q = mean(policy, pair.chosen).exp(), mean(policy, pair.rejected).exp()
    return -p.log() - c.odds_weight * sigmoid((p / (1 - p) / (q / (1 - q))).log()).log()


@by_pairs
def of_simpo(policy: Any, base: Any, pair: Pair, c: Any) -> Tensor:
    margin = c.beta * mean(policy, pair.chosen) - c.beta * mean(policy, pair.rejected) - c.gamma
    return -sigmoid(margin).log()


def score(policy: Any, example: Example) -> Tensor:
    """The reward head at the last trained token, which the PyTorch model reads as the last one."""
    ids = torch.from_numpy(example.to_end.ids).long()[None]
    x, _ = policy.routed(ids, torch.arange(ids.shape[1])[None])
    return policy.norm(x)[0, -1] @ policy.get_parameter("reward")


@by_pairs
def of_reward_model(policy: Any, base: Any, pair: Pair, c: Any) -> Tensor:
    chosen, rejected = score(policy, pair.chosen), score(policy, pair.rejected)
    return -sigmoid(chosen - rejected - pair.margin).log() + c.centre * (chosen + rejected) ** 2


def of_kto(policy: Any, base: Any, items: Sequence[Labelled], c: Any) -> Tensor:
    others = [item.mismatched for item in items if item.mismatched is not None]
    z = torch.stack([logratio(policy, base, y) for y in others]).mean().clamp(min=0).detach()
    losses = []
    for item in items:
        d = logratio(policy, base, item.answer)
        weight = c.liked_weight if item.label else c.disliked_weight
        losses.append(weight * (1 - sigmoid(c.beta * (d - z if item.label else z - d))))
    return torch.stack(losses).mean()


def of_dft(policy: Any, base: Any, items: Sequence[Example], c: Any) -> Tensor:
    every = [each for item in items for each in log_probs(policy, item)]
    return torch.stack([-each.exp().detach() * each for each in every]).mean()


def of_distill(policy: Any, base: Any, items: Sequence[Example], c: Any) -> Tensor:
    own, losses = teacher().double(), []
    for item in items:
        ids = torch.from_numpy(item.ids).long()[None]
        pos = torch.arange(ids.shape[1])[None]
        students, teachers = (
            (made(ids, pos)[0] / c.temperature).softmax(-1).clamp(min=1e-300) for made in (policy, own)
        )
        for t in np.flatnonzero(item.trained) - 1:
            s, q = students[t], teachers[t]
            m = c.beta * q + (1 - c.beta) * s
            kl = lambda a, b: (a * (a / b).log()).sum()  # noqa: E731
            inner = c.beta * kl(q, m) + (1 - c.beta) * kl(s, m)
            losses.append(kl(q, s) if c.beta == 0 else kl(s, q) if c.beta == 1 else inner)
    return c.temperature**2 * torch.stack(losses).mean()


CASES = [
    (dpo.Config(beta=0.3, chunk_size=17), of_dpo),
    (cdpo.Config(label_smoothing=0.2, chunk_size=17), of_cdpo),
    (robust_dpo.Config(label_smoothing=0.2, chunk_size=17), of_robust_dpo),
    (ipo.Config(chunk_size=17), of_ipo),
    (orpo.Config(chunk_size=17), of_orpo),
    (simpo.Config(chunk_size=17), of_simpo),
    (kto.Config(beta=0.02, liked_weight=1.5, chunk_size=17), of_kto),
    (reward_model.Config(centre=0.1), of_reward_model),
    (dft.Config(chunk_size=17), of_dft),
    (distill.Config(teacher="t", chunk_size=17), of_distill),
    (distill.Config(teacher="t", beta=1.0, chunk_size=17), of_distill),
    (distill.Config(teacher="t", beta=0.3, temperature=2.0, chunk_size=17), of_distill),
]
NAMES = [f"{type(c).__module__.rpartition('.')[2]}-{getattr(c, 'beta', '')}" for c, _ in CASES]
each_objective = pytest.mark.parametrize(("objective", "definition"), CASES, ids=NAMES)


def inputs(objective: Any) -> list[Item]:
    """The objective's items as the data path gives them."""
    from cutaway.data.conversations import changed
    from cutaway.train.examples import _reading_its_end

    made = ITEMS[objective.rows]()
    return [changed(item, _reading_its_end) for item in made] if objective.reads_end else made


def same(one: dict[str, Tensor], other: dict[str, Tensor], rtol: float, atol: float) -> None:
    assert one.keys() == other.keys() and one
    for name, grad in one.items():
        torch.testing.assert_close(grad.double(), other[name].double(), rtol=rtol, atol=atol, msg=name)


@each_objective
def test_one_step_is_the_papers(objective: Any, definition: Any) -> None:
    made = trainable(objective)
    reference = deepcopy(made.model).double()
    base = deepcopy(made.model).double().requires_grad_(False)
    for module in base.modules():
        if isinstance(module, lora.LoRALinear):
            module.b.zero_()
    expected = definition(reference, base, ITEMS[objective.rows](), objective)
    expected.backward()
    found, grads, _ = step(made, rows(inputs(objective)))
    # A loss that is a small difference of large terms is as exact as those are.
    single = deepcopy(made.model), deepcopy(base).float()
    moved = noise(single[0], lambda: definition(*single, ITEMS[objective.rows](), objective).detach())
    assert found == pytest.approx(float(expected.detach()), rel=1e-4, abs=4 * moved) and moved < 1e-3
    wanted = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    assert largest > 1e-3
    same(grads, wanted, 2e-3, 2e-5 * max(1.0, largest))


@each_objective
def test_four_micro_batches_are_one(objective: Any, definition: Any) -> None:
    apart = [Packed.of([item], WIDTH, 0).row(0) for item in inputs(objective)]
    one, four = (step(trainable(objective), batches) for batches in ([stacked(apart)], apart))
    assert one[0] == pytest.approx(four[0], rel=1e-5)
    same(one[1], four[1], 1e-3, 1e-5)
    assert one[2] == pytest.approx(four[2], rel=1e-4, abs=1e-5)


@each_objective
def test_packed_is_alone(objective: Any, definition: Any) -> None:
    """Each item in a row of its own that is no longer than it."""
    items = inputs(objective)
    alone = []
    for item in items:
        longest = max(sum(len(d.ids) - 1 for d in item.documents), 1)
        if isinstance(item, Labelled) and item.mismatched:
            longest = max(longest, len(item.mismatched.ids) - 1)
        alone.append(Packed.of([item], longest, 0).row(0))
    one, other = (step(trainable(objective), batches) for batches in (rows(items), alone))
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    largest = max(float(grad.abs().max()) for grad in one[1].values())
    same(one[1], other[1], 1e-3, 2e-5 * max(1.0, largest))  # as of the paper's step: sums that cancel


# ---- what they begin from, and what they report ------------------------------------------------------------


def test_dpo_begins_at_ln_2_with_dropout_too() -> None:
    made = trainable(dpo.Config(), lora.Config(4, dropout=0.5), moved=False)
    for module in made.modules():
        if isinstance(module, lora.LoRALinear):
            assert not module.b.any()
    loss, grads, report = step(made.train(), rows(pairs()))
    assert loss == pytest.approx(math.log(2), abs=1e-6)
    assert report["margin"] == pytest.approx(0, abs=1e-5) and any(grad.any() for grad in grads.values())


def test_what_is_reported_of_pairs() -> None:
    made = trainable(dpo.Config(beta=0.5))
    _, _, report = step(made, rows(pairs()))
    with torch.no_grad():
        policy = deepcopy(made.model)
        base = deepcopy(made.model)
        for module in base.modules():
            if isinstance(module, lora.LoRALinear):
                module.b.zero_()
        rewards = [[0.5 * float(logratio(policy, base, y)) for y in item.documents] for item in pairs()]
    chosen, rejected = np.array(rewards).T
    assert report["chosen_reward"] == pytest.approx(chosen.mean(), abs=1e-4)
    assert report["rejected_reward"] == pytest.approx(rejected.mean(), abs=1e-4)
    assert report["margin"] == pytest.approx((chosen - rejected).mean(), abs=1e-4)
    assert report["accuracy"] == (chosen > rejected).mean()


def test_mismatched_answers_are_to_other_prompts() -> None:
    """Both answers of a pair stay with their prompt, so that none of them is the other's mismatch."""
    draw = np.random.default_rng(0)
    items = []
    for n in range(6):
        for label in (True, False):
            items.append(Labelled(answer(draw, [n, n + 1], 5 + n), label))
    made = mismatched(items, 64)
    for n, item in enumerate(made):
        other = item.mismatched
        assert other is not None and other.ids[:2].tolist() == item.answer.ids[:2].tolist()
        source = items[(n + 2 - n % 2) % 12].answer  # the first answer of the next pair
        assert other.ids[2:].tolist() == source.ids[2:].tolist()
        assert other.trained.tolist() == [False] * 2 + source.trained[2:].tolist()
    assert [item.answer for item in made] == [item.answer for item in items]
    alike = [Labelled(answer(draw, [1], 4), True) for _ in range(3)]
    assert [item.mismatched for item in mismatched(alike, 64)] == [None] * 3
    long = mismatched([Labelled(answer(draw, [1], 60), True), Labelled(answer(draw, [2] * 9, 4), True)], 62)
    assert long[0].mismatched is not None and long[1].mismatched is None


def test_ktos_z_is_the_steps_and_not_below_zero() -> None:
    made = trainable(kto.Config(beta=0.05))
    batches = [TrainingBatch.of(Packed.of([item], WIDTH, 0).row(0), CPU) for item in labelled()]
    before = made.objective.before(made, batches, lambda x: x)
    apart = [made.objective.before(made, [b], lambda x: x)[0].extra["z"].item() for b in batches]
    found = {batch.extra["z"].item() for batch in before}
    assert len(found) == 1 and len(set(apart)) > 1 and min(apart) == 0
    sums = made.objective.before(made, batches, lambda x: torch.tensor([-3.0, 1.0]))
    assert sums[0].extra["z"].item() == 0


def test_full_fine_tuning_reads_stored_log_probs_of_the_reference() -> None:
    made = trainable(dpo.Config())
    batch = TrainingBatch.of(rows(pairs())[0], CPU)
    kept = torch.full(batch.ids.shape, -1.0)
    batch.extra[REFERENCE] = kept
    assert made.reference_log_probs(batch, 64) is kept


def test_divergences_of_two_distributions() -> None:
    one, other = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    forward = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    reverse = 0.5 * math.log(5 / 9) + 0.5 * math.log(5)
    assert float(distill.divergence(one, other, 0)) == pytest.approx(forward)
    assert float(distill.divergence(one, other, 1)) == pytest.approx(reverse)
    assert float(distill.divergence(one, one, 0.3)) == pytest.approx(0, abs=1e-7)
