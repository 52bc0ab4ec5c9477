"""The fields of a model's edits in a request: those of the kinds in inspect/edits.py, by their own names.

What an edit takes of other texts is given as texts: ``text`` or ``messages`` for ids, ``reference`` as texts.
"""

from __future__ import annotations

from dataclasses import fields
from types import NoneType
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin, get_type_hints

from pydantic import Field, create_model

from cutaway.inspect import edits
from cutaway.serve.openai.message_schema import Messages
from cutaway.serve.validation import FailFast, Id, Number, Positions, StrictModel, Text

Units = Annotated[list[Id], FailFast, Field(max_length=65536)]
Vector = Annotated[list[Number], FailFast]
SCALARS: dict[Any, Any] = {bool: bool, int: Id, float: Number, str: Annotated[Text, Field(max_length=200)]}
LISTS: dict[str, Any] = {
    "positions": Positions,
    "units": Units,
    "others": Units,
    "keys": Units,
    "vector": Vector,
    "vectors": Annotated[list[Vector], FailFast, Field(max_length=2)],
    "reference": Annotated[list[Text], FailFast, Field(max_length=64)],
}

ANOTHER: dict[str, Any] = {"text": Text, "messages": Messages}  # what gives another prompt's ids


def _type(name: str, hint: Any) -> Any:
    """A field's type in a request, from its name and its type in Python."""
    own: Any = hint if get_origin(hint) is Literal else LISTS.get(name)
    if own is None:
        own = next(SCALARS[one] for one in (hint, *get_args(hint)) if one in SCALARS)
    return Optional[own] if NoneType in get_args(hint) else own  # noqa: UP045


def _model(kind: str, of: type[Any]) -> type[StrictModel]:
    """A kind of edit as a request has it."""
    hints = get_type_hints(of)
    made: dict[str, Any] = {"kind": (Literal[kind], ...)}  # pyright: ignore[reportInvalidTypeForm]
    for field in fields(of):
        default = [] if field.default == () else field.default
        if field.name != "ids":
            made[field.name] = (_type(field.name, hints[field.name]), Field(default))
        else:
            made |= {name: (Optional[one], None) for name, one in ANOTHER.items()}  # noqa: UP045
    return create_model(of.__name__, __base__=StrictModel, __doc__=of.__doc__, **made)


MODELS = {kind: _model(kind, of) for kind, of in edits.KINDS.items()}
ModelEdit = Annotated[Union[tuple(MODELS.values())], Field(discriminator="kind")]  # noqa: UP007
Edits = Annotated[list[ModelEdit], FailFast, Field(max_length=64)]  # pyright: ignore[reportInvalidTypeForm]
