"""Service: what one API key learns of another's requests, and what it can take from it.

The channel: a prompt whose beginning is cached is answered sooner. The attacker guesses what another key
asked for and times the answer; that is measured for another key's prompts, which the cache keeps apart, for
its own, and for another key's with the defence taken out, where the same instrument must see the reuse. The
interference: an answer's ids and log-probabilities, alone and beside other keys' requests, must have the same
bits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cutaway.evaluate import statistics
from cutaway.generate.batch.prefix_cache import cache_scope
from cutaway.generate.batch.request import Generation, Request, ResponseStream
from cutaway.generate.batch.scheduler import Scheduler
from cutaway.generate.decode import finish
from cutaway.generate.sampling_params import SamplingParams
from cutaway.lm import LanguageModel
from cutaway.security.finding import Arm, Budget, Finding, Progress, never

TIMED = 4  # timed guesses for each trial: 252 trials are 1,008 of them
TAIL = 4  # ids after the page that may be cached
FLOOD = 8
SEEN = 0.9  # the least AUC of one's own cache by which the instrument works
VICTIM, ATTACKER = b"the victim's key", b"the attacker's key"
SHARED = b"one cache for all"


# Whose guesses are timed, in which prefix cache (None: the key's own), and whether that is done early.
TIMINGS = {
    "closed": (ATTACKER, None, False),
    "under way": (ATTACKER, None, True),
    "own": (VICTIM, None, False),
    "open": (ATTACKER, SHARED, False),
}


def run(lm: LanguageModel, *, seed: int, budget: Budget, progress: Progress) -> list[Finding]:
    """The timing channel, non-interference, and a flood."""
    random = np.random.default_rng(seed)
    guesses = TIMED * budget.trials
    total = len(TIMINGS) * guesses
    timed = {}
    for n, (name, (key, scope, early)) in enumerate(TIMINGS.items()):
        timed[name] = _guesses(
            lm, random, guesses, key, scope, early, lambda done, n=n: progress(n * guesses + done, total)
        )
    apart = _interference(lm, random, budget.trials, seed)
    return [_channel(timed, seed), apart, _flood(lm, random, budget, seed)]


def _guesses(
    lm: LanguageModel,
    random: np.random.Generator,
    count: int,
    key: bytes,
    scope: bytes | None,
    early: bool,
    done: Callable[[int], None],
) -> np.ndarray:
    """[n 4]: whether a guess was right, the seconds to its first token, the ids that were not read for it,
    the seconds until it was queued.

    ``scope``: one cache for both keys. ``early``: while the victim's prompt is being read, not after it.
    """
    rows = []
    scheduler = Scheduler(lm.engine, lm.tokenizer, max_sequences=2)
    order = random.permutation(count) % 2 == 0  # alternating, it would be mistaken for turns that keys take
    try:
        for right in order:
            secret, other = _prompt(lm, random), _prompt(lm, random)
            victim = _submit(scheduler, secret, VICTIM, scope=scope)
            if not early:
                finish(victim)
            started = time.perf_counter()
            stream = _submit(scheduler, secret if right else other, key, scope=scope)
            queued = time.perf_counter() - started
            next(iter(stream))
            seconds = time.perf_counter() - started
            read = finish(stream).timings.prefill_tokens
            finish(victim)
            rows.append((right, seconds, len(secret) - read, queued))
            done(len(rows))
    finally:
        scheduler.close()
    return np.array(rows)


def _prompt(lm: LanguageModel, random: np.random.Generator) -> tuple[int, ...]:
    """Random ids, one page and a few more."""
    engine: Any = lm.engine
    return tuple(random.integers(0, len(lm.tokenizer), engine.page + TAIL).tolist())


def _submit(
    scheduler: Scheduler,
    ids: Sequence[int],
    key: bytes,
    tokens: int = 1,
    client: str | None = None,
    scope: bytes | None = None,
) -> ResponseStream:
    settings = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    name = key.decode() if client is None else client
    cache = cache_scope(key, None) if scope is None else scope
    return scheduler.submit(Request(tuple(ids), settings, client=name, cache_scope=cache))


def _channel(timed: dict[str, np.ndarray], seed: int) -> Finding:
    """Decided by the time to the first token. The time until a guess is queued shows work that depends on
    what others sent: it decides which step the guess joins, and a microsecond becomes a step's time.
    """
    areas, reused, queued = {}, {}, {}
    for name, rows in timed.items():
        right = rows[:, 0] == 1
        areas[name], queued[name] = (statistics.area(-rows[right, at], -rows[~right, at]) for at in (1, 3))
        reused[name] = rows[:, 2].sum()
    closed, own = areas["closed"], areas["own"]
    leaks = reused["closed"] + reused["under way"] > 0 or max(closed.low, areas["under way"].low) > 0.55
    blind = own.value < SEEN
    summary = (
        f"An attacker tells another key's cached prompt from a new one with AUC {closed.value:.3f}, its own "
        f"with {own.value:.3f}, another key's in a cache that all keys share with {areas['open'].value:.3f}. "
        f"Of another key's pages {reused['closed']:.0f} ids were reused, of one's own "
        f"{reused['own']:.0f}."
    )
    if blind and not leaks:
        summary += " Its own cache is not seen in the times either: they are too noisy here to say more."
    return Finding(
        "service",
        "Timing channel of the prefix cache",
        "vulnerable" if leaks else "not separated" if blind else "sound",
        summary,
        (
            Arm("another key's prompt, cached", closed, "attack", "AUC"),
            Arm("another key's prompt, being read", areas["under way"], "attack", "AUC"),
            Arm("one's own prompt, cached", own, "control", "AUC"),
            Arm("another key's prompt, one cache for all (planted)", areas["open"], "control", "AUC"),
            Arm("another key's prompt, being read: time until queued", queued["under way"], "attack", "AUC"),
        ),
        chance=0.5,
        seeds=(seed,),
    )


def _interference(lm: LanguageModel, random: np.random.Generator, trials: int, seed: int) -> Finding:
    """Whether anything of an answer depends on what other keys ask at the same time."""
    differ: list[bool] = []
    for _ in range(trials):
        ids = _prompt(lm, random)[: int(random.integers(4, 128))]
        beside = [ids, *(_prompt(lm, random)[: int(random.integers(2, 128))] for _ in range(2))]
        scheduler = Scheduler(lm.engine, lm.tokenizer, max_sequences=4)
        try:
            others = [_submit(scheduler, each, VICTIM, int(random.integers(1, 12))) for each in beside]
            crowded = _submit(scheduler, ids, ATTACKER, 6)
            others[-1].cancel()
            answers = [finish(crowded)]
            for other in others[:-1]:
                finish(other)
        finally:
            scheduler.close()
        answers.append(lm.generate(ids, max_tokens=6, temperature=0.0, ignore_eos=True))
        differ.append(_bits(answers[0]) != _bits(answers[1]))
    return Finding(
        "service",
        "Interference between keys",
        never(differ),
        f"{sum(differ)} of {len(differ)} answers have other ids or log-probabilities beside three requests "
        "of another key, one of which is cancelled, than alone.",
        (Arm("answers that differ in a bit", statistics.mean(differ)),),
        chance=0.0,
        seeds=(seed,),
    )


def _bits(answer: Generation) -> tuple[tuple[int, ...], tuple[float, ...]]:
    return answer.ids, answer.logprobs


def _flood(lm: LanguageModel, random: np.random.Generator, budget: Budget, seed: int) -> Finding:
    """How many requests of a flood are answered before one of another key that came last."""
    before: dict[str, list[int]] = {"keys take turns": [], "one queue": []}
    for _ in range(max(2, budget.trials // 8)):
        for name, client in (("keys take turns", None), ("one queue", "everyone")):
            scheduler = Scheduler(lm.engine, lm.tokenizer, max_sequences=1, max_queue=2 * FLOOD + 2)
            all_wait = _Held()
            try:
                prompts = [_prompt(lm, random)[:16] for _ in range(FLOOD + 1)]
                ended: list[bytes] = []  # by the scheduler's own thread: in the order of the answers
                settings = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
                scheduler.submit(Request(prompts[0], settings, constraint=all_wait, client="the first"))
                for ids in prompts[1:]:
                    _note(ended, ATTACKER, _submit(scheduler, ids, ATTACKER, 2, client))
                victim = _submit(scheduler, prompts[0], VICTIM, 2, client)
                _note(ended, VICTIM, victim)
                all_wait.over.set()
                finish(victim)
                before[name].append(ended.index(VICTIM))
            finally:
                all_wait.over.set()
                scheduler.close()
    own, queue = (statistics.mean(each) for each in before.values())
    return Finding(
        "service",
        "A flood by one key",
        "vulnerable"
        if max(before["keys take turns"]) > 3
        else "sound"
        if min(before["one queue"]) > 3
        else "not separated",
        f"Of {FLOOD} requests that came first, {own.value:.1f} are answered before another key's one; in one "
        f"queue {queue.value:.1f} are.",
        (
            Arm("answered before, keys take turns", own, "attack", "requests"),
            Arm("answered before, one queue", queue, "control", "requests"),
        ),
        seeds=(seed,),
    )


class _Held:
    """A constraint that allows every id and holds its answer until ``over`` is set; others queue then."""

    done = False

    def __init__(self) -> None:
        self.over = threading.Event()

    def mask(self, logits: np.ndarray, /) -> None:
        """Wait."""
        self.over.wait()

    def accept(self, id: int, /) -> None:
        """Any id is allowed."""


def _note(ended: list[bytes], key: bytes, stream: ResponseStream) -> None:
    """Have the key of an answer appended when it ends."""

    def listen(event: Any) -> None:
        if isinstance(event, Exception) or event.generation is not None:
            ended.append(key)

    stream.subscribe(listen)
