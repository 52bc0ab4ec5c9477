"""`cutaway generate` on a scripted model: whence the prompt comes, what is printed, which options arrive."""

import io
import json
import math
from typing import Any

import pytest
from cyclopts import App, CycloptsError

import cutaway
from cutaway.commands import generate as verb
from cutaway.errors import UserError
from cutaway.generate.batch.request import FinishReason, Generation, Piece, Timings

IDS = (5, 6, 7)
TEXTS = ("Pa", "", "ris\x1b[31m!")


class Tokenizer:
    def decode(self, ids):
        return f"<{ids[0]}>"


class Scripted:
    """Answers with three tokens and remembers how it was asked."""

    tokenizer = Tokenizer()
    engine_asked, engine_choice = "auto", ("runtime", "it is the fastest here")

    def __init__(self) -> None:
        self.reason: FinishReason = "stop"
        self.drafted = (0, 0)
        self.asked: list[Any] = []
        self.loaded: list[Any] = []

    def stream(self, prompt, **options):
        self.asked.append(("stream", prompt, options))
        top = ((9, -0.25), (8, -1.5))[: options.get("logprobs", 0)]
        pieces = [Piece(text, id, -0.5, top) for text, id in zip(TEXTS, IDS, strict=True)]
        timings = Timings(4, 0.5, 2, 0.25, 0.6, *self.drafted)
        done = Generation("Paris", IDS, (1, 2, 3, 4), (-0.5,) * 3, (top,) * 3, self.reason, 0, 7, timings)
        yield from (*pieces, Piece("", generation=done))

    def chat_stream(self, messages, **options):
        yield from self.stream(messages, **options)


@pytest.fixture
def lm(monkeypatch):
    model = Scripted()
    monkeypatch.setattr(verb, "model_path", lambda source: f"at/{source}")
    monkeypatch.setitem(
        vars(cutaway), "load", lambda *args, **options: model.loaded.append((args, options)) or model
    )
    return model


def run(*words: str) -> None:
    app = App(result_action="return_value")
    app.command(verb.generate)
    app(["generate", *words], exit_on_error=False, print_error=False)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_text_goes_to_standard_output_and_nothing_else_does(lm, capsys):
    run("The capital")
    out, err = capsys.readouterr()
    assert out == "Paris\x1b[31m!\n"
    assert err == ""
    assert lm.asked == [("stream", "The capital", {})]
    assert lm.loaded == [
        (
            ("at/smollm2",),
            {"engine": "auto", "context": None, "adapter": None, "kv_cache": "F16", "strict": False},
        )
    ]


def test_on_a_terminal_speed_is_printed(lm, monkeypatch):
    out, err = Terminal(), Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    run("x")
    assert "3 tokens at 8.0/s" in err.getvalue()
    assert "prompt 4 tokens at 8.0/s" in err.getvalue()


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_where_drafts_were_asked_for_it_says_how_they_fared(lm, capsys, more):
    run("x", "--draft", "lookup", *more)
    assert capsys.readouterr().err.startswith("No token was drafted: ")
    lm.drafted = (5, 2)
    run("x", "--draft", "lookup", *more)
    assert capsys.readouterr().err == "2 of 5 drafted tokens were accepted; the text has 3.\n"
    assert [asked[2] for asked in lm.asked] == [{"speculate": "lookup"}] * 2


def test_every_option_arrives_by_its_name(lm):
    run(
        *(
            "x",
            "--model",
            "other",
            "--engine",
            "pytorch",
            "--max-tokens",
            "9",
            "--temperature",
            "0",
            "--top-k",
            "0",
        ),
        *(
            "--top-p",
            "0.5",
            "--min-p",
            "0.1",
            "--typical-p",
            "0.9",
            "--repetition-penalty",
            "1.2",
            "--seed",
            "0",
        ),
        *(
            "--frequency-penalty",
            "-1",
            "--presence-penalty",
            "0.5",
            "--stop",
            "a",
            "--stop=--",
            "--stop",
            "\n",
        ),
        *("--logit-bias", "5=-2.5", "--logit-bias", "6=-inf", "--ignore-eos", "--logprobs", "0"),
    )
    assert lm.loaded == [
        (
            ("at/other",),
            {"engine": "pytorch", "context": None, "adapter": None, "kv_cache": "F16", "strict": False},
        )
    ]
    assert lm.asked[0][2] == {
        "max_tokens": 9,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 0.5,
        "min_p": 0.1,
        "typical_p": 0.9,
        "repetition_penalty": 1.2,
        "frequency_penalty": -1.0,
        "presence_penalty": 0.5,
        "logit_bias": {5: -2.5, 6: -math.inf},
        "stop": ("a", "--", "\n"),
        "ignore_eos": True,
        "seed": 0,
        "logprobs": 0,
    }


@pytest.mark.parametrize(
    "zero", ["--seed", "--top-k", "--min-p", "--presence-penalty", "--top-p", "--temperature"]
)
def test_a_zero_is_an_answer_not_an_absence(lm, zero):
    run("x", zero, "0")
    assert lm.asked[0][2] == {zero[2:].replace("-", "_"): 0}


def test_a_prompt_may_begin_with_a_hyphen(lm):
    run("- milk\n- eggs")
    assert lm.asked[0][1] == "- milk\n- eggs"


def test_chat_asks_through_the_template(lm):
    run("hi", "--chat")
    assert lm.asked == [("stream", [{"role": "user", "content": "hi"}], {})]


@pytest.mark.parametrize("raw", ["two\nlines\n", "two\nlines\r\n", "two\nlines"])
def test_the_prompt_from_standard_input_and_from_a_file(lm, monkeypatch, tmp_path, raw):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw.encode())))
    run("-")
    path = tmp_path / "prompt.txt"
    path.write_bytes(raw.encode())
    run("--file", str(path))
    assert [asked[1] for asked in lm.asked] == ["two\nlines", "two\nlines"]


def test_a_prompt_that_is_typed_is_asked_for(lm, monkeypatch, capsys):
    class Keyboard(io.TextIOWrapper):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Keyboard(io.BytesIO(b"typed\n")))
    run("-")
    assert lm.asked[0][1] == "typed" and "Ctrl-D" in capsys.readouterr().err


def test_a_prompt_that_cannot_be_had_is_refused_before_the_model_is_loaded(lm, tmp_path):
    with pytest.raises(UserError, match="prompt once"):
        run()
    with pytest.raises(UserError, match="prompt once"):
        run("x", "--file", "y")
    with pytest.raises(UserError, match="no option --temprature"):
        run("--temprature")
    with pytest.raises(CycloptsError):
        run("x", "--temprature", "1")
    with pytest.raises(CycloptsError):
        run("--temprature", "1", "x")
    with pytest.raises(UserError, match=r"none\.txt: there is no such file"):
        run("--file", str(tmp_path / "none.txt"))
    (tmp_path / "latin").write_bytes(b"ab\xff")
    with pytest.raises(UserError, match="not UTF-8: byte 2"):
        run("--file", str(tmp_path / "latin"))
    with pytest.raises(UserError, match="--logit-bias is 'five'"):
        run("x", "--logit-bias", "five")
    with pytest.raises(UserError, match="top_p is"):
        run("x", "--top-p", "1.5")
    assert lm.loaded == []


def test_json_is_one_document(lm, capsys):
    run("x", "--json", "--logprobs", "2")
    document = json.loads(capsys.readouterr().out)
    assert (document["text"], document["ids"], document["prompt_ids"]) == ("Paris", [5, 6, 7], [1, 2, 3, 4])
    assert (document["model"], document["prompt"], document["finish_reason"], document["stop"]) == (
        "smollm2",
        "x",
        "stop",
        0,
    )
    assert document["timings"]["decode_tokens_per_second"] == 8.0
    assert len(document["logprobs"]) == 3
    assert document["logprobs"][0]["logprob"] == -0.5
    assert document["logprobs"][0]["top"][1] == {"id": 8, "text": "<8>", "logprob": -1.5}
    run("x", "--json")
    assert "logprobs" not in json.loads(capsys.readouterr().out)


def test_logprobs_print_one_line_a_token(lm, capsys):
    run("x", "--logprobs", "1")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0] == '   -0.500  "<5>"   ["<9>" -0.250]'


def test_a_full_context_says_so_with_both_numbers(lm, capsys):
    lm.reason = "context"
    run("x")
    assert "prompt and answer have 7 tokens, the model holds 7" in capsys.readouterr().err
