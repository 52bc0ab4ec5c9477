"""Jobs of a Ray cluster: in order, in sentences, and what one machine gives.

Ray is not installed where tests run: ``ray`` here is a module with its functions, which pickles what goes to
a worker and what comes back. `python -m scripts.check.ray_jobs` has the real one, with workers that are
killed.
"""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cutaway
from cutaway import ray_tasks
from cutaway.cli import main
from cutaway.compare import arms, sweep
from cutaway.compare.tasks import copying
from cutaway.data import cluster, run_tokenizer, shards
from cutaway.data.filters import Filters
from cutaway.data.sources import Source
from cutaway.errors import OperationalError, UserError
from tests.training import chatting_model, folder_of_text


class RayError(Exception):
    """Ray's own failures."""


class RayTaskError(RayError):
    """A task's exception, its ``cause``."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions that workers were given; with them ``ray`` can be imported."""
    given: list[str] = []

    def remote(**options: Any) -> Any:
        assert options["max_retries"] == ray_tasks.RETRIES

        def task(function: Any) -> Any:
            def submitted(*arguments: Any) -> bytes:
                given.append(arguments[1].__name__)
                return pickle.dumps((function, arguments))

            return SimpleNamespace(remote=submitted)

        return task

    def get(job: bytes) -> Any:
        print("(raylet) A worker died")
        function, arguments = pickle.loads(job)
        try:
            return pickle.loads(pickle.dumps(function(*arguments)))
        except RayError:
            raise
        except Exception as error:
            raise RayTaskError(error) from error

    ray = SimpleNamespace(
        remote=remote,
        get=get,
        cancel=lambda job, force: None,
        exceptions=SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("CUTAWAY_THREADS", "1")  # which tasks set
    return given


def worked(n: int) -> int:
    """What a task of these tests does."""
    if n == 7:
        raise UserError("seven is refused")
    if n == 8:
        raise RayError("The worker died unexpectedly.\nMore is in the log.")
    return n * n


def arm(experiment: Any, folder: Path, arm: Any) -> Any:
    """A comparison's arm, named by its folder too."""
    return sweep.ArmResult(replace(arm, name=f"{arm.name} in {folder.name}"))


def test_results_come_in_order_and_problems_as_sentences(
    jobs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_tasks, "AHEAD", 2)
    made = ray_tasks.each("squaring", worked, ((n,) for n in range(6)))
    assert next(made) == 0 and len(jobs) == 2, "no more than two are given before the first has ended"
    assert list(made) == [1, 4, 9, 16, 25]
    with pytest.raises(UserError, match=r"^seven is refused$"):
        list(ray_tasks.each("squaring", worked, [(1,), (7,)]))
    with pytest.raises(OperationalError, match=r"squaring on Ray: .*The worker died unexpectedly\.$"):
        list(ray_tasks.each("squaring", worked, [(8,)]))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"squaring on several machines needs Ray, which is not .*ray"):
        list(ray_tasks.each("squaring", worked, [(1,)]))


def test_an_evaluation_on_ray_is_one_machines(
    jobs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Requests of two kinds, the second of which reads the first's, in slices."""
    base = chatting_model(tmp_path / "base")
    rows = [
        {"prompt": f"{n} + 1 =", "choices": [f" {n * n}", f" {n}, no", f" {n + 1}"], "answer": n % 3}
        for n in range(70)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval", str(base), "--tasks", str(tmp_path / "sums.jsonl"), "--mutual-information", "--json"]
    found = []
    for n, more in enumerate(([], ["--ray"])):
        items = tmp_path / f"{n}.jsonl"
        assert main([*words, "--no-cache", "--output", str(items), *more]) == 0
        (figures,) = json.loads(capsys.readouterr().out)["tasks"].values()
        found.append(
            (figures | {"seconds": 0}, [json.loads(line) for line in items.read_text().splitlines()])
        )
    assert found[0] == found[1]
    rights = {name: [line[name] for line in found[0][1]] for name in ("acc", "acc_mi")}
    assert rights["acc"] != rights["acc_mi"] != [float(row["answer"] == 0) for row in rows]
    assert jobs == ["values"] * 4, "70 requests with a prompt and 70 without, 64 a task"
    (tmp_path / "labels.jsonl").write_text('{"text": "a", "label": "b"}\n')
    assert main(["eval", "smollm2", "--harness", "arc_easy", "--ray"]) == 2
    assert "leave out --ray" in capsys.readouterr().err


def test_activations_on_ray_are_the_same_files(jobs: list[str], tmp_path: Path) -> None:
    base, texts = chatting_model(tmp_path / "base"), [f"{n} and {n}" * 8 for n in range(9)]
    lm, names = cutaway.load(base), ["blocks.1.out"]
    lm.activations(texts, names, tmp_path / "here", shard_tokens=100)
    there = (cutaway.load, str(base))
    lm.activations(texts, names, tmp_path / "there", elsewhere=there, shard_tokens=100)
    files = [{path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in ("here", "there")]
    assert files[0] == files[1] and len(jobs) == len(files[0]) - 1 > 3
    with pytest.raises(UserError, match="give an output"):
        lm.activations(texts, names, elsewhere=there)
    text = folder_of_text(tmp_path / "text")
    words = ["activations", str(text), "--names", "blocks.1.out", "--model", str(base), "--ray"]
    assert main([*words, "--output", str(tmp_path / "verb")]) == 0 and jobs[-1] == "_made_there"


def test_a_comparison_on_ray_gives_its_arms_to_it(
    jobs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "arm_result", arm)
    experiment = arms.preset(copying.Config(6, 8), {"attention": ["mha", "linear"]}, width=16, steps=2)
    found = sweep.run_sweep(experiment, tmp_path / "c", lambda what: None, ray=True)
    assert [each.arm.name for each in found] == ["mha in c", "linear in c", "mha again in c"]
    assert jobs == ["arm"] * 3


def test_a_corpus_that_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever made it: a run that is resumed where there is no cluster goes on."""
    monkeypatch.setitem(sys.modules, "ray", None)
    words = run_tokenizer.save(run_tokenizer.of_bytes(), tmp_path / "words")
    source = Source(str(folder_of_text(tmp_path / "text")))
    with pytest.raises(UserError, match="tokenising on Ray needs it"):
        cluster.prepare(source, words, tmp_path / "made")
    made = shards.prepare(source, words, tmp_path / "made", workers=1)
    assert cluster.prepare(source, words, tmp_path / "made").tokens == made.tokens
    with pytest.raises(UserError, match=r"data\.filters\.near"):
        cluster.prepare(source, words, tmp_path / "made", rules=Filters(near=0.8))
