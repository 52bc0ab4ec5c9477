"""The decoding loop over one text: read the prompt, then choose and read token by token until it ends.

Engines speak ids only; the text goes through the tokenizer's stream, so that no piece holds half a character,
and what may become a stop string is held back until it cannot.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial

from cutaway.errors import UserError
from cutaway.generate.batch.request import Constraint, Generation, Piece, Timings
from cutaway.generate.batch.sequence import SequenceOutput, TokenizerProtocol, check_prompt, vocab_size
from cutaway.generate.engine import AllLogits, Engine
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.session import Session
from cutaway.generate.speculative import DraftedText, Drafting


def generate(
    engine: Engine,
    tokenizer: TokenizerProtocol,
    prompt_ids: Sequence[int],
    settings: SamplingParams,
    state: Session | None = None,
    drafting: Drafting | None = None,
    constraint: Constraint | None = None,
) -> Generator[Piece, None, None]:
    """Continue the prompt, one piece a token; a session given as state keeps what was read for the next call.

    ``drafting`` proposes tokens ahead, which changes the speed and not the text. An empty prompt begins with
    the tokenizer's BOS. Raises UserError at once where there is none, for an id outside the vocabulary, for a
    prompt that fills the context (ContextFullError), and for drafting on an engine that cannot verify it.
    """
    settings.check(vocab_size(engine, tokenizer))
    if drafting is not None and not isinstance(engine, AllLogits):
        raise UserError("This engine does not read several tokens at once, so it cannot verify drafts")
    if drafting is not None and drafting.proposer.watches and not hasattr(engine, "observe"):
        raise UserError("A head drafts from hidden states that the runtime shows, and another engine answers")
    ids = check_prompt(prompt_ids, tokenizer, engine)
    output = SequenceOutput(engine, tokenizer, ids, settings, constraint)
    return _pieces(output, state or Session(engine), drafting)


def _pieces(
    output: SequenceOutput, session: Session, drafting: Drafting | None
) -> Generator[Piece, None, None]:
    started = time.perf_counter()
    if drafting is None:
        session.watch(())
        following = _decode(output, session)
    else:
        text = DraftedText(output.history, output.sampler)
        session.watch(drafting.watches(), partial(drafting.proposer.see, text))
        following = _verify(output, session, drafting, text)
    logits, read = session.prefill(output.prompt_ids)
    prefill_seconds = time.perf_counter() - started
    piece = output.append(logits)
    first_token_seconds = time.perf_counter() - started
    steps, decode_seconds = 0, 0.0
    while piece is not None:
        yield piece
        ended = output.finish_reason is not None and output.stop_logprob is None
        if ended and len(output.pieces) == steps + 1:
            break
        resumed = time.perf_counter()
        piece = next(following)
        steps, decode_seconds = steps + 1, decode_seconds + time.perf_counter() - resumed
    timings = Timings(
        read, prefill_seconds, steps, decode_seconds, first_token_seconds, output.drafted, output.accepted
    )
    yield output.last_piece(timings)


def _decode(output: SequenceOutput, session: Session) -> Iterator[Piece | None]:
    while True:
        yield output.append(session.step(output.history.last))


def _verify(
    output: SequenceOutput, session: Session, drafting: Drafting, text: DraftedText
) -> Iterator[Piece | None]:
    """Piece by piece as `_decode`, but each forward pass reads the last token and the draft after it."""
    see = partial(drafting.proposer.see, text)
    while True:
        watches = drafting.watches()
        session.watch(watches, see)
        (draft,) = drafting.drafts([text], [output.room])
        began = time.perf_counter()  # the proposer knows what drafting takes
        session.truncate(len(output.history.ids) - 1)  # drafts that were read and rejected
        unread = output.history.ids[len(session.ids) :].tolist()  # the last, and what a recurrence forgot
        if draft:
            session.mark()
        if draft or len(unread) > 1:
            logits = session.prefill_all_logits([*unread, *draft])[len(unread) - 1 :]
        else:
            logits = session.step(output.history.last)[None]
        pieces, accepted = output.append_all(logits, draft)
        seconds = time.perf_counter() - began
        drafting.lengths.times.record(1 + len(draft), seconds, len(draft), bool(watches))
        if draft:
            drafting.lengths.update(text, len(draft), accepted)
        yield from pieces
        if output.stop_logprob is not None:
            yield None


def finish(pieces: Iterable[Piece]) -> Generation:
    """Run the pieces to their end and return the generation the last one brings."""
    generation = None
    for piece in pieces:
        generation = piece.generation
    if generation is None:
        raise ValueError("the pieces ended without a generation")
    return generation
