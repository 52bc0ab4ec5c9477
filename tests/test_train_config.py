"""What a user may get wrong in a training config: each field's bounds, devices, and the spelling of
options.
"""

import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from cutaway.cli import main
from cutaway.data.filters import Filters
from cutaway.data.sources import Source
from cutaway.errors import UserError
from cutaway.model import decoder
from cutaway.model.config_dict import to_dict
from cutaway.store import yaml_files
from cutaway.train import checkpoint, compiling, config, curve, git, loop
from cutaway.train import run as training_run
from cutaway.train.config import Intervals, TrainingConfig
from cutaway.train.folder import CHECKPOINTS
from cutaway.train.objectives import next_token
from cutaway.train.optim import AdamW, Muon
from cutaway.train.recipes import finetune
from cutaway.train.schedule import WSD, Cosine, Linear
from cutaway.train.training import Dataset, Training
from tests.pages import charts
from tests.training import Quiet, folder_of_text, model, run

WHOLE = (
    run(),
    AdamW(),
    Muon(),
    Cosine(),
    Linear(),
    WSD(),
    next_token.Config(),
    Intervals(),
    run().data,
    Source("x"),
    Filters(),
)
NUMBERS = [
    (each, field.name)
    for each in WHOLE
    for field in fields(each)
    if {int, float}
    & {get_type_hints(type(each))[field.name], *get_args(get_type_hints(type(each))[field.name])}
]


@pytest.mark.parametrize(
    ("config", "name"), NUMBERS, ids=lambda x: x if isinstance(x, str) else type(x).__name__
)
def test_every_number_has_bounds(config: Any, name: str) -> None:
    """No field takes a negative number, NaN or infinity, and the error names it."""
    plain = getattr(config, name)
    hint = get_type_hints(type(config))[name]
    real = float in {hint, *get_args(hint)}
    for bad in (-1.0, float("nan"), float("inf")) if real else (-1,):
        with pytest.raises(UserError, match=rf"{name}(\[0\])? is .*; it must be "):
            replace(config, **{name: (bad, bad) if isinstance(plain, tuple) else bad})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--device", "gpu"], "there is no device 'gpu' here: use auto, or one of cpu"),
        (["--device", "cuda:77"], "there is no device 'cuda:77' here"),
        (
            ["--optimizer.learning-rate=-1"],
            "config.optimizer.learning_rate is -1.0; it must be more than 0",
        ),
        (["--threads=-1"], "config.threads is -1; it must be from 1 to 4096"),
        (["--model.context", "0"], "config.model.context is 0; it must be 1 or more"),
        (
            ["--model.blocks.0.mlp.hidden", "0"],
            "config.model.blocks[0].mlp.hidden is 0; it must be 1 or more",
        ),
        (["--tensor-parallel", "2"], "torchrun --nproc-per-node 2"),
        (
            ["--optimizer.learning_rate", "1"],
            "options are spelt with dashes: write --optimizer.learning-rate",
        ),
    ],
)
def test_a_mistake_is_a_sentence(
    changes: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "nano", "--output", str(tmp_path / "r"), *changes]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_every_entry_is_documented() -> None:
    page = (Path(__file__).parents[1] / "docs" / "pretraining.md").read_text("utf-8")
    for each in WHOLE:
        for field in fields(each):
            assert f"`{field.name}`" in page, f"{type(each).__name__}.{field.name}"


# ---- continuing --------------------------------------------------------------------------------------------


def _tiny(texts: Path) -> TrainingConfig:
    plain = run(texts, model=model(0), steps=2)
    return replace(plain, data=replace(plain.data, workers=1))


def test_a_run_continues_from_its_preset_its_folder_or_its_file_and_can_be_extended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny, folder = tmp_path / "tiny.yaml", tmp_path / "r"
    tiny.write_text(config.run_config_text(_tiny(folder_of_text(tmp_path / "t"))))
    assert main(["pretrain", str(tiny), "--output", str(folder)]) == 0
    assert "loss_" not in capsys.readouterr().err
    for source in ([str(tiny), "--output", str(folder)], [str(folder)], [str(folder / "run.yaml")]):
        assert main(["pretrain", *source, "--resume"]) == 0
        sentence = capsys.readouterr().err
        assert "the run is finished: it has done 2 steps, all that it has. More steps extend it: " in sentence
        assert f"`cutaway pretrain {folder} --resume --steps 4`" in sentence
    assert main(["pretrain", str(folder), "--resume", "--steps", "4"]) == 0
    assert "4 steps now; it was started with 2" in capsys.readouterr().err
    assert checkpoint.step_of(checkpoint.all_in(folder / CHECKPOINTS)[-1]) == 4
    assert main(["pretrain", str(folder), "--resume", "--steps", "3"]) == 2
    assert "fewer than the 4 steps" in capsys.readouterr().err
    assert main(["pretrain", str(tiny), "--output", str(folder), "--resume", "--gradient-clip", "2"]) == 2
    assert "gradient_clip was 1.0, is now 2.0" in capsys.readouterr().err
    assert main(["pretrain", str(folder)]) == 2
    assert f"continue it with `cutaway pretrain {folder} --resume`" in capsys.readouterr().err
    [chart] = charts((folder / curve.PAGE).read_text("utf-8"))
    assert "<svg" in (folder / "loss.svg").read_text("utf-8")
    assert chart["series"][0]["name"] == "loss" and len(chart["series"][0]["y"]) == 4
    assert "step" in curve.text(curve.read_curve(folder)["loss"])


def test_one_folder_one_process(tmp_path: Path) -> None:
    texts = folder_of_text(tmp_path / "t")
    seen: list[str] = []

    def second(step: int) -> None:
        with pytest.raises(UserError, match="another process trains this run") as error:
            training_run.train(_tiny(texts), tmp_path / "r", Quiet(), resume=True)
        seen.append(str(error.value))

    training_run.train(_tiny(texts), tmp_path / "r", Quiet(second))
    assert len(seen) == 2


# ---- the commit, read and not asked for --------------------------------------------------------------------


def test_the_commit_is_read_without_running_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git_of(*words: str) -> str:
        alone = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path), *words]
        return subprocess.run(alone, check=True, capture_output=True, text=True).stdout.strip()

    git_of("init", "-q")
    assert git.commit(tmp_path) is None
    (tmp_path / "a").write_text("1")
    git_of("add", "a")
    git_of("commit", "-qm", "one")
    (tmp_path / "a").write_text("2")
    expected = git_of("rev-parse", "HEAD")
    assert "+2" in git.state(tmp_path, diff=True)["diff"]
    git_of("worktree", "add", "-q", str(tmp_path / "w"))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a program was run"))
    assert git.state(tmp_path / "w", diff=False)["commit"] == expected
    monkeypatch.undo()
    git_of("pack-refs", "--all")
    assert git.commit(tmp_path) == git.commit(tmp_path / "w") == expected


def test_an_entry_without_its_kind_learns_which_there_are() -> None:
    given = to_dict(run()) | {"optimizer": {"learning_rate": 0.002}}
    with pytest.raises(UserError, match=r"optimizer\.kind: is missing; known: .*adamw.*muon"):
        config.read_run_config(given)


def test_another_kind_forgets_what_it_does_not_have() -> None:
    """`finetune sft --adapter.kind ia3` was refused for the rank that the preset has for LoRA."""
    source = {
        "adapter": {"kind": "lora", "rank": 4, "alpha": 8, "targets": ["query"]},
        "schedule": {"kind": "wsd"},
    }
    chosen = finetune.FinetuningConfig
    for kind, left in (("ia3", {"kind", "targets"}), ("dora", {"kind", "rank", "alpha", "targets"})):
        changes = ["--adapter.kind", kind]
        found = config.without_other_kinds(config.entries(source, changes), changes, chosen)
        assert set(found["adapter"]) == left and found["schedule"] == {"kind": "wsd"}
    changes = ["--adapter.kind", "ia3", "--adapter.rank", "2"]
    found = config.without_other_kinds(config.entries(source, changes), changes, chosen)
    assert found["adapter"]["rank"] == 2, "what the command line says is not forgotten, but refused"
    with pytest.raises(UserError, match=r"there is no 'frozen'; known: dora, ia3, lora$"):
        config.without_other_kinds(source, ["--adapter.kind", "frozen"], chosen)


def test_words_of_yaml_1_1_stay_words(tmp_path: Path) -> None:
    """`no` is a folder's name, and 1e-3 a number, on the command line, in a file, and in what is written."""
    run = config.read_run_config("nano", ["--data.sources.0.path", "no", "--optimizer.learning-rate", "1e-3"])
    assert run.data.sources[0].path == "no" and run.optimizer.learning_rate == 1e-3
    path = tmp_path / "run.yaml"
    path.write_text(config.run_config_text(run).replace("'no'", "no").replace("0.001", "1e-3"))
    assert ": no\n" in path.read_text() and config.read_run_config(str(path)) == run
    words = config.read_run_config("nano", ["--data.sources.0.path", "'1e3'"])
    path.write_text(config.run_config_text(words))
    assert config.read_run_config(str(path)) == words


def test_a_name_that_is_there_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("optimizer:\n  learning_rate: 1\n\n  learning_rate: 2\n")
    with pytest.raises(UserError, match=r"run.yaml, line 4: the name of this entry is there already"):
        config.read_run_config(str(path))
    for text in ("{a: 1, b: {a: 1}, c: [{a: 1}, {a: 1}]}", "{1: a, '1': b}"):
        yaml_files.value(text, "here")
    for text in (
        "{a: 1, a: 1}",
        "[{x: {1: a, 1.0: b}}]",
        "{a: &a {b: 1}, c: *a, a: 2}",
        "{<<: {a: 1}, <<: 2}",
    ):
        with pytest.raises(UserError, match="here, line 1"):
            yaml_files.value(text, "here")


# ---- plan --------------------------------------------------------------------------------------------------


def test_plan_knows_the_optimizer_the_vocabulary_and_short_times(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "book", "--json"]) == 0
    stays = json.loads(capsys.readouterr().out)["stays"]
    assert 0 < stays["Muon's momentum"] < stays["weights"]
    assert stays["AdamW's moments"] == 2 * (stays["weights"] - stays["Muon's momentum"])
    assert main(["plan", "nano"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"A step: \S+ operations, [\d.]+ (µs|ms)\nThe run: [\d.]+ m?s\n", out
    )  # one device moves nothing
    assert main(["plan", "nano", "--devices", "8"]) == 2  # sixteen rows at once: a device would have two
    assert "16 in micro-batches of 16 cannot be split evenly over 8 devices" in capsys.readouterr().err
    assert main(["plan", "nano", "--devices", "8", "--micro-batch-size", "2"]) == 0
    assert re.search(r"; moving [\d.]+ (µs|ms)\nThe run: .*s if moving hides", capsys.readouterr().out)
    assert main(["plan", "nano", "--batch_size", "8"]) == 2
    assert "write --batch-size" in capsys.readouterr().err


def test_a_short_run_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.training import text

    monkeypatch.setattr(loop.device, "compiler", lambda: "c++")
    notes: list[str] = []
    made = Training(run(compile="auto"), text(), note=notes.append)
    assert re.search(
        r"compile would take about \d+ s here and save 0 s, so the model is not compiled", notes[0]
    )
    assert made.trainable.routed == made.model.routed
    monkeypatch.setattr(compiling, "seconds", lambda layers: 1e-9 * layers)
    assert Training(run(compile="auto"), text(), note=notes.append).compiles
    assert "torch.compile compiles the model" in notes[1]
    adapted = Training(run(compile="auto"), frozen_text(), note=notes.append)
    assert not adapted.compiles and "save 0 s" in notes[2], "beside a frozen base nothing is saved"


def frozen_text() -> Dataset:
    """Rows, and a model whose first block alone is trained."""
    from tests.training import text

    made = decoder.Decoder(model())
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(name.startswith("blocks.0."))
    return replace(text(), model=made)


def test_config_and_torch_stay_apart() -> None:
    code = "import sys, cutaway.train.config, cutaway.train.curve; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
