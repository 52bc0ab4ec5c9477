"""Many prompts continued at once, without a server: all are submitted before the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from cutaway.generate.batch.request import Generation, Request
from cutaway.generate.batch.scheduler import Scheduler
from cutaway.generate.batch.sequence import TokenizerProtocol
from cutaway.generate.decode import finish
from cutaway.generate.engine import Engine
from cutaway.generate.sampling_params import SamplingParams


def generate_batch(
    engine: Engine,
    tokenizer: TokenizerProtocol,
    prompts: Iterable[Sequence[int]],
    settings: SamplingParams,
    *,
    max_sequences: int = 16,
    state_bytes: int | None = None,
) -> list[Generation]:
    """Continue all prompts, given as ids: each Generation is the one that its prompt has alone.

    At most ``max_sequences`` run at once. Raises the first error, as ``Scheduler.submit`` and the stream do.
    """
    requests = (Request(tuple(ids), settings) for ids in prompts)
    return answer_all(engine, tokenizer, requests, max_sequences=max_sequences, state_bytes=state_bytes)


def answer_all(
    engine: Engine,
    tokenizer: TokenizerProtocol,
    requests: Iterable[Request],
    *,
    max_sequences: int = 16,
    state_bytes: int | None = None,
    ended: Callable[[int, Generation], None] = lambda number, made: None,
) -> list[Generation]:
    """``generate_batch`` of requests, whose settings may differ; requests of one prompt read it once.

    ``ended`` is called with each request's number and generation, in their order, while others go on.
    """
    requests = list(requests)
    running = max(1, min(max_sequences, len(requests)))
    scheduler = Scheduler(
        engine, tokenizer, max_sequences=running, max_queue=len(requests), state_bytes=state_bytes
    )
    try:
        with scheduler.paused():  # so that they share what they can
            streams = [scheduler.submit(request) for request in requests]
        made = list[Generation]()
        for number, stream in enumerate(streams):
            made.append(finish(stream))
            ended(number, made[-1])
        return made
    finally:
        scheduler.close()
