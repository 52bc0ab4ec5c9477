"""A served model, as the routes share it: names, scheduler, limits, threads, metrics, headers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import math
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cutaway
from cutaway.errors import UserError
from cutaway.generate import constrain, internals
from cutaway.generate.batch.prefix_store import PrefixStore
from cutaway.generate.batch.request import Generation
from cutaway.generate.batch.scheduler import Scheduler
from cutaway.generate.batch.sequence import check_prompt, vocab_size
from cutaway.generate.engine import BatchedEngine, Engine
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.speculative import Drafting
from cutaway.generate.tool_calls.constraint import Held
from cutaway.inspect.lenses import lens_logits
from cutaway.lm import LanguageModel
from cutaway.serve.answer_form import AnswerForm
from cutaway.serve.api_error import RETRY_AFTER, APIError, ContextError, about, errors_in
from cutaway.serve.openai.sampling_schema import SAMPLERS, Internals, SamplingRequest
from cutaway.serve.operations.bounded_log import PROMPTS
from cutaway.serve.operations.metrics import Metrics
from cutaway.serve.operations.request_record import client_of, record_of
from cutaway.serve.response_store import ResponseStore
from cutaway.serve.saved_slots import SavedSlots
from cutaway.serve.validation import StrictModel
from cutaway.serve.work_pool import MOST_WAITING, THREADS, FairPool, LoopBridge, Result, counted
from cutaway.tokenizer import Tokenizer

if TYPE_CHECKING:
    from starlette.requests import Request as HTTPRequest

    from cutaway.inspect.dictionaries import Dictionary

log = logging.getLogger(PROMPTS)
MAX_STOPS = 16
MOST_RETRY_AFTER = 120  # seconds


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; ``max_tokens`` of an answer, None for as many as the context holds."""

    max_sequences: int = 16
    max_queue: int = 512
    max_tokens: int | None = None
    body_bytes: int = 2 << 20
    request_seconds: float = 600.0
    body_seconds: float = 30.0
    drain_seconds: float = 30.0
    state_bytes: int | None = None  # of KV cache; None for what the longest texts take, or half of the memory
    choices: int = 16  # n of one request
    texts: int = 256  # prompts of one request for completions
    inputs: int = 2048  # texts of one request for embeddings
    trace_tokens: int = 8192
    trace_numbers: int = 4_000_000

    def scheduler(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        drafting: Drafting | None = None,
        prefixes: PrefixStore | None = None,
    ) -> Scheduler:
        """A scheduler within these limits."""
        return Scheduler(
            engine,
            tokenizer,
            max_sequences=self.max_sequences,
            max_queue=self.max_queue,
            state_bytes=self.state_bytes,
            drafting=drafting,
            prefixes=prefixes,
        )

    def tokens(self, asked: int | None, prompt: int, context: int, param: str) -> int | None:
        """An answer's max_tokens after so long a prompt: what was asked for, or what the context has room
        for. APIError for more than the server's limit, and for a prompt that leaves no room.
        """
        least = prompt + (asked != 0)
        if least > context:
            raise ContextError(prompt, least - prompt, context, param)
        most = self.max_tokens
        if asked is not None and most is not None and asked > most:
            text = f"{param} is {asked}, and this server answers with at most {most}"
            raise APIError(400, text, param=param, code="above_limit")
        return most if asked is None else min(asked, context - prompt)

    def check_choices(self, count: int, param: str) -> None:
        """Refuse a request for too many answers to a prompt."""
        _at_most(count, self.choices, "answers to a prompt", param)

    def check_texts(self, count: int, param: str) -> None:
        """Refuse a request with too many texts to complete."""
        _at_most(count, self.texts, "texts", param)

    def check_inputs(self, count: int, param: str) -> None:
        """Refuse a request with too many texts to embed."""
        _at_most(count, self.inputs, "texts", param)


@dataclass(frozen=True)
class Service:
    """One model, served. ``scheduler`` is None for an encoder, which generates no text."""

    lm: LanguageModel
    name: str
    scheduler: Scheduler | None
    limits: Limits
    metrics: Metrics
    log_prompts: bool = False
    adapters: dict[str, BatchedEngine] = field(default_factory=dict)  # the scheduler's engine with each
    aliases: tuple[str, ...] = ()  # further names that requests may give the model, or patterns of them
    lenient: bool = False  # unknown fields are ignored, and named in the response
    pooling: Any = None  # of embeddings whose request names none; None: an encoder's own
    dimensions: Sequence[int] = ()  # embeddings may be truncated to these
    adapter_folder: Path | None = None  # from which an admin may load adapters; None: from nowhere
    lenses: Mapping[str, Any] = field(default_factory=dict)  # by kind, beside the logit lens
    dictionaries: Sequence[Dictionary] = ()  # of features
    slots: SavedSlots | None = None  # of llama-server's clients; None: they are not saved
    store: ResponseStore = field(default_factory=ResponseStore)
    running: dict[tuple[bytes, str], Any] = field(default_factory=dict)  # responses, by API key and id
    created: int = field(default_factory=lambda: int(time.time()))
    bridge: LoopBridge = field(default_factory=LoopBridge)
    pool: FairPool = field(default_factory=lambda: FairPool(THREADS, "cutaway-work", MOST_WAITING))
    alone_pool: FairPool = field(init=False)
    finished: deque[float] = field(default_factory=lambda: deque(maxlen=64))  # when answers ended

    def __post_init__(self) -> None:
        pool = FairPool(1, "cutaway-alone", max(1, self.limits.max_queue))
        object.__setattr__(self, "alone_pool", pool)
        if self.scheduler is not None:
            self.scheduler.on_step = self.bridge.send

    # ---- threads -------------------------------------------------------------------------------------------

    def run(self, client: str, work: Callable[..., Result], *arguments: Any) -> Coroutine[Any, Any, Result]:
        """Run work(service, ...), which computes nothing with the model, beside the event loop."""
        return self.pool.run(client, self.limits.request_seconds, work, self, *arguments)

    async def run_alone(self, http: HTTPRequest, work: Callable[..., Result], *arguments: Any) -> Result:
        """Run work(service, ...) that computes with the model beside the scheduler's steps, one at a time.

        What it reads it counts with `spend`.
        """
        record, loop = record_of(http), asyncio.get_running_loop()

        def spending() -> Result:
            with counted(lambda tokens: loop.call_soon_threadsafe(record.spend, tokens, 0, 0)):
                return work(self, *arguments)

        return await self.alone_pool.run(client_of(http), self.limits.request_seconds, spending)

    # ---- the scheduler -------------------------------------------------------------------------------------

    @property
    def decoder(self) -> Scheduler:
        """The scheduler; APIError for an encoder."""
        if self.scheduler is None:
            raise APIError(
                400,
                f"{self.name} is an encoder: it turns texts into vectors (/v1/embeddings) and writes none",
            )
        return self.scheduler

    def retry_after(self) -> int:
        """Seconds in which half of what waits is answered, at the pace of the last answers."""
        if self.scheduler is None or len(self.finished) < 2:
            return RETRY_AFTER
        pace = (time.perf_counter() - self.finished[0]) / len(self.finished)
        return min(max(1, math.ceil(pace * self.scheduler.stats().queued / 2)), MOST_RETRY_AFTER)

    def stop(self, seconds: float) -> int:
        """Take no new request of this model, finish what is under way in so many seconds, and end the rest
        with an error; how many answers those were.
        """
        ends = time.monotonic() + seconds
        parts = (self.scheduler, self.alone_pool)
        return sum(one.drain(max(0.0, ends - time.monotonic())) for one in parts if one is not None)

    @property
    def nbytes(self) -> int:
        """Bytes that the model takes by now: its packed weights where the runtime reads them, the
        PyTorch model's once it is built, and its scheduler's KV cache when it is full.
        """
        figures = None if self.scheduler is None else self.scheduler.stats()
        cache = 0 if figures is None else figures.pages_total * figures.page_bytes
        return self.lm.engines.nbytes + cache

    @cached_property
    def context(self) -> int:
        """How many tokens prompt and answer may have together."""
        return self.decoder.engine.max_context

    @cached_property
    def vocab(self) -> int:
        """How many ids are tokens."""
        return vocab_size(self.decoder.engine, self.tokenizer)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.lm.tokenizer

    @cached_property
    def template(self) -> str | None:
        """The model's chat template; None where it has none."""
        return self.lm.checkpoint.chat_template

    @cached_property
    def _sampling(self) -> dict[str, Any]:
        """How it samples where a request does not say: its generation_config's values, else OpenAI's."""
        own = self.lm.checkpoint.defaults
        return {"temperature": 1.0} | {name: value for name, value in own.items() if name in SAMPLERS}

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        """The end tokens that its files name beside the tokenizer's."""
        return tuple(id for id in self.lm.ending(SamplingParams()).stop_ids if id < self.vocab)

    # ---- from a request's fields to the scheduler's --------------------------------------------------------

    def check_model(self, asked: str | None) -> None:
        """Refuse the name of another model, and of an adapter where it cannot answer."""
        if asked in self.adapters:
            text = f"{asked!r} is an adapter, which generates text: ask {self.name!r} for this"
            raise APIError(400, text, param="model")
        if asked and asked != self.name and not any(fnmatchcase(asked, one) for one in self.aliases):
            names = ", ".join(map(repr, self.names))
            text = f"There is no model {asked[:100]!r} here: this server has {names}"
            raise APIError(404, text, param="model", code="model_not_found")

    @property
    def names(self) -> tuple[str, ...]:
        """The model's names, without patterns, and its adapters'."""
        return self.name, *(one for one in self.aliases if not set(one) & set("*?[")), *self.adapters

    def engine_of(self, asked: str | None, edits: object = None) -> BatchedEngine | None:
        """The engine that reads a request's text, None for the scheduler's own; APIError for another
        model's name, and for edits beside an adapter.
        """
        if asked not in self.adapters or edits:
            self.check_model(asked)
        return self.adapters.get(asked or self.name)

    def load_adapter(self, name: str, path: str) -> None:
        """Answer as the model ``name`` too, with the adapter of a folder inside ``adapter_folder``. A name
        that an adapter has is that of the new one from the next request on. APIError where it cannot be. The
        name is checked by Models.load_adapter.
        """
        if self.adapter_folder is None:
            text = "This server loads no adapters: start it with --adapter-folder FOLDER, which holds them"
            raise APIError(403, text, type="permission_error", code="adapters_are_fixed")
        if not path.isprintable():  # NUL and half a surrogate pair among them
            raise APIError(400, "lora_path holds characters that are not printable", param="lora_path")
        root = self.adapter_folder.resolve()
        folder = (root / path).resolve()
        if not folder.is_relative_to(root):
            text = "lora_path is outside the folder that this server was given as --adapter-folder"
            raise APIError(403, text, type="permission_error", param="lora_path")
        try:
            self.adapters[name] = adapter_engine(self.lm, folder)
        except UserError as error:  # which names the machine's path
            text = str(error).replace(str(folder), repr(path))
            raise APIError(400, text, param="lora_path") from None

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; requests with it that are under way are finished. APIError for another name."""
        if self.adapters.pop(name, None) is None:
            raise APIError(
                404, f"There is no adapter {name[:100]!r} here", param="lora_name", code="not_found"
            )

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Refuse ids outside the vocabulary, and a prompt that fills the context."""
        try:
            check_prompt(ids, self.tokenizer, self.decoder.engine)
        except UserError as error:
            raise about(error, param) from None

    def sampling_params(
        self, body: SamplingRequest, max_tokens: int | None, logprobs: int, choice: int
    ) -> SamplingParams:
        """The SamplingParams of one of a request's answers: the request's values, else those of the model's
        generation_config, else OpenAI's defaults. Choice n draws with the request's seed + n.
        """
        given = {name: value for name in SAMPLERS if (value := getattr(body, name)) is not None}
        stops = [] if body.stop is None else [body.stop] if isinstance(body.stop, str) else body.stop
        if len(stops) > MAX_STOPS:
            raise APIError(400, f"stop has {len(stops)} texts, and the limit is {MAX_STOPS}", param="stop")
        if "" in stops:
            raise APIError(400, "stop has an empty text, which would end every answer", param="stop")
        values: dict[str, Any] = self._sampling | given
        ends = () if values.get("ignore_eos") else self._ends
        params = SamplingParams(
            **values,
            max_tokens=max_tokens,
            logit_bias=_logit_bias(body.logit_bias or {}),
            stop=stops,
            stop_ids=(*(body.stop_token_ids or ()), *ends),
            seed=None if body.seed is None else (body.seed + choice) % 2**63,
            logprobs=logprobs,
        )
        try:
            params.check(self.vocab)
        except UserError as error:
            raise about(error, "stop_token_ids" if body.stop_token_ids else "logit_bias") from None
        return params

    def sampled_as(self, api: Mapping[str, float], given: Mapping[str, Any]) -> dict[str, Any]:
        """A request's sampling fields; for one it leaves out, the model's own default, else that of ``api``,
        another server's API.
        """
        own = self.lm.checkpoint.defaults
        return {
            name: api[name] if value is None and name in api and name not in own else value
            for name, value in given.items()
        }

    def internals(self, asked: Internals | None) -> internals.Internals | None:
        """Which internals a request asks for; APIError for layers that the model does not have."""
        if asked is None:
            return None
        through = None
        if asked.lens_kind != "logit":
            if asked.lens_kind not in self.lenses:
                text = f"This server has no {asked.lens_kind} lens of this model: start it with --lens FILE"
                raise APIError(400, text, param="internals.lens_kind")
            through = partial(lens_logits, self.lm.subject, self.lenses[asked.lens_kind])
        wanted = internals.Internals(tuple(asked.layers), asked.attention, asked.lens, through)
        with errors_in("internals"):
            wanted.check(len(self.lm.config.blocks), self.vocab)
        return wanted

    def log_answer(self, body: StrictModel, answers: Sequence[Any]) -> None:
        """Log a request and its answers, with ``--log-prompts``."""
        if self.log_prompts:
            log.info("%s %s", body.model_dump_json(exclude_none=True), json.dumps(answers))

    def head(self, prefix: str, kind: str, model: str | None) -> dict[str, Any]:
        """The fields that every chat completion and completion begins with."""
        return {
            "id": new_id(prefix),
            "object": kind,
            "created": int(time.time()),
            "model": model or self.name,
            "system_fingerprint": f"cutaway-{cutaway.__version__}",
        }


def new_id(kind: str) -> str:
    """A unique id of an answer."""
    return f"{kind}-{uuid.uuid4().hex}"


def usage(generations: Sequence[Generation], prompts: Sequence[Generation]) -> dict[str, Any]:
    """How many tokens were read and generated; ``prompts`` has one generation for each prompt."""
    read = sum(len(one.prompt_ids) for one in prompts)
    generated = sum(len(one.ids) for one in generations)
    cached = read - sum(one.timings.prefill_tokens for one in prompts)
    drafted, accepted = (
        sum(getattr(one.timings, name) for one in generations)
        for name in ("drafted_tokens", "accepted_tokens")
    )
    predicted = {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": drafted - accepted}
    return {
        "prompt_tokens": read,
        "completion_tokens": generated,
        "total_tokens": read + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    } | ({"completion_tokens_details": predicted} if drafted else {})


def warned(warnings: Sequence[str]) -> dict[str, Any]:
    """The field ``warnings`` of an answer, where there are any."""
    return {"warnings": warnings} if warnings else {}


def adapter_engine(lm: LanguageModel, folder: str | Path) -> BatchedEngine:
    """The model's engine with the adapter of a folder beside its weights, which both share.

    Raises UserError for an adapter that is not read, and for one that needs weights of its own.
    """
    chosen, why = lm.engine_choice
    if chosen == "pytorch":
        raise UserError(
            f"{folder}: only the runtime serves adapters by name beside the model, and the PyTorch model "
            f"answers here, because {why}: give --adapter FOLDER without a name, and it is the model's own"
        )
    engine: Any = lm.with_adapter(folder).engine
    if getattr(engine, "packed", None) is not getattr(lm.engine, "packed", lm):
        raise UserError(
            f"{folder}: the runtime does not apply this adapter beside the model's own weights: write both "
            "as one model (`cutaway merge`) and serve that"
        )
    return engine


def warm_up(service: Service) -> None:
    """Build what the first requests would wait for: the tables of the model, the template and the grammars.

    What exists by now stays to the end, so the garbage collector skips it: one collection through
    all of it stopped every answer for 80 ms.
    """
    lm = service.lm
    if service.scheduler is None:
        lm.embed(["Hello"])
    else:
        lm.generate("Hello", max_tokens=2)
        lm.ids("Hello " * 1000)  # a long text needs a table that a short one does not
        for build in (
            lambda: lm.chat_ids([{"role": "user", "content": "Hello"}]),
            lambda: AnswerForm(lm, "response_format", held=Held(constrain.json_object())).limit([64]),
        ):
            with contextlib.suppress(UserError):  # a model without a template says so to those who ask
                build()
    gc.collect()
    gc.freeze()
    gc.set_threshold(2000, 10, 1000)  # a look through all of a large body's objects takes 60 ms: seldom


def _logit_bias(asked: dict[str, float]) -> dict[int, float]:
    """Biases by id; at -100, OpenAI's lower bound, a token is banned whatever its logit."""
    for id in asked:
        if not (id.isascii() and id.isdecimal() and len(id) < 10):
            text = f"logit_bias names {id[:40]!r}: it must name ids of tokens"
            raise APIError(400, text, param="logit_bias")
    return {int(id): float("-inf") if value <= -100 else value for id, value in asked.items()}


def _at_most(count: int, most: int, what: str, param: str) -> None:
    if count > most:
        text = f"This asks for {count} {what}, and one request may ask for {most}"
        raise APIError(400, text, param=param, code="above_limit")
