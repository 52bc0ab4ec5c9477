"""The activations of a generation by the runtime, as one trace of every token that was read.

A token's values have the same bits in prefill and in decoding, so the text is read once more, under the
generation's edits. What the PyTorch model computes is kept while it generates (``recording_pytorch.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

from cutaway.generate.batch.request import Generation
from cutaway.inspect import edits
from cutaway.inspect.instrumented_runtime import InstrumentedRuntime
from cutaway.inspect.subject import Subject
from cutaway.inspect.trace import Trace


def traces(
    subject: Subject, names: Sequence[str], generations: Sequence[Generation], given: Sequence[edits.Given]
) -> list[Trace]:
    """A trace of each generation, made under its own edits beside the subject's."""
    engine = subject.engine
    assert isinstance(engine, InstrumentedRuntime)
    texts, prompts = [_read(one) for one in generations], [len(one.prompt_ids) for one in generations]
    under = [(subject.edit, one) for one in given]
    values = engine.values(texts, names, under, prompts=prompts)
    subjects = [subject.edited(one) for one in given]
    return [Trace(*one, engine) for one in zip(subjects, texts, values, strict=True)]


def _read(generation: Generation) -> list[int]:
    """The ids that were read: the last is not, unless an end token was chosen after it."""
    ids = [*generation.prompt_ids, *generation.ids]
    return ids if generation.stop_logprob is not None or not generation.ids else ids[:-1]
