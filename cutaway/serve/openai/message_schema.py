"""The fields of messages and tools in OpenAI's form, which the other APIs are translated into."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, Tag, model_validator

from cutaway.serve.validation import MAX_MESSAGES, FailFast, Object, StrictModel, Text, at_most, text_or


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
    text_or("a text or a list of its parts"),
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


class Ending(StrictModel):
    """How a conversation ends as the model reads it."""

    add_generation_prompt: StrictBool | None = Field(
        None, description="vLLM's: false leaves out what begins the assistant's turn."
    )
    continue_final_message: StrictBool | None = Field(
        None, description="vLLM's: the answer goes on with the last message, which is the assistant's."
    )
