"""How a prompt is continued: by which engine, with which edits, session, guesses and constraint.

One prompt goes through `generate/decode.py`, several through the scheduler of `generate/batch/`, where those
with edits of their own share the steps of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from cutaway.engines import Engines
from cutaway.errors import UserError
from cutaway.generate.batch.request import Constraint, Generation, Piece, Request, finish
from cutaway.generate.decode import generate
from cutaway.generate.engine import AllLogits
from cutaway.generate.sampling_params import SamplingOptions, SamplingParams, sampling_params
from cutaway.generate.session import Session
from cutaway.generate.speculative import DraftModel, PromptLookup, Speculation
from cutaway.generate.target import TargetRules
from cutaway.model.config import EncoderDecoder
from cutaway.weights.load import Checkpoint

if TYPE_CHECKING:
    from typing import Unpack

    from cutaway.inspect import edits
    from cutaway.inspect.trace import Subject
    from cutaway.tokenizer import Tokenizer


@runtime_checkable
class Drafts(Protocol):
    """A smaller model that writes ahead: a LanguageModel."""

    @property
    def engine(self) -> AllLogits: ...

    @property
    def checkpoint(self) -> Checkpoint: ...


Speculate = Literal["lookup"] | Drafts | None


class GenerationOptions(SamplingOptions, total=False):
    """What `generate` and `stream` take beside the prompt; each may be left out."""

    session: Session | None
    speculate: Speculate
    edit: edits.Given | None
    constraint: Constraint | None


class BatchOptions(SamplingOptions, total=False):
    """What `generate_batch` takes beside the prompts; each may be left out."""

    edit: edits.Given | None
    edits: Sequence[edits.Given | None] | None
    max_sequences: int


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
        **settings: Unpack[SamplingOptions],
    ) -> Generator[Piece]:
        """A piece a token; the last brings the whole generation. ``own``: edits of the model itself."""
        if isinstance(self.engines.config, EncoderDecoder):
            if session is not None or edit or speculate is not None:
                raise UserError(
                    "with an encoder-decoder there is no session, speculation or edit: leave them out"
                )
            return self._target(ids, constraint, **settings)
        engine: Any = None
        if edit or own != ():
            _refuse_session(session)
            edited = self.engines.edited((own, edit or ()), ids)
            engine, session = edited.engine, Session(*edited)
        engine = engine or self.engines.answering
        return self._continued(engine, ids, session, speculate, constraint, **settings)

    def recorded(
        self,
        subject: Subject,
        ids: list[int],
        keep: Sequence[str],
        *,
        session: Session | None = None,
        speculate: Speculate = None,
        edit: edits.Given | None = None,
        constraint: Constraint | None = None,
        **settings: Unpack[SamplingOptions],
    ) -> Generation:
        """The generation with the activations ``keep`` of every token that was read, by the PyTorch model."""
        if self.engines.asked.engine == "runtime":
            raise UserError('the runtime keeps no activations: load with engine="definition" or "auto"')
        _refuse_session(session)
        engine = self.engines.pytorch
        from cutaway.inspect import pytorch_edits
        from cutaway.inspect.recording import Recording

        recording = Recording(subject, keep)
        made = pytorch_edits.prepare(self.engines.pytorch_model, (subject.edit, edit or ()), len(ids))
        edited = Session(engine, recording.after(made))
        generation = finish(self._continued(engine, ids, edited, speculate, constraint, **settings))
        return replace(generation, trace=recording.trace([*ids, *generation.ids]))

    def batch(
        self, prompts: Sequence[list[int]], own: edits.Given, **options: Unpack[BatchOptions]
    ) -> list[Generation]:
        """Each prompt as `stream` continues it alone, many in a step of the engine."""
        from cutaway.generate.batch.scheduler import answer_all

        edit, edits = options.pop("edit", None) or (), options.pop("edits", None)
        most = options.pop("max_sequences", 16)
        if edits is not None and len(edits) != len(prompts):
            raise UserError(f"{len(prompts)} prompts and {len(edits)} edits: give one a prompt, or `edit`")
        params, engines = self.ending(sampling_params(options)), self.engines
        requests: dict[Any, dict[int, Request]] = {}  # by their engine
        for n, ids in enumerate(prompts):
            one = (edits[n] if edits else None) or ()
            engine, hooks = engines.answering, None
            if not edit == one == own == ():
                engine, hooks = engines.edited((own, edit, one), ids)
            requests.setdefault(engine, {})[n] = Request(tuple(ids), params, edit=hooks)
        found: dict[int, Generation] = {}
        for engine, asked in requests.items():
            made = answer_all(engine, self.get_tokenizer(), asked.values(), max_sequences=most)
            found |= zip(asked, made, strict=True)
        return [found[n] for n in range(len(prompts))]

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
        guessed = None if speculate is None else self.speculation(speculate, params)
        return generate(engine, self.get_tokenizer(), ids, params, session, guessed, constraint)

    def speculation(self, speculate: str | Drafts, settings: SamplingParams) -> Speculation:
        """How tokens are guessed: from earlier text, or by a smaller model of the same vocabulary."""
        if speculate == "lookup":
            return Speculation(PromptLookup())
        if not isinstance(speculate, Drafts):
            raise UserError(f'speculate is {speculate!r}: use "lookup" or a smaller model')
        draft, vocab = speculate.engine, self.engines.decoder().vocab
        if draft.vocab != vocab:
            raise UserError(
                f"{speculate.checkpoint.source} cannot write ahead for {self.engines.checkpoint.source}: "
                f"it has {draft.vocab} ids, and {vocab} are needed"
            )
        return Speculation(DraftModel(draft, len(self.get_tokenizer()), settings))


def _refuse_session(session: Session | None) -> None:
    if session is not None:
        raise UserError("a session keeps what was read without the edit: leave out session or edit")
