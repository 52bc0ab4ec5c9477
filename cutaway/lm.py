"""The object users hold: one language model that generates, chats, scores, and can be looked into.

    lm = cutaway.load("smollm2")
    lm.generate("The capital of France is", max_tokens=8).text

What a call needs is imported and built when it is first asked for: the tokenizer alone costs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast, overload

import numpy as np

from cutaway import store
from cutaway.continuation import BatchOptions, Continuation, GenerationOptions, ThinkOptions
from cutaway.conversations import Conversations, Messages, RenderOptions, Steering, Tools
from cutaway.engines import Edited, Engines, Loading, LoadOptions
from cutaway.errors import UserError
from cutaway.generate.batch.request import Generation, Piece
from cutaway.generate.decode import finish
from cutaway.generate.engine import AllLogits
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.session import Session
from cutaway.model.config import Encoder, EncoderDecoder
from cutaway.tokenizer import Tokenizer
from cutaway.weights import adapters
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.classifier import Classes, Classifier
from cutaway.weights.load import read_checkpoint
from cutaway.weights.pair_inputs import PairInputs
from cutaway.whole_texts import EmbedOptions, ReadOptions, WholeTexts
from cutaway.whole_texts import Text as Prompt

if TYPE_CHECKING:
    from cutaway.agent.loop import Agent, AgentOptions
    from cutaway.agent.tool import Tool
    from cutaway.embedding.projection import Method
    from cutaway.embedding.vectors import Vectors
    from cutaway.generate.speculative import Drafting
    from cutaway.generate.thinking.strategy import Strategy, Thought
    from cutaway.generate.tool_calls.tool_format import ToolFormat
    from cutaway.inspect import edits
    from cutaway.inspect.activations import Activations
    from cutaway.inspect.collecting import Collecting
    from cutaway.inspect.runtime_edits import Donors
    from cutaway.inspect.show import Map
    from cutaway.inspect.subject import Subject
    from cutaway.inspect.trace import Trace, Traces
    from cutaway.model.engine import PyTorchEngine
    from cutaway.runtime.text_vectors import Pooling
    from cutaway.tokenizer.chat.rendering import Rendered
    from cutaway.weights.save import Saved

    Edit = edits.Given | None
    Names = Sequence[str] | None
    Batch = Sequence[str] | Sequence[Sequence[int]]

Format = Literal["safetensors", "gguf"] | None
StrPath = str | Path


class ChatOptions(GenerationOptions, RenderOptions, total=False):
    """What `chat` and `chat_stream` take beside the messages; each may be left out."""


def load(
    source: StrPath, *, adapter: StrPath | None = None, strict: bool = False, **options: Unpack[LoadOptions]
) -> LanguageModel:
    """A model by its name, or from a .gguf file, a Hugging Face folder, or a folder that Cutaway wrote.

    A name that is not cached yet is pulled. ``engine``: "pytorch" is the PyTorch model, "runtime" the
    native CPU engine on packed weights, "auto" the fastest that runs the model as it is asked for
    (``lm.engine_choice`` says which and why). ``device``: where the PyTorch model runs. ``dtype``: what its
    weights are unpacked to; "packed" keeps them as small as they are in the file and unpacks each for each
    use: the logits of "float32", slower; "auto" is float32 where memory has room for it, else packed, with a
    warning. ``context``: hold at most so many tokens; more than the model was made for are read on, with a
    warning, as far as its positions have no table. ``adapter``: a PEFT folder, as for ``with_adapter``.
    ``kv_cache``: what the runtime keeps keys and values as; Q8_0 takes half of F16's memory, Q4_0 a quarter.
    ``strict``: refuse a config.json with keys that its model does not read, of which a warning tells
    otherwise. Raises UserError for what cannot be read as asked."""
    Loading(**options)  # what is not known is refused before anything is read
    lm = LanguageModel(read_checkpoint(store.resolve(source, pull=True), strict), **options)
    if adapter is not None:
        lm = lm.with_adapter(adapter)
    lm.engines.check_runtime(source)
    return lm


class LanguageModel:
    """A checkpoint with everything that can be done with it. Made by ``load``.

    ``config`` is what the model is, ``tokenizer`` its tokenizer, ``model`` the PyTorch model: a module that
    can be trained, watched and edited. With ``engine="auto"`` ``generate``, ``chat`` and ``logits`` see what
    is done to it: after ``model`` is accessed, the PyTorch model answers. With ``engine="runtime"`` the
    runtime always does, and calls inside a trace of ``model``, which it would not see, are refused."""

    def __init__(self, checkpoint: Checkpoint, **options: Unpack[LoadOptions]) -> None:
        self.engines = Engines(checkpoint, asked := Loading(**options))
        self.config, self.context = self.engines.config, self.engines.context
        self.engine_asked, self.device, self.dtype = asked.engine, asked.device, asked.dtype
        self._continuation = Continuation(self.engines, lambda: self.tokenizer)
        self._conversations = Conversations(self.engines, lambda: self.tokenizer)
        self._texts = WholeTexts(self.engines, lambda: self.tokenizer, self._continuation.whole_ids)
        self._edits: edits.Given = ()  # of every call

    @property
    def checkpoint(self) -> Checkpoint:
        """The files' weights, config and tokenizer."""
        return self.engines.checkpoint

    @checkpoint.setter
    def checkpoint(self, checkpoint: Checkpoint) -> None:
        self.engines.checkpoint = checkpoint

    def with_adapter(self, folder: str | Path) -> LanguageModel:
        """This model with the adapter of a PEFT folder, such as a run of `cutaway finetune`, and its context.

        The runtime applies it beside the packed weights, which both models share; the PyTorch model, and the
        runtime where it cannot (``runtime/adapter.py``), have it in float32 weights of their own. Raises
        UserError for an adapter that is not read, or is another model's."""
        base = adapters.extended(self.checkpoint, folder)
        changed = adapters.joined(base, adapters.read_adapter(folder, base))
        lm = LanguageModel(changed, **vars(self.engines.asked))
        lm.engines.base, lm._edits = self.engines, self._edits
        return lm

    def edited(self, edit: edits.Given) -> LanguageModel:
        """This model, its weights shared, with an edit of its activations in every call and in any thread.

        Several follow each other: those of ``lm.edited(one).edited(two)``, then a call's own ``edit``. They
        act in `trace`, `logits`, `generate`, `stream`, `chat`, `embed` and in every study of
        ``cutaway/inspect``; `session`, `think` and what evaluates a model refuse them.
        """
        self.engines.decoder()
        lm = copy(self)
        lm._edits = (self._edits, edit)
        return lm

    def first_layers(self, count: int) -> LanguageModel:
        """This model with its first layers alone, then its last norm and head: what it would say early.

        It may draft for the whole (``speculate``). Raises UserError for none, or more than there are.
        """
        return LanguageModel(self.engines.first_layers(count), **vars(self.engines.asked))

    def drafting(self, speculate: str | Path | LanguageModel) -> Drafting:
        """What drafts for a scheduler of this model, as `generate` takes it: ``speculate``."""
        return self._continuation.drafting(speculate)

    def __repr__(self) -> str:
        config, source = self.config, self.checkpoint.source
        shape = f"{len(config.blocks)} layers, width {config.width}, context {self.context}"
        return f"LanguageModel({str(source)!r}, {shape}, engine={self.engine_asked!r})"

    # ---- what it is, and what answers ----------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.checkpoint.tokenizer

    @property
    def model(self) -> Any:
        """The PyTorch model, its weights unpacked when first asked for.

        A ``Decoder``, an ``Encoder`` or a ``TransformerSeq2Seq``.
        """
        model = self.engines.pytorch_model
        self.engines.exposed = True
        return model

    @property
    def pytorch(self) -> PyTorchEngine:
        """The PyTorch model as an engine: it generates where the runtime does not."""
        return self.engines.pytorch

    @property
    def engine(self) -> AllLogits:
        """The engine: ids in, logits out."""
        self.engines.decoder()
        if self._edits != ():
            raise UserError(
                "an engine has no edits: give `edit=` to each call, or use the model without edits"
            )
        return self.engines.answering

    @property
    def engine_choice(self) -> tuple[Literal["pytorch", "runtime"], str]:
        """Which engine answers, and why, in words that follow "because"."""
        return self.engines.choice(self._edits)

    @property
    def is_encoder(self) -> bool:
        """Whether it reads texts into vectors, and writes none."""
        return isinstance(self.config, Encoder)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether it reads one text, a source, and writes another: a translation, a summary, an answer."""
        return isinstance(self.config, EncoderDecoder)

    @cached_property
    def vectors(self) -> Vectors:
        """The rows of the embedding table by the tokens they stand for: ``nearest``, ``analogy``, ..."""
        from cutaway.weights.vectors import of_model

        return of_model(self.checkpoint)

    def map(self, count: int = 5000, method: Method = "pca") -> Map:
        """The first ``count`` rows of the embedding table on a plane, which a notebook draws."""
        from cutaway.inspect.show import Map

        return Map(self.vectors, str(self.checkpoint.source), count, method)

    def save(
        self, target: StrPath, format: Format = None, type: str | None = None, *, force: bool = False
    ) -> Saved:
        """Writes the model with its tokenizer and chat template: a folder of safetensors, or a GGUF file.

        Weights of ``model`` that were changed since loading are written as they are now, all others as they
        were read, to the bit; ``type`` rounds them (see ``weights/save.py``). Raises UserError if the
        target is there, unless ``force``."""
        from cutaway.weights import save

        return save.write_checkpoint(target, self.engines.current_checkpoint(), format, type, force=force)

    def edited_engine(self, edit: edits.Given, ids: Sequence[int], donors: Donors | None = None) -> Edited:
        """The engine that makes edits of a prompt with these ids, and the edits as its states take them."""
        return self.engines.edited((self._edits, edit), ids, donors)

    # ---- text ----------------------------------------------------------------------------------------------

    def ids(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt: text as its tokenizer encodes it, with the model's begin token.

        Control tokens spelt in the text stay text. Ids are taken as they are. Of an encoder-decoder these
        are the source's. Raises UserError for what is neither.
        """
        return self._continuation.ids(prompt)

    def whole_ids(self, prompt: Prompt) -> list[int]:
        """The ids of a text that is read whole, to embed or to classify: with the end token too, where the
        tokenizer has one, which `ids` leaves out since a model goes on writing there.
        """
        return self._continuation.whole_ids(prompt)

    def session(self) -> Session:
        """A memory of what was read, so that a conversation's next turn reads only what is new."""
        return Session(self.engine, lasting=True)

    def generate(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Generation:
        """Continues the prompt; an encoder-decoder writes the target of this source, after its first id.

        ``options``: the fields of ``SamplingParams`` (max_tokens, seed, ...) and of ``GenerationOptions``.
        """
        return finish(self.stream(prompt, **options))

    def stream(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Generator[Piece]:
        """The prompt continued, a piece a token; the last piece brings the whole generation."""
        return self._continuation.stream(self.ids(prompt), self._edits, **options)

    def generate_batch(self, prompts: Sequence[Prompt], **options: Unpack[BatchOptions]) -> list[Generation]:
        """Continues all prompts: each as ``generate`` does with it alone.

        ``options``: ``BatchOptions``. Raises UserError for an engine that reads one text only.
        """
        if self.is_encoder_decoder:
            settings: Any = {n: value for n, value in options.items() if n not in ("max_sequences", "edits")}
            return [self.generate(prompt, **settings) for prompt in prompts]
        return self._continuation.batch([self.ids(prompt) for prompt in prompts], self._edits, **options)

    def think(
        self, prompt: Prompt | Messages, strategy: str | Strategy, **options: Unpack[ThinkOptions]
    ) -> Thought:
        """An answer by slow thinking: "best-of-8", "vote-16", "budget-256", "tree-4x3", "refine-2".

        ``prompt`` is text, ids, or the messages of a conversation; ``options``: ``ThinkOptions``. The thought
        has the generation that was chosen, all candidates, and how many tokens were written.
        """
        messages: Any = None if isinstance(prompt, str) or not isinstance(prompt[0], Mapping) else prompt
        again = None if messages is None else lambda _, answers: self.refining(messages, answers)
        return self._continuation.think(self.engine, self._encoded(prompt), strategy, again, **options)

    def ending(self, settings: SamplingParams) -> SamplingParams:
        """The settings, with the end tokens that the checkpoint names beside the tokenizer's."""
        return self._continuation.ending(settings)

    def logits(self, prompt: Prompt, edit: Edit = None) -> np.ndarray:
        """The logits float32 [t v] after each token of a text or of ids, under an edit; UserError past the
        context."""
        self.engines.decoder()
        return self._continuation.logits(self.ids(prompt), self._edits, edit)

    # ---- conversations -------------------------------------------------------------------------------------

    def chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> Generation:
        """The assistant's answer to a conversation, through the model's own template.

        ``options``: those of ``generate``, and ``ChatOptions``."""
        return finish(self.chat_stream(messages, **options))

    def chat_stream(self, messages: Messages, **options: Unpack[ChatOptions]) -> Generator[Piece]:
        """The assistant's answer, a piece a token; the last piece brings the whole generation."""
        tools, steering = options.pop("tools", None), options.pop("steering", "refuse")
        return self.stream(self.chat_ids(messages, tools=tools, steering=steering), **options)

    def chat_ids(
        self, messages: Messages, *, tools: Tools = None, steering: Steering = "refuse", **variables: Any
    ) -> list[int]:
        """The ids of a conversation up to the assistant's turn: control tokens are the template's alone.

        ``variables`` are the template's own, such as enable_thinking. For a template that knows no tools they
        are described in the system message (``generate/tool_calls/prompted.py``).
        """
        return self._conversations.ids(messages, tools, steering, **variables)

    @property
    def tool_format(self) -> ToolFormat:
        """How the model writes calls of tools: as its template does, else as it is asked to."""
        return self._conversations.tool_format

    def chat_text(self, messages: Messages) -> Rendered:
        """A conversation as text, with where each character came from; content that steers is flagged."""
        return self._conversations.text(messages)

    def refining(self, messages: Messages, answers: Sequence[str]) -> list[int]:
        """The ids of a conversation that asks to check the answers so far."""
        return self._conversations.refining(messages, answers)

    def agent(
        self, tools: Sequence[str | Tool | Callable[..., Any]], **options: Unpack[AgentOptions]
    ) -> Agent:
        """This model with tools that it may call (docs/tools.md).

        A tool is a Python function with type hints, a built-in one by name ("calculator", "clock", "python",
        "search", "read"), or one of an MCP server (``agent.mcp.connect``). ``options``: ``AgentOptions``.
        """
        from cutaway.agent.loop import make_agent

        return make_agent(cast(Any, self), tools, lambda: load("minilm"), **options)

    # ---- whole texts ---------------------------------------------------------------------------------------

    def embed(
        self,
        texts: Sequence[Prompt],
        pooling: Pooling | None = None,
        normalise: bool = True,
        **options: Unpack[EmbedOptions],
    ) -> np.ndarray:
        """float32 [n d]: a vector for each text, of length one if ``normalise``.

        ``pooling`` makes one vector of a text's tokens: "mean", "cls" (the first) or "last". None is what the
        model's makers chose, for an encoder without their word the mean; a decoder needs it. ``options``:
        ``EmbedOptions``. Raises UserError for a text that is too long, unless ``truncate``, or has no token.
        """
        return self._texts.vectors(texts, self._edits, pooling, normalise, **options)

    def classify(self, texts: Sequence[Prompt | tuple[str, str]], **options: Unpack[ReadOptions]) -> Classes:
        """The labels of texts, or of pairs of texts that are read together, by the head of a classifier.

        ``options`` are those of ``embed``. UserError for a model without such a head, and for a text that is
        too long (``truncate`` cuts a pair's longer text).
        """
        return self._texts.classes(texts, **options)

    def classify_tokens(
        self, texts: Sequence[Prompt], **options: Unpack[ReadOptions]
    ) -> list[tuple[list[int], Classes]]:
        """The ids of each text, as the model reads it, and the labels of its tokens, a row each.

        UserError as in ``classify``, for a model whose head is of tokens (such as those that find names).
        """
        return self._texts.token_classes(texts, **options)

    def rank(
        self, query: str, texts: Sequence[str], batch: int = 32, progress: store.Progress = store.silent
    ) -> np.ndarray:
        """float32 [n]: how well each text fits a query, by a cross-encoder that reads the two together.

        UserError for a model that is none, and for a pair that is longer than it reads.
        """
        return self._texts.scores(query, texts, batch, progress)

    @property
    def classifier(self) -> Classifier | None:
        """The head for labels, for a model that has one."""
        return self._texts.classifier

    @property
    def ranks(self) -> bool:
        """Whether it is a cross-encoder: a classifier of texts with one label."""
        return self._texts.ranks

    @property
    def inputs(self) -> PairInputs:
        """The model's inputs for texts and pairs of texts."""
        return self._texts.inputs

    # ---- what is inside ------------------------------------------------------------------------------------

    @property
    def subject(self) -> Subject:
        """What studies ask (``inspect/instrumented.py``), with this model's edits."""
        return self.engines.subject(self.tokenizer, self._edits, self._encoded)

    def _encoded(self, prompt: Prompt | Messages) -> list[int]:
        """The ids of a prompt, or of a conversation's messages."""
        several = isinstance(prompt, Sequence) and not isinstance(prompt, str) and len(prompt) > 0
        messages = several and isinstance(prompt[0], Mapping)
        return self.chat_ids(cast(Any, prompt)) if messages else self.ids(cast(Prompt, prompt))

    @overload
    def trace(self, text: Prompt | Messages, edit: Edit = None, names: Names = None) -> Trace: ...

    @overload
    def trace(self, text: Batch, edit: Edit = None, names: Names = None) -> Traces: ...

    def trace(self, text: Any, edit: Edit = None, names: Names = None) -> Trace | Traces:
        """One forward pass with every activation kept, or only ``names`` and the logits.

        ``text`` is text, ids or a conversation's messages. A list of texts or of ids is a batch: ``Traces``,
        which keep no logits unless they are named; no layer after the last that is needed is computed.
        ``names`` may have wildcards and may be TransformerLens's (``inspect/names.py``); wildcards stand for
        what the engine shows, None for all that it shows. ``edit`` changes activations
        (``inspect/edits.py``). The runtime answers where it runs the model, shows the names and makes the
        edits, the PyTorch model otherwise: ``trace.engine`` says which, and why.
        """
        from cutaway.inspect.trace import trace

        return trace(self.subject, text, names, edit or ())

    def activations(
        self,
        texts: Iterable[Prompt],
        names: Sequence[str],
        output: StrPath | None = None,
        **options: Unpack[Collecting],
    ) -> Activations:
        """Activations of many texts, a row for each token: in shards, or in memory without ``output``.

        The runtime reads where it runs the model and shows the ``names`` (``runtime/values.py``), the
        PyTorch model otherwise; the dataset's ``facts`` say which. ``options``: ``Collecting``. Raises
        UserError for other texts or options than an unfinished ``output`` has, and for names without a row
        for each token.
        """
        from cutaway.inspect.collecting import collect

        self.engines.decoder()
        return collect(self, texts, names, output, **options)
