"""The PyTorch model beside transformers', layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cache
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cutaway.errors import OperationalError, UserError
from cutaway.hooks import tracing
from cutaway.inspect.verify import TOLERANCE, Verdict, difference, verdict
from cutaway.model.decoder import Decoder
from cutaway.model.engine import PyTorchEngine
from cutaway.store.files import Progress, silent


def against(
    engine: PyTorchEngine,
    source: Path,
    ids: Sequence[int],
    ours: Sequence[int],
    progress: Progress = silent,
) -> Verdict:
    """Our forward pass and greedy continuation against transformers', which reads ``source`` itself."""
    progress("loading it with transformers", 0, None)
    judge = _judge(source)
    counted = _Counted(progress, len(ids), len(ours))
    row = torch.tensor([list(ids)])
    with torch.inference_mode():
        theirs = _their_residuals(judge, row)
        followed = judge.generate(
            row,
            max_new_tokens=len(ours),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            streamer=counted,
        )
    mine = _our_residuals(engine.model, row)
    if len(mine) != len(theirs):
        raise OperationalError(f"transformers has {len(theirs)} layers, Cutaway {len(mine)}")
    layers = tuple(
        difference(name, _wide(mine[name]), _wide(other)) for name, other in zip(mine, theirs, strict=True)
    )
    name = f"transformers {version('transformers')}"
    return verdict(name, engine, layers, ids, ours, followed[0, len(ids) :].tolist(), TOLERANCE)


class _Counted:
    """Counts what transformers generates; it is given the prompt first."""

    def __init__(self, progress: Progress, prompt: int, total: int) -> None:
        self.progress, self.done, self.total = progress, -prompt, total

    def put(self, ids: Tensor) -> None:
        self.done += ids.numel()
        self.progress("generating with transformers", self.done, self.total)

    def end(self) -> None:
        pass


@torch.inference_mode()
def _our_residuals(model: Decoder, ids: Tensor) -> dict[str, Tensor]:
    """[t d] by name: the embeddings, the residual stream after each block, and the logits [t v]."""
    pos = torch.arange(ids.shape[1])[None]
    with tracing(model, "embed", "blocks.*.out", "logits") as seen:
        model(ids, pos)
    names = ("embed", *(f"blocks.{n}.out" for n in range(len(model.blocks))), "logits")
    return {name: seen[name][0] for name in names}


def _judge(source: Path) -> Any:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": source,
        "local_files_only": True,
        "dtype": torch.float32,
    }
    if source.is_file():
        where |= {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    try:
        with redirect_stderr(StringIO()), read_once():  # its progress bar
            return transformers.AutoModelForCausalLM.from_pretrained(**where).eval()
    except (ValueError, OSError, KeyError, NotImplementedError) as error:
        raise UserError(f"{source}: transformers cannot read it ({str(error).splitlines()[0]})") from error


@contextmanager
def read_once() -> Iterator[None]:
    """Have transformers read a GGUF file in half of its time. It reads the file twice, number by number, and
    makes the table of tensor names again for each module of a model.
    """
    import gguf

    class Reader(gguf.GGUFReader):
        """Reads from a plain array: slicing a memory map takes several times as long."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value.view(np.ndarray) if name == "data" else value)

    reader, made = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = cache(Reader), cache(made)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, made


def _their_residuals(judge: Any, ids: Tensor) -> list[Tensor]:
    """The output of each block of a transformers model: of its longest list of modules."""
    lists = (module for module in judge.base_model.children() if isinstance(module, nn.ModuleList))
    layers = list(max(lists, key=len, default=()))
    seen: list[Tensor] = []

    def entered(_module: Any, args: tuple, kwargs: dict) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"])[0])

    def left(_module: Any, _args: tuple, output: Any) -> None:
        seen.append((output if isinstance(output, Tensor) else output[0])[0])

    if not layers:
        raise OperationalError("transformers does not say which of this model's modules are its blocks")
    hooks = [layers[0].register_forward_pre_hook(entered, with_kwargs=True)]
    hooks += [layer.register_forward_hook(left) for layer in layers]
    try:
        logits = judge(ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    return [*seen, logits[0]]


def _wide(rows: Tensor) -> np.ndarray:
    return rows.double().numpy()
