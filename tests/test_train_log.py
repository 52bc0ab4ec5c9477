"""What a run leaves to be read: its own lines, TensorBoard's events, Weights & Biases' run."""

import json
import re
import sys
from pathlib import Path

import pytest

from cutaway.errors import UserError
from cutaway.extras import install
from cutaway.train.log import Log
from cutaway.train.run import train
from tests.training import Quiet, run


def _written(folder: Path, first: int, last: int, **asked: object) -> None:
    log = Log(folder, first, bool(asked.get("tensorboard")), asked.get("wandb"), {"seed": 1})  # type: ignore[arg-type]
    for step in range(first + 1, last + 1):
        log.write({"step": step, "loss": 8.0 / step, "sample": "words"})
    log.close()


def test_a_run_that_goes_on_drops_what_came_after(tmp_path: Path) -> None:
    _written(tmp_path, 0, 5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # a crash broke it off
    _written(tmp_path, 3, 4)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[3] == {"step": 4, "loss": 2.0, "sample": "words"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_the_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _written(tmp_path, 0, 5, tensorboard=True)
    _written(tmp_path, 3, 4, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")][:3] == [
        (1, 8.0),
        (2, 4.0),
        (3, pytest.approx(8 / 3)),
    ]
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]  # what came after step 3 is purged


def test_weights_and_biases_gets_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    class Run:
        """What ``wandb.init`` gives."""

        def log(self, values: dict[str, float], step: int) -> None:
            seen.append((step, values))

        def finish(self) -> None:
            seen.append("finished")

    class Module:
        @staticmethod
        def init(**words: object) -> Run:
            seen.append(words)
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Module)  # type: ignore[arg-type]
    _written(tmp_path, 0, 1, wandb="novels")
    words = {
        "project": "novels",
        "dir": tmp_path,
        "config": {"seed": 1},
        "resume": "allow",
        "id": tmp_path.name,
    }
    assert seen == [words, (1, {"loss": 8.0}), "finished"]


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="pip install wandb"):
        Log(tmp_path, 0, False, "novels", {})
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=re.escape(install("train"))):
        Log(tmp_path, 0, True, None, {})


def test_what_is_not_installed_is_named_before_the_data_are_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="pip install wandb"):
        train(run(tmp_path / "no text", wandb="novels"), tmp_path / "run", Quiet())
    assert not (tmp_path / "run").exists()
