"""The fields of responses and conversations (platform.openai.com/docs/api-reference/responses)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, StrictBool, StrictInt, StrictStr, Tag

from cutaway.serve.openai.message_schema import Content
from cutaway.serve.openai.sampling_schema import (
    IGNORED,
    JsonObject,
    LarkGrammar,
    Regex,
    Temperature,
    TextFormat,
)
from cutaway.serve.validation import CacheSalt, FailFast, Object, StrictModel, branch


class InputItem(StrictModel):
    """An item of a response's input: a message, a call and its result, a thought, or a reference to one."""

    IGNORED = frozenset({"status", "encrypted_content", "phase", "annotations", "created_by", "namespace"})
    type: Literal["message", "function_call", "function_call_output", "reasoning", "item_reference"] = (
        "message"
    )
    id: StrictStr | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content | None = None
    call_id: StrictStr | None = None
    name: StrictStr | None = None
    arguments: StrictStr | None = None
    output: Content | None = None
    summary: Content | None = None


class CompactionItem(StrictModel):
    """What a conversation was compacted to, as /v1/responses/compact gave it."""

    IGNORED = frozenset({"status", "created_by"})
    type: Literal["compaction"]
    id: StrictStr | None = None
    encrypted_content: StrictStr


def _item_kind(value: Any) -> str:
    """Which model an item of the input is of, by its type."""
    type = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "Compaction" if type == "compaction" else "Item"


Item = Annotated[
    Annotated[InputItem, Tag("Item")] | Annotated[CompactionItem, Tag("Compaction")],
    Discriminator(_item_kind),
]
Input = Annotated[
    Annotated[StrictStr, Tag("str")]
    | Annotated[list[Item], FailFast, Field(min_length=1), Tag("list[items]")],
    Discriminator(
        branch, custom_error_type="wrong_type", custom_error_message="give a text or a list of items"
    ),
]


class ResponseSchema(StrictModel):
    type: Literal["json_schema"]
    name: StrictStr
    description: StrictStr | None = None
    schema_: Object = Field(alias="schema")
    strict: StrictBool | None = None


class ResponseText(StrictModel):
    IGNORED = frozenset({"verbosity"})
    format: (
        Annotated[TextFormat | JsonObject | ResponseSchema | Regex | LarkGrammar, Field(discriminator="type")]
        | None
    ) = None


class Reasoning(StrictModel):
    IGNORED = frozenset({"summary", "generate_summary"})
    effort: StrictStr | None = None


class ResponseTool(StrictModel):
    IGNORED = frozenset({"defer_loading", "allowed_callers", "output_schema"})
    DEFAULTS: ClassVar = {"strict": [None]}
    type: StrictStr
    name: StrictStr | None = None
    description: StrictStr | None = None
    parameters: Object | None = None
    strict: StrictBool | None = None


class ToolChoice(StrictModel):
    type: StrictStr
    name: StrictStr | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Annotated[list[ToolChoice], FailFast] | None = None


class ById(StrictModel):
    id: StrictStr


class ResponsesRequest(Temperature):
    """OpenAI's Responses."""

    IGNORED: ClassVar[frozenset[str]] = (IGNORED - {"metadata", "store"}) | {
        "max_tool_calls",
        "stream_options",
    }
    model: StrictStr | None = None
    input: Input
    instructions: StrictStr | None = None
    max_output_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    stream: StrictBool | None = None
    text: ResponseText | None = None
    tools: Annotated[list[ResponseTool], FailFast, Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: StrictBool | None = None
    include: Annotated[list[StrictStr], FailFast, Field(max_length=64)] | None = None
    reasoning: Reasoning | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    previous_response_id: StrictStr | None = None
    conversation: StrictStr | ById | None = None
    store: StrictBool | None = None
    background: StrictBool | None = None
    metadata: Annotated[dict[StrictStr, StrictStr], Field(max_length=16)] | None = None
    truncation: Literal["disabled"] | None = Field(None, description="A prompt is never cut.")
    cache_salt: CacheSalt | None = None

    @property
    def conversation_id(self) -> str | None:
        """The id of the conversation, however it is given."""
        return self.conversation.id if isinstance(self.conversation, ById) else self.conversation or None


class ConversationRequest(StrictModel):
    """A conversation that responses go on with."""

    items: Annotated[list[Item], FailFast, Field(max_length=20)] | None = None
    metadata: Annotated[dict[StrictStr, StrictStr], Field(max_length=16)] | None = None


class ConversationUpdate(StrictModel):
    """What is noted of a conversation."""

    metadata: Annotated[dict[StrictStr, StrictStr], Field(max_length=16)] | None = None


class ConversationItems(StrictModel):
    """Items that a conversation has more."""

    items: Annotated[list[Item], FailFast, Field(min_length=1, max_length=20)]
