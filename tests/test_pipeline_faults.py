"""`cutaway pipeline` on odd files, damaged folders and signals: a sentence, and nothing lost or mixed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cutaway.commands import pipeline as command
from cutaway.errors import OperationalError, UserError
from cutaway.pipeline import budget, config, data, folder, named, overlap, run, verbs
from cutaway.pipeline.config import Pipeline
from cutaway.train.folder import CHECKPOINTS
from tests.test_pipeline import fake_start, filled, made, small, with_stage

DATA = {"data": {"verb": "data", "config": {"programs": {"dates": 1}}}}


def checked(stages: dict[str, Any]) -> None:
    """All that is found before the first stage starts."""
    check_all(made(DATA | stages))


def check_all(given: Pipeline) -> None:
    command.check(given)
    named.check(given)


# ---- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ({"budget": 1e300}, "budget is 1e.300; it must be from 0 to 1"),
        ({"budget": "9000h"}, "test.yaml: budget of '9000h': write a time as 90m, .* 2,777h at most"),
        ({"costs": {"watts": 1e308}}, "costs.watts is 1e.308"),
        ({"threads": 10**20}, "threads is 1"),
        ({"about": "half \ud800"}, "has a character that no file"),
        ({"prompts": ["nul \0"]}, "has a character that no file"),
    ],
)
def test_figures_without_bounds_and_unwritable_texts_are_refused(more: dict[str, Any], wrong: str) -> None:
    with pytest.raises(UserError, match=wrong):
        config.parsed({"about": "a test", "stages": DATA} | more, "test.yaml", Path("/nowhere"))


@pytest.mark.parametrize("entry", [{"seconds": 1e308}, {"share": 1e308}, {"seconds": -1}])
def test_a_stages_figures_have_bounds_and_name_the_stage(entry: dict[str, float]) -> None:
    with pytest.raises(
        UserError, match=rf"test.yaml: stages.data.{next(iter(entry))} is .*it must be from 0"
    ):
        made({"data": DATA["data"] | entry})


def test_a_path_of_ones_own_may_be_a_link_to_itself_or_hold_any_character(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for text in (f"{tmp_path}/loop", "./loop"):
        stages = {"data": {"verb": "data", "config": {"programs": {"dates": 1}, "texts": [text]}}}
        with pytest.raises(UserError, match="there is no such file or folder"):
            named.check(config.parsed({"about": "x", "stages": stages}, "test.yaml", tmp_path))


def test_paths_of_ones_own_stand_in_lists_of_tasks_too(tmp_path: Path) -> None:
    """They are found from the file's folder on, and a change of them is noticed."""
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"prompt": "1 + 1 =", "answer": "2"}\n')
    tasks = "hellaswag, text:./mine.jsonl,file:./mine.jsonl,./mine.jsonl"
    given = config.parsed(
        {"about": "x", "stages": {"ask": {"verb": "eval", "config": {"model": "smollm2", "tasks": tasks}}}},
        "test.yaml",
        tmp_path,
    )
    assert given["ask"].config["tasks"] == f"hellaswag, text:{mine},file:{mine},{mine}"
    named.check(given)
    opened = folder.opened(tmp_path / "run", given)
    before = opened.inputs("ask")
    mine.write_text('{"prompt": "1 + 1 =", "answer": "3"}\n')
    assert opened.inputs("ask") != before
    assert config.own_paths({"special": ["/", "//"]}) == set()  # no disk is read through for a character


def test_a_preset_runs_in_a_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command goes on, and the folder's name alone continues what the folder holds."""
    monkeypatch.chdir(tmp_path)
    folder.opened(Path("tiny"), made(DATA))
    Path("tiny/configs").mkdir()
    command.pipeline("tiny", dry_run=True)
    assert capsys.readouterr().out == "data: to do\n"
    with pytest.raises(UserError, match=r"tiny: holds a run of another pipeline \(budget was 0"):
        command.pipeline("tiny", output=Path("tiny"), budget="5m")


# ---- a stage's config --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"model": None, "tasks": "hellaswag"}, "stages.ask.config.model: is None; it must be a text"),
        ({"model": [], "tasks": "hellaswag"}, r"config.model: is \[\]"),
        ({"model": ["smollm2", "smollm2"], "tasks": "hellaswag"}, "stages.ask.config: Unused Tokens"),
        ({"model": "smollm2"}, "stages.ask: config.tasks: is missing"),
        ({"model": "smollm2", "tasks": " , "}, "config.tasks: is missing"),
        ({"model": "smollm2", "harness": "arc_easy"}, "config.harness: a run's evaluations are tasks of"),
        ({"model": "smollm2", "tasks": {"a": 1}}, "config.tasks: is {'a': 1}"),
        ({"model": "smollm2", "tasks": [["hellaswag"]]}, "config.tasks: is"),
        ({"model": "smollm2", "tasks": "hellaswag", "limit": "many"}, "'many' is not a whole number"),
        ({"model": "smollm2", "tasks": "hellaswag", "limit": 1.5}, "'1.5' is not a whole number"),
        ({"model": "smollm2", "tasks": "hellaswag", "seed": "--help"}, "'--help' is not a whole number"),
        ({"model": "smollm2", "tasks": "hellaswag", "output": "x"}, "because the run sets it"),
        ({"model": "smollm2", "tasks": "hellaswag", "as_json": True}, "because the run sets it"),
        ({"model": "smollm2", "tasks": "text:data/held-aut"}, "writes no held-aut"),
        ({"model": "smollm2", "tasks": "file:data/held-out/dats.jsonl"}, "writes no held-out/dats.jsonl"),
    ],
)
def test_values_that_a_verb_does_not_take_are_named_before_the_first_stage(
    given: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(UserError, match=wrong):
        checked({"ask": {"verb": "eval", "config": given}})


def test_other_verbs_options_are_read_as_on_the_command_line() -> None:
    for stage, wrong in (
        ({"verb": "quantize", "config": {"source": "smollm2", "type": "Q4_KM"}}, "Q4_KM"),
        (
            {"verb": "attack", "config": {"model": "smollm2", "probe": "forgery,injektion"}},
            "no probe 'injekt",
        ),
        ({"verb": "tokenizer train", "config": {"files": ["data/text"], "size": "x"}}, "size"),
        ({"verb": "tokenizer train", "config": {"files": ["hub:"]}}, "no earlier stage is called 'hub:'"),
    ):
        with pytest.raises(UserError, match=wrong):
            checked({"next": stage})
    checked({"ask": {"verb": "eval", "config": {"model": "smollm2", "limit": 5,
                                                "tasks": "file:data/held-out/dates.jsonl"}}})  # fmt: skip


@pytest.mark.parametrize("base", ["a", "b"])
def test_a_base_that_is_no_earlier_stage_is_refused_and_not_followed_for_ever(base: str) -> None:
    tuned = {"data": {"path": "data/sft.jsonl"}, "steps": 1, "batch_size": 1}
    stages = {"a": {"verb": "finetune", "config": tuned | {"base": base}},
              "b": {"verb": "finetune", "config": tuned | {"base": "a"}}}  # fmt: skip
    with pytest.raises(UserError, match=rf"stages.a: config.base: {base}: this stage comes later"):
        checked(stages)
    with pytest.raises(UserError, match=r"stages\.a: config.base: data: the stage data makes no model"):
        checked({"a": {"verb": "finetune", "config": tuned | {"base": "data"}}})


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ({"data": {"task": "programs:arithmetic"}}, "asks the calculator, and answers are sampled without"),
        ({"data": {"task": "spelling"}}, "stages.learn: spelling: is no task: write reasoning_gym:NAME"),
        ({"data": {"task": "/nowhere/mine.py:judge"}}, "/nowhere/mine.py: there is no such file"),
        ({"data": {"task": "reward_model:data"}}, "the stage data makes no model"),
        ({"objective": {"kind": ["grpo"]}}, r"config.objective.kind: there is no \['grpo'\]; known"),
    ],
)
def test_what_is_learned_from_rewards_is_tried_before_the_first_stage(
    more: dict[str, Any], wrong: str
) -> None:
    tiny = config.read_pipeline("tiny")
    before = {"data": tiny["data"], "tokenizer": tiny["tokenizer"], "pretrain": tiny["pretrain"]}
    learn = tiny["rewards"].config | {"base": "pretrain/model"}
    learn |= more | ({"data": learn["data"] | more["data"]} if "data" in more else {})
    given = replace(tiny, stages=(*before.items(), ("learn", config.Stage("finetune", learn))))
    with pytest.raises(UserError, match=wrong):
        check_all(given)


def test_a_file_that_judges_answers_is_an_input(tmp_path: Path) -> None:
    judge = tmp_path / "mine.py"
    judge.write_text("def judge(text, row): return 1.0\n")
    assert judge in config.own_paths({"data": {"task": f"{judge}:judge"}})


def test_a_speed_is_that_of_the_models_whole_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of another kind of attention or another MLP of the same width and depth."""
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path))
    measured = iter([1e9, 2e9])
    monkeypatch.setattr(budget, "_speed", lambda run, threads: next(measured))
    tiny = config.read_pipeline("tiny")
    model = tiny["pretrain"].config["model"]
    wide = model | {"blocks": [model["blocks"][0] | {"mlp": {"hidden": 4096}}]}
    runs = [budget.pretraining(tiny, "pretrain", one) for one in (model, wide, model)]
    assert [budget.measured_speed(one, 1) for one in runs] == [1e9, 2e9, 1e9]


def test_the_law_shapes_only_models_of_equal_blocks_and_every_stage_has_a_share() -> None:
    tiny = config.read_pipeline("tiny")
    model = tiny["pretrain"].config["model"]
    for blocks in (model["blocks"] * 2, [{"times": 2}]):
        with pytest.raises(UserError, match="sized: the law's shapes have equal blocks"):
            budget.shaped(model | {"blocks": blocks}, 64, 2)
    unshared = tuple((name, replace(one, share=0.0) if name == "sft" else one) for name, one in tiny.stages)
    with pytest.raises(UserError, match="each with its share of the time: sft has none"):
        budget.planned(replace(tiny, stages=unshared), 900, lambda _: 3e10)


def test_the_planned_vocabulary_is_that_of_the_stages_own_tokenizer() -> None:
    tiny = config.read_pipeline("tiny")
    large = ("large", replace(tiny["tokenizer"], config=tiny["tokenizer"].config | {"size": 4096}))
    both = replace(tiny, stages=(large, *tiny.stages))
    model = both["pretrain"].config["model"]
    assert budget.pretraining(both, "pretrain", model).model.vocab == 512


# ---- a run's folder ----------------------------------------------------------------------------------------


def test_a_dry_run_of_a_changed_file_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does one that is refused, or that names a stage that there is not."""
    opened = filled(tmp_path / "run", monkeypatch)
    (tmp_path / "run/pack" / folder.DONE).unlink()
    changed = with_stage("pack", replace(small()["pack"], config={"source": "tokens", "type": "F16"}))
    before = (tmp_path / "run" / config.PIPELINE).read_text()
    command._continue(tmp_path / "run", changed, None, True, True)
    assert json.loads(capsys.readouterr().out)["stages"]["pack"] == "to do"
    with pytest.raises(UserError, match="there is no stage paint"):
        command._continue(tmp_path / "run", changed, ["paint"], False, False)
    with (
        folder.locked(tmp_path / "run"),
        pytest.raises(UserError, match="another process runs this pipeline"),
    ):
        command._continue(tmp_path / "run", changed, None, False, False)
    assert (opened.stage("pack") / "model.gguf").is_file() and opened.config_path("pack").is_file()
    assert (tmp_path / "run" / config.PIPELINE).read_text() == before


def test_standard_output_is_one_json_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "start", fake_start)
    command._begin(tmp_path / "run", small(), None, True, True)
    assert list(json.loads(capsys.readouterr().out)["stages"]) == small().names
    command._begin(tmp_path / "run", small(), ["data"], False, True)
    assert json.loads(capsys.readouterr().out)["stages"] == {
        "data": "done",
        "tokens": "to do",
        "pack": "to do",
    }
    command._continue(tmp_path / "run", None, None, True, True)
    assert json.loads(capsys.readouterr().out)["stages"]["data"] == "done"
    (tmp_path / "small.yaml").write_text(config.written(small()), "utf-8")
    with pytest.raises(UserError, match="--stages: name one or more"):
        command.pipeline(str(tmp_path / "small.yaml"), output=tmp_path / "run", stages=" , ")


def test_files_that_changed_after_their_stage_was_done_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no later stage has read them yet."""
    opened = filled(tmp_path / "run", monkeypatch)
    shutil.rmtree(opened.stage("pack"))
    (opened.stage("tokens") / "whole").write_text("cut")
    with pytest.raises(UserError, match="tokens: its files are not those that the stage left: remove this"):
        run.Runner(opened, note=lambda _: None).run()


def test_a_half_trained_stage_does_not_go_on_from_another_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint was trained on what was there before: the stage is named, and begins anew if removed."""
    tuned = {"base": "data", "data": {"path": "data/sft.jsonl"}}
    pipeline = made(DATA | {"sft": {"verb": "finetune", "config": tuned}})
    half = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.mkdir(exist_ok=True); "
    half += (
        f"(p / '{CHECKPOINTS}' / '1').mkdir(parents=True) if p.name == 'sft' else (p / 'x').write_text('x'); "
    )
    half += "sys.exit(p.name == 'sft')"
    monkeypatch.setattr(run, "start", lambda _, words: [
        sys.executable, "-S", "-c", half, "data" if words[0] == "data" else "sft"])  # fmt: skip
    opened = folder.opened(tmp_path / "run", pipeline)
    with pytest.raises(OperationalError, match="stage sft failed"):
        run.Runner(opened, note=lambda _: None).run()
    (opened.stage("data") / "x").write_text("other")
    opened.finish("data")  # as where its folder was removed and made again
    with pytest.raises(UserError, match=r"sft: was begun with other inputs .* \(its config or data changed"):
        run.Runner(opened, note=lambda _: None).run()
    shutil.rmtree(opened.stage("sft"))
    with pytest.raises(OperationalError, match="stage sft failed"):
        run.Runner(opened, note=lambda _: None).run()


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        (folder.TIMES, "", "times.json: is not JSON .*: remove it, and it is counted anew"),
        (folder.TIMES, '{"data": "long"}', "times.json: data is 'long'; it must be a number from 0 up"),
        (folder.TIMES, '{"data": NaN}', "data is nan"),
        (folder.TIMES, '{"data": -1e9}', "data is -1"),
        (folder.PLAN, "", "plan.json: is not JSON .*: remove it"),
        (folder.PLAN, '{"seconds": 5}', "plan.json: seconds: is 5; it must be numbers by name: remove it"),
        (f"data/{folder.DONE}", "", "done.json: is not JSON .*: remove the stage's folder"),
    ],
)
def test_a_damaged_file_of_the_run_is_named_with_what_to_do(
    name: str, text: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = filled(tmp_path / "run", monkeypatch)
    (tmp_path / "run" / name).write_text(text)
    with pytest.raises(UserError, match=wrong):
        _ = opened.times(), opened.planned(), opened.is_done("data"), opened.add("data", 1.0)


def test_a_lock_that_is_a_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / folder.LOCK).mkdir()
    with pytest.raises(OperationalError, match="cannot be written"), folder.locked(tmp_path):
        pass


def test_a_failure_names_its_own_cause_and_not_that_of_an_earlier_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = folder.opened(tmp_path / "run", small())
    ends = iter(["print('cutaway: no disk', file=sys.stderr); sys.exit(1)", "sys.exit(3)"])
    monkeypatch.setattr(run, "start", lambda *_: [sys.executable, "-S", "-c", f"import sys; {next(ends)}"])
    for why in ("no disk", "it ended with the code 3"):
        with pytest.raises(OperationalError, match=f"stage data failed: {why}"):
            run.Runner(opened, note=lambda _: None).run()


# ---- signals -----------------------------------------------------------------------------------------------

RUNNER = """
import sys
from pathlib import Path
from cutaway.pipeline import config, folder, run
run.start = lambda pipeline, words: [sys.executable, "-S", "-c", sys.argv[3]]
run.Runner(folder.opened(Path(sys.argv[1]), config.read_pipeline(sys.argv[2])), note=lambda _: None).run()
"""
SAVES = """
import signal, time
from pathlib import Path
came = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: came.append(number))
Path("../ready").touch()
while not came:
    time.sleep(0.01)
time.sleep(1)  # in which it saves
Path("../came").write_text(" ".join(map(str, map(int, came))))
"""


def test_ctrl_c_on_a_terminal_is_one_signal_to_the_stage_which_saves(tmp_path: Path) -> None:
    """A terminal sends it to every process in its foreground; a second signal would end the stage at once."""
    (tmp_path / "small.yaml").write_text(config.written(small()), "utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    given = [sys.executable, "-c", RUNNER, str(tmp_path / "run"), str(tmp_path / "small.yaml"), SAVES]
    process = subprocess.Popen(given, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        for _ in range(6000):
            if (tmp_path / "ready").exists():
                break
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
    finally:
        process.kill()
    assert (tmp_path / "came").read_text() == str(int(signal.SIGTERM))


def test_processes_that_train_together_end_with_the_run() -> None:
    """torchrun, too, is a process that the system ends when the run is killed."""
    eight = replace(small(), processes=8)
    words = run.start(eight, ["pretrain", "configs/pretrain.yaml"])
    assert words[1:5] == ["-m", "cutaway.pipeline.child", str(os.getpid()), "torchrun"]
    assert words[5:] == ["--nproc-per-node", "8", "-m", "cutaway", "pretrain", "configs/pretrain.yaml"]


# ---- data --------------------------------------------------------------------------------------------------


def test_an_evaluation_that_shares_sequences_with_another_is_found_too() -> None:
    """Each item counts what it shares: none is hidden behind one that begins alike, or repeats itself."""
    same = "the quick brown fox jumps over the lazy dog while nine cats watch from a wall"
    index = overlap.Index()
    index.add("first", [f"{same} and sleep"])
    index.add("second", [same, "la " * 40 + same])
    assert index.of(f"He wrote that {same} and so on.", 0.5)
    found = index.report()
    assert found["first"]["documents_left_out"] == found["second"]["documents_left_out"] == 1
    assert found["second"]["sequences_shared"] == 9
    repeating = overlap.Index()
    repeating.add("song", ["la " * 40 + same])
    assert repeating.of(f"{same}, {'la ' * 12}", 0.5)


def test_data_of_any_kind_are_counted_and_labels_are_evaluations_too(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for n in range(3):
        (tmp_path / "a" / f"{n}.txt").write_text(f"Document {n} has some sentences. " * 40)
    (tmp_path / "a" / "old.txt").write_bytes("Stra\u00dfe".encode("latin-1"))
    (tmp_path / "a" / "half.jsonl").write_text('{"text": "half \\ud800"}\n')
    labels = tmp_path / "labels.jsonl"
    labels.write_text(
        "".join(f'{{"text": "sentence {n} is a text", "label": "{n % 2}"}}\n' for n in range(9))
    )
    recipe = data.DataRecipe(
        {"dates": 3}, (str(tmp_path / "a"),), held_out=2, evaluations=(f"labels:{labels}",)
    )
    sheet = data.make(recipe, tmp_path / "out")
    assert sheet["texts"][0]["not_text"] == 2 and sheet["texts"][0]["documents"] == 3
    assert sheet["overlap"][f"labels:{labels}"]["items"] == 9
    for wrong in ({"programs": {"dates": 10**15}}, {"programs": {"dates": 1}, "held_out": 10**15},
                  {"programs": {"dates": 1}, "licences": {"novels": 5}}):  # fmt: skip
        with pytest.raises(UserError, match=r"stages\.data: config"):
            command.check(made({"data": {"verb": "data", "config": wrong}}))


def test_an_option_that_looks_like_another_is_a_value() -> None:
    words = verbs.command("ask", "eval", {"model": "m", "tasks": "-x", "ray": False}, "", False)
    assert words == ["eval", "m", "--output", "ask/items.jsonl", "--tasks=-x", "--no-ray", "--json"]
