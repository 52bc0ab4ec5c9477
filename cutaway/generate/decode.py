"""The loop that turns logits into text: read the prompt, then choose, say and read, until something ends it.

The engine speaks ids only. The text goes through the tokenizer's stream, so that no piece holds half a
character, and what may turn out to be the beginning of a stop string is held back until it is known not to
be.
"""

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from cutaway.errors import UserError
from cutaway.generate.engine import AllLogits, Engine
from cutaway.generate.internals import LayerInternals
from cutaway.generate.sample import History, Sampler, logprobs, mask_padding
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.session import Session
from cutaway.generate.speculative import Speculation, verified

FinishReason = Literal["stop", "length", "context"]


class ContextFullError(UserError):
    """The prompt leaves no room for an answer: `length` ids where the context holds `max_context`."""

    def __init__(self, length: int, max_context: int) -> None:
        super().__init__(
            f"The prompt is {length} ids long and the model's context holds {max_context}, "
            "prompt and answer together: shorten the prompt"
        )
        self.length = length
        self.max_context = max_context


@runtime_checkable
class TextStream(Protocol):
    """Ids to text, never half a character."""

    def push(self, id: int, /) -> str: ...

    def follow(self, ids: Iterable[int], /) -> None:
        """Push ids whose own text is not asked for."""
        ...

    def finish(self) -> str: ...


@runtime_checkable
class TokenizerProtocol(Protocol):
    """What generation asks of a tokenizer."""

    @property
    def bos(self) -> int | None: ...

    @property
    def eos_ids(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def stream(self) -> TextStream: ...


@runtime_checkable
class Constraint(Protocol):
    """What an answer may be (a grammar, a schema): one object a text, told of every id that is chosen."""

    def mask(self, logits: np.ndarray, /) -> None:
        """Set the logits [v] of ids that may not come next to -inf, in place; end tokens are ids too."""
        ...

    def accept(self, id: int, /) -> None:
        """This id, which is no end token, comes next."""
        ...

    @property
    def done(self) -> bool:
        """Whether the answer is complete and nothing may follow."""
        ...


@dataclass(frozen=True)
class Timings:
    """Seconds of work (not of waiting for whoever consumes the pieces), and the ids read in them."""

    prefill_tokens: int  # those of the prompt that a session did not hold already
    prefill_seconds: float
    decode_tokens: int  # those after the first, which is chosen from the prefill's logits
    decode_seconds: float
    first_token_seconds: float
    drafted_tokens: int = 0  # that were guessed, and of them those that held (generate/speculative.py)
    accepted_tokens: int = 0

    @property
    def acceptance(self) -> float:
        """The share of guessed tokens that held; 0 where none were guessed."""
        return self.accepted_tokens / max(self.drafted_tokens, 1)

    @property
    def prefill_tokens_per_second(self) -> float:
        """How fast the prompt was read."""
        return self.prefill_tokens / max(self.prefill_seconds, 1e-9)

    @property
    def decode_tokens_per_second(self) -> float:
        """How fast ids followed the first; 0 where none did."""
        return self.decode_tokens / max(self.decode_seconds, 1e-9)


@dataclass(frozen=True)
class Generation:
    """A finished text.

    ids are all that were chosen, those that spelt a stop string included, but not the end token; logprobs
    and top_logprobs have one entry for each. finish_reason "stop" was the stop named in `stop` (a string, or
    the id of an end token, None where a constraint was complete), "length" was max_tokens, "context" means
    that prompt and answer filled max_context.
    """

    text: str
    ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...]
    finish_reason: FinishReason
    stop: str | int | None
    max_context: int
    timings: Timings


@dataclass(frozen=True)
class Piece:
    """What one token added. The last piece has no id: it brings what was held back, and the generation."""

    text: str
    id: int | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    generation: Generation | None = None
    inside: tuple[
        LayerInternals, ...
    ] = ()  # what was watched (generate/internals.py) where the token was chosen


def generate(
    engine: Engine,
    tokenizer: TokenizerProtocol,
    prompt_ids: Sequence[int],
    settings: SamplingParams,
    state: Session | None = None,
    speculation: Speculation | None = None,
) -> Generator[Piece, None, None]:
    """Continue the prompt, one piece a token; a session given as state keeps what was read for the next call.

    ``speculation`` guesses tokens ahead, which changes the speed and not the text's distribution. An empty
    prompt begins with the tokenizer's BOS. Raises UserError at once where there is none, for an id outside
    the vocabulary, for a prompt that fills the context (ContextFullError), and for guesses that the engine
    cannot check.
    """
    settings.check(shown_ids(engine, tokenizer))
    if speculation is not None and not isinstance(engine, AllLogits):
        raise UserError("This engine does not read several tokens at once, so it cannot check guesses")
    ids = checked(prompt_ids, tokenizer, engine)
    return _pieces(Run(engine, tokenizer, ids, settings), state or Session(engine), speculation)


def shown_ids(engine: Engine, tokenizer: TokenizerProtocol) -> int:
    """How many ids are tokens. A model's table may be padded past its tokenizer's last id."""
    return min(engine.vocab, len(tokenizer))


def finish(pieces: Iterable[Piece]) -> Generation:
    """Run the pieces to their end and return the generation the last one brings."""
    generation = None
    for piece in pieces:
        generation = piece.generation
    if generation is None:
        raise ValueError("the pieces ended without a generation")
    return generation


class StopScan:
    """Text in, text that is safe to show out, until a stop string is complete.

    The stop that is complete first counts, of those complete at the same character the one that began first:
    where the text is cut does not depend on how it was divided into tokens.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Add text; returns what can no longer belong to a stop, and sets `found` once there is one."""
        self._held += text
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if not ends:
            return self._release(len(self._held) - self._pending())
        _, at, self.found = min(ends)
        safe, self._held = self._held[:at], ""
        return safe

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        return self._release(len(self._held))

    def _pending(self) -> int:
        """How many characters at the end begin some stop."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0

    def _release(self, length: int) -> str:
        safe, self._held = self._held[:length], self._held[length:]
        return safe


class Run:
    """One generation under way: what was chosen and said so far, and what ends it.

    It holds no state and calls no engine: whoever reads brings the logits.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: TokenizerProtocol,
        prompt_ids: tuple[int, ...],
        settings: SamplingParams,
        constraint: Constraint | None = None,
    ) -> None:
        self.prompt_ids = prompt_ids
        self.constraint = constraint
        self.max_context = engine.max_context
        self.alternatives = settings.logprobs
        self.choose = Sampler(settings)
        self.history = History(prompt_ids)
        self.words = len(tokenizer)
        self.stream = tokenizer.stream()
        self.stream.follow([id for id in prompt_ids if id < self.words])  # the answer's text is what it adds
        self.scan = StopScan(tuple(settings.stop))
        self.ends = {*settings.stop_ids, *(() if settings.ignore_eos else tokenizer.eos_ids)}
        room = engine.max_context - len(prompt_ids)
        asked = room + 1 if settings.max_tokens is None else settings.max_tokens
        self.limit = min(asked, room)
        self.at_limit: FinishReason = "length" if asked <= room else "context"
        self.pieces: list[Piece] = []
        self.reason: FinishReason | None = None
        self.stop: str | int | None = None

    @property
    def left(self) -> int:
        """How many tokens may still come."""
        return self.limit - len(self.pieces)

    def take(
        self,
        logits: np.ndarray,
        guess: int | None = None,
        share: np.ndarray | None = None,
        inside: tuple[LayerInternals, ...] = (),
    ) -> Piece | None:
        """Choose from the logits [v]; the piece to show, or None where the choice is an end token.

        ``guess`` was proposed, drawn from ``share`` (speculative.py); ``inside`` was watched meanwhile."""
        logits = mask_padding(logits, self.words)
        allowed = self._allowed(logits)
        if guess is None:
            id = self.choose(allowed, self.history)
        else:
            id = verified(self.choose, allowed, self.history, guess, share)
        if id in self.ends:
            self.reason, self.stop = "stop", id
            return None
        self.history.append(id)
        text = self.scan.push(self.stream.push(id))
        piece = Piece(text, id, *logprobs(logits, id, self.alternatives), inside=inside)
        self.pieces.append(piece)
        if self.constraint is not None:
            self.constraint.accept(id)
        if self.scan.found is not None:
            self.reason, self.stop = "stop", self.scan.found
        elif self.constraint is not None and self.constraint.done:
            self.reason = "stop"
        elif len(self.pieces) == self.limit:
            self.reason = self.at_limit
        return piece

    def _allowed(self, logits: np.ndarray) -> np.ndarray:
        if self.constraint is None:
            return logits
        allowed = logits.copy()
        self.constraint.mask(allowed)
        return allowed

    def last(self, timings: Timings) -> Piece:
        """The text that was held back, and the generation."""
        text = ""
        if self.scan.found is None:
            text = self.scan.push(self.stream.finish())
        if self.scan.found is not None:
            self.reason, self.stop = "stop", self.scan.found
        text += self.scan.finish()
        assert self.reason is not None
        ids = tuple(piece.id for piece in self.pieces if piece.id is not None)
        generation = Generation(
            text="".join(piece.text for piece in self.pieces) + text,
            ids=ids,
            prompt_ids=self.prompt_ids,
            logprobs=tuple(piece.logprob for piece in self.pieces if piece.logprob is not None),
            top_logprobs=tuple(piece.top_logprobs for piece in self.pieces),
            finish_reason=self.reason,
            stop=self.stop,
            max_context=self.max_context,
            timings=timings,
        )
        return Piece(text, generation=generation)


def _pieces(run: Run, session: Session, speculation: Speculation | None) -> Generator[Piece, None, None]:
    started = time.perf_counter()
    logits, read = session.read(run.prompt_ids)
    prefill_seconds = time.perf_counter() - started
    piece = run.take(logits)
    first_token_seconds = time.perf_counter() - started
    steps, decode_seconds = 0, 0.0
    following = _singly(run, session) if speculation is None else _guessed(run, session, speculation)
    while piece is not None:
        yield piece
        if run.reason is not None:
            break
        resumed = time.perf_counter()
        piece = next(following)
        steps, decode_seconds = steps + 1, decode_seconds + time.perf_counter() - resumed
    fared = (0, 0) if speculation is None else (speculation.drafted, speculation.accepted)
    yield run.last(Timings(read, prefill_seconds, steps, decode_seconds, first_token_seconds, *fared))


def _singly(run: Run, session: Session) -> Iterator[Piece | None]:
    while True:
        yield run.take(session.step(run.history.last))


def _guessed(run: Run, session: Session, speculation: Speculation) -> Iterator[Piece | None]:
    """Piece by piece as `_singly`, but each reading is of the last token and of guesses that follow it."""
    while True:
        ids, shares = speculation.guess(run.history, run.left - 1)
        session.forget(len(run.history.ids) - 1)  # guesses that were read and did not hold
        held = 0
        for n, logits in enumerate(session.prefill_all_logits([run.history.last, *ids])):
            if n == len(ids):
                guess, share = None, None
            else:
                guess, share = ids[n], None if shares is None else shares[n]
            piece = run.take(logits, guess, share)
            agreed = piece is not None and piece.id == guess
            held += agreed
            if not agreed or run.reason is not None:
                break
            yield piece
        if ids:
            speculation.learn(len(ids), held)
        yield piece


def checked(prompt_ids: Sequence[int], tokenizer: TokenizerProtocol, engine: Engine) -> tuple[int, ...]:
    """The prompt's ids, BOS where there are none; UserError for what the engine cannot continue."""
    ids = tuple(int(id) for id in prompt_ids)
    if not ids and tokenizer.bos is None:
        raise UserError(
            "The prompt is empty and the tokenizer has no begin token to start from: give at least one token"
        )
    ids = ids or (int(tokenizer.bos or 0),)
    known(ids, engine.vocab)
    if len(ids) >= engine.max_context:
        raise ContextFullError(len(ids), engine.max_context)
    return ids


def known(ids: Sequence[int], vocab: int) -> None:
    """UserError for an id that a model of so many tokens does not have."""
    for at, id in enumerate(ids):
        if not 0 <= id < vocab:
            raise UserError(f"The prompt's id {id} at position {at} is outside the model's 0 to {vocab - 1}")
