"""One model behind four APIs, as the SDKs that people use see it, and the rule for unknown fields."""

import gzip
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import cutaway
from cutaway.generate import constrain
from cutaway.generate.batch.fair_queue import FairQueue
from cutaway.generate.batch.request import Generation, Request, Timings
from cutaway.generate.sampling_params import SamplingParams
from cutaway.lm import LanguageModel
from cutaway.security.probes import forgery
from tests import chat_cases, inputs, serving
from tests.serve_examples import RAW
from tests.serving import NAME, AccessPolicy, Server

from cutaway.serve import answer_form, validation  # isort: skip
from cutaway.serve.anthropic import messages as anthropic_api  # isort: skip
from cutaway.serve.anthropic.schema import MessagesRequest  # isort: skip
from cutaway.serve.ollama import generate as ollama_api  # isort: skip
from cutaway.serve.ollama.schema import ChatRequest, GenerateRequest  # isort: skip
from cutaway.serve.openai import responses  # isort: skip
from cutaway.serve.openai.schema import ChatCompletionRequest  # isort: skip
from cutaway.serve.openai.responses_schema import ResponsesRequest  # isort: skip
from cutaway.serve.operations.access import PUBLIC  # isort: skip
from cutaway.serve.operations.api_keys import KeyRing  # isort: skip
from cutaway.serve.service import Limits  # isort: skip
from cutaway.serve.openai.chat import _delta  # isort: skip
from cutaway.serve.conversation import _variables  # isort: skip
from cutaway.serve.prompts import chat_ids  # isort: skip
from cutaway.generate.tool_calls import parser  # isort: skip
from cutaway.generate.tool_calls.constraint import Held  # isort: skip
from cutaway.generate.thinking import budget  # isort: skip
from cutaway.generate.tool_calls.thoughts import Marks  # isort: skip
from cutaway.serve.api_error import APIError  # isort: skip

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")
ollama = pytest.importorskip("ollama")

HELLO = [{"role": "user", "content": "Hello there"}]
PLACE = {"type": "object", "properties": {"place": {"type": "string", "maxLength": 5}}, "required": ["place"]}
LOOK = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": PLACE}}
PLAIN = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
THINKING = PLAIN.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")


def with_template(template: str) -> LanguageModel:
    lm = serving.model()
    return LanguageModel(replace(lm.checkpoint, chat_template=template))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving.running(serving.model(), aliases=("gpt-x", "claude-*")) as server:
        yield server


@pytest.fixture(scope="module")
def thinking() -> Iterator[Server]:
    with serving.running(with_template(THINKING)) as server:
        yield server


@pytest.fixture(scope="module")
def toolless() -> Iterator[Server]:
    with serving.running(with_template(PLAIN)) as server:
        yield server


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Closes the clients that a test makes: a socket that is collected later would fail another test."""
    made: list[Any] = []
    start = serving.httpx.Client.__init__

    def recorded(client: Any, *arguments: Any, **options: Any) -> None:
        start(client, *arguments, **options)
        made.append(client)

    monkeypatch.setattr(serving.httpx.Client, "__init__", recorded)
    yield
    for client in made:
        client.close()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def claude(server: Server) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def llama_of(server: Server) -> Iterator[Any]:
    client = ollama.Client(host=server.url)
    yield client
    client._client.close()


@pytest.fixture(scope="module")
def llama(server: Server) -> Iterator[Any]:
    yield from llama_of(server)


@pytest.fixture(scope="module")
def toolless_llama(toolless: Server) -> Iterator[Any]:
    yield from llama_of(toolless)


def chat(server: Server, **body: Any) -> Any:
    return server.post("/v1/chat/completions", {"messages": HELLO, "max_tokens": 3, "seed": 1, **body})


def words(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


# ---- the rule ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"metadata": {"a": "b"}, "store": True, "service_tier": "flex"}, "metadata, store, service_tier"),
        ({"user": "me", "safety_identifier": "x", "verbosity": "low"}, "user, safety_identifier, verbosity"),
        (
            {"prompt_cache_key": "k", "prompt_cache_retention": "24h"},
            "prompt_cache_key, prompt_cache_retention",
        ),
        ({"cache_prompt": True, "parallel_tool_calls": True}, "cache_prompt, parallel_tool_calls"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        (
            {"reasoning_effort": "high", "chat_template_kwargs": {"zzz": 1}},
            "chat_template_kwargs.zzz, reasoning_effort",
        ),
        ({"functions": [], "tools": [], "logit_bias": {}, "stop": None, "audio": None, "suffix": ""}, None),
        ({"best_of": 1, "modalities": ["text"], "top_k": -1, "n": 1}, None),
    ],
)
def test_what_cannot_change_the_answer_is_accepted_and_named(
    server: Server, body: dict[str, Any], named: str | None
) -> None:
    answer = chat(server, **body)
    assert words(answer) == words(chat(server)) and answer.headers.get("x-cutaway-ignored") == named
    if named and "." not in named:
        page = server.get("/metrics").text
        assert all(f'cutaway_ignored_fields_total{{field="{name}"}}' in page for name in named.split(", "))


def test_max_tokens_is_cut_to_the_room(server: Server) -> None:
    body = {"prompt": [5] * 8188, "max_tokens": 50, "ignore_eos": True}
    reply = server.post("/v1/completions", body).json()
    assert reply["usage"]["completion_tokens"] == 4 and reply["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("path", "body", "theirs"),
    [
        ("/completion", {"n_predict": 20}, {"top_p": 0.95, "min_p": 0.05}),
        ("/api/generate", {"raw": True, "stream": False, "options": {"num_predict": 20}}, {"top_p": 0.9}),
    ],
)
def test_other_servers_routes_sample_as_those_servers_do(
    server: Server, path: str, body: dict[str, Any], theirs: dict[str, float]
) -> None:
    """The same draws as OpenAI's route makes with these settings, and others than it makes without."""
    asked = {"prompt": "Once", "max_tokens": 20, "seed": 7}
    options = {"options": body["options"] | {"seed": 7}} if "options" in body else {"seed": 7}
    found = server.post(path, {"prompt": "Once", **body, **options}).json()
    plain, same = (
        server.post("/v1/completions", asked | more).json()["choices"][0]["text"]
        for more in ({}, {"temperature": 0.8, "top_k": 40} | theirs)
    )
    assert found.get("content", found.get("response")) == same != plain


def test_what_would_change_the_answer_is_refused_unless_the_server_is_lenient(server: Server) -> None:
    body = {"messages": HELLO, "max_tokens": 1, "mirostat": 2, "bad\r\nname": 1}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "mirostat"
    with serving.running(serving.model(), lenient=True) as lenient:
        answer = lenient.post("/v1/chat/completions", body)
        assert answer.status_code == 200 and answer.headers["x-cutaway-ignored"] == "mirostat"
        assert 'cutaway_ignored_fields_total{field="other"} 1.0' in lenient.get("/metrics").text


def test_aliases_are_names_too(server: Server) -> None:
    assert [one["id"] for one in server.get("/models").json()["data"]] == [NAME, "gpt-x"]
    assert chat(server, model="gpt-x").status_code == chat(server, model="claude-any").status_code == 200
    error = chat(server, model="gpt-y").json()["error"]
    assert error["code"] == "model_not_found" and f"{NAME!r}, 'gpt-x'" in error["message"]


def test_history_as_other_servers_write_it(server: Server) -> None:
    call = {"id": "c", "index": 0, "type": "function", "function": {"name": "look", "arguments": '{"pl'}}
    call["function"] |= {"parsed_arguments": {"pl": 1}}  # type: ignore[operator]
    messages = [
        *HELLO,
        {
            "role": "assistant",
            "content": None,
            "refusal": "No.",
            "annotations": [{"a": 1}],
            "audio": {"id": "x"},
            "parsed": {"a": 1},
            "id": "m",
            "index": 0,
            "timestamp": 1,
            "provider_specific_fields": {"x": 1},
        },
        {"role": "user", "content": [{"type": "text", "text": "Go", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "Hm."},
        {"role": "tool", "tool_call_id": "c", "content": "x"},
        {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": "{}"}},
        {"role": "function", "name": "look", "content": "y"},
    ]
    answer = chat(server, messages=messages)
    assert answer.status_code == 200, answer.text
    assert "annotations" in answer.headers["x-cutaway-ignored"]
    plain: list[Any] = [
        *HELLO,
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Go"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Hm.",
            "tool_calls": [call | {"function": {"name": "look", "arguments": {"arguments": '{"pl'}}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "x"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [call | {"function": {"name": "look", "arguments": {}}}],
        },
        {"role": "tool", "name": "look", "content": "y"},
    ]
    assert answer.json()["usage"]["prompt_tokens"] == len(server.service.lm.chat_ids(plain))
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}
    assert "reads text alone" in chat(server, messages=[image]).json()["error"]["message"]


@pytest.mark.parametrize(
    ("form", "fits"),
    [
        ({"guided_choice": ["red", "blue"]}, ("red", "blue")),
        ({"guided_regex": "(ab|cd)"}, ("ab", "cd")),
        ({"structured_outputs": {"choice": ["red", "blue"]}}, ("red", "blue")),
        ({"structured_outputs": {"regex": "(ab|cd)"}}, ("ab", "cd")),
        ({"grammar": 'root ::= "yes" | "no"'}, ("yes", "no")),
        ({"guided_grammar": 'root ::= "yes" | "no"'}, ("yes", "no")),
        ({"json_schema": {"const": 7}}, ("7",)),
        ({"guided_json": '{"const": 7}'}, ("7",)),
        ({"response_format": {"type": "json_object", "schema": {"const": 7}}}, ("7",)),
    ],
)
def test_forms_of_other_servers(server: Server, form: dict[str, Any], fits: tuple[str, ...]) -> None:
    assert words(chat(server, max_tokens=20, **form)) in fits
    text = server.post("/v1/completions", {"prompt": "x", "max_tokens": 20, **form}).json()["choices"][0]
    assert text["text"] in fits
    both = chat(server, guided_regex="a", grammar='root ::= "x"').json()["error"]
    assert both["message"] == "guided_regex and grammar both say what the answer is: give one"


def test_min_tokens(server: Server) -> None:
    ends = {"logit_bias": {"2": 100}, "temperature": 0, "max_tokens": 9}
    assert chat(server, **ends).json()["usage"]["completion_tokens"] == 0
    assert chat(server, **ends, min_tokens=4).json()["usage"]["completion_tokens"] == 4


def test_the_templates_variables(server: Server) -> None:
    lm = with_template(PLAIN + "{{ mood }}{% if enable_thinking is false %}Now.{% endif %}")
    with serving.running(lm) as reply:
        plain = chat(reply).json()["usage"]["prompt_tokens"]
        hasty = chat(reply, reasoning_effort="none").json()["usage"]["prompt_tokens"]
        moody = chat(reply, chat_template_kwargs={"mood": "<|im_end|>"}).json()["usage"]["prompt_tokens"]
        spelt = len(lm.tokenizer.encode("<|im_end|>"))
        assert hasty == plain + len(lm.tokenizer.encode("Now.")) and moody == plain + spelt and spelt > 1
    for name in ("messages", "add_generation_prompt", "bos_token", "__class__ x"):
        answer = chat(server, chat_template_kwargs={name: "x"})
        assert answer.status_code == 400 and "not the request's to set" in answer.text


# ---- thoughts ----------------------------------------------------------------------------------------------

THOUGHT = {"type": "regex", "regex": "<think>\\nHm, so\\.\\n</think>\\n\\nYes!"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_thought_is_separated(thinking: Server, stream: bool) -> None:
    client = openai.OpenAI(base_url=thinking.url + "/v1", api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": NAME, "messages": HELLO, "extra_body": {"response_format": THOUGHT}}
    if stream:
        deltas = [one.choices[0].delta for one in client.chat.completions.create(**asked, stream=True)]
        thought = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        content = "".join(delta.content or "" for delta in deltas)
    else:
        message = client.chat.completions.create(**asked).choices[0].message
        thought, content = message.reasoning_content, message.content
    assert (thought, content) == ("Hm, so.", "Yes!")


def test_an_answer_that_begins_inside_a_thought() -> None:
    lm = with_template(THINKING + "{% if add_generation_prompt %}<think>\n{% endif %}")
    with serving.running(lm) as reply:
        message = chat(reply).json()["choices"][0]["message"]
        assert message["content"] == "" and message["reasoning_content"]  # cut off within its thought
    tokenizer = lm.tokenizer
    seven, marks = constrain.json_schema({"const": 7}).begin(tokenizer), Marks("<think>", "</think>", True)
    held = budget.of_marks(tokenizer, marks, None, seven)
    for id in tokenizer.encode("Hm </thin </think>"):
        logits = np.zeros(len(tokenizer), np.float32)
        held.mask(logits)
        assert logits[id] == 0 and not np.isfinite(logits[list(tokenizer.eos_ids)]).any()
        held.accept(id)
    logits = np.zeros(len(tokenizer), np.float32)
    held.mask(logits)
    assert {tokenizer.decode([int(id)]) for id in np.flatnonzero(np.isfinite(logits))} == {"7"}


OPENED = THINKING + "{% if add_generation_prompt %}<think>\n{% endif %}"


def test_a_budget_of_thought_ends_it_in_every_api() -> None:
    with serving.running(with_template(OPENED)) as reply:

        def asked(path: str = "/v1/chat/completions", **body: Any) -> Any:
            body = {"messages": HELLO, "max_tokens": 40, "seed": 1, "temperature": 0, **body}
            answer = reply.post(path, {name: value for name, value in body.items() if value is not None})
            assert answer.status_code == 200, answer.text
            return answer.json(), answer.headers.get("x-cutaway-ignored")

        free = asked(max_tokens=12)[0]
        assert free["usage"]["completion_tokens_details"] == {"reasoning_tokens": 12}
        end = len(reply.service.lm.tokenizer.encode("</think>"))
        for effort, most in ({"thinking_token_budget": 7}, 7), ({"reasoning_effort": "none"}, 0):
            made, ignored = asked(**effort)
            message = made["choices"][0]["message"]
            assert message["content"] and ignored is None
            assert made["usage"]["completion_tokens_details"]["reasoning_tokens"] == most + end
            thought = free["choices"][0]["message"]["reasoning_content"]
            assert thought.startswith(message.get("reasoning_content", ""))
        shaped = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": 7}}}
        made = asked(thinking_token_budget=7, response_format=shaped, n=2)[0]
        assert [one["message"]["content"] for one in made["choices"]] == ["7", "7"]
        made = asked(thinking_token_budget=7, response_format=SHAPE, max_tokens=48)[0]
        jsonschema.validate(json.loads(made["choices"][0]["message"]["content"]), ENDLESS)
        assert made["choices"][0]["finish_reason"] == "stop" and made["usage"]["completion_tokens"] > 30
        thinking = {"type": "enabled", "budget_tokens": 7}
        blocks = asked("/v1/messages", thinking=thinking, seed=None)[0]["content"]
        assert [block["type"] for block in blocks] == ["thinking", "text"]
        body = {"messages": None, "max_tokens": None, "seed": None, "input": "Hello there"}
        made = asked("/v1/responses", **body, reasoning={"effort": "none"}, max_output_tokens=20)[0]
        assert made["usage"]["output_tokens_details"]["reasoning_tokens"] == end
        assert made["output"][-1]["type"] == "message" and made["output"][-1]["content"][0]["text"]


def test_a_budget_of_a_thought_that_the_model_may_begin(thinking: Server) -> None:
    begins = {"type": "regex", "regex": "<think>.*"}
    free = chat(thinking, response_format=begins, temperature=0, max_tokens=20).json()["choices"][0][
        "message"
    ]
    assert free["reasoning_content"] and not free["content"]
    tokenizer = thinking.service.lm.tokenizer
    marks = Marks("<think>", "</think>")
    made = budget.of_marks(tokenizer, marks, 3)
    begun, ids = tokenizer.encode("\n<think>"), []
    for n in range(20):
        logits = np.zeros(len(tokenizer), np.float32)
        logits[begun[n] if n < len(begun) else 5] = 1
        made.mask(logits)
        ids.append(int(logits.argmax()))
        made.accept(ids[-1])
    end = tokenizer.encode("</think>")
    assert ids[: len(begun) + 3 + len(end) + 1] == [*begun, 5, 5, 5, *end, 5]
    plain = budget.of_marks(tokenizer, marks, 0)
    for id in tokenizer.encode("Well: <think> is a tag"):
        logits = np.zeros(len(tokenizer), np.float32)
        plain.mask(logits)
        assert np.isfinite(logits).all()  # what follows other words is text
        plain.accept(id)


# ---- Anthropic's Messages ----------------------------------------------------------------------------------

LOOKS = {"name": "look", "description": "Looks.", "input_schema": PLACE}


def test_messages_say_what_the_chat_says(server: Server, client: Any, claude: Any) -> None:
    asked: dict[str, Any] = {"max_tokens": 9, "messages": HELLO, "extra_body": {"temperature": 0}}
    reply = claude.messages.create(model="claude-x", system=[{"type": "text", "text": "Be kind."}], **asked)
    same = client.chat.completions.create(
        model=NAME, messages=[{"role": "system", "content": "Be kind."}, *HELLO], temperature=0, max_tokens=9
    )
    assert [one.text for one in reply.content] == [same.choices[0].message.content]
    assert (reply.type, reply.role, reply.model) == ("message", "assistant", "claude-x")
    assert reply.stop_reason == "max_tokens" and reply.stop_sequence is None
    usage = reply.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == same.usage.prompt_tokens
    assert usage.output_tokens == 9
    counted = claude.messages.count_tokens(model=NAME, messages=HELLO, system="Be kind.")
    assert counted.input_tokens == same.usage.prompt_tokens
    text = reply.content[0].text
    stopped = claude.messages.create(model=NAME, system="Be kind.", stop_sequences=[text[3:6]], **asked)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", text[3:6])


def test_messages_events_come_in_their_order(claude: Any) -> None:
    asked: dict[str, Any] = {
        "model": NAME,
        "max_tokens": 9,
        "messages": HELLO,
        "extra_body": {"temperature": 0},
    }
    events = list(claude.messages.create(**asked, stream=True))
    kinds = [event.type for event in events]
    middle = ["content_block_delta"] * (len(kinds) - 5)
    assert kinds == [
        "message_start",
        "content_block_start",
        *middle,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    whole = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        made = stream.get_final_message()
    assert (
        made.content[0].text == whole.content[0].text
        and made.stop_reason == whole.stop_reason == "max_tokens"
    )
    assert made.usage.output_tokens == 9


@pytest.mark.parametrize("stream", [False, True])
def test_messages_call_tools_and_read_results(server: Server, claude: Any, stream: bool) -> None:
    asked: dict[str, Any] = {"model": NAME, "max_tokens": 200, "messages": HELLO, "tools": [LOOKS]}
    asked["tool_choice"] = {"type": "tool", "name": "look"}
    if stream:
        with claude.messages.stream(**asked) as events:
            reply = events.get_final_message()
    else:
        reply = claude.messages.create(**asked)
    (block,) = reply.content
    assert reply.stop_reason == "tool_use" and (block.type, block.name) == ("tool_use", "look")
    assert set(block.input) == {"place"} and len(block.input["place"]) <= 5
    result = {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "Rome"}]}
    messages: list[Any] = [
        *HELLO,
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}, block]},
        {"role": "user", "content": [result, {"type": "text", "text": "Well?"}]},
    ]
    counted = claude.messages.count_tokens(model=NAME, messages=messages, tools=[LOOKS])
    call = {"id": block.id, "type": "function", "function": {"name": "look", "arguments": block.input}}
    plain = [
        *HELLO,
        {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": block.id, "content": "Rome"},
        {"role": "user", "content": "Well?"},
    ]
    assert counted.input_tokens == len(server.service.lm.chat_ids(plain, tools=[LOOK]))


def test_messages_thoughts_are_blocks(thinking: Server) -> None:
    claude = anthropic.Anthropic(base_url=thinking.url, api_key="none", max_retries=0)
    reply = thinking.post(
        "/v1/messages", {"messages": HELLO, "max_tokens": 3, "thinking": {"type": "disabled"}}
    )
    assert "chat_template_kwargs.enable_thinking" in reply.headers["x-cutaway-ignored"]
    assert claude.messages.create(model=NAME, max_tokens=3, messages=HELLO).content[0].type == "text"


@pytest.mark.parametrize("stream", [False, True])
def test_a_thread_goes_on_with_what_the_server_keeps(server: Server, claude: Any, stream: bool) -> None:
    asked: dict[str, Any] = {"model": NAME, "max_tokens": 6, "extra_body": {"temperature": 0}}

    def made(**more: Any) -> Any:
        if not stream:
            return claude.beta.messages.create(**asked, **more)
        with claude.beta.messages.stream(**asked, **more) as events:
            return events.get_final_message()

    first = made(messages=HELLO, system="Be kind.", tools=[LOOKS], thread={"type": "create"})
    more = [{"role": "user", "content": "Well?"}]
    second = made(messages=more, thread={"type": "continue", "previous_message_id": first.id})
    whole: list[Any] = [*HELLO, {"role": "assistant", "content": first.content[0].text}, *more]
    same = claude.messages.count_tokens(model=NAME, system="Be kind.", messages=whole, tools=[LOOKS])
    assert second.usage.input_tokens + second.usage.cache_read_input_tokens == same.input_tokens
    third = made(messages=[], thread={"type": "continue", "previous_message_id": second.id})
    assert third.usage.input_tokens + third.usage.cache_read_input_tokens > same.input_tokens
    lost = {"messages": more, "thread": {"type": "continue", "previous_message_id": "msg-x"}, "max_tokens": 1}
    answer = server.post("/v1/messages", lost)
    assert answer.status_code == 404 and answer.json()["error"]["type"] == "not_found_error"
    assert answer.json()["error"]["details"] == {"error_code": "thread_not_found"}
    assert server.post("/v1/messages", {"messages": [], "max_tokens": 1}).status_code == 400


def test_a_runner_of_tools_keeps_its_thread(claude: Any) -> None:
    look = anthropic.beta_tool(lambda place: place, name="look", description="Looks.", input_schema=PLACE)
    asked: dict[str, Any] = {"model": NAME, "max_tokens": 200, "messages": HELLO, "max_iterations": 2}
    forced = {"type": "tool", "name": "look"}
    steps = list(claude.beta.messages.tool_runner(tools=[look], tool_choice=forced, **asked))
    assert [step.stop_reason for step in steps] == ["tool_use", "tool_use"]
    assert steps[1].usage.input_tokens + steps[1].usage.cache_read_input_tokens > steps[0].usage.input_tokens


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "Anthropic hosts"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "reads text alone"),
        ({"container": "x"}, "container is not supported"),
        ({"tools": [LOOKS], "tool_choice": {"type": "tool", "name": "x"}}, "not among the tools"),
    ],
)
def test_what_messages_refuse(server: Server, body: dict[str, Any], sentence: str) -> None:
    answer = server.post("/v1/messages", {"messages": HELLO, "max_tokens": 3, **body})
    reply = answer.json()
    assert answer.status_code == 400 and set(reply) == {"type", "error"} and reply["type"] == "error"
    assert reply["error"]["type"] == "invalid_request_error" and sentence in reply["error"]["message"]


def test_keys_in_anthropics_header_and_on_every_route() -> None:
    key = "correct horse battery"
    keys = KeyRing((key, "staple, another one"))
    with serving.running(serving.model(), AccessPolicy(hosts=None, keys=keys)) as locked:
        good = anthropic.Anthropic(base_url=locked.url, api_key=key, max_retries=0)
        assert good.messages.create(model=NAME, max_tokens=1, messages=HELLO).role == "assistant"
        begun: Any = {"model": NAME, "max_tokens": 1, "thread": {"type": "create"}, "messages": HELLO}
        id = good.beta.messages.create(**begun).id
        going: Any = begun | {"thread": {"type": "continue", "previous_message_id": id}}
        assert good.beta.messages.create(**going).id != id
        other = anthropic.Anthropic(base_url=locked.url, api_key="staple, another one", max_retries=0)
        with pytest.raises(anthropic.NotFoundError):
            other.beta.messages.create(**going)
        bad = anthropic.Anthropic(base_url=locked.url, api_key="wrong", max_retries=0)
        with pytest.raises(anthropic.AuthenticationError):
            bad.messages.create(model=NAME, max_tokens=1, messages=HELLO)
        for path, operations in (
            locked.get("/openapi.json", headers={"x-api-key": key}).json()["paths"].items()
        ):
            for method in operations:
                answer = serving.httpx.request(method, locked.url + path.replace("{id}", "x"))
                assert answer.status_code == (200 if path in PUBLIC else 401), (method, path)


# ---- Ollama ------------------------------------------------------------------------------------------------


def test_ollama_chats_and_generates(server: Server, client: Any, llama: Any) -> None:
    same = client.chat.completions.create(model=NAME, messages=HELLO, temperature=0, max_tokens=9)
    options = {"temperature": 0, "num_predict": 9, "num_ctx": 4096}
    for name in (NAME, f"{NAME}:latest"):
        reply = llama.chat(model=name, messages=HELLO, options=options)
        assert reply.message.content == same.choices[0].message.content and reply.model == name
    assert reply.done and reply.done_reason == "length" and reply.eval_count == 9
    assert reply.prompt_eval_count == same.usage.prompt_tokens
    parts = list(llama.chat(model=NAME, messages=HELLO, options=options, stream=True))
    assert "".join(part.message.content or "" for part in parts) == reply.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True] and len(parts) > 3
    made = llama.generate(model=NAME, prompt="Hello there", options=options)
    assert made.response == reply.message.content
    parts = list(llama.generate(model=NAME, prompt="Hello there", options=options, stream=True))
    assert "".join(part.response for part in parts) == reply.message.content
    loaded = llama.generate(model=NAME)
    assert loaded.done and loaded.done_reason == "load"


@pytest.mark.parametrize("stream", [False, True])
def test_ollama_formats_and_tools(llama: Any, toolless_llama: Any, stream: bool) -> None:
    def reply(client: Any = llama, **asked: Any) -> Any:
        answer = client.chat(
            model=NAME, messages=HELLO, options={"seed": 1, "num_predict": 40}, stream=stream, **asked
        )
        parts = list(answer) if stream else [answer]
        content = "".join(part.message.content or "" for part in parts)
        return content, [call for part in parts for call in part.message.tool_calls or []]

    assert json.loads(
        reply(format={"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]})[0]
    ) == {"a": 1}
    content, calls = reply(toolless_llama, tools=[LOOK])
    assert content and not calls


def test_ollama_tells_what_the_model_is(server: Server, llama: Any) -> None:
    assert [one.model for one in llama.list().models] == [NAME, "gpt-x"]
    assert [one.model for one in llama.ps().models] == [NAME, "gpt-x"]
    shown = llama.show(NAME)
    assert set(shown.capabilities) == {"completion", "tools"}
    assert shown.modelinfo["llama.context_length"] == 8192
    assert tuple(map(int, server.get("/api/version").json()["version"].split("."))) >= (0, 6, 4)
    with pytest.raises(ollama.ResponseError, match="no model 'other'") as refused:
        llama.show("other")
    assert refused.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="images is not supported"):
        llama.chat(model=NAME, messages=[{"role": "user", "content": "x", "images": [b"abc"]}])
    embedded = server.post("/api/embed", {"input": ["a river"], "pooling": "mean"}).json()
    expected = server.service.lm.embed(["a river"], "mean")
    assert abs(expected[0] - embedded["embeddings"][0]).max() < 1e-6 and embedded["prompt_eval_count"] == 2


# ---- Responses ---------------------------------------------------------------------------------------------

FLAT = {"type": "function", "name": "look", "parameters": PLACE}


def test_responses_are_kept_and_go_on(server: Server, client: Any) -> None:
    asked: dict[str, Any] = {"model": NAME, "temperature": 0, "max_output_tokens": 6}
    first = client.responses.create(**asked, input="Hello there", metadata={"a": "b"})
    assert client.responses.retrieve(first.id).output_text == first.output_text and first.metadata == {
        "a": "b"
    }
    second = client.responses.create(**asked, input="And?", previous_response_id=first.id)
    spoken = [
        *HELLO,
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And?"},
    ]
    assert second.usage.input_tokens == len(server.service.lm.chat_ids(spoken))
    referred = [
        {"role": "user", "content": "Hello there"},
        {"type": "item_reference", "id": first.output[0].id},
    ]
    third = client.responses.create(**asked, input=[*referred, {"role": "user", "content": "And?"}])
    assert third.output_text == second.output_text
    listed = client.responses.input_items.list(second.id).data
    assert [one.type for one in listed] == ["message", "message", "message"]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    gone = client.responses.create(**asked, input="x", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(gone.id)
    made = client.conversations.create(items=[{"type": "message", "role": "user", "content": "Hello there"}])
    client.responses.create(**asked, input="One", conversation=made.id)
    last = client.responses.create(**asked, input="Two", conversation={"id": made.id})
    assert last.conversation.id == made.id and last.usage.input_tokens > second.usage.input_tokens
    assert client.conversations.delete(made.id).deleted


def test_a_conversations_items(server: Server, client: Any) -> None:
    items: list[Any] = [{"type": "message", "role": "user", "content": text} for text in ("One", "Two")]
    made = client.conversations.create(items=items[:1])
    added = client.conversations.items.create(made.id, items=items[1:])
    assert added.data[0].content[0].text == "Two" and added.data[0].content[0].type == "input_text"
    asked: dict[str, Any] = {"model": NAME, "temperature": 0, "max_output_tokens": 6}
    answer = client.responses.create(**asked, input="Three", conversation=made.id)
    first, *_ = listed = list(client.conversations.items.list(made.id, order="asc", limit=2))
    assert [one.content[0].text for one in listed] == ["One", "Two", "Three", answer.output_text]
    assert len({one.id for one in listed}) == 4 and listed[3].id == answer.output[0].id
    newest = [one.id for one in client.conversations.items.list(made.id)]
    assert newest == [one.id for one in listed[::-1]]
    assert client.conversations.items.retrieve(first.id, conversation_id=made.id).content == first.content
    assert client.conversations.items.delete(first.id, conversation_id=made.id).id == made.id
    fewer = client.responses.create(**asked, input="Four", conversation=made.id, store=False)
    spoken = [*(one["content"] for one in items[1:]), "Three"]
    plain = [{"role": "user", "content": text} for text in spoken]
    plain += [{"role": "assistant", "content": answer.output_text}, {"role": "user", "content": "Four"}]
    assert fewer.usage.input_tokens == len(server.service.lm.chat_ids(plain))
    assert client.conversations.update(made.id, metadata={"a": "b"}).metadata == {"a": "b"}
    assert client.conversations.retrieve(made.id).metadata == {"a": "b"}
    for missing in "none", answer.id:
        with pytest.raises(openai.NotFoundError):
            client.conversations.items.list(missing)
        with pytest.raises(openai.NotFoundError):
            client.conversations.items.retrieve(missing, conversation_id=made.id)


def test_another_keys_responses_are_not_found() -> None:
    keys = ("correct horse battery", "staple, another one")
    with serving.running(serving.model(), AccessPolicy(keys=KeyRing(keys))) as locked:
        one, two = (openai.OpenAI(base_url=locked.url + "/v1", api_key=key, max_retries=0) for key in keys)
        made = one.responses.create(model=NAME, input="x", max_output_tokens=2)
        assert one.responses.retrieve(made.id).id == made.id
        for look in (two.responses.retrieve, two.responses.cancel, two.responses.delete):
            with pytest.raises(openai.NotFoundError):
                look(made.id)


@pytest.mark.parametrize("stream", [False, True])
def test_responses_call_functions(server: Server, client: Any, stream: bool) -> None:
    asked: dict[str, Any] = {"model": NAME, "input": "Hello", "tools": [FLAT], "tool_choice": "required"}
    asked |= {"parallel_tool_calls": False, "max_output_tokens": 200}
    if stream:
        events = list(client.responses.create(**asked, stream=True))
        kinds = [event.type.removeprefix("response.") for event in events]
        deltas = [event.delta for event in events if event.type.endswith("arguments.delta")]
        assert kinds == [
            "created",
            "in_progress",
            "output_item.added",
            *["function_call_arguments.delta"] * len(deltas),
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ]
        reply = events[-1].response
        assert "".join(deltas) == reply.output[0].arguments
    else:
        reply = client.responses.create(**asked)
    (call,) = reply.output
    assert (call.type, call.name) == ("function_call", "look") and set(json.loads(call.arguments)) == {
        "place"
    }
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Rome"}
    after = client.responses.create(
        model=NAME, input=[result], previous_response_id=reply.id, tools=[FLAT], max_output_tokens=2
    )
    made = {"name": "look", "arguments": json.loads(call.arguments)}
    plain = [{"role": "user", "content": "Hello"}]
    plain += [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": call.call_id, "type": "function", "function": made}],
        }
    ]
    plain += [{"role": "tool", "tool_call_id": call.call_id, "content": "Rome"}]
    tools = [{"type": "function", "function": {"name": "look", "parameters": PLACE}}]
    assert after.usage.input_tokens == len(server.service.lm.chat_ids(plain, tools=tools))


def test_responses_events_of_a_thought(thinking: Server) -> None:
    client = openai.OpenAI(base_url=thinking.url + "/v1", api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": NAME, "input": "Hello", "extra_body": {"text": {"format": THOUGHT}}}
    asked["include"] = ["message.output_text.logprobs", "reasoning.encrypted_content"]
    events = list(client.responses.create(**asked, stream=True))
    kinds = list(dict.fromkeys(event.type.removeprefix("response.") for event in events))
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_text.delta",
        "output_text.done",
        "completed",
    ]
    thought, text = events[-1].response.output
    assert (
        thought.content[0].text == "Hm, so." and text.content[0].text == "Yes!" and text.content[0].logprobs
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_a_response_in_the_background_is_cancelled(server: Server, client: Any) -> None:
    made = client.responses.create(model=NAME, input="Hello", background=True, max_output_tokens=7000)
    assert (
        made.status in ("queued", "in_progress") and client.responses.retrieve(made.id).status == made.status
    )
    assert client.responses.cancel(made.id).status == "cancelled"
    deadline = time.monotonic() + 30
    while (b"", made.id) in server.service.running and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(openai.BadRequestError, match="only one that is under way"):
        client.responses.cancel(made.id)
    assert client.responses.retrieve(made.id).status == "cancelled"


# ---- one request under every API's names -------------------------------------------------------------------

CALLED = {"id": "t1", "function": {"name": "look", "arguments": {"place": "Rome"}}}
SPOKEN = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello there"},
    {"role": "assistant", "content": "Well.", "tool_calls": [CALLED], "reasoning_content": "Hm."},
    {"role": "tool", "content": "Rain", "tool_call_id": "t1"},
    {"role": "user", "content": "And?"},
]


def as_chat(translate: Any, model: Any, given: dict[str, Any], *more: Any) -> dict[str, Any]:
    """A request as the chat that it is translated into, without what is absent or a default."""
    body = validation.checked(model, given, validation.Leniency())
    made = translate(*more[:1], body, *more[1:])
    asked = (made[1] if isinstance(made, tuple) else made).model_dump(exclude_none=True, by_alias=True)
    for message in asked["messages"]:
        if not message.get("content"):
            message.pop("content", None)
        for call in message.get("tool_calls") or ():
            call.pop("type")
            given = call["function"]["arguments"]
            call["function"]["arguments"] = json.loads(given) if isinstance(given, str) else given
    return asked


def test_anthropics_fields_are_the_chats(server: Server) -> None:
    use = {"type": "tool_use", "id": "t1", "name": "look", "input": {"place": "Rome"}}
    thought = {"type": "thinking", "thinking": "Hm.", "signature": ""}
    found = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "Rain"}]}
    body = {
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": [
            *HELLO,
            {"role": "assistant", "content": [thought, {"type": "text", "text": "Well."}, use]},
            {"role": "user", "content": [{"type": "text", "text": "And?"}, found]},
        ],
        "tools": [{"name": "look", "input_schema": PLACE, "strict": True}],
        "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 7},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": PLACE}},
        "max_tokens": 5,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "stop_sequences": ["x"],
        "stream": True,
    }
    asked = as_chat(anthropic_api.as_chat, MessagesRequest, body, server.service)
    assert asked.pop("messages") == SPOKEN
    assert asked.pop("response_format")["json_schema"]["schema"] == PLACE
    function = {"name": "look", "parameters": PLACE, "strict": True}
    assert asked == {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "parallel_tool_calls": False,
        "thinking_token_budget": 7,
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": True},
        "max_tokens": 5,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "stop": ["x"],
        "stream": True,
    }


def test_ollamas_fields_are_the_chats(server: Server) -> None:
    called = {"function": CALLED["function"]}
    body = {
        "model": f"{NAME}:latest",
        "messages": [
            *SPOKEN[:2],
            {"role": "assistant", "content": "Well.", "thinking": "Hm.", "tool_calls": [called]},
            {"role": "tool", "content": "Rain", "tool_call_id": "t1"},
            SPOKEN[4],
        ],
        "tools": [LOOK],
        "format": PLACE,
        "think": "low",
        "stream": False,
        "options": {"num_predict": 5, "repeat_penalty": 1.5, "temperature": 0.5, "seed": 3, "stop": ["x"]},
    }
    asked = as_chat(ollama_api.as_chat, ChatRequest, body, server.service)
    messages = asked.pop("messages")
    assert messages == [*SPOKEN[:2], SPOKEN[2] | {"tool_calls": [called]}, *SPOKEN[3:]]
    assert asked.pop("response_format")["json_schema"]["schema"] == PLACE
    assert asked == {
        "model": NAME,
        "tools": [LOOK],
        "reasoning_effort": "low",
        "stream": False,
        "max_tokens": 5,
        "repetition_penalty": 1.5,
        "temperature": 0.5,
        "top_k": 40,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["x"],
    }
    plain = {"prompt": "Hello there", "system": "Be brief.", "format": "json", "options": {"num_predict": -1}}
    asked = as_chat(ollama_api.as_chat, GenerateRequest, plain, server.service)
    assert asked.pop("messages") == SPOKEN[:2]
    theirs = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
    assert asked == {"response_format": {"type": "json_object"}, "stream": True} | theirs


def test_responses_fields_are_the_chats(server: Server) -> None:
    body = {
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": "Hello there"},
            {
                "type": "reasoning",
                "id": "r",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "Hm."}],
            },
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Well."}]},
            {"type": "function_call", "call_id": "t1", "name": "look", "arguments": '{"place": "Rome"}'},
            {"type": "function_call_output", "call_id": "t1", "output": "Rain"},
            {"role": "user", "content": [{"type": "input_text", "text": "And?"}]},
        ],
        "tools": [FLAT],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "look"}],
        },
        "text": {"format": {"type": "json_schema", "name": "x", "schema": PLACE, "strict": True}},
        "reasoning": {"effort": "low"},
        "max_output_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "parallel_tool_calls": False,
        "include": [responses.LOGPROBS],
        "top_logprobs": 2,
    }
    asked = as_chat(responses.as_chat, ResponsesRequest, body, server.service, b"")
    assert asked.pop("messages") == SPOKEN
    spec = {"name": "x", "schema": PLACE, "strict": True}
    assert asked.pop("response_format") == {"type": "json_schema", "json_schema": spec}
    named = {"type": "function", "function": {"name": "look"}}
    assert asked == {
        "tools": [{"type": "function", "function": {"name": "look", "parameters": PLACE}}],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}},
        "reasoning_effort": "low",
        "max_completion_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "parallel_tool_calls": False,
        "logprobs": True,
        "top_logprobs": 2,
    }
    unused = validation.checked(
        ResponsesRequest, {"input": "x", "top_logprobs": 2, "include": ["y"]}, validation.Leniency()
    )
    responses.as_chat(server.service, unused, b"")
    assert list(unused.ignored) == ["include.y", "top_logprobs"]


# ---- tools on every model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_template_without_tools_calls_them_as_it_is_asked(toolless: Server, stream: bool) -> None:
    client = openai.OpenAI(base_url=toolless.url + "/v1", api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": NAME, "messages": HELLO, "tools": [LOOK], "tool_choice": "required"}
    asked |= {"max_tokens": 200, "parallel_tool_calls": False, "seed": 1}
    if stream:
        with client.chat.completions.stream(**asked) as events:
            reply = events.get_final_completion()
    else:
        reply = client.chat.completions.create(**asked)
    (call,) = reply.choices[0].message.tool_calls
    assert call.function.name == "look" and set(json.loads(call.function.arguments)) == {"place"}
    assert reply.choices[0].finish_reason == "tool_calls" and not reply.choices[0].message.content
    spoken = [
        *HELLO,
        reply.choices[0].message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "content": "<|im_end|>"},
    ]
    ids = toolless.post("/v1/chat/count", {"messages": spoken, "tools": [LOOK]}).json()["tokens"]
    asked_with = toolless.post("/v1/chat/count", {"messages": HELLO, "tools": [LOOK]}).json()["tokens"]
    assert ids > asked_with > toolless.post("/v1/chat/count", {"messages": HELLO}).json()["tokens"] + 50


def test_streamed_calls_are_numbered() -> None:
    events = [made for name in "ab" for made in (parser.CallStarted(name), parser.ArgumentsDelta("{}"))]
    counts = [0]
    deltas = [_delta(event, counts, 0, False) for event in events]
    assert [delta["tool_calls"][0]["index"] for delta in deltas] == [0, 0, 1, 1]


@pytest.mark.parametrize("most", range(1, 14))
def test_a_forced_call_that_is_cut_off_leaks_no_mark(server: Server, toolless: Server, most: int) -> None:
    for one in (server, toolless):
        answer = chat(one, tools=[LOOK], tool_choice="required", max_tokens=most).json()["choices"][0]
        assert not answer["message"]["content"], answer


def test_a_call_or_an_answer_that_fits_the_schema(server: Server) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for seed in range(6):
        body = {"tools": [LOOK], "response_format": form, "seed": seed, "max_tokens": 300}
        choice = chat(server, **body, parallel_tool_calls=False).json()["choices"][0]
        if choice["message"].get("tool_calls"):
            (call,) = choice["message"]["tool_calls"]
            assert set(json.loads(call["function"]["arguments"])) == {"place"}
        elif choice["finish_reason"] == "stop":
            assert json.loads(choice["message"]["content"]) in ({"a": 1}, {"a": 2})
    bias = {str(server.service.lm.tokenizer.encode("{")[0]): 100}
    answer = words(chat(server, tools=[LOOK], response_format=form, logit_bias=bias, max_tokens=300))
    assert json.loads(answer) in ({"a": 1}, {"a": 2})


def test_former_functions_and_allowed_tools(server: Server) -> None:
    other = {"name": "other", "parameters": {"type": "object", "properties": {}}}
    asked = {"functions": [LOOK["function"], other], "function_call": {"name": "look"}, "max_tokens": 200}
    choice = chat(server, **asked).json()["choices"][0]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"]["name"] == "look" and "tool_calls" not in choice["message"]
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "other"}}]}
    tools = [LOOK, {"type": "function", "function": other}]
    body = {
        "tools": tools,
        "tool_choice": {"type": "allowed_tools", "allowed_tools": allowed},
        "max_tokens": 200,
    }
    for seed in range(4):
        choice = chat(server, **body, seed=seed, parallel_tool_calls=False).json()["choices"][0]
        assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["other"]
        assert choice["message"]["tool_calls"][0]["function"]["arguments"] == "{}"


# ---- schemas -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", RAW)
@pytest.mark.parametrize("stream", [False, True])
def test_every_schema_is_answered(server: Server, word: str, stream: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": RAW[word]}}
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": NAME, "messages": HELLO, "seed": 5, "max_tokens": 200}
    reply = client.chat.completions.create(**asked, response_format=form, stream=stream)
    chunks = list(reply) if stream else [reply]
    text = (
        "".join(c.choices[0].delta.content or "" for c in chunks)
        if stream
        else reply.choices[0].message.content
    )
    warnings = [line for one in chunks for line in getattr(one, "warnings", None) or []]
    fits = jsonschema.Draft202012Validator(RAW[word]).is_valid(json.loads(text))
    assert fits or any("3 samples" in line for line in warnings)
    assert bool(warnings) == (word not in ("$schema", "minProperties")), warnings


ENDLESS = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "list": {"type": "array", "items": {"type": "string"}}},
    "required": ["text", "list"],
}
WRITE = {"type": "function", "function": {"name": "write", "parameters": ENDLESS}}
SHAPE = {"type": "json_schema", "json_schema": {"name": "x", "schema": ENDLESS}}


def limited(server: Server, client: Any, claude: Any, most: int, stream: bool) -> Iterator[tuple[str, str]]:
    """Of each API the JSON of an answer of so many tokens at most, and what ended it."""
    chats: dict[str, Any] = {"model": NAME, "messages": HELLO, "max_tokens": most, "stream": stream}
    for more in {"response_format": SHAPE}, {"tools": [WRITE], "tool_choice": "required"}:
        given = client.chat.completions.create(**chats, **more, seed=1)
        if stream:
            (*chunks, last) = given
            deltas = [one.choices[0].delta for one in chunks]
            texts = [delta.content or "" for delta in deltas]
            texts += [
                call.function.arguments
                for delta in deltas
                for call in delta.tool_calls or ()
                if not call.index
            ]
            yield "".join(texts), last.choices[0].finish_reason
        else:
            message = given.choices[0].message
            calls = [call.function.arguments for call in message.tool_calls or ()]
            yield message.content or "".join(calls[:1]), given.choices[0].finish_reason
    given = client.completions.create(
        model=NAME, prompt="Hi", max_tokens=most, stream=stream, extra_body={"guided_json": ENDLESS}
    )
    chunks = list(given) if stream else [given]
    yield "".join(one.choices[0].text for one in chunks), chunks[-1].choices[0].finish_reason
    form = {"format": {"type": "json_schema", "name": "x", "schema": ENDLESS}}
    tools = [{"type": "function", **WRITE["function"]}]  # type: ignore[dict-item]
    for more in {"text": form}, {"tools": tools, "tool_choice": "required"}:
        asked: dict[str, Any] = {"model": NAME, "input": "Hi", "max_output_tokens": most, **more}
        made: Any = client.responses.create(**asked, stream=stream)
        made = list(made)[-1].response if stream else made
        first = made.output[0]
        assert first.status == made.status
        text = first.arguments if first.type == "function_call" else first.content[0].text
        yield text, made.incomplete_details.reason if made.status == "incomplete" else made.status
    tools = [{"name": "write", "input_schema": ENDLESS}]
    form = {"output_format": {"type": "json_schema", "schema": ENDLESS}}
    for more in {"extra_body": form}, {"tools": tools, "tool_choice": {"type": "any"}}:
        asked = {"model": NAME, "messages": HELLO, "max_tokens": most, **more}
        if stream:
            with claude.messages.stream(**asked) as events:
                blocks = events.get_final_message()
        else:
            blocks = claude.messages.create(**asked)
        (block, *_) = blocks.content or [None]
        text = "" if block is None else block.text if block.type == "text" else json.dumps(block.input)
        yield text, str(blocks.stop_reason)
    options = {"num_predict": most}
    for path, more in (("chat", {"messages": HELLO}), ("generate", {"prompt": "Hi"})):
        body = {"model": NAME, "format": ENDLESS, "options": options, "stream": stream, **more}
        lines = [json.loads(line) for line in server.post(f"/api/{path}", body).text.splitlines()]
        parts = [one["message"]["content"] if path == "chat" else one["response"] for one in lines]
        yield "".join(parts), lines[-1]["done_reason"]


@pytest.mark.parametrize("stream", [False, True])
def test_json_is_whole_within_max_tokens_in_every_api(
    server: Server, client: Any, claude: Any, stream: bool
) -> None:
    """Where the shortest JSON fits; two layers write nonsense, and no text of theirs ends by itself."""
    for text, ended in limited(server, client, claude, 48, stream):
        jsonschema.validate(json.loads(text), ENDLESS)
        assert ended in ("stop", "tool_calls", "completed", "end_turn", "tool_use")
    for text, ended in limited(server, client, claude, 7, stream):
        assert ended in ("length", "max_output_tokens", "max_tokens")
        assert not text.startswith('{"text": "", "list": []')


@pytest.mark.parametrize("stream", [False, True])
def test_json_that_is_cut_off_has_a_warning(server: Server, stream: bool) -> None:
    asked = {"prompt": "Hi", "messages": HELLO, "stream": stream}
    for path, name in (("completions", "prompt"), ("chat/completions", "messages")):
        for most, cut in ((48, False), (7, True)):
            form = {"type": "json_schema", "json_schema": {"name": "a", "schema": ENDLESS}}
            body = {"model": NAME, "max_tokens": most, "stream": stream, name: asked[name]}
            answer = server.post(f"/v1/{path}", body | {"response_format": form}).text
            assert ("cut off" in answer) == cut
        assert "cut off" not in server.post(f"/v1/{path}", body).text


def test_dates_and_durations_end_within_max_tokens(server: Server) -> None:
    """What pydantic writes for datetime, timedelta and a text with a pattern."""
    texts = {"at": {"format": "date-time"}, "for": {"format": "duration"}, "id": {"pattern": r"^\d+Z$"}}
    for name, asked in texts.items():
        properties = {name: {"type": "string", **asked}}
        schema = {"type": "object", "properties": properties, "required": [name]}
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        digits = {str(id): 100 for id in server.service.lm.tokenizer.encode("0123456789")}
        more = {"max_tokens": 40, "logit_bias": digits, "response_format": form}
        for seed in range(3):
            choice = chat(server, seed=seed, **more).json()["choices"][0]
            assert choice["finish_reason"] == "stop"
            jsonschema.validate(json.loads(choice["message"]["content"]), schema)


def test_calls_of_a_free_number_end_within_max_tokens(server: Server, toolless: Server) -> None:
    for one in server, toolless:
        for seed in range(3):
            body = {"tools": [WRITE], "tool_choice": "required", "seed": seed, "max_tokens": 120}
            choice = chat(one, **body).json()["choices"][0]
            assert choice["finish_reason"] == "tool_calls"
            for call in choice["message"]["tool_calls"]:
                jsonschema.validate(json.loads(call["function"]["arguments"]), ENDLESS)


def test_an_answer_that_does_not_fit_is_drawn_again(server: Server) -> None:
    hopeless = {"enum": ["a", "b"], "not": {"type": "string"}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": hopeless}}
    before = server.service.scheduler.stats().finished  # type: ignore[union-attr]
    reply = chat(server, response_format=form, max_tokens=20).json()
    assert server.service.scheduler.stats().finished - before == 3  # type: ignore[union-attr]
    assert reply["choices"][0]["message"]["content"] in ('"a"', '"b"') and len(reply["warnings"]) == 2
    assert "none of 3 samples fits the schema" in reply["warnings"][1]
    body = {"prompt": "Hi", "response_format": form, "max_tokens": 20, "stream": True}
    last = server.post("/v1/completions", body).text.split("data: ")[-2]
    assert "none of 3 samples fits the schema" in json.loads(last)["warnings"][1]
    refused = chat(
        server, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 7}}}
    )
    assert refused.status_code == 400 and "he schema is none" in refused.text


def test_another_sample_has_other_random_numbers() -> None:
    timings = Timings(1, 0.0, 0, 0.0, 0.0)
    made = Generation("x", (1,), (1,), (0.0,), ((),), "stop", None, 8, timings, None)
    asked = Request(ids=(1,), settings=SamplingParams(seed=5))
    held = Held(constrain.json_object(), lambda *_: "wrong")
    form = answer_form.AnswerForm(serving.model(), "response_format", held=held)
    form.limit([8])
    again = form.again([asked], 1, lambda made: (made.text, ()))
    assert again is not None
    seeds = [request and request.settings.seed for request in (again(0, made, n) for n in range(3))]
    assert seeds[2] is None and len({5, *seeds[:2]}) == 3 and "wrong" in form.warnings[0]


def test_a_validating_pattern_without_end_costs_half_a_second(server: Server) -> None:
    slow = {"enum": ["a" * 40 + "b"], "pattern": "^(?=a)(a+)+$"}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": slow}}
    reply = chat(server, response_format=form, max_tokens=60)
    assert reply.status_code == 200 and reply.json()["warnings"]


def test_objects_have_what_their_schema_names(server: Server) -> None:
    inner = {"type": "object", "properties": {"b": {"const": 1}}}
    schema = {"type": "object", "properties": {"a": inner, "free": {"type": "object"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for seed in range(4):
        choice = chat(server, response_format=form, seed=seed, max_tokens=400).json()["choices"][0]
        if choice["finish_reason"] == "stop":
            made = json.loads(choice["message"]["content"])
            assert set(made) <= {"a", "free"} and set(made["a"]) <= {"b"}


# ---- small -------------------------------------------------------------------------------------------------


def test_bodies_without_a_type_and_gzipped_ones(server: Server) -> None:
    raw = json.dumps({"prompt": "x", "max_tokens": 1}).encode()
    packed = gzip.compress(raw)
    for content, headers in (
        (raw, {}),
        (packed, {"content-encoding": "gzip", "content-type": "application/json"}),
    ):
        answer = serving.httpx.post(server.url + "/completions", content=content, headers=headers, timeout=30)
        assert answer.status_code == 200, answer.text
    bomb = gzip.compress(b" " * (64 << 20))
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    answer = serving.httpx.post(server.url + "/completions", content=bomb, headers=headers, timeout=30)
    assert answer.status_code == 413
    for wrong in raw, packed[:-9], packed + packed:
        answer = serving.httpx.post(server.url + "/completions", content=wrong, headers=headers, timeout=30)
        assert answer.status_code == 400 and "gzip" in answer.text


def test_every_path_is_there_without_v1(server: Server) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    for path in paths:
        for method in paths[path] if path.startswith("/v1/") else ():
            bare = re.sub(r"{\w+}", "x", path.removeprefix("/v1"))
            answer = serving.httpx.request(method, server.url + bare, timeout=30)
            assert answer.status_code != 405 and f"There is no '{bare}' here" not in answer.text, (
                method,
                bare,
            )
    made = server.post("/responses", {"input": "x", "max_output_tokens": 2}).json()["id"]
    assert server.get(f"/responses/{made}").json()["id"] == made
    assert serving.httpx.delete(f"{server.url}/responses/{made}").json()["deleted"]
    assert server.get("/models").json() == server.get("/v1/models").json()


def test_shapes_of_other_servers_tokens(server: Server) -> None:
    tokenizer = server.service.lm.tokenizer
    ids = tokenizer.encode("Hi <|im_end|>")
    assert server.post("/tokenize", {"content": "Hi <|im_end|>"}).json() == {"tokens": ids}
    pieces = server.post("/tokenize", {"content": "Hi", "with_pieces": True}).json()["tokens"]
    assert pieces == [{"id": tokenizer.encode("Hi")[0], "piece": "Hi"}]
    reply = server.post("/tokenize", {"prompt": "Hi <|im_end|>", "return_token_strs": True}).json()
    assert reply["tokens"] == ids and reply["count"] == len(ids) and reply["max_model_len"] == 8192
    chat_ids = server.service.lm.chat_ids(HELLO)
    assert server.post("/tokenize", {"messages": HELLO}).json()["tokens"] == chat_ids
    assert server.post("/detokenize", {"tokens": ids}).json()["content"] == "Hi <|im_end|>"
    assert server.post("/tokenize", {}).status_code == 400
    assert server.get("/props").json()["default_generation_settings"]["n_ctx"] == 8192
    assert server.get("/version").json()["version"]


def test_reranked_texts_and_many_embeddings(server: Server) -> None:
    texts = ["a river bank", "money", "the river"]
    reply = server.post(
        "/v1/rerank", {"query": "the river", "documents": texts, "pooling": "mean", "top_n": 2}
    )
    best = reply.json()["results"]
    assert len(best) == 2 and best[0]["index"] == 2 and abs(best[0]["relevance_score"] - 1) < 1e-5
    body = {"input": [[5]] * 600, "pooling": "mean"}
    reply = server.post("/v1/embeddings", body)
    assert len(reply.json()["data"]) == 600 and "own vocabulary" in reply.headers["x-cutaway-ids"]
    refused = server.post("/v1/embeddings", {"input": ["a"] * 2049, "pooling": "mean"})
    assert refused.status_code == 400


def test_an_encoder_embeds_and_reranks() -> None:
    lm = cutaway.load(inputs.path("minilm"))
    texts = ["Berlin is the capital of Germany.", "Cats sleep all day.", "Paris is the capital of France."]
    with serving.running(lm) as encoder:
        answer = encoder.post("/v1/rerank", {"query": "What is France's capital?", "documents": texts})
        assert [one["index"] for one in answer.json()["results"]] == [2, 0, 1]
        many = encoder.post("/v1/embeddings", {"input": texts * 12}).json()
        assert len(many["data"]) == 36
        expected = lm.embed(texts)
        for one in many["data"][3:6]:
            assert abs(expected[one["index"] - 3] - one["embedding"]).max() < 1e-5
        assert encoder.post("/api/embed", {"input": "x"}).json()["embeddings"]
        for path, body in (
            ("chat/completions", {"messages": HELLO}),
            ("trace", {"text": "x", "values": ["out"]}),
        ):
            refused = encoder.post(f"/v1/{path}", body)
            assert refused.status_code == 400 and "is an encoder" in refused.text


def test_vectors_as_their_server_pools_and_cuts_them(server: Server, client: Any) -> None:
    lm = serving.model()
    full = lm.embed(["a river"], "last")[0]
    with serving.running(lm, pooling="last", dimensions=[64, 128]) as pooled:
        plain = openai.OpenAI(base_url=pooled.url + "/v1", api_key="none", max_retries=0)
        asked: dict[str, Any] = {"model": NAME, "input": "a river"}
        assert abs(plain.embeddings.create(**asked).data[0].embedding - full).max() < 1e-6  # base64
        cut = plain.embeddings.create(**asked, dimensions=64, encoding_format="float").data[0].embedding
        assert abs(cut - full[:64] / np.linalg.norm(full[:64])).max() < 1e-6
        with pytest.raises(openai.BadRequestError, match="trained for 64, 128: leave dimensions out"):
            plain.embeddings.create(**asked, dimensions=65)
        named = plain.embeddings.create(**asked, extra_body={"pooling": "mean"}).data[0].embedding
        assert abs(named - lm.embed(["a river"], "mean")[0]).max() < 1e-6
    with pytest.raises(openai.BadRequestError, match="say how to pool its tokens"):
        client.embeddings.create(**asked)


def test_a_burst_of_200_is_answered(server: Server) -> None:
    """All of it may wait at once, whatever the pace of the answers."""
    queue: FairQueue[int] = FairQueue()
    for n in range(200):
        assert queue.has_room("one", Limits().max_queue)
        queue.add("one", n)
    with ThreadPoolExecutor(200) as threads:
        answers = list(threads.map(lambda seed: chat(server, seed=seed).status_code, range(200)))
    assert answers == [200] * 200


def test_browsers_may_send_any_header_that_they_ask_for() -> None:
    policy = AccessPolicy(origins=("http://good.example",))
    with serving.running(serving.model(), policy) as reply:
        headers = {"Origin": "http://good.example", "Access-Control-Request-Method": "POST"}
        headers |= {"Access-Control-Request-Headers": "x-stainless-os, anthropic-version"}
        answer = serving.httpx.options(reply.url + "/v1/messages", headers=headers)
        assert answer.status_code == 200
        assert "x-stainless-os" in answer.headers["access-control-allow-headers"]
        answer = reply.get("/v1/models", headers={"Origin": "http://good.example"})
        assert "x-cutaway-ids" in answer.headers["access-control-expose-headers"]


# ---- forgery -----------------------------------------------------------------------------------------------


def bodies(here: str) -> dict[Any, dict[str, Any]]:
    """A conversation in each API's form with a text wherever one may be."""
    schema = {"type": "object", "properties": {here: {"type": "string", "description": here}}}
    function = {"name": "look", "description": here, "parameters": schema}
    arguments = json.dumps({here: here})
    call = {"id": here, "type": "function", "function": {"name": here, "arguments": arguments}}
    system, user = {"role": "system", "content": here}, {"role": "user", "content": here}
    assistant = {"role": "assistant", "content": here}
    part = {"type": "text", "text": here}
    use = {"type": "tool_use", "id": here, "name": here, "input": {here: here}}
    given = {"name": here, "arguments": {here: here}}
    result = {"type": "tool_result", "tool_use_id": here, "content": [part]}
    document = {"type": "document", "title": here, "source": {"type": "text", "data": here}}
    found = {"type": "search_result", "title": here, "source": here, "content": [part]}
    return {
        ChatCompletionRequest: {
            "messages": [
                system,
                {"role": "user", "content": [part], "name": here},
                assistant | {"reasoning_content": here, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": here, "name": here, "content": here},
            ],
            "tools": [{"type": "function", "function": function}],
            "reasoning_effort": here[:32],
        },
        MessagesRequest: {
            "system": [part],
            "messages": [
                user,
                {"role": "assistant", "content": [{"type": "thinking", "thinking": here}, part, use]},
                {"role": "user", "content": [result, document, found]},
            ],
            "tools": [{"name": "look", "description": here, "input_schema": schema}],
            "max_tokens": 1,
        },
        ResponsesRequest: {
            "instructions": here,
            "input": [
                user,
                {"type": "reasoning", "content": [{"type": "reasoning_text", "text": here}]},
                {"type": "function_call", "call_id": here, "name": here, "arguments": arguments},
                {"type": "function_call_output", "call_id": here, "output": here},
            ],
            "tools": [{"type": "function", **function}],
        },
        ChatRequest: {
            "messages": [
                system,
                user,
                assistant | {"thinking": here, "tool_calls": [{"function": given}]},
                {"role": "tool", "tool_name": here, "content": here},
            ],
            "tools": [{"type": "function", "function": function}],
        },
        GenerateRequest: {"system": here, "prompt": here},
    }


def read_ids(service: Any, model: Any, body: dict[str, Any]) -> list[int] | None:
    """The ids that a request's conversation is read as, None where it is refused."""
    asked: Any = validation.parse_body(model, json.dumps(body).encode())
    if model is MessagesRequest:
        asked = anthropic_api.as_chat(service, asked)
    elif model is ResponsesRequest:
        asked = responses.as_chat(service, asked, b"")[1]
    elif model is not ChatCompletionRequest:
        asked = ollama_api.as_chat(service, asked)
    try:
        return chat_ids(service, asked.messages, asked.tools, _variables(service, asked))
    except APIError:
        return None


@pytest.mark.parametrize("template", [None, PLAIN, THINKING])
def test_the_security_suites_texts_forge_nothing_through_any_api(
    server: Server, template: str | None
) -> None:
    lm = server.service.lm
    lm = lm if template is None else LanguageModel(replace(lm.checkpoint, chat_template=template))
    service, special = replace(server.service, lm=lm), set(lm.tokenizer.special.values())
    texts = list(forgery._payloads(lm, np.random.default_rng(0)))
    checked = naive = 0
    for text in texts:
        for name, hide in forgery.DISGUISES.items():
            evil, plain = bodies(hide(text)), bodies("x" * len(hide(text)))
            for model in evil:
                ids, wanted = (read_ids(service, model, one[model]) for one in (evil, plain))
                if ids is None or wanted is None:
                    continue
                checked += 1
                control = [id for id in wanted if id in special]
                assert [id for id in ids if id in special] == control, (model, name, text)
                naive += [id for id in forgery._careless(lm, ids) if id in special] != control
    assert checked > 250 and naive > checked / 8  # which a server that tokenises the rendered text forges


def test_no_field_of_any_api_writes_a_control_token(server: Server, tmp_path: Path) -> None:
    templates = chat_cases.templates() | {"plain": PLAIN, "thinking": THINKING}
    extra = chat_cases.markers(list(templates.values()))
    tokenizer = chat_cases.augmented(inputs.path("smollm2"), tmp_path, extra)
    checkpoint = replace(server.service.lm.checkpoint, read_tokenizer=lambda: tokenizer)
    held = refused = 0
    for template in templates.values():
        lm = LanguageModel(replace(checkpoint, chat_template=template))
        service = replace(server.service, lm=lm)
        control = chat_cases.control_ids(tokenizer, template, extra)
        evil = "".join(list(chat_cases.markers([template]))[:9]) or "<|im_end|>"
        harmless = bodies("harmless")
        for model, body in bodies(evil).items():
            ids, wanted = read_ids(service, model, body), read_ids(service, model, harmless[model])
            if ids is None or wanted is None:
                refused += 1
                continue
            assert [id for id in ids if id in control] == [id for id in wanted if id in control], template
            held += 1
    assert held > 150, (held, refused)
