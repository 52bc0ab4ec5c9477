"""What is planned on paper is what torch counts: bytes kept for the way back, and bytes sent."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from cutaway.attention import gqa
from cutaway.cli import main
from cutaway.errors import UserError
from cutaway.layers.config import MLP, MoE
from cutaway.model.block import Block
from cutaway.model.block_config import Block as BlockConfig
from cutaway.model.config import Decoder
from cutaway.position import rope
from cutaway.train import plan
from cutaway.train.distributed import Distributed
from cutaway.train.training import Training
from tests.training import run, text

HEADS = gqa.Config(heads=8, kv_heads=2, key_size=16, position=rope.Config(16))
MODEL = Decoder(320, 128, 16, (BlockConfig(HEADS, MLP(352)),) * 3)


MLPS = MLP(352), MoE(8, 2, 176), MoE(8, 3, 96, shared=96, shared_gate=True)


@pytest.mark.parametrize("mlp", MLPS, ids=["dense", "sparse", "shared"])
def test_what_a_block_keeps_is_what_autograd_saves(mlp: MLP | MoE) -> None:
    config = BlockConfig(HEADS, mlp)
    block = Block(config, 128)
    rows, context = 2, 256
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in block.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    from cutaway.attention.common.visibility import Positions
    from cutaway.position.rope import RotaryEmbedding

    x = torch.randn(rows, context, 128, requires_grad=True)
    pos = torch.arange(context).expand(rows, -1)
    rotation = RotaryEmbedding(HEADS.position).rotation(pos)  # type: ignore[arg-type]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out, _ = block(x, Positions(pos), rotation, True, None)
    measured = sum(kept.values()) / (rows * context * 4)
    assert plan.activations(config, 128) == pytest.approx(measured, rel=0.05)
    assert out.shape == x.shape


class _Sent(TorchDispatchMode):
    """Bytes that collectives move, by kind: of the gathered, and of what is scattered or summed."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "c10d":
            whole = {"_allgather_base_": 0, "_reduce_scatter_base_": 1}
            if name in whole:
                self.bytes[name] += args[whole[name]].nbytes
            elif name == "allreduce_":
                self.bytes[name] += sum(tensor.nbytes for tensor in args[0] if tensor.ndim > 2)
        elif func.namespace == "_c10d_functional" and name == "all_reduce":
            self.bytes["allreduce_"] += args[0].nbytes
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("devices", "tensor", "rows"), [(4, 1, 2), (8, 1, 1), (8, 2, 2)])
def test_what_moves_is_what_a_fake_group_is_asked_to(devices: int, tensor: int, rows: int) -> None:
    own = run(
        model=MODEL, batch_size=devices // tensor * rows * 2, micro_batch_size=rows, tensor_parallel=tensor
    )
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=devices)
    try:
        made = Training(own, text(), Distributed("cpu", tensor), note=lambda _: None)
        held = sum(p.to_local().numel() for p in made.names)  # type: ignore[attr-defined]
        with _Sent() as sent:
            made._gradient(made._batches(), 0)
    finally:
        dist.destroy_process_group()
    expected = plan.plan(own, devices, 1e12, 1e9)
    fraction = 1 - tensor / devices
    assert expected.stays["weights"] == pytest.approx(4 * held, rel=0.01)
    assert expected.moves["gathering weights"] == pytest.approx(
        fraction * sent.bytes["_allgather_base_"], rel=0.01
    )
    assert expected.moves["scattering gradients"] == pytest.approx(
        fraction * sent.bytes["_reduce_scatter_base_"], rel=0.01
    )
    if tensor > 1:
        assert expected.moves["residual stream sums"] == pytest.approx(
            2 * (tensor - 1) / tensor * sent.bytes["allreduce_"], rel=0.01
        )


def test_a_sparse_model_is_cut_over_devices_and_its_matrices_are_not() -> None:
    own = run(model=replace(MODEL, blocks=(BlockConfig(HEADS, MLPS[2]),)), batch_size=8, micro_batch_size=2)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        made = Training(own, text(), Distributed("cpu"), note=lambda _: None)
        made._gradient(made._batches(), 0)
        assert all(p.grad is not None for p in made.names)
        with pytest.raises(UserError, match="tensor_parallel: MoE is not cut over devices: use 1"):
            Training(replace(own, tensor_parallel=2), text(), Distributed("cpu", 2), note=lambda _: None)
    finally:
        dist.destroy_process_group()


def test_of_experts_a_token_passes_a_few() -> None:
    """Counted by hand: 3 matrices of each expert, and a router."""
    sparse = MoE(8, 2, 64, shared=96, shared_gate=True)
    dense = replace(MODEL, blocks=(BlockConfig(HEADS, MLP(64)),))
    mixed = replace(MODEL, blocks=(BlockConfig(HEADS, MLP(64)), BlockConfig(HEADS, sparse)))
    one, more = (plan.plan(run(model=model), 1, 1e12, 1e9) for model in (dense, mixed))
    attention = 128 * (2 * 128 + 2 * 32) + 2 * 128
    common = attention + 3 * 96 * 128 + 8 * 128 + 128
    assert one.active == one.weights
    assert more.active - one.active == common + 2 * 3 * 64 * 128
    assert more.weights - one.weights == common + 8 * 3 * 64 * 128


def test_recomputing_keeps_less_and_works_more() -> None:
    plain = run(model=replace(MODEL, context=512))
    again = replace(plain, activation_checkpointing=True)
    one, other = (plan.plan(each, 1, 1e12, 1e9) for each in (plain, again))
    assert other.passes["activations"] < one.passes["activations"] / 2
    assert other.flops == pytest.approx(one.flops * 4 / 3)


def test_the_command_prints_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "1b", "--devices", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0.9e9 < found["weights"] < 1.4e9
    assert main(["plan", "1b", "--devices", "8"]) == 0
    printed = capsys.readouterr().out
    assert "scattering gradients" in printed and "an NVIDIA H100" in printed
    assert main(["plan", "1b", "--flops", "1e12"]) == 0
    printed = capsys.readouterr().out
    assert "Each device: 1e+12 operations a second" in printed and "H100" not in printed
    for option in ("--flops", "--bandwidth"):
        for value in ("0", "-1", "nan", "inf"):
            assert main(["plan", "nano", option, value]) == 2
            assert f"{option} is {value}: give a number above 0" in capsys.readouterr().err
    assert main(["plan", "1b", "--devices", "3", "--tensor-parallel", "2"]) == 2
    assert "cannot be grouped" in capsys.readouterr().err
    assert main(["plan", "1b", "--devices", "512"]) == 2, "pretrain refuses 128 micro-batches on them"
    assert "split evenly over 512 devices" in capsys.readouterr().err
