"""Validation of request bodies: the rule for all fields, the types that requests of several APIs share, and
the sentence that names the first wrong field.

``null``, an empty value and a default are the same as leaving a field out. A field that cannot change the
answer (``IGNORED``) is accepted and named in the response's ``x-cutaway-ignored``; any other that is not
listed is refused by name, or with ``--lenient`` named there too. Types and ranges are checked here, and what
depends on the model where it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    StrictInt,
    StrictStr,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from cutaway.serve.api_error import APIError

# ---- types of fields --------------------------------------------------------------------------------------

Number = Annotated[float, Field(allow_inf_nan=False)]
Id = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Text = StrictStr
Object = dict[str, Any]
MAX_TEXTS = 2048  # of one request; a server allows fewer (service.py)
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


# ---- the rule for all fields -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leniency:
    """Whether validation takes unknown fields, and the names that it ``ignored``."""

    lenient: bool = False
    ignored: dict[str, None] = field(default_factory=dict)


WITHOUT_FIELDS = ("web_search_options",)  # which ask for something where they are empty too


class StrictModel(BaseModel):
    """A JSON object with these fields, those of ``IGNORED``, and no others but at their ``DEFAULTS``."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    IGNORED: ClassVar[frozenset[str]] = frozenset()
    DEFAULTS: ClassVar[Mapping[str, Sequence[Any]]] = {}
    EMPTY: ClassVar[bool] = False  # whether an empty body is one without fields
    _ignored: dict[str, None] = PrivateAttr(default_factory=dict)

    @property
    def ignored(self) -> dict[str, None]:
        """The names of fields that were given and not used; more may be added until the response begins."""
        return self._ignored

    @model_validator(mode="before")
    @classmethod
    def _present(cls, value: Any, info: Any) -> Any:
        """Leaves out what is absent or ignored. Refuses a wrong type, else the first unknown field, before
        the others are looked at.
        """
        if not isinstance(value, dict):
            return value
        typed = cls.model_fields["type"].annotation if "type" in cls.model_fields else None
        kinds = get_args(typed) if get_origin(typed) is Literal else ()
        if kinds and value.get("type") is not None and value["type"] not in kinds:
            return {"type": value["type"]}
        known = {field.alias or name: field for name, field in cls.model_fields.items()}
        leniency, kept = info.context or Leniency(), {}
        for name, item in value.items():
            required = name == "messages" or (name in known and known[name].is_required())
            empty = item is None or (not required and name not in WITHOUT_FIELDS and item in ([], {}))
            if empty or (item in cls.DEFAULTS.get(name, ())) or (item == "" and name not in known):
                continue
            if name in known:
                kept[name] = item
            elif name in cls.IGNORED or leniency.lenient:
                leniency.ignored[name] = None
            else:
                raise PydanticCustomError("unknown_field", "is not supported", {"field": ascii(name)[1:-1]})
        return kept


Body = TypeVar("Body", bound=StrictModel)


def parse_body(model: type[Body], raw: bytes, lenient: bool = False) -> Body:
    """A request's body. APIError for what is not JSON and for what does not fit the model. For threads."""
    if not raw and model.EMPTY:
        raw = b"{}"
    try:
        value = json.loads(raw, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        raise APIError(400, "The body is not JSON", code="invalid_json") from None
    return checked(model, value, Leniency(lenient))


def checked(model: type[Body], value: Any, leniency: Leniency) -> Body:
    """A value as a model. APIError for one that does not fit."""
    try:
        body = model.model_validate(value, context=leniency)
        body._ignored = leniency.ignored
        return body
    except ValidationError as error:
        raise _validation_error(error.errors(include_url=False, include_input=False)) from None
    except RecursionError:
        raise APIError(400, "The body is nested too deep: make it flatter", code="invalid_value") from None


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _validation_error(errors: Sequence[Any]) -> APIError:
    """The APIError of the first of pydantic's errors, unknown fields first."""
    first = min(errors, key=_order)
    where = _path(first["loc"])
    if first["type"] == "unknown_field":
        where = _path([*first["loc"], "field"])[: -len("field")] + first["ctx"]["field"][:100]
        message, code = f"{where} is not supported here: leave it out", "unknown_parameter"
    elif first["type"] == "literal_error" and where.endswith("].type") and "content[" in where:
        expected = first["ctx"]["expected"]
        message, code = f"{where}: this model reads text alone; a part is {expected}", "invalid_value"
    elif first["type"] == "missing":
        message, code = f"{where or 'The body'} is missing", "missing_parameter"
    else:
        message, code = (
            f"{where or 'The body'}: {first['msg'].removeprefix('Value error, ')}",
            "invalid_value",
        )
    return APIError(400, message, param=where or None, code=code)


def _order(error: Any) -> int:
    """An object's type comes before its fields, those before their values, and last what is wrong only
    because the value is another branch's of a union.
    """
    if error["type"] in ("literal_error", "union_tag_invalid") and error["loc"][-1] == "type":
        return 0
    if error["type"] == "unknown_field":
        return 1
    return 3 if error["type"].endswith("_type") else 2


def _path(parts: Sequence[str | int]) -> str:
    """messages[0].content; pydantic's names of a union's branches are left out."""
    path, before = "", None
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _is_field(part) and not _is_tag(before, part):
            path += f".{part}" if path else part
        before = part
    return path[:200]


def _is_field(part: str) -> bool:
    return not (part[:1].isupper() or "[" in part or part in ("str", "float", "int", "bool", "none"))


def _is_tag(before: str | int | None, part: str) -> bool:
    """Whether a name is not a field but the tag of a branch: a format's type, an edit's kind."""
    kinds = ("ablate", "patch", "add", "project")
    return before in ("response_format", "format") or (isinstance(before, int) and part in kinds)
