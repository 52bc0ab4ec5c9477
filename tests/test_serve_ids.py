"""Prompts and answers by their exact ids: what a chat returns, goes on with, and what a trace reads."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cutaway.generate.tool_calls.thoughts import Marks
from cutaway.lm import LanguageModel
from tests import serving
from tests.serving import Server

from cutaway.serve import prompts  # isort: skip
from cutaway.serve.api_error import APIError  # isort: skip
from cutaway.serve.openai.schema import ChatCompletionRequest  # isort: skip

HELLO = [{"role": "user", "content": "Hello there"}]
GREEDY: dict[str, Any] = {"messages": HELLO, "temperature": 0, "max_tokens": 8, "return_token_ids": True}
THINKING = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content.split('</think>')[-1] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving.running(serving.model(), trace_tokens=100) as server:
        yield server


@pytest.fixture(scope="module")
def thinking() -> Iterator[Server]:
    lm = serving.model()
    with serving.running(LanguageModel(replace(lm.checkpoint, chat_template=THINKING))) as server:
        yield server


def chat(server: Server, **more: Any) -> dict[str, Any]:
    answer = server.post("/v1/chat/completions", GREEDY | more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(server: Server, path: str, body: dict[str, Any]) -> str:
    answer = server.post(path, body)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]["message"]


def split(lm: Any, text: str) -> list[int]:
    """A text's ids letter by letter: no tokenizer cuts it so."""
    return [id for letter in text for id in lm.tokenizer.encode(letter)]


def test_a_chat_returns_its_ids_whole_and_streamed(server: Server) -> None:
    lm = server.service.lm
    scored = {"logprobs": True, "top_logprobs": 2}
    answer = chat(server, **scored)
    (choice,) = answer["choices"]
    assert answer["prompt_token_ids"] == lm.chat_ids(HELLO)
    assert lm.tokenizer.decode(choice["token_ids"]) == choice["message"]["content"]
    entries = choice["logprobs"]["content"]
    assert [one["id"] for one in entries] == choice["token_ids"]
    for entry in entries:
        for one in (entry, *entry["top_logprobs"]):
            assert list(lm.tokenizer.token_bytes(one["id"])) == one["bytes"]
    lines = server.post("/v1/chat/completions", GREEDY | scored | {"stream": True}).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert [event.get("prompt_token_ids") for event in events[:2]] == [answer["prompt_token_ids"], None]
    ids = [id for event in events for id in event["choices"][0].get("token_ids", ())]
    assert ids == choice["token_ids"]
    plain = chat(server, return_token_ids=False, **scored)
    assert "prompt_token_ids" not in plain and "token_ids" not in plain["choices"][0]
    assert "id" not in plain["choices"][0]["logprobs"]["content"][0]


@pytest.mark.parametrize("stream", [False, True])
def test_the_end_token_is_among_an_answers_ids(server: Server, stream: bool) -> None:
    (end,) = server.service.lm.tokenizer.eos_ids[:1]
    body = GREEDY | {"logit_bias": {str(end): 100}, "logprobs": True, "stream": stream}
    text = server.post("/v1/chat/completions", body).text
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if '"choices"' in line]
    choices = [event["choices"][0] for event in events]
    assert [id for one in choices for id in one.get("token_ids", ())] == [end]
    scored = [one["id"] for choice in choices if choice["logprobs"] for one in choice["logprobs"]["content"]]
    assert scored == [end] and choices[-1]["finish_reason"] == "stop"


def test_an_answer_goes_on_with_exactly_the_ids_given(server: Server) -> None:
    lm = server.service.lm
    whole = chat(server)["choices"][0]["token_ids"]
    rest = chat(server, continue_token_ids=whole[:3], max_tokens=5)
    assert rest["choices"][0]["token_ids"] == whole[3:]
    assert rest["prompt_token_ids"] == [*lm.chat_ids(HELLO), *whole[:3]]
    letters = split(lm, "Certainly")
    assert letters != lm.tokenizer.encode("Certainly")
    read = chat(server, continue_token_ids=letters)
    assert read["prompt_token_ids"] == [*lm.chat_ids(HELLO), *letters]
    by_ids = {"prompt": read["prompt_token_ids"], "temperature": 0, "max_tokens": 8}
    truth = server.post("/v1/completions", by_ids).json()["choices"][0]["text"]
    assert read["choices"][0]["message"]["content"] == truth


def test_what_is_given_and_the_answer_fit_the_schema_together(server: Server) -> None:
    schema = {"type": "object", "properties": {"b": {"const": 1}}, "required": ["b"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    more = {"response_format": form, "max_tokens": 40, "temperature": 1}
    answer = chat(server, continue_token_ids=split(server.service.lm, '{"b'), **more)
    assert json.loads('{"b' + answer["choices"][0]["message"]["content"]) == {"b": 1}


def test_a_thought_goes_on_where_the_ids_end_in_one(thinking: Server) -> None:
    def message(begun: str, **more: Any) -> dict[str, Any]:
        ids = split(thinking.service.lm, begun)
        return chat(thinking, continue_token_ids=ids, **more)["choices"][0]["message"]

    inside = message("Hm, so")
    assert inside["content"] == "" and inside["reasoning_content"]
    after = message("Hm.</think>\n\nIt")
    assert after["content"] and "reasoning_content" not in after
    end = message("Hm.</thi", response_format={"type": "regex", "regex": "Yes"}, thinking_token_budget=0)
    assert end["content"] == "Yes"
    shaped = message("Hm.</think>Ye", response_format={"type": "regex", "regex": "Yes"})
    assert shaped["content"] == "s" and "reasoning_content" not in shaped


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"continue_token_ids": [504, 2]}, "continue_token_ids[1] is <|im_end|>, a control token"),
        ({"continue_token_ids": [504, 0]}, "continue_token_ids[1] is <|endoftext|>, a control token"),
        ({"continue_token_ids": [60_000]}, "The prompt's id 60000"),
        ({"continue_token_ids": [504], "continue_final_message": True}, "leave out continue_final_message"),
        ({"continue_token_ids": [504], "add_generation_prompt": False}, "leave out continue_final_message"),
        ({"continue_token_ids": [504] * 9000}, "maximum context length"),
        ({"continue_token_ids": "x"}, "continue_token_ids"),
    ],
)
def test_what_an_answer_cannot_go_on_with_is_refused(
    server: Server, more: dict[str, Any], sentence: str
) -> None:
    assert sentence in refused(server, "/v1/chat/completions", GREEDY | more)


def test_the_marks_of_a_thought_may_be_among_the_ids(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are control tokens: an answer writes them itself, and no turn ends or begins by them."""
    monkeypatch.setattr(prompts, "find_marks", lambda _: Marks("<repo_name>", "<reponame>"))

    def asked(*ids: int) -> list[int]:
        body = ChatCompletionRequest.model_validate({"messages": HELLO, "continue_token_ids": list(ids)})
        return prompts.going_on(server.service, body)

    assert asked(3, 504, 4) == [3, 504, 4]
    with pytest.raises(APIError, match=r"continue_token_ids\[3\] is <\|im_start\|>, a control token"):
        asked(3, 504, 4, 1)


def test_a_trace_reads_exactly_the_ids_given(server: Server) -> None:
    lm = server.service.lm
    answer = chat(server)
    ids = [*answer["prompt_token_ids"], *split(lm, "Certainly")]
    for body in ({"values": ["embed"], "positions": [0]}, {"format": "page"}):
        made = server.post("/v1/trace", {"prompt_token_ids": ids} | body)
        assert made.status_code == 200, made.text
        if "values" in body:
            assert [one["id"] for one in made.json()["tokens"]] == ids
    next_id = answer["choices"][0]["token_ids"][0]
    asked = {"prompt_token_ids": answer["prompt_token_ids"], "values": ["embed"], "positions": [0]}
    assert server.post("/v1/trace", asked).json()["next"][0]["id"] == next_id
    for more, sentence in (
        ({"text": "Hi"}, "Give the prompt once"),
        ({"messages": HELLO}, "Give the prompt once"),
        ({"prompt_token_ids": [60_000]}, "id 60000 at position 0"),
        ({"prompt_token_ids": [504] * 101}, "at most 100"),
    ):
        assert sentence in refused(server, "/v1/trace", asked | more)
