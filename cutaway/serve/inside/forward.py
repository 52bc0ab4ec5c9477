"""Shared by the routes of this folder: one forward pass over a prompt, with edits, and some values.

The scheduler reads each prompt beside all other requests, and takes from the prefix cache what is before the
first of those tokens. What the runtime does not show is the PyTorch model's, one request at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import Field
from starlette.requests import Request as HTTPRequest

from cutaway.errors import OperationalError
from cutaway.generate.batch.observation import LOGITS, LOOKS, Observation
from cutaway.generate.batch.request import Request
from cutaway.generate.engine import BatchedEngine
from cutaway.inspect.inputs import has_pattern
from cutaway.serve.api_error import APIError
from cutaway.serve.edit_schema import Edits
from cutaway.serve.edits import READ, WHOLE_TOKENS, RequestEdits, check_length, parse_edits, read, with_donors
from cutaway.serve.openai.message_schema import Ending, Messages
from cutaway.serve.operations.request_record import Caller, caller_of
from cutaway.serve.prompts import PROMPT_ONCE, ending, prompt
from cutaway.serve.service import Service
from cutaway.serve.validation import Indices, Text
from cutaway.serve.work_pool import check_stopped, spend, stoppable


class InsideRequest(Ending):
    """A prompt, given once, and edits of the model while it is read."""

    model: Text | None = None
    text: Text | None = None
    prompt_token_ids: Indices | None = Field(
        None, description="The prompt as ids, in place of text and messages: what a model read and answered."
    )
    messages: Messages | None = None
    edits: Edits = Field([])


@dataclass(frozen=True)
class Prompt:
    """A prompt that is checked: its ids, and what reads it under which edits."""

    ids: list[int]
    edits: RequestEdits
    engine: BatchedEngine | None = None  # an adapter's; None: the model's own

    def under(self, more: Sequence[Any]) -> Prompt:
        """The prompt with more edits, which follow its own."""
        return replace(self, edits=replace(self.edits, edits=[*self.edits.edits, *more]))


@dataclass(frozen=True)
class Forward:
    """One forward pass over a prompt, and what is to be seen of it."""

    prompt: Prompt
    seen: Observation


async def prepared(
    service: Service, body: InsideRequest, http: HTTPRequest, *, adapters: bool = False
) -> Prompt:
    """A request's prompt, checked; what its edits take of other texts is read. ``adapters``: where no weight
    of the model is needed, so that an adapter may be asked too.
    """
    if not adapters:
        service.check_model(body.model)
    engine = service.engine_of(body.model, body.edits)
    _ = service.decoder  # refuses an encoder
    caller = caller_of(http, None)
    made = await service.run(caller.client, _checked, body)
    if not made.edits.edits or not made.edits.in_batch:
        return replace(made, engine=engine)
    return replace(made, edits=await with_donors(made.edits, http, caller))


def _checked(service: Service, body: InsideRequest) -> Prompt:
    ids = prompt_ids(service, body)
    service.check_ids(ids, "text")
    check_length(service, ids, "text")
    return Prompt(ids, parse_edits(service, body.edits))


def prompt_ids(service: Service, body: InsideRequest) -> list[int]:
    """The ids of a request's prompt, given once: as ids, as they are, as text or as messages."""
    if body.prompt_token_ids is None:
        return prompt(service, body.text, body.messages, "text", ending(body))
    if body.text is not None or body.messages is not None:
        raise APIError(400, PROMPT_ONCE, param="prompt_token_ids")
    return body.prompt_token_ids


async def run(service: Service, http: HTTPRequest, passes: Sequence[Forward]) -> None:
    """Have the passes run, in one batch where the engine's step shows what they ask for."""
    caller = caller_of(http, None)
    if service.lm.engine_choice[0] == "runtime" or not any(one.prompt.edits.edits for one in passes):
        requests = await service.run(caller.client, _requests, passes, caller)
    else:  # the PyTorch model reads what edits take of other texts
        requests = await service.run_alone(http, _requests, passes, caller)
    if requests is None and any(one.prompt.engine is not None for one in passes):
        raise APIError(
            400, "The runtime does not show this of an adapter: ask the model itself", param="model"
        )
    if requests is None:
        await service.run_alone(http, _alone, passes)
    else:
        await read(service, http, requests)
    await service.run(caller.client, lambda _: [_check_finite(one) for one in passes])


def _requests(service: Service, passes: Sequence[Forward], caller: Caller) -> list[Request] | None:
    """The scheduler's requests, None where the runtime does not show all of it."""
    is_runtime, made = service.lm.engine_choice[0] == "runtime", list[Request]()
    for one in passes:
        own = one.prompt.edits
        if is_runtime and not service.lm.engines.instrumented_runtime.in_step(one.seen.names):
            return None
        edit = own.hooks(one.prompt.ids) if own.edits else None
        ids = tuple(one.prompt.ids)
        made.append(
            Request(ids, READ, edit=edit, observation=one.seen, **vars(caller), engine=one.prompt.engine)
        )
    return made


def _alone(service: Service, passes: Sequence[Forward]) -> None:
    """The passes as `lm.trace` makes them, one after another."""
    for one in passes:
        ids, names = one.prompt.ids, [*one.seen.names]
        check_length(service, ids, "text", WHOLE_TOKENS)
        check_stopped()
        spend(len(ids))
        wanted, given = [*dict.fromkeys([*names, LOGITS])], list(one.prompt.edits.edits)
        engine: Any = service.lm.subject.choose(wanted, [given], [len(ids)])[0]
        with stoppable(engine.model) if engine.name == "pytorch" else nullcontext():
            (found,) = service.lm.subject.values([ids], wanted, given)
        for name in names:
            for at in one.seen.positions:
                row = found[name][at] if found[name].ndim == 2 else found[name][:, at]
                one.seen.add(name, row[:, : at + 1] if name.endswith(LOOKS) else row)
        one.seen.logits = found[LOGITS][-1]


def _check_finite(one: Forward) -> None:
    """Refuse what edits made NaN or infinite."""
    assert one.seen.logits is not None
    wrong = [name for name, rows in one.seen.rows.items() if not all(np.isfinite(row).all() for row in rows)]
    if not wrong and np.isfinite(one.seen.logits).all():
        return
    text = f"{(wrong or [LOGITS])[0]} holds NaN or infinity: damaged weights, or too large an edit"
    if not one.prompt.edits.edits:
        raise OperationalError(text)
    raise APIError(400, f"With these edits {text}", param="edits")


def of_layers(service: Service, *values: str, where: Callable[[Any], bool] = lambda _: True) -> list[str]:
    """The names of values of each layer whose attention is so."""
    blocks = service.lm.config.blocks
    return [f"blocks.{i}.{name}" for i, one in enumerate(blocks) if where(one.attention) for name in values]


def patterns(service: Service) -> list[str]:
    """The names of the attention weights of each layer that has some."""
    return of_layers(service, "attention.pattern", where=has_pattern)


def position_of(position: int, length: int) -> int:
    """A position from 0; a negative one counts from the end."""
    if not -length <= position < length:
        text = f"There is no position {position}: the text has {length} tokens, from 0"
        raise APIError(400, text, param="position")
    return position % length


def text_of(service: Service, id: int) -> str:
    """A token's text; bytes that are not UTF-8 are escaped."""
    return service.lm.tokenizer.token_bytes(id).decode(errors="backslashreplace")
