"""`cutaway chat` on a scripted model: turns, commands, files, a full context, Ctrl-C on a terminal."""

import contextlib
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from cyclopts import App

import cutaway
from cutaway.commands import chat as verb
from cutaway.errors import OperationalError, UserError
from cutaway.generate.batch.request import ContextFullError, FinishReason, Generation, Piece, Timings


class Scripted:
    """Answers with the number of messages it sees, or fails as scripted."""

    engine_asked, engine_choice = "auto", ("runtime", "it is the fastest here")

    def __init__(self):
        self.checkpoint = SimpleNamespace(defaults={}, chat_template="any")
        self.asked = []
        self.options = []
        self.reason: FinishReason = "stop"
        self.raises = None
        self.interrupt_after = None
        self.drafted = (0, 0)

    def session(self):
        return "the session"

    def chat_stream(self, messages, **options):
        self.asked.append(messages)
        self.options.append(options)
        if self.raises is not None:
            raise self.raises
        texts = ["I see ", f"{len(messages)}"]
        for at, text in enumerate(texts):
            if at == self.interrupt_after:
                raise KeyboardInterrupt
            yield Piece(text, 1)
        timings = Timings(1, 1.0, 1, 1.0, 1.0, *self.drafted)
        done = Generation(
            "".join(texts), (1, 1), (0,) * 6, (0.0, 0.0), ((), ()), self.reason, None, 8, timings
        )
        yield Piece("", generation=done)


@pytest.fixture
def lm(monkeypatch):
    model = Scripted()
    monkeypatch.setattr(verb, "model_path", lambda source: source)
    monkeypatch.setitem(vars(cutaway), "load", lambda *args, **options: model)
    return model


@pytest.fixture
def talk(lm, monkeypatch, capsys):
    def run(lines: str, *words: str, fails: int = 0) -> tuple[str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        app = App(result_action="return_value")
        app.command(verb.chat)
        sentence = f"{fails} of the lines could not be answered"
        with pytest.raises(UserError, match=sentence) if fails else contextlib.nullcontext():
            app(["chat", *words], exit_on_error=False, print_error=False)
        return capsys.readouterr()

    return run


def contents(messages):
    return [(message["role"], message["content"]) for message in messages]


def test_each_question_brings_the_history(lm, talk):
    out, err = talk("hi\n\n  and now?  \n")
    assert out == "I see 1\nI see 3\n"
    assert err == ""
    assert contents(lm.asked[1]) == [("user", "hi"), ("assistant", "I see 1"), ("user", "and now?")]


def test_options_over_defaults_and_one_session_for_all(lm, talk):
    talk("hi\nyou\n")
    usual = {"session": "the session", "temperature": 0.2, "top_p": 0.9, "repetition_penalty": 1.1}
    assert lm.options == [usual | {"max_tokens": 1024}] * 2
    talk("hi\n", "--temperature", "0", "--max-tokens", "5", "--stop", "x", "--repetition-penalty", "1")
    assert lm.options[-1] == {
        "session": "the session",
        "temperature": 0,
        "top_p": 0.9,
        "repetition_penalty": 1,
        "max_tokens": 5,
        "stop": ("x",),
    }


def test_the_models_own_advice_comes_before_our_defaults(lm, talk):
    lm.checkpoint.defaults = {"temperature": 0.6, "top_k": 20, "eos_ids": (1, 2)}
    talk("hi\n", "--top-k", "0")
    assert lm.options == [{"session": "the session", "temperature": 0.6, "top_k": 0, "max_tokens": 1024}]


def test_a_setting_out_of_range_is_refused_before_the_talk(lm, talk):
    with pytest.raises(UserError, match="min_p is 7"):
        talk("hi\n", "--min-p", "7")


def test_system_message_from_the_option_and_the_command(lm, talk):
    talk("hi\n/system Be brief.\nyou\n", "--system", "Be kind.")
    assert contents(lm.asked[0]) == [("system", "Be kind."), ("user", "hi")]
    assert contents(lm.asked[1])[0] == ("system", "Be brief.")
    assert len(lm.asked[1]) == 4
    _, err = talk("/system\n", "--system", "Be kind.")
    assert "Be kind." in err


@pytest.mark.parametrize("word", ["/bye", "/quit", "/exit"])
def test_each_word_that_ends_a_talk_elsewhere_ends_it(lm, talk, word):
    _, err = talk(f"/system\n{word}\nnever\n")
    assert not lm.asked and "No system message is set" in err


def test_undo_and_clear(lm, talk):
    _, err = talk("/undo\none\ntwo\n/undo\nthree\n/clear\nfour\n", "--system", "S")
    assert contents(lm.asked[2]) == [
        ("system", "S"),
        ("user", "one"),
        ("assistant", "I see 2"),
        ("user", "three"),
    ]
    assert contents(lm.asked[3]) == [("system", "S"), ("user", "four")]
    assert "nothing to take back" in err
    assert "Taken back: two" in err


def test_an_unknown_command_says_so_and_two_slashes_ask(lm, talk):
    _, err = talk("/fly away\n//etc?\n/help\n/exit\nnever\n")
    assert "There is no command /fly" in err
    assert "/system TEXT" in err
    assert [contents(asked)[-1] for asked in lm.asked] == [("user", "/etc?")]


def test_save_and_load_go_on_where_it_was(lm, talk, tmp_path):
    path = tmp_path / "talk.json"
    _, err = talk(f"hi ☕\n/save {path}\n", "--system", "S")
    assert f"Saved 3 messages to {path}" in err
    assert json.loads(path.read_text("utf-8")) == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "hi ☕"},
        {"role": "assistant", "content": "I see 2"},
    ]
    assert os.listdir(tmp_path) == ["talk.json"]
    talk("more\n", "--load", str(path))
    expected = [("system", "S"), ("user", "hi ☕"), ("assistant", "I see 2"), ("user", "more")]
    assert contents(lm.asked[-1]) == expected


def test_save_replaces_a_file_only_where_that_is_asked(talk, tmp_path):
    path = tmp_path / "x.json"
    path.write_text("kept")
    _, err = talk(f"hi\n/save {path}\n", fails=1)
    assert "already exists" in err and path.read_text() == "kept"
    talk(f"hi\n/save --force {path}\n")
    assert len(json.loads(path.read_text())) == 2


def test_a_save_that_fails_says_so_and_the_talk_goes_on(talk, tmp_path):
    out, err = talk(f"/save\n/save {tmp_path}/none/x.json\nhi\n", fails=2)
    assert "/save needs a file's name" in err
    assert "cannot be written: its folder does not exist" in err
    assert out == "I see 1\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a": 1}', "no list of messages"),
        ("[3]", 'Message 1 .* no "content"'),
        ('[{"role": "user", "content": [1]}]', 'Message 1 .* no "content"'),
        ('[{"role": "assistant", "content": "x"}]', "Message 1 .* 'assistant' where 'user'"),
        (
            '[{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]',
            "Message 2 .* 'system' where 'assistant'",
        ),
        ('[{"role": "user", "content": "x"}]', "ends with a question"),
    ],
)
def test_a_file_that_is_no_conversation_is_refused(talk, tmp_path, content, says):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UserError, match=says):
        talk("", "--load", str(path))


def test_a_file_that_is_not_there_or_not_text_is_refused(talk, tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        talk("", "--load", str(tmp_path / "none.json"))
    (tmp_path / "x.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        talk("", "--load", str(tmp_path / "x.json"))


def test_an_interrupted_answer_is_kept_and_marked(lm, talk, tmp_path):
    lm.interrupt_after = 1
    out, err = talk(f"hi\n/save {tmp_path}/x.json\n")
    assert out == "I see \n"
    assert "[stopped; what was written is kept]" in err
    saved = json.loads((tmp_path / "x.json").read_text())
    assert saved[-1] == {"role": "assistant", "content": "I see ", "stopped": True}
    lm.interrupt_after = None
    talk(f"more\n/save {tmp_path}/y.json\n", "--load", str(tmp_path / "x.json"))
    assert lm.asked[-1][1] == {"role": "assistant", "content": "I see "}
    assert json.loads((tmp_path / "y.json").read_text())[1]["stopped"] is True


def test_interrupted_before_the_first_word_the_question_is_forgotten(lm, talk):
    lm.interrupt_after = 0
    _, err = talk("hi\nagain\n")
    assert "the question is forgotten" in err
    assert contents(lm.asked[1]) == [("user", "again")]


def test_a_prompt_too_long_says_both_numbers_and_the_ways_out(lm, talk):
    lm.raises = ContextFullError(900, 512)
    out, err = talk("hi\nyou\n", fails=2)
    assert out == ""
    assert "900" in err
    assert "512" in err
    assert "/clear" in err
    assert contents(lm.asked[1]) == [("user", "you")]


def test_an_answer_that_fills_the_context_is_kept_and_says_so(lm, talk):
    lm.reason = "context"
    _, err = talk("hi\nyou\n")
    assert "prompt and answer have 8 tokens, the model holds 8" in err
    assert "/clear" in err
    assert len(lm.asked[1]) == 3


def test_an_answer_cut_at_max_tokens_says_so(lm, talk):
    lm.reason = "length"
    assert "[stopped at 2 tokens; --max-tokens sets the limit]" in talk("hi\n", "--max-tokens", "2")[1]
    assert "[stopped at 1,024 tokens;" in talk("hi\n")[1]


@pytest.mark.parametrize("error", [OperationalError("the disk is gone"), UserError("no chat template")])
def test_an_error_is_printed_and_the_chat_goes_on(lm, talk, error):
    lm.raises = error
    _, err = talk("hi\nyou\n", fails=2)
    assert err.count(str(error)) == 2


def test_a_model_without_a_template_is_refused_before_the_first_question(lm, talk):
    lm.checkpoint.chat_template = None
    with pytest.raises(UserError, match="has no chat template, so it cannot chat: continue a text with"):
        talk("hi\n")
    assert lm.asked == []


def test_where_drafts_were_asked_for_it_says_at_the_end_how_they_fared(lm, talk):
    assert talk("hi\n", "--draft", "lookup")[1].startswith("No token was drafted: ")
    lm.drafted = (5, 2)
    _, err = talk("hi\nyou\n", "--draft", "lookup")
    assert err == "4 of 10 drafted tokens were accepted; the answers have 4.\n"
    assert talk("hi\n")[1] == talk("", "--draft", "lookup")[1] == ""


SLOW = textwrap.dedent("""
    import fcntl, sys, termios, time
    from types import SimpleNamespace
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    import cutaway
    from cutaway.commands import chat as verb
    from cutaway.commands import progress, terminal
    from cutaway.generate.batch.request import Generation, Piece, Timings

    class Slow:
        checkpoint = SimpleNamespace(defaults={}, chat_template="any")
        engine_asked, engine_choice = "auto", ("runtime", "it is the fastest here")

        def session(self):
            return SimpleNamespace(reading=(0, 0))

        def chat_stream(self, messages, session, **options):
            question = messages[-1]["content"]
            for read in range(0, 4096 if question == "long" else 0, 64):
                session.reading = read, 4096
                time.sleep(0.05)
            yield Piece(f"asked {len(messages)} last {question!r} ", 1)
            for word in range({"slow": 600, "some": 40}.get(question, 1)):
                time.sleep(0.05)
                yield Piece(f"word{word} ", 1)
            timings = Timings(1, 1.0, 1, 1.0, 1.0)
            yield Piece("done.", generation=Generation("", (), (), (), (), "stop", None, 8, timings))

    cutaway.load = lambda *args, **options: Slow()
    verb.model_path = lambda source: source
    progress.SILENCE = progress.SHORT = 0.1
    with terminal.guarded():
        verb.chat()
    print("left well", flush=True)
""")


# Tests that run in the background are started with Ctrl-C ignored, and would pass that on.
OBEY_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


class Terminal:
    """A program on a pseudo-terminal: what it shows, and keys for it."""

    def __init__(self, script: str) -> None:
        self.keys, theirs = pty.openpty()
        root = str(Path(__file__).parent.parent)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
            "TERM": "xterm",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", OBEY_CTRL_C + script],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=environment,
        )
        os.close(theirs)
        self.shown = ""

    def press(self, keys: str) -> None:
        os.write(self.keys, keys.encode())

    def wait_for(self, pattern: str) -> None:
        """Until what was shown since the last find matches."""
        ends = time.monotonic() + 60
        while not (found := re.search(pattern, self.shown)):
            assert time.monotonic() < ends, f"never saw {pattern!r} in {self.shown!r}"
            if select.select([self.keys], [], [], 1)[0]:
                try:
                    self.shown += os.read(self.keys, 4096).decode(errors="replace")
                except OSError:  # the other end was closed
                    assert re.search(pattern, self.shown), f"ended without {pattern!r}: {self.shown!r}"
        self.shown = self.shown[found.end() :]

    def press_until(self, keys: str, pattern: str) -> None:
        """Press again each second: Python sees a Ctrl-C from just before it waits only at the next key."""
        ends = time.monotonic() + 60
        while not re.search(pattern, self.shown):
            assert time.monotonic() < ends, f"never saw {pattern!r} in {self.shown!r}"
            self.press(keys)
            while select.select([self.keys], [], [], 1)[0]:
                self.shown += os.read(self.keys, 4096).decode(errors="replace")
        self.wait_for(pattern)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *problem: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.keys)


def test_on_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_ends():
    with Terminal(SLOW) as terminal:
        terminal.wait_for("> ")
        terminal.press("slow\r")
        terminal.wait_for("asked 1 .*word1 ")
        terminal.press("\x03")
        terminal.wait_for(r"\[stopped; what was written is kept\]")
        terminal.wait_for("> ")
        terminal.press("hi\r")
        terminal.wait_for("asked 3 last 'hi' word0 done.")
        terminal.wait_for("> ")
        terminal.press("half a li")
        terminal.wait_for("half a li")
        terminal.press_until("\x03", "Ctrl-D or /exit ends")
        terminal.wait_for("> ")
        terminal.press("\x1b[200~pasted\nlines\x1b[201~\r")
        terminal.wait_for("asked 5 last 'pasted(\\\\\\\\n)?")
        terminal.wait_for("done.")
        terminal.wait_for("> ")
        terminal.press("\x04")
        terminal.wait_for("left well")
        assert terminal.process.wait(60) == 0


def test_on_a_terminal_it_shows_how_much_of_a_long_prompt_is_read():
    with Terminal(SLOW) as terminal:
        terminal.wait_for("> ")
        terminal.press("long\r")
        terminal.wait_for(r"Reading the conversation.*\b[1-3],\d{3}/4,096.* left")
        terminal.wait_for("asked 1 last 'long' word0 done.")
        terminal.wait_for("> ")


def test_ctrl_d_that_is_typed_into_an_answer_ends_the_chat_after_it():
    with Terminal(SLOW) as terminal:
        terminal.wait_for("> ")
        terminal.press("some\r")
        terminal.wait_for("word1 ")
        terminal.press("more\r\x04")
        terminal.wait_for("word39 done.")
        terminal.wait_for("asked 3 last 'more' word0 done.")
        terminal.wait_for("left well")
        assert terminal.process.wait(60) == 0
