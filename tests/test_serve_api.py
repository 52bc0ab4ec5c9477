"""The API as OpenAI's own client sees it, and as someone who writes JSON by hand does."""

import base64
import gc
import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cutaway.generate.sample import log_softmax
from cutaway.lm import LanguageModel
from cutaway.tokenizer import fast
from tests import serving
from tests.serving import NAME, Server

from cutaway.serve.service import warm_up  # isort: skip

openai = pytest.importorskip("openai")

HELLO = [{"role": "user", "content": "Hello there"}]
LOOK = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look a word up.",
        "parameters": {
            "type": "object",
            "properties": {
                "word": {"type": "string", "maxLength": 8},
                "times": {"type": "integer", "minimum": 0, "maximum": 99},
            },
            "required": ["word", "times"],
            "additionalProperties": False,
        },
    },
}
SEND = {
    "type": "function",
    "function": {
        "name": "send",
        "parameters": {
            "type": "object",
            "properties": {"to": {"enum": ["a", "b"]}},
            "required": ["to"],
            "additionalProperties": False,
        },
    },
}


NAMED = {"type": "function", "function": {"name": "x"}}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving.running(serving.model()) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def refusal(answer: Any, status: int = 400) -> dict[str, Any]:
    """What an error body says."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# ---- models, tokens ----------------------------------------------------------------------------------------


def test_the_model_is_listed_and_no_other(client: Any) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
        client.models.retrieve("gpt-4")
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
        client.chat.completions.create(model="gpt-4", messages=HELLO)


@pytest.mark.parametrize("tells", [True, False])
def test_what_the_first_request_needs_is_there_before_it(server: Server, tells: bool) -> None:
    service = server.service
    if not tells:  # a model without a template is made ready too
        lm = LanguageModel(replace(service.lm.checkpoint, chat_template=None))
        service = replace(service, lm=lm)
    fast._INTEGERS.clear()
    try:
        warm_up(service)
        assert gc.get_freeze_count() > 10_000 and fast._INTEGERS
    finally:
        gc.unfreeze()


def test_tokens_there_and_back(server: Server) -> None:
    tokenizer = server.service.lm.tokenizer
    text = "The café <|im_end|> 𓂀"
    made = server.post("/tokenize", {"text": text}).json()
    assert made["ids"] == tokenizer.encode(text) and made["count"] == len(made["ids"])
    assert server.post("/detokenize", {"ids": made["ids"]}).json() == {"text": text}
    allowed = server.post("/tokenize", {"text": "<|im_end|>", "special": "allow"}).json()
    assert allowed["ids"] == [2] and allowed["tokens"] == ["<|im_end|>"]
    assert (
        "control token"
        in refusal(server.post("/tokenize", {"text": "<|im_end|>", "special": "forbid"}))["message"]
    )
    assert "no id" in refusal(server.post("/detokenize", {"ids": [999_999]}))["message"]
    counted = server.post("/v1/chat/count", {"messages": HELLO}).json()
    assert counted == {"tokens": len(server.service.lm.chat_ids(HELLO)), "context": 8192}


# ---- chat --------------------------------------------------------------------------------------------------


def test_chat_says_what_the_model_says_in_process(server: Server, client: Any) -> None:
    answer = client.chat.completions.create(model=NAME, messages=HELLO, temperature=0, max_tokens=12)
    alone = server.service.lm.chat(HELLO, temperature=0, max_tokens=12)
    assert answer.choices[0].message.content == alone.text
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == len(alone.prompt_ids) and answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_a_stream_is_the_same_answer_in_parts(client: Any) -> None:
    asked: dict[str, Any] = {"model": NAME, "messages": HELLO, "seed": 5, "max_completion_tokens": 16, "n": 2}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    texts = ["", ""]
    ends: dict[int, str] = {}
    for chunk in chunks[:-1]:
        assert chunk.usage is None and chunk.object == "chat.completion.chunk" and chunk.id == chunks[0].id
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices] and texts[0] != texts[1]
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_wire_of_a_stream(server: Server) -> None:
    answer = server.post("/v1/chat/completions", {"messages": HELLO, "max_tokens": 3, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    assert json.loads(lines[0][6:])["choices"][0]["delta"] == {"role": "assistant", "content": ""}


def test_logprobs_are_the_models_own(server: Server, client: Any) -> None:
    asked: dict[str, Any] = {"model": NAME, "messages": HELLO, "temperature": 0.7, "seed": 3, "max_tokens": 4}
    answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    lm = server.service.lm
    chosen = lm.chat(HELLO, temperature=0.7, seed=3, max_tokens=4).ids  # the same draws
    ids = lm.chat_ids(HELLO)
    for token, id in zip(answer.choices[0].logprobs.content, chosen, strict=True):
        expected = log_softmax(lm.logits(ids)[-1])
        best = [int(one) for one in np.argsort(-expected, kind="stable")[:3]]
        assert [one.bytes for one in token.top_logprobs] == [
            list(lm.tokenizer.token_bytes(one)) for one in best
        ]
        assert np.allclose([one.logprob for one in token.top_logprobs], expected[best], atol=1e-4)
        assert bytes(token.bytes) == lm.tokenizer.token_bytes(id) and abs(token.logprob - expected[id]) < 1e-4
        ids.append(id)
    chunks = client.chat.completions.create(**asked, logprobs=True, stream=True)
    parts = [choice.logprobs.content for chunk in chunks for choice in chunk.choices if choice.logprobs]
    assert [one.token for part in parts for one in part] == [
        one.token for one in answer.choices[0].logprobs.content
    ]


def test_stop_seed_bias_and_penalties(server: Server, client: Any) -> None:
    asked: dict[str, Any] = {"model": NAME, "messages": HELLO, "temperature": 0, "max_tokens": 12}
    usual = client.chat.completions.create(**asked).choices[0].message.content
    stop = usual[4:7]
    answer = client.chat.completions.create(**asked, stop=[stop]).choices[0]
    assert answer.message.content == usual[: usual.index(stop)] and answer.finish_reason == "stop"
    first = server.service.lm.tokenizer.encode("zebra")[0]
    forced = client.chat.completions.create(**asked | {"max_tokens": 1}, logit_bias={str(first): 100})
    assert forced.choices[0].message.content == server.service.lm.tokenizer.decode([first])
    greedy = server.service.lm.chat(HELLO, temperature=0, max_tokens=1).ids[0]
    banned = client.chat.completions.create(**asked, logit_bias={str(greedy): -100})
    assert not banned.choices[0].message.content.startswith(server.service.lm.tokenizer.decode([greedy]))
    alone = server.service.lm.chat(
        HELLO, temperature=0, max_tokens=12, frequency_penalty=2, presence_penalty=1
    )
    answer = client.chat.completions.create(**asked, frequency_penalty=2, presence_penalty=1)
    assert answer.choices[0].message.content == alone.text
    one, two = (
        client.chat.completions.create(model=NAME, messages=HELLO, seed=-7, max_tokens=8) for _ in "ab"
    )
    assert one.choices[0].message.content == two.choices[0].message.content


# ---- answers that follow a grammar -------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_json_schema(client: Any, stream: bool) -> None:
    schema = LOOK["function"]["parameters"]
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    asked: dict[str, Any] = {
        "model": NAME,
        "messages": HELLO,
        "seed": 1,
        "response_format": format,
        "max_tokens": 100,
    }
    answer = client.chat.completions.create(**asked, stream=stream)
    if stream:
        text = "".join(choice.delta.content or "" for chunk in answer for choice in chunk.choices)
    else:
        text = answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "stop"
    made = json.loads(text)
    assert set(made) == {"word", "times"} and len(made["word"]) <= 8 and made["times"] <= 99


def test_json_object_regex_and_grammar(server: Server) -> None:
    def content(format: dict[str, Any], seed: int = 2) -> str:
        body = {"messages": HELLO, "seed": seed, "max_tokens": 60, "response_format": format, "n": 2}
        one, two = server.post("/v1/chat/completions", body).json()["choices"]
        assert one["message"]["content"] != "" and two["message"]["content"] != ""
        return one["message"]["content"]

    assert content({"type": "json_object"}).startswith("{")
    regex = {"type": "regex", "regex": r"[A-C]{3}-\d{4}"}
    for seed in range(4):  # of a model whose weights are random, to which each script's digits are alike
        assert re.fullmatch(r"[A-C]{3}-\d{4}", content(regex, seed), re.ASCII)
    assert content({"type": "grammar", "grammar": 'start: "yes" | "no"'}) in ("yes", "no")
    assert content({"type": "text"})


# ---- tools -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look_up"}}])
def test_a_demanded_call_is_one_of_the_tools(client: Any, choice: Any) -> None:
    asked: dict[str, Any] = {"model": NAME, "messages": HELLO, "tools": [LOOK, SEND], "tool_choice": choice}
    asked |= {"max_tokens": 200, "parallel_tool_calls": False}
    for seed in range(3):
        answer = client.chat.completions.create(**asked, seed=seed)
        (call,) = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.content is None
        arguments = json.loads(call.function.arguments)
        if call.function.name == "look_up":
            assert set(arguments) == {"word", "times"}
        else:
            assert choice == "required" and call.function.name == "send" and arguments["to"] in ("a", "b")


@pytest.mark.parametrize("most", [6, 14, 20, 30, 45, 200])
@pytest.mark.parametrize("several", [False, True])
def test_calls_that_are_streamed_add_up_to_the_whole_answer(client: Any, most: int, several: bool) -> None:
    asked: dict[str, Any] = {"model": NAME, "messages": HELLO, "tools": [LOOK, SEND], "max_tokens": most}
    asked |= {"tool_choice": "required", "parallel_tool_calls": several, "n": 2}
    pieces = 0
    for seed in range(3):
        answer = client.chat.completions.create(**asked, seed=seed)
        chunks = list(client.chat.completions.create(**asked, seed=seed, stream=True))
        for whole in answer.choices:
            parts = [one for chunk in chunks for one in chunk.choices if one.index == whole.index]
            calls: list[Any] = []
            for delta in (delta for part in parts for delta in part.delta.tool_calls or []):
                if delta.index == len(calls):  # the first of a call names it, and the others do not
                    assert delta.id and delta.type == "function" and delta.function.arguments == ""
                    calls.append([delta.function.name, []])
                else:
                    assert delta.index == len(calls) - 1 and delta.id is None and delta.function.name is None
                    calls[-1][1].append(delta.function.arguments)
            made = whole.message.tool_calls or []
            named = [(call.function.name, call.function.arguments) for call in made]
            assert [(name, "".join(given)) for name, given in calls] == named
            assert "".join(part.delta.content or "" for part in parts) == (whole.message.content or "")
            assert parts[-1].finish_reason == whole.finish_reason
            if whole.finish_reason == "tool_calls":
                assert made and (several or len(made) == 1) and all(json.loads(text) for _, text in named)
            else:
                assert whole.finish_reason == "length"
            pieces = max(pieces, *(len(given) for _, given in calls), 0)
    assert pieces > 3 or most < 20


def test_the_clients_own_helper_gathers_a_streamed_call(client: Any) -> None:
    asked: dict[str, Any] = {"model": NAME, "messages": HELLO, "tools": [LOOK], "tool_choice": "required"}
    asked |= {"parallel_tool_calls": False, "seed": 1, "max_tokens": 200}
    with client.chat.completions.stream(**asked) as stream:
        given = [one.arguments_delta for one in stream if one.type == "tool_calls.function.arguments.delta"]
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    (whole,) = client.chat.completions.create(**asked).choices[0].message.tool_calls
    assert call.function.arguments == whole.function.arguments == "".join(given) and len(given) > 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_inside_of_arguments_is_no_whole_call(client: Any, stream: bool) -> None:
    asked: dict[str, Any] = {"model": NAME, "messages": HELLO, "tools": [LOOK], "tool_choice": "required"}
    answer = client.chat.completions.create(**asked, seed=1, max_tokens=200, stop='"times', stream=stream)
    if stream:
        chunks = list(answer)
        deltas = [d for chunk in chunks for d in chunk.choices[0].delta.tool_calls or []]
        arguments, end = "".join(delta.function.arguments for delta in deltas), chunks[-1].choices[0]
    else:
        end = answer.choices[0]
        arguments = end.message.tool_calls[0].function.arguments
    assert end.finish_reason == "stop" and arguments.startswith('{"word') and "times" not in arguments


def test_a_conversation_with_calls_and_results_is_read(server: Server) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"word": "x"}'}}
    asking = {"role": "assistant", "content": None, "tool_calls": [call]}
    found = {"role": "tool", "tool_call_id": "c1", "content": "found"}
    messages = [*HELLO, asking, found]
    answer = server.post(
        "/v1/chat/completions", {"messages": messages, "tools": [LOOK], "max_tokens": 3}
    ).json()
    called = call | {"function": {"name": "look_up", "arguments": {"word": "x"}}}
    plain = [*HELLO, {"role": "assistant", "content": "", "tool_calls": [called]}, found]
    assert answer["usage"]["prompt_tokens"] == len(server.service.lm.chat_ids(plain, tools=[LOOK]))
    none = server.post(
        "/v1/chat/completions", {"messages": HELLO, "tools": [LOOK], "tool_choice": "none", "max_tokens": 3}
    )
    assert none.json()["usage"]["prompt_tokens"] == len(server.service.lm.chat_ids(HELLO))


# ---- completions -------------------------------------------------------------------------------------------


def test_completions_of_texts_and_ids(server: Server, client: Any) -> None:
    lm, text = server.service.lm, "Once upon a time"
    alone = lm.generate(text, temperature=0, max_tokens=16)
    for prompt in (text, lm.ids(text), [text, text], [lm.ids(text), lm.ids(text)]):
        answer = client.completions.create(model=NAME, prompt=prompt, temperature=0)
        assert {choice.text for choice in answer.choices} == {alone.text}
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    assert answer.usage.prompt_tokens == 2 * len(alone.prompt_ids) and answer.usage.completion_tokens == 32
    chunks = client.completions.create(model=NAME, prompt=text, temperature=0, stream=True, echo=True)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == text + alone.text


def test_echo_scores_the_prompt(server: Server, client: Any) -> None:
    lm = server.service.lm
    ids = lm.ids("The capital of France is Paris")
    answer = client.completions.create(model=NAME, prompt=ids, echo=True, logprobs=2, max_tokens=0).choices[0]
    assert answer.text == lm.tokenizer.decode(ids)
    scores = log_softmax_rows(lm.logits(ids))
    expected = [float(scores[i, id]) for i, id in enumerate(ids[1:])]
    assert answer.logprobs.token_logprobs[0] is None and answer.logprobs.top_logprobs[0] is None
    assert np.allclose(answer.logprobs.token_logprobs[1:], expected, atol=1e-4)
    assert answer.logprobs.tokens == [lm.tokenizer.decode([id]) for id in ids]
    for i, best in enumerate(answer.logprobs.top_logprobs[1:]):
        assert max(best, key=best.get) == lm.tokenizer.decode([int(scores[i].argmax())])
    starts = answer.logprobs.text_offset
    assert [
        answer.text[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)
    ] == answer.logprobs.tokens


def log_softmax_rows(logits: np.ndarray) -> np.ndarray:
    return np.stack([log_softmax(row) for row in logits])


# ---- embeddings, responses ---------------------------------------------------------------------------------


def test_embeddings(server: Server, client: Any) -> None:
    texts = ["a river", "a bank"]
    reply = client.embeddings.create(model=NAME, input=texts, extra_body={"pooling": "mean"})  # base64 inside
    expected = server.service.lm.embed(texts, "mean")
    assert np.allclose([one.embedding for one in reply.data], expected, atol=1e-6)
    plain = server.post(
        "/v1/embeddings", {"input": server.service.lm.ids("a river"), "pooling": "mean"}
    ).json()
    assert np.allclose(plain["data"][0]["embedding"], expected[0], atol=1e-6)
    raw = server.post(
        "/v1/embeddings", {"input": "a bank", "pooling": "mean", "encoding_format": "base64"}
    ).json()
    assert np.allclose(
        np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4"), expected[1], atol=1e-6
    )
    far = {"input": [[49152, 0]], "pooling": "mean"}
    assert "0 to 49151" in refusal(server.post("/v1/embeddings", far))["message"]
    assert "say how to pool" in refusal(server.post("/v1/embeddings", {"input": "x"}))["message"]
    wrong = refusal(server.post("/v1/embeddings", {"input": "x", "pooling": "mean", "dimensions": 7}))
    assert wrong["param"] == "dimensions" and "576" in wrong["message"]


def test_responses(server: Server, client: Any) -> None:
    asked: dict[str, Any] = {"model": NAME, "input": "Hello there", "temperature": 0, "max_output_tokens": 8}
    answer = client.responses.create(**asked)
    alone = server.service.lm.chat(HELLO, temperature=0, max_tokens=8)
    assert answer.output_text == alone.text and answer.status == "incomplete"
    assert answer.usage.output_tokens == 8
    events = list(client.responses.create(**asked, stream=True))
    assert events[0].type == "response.created" and events[-1].type == "response.incomplete"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == alone.text == events[-1].response.output_text
    with pytest.raises(openai.BadRequestError, match="There is no response 'x' here"):
        client.responses.create(**asked, previous_response_id="x")


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "param", "sentence"),
    [
        ("/v1/completions", {"prompt": "x", "best_of": 3}, "best_of", "best_of is not supported"),
        ("/v1/completions", {"prompt": "x", "suffix": "y"}, "suffix", "has no marks of a gap"),
        ("/v1/completions", {"prompt": "x", "tempreature": 1}, "tempreature", "not supported"),
        ("/v1/completions", {"prompt": [49152]}, "prompt", "outside the model's 0 to 49151"),
        ("/v1/completions", {"prompt": []}, "prompt", "prompt is empty"),
        ("/v1/completions", {"prompt": "x", "n": 17}, "n", "17 .* may ask for 16"),
        ("/v1/completions", {"prompt": "x", "logit_bias": {"cat": 1}}, "logit_bias", "names 'cat'"),
        ("/v1/completions", {"prompt": "x", "logit_bias": {"99999": 1}}, "logit_bias", "^logit_bias .* 9{5}"),
        ("/v1/completions", {"prompt": "x", "temperature": -1}, "temperature", "greater than or equal to 0"),
        ("/v1/completions", {"prompt": "x", "repetition_penalty": 1e-300}, "repetition_penalty", "0.01"),
        ("/v1/completions", {"prompt": "x", "stop": [""]}, "stop", "empty text"),
        ("/v1/completions", {}, "prompt", "prompt is missing"),
        ("/v1/chat/completions", {"messages": []}, "messages", "at least 1"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "messages[0].content", "has no content"),
        ("/v1/chat/completions", {"messages": [{"role": "x", "content": ""}]}, "messages[0].role", "be"),
        ("/v1/chat/completions", {"messages": HELLO, "web_search_options": {"a": 1}}, "web_search_options",
         "not supported"),
        ("/v1/chat/completions", {"messages": HELLO, "top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ("/v1/chat/completions", {"messages": HELLO, "tool_choice": "required"}, "tool_choice", "tools"),
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 0}, "max_tokens", "at least one token"),
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": -1}, "max_tokens", "equal to 0"),
        ("/v1/chat/completions", {"messages": HELLO, "max_completion_tokens": -1}, "max_completion_tokens",
         "equal to 0"),
        ("/v1/completions", {"prompt": "x", "max_tokens": -1}, "max_tokens", "equal to 0"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
            "text",
        ),
        ("/v1/chat/completions", {"messages": HELLO, "internals": {"layers": [2]}}, "internals", "0 to 1"),
        (
            "/v1/chat/completions",
            {"messages": HELLO, "response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing",
        ),
        (
            "/v1/chat/completions",
            {"messages": HELLO, "response_format": {"type": "regex", "regex": "("}},
            "response_format",
            "unclosed",
        ),
        (
            "/v1/chat/completions",
            {"messages": HELLO, "tools": [LOOK], "tool_choice": NAMED},
            "tool_choice",
            "not among the tools",
        ),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a " * 9000}]}, "messages", "819"),
        ("/v1/completions", {"prompt": "a " * 9000, "max_tokens": None}, "prompt", "8192"),
        ("/v1/embeddings", {"input": "x"}, "pooling", "^two-layers is a decoder"),
        ("/v1/embeddings", {"input": [], "pooling": "mean"}, "input", "input is empty"),
        ("/v1/embeddings", {"input": ["a", ""], "pooling": "mean"}, "input", "no token"),
        ("/v1/trace",
         {"text": "x", "values": ["out"], "edits": [{"kind": "ablate", "layer": 1, "part": "nose"}]},
         "edits[0].part", "Input should be"),
        ("/v1/responses", {"input": []}, "input", "at least 1"),
        ("/v1/responses", {"input": "a " * 9000}, "input", "8192"),
        ("/v1/responses", {"input": "x", "text": {"format": {"type": "regex", "regex": "("}}}, "text.format",
         "unclosed"),
        ("/v1/responses", {"input": "x", "truncation": "auto"}, "truncation", "disabled"),
        ("/v1/responses", {"input": "x", "tools": [{"type": "web_search"}]}, "tools", "'web_search' is"),
        ("/v1/responses", {"input": "x", "tools": [LOOK]}, "tools[0].function", "not supported"),
        ("/v1/responses", {"input": "x", "prompt": {"id": "y"}}, "prompt", "not supported"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(
    server: Server, path: str, body: Any, param: str | None, sentence: str
) -> None:
    error = refusal(server.post(path, body))
    assert error["param"] == param, error
    assert re.search(sentence, error["message"]), error
    assert error["type"] == "invalid_request_error"


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(server: Server) -> None:
    error = refusal(server.post("/v1/completions", {"prompt": [5] * 8192, "max_tokens": 1}))
    assert (
        error["code"] == "context_length_exceeded"
        and "8192" in error["message"]
        and "8193" in error["message"]
    )
    error = refusal(
        server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x " * 9000}]})
    )
    assert error["code"] == "context_length_exceeded" and "8192" in error["message"]


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"null", b"[]", b'"x"', b"{" * 100_000, b"[" * 100_000, b'{"prompt": NaN}', b"\xff\xfe",
        b'{"prompt": "\\ud800"}', b'{"\\ud800": 1, "prompt": "x"}', b'{"prompt": "x", "max_tokens": 1e999}',
        b'{"prompt": "x", "seed": 99999999999999999999999999}', b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_bodies_that_are_no_request(server: Server, raw: bytes) -> None:
    answer = serving.httpx.post(
        server.url + "/v1/completions", content=raw, headers={"content-type": "application/json"}, timeout=30
    )
    refusal(answer)


def test_paths_and_methods_that_are_not_there(server: Server) -> None:
    assert refusal(server.get("/v2/models"), 404)["code"] == "not_found"
    assert refusal(server.get("/v1/chat/completions"), 405)["code"] == "method_not_allowed"
    assert serving.httpx.head(server.url + "/v1/chat/completions").status_code == 405
    assert serving.httpx.head(server.url + "/v2/models").status_code == 404
    for path in ("/v1/models/../../etc/passwd", "/v1/models/%2e%2e%2fetc%2fpasswd", "/v1/models//etc/passwd"):
        assert "passwd" not in server.get(path).text or server.get(path).status_code == 404


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models", f"/v1/models/{NAME}", "/openapi.json"])
def test_head_tells_what_get_does_but_the_body(server: Server, path: str) -> None:
    asked, got = serving.httpx.head(server.url + path), server.get(path)
    assert (asked.status_code, asked.content) == (200, b"")
    for name in ("content-type", "x-content-type-options", "cache-control"):
        assert asked.headers[name] == got.headers[name]
    if path != "/metrics":
        assert asked.headers["content-length"] == got.headers["content-length"] != "0"
    document = server.get("/openapi.json").json()["paths"]
    assert all(set(operations) <= {"get", "post", "delete"} for operations in document.values())


# ---- leaving, metrics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_away_is_not_answered_on(server: Server, stream: bool) -> None:
    scheduler = server.service.scheduler
    assert scheduler is not None
    before = scheduler.stats().cancelled
    body = json.dumps({"prompt": "x", "max_tokens": 4000, "ignore_eos": True, "stream": stream}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as gone:
        gone.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        until(lambda: scheduler.stats().running > 0)
    until(lambda: scheduler.stats().running == 0)
    assert scheduler.stats().cancelled == before + 1


def until(true: Any) -> None:
    """Waits, at most half a minute."""
    for _ in range(3000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to pass")


def test_metrics_count(server: Server) -> None:
    server.post("/v1/completions", {"prompt": "x", "max_tokens": 3})
    for path in ("/v1/models/a", "/v1/models/b", "/made-up"):  # however many are asked for, lines do not grow
        server.get(path)
    page = server.get("/metrics").text
    assert 'path="/v1/models/{model:path}",status="404"' in page and 'path="other",status="404"' in page
    assert "made-up" not in page and "/v1/models/a" not in page
    assert f'cutaway_requests_total{{model="{NAME}",path="/v1/completions",status="200"}}' in page
    assert re.search(r"^cutaway_generated_tokens_total{.*} [1-9]", page, re.M)
    assert "cutaway_time_to_first_token_seconds_bucket" in page
    assert server.get("/health").json() == {"status": "ok"}


def test_internals_come_with_the_tokens(server: Server) -> None:
    body = {
        "prompt": "The capital of",
        "max_tokens": 3,
        "internals": {"layers": [1], "lens": 2},
        "temperature": 0,
    }
    answer = server.post("/v1/completions", body).json()["choices"][0]
    plain = server.post("/v1/completions", {k: v for k, v in body.items() if k != "internals"}).json()[
        "choices"
    ][0]
    assert answer["text"] == plain["text"] and "internals" not in plain
    assert len(answer["internals"]) == 3
    for token in answer["internals"]:
        (layer,) = token["layers"]
        assert layer["layer"] == 1 and len(layer["attention"]) == 9 and len(layer["lens"]) == 2
    assert (
        answer["internals"][0]["layers"][0]["lens"][0]["id"] == answer["internals"][0]["id"]
    )  # the last layer's guess
