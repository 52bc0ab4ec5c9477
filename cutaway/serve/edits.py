"""A request's edits of the model: from its fields to what the engine takes, for each of its prompts.

The engine that answers makes them in the step that reads the text, beside other texts. What they take of
other texts (a patch, a mean) the runtime reads before, in the same batch; of the PyTorch model's a thread.
Edits that the runtime does not make are refused: a server of the PyTorch model (--engine pytorch) makes all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from starlette.requests import Request as HTTPRequest

from cutaway.generate.batch.observation import Observation
from cutaway.generate.batch.request import Piece, Request
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.session import EditHooks
from cutaway.serve.api_error import APIError, capital, errors_in, timeout_error
from cutaway.serve.operations.request_record import Caller, record_of
from cutaway.serve.prompts import prompt
from cutaway.serve.service import Service
from cutaway.serve.work_pool import spend

Result = TypeVar("Result")
SQUARE = ("scores", "pattern", "index", "chosen")
READ = SamplingParams(max_tokens=1, ignore_eos=True)  # the least that a scheduler is asked for
WHOLE_TOKENS = 1024  # of a text whose activations are all held: for the page, or by the PyTorch model


@dataclass(frozen=True)
class RequestEdits:
    """Edits, and what they take of other texts, where that is read (None: they read it themselves)."""

    service: Service
    edits: Sequence[Any]
    donors: Any = None

    @property
    def in_batch(self) -> bool:
        """Whether what they take of other texts is read in the batch, and not by the PyTorch model."""
        return self.service.lm.engine_choice[0] == "runtime"

    def hooks(self, ids: Sequence[int]) -> EditHooks:
        """The edits as the engine takes them, of this prompt; APIError where they do not fit."""
        from cutaway.inspect.edits import check

        for i, one in enumerate(self.edits):
            with errors_in(f"edits[{i}]"):
                check(self.service.lm.config, one, len(ids))
        with errors_in("edits"):
            hooks = self.service.lm.edited_engine(self.edits, ids, self.donors).hooks
        if callable(hooks):
            for text in _texts(self.edits):
                spend(len(text))
        return hooks


async def prepared(
    service: Service, body: Any, http: HTTPRequest, caller: Caller, work: Callable[..., Result], *more: Any
) -> Result:
    """The work (service, body, caller, edits, ...) that makes a request's prompts; its edits are ready."""
    own = await service.run(caller.client, parse_edits, body.edits)
    return await once_ready(own, http, caller, lambda _, ready: work(service, body, caller, ready, *more))


async def once_ready(
    own: RequestEdits, http: HTTPRequest, caller: Caller, work: Callable[[Service, RequestEdits], Result]
) -> Result:
    """The work, which may take the edits' hooks: what they take of other texts is read before by the runtime,
    and by the thread itself where the PyTorch model answers.
    """
    if own.edits and not own.in_batch:
        return await own.service.run_alone(http, work, own)
    ready = await with_donors(own, http, caller) if own.edits else own
    return await own.service.run(caller.client, work, ready)


def parse_edits(service: Service, asked: Sequence[Any]) -> RequestEdits:
    """The edits of a request; APIError for one that fits no prompt of the model."""
    from cutaway.inspect.edits import from_json

    made = []
    for i, one in enumerate(asked):
        fields = one.model_dump(exclude={"text", "messages"})
        if hasattr(one, "text"):
            fields["ids"] = prompt(service, one.text, one.messages, f"edits[{i}].text")
            check_length(service, fields["ids"], f"edits[{i}].text")
        if hasattr(one, "reference"):
            fields["reference"] = [service.lm.ids(text) for text in one.reference]
            for reference in fields["reference"]:
                check_length(service, reference, f"edits[{i}].reference")
        with errors_in(f"edits[{i}]"):
            made.append(from_json(fields))
        if one.name is not None:
            _check_name(service, one.name, f"edits[{i}].name")
        _check_engine(service, made[-1], f"edits[{i}]")
    return RequestEdits(service, made)


async def with_donors(own: RequestEdits, http: HTTPRequest, caller: Caller) -> RequestEdits:
    """The edits with what they take of other texts, which the scheduler reads as it reads any prompt."""
    from cutaway.inspect import runtime_edits

    lm = own.service.lm
    with errors_in("edits"):
        wanted = [pair for one in own.edits for pair in runtime_edits.takes(lm.config, one)]
    names: dict[tuple[int, ...], list[str]] = {}
    for ids, value in wanted:
        names.setdefault(tuple(ids), []).append(value.name)
    donors = runtime_edits.Donors(lm.engine)
    seen = {ids: Observation(list(dict.fromkeys(some)), range(len(ids))) for ids, some in names.items()}
    requests = [Request(ids, READ, observation=one, **vars(caller)) for ids, one in seen.items()]
    for ids in seen:
        own.service.check_ids(ids, "edits")
    await read(own.service, http, requests)
    for ids, one in seen.items():
        for name, rows in one.rows.items():
            donors.add(ids, name, rows)
    return RequestEdits(own.service, own.edits, donors)


async def read(service: Service, http: HTTPRequest, requests: Sequence[Request]) -> None:
    """Have the scheduler read prompts beside all others. What was read counts, when the client leaves too."""
    record, seconds = record_of(http), service.limits.request_seconds
    streams = [service.decoder.submit(request) for request in requests]
    queue: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()
    for stream in streams:
        stream.subscribe(service.bridge.listener(queue))
    service.bridge.deliver()
    left = len(streams)
    try:
        async with asyncio.timeout(seconds):
            while left:
                _, event = await queue.get()
                if isinstance(event, Exception):
                    raise event
                left -= event.generation is not None
    except TimeoutError:
        raise timeout_error(seconds) from None
    finally:
        for stream in streams:
            stream.cancel()  # after its end this does nothing
            record.spend(stream.read, stream.cached, 0)


def check_length(service: Service, ids: Sequence[int], param: str, most: int | None = None) -> None:
    """Refuse a text without tokens, and one that is longer than a trace reads."""
    if not ids:
        raise APIError(400, "The text has no tokens: give at least one", param=param)
    most = service.limits.trace_tokens if most is None else min(most, service.limits.trace_tokens)
    if len(ids) > most:
        text = f"The text has {len(ids):,} tokens, and a trace reads at most {most:,}"
        raise APIError(400, text, param=param, code="above_limit")


def _check_name(service: Service, name: str, param: str) -> None:
    """Refuse the name of attention maps, in any spelling and under any wildcard."""
    from cutaway.inspect import names

    layers = len(service.lm.config.blocks)
    maps = [f"blocks.{n}.attention.{last}" for n in range(layers) for last in SQUARE]
    if names.matching([*maps, *names.aliases(maps, layers)], name):
        text = f"{name[:60]!r} names attention maps, which grow with the square of the text: edit z or v"
        raise APIError(400, text, param=param)


def _check_engine(service: Service, edit: Any, param: str) -> None:
    """Refuse an edit that the runtime does not make, where it answers."""
    if service.lm.engine_choice[0] != "runtime":
        return
    from cutaway.inspect import runtime_edits
    from cutaway.runtime import values

    config = service.lm.config
    reason = runtime_edits.unsupported_reason(config, edit)
    if reason is not None:
        near = get_close_matches(edit.name or "", values.every(config), 3, 0.5)
        hint = f"; near are {', '.join(near)}" if near else ""
        text = f"{capital(reason)}{hint}. A server started with --engine pytorch makes every edit"
        raise APIError(400, text, param=param, code="unsupported_edit")


def _texts(edits: Sequence[Any]) -> list[Sequence[int]]:
    """The texts of which edits take values."""
    return [ids for one in edits for ids in (*getattr(one, "reference", ()), getattr(one, "ids", ())) if ids]
