"""Continue a prompt: choose the engine; apply edits, a session, drafts and a constraint.

One prompt goes through `generate/decode.py`, several through the scheduler of `generate/batch/`, where those
with edits of their own share the steps of the others.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np

from cutaway.engines import Engines
from cutaway.errors import UserError
from cutaway.generate.batch.request import Constraint, Generation, Piece, Request
from cutaway.generate.batch.sequence import check_ids
from cutaway.generate.decode import finish, generate
from cutaway.generate.draft_heads import HeadProposer
from cutaway.generate.engine import AllLogits, Rewinding
from cutaway.generate.sampling_params import SamplingOptions, SamplingParams, sampling_params
from cutaway.generate.session import Session
from cutaway.generate.speculative import Drafting, DraftModel, PromptLookup
from cutaway.generate.target import TargetRules
from cutaway.model.config import Encoder, EncoderDecoder
from cutaway.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    from typing import Unpack

    from cutaway.generate import thinking
    from cutaway.inspect import edits
    from cutaway.inspect.subject import Subject
    from cutaway.tokenizer import Tokenizer


@runtime_checkable
class Drafts(Protocol):
    """A smaller model that writes ahead: a LanguageModel."""

    @property
    def engine(self) -> AllLogits: ...

    @property
    def checkpoint(self) -> Checkpoint: ...


COMPARED = 256  # tokens by which a draft's vocabulary is compared with its model's
Speculate = Literal["lookup", "mtp"] | Path | Drafts | None


class GenerationOptions(SamplingOptions, total=False):
    """What `generate` and `stream` take beside the prompt and the sampling settings; each may be left out.

    ``session``: the memory of earlier calls, of which a common beginning is not read again.
    ``speculate``: "lookup" guesses tokens from earlier text; a smaller model of the same vocabulary writes
    ahead, or "mtp", a head of the model's own, or one of EAGLE-3, the Path of its folder; the model checks
    several tokens in one forward pass. The text is the same as without (``generate/speculative.py``).
    ``edit``: changes of the model's activations (``inspect/edits.py``) for this call alone, by the engine
    that answers; Python functions, and what the runtime does not edit, by the PyTorch model.
    ``constraint``: what the text must follow, such as
    ``constrain.json_schema(schema).begin(lm.tokenizer)`` (generate/constrain.py). ``keep``: activations by
    name, as for `trace`: the generation's ``trace`` has them, of every token that was read.
    """

    session: Session | None
    speculate: Speculate
    edit: edits.Given | None
    constraint: Constraint | None
    keep: Sequence[str] | None


class BatchOptions(SamplingOptions, total=False):
    """What `generate_batch` takes beside the prompts and the sampling settings, which hold for all of them.

    ``edit`` changes the activations of all of them, ``edits`` those of each its own (None: not); prompts with
    and without edits share the engine's steps. ``max_sequences``: how many are continued at once (16);
    ``keep`` is as for `generate`. Each may be left out.
    """

    edit: edits.Given | None
    edits: Sequence[edits.Given | None] | None
    max_sequences: int
    keep: Sequence[str] | None


class ThinkOptions(SamplingOptions, total=False):
    """What `think` takes beside the prompt, the strategy and the sampling settings; each may be left out.

    ``score`` judges a text (None: its own mean log-probability), ``extract`` finds the answer to vote on
    (None: its last line).
    """

    score: Callable[[str], float] | None
    extract: Callable[[str], str | None] | None


@dataclass(frozen=True)
class Continuation:
    """Continues prompts, given as ids, with a model's engines."""

    engines: Engines
    get_tokenizer: Callable[[], Tokenizer]

    def stream(
        self,
        ids: list[int],
        own: edits.Given,
        *,
        session: Session | None = None,
        speculate: Speculate = None,
        edit: edits.Given | None = None,
        constraint: Constraint | None = None,
        keep: Sequence[str] | None = None,
        **settings: Unpack[SamplingOptions],
    ) -> Generator[Piece]:
        """A piece a token; the last brings the whole generation. ``own``: edits of the model itself.

        ``keep``: activations by name, which the generation's trace has of every token that was read.
        """
        if isinstance(self.engines.config, EncoderDecoder):
            if session is not None or edit or speculate is not None or keep:
                raise UserError(
                    "with an encoder-decoder there is no session, speculation, edit or keep: leave them out"
                )
            return self._target(ids, constraint, **settings)
        more: Any = speculate, constraint
        if keep:
            _refuse_session(session)
            subject = self._keeping(keep, own, [edit or ()], [ids])
            if subject is None:
                return self._recorded(ids, own, keep, edit or (), *more, **settings)
            pieces = self.stream(ids, own, speculate=speculate, edit=edit, constraint=constraint, **settings)
            return _with_trace(pieces, lambda made: self._traces(subject, keep, [made], [edit or ()])[0])
        engine: Any = None
        if edit or own != ():
            _refuse_session(session)
            edited = self.engines.edited((own, edit or ()), ids)
            engine, session = edited.engine, Session(*edited)
        engine = engine or self.engines.answering
        return self._continued(engine, ids, session, *more, **settings)

    def _keeping(
        self,
        keep: Sequence[str],
        own: edits.Given,
        given: Sequence[edits.Given],
        prompts: Sequence[list[int]],
    ) -> Subject | None:
        """The subject whose runtime keeps these activations under these edits; None where PyTorch does."""
        from cutaway.inspect.names import check_list

        check_list(keep)
        subject = self.engines.subject(self.get_tokenizer(), own, self.ids)
        if subject.engine.name != "runtime":
            return None
        under = [(own, one) for one in given]
        why = subject.engine.unsupported_reason(keep, under, list(map(len, prompts)))
        if why is not None and self.engines.asked.engine == "runtime":
            raise UserError(f'{why[:1].upper()}{why[1:]}: load with engine="pytorch" or "auto" to keep it')
        return subject if why is None else None

    def _traces(
        self,
        subject: Subject,
        keep: Sequence[str],
        made: Sequence[Generation],
        given: Sequence[edits.Given],
    ) -> list[Generation]:
        """Generations of the runtime with their traces."""
        from cutaway.inspect import recording

        found = recording.traces(subject, keep, made, given)
        return [replace(one, trace=trace) for one, trace in zip(made, found, strict=True)]

    def _recorded(
        self,
        ids: list[int],
        own: edits.Given,
        keep: Sequence[str],
        edit: edits.Given,
        speculate: Speculate,
        constraint: Constraint | None,
        **settings: Unpack[SamplingOptions],
    ) -> Generator[Piece]:
        """As `stream`, with the activations ``keep`` of every pass of the PyTorch model."""
        engine = self.engines.pytorch
        from cutaway.inspect import pytorch_edits
        from cutaway.inspect.recording_pytorch import Recording

        subject = self.engines.subject(self.get_tokenizer(), own, self.ids)
        recording = Recording(subject, keep)
        made = pytorch_edits.prepare(self.engines.pytorch_model, (own, edit), len(ids))
        edited = Session(engine, recording.after(made))
        pieces = self._continued(engine, ids, edited, speculate, constraint, **settings)
        return _with_trace(pieces, lambda made: replace(made, trace=recording.trace([*ids, *made.ids])))

    def batch(
        self, prompts: Sequence[list[int]], own: edits.Given, **options: Unpack[BatchOptions]
    ) -> list[Generation]:
        """Each prompt as `stream` continues it alone, many in a step of the engine."""
        from cutaway.generate.batch.many_prompts import answer_all

        edit, edits = options.pop("edit", None) or (), options.pop("edits", None)
        most, keep = options.pop("max_sequences", 16), options.pop("keep", None)
        if edits is not None and len(edits) != len(prompts):
            raise UserError(f"{len(prompts)} prompts and {len(edits)} edits: give one a prompt, or `edit`")
        given = [(edit, (edits[n] if edits else None) or ()) for n in range(len(prompts))]
        subject = self._keeping(keep, own, given, prompts) if keep else None
        if keep and subject is None:
            each = zip(prompts, given, strict=True)
            rest: Any = options
            return [finish(self.stream(ids, own, edit=one, keep=keep, **rest)) for ids, one in each]
        params, engines = self.ending(sampling_params(options)), self.engines
        requests: dict[Any, dict[int, Request]] = {}  # by engine
        for n, ids in enumerate(prompts):
            engine, hooks = engines.answering, None
            if given[n] != ((), ()) or own != ():
                engine, hooks = engines.edited((own, given[n]), ids)
            requests.setdefault(engine, {})[n] = Request(tuple(ids), params, edit=hooks)
        found: dict[int, Generation] = {}
        for engine, asked in requests.items():
            made = answer_all(engine, self.get_tokenizer(), asked.values(), max_sequences=most)
            found |= zip(asked, made, strict=True)
        made = [found[n] for n in range(len(prompts))]
        return made if subject is None or not keep else self._traces(subject, keep, made, given)

    def think(
        self,
        engine: AllLogits,
        ids: list[int],
        strategy: str | thinking.Strategy,
        follow_up: Callable[[int, Sequence[str]], Sequence[int]] | None,
        *,
        score: Callable[[str], float] | None = None,
        extract: Callable[[str], str | None] | None = None,
        **settings: Unpack[SamplingOptions],
    ) -> thinking.Thought:
        """An answer by slow thinking; ``follow_up`` gives the ids that ask for a better one."""
        from cutaway.generate import thinking

        judge, params = thinking.judge(score, extract, follow_up), self.ending(sampling_params(settings))
        chosen = thinking.parse(strategy) if isinstance(strategy, str) else strategy
        with thinking.Writer(engine, self.get_tokenizer()) as writer:
            return chosen.answer(writer, [ids], params, judge)[0]

    def logits(self, ids: list[int], own: edits.Given, edit: edits.Given | None) -> np.ndarray:
        """The logits float32 [t v] after each token; UserError for what cannot be read."""
        if not ids:
            raise UserError("there is nothing to read: the text has no tokens")
        check_ids(ids, self.engines.config.vocab)
        if len(ids) > (most := self.engines.context):
            raise UserError(f"the text is {len(ids)} ids long and the model's context holds {most}")
        if not edit and own == ():
            engine: Any = self.engines.answering
            return engine.logits(ids)
        edited = self.engines.edited((own, edit or ()), ids)
        return edited.engine.prefill_all_logits(ids, edited.new_state())

    def ids(self, prompt: str | Sequence[int]) -> list[int]:
        """The ids of a prompt, a text with the begin token that the model expects."""
        if not isinstance(prompt, str):
            try:
                return list(map(operator.index, prompt))
            except TypeError:
                raise UserError(f"a prompt is text or a list of ids, and this is {prompt!r:.80}") from None
        tokenizer = self.get_tokenizer()
        if isinstance(self.engines.config, Encoder | EncoderDecoder):
            return tokenizer.encode(prompt, add_special=True)
        return [*tokenizer.before, *tokenizer.encode(prompt)]

    def whole_ids(self, text: str | Sequence[int]) -> list[int]:
        """The ids of a text that is read whole, with the end token too."""
        if isinstance(text, str):
            return self.get_tokenizer().encode(text, add_special=True)
        return self.ids(text)

    def ending(self, settings: SamplingParams) -> SamplingParams:
        """The settings, with the end tokens that the checkpoint names beside the tokenizer's."""
        ends = self.engines.checkpoint.defaults.get("eos_ids", ())
        if settings.ignore_eos or not isinstance(ends, tuple):
            return settings
        return replace(settings, stop_ids=(*settings.stop_ids, *ends))

    def _target(
        self, source: list[int], constraint: Constraint | None, **settings: Unpack[SamplingOptions]
    ) -> Generator[Piece]:
        """The target of an encoder-decoder's source."""
        checkpoint, settled = self.engines.checkpoint, self.ending(sampling_params(settings))
        rules = checkpoint.target
        if rules is None or rules.start is None:
            raise UserError(
                f"{checkpoint.source} does not say how a target begins: put decoder_start_token_id into "
                "its config.json"
            )
        if rules.first is not None or rules.never:
            constraint = TargetRules(rules.first, rules.never, constraint)
        engine = self.engines.target(source)
        return generate(engine, self.get_tokenizer(), [rules.start], settled, constraint=constraint)

    def _continued(
        self,
        engine: Any,
        ids: list[int],
        session: Session | None,
        speculate: Speculate,
        constraint: Constraint | None,
        **settings: Unpack[SamplingOptions],
    ) -> Generator[Piece]:
        params = self.ending(sampling_params(settings))
        drafting = None if speculate is None else self.drafting(speculate)
        return generate(engine, self.get_tokenizer(), ids, params, session, drafting, constraint)

    def drafting(self, speculate: str | Path | Drafts) -> Drafting:
        """How tokens are drafted: from earlier text, by a head, or by a smaller model of one vocabulary."""
        if speculate == "lookup":
            return Drafting(PromptLookup())
        folder = None if speculate == "mtp" else speculate
        if folder is None or isinstance(folder, Path):
            heads = self.engines.draft_heads(folder)
            return Drafting(HeadProposer(heads, len(self.get_tokenizer())))
        if not isinstance(speculate, Drafts):
            known = '"lookup", "mtp", a smaller model, or the Path of an EAGLE-3 head'
            raise UserError(f"speculate is {speculate!r}: use {known}")
        draft, vocab = speculate.engine, self.engines.decoder().vocab
        if draft.vocab != vocab:
            raise UserError(
                f"{speculate.checkpoint.source} cannot write ahead for {self.engines.checkpoint.source}: "
                f"it has {draft.vocab} ids, and {vocab} are needed"
            )
        given: Any = speculate  # a LanguageModel, which reads its tokenizer once
        if (id := _another_token(self.get_tokenizer(), given.tokenizer)) is not None:
            raise UserError(
                f"{speculate.checkpoint.source} cannot write ahead for {self.engines.checkpoint.source}: its "
                f"tokens are others, such as id {id}: a draft has the model's own vocabulary"
            )
        if isinstance(draft, Rewinding) and (why := draft.no_rewinding()) is not None:
            raise UserError(f"{speculate.checkpoint.source} cannot write ahead: {why}")
        return Drafting(DraftModel(draft, len(self.get_tokenizer())))


def _another_token(own: Tokenizer, theirs: Tokenizer) -> int | None:
    """An id that is another token in the second vocabulary, where most are; a few added ones may differ."""

    def spelt(tokenizer: Tokenizer, id: int) -> bytes:
        try:
            return tokenizer.token_bytes(id)
        except UserError:  # a row of the table that no token has
            return b""

    asked = range(0, min(len(own), len(theirs)), max(1, len(own) // COMPARED))
    others = [id for id in asked if own is not theirs and spelt(own, id) != spelt(theirs, id)]
    return others[0] if 2 * len(others) > len(asked) else None


def _refuse_session(session: Session | None) -> None:
    if session is not None:
        raise UserError("a session keeps what was read without the edit: leave out session or edit")


def _with_trace(pieces: Iterable[Piece], traced: Callable[[Generation], Generation]) -> Generator[Piece]:
    """The pieces, of which the last brings its generation with what was kept."""
    for piece in pieces:
        yield piece if piece.generation is None else replace(piece, generation=traced(piece.generation))
