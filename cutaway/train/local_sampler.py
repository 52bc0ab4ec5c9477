"""Completions sampled on this machine, from the weights as they are now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from cutaway.errors import UserError
from cutaway.generate.batch.many_prompts import answer_all
from cutaway.generate.batch.request import Request
from cutaway.generate.engine import Engine
from cutaway.model.decoder import Decoder as DecoderModel
from cutaway.model.engine import PyTorchEngine
from cutaway.quantization import formats
from cutaway.runtime import prefetching
from cutaway.runtime.engine import RuntimeEngine
from cutaway.tokenizer import Tokenizer
from cutaway.train.examples import Note
from cutaway.train.rewards_config import RewardsConfig
from cutaway.train.sampler import Completion, Sampler
from cutaway.weights import adapters, load
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors


def local(run: RewardsConfig, checkpoint: Checkpoint, model: DecoderModel, note: Note) -> Sampler:
    """Samples from the model as it is now, on this machine."""
    engine_of = _engine(run, checkpoint, model, note)
    tokenizer: Tokenizer = checkpoint.tokenizer

    def sample(requests: Sequence[Request], step: int, /, *, current: bool = False) -> list[Completion]:
        del step, current  # this model's weights are always those of now
        training = model.training
        made = answer_all(engine_of(), tokenizer, requests, max_sequences=run.data.max_sequences)
        model.train(training)
        return [Completion.of(each) for each in made]

    return sample


def _engine(
    run: RewardsConfig, checkpoint: Checkpoint, model: DecoderModel, note: Note
) -> Callable[[], Engine]:
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
        """The base as its file stores it, and the adapter that came with it."""
        root, first = load.base_and_adapter(checkpoint)
        return RuntimeEngine(run.model, root.tensors, run.threads), first

    if run.data.sampler == "pytorch":
        return lambda: PyTorchEngine(model)
    try:
        prefetching.choose(runtime())
    except UserError as error:
        if run.data.sampler == "runtime":
            raise
        note(f"PyTorch samples, which is slower: {error}.")
        return lambda: PyTorchEngine(model)
    return runtime
