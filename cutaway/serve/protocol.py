"""The fields of each request, and the rule for all others.

``null``, an empty value and a default are the same as leaving a field out. A field that cannot change the
answer (``IGNORED``) is accepted and named in the response's ``x-cutaway-ignored``; any other that is not
listed is refused by name, or with ``--lenient`` named there too. The names are OpenAI's
(platform.openai.com/docs/api-reference); descriptions mark Cutaway's additions. Types and ranges are checked
here (sampling's are defined in generate/sampling_params.py), and what depends on the model where it is used.
"""

from __future__ import annotations

import json
import math
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
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from cutaway.generate.sampling_params import NUMBERS, SamplingParams
from cutaway.serve.openai_format import APIError

Number = Annotated[float, Field(allow_inf_nan=False)]
Id = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Text = StrictStr
Object = dict[str, Any]
MAX_TEXTS = 2048  # of one request; a server allows fewer (service.Limits)
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


def _text_or(what: str) -> Discriminator:
    return Discriminator(branch, custom_error_type="wrong_type", custom_error_message=f"give {what}")


Prompts = Annotated[
    Annotated[Text, Tag("str")]
    | Annotated[list[Text], FailFast, Field(max_length=MAX_TEXTS), Tag("list[items]")]
    | Annotated[list[Id], FailFast, Tag("list[int]")]
    | Annotated[
        list[Annotated[list[Id], FailFast]], FailFast, Field(max_length=MAX_TEXTS), Tag("list[list]")
    ],
    _text_or("a text, a list of texts, a list of ids, or a list of lists of ids"),
]
Texts = Annotated[
    Annotated[Text, Tag("str")] | Annotated[list[Text], FailFast, Tag("list[items]")],
    _text_or("a text or a list of texts"),
]


def _biases(value: Any) -> Any:
    """Refuses a logit_bias for its first wrong value: each of 100,000 would be listed."""
    if isinstance(value, Mapping):
        for id, bias in value.items():
            if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
                message = "{id} must have a number from -100 to 100"
                raise PydanticCustomError("wrong_bias", message, {"id": str(id)[:40]})
    return value


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


CacheSalt = Annotated[Text, Field(min_length=1, max_length=256)]


class StreamOptions(StrictModel):
    include_usage: StrictBool | None = Field(
        None, description="A last chunk tells how many tokens there were."
    )
    include_obfuscation: StrictBool | None = Field(
        None, description="Random characters make the lengths of a stream's events tell less of their texts."
    )


class Internals(StrictModel):
    """Cutaway's: what is to be seen of the inside at each token (docs/serving.md)."""

    layers: Indices = Field(min_length=1, max_length=1024)
    attention: StrictBool = True
    lens: Annotated[StrictInt, Field(ge=0, le=100)] = 5


def _derived(*names: str) -> dict[str, Any]:
    """Optional fields with the types and bounds of generate/sampling_params.py."""
    made: dict[str, Any] = {}
    for name in names:
        kind, bound, _ = NUMBERS[name]
        high = None if bound.high == math.inf else bound.high
        number: Any = StrictInt if kind is int else Number
        about = None if name == "temperature" else f"{getattr(SamplingParams, name):g} is off."
        made[name] = (number | None, Field(None, ge=bound.low, le=high, description=about))
    return made


IGNORED = frozenset({  # of all requests for text
    "metadata", "store", "user", "service_tier", "prompt_cache_key", "prompt_cache_retention", "verbosity",
    "safety_identifier", "cache_prompt", "prediction", "request_id", "priority", "id_slot", "client_metadata",
})  # fmt: skip
TEMPERATURE = ("temperature", "top_p")
PENALTIES = ("frequency_penalty", "presence_penalty", "repetition_penalty")
TRUNCATION = ("top_k", "min_p", "typical_p")
SAMPLERS = (*TEMPERATURE, *PENALTIES, *TRUNCATION, "ignore_eos")
Temperature = create_model("Temperature", __base__=StrictModel, **_derived(*TEMPERATURE))
Samplers = create_model("Samplers", __base__=Temperature, **_derived(*PENALTIES, *TRUNCATION))


class JsonSchemaSpec(StrictModel):
    name: Text
    description: Text | None = None
    schema_: Object | None = Field(None, alias="schema")
    strict: StrictBool | None = None


class TextFormat(StrictModel):
    type: Literal["text"]


class JsonObject(StrictModel):
    """A JSON object; ``schema`` is llama.cpp's."""

    type: Literal["json_object"]
    schema_: Object | None = Field(None, alias="schema")


class JsonSchema(StrictModel):
    type: Literal["json_schema"]
    json_schema: JsonSchemaSpec


class Regex(StrictModel):
    """Cutaway's: an answer that matches a regular expression from end to end."""

    type: Literal["regex"]
    regex: Text


class LarkGrammar(StrictModel):
    """Cutaway's: an answer of a context-free grammar in Lark's notation."""

    type: Literal["grammar"]
    grammar: Text


def schema_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The ``response_format`` of an answer that has this schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


ResponseFormat = Annotated[
    TextFormat | JsonObject | JsonSchema | Regex | LarkGrammar, Field(discriminator="type")
]


class StructuredOutputs(StrictModel):
    """vLLM's: one of these."""

    json_: Object | Text | None = Field(None, alias="json")
    regex: Text | None = None
    choice: Annotated[list[Text], FailFast, Field(max_length=MAX_TEXTS)] | None = None
    grammar: Text | None = None
    json_object: StrictBool | None = None


FORMS = ("response_format", "structured_outputs", "grammar", "json_schema")
FORMS += ("guided_json", "guided_regex", "guided_choice", "guided_grammar")


class SamplingRequest(Samplers):
    """How to choose tokens and when to stop: what chat and completions share."""

    IGNORED = IGNORED
    DEFAULTS: ClassVar = {
        "best_of": [1],
        "modalities": [["text"]],
        "top_k": [-1],
        "min_tokens": [0],
        "thinking_token_budget": [-1],
        "length_penalty": [1],
        "use_beam_search": [False],
        "skip_special_tokens": [True],
        "add_generation_prompt": [True],
        "continue_final_message": [False],
    }
    model: Text | None = Field(None, description="The name under which the model is served.")
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[Number, Field(ge=-100, le=100)]], BeforeValidator(_biases)] | None
    ) = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Texts | None = Field(None, description="At most 16 texts before which the answer ends.")
    stop_token_ids: Annotated[list[Id], FailFast, Field(max_length=1024)] | None = Field(
        None, description="vLLM's: ids that end the answer, beside the model's own end tokens."
    )
    n: Annotated[StrictInt, Field(ge=1)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    min_tokens: Annotated[StrictInt, Field(ge=0)] | None = Field(
        None, description="vLLM's: no end token before so many tokens."
    )
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's.")
    guided_json: Object | Text | None = Field(None, description="vLLM's; so are the next three.")
    guided_regex: Text | None = None
    guided_choice: Annotated[list[Text], FailFast, Field(max_length=MAX_TEXTS)] | None = None
    guided_grammar: Text | None = None
    grammar: Text | None = Field(None, description="llama.cpp's: a grammar in GBNF.")
    json_schema: Object | None = Field(None, description="llama.cpp's.")
    ignore_eos: StrictBool | None = Field(None, description="Cutaway's: go on past the end token.")
    cache_salt: CacheSalt | None = Field(
        None, description="vLLM's: shares the prefix cache with this salt alone."
    )
    internals: Internals | None = None

    @property
    def has_form(self) -> bool:
        """Whether one of the fields says what form the answer has (constraints.py)."""
        return any(getattr(self, name) is not None for name in FORMS)


class FunctionCall(StrictModel):
    IGNORED = frozenset({"parsed_arguments"})
    name: Text
    arguments: Text | Object | None = None


class ToolCall(StrictModel):
    IGNORED = frozenset({"index", "provider_specific_fields", "extra_content", "cache_control"})
    id: Text | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class TextPart(StrictModel):
    IGNORED = frozenset({"annotations", "logprobs", "cache_control", "prompt_cache_breakpoint"})
    type: Literal["text", "input_text", "output_text", "reasoning_text", "summary_text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _refusal(cls, value: Any) -> Any:
        refused = isinstance(value, dict) and value.get("type") == "refusal"
        return {"type": "text", "text": value.get("refusal")} if refused else value


Content = Annotated[
    Annotated[Text, Tag("str")] | Annotated[list[TextPart], FailFast, Tag("list[items]")],
    _text_or("a text or a list of its parts"),
]


class Message(StrictModel):
    """A message as any server wrote it: what a template does not read is ignored."""

    IGNORED = frozenset({
        "annotations", "audio", "parsed", "id", "index", "provider_specific_fields", "cache_control",
        "status", "timestamp", "phase", "reasoning_details", "type", "created_at", "thinking_blocks",
        "images",
    })  # fmt: skip
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    name: Text | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    tool_calls: Annotated[list[ToolCall], FailFast] | None = None
    function_call: FunctionCall | None = None
    tool_call_id: Text | None = None
    refusal: Text | None = None


class Function(StrictModel):
    name: Annotated[Text, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: Text | None = None
    parameters: Object | None = None
    strict: StrictBool | None = None


class Tool(StrictModel):
    IGNORED = frozenset({"cache_control"})
    type: Literal["function"]
    function: Function


class NamedFunction(StrictModel):
    name: Text


class NamedTool(StrictModel):
    type: Literal["function"]
    function: NamedFunction


class ToolSet(StrictModel):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], FailFast, Field(min_length=1, max_length=128)]


class AllowedTools(StrictModel):
    type: Literal["allowed_tools"]
    allowed_tools: ToolSet


Messages = Annotated[list[Message], FailFast, Field(min_length=1), at_most(MAX_MESSAGES)]
Tools = Annotated[list[Tool], FailFast, Field(min_length=1, max_length=128)]


class EditPlace(StrictModel):
    """Where an edit acts: at a layer, or at an activation by its name (docs/inspect.md)."""

    layer: Id | None = None
    name: Annotated[Text, Field(max_length=200)] | None = None
    head: Id | None = None
    positions: Positions | None = None
    units: Annotated[list[Id], FailFast, Field(max_length=65536)] | None = Field(
        None, description="Some indices of the activation's last axis, such as neurons."
    )
    from_step: Id = Field(0, description="0: from the prompt on; n: from the n-th new token on.")
    strength: Number = 1.0


class Ablate(EditPlace):
    """Moves the output of a head, a layer's attention, its MLP or the whole layer to zero, or to what its
    reference texts have.
    """

    kind: Literal["ablate"]
    part: Literal["head", "attention", "mlp", "layer"] = "layer"
    to: Literal["zero", "mean", "resample"] = "zero"
    reference: Annotated[list[Text], FailFast, Field(max_length=64)] = []
    seed: Id = 0


class Scale(EditPlace):
    """Multiplies the output of a head, a layer's attention or its MLP by strength."""

    kind: Literal["scale"]
    part: Literal["head", "attention", "mlp"] = "attention"


class Patch(EditPlace):
    """Moves an activation towards that of another prompt; strength 1 replaces it."""

    kind: Literal["patch"]
    part: Literal["head", "attention", "mlp", "residual"] = "residual"
    text: Text | None = None
    messages: Messages | None = None


class Directed(EditPlace):
    """An edit along a vector of the residual stream after a layer, or of another activation."""

    vector: Annotated[list[Number], FailFast]


class Add(Directed):
    """Adds a vector to the residual stream after a layer, strength times."""

    kind: Literal["add"]


class Project(Directed):
    """Removes the direction of a vector from the residual stream after a layer."""

    kind: Literal["project"]


ModelEdit = Annotated[Ablate | Scale | Patch | Add | Project, Field(discriminator="kind")]
Edits = Annotated[list[ModelEdit], FailFast, Field(max_length=64)]


class Ending(StrictModel):
    """How a conversation ends as the model reads it."""

    add_generation_prompt: StrictBool | None = Field(
        None, description="vLLM's: false leaves out what begins the assistant's turn."
    )
    continue_final_message: StrictBool | None = Field(
        None, description="vLLM's: the answer goes on with the last message, which is the assistant's."
    )


class ChatCompletionRequest(SamplingRequest, Ending):
    messages: Messages
    max_completion_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    tools: Tools | None = None
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[NamedTool | AllowedTools, Field(discriminator="type")]
        | None
    ) = None
    parallel_tool_calls: StrictBool | None = None
    functions: Annotated[list[Function], FailFast, Field(max_length=128)] | None = Field(
        None, description="OpenAI's former tools; `function_call` is their `tool_choice`."
    )
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    reasoning_effort: Annotated[Text, Field(max_length=32)] | None = Field(
        None, description="For the template; where it reads none, a thinking_token_budget."
    )
    thinking_token_budget: Annotated[StrictInt, Field(ge=0)] | None = Field(
        None, description="vLLM's: a thought is ended after so many tokens, and the answer follows."
    )
    chat_template_kwargs: Object | None = Field(None, description="vLLM's: variables of the template.")
    edits: Edits | None = Field(None, description="Cutaway's: changes of the model's activations.")


class CompletionRequest(SamplingRequest):
    prompt: Prompts
    suffix: Text | None = Field(None, description="What follows the text that the model is to fill in.")
    begun: Text | None = Field(None, description="Cutaway's: what the text before a suffix begins with.")
    echo: StrictBool | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    edits: Edits | None = Field(None, description="Cutaway's: changes of the model's activations.")
    return_token_ids: StrictBool | None = Field(
        None,
        description="vLLM's: each choice has prompt_token_ids and token_ids, the end token among them, and "
        "logprobs have an entry for each of the latter.",
    )


class EmbeddingRequest(StrictModel):
    IGNORED = IGNORED
    model: Text | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = None
    pooling: Literal["mean", "cls", "last"] | None = Field(
        None, description="Cutaway's: how one vector is made of the tokens'. Required for a decoder."
    )


class TokenizeRequest(Ending):
    """A text: Cutaway's ``text``, llama.cpp's ``content`` or vLLM's ``prompt``; or a conversation."""

    DEFAULTS: ClassVar = {"add_generation_prompt": [True], "continue_final_message": [False]}
    model: Text | None = None
    text: Text | None = None
    content: Text | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    special: Literal["text", "allow", "forbid"] | None = Field(
        None, description="What to do with text that spells a control token: encode it as text, or as it."
    )
    add_special: StrictBool | None = Field(None, description="Put around it what the model's inputs have.")
    add_special_tokens: StrictBool | None = Field(None, description="vLLM's name of it; true for a prompt.")
    parse_special: StrictBool | None = Field(None, description="llama.cpp's: special is allow.")
    with_pieces: StrictBool | None = None
    return_token_strs: StrictBool | None = None


class DetokenizeRequest(StrictModel):
    model: Text | None = None
    ids: Indices | None = None
    tokens: Indices | None = Field(None, description="llama.cpp's and vLLM's.")


class RerankRequest(StrictModel):
    """Texts in the order of how near they are to a query."""

    IGNORED = IGNORED | {"max_chunks_per_doc", "max_tokens_per_doc", "rank_fields"}
    model: Text | None = None
    query: Text
    documents: Annotated[list[Text | RerankDocument], FailFast, Field(min_length=1, max_length=MAX_TEXTS)]
    top_n: Annotated[StrictInt, Field(ge=1)] | None = None
    return_documents: StrictBool | None = None
    pooling: Literal["mean", "cls", "last"] | None = Field(None, description="Cutaway's, as in embeddings.")


class RerankDocument(StrictModel):
    text: Text


class ScoreRequest(StrictModel):
    """vLLM's: how near texts are to others."""

    IGNORED = IGNORED
    model: Text | None = None
    text_1: Texts
    text_2: Texts
    pooling: Literal["mean", "cls", "last"] | None = Field(None, description="Cutaway's, as in embeddings.")


class ModelRequest(StrictModel):
    model: Text


class LoadAdapterRequest(StrictModel):
    """vLLM's: the adapter in a folder of the server's is asked for as the model ``lora_name``."""

    lora_name: Annotated[Text, Field(min_length=1, max_length=200)]
    lora_path: Annotated[Text, Field(min_length=1, max_length=4096)]


class UnloadAdapterRequest(StrictModel):
    lora_name: Text


class ChatCountRequest(Ending):
    model: Text | None = None
    messages: Messages
    tools: Tools | None = None


class TraceRequest(StrictModel):
    """One forward pass over a text: which values, of which layers, heads and positions, with which edits."""

    model: Text | None = None
    text: Text | None = None
    messages: Messages | None = None
    values: Annotated[list[Text], FailFast, Field(max_length=64)] = []
    layers: Indices | None = None
    heads: Indices | None = None
    positions: Positions | None = None
    edits: Edits = []
    top: Annotated[StrictInt, Field(ge=0, le=100)] = 5
    format: Literal["json", "safetensors", "page"] = "json"


# ---- reading a body ----------------------------------------------------------------------------------------

Body = TypeVar("Body", bound=StrictModel)


def parse_body(model: type[Body], raw: bytes, lenient: bool = False) -> Body:
    """A request's body. APIError for what is not JSON and for what does not fit the model. For threads."""
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
