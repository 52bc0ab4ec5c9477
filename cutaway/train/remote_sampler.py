"""Completions sampled by servers that speak OpenAI's API and answer with token ids, such as vLLM.

A prompt goes out as ids and a completion comes back as ids with their log-probabilities: text is never
tokenised anew. What does not arrive so is refused, because training on other tokens than were sampled is
silent. The temperature is 1 and nothing is cut off, so that the model's log-probabilities, which servers
report, are those of what was drawn from.

Every ``sync`` steps the adapter is written into the run's folder ``served/`` and the server loads it by
vLLM's ``/v1/load_lora_adapter``: the folder must be one that the server reads. Its name has the hash of its
weights, so that no cache of the server's mistakes it for another. Between hand-overs the served policy is
older than the trained one, which the importance ratio corrects (``objectives/common/policy_gradient.py``).

Several servers are replicas: each loads the adapter, and the completions of one prompt go to one of them,
which reads it once. Where one is gone, or has no adapter since it was started anew, the next one answers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cutaway.errors import OperationalError, UserError, escaped, quoted
from cutaway.generate.batch.request import Request
from cutaway.store.files import atomic_folder
from cutaway.tokenizer import Tokenizer
from cutaway.train import checkpoint
from cutaway.train.folder import CHECKPOINTS
from cutaway.train.parallel import SINGLE_PROCESS, Parallel
from cutaway.train.sampler import Completion
from cutaway.train.training import DataError
from cutaway.weights import peft_names

SERVED = "served"  # in the run's folder: the adapters that the server reads
KEY = "CUTAWAY_SAMPLER_KEY"  # the environment variable with the server's key
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before a request is made again
ANSWER_SECONDS = 600.0
OTHER_MODEL = 1.0  # mean absolute difference of log-probabilities from which another model is served
COMPARED = 8  # completions by which that is judged
OFF = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
OFF |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}  # a server may have other defaults
NO_IDS = (
    "answers without token ids, so that what it sampled is not known exactly: a server is needed that knows "
    "return_token_ids (cutaway serve, vLLM 0.10.2 or later, SGLang)"
)


class RefusedError(UserError):
    """A server does not do what it is asked."""


@dataclass(frozen=True)
class Server:
    """An OpenAI-compatible API at ``url``, which ends in /v1."""

    url: str

    @property
    def headers(self) -> dict[str, str]:
        """With the key of the environment, where there is one."""
        key = os.environ.get(KEY)
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def ask(self, path: str, body: dict[str, Any] | None = None, waits: Sequence[float] | None = None) -> Any:
        """The JSON that answers a POST of ``body``, or a GET; None where the answer is other text.

        A server that is busy or not there is asked again after ``waits``, by default some seconds. Raises
        RefusedError for what it refuses, DataError where it fails or is gone.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, self.headers)
        for wait in (*(WAITS if waits is None else waits), None):
            try:
                with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
                    return _parsed(answer.read())
            except urllib.error.HTTPError as error:
                why = _message(error.read())
                if error.code < 500 and error.code not in (408, 429):
                    raise RefusedError(f"{self.url}{path} refuses with {error.code}: {why}") from None
                problem = f"answers {error.code}: {why}"
            except (OSError, ValueError) as error:  # refused, reset, timed out; what is not HTTP
                problem = f"cannot be reached: {getattr(error, 'reason', error)}"
            if wait is None:
                raise DataError(f"{self.url}{path} {problem}")
            time.sleep(wait)
        raise AssertionError

    def models(self, waits: Sequence[float] | None = None) -> dict[str, bool]:
        """The names of what it serves, and whether each is an adapter."""
        found = self.ask("/models", waits=waits)
        if not isinstance(found, dict) or not isinstance(found.get("data"), list):
            raise UserError(f"{self.url}/models lists no models: is this an OpenAI API's address (.../v1)?")
        cards = [card for card in found["data"] if isinstance(card, dict)]
        return {str(card.get("id")): card.get("parent") is not None for card in cards}


@dataclass
class RemoteSampler:
    """Samples by ``servers``; ``model`` is the base's name there.

    ``write`` puts the adapter of the model in memory into a folder, ``scores`` gives the trainer's
    log-probabilities of a completion. ``sync`` 0: the served policy is never changed.
    """

    servers: tuple[Server, ...]
    model: str
    sync: int
    at_once: int
    tokenizer: Tokenizer
    ends: frozenset[int]
    folder: Path
    write: Callable[[Path], None]
    scores: Callable[[Sequence[int], np.ndarray], np.ndarray]
    parallel: Parallel = SINGLE_PROCESS
    serving: tuple[int, str] | None = field(default=None, init=False)  # the served weights' step and name
    compared: bool = field(default=False, init=False)
    gone: set[Server] = field(default_factory=set, init=False)  # servers that did not get the last adapter

    def __call__(
        self, requests: Sequence[Request], step: int, /, *, current: bool = False
    ) -> list[Completion]:
        """A completion of each request, in order. DataError where the server fails, on every process."""
        if self.sync:
            self._hand_over(step if current else step - step % self.sync, step)
        name = self.serving[1] if self.serving else self.model
        prompts = {prompt: n for n, prompt in enumerate(dict.fromkeys(tuple(one.ids) for one in requests))}
        places = [prompts[tuple(one.ids)] + self.parallel.data_rank for one in requests]
        with ThreadPoolExecutor(self.at_once) as pool:
            asked = [
                pool.submit(self.completion, one, name, place)
                for one, place in zip(requests, places, strict=True)
            ]
            try:
                made = [one.result() for one in asked]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if not self.compared and made:
            self._compare(requests[:COMPARED], made[:COMPARED])
        return made

    def completion(self, request: Request, model: str, place: int = 0) -> Completion:
        """What the server of this place samples for a request. UserError for an answer that is not exact."""
        settings = request.settings
        body = {
            "model": model,
            "prompt": list(request.ids),
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "seed": settings.seed,
            "stop_token_ids": sorted(self.ends),
            "logprobs": 1,
            "return_token_ids": True,
            **OFF,
        }
        server, answer = self._answer(place, body)
        return self._checked(request, answer, f"{server.url}/completions")

    def _answer(self, place: int, body: dict[str, Any]) -> tuple[Server, Any]:
        """The answer of the server of this place, or of the next that has one."""
        count = len(self.servers)
        ring = [self.servers[(place + n) % count] for n in range(count)]
        for server in ring if count > 1 else ():
            with suppress(DataError, RefusedError):
                return server, server.ask("/completions", body, ())
        return ring[0], ring[0].ask("/completions", body)

    def _checked(self, request: Request, answer: Any, where: str) -> Completion:
        """The completion of an answer."""
        try:
            choice = answer["choices"][0]
            ids, scores = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
            read, count = choice.get("prompt_token_ids"), (answer.get("usage") or {}).get("prompt_tokens")
            reason = choice["finish_reason"]
        except (TypeError, KeyError, IndexError, AttributeError):
            raise UserError(f"{where} answers with no completion: {quoted(answer)}") from None
        if not isinstance(ids, list) or not all(isinstance(id, int) for id in ids):
            raise UserError(f"{where} {NO_IDS}")
        if (list(request.ids) != read) if read is not None else (count != len(request.ids)):
            raise UserError(f"{where} read another prompt than the {len(request.ids)} ids that it was sent")
        if not _are_log_probs(scores, len(ids)):
            raise UserError(
                f"{where} gives no log-probability for each of {len(ids)} tokens, by which the difference "
                "between what samples and what is trained is corrected"
            )
        ended = [n for n, id in enumerate(ids) if id in self.ends]
        if not ids or ended not in ([], [len(ids) - 1]) or bool(ended) != (reason == "stop"):
            raise UserError(
                f"{where} ends a completion by {reason!r} with the end tokens at {ended} of {len(ids)}: an "
                "end token must be the last of token_ids where the model chose one, and nowhere else"
            )
        stream = self.tokenizer.stream()
        stream.follow(request.ids)
        text = "".join(stream.push(id) for id in ids[: len(ids) - len(ended)]) + stream.finish()
        return Completion(np.array(ids, np.int64), np.array(scores, np.float32), text, bool(ended))

    def _hand_over(self, weights: int, step: int) -> None:
        """Have the server answer by the adapter of after ``weights`` steps; the model in memory is of
        after ``step``. The first process writes and loads, and all learn of its failure.
        """
        if self.serving is not None and self.serving[0] == weights:
            return
        folder = self.folder / SERVED / f"step-{weights:08}"
        with all_or_none(self.parallel):
            if self.parallel.rank == 0:
                self._publish(folder, weights, step)
        self.serving = weights, _name(folder, weights)

    def _publish(self, folder: Path, weights: int, step: int) -> None:
        """Write the adapter if it is the one in memory, and have it loaded in place of the one before."""
        if weights == step:
            with atomic_folder(folder) as made:
                self.write(made)
        name, problem = _name(folder, weights), None
        for server in self.servers:
            waits = () if server in self.gone else None
            try:
                if name not in server.models(waits):
                    self._load(server, {"lora_name": name, "lora_path": str(folder.resolve())})
                if self.serving is not None:
                    with suppress(UserError):  # a server that was started anew has it not
                        server.ask("/unload_lora_adapter", {"lora_name": self.serving[1]})
                self.gone.discard(server)
            except DataError as error:
                problem = error
                self.gone.add(server)
        if problem is not None and len(self.gone) == len(self.servers):
            raise problem
        self._prune(weights)

    def _load(self, server: Server, body: dict[str, str]) -> None:
        try:
            server.ask("/load_lora_adapter", body)
        except UserError as error:
            raise UserError(
                f"{error}. The server must load each step's adapter from the run's folder: start it as "
                f"`cutaway serve --adapter-folder runs` with a key, which {KEY} holds here, or vLLM with "
                "--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True; with --data.sync 0 its policy "
                "stays as it is"
            ) from None

    def _prune(self, weights: int) -> None:
        """Remove adapters that no checkpoint continues with."""
        saved = checkpoint.all_in(self.folder / CHECKPOINTS)
        oldest = min([weights, *map(checkpoint.step_of, saved[:1])])
        for old in (self.folder / SERVED).glob("step-*"):
            if int(old.name.removeprefix("step-")) < oldest - oldest % self.sync:
                shutil.rmtree(old, ignore_errors=True)

    def _compare(self, requests: Sequence[Request], made: Sequence[Completion]) -> None:
        """UserError where the server's log-probabilities are those of another model."""
        apart = [
            np.abs(self.scores(request.ids, each.ids) - each.log_probs)
            for request, each in zip(requests, made, strict=True)
            if request.settings.temperature == 1
        ]
        if not apart:
            return
        mean = float(np.concatenate(apart).mean())
        if not mean < OTHER_MODEL:
            raise UserError(
                f"{', '.join(each.url for each in self.servers)} serves another model as {self.model!r} than "
                f"is trained: the log-probability of a token differs by {mean:.1f} in the mean"
            )
        self.compared = True


@contextmanager
def all_or_none(parallel: Parallel) -> Iterator[None]:
    """Work that one of several processes cannot do fails on all of them, which else would wait for it."""
    problem = None
    try:
        yield
    except (UserError, OperationalError) as error:
        problem = error
    failed = parallel.all_reduce(torch.tensor([float(problem is not None)]))
    if problem is not None:
        raise problem
    if failed.item():
        raise DataError("another process could not sample its completions")


def served_model(server: Server, name: str | None) -> str:
    """The base's name on the server: what was given, or the one model that it lists. UserError for none."""
    known = [one for one, is_adapter in server.models().items() if name == one or not is_adapter]
    if name is None and len(known) == 1:
        return known[0]
    if name is None or name not in known:
        given, served = "is not given" if name is None else f"is {name!r}", ", ".join(map(repr, known))
        raise UserError(f"config.data.sampler_model {given}; {server.url} serves {served or 'nothing'}")
    return name


def _name(folder: Path, weights: int) -> str:
    """The adapter's name on the server, by what it holds. OperationalError where it is not there."""
    path = folder / peft_names.WEIGHTS
    if not path.is_file():
        raise OperationalError(
            f"{path} is gone, by which the run samples until its next hand-over: start the run anew"
        )
    return f"cutaway-{weights}-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def _are_log_probs(scores: Any, count: int) -> bool:
    if not isinstance(scores, list) or len(scores) != count:
        return False
    return all(isinstance(one, int | float) and math.isfinite(one) and one < 1e-3 for one in scores)


def _parsed(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError:
        return None


def _message(answer: bytes) -> str:
    """What an error's body says."""
    found = _parsed(answer)
    error = found.get("error", found) if isinstance(found, dict) else None
    text = error.get("message") if isinstance(error, dict) else error
    return escaped(text if isinstance(text, str) else answer.decode("utf-8", "replace"))[:300]
