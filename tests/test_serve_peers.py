"""What clients of other servers ask of this one, in the words and shapes of those servers."""

import json
import math
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests import serving
from tests.serving import NAME, Server

from cutaway.serve import infill  # isort: skip

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


# ---- keywords of a schema that nothing reads ---------------------------------------------------------------

BASE64 = {"type": "string", "contentEncoding": "base64", "maxLength": 8}
SLIP = {"type": "object", "properties": {"a": BASE64}, "requried": ["a"], "additionalProperties": False}


@pytest.mark.parametrize("stream", [False, True])
def test_a_schemas_unread_keywords_are_warned_of(server: Server, claude: Any, stream: bool) -> None:
    spec = {"name": "x", "schema": SLIP}
    body = {"messages": HELLO, "max_tokens": 20, "stream": stream}
    answer = server.post(
        "/v1/chat/completions", body | {"response_format": {"type": "json_schema", "json_schema": spec}}
    )
    assert "'contentEncoding', 'requried' (is it 'required'?) of the schema: no keyword" in answer.text
    tool = {"type": "function", "function": {"name": "x", "parameters": SLIP}}
    called = server.post("/v1/chat/completions", body | {"tools": [tool], "tool_choice": "required"})
    assert "of x's schema: no keyword that is held to or checked" in called.text
    strict = {"type": "json_schema", "json_schema": spec | {"strict": True}}
    tool = {"type": "function", "function": {"name": "x", "parameters": SLIP, "strict": True}}
    for more in {"response_format": strict}, {"tools": [tool]}:
        refused = server.post("/v1/chat/completions", body | more)
        assert refused.status_code == 400 and "is it 'required'?" in refused.json()["error"]["message"]
    form = {"type": "json_schema", "name": "x", "schema": SLIP, "strict": True}
    assert server.post("/v1/responses", {"input": "x", "text": {"format": form}}).status_code == 400


# ---- Anthropic's and OpenAI's ------------------------------------------------------------------------------


def test_a_message_says_how_long_it_may_be(server: Server) -> None:
    error = server.post("/v1/messages", {"messages": HELLO}).json()["error"]
    assert error["type"] == "invalid_request_error" and error["message"] == "max_tokens is missing"


DOCUMENT = "<document>\n<title>Notes</title>\n<context>Old.</context>\nRome is big.\n</document>"
RESULT = "<search_result>\n<source>https://a.b</source>\n<title>A</title>\nOne.\nTwo.\n</search_result>"


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (
            {
                "type": "document",
                "source": {"type": "text", "media_type": "text/plain", "data": "Rome is big."},
                "title": "Notes",
                "context": "Old.",
                "citations": {"enabled": False},
            },
            DOCUMENT,
        ),
        (
            {
                "type": "document",
                "source": {"type": "content", "content": [{"type": "text", "text": "Rome is big."}]},
                "title": "Notes",
                "context": "Old.",
            },
            DOCUMENT,
        ),
        (
            {
                "type": "search_result",
                "source": "https://a.b",
                "title": "A",
                "content": [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}],
            },
            RESULT,
        ),
    ],
)
def test_documents_and_search_results_are_read(server: Server, claude: Any, block: Any, text: str) -> None:
    """In a user's message, and in a tool's result."""
    lm = server.service.lm
    asked: Any = [{"role": "user", "content": [block, {"type": "text", "text": "Big?"}]}]
    counted = claude.messages.count_tokens(model=NAME, messages=asked).input_tokens
    assert counted == len(lm.chat_ids([{"role": "user", "content": f"{text}\nBig?"}]))
    used = {"type": "tool_use", "id": "t1", "name": "look", "input": {}}
    asked = [*HELLO, {"role": "assistant", "content": [used]}]
    asked += [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [block]}]}]
    counted = claude.messages.count_tokens(model=NAME, messages=asked).input_tokens
    asked[-1]["content"][0]["content"] = text
    assert counted == claude.messages.count_tokens(model=NAME, messages=asked).input_tokens


def test_a_document_that_is_no_text_is_refused(server: Server) -> None:
    for source in ({"type": "base64", "media_type": "application/pdf", "data": "x"}, {"type": "url"}, None):
        block = {"type": "document", "source": source}
        asked = {"messages": [{"role": "user", "content": [block]}], "max_tokens": 3}
        answer = server.post("/v1/messages", asked)
        assert answer.status_code == 400 and "source" in answer.json()["error"]["message"], answer.text


def test_obfuscated_events_have_lengths_that_tell_little(server: Server, client: Any) -> None:
    asked: dict[str, Any] = {"model": NAME, "max_tokens": 6, "stream": True}
    hiding = {"stream_options": {"include_obfuscation": True}}
    for given in (
        client.chat.completions.create(**asked, messages=HELLO, **hiding),
        client.completions.create(**asked, prompt="Hi", **hiding),
    ):
        events = [event.model_dump(exclude_unset=True) for event in given]
        assert len(events) >= 6 and all("obfuscation" in event for event in events)
    body = {"messages": HELLO, "max_tokens": 6, "stream": True, "guided_regex": "\u00e9[a-z ]{3}\u2603.*"}
    lines = server.post("/v1/chat/completions", body | hiding).text.splitlines()
    assert len({len(line.encode()) % 64 for line in lines if line.startswith("data: {")}) == 1
    plain = client.chat.completions.create(**asked, messages=HELLO)
    assert not any("obfuscation" in event.model_dump(exclude_unset=True) for event in plain)


def test_what_looks_into_the_web_is_refused_however_empty(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="web_search_options is not supported here"):
        client.chat.completions.create(model=NAME, messages=HELLO, web_search_options={})


def test_a_responses_tokens_are_counted(server: Server, client: Any) -> None:
    counted = client.responses.input_tokens.count(model=NAME, input="Hello there", instructions="Be kind.")
    messages = [{"role": "system", "content": "Be kind."}, *HELLO]
    assert counted.object == "response.input_tokens"
    assert counted.input_tokens == len(server.service.lm.chat_ids(messages))


# ---- Ollama's ----------------------------------------------------------------------------------------------


def test_ollama_takes_raw_prompts_and_contexts(server: Server, llama: Any) -> None:
    lm, zero = server.service.lm, {"temperature": 0, "num_predict": 5}
    truth = server.post("/v1/completions", {"prompt": "Once upon", "max_tokens": 5, "temperature": 0}).json()
    raw = llama.generate(NAME, "Once upon", raw=True, options=zero)
    assert raw.response == truth["choices"][0]["text"] and raw.context is None
    first = llama.generate(NAME, "Hello there", options=zero)
    assert list(first.context[: first.prompt_eval_count]) == lm.chat_ids(HELLO)
    assert len(first.context) == first.prompt_eval_count + first.eval_count
    second = llama.generate(NAME, "And?", context=first.context, options=zero)
    more = [*first.context, *lm.chat_ids([{"role": "user", "content": "And?"}])]
    assert list(second.context[: second.prompt_eval_count]) == more
    forged = server.post("/api/generate", {"prompt": "<|im_end|>", "raw": True, "options": zero})
    spelt = len(lm.tokenizer.encode("<|im_end|>"))
    assert json.loads(forged.text.splitlines()[-1])["prompt_eval_count"] == spelt > 1
    refused = server.post("/api/generate", {"prompt": "x", "raw": True, "system": "y"})
    assert refused.status_code == 400 and "without system" in refused.json()["error"]


def test_ollama_is_running_and_tells_sizes(server: Server, llama: Any) -> None:
    assert server.get("/").text == "Ollama is running"
    lm = server.service.lm
    weights = lm.config.weights()
    count = sum(math.prod(shape) for shape in weights.values())
    (listed, *_), (running, *_) = llama.list().models, llama.ps().models
    stored = sum(lm.checkpoint.tensors.later(name).nbytes for name in weights)
    assert listed.size == running.size == stored > 0
    assert listed.digest == running.digest and len(listed.digest) == 64
    assert listed.details.parameter_size == f"{count / 1e6:.2f}M"
    assert listed.details.quantization_level in ("F32", "F16", "BF16", "Q8_0")
    shown = llama.show(NAME)
    assert shown.modelinfo["general.parameter_count"] == count
    assert shown.details == listed.details


def test_ollamas_former_embeddings(server: Server, llama: Any) -> None:
    vector = server.post("/api/embeddings", {"prompt": "hello", "pooling": "mean"}).json()["embedding"]
    assert vector == server.post("/api/embed", {"input": "hello", "pooling": "mean"}).json()["embeddings"][0]


# ---- llama-server's and vLLM's -----------------------------------------------------------------------------


def test_llama_servers_completion(server: Server) -> None:
    asked = {"prompt": "Once upon", "temperature": 0}
    truth = server.post("/v1/completions", asked | {"max_tokens": 6, "logprobs": 2}).json()
    body = asked | {"n_predict": 6, "n_probs": 2, "return_tokens": True, "cache_prompt": True}
    made = server.post("/completion", body).json()
    assert made["content"] == truth["choices"][0]["text"] and made["stop_type"] == "limit" and made["stop"]
    assert made["tokens_predicted"] == len(made["tokens"]) == 6
    assert made["tokens_evaluated"] == truth["usage"]["prompt_tokens"] and made["prompt"] == "Once upon"
    (first, *_) = made["completion_probabilities"]
    assert first["id"] == made["tokens"][0] and len(first["top_logprobs"]) == 2
    assert first["logprob"] == truth["choices"][0]["logprobs"]["token_logprobs"][0]
    assert {"prompt_n", "prompt_ms", "predicted_n", "predicted_per_second"} <= set(made["timings"])
    stopped = server.post("/completion", body | {"stop": [made["content"][3:6]]}).json()
    assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", made["content"][3:6])
    banned = server.post("/completion", body | {"logit_bias": [[first["id"], False]]}).json()
    assert banned["tokens"][0] != first["id"]
    answer = server.post("/completion", body | {"stream": True})
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert "".join(event["content"] for event in events) == made["content"]
    assert [event["stop"] for event in events] == [*[False] * (len(events) - 1), True]
    grammar = server.post("/completion", {"prompt": "x", "grammar": 'root ::= "yes" | "no"'}).json()
    assert grammar["content"] in ("yes", "no") and grammar["stop_type"] == "eos"


def test_a_gap_is_filled_in_where_the_vocabulary_has_marks(
    server: Server, llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolLM2's has none, so three of its other control tokens stand for them."""
    refused = [
        server.post("/infill", {"input_prefix": "a", "input_suffix": "b"}),
        server.post("/v1/completions", {"prompt": "a", "suffix": "b"}),
        server.post("/api/generate", {"prompt": "a", "suffix": "b"}),
    ]
    assert all(one.status_code == 400 and "has no marks of a gap" in one.text for one in refused)
    marks = ("<repo_name>", "<file_sep>", "<filename>")
    monkeypatch.setattr(infill, "MARKS", [("<none>",), marks])
    tokenizer = server.service.lm.tokenizer
    before, after, between = (tokenizer.special[mark] for mark in marks)
    ids = [before, *tokenizer.encode("def a("), after, *tokenizer.encode("): pass"), between]
    raw = {"max_tokens": 5, "temperature": 0}
    truth = server.post("/v1/completions", raw | {"prompt": ids}).json()["choices"][0]["text"]
    given = {"prompt": "def a(", "suffix": "): pass"}
    assert server.post("/v1/completions", raw | given).json()["choices"][0]["text"] == truth
    made = server.post(
        "/infill", {"input_prefix": "def a(", "input_suffix": "): pass", "n_predict": 5, "temperature": 0}
    )
    assert made.json()["content"] == truth
    options = {"temperature": 0, "num_predict": 5}
    assert llama.generate(NAME, **given, options=options).response == truth
    extra = [{"filename": "b.py", "text": "x = 1"}]
    asked = {"input_prefix": "def a(", "input_suffix": ")", "input_extra": extra, "prompt": "self"}
    read = server.post("/infill", asked | {"n_predict": 1}).json()["tokens_evaluated"]
    spelt = ("b.py\nx = 1\ndef a(", ")", "self")
    assert read == 3 + sum(len(tokenizer.encode(text)) for text in spelt)
    assert server.post("/v1/completions", given | {"echo": True}).status_code == 400


def test_what_llama_servers_and_vllms_clients_ask(server: Server) -> None:
    lm = server.service.lm
    prompt = server.post("/apply-template", {"messages": HELLO}).json()["prompt"]
    assert prompt == lm.tokenizer.decode(lm.chat_ids(HELLO)) and prompt.endswith("assistant\n")
    open_ = server.post("/apply-template", {"messages": OPEN, "continue_final_message": True}).json()
    assert open_["prompt"].endswith(BEGUN)
    slots = server.get("/slots").json()
    assert len(slots) == server.service.limits.max_sequences
    assert slots[0] == {"id": 0, "n_ctx": lm.context, "speculative": False, "is_processing": False}
    assert server.get("/ping").status_code == 200 and server.get("/load").json() == {"server_load": 0}


def test_texts_are_scored_as_their_vectors_say(server: Server) -> None:
    texts = ["a cat", "a dog", "the moon"]
    embedded = server.post("/v1/embeddings", {"input": texts, "pooling": "mean"}).json()["data"]
    vectors = [np.array(one["embedding"]) for one in embedded]
    body = {"text_1": texts[0], "text_2": texts[1:], "pooling": "mean", "model": NAME}
    made = server.post("/v1/score", body).json()
    assert [one["index"] for one in made["data"]] == [0, 1] and made["object"] == "list"
    assert [one["score"] for one in made["data"]] == pytest.approx([vectors[0] @ vectors[i] for i in (1, 2)])
    pairs = server.post("/score", body | {"text_1": texts[:2], "text_2": texts[1:]}).json()["data"]
    assert [one["score"] for one in pairs] == pytest.approx(
        [vectors[0] @ vectors[1], vectors[1] @ vectors[2]]
    )
    refused = server.post("/v1/score", body | {"text_1": texts})
    assert refused.status_code == 400 and "give one, or as many" in refused.text
