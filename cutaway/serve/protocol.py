"""What a request may say, field by field. A field that is not here is refused by its name, never ignored.

The names are OpenAI's (platform.openai.com/docs/api-reference); what Cutaway adds says so. ``null`` is the
same as leaving a field out. Values are checked for their types and ranges here, and for what the model has
(ids, layers, room in the context) where they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

Number = Annotated[float, Field(allow_inf_nan=False)]
Id = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Text = StrictStr
Object = dict[str, Any]
MOST_TEXTS = 1024  # of one request; a server allows fewer (limits.py)
Fast: Any = Field(fail_fast=True)  # refuses a list for its first wrong item, not for a million of them


def _branch(value: Any) -> str | None:
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
    return Discriminator(_branch, custom_error_type="wrong_type", custom_error_message=f"give {what}")


Prompts = Annotated[
    Annotated[Text, Tag("str")]
    | Annotated[list[Text], Fast, Field(max_length=MOST_TEXTS), Tag("list[items]")]
    | Annotated[list[Id], Fast, Tag("list[int]")]
    | Annotated[list[Annotated[list[Id], Fast]], Fast, Field(max_length=MOST_TEXTS), Tag("list[list]")],
    _text_or("a text, a list of texts, a list of ids, or a list of lists of ids"),
]
Texts = Annotated[
    Annotated[Text, Tag("str")] | Annotated[list[Text], Fast, Tag("list[items]")],
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


class StrictModel(BaseModel):
    """A JSON object with these fields and no others."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        """Refuses a wrong type, else the first unknown field, before the others are looked at."""
        if isinstance(value, dict):
            kinds = get_args(cls.model_fields["type"].annotation) if "type" in cls.model_fields else ()
            if kinds and "type" in value and value["type"] not in kinds:
                return {"type": value["type"]}
            names = {field.alias or name for name, field in cls.model_fields.items()}
            for name in value:
                if name not in names:
                    raise PydanticCustomError(
                        "unknown_field", "is not supported", {"field": ascii(name)[1:-1]}
                    )
        return value


class StreamOptions(StrictModel):
    include_usage: StrictBool | None = Field(
        None, description="A last chunk tells how many tokens there were."
    )


class Internals(StrictModel):
    """Cutaway's: what is to be seen of the inside at each token (docs/serving.md)."""

    layers: Annotated[list[Id], Fast] = Field(min_length=1, max_length=1024)
    attention: StrictBool = True
    lens: Annotated[StrictInt, Field(ge=0, le=100)] = 5


class Sampling(StrictModel):
    """How to choose tokens and when to stop: what chat and completions share."""

    model: Text | None = Field(None, description="The name under which the model is served.")
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[Number, Field(ge=-100, le=100)]], BeforeValidator(_biases)] | None
    ) = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Texts | None = Field(None, description="At most 16 texts before which the answer ends.")
    n: Annotated[StrictInt, Field(ge=1)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = Field(None, description="Taken, and used for nothing.")
    top_k: Annotated[StrictInt, Field(ge=0)] | None = Field(None, description="Cutaway's; 0 is off.")
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = Field(None, description="Cutaway's; 0 is off.")
    typical_p: Annotated[Number, Field(ge=0, le=1)] | None = Field(None, description="Cutaway's; 1 is off.")
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=100)] | None = Field(
        None, description="Cutaway's; 1 is off."
    )
    ignore_eos: StrictBool | None = Field(None, description="Cutaway's: go on past the end token.")
    internals: Internals | None = None


class Schema(StrictModel):
    name: Text
    description: Text | None = None
    schema_: Object | None = Field(None, alias="schema")
    strict: StrictBool | None = None


class TextFormat(StrictModel):
    type: Literal["text"]


class JsonObject(StrictModel):
    type: Literal["json_object"]


class JsonSchema(StrictModel):
    type: Literal["json_schema"]
    json_schema: Schema


class Regex(StrictModel):
    """Cutaway's: an answer that matches a regular expression from end to end."""

    type: Literal["regex"]
    regex: Text


class LarkGrammar(StrictModel):
    """Cutaway's: an answer of a context-free grammar in Lark's notation."""

    type: Literal["grammar"]
    grammar: Text


Format = Annotated[TextFormat | JsonObject | JsonSchema | Regex | LarkGrammar, Field(discriminator="type")]


class Called(StrictModel):
    name: Text
    arguments: Text


class ToolCall(StrictModel):
    id: Text | None = None
    type: Literal["function"] = "function"
    function: Called


class TextPart(StrictModel):
    type: Literal["text"]
    text: Text


class Message(StrictModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[
            Annotated[Text, Tag("str")] | Annotated[list[TextPart], Fast, Tag("list[items]")],
            _text_or("a text or a list of its parts"),
        ]
        | None
    ) = None
    name: Text | None = None
    reasoning_content: Text | None = None
    tool_calls: Annotated[list[ToolCall], Fast] | None = None
    tool_call_id: Text | None = None
    refusal: None = None


class Function(StrictModel):
    name: Annotated[Text, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: Text | None = None
    parameters: Object | None = None
    strict: StrictBool | None = None


class Tool(StrictModel):
    type: Literal["function"]
    function: Function


class NamedFunction(StrictModel):
    name: Text


class NamedTool(StrictModel):
    type: Literal["function"]
    function: NamedFunction


Messages = Annotated[list[Message], Fast, Field(min_length=1)]
Tools = Annotated[list[Tool], Fast, Field(min_length=1, max_length=128)]


class Ablate(StrictModel):
    """Multiplies the output of a head, a layer's attention, its MLP or the whole layer by 1 - strength."""

    kind: Literal["ablate"]
    layer: Id
    part: Literal["head", "attention", "mlp", "layer"] = "layer"
    head: Id | None = None
    strength: Number = 1.0


class Patch(StrictModel):
    """Moves an activation towards that of another prompt; strength 1 replaces it."""

    kind: Literal["patch"]
    layer: Id
    part: Literal["head", "attention", "mlp", "residual"] = "residual"
    head: Id | None = None
    text: Text | None = None
    messages: Messages | None = None
    positions: Annotated[list[StrictInt], Fast] | None = None
    strength: Number = 1.0


class Add(StrictModel):
    """Adds a vector to the residual stream after a layer, strength times."""

    kind: Literal["add"]
    layer: Id
    vector: Annotated[list[Number], Fast]
    positions: Annotated[list[StrictInt], Fast] | None = None
    strength: Number = 1.0


class Project(StrictModel):
    """Removes the direction of a vector from the residual stream after a layer."""

    kind: Literal["project"]
    layer: Id
    vector: Annotated[list[Number], Fast]
    positions: Annotated[list[StrictInt], Fast] | None = None
    strength: Number = 1.0


ModelEdit = Annotated[Ablate | Patch | Add | Project, Field(discriminator="kind")]
Edits = Annotated[list[ModelEdit], Fast, Field(max_length=64)]


class Chat(Sampling):
    messages: Messages
    max_completion_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    response_format: Format | None = None
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: StrictBool | None = None
    store: Literal[False] | None = Field(None, description="Nothing is stored: true is refused.")
    edits: Edits | None = Field(None, description="Cutaway's: changes of the model's activations.")


class Completion(Sampling):
    prompt: Prompts
    echo: StrictBool | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    response_format: Format | None = Field(None, description="Cutaway's: as in chat.")
    edits: Edits | None = Field(None, description="Cutaway's: changes of the model's activations.")


class Embeddings(StrictModel):
    model: Text | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = None
    user: Text | None = None
    pooling: Literal["mean", "cls", "last"] | None = Field(
        None, description="Cutaway's: how one vector is made of the tokens'. A decoder must be told."
    )


class InputText(StrictModel):
    type: Literal["input_text", "output_text", "text"]
    text: Text
    annotations: list[Any] | None = Field(None, max_length=0)
    logprobs: list[Any] | None = Field(None, max_length=0)


class InputMessage(StrictModel):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[Text, Tag("str")] | Annotated[list[InputText], Fast, Tag("list[items]")],
        _text_or("a text or a list of its parts"),
    ]
    id: Text | None = None
    status: Text | None = None


class ResponseSchema(StrictModel):
    type: Literal["json_schema"]
    name: Text
    description: Text | None = None
    schema_: Object = Field(alias="schema")
    strict: StrictBool | None = None


class ResponseText(StrictModel):
    format: (
        Annotated[TextFormat | JsonObject | ResponseSchema | Regex | LarkGrammar, Field(discriminator="type")]
        | None
    ) = None


class Responses(StrictModel):
    """OpenAI's Responses, as far as it is text in and text out and nothing is stored."""

    model: Text | None = None
    input: Annotated[
        Annotated[Text, Tag("str")]
        | Annotated[list[InputMessage], Fast, Field(min_length=1), Tag("list[items]")],
        _text_or("a text or a list of messages"),
    ]
    instructions: Text | None = None
    max_output_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    stream: StrictBool | None = None
    text: ResponseText | None = None
    store: Literal[False] | None = Field(None, description="Nothing is stored: true is refused.")
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = Field(None, description="A prompt is never cut.")
    user: Text | None = None


class Tokenize(StrictModel):
    model: Text | None = None
    text: Text
    special: Literal["text", "allow", "forbid"] = Field(
        "text", description="What to do with text that spells a control token: encode it as text, or as it."
    )
    add_special: StrictBool = Field(False, description="Put around it what the model's inputs have.")


class Detokenize(StrictModel):
    model: Text | None = None
    ids: Annotated[list[Id], Fast]


class ChatCount(StrictModel):
    model: Text | None = None
    messages: Messages
    tools: Tools | None = None


class Trace(StrictModel):
    """One forward pass over a text: which values, of which layers, heads and positions, with which edits."""

    model: Text | None = None
    text: Text | None = None
    messages: Messages | None = None
    values: Annotated[list[Text], Fast, Field(max_length=64)] = []
    layers: Annotated[list[Id], Fast] | None = None
    heads: Annotated[list[Id], Fast] | None = None
    positions: Annotated[list[StrictInt], Fast] | None = None
    edits: Edits = []
    top: Annotated[StrictInt, Field(ge=0, le=100)] = 5
    format: Literal["json", "safetensors", "page"] = "json"
