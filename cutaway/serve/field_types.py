"""Types of fields that requests of several APIs share: texts, ids, bounded lists."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, StrictInt, StrictStr, Tag
from pydantic_core import PydanticCustomError

Number = Annotated[float, Field(allow_inf_nan=False)]
Id = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Text = StrictStr
Object = dict[str, Any]
MAX_TEXTS = 2048  # of one request; a server allows fewer (limits.py)
FailFast: Any = Field(fail_fast=True)  # refuses a list for its first wrong item, not for a million of them
MAX_MESSAGES = 2048  # OpenAI's bound too
MAX_IDS = 1 << 17


def at_most(count: int) -> BeforeValidator:
    """Refuses a longer list before any of its items is looked at: meanwhile no other thread would run."""

    def check(value: Any) -> Any:
        if isinstance(value, list) and len(value) > count:
            message = "array too long: give at most {most}, and this has {given}"
            given = {"most": f"{count:,}", "given": f"{len(value):,}"}
            raise PydanticCustomError("too_long", message, given)
        return value

    return BeforeValidator(check)


Indices = Annotated[list[Id], FailFast, at_most(MAX_IDS)]
Positions = Annotated[list[StrictInt], FailFast]


def branch(value: Any) -> str | None:
    """Which branch of a union a value is of, by its type alone: no other branch is tried."""
    if isinstance(value, str):
        return "str"
    if not isinstance(value, list):
        return None
    first = value[0] if value else ""
    if isinstance(first, int):
        return "list[int]"
    return "list[list]" if isinstance(first, list) else "list[items]"


def text_or(what: str) -> Discriminator:
    """What tells a union's branches, and the sentence for a value that is of none."""
    return Discriminator(branch, custom_error_type="wrong_type", custom_error_message=f"give {what}")


Prompts = Annotated[
    Annotated[Text, Tag("str")]
    | Annotated[list[Text], FailFast, Field(max_length=MAX_TEXTS), Tag("list[items]")]
    | Annotated[list[Id], FailFast, Tag("list[int]")]
    | Annotated[
        list[Annotated[list[Id], FailFast]], FailFast, Field(max_length=MAX_TEXTS), Tag("list[list]")
    ],
    text_or("a text, a list of texts, a list of ids, or a list of lists of ids"),
]
Texts = Annotated[
    Annotated[Text, Tag("str")] | Annotated[list[Text], FailFast, Tag("list[items]")],
    text_or("a text or a list of texts"),
]


CacheSalt = Annotated[Text, Field(min_length=1, max_length=256)]
