"""The engines of a model: which one answers, what each may be asked for, and why the other one answers.

    engines = Engines(checkpoint, Loading())
    engines.choice()                    # ("runtime", "it is the fastest here")
    engines.choice(edit)                # which engine makes these edits of activations
    engines.answering                   # the engine itself
    engines.edited(edit, ids)           # the engine that makes them, and the edits as it takes them

The runtime (`cutaway/runtime`) computes on the CPU with the weights as they are packed in their file. The
PyTorch model (`cutaway/model`) runs on every device, has gradients, and runs what the runtime does not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, TypeVar

import numpy as np

from cutaway import memory
from cutaway.errors import UserError
from cutaway.extras import installed, sentence
from cutaway.generate.engine import AllLogits
from cutaway.generate.session import EditHooks
from cutaway.hooks import listening
from cutaway.model.config import Decoder, Encoder, EncoderDecoder, Model
from cutaway.position import learned, rope
from cutaway.quantization import formats
from cutaway.runtime.cache_formats import Kind as KVCache
from cutaway.runtime.cache_formats import check as check_kv_cache
from cutaway.store.files import digest
from cutaway.version import __version__
from cutaway.weights import adapters, changes, eagle3
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors

if TYPE_CHECKING:
    from cutaway.inspect import edits
    from cutaway.inspect.instrumented_pytorch import InstrumentedPyTorch
    from cutaway.inspect.instrumented_runtime import InstrumentedRuntime
    from cutaway.inspect.runtime_edits import Donors
    from cutaway.inspect.subject import Subject, Vocabulary
    from cutaway.model.engine import PyTorchEngine
    from cutaway.model.target_engine import TargetEngine
    from cutaway.runtime.draft_heads import DraftHead
    from cutaway.runtime.encoder import EncoderEngine
    from cutaway.runtime.encoder_reference import ReferenceEncoder
    from cutaway.runtime.engine import RuntimeEngine
    from cutaway.runtime.reference import ReferenceEngine

EngineName = Literal["auto", "pytorch", "runtime"]
Limited = TypeVar("Limited", "PyTorchEngine", "RuntimeEngine", "ReferenceEngine", "TargetEngine")
ENGINES = ("auto", "pytorch", "runtime")
DTYPES = ("auto", "float32", "bfloat16", "float16", "packed")
ROOM = 1.1  # of the weights as floats: what a text takes beside them


class LoadOptions(TypedDict, total=False):
    """The fields of `Loading` as keyword arguments, for type checkers; each may be left out."""

    engine: EngineName
    device: str
    dtype: str
    context: int | None
    kv_cache: KVCache


@dataclass(frozen=True)
class Loading:
    """How a model was asked to be loaded (``cutaway.load`` says what each means). UserError for what is not
    known.
    """

    engine: EngineName = "auto"
    device: str = "cpu"
    dtype: str = "auto"
    context: int | None = None
    kv_cache: KVCache = "F16"

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise UserError(f"engine {self.engine!r} is not known: use one of {', '.join(ENGINES)}")
        if self.dtype not in DTYPES:
            raise UserError(f"dtype {self.dtype!r} is not known: use one of {', '.join(DTYPES)}")
        check_kv_cache(self.kv_cache)
        if self.context is not None and self.context < 1:
            raise UserError(f"context is {self.context}: give a number from 1 up")


class Edited(NamedTuple):
    """The engine that makes some edits of a text, and the edits as its ``edited_state`` takes them."""

    engine: Any  # AllLogits and Editable
    hooks: EditHooks

    def new_state(self) -> Any:
        """An empty state, whose text is edited."""
        return self.engine.edited_state(self.hooks)


class Engines:
    """The engines of one checkpoint, each made when it is first needed.

    ``exposed``: whether the caller was given the PyTorch model, and may have changed it; ``built``: whether
    it is there. ``base``: the engines of the model without its adapter, whose packed weights are shared.
    """

    def __init__(self, checkpoint: Checkpoint, asked: Loading, base: Engines | None = None) -> None:
        own: Any = checkpoint.config
        self.checkpoint, self.asked, self.base = checkpoint, asked, base
        self.context: int = own.context if asked.context is None else asked.context
        longer = self.context > own.context
        self.config: Any = _longer(checkpoint, self.context) if longer else own
        self.exposed = self.built = False
        self._draft_heads: dict[Path | None, Sequence[DraftHead]] = {}

    # ---- which engine answers ------------------------------------------------------------------------------

    def choice(self, edit: edits.Given = ()) -> tuple[Literal["pytorch", "runtime"], str]:
        """Which engine answers, with these edits, and why, in words that follow "because"."""
        asked = self.asked
        if asked.engine == "pytorch":
            return "pytorch", "it was asked for"
        if asked.device != "cpu" or asked.dtype not in ("auto", "float32"):
            return "pytorch", f"the weights were asked for as {asked.dtype} on {asked.device}"
        if self.exposed and asked.engine == "auto":
            return "pytorch", "lm.model was asked for and may have been changed"
        reason = self._unsupported_reason
        if reason is None and edit != () and asked.engine == "auto":
            from cutaway.inspect import runtime_edits

            reason = runtime_edits.unsupported_reason(self.decoder(), edit)
        return ("runtime", "it is the fastest here") if reason is None else ("pytorch", reason)

    @cached_property
    def _unsupported_reason(self) -> str | None:
        """Why the runtime does not run the model; None if it does."""
        if isinstance(self.config, EncoderDecoder):
            return "encoder-decoders have no kernels"
        if isinstance(self.config, Decoder) and self.checkpoint.classifier:
            return "its head is of labels"
        from cutaway import native
        from cutaway.runtime import encoder, supported

        absent = native.unavailable_reason()
        if absent is not None and self.asked.engine != "runtime" and installed("torch"):
            return absent[0].lower() + absent[1:].rstrip(".")
        if isinstance(self.config, Encoder):
            return encoder.unsupported_reason(self.config, self.checkpoint.tensors)
        return supported.unsupported_reason(self.decoder(), self.base_and_adapter[0])

    def check_runtime(self, source: object) -> None:
        """UserError where the runtime, or a KV cache of its, was asked for, and does not run the model."""
        asked = self.asked
        if asked.engine != "runtime" and asked.kv_cache == "F16":
            return
        name, why = self.choice()
        if name != "runtime" and asked.engine == "runtime":
            raise UserError(f"The runtime does not run {source}, because {why}")
        if name != "runtime":
            cache = f"A KV cache of {asked.kv_cache} is the runtime's"
            raise UserError(f"{cache}, and it does not run {source}, because {why}")

    @property
    def answering(self) -> AllLogits:
        """The engine that reads ids and answers with logits."""
        self.decoder()
        return self.runtime_unwatched if self.choice()[0] == "runtime" else self.pytorch

    def edited(self, edit: edits.Given, ids: Sequence[int], donors: Donors | None = None) -> Edited:
        """The engine that makes edits of a prompt with these ids; ``donors`` has what they take of others.

        Raises UserError for edits that do not fit the model, and for those that the runtime does not make of
        a model loaded for it.
        """
        self.decoder()
        if self.choice(edit)[0] == "runtime":
            from cutaway.inspect import runtime_edits

            engine = self.runtime_unwatched
            return Edited(engine, runtime_edits.prepare(engine, edit, len(ids), donors))
        from cutaway.inspect import pytorch_edits

        return Edited(self.pytorch, pytorch_edits.prepare(self.pytorch_model, edit, len(ids)).at)

    def decoder(self) -> Decoder:
        """The config, for what only a decoder does; UserError for other models."""
        source = self.checkpoint.source
        if isinstance(self.config, EncoderDecoder):
            raise UserError(
                f"{source} is an encoder-decoder: `generate` reads a source and writes its "
                "target; everything else is for decoders"
            )
        if isinstance(self.config, Encoder):
            raise UserError(
                f"{source} is an encoder: it turns texts into vectors (`embed`) and scores no next token"
            )
        if self.checkpoint.classifier:
            raise UserError(
                f"{source} is a {self.checkpoint.classifier}: it gives texts labels "
                "(`classify`), and has no head that scores a next token"
            )
        return self.config

    # ---- the runtime ---------------------------------------------------------------------------------------

    @property
    def runtime_unwatched(self) -> RuntimeEngine | ReferenceEngine:
        """The runtime; UserError within a trace of the PyTorch model, which would not see it."""
        self._check_unwatched("give `edit=`, use `lm.trace`, or load")
        return self.runtime

    def _check_unwatched(self, instead: str) -> None:
        """UserError within a trace of the PyTorch model; ``instead``: what to do."""
        if self.built and listening(self.pytorch_model):
            raise UserError(
                "the runtime answers, which a trace of lm.model does not see: "
                f'{instead} with engine="pytorch"'
            )

    @property
    def encoder(self) -> EncoderEngine | ReferenceEncoder:
        """The runtime of an encoder; UserError within a trace of the PyTorch model, as above."""
        self._check_unwatched("load")
        return self._encoder

    @cached_property
    def _encoder(self) -> EncoderEngine | ReferenceEncoder:
        from cutaway import native

        if native.available():
            from cutaway.runtime.encoder import EncoderEngine

            return EncoderEngine(self.config, self.checkpoint.tensors)
        from cutaway.runtime.encoder_reference import ReferenceEncoder

        return ReferenceEncoder(self.config, self.checkpoint.tensors)

    @cached_property
    def runtime(self) -> RuntimeEngine | ReferenceEngine:
        """The native engine, or the numpy reference where the native core is not there."""
        from cutaway import native

        (tensors, adapter), base = self.base_and_adapter, self.base
        shared = base is not None and base.base_and_adapter[0] is tensors and base.config == self.config
        if adapter is not None and base is not None and shared:
            return base.runtime.adapted(adapter)
        if native.available():
            from cutaway.runtime import prefetching
            from cutaway.runtime.engine import RuntimeEngine

            engine = self._limited(RuntimeEngine(self.decoder(), tensors, kv_cache=self.asked.kv_cache))
            prefetching.choose(engine)
        else:
            from cutaway.runtime.reference import ReferenceEngine

            engine = self._limited(ReferenceEngine(self.decoder(), tensors, self.asked.kv_cache))
        return engine if adapter is None else engine.adapted(adapter)

    def check_heads_draft(self) -> None:
        """UserError where the PyTorch model answers: heads draft for the runtime."""
        from cutaway import native

        name, why = self.choice()
        if name == "runtime" and native.available():
            return
        why = f"the PyTorch model answers here, because {why}" if name != "runtime" else "the core is absent"
        others = "draft by lookup or a smaller model"
        if self.asked.engine == "pytorch":
            others = f"leave out engine pytorch (--engine pytorch), or {others}"
        raise UserError(f"A head drafts for the runtime, and {why}: {others}")

    def draft_heads(self, folder: Path | None) -> Sequence[DraftHead]:
        """The heads that draft for the runtime: an EAGLE-3 head, or (None) the model's own. UserError where
        there is none, where it does not fit the model, and where the PyTorch model answers.
        """
        self.check_heads_draft()
        if folder in self._draft_heads:
            return self._draft_heads[folder]
        from cutaway.runtime.draft_heads import EagleHead, mtp_heads

        base: Any = self.runtime
        config, tensors, source = self.decoder(), self.base_and_adapter[0], self.checkpoint.source
        try:
            if folder is None:
                heads = mtp_heads(base, config, tensors)
            else:
                heads = [EagleHead(base, config, tensors, eagle3.in_eight_bits(eagle3.read(folder)))]
        except UserError as error:
            raise UserError(f"{source} cannot draft by a head: {error}") from None
        self._draft_heads[folder] = heads
        return heads

    @cached_property
    def pages_digest(self) -> bytes:
        """A hash of all that the runtime's pages of KV cache depend on beside their texts: the files of the
        weights, the adapter, the config, the KV cache's format, and the core with its instruction set.
        """
        import hashlib

        from cutaway.native import library

        tensors, core, files = self.checkpoint.tensors, library.file(), self.checkpoint.files
        adapter = tensors.adapter if isinstance(tensors, adapters.AdaptedTensors) else {}
        facts = [__version__, library.isa(), self.asked.kv_cache, repr(self.config), changes.digest(adapter)]
        facts += map(digest, files if core is None else [core, *files])
        return hashlib.sha256(repr(facts).encode()).digest()

    @cached_property
    def base_and_adapter(self) -> tuple[Tensors, adapters.Adapter | None]:
        """The weights that the runtime packs, and the adapter that it applies beside them."""
        from cutaway.runtime import adapter

        tensors = self.checkpoint.tensors
        if not isinstance(tensors, adapters.AdaptedTensors):
            return tensors, None
        reason = adapter.unsupported_reason(self.decoder(), tensors.base, tensors.adapter)
        return (tensors, None) if reason else (tensors.base, tensors.adapter)

    # ---- the PyTorch model ---------------------------------------------------------------------------------

    @cached_property
    def pytorch(self) -> PyTorchEngine:
        """The PyTorch model as an engine."""
        self._need_pytorch()
        from cutaway.model.engine import PyTorchEngine

        self.decoder()
        return self._limited(PyTorchEngine(self.pytorch_model))

    @cached_property
    def pytorch_model(self) -> Any:
        """A ``Decoder``, an ``Encoder`` or a ``TransformerSeq2Seq``, its weights unpacked by now."""
        self._need_pytorch()
        from cutaway.weights import build

        kinds = {Encoder: build.encoder, EncoderDecoder: build.encoder_decoder}
        make = kinds.get(type(self.config), build.decoder)
        model = make(replace(self.checkpoint, config=self.config), self._dtype(), self.asked.device)
        self.built = True
        return model

    def _need_pytorch(self) -> None:
        """UserError that says what to install, and why this model needs it."""
        if installed("torch"):
            return
        why = "" if isinstance(self.config, Encoder) or self.choice()[0] == "runtime" else self.choice()[1]
        answers = f", which answers because {why}," if why else ""
        raise UserError(sentence(f"{self.checkpoint.source}: the PyTorch model{answers}", "torch"))

    def target(self, source: Sequence[int]) -> TargetEngine:
        """An encoder-decoder that has read a source, as the engine that writes its target."""
        self._need_pytorch()
        from cutaway.model.target_engine import TargetEngine

        return self._limited(TargetEngine(self.pytorch_model, source))

    def _dtype(self) -> str:
        """The type that weights are unpacked to; UserError where memory has no room for that.

        Another device has its own memory, which speaks for itself.
        """
        asked, dtype = self.asked, self.asked.dtype
        if dtype == "packed" or asked.device != "cpu":
            return "float32" if dtype == "auto" else dtype
        weights = sum(math.prod(shape) for shape in self.config.weights().values())
        wanted, free = weights * (4 if dtype in ("auto", "float32") else 2), memory.available()
        if wanted * ROOM <= free:
            return "float32" if dtype == "auto" else dtype
        much = f"{self.checkpoint.source}: its weights take {wanted / 1e9:.1f} GB as floats of "
        much += f"{8 * wanted // weights} bits, and {free / 1e9:.1f} GB of memory are free"
        if dtype != "auto":
            raise UserError(f'{much}: load it with dtype="packed", or use engine="runtime"')
        warnings.warn(f"{much}: each stays packed and is unpacked for each use, slower", stacklevel=5)
        return "packed"

    def _limited(self, engine: Limited) -> Limited:
        """The engine, which holds no more tokens than the model was asked to."""
        engine.max_context = self.context
        return engine

    # ---- what is inside ------------------------------------------------------------------------------------

    def subject(
        self, tokenizer: Vocabulary, edit: edits.Given, encode: Callable[[Any], list[int]]
    ) -> Subject:
        """What studies ask: the engine that answers, and the PyTorch model for what that does not show.

        That has the runtime's rounding where the runtime was asked for.
        """
        from cutaway.inspect.subject import Subject

        self.decoder()
        name, reason = self.choice()
        if name == "runtime" and self.built and listening(self.pytorch_model):
            name, reason = "pytorch", "a trace of lm.model is open, which the runtime is not heard by"
        if name == "runtime":
            own = self.instrumented_runtime
            return Subject(own, tokenizer, edit, encode, reason, lambda: self.instrumented_pytorch)
        return Subject(self.instrumented_pytorch, tokenizer, edit, encode, reason)

    @cached_property
    def instrumented_runtime(self) -> InstrumentedRuntime:
        """The runtime, whose inside is shown and edited."""
        from cutaway.inspect.instrumented_runtime import InstrumentedRuntime

        return InstrumentedRuntime(self.runtime, self.checkpoint.tensors)

    @cached_property
    def instrumented_pytorch(self) -> InstrumentedPyTorch:
        """The PyTorch model, whose inside is shown and edited."""
        self._need_pytorch()
        from cutaway.inspect import activation_quant
        from cutaway.inspect.instrumented_pytorch import InstrumentedPyTorch

        rounds = self.asked.engine == "runtime"
        rounding = activation_quant.edits(self.decoder(), self.base_and_adapter[0]) if rounds else {}
        return InstrumentedPyTorch(self.pytorch_model, rounding)

    # ---- what there is by now ------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of the weights: packed where the runtime reads them, and the PyTorch model's once built."""
        tensors, count = self.checkpoint.tensors, 0
        if self.choice()[0] == "runtime":
            count += sum(tensors[name].data.nbytes for name in self.config.weights())
        if self.built:
            count += sum(one.numel() * one.element_size() for one in self.pytorch_model.parameters())
        return count

    def first_layers(self, count: int) -> Checkpoint:
        """The checkpoint with its first layers alone, then its last norm and head."""
        config = self.decoder()
        if not 1 <= count <= len(config.blocks):
            raise UserError(f"the model has {len(config.blocks)} layers, not {count}")
        config = replace(config, blocks=config.blocks[:count])
        tensors = Tensors({name: self.checkpoint.tensors.later(name) for name in config.weights()})
        return replace(self.checkpoint, config=config, tensors=tensors)

    def current_checkpoint(self) -> Checkpoint:
        """The checkpoint, with those weights that the caller changed in the PyTorch model."""
        if not self.exposed:
            return self.checkpoint
        tensors = self.checkpoint.tensors
        changed = {
            name: formats.pack(now, "F32")
            for name, weight in self.pytorch_model.named_parameters()
            if not self._is_read(now := weight.detach().cpu().float().numpy(), formats.unpack(tensors[name]))
        }
        kept = {name: changed.get(name) or tensors.later(name) for name in tensors}
        return replace(self.checkpoint, tensors=Tensors(kept))

    def _is_read(self, now: np.ndarray, read: np.ndarray) -> bool:
        """Whether a weight is still what was read, rounded as the model was loaded."""
        if self.asked.dtype in ("auto", "float32", "packed"):
            return np.array_equal(now, read)
        import torch

        rounded = torch.from_numpy(read).to(getattr(torch, self.asked.dtype)).float().numpy()
        return np.array_equal(now, rounded)


def _longer(checkpoint: Checkpoint, context: int) -> Model:
    """The config of a model that reads further than it was made for, as its positions then go on.

    Raises UserError for one that has a vector for each position, and none for later ones.
    """
    of: Any = checkpoint.config
    source, most = checkpoint.source, of.context
    parts = [of.encoder, of.decoder] if isinstance(of, EncoderDecoder) else [of]
    if any(isinstance(part.position, learned.Config) for part in parts):
        raise UserError(
            f"context is {context}: {source} has learned a vector for each of {most:,} positions, "
            "and none for later ones"
        )
    note = (
        f"{source} was made for {most:,} tokens, and reads {context:,} here: its positions go on, "
        "and what it makes of them may be poor"
    )
    if any(position.grows for part in parts for position in _rotations(part)):
        note += "; its rotary positions change as the text grows, so what it writes past "
        note += "their length may differ from what transformers' generate writes"
    warnings.warn(note, stacklevel=5)  # in the caller of `cutaway.load`
    if isinstance(of, EncoderDecoder):
        return replace(of, decoder=replace(of.decoder, context=context))
    return replace(of, context=context)


def _rotations(of: Any) -> list[rope.Config]:
    """The rotary positions of each layer that has them."""
    found = [getattr(block.attention, "position", None) for block in of.blocks]
    return [position for position in found if isinstance(position, rope.Config)]
