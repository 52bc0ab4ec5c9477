"""Options that several verbs share: mistyped ones are named, whole numbers are whole, output can be full."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cutaway
from cutaway import cli
from cutaway.commands import console
from cutaway.errors import UserError
from tests import inputs


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            ["generate", "--max-tokns", "3", "hi"],
            "no option --max-tokns in `cutaway generate`: did you mean --max-tokens?",
        ),
        (
            ["tokenizer", "train", "x", "--sise", "3"],
            "no option --sise in `cutaway tokenizer train`: did you mean --size?",
        ),
        (["tokenizer", "train", "--bogus"], "`cutaway tokenizer train --help` shows examples"),
        (["generate", "hi", "--max-tokens", "3.5"], "'3.5' is not a whole number"),
        (["serve", "--port=80.5"], "'80.5' is not a whole number"),
        (["generate", "hi", "--threads=-1"], "--threads is -1: give a number from 1 up"),
        (["help", "nope"], "there is no verb nope"),
    ],
)
def test_what_is_wrong_is_named(capsys, line: list[str], sentence: str) -> None:
    code, out, err = run(capsys, *line)
    assert (code, out) == (2, "") and sentence in err and err.count("\n") == 1


def test_help_verb_is_the_verbs_help(capsys) -> None:
    assert run(capsys, "help", "models") == run(capsys, "models", "--help")
    assert run(capsys, "help", "tokenizer", "train")[1].startswith("Usage: cutaway tokenizer train")


def test_an_options_value_is_no_option(capsys) -> None:
    """`--stop --sop`: the second word is the text to stop before, however it is spelt."""
    assert "did you mean" not in run(capsys, "generate", "--file", "no-such-file", "--stop", "--sop")[2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("line", [[], ["models"], ["attention"], ["tokenizer", "encode", "hi"]])
def test_a_full_disk_behind_standard_output_is_one_sentence(line: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cutaway", *line],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "cutaway: standard output cannot be written: No space left on device\n"


def test_a_shorter_context_is_held_to(tmp_path: Path) -> None:
    lm = cutaway.load(inputs.path("smollm2"), context=16)
    assert lm.engine.max_context == 16
    assert lm.generate("The capital of France is", max_tokens=40).finish_reason == "context"
    assert cutaway.load(inputs.path("smollm2"), engine="definition", context=16).engine.max_context == 16
    saved = cutaway.load(lm.save(tmp_path / "saved").path)
    assert saved.config.context == 8192, "what is written is the model, not how it was run"
    with pytest.raises(UserError, match=r"context is 9000: .* holds from 1 to 8192 tokens"):
        cutaway.load(inputs.path("smollm2"), context=9000)


def test_threads_reach_the_core_and_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUTAWAY_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
    console.use_threads(3)
    assert os.environ["CUTAWAY_THREADS"] == os.environ["OMP_NUM_THREADS"] == "3"
