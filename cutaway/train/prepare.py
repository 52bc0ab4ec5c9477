"""A run's model before its first step: new weights, activation checkpointing, torch.compile."""

from __future__ import annotations

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint as recomputed

from cutaway.errors import UserError
from cutaway.layers.mlp import MLP
from cutaway.model.config import EncoderDecoder
from cutaway.model.decoder import Decoder, initialise
from cutaway.model.seq2seq import TransformerSeq2Seq
from cutaway.train import checkpoint, compiling, device
from cutaway.train.config import TrainingConfig
from cutaway.train.parallel import Parallel
from cutaway.train.trainable import Trainable

EAGER_UTILIZATION = 0.4  # of the peak, without torch.compile


def new_model(run: TrainingConfig) -> Decoder | TransformerSeq2Seq:
    """A run's model before its first step."""
    if isinstance(run.model, EncoderDecoder):  # an arm of a comparison, which starts as a decoder does
        both = TransformerSeq2Seq(run.model)
        both.encoder.apply(initialise)
        return both
    model = Decoder(run.model)
    run.objective.attach(model)
    return model


def checkpoint_activations(model: Decoder) -> None:
    """Blocks that keep their input alone, and recompute the rest in the backward pass."""
    for block in model.blocks:
        block.forward = partial(recomputed, block.forward, use_reentrant=False)
        for module in block.modules():
            if isinstance(module, MLP):
                module.recomputes = False  # all of it is made again


def compiled(
    trainable: Trainable, run: TrainingConfig, parallel: Parallel, on: torch.device, note: checkpoint.Note
) -> bool:
    """Whether the model is compiled, which "auto" decides by what that saves and how long it takes."""
    found = device.compiler()
    if run.compile == "never":
        return False
    if found is None:
        if run.compile == "always":
            raise UserError(
                "config.compile: always, but there is no C++ compiler: install g++, or use --compile never"
            )
        note("There is no C++ compiler, so torch.compile is not used: the same numbers, slower.")
        return False
    takes = compiling.seconds(len(run.model.blocks))
    if run.compile == "auto":
        frozen = any(not parameter.requires_grad for parameter in trainable.parameters())
        saves = compiling.saves(eager_seconds(run, run.steps, parallel, on), on.type, frozen)
        if saves <= takes:
            note(
                f"torch.compile would take about {takes:.0f} s here and save {saves:.0f} s, so the model is "
                "not compiled (--compile always compiles it)."
            )
            return False
    note(f"torch.compile compiles the model during the first step, which takes about {takes:.0f} s.")
    if parallel.size > 1 or parallel.casts:
        # Gathering a block's weights happens between blocks and cannot be compiled.
        for block in trainable.decoder.blocks:
            block.compile()
        return True
    trainable.routed = torch.compile(trainable.decoder.routed, dynamic=False)
    return True


def eager_seconds(run: TrainingConfig, steps: int, parallel: Parallel, on: torch.device) -> float:
    """About how long so many steps take, by the peak of this device, without torch.compile."""
    flops = steps * run.batch_size * run.width * run.flops_per_token
    return flops / parallel.size / (EAGER_UTILIZATION * device.peak(on, run.precision))
