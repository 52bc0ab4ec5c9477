"""The same weights in an independent engine: where, if anywhere, do the two disagree?

One text is compared layer by layer: the embeddings, the residual stream after each block, the logits, and the
tokens that follow greedily. A difference is relative to the norm of the other engine's vector at each
position, since the residual streams of real models hold a few huge numbers that would hide everything else.
Rounding alone stays near 1e-6; the first layer past ``TOLERANCE`` is the one at fault, and all after it
inherit it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cutaway.errors import OperationalError, UserError
from cutaway.hooks import tracing
from cutaway.model.decoder import Decoder
from cutaway.model.engine import DefinitionEngine
from cutaway.store.files import Progress, silent

TOLERANCE = 1e-3
ROUNDED = 0.1
TEXT = (
    "The quick brown fox jumps over the lazy dog, and 12 + 30 = 42. Le vin est bon. "
    "def f(x):\n    return x ** 2\n"
    "In the beginning there was a question, and the one who asked it wanted to see the machine at work."
)


@dataclass(frozen=True)
class Difference:
    """``largest``: of any number; ``relative``: of any position, |ours - theirs| / |theirs|."""

    name: str
    largest: float
    relative: float


@dataclass(frozen=True)
class Verdict:
    """``layers`` in the order of the forward pass, logits last; of llama.cpp the last position's alone.

    ``differs_from``: the first layer past the tolerance, or None; ``token``: how many greedy tokens were
    equal before the first that differs, or None, and ``margin`` by how much of a logit we preferred ours
    there; ``ours`` and ``theirs`` are the greedy ids.
    """

    engine: str
    layers: tuple[Difference, ...]
    differs_from: str | None
    token: int | None
    ours: tuple[int, ...]
    theirs: tuple[int, ...]
    margin: float | None = None

    @property
    def close_call(self) -> bool:
        """Whether the differing token is a near tie: within twice the logits' largest difference."""
        return self.margin is not None and self.margin <= 2 * self.layers[-1].largest

    @property
    def agrees(self) -> bool:
        return self.differs_from is None and (self.token is None or self.close_call)


def engines(source: Path) -> list[str]:
    """The independent engines that are installed here and can read this source."""
    found = []
    if find_spec("transformers") and (source.is_dir() or (find_spec("gguf") and find_spec("accelerate"))):
        found.append("transformers")
    if find_spec("xllamacpp") and source.suffix == ".gguf":
        found.append("llama.cpp")
    return found


def against_transformers(
    engine: DefinitionEngine,
    source: Path,
    ids: Sequence[int],
    ours: Sequence[int],
    progress: Progress = silent,
) -> Verdict:
    """Our forward pass and greedy continuation against transformers', which reads ``source`` itself."""
    progress("loading it with transformers", 0, None)
    judge = _transformers(source)
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
    layers = tuple(_difference(name, mine[name], other) for name, other in zip(mine, theirs, strict=True))
    name = f"transformers {version('transformers')}"
    return _verdict(name, engine, layers, ids, ours, followed[0, len(ids) :].tolist(), TOLERANCE)


class _Counted:
    """Counts what transformers generates; it is given the prompt first."""

    def __init__(self, progress: Progress, prompt: int, total: int) -> None:
        self.progress, self.done, self.total = progress, -prompt, total

    def put(self, ids: Tensor) -> None:
        self.done += ids.numel()
        self.progress("generating with transformers", self.done, self.total)

    def end(self) -> None:
        pass


def against_llama_cpp(
    engine: DefinitionEngine,
    source: Path,
    ids: Sequence[int],
    ours: Sequence[int],
    progress: Progress = silent,
) -> Verdict:
    """Our last logits and greedy continuation against llama.cpp's.

    llama.cpp rounds activations to 8 bits where weights are quantized, so its logits are off by a few
    hundredths: ``ROUNDED`` is the tolerance."""
    progress("generating with llama.cpp", 0, None)
    scores, followed = _llama_cpp(source, ids, len(ours), engine.vocab)
    mine, theirs = torch.from_numpy(engine.logits(ids)[-1]).double(), torch.from_numpy(scores)
    # Only differences between logits mean something: both are taken from their mean.
    layer = _difference("logits", (mine - mine.mean())[None], (theirs - theirs.mean())[None])
    return _verdict(
        f"llama.cpp (xllamacpp {version('xllamacpp')})", engine, (layer,), ids, ours, followed, ROUNDED
    )


def _verdict(
    name: str,
    engine: DefinitionEngine,
    layers: tuple[Difference, ...],
    ids: Sequence[int],
    ours: Sequence[int],
    theirs: Sequence[int],
    tolerance: float,
) -> Verdict:
    differs = next((layer.name for layer in layers if not layer.relative <= tolerance), None)
    token = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    margin = None
    if token is not None:
        logits = engine.logits([*ids, *ours[:token]])[-1]
        margin = float(logits[ours[token]] - logits[theirs[token]])
    return Verdict(name, layers, differs, token, tuple(ours), tuple(theirs), margin)


def _difference(name: str, ours: Tensor, theirs: Tensor) -> Difference:
    if ours.shape != theirs.shape:
        raise OperationalError(f"{name} is {list(ours.shape)} here and {list(theirs.shape)} there")
    away = (ours.double() - theirs.double()).abs()
    relative = away.norm(dim=-1) / theirs.double().norm(dim=-1).clamp(min=1e-30)
    return Difference(name, float(away.max()), float(relative.max()))


@torch.inference_mode()
def _our_residuals(model: Decoder, ids: Tensor) -> dict[str, Tensor]:
    """[t d] by name: the embeddings, the residual stream after each block, and the logits [t v]."""
    pos = torch.arange(ids.shape[1])[None]
    with tracing(model, "embed", "blocks.*.out", "logits") as seen:
        model(ids, pos)
    names = ("embed", *(f"blocks.{n}.out" for n in range(len(model.blocks))), "logits")
    return {name: seen[name][0] for name in names}


def _transformers(source: Path) -> Any:
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
        with redirect_stderr(StringIO()):  # its progress bar
            return transformers.AutoModelForCausalLM.from_pretrained(**where).eval()
    except (ValueError, OSError, KeyError, NotImplementedError) as error:
        raise UserError(f"{source}: transformers cannot read it ({str(error).splitlines()[0]})") from error


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


def _llama_cpp(source: Path, ids: Sequence[int], count: int, vocab: int) -> tuple[np.ndarray, list[int]]:
    """Log-probabilities [v] of what follows the ids, and the ids that follow greedily."""
    xllamacpp: Any = import_module("xllamacpp")  # compiled, and without types
    params = xllamacpp.CommonParams()
    params.model.path = str(source)
    params.n_ctx, params.n_parallel, params.n_gpu_layers = len(ids) + count + 8, 1, 0
    params.warmup, params.cache_prompt, params.verbosity = False, False, -1
    complete: Callable[[dict], Any] = xllamacpp.Server(params).handle_completions
    asked = {"prompt": list(ids), "temperature": 1.0, "cache_prompt": False}
    first = complete(asked | {"n_predict": 1, "n_probs": vocab})["choices"][0]["logprobs"]["content"][0]
    scores = np.full(vocab, -np.inf)
    for each in first["top_logprobs"]:
        scores[each["id"]] = each["logprob"]
    greedy = asked | {"n_predict": count, "n_probs": 1, "temperature": 0.0, "ignore_eos": True}
    followed = complete(greedy)["choices"][0]["logprobs"]["content"]
    return scores, [each["id"] for each in followed]
