"""What a newcomer types at `cutaway finetune`: each mistake has its own sentence, a run whole lines."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cutaway.cli import main
from cutaway.commands.progress import Progress
from cutaway.data import layouts, rows
from cutaway.errors import UserError, plural
from cutaway.train import methods
from cutaway.train.training import Training
from tests.training import chatting_model, conversations

QUICK = ["--threads", "1", "--intervals.sample", "0"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chatting_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose runs/sft has done its two steps."""
    folder = tmp_path_factory.mktemp("work")
    conversations(folder / "talk.jsonl")
    words = ["finetune", "sft", str(folder / "talk.jsonl"), "--model", str(model), "--steps", "2", *QUICK]
    assert main([*words, "--output", str(folder / "runs" / "sft")]) == 0
    (folder / "empty.jsonl").write_text("")
    (folder / "bad.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "a"}\n')
    return folder


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        ("sft empty.jsonl", "empty.jsonl: holds no example"),
        ("sft bad.jsonl", "bad.jsonl, line 2: has none of"),
        ("sft talk.jsonl --epoch 2", "no option --epoch in `cutaway finetune`: did you mean --epochs?"),
        ("sft talk.jsonl --lr fast", '--lr: unable to convert "fast"'),
        ("sft talk.jsonl --rank 4", "did you mean --adapter.rank?"),
        ("sft talk.jsonl --data.contxt 4", "did you mean --data.context?"),
        (
            "sft talk.jsonl --full",
            "There is no option --full in `cutaway finetune`: --adapter null trains all",
        ),
        ("sft talk.jsonl --lora", "There is no option --lora in `cutaway finetune`: sft trains by LoRA"),
        ("sft talk.jsonl --quiet", "There is no option --quiet in `cutaway finetune`"),
        ("sft --quiet talk.jsonl", "There is no option --quiet in `cutaway finetune`"),
        ("sft talk.jsonl --adapter.rank", "--adapter.rank: has no value"),
        ("sft talk.jsonl", "runs/sft: already holds a run: continue it"),
        ("runs/sft", "runs/sft: already holds a run: continue it"),
        ("lora talk.jsonl", "`cutaway finetune sft talk.jsonl` trains it"),
        ("smollm2 talk.jsonl", "`cutaway finetune sft talk.jsonl --model smollm2`"),
        ("MODEL talk.jsonl", "is a model: name a method"),
        ("grpo", "there is no task to learn: name one, as in --task reasoning_gym:chain_sum"),
        ("rloo talk.jsonl --check", "--data questions.jsonl --task file.py:function"),
        ("dpo --resume", "holds no run of dpo to continue (there are: runs/sft)"),
    ],
)
def test_a_mistake_has_its_own_sentence(
    words: str,
    printed: str,
    trained: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The folder runs/sft holds a run: the answer to a command line that is right otherwise."""
    monkeypatch.chdir(trained)
    line = words.replace("MODEL", str(model)).split()
    line[2:2] = ["--model", str(model)] if line[0] in ("sft", "rloo") else []
    assert main(["finetune", *line]) == 2
    assert printed in capsys.readouterr().err


def test_pretrain_names_an_unknown_option_without_a_value_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "nano", "--quiet"]) == 2
    assert "There is no option --quiet in `cutaway pretrain`" in capsys.readouterr().err


def test_a_method_continues_its_last_run_and_a_finished_run_says_so(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    for words in (["sft", "--resume"], ["runs/sft", "--resume"]):
        assert main(["finetune", *words]) == 0
        printed = capsys.readouterr().err
        assert "runs/sft: the run is finished: it has done 2 steps" in printed
        assert "More steps or --epochs extend it: `cutaway finetune runs/sft --resume --steps 4`" in printed
    assert main(["finetune", "sft", "--resume", "--steps", "3"]) == 0
    assert "Continuing after step 2." in capsys.readouterr().err


def test_a_run_without_a_step_is_begun_anew(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    conversations(tmp_path / "talk.jsonl")
    words = ["finetune", "sft", "talk.jsonl", "--model", str(model), *QUICK, "--steps"]

    def killed(_: Training) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", killed)
        assert main([*words, "5"]) == 130
    run = tmp_path / "runs" / "sft"
    assert (run / "run.yaml").is_file()
    (run / "metrics.jsonl").write_text('{"step": 0, "validation_reward": 0.5}\n')
    (run / "samples.jsonl").write_text('{"step": 0}\n')
    assert main([*words, "1", "--lr", "0.001"]) == 0
    assert "holds a run that has done no step, so this one begins in its place" in capsys.readouterr().err
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert set(steps) == {1} and not (run / "samples.jsonl").exists()
    assert main([*words, "1"]) == 2 and "already holds a run" in capsys.readouterr().err


# ---- rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "row", "empty"),
    [
        ("examples", {"prompt": "a", "response": None}, "response"),
        ("examples", {"messages": None}, "messages"),
        ("pairs", {"prompt": "a", "chosen": "b", "rejected": None}, "rejected"),
        ("labelled", {"prompt": "a", "completion": None, "label": True}, "completion"),
        ("labelled", {"prompt": "a", "completion": "b", "label": None}, "label"),
    ],
)
def test_a_null_entry_is_named(kind: layouts.Kind, row: Any, empty: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    ((where, read),) = rows.rows(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=f"line 1: {empty} is empty"):
        layouts.standard(kind, read, where)
    whole = {"question": "a", "answer": "b", "label": True, "chosen": "c", "rejected": "d", "prompt": "a"}
    with pytest.raises(UserError, match="several answers"):
        layouts.standard("examples", rows.Row({**whole, "response": "e", "text": None}), where)


@pytest.mark.parametrize(
    ("role", "printed"),
    [
        ("bot", r"messages\[1\] has the role 'bot'; known: .*did you mean assistant"),
        ("x", r"messages\[1\] has the role 'x'; known: system"),
    ],
)
def test_an_unknown_role_is_named(
    role: str, printed: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": role, "content": "b"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}))
    assert main(["finetune", "sft", str(tmp_path / "a.jsonl"), "--model", str(model), "--check"]) == 2
    assert re.search(f"a.jsonl, line 1: {printed}", capsys.readouterr().err)


# ---- what a run prints -------------------------------------------------------------------------------------


def test_the_lines_of_a_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--model", str(model), "--threads", "1", "--steps", "1", "--batch-size", "1"]
    conversations(tmp_path / "talk.jsonl")
    assert main(["finetune", "sft", "talk.jsonl", *words, "--intervals.sample-tokens", "4"]) == 0
    printed = capsys.readouterr().err
    assert re.search(
        r"33 examples: 1 step of 1 row of 64 tokens, [\d.]+ examples a step, which read \d+% of", printed
    )
    assert "1 more is held out" in printed and "1 step takes about" in printed
    assert re.search(r"^40,608 weights, 14,848 of them trained; ", printed, re.MULTILINE)
    assert "step 1: 'Who are you?' -> " in printed
    assert printed.rstrip().endswith("`cutaway chat runs/sft` talks with it.")
    lines = [json.loads(line) for line in Path("runs/sft/metrics.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines if "sample" in line] == ["Who are you?"]
    Path("book.txt").write_text("The rain in Spain. " * 20)
    assert main(["finetune", "sft", "book.txt", *words, *QUICK, "--output", "runs/text"]) == 0
    printed = capsys.readouterr().err
    assert (
        '`cutaway generate "..." --model runs/text` continues a text.' in printed
        and "1 examples" not in printed
    )


def test_check_marks_what_is_trained_without_colour(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("question,answer\nwhat,that\n")
    assert main(["finetune", "sft", str(tmp_path / "a.csv"), "--model", str(model), "--check"]) == 0
    out = capsys.readouterr().out
    assert "1 example, " in out and "shown between [[ and ]]" in out and "assistant: [[that<|end|>]]" in out


def test_a_number_has_its_word() -> None:
    assert [plural(n, "row") for n in (0, 1, 2000)] == ["0 rows", "1 row", "2,000 rows"]
    assert plural(1, "example is", "examples are") == "1 example is"


def test_a_step_that_is_reported_at_its_end_has_taken_time(capsys: pytest.CaptureFixture[str]) -> None:
    Progress()("step", 1, 1, "loss 1", took=3.0)
    assert "took 0:03" in capsys.readouterr().err


def test_the_help_lists_the_options_of_every_day(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--help"]) == 0
    out = capsys.readouterr().out
    for option in ("--epochs", "--steps", "--lr", "--learning-rate", "--batch-size", "--seed"):
        assert re.search(rf"^ *(--\S+, )?{option}\b.*: \S", out, re.MULTILINE), option


def rate_of(folder: Path, text: str, *changes: str) -> dict[str, Any]:
    (folder / "mine.yaml").write_text(text)
    return methods.entries(str(folder / "mine.yaml"), changes)["optimizer"]


def test_a_yaml_file_without_a_learning_rate_has_its_methods(tmp_path: Path):
    """And not that of a new model, which is twenty times as high as what pairs are trained with."""
    usual = methods.entries("sft", ())["optimizer"]
    rates = {name: methods.entries(name, ())["optimizer"]["learning_rate"] for name in ("sft", "dpo", "grpo")}
    assert rate_of(tmp_path, "data: {path: talk.jsonl}") == usual
    for name in rates:
        found = rate_of(tmp_path, f"objective: {{kind: {name if name != 'sft' else 'next_token'}}}")
        assert found["learning_rate"] == rates[name]
    assert rate_of(tmp_path, "{}", "--objective.kind=dpo")["learning_rate"] == rates["dpo"]
    assert rate_of(tmp_path, "optimizer: {kind: muon}") == {"kind": "muon", "learning_rate": rates["sft"]}
    mine = "optimizer: {kind: adamw, learning_rate: 0.003}"
    assert rate_of(tmp_path, mine) == {"kind": "adamw", "learning_rate": 0.003}
    assert rate_of(tmp_path, "{}", "--lr=0.1")["learning_rate"] == 0.1
