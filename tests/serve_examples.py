"""Answers as OpenAI, Anthropic and Ollama publish them: written by hand from the types of their SDKs. And
schemas of the keywords that grammars do not hold.
"""

from typing import Any

USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 4,
    "total_tokens": 13,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}
TOKEN = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": []}
CALL = {"id": "call-1", "type": "function", "function": {"name": "look", "arguments": '{"place": "Rome"}'}}
HEAD = {"id": "chatcmpl-1", "created": 1700000000, "model": "m", "system_fingerprint": "f"}


def _completion(message: dict[str, Any], reason: str, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": None, "refusal": None, **message}
    choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None, **more}
    return HEAD | {"object": "chat.completion", "choices": [choice], "usage": USAGE}


def _chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return HEAD | {"object": "chat.completion.chunk", "choices": [choice]}


CHAT: dict[str, dict[str, Any]] = {
    "text": _completion({"content": "Hi"}, "stop", logprobs={"content": [TOKEN]}),
    "call": _completion({"tool_calls": [CALL]}, "tool_calls"),
    "function": _completion({"function_call": CALL["function"]}, "function_call"),
}
CHUNKS: dict[str, dict[str, Any]] = {
    "role": _chunk({"role": "assistant", "content": ""}),
    "content": _chunk({"content": "Hi"}),
    "call": _chunk({"tool_calls": [{"index": 0, **CALL}]}),
    "arguments": _chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"p'}}]}),
    "end": _chunk({}, "stop"),
    "usage": HEAD | {"object": "chat.completion.chunk", "choices": [], "usage": USAGE},
}
COMPLETION: dict[str, Any] = HEAD | {
    "object": "text_completion",
    "choices": [
        {
            "index": 0,
            "text": "Hi",
            "finish_reason": "length",
            "logprobs": {
                "tokens": ["Hi"],
                "token_logprobs": [-0.5],
                "top_logprobs": [{"Hi": -0.5}],
                "text_offset": [0],
            },
        }
    ],
    "usage": {name: value for name, value in USAGE.items() if name != "completion_tokens_details"},
}
EMBEDDINGS: dict[str, Any] = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}],
    "model": "m",
    "usage": {"prompt_tokens": 2, "total_tokens": 2},
}
MODEL: dict[str, Any] = {"id": "m", "object": "model", "created": 1700000000, "owned_by": "cutaway"}

# ---- OpenAI's Responses ------------------------------------------------------------------------------------

TEXT_PART = {"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []}
ITEMS: dict[str, dict[str, Any]] = {
    "reasoning": {
        "id": "rs-1",
        "type": "reasoning",
        "status": "completed",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Hm."}],
    },
    "message": {
        "id": "msg-1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [TEXT_PART],
    },
    "function_call": {
        "id": "fc-1",
        "type": "function_call",
        "status": "completed",
        "call_id": "call-1",
        "name": "look",
        "arguments": '{"place": "Rome"}',
    },
}
RESPONSE: dict[str, Any] = {
    "id": "resp-1",
    "object": "response",
    "created_at": 1700000000,
    "status": "completed",
    "background": False,
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "model": "m",
    "output": [ITEMS["reasoning"], ITEMS["message"]],
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "usage": {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 13,
    },
}
_UNDER_WAY = RESPONSE | {"status": "in_progress", "output": [], "usage": None}
_AT = {"item_id": "msg-1", "output_index": 0, "sequence_number": 3}
_PART = {**_AT, "content_index": 0}


def _event(type: str, **fields: Any) -> dict[str, Any]:
    return {"type": f"response.{type}", "sequence_number": 0, **fields}


EVENTS: dict[str, dict[str, Any]] = {
    one["type"]: one
    for one in (
        _event("created", response=_UNDER_WAY),
        _event("in_progress", response=_UNDER_WAY),
        _event("output_item.added", output_index=0, item=ITEMS["message"] | {"content": []}),
        _event("content_part.added", **_PART, part=TEXT_PART),
        _event("reasoning_text.delta", **_PART, delta="H"),
        _event("reasoning_text.done", **_PART, text="Hm."),
        _event("output_text.delta", **_PART, delta="H", logprobs=[]),
        _event("output_text.done", **_PART, text="Hi", logprobs=[]),
        _event("content_part.done", **_PART, part=TEXT_PART),
        _event("function_call_arguments.delta", **_AT, delta="{"),
        _event("function_call_arguments.done", **_AT, name="look", arguments="{}"),
        _event("output_item.done", output_index=0, item=ITEMS["message"]),
        _event("completed", response=RESPONSE),
        _event(
            "incomplete",
            response=RESPONSE
            | {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
        ),
    )
}
CONVERSATION: dict[str, Any] = {
    "id": "conv-1",
    "object": "conversation",
    "created_at": 1700000000,
    "metadata": {},
}

# ---- Anthropic's Messages ----------------------------------------------------------------------------------

BLOCKS: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "text": "Hi"},
    "thinking": {"type": "thinking", "thinking": "Hm.", "signature": ""},
    "tool_use": {"type": "tool_use", "id": "toolu-1", "name": "look", "input": {"place": "Rome"}},
}
COUNTS = {
    "input_tokens": 9,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 4,
}
MESSAGE: dict[str, Any] = {
    "id": "msg-1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [BLOCKS["text"]],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": COUNTS,
}
_BEGUN = MESSAGE | {
    "content": [],
    "stop_reason": None,
    "usage": {"input_tokens": 9, "output_tokens": 0},
}
MESSAGE_EVENTS: dict[str, dict[str, Any]] = {
    "message_start": {"type": "message_start", "message": _BEGUN},
    "content_block_start text": {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": ""},
    },
    "content_block_start thinking": {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "thinking", "thinking": "", "signature": ""},
    },
    "content_block_start tool_use": {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "tool_use", "id": "toolu-1", "name": "look", "input": {}},
    },
    "content_block_delta text_delta": {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": "H"},
    },
    "content_block_delta thinking_delta": {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "thinking_delta", "thinking": "H"},
    },
    "content_block_delta input_json_delta": {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "input_json_delta", "partial_json": "{"},
    },
    "content_block_stop": {"type": "content_block_stop", "index": 0},
    "message_delta": {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": COUNTS,
    },
    "message_stop": {"type": "message_stop"},
}
MESSAGE_ERROR: dict[str, Any] = {
    "type": "error",
    "error": {"type": "invalid_request_error", "message": "max_tokens: too small", "details": {}},
}

# ---- Ollama ------------------------------------------------------------------------------------------------

_OLLAMA = {"model": "m", "created_at": "2026-01-01T00:00:00+00:00"}
_TIMINGS = {
    "done": True,
    "done_reason": "stop",
    "total_duration": 5,
    "load_duration": 0,
    "prompt_eval_count": 9,
    "prompt_eval_duration": 2,
    "eval_count": 4,
    "eval_duration": 3,
}
_HI = {"role": "assistant", "content": "Hi"}
OLLAMA: dict[str, dict[str, Any]] = {
    "chat": _OLLAMA | {"message": _HI} | _TIMINGS,
    "chat, thinking": _OLLAMA | {"message": _HI | {"thinking": "Hm."}} | _TIMINGS,
    "chat, a part": _OLLAMA | {"message": _HI, "done": False},
    "generate": _OLLAMA | {"response": "Hi"} | _TIMINGS,
    "generate, a part": _OLLAMA | {"response": "Hi", "done": False},
    "embed": {
        "model": "m",
        "embeddings": [[0.1, 0.2]],
        "total_duration": 0,
        "load_duration": 0,
        "prompt_eval_count": 2,
    },
}

# ---- JSON schemas ------------------------------------------------------------------------------------------

RAW: dict[str, Any] = {
    "uniqueItems": {"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True, "maxItems": 2},
    "propertyNames": {
        "type": "object",
        "propertyNames": {"pattern": "^a"},
        "properties": {"a": {"const": 1}},
    },
    "not": {"enum": ["a", "b"], "not": {"const": "a"}},
    "if": {
        "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"],
        "if": {"properties": {"a": {"const": 1}}},
        "then": {},
    },
    "contains": {
        "type": "array",
        "items": {"enum": [1, 2]},
        "contains": {"const": 1},
        "maxItems": 2,
        "minItems": 1,
    },
    "dependentRequired": {
        "type": "object",
        "properties": {"a": {"const": 1}, "b": {"const": 2}},
        "dependentRequired": {"a": ["b"]},
    },
    "unevaluatedProperties": {
        "type": "object",
        "properties": {"a": {"const": 1}},
        "unevaluatedProperties": False,
    },
    "lookahead": {"type": "string", "pattern": "^(?=a)a$", "maxLength": 2},
    "format": {"type": "string", "format": "ipvanyaddress", "maxLength": 5},
    "minProperties": {
        "type": "object",
        "properties": {"a": {"const": 1}, "b": {"const": 2}},
        "minProperties": 1,
    },
    "oneOf": {
        "oneOf": [
            {"type": "number", "maximum": 3, "minimum": 1},
            {"enum": [7]},
            {"type": "integer", "minimum": 8, "maximum": 9},
        ]
    },
    "$schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://x.example/y",
        "const": 1,
    },
    "bigint": {"type": "integer", "minimum": -9223372036854775808, "maximum": 9223372036854775807},
}
