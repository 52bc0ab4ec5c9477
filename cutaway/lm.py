"""The object users hold: one language model that generates, chats, scores, and can be looked into.

    lm = cutaway.load("smollm2")
    lm.generate("The capital of France is", max_tokens=8).text

What a call needs is imported and built when it is first asked for: the tokenizer alone costs no torch.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, Unpack, cast, overload

import numpy as np

from cutaway import memory, store
from cutaway.errors import UserError
from cutaway.generate.batch.request import Constraint, Generation, Piece, finish
from cutaway.generate.batch.sequence import check_ids
from cutaway.generate.decode import generate
from cutaway.generate.engine import AllLogits
from cutaway.generate.sampling_params import SamplingOptions, SamplingParams, sampling_params
from cutaway.generate.session import EditHooks, Session
from cutaway.generate.speculative import DraftModel, PromptLookup, Proposer, Speculation
from cutaway.generate.target import TargetRules
from cutaway.hooks import listening
from cutaway.model.config import Decoder, Encoder, EncoderDecoder
from cutaway.position import learned, rope
from cutaway.quantization import formats
from cutaway.runtime.cache import Kind as KVCache
from cutaway.runtime.cache import check as check_kv_cache
from cutaway.tokenizer import Tokenizer
from cutaway.weights import adapters
from cutaway.weights import classifier as labels
from cutaway.weights import load as reader
from cutaway.weights import pooling as advice
from cutaway.weights.pair_inputs import PairInputs
from cutaway.weights.rules import Tensors

if TYPE_CHECKING:
    from cutaway.agent import Agent, Limits
    from cutaway.agent.tools import Tool
    from cutaway.embedding.projection import Method
    from cutaway.embedding.vectors import Vectors
    from cutaway.generate import thinking
    from cutaway.generate.tool_calls.parser import Call
    from cutaway.generate.tool_calls.tool_format import ToolFormat
    from cutaway.inspect import edits, pytorch_edits
    from cutaway.inspect.activations import Activations, Collecting
    from cutaway.inspect.instrumented_pytorch import InstrumentedPyTorch
    from cutaway.inspect.instrumented_runtime import InstrumentedRuntime
    from cutaway.inspect.show import Map
    from cutaway.inspect.trace import Subject, Trace, Traces
    from cutaway.model.engine import DefinitionEngine
    from cutaway.model.pooling import Pooling
    from cutaway.runtime.engine import RuntimeEngine
    from cutaway.runtime.reference import ReferenceEngine
    from cutaway.tokenizer.chat import Rendered
    from cutaway.weights.classifier import Classifier
    from cutaway.weights.save import Saved

Prompt = str | Sequence[int]
Message = Mapping[str, Any]
Steering = Literal["refuse", "flag"]
EngineName = Literal["auto", "definition", "runtime"]
ENGINES = ("auto", "definition", "runtime")
Limited = TypeVar("Limited", "DefinitionEngine", "RuntimeEngine", "ReferenceEngine")
Speculate = Union[Literal["lookup"], "LanguageModel", None]
POOLINGS = ("mean", "cls", "last")
CHECK = "Check your answer. If it is wrong, correct it. End with the answer alone on the last line."
ROOM = 1.1  # of the weights as floats: what a text takes beside them
DTYPES = ("auto", "float32", "bfloat16", "float16", "packed")


class GenerationOptions(SamplingOptions, total=False):
    """What `generate` and `stream` take beside the prompt; each may be left out."""

    session: Session | None
    speculate: Speculate
    edit: edits.Given | None
    constraint: Constraint | None


class ChatOptions(GenerationOptions, total=False):
    """What `chat` and `chat_stream` take beside the messages; each may be left out."""

    tools: Sequence[Mapping[str, Any]] | None
    steering: Steering


def load(
    source: str | Path,
    *,
    engine: EngineName = "auto",
    device: str = "cpu",
    dtype: str = "auto",
    context: int | None = None,
    adapter: str | Path | None = None,
    kv_cache: KVCache = "F16",
    strict: bool = False,
) -> LanguageModel:
    """A model by its name, or from a .gguf file, a Hugging Face folder, or a folder that Cutaway wrote.

    A name that is not cached yet is pulled. ``engine``: "definition" is PyTorch, "runtime" the native CPU
    engine on packed weights, "auto" the fastest that runs the model as it is asked for (``lm.engine_choice``
    says which and why). ``dtype``: what the weights are unpacked to; "packed" keeps them as small as they are
    in the file and unpacks each for each use: the logits of "float32", slower; "auto" is float32 where memory
    has room for it, else packed, with a warning.
    ``context``: hold at most so many tokens; more than the model was made for are read on, with a warning, as
    far as its positions have no table. ``adapter``: a PEFT folder, as for
    ``with_adapter``. ``kv_cache``: what the runtime keeps keys and values as; Q8_0 takes half of F16's
    memory, Q4_0 a quarter. ``strict``: refuse a config.json with keys that its model does not read, of which
    a warning tells otherwise. Raises UserError for what cannot be read as asked."""
    if engine not in ENGINES:
        raise UserError(f"engine {engine!r} is not known: use one of {', '.join(ENGINES)}")
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not known: use one of {', '.join(DTYPES)}")
    checkpoint = reader.read(store.resolve(source, pull=True), strict)
    lm = LanguageModel(
        checkpoint, engine=engine, device=device, dtype=dtype, context=context, kv_cache=kv_cache
    )
    if adapter is not None:
        lm = lm.with_adapter(adapter)
    if engine == "runtime" and lm.engine_choice[0] != "runtime":
        raise UserError(f"The runtime does not run {source}, because {lm.engine_choice[1]}")
    if kv_cache != "F16" and lm.engine_choice[0] != "runtime":
        raise UserError(
            f"A KV cache of {kv_cache} is the runtime's, and it does not run {source}, because "
            f"{lm.engine_choice[1]}"
        )
    return lm


def _rotations(of: Any) -> list[rope.Config]:
    """The rotary positions of each layer that has them."""
    found = [getattr(block.attention, "position", None) for block in of.blocks]
    return [position for position in found if isinstance(position, rope.Config)]


class LanguageModel:
    """A checkpoint with everything that can be done with it. Made by ``load``.

    ``config`` is what the model is, ``tokenizer`` its tokenizer, ``model`` the definition: a torch module
    that can be trained, watched and edited. With ``engine="auto"`` ``generate``, ``chat`` and ``logits`` see
    what is done to it: after ``model`` is accessed, the definition answers. With ``engine="runtime"`` the
    runtime always does, and calls inside a trace of ``model``, which it would not see, are refused."""

    def __init__(
        self,
        checkpoint: reader.Checkpoint,
        *,
        engine: EngineName = "auto",
        device: str = "cpu",
        dtype: str = "auto",
        context: int | None = None,
        kv_cache: KVCache = "F16",
    ) -> None:
        check_kv_cache(kv_cache)
        self.checkpoint = checkpoint
        self.kv_cache: KVCache = kv_cache
        self.engine_asked: EngineName = engine
        self.config = checkpoint.config
        self.context = self.config.context if context is None else context
        if self.context < 1:
            raise UserError(f"context is {context}: give a number from 1 up")
        if self.context > self.config.context:
            self.config = self._longer()
        self.device = device
        self.dtype = dtype
        self._base: LanguageModel | None = None  # the model that this one is with an adapter
        self._edits: edits.Given = ()  # of every call

    def _longer(self) -> Any:
        """The config of a model that reads further than it was made for, as its positions then go on.

        Raises UserError for one that has a vector for each position, and none for later ones.
        """
        of: Any = self.config
        source, most = self.checkpoint.source, of.context
        parts = [of.encoder, of.decoder] if isinstance(of, EncoderDecoder) else [of]
        if any(isinstance(part.position, learned.Config) for part in parts):
            raise UserError(
                f"context is {self.context}: {source} has learned a vector for each of {most:,} positions, "
                "and none for later ones"
            )
        note = (
            f"{source} was made for {most:,} tokens, and reads {self.context:,} here: its positions go on, "
            "and what it makes of them may be poor"
        )
        if any(position.grows for part in parts for position in _rotations(part)):
            note += "; its rotary positions change as the text grows, so what it writes past "
            note += "their length may differ from what transformers' generate writes"
        warnings.warn(note, stacklevel=4)
        if isinstance(of, EncoderDecoder):
            return replace(of, decoder=replace(of.decoder, context=self.context))
        return replace(of, context=self.context)

    @property
    def _read_as(self) -> reader.Checkpoint:
        """The checkpoint with the config that is read by, whose context may be longer than its own."""
        return replace(self.checkpoint, config=self.config)

    def with_adapter(self, folder: str | Path) -> LanguageModel:
        """This model with the adapter of a PEFT folder, such as a run of `cutaway finetune`, and its context.

        The runtime applies it beside the packed weights, which both models share; the definition, and the
        runtime where it cannot (``runtime/adapter.py``), have it in float32 weights of their own. Raises
        UserError for an adapter that is not read, or is another model's."""
        base = adapters.extended(self.checkpoint, folder)
        changed = adapters.joined(base, adapters.read(folder, base))
        context = None if self.context == self.checkpoint.config.context else self.context
        lm = LanguageModel(
            changed,
            engine=self.engine_asked,
            device=self.device,
            dtype=self.dtype,
            context=context,
            kv_cache=self.kv_cache,
        )
        lm._base, lm._edits = self, self._edits
        return lm

    def edited(self, edit: edits.Given) -> LanguageModel:
        """This model, its weights shared, with an edit of its activations in every call and in any thread.

        Several follow each other: those of ``lm.edited(one).edited(two)``, then a call's own ``edit``. They
        act in `trace`, `logits`, `generate`, `stream`, `chat`, `embed` and in every study of
        ``cutaway/inspect``; what reads several texts in one engine step refuses them.
        """
        self._as_decoder()
        _ = self.definition  # built once, for all that share it
        lm = copy(self)
        lm._edits = (self._edits, edit)
        return lm

    def __repr__(self) -> str:
        config, source = self.config, self.checkpoint.source
        shape = f"{len(config.blocks)} layers, width {config.width}, context {self.context}"
        return f"LanguageModel({str(source)!r}, {shape}, engine={self.engine_asked!r})"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.checkpoint.tokenizer

    @cached_property
    def model(self) -> Any:
        """The definition, its weights unpacked when first asked for.

        A ``Decoder``, an ``Encoder`` or a ``TransformerSeq2Seq``.
        """
        return self._built

    @cached_property
    def _built(self) -> Any:
        from cutaway.weights import build

        kinds = {Encoder: build.encoder, EncoderDecoder: build.encoder_decoder}
        make = kinds.get(type(self.config), build.decoder)
        return make(self._read_as, self._fitting(), self.device)

    def _fitting(self) -> str:
        """What the definition's weights are unpacked to; UserError where memory has no room for it.

        Another device has its own memory, which speaks for itself.
        """
        if self.dtype == "packed" or self.device != "cpu":
            return "float32" if self.dtype == "auto" else self.dtype
        weights = sum(math.prod(shape) for shape in self.config.weights().values())
        wanted, free = weights * (4 if self.dtype in ("auto", "float32") else 2), memory.available()
        if wanted * ROOM <= free:
            return "float32" if self.dtype == "auto" else self.dtype
        much = f"{self.checkpoint.source}: its weights take {wanted / 1e9:.1f} GB as floats of "
        much += f"{8 * wanted // weights} bits, and {free / 1e9:.1f} GB of memory are free"
        if self.dtype != "auto":
            raise UserError(f'{much}: load it with dtype="packed", or use engine="runtime"')
        warnings.warn(f"{much}: each stays packed and is unpacked for each use, slower", stacklevel=4)
        return "packed"

    @property
    def is_encoder(self) -> bool:
        """Whether it reads texts into vectors, and writes none."""
        return isinstance(self.config, Encoder)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether it reads one text, a source, and writes another: a translation, a summary, an answer."""
        return isinstance(self.config, EncoderDecoder)

    def _as_decoder(self) -> Decoder:
        """The config, for what only a decoder does."""
        if isinstance(self.config, EncoderDecoder):
            raise UserError(
                f"{self.checkpoint.source} is an encoder-decoder: `generate` reads a source and writes its "
                "target; everything else is for decoders"
            )
        if isinstance(self.config, Encoder):
            raise UserError(
                f"{self.checkpoint.source} is an encoder: it turns texts into vectors (`embed`) "
                "and scores no next token"
            )
        if self.checkpoint.classifier:
            raise UserError(
                f"{self.checkpoint.source} is a {self.checkpoint.classifier}: it gives texts labels "
                "(`classify`), and has no head that scores a next token"
            )
        return self.config

    @cached_property
    def vectors(self) -> Vectors:
        """The rows of the embedding table by the tokens they stand for: ``nearest``, ``analogy``, ..."""
        from cutaway.weights.vectors import of_model

        return of_model(self.checkpoint)

    def map(self, count: int = 5000, method: Method = "pca") -> Map:
        """The first ``count`` rows of the embedding table on a plane, which a notebook draws."""
        from cutaway.inspect.show import Map

        return Map(self.vectors, str(self.checkpoint.source), count, method)

    @property
    def engine(self) -> AllLogits:
        """What reads ids and answers with logits."""
        self._as_decoder()
        if self._edits != ():
            raise UserError(
                "an engine has no edits: give `edit=` to each call, or use the model without edits"
            )
        if self.engine_choice[0] != "runtime":
            return self.definition
        if "_built" in self.__dict__ and listening(self._built):
            raise UserError(
                "the runtime answers, which a trace of lm.model does not see: "
                'give `edit=`, use `lm.trace`, or load with engine="definition"'
            )
        return self._runtime

    @property
    def engine_choice(self) -> tuple[Literal["definition", "runtime"], str]:
        """Which engine answers, and why, in words that follow "because"."""
        if self.engine_asked == "definition":
            return "definition", "it was asked for"
        if self._edits != () and self.engine_asked == "auto":
            return "definition", "its activations are edited"
        if self.device != "cpu" or self.dtype not in ("auto", "float32"):
            return "definition", f"the weights were asked for as {self.dtype} on {self.device}"
        if "model" in self.__dict__ and self.engine_asked == "auto":
            return "definition", "lm.model was asked for and may have been changed"
        reason = "encoder-decoders have no kernels" if self.is_encoder_decoder else self._why_not_runtime
        return ("runtime", "it is the fastest here") if reason is None else ("definition", reason)

    @cached_property
    def _why_not_runtime(self) -> str | None:
        from cutaway import native
        from cutaway.runtime import packing

        absent = native.why_not()
        if absent is not None and self.engine_asked != "runtime":
            return absent[0].lower() + absent[1:].rstrip(".")
        return packing.why_not(self._as_decoder(), self._apart[0])

    @cached_property
    def _apart(self) -> tuple[Tensors, adapters.Adapter | None]:
        """The weights that the runtime packs, and the adapter that it applies beside them."""
        from cutaway.runtime import adapter

        tensors = self.checkpoint.tensors
        if not isinstance(tensors, adapters.AdaptedTensors):
            return tensors, None
        reason = adapter.why_not(self._as_decoder(), tensors.base, tensors.adapter)
        return (tensors, None) if reason else (tensors.base, tensors.adapter)

    @cached_property
    def _runtime(self) -> RuntimeEngine | ReferenceEngine:
        from cutaway import native

        tensors, adapter = self._apart
        base = self._base
        if adapter is not None and base and base._apart[0] is tensors and base.config == self.config:
            return base._runtime.adapted(adapter)
        if native.available():
            from cutaway.runtime.engine import RuntimeEngine

            engine = self._limited(RuntimeEngine(self._as_decoder(), tensors, kv_cache=self.kv_cache))
        else:
            from cutaway.runtime.reference import ReferenceEngine

            engine = self._limited(ReferenceEngine(self._as_decoder(), tensors, self.kv_cache))
        return engine if adapter is None else engine.adapted(adapter)

    @cached_property
    def definition(self) -> DefinitionEngine:
        """The definition as an engine: it generates where the runtime does not, and applies edits."""
        from cutaway.model.engine import DefinitionEngine

        self._as_decoder()
        return self._limited(DefinitionEngine(self._built))

    def _limited(self, engine: Limited) -> Limited:
        """The engine, which holds no more tokens than this object was asked to."""
        engine.max_context = self.context
        return engine

    def ids(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt: text as its tokenizer encodes it, with the model's begin token.

        Control tokens spelt in the text stay text. Ids are taken as they are. Of an encoder-decoder these
        are the source's. Raises UserError for what is neither.
        """
        if not isinstance(prompt, str):
            try:
                return list(map(operator.index, prompt))
            except TypeError:
                raise UserError(f"a prompt is text or a list of ids, and this is {prompt!r:.80}") from None
        if self.is_encoder or self.is_encoder_decoder:
            return self.tokenizer.encode(prompt, add_special=True)
        return [*self.tokenizer.before, *self.tokenizer.encode(prompt)]

    def whole_ids(self, prompt: Prompt) -> list[int]:
        """The ids of a text that is read whole, to embed or to classify: with the end token too, where the
        tokenizer has one, which `ids` leaves out since a model goes on writing there.
        """
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, add_special=True)
        return self.ids(prompt)

    def session(self) -> Session:
        """A memory of what was read, so that a conversation's next turn reads only what is new."""
        return Session(self.engine)

    def generate(
        self, prompt: Prompt, *, keep: Sequence[str] | None = None, **options: Unpack[GenerationOptions]
    ) -> Generation:
        """Continues the prompt; an encoder-decoder writes the target of this source, after its first id.

        ``options`` are the fields of ``SamplingParams`` (max_tokens, seed, ...) and:

        ``session``: the memory of earlier calls, of which a common beginning is not read again.
        ``speculate``: "lookup" guesses tokens from earlier text, a smaller model of the same
        vocabulary writes ahead; the model checks several guesses in one reading. The text is distributed as
        without (``generate/speculative.py``). ``edit``: changes of the model's activations
        (``inspect/edits.py``) for this call alone; the definition applies them. ``constraint``: what the text
        must follow, such as ``constrain.json_schema(schema).begin(lm.tokenizer)`` (generate/constrain.py).
        ``keep``: activations by name, as for ``trace``: the generation's ``trace`` has them, of every token
        that was read.
        """
        if not keep:
            return finish(self.stream(prompt, **options))
        from cutaway.inspect.recording import Recording

        ids, edit = self.ids(prompt), options.pop("edit", None)
        self._refuse_session(options.get("session"))
        recording = Recording(self.subject, keep)
        hooks = recording.after(self._prepare(edit or (), ids))
        generation = finish(self._stream(ids, hooks, **options))
        return replace(generation, trace=recording.trace([*ids, *generation.ids]))

    def generate_batch(
        self, prompts: Sequence[Prompt], *, max_sequences: int = 16, **settings: Unpack[SamplingOptions]
    ) -> list[Generation]:
        """Continues all prompts, at most ``max_sequences`` at once: each as ``generate`` does with it alone.

        ``settings`` are the fields of ``SamplingParams`` and hold for every prompt. Raises UserError for an
        engine that reads one text only.
        """
        from cutaway.generate.batch.scheduler import generate_batch

        if self._edits != () or self.is_encoder_decoder:
            return [self.generate(prompt, **settings) for prompt in prompts]
        params, ids = self.ending(sampling_params(settings)), map(self.ids, prompts)
        return generate_batch(self.engine, self.tokenizer, ids, params, max_sequences=max_sequences)

    def think(
        self,
        prompt: Prompt | Sequence[Message],
        strategy: str | thinking.Strategy,
        *,
        score: Callable[[str], float] | None = None,
        extract: Callable[[str], str | None] | None = None,
        **settings: Unpack[SamplingOptions],
    ) -> thinking.Thought:
        """An answer by slow thinking: "best-of-8", "vote-16", "budget-256", "tree-4x3", "refine-2".

        ``prompt`` is text, ids, or the messages of a conversation. ``score`` judges a text (its own mean
        log-probability without), ``extract`` finds the answer to vote on (its last line without). The thought
        has the generation that was chosen, all candidates, and how many tokens were written.
        """
        from cutaway.generate import thinking

        messages: Any = None if isinstance(prompt, str) or not isinstance(prompt[0], Mapping) else prompt
        judge = thinking.Judge()
        if score is not None:
            judge = replace(judge, score=lambda _, generation: score(generation.text))
        if extract is not None:
            judge = replace(judge, extract=extract)
        if messages is not None:
            judge = replace(judge, follow_up=lambda _, answers: self.refining(messages, answers))
        ids = self.ids(cast(Prompt, prompt)) if messages is None else self.chat_ids(messages)
        chosen = thinking.parse(strategy) if isinstance(strategy, str) else strategy
        with thinking.Writer(self.engine, self.tokenizer) as writer:
            return chosen.answer(writer, [ids], self.ending(sampling_params(settings)), judge)[0]

    def refining(self, messages: Sequence[Message], answers: Sequence[str]) -> list[int]:
        """The ids of a conversation that asks to check the answers so far."""
        turns = list(messages)
        for answer in answers:
            turns += [{"role": "assistant", "content": answer}, {"role": "user", "content": CHECK}]
        return self.chat_ids(turns)

    def stream(
        self,
        prompt: Prompt,
        *,
        session: Session | None = None,
        speculate: Speculate = None,
        edit: edits.Given | None = None,
        constraint: Constraint | None = None,
        **settings: Unpack[SamplingOptions],
    ) -> Generator[Piece]:
        """The prompt continued, a piece a token; the last piece brings the whole generation."""
        ids = self.ids(prompt)  # before the engine is made, beside which a vocabulary being opened would lie
        if self.is_encoder_decoder:
            if session is not None or speculate is not None or edit:
                raise UserError(
                    "with an encoder-decoder there is no session, speculation or edit: leave them out"
                )
            return self._target(ids, constraint, **settings)
        hooks = None
        if edit or self._edits != ():
            self._refuse_session(session)
            hooks = self.prepared(edit or (), ids)
        return self._stream(ids, hooks, session, speculate, constraint, **settings)

    def _target(
        self, source: list[int], constraint: Constraint | None, **settings: Unpack[SamplingOptions]
    ) -> Generator[Piece]:
        """The target of a source, a piece a token."""
        from cutaway.model.target_engine import TargetEngine

        rules, chosen = self.checkpoint.target, self.ending(sampling_params(settings))
        if rules is None or rules.start is None:
            raise UserError(
                f"{self.checkpoint.source} does not say how a target begins: put decoder_start_token_id into "
                "its config.json"
            )
        if rules.first is not None or rules.never:
            constraint = TargetRules(rules.first, rules.never, constraint)
        engine = TargetEngine(self._built, source)
        engine.max_context = self.context
        return generate(engine, self.tokenizer, [rules.start], chosen, constraint=constraint)

    def _stream(
        self,
        ids: list[int],
        hooks: EditHooks | None,
        session: Session | None = None,
        speculate: Speculate = None,
        constraint: Constraint | None = None,
        **settings: Unpack[SamplingOptions],
    ) -> Generator[Piece]:
        chosen = self.ending(sampling_params(settings))
        guessed = None if speculate is None else Speculation(self._guesser(speculate, chosen))
        if hooks is None:
            return generate(self.engine, self.tokenizer, ids, chosen, session, guessed, constraint)
        edited = Session(self.edit_engine, hooks)
        return generate(self.edit_engine, self.tokenizer, ids, chosen, edited, guessed, constraint)

    def _refuse_session(self, session: Session | None) -> None:
        if session is not None:
            raise UserError("a session keeps what was read without the edit: leave out session or edit")

    @property
    def edit_engine(self) -> DefinitionEngine | RuntimeEngine | ReferenceEngine:
        """The engine that generates with edits: the runtime if the model was loaded for it."""
        self._as_decoder()
        return self._runtime if self.engine_asked == "runtime" else self.definition

    def prepared(self, edit: edits.Given, ids: Sequence[int]) -> EditHooks:
        """Edits for a generation that begins with ids, as ``edit_engine.edited_state`` takes them.

        Raises UserError for edits that do not fit the model, and for those that the runtime does not make on
        a model loaded for it.
        """
        self._as_decoder()
        if self.engine_asked == "runtime":
            from cutaway.inspect import runtime_edits

            return runtime_edits.prepare(self._runtime, (self._edits, edit), len(ids))
        return self._prepare(edit, ids).at

    def _prepare(self, edit: edits.Given, ids: Sequence[int]) -> pytorch_edits.Prepared:
        from cutaway.inspect import pytorch_edits

        self._as_decoder()
        if self.engine_asked == "runtime":
            raise UserError('the runtime keeps no activations: load with engine="definition" or "auto"')
        return pytorch_edits.prepare(self._built, (self._edits, edit), len(ids))

    def _guesser(self, speculate: str | LanguageModel, settings: SamplingParams) -> Proposer:
        if speculate == "lookup":
            return PromptLookup()
        if not isinstance(speculate, LanguageModel):
            raise UserError(f'speculate is {speculate!r}: use "lookup" or a smaller model')
        draft, vocab = speculate.engine, self._as_decoder().vocab
        if draft.vocab != vocab:
            raise UserError(
                f"{speculate.checkpoint.source} cannot write ahead for {self.checkpoint.source}: "
                f"it has {draft.vocab} ids, and {vocab} are needed"
            )
        return DraftModel(draft, len(self.tokenizer), settings)

    def first_layers(self, count: int) -> LanguageModel:
        """This model with its first layers alone, then its last norm and head: what it would say early.

        It may write ahead for the whole (``speculate``). Raises UserError for none, or more than there
        are.
        """
        config = self._as_decoder()
        if not 1 <= count <= len(config.blocks):
            raise UserError(f"the model has {len(config.blocks)} layers, not {count}")
        config = replace(config, blocks=config.blocks[:count])
        tensors = Tensors({name: self.checkpoint.tensors.later(name) for name in config.weights()})
        shallow = replace(self.checkpoint, config=config, tensors=tensors)
        return LanguageModel(
            shallow,
            engine=self.engine_asked,
            device=self.device,
            dtype=self.dtype,
            context=self.context,
            kv_cache=self.kv_cache,
        )

    def ending(self, settings: SamplingParams) -> SamplingParams:
        """The settings, with the end tokens that the checkpoint names beside the tokenizer's."""
        ends = self.checkpoint.defaults.get("eos_ids", ())
        if settings.ignore_eos or not isinstance(ends, tuple):
            return settings
        return replace(settings, stop_ids=(*settings.stop_ids, *ends))

    def chat(self, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> Generation:
        """The assistant's answer to a conversation, through the model's own template.

        ``options`` are those of ``generate``, and ``tools``: descriptions of what the model may call.
        ``steering`` says what to do with content that changes which control tokens the template writes:
        "refuse", or "flag" to let it (docs/chat.md)."""
        return finish(self.chat_stream(messages, **options))

    def chat_stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        steering: Steering = "refuse",
        **options: Unpack[GenerationOptions],
    ) -> Generator[Piece]:
        """The assistant's answer, a piece a token; the last piece brings the whole generation."""
        ids = self.chat_ids(messages, tools=tools, steering=steering)
        return self.stream(ids, **options)

    def chat_ids(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        steering: Steering = "refuse",
        **variables: Any,
    ) -> list[int]:
        """The ids of a conversation up to the assistant's turn: control tokens are the template's alone.

        ``variables`` are the template's own, such as enable_thinking. For a template that knows no tools they
        are described in the system message (``generate/tool_calls/prompted.py``).
        """
        from cutaway.generate.tool_calls import prompted
        from cutaway.tokenizer import chat

        template, tokenizer = self._template(), self.tokenizer
        given: dict[str, Any] = {"tokenizer": tokenizer, "steering": steering, **variables}
        if not (tools or any("tool_calls" in one or one.get("role") == "tool" for one in messages)):
            return chat.render(messages, template, tools=tools, **given)
        if self.tool_format is prompted.FORMAT:
            messages, tools = prompted.messages(messages, tools or ()), None
        try:
            return chat.render(messages, template, tools=tools, **given)
        except UserError:
            folded = prompted.without_system(messages)
            if folded == messages:
                raise
            return chat.render(folded, template, tools=tools, **given)

    @cached_property
    def tool_format(self) -> ToolFormat:
        """How the model writes calls of tools: as its template does, else as it is asked to."""
        from cutaway.generate.tool_calls import prompted
        from cutaway.generate.tool_calls.tool_format import detect_format

        try:
            return detect_format(self._template(), self.tokenizer)
        except UserError:
            return prompted.FORMAT

    def agent(
        self,
        tools: Sequence[str | Tool | Callable[..., Any]],
        *,
        root: str | Path = ".",
        system: str | None = None,
        limits: Limits | None = None,
        confirm: Callable[[Call], bool] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Agent:
        """This model with tools that it may call (docs/tools.md).

        A tool is a Python function with type hints, a built-in one by name ("calculator", "clock", "python",
        "search", "read"), or one of an MCP server (``agent.mcp.connect``). ``root`` is the folder that
        search and read may see. ``confirm(call)`` is asked before each call; without it all may run.
        """
        from cutaway.agent import Agent, Limits
        from cutaway.agent.tools import Tool, built_in, from_function

        encoder = cache(lambda: load("minilm"))
        made = [
            tool
            if isinstance(tool, Tool)
            else built_in(tool, Path(root), encoder)
            if isinstance(tool, str)
            else from_function(tool)
            for tool in tools
        ]
        return Agent(self, made, system, limits or Limits(), confirm, options)

    def chat_text(self, messages: Sequence[Message]) -> Rendered:
        """A conversation as text, with where each character came from; content that steers is flagged."""
        from cutaway.tokenizer import chat

        return chat.text(messages, self._template(), tokenizer=self.tokenizer, steering="flag")

    def _template(self) -> str:
        self._as_decoder()
        if self.checkpoint.chat_template is None:
            source = self.checkpoint.source
            raise UserError(f"{source} has no chat template: give generate() a text")
        return self.checkpoint.chat_template

    def logits(self, prompt: Prompt, edit: edits.Given | None = None) -> np.ndarray:
        """The logits float32 [t v] after each token of a text or of ids; UserError past the context.

        ``edit`` changes activations (``inspect/edits.py``); the definition applies it.
        """
        self._as_decoder()
        edited = edit or self._edits != ()
        engine: Any = self.edit_engine if edited else self.engine
        ids = self.ids(prompt)
        if not ids:
            raise UserError("there is nothing to read: the text has no tokens")
        check_ids(ids, engine.vocab)
        if len(ids) > (holds := engine.max_context):
            raise UserError(f"the text is {len(ids)} ids long and the model's context holds {holds}")
        if not edited:
            return engine.logits(ids)
        return engine.prefill_all_logits(ids, engine.edited_state(self.prepared(edit or (), ids)))

    def embed(
        self,
        texts: Sequence[Prompt],
        pooling: Pooling | None = None,
        normalise: bool = True,
        *,
        dimensions: int | None = None,
        batch: int = 32,
        truncate: bool = False,
        progress: store.Progress = store.silent,
    ) -> np.ndarray:
        """float32 [n d]: a vector for each text, of length one if ``normalise``.

        ``pooling`` makes one vector of a text's tokens: "mean", "cls" (the first) or "last". None is what the
        model's makers chose, for an encoder without their word the mean; a decoder needs it. ``dimensions``
        cuts vectors to their first numbers, for models trained for it (Matryoshka, 2205.13147). Texts are
        read ``batch`` at once, and ``progress`` counts them. Raises UserError for a text that is longer
        than the model reads, unless ``truncate`` has its end cut off, and for one without a token. The
        definition computes them; of a decoder loaded with ``engine="runtime"`` it does so with the runtime's
        rounding, as in `trace`.
        """
        if isinstance(texts, str):
            raise UserError("embed takes a list of texts, and this is one: write embed([text])")
        if self.is_encoder_decoder:
            self._as_decoder()
        if batch < 1:
            raise UserError(f"a batch of {batch} texts reads nothing: use 1 or more")
        chosen = self._pooling(pooling)
        rows = [self._row(i, text, truncate) for i, text in enumerate(texts)]
        if not rows:
            return np.empty((0, self.config.width), np.float32)
        dense = advice.dense(self.checkpoint)
        plain = normalise and not dense
        if isinstance(self.config, Decoder) and (self.engine_asked == "runtime" or self._edits != ()):
            found = self._embed_traced(rows, chosen, plain, progress)
        else:
            from cutaway.model.pooling import vectors

            found = vectors(self._built, rows, chosen, plain, batch, progress)
        found = advice.projected(found, dense, normalise) if dense else found
        if dimensions is None:
            return found
        if not 0 < dimensions <= found.shape[1]:
            raise UserError(f"dimensions is {dimensions}: this model's vectors have {found.shape[1]}")
        found = found[:, :dimensions]
        return found / np.linalg.norm(found, axis=1, keepdims=True) if normalise else found

    def classify(
        self,
        texts: Sequence[Prompt | tuple[str, str]],
        *,
        batch: int = 32,
        truncate: bool = False,
        progress: store.Progress = store.silent,
    ) -> labels.Classes:
        """The labels of texts, or of pairs of texts that are read together, by the head of a classifier.

        UserError for a model without one, and for a text that is longer than the model reads, unless
        ``truncate`` cuts off its end (of a pair, of the longer text).
        """
        if isinstance(texts, str):
            raise UserError("classify takes a list of texts, and this is one: write classify([text])")
        if batch < 1:
            raise UserError(f"a batch of {batch} texts reads nothing: use 1 or more")
        own = self.classifier
        if own is None or own.of_tokens:
            raise UserError(f"{self.checkpoint.source} is no classifier of texts: it has no such head")
        found = self._label_logits(own, texts, truncate, batch, progress)
        return labels.Classes(own.labels, own.problem, found, own.scores(found))

    def classify_tokens(
        self,
        texts: Sequence[Prompt],
        *,
        batch: int = 32,
        truncate: bool = False,
        progress: store.Progress = store.silent,
    ) -> list[tuple[list[int], labels.Classes]]:
        """The ids of each text, as the model reads it, and the labels of its tokens, a row each.

        UserError as in ``classify``, for a model whose head is of tokens (such as those that find names).
        """
        from cutaway.model.classifier import token_logits

        own = self.classifier
        if own is None or not own.of_tokens:
            raise UserError(f"{self.checkpoint.source} is no classifier of tokens: it has no such head")
        rows, segments = self.inputs.rows(texts, truncate)
        found = token_logits(self._built, own.head, rows, segments, batch, progress)
        made = (labels.Classes(own.labels, own.problem, one, own.scores(one)) for one in found)
        return list(zip(rows, made, strict=True))

    def rank(self, query: str, texts: Sequence[str], batch: int = 32) -> np.ndarray:
        """float32 [n]: how well each text fits a query, by a cross-encoder that reads the two together.

        UserError for a model that is none, and for a pair that is longer than it reads.
        """
        own = self.classifier
        if own is None or not self.ranks:
            raise UserError(f"{self.checkpoint.source} is no cross-encoder: it has no head with one label")
        found = self._label_logits(own, [(query, text) for text in texts], batch=batch)[:, 0]
        return labels.sigmoid(found) if own.sigmoid else found

    @property
    def ranks(self) -> bool:
        """Whether it is a cross-encoder: a classifier of texts with one label."""
        own = self.classifier
        return own is not None and not own.of_tokens and len(own.labels) == 1

    @cached_property
    def classifier(self) -> Classifier | None:
        """The head for labels, for a model that has one."""
        return labels.read(self.checkpoint)

    @cached_property
    def inputs(self) -> PairInputs:
        """How it reads texts, and pairs of them together."""
        return PairInputs(self.checkpoint, self.config, self.context, lambda: self.tokenizer, self._row)

    def _label_logits(
        self,
        own: Classifier,
        texts: Sequence[Prompt | tuple[str, str]],
        truncate: bool = False,
        batch: int = 32,
        progress: store.Progress = store.silent,
    ) -> np.ndarray:
        """float32 [n labels]."""
        from cutaway.model.classifier import logits

        rows, segments = self.inputs.rows(texts, truncate)
        if not rows:
            return np.empty((0, len(own.labels)), np.float32)
        if isinstance(self.config, Decoder):
            rows = [list(own.without_padding(row)) for row in rows]
        return np.stack(logits(self._built, own.head, rows, segments, batch, progress))

    def _embed_traced(
        self, rows: list[list[int]], pooling: Pooling, normalise: bool, progress: store.Progress
    ) -> np.ndarray:
        """The vectors of a decoder whose activations are rounded or edited."""
        import torch

        from cutaway.model.pooling import pool

        last = f"blocks.{len(self._as_decoder().blocks) - 1}.out"
        with torch.no_grad():
            hidden = [
                self._built.norm(torch.from_numpy(one[last]))[None]
                for one in self.subject.trace(rows, [last], (), progress)
            ]
            pooled = [pool(x, torch.arange(x.shape[1])[None], pooling).float() for x in hidden]
        found = torch.cat(pooled).cpu().numpy()
        return found / np.linalg.norm(found, axis=-1, keepdims=True) if normalise else found

    def _pooling(self, asked: Pooling | None) -> Pooling:
        if asked is not None and asked not in POOLINGS:
            raise UserError(f"there is no pooling {asked!r}: use {', '.join(POOLINGS)}")
        chosen: Any = asked or advice.stated(self.checkpoint) or ("mean" if self.is_encoder else None)
        if chosen is None:
            raise UserError(
                f"{self.checkpoint.source} is a decoder, not made to turn texts into vectors: "
                f"say how to pool its tokens, by {', '.join(POOLINGS)}"
            )
        return chosen

    def _row(self, i: int, text: Prompt, truncate: bool) -> list[int]:
        """The ids of text number ``i``, at most as many as the model reads."""
        ids, most = self.whole_ids(text), self.context
        if not ids:
            raise UserError(f"text {i} has no token, so there is nothing to make a vector of")
        if wrong := [id for id in ids if not 0 <= id < self.config.vocab]:
            last = self.config.vocab - 1
            raise UserError(f"text {i} has the id {wrong[0]}, and this model's go from 0 to {last}")
        if len(ids) <= most:
            return ids
        if not truncate:
            raise UserError(
                f"text {i} has {len(ids):,} tokens, and this model reads at most {most:,}: "
                "cut it into passages, or have its end cut off by truncate=True"
            )
        end = self._end(ids)
        return [*ids[: most - len(end)], *end] if len(end) < most else ids[:most]

    def _end(self, ids: Sequence[int]) -> Sequence[int]:
        """What the tokenizer has put behind these ids, which stays where a text is cut off."""
        end = list(self.tokenizer.behind) if self.checkpoint.read_tokenizer is not None else []
        return end if end and list(ids[-len(end) :]) == end else ()

    @property
    def subject(self) -> Subject:
        """What studies ask (``inspect/instrumented.py``), with this model's edits: the engine that answers, and
        the PyTorch model for what that does not show, with the runtime's rounding where it was asked for.
        """
        from cutaway.inspect.trace import Subject

        self._as_decoder()
        own, plain = self._edits, copy(self)
        plain._edits = ()
        name, reason = plain.engine_choice
        if name == "runtime" and "_built" in self.__dict__ and listening(self._built):
            name, reason = "definition", "a trace of lm.model is open, which the runtime is not heard by"
        if name != "runtime":
            return Subject(self._instrumented, self.tokenizer, own, self._encoded, reason)
        runtime, tokenizer = self._instrumented_runtime, self.tokenizer
        return Subject(runtime, tokenizer, own, self._encoded, reason, lambda: self._instrumented)

    @cached_property
    def _instrumented_runtime(self) -> InstrumentedRuntime:
        from cutaway.inspect.instrumented_runtime import InstrumentedRuntime

        return InstrumentedRuntime(self._runtime, self.checkpoint.tensors)

    @cached_property
    def _instrumented(self) -> InstrumentedPyTorch:
        from cutaway.inspect import activation_quant
        from cutaway.inspect.instrumented_pytorch import InstrumentedPyTorch

        config, rounds = self._as_decoder(), self.engine_asked == "runtime"
        rounding = activation_quant.edits(config, self._apart[0]) if rounds else {}
        return InstrumentedPyTorch(self._built, rounding)

    def _encoded(self, prompt: Prompt | Sequence[Message]) -> list[int]:
        """The ids of a prompt, or of a conversation's messages."""
        messages = not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)
        return self.chat_ids(cast(Any, prompt)) if messages else self.ids(cast(Prompt, prompt))

    @overload
    def trace(
        self,
        text: str | Sequence[int] | Sequence[Message],
        edit: edits.Given | None = None,
        names: Sequence[str] | None = None,
    ) -> Trace: ...

    @overload
    def trace(
        self,
        text: Sequence[str] | Sequence[Sequence[int]],
        edit: edits.Given | None = None,
        names: Sequence[str] | None = None,
    ) -> Traces: ...

    def trace(
        self, text: Any, edit: edits.Given | None = None, names: Sequence[str] | None = None
    ) -> Trace | Traces:
        """One forward pass with every activation kept, or only ``names`` and the logits.

        ``text`` is text, ids or a conversation's messages. A list of texts or of ids is a batch: ``Traces``,
        which keep no logits unless they are named; no layer after the last that is needed is computed.
        ``names`` may have wildcards and may be TransformerLens's (``inspect/names.py``); None and wildcards
        stand for what the engine shows. ``edit`` changes activations (``inspect/edits.py``). The runtime
        answers where it runs the model, shows the names and makes the edits, the PyTorch model otherwise:
        ``trace.engine`` says which, and why.
        """
        from cutaway.hooks import TAPS

        subject = self.subject
        if not isinstance(text, str) and len(text) and _is_text(text[0]):
            return subject.trace([subject.encode(one) for one in text], names, edit or ())
        kept = (*(names or (TAPS,)), "logits")
        return subject.trace([subject.encode(text)], kept, edit or ())[0]

    def activations(
        self,
        texts: Iterable[Prompt],
        names: Sequence[str],
        output: str | Path | None = None,
        **options: Unpack[Collecting],
    ) -> Activations:
        """Activations of many texts, a row for each token: in shards, or in memory without ``output``.

        The runtime reads where it runs the model and shows the ``names`` (``runtime/values.py``), the
        definition otherwise; the dataset's ``facts`` say which. ``options``: ``dtype`` "float16" or
        "bfloat16"; ``context``, the length of pieces that longer texts are read in; ``shard_tokens``;
        ``max_tokens`` of all texts; ``force`` begins an ``output`` anew, where an unfinished one is gone on
        with; ``progress``. Raises UserError for other texts or options than an unfinished ``output`` has, and
        for names without a row for each token.
        """
        from cutaway.inspect.activations import collect

        self._as_decoder()
        return collect(self, texts, names, output, **options)

    def save(
        self,
        target: str | Path,
        format: Literal["safetensors", "gguf"] | None = None,
        type: str | None = None,
        *,
        force: bool = False,
    ) -> Saved:
        """Writes the model with its tokenizer and chat template: a folder of safetensors, or a GGUF file.

        Weights of ``model`` that were changed since loading are written as they are now, all others as they
        were read, to the bit; ``type`` rounds them (see ``weights/save.py``). Raises UserError if the
        target is there, unless ``force``."""
        from cutaway.weights import save as writer

        return writer.write(target, self._current(), format, type, force=force)

    def _current(self) -> reader.Checkpoint:
        """The checkpoint, with those weights of the definition that are no longer what was read."""
        if "model" not in self.__dict__:
            return self.checkpoint
        tensors = self.checkpoint.tensors
        changed = {
            name: formats.pack(now, "F32")
            for name, weight in self.model.named_parameters()
            if not _same(
                now := weight.detach().cpu().float().numpy(), formats.unpack(tensors[name]), self.dtype
            )
        }
        kept = {name: changed.get(name) or tensors.later(name) for name in tensors}
        return replace(self.checkpoint, tensors=Tensors(kept))


def _is_text(one: Any) -> bool:
    """Whether the first of a list is a text, so that the list is a batch: no id and no message."""
    return isinstance(one, str) or (hasattr(one, "__len__") and not isinstance(one, Mapping))


def _same(now: np.ndarray, read: np.ndarray, dtype: str) -> bool:
    """Whether a weight is still what was read, rounded as the model was loaded."""
    if dtype in ("auto", "float32", "packed"):
        return np.array_equal(now, read)
    import torch

    return np.array_equal(now, torch.from_numpy(read).to(getattr(torch, dtype)).float().numpy())
