"""The fields of Anthropic's requests (docs.anthropic.com/en/api/messages)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from cutaway.serve.openai.sampling_schema import IGNORED
from cutaway.serve.validation import MAX_MESSAGES, FailFast, Number, Object, StrictModel, at_most


class Source(StrictModel):
    """A document's text; files, addresses and pictures are not read."""

    IGNORED = frozenset({"media_type"})
    type: Literal["text", "content"]
    data: StrictStr | None = None
    content: StrictStr | Annotated[list[Block], FailFast] | None = None


class Block(StrictModel):
    IGNORED = frozenset({"cache_control", "citations", "signature", "data", "caller", "is_error"})
    type: Literal[
        "text", "thinking", "redacted_thinking", "tool_use", "tool_result", "document", "search_result"
    ]
    source: StrictStr | Source | None = None
    title: StrictStr | None = None
    context: StrictStr | None = None
    text: StrictStr | None = None
    thinking: StrictStr | None = None
    id: StrictStr | None = None
    name: StrictStr | None = None
    input: Object | None = None
    tool_use_id: StrictStr | None = None
    content: StrictStr | Annotated[list[Block], FailFast] | None = None


Blocks = StrictStr | Annotated[list[Block], FailFast]


class MessageParam(StrictModel):
    IGNORED = frozenset(
        {"id", "type", "model", "stop_reason", "stop_sequence", "stop_details", "usage", "container"}
    )
    role: Literal["user", "assistant", "system"]
    content: Blocks = Field(description="A text, or its blocks.")


class ToolParam(StrictModel):
    IGNORED = frozenset(
        {"cache_control", "eager_input_streaming", "input_examples", "defer_loading", "allowed_callers"}
    )
    DEFAULTS: ClassVar = {"type": ["custom"]}
    type: StrictStr | None = None
    name: StrictStr
    description: StrictStr | None = None
    input_schema: Object | None = None
    strict: StrictBool | None = None


class ToolChoice(StrictModel):
    type: Literal["auto", "any", "tool", "none"]
    name: StrictStr | None = None
    disable_parallel_tool_use: StrictBool | None = None


class Thinking(StrictModel):
    IGNORED = frozenset({"display"})
    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Annotated[StrictInt, Field(ge=0)] | None = None


class OutputFormat(StrictModel):
    type: Literal["json_schema"]
    schema_: Object = Field(alias="schema")


class OutputConfig(StrictModel):
    effort: StrictStr | None = None
    format: OutputFormat | None = None


class NewThread(StrictModel):
    type: Literal["create"]


class OldThread(StrictModel):
    type: Literal["continue"]
    previous_message_id: StrictStr


class CountRequest(StrictModel):
    """A conversation in Anthropic's form."""

    IGNORED: ClassVar[frozenset[str]] = IGNORED | {
        "betas", "context_management", "inference_geo", "speed", "cache_control", "diagnostics",
        "user_profile_id", "workspace_id",
    }  # fmt: skip
    model: StrictStr | None = None
    messages: Annotated[list[MessageParam], FailFast, Field(min_length=1), at_most(MAX_MESSAGES)]
    system: Blocks | None = None
    tools: Annotated[list[ToolParam], FailFast, Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None


class MessagesRequest(CountRequest):
    messages: Annotated[list[MessageParam], FailFast, at_most(MAX_MESSAGES)]
    thread: Annotated[NewThread | OldThread, Field(discriminator="type")] | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)]
    stop_sequences: Annotated[list[StrictStr], FailFast] | None = None
    stream: StrictBool | None = None
    temperature: Annotated[Number, Field(ge=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=0)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
