"""Training on many devices (FSDP2, tensor parallelism), started by torchrun. Where a model is sampled from,
each device holds all weights (``Replicated``).

Two ways to split that multiply: ``fully_shard`` (FSDP2; 1910.02054) cuts every weight over the devices
that read different rows, and gathers a block's weights when it is their turn; tensor parallelism
(1909.08053) cuts the matrices of a block over devices that read the same rows: query, key, value, gate and
up by rows, out and down by columns, so that a block needs two sums. Both are torch's DTensor; the model
does not know. Gradients meet once a step, whatever is accumulated. Checkpoints are
``torch.distributed.checkpoint``'s, stored as safetensors, and read back by any number of devices.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from cutaway.attention.common.softmax import SoftmaxAttention
from cutaway.errors import UserError
from cutaway.layers.mlp import MLP
from cutaway.store.files import atomic_folder, part_of
from cutaway.train import checkpoint
from cutaway.train.checkpoint import Parts
from cutaway.train.config import TrainingConfig
from cutaway.train.optim import Muon
from cutaway.train.parallel import SINGLE_PROCESS, Parallel
from cutaway.train.trainable import Trainable

DATA, TENSOR = "data", "tensor"
WAITS = timedelta(
    hours=24
)  # torch's ten minutes are shorter than what the first process may have to tokenise


@contextmanager
def joined(run: TrainingConfig) -> Iterator[Parallel]:
    """The process group that torchrun started; without torchrun a single process."""
    if "RANK" not in os.environ:
        yield SINGLE_PROCESS
        return
    if run.replicated and run.tensor_parallel > 1:
        raise UserError(
            "config.tensor_parallel: learning from rewards samples from whole weights, which every process "
            "holds: set it to 1"
        )
    gpu = run.device in ("auto", "cuda") and torch.cuda.is_available()
    dist.init_process_group("nccl" if gpu else "gloo", timeout=WAITS)
    try:
        kind = "cuda" if gpu else "cpu"
        yield Replicated(kind) if run.replicated else Distributed(kind, run.tensor_parallel)
    finally:
        dist.destroy_process_group()


class Distributed(Parallel):
    """The default group's processes as a grid: ``tensor`` neighbours share matrices, others split rows."""

    casts = True

    def __init__(self, kind: str, tensor: int = 1) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        if self.size % tensor:
            raise UserError(f"config.tensor_parallel: {self.size} devices cannot be grouped by {tensor}")
        shape = self.size // tensor, tensor
        self.mesh: DeviceMesh = init_device_mesh(kind, shape, mesh_dim_names=(DATA, TENSOR))
        self.data_size, self.tensor_size = shape
        self.data_rank = self.mesh.get_local_rank(DATA)
        self.device = torch.device(
            f"cuda:{self.rank % torch.cuda.device_count()}" if kind == "cuda" else kind
        )
        if kind == "cuda":
            torch.cuda.set_device(self.device)

    def shard(self, trainable: Trainable, run: TrainingConfig) -> None:
        """Cuts every weight over the devices. All start equal, made from one seed."""
        if isinstance(run.optimizer, Muon):
            raise UserError(
                "optim: muon needs whole matrices, and these devices hold parts of them: use adamw"
            )
        if self.tensor_size > 1:
            for block in trainable.decoder.blocks:
                _split(block, self.mesh[TENSOR])
        half = run.precision == "bfloat16"
        policy = MixedPrecisionPolicy(torch.bfloat16 if half else None, torch.float32 if half else None)
        for block in trainable.decoder.blocks:
            fully_shard(block, mesh=self.mesh[DATA], mp_policy=policy)
        fully_shard(trainable, mesh=self.mesh[DATA], mp_policy=policy)
        register_fsdp_forward_method(trainable, "outside_loss")

    @contextmanager
    def sync_gradients(self, trainable: Trainable, last: bool) -> Iterator[None]:
        """Gradients of all but the last micro-batch stay on their device."""
        module: Any = trainable
        assert isinstance(module, FSDPModule)
        module.set_requires_gradient_sync(last)
        yield

    def all_reduce(self, numbers: Tensor) -> Tensor:
        """The sums of these numbers over the processes that read different rows."""
        total = numbers.to(self.device)
        dist.all_reduce(total, group=self.mesh.get_group(DATA))
        return total.cpu()

    def largest(self, numbers: Tensor) -> Tensor:
        """The largest of each of these numbers over the same processes."""
        most = numbers.to(self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self.mesh.get_group(DATA))
        return most.cpu()

    def clip_gradients(self, parameters: Sequence[nn.Parameter], bound: float | None) -> float:
        """The norm of the whole gradient, which is scaled down to ``bound`` if it is larger."""
        squares = torch.zeros(2, dtype=torch.float64, device=self.device)  # of what is split, and what is not
        for parameter in parameters:
            grad = parameter.grad
            if isinstance(grad, DTensor):
                split = TENSOR in (grad.device_mesh.mesh_dim_names or ())
                squares[0 if split else 1] += grad.to_local().double().square().sum()
        dist.all_reduce(squares, group=self.mesh.get_group(DATA))
        dist.all_reduce(squares[:1], group=self.mesh.get_group(TENSOR))
        norm = float(squares.sum().sqrt())
        if bound is not None and norm > bound:
            for parameter in parameters:
                if isinstance(parameter.grad, DTensor):
                    parameter.grad.to_local().mul_(bound / (norm + 1e-6))
        return norm

    def barrier(self) -> None:
        """Until all processes are here."""
        dist.barrier()

    def any_signal(self, asked: int | None) -> int | None:
        """The signal that any process was sent."""
        received = torch.tensor(asked or 0, device=self.device)
        dist.all_reduce(received, dist.ReduceOp.MAX)
        return int(received) or None

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """A tensor with the parts that other devices hold."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def write(self, folder: Path, step: int, parts: Parts) -> None:
        """A checkpoint: every device writes its part, and the first names the checksums last."""
        target = checkpoint.path(folder, step)
        first = atomic_folder(target, remedy=checkpoint.REMEDY)
        with first if self.rank == 0 else nullcontext(part_of(target)) as made:
            self.barrier()
            checkpoint.write_parts(made / checkpoint.PART, parts)
            self.barrier()
            if self.rank == 0:
                checkpoint.seal(made, step)
        self.barrier()


class Replicated(Distributed):
    """Every process holds all weights, which a sampler reads: only gradients are summed, once a step."""

    casts = False

    def shard(self, trainable: Trainable, run: TrainingConfig) -> None:
        """All start equal, made from one seed, and stay so."""

    def sync_gradients(self, trainable: Trainable, last: bool) -> AbstractContextManager[Any]:
        """Gradients of all micro-batches stay here until ``clip_gradients``."""
        return nullcontext()

    def clip_gradients(self, parameters: Sequence[nn.Parameter], bound: float | None) -> float:
        """The norm of the mean gradient over the processes, which each then has, scaled down to ``bound``."""
        for parameter in parameters:
            if parameter.grad is None:  # no token of this process's reached it
                parameter.grad = torch.zeros_like(parameter)
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        whole = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(whole)
        whole /= self.size
        for grad, part in zip(grads, whole.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))
        return Parallel.clip_gradients(self, parameters, bound)

    def write(self, folder: Path, step: int, parts: Parts) -> None:
        """A checkpoint, by the first process."""
        if self.rank == 0:
            checkpoint.write_training_state(folder, step, parts)
        self.barrier()


def _split(block: nn.Module, mesh: DeviceMesh) -> None:
    """Cuts a block's matrices over the mesh: each device computes some heads and neurons."""
    attention, mlp = block.attention, block.mlp
    if type(attention) is not SoftmaxAttention or not isinstance(mlp, MLP):
        other = attention if isinstance(mlp, MLP) else mlp
        raise UserError(f"tensor_parallel: {type(other).__name__} is not cut over devices: use 1")
    config, ways = attention.config, mesh.size()
    whole = config.qk_norm is not None and config.qk_norm_over == "width"
    if whole or config.sinks or config.relative is not None or config.out_bias:
        raise UserError(
            "tensor_parallel: sinks, relative positions, biases after the sum and norms over all heads "
            "are not cut over devices: use 1"
        )
    if config.groups % ways or config.heads % ways:
        raise UserError(
            f"tensor_parallel: {config.groups} key-value heads cannot be shared by {ways} devices"
        )
    plan: dict[str, ParallelStyle] = {
        f"attention.{name}": ColwiseParallel() for name in ("query", "key", "value")
    }
    plan |= {f"mlp.{name}": ColwiseParallel() for name in ("gate", "up") if getattr(mlp, name) is not None}
    plan |= {"attention.out": RowwiseParallel(), "mlp.down": RowwiseParallel()}
    parallelize_module(block, mesh, plan)
    fewer = {"heads": config.heads // ways}
    if hasattr(config, "kv_heads"):
        fewer["kv_heads"] = config.groups // ways
    attention.config = replace(config, **fewer)
