"""A run's folder, its safety, and what comes out of it: stopped anywhere it goes on to the same weights."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import torch

import cutaway
from cutaway.cli import main
from cutaway.errors import OperationalError, UserError
from cutaway.train import checkpoint, compiling, config, device
from cutaway.train import run as training_run
from cutaway.train.folder import CHECKPOINTS
from cutaway.train.parallel import Parallel
from cutaway.weights import safetensors
from tests import llama_cpp
from tests.training import Quiet, folder_of_text, model, run, training


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_text(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    """The folder of a run that was not stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    training_run.train(_run(texts), folder, Quiet())
    return folder


def _run(texts: Path, **changes: Any) -> config.TrainingConfig:
    plain = run(texts, model=model(0), ema=0.9)
    return replace(plain, data=replace(plain.data, workers=1), **changes)


def _weights(folder: Path) -> dict[str, bytes]:
    """Every file of the newest checkpoint that tensors are in."""
    found = checkpoint.newest(folder / CHECKPOINTS, pytest.fail)
    assert found is not None
    return {file.name: file.read_bytes() for file in found.glob("*.safetensors")}


def test_a_machine_that_does_not_share_the_folder_says_so(texts: Path, tmp_path: Path) -> None:
    """The second process of two, where the first one wrote the run on a disk of its own."""

    class Second(Parallel):
        rank, size = 1, 2
        data_rank, data_size = 1, 2

    run = _run(texts, micro_batch_size=2)
    with pytest.raises(
        UserError, match=r"two: process 1 does not find here the run .* that all machines share"
    ):
        training_run.train(run, tmp_path / "two", Quiet(), parallel=Second())


# ---- what is in the folder ---------------------------------------------------------------------------------


def test_the_folder_says_what_was_done(unbroken: Path, texts: Path) -> None:
    resolved = config.read_run_config(str(unbroken / "run.yaml"))
    assert resolved.model.vocab == 320
    assert replace(resolved, model=replace(resolved.model, vocab=0)) == _run(texts)
    assert json.loads((unbroken / "git.json").read_text())["cutaway"] == cutaway.__version__
    lines = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[0]["bits_per_byte"] == pytest.approx(np.log(320) / np.log(2), rel=0.02)
    assert [line["step"] for line in lines if "validation_loss" in line] == [4, 8]
    assert len(checkpoint.all_in(unbroken / CHECKPOINTS)) == 2


def test_cutaway_opens_the_folder(unbroken: Path) -> None:
    lm = cutaway.load(unbroken)
    assert lm.config.vocab == 320
    averaged = checkpoint.tensors(unbroken / CHECKPOINTS / "step-00000008", "ema")
    assert all(torch.equal(p, averaged[name]) for name, p in lm.model.named_parameters())
    assert lm.generate("It is", max_tokens=3, ignore_eos=True).ids.__len__() == 3
    assert lm.trace("It is a").logits.shape[-1] == 257  # without the padding


def test_transformers_and_llama_cpp_give_its_logits(unbroken: Path, tmp_path: Path) -> None:
    lm = cutaway.load(unbroken, engine="pytorch")
    ids = [256, *lm.tokenizer.encode("a single")]
    ours = lm.logits(ids)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(unbroken / "model")
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(ours, logits, atol=1e-5)
    words = transformers.AutoTokenizer.from_pretrained(unbroken / "model")
    assert words.encode("a single", add_special_tokens=False) == ids[1:]
    lm.save(tmp_path / "model.gguf")
    with llama_cpp.opened(tmp_path / "model.gguf", 320, context=16) as scores:
        found = scores(ids)
    expected = ours[-1] - np.logaddexp.reduce(ours[-1])
    np.testing.assert_allclose(found, expected, atol=1e-4)


# ---- going on ----------------------------------------------------------------------------------------------


class _Died(BaseException):
    """What a killed process feels like from inside."""


def test_a_precision_left_open_stays_what_it_was_begun_with(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_run = _run(texts, steps=2, precision="auto")
    monkeypatch.setattr(device, "precision", lambda wanted, device: "bfloat16")
    training_run.train(open_run, tmp_path / "run", Quiet())
    assert config.read_run_config(str(tmp_path / "run" / "run.yaml")).precision == "bfloat16"
    monkeypatch.setattr(device, "precision", lambda wanted, device: wanted.replace("auto", "float32"))
    training_run.train(open_run, tmp_path / "run", Quiet(), resume=True)
    with pytest.raises(UserError, match="precision was bfloat16, is now float32"):
        training_run.train(replace(open_run, precision="float32"), tmp_path / "run", Quiet(), resume=True)


def test_whether_a_run_compiles_stays_what_it_was_begun_with(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later measurement may say otherwise; compiled steps round otherwise."""
    out = tmp_path / "run"
    open_run = replace(_run(texts), compile="auto")
    training_run.train(replace(open_run, steps=2), out, Quiet())
    assert config.read_run_config(str(out / "run.yaml")).compile == "never"  # two steps never pay
    monkeypatch.setattr(compiling, "saves", lambda *_: 1e9)
    callback = Quiet()
    training_run.train(open_run, out, callback, resume=True)
    assert config.read_run_config(str(out / "run.yaml")).compile == "never"
    assert not any("torch.compile compiles" in note for note in callback.notes)


def test_a_peak_that_a_step_exceeds_is_measured_again_and_noted(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not raised to what the step reached: what is above it stays above it."""
    monkeypatch.setattr(device, "peak", lambda device, precision: 1e3)
    monkeypatch.setattr(device, "measured_peak", lambda device, precision: 2e3)
    callback = Quiet()
    training_run.train(_run(texts, steps=3), tmp_path / "run", callback)
    (sentence,) = (note for note in callback.notes if "more than matrix products did" in note)
    assert sentence.startswith("Step 1 reached")
    for step in callback.steps:
        assert step["mfu"] == pytest.approx(step["flops_per_second"] / 2e3) and step["mfu"] > 1


def test_a_run_that_dies_goes_on_to_the_same_weights(unbroken: Path, texts: Path, tmp_path: Path) -> None:
    def die(step: int) -> None:
        if step == 5:
            raise _Died

    with pytest.raises(_Died):
        training_run.train(_run(texts), tmp_path / "run", Quiet(die))
    callback = Quiet()
    training_run.train(_run(texts), tmp_path / "run", callback, resume=True)
    assert "Continuing after step 4." in callback.notes
    assert _weights(tmp_path / "run") == _weights(unbroken)
    exported = [folder / "model" / "model.safetensors" for folder in (tmp_path / "run", unbroken)]
    assert exported[0].read_bytes() == exported[1].read_bytes()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if "learning_rate" in line]
    assert steps == list(range(1, 9))


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_saves_first(
    unbroken: Path, texts: Path, tmp_path: Path, number: int, error: type[BaseException]
) -> None:
    def ask(step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), number)

    with pytest.raises(error) as left:
        training_run.train(_run(texts), tmp_path / "run", Quiet(ask))
    if error is SystemExit:
        assert left.value.code == 143  # type: ignore[attr-defined]
    assert checkpoint.newest(tmp_path / "run" / CHECKPOINTS, pytest.fail).name == "step-00000003"  # type: ignore[union-attr]
    training_run.train(_run(texts), tmp_path / "run", Quiet(), resume=True)
    assert _weights(tmp_path / "run") == _weights(unbroken)


@pytest.mark.parametrize("damage", ["bit", "short", "sums", "missing"])
def test_the_newest_checkpoint_that_reads_whole_is_used(
    unbroken: Path, texts: Path, tmp_path: Path, damage: str
) -> None:
    training_run.train(_run(texts), tmp_path / "run", Quiet())
    newest = tmp_path / "run" / CHECKPOINTS / "step-00000008"
    file = newest / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "bit":
        data[-5] ^= 16
        file.write_bytes(data)
    elif damage == "short":
        file.write_bytes(data[:-1])
    else:
        (newest / "sums.json" if damage == "sums" else file).unlink()
    callback = Quiet()
    training_run.train(_run(texts), tmp_path / "run", callback, resume=True)
    assert any("step-00000008: is not whole" in note for note in callback.notes)
    assert "Continuing after step 6." in callback.notes
    assert _weights(tmp_path / "run") == _weights(unbroken)


def test_a_full_disk_stops_the_run_and_keeps_what_was_saved(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = safetensors.write_safetensors
    written: list[int] = []

    def full(path: Path, *rest: Any) -> None:
        written.append(1)
        if len(written) > 5 and "optimizer" in str(path):
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, *rest)

    monkeypatch.setattr(checkpoint.safetensors, "write_safetensors", full)
    with pytest.raises(OperationalError, match="the disk is full"):
        training_run.train(_run(texts), tmp_path / "run", Quiet())
    folder = tmp_path / "run" / CHECKPOINTS
    assert [checkpoint.damage(found) for found in checkpoint.all_in(folder)] == [None]
    assert not list(folder.glob(".*"))


def test_a_nan_loss_changes_nothing() -> None:
    made = training()
    made.advance()
    with torch.no_grad():
        made.model.norm.weight[0] = torch.nan
    before = [p.detach().clone() for p in made.names]
    with pytest.raises(OperationalError, match=r"step 2: the loss is nan.*--resume"):
        made.advance()
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, made.names, strict=True))
    assert made.step == 1


def test_going_on_with_another_run_is_refused(unbroken: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="already holds a run"):
        training_run.train(_run(texts), unbroken, Quiet())
    with pytest.raises(UserError, match=r"gradient_clip was 1\.0, is now 2\.0"):
        training_run.train(_run(texts, gradient_clip=2.0), unbroken, Quiet(), resume=True)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds something else"):
        training_run.train(_run(texts), tmp_path, Quiet())


def test_a_run_that_another_process_trains_is_refused(texts: Path, tmp_path: Path) -> None:
    with (
        filelock.FileLock(tmp_path / training_run.LOCK),
        pytest.raises(UserError, match="another process trains this run"),
    ):
        training_run.train(_run(texts), tmp_path, Quiet())


# ---- the command -------------------------------------------------------------------------------------------


def test_every_preset_reads_and_writes_back() -> None:
    assert config.presets() == ["100m", "10m", "1b", "book", "nano"]
    for name in config.presets():
        found = config.read_run_config(name)
        assert (
            config.from_dict(config.yaml.safe_load(config.run_config_text(found)), config.TrainingConfig)
            == found
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--optimizer.learning-rat", "1"], "config.optimizer.learning_rat: there is no such entry"),
        (["--optimizer.kind", "sgd"], "config.optimizer.kind: there is no 'sgd'"),
        (["--batch-size", "5", "--micro-batch-size", "2"], "must be a multiple"),
        (["--model.blocks.3.times", "2"], "out of range: the list has 1 items"),
        (["--steps"], "has no value"),
        (["steps", "4"], "--name.of.entry VALUE"),
    ],
)
def test_a_wrong_change_is_refused_by_its_path(
    changes: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "nano", *changes]) == 2
    assert message in capsys.readouterr().err


def test_changes_reach_any_entry() -> None:
    found = config.read_run_config(
        "nano",
        [
            "--optimizer.learning-rate",
            "1e-4",
            "--model.blocks.0.times=2",
            "--schedule.kind",
            "wsd",
            "--schedule.min-ratio",
            "0",
        ],
    )
    assert found.optimizer.learning_rate == 1e-4
    assert len(found.model.blocks) == 2
    assert isinstance(found.schedule, config.WSD)


def test_the_command_trains_and_is_killed_and_goes_on(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(
        config.run_config_text(_run(texts, steps=40, intervals=config.Intervals(save=1)))
    )
    words = [sys.executable, "-m", "cutaway", "pretrain", "tiny.yaml", "--output", "run"]
    process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (tmp_path / "run" / CHECKPOINTS / "step-00000002").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    done = subprocess.run([*words, "--resume"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Continuing after step" in done.stderr
    assert "40/40" in done.stderr
