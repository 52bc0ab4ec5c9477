"""Options that several verbs share: mistyped ones are named, whole numbers are whole, output can be full."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import cutaway
from cutaway import cli
from cutaway.commands import console, embed, lens, tokenizer
from tests import inputs


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


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


@pytest.mark.parametrize(
    "line",
    [
        *(f"tokenizer {name}" for name in tokenizer.VERBS),
        *(f"embed {name}" for name in embed.VERBS),
        *(
            "attention show",
            "bench",
            "detect",
            "explain",
            "info",
            "plan",
            "pull",
        ),  # few documented options, and many
    ],
)
def test_help_shows_a_verbs_own_examples_and_options(capsys, line: str) -> None:
    code, out, _ = run(capsys, *line.split(), "--help")
    assert code == 0 and f"cutaway {line}" in out.partition("Examples:")[2]
    assert out.count("Examples:") == 1 and ":param" not in out and "\n  --" in out


def test_an_options_value_is_no_option(capsys) -> None:
    """`--stop --sop`: the second word is the text to stop before, however it is spelt."""
    assert "did you mean" not in run(capsys, "generate", "--file", "no-such-file", "--stop", "--sop")[2]


MISSING = """
activations no.txt --names blocks.0.out --output acts
activations text.txt --names blocks.0.out --output acts --model no.gguf
arena no.gguf smollm2 --prompts text.txt --judge smollm2
arena smollm2 minilm --prompts no.txt --judge smollm2
attack no.gguf
audit no.gguf
audit smollm2 --trusted no.gguf
attention --model no.gguf
bench no.gguf
bundle no.gguf --output own.cutaway
bundle smollm2 --documents no --tools read --output own.cutaway
chat no.gguf
chat --load no.json
compare no.yaml
convert no.gguf out.gguf
convert smollm2 no/out.gguf
detect king --watermark kgw:x --model no.gguf
detect --file no.txt --watermark kgw:x
embed analogy no.vec a b c
embed evaluate no.vec
embed evaluate minilm --analogy no.tsv
embed evaluate minilm --simlex no.tsv
embed evaluate minilm --wordsim no.tsv
embed neighbors no.vec king
embed project no.vec
embed project minilm --output no/map.html
embed search no king
embed search . king --model no.gguf
embed text king --model no.gguf
embed text king --output no/king.npy
embed text --file no.txt
embed train no.txt --output words.vec
embed train text.txt --output no/words.vec
eval no.gguf --tasks text:text.txt
eval smollm2 --tasks no.jsonl
explain king --model no.gguf
explain king --html no/page.html
explain --file no.txt
explain king --compare-model no.gguf
explain king --sae no
finetune no.yaml
finetune sft --data no.jsonl --output run
finetune sft --data no.jsonl --check
generate king --draft no.gguf
generate king --model no.gguf
generate --file no.txt
generate king --adapter no
info no.gguf
lens fit no.gguf --texts text.txt
lens fit smollm2 --texts no.txt
lens show no.safetensors
lens merge no.safetensors no.safetensors --output lens.safetensors
lens convert no.safetensors --output lens.pt
merge no out.gguf
models --remove no.gguf
plan no.yaml
pipeline no.yaml
pretrain no.yaml
pretrain no/run --resume
pretrain nano --data.sources.0.path no/texts --output run
pull no.gguf
quantize no.gguf --type Q4_0
quantize smollm2 --type Q4_0 --calibration no.txt
quantize smollm2 --type Q4_0 --output no/small.gguf
quantize smollm2 --type Q4_0 --text no.txt
quantize smollm2 --type Q4_0 --imatrix no.gguf
run no.cutaway
sae no --output saes
scale no.yaml
serve no.gguf
serve --chat-template no.jinja
tokenizer compare no.json
tokenizer compare smollm2 --file no.txt
tokenizer compare smollm2 --html no/page.html
tokenizer compare smollm2 --udhr no
tokenizer convert no.json out.json
tokenizer convert smollm2 no/out.json
tokenizer count --file no.txt
tokenizer count king -t no.json
tokenizer count-words no.txt --output words.counts
tokenizer count-words text.txt --output no/words.counts
tokenizer decode 1 -t no.json
tokenizer encode --file no.txt
tokenizer encode king -t no.json
tokenizer encode king --tokenizer no.json --json
tokenizer report no.json
tokenizer report smollm2 --model no.gguf
tokenizer show --file no.txt
tokenizer show king -t no.json
graph king --model no.gguf
graph king --html no/page.html
graph king --svg no/drawing.svg
graph --file no.txt
open no.gguf
tokenizer train no.txt
tokenizer train text.txt --size 300 --output no/tokenizer.json
verify no.gguf
"""


def test_every_verb_is_asked_for_what_is_missing() -> None:
    rooms = {"embed": embed.VERBS, "lens": lens.VERBS, "tokenizer": tokenizer.VERBS}
    verbs = [verb for group in cli.VERBS.values() for verb in group if verb not in ("doctor", "course")]
    every = {f"{verb} {inner}".strip() for verb in verbs for inner in rooms.get(verb, [""])}
    asked = {
        " ".join(line.split()[: 1 + (line.split()[0] in rooms)]) for line in MISSING.strip().splitlines()
    }
    assert asked == every


@pytest.mark.parametrize("line", MISSING.strip().splitlines())
def test_what_is_missing_is_one_sentence_and_two(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentence names the path, comes before any work, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("a king and a queen " * 9)
    before = sorted(tmp_path.iterdir())
    code, out, err = run(capsys, *line.split())
    assert (code, out) == (2, "") and err.count("\n") == 1
    missing = next(word for word in line.split() if word.partition("/")[0].partition(".")[0] == "no")
    assert missing in err
    absent = "there is no such", "does not exist", "neither a file nor a preset", "is not cached", "is called"
    absent += ("is no preset, YAML file or run's folder",)
    assert any(
        sentence in err
        for sentence in (*absent, "holds no declaration", "no dataset of activations", "holds no autoencoder")
    ), err
    assert sorted(tmp_path.iterdir()) == before


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
    assert cutaway.load(inputs.path("smollm2"), engine="pytorch", context=16).engine.max_context == 16
    saved = cutaway.load(lm.save(tmp_path / "saved").path)
    assert saved.config.context == 8192, "what is written is the model, not how it was run"
    with pytest.warns(UserWarning, match="was made for 8,192 tokens, and reads 9,000 here"):
        assert cutaway.load(inputs.path("smollm2"), context=9000).engine.max_context == 9000


def test_threads_reach_the_core_and_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUTAWAY_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
    console.use_threads(3)
    assert os.environ["CUTAWAY_THREADS"] == os.environ["OMP_NUM_THREADS"] == "3"


def test_completion_knows_verbs_and_options(tmp_path: Path) -> None:
    home = {**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/bash"}
    program = [sys.executable, "-m", "cutaway", "--install-completion"]
    done = subprocess.run(program, env=home, capture_output=True, text=True, check=True)
    script = Path(done.stdout.strip())
    assert script.is_relative_to(tmp_path) and "--max-tokens" in script.read_text()
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


@pytest.mark.parametrize("line", ["serve", "finetune", "eval", "tokenizer", "embed"])
def test_help_in_a_pipe_is_wrapped_once_and_breaks_no_command(capsys, monkeypatch, line: str) -> None:
    """What rich had wrapped was wrapped again: words alone on a line, commands in two halves."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(capsys, line, "--help")
    lines = out.splitlines()
    assert code == 0 and lines == [one.rstrip() for one in lines]
    assert all(len(one) <= 80 for one in lines if not one.startswith("cutaway "))
    wrapped = [one for one, after in pairwise(lines) if after.startswith("      ")]
    assert all(len(one) > 50 for one in wrapped)  # no line ends long before the next has to begin
    examples = [one for one in lines if one.startswith("cutaway ")]
    assert examples and all(f"{one}\n\n" in f"{out}\n\n" for one in examples)
    assert "--empty" not in out and "('" not in out and "[default: ]" not in out


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("plan", "plan needs SOURCE (a run's YAML file, or a preset)"),
        ("plan", ": cutaway plan "),
        ("sae acts", "sae needs --output (the folder to write): cutaway sae acts --output saes/layer15"),
        ("tokenizer train", "tokenizer train needs FILES"),
        ("run llama3", "no model that is called so: `cutaway chat NAME`"),
        ("version", "`cutaway --version` prints it"),
        ("sae no-such-folder --output made", "`cutaway activations TEXTS --names"),
    ],
)
def test_what_is_missing_is_named_with_an_example(capsys, line: str, sentence: str) -> None:
    code, out, err = run(capsys, *line.split())
    assert (code, out) == (2, "") and sentence in err
