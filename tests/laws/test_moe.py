"""Laws of sparse layers beyond those that every stack obeys (tests/laws/mechanisms.py has one in each
stack).
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from cutaway.attention import bidirectional, gqa
from cutaway.errors import UserError
from cutaway.hooks import tracing
from cutaway.layers.config import MLP, MoE
from cutaway.layers.moe import Routing
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder
from cutaway.model.config_dict import from_dict, to_dict
from cutaway.model.decoder import Decoder as Model
from cutaway.position import rope
from cutaway.train.loss import load_balancing
from cutaway.train.objectives import next_token
from cutaway.train.trainable import Trainable, TrainingBatch

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
SPARSE = MoE(4, 2, 12, shared=10, shared_gate=True)
HEADS = gqa.Config(heads=4, kv_heads=2, key_size=8, position=rope.Config(8))
CONFIG = Decoder(37, 32, 64, (Block(HEADS, SPARSE), Block(HEADS, MLP(24)), Block(HEADS, MoE(3, 1, 20))))


def _model(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    model = Model(CONFIG).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def _text(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, 37, (batch, length), generator=torch.Generator().manual_seed(1))
    return ids, torch.arange(length).expand(batch, -1)


def test_dense_and_sparse_layers_differ_by_kind() -> None:
    data = to_dict(CONFIG)
    assert [block["mlp"].get("kind") for block in data["blocks"]] == ["moe", None, "moe"]
    assert from_dict(data) == CONFIG
    data["blocks"][1]["mlp"]["kind"] = "mlp"
    assert from_dict(data) == CONFIG
    data["blocks"][1]["mlp"]["kind"] = "norm"
    with pytest.raises(UserError, match=r"config.blocks\[1\].mlp.kind: there is no 'norm'; known: mlp, moe"):
        from_dict(data)
    with pytest.raises(UserError, match="top_k is 3; it must be at most experts"):
        MoE(2, 3, 4)
    with pytest.raises(UserError, match="needs a shared expert"):
        MoE(2, 1, 4, shared_gate=True)
    with pytest.raises(UserError, match="an encoder needs dense MLPs, not moe"):
        Encoder(37, 32, 64, (Block(bidirectional.Config(heads=4, kv_heads=4, key_size=8), SPARSE),))


@torch.no_grad()
def test_padding_goes_to_no_expert() -> None:
    model, (ids, pos) = _model(), _text(1, 9)
    padded = torch.cat((torch.zeros(1, 4, dtype=torch.long), ids), dim=1)
    positions = torch.cat((torch.full((1, 4), -1), pos), dim=1)
    names = "blocks.*.mlp.expert_indices", "blocks.0.mlp.experts.*.hidden"
    with tracing(model, *names) as seen:
        out = model(padded, positions)
    with tracing(model, *names) as alone:
        assert_close(out[:, 4:], model(ids, pos), **TIGHT)
    for name in alone:
        if name.endswith("expert_indices"):
            assert (seen[name][:, :4] == -1).all() and torch.equal(seen[name][:, 4:], alone[name])
        else:
            assert_close(seen[name], alone[name], **TIGHT)
    assert sum(seen[f"blocks.0.mlp.experts.{e}.hidden"].shape[1] for e in range(4)) == 9 * SPARSE.top_k


@torch.no_grad()
def test_of_equal_scores_the_first_wins() -> None:
    layer = MoE(6, 3, 4).build(8)
    layer.router.weight.zero_()
    layer.router.weight[4] = 1.0
    x = torch.rand(1, 5, 8) + 0.1
    _, routing = layer(x, torch.arange(5)[None])
    assert (routing.expert_indices == torch.tensor([4, 0, 1])).all()


@torch.no_grad()
def test_a_listener_sees_and_changes_the_choice() -> None:
    model, (ids, pos) = _model(), _text(2, 7)
    with tracing(model, "blocks.0.mlp.*") as seen:
        plain = model(ids, pos)
    scores, expert_indices, weights = (
        seen[f"blocks.0.mlp.{name}"] for name in ("scores", "expert_indices", "expert_weights")
    )
    assert_close(scores.sum(-1), torch.ones(2, 7, dtype=torch.float64))
    assert torch.equal(expert_indices, scores.topk(2).indices)
    assert_close(weights.sum(-1), torch.ones(2, 7, dtype=torch.float64))
    with tracing(
        model, "blocks.0.mlp.expert_weights", edit={"blocks.0.mlp.expert_indices": lambda c: c.flip(-1)}
    ) as other:
        assert_close(model(ids, pos), plain, **TIGHT)
    assert_close(other["blocks.0.mlp.expert_weights"], weights.flip(-1), **TIGHT)
    with tracing(model, "blocks.0.mlp.out", edit={"blocks.0.mlp.expert_weights": lambda w: w * 0}) as silent:
        assert not torch.allclose(model(ids, pos), plain)
    common = torch.sigmoid(seen["blocks.0.mlp.shared_gate"]) * seen["blocks.0.mlp.shared.down"]
    assert_close(silent["blocks.0.mlp.out"], common, **TIGHT)


@pytest.mark.parametrize("normalised", [True, False])
def test_gradients_check(normalised: bool) -> None:
    torch.manual_seed(0)
    layer = MoE(4, 2, 3, normalised=normalised, shared=2, shared_gate=True).build(4).double()
    x = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    pos = torch.tensor([[-1, 0, 1, 2, 3]])

    def output(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        named = dict(zip(dict(layer.named_parameters()), weights, strict=True))
        out, routing = torch.func.functional_call(layer, named, (x, pos))
        return torch.cat((out.flatten(), load_balancing(routing, pos >= 0)[None]))

    assert torch.autograd.gradcheck(output, (x, *layer.parameters()))


def test_every_weight_has_a_gradient_even_of_an_expert_that_no_token_chose() -> None:
    """Or devices that read other rows would wait for one another's gradients."""
    model = _model()
    with torch.no_grad():
        model.blocks[2].mlp.router.weight[0] = 0
        model.blocks[2].mlp.router.weight[1:] = -1e9
    ids, pos = _text(1, 2)
    model(ids, pos).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_the_balance_is_part_of_the_loss_and_of_nothing_else() -> None:
    model, (ids, pos) = _model(), _text(2, 8)
    targets = ids.roll(-1, dims=1)
    with torch.no_grad():
        batch, sizes = TrainingBatch(ids, targets, pos, None, None, 16.0), torch.ones(37)
        plain, sums = Trainable(model, next_token.Config(router_aux_loss=0.0), sizes)(batch)
        loss, again = Trainable(model, next_token.Config(router_aux_loss=0.5), sizes)(batch)
        entropy, same = sums["cross_entropy"], again["cross_entropy"]
        _, routings = model.routed(ids, pos)
    assert len(routings) == 2 and float(same) == float(entropy) == pytest.approx(float(plain))
    uneven = sum(float(load_balancing(routing, pos >= 0)) for routing in routings)
    assert float(loss) == pytest.approx(float(plain) + 0.5 * 16 * uneven)


def test_balanced_experts_are_used_alike() -> None:
    """A router that sends everything to one expert is brought back by the loss alone."""
    torch.manual_seed(0)
    layer = MoE(4, 1, 4).build(8)
    x, pos = torch.rand(1, 64, 8) - 0.3, torch.arange(64)[None]
    with torch.no_grad():
        layer.router.weight[2] += 1.0
    optimiser = torch.optim.Adam(layer.router.parameters(), lr=0.05)

    def uneven() -> torch.Tensor:
        _, routing = layer(x, pos)
        return load_balancing(Routing(*routing), pos >= 0)

    before = float(uneven().detach())
    for _ in range(60):
        optimiser.zero_grad()
        uneven().backward()
        optimiser.step()
    assert before > 1.5 and float(uneven().detach()) < 1.1


def test_what_is_around_experts_is_compiled_once() -> None:
    """In a process of its own, as tests/laws/test_compile.py says."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.laws.test_moe"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "compiled once\n", done.stderr


def _main() -> None:
    from torch._dynamo.testing import CompileCounter

    torch.set_num_threads(1)
    model, counter, frames = _model(), CompileCounter(), []
    compiled = torch.compile(model, backend=counter, dynamic=False)
    ids, pos = _text(2, 9)
    with torch.no_grad():
        for turn in range(3):  # other tokens, which other experts read
            other = (ids + 5 * turn) % 37
            assert_close(compiled(other, pos), model(other, pos), **TIGHT)
            frames.append(counter.frame_count)
    assert frames[0] == frames[2] > 1, frames
    print("compiled once")


if __name__ == "__main__":
    _main()
