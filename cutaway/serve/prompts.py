"""From a request's texts, ids and messages to the ids that the model reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cutaway.errors import UserError
from cutaway.generate.tool_calls import prompted
from cutaway.generate.tool_calls.thoughts import find_marks
from cutaway.serve.api_error import APIError, about
from cutaway.serve.openai.message_schema import Ending, Message, Tool
from cutaway.serve.openai.schema import ChatCompletionRequest
from cutaway.serve.service import Service
from cutaway.tokenizer import chat

PROMPT_ONCE = "Give the prompt once: as text, as messages or, in a trace, as ids"


def messages(given: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates read them: text joined, arguments as objects, developers as the system."""
    return [_message(message, i) for i, message in enumerate(given)]


def _message(message: Message, i: int) -> dict[str, Any]:
    content = message.content if message.content is not None else message.refusal
    if isinstance(content, list):
        content = "\n".join(part.text for part in content)
    calls = [(call.id, call.function) for call in message.tool_calls or ()]
    calls += [(None, message.function_call)] if message.function_call else []
    if content is None and message.role != "assistant":
        raise APIError(400, f"messages[{i}] has no content: give it some", param=f"messages[{i}].content")
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    plain = {"role": role, "content": content or "", "name": message.name}
    plain |= {
        "tool_call_id": message.tool_call_id,
        "tool_calls": [_tool_call(*call) for call in calls] or None,
    }
    plain["reasoning_content"] = message.reasoning_content or message.reasoning
    return {name: value for name, value in plain.items() if value is not None}


def _tool_call(id: str | None, function: Any) -> dict[str, Any]:
    """A call as templates read it; arguments that are no JSON object, as cut off ones, are one text."""
    given = function.arguments or {}
    try:
        arguments = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        arguments = None
    arguments = arguments if isinstance(arguments, dict) else {"arguments": given}
    function = {"name": function.name, "arguments": arguments}
    return {"id": id or "call00000", "type": "function", "function": function}


def chat_ids(
    service: Service,
    given: Sequence[Message],
    tools: Sequence[Tool] | None,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """The ids of a conversation. APIError for a model without a template, and for content that steers it."""
    if service.scheduler is None:
        _ = service.decoder  # refuses an encoder
    if service.template is None:
        text = f"{service.name} has no chat template: ask /v1/completions, or have the server started with "
        raise APIError(400, text + "--chat-template FILE", param="messages", code="no_chat_template")
    plain = [tool.model_dump(exclude_none=True) for tool in tools or ()]
    read = {"tokenizer": service.tokenizer, "steering": "refuse", **(variables or {})}
    conversation, template = messages(given), service.template
    try:
        if chat.has_calls(conversation, plain):
            return prompted.render(conversation, template, service.lm.tool_format, plain or None, **read)
        return chat.render(conversation, template, tools=plain or None, **read)
    except UserError as error:
        raise about(error, "messages") from None


def going_on(service: Service, body: ChatCompletionRequest) -> list[int]:
    """The ids that an answer goes on with; APIError for a control token but those around a thought."""
    given, param = body.continue_token_ids or [], "continue_token_ids"
    if given and (body.continue_final_message or body.add_generation_prompt is False):
        text = (
            f"{param} goes on with a new answer: leave out continue_final_message and add_generation_prompt"
        )
        raise APIError(400, text, param=param)
    tokenizer, template = service.tokenizer, service.template
    if not given or template is None:
        return given
    control, marks = chat.control_ids(template, tokenizer), find_marks(template)
    for at, id in enumerate(given):
        if id in control and not (marks and tokenizer.token_text(id) in (marks.begin, marks.end)):
            text = f"{param}[{at}] is {tokenizer.token_text(id)}, a control token, which only the template"
            raise APIError(400, f"{text} writes: end the ids before it", param=param)
    return given


def ending(body: Ending) -> dict[str, bool]:
    """What a request says about the end of the conversation as the model reads it."""
    if body.continue_final_message:
        return {"continue_final_message": True}
    return {"add_generation_prompt": False} if body.add_generation_prompt is False else {}


def prompts(
    service: Service, given: str | Sequence[Any], param: str, *, whole: bool = False
) -> list[list[int]]:
    """The ids of each text that a field holds: one text or list of ids, or several of either. Ids are taken
    as they are. ``whole``: of texts that are read, and not continued.
    """
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    if not given:
        raise APIError(400, f"{param} is empty: give at least one text", param=param)
    encode = service.lm.whole_ids if whole else service.lm.ids
    return [encode(one) for one in given]


def prompt(
    service: Service,
    text: str | None,
    messages: Any,
    param: str,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """The ids of the prompt, given once: as text, or as a conversation and variables of its template."""
    if (text is None) == (messages is None):
        raise APIError(400, PROMPT_ONCE, param=param)
    return chat_ids(service, messages, None, variables) if text is None else service.lm.ids(text)
