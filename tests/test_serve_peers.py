"""What clients of other servers ask of this one, in the words and shapes of those servers."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from tests import serving
from tests.serving import NAME, Server

anthropic = pytest.importorskip("anthropic")
ollama = pytest.importorskip("ollama")
openai = pytest.importorskip("openai")

HELLO = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving.running(serving.model()) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def claude(server: Server) -> Any:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def llama(server: Server) -> Iterator[Any]:
    client = ollama.Client(host=server.url)
    yield client
    client._client.close()


def words(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


# ---- an answer that goes on with the last message ----------------------------------------------------------

BEGUN = 'The list: {"a": [1,'
OPEN = [*HELLO, {"role": "assistant", "content": BEGUN}]


def left_open(server: Server, text: str = BEGUN) -> list[int]:
    """The ids of HELLO and of an answer that begins so, as SmolLM2's template writes them."""
    lm = server.service.lm
    return [*lm.chat_ids(HELLO), *lm.tokenizer.encode(text)]


def test_a_last_message_is_continued_in_every_api(
    server: Server, client: Any, claude: Any, llama: Any
) -> None:
    """Anthropic and Ollama go on with an assistant's last message, OpenAI's clients ask for it as vLLM's."""
    ids = left_open(server)
    raw = {"prompt": ids, "max_tokens": 9, "temperature": 0}
    truth = server.post("/v1/completions", raw).json()
    text = truth["choices"][0]["text"]
    sampling: dict[str, Any] = {"model": NAME, "max_tokens": 9}
    going = {"continue_final_message": True, "add_generation_prompt": False}
    chat = client.chat.completions.create(**sampling, messages=OPEN, temperature=0, extra_body=going)
    assert chat.choices[0].message.content == text and chat.usage.prompt_tokens == len(ids)
    zero = {"extra_body": {"temperature": 0}}
    message = claude.messages.create(**sampling, messages=OPEN, **zero)
    assert message.content[0].text == text
    with claude.messages.stream(**sampling, messages=OPEN, **zero) as events:
        assert events.get_final_text() == text
    assert claude.messages.count_tokens(model=NAME, messages=OPEN).input_tokens == len(ids)
    options = {"temperature": 0, "num_predict": 9}
    answer = llama.chat(NAME, messages=OPEN, options=options)
    assert answer.message.content == text and answer.prompt_eval_count == len(ids)
    counted = server.post("/tokenize", {"messages": OPEN, **going}).json()
    assert counted["tokens"] == ids
    assert server.post("/v1/chat/count", {"messages": OPEN, **going}).json()["tokens"] == len(ids)


def test_without_it_a_new_answer_begins(server: Server, claude: Any) -> None:
    lm = server.service.lm
    new = server.post("/tokenize", {"messages": OPEN}).json()["tokens"]
    assert new == lm.chat_ids(OPEN)
    bare = server.post("/tokenize", {"messages": OPEN, "add_generation_prompt": False}).json()["tokens"]
    assert new[: len(bare)] == bare and lm.tokenizer.decode(new[len(bare) :]) == "<|im_start|>assistant\n"
    empty = [*HELLO, {"role": "assistant", "content": ""}]
    assert claude.messages.count_tokens(model=NAME, messages=empty).input_tokens == len(lm.chat_ids(HELLO))


PAIR = {
    "type": "object",
    "properties": {"a": {"type": "string"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
}


@pytest.mark.parametrize("begun", ["{", '{"a": "x', '{"a": "x", "b": 1'])
def test_what_is_continued_and_the_answer_fit_the_schema_together(server: Server, begun: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": PAIR}}
    body = {"messages": [*HELLO, {"role": "assistant", "content": begun}], "continue_final_message": True}
    for seed in range(2):
        more = {"response_format": form, "max_tokens": 40, "seed": seed, "n": 2}
        answer = server.post("/v1/chat/completions", body | more).json()
        for choice in answer["choices"]:
            assert choice["finish_reason"] == "stop"
            jsonschema.validate(json.loads(begun + choice["message"]["content"]), PAIR)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"messages": HELLO}, "Only an assistant's message with a text"),
        ({"response_format": {"type": "json_object"}}, "does not begin what the grammar asks for"),
        ({"guided_regex": "The list: .{3}"}, "does not begin what the grammar asks for"),
        ({"guided_choice": [BEGUN]}, "nothing can follow it"),
        (
            {"tools": [{"type": "function", "function": {"name": "x"}}], "tool_choice": "required"},
            "is no call: use tool_choice 'auto'",
        ),
        ({"chat_template_kwargs": {"continue_final_message": True}}, "not the request's to set"),
    ],
)
def test_what_cannot_be_continued_is_refused(server: Server, more: dict[str, Any], sentence: str) -> None:
    body = {"messages": OPEN, "continue_final_message": True, "max_tokens": 4, **more}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 400 and sentence in answer.json()["error"]["message"], answer.text


# ---- a prompt that does not fit ----------------------------------------------------------------------------


def test_a_long_prompt_is_refused_in_the_words_that_clients_look_for(
    server: Server, client: Any, claude: Any
) -> None:
    """LiteLLM and LangChain tell by these words that the prompt is to be shortened."""
    context = server.service.context
    long = [{"role": "user", "content": "x " * context}]
    with pytest.raises(
        openai.BadRequestError, match=f"This model's maximum context length is {context} "
    ) as no:
        client.chat.completions.create(model=NAME, messages=long, max_tokens=5)
    assert no.value.code == "context_length_exceeded" and "Please reduce the length of the messages." in str(
        no.value
    )
    with pytest.raises(openai.BadRequestError, match=r"\(8192 in the prompt, 1 in the completion\)"):
        client.completions.create(model=NAME, prompt=[5] * context, max_tokens=5)
    with pytest.raises(openai.BadRequestError, match=r"maximum context length is .* in the messages"):
        client.responses.create(model=NAME, input="x " * context)
    with pytest.raises(openai.BadRequestError, match=r"maximum context length is .* in the input, 0 in the"):
        client.embeddings.create(model=NAME, input=[[5] * (context + 1)], extra_body={"pooling": "mean"})
    tokens = len(server.service.lm.chat_ids(long))
    sentence = rf"prompt is too long: {tokens} tokens > {context - 1} maximum"
    with pytest.raises(anthropic.BadRequestError, match=sentence):
        claude.messages.create(model=NAME, messages=long, max_tokens=5)
