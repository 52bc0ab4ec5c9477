"""What every route answers has the published shape: it goes through the SDKs' own types and comes back the
same, and has the fields of the recorded examples (serve_examples.py), which do so too.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from cutaway.lm import LanguageModel
from tests import serve_examples as examples
from tests import serving
from tests.serving import NAME, Server

openai = pytest.importorskip("openai")
conversations = pytest.importorskip("openai.types.conversations")
anthropic = pytest.importorskip("anthropic")
ollama = pytest.importorskip("ollama")


HELLO = [{"role": "user", "content": "Hello there"}]
PLACE = {"type": "object", "properties": {"place": {"type": "string", "maxLength": 5}}, "required": ["place"]}
LOOK: dict[str, Any] = {"type": "function", "function": {"name": "look", "parameters": PLACE}}
THINKING = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content.split('</think>')[-1] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
THOUGHT = {"type": "regex", "regex": "<think>\\nHm, so\\.\\n</think>\\n\\nYes!"}
FORCED: dict[str, Any] = {"tools": [LOOK], "tool_choice": "required", "parallel_tool_calls": False}
# That OpenAI's types do not name: Cutaway's own, and what OpenAI sends and earlier types had.
OURS = {"reasoning_content", "warnings", "parent", "max_model_len", "store", "name"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    lm = serving.model()
    lm = LanguageModel(replace(lm.checkpoint, chat_template=THINKING))
    with serving.running(lm, pooling="mean") as server:
        yield server


def through(type: Any, value: dict[str, Any], ours: frozenset[str] = frozenset()) -> None:
    """Validate a value as an SDK's type, and see that it comes back with every field that it had."""
    made = TypeAdapter(type).validate_json(json.dumps(value))
    assert made.model_dump(mode="json", by_alias=True, exclude_unset=True) == value
    assert unknown(made) <= OURS | ours


def unknown(value: Any) -> set[str]:
    """The fields that a type does not name, wherever they are in its value."""
    if isinstance(value, list | tuple):
        return set[str]().union(*map(unknown, value))
    if not isinstance(value, BaseModel):
        return set()
    own = set(value.model_extra or ())
    return own.union(*(unknown(getattr(value, name)) for name in value.model_fields_set - own))


def fields(value: Any) -> Any:
    """The fields of JSON, without its values; of a list those of its first item."""
    if isinstance(value, dict):
        return {name: fields(one) for name, one in value.items()}
    return [fields(value[0])] if isinstance(value, list) and value else None


def like(ours: dict[str, Any], example: dict[str, Any], *free: str) -> None:
    """The same fields at every level, but for ``free`` ones; an empty list or object has any."""

    def compared(a: Any, b: Any, where: str) -> None:
        if isinstance(a, dict) and isinstance(b, dict) and a and b:
            assert {*a} - {*free} == {*b} - {*free}, where
            for name in a.keys() & b.keys() - {*free}:
                compared(a[name], b[name], f"{where}.{name}")
        elif isinstance(a, list) and isinstance(b, list) and a and b:
            compared(a[0], b[0], f"{where}[0]")

    compared(fields(ours), fields(example), "")


def answer(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    reply = server.post(path, {"model": NAME, **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def events(server: Server, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    reply = server.post(path, {"model": NAME, "stream": True, **body})
    assert reply.status_code == 200, reply.text
    lines = reply.text.splitlines()
    if not path.startswith("/api/"):
        lines = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
    return [json.loads(line) for line in lines if line]


# ---- OpenAI ------------------------------------------------------------------------------------------------


def test_chat_completions(server: Server) -> None:
    plain = {"messages": HELLO, "max_tokens": 3}
    text = answer(server, "/v1/chat/completions", plain | {"logprobs": True})
    call = answer(server, "/v1/chat/completions", plain | FORCED | {"max_tokens": 200})
    legacy = {"functions": [LOOK["function"]], "function_call": {"name": "look"}, "max_tokens": 200}
    function = answer(server, "/v1/chat/completions", plain | legacy)
    for ours, kind in ((text, "text"), (call, "call"), (function, "function")):
        through(openai.types.chat.ChatCompletion, ours)
        like(ours, examples.CHAT[kind])
    thought = answer(server, "/v1/chat/completions", plain | {"max_tokens": 60, "response_format": THOUGHT})
    through(openai.types.chat.ChatCompletion, thought)
    assert thought["choices"][0]["message"]["reasoning_content"] == "Hm, so."
    assert 0 < thought["usage"]["completion_tokens_details"]["reasoning_tokens"] < 60
    for example in examples.CHAT.values():
        through(openai.types.chat.ChatCompletion, example)


def test_chat_chunks(server: Server) -> None:
    body: dict[str, Any] = {"messages": HELLO, "max_tokens": 200}
    text = events(server, "/v1/chat/completions", body | {"max_tokens": 3})
    body |= FORCED | {"stream_options": {"include_usage": True}}
    call = events(server, "/v1/chat/completions", body)
    assert call[-1]["usage"] and all(one["usage"] is None for one in call[:-1])
    for chunk in text + call:
        through(openai.types.chat.ChatCompletionChunk, chunk)
    for ours, kind in (
        (text[0], "role"),
        (text[1], "content"),
        (call[1], "call"),
        (call[2], "arguments"),
        (text[-1], "end"),
        (call[-1], "usage"),
    ):
        like(ours, examples.CHUNKS[kind], "usage" if kind != "usage" else "")
    for example in examples.CHUNKS.values():
        through(openai.types.chat.ChatCompletionChunk, example)


def test_completions_embeddings_and_models(server: Server) -> None:
    ours = answer(server, "/v1/completions", {"prompt": "Once", "max_tokens": 1, "logprobs": 0})
    vectors = answer(server, "/v1/embeddings", {"input": "a"})
    listed = server.get("/v1/models").json()
    assert listed["object"] == "list" and server.get(f"/v1/models/{NAME}").json() == listed["data"][0]
    for type, one, example in (
        (openai.types.Completion, ours, examples.COMPLETION),
        (openai.types.CreateEmbeddingResponse, vectors, examples.EMBEDDINGS),
        (openai.types.Model, listed["data"][0], examples.MODEL),
    ):
        through(type, one)
        through(type, example)
        like(one, example, "top_logprobs", *OURS)
    for chunk in events(server, "/v1/completions", {"prompt": "Once", "max_tokens": 2}):
        # OpenAI's type has no null, which OpenAI sends in each chunk but the last.
        chunk["choices"][0]["finish_reason"] = chunk["choices"][0]["finish_reason"] or "stop"
        through(openai.types.Completion, chunk)


def test_responses_and_each_of_their_events(server: Server) -> None:
    flat = {"type": "function", **LOOK["function"]}
    thought: dict[str, Any] = {"input": "Hello", "text": {"format": THOUGHT}}
    call: dict[str, Any] = {"input": "Hello", "tools": [flat], "tool_choice": "required"}
    call |= {"max_output_tokens": 200, "parallel_tool_calls": False}
    made = [answer(server, "/v1/responses", one) for one in (thought, call)]
    format = frozenset({"regex"})  # Cutaway's own
    for one in made:
        shown = one | {"text": {"format": {"type": "text"}}}
        through(openai.types.responses.Response, shown, format)
        like(shown, examples.RESPONSE, "output", "tools")
    for item in (*made[0]["output"], *made[1]["output"]):
        like(item, examples.ITEMS[item["type"]])
    assert server.get(f"/v1/responses/{made[0]['id']}").json() == made[0]
    short = {"input": "Hello", "max_output_tokens": 2}
    came = [one for body in (thought, call, short) for one in events(server, "/v1/responses", body)]
    assert {one["type"] for one in came} == set(examples.EVENTS)
    for one in came:
        if "response" in one:
            one["response"]["text"] = {"format": {"type": "text"}}
        through(openai.types.responses.ResponseStreamEvent, one)
        like(one, examples.EVENTS[one["type"]], "item", "part", "output", "tools", "logprobs")
    for example in (*examples.EVENTS.values(),):
        through(openai.types.responses.ResponseStreamEvent, example)
    through(openai.types.responses.Response, examples.RESPONSE)


def test_conversations(server: Server) -> None:
    made = server.post("/v1/conversations", {}).json()
    through(conversations.Conversation, made)
    through(conversations.Conversation, examples.CONVERSATION)
    like(made, examples.CONVERSATION)


# ---- Anthropic ---------------------------------------------------------------------------------------------


def test_messages_and_each_of_their_events(server: Server) -> None:
    plain: dict[str, Any] = {"messages": HELLO, "max_tokens": 200}
    look = {"name": "look", "input_schema": PLACE}
    call = plain | {"tools": [look], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
    text = plain | {"max_tokens": 2}
    through(anthropic.types.Message, examples.MESSAGE)
    for body in (call, text):
        made = answer(server, "/v1/messages", body)
        through(anthropic.types.Message, made)
        like(made, examples.MESSAGE, "content")
        for block in made["content"]:
            like(block, examples.BLOCKS[block["type"]])
    thinking = LanguageModel(
        replace(server.service.lm.checkpoint, chat_template=THINKING + "{% if 1 %}<think>\n{% endif %}")
    )
    with serving.running(thinking) as opened:
        thought = plain | {"thinking": {"type": "enabled", "budget_tokens": 2}, "max_tokens": 30}
        came = [one for body in (call, text) for one in events(server, "/v1/messages", body)]
        came += events(opened, "/v1/messages", thought)
    seen = set()
    for one in came:
        kind = (one.get("content_block") or one.get("delta") or {}).get("type", "")
        seen.add(f"{one['type']} {kind}".strip())
        through(anthropic.types.RawMessageStreamEvent, one)
        like(one, examples.MESSAGE_EVENTS[f"{one['type']} {kind}".strip()])
    assert seen == set(examples.MESSAGE_EVENTS)
    for example in examples.MESSAGE_EVENTS.values():
        through(anthropic.types.RawMessageStreamEvent, example)
    counted = answer(server, "/v1/messages/count_tokens", {"messages": HELLO})
    through(anthropic.types.MessageTokensCount, counted)
    refused = server.post("/v1/messages", {"messages": HELLO, "max_tokens": 0}).json()
    through(anthropic.types.ErrorResponse, refused, frozenset({"details"}))
    like(refused, examples.MESSAGE_ERROR, "details")


# ---- Ollama ------------------------------------------------------------------------------------------------


def test_ollamas_answers(server: Server) -> None:
    options = {"options": {"num_predict": 2}}
    chat: dict[str, Any] = {"messages": HELLO, **options}
    generate: dict[str, Any] = {"prompt": "Hello", **options}
    whole = answer(server, "/api/chat", chat | {"stream": False})
    parts = events(server, "/api/chat", chat)
    made = answer(server, "/api/generate", generate | {"stream": False})
    more = events(server, "/api/generate", generate)
    embedded = answer(server, "/api/embed", {"input": "a"})
    for type, ours, kind in (
        (ollama.ChatResponse, whole, "chat"),
        (ollama.ChatResponse, parts[0], "chat, a part"),
        (ollama.ChatResponse, parts[-1], "chat"),
        (ollama.GenerateResponse, made, "generate"),
        (ollama.GenerateResponse, more[0], "generate, a part"),
        (ollama.GenerateResponse, more[-1], "generate"),
        (ollama.EmbedResponse, embedded, "embed"),
    ):
        through(type, ours)
        through(type, examples.OLLAMA[kind])
        like(ours, examples.OLLAMA[kind], "context")  # which Ollama has in some versions
    through(ollama.ChatResponse, examples.OLLAMA["chat, thinking"])
    for type, listed in (
        (ollama.ListResponse, server.get("/api/tags").json()),
        (ollama.ProcessResponse, server.get("/api/ps").json()),
        (ollama.ShowResponse, answer(server, "/api/show", {})),
    ):
        TypeAdapter(type).validate_json(json.dumps(listed))
