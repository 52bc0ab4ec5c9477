"""What the endpoints share: the model under its name, the engine that answers, the limits, the counts."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, TypeVar

import cutaway
from cutaway.errors import UserError
from cutaway.generate import constrain
from cutaway.generate import internals as inside
from cutaway.generate.batch.request import Request
from cutaway.generate.batch.scheduler import Scheduler
from cutaway.generate.decode import checked, shown_ids
from cutaway.generate.engine import Editable, Engine
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.session import Edited
from cutaway.lm import LanguageModel
from cutaway.serve.api_error import APIError, about
from cutaway.serve.bounded_log import PROMPTS
from cutaway.serve.fair_pool import FairPool
from cutaway.serve.limits import Limits
from cutaway.serve.loop_bridge import LoopBridge
from cutaway.serve.metrics import Metrics
from cutaway.serve.protocol import (
    Format,
    Internals,
    JsonObject,
    JsonSchema,
    LarkGrammar,
    Regex,
    ResponseSchema,
    Sampling,
    StrictModel,
    TextFormat,
)
from cutaway.tokenizer import Tokenizer

Made = TypeVar("Made")

log = logging.getLogger(PROMPTS)
MOST_STOPS = 16


@dataclass(frozen=True)
class Service:
    """One model, served. ``scheduler`` is None for an encoder, which writes nothing."""

    lm: LanguageModel
    name: str
    scheduler: Scheduler | None
    limits: Limits
    metrics: Metrics
    log_prompts: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    post: LoopBridge = field(default_factory=LoopBridge)

    preparing: FairPool = field(default_factory=lambda: FairPool(4, "cutaway-prepare", 256))
    compiling: FairPool = field(default_factory=lambda: FairPool(1, "cutaway-compile", 64))
    looking: FairPool = field(init=False)
    editing: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        object.__setattr__(self, "looking", FairPool(1, "cutaway-look", max(1, self.limits.max_queue)))
        if self.scheduler is not None:
            self.scheduler.told = self.post.send

    @property
    def fingerprint(self) -> str:
        """What OpenAI's clients are told of the system that answered."""
        return f"cutaway-{cutaway.__version__}"

    async def prepare(
        self, client: str, work: Callable[..., Made], *arguments: Any, grammar: bool = False
    ) -> Made:
        """Work on a request's text away from the event loop; with ``grammar`` one request at a time, so that
        costly grammars delay none but each other.
        """
        pool = self.compiling if grammar else self.preparing
        return await pool.run(client, self.limits.request_seconds, work, self, *arguments)

    async def look(self, client: str, work: Callable[..., Made], *arguments: Any) -> Made:
        """Work with the definition, one request at a time."""
        return await self.looking.run(client, self.limits.request_seconds, work, self, *arguments)

    def note_answer(self, body: StrictModel, answers: Sequence[Any]) -> None:
        """Writes a request and its answers to the log, if the server was told to."""
        if self.log_prompts:
            log.info("%s %s", body.model_dump_json(exclude_none=True), json.dumps(answers))

    @property
    def writer(self) -> Scheduler:
        """The engine that writes; APIError for a model that writes nothing."""
        if self.scheduler is None:
            raise APIError(
                400,
                f"{self.name} is an encoder: it turns texts into vectors (/v1/embeddings) and writes none",
            )
        return self.scheduler

    def writer_of(self, request: Request) -> Scheduler:
        """The scheduler of a request: with edits, the definition's."""
        return self.writer if request.edit is None else self.editor

    @cached_property
    def editor(self) -> Scheduler:
        """The scheduler of requests with edits: on the definition, beside the one that answers all others."""
        if isinstance(self.writer.engine, Editable):
            return self.writer
        made = Scheduler(
            _Definition(self.lm), max_sequences=self.limits.max_sequences, max_queue=self.limits.max_queue
        )
        made.told = self.post.send
        return made

    def edit(self, asked: Sequence[Any] | None, ids: Sequence[int]) -> Edited | None:
        """A request's edits for this prompt; APIError where they fit neither the model nor its engine."""
        if not asked:
            return None
        from cutaway.serve.traces import edits

        made = edits(self, asked, ids)
        with about("edits"), self.editing:
            prepared = self.lm.prepared(made, ids)
            _ = self.editor  # made here, away from the event loop
        return prepared

    def close(self) -> None:
        """Finishes answers under way, as long as the limits say."""
        for one in (self.scheduler, self.__dict__.get("editor")):
            if one is not None:
                one.drain(self.limits.drain_seconds)

    @property
    def context(self) -> int:
        """How many tokens prompt and answer may have together."""
        return self.writer.engine.max_context

    def check_model(self, asked: str | None) -> None:
        """Refuses the name of another model."""
        if asked is not None and asked != self.name:
            raise APIError(
                404,
                f"There is no model {asked[:100]!r} here: this server has {self.name!r}",
                param="model",
                code="model_not_found",
            )

    def settings(
        self, body: Sampling, max_tokens: int | None, alternatives: int, choice: int
    ) -> SamplingParams:
        """How the engine is to choose, for one of a request's answers: as told, else as the model's makers
        advise, else as OpenAI does. Each answer has random numbers of its own, the first those of the
        request's seed.
        """
        advice = {name: value for name, value in self.lm.checkpoint.defaults.items() if name in SAMPLERS}
        told = {name: value for name in SAMPLERS if (value := getattr(body, name)) is not None}
        stops = _stops(body.stop)
        if "" in stops:
            raise APIError(400, "stop has an empty text, which would end every answer", param="stop")
        settings = SamplingParams(
            **({"temperature": 1.0} | advice | told),  # pyright: ignore[reportArgumentType]
            max_tokens=max_tokens,
            logit_bias=_bias(body.logit_bias or {}),
            stop=stops,
            seed=None if body.seed is None else (body.seed + choice) % 2**63,
            logprobs=alternatives,
        )
        with about("logit_bias"):
            settings.check(shown_ids(self.writer.engine, self.lm.tokenizer))
        return settings

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Refuses ids that the model does not have, and a prompt that fills its context."""
        with about(param):
            checked(ids, self.lm.tokenizer, self.writer.engine)

    def internals(self, asked: Internals | None) -> inside.Internals | None:
        """What is to be watched; APIError for layers that the model does not have."""
        if asked is None:
            return None
        watch = inside.Internals(tuple(asked.layers), asked.attention, asked.lens)
        with about("internals"):
            watch.check(len(self.lm.config.blocks), shown_ids(self.writer.engine, self.lm.tokenizer))
        return watch

    def constraint(self, asked: Format | ResponseSchema | None, param: str) -> constrain.Constraint | None:
        """What a response_format holds an answer to, from its first token."""
        with about(param):
            return self.held_to(_grammar(asked))

    def held_to(self, grammar: constrain.Grammar | None) -> constrain.Constraint | None:
        """An answer under a grammar, from its first token."""
        if grammar is None:
            return None
        ends = self.lm.checkpoint.defaults.get("eos_ids", ())
        return grammar.begin(self.lm.tokenizer, ends if isinstance(ends, tuple) else ())


@dataclass(frozen=True)
class _Definition:
    """A language model that answers with its definition."""

    lm: LanguageModel

    @property
    def engine(self) -> Engine:
        return self.lm.definition

    @property
    def tokenizer(self) -> Tokenizer:
        return self.lm.tokenizer

    def ending(self, settings: SamplingParams, /) -> SamplingParams:
        return self.lm.ending(settings)


def ready(service: Service) -> None:
    """Makes what the first requests would wait for: the model's and the template's tables, and the grammars'
    vocabulary. What is there by now stays to the end, so garbage collection is told to leave it: a round
    through all of it stopped every answer for 80 ms.
    """
    lm = service.lm
    if service.scheduler is None:
        lm.embed(["Hello"])
    else:
        lm.generate("Hello", max_tokens=2)
        lm.ids("Hello " * 1000)  # a long text's ids need a table that a short one's do not
        for make in (
            lambda: lm.chat_ids([{"role": "user", "content": "Hello"}]),
            lambda: service.held_to(constrain.json_object()),
        ):
            with contextlib.suppress(UserError):  # a model that has none says so to who asks
                make()
    gc.collect()
    gc.freeze()


SAMPLERS = tuple(
    name
    for name in Sampling.model_fields
    if name in {option.name for option in fields(SamplingParams)}
    and name not in ("max_tokens", "logit_bias", "stop", "seed")
)


def _grammar(asked: Format | ResponseSchema | None) -> constrain.Grammar | None:
    """The grammar of a response_format, None for text."""
    if asked is None or isinstance(asked, TextFormat):
        return None
    if isinstance(asked, JsonObject):
        return constrain.json_object()
    if isinstance(asked, Regex):
        return constrain.regex(asked.regex)
    if isinstance(asked, LarkGrammar):
        return constrain.lark(asked.grammar)
    schema: Any = asked.json_schema.schema_ if isinstance(asked, JsonSchema) else asked.schema_
    return constrain.json_object() if schema is None else constrain.json_schema(schema)


def _bias(asked: dict[str, float]) -> dict[int, float]:
    """Ids by their numbers; at -100, OpenAI's lower bound, a token is banned whatever its logit."""
    for id in asked:
        if not (id.isascii() and id.isdecimal() and len(id) < 10):
            raise APIError(
                400, f"logit_bias names {id[:40]!r}: it must name ids of tokens", param="logit_bias"
            )
    return {int(id): float("-inf") if value <= -100 else value for id, value in asked.items()}


def _stops(asked: str | Sequence[str] | None) -> Sequence[str]:
    stops = [] if asked is None else [asked] if isinstance(asked, str) else asked
    if len(stops) > MOST_STOPS:
        raise APIError(
            400, f"stop has {len(stops)} texts, and at most {MOST_STOPS} are looked for", param="stop"
        )
    return stops
