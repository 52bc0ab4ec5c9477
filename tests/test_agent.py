"""Tools: schemas of functions, the built-in ones, the loop on a scripted model, MCP servers good and bad."""

import io
import json
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from cutaway import store
from cutaway.agent.built_in_tools import built_in
from cutaway.agent.loop import Agent, Limits
from cutaway.agent.tool import ToolError, distinct, from_function
from cutaway.agent.tools import calculator
from cutaway.commands import chat as verb
from cutaway.commands.chat_tools import ToolOptions, checked
from cutaway.errors import OperationalError, UserError
from cutaway.evaluate import task_registry
from cutaway.generate.tool_calls import prompted
from cutaway.generate.tool_calls.parser import Call
from cutaway.lm import LanguageModel
from cutaway.sandbox import launcher
from tests import inputs, mcp_servers
from tests.serving import model

pytest.importorskip("mcp")

from cutaway.agent import mcp

ROOT = Path(__file__).parent.parent


def weather(place: str, unit: Literal["C", "F"] = "C", days: int | None = None) -> str:
    """The weather of a place.

    Makes it up.

    :param place: A town.
    """
    return f"{place}: 21 {unit}"


def served(kind: str, *more: str) -> str:
    return shlex.join([sys.executable, str(ROOT / "tests" / "mcp_servers.py"), kind, *more])


# ---- tools -------------------------------------------------------------------------------------------------


def route(stops: list[str]) -> str:
    """A route.

    :param stops: Towns.
    """
    return " ".join(stops)


def test_a_functions_hints_and_docstring_are_its_schema() -> None:
    tool = from_function(weather)
    assert (tool.name, tool.description) == ("weather", "The weather of a place.\nMakes it up.")
    properties = tool.parameters["properties"]
    assert properties["place"] == {"type": "string", "description": "A town."}
    assert properties["unit"] == {"enum": ["C", "F"], "type": "string", "default": "C"}
    assert tool.parameters["required"] == ["place"]
    assert tool.call({"place": "Bern"}) == "Bern: 21 C"
    for wrong in ({}, {"place": "Bern", "unit": "K"}, {"place": "Bern", "bogus": 1}):
        with pytest.raises(ToolError):
            tool.call(wrong)


def test_what_is_no_tool_is_refused() -> None:
    for wrong in (lambda x: x, [].append, lambda *a: a):
        with pytest.raises(UserError):
            from_function(wrong)
    with pytest.raises(UserError, match="two of the tools"):
        distinct([from_function(weather)] * 2)
    with pytest.raises(UserError, match="use calculator, clock"):
        built_in("browser", Path(), dict)


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2 + 3 * 4", "14"), ("(1 - 2) ** 3", "-1"), ("2^10", "1024"), ("sqrt(16) / 2", "2.0"), ("7 // 2", "3")],
)
def test_the_calculator_computes(expression: str, value: str) -> None:
    assert calculator.calculator(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["9**9**9", "(" * 300, "1/0", "__import__('os')", "'a' * 9", "x", "max(1, key=2)", "2**5000", "(-1)**.5"],
)
def test_the_calculator_refuses(expression: str) -> None:
    with pytest.raises(ToolError):
        calculator.calculator(expression)


def test_files_are_read_under_the_root_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "deep").mkdir(parents=True)
    (home / "deep" / "a.txt").write_text("".join(f"line {n}\n" for n in range(1, 251)))
    (home / ".secret").write_text("hidden")
    (tmp_path / "out.txt").write_text("outside")
    (home / "link.txt").symlink_to(tmp_path / "out.txt")
    tool = built_in("read", home, dict)
    text = tool.call({"path": "deep/a.txt", "first_line": 101})
    assert text.splitlines()[0] == "101: line 101" and text.endswith("200: line 200\n[250 lines in all]")
    for path in ("../out.txt", str(tmp_path / "out.txt"), "link.txt", ".secret", "deep", "no.txt", "a\0b"):
        with pytest.raises(ToolError):
            tool.call({"path": path})


def test_python_runs_in_the_sandbox() -> None:
    tool = built_in("python", Path(), dict)
    assert "landlock" in tool.note and "seccomp" in tool.note
    assert tool.call({"code": "print(6 * 7)"}) == "42\n"
    with pytest.raises(ToolError, match="FileNotFoundError"):
        tool.call({"code": "print(open('/etc/passwd').read())"})


def test_errors_and_output_of_python_show_neither_paths_nor_what_a_terminal_obeys() -> None:
    tool = built_in("python", Path(), dict)
    with pytest.raises(ToolError) as error:
        tool.call({"code": "import json\ndef f():\n    return json.loads('{')\nf()"})
    lines = [line.strip() for line in str(error.value).splitlines() if "File " in line]
    assert lines == ['File "<code>", line 4, in <module>', 'File "<code>", line 3, in f']
    assert "/" not in str(error.value)
    assert tool.call({"code": "print('\\x1b]0;title\\x07\\x1b[2J')"}) == "\\x1b]0;title\\x07\\x1b[2J\n"
    with pytest.raises(ToolError, match=r"\\x1b"):
        tool.call({"code": "raise ValueError('\\x1b[2J')"})


def test_python_is_refused_where_a_layer_is_missing_unless_it_may_be_unsafe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launcher, "LEFT_OUT", frozenset({"landlock"}))
    with pytest.raises(UserError, match="landlock: left out by a test"):
        built_in("python", Path(), dict)
    tool = built_in("python", Path(), dict, unsafe=True)
    assert tool.name == "python" and "UNSAFE, landlock does not hold" in tool.note
    assert tool.call({"code": "print(1)"}) == "1\n"
    with pytest.raises(UserError, match="landlock"):
        task_registry.find("humaneval", 1)
    with pytest.raises(UserError, match="--unsafe is about the python tool"):
        checked(ToolOptions(tools="clock", unsafe=True))
    assert checked(ToolOptions(tools="clock, python", unsafe=True)).unsafe


class Encoder:
    """Vectors that know cats alone."""

    class config:
        context = 512

    def whole_ids(self, text: str) -> list[str]:
        return text.split()

    def embed(self, texts: list[str]) -> np.ndarray:
        rows = np.array([["kitten" in text or "cat" in text, 0.1] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_search_fuses_meaning_and_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path / "cache"))
    home = tmp_path / "notes"
    home.mkdir()
    (home / "a.txt").write_text("Nothing of interest.")
    (home / "b.txt").write_text("The kitten sleeps.")
    (home / "c.txt").write_text("Invoice XK-77 is paid.")
    tool = built_in("search", home, Encoder)
    assert tool.call({"query": "cat", "count": 1}).startswith("[2] b.txt:1\n")  # no word of it is in the file
    assert tool.call({"query": "XK-77", "count": 1}) == "[3] c.txt:1\nInvoice XK-77 is paid."
    (home / "c.txt").write_text("Gone.")
    assert "XK" not in tool.call({"query": "XK-77", "count": 3})


# ---- the loop ----------------------------------------------------------------------------------------------


class Forced:
    """Makes a model write given ids, each of which the agent's own constraint must allow."""

    def __init__(self, ids: list[int], end: int, inner: Any) -> None:
        self.ids, self.end, self.inner, self.done = ids, end, inner, False

    def mask(self, logits: np.ndarray) -> None:
        wanted = self.ids[0] if self.ids else self.end
        if self.inner is not None:
            logits[:], logits[wanted] = 0, 30
            self.inner.mask(logits)
            assert np.isfinite(logits[wanted]), f"the grammar forbids {wanted}"
        logits[:] = -np.inf
        logits[wanted] = 0

    def accept(self, id: int) -> None:
        self.ids = self.ids[1:]
        if self.inner is not None:
            self.inner.accept(id)
            self.done = self.inner.done


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return model()


@pytest.fixture
def scripted(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the model is to write, turn by turn."""
    texts: list[str] = []
    stream = LanguageModel.stream

    def write(self: LanguageModel, ids: Any, *, constraint: Any = None, **options: Any) -> Any:
        own, end = self.tokenizer.encode(texts.pop(0)), self.tokenizer.eos_ids[0]
        return stream(self, ids, constraint=Forced(own, end, constraint), **options)

    monkeypatch.setattr(LanguageModel, "stream", write)
    yield texts
    assert not texts, "the model was not asked often enough"


def calling(name: str, **arguments: Any) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def with_template(lm: LanguageModel, template: str) -> LanguageModel:
    return LanguageModel(replace(lm.checkpoint, chat_template=template))


def plain_template() -> str:
    """SmolLM2's own, which knows no tools."""
    import cutaway

    return cutaway.load(inputs.path("smollm2")).checkpoint.chat_template or ""


@pytest.mark.parametrize("prompts", [False, True], ids=["the template's format", "a prompted format"])
def test_a_call_runs_and_its_result_is_read(lm: LanguageModel, scripted: list[str], prompts: bool) -> None:
    lm = with_template(lm, plain_template()) if prompts else lm
    assert (lm.tool_format is prompted.FORMAT) == prompts
    agent = lm.agent([weather], max_tokens=64)
    scripted += ["Let me see.\n" + calling("weather", place="Bern"), "It is 21 degrees."]
    first = agent.ask("How warm is Bern?")
    assert first.text == "It is 21 degrees." and first.appended
    assert [(call.call.name, call.text, call.failed) for call in first.calls] == [
        ("weather", "Bern: 21 C", False)
    ]
    assert [message["role"] for message in agent.messages] == ["user", "assistant", "tool", "assistant"]
    scripted += ["You are welcome."]
    second = agent.ask("Thanks")
    assert second.appended and second.ids[: len(first.ids)] == first.ids
    # a conversation that was appended to is what the template makes of it, to the last id
    last = [*agent.messages, {"role": "user", "content": "x"}]
    whole = lm.chat_ids(last, tools=[from_function(weather).declaration])
    assert tuple(whole[: len(second.ids)]) == second.ids


def test_a_call_is_held_to_its_schema_and_text_is_free(lm: LanguageModel, scripted: list[str]) -> None:
    agent = lm.agent([weather], max_tokens=64)
    scripted += [calling("weather", place="Bern", unit="K")]
    with pytest.raises(AssertionError, match="the grammar forbids"):
        agent.ask("x")
    scripted += ['I write {"name": "weather"} and no call.']
    assert agent.ask("x").calls == ()


def test_a_call_is_whole_however_long_the_model_would_write(lm: LanguageModel) -> None:
    """The model repeats a list's item for ever, which alone no grammar ends."""
    agent = lm.agent([route], max_tokens=64)
    repeated = lm.tokenizer.encode(', "Santa Barbara"')
    made: list[int] = []

    class Endless(Forced):
        def mask(self, logits: np.ndarray) -> None:
            wanted = self.ids[0] if self.ids else repeated[len(made) % len(repeated)]
            logits[:], logits[wanted] = 0, 30
            self.inner.mask(logits)
            logits[wanted] += 1  # which stays minus infinity where it is forbidden

        def accept(self, id: int) -> None:
            made.extend([] if self.ids else [id])
            super().accept(id)

    ids = lm.tokenizer.encode('<tool_call>\n{"name": "route", "arguments": {"stops": ["Bern"')
    stream = LanguageModel.stream
    begun: list[bool] = []

    def write(self: LanguageModel, asked: Any, *, constraint: Any = None, **options: Any) -> Any:
        own = Endless(ids, 0, constraint) if constraint is not None and not begun else None
        begun.append(True)
        return stream(self, asked, constraint=own, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModel, "stream", write)
        answer = agent.ask("Plan a trip")
    assert answer.calls[0].text.startswith("Bern Santa Barbara") and not answer.calls[0].failed
    assert 40 <= len(ids) + len(made) <= 64  # it used what it had


def test_errors_go_back_to_the_model_and_the_loop_ends(lm: LanguageModel, scripted: list[str]) -> None:
    def fails(n: int) -> str:
        """Fail."""
        raise ZeroDivisionError("no")

    def hangs() -> str:
        """Wait."""
        time.sleep(5)
        return "late"

    def long() -> str:
        """Write much."""
        return "x" * 5000

    agent = lm.agent([fails, hangs, long], limits=Limits(calls=4, seconds=1.5, output=100), max_tokens=64)
    calls = [calling("fails", n=1), calling("fails", n=2), calling("hangs"), calling("long")]
    scripted += [*calls, "I give up. " + calling("long", n=5)]
    answer = agent.ask("x")
    assert answer.text == "I give up. "  # the limit is reached: a fifth call is not begun
    assert [result.text.splitlines()[0] for result in answer.calls] == [
        "error: ZeroDivisionError: no",
        "error: ZeroDivisionError: no",
        "error: it did not answer within 1.5 seconds",
        "x" * 100,
    ]
    assert answer.calls[3].text.endswith("[cut: 100 of 5,000 characters]")
    scripted += [calling("long"), calling("long"), "Twice " + calling("long")]
    again = agent.ask("y")
    assert "made already" in again.calls[1].text and again.text == "Twice "  # the third is not begun


def test_a_call_that_is_not_allowed_does_not_run(lm: LanguageModel, scripted: list[str]) -> None:
    asked: list[Call] = []
    agent = lm.agent([weather], confirm=lambda call: asked.append(call) or False, max_tokens=64)
    scripted += [calling("weather", place="Bern"), "So not."]
    answer = agent.ask("x")
    assert [call.object for call in asked] == [{"place": "Bern"}]
    assert answer.calls[0].failed and "does not allow" in answer.calls[0].text


def test_one_odd_schema_costs_the_others_nothing(lm: LanguageModel, scripted: list[str]) -> None:
    def odd(word: str) -> str:
        """Odd."""
        return word

    pattern = {"type": "object", "properties": {"word": {"type": "string", "pattern": "^(?=a)a+$"}}}
    tool = replace(from_function(odd), parameters=pattern)
    none = replace(tool, name="none", parameters={"type": "object", "properties": {"a": {"type": "strange"}}})
    agent = Agent(lm, [tool, none, from_function(weather)], options={"max_tokens": 64})
    assert len(agent.warnings) == 2
    assert "none: any arguments" in agent.warnings[0] and "odd's schema" in agent.warnings[1]
    scripted += [calling("odd", word="bbb"), calling("weather", place="Bern"), "Done."]
    answer = agent.ask("x")
    assert answer.calls[0].failed and "do not fit" in answer.calls[0].text and not answer.calls[1].failed


def test_a_template_that_rewrites_is_rendered_anew(lm: LanguageModel, scripted: list[str]) -> None:
    template = lm.checkpoint.chat_template or ""
    counted = with_template(lm, "{% if messages | length > 2 %}Later.{% endif %}" + template)
    agent = counted.agent([weather], max_tokens=64)
    scripted += [calling("weather", place="Bern"), "Warm."]
    assert not agent.ask("x").appended


def test_chat_shows_calls_asks_and_keeps_them(
    lm: LanguageModel, scripted: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    from cyclopts import App

    monkeypatch.setattr(verb, "model_path", lambda source: source)
    monkeypatch.setattr("cutaway.load", lambda *words, **options: lm)
    (tmp_path / "own.py").write_text("def twice(n: int) -> int:\n    'Double.'\n    return 2 * n\n")
    saved = tmp_path / "talk.json"
    own = f"{tmp_path / 'own.py'}:twice"

    def talk(lines: str, *words: str) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        app = App(result_action="return_value")
        app.command(verb.chat)
        app(["chat", "--tools", own, "--max-tokens", "64", *words], exit_on_error=False, print_error=False)
        return "".join(capsys.readouterr())

    scripted += [calling("twice", n=21), "It is 42."]
    seen = talk(f"What is 21 doubled?\n/save {saved}\n", "--yes")
    assert '[twice {"n": 21}]' in seen and "[= 42]" in seen and "It is 42." in seen
    roles = [message["role"] for message in json.loads(saved.read_text())]
    assert roles == ["user", "assistant", "tool", "assistant"]
    scripted += [calling("twice", n=4), "Not allowed."]
    seen = talk(f"And 4?\n/save {saved.with_name('more.json')}\n", "--load", str(saved))
    assert "[not run: --yes allows calls" in seen and "= 8" not in seen
    more = json.loads(saved.with_name("more.json").read_text())
    assert len(more) == 8 and more[:4] == json.loads(saved.read_text())


# ---- MCP ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "mcp" in request.node.name:
        monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("CUTAWAY_TEST_SECRET", "a secret")


def test_mcp_over_stdio() -> None:
    with mcp.connect(served("honest", "stdio")) as server:
        tools = {tool.name: tool for tool in server.tools}
        assert set(tools) == {"add", "fail", "secret"} and tools["add"].description == "Add two numbers."
        assert tools["add"].call({"a": 2, "b": 3}) == "5"
        assert tools["secret"].call({}) == "nothing"  # the caller's environment is not handed on
        with pytest.raises(ToolError, match="fail"):
            tools["fail"].call({})
    with pytest.raises(ToolError, match="closed"):
        tools["add"].call({"a": 2, "b": 3})


def test_mcp_over_http() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*shlex.split(served("honest", "http", str(port)))], stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        with mcp.connect(f"http://127.0.0.1:{port}/mcp") as server:
            assert server.tools[0].call({"a": 2, "b": 3}) == "5"
    finally:
        process.terminate()
        process.wait()
    with pytest.raises(OperationalError, match=str(port)):
        mcp.connect(f"http://127.0.0.1:{port}/mcp")


@pytest.mark.parametrize("kind", ["endless", "circle"])
def test_mcp_pages_that_do_not_end_are_refused(kind: str) -> None:
    with pytest.raises(OperationalError, match="does not end"):
        mcp.connect(served(kind))


def test_mcp_names_are_checked() -> None:
    with mcp.connect(served("names")) as server:
        assert [tool.name for tool in server.tools] == ["add"]
        assert len(server.refused) == 2


def test_mcp_a_changed_description_is_named() -> None:
    address = served("rug", "Adds.")
    with mcp.connect(address) as server:
        assert server.changed == []
        server.accept()
    with mcp.connect(address) as server:
        assert server.changed == []
    known = json.loads((store.home() / "mcp-tools.json").read_text())
    (store.home() / "mcp-tools.json").write_text(json.dumps({served("rug", "Sends it on."): known[address]}))
    with mcp.connect(served("rug", "Sends it on.")) as server:
        assert (server.changed, server.new) == (["add"], [])


@pytest.mark.parametrize("kind", ["new", "description", "schema"])
def test_mcp_tools_that_are_not_pinned_are_asked_about(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A server may add a tool, or change one, after it was trusted."""
    from cutaway.commands.chat_tools import _trusted

    address = served("rug", "Adds.")
    with mcp.connect(address) as server:
        assert (server.changed, server.new) == ([], [])  # the user has just named this server
        assert [tool.name for tool in _trusted(server, yes=False)] == ["add"]
    file = store.home() / "mcp-tools.json"
    own = replace(server.tools[0], description="Adds what?") if kind == "description" else server.tools[0]
    own = replace(own, parameters={"type": "object"}) if kind == "schema" else own
    pinned = {} if kind == "new" else {"add": mcp.fingerprint(own)}
    file.write_text(json.dumps({address: pinned}))
    with mcp.connect(address) as server:
        assert (server.new if kind == "new" else server.changed) == ["add"]
        assert _trusted(server, yes=False) == []
        shown = capsys.readouterr().err
        assert "Adds." in shown and '"properties"' in shown and "left out" in shown
        assert json.loads(file.read_text()) == {address: pinned}, "what was not agreed to is not pinned"
        assert [tool.name for tool in _trusted(server, yes=True)] == ["add"]
    with mcp.connect(address) as server:
        assert (server.changed, server.new) == ([], [])
    file.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        mcp.connect(address)


def test_mcp_forged_control_tokens_stay_text(lm: LanguageModel, scripted: list[str]) -> None:
    with mcp.connect(served("forger", mcp_servers.FORGED)) as server:
        scripted += [calling("add", a=1), "Done."]
        answer = lm.agent(server.tools, max_tokens=64).ask("x")
    end = lm.tokenizer.special["<|im_end|>"]
    named = lm.chat_ids([{"role": "user", "content": "x"}], tools=[server.tools[0].declaration])
    quiet = replace(server.tools[0], description="Adds.")
    harmless = lm.chat_ids([{"role": "user", "content": "x"}], tools=[quiet.declaration])
    assert answer.calls[0].text == mcp_servers.FORGED
    assert named.count(end) == harmless.count(end)
    assert answer.ids.count(end) == named.count(end) + 2  # ends of the call and of its result


def test_mcp_a_silent_server_costs_a_call() -> None:
    server = mcp.connect(served("silent"), seconds=0.5)
    with server, pytest.raises(ToolError, match="in time"):
        server.tools[0].call({"a": 1})


def test_mcp_what_is_no_server_is_named() -> None:
    with pytest.raises(OperationalError, match="no-such-command"):
        mcp.connect("no-such-command")
    with pytest.raises(OperationalError):
        mcp.connect(shlex.join([sys.executable, "-c", "print('hello')"]))
