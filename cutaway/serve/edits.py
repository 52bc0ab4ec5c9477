"""A request's edits of the model, for one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cutaway.generate.session import EditHooks
from cutaway.serve.api_error import APIError, errors_in
from cutaway.serve.edit_schema import Ablate, ModelEdit, Patch
from cutaway.serve.prompts import prompt
from cutaway.serve.service import Service
from cutaway.serve.work_pool import spend

if TYPE_CHECKING:
    from cutaway.inspect.edits import Edit

SQUARE = ("scores", "pattern", "index", "chosen")


def check_length(service: Service, ids: Sequence[int], param: str) -> None:
    """Refuse a text that is longer than a trace reads."""
    most = service.limits.trace_tokens
    if len(ids) > most:
        text = f"The text has {len(ids):,} tokens, and a trace reads at most {most:,}"
        raise APIError(400, text, param=param, code="above_limit")


def _check_name(service: Service, name: str, param: str) -> None:
    from cutaway.inspect import names

    known = names.known(service.lm.definition.model)
    for own in names.resolve(known, [name]):
        if any(found.endswith(SQUARE) for found in names.matching(known, own)):
            text = f"{name[:60]!r} names attention maps, which grow with the square of the text: edit z or v"
            raise APIError(400, text, param=param)


def hooks(service: Service, asked: Sequence[ModelEdit], ids: Sequence[int]) -> EditHooks | None:
    """A request's edits for this prompt; APIError where they fit neither the model nor its engine."""
    edits = parse_edits(service, asked, ids)
    with errors_in("edits"):
        hooks = service.lm.edited_engine(edits, ids).hooks
        if callable(hooks):
            _ = service.edit_scheduler  # built here, beside the event loop
    return hooks


def parse_edits(service: Service, asked: Sequence[ModelEdit], ids: Sequence[int]) -> list[Edit]:
    """The edits of a request; APIError for one that does not fit the model and the prompt's ids."""
    from cutaway.inspect.edits import check, from_json

    made: list[Edit] = []
    for i, one in enumerate(asked):
        fields = one.model_dump(exclude={"text", "messages"})
        if isinstance(one, Patch):
            fields["ids"] = prompt(service, one.text, one.messages, f"edits[{i}].text")
            check_length(service, fields["ids"], f"edits[{i}].text")
            spend(len(fields["ids"]))
        if isinstance(one, Ablate):
            fields["reference"] = [service.lm.ids(text) for text in one.reference]
            for reference in fields["reference"]:
                check_length(service, reference, f"edits[{i}].reference")
                spend(len(reference))
        with errors_in(f"edits[{i}]"):
            made.append(from_json(fields))
            if one.name is not None:
                _check_name(service, one.name, f"edits[{i}].name")
            check(service.lm.definition.model.config, made[-1], len(ids))
    return made
