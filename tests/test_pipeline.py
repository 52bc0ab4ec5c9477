"""`cutaway pipeline`: stages as configs, a run that is killed anywhere, budgets, data, and the card."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cutaway.commands import pipeline as command
from cutaway.errors import OperationalError, UserError
from cutaway.pipeline import budget, card, card_text, config, costs, data, folder, named, overlap, run, verbs
from cutaway.pipeline.config import Pipeline, parsed
from cutaway.pipeline.energy import Meter
from cutaway.train import curve

STAGES = ("data", "tokens", "pack")


def made(stages: dict[str, Any], **more: Any) -> Pipeline:
    return parsed({"about": "a test", "stages": stages, **more}, "test.yaml", Path("/nowhere"))


def small() -> Pipeline:
    """Three stages that read one another, none of which is really run."""
    return made(
        {
            "data": {"verb": "data", "config": {"programs": {"dates": 1}}},
            "tokens": {"verb": "tokenizer train", "config": {"files": ["data/text.txt"], "size": 300}},
            "pack": {"verb": "convert", "config": {"source": "tokens", "type": "Q8_0"}},
        }
    )


def test_a_seed_goes_to_what_draws_and_to_nothing_else() -> None:
    """The data and the training stages have the seed in their configs; a wrong one is refused."""
    read = config.read_pipeline("laptop")
    found = {name: stage.config.get("seed") for name, stage in config.seeded(read, 7).stages}
    drawn = {name for name in read.names if read[name].verb in ("data", "pretrain", "finetune")}
    assert found == {name: 7 if name in drawn else None for name in read.names}
    with pytest.raises(UserError, match="--seed is -1: give a number from 0"):
        config.seeded(read, -1)


# ---- configs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", config.presets())
def test_presets_are_checked_whole_and_read_back(name: str, tmp_path: Path) -> None:
    """Before anything starts: each stage by its verb's own config or options."""
    read = config.read_pipeline(name)
    command.check(read)
    (tmp_path / "again.yaml").write_text(config.written(read), "utf-8")
    assert config.read_pipeline(tmp_path / "again.yaml") == read
    assert read.not_run or read.budget
    assert all(read[stage].share for stage in read.names if verbs.VERBS[read[stage].verb].trains)


@pytest.mark.parametrize(
    ("stages", "wrong"),
    [
        ({}, "stages: should be stages by name"),
        ({"a": {"verb": "paint", "config": {}}}, "stages.a.verb: is 'paint'"),
        ({"../a": {"verb": "data", "config": {}}}, "cannot name a stage"),
        ({"logs": {"verb": "data", "config": {}}}, "cannot name a stage"),
        ({"a": {"verb": "data", "config": [1]}}, "config: should be the entries"),
        ({"a": {"verb": "data", "config": {}, "shares": 1}}, "stages.a.shares: there is no such entry"),
        ({"a": {"verb": "data", "config": {}, "share": "x"}}, "stages.a.share: is 'x'"),
        ({"a": {"verb": "data", "config": {"programs": {"dates": 0}}}}, "stages.a: config.programs.dates"),
        ({"a": {"verb": "data", "config": {"program": 1}}}, "stages.a: config.program: there is no such"),
        ({"a": {"verb": "quantize", "config": {"source": "x", "kind": 1}}}, "has no such option"),
        ({"a": {"verb": "eval", "config": {"tasks": "x"}}}, "config.model: is missing"),
        ({"a": {"verb": "pretrain", "config": {"steps": 0}}}, "stages.a: config"),
        ({"a": {"verb": "finetune", "config": {"objective": {"kind": "dbo"}}}}, "there is no 'dbo'"),
    ],
)
def test_what_is_wrong_is_named_before_the_first_stage(stages: dict[str, Any], wrong: str) -> None:
    with pytest.raises(UserError, match=wrong.replace("(", r"\(")):
        command.check(made(stages))


@pytest.mark.parametrize(
    ("stages", "wrong"),
    [
        ({"eval": {"verb": "eval", "config": {"model": "smollm2", "tasks": "programs:datez"}}},
         "stages.eval: config.tasks: there is no program 'datez': use arithmetic"),
        ({"eval": {"verb": "eval", "config": {"model": "smollm2", "tasks": "text:data/heldout/text"}}},
         "stages.eval: .* the stage data writes no heldout/text"),
        ({"eval": {"verb": "eval", "config": {"model": "smollm2", "tasks": "helaswag"}}},
         "no task 'helaswag'"),
        ({"eval": {"verb": "eval", "config": {"model": "pretrian", "tasks": "hellaswag"}}},
         "stages.eval: config.model: pretrian: .* did you mean pretrain?"),
        ({"eval": {"verb": "eval", "config": {"model": "data", "tasks": "hellaswag"}}}, "makes no model"),
        ({"more": {"verb": "pretrain", "config": {"data": {"sources": [{"path": "dat/text"}]}}}},
         "stages.more: config.data: path: dat/text: no earlier stage is called 'dat': did you mean data?"),
        ({"more": {"verb": "pretrain", "config": {"data": {"sources": [], "tokenizer": "tokenizr"}}}},
         "config.data.tokenizer: tokenizr: is no earlier stage and no name"),
        ({"other": {"verb": "data", "config": {"programs": {"datez": 1}}}}, "no program 'datez'"),
        ({"other": {"verb": "data", "config": {"programs": {}, "texts": ["./notez"]}}},
         "stages.other: config.texts: /nowhere/notez: there is no such file or folder"),
    ],
)  # fmt: skip
def test_what_a_config_names_and_is_not_there_is_named_before_the_first_stage(
    stages: dict[str, Any], wrong: str
) -> None:
    before = {
        "data": {"verb": "data", "config": {"programs": {"dates": 1}}},
        "pretrain": {"verb": "pretrain", "config": {"data": {"sources": [{"path": "data/text"}]}}},
    }
    with pytest.raises(UserError, match=wrong):
        named.check(made(before | stages))


@pytest.mark.parametrize("name", ["tiny", "laptop", "smollm2"])
def test_presets_name_what_there_is(name: str) -> None:
    named.check(config.read_pipeline(name))


def test_a_stage_depends_on_the_folders_that_its_config_names() -> None:
    pipeline = made(
        {
            "data": {"verb": "data", "config": {"programs": {"dates": 1}}},
            "base": {"verb": "pretrain", "config": {"data": {"sources": [{"path": "data/text"}]}}},
            "other": {"verb": "pretrain", "config": {"data": {"sources": [{"path": "./mine"}]}}},
            "ask": {
                "verb": "eval",
                "config": {"model": "base", "tasks": "hellaswag,text:data/held-out/text"},
            },
        }
    )
    assert [pipeline.upstream(name) for name in pipeline.names] == [[], ["data"], [], ["data", "base"]]
    assert pipeline["other"].config["data"]["sources"][0]["path"] == "/nowhere/mine"


def test_a_budget_is_a_time() -> None:
    assert [config.seconds(text) for text in ("90m", "2h", "600s", "1.5h")] == [5400, 7200, 600, 5400]
    for text in ("90", "-2h", "0m", "x", "9999999h"):
        with pytest.raises(UserError, match="write a time as 90m"):
            config.seconds(text)


# ---- a run that is killed anywhere -------------------------------------------------------------------------

RUNNER = """
import sys
from pathlib import Path
from cutaway.pipeline import config, folder, run
names = {"data": "data", "tokenizer": "tokens", "convert": "pack"}
run.start = lambda pipeline, words: [sys.executable, "-S", "-c", sys.argv[3], words[0], names[words[0]]]
run.Runner(folder.opened(Path(sys.argv[1]), config.read_pipeline(sys.argv[2])), note=lambda _: None).run()
"""
STAGE = """
import os, signal, sys
from pathlib import Path
verb, name = sys.argv[1], sys.argv[2]
place, killer = Path(name), Path("../kill-" + name)
place.mkdir(exist_ok=True)
with open("../order", "a") as out: out.write(name + " ")
(place / "half").write_text("half")
if killer.exists():
    killer.unlink()
    os.kill(os.getppid(), signal.SIGKILL)
    signal.pause()
before = {"data": None, "tokens": "data/whole", "pack": "tokens/whole"}[name]
(place / "half").unlink()
(place / "whole").write_text(name + (Path(before).read_text() if before else ""))
if verb == "convert":
    (place / "model.gguf").write_text((place / "whole").read_text())
    print("{}")
"""


def fake_start(pipeline: Pipeline, words: list[str]) -> list[str]:
    """A process that writes files in a stage's place, and kills the runner where it is asked to."""
    name = {"data": "data", "tokenizer": "tokens", "convert": "pack"}[words[0]]
    return [sys.executable, "-S", "-c", STAGE, words[0], name]


def started(path: Path) -> int:
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent.parent}"}
    given = [path, path.parent / "small.yaml", STAGE]
    command = [sys.executable, "-c", RUNNER, *map(str, given)]
    return subprocess.run(command, env=environment, timeout=200, check=False).returncode


def test_a_run_that_is_killed_in_each_stage_ends_as_one_that_is_not(tmp_path: Path) -> None:
    """SIGKILL of the runner and its stage: what was half written is made again, what is done is not."""
    for name in STAGES:
        (tmp_path / f"kill-{name}").touch()
    path = tmp_path / "run"
    (tmp_path / "small.yaml").write_text(config.written(small()), "utf-8")
    assert [started(path) for _ in range(4)] == [-signal.SIGKILL] * 3 + [0]
    assert (tmp_path / "order").read_text().split() == [
        "data",
        *["data", "tokens"],
        *["tokens", "pack"],
        "pack",
    ]
    assert (path / "pack/model.gguf").read_text() == "packtokensdata"
    assert not list(path.rglob("half"))


def filled(path: Path, monkeypatch: pytest.MonkeyPatch) -> folder.Folder:
    """A run of which every stage is done, in this process."""
    monkeypatch.setattr(run, "start", fake_start)
    opened = folder.opened(path, small())
    run.Runner(opened, note=lambda _: None).run()
    return opened


def test_changed_inputs_and_another_pipeline_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = filled(tmp_path / "run", monkeypatch)
    assert run.Runner(opened, note=lambda _: None).run() == []
    (tmp_path / "run/data/whole").write_text("other text")
    with pytest.raises(UserError, match=r"tokens: was made of other inputs .* \(its config or data changed"):
        run.Runner(opened, note=lambda _: None).run(["tokens"])
    with pytest.raises(UserError, match=r"another pipeline \(budget was 0.0\)"):
        folder.opened(tmp_path / "run", replace(small(), budget=60.0))
    other = replace(small()["tokens"], config={"files": ["data/text.txt"], "size": 400})
    with pytest.raises(UserError, match=r"another pipeline \(tokens is done\)"):
        folder.opened(tmp_path / "run", with_stage("tokens", other))
    with pytest.raises(UserError, match="no stage paint"):
        run.Runner(opened).run(["paint"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(UserError, match="holds something else"):
        folder.opened(tmp_path / "mine", small())


def test_a_refused_run_leaves_nothing_and_an_unstarted_one_blocks_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage tokens needs data, not done yet"):
        command._begin(tmp_path / "run", small(), ["tokens"], False, False)
    assert not (tmp_path / "run").exists()
    folder.opened(tmp_path / "run", small())
    other = folder.opened(tmp_path / "run", replace(small(), budget=60.0))
    assert config.read_pipeline(tmp_path / "run") == other.pipeline and not folder.begun(tmp_path / "run")


def test_a_done_stage_whose_folder_is_removed_takes_the_changed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its size was chosen by the law: the size stays, the other entries are the file's."""
    opened = filled(tmp_path / "run", monkeypatch)
    changed = replace(small()["pack"], config={"source": "tokens", "type": "F16"})
    with pytest.raises(UserError, match="remove a stage's folder to make it by the changed config"):
        folder.opened(tmp_path / "run", with_stage("pack", changed))
    shutil.rmtree(opened.stage("pack"))
    assert folder.opened(tmp_path / "run", with_stage("pack", changed)).config("pack")["type"] == "F16"
    tiny, plan = config.read_pipeline("tiny"), tmp_path / "plan.json"
    shape = replace(
        tiny["pretrain"], config={"model": budget.shaped(tiny["pretrain"].config["model"], 64, 2), "steps": 7}
    )
    kept = replace(tiny, stages=(("pretrain", shape),))
    plan.write_text('{"width": 64, "layers": 2}')
    again = command._sized_before(tiny, folder.Folder(tmp_path, kept))["pretrain"].config
    assert again == tiny["pretrain"].config | {"model": shape.config["model"]}


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.Runner, "attempt", stop)
    with pytest.raises(KeyboardInterrupt):
        command._run(folder.opened(tmp_path / "run", small()), None, False)
    assert f"go on with `cutaway pipeline {tmp_path / 'run'}`" in " ".join(capsys.readouterr().err.split())


def with_stage(name: str, stage: config.Stage) -> Pipeline:
    """The small pipeline with another stage in one's place."""
    given = small()
    return replace(given, stages=tuple((own, stage if own == name else one) for own, one in given.stages))


def test_a_stage_that_failed_may_be_changed_where_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done stays; the changed stage begins anew with its new config."""
    opened = filled(tmp_path / "run", monkeypatch)
    (tmp_path / "run/pack" / folder.DONE).unlink()
    changed = replace(small()["pack"], config={"source": "tokens", "type": "F16"})
    again = folder.opened(tmp_path / "run", with_stage("pack", changed))
    assert not again.stage("pack").exists() and opened.mark("tokens") is not None
    assert run.Runner(again, note=lambda _: None).run() == ["pack"]
    assert again.config("pack")["type"] == "F16" and config.read_pipeline(tmp_path / "run") == again.pipeline


@pytest.mark.parametrize(
    ("ends", "kind", "wrong"),
    [
        ("print('cutaway: disk is full: free some', file=sys.stderr); sys.exit(1)", OperationalError,
         "stage data failed: disk is full: free some. All that it printed is in"),
        ("print('cutaway: no such text', file=sys.stderr); sys.exit(2)", UserError, "failed: no such text"),
        ("raise RuntimeError", OperationalError, "failed: it ended with the code 1"),
        ("import os; os.kill(os.getpid(), 9)", OperationalError, "was ended by SIGKILL, as the system does"),
    ],
)  # fmt: skip
def test_a_stage_that_fails_says_what_where_and_how_to_go_on(
    ends: str, kind: type[Exception], wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "start", lambda *_: [sys.executable, "-S", "-c", f"import sys; {ends}"])
    opened = folder.opened(tmp_path / "run", small())
    with pytest.raises(kind, match=wrong) as raised:
        run.Runner(opened, note=lambda _: None).run()
    assert f"go on with `cutaway pipeline {tmp_path / 'run'}`" in str(raised.value)
    assert opened.mark("data") is None and opened.took("data") > 0


def test_two_processes_do_not_run_one_folder(tmp_path: Path) -> None:
    with (
        folder.locked(tmp_path),
        pytest.raises(UserError, match="another process runs"),
        folder.locked(tmp_path),
    ):
        pass


def test_a_lists_options_and_flags_become_a_command_line() -> None:
    given = {"files": ["a", "b"], "size": 300, "special": ["<x>", "<y>"], "measure": False, "force": True}
    words = verbs.command("tok", "tokenizer train", given, "", False)
    assert words[:4] == ["tokenizer", "train", "a", "b"] and words[4:6] == ["--output", "tok/tokenizer.json"]
    assert words[6:] == ["--size", "300", "--special", "<x>", "--special", "<y>", "--no-measure", "--force"]
    trained = verbs.command("sft", "finetune", {}, "configs/sft.yaml", True)
    assert trained == ["finetune", "configs/sft.yaml", "--output", "sft", "--resume"]


# ---- budgets -----------------------------------------------------------------------------------------------


def test_the_law_chooses_larger_models_for_more_time_and_the_steps_fill_it() -> None:
    tiny = config.read_pipeline("tiny")
    small_plan = budget.planned(tiny, 900, lambda _: 3e10)[1]
    shaped, plan = budget.planned(tiny, 9000, lambda _: 3e10)
    assert plan.weights > 2 * small_plan.weights and plan.width > small_plan.width
    assert shaped["pretrain"].config["model"]["width"] == plan.width
    assert abs(sum(plan.seconds.values()) / 9000 - 1) < 0.03
    run_of = budget.run_of(shaped, "pretrain")
    assert run_of is not None
    a_step = run_of.batch_size * run_of.model.context * run_of.flops_per_token / 3e10
    assert 0.9 < plan.steps["pretrain"] * a_step / plan.seconds["pretrain"] <= 1
    unsized = budget.planned(config.read_pipeline("smollm2"), 5400, lambda _: 1 / 0)[1].lines()
    assert "first steps decide" in unsized[0] and not any("weights" in line for line in unsized)
    with pytest.raises(UserError, match="leaves no time to train"):
        budget.planned(tiny, 100, lambda _: 3e10)


@pytest.mark.parametrize("shape", budget.SHAPES)
def test_every_shape_has_the_kind_of_attention_that_gguf_knows_it_by(shape: tuple[int, int]) -> None:
    """One key head is mqa, several are gqa, and all heads are divided by them."""
    stage = config.read_pipeline("tiny")["pretrain"]
    attention = budget.shaped(stage.config["model"], *shape)["blocks"][0]["attention"]
    groups = attention.get("kv_heads", 1)
    assert attention["heads"] % groups == 0 and attention["heads"] * attention["key_size"] == shape[0]
    assert attention["kind"] == ("mqa" if groups == 1 else "gqa")


def test_the_best_size_is_the_laws_minimum() -> None:
    """The closed form beside a search over sizes."""
    law, operations = budget.law(), 3e13
    sizes = np.geomspace(1e3, 1e9, 20001)
    losses = law["E"] + law["A"] * sizes ** -law["alpha"]
    losses = losses + law["B"] * (operations / 6 / sizes) ** -law["beta"]
    assert budget.best_weights(operations) == pytest.approx(sizes[losses.argmin()], rel=2e-3)


def test_a_speed_is_kept_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path))
    tiny, measured = config.read_pipeline("tiny"), iter([1e9, 2e9])
    monkeypatch.setattr(budget, "_speed", lambda run, threads: next(measured))
    one = budget.pretraining(tiny, "pretrain", tiny["pretrain"].config["model"])
    assert [budget.measured_speed(one, 1) for _ in range(2)] == [1e9, 1e9]
    monkeypatch.setattr(budget, "DAY", 0.0)
    assert budget.measured_speed(one, 1) == 2e9


def test_later_stages_give_back_what_earlier_ones_took(tmp_path: Path) -> None:
    """Steps are fixed when a stage starts, by the time that is left then; a fixed stage stays as it is."""
    tiny = replace(config.read_pipeline("tiny"), budget=900.0)
    opened = folder.opened(tmp_path / "run", tiny)
    trained = [name for name in tiny.names if verbs.VERBS[tiny[name].verb].trains]
    planner = budget.ByTime(900, lambda _: None, dict.fromkeys(trained, (5.0, 0.5)))
    for name in tiny.names:
        if name in trained:
            steps = planner.fixed(opened, name)["steps"]
            took = (5 + steps * 0.5 * budget.OVERHEAD) * (2 if name == "pretrain" else 1)  # a busy machine
            opened.add(name, took)
        else:
            opened.add(name, tiny[name].seconds)
    assert abs(sum(opened.times().values()) / 900 - 1) < 0.1


@pytest.mark.parametrize("name", ["gpu", "node"])
def test_presets_for_gpus_fit_their_devices_and_a_day(name: str) -> None:
    """By formula as they are, and with a small model one step of as many processes of a fake group."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from cutaway.train.distributed import Distributed
    from cutaway.train.parallel import SINGLE_PROCESS
    from cutaway.train.plan import plan
    from cutaway.train.training import Training
    from tests.training import model, text

    pipeline = config.read_pipeline(name)
    whole = budget.pretraining(pipeline, "pretrain", pipeline["pretrain"].config["model"])
    found = plan(whole, pipeline.processes, 4e14, 2e11)
    assert found.memory < 78e9 and found.seconds[1] * whole.steps < 86_400
    rows = pipeline.processes * whole.micro_batch_size
    tiny = replace(whole, model=model(), batch_size=rows, compile="never", device="cpu")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=pipeline.processes)
    try:
        parallel = Distributed("cpu") if pipeline.processes > 1 else SINGLE_PROCESS
        made = Training(tiny, text(), parallel, note=lambda _: None)
        made._gradient(made._batches(), 0)
        assert all(p.grad is not None for p in made.names)
    finally:
        dist.destroy_process_group()
    words = run.start(pipeline, ["pretrain", "configs/pretrain.yaml", "--output", "pretrain"])
    assert ("--nproc-per-node" in words) == (pipeline.processes > 1)


# ---- data --------------------------------------------------------------------------------------------------


def test_what_training_shares_with_an_evaluation_is_found_and_left_out() -> None:
    index = overlap.Index()
    index.add("quiz", ["The quick brown fox jumps over the lazy dog while nine cats watch from a wall."])
    index.add("held-out sums", ["What is 2 + 3?"])
    document = "He wrote: the quick brown fox jumps over the lazy dog while nine cats watch from a wall. So."
    assert index.of(document, 0.5) and not index.of("An unrelated text of some ten words is no item.", 0.5)
    assert not index.of("We saw the quick brown fox jumps over the lazy hen.", 0.5)  # one sequence alone
    assert index.is_item("what is 2 + 3") and not index.is_item("What is 2 + 4?")
    found = index.report()
    assert found["quiz"]["documents_left_out"] == 1 and found["quiz"]["sequences_shared"] == 10
    assert found["held-out sums"]["questions_left_out"] == 1


def test_the_data_stage_writes_what_the_next_ones_read_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for n in range(80):
        (tmp_path / "a" / f"{n:03}.txt").write_text(f"Document {n} has some sentences. " * 40)
    (tmp_path / "a" / "again.txt").write_text("Document 1 has some sentences. " * 40)
    recipe = data.DataRecipe(
        {"arithmetic": 20, "spelling": 20}, (str(tmp_path / "a"),), pairs=5, held_out=10, pieces=7
    )
    sheet = data.make(recipe, tmp_path / "out")
    assert sheet["texts"][0]["repeated"] == 1 and sheet["documents"] == {
        "trained": 78, "held_out": 2, "left_out": 0,
    }  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "out/sft.jsonl").read_text().splitlines()]
    mixed = (tmp_path / "out/mix.jsonl").read_text().splitlines()
    assert len(rows) == 40 and len(mixed) == 47
    asked = {row["messages"][0]["content"] for row in rows}
    files = (tmp_path / "out/held-out").glob("*.jsonl")
    held = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    assert len(held) == 20 and not asked & {row["prompt"] for row in held}
    pairs = [json.loads(line) for line in (tmp_path / "out/pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == 5 and all(pair["chosen"] != pair["rejected"] for pair in pairs)
    again = data.make(recipe, tmp_path / "again")
    assert again == sheet and (tmp_path / "again/mix.jsonl").read_text().splitlines() == mixed


def test_of_few_documents_the_last_is_held_out_and_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.txt").write_text("The first. " * 40)
    recipe = data.DataRecipe({"spelling": 2}, (str(tmp_path / "a"),), held_out=2)
    with pytest.raises(UserError, match="one document: give two or more documents"):
        data.make(recipe, tmp_path / "out")
    for n in range(1, 8):
        (tmp_path / "a" / f"{n}.txt").write_text(f"Document {n}. " * 40)
    assert data.make(recipe, tmp_path / "out")["documents"] == {"trained": 7, "held_out": 1, "left_out": 0}
    assert [one.name for one in (tmp_path / "out/held-out/text").iterdir()] == ["0-00007.txt"]


# ---- the card ----------------------------------------------------------------------------------------------


def test_energy_is_summed_over_packages_and_counters_that_begin_again(tmp_path: Path) -> None:
    for n, joules in enumerate((10, 90)):
        zone = tmp_path / f"intel-rapl:{n}"
        zone.mkdir()
        (zone / "energy_uj").write_text(str(joules * 10**6))
        (zone / "max_energy_range_uj").write_text(str(100 * 10**6))
    meter = Meter(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text(str(25 * 10**6))
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text(str(5 * 10**6))  # after 100
    assert meter.read() == pytest.approx(15 + 15)
    assert meter.read() == 0 and Meter(tmp_path / "none").read() is None


def test_costs_are_counted_by_stated_figures_or_measured_energy() -> None:
    given = config.Costs(price_per_hour=2.0, watts=50.0, grams_per_kwh=400.0)
    stated = costs.counted(given, 7200, None)
    assert (stated["kwh"], stated["money"], stated["carbon_grams"]) == pytest.approx((0.1, 4.0, 40.0))
    measured = costs.counted(given, 7200, {"a": 1.8e6, "b": 1.8e6})
    assert measured["kwh"] == pytest.approx(1.0) and measured["energy"] == "measured by RAPL"


def test_calibration_is_how_often_the_likeliest_token_is_right() -> None:
    random = np.random.default_rng(0)
    ids, logits = random.integers(0, 5, 40), random.normal(size=(40, 5)) * 2

    class Model:
        context = 16

        def ids(self, text: str) -> list[int]:
            return ids.tolist()

        def logits(self, part: list[int]) -> np.ndarray:
            at = next(n for n in range(0, 40, 16) if ids.tolist()[n : n + len(part)] == part)
            return logits[at : at + len(part)]

    found = costs.calibrated(Model(), "", 40, 10)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for start in range(0, 40, 16):  # a loop from the definition
        for t in range(start, min(start + 16, 40) - 1):
            p = np.exp(logits[t]) / np.exp(logits[t]).sum()
            bins.setdefault(min(9, int(p.max() * 10)), []).append((p.max(), int(p.argmax()) == ids[t + 1]))
    count = sum(map(len, bins.values()))
    error = sum(abs(sum(p for p, _ in own) - sum(hit for _, hit in own)) for own in bins.values()) / count
    assert found["tokens"] == count == 37 and found["error"] == pytest.approx(error)


def test_a_long_curve_is_drawn_as_means(tmp_path: Path) -> None:
    """Of 3,000 steps the card keeps 300 points, the mean of ten steps each; a short curve stays as it is."""
    for count in (200, 3000):
        lines = [{"step": n, "loss": n * 2.0, "reward": 1.0} for n in range(1, count + 1)]
        (tmp_path / curve.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
        found = card._curves(tmp_path)
        assert len(found["loss"]) == len(found["reward"]) == min(count, card.POINTS)
    assert found["loss"][0] == (6, 11.0) and found["loss"][-1] == (2996, 5991.0)
    assert curve.page(tmp_path) is not None
    assert "A faint line is every step" in (tmp_path / "loss.svg").read_text("utf-8")


def test_a_prompt_that_is_too_long_leaves_its_sample_out(tmp_path: Path, monkeypatch) -> None:
    """The card of a finished run is made, and says why."""

    class Model:
        def generate(self, prompt: str, **_) -> Any:
            if len(prompt) > 9:
                raise UserError("The prompt is 1804 ids long")
            return SimpleNamespace(text=" yes ")

        checkpoint = SimpleNamespace(chat_template=None)

    opened = folder.Folder(tmp_path, made({"tokens": {"verb": "data"}}, prompts=["short", "a long one"]))
    monkeypatch.setattr(card.cutaway, "load", lambda _: Model())
    monkeypatch.setattr(folder.Folder, "mark", lambda *_: {})
    answers = card._samples(opened, ["tokens"])
    assert answers["short"]["tokens"] == "yes"
    assert answers["a long one"]["tokens"] == "(not asked: The prompt is 1804 ids long)"


def test_what_is_nearly_all_is_not_called_all() -> None:
    """299 right of 300 are not 100%, and one of 3,000 is not 0%."""
    shares = 0.0, 1 / 3000, 1 / 300, 0.006, 0.5, 0.994, 299 / 300, 0.9999, 1.0
    shown = "0%", "0.1%", "0.3%", "1%", "50%", "99%", "99.7%", "99.9%", "100%"
    assert tuple(map(card_text.percent, shares)) == shown


def test_the_card_says_where_a_model_is_no_better_than_chance_or_its_base(tmp_path: Path) -> None:
    pipeline = made(
        {name: {"verb": "eval", "config": {"model": model, "tasks": "t"}} for name, model in
         (("first", "base"), ("last", "tuned"))}
    )  # fmt: skip
    opened = folder.opened(tmp_path / "run", pipeline)
    answers = {  # right answers of 20
        "coin": {"base": [1, 0] * 10, "tuned": [1, 0] * 10},
        "skill": {"base": [0] * 20, "tuned": [1] * 19 + [0]},
        "same": {"base": [1] * 15 + [0] * 5, "tuned": [1] * 16 + [0] * 4},
    }
    intervals = {"coin": [0.27, 0.73], "skill": [0.75, 1.0], "same": [0.56, 0.94]}
    for stage, model in (("first", "base"), ("last", "tuned")):
        place = opened.stage(stage)
        place.mkdir()
        tasks = {
            task: {"acc": sum(own[model]) / 20, "acc_interval": intervals[task],
                   "n": 20 if model == "base" else 40,
                   "chance": 0.5 if task == "coin" else 0.1}
            for task, own in answers.items()
        }  # fmt: skip
        (place / verbs.RESULTS).write_text(json.dumps({"model": model, "tasks": tasks}))
        lines = [
            {"model": whose, "task": t, "item": n, "acc": x if whose == model else 0}
            for whose in (model, "another, by against")
            for t, own in answers.items()
            for n, x in enumerate(own[model])
        ]
        (place / verbs.ITEMS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = card.write_card(opened)
    coin, skill, same = found["verdicts"]
    assert coin == "coin: tuned is right in 50%, which is not shown to be better than chance (50%)."
    assert skill == "skill: tuned is right in 95% (95% interval: 75% to 100%); chance is 10%."
    assert found["scores"]["skill"]["models"]["tuned"]["against_base"]["value"] == pytest.approx(0.95)
    assert same.startswith("same: tuned is right in 80%, not separated from base (p ")
    page = (tmp_path / "run" / card.PAGE).read_text()
    assert "not shown to be better than chance" in page and "Model card" in page
    assert page.count("No stage of this pipeline has to do with it.") == 3, (
        "it trained, attacked and read nothing"
    )
    text = (tmp_path / "run" / card.TEXT).read_text()
    assert "| skill | 10% | 0% (75% to 100%) | 95% (75% to 100%) | 20, 40 |" in text
    assert json.loads((tmp_path / "run" / card.JSON).read_text())["verdicts"] == found["verdicts"]
