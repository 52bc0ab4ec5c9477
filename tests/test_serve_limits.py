"""What one client may cost another: bodies, work in threads, connections and the log, each within bounds."""

import asyncio
import io
import json
import logging
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from cutaway import helper
from cutaway.generate import constrain
from cutaway.tokenizer import chat as chats
from cutaway.tokenizer.chat import control_tokens
from tests import serving
from tests.serving import Server
from tests.waiting import wait_until

from cutaway.generate.batch.request import (  # isort: skip
    ContextFullError,
    QueueFullError,
    RequestCancelledError,
)
from cutaway.generate.batch.sequence import check_prompt  # isort: skip
from cutaway.serve import tokens  # isort: skip
from cutaway.serve import json_body, routes, validation  # isort: skip
from cutaway.serve.anthropic.schema import CountRequest  # isort: skip
from cutaway.serve.ollama.schema import ChatRequest  # isort: skip
from cutaway.serve.openai import schema  # isort: skip
from cutaway.serve.openai.responses_schema import ResponsesRequest  # isort: skip
from cutaway.serve.traces import TraceRequest  # isort: skip
from cutaway.serve.operations import bounded_log, lifecycle  # isort: skip
from cutaway.serve.operations.connections import Connections  # isort: skip
from cutaway.serve.api_error import APIError  # isort: skip
from cutaway.serve.json_body import json_response  # isort: skip
from cutaway.serve.work_pool import FairPool, check_stopped  # isort: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    connections = Connections(of_client=4, head_seconds=2.0)
    with serving.running(serving.model(), connections=connections, trace_tokens=20) as server:
        yield server


def chat(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (schema.CompletionRequest, {"prompt": [1] * 50_000 + ["x"]}),
        (schema.CompletionRequest, {"prompt": ["x"] * 100 + [1] * 50_000}),
        (schema.CompletionRequest, {"prompt": [["x"]] * 50_000}),
        (schema.CompletionRequest, {"prompt": "x", "stop": [1] * 50_000}),
        (schema.ChatCompletionRequest, chat("x") | {f"field {i}": 1 for i in range(50_000)}),
        (schema.ChatCompletionRequest, chat("x") | {"logit_bias": {str(i): "x" for i in range(50_000)}}),
        (schema.ChatCompletionRequest, {"messages": [{"role": "nobody"}] * 50_000}),
        (
            schema.ChatCompletionRequest,
            {"messages": [{"role": "user", "content": [{"type": "x"}] * 50_000}]},
        ),
        (ResponsesRequest, {"input": [{"role": "user", "content": [{"type": "x"}] * 50_000}]}),
        (TraceRequest, {"text": "x", "values": ["out"], "positions": ["x"] * 50_000}),
    ],
)
def test_a_large_wrong_body_has_few_errors(model: Any, body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as problem:
        model.model_validate(body)
    assert problem.value.error_count() <= 2
    with pytest.raises(APIError) as raised:
        validation.parse_body(model, json.dumps(body).encode())
    assert raised.value.status == 400 and len(str(raised.value)) < 400


class _Counted(list):
    """A list that counts how often its items are looked at."""

    looks = 0

    def __iter__(self) -> Iterator[Any]:
        type(self).looks += 1
        return super().__iter__()

    def __getitem__(self, at: Any) -> Any:
        type(self).looks += 1
        return super().__getitem__(at)


@pytest.mark.parametrize(
    ("model", "field", "most"),
    [
        (schema.ChatCompletionRequest, "messages", validation.MAX_MESSAGES),
        (tokens.ChatCountRequest, "messages", validation.MAX_MESSAGES),
        (CountRequest, "messages", validation.MAX_MESSAGES),
        (ChatRequest, "messages", validation.MAX_MESSAGES),
        (tokens.DetokenizeRequest, "ids", validation.MAX_IDS),
    ],
)
def test_a_long_list_is_refused_before_its_items_are_looked_at(model: Any, field: str, most: int) -> None:
    """Items are looked at without other threads getting a turn: of 40,000 messages for 60 ms."""
    items = _Counted(
        [{"role": "user", "content": "x"}] * (most + 1) if field == "messages" else [1] * (most + 1)
    )
    _Counted.looks = 0
    with pytest.raises(APIError, match=f"array too long: give at most {most:,}") as found:
        validation.checked(model, {field: items, "max_tokens": 1, "model": "m"}, validation.Leniency(True))
    assert found.value.param == field
    assert _Counted.looks == 0


def test_bodies_are_checked_away_from_the_event_loop(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    usual = routes.parse_body

    def noted(*arguments: Any) -> Any:
        threads.append(threading.current_thread().name)
        return usual(*arguments)

    monkeypatch.setattr(routes, "parse_body", noted)
    assert server.post("/tokenize", {"text": "x"}).status_code == 200
    assert threads and threads[0].startswith("cutaway-work")


def test_answers_in_pieces_are_json() -> None:
    arrays = {"a": np.arange(6000, dtype=np.float32).reshape(2, 3000), "b": np.zeros((0, 3))}
    raised = {"list": [1, "é\ud800", None, {}], "empty": [], "nested": arrays, "number": 1.5}
    wanted = json.loads(json.dumps(raised, default=lambda array: array.tolist()).replace("\\ud800", "?"))
    assert json.loads(json_response(raised).content) == wanted


def test_an_answer_of_many_values_is_written_in_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    dumps = json_body._dumps
    monkeypatch.setattr(json_body, "_dumps", lambda value: (calls.append(1), dumps(value))[1])
    many = json_body.NUMBERS * 10 + 3
    for item in (7, "\xfc", None, {"id": 1, "piece": "a"}):
        calls.clear()
        answer = {"tokens": [item] * many, "empty": [], "mixed": [1, [2, {"a": [np.float64(3)]}], item]}
        found = json.loads(json_response(answer).content)
        assert found == answer and len(calls) < 30


PIECE = 1 << 16  # bytes of a body of 2 MB that one call of C may work on while it holds Python's lock


def test_a_long_chat_is_rendered_in_short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, text, lines, pieces = serving.model(), "a ship " * 50_000, list[int](), list[int]()
    tokenizer, template = lm.tokenizer, "{% for one in messages %}<|im_start|>{{ one.content }}{% endfor %}"

    def counted(call: Any, size: Any) -> Any:
        return lambda *given, **more: (lines.append(size(given[0], found := call(*given, **more))), found)[1]

    def unpacking() -> Any:
        made = zlib.decompressobj()

        def decompress(packed: bytes, most: int = 0) -> bytes:
            pieces.append(len(found := made.decompress(packed, most)))
            tail.unconsumed_tail = made.unconsumed_tail
            return found

        tail = SimpleNamespace(decompress=decompress, unconsumed_tail=b"")
        return tail

    dumps, loads = (
        counted(json.dumps, lambda _, line: len(line)),
        counted(json.loads, lambda line, _: len(line)),
    )
    monkeypatch.setattr(helper, "json", SimpleNamespace(dumps=dumps, loads=loads))
    monkeypatch.setattr(control_tokens, "zlib", SimpleNamespace(decompressobj=unpacking))
    monkeypatch.setattr(control_tokens, "PIECE", PIECE)
    ids = chats.render([{"role": "user", "content": text}], template, tokenizer=tokenizer)
    assert len(ids) > len(text) // 8 and sum(pieces) > 8 * len(
        text
    )  # origins of the text and of a neutral one
    assert max(lines) <= PIECE and max(pieces) <= PIECE, (max(lines), max(pieces))


def test_what_goes_to_a_helper_comes_as_it_was() -> None:
    long = "\ud800\xfc\0" * helper.LONG
    value = {"a": [long, "\0", "\x000", "", None, 1.5, {"b": long[::-1]}], "\0": "short"}
    parts = helper.packed(value)
    assert helper._received(io.BytesIO(b"".join(parts))) == (value, sum(map(len, parts)))
    assert len(parts[0]) < 200 and helper._received(io.BytesIO(b"".join(parts)[:-1])) is None


def test_a_prompt_that_fills_the_context_is_refused_before_its_ids_are_looked_at() -> None:
    class Unread(list[int]):
        def __iter__(self) -> Any:
            raise AssertionError("the ids were looked at")

    lm = serving.model()
    with pytest.raises(ContextFullError, match=f"{lm.engine.max_context} ids"):
        check_prompt(Unread([1] * lm.engine.max_context), lm.tokenizer, lm.engine)


def test_a_clients_large_bodies_are_checked_one_at_a_time(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, free, begun = FairPool(4, "test", 16), threading.Event(), threading.Semaphore(0)

    def occupy() -> str:
        begun.release()
        return str(free.wait())

    async def work() -> None:
        first = [asyncio.create_task(pool.run("a", 60, occupy, large=True)) for _ in range(3)]
        await asyncio.sleep(0)
        assert await pool.run("b", 60, lambda: "b", large=True) == "b"
        assert begun.acquire(timeout=20) and not begun.acquire(blocking=False)
        free.set()
        assert await asyncio.gather(*first) == ["True"] * 3

    try:
        asyncio.run(work())
    finally:
        free.set()
    sizes, run = list[bool](), FairPool.run

    def noted(self: FairPool, *given: Any, large: bool = False) -> Any:
        sizes.append(large)
        return run(self, *given, large=large)

    monkeypatch.setattr(FairPool, "run", noted)
    for text in ("hi", "hi" * routes.LARGE):
        sizes.clear()
        server.post("/v1/chat/completions", chat(text) | {"max_tokens": 1})
        assert sizes[0] == (text != "hi")


def test_clients_take_turns_and_work_without_a_client_ends() -> None:
    pool, order = FairPool(1, "test", 8), []
    blocked, begun, stopped = threading.Event(), threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        blocked.wait()

    def endless() -> None:
        begun.set()
        try:
            while True:
                check_stopped()
        except RequestCancelledError:
            stopped.set()
            raise

    async def work() -> None:
        first = asyncio.create_task(pool.run("a", 60, block))
        await asyncio.to_thread(begun.wait)
        waiting = [asyncio.create_task(pool.run("a", 60, order.append, f"a{i}")) for i in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await pool.run("a", 60, order.append, "too many")
        waiting.append(asyncio.create_task(pool.run("b", 60, order.append, "b")))
        await asyncio.sleep(0)
        waiting.pop(1).cancel()
        await asyncio.sleep(0)
        blocked.set()
        await asyncio.gather(first, *waiting)
        assert order == ["a0", "b", "a2", "a3"]
        with pytest.raises(APIError, match="took more than"):
            await pool.run("a", 0.01, endless)
        await asyncio.to_thread(stopped.wait)
        begun.clear()
        stopped.clear()
        gone = asyncio.create_task(pool.run("a", 60, endless))
        await asyncio.to_thread(begun.wait)
        gone.cancel()
        await asyncio.to_thread(stopped.wait)

    try:
        asyncio.run(work())
    finally:
        blocked.set()  # else a thread of the pool would wait for ever where the test fails


def test_a_schemas_pattern_is_checked_in_linear_time() -> None:
    slow, text = "^(a+)+$", "a" * 5000 + "b"
    found = constrain.schema_error({"type": "string", "pattern": slow}, json.dumps(text))
    assert found is not None and "does not match" in found
    named = {"patternProperties": {slow: {"type": "integer"}}}
    assert constrain.schema_error(named, json.dumps({text: "x"})) is None
    assert "not of type" in (constrain.schema_error(named, json.dumps({"aa": "x"})) or "")


def test_a_patchs_text_keeps_to_the_limit_of_traces(server: Server) -> None:
    patch = {"kind": "patch", "layer": 0, "text": "x " * 100, "positions": [0]}
    answer = server.post("/v1/trace", {"text": "x", "values": ["out"], "edits": [patch]})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "edits[0].text"
    huge = {"kind": "add", "layer": 0, "vector": [1e308] * 576}
    answer = server.post("/v1/trace", {"text": "x", "values": ["out"], "edits": [huge]})
    assert answer.status_code == 400 and "beyond float32" in answer.text


def test_silent_connections_are_closed_and_never_keep_others_out(server: Server) -> None:
    port = int(server.url.rpartition(":")[2])
    silent = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(12)]
    try:
        assert server.get("/health").status_code == 200
        silent[-1].sendall(b"GET /health HTTP/1.1\r\nHost: ")  # and no more of it
        assert silent[-1].recv(100).startswith(b"HTTP/1.1 408")
    finally:
        for one in silent:
            one.close()


def test_a_body_that_breaks_off_is_refused_without_a_traceback(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "handlers", [caplog.handler])
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"  # no type: refused before its body is read
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=20) as broken:
        broken.sendall(head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
        assert broken.recv(1000).startswith(b"HTTP/1.1 400")
    time.sleep(0.2)
    assert not [record for record in caplog.records if record.exc_info]


def test_tools_that_are_nested_too_deep_are_the_clients_fault(server: Server) -> None:
    schema: dict[str, Any] = {}
    for _ in range(400):
        schema = {"type": "object", "properties": {"a": schema}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": tools}
    for path in ("/v1/chat/count", "/v1/chat/completions"):
        answer = server.post(path, body)
        assert answer.status_code == 400 and "nested more than 100 deep" in answer.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_that_cannot_be_followed_to_its_end_is_the_clients_fault(
    server: Server, stream: bool
) -> None:
    endless = {"type": "grammar", "grammar": "start: /a/ start"}
    body = {"prompt": "a", "max_tokens": 8, "response_format": endless, "stream": stream}
    answer = server.post("/v1/completions", body)
    assert "could not be followed on" in answer.text and "invalid_request_error" in answer.text
    assert answer.status_code == (200 if stream else 400)


def test_a_client_that_does_not_read_is_let_go() -> None:
    values = ["mlp.hidden", "out", "attention.q", "attention.k", "attention.v"]
    body = json.dumps({"text": "x " * 200, "values": values}).encode()
    head = b"POST /v1/trace HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connections = Connections(read_seconds=1.0)
    with (
        serving.running(serving.model(), connections=connections, trace_tokens=512) as server,
        socket.socket() as slow,
    ):
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        slow.sendall(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert slow.recv(12) == b"HTTP/1.1 200"
        wait_until(lambda: not len(connections), "the connection is closed")


def test_only_connections_without_a_request_give_way() -> None:
    def connection(address: str, waiting: bool) -> Any:
        transport = SimpleNamespace(abort=lambda: closed.append(address))
        return type("Connection", (), {"address": address, "waiting": waiting, "transport": transport})()

    closed: list[str] = []
    connections = Connections(most=4, of_client=3)
    assert all(connections.admit(connection("a", waiting=False)) for _ in range(3))
    assert not connections.admit(connection("a", waiting=True)) and not closed
    assert connections.admit(connection("b", waiting=True)) and len(connections) == 4
    assert not connections.admit(connection("c", waiting=True)) and not closed
    other = Connections(most=9, of_client=2)
    assert all(other.admit(connection("a", waiting=True)) for _ in range(5)) and closed == ["a"] * 3


def test_the_log_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    handler = bounded_log.BoundedHandler()
    monkeypatch.setattr(handler, "stream", written)
    for i in range(1000):
        handler.handle(logging.makeLogRecord({"name": "x", "msg": f"{i} \x1b[2J" + "long " * 5000}))
    text = written.getvalue()
    assert len(text) < 70 * 2500 and "\x1b" not in text and text.count("characters left out") == 60
    handler.handle(logging.makeLogRecord({"name": bounded_log.PROMPTS, "msg": "p" * 9000}))
    assert "p" * 9000 in written.getvalue()


def test_the_bound_socket_names_its_protocol() -> None:
    made = lifecycle.bound("127.0.0.1", 0)
    with made:
        assert made.proto == socket.IPPROTO_TCP  # which asyncio needs to set TCP_NODELAY


def test_a_text_of_many_tokens_is_not_listed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_IDS", 5)
    fits, longer = (server.post("/tokenize", {"content": text}) for text in ("a b", "a b c d e f g h i j"))
    assert fits.status_code == 200
    assert longer.status_code == 400 and "at most 5: send it in parts" in longer.text
