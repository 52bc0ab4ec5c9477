"""Objectives against trl: the loss of its trainers and its gradient, on the same rows of text and weights."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from cutaway.data import run_tokenizer
from cutaway.data.conversations import Item, Labelled, Reader, changed
from cutaway.data.example_packing import Packed, mismatched
from cutaway.quantization import formats
from cutaway.train import examples
from cutaway.train.objectives import distill, dpo, ipo, kto, orpo, reward_model, robust_dpo, simpo
from cutaway.train.objectives.common.answers import Answers
from cutaway.train.trainable import REFERENCE, Trainable, TrainingBatch
from cutaway.weights import build, family_registry, load, rules

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of trl's own trainers
CPU = torch.device("cpu")
PAIRS = [
    {"prompt": "2+2=", "chosen": "4", "rejected": "five, or so"},
    {"prompt": "Emma is by ", "chosen": "Jane Austen, who wrote it in 1815", "rejected": "me"},
    {"prompt": "", "chosen": "ab", "rejected": "ba"},
    {"prompt": "why? ", "chosen": "because", "rejected": "no reason at all"},
]


def theirs(seed: int, kind: Any = LlamaForCausalLM) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        pad_token_id=257,
        num_labels=1,
    )
    return kind(config)


def ours(model: Any, objective: Any, folder: Path) -> Trainable:
    model.save_pretrained(folder)
    made = build.decoder(load.read_checkpoint(folder))
    objective.attach(made)
    return Trainable(made, objective, torch.ones(320))


def words(folder: Path) -> Any:
    """The tokenizer of bytes as transformers reads it."""
    from transformers import PreTrainedTokenizerFast

    file = run_tokenizer.save(run_tokenizer.of_bytes(), folder) / "tokenizer.json"
    end = run_tokenizer.END
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file), eos_token=end, bos_token=end, pad_token="<|pad|>"
    )


def trainer(kind: Any, config: Any, model: Any, rows: list[Any], tmp_path: Path, **settings: Any) -> Any:
    """trl's trainer of a method on these rows, all in one batch."""
    from datasets import Dataset

    given = {name: settings.pop(name) for name in ("ref_model",) if name in settings}
    args = config(
        output_dir=str(tmp_path / "trl"),
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=len(rows),
        **settings,
    )
    made = kind(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=words(tmp_path / "words"),
        **given,
    )
    made.model.train()
    return made


def their_step(made: Any) -> tuple[float, Any]:
    (batch,) = list(made.get_train_dataloader())
    loss = made.compute_loss(made.model, batch)
    loss.backward()
    return float(loss.detach()), made.model


def our_step(made: Trainable, base: Trainable | None, items: list[Item]) -> float:
    packed = Packed.of(items, 128, 0)
    read = []
    for n in range(packed.rows):
        batch = TrainingBatch.of(packed.row(n), CPU)
        if base is not None:
            with torch.no_grad():
                batch.extra[REFERENCE] = base.log_probs(batch, 64)
                if made.objective.rows == "labelled":
                    batch.extra[f"mismatched_{REFERENCE}"] = base.log_probs(batch.mismatched, 64)
        read.append(batch)
    read = made.objective.before(made, read, lambda x: x)
    weight, total = sum(batch.weight for batch in read), 0.0
    for batch in read:
        loss = made(batch)[0] / weight
        loss.backward()
        total += float(loss.detach())
    return total


def same_gradients(made: Trainable, model: Any, folder: Path) -> None:
    named = dict(model.named_parameters())
    own = dict(made.model.named_parameters())
    compared = 0
    for bound in rules.bind(family_registry.get("llama").hf, load.read_checkpoint(folder).config):
        if bound.theirs not in named or named[bound.theirs].grad is None:
            continue
        grads = bound.how.load(formats.pack(named[bound.theirs].grad.numpy(), "F32"), bound.place)
        for name, grad in zip(bound.ours, grads, strict=True):
            expected = torch.from_numpy(formats.unpack(grad))
            torch.testing.assert_close(own[name].grad, expected, rtol=2e-3, atol=2e-5, msg=name)
            compared += 1
    assert compared >= 20


def reader() -> Reader:
    return Reader(run_tokenizer.of_bytes(), None)


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        (dpo.Config(beta=0.3), {"loss_type": ["sigmoid"], "beta": 0.3}),
        (ipo.Config(beta=0.2), {"loss_type": ["ipo"], "beta": 0.2}),
        (robust_dpo.Config(label_smoothing=0.2), {"loss_type": ["robust"], "label_smoothing": 0.2}),
    ],
    ids=["dpo", "ipo", "robust_dpo"],
)
def test_pairs(objective: Any, settings: Any, tmp_path: Path) -> None:
    policy, base = theirs(0), theirs(1)
    made, reference = (ours(m, objective, tmp_path / n) for m, n in ((policy, "policy"), (base, "base")))
    config = {"max_length": None, "disable_dropout": True} | settings
    judge = trainer(trl.DPOTrainer, trl.DPOConfig, policy, PAIRS, tmp_path, ref_model=base, **config)
    expected, model = their_step(judge)
    items = [item for row in PAIRS for item in reader().items("pairs", row, "")]
    assert our_step(made, reference, items) == pytest.approx(expected, rel=1e-4)
    same_gradients(made, model, tmp_path / "policy")


def test_labelled(tmp_path: Path) -> None:
    rows = [
        {"prompt": pair["prompt"], "completion": pair["chosen"], "label": n % 2 == 0}
        for n, pair in enumerate(PAIRS)
    ]
    policy, base = theirs(0), theirs(1)
    objective = kto.Config(beta=0.02, liked_weight=1.2)
    made, reference = (ours(m, objective, tmp_path / n) for m, n in ((policy, "policy"), (base, "base")))
    config = {"max_length": None, "beta": 0.02, "desirable_weight": 1.2}
    judge = trainer(trl.KTOTrainer, trl.KTOConfig, policy, rows, tmp_path, ref_model=base, **config)
    expected, model = their_step(judge)
    # trl pairs a prompt with the answer before its own, so the order is reversed.
    items = [item for row in rows[::-1] for item in reader().items("labelled", row, "")]
    given = mismatched([item for item in items if isinstance(item, Labelled)], 128)
    assert our_step(made, reference, [*given]) == pytest.approx(expected, rel=1e-4)
    same_gradients(made, model, tmp_path / "policy")


def test_rewards(tmp_path: Path) -> None:
    policy, objective = theirs(0, LlamaForSequenceClassification), reward_model.Config(centre=0.1)
    body = theirs(2)
    body.model.load_state_dict(policy.model.state_dict())
    made = ours(body, objective, tmp_path / "policy")
    made.model.get_parameter("reward").data.copy_(policy.score.weight.detach()[0])
    config = {"max_length": None, "center_rewards_coefficient": 0.1}
    judge = trainer(trl.RewardTrainer, trl.RewardConfig, policy, PAIRS, tmp_path, **config)
    expected, model = their_step(judge)
    items = [item for row in PAIRS for item in reader().items("pairs", row, "")]
    items = [changed(item, examples._reading_its_end) for item in items]
    assert our_step(made, None, items) == pytest.approx(expected, rel=1e-4)
    same_gradients(made, model, tmp_path / "policy")
    head = made.model.get_parameter("reward").grad
    torch.testing.assert_close(head, model.score.weight.grad[0], rtol=1e-3, atol=1e-5)


def answers(seed: int) -> Answers:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([3.0, 90.0, 7.0])
    log_probs = -2 * tokens * torch.rand(3, generator=draw)
    return Answers(log_probs, tokens, log_probs + 1)


def test_odds_and_margins_of_means() -> None:
    """trl's ORPO adds a likelihood of its own, which counts the prompt; the odds are compared alone."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    chosen, rejected = answers(0), answers(1)
    means = [each.log_probs / each.tokens for each in (chosen, rejected)]
    settings = SimpleNamespace(
        beta=0.2,
        accelerator=SimpleNamespace(device="cpu"),
        alpha=0.0,
        loss_type="simpo",
        simpo_gamma=0.7,
        label_smoothing=0.0,
    )
    odds = ORPOTrainer.odds_ratio_loss(settings, *means)[0]  # type: ignore[arg-type]
    found = orpo.Config(odds_weight=0.2).losses(chosen, rejected)
    torch.testing.assert_close(found, -means[0] - odds)
    expected = CPOTrainer.cpo_loss(settings, *means)[0]  # type: ignore[arg-type]
    torch.testing.assert_close(simpo.Config(beta=0.2, gamma=0.7).losses(chosen, rejected), expected)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_divergences(beta: float) -> None:
    from trl.experimental.gkd import GKDTrainer

    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 1, 6, 11, generator=draw)
    expected = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, reduction="sum")
    found = distill.divergence(student[0].log_softmax(-1), teacher[0].log_softmax(-1), beta)
    torch.testing.assert_close(found.sum(), expected)
