"""A step is the step: gradients, optimizers and losses equal plain torch's, and each saving of memory or time
leaves the curve where it was.
"""

import math
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cutaway.errors import OperationalError
from cutaway.layers.config import MLP as Config
from cutaway.layers.config import MoE
from cutaway.layers.mlp import MLP
from cutaway.layers.norm import RMSNorm
from cutaway.model.decoder import Decoder
from cutaway.train import device, loss
from cutaway.train.objectives import next_token
from cutaway.train.optim import AdamW, Muon
from cutaway.train.schedule import WSD, Cosine, Linear
from cutaway.train.trainable import TrainingBatch
from cutaway.train.training import Training
from tests.laws.mechanisms import KINDS, attention
from tests.training import losses, model, run, text, training

CURVE = 1e-5  # how far apart two losses may be that are summed in another order, float32, of about 5.8


# ---- loss --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("z", [0.0, 0.01])
@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_chunked_cross_entropy_is_plain_cross_entropy(chunk: int, z: float, softcap: float | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(23, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(41, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 41, (23,))
    logits = x @ weight.T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    expected = loss.plain(logits, targets, z)
    wanted = torch.autograd.grad(expected * 0.3, (x, weight))
    found, entropy = loss.chunked(x, weight, targets, chunk, z, softcap)
    (found * 0.3).backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(entropy, F.cross_entropy(logits, targets, reduction="sum"))
    torch.testing.assert_close((x.grad, weight.grad), wanted)
    weights = (torch.arange(23) % 3).double()
    odd = torch.where(weights[:, None] > 0, x, math.inf).detach().requires_grad_()  # no logits, no NaN
    found, entropy = loss.chunked(odd, weight, targets, chunk, z, softcap, weights)
    rows = [n for n in range(23) for _ in range(n % 3)]
    torch.testing.assert_close(found, loss.plain(logits[rows], targets[rows], z))
    torch.testing.assert_close(entropy, F.cross_entropy(logits[rows], targets[rows], reduction="sum"))
    (found * 0.3).backward()
    alone = torch.autograd.grad(loss.plain(x[rows] @ weight.T, targets[rows], z) * 0.3, x)[0]
    if not softcap:
        torch.testing.assert_close(odd.grad, alone)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk", [1, 7, 50])
@pytest.mark.parametrize("frozen", [False, True])
def test_log_probs_by_chunks(chunk: int, softcap: float | None, temperature: float, frozen: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(23, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(41, 8, dtype=torch.float64, requires_grad=not frozen)
    targets, pull = torch.randint(0, 41, (23,)), torch.randn(23, dtype=torch.float64)
    logits = x @ weight.T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    every = torch.log_softmax(logits / temperature, -1)
    expected = every[torch.arange(23), targets]
    read = (x,) if frozen else (x, weight)
    wanted = torch.autograd.grad((expected * pull).sum(), read, retain_graph=True)
    found = loss.log_probs(x, weight, targets, chunk, softcap, temperature)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad((found * pull).sum(), read), wanted)
    narrow = x.detach().float().requires_grad_(), weight.detach().float()  # the native core's way
    found = loss.log_probs(*narrow, targets, chunk, softcap, temperature)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    (made,) = torch.autograd.grad((found * pull.float()).sum(), narrow[:1])
    torch.testing.assert_close(made.double(), wanted[0], rtol=1e-4, atol=1e-5)


def _plain_gradients(made: Any) -> list[torch.Tensor]:
    """Of one step's batch, through the model's own forward and torch's cross-entropy, all at once."""
    reference = Decoder(made.run.model)
    reference.load_state_dict(made.model.state_dict())
    rows = made.data.train.batch(made.step * made.run.batch_size, made.run.batch_size)
    ids, targets, pos, documents = map(torch.from_numpy, (rows.ids, rows.targets, rows.pos, rows.documents))
    F.cross_entropy(reference(ids, pos, documents=documents).flatten(0, 1), targets.flatten()).backward()
    return [parameter.grad for parameter in reference.parameters()]  # type: ignore[misc]


@pytest.mark.parametrize(
    "changes", [{}, {"micro_batch_size": 1}, {"activation_checkpointing": True}], ids=str
)
def test_gradients_are_plain_torchs(changes: dict[str, Any]) -> None:
    made = training(**changes)
    expected = _plain_gradients(made)
    made._gradient(made._batches(), 0)
    for found, wanted in zip(made.names, expected, strict=True):
        torch.testing.assert_close(found.grad, wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_an_mlp_makes_again_what_it_does_not_hold(
    edited: bool, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients to the bit, under dropout too; the input of ``down`` is gone, unless an edit made it."""
    monkeypatch.setattr("cutaway.layers.mlp.tap", lambda _, hidden: hidden * 3 if edited else hidden)

    def gradients(recomputes: bool) -> tuple[list[torch.Tensor], bool]:
        torch.manual_seed(0)
        mlp, norm = MLP(Config(24), 8), RMSNorm(8, 1e-5).requires_grad_(False)
        mlp.recomputes = recomputes
        mlp.up.register_forward_hook(lambda _, given, out: torch.nn.functional.dropout(out, 0.5))
        held: list[weakref.ref[torch.Tensor]] = []
        mlp.down.register_forward_pre_hook(lambda _, given: held.append(weakref.ref(given[0])))
        x = torch.randn(2, 5, 8, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = mlp(x, norm)
        alive = held[0]() is not None
        grads = torch.autograd.grad(out.float().square().sum(), [x, *mlp.parameters()])
        return [*grads, torch.rand(3)], alive

    (found, alive), (wanted, kept) = gradients(True), gradients(False)
    assert all(map(torch.equal, found, wanted)) and kept and alive is edited


@pytest.mark.parametrize("learned", [("weight",), ()])
def test_a_frozen_norm_has_the_trained_ones_gradient(learned: tuple[str, ...]) -> None:
    norm = RMSNorm(24, 1e-5, learned).double()
    if norm.weight is not None:
        torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 5, 24, dtype=torch.float64, requires_grad=True)
    given, expected = (
        torch.randn_like(x),
        norm(x) if learned else x * (x.square().mean(-1, True) + 1e-5).rsqrt(),
    )
    (wanted,) = torch.autograd.grad((expected * given).sum(), x)
    found = norm.requires_grad_(False)(x)
    (grad,) = torch.autograd.grad((found * given).sum(), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-12)


# ---- one step of each optimizer ----------------------------------------------------------------------------


def test_a_step_of_adamw_is_the_papers() -> None:
    optimizer = AdamW(learning_rate=0.01, betas=(0.8, 0.9), eps=1e-8, weight_decay=0.1)
    made = training(optimizer=optimizer, schedule=Linear(), gradient_clip=0.5)
    before = [p.detach().double() for p in made.names]
    grads = [g.double() for g in _plain_gradients(made)]
    length = math.sqrt(sum(float(g.square().sum()) for g in grads))
    assert length > 0.5
    numbers = made.advance()
    assert numbers["gradient_norm"] == pytest.approx(length, rel=1e-4)
    for p, w, g in zip(made.names, before, grads, strict=True):
        g = g * 0.5 / length
        m, v = 0.2 * g / (1 - 0.8), 0.1 * g * g / (1 - 0.9)
        decay = 0.1 if p.ndim == 2 else 0.0
        expected = w - 0.01 * (m / (v.sqrt() + 1e-8) + decay * w)
        big = g.abs() > 1e-5  # where the gradient is next to nothing Adam's quotient is rounding's
        torch.testing.assert_close(p.detach().double()[big], expected[big], atol=2e-5, rtol=1e-3)


def test_a_step_of_muon_is_an_orthogonal_matrix() -> None:
    made = training(optimizer=Muon(learning_rate=0.01, weight_decay=0.0), schedule=Linear())
    before = [p.detach().clone() for p in made.names]
    grads = _plain_gradients(made)
    made.advance()
    for (p, name), old, grad in zip(made.names.items(), before, grads, strict=True):
        if p.ndim < 2 or "blocks" not in name:
            continue
        step = (old - p.detach()).double() / (0.01 * 0.2 * math.sqrt(max(p.shape)))
        u, s, vt = torch.linalg.svd(grad.double(), full_matrices=False)
        # Newton-Schulz with Muon's coefficients brings singular values to between 0.7 and 1.2, not to 1,
        # in bfloat16.
        found = (u.T @ step @ vt.T).diagonal()
        strong = s > 0.1 * s[0]
        assert ((found[strong] > 0.6) & (found[strong] < 1.3)).all(), name


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Cosine(warmup_steps=2, min_ratio=0.1), [0.5, 1.0, 1.0, 0.868198, 0.55, 0.231802]),
        (Linear(warmup_steps=2), [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        (WSD(warmup_steps=2, decay_ratio=0.5), [0.5, 1.0, 1.0, 1.0, 1.0, 1 - math.sqrt(0.5)]),
    ],
)
def test_schedules(schedule: Any, expected: list[float]) -> None:
    assert [schedule.factor(step, 6) for step in range(6)] == pytest.approx(expected, abs=1e-6)


def test_the_average_is_the_weights_average() -> None:
    made = training(ema=0.75)
    expected = [p.detach().clone() for p in made.names]
    for _ in range(3):
        made.advance()
        expected = [0.75 * mean + 0.25 * p.detach() for mean, p in zip(expected, made.names, strict=True)]
    torch.testing.assert_close(made.ema, expected)
    own = [p.detach().clone() for p in made.names]
    with made.averaged():
        torch.testing.assert_close([p.detach() for p in made.names], expected)
    assert all(torch.equal(a, b) for a, b in zip(own, made.names, strict=True))


# ---- the curve does not move -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curve() -> list[float]:
    return losses(training(), 6)


def test_the_curve_falls(curve: list[float]) -> None:
    assert curve[-1] < curve[0] - 0.02


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch_size": 2},
        {"micro_batch_size": 1},
        {"activation_checkpointing": True},
        {"objective": next_token.Config(chunk_size=5)},
        {"objective": next_token.Config(chunk_size=1000)},
    ],
    ids=str,
)
def test_the_curve_is_the_same_however_a_step_is_cut(curve: list[float], changes: dict[str, Any]) -> None:
    assert losses(training(**changes), 6) == pytest.approx(curve, abs=CURVE)


def test_packed_documents_give_the_losses_they_have_alone() -> None:
    made = training()
    rows = made.data.train.batch(0, 4)
    batch = TrainingBatch.of(rows, made.device)
    together = float(made.trainable(batch)[1]["cross_entropy"])
    alone = 0.0
    reference = made.model
    for ids, targets, documents in zip(rows.ids, rows.targets, rows.documents, strict=True):
        for document in set(documents.tolist()):
            own = torch.from_numpy(ids[documents == document])[None]
            wanted = torch.from_numpy(targets[documents == document])
            logits = reference(own, torch.arange(own.shape[1])[None])
            alone += float(F.cross_entropy(logits[0].detach(), wanted, reduction="sum"))
    assert together == pytest.approx(alone, rel=1e-6)
    assert rows.documents.max() > 0


def test_half_precision_and_z_loss_train_too() -> None:
    made = training(precision="bfloat16", objective=next_token.Config(z_loss=1e-4))
    curve = losses(made, 6)
    assert curve[-1] < curve[0] - 0.02
    assert made.model.embedding.weight.dtype == torch.float32


def test_what_several_projections_read_is_kept_once() -> None:
    """In bfloat16 a block keeps what queries, keys and values are made of, what gate and neurons are, and
    what the heads have read: three vectors a token of the model's width, not a copy for each projection.
    """
    made, kept = training(precision="bfloat16"), []

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.bfloat16 and x.shape[-1] == 32 and x.numel() == 4 * 16 * 32:
            kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        made.advance()
    assert len({x.data_ptr() for x in kept}) == 3 * len(made.model.blocks)


# ---- every mechanism ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_mechanism_trains_through_the_same_loop(kind: str, precision: str) -> None:
    made = training(model=model(attention=attention(kind)), precision=precision)
    before = {name: p.detach().clone() for p, name in made.names.items()}
    curve = losses(made, 3)
    assert curve[-1] < curve[0]
    moved = {name.split(".", 2)[-1] for p, name in made.names.items() if not torch.equal(p, before[name])}
    still = [name for name in before if name.split(".", 2)[-1] not in moved]  # in every layer
    # An indexer chooses and is not chosen by: it learns only from a loss of its own (DeepSeek-V3.2).
    assert all("index" in name for name in still), still


def test_a_precision_left_open_is_the_one_that_is_faster_here(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"bfloat16": 4.0, "float32": 2.0}
    monkeypatch.setattr(device, "peak", lambda device, precision: speeds[precision])
    assert training(precision="auto").run.precision == "bfloat16"
    speeds["bfloat16"] = 2.1  # emulated, or hardly worth the rounding
    assert training(precision="auto").run.precision == "float32"
    assert training(precision="bfloat16").run.precision == "bfloat16"


def test_a_measurement_draws_none_of_the_runs_random_numbers() -> None:
    before = torch.get_rng_state()
    device.measured_peak(torch.device("cpu"), "float32", 0.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_mixture_of_experts_trains() -> None:
    """Its loss is the text's and the balance's; the text's falls, and no expert takes everything."""
    mlp = MoE(4, 1, 32)
    blocks = tuple(replace(block, mlp=mlp) for block in model().blocks)
    made = training(
        model=replace(model(), blocks=blocks), steps=40, objective=next_token.Config(router_aux_loss=0.1)
    )
    first, *_, last = (made.advance() for _ in range(40))
    assert last["cross_entropy"] < first["cross_entropy"] - 0.5
    with torch.no_grad():
        ids, pos = torch.arange(16)[None], torch.arange(16)[None]
        _, routings = made.model.routed(ids, pos)
    uneven = sum(float(loss.load_balancing(routing, pos >= 0)) for routing in routings)
    assert last["loss"] - last["cross_entropy"] == pytest.approx(0.1 * uneven, abs=0.1) and uneven < 3


# ---- loss weights, frozen weights, the loop beside plain torch ---------------------------------------------


def _plain_losses(made: Training, steps: int) -> list[float]:
    """The losses of the same steps by a loop of ten lines: two independent paths, equal to the bit."""
    torch.manual_seed(made.run.seed)
    model = Decoder(made.run.model)
    (optimizer,) = made.run.optimizer.build(list(model.named_parameters()))
    peak, found = made.run.optimizer.learning_rate, []
    for step in range(steps):
        rows = made.data.train.batch(step * made.run.batch_size, made.run.batch_size)
        ids, targets, pos, documents = map(
            torch.from_numpy, (rows.ids, rows.targets, rows.pos, rows.documents)
        )
        hidden = model.norm(model.routed(ids, pos, documents=documents)[0]).flatten(0, 1)
        total, _ = loss.chunked(hidden, model.embedding.weight, targets.flatten(), 24)
        (total * (1 / targets.numel())).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = peak * made.run.schedule.factor(step, made.run.steps)
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(total.detach()) / targets.numel())
    return found


def test_five_steps_are_a_plain_loops_to_the_bit() -> None:
    made = training(gradient_clip=1.0)
    assert losses(made, 5) == _plain_losses(made, 5)


def _reweighted(made: Training, weigh: Any) -> None:
    """Give every batch of a run other loss weights."""
    plain = made.data.train.batch
    made.data.train.batch = lambda first, count: weigh(plain(first, count))  # type: ignore[method-assign]


@pytest.mark.parametrize("size", [1, 4])
def test_a_target_of_weight_0_is_not_trained(size: int) -> None:
    """Gradients are those of the mean over weighted targets of the whole step, however it is accumulated."""
    made = training(micro_batch_size=size)
    weights = (np.arange(4 * 16).reshape(4, 16) % 3 == 0).astype(np.float32)
    weights[0] = 0
    weights[1] *= 0.5
    counter = iter(range(0, 4, size))
    _reweighted(made, lambda rows: replace(rows, loss_weights=weights[(n := next(counter)) : n + size]))
    reported = made._gradient(made._batches(), 0)["loss"]
    reference = Decoder(made.run.model)
    reference.load_state_dict(made.model.state_dict())
    total = torch.zeros(())
    for n in range(4):
        row = made.data.train.read(n)
        ids, targets, pos, documents = map(torch.from_numpy, (row.ids, row.targets, row.pos, row.documents))
        each = F.cross_entropy(reference(ids, pos, documents=documents)[0], targets[0], reduction="none")
        total = total + (each * torch.from_numpy(weights[n])).sum()
    (total / float(weights.sum())).backward()
    assert reported == pytest.approx(float(total.detach()) / float(weights.sum()), rel=1e-6)
    for parameter, expected in zip(made.names, reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, atol=1e-6, rtol=1e-4)


def test_nothing_to_train_is_an_error() -> None:
    made = training()
    _reweighted(made, lambda rows: replace(rows, loss_weights=rows.loss_weights * 0))
    with pytest.raises(OperationalError, match="every loss weight is 0"):
        made.advance()


def test_a_given_models_frozen_weights_stay() -> None:
    base = Decoder(model())
    for name, parameter in base.named_parameters():
        parameter.requires_grad_("norm" in name)
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    made = Training(run(ema=0.5), replace(text(), model=base), note=lambda _: None)
    curve = losses(made, 4)
    assert curve[-1] < curve[0]
    assert all("norm" in name for name in made.names.values())
    assert all(torch.equal(p, before[name]) != p.requires_grad for name, p in made.model.named_parameters())
    assert set(made.state()["weights"]) == set(made.names.values())
