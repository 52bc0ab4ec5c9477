"""The models of one server: loaded when a request asks for one, unloaded by last use where memory is short.

The first model is loaded at the start and stays. A model in use is never unloaded, and requests that ask for
one that is being loaded wait for it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from cutaway.generate.batch.scheduler import SchedulerStats
from cutaway.serve.api_error import RETRY_AFTER, APIError
from cutaway.serve.runs.folder import Runs
from cutaway.serve.service import Service

ADAPTER_NAME = r"[A-Za-z0-9][\w.:/@+-]*"
LATEST = ":latest"  # which Ollama's clients append to a name
CHECKPOINT = "@"  # between a run's name and a step, in the name of a checkpoint
CHECKPOINTS = 2  # of runs that are loaded at once
COLLECTIONS = 4  # of garbage, at most, after a model is unloaded
log = logging.getLogger("cutaway.serve")


@dataclass(eq=False)
class Model:
    """One model: ``load`` makes its service, in seconds and on a thread. ``nbytes`` is what that will take; a
    ``measured`` model takes what its service says once it is loaded.
    """

    name: str
    load: Callable[[], Service]
    aliases: tuple[str, ...] = ()  # further names, or patterns of them
    pinned: bool = False
    nbytes: int = 0
    measured: bool = False
    service: Service | None = None
    uses: int = 0  # requests under way
    last_use: float = 0.0
    loads: int = 0
    loading: asyncio.Task[None] | None = None
    of_run: bool = False  # a checkpoint of a run, which is there while it is asked for

    @property
    def names(self) -> tuple[str, ...]:
        """Its names, without patterns, and its adapters'."""
        adapters = () if self.service is None else tuple(self.service.adapters)
        return self.name, *(one for one in self.aliases if not set(one) & set("*?[")), *adapters

    @property
    def booked(self) -> int:
        """Bytes that the model takes, or will."""
        return self.service.nbytes if self.measured and self.service is not None else self.nbytes

    @property
    def idle(self) -> bool:
        """Whether no request needs it, none in the background either."""
        stats = self.service and self.service.scheduler and self.service.scheduler.stats()
        return not self.uses and not (stats and stats.running + stats.queued)


def owner(name: str, models: Mapping[str, Sequence[str]]) -> str | None:
    """The model that requests ask for by a name, among models and their aliases; None where none is."""
    for model, aliases in models.items():
        for one in (name, name.removesuffix(LATEST)):
            if any(fnmatchcase(one, known) for known in (model, *aliases)):
                return model
    return None


class Models:
    """The models by their names, within ``max_memory`` bytes. The first one's service is the ``default``.

    A checkpoint of one of ``runs`` is a model too, named RUN@STEP, which ``load_checkpoint`` loads.
    """

    def __init__(
        self,
        models: Sequence[Model],
        max_memory: int | None = None,
        runs: Runs | None = None,
        load_checkpoint: Callable[[str, Path], Service] | None = None,
    ) -> None:
        self.models, self.max_memory = list(models), math.inf if max_memory is None else max_memory
        self.runs, self.load_checkpoint = runs, load_checkpoint
        first = self.models[0]
        first.service, first.loads, first.pinned = first.service or first.load(), 1, True
        self.default = first.service
        self.stopping = threading.Event()  # no new requests should be sent here
        self.background: set[asyncio.Task[None]] = set()  # answers that go on when their request is answered
        self._making_room = asyncio.Lock()
        self._adding = threading.Lock()

    def find(self, asked: str | None) -> Model:
        """The model with this name; APIError if there is none."""
        if not asked:
            return self.models[0]
        for name in (asked, asked.removesuffix(LATEST)):
            for model in self.models:
                if name in model.names:
                    return model
            for model in self.models:
                if any(fnmatchcase(name, alias) for alias in model.aliases):
                    return model
        if (found := self._checkpoint(asked)) is not None:
            return found
        names = ", ".join(repr(name) for model in self.models for name in model.names)
        text = f"There is no model {asked[:100]!r} here: this server has {names}"
        raise APIError(404, text, param="model", code="model_not_found")

    def _checkpoint(self, asked: str) -> Model | None:
        """The checkpoint of a run with this name; None where the name is none. APIError for an absent one."""
        run, _, step = asked.rpartition(CHECKPOINT)
        if self.runs is None or self.load_checkpoint is None or not run:
            return None
        if len(step) > 8 or not (step.isascii() and step.isdecimal()):
            return None
        path = self.runs.checkpoint(run, int(step))
        found = Model(
            f"{run}{CHECKPOINT}{int(step)}",
            partial(self.load_checkpoint, asked, path),
            nbytes=sum(file.stat().st_size for file in path.glob("weights.safetensors")),
            of_run=True,
        )
        with self._adding:
            same = next((one for one in self.models if one.name == found.name), None)
            if same is None:  # models that are not in use are named again at the next request
                kept = [
                    one for one in self.models if not one.of_run or one.service or one.loading or one.uses
                ]
                self.models[:] = [*kept, found]
            return same or found

    async def _room_for_checkpoint(self) -> None:
        """Unload the checkpoint that was not used for the longest time where as many are loaded as may be."""
        loaded = [one for one in self.models if one.of_run and one.service]
        if len(loaded) < CHECKPOINTS:
            return
        idle = [one for one in loaded if one.idle]
        if not idle:
            text = f"{CHECKPOINTS} checkpoints are in use, and no more are loaded at once: try again later"
            raise APIError(503, text, type="server_error", code="no_room", retry_after=RETRY_AFTER)
        await self._unload(min(idle, key=lambda one: one.last_use))

    def load_adapter(self, name: str, path: str) -> None:
        """Load an adapter of the first model under a name that is no model's. APIError where it cannot be."""
        if not re.fullmatch(ADAPTER_NAME, name, re.ASCII):
            text = (
                "lora_name has letters, digits and . _ : / @ + - alone, and begins with a letter or a digit"
            )
            raise APIError(400, text, param="lora_name")
        taken = owner(name, {model.name: model.aliases for model in self.models})
        if taken is not None:
            text = f"{name!r} is the model's own name or an alias of {taken!r}: choose another"
            raise APIError(400, text, param="lora_name")
        self.default.load_adapter(name, path)

    async def use(self, asked: str | None) -> tuple[Model, Service]:
        """A model and its service, loaded and kept until as many calls of ``leave``."""
        model = self.find(asked)
        model.uses += 1
        try:
            return model, await self._loaded(model)
        except BaseException:
            model.uses -= 1
            raise

    def leave(self, model: Model) -> None:
        """The end of a use."""
        model.uses -= 1
        model.last_use = time.time()

    async def _loaded(self, model: Model) -> Service:
        while model.service is None:
            if model.loading is None:
                model.loading = asyncio.create_task(self._load(model))
            await asyncio.shield(model.loading)  # a client that leaves stops no load that others wait for
        return model.service

    async def _load(self, model: Model) -> None:
        try:
            async with self._making_room:
                if model.of_run:
                    await self._room_for_checkpoint()
                while sum(one.booked for one in self.models if one.service) + model.nbytes > self.max_memory:
                    idle = [one for one in self.models if one.service and one.idle and not one.pinned]
                    if not idle:
                        text = f"There is no room for {model.name!r}: the other models are in use"
                        raise APIError(
                            503, text, type="server_error", code="no_room", retry_after=RETRY_AFTER
                        )
                    await self._unload(min(idle, key=lambda one: one.last_use))
                began = time.perf_counter()
                model.service = await asyncio.to_thread(model.load)
            model.loads += 1
            model.last_use = time.time()
            self.default.metrics.loads.labels(model.name).inc()
            log.info("Loaded %s in %.1f s", model.name, time.perf_counter() - began)
        except APIError:
            raise
        except Exception:
            log.exception("%s cannot be loaded", model.name)
            text = f"{model.name!r} cannot be loaded: the server's log has the details"
            raise APIError(503, text, type="server_error", code="not_loaded") from None
        finally:
            model.loading = None

    async def unload(self, asked: str) -> Model:
        """Unload a model; APIError for one in use, or pinned."""
        model = self.find(asked)
        async with self._making_room:
            if model.pinned or not model.idle:
                why = "pinned" if model.pinned else "in use"
                raise APIError(409, f"{model.name!r} is {why}", param="model", code="in_use")
            if model.service is not None:
                await self._unload(model)
        return model

    async def _unload(self, model: Model) -> None:
        service, model.service = model.service, None
        assert service is not None
        await asyncio.to_thread(service.stop, 0.0)
        del service
        gc.unfreeze()  # what was there at the start is frozen, and what the model leaves has cycles
        for _ in range(COLLECTIONS):
            if not gc.collect():  # what was collected may have held, from C, cycles that are garbage only now
                break
        gc.freeze()
        self.default.metrics.unloads.labels(model.name).inc()
        log.info("Unloaded %s", model.name)

    def stats(self) -> dict[str, SchedulerStats]:
        """The schedulers' figures, of the models that are loaded and generate text."""
        services = [model.service for model in self.models if model.service is not None]
        return {one.name: one.scheduler.stats() for one in services if one.scheduler is not None}

    def status(self, model: Model) -> dict[str, Any]:
        """A model as an admin reads about it."""
        state = "loading" if model.loading else "loaded" if model.service else "unloaded"
        return {
            "id": model.name,
            "object": "model",
            "state": state,
            "aliases": model.aliases,
            "pinned": model.pinned,
            "bytes": model.booked or None,
            "in_use": model.uses,
            "loads": model.loads,
            "last_use": model.last_use and int(model.last_use),
        }

    def close(self) -> int:
        """Take no new request, and end what is under way with an error; how many answers those were."""
        services = [model.service for model in self.models if model.service is not None]
        return sum(service.stop(0.0) for service in services)
