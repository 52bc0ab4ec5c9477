"""What a careless user does to a draft: files that were stopped or edited, settings that nothing trains with,
a head where a model is asked for.
"""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import cutaway
from cutaway import native
from cutaway.cli import main
from cutaway.commands import finetune, finetune_draft
from cutaway.errors import UserError
from cutaway.evaluate import drafts, statistics
from cutaway.train import draft_head, examples
from cutaway.train.run import locked
from tests.training import chatting_model, conversations

pytestmark = pytest.mark.skipif(native.unavailable_reason() is not None, reason="the core is not built")
ONE_PROCESS = ["--threads", "1", "--compile", "never"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, prompts, and a draft of one step."""
    root = tmp_path_factory.mktemp("root")
    chatting_model(root / "model")
    conversations(root / "talk.jsonl")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(finetune_draft, "TOKENS", 6)
        assert main([*words(root, root / "run"), "--steps", "1", *ONE_PROCESS]) == 0
    return root


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune_draft, "TOKENS", 6)
    monkeypatch.setattr(drafts, "AT_ONCE", 16)


@pytest.fixture(scope="module")
def lm(root: Path) -> Any:
    return cutaway.load(root / "model", engine="runtime")


def words(root: Path, folder: Path) -> list[str]:
    prompts = ["distill", str(root / "talk.jsonl"), "--draft"]
    return ["finetune", *prompts, "--model", str(root / "model"), "--output", str(folder)]


def never(*_: Any, **__: Any) -> Any:
    pytest.fail("the work was begun first")


def answered(lm: Any, root: Path, path: Path) -> list[bytes]:
    """The lines of the answers to the root's prompts, written to a file."""
    drafts.answer(lm, drafts.prompts(lm, root / "talk.jsonl")[0], path, 6, lambda done, total: None)
    return path.read_bytes().splitlines(keepends=True)


# ---- answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [15, 39], ids=["a part's last line", "the file's last line"])
def test_a_line_that_was_cut_off_is_written_again(lm: Any, root: Path, tmp_path: Path, whole: int):
    lines = answered(lm, root, tmp_path / "answers.jsonl")
    (tmp_path / "cut.jsonl").write_bytes(b"".join(lines[: whole + 1])[:-5])
    assert answered(lm, root, tmp_path / "cut.jsonl") == lines


@pytest.mark.parametrize(
    "line",
    [
        b"{}\n",
        b"5\n",
        b"\n",
        b"\xff\n",
        b'{"messages": []}\n',
        b'{"messages": [{"role": "assistant", "content": null}]}\n',
        b'{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}]}\n',
        b'{"text": "3?"}\n',
    ],
)
def test_a_line_that_answers_no_prompt_is_named(lm: Any, root: Path, tmp_path: Path, line: bytes):
    lines = answered(lm, root, tmp_path / "answers.jsonl")
    (tmp_path / "answers.jsonl").write_bytes(b"".join([*lines[:3], line, *lines[4:]]))
    with pytest.raises(UserError, match=r"answers\.jsonl, line 4: "):
        answered(lm, root, tmp_path / "answers.jsonl")


def test_progress_comes_with_every_answer(lm: Any, root: Path, tmp_path: Path):
    """A slow model takes minutes for the prompts that it answers at once."""
    asked, reports = drafts.prompts(lm, root / "talk.jsonl")[0][:20], list[tuple[int, int]]()
    drafts.answer(lm, asked, tmp_path / "answers.jsonl", 6, lambda *each: reports.append(each))
    assert reports == [(n, 20) for n in range(21)]


TOOL = {"type": "function", "function": {"name": "clock", "description": "the time", "parameters": {}}}


@pytest.mark.parametrize("knows", [False, True], ids=["knows no tools", "knows tools"])
@pytest.mark.parametrize("given", [[TOOL], json.dumps([TOOL])], ids=["a list", "JSON text"])
def test_tools_of_a_row_are_in_its_prompt(tmp_path: Path, knows: bool, given: Any):
    """And training makes the same ids of the row with the model's answer."""
    if knows:
        from tests import serving

        lm = serving.model()
    else:
        lm = cutaway.load(chatting_model(tmp_path / "model", context=2048), engine="runtime")
    row = {"messages": [{"role": "user", "content": "Time?"}]}
    (tmp_path / "tools.jsonl").write_text(json.dumps(row | {"tools": given}) + "\n" + json.dumps(row))
    (one, plain), _ = drafts.prompts(lm, tmp_path / "tools.jsonl")
    assert "the time" in lm.tokenizer.decode(one.ids) and "the time" not in lm.tokenizer.decode(plain.ids)
    answered = one.answered("Noon.")
    assert one.answer_in(json.loads(json.dumps(answered))) == "Noon."
    example = examples.reader(lm.checkpoint).example(answered, "here")
    assert example.ids[: example.trained.argmax()].tolist() == one.ids
    assert example.ids[: len(one.ids)].tolist() != plain.ids


@pytest.mark.parametrize(
    ("beside", "why"),
    [
        ({"tools": ["clock"]}, "tools and calls of them should be lists of"),
        ({"tools": 5}, "tools and calls of them should be lists of"),
        ({"tools": [{"name": "clock"}]}, "tools and calls of them should be lists of"),
        ({"tools": "clock"}, "tools is text that is not JSON"),
        ({"chat_template_kwargs": {"tokenize": False, "tools": []}}, "is not an example's to set"),
    ],
)
def test_tools_that_are_none_are_named(lm: Any, tmp_path: Path, beside: dict, why: str):
    row = {"messages": [{"role": "user", "content": "Time?"}]} | beside
    (tmp_path / "one.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=f"one.jsonl, line 1: .*{why}"):
        drafts.prompts(lm, tmp_path / "one.jsonl")


def test_a_call_without_text_is_part_of_a_prompt(tmp_path: Path):
    lm = cutaway.load(chatting_model(tmp_path / "model", context=2048), engine="runtime")
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "clock", "arguments": {}}}]}
    turns = [{"role": "user", "content": "Time?"}, call, {"role": "tool", "content": "12:00"}]
    turns.append({"role": "user", "content": "And now?"})
    (tmp_path / "one.jsonl").write_text(json.dumps({"messages": turns, "tools": [TOOL]}))
    (one,), _ = drafts.prompts(lm, tmp_path / "one.jsonl")
    text = lm.tokenizer.decode(one.ids)
    assert text.index("the time") < text.index('{"name": "clock", "arguments": {}}') < text.index("12:00")


def test_more_answers_than_prompts_are_refused(lm: Any, root: Path, tmp_path: Path):
    lines = answered(lm, root, tmp_path / "answers.jsonl")
    (tmp_path / "answers.jsonl").write_bytes(b"".join(2 * lines))
    with pytest.raises(UserError, match="line 41: does not answer the prompt"):
        answered(lm, root, tmp_path / "answers.jsonl")


def test_prompts_that_changed_are_noticed(root: Path, tmp_path: Path, capsys: Any):
    """In the same file: else answers to others are trained on, and prompts that were trained on held out."""
    shutil.copytree(root / "run", tmp_path / "run")
    changed, begun = tmp_path / "talk.jsonl", tmp_path / "run" / "data" / "begun.json"
    changed.write_text("".join(f'{{"prompt": "{n}?"}}\n' for n in reversed(range(40))))
    begun.write_text(json.dumps(json.loads(begun.read_text()) | {"prompts": str(changed)}))
    with pytest.raises(UserError, match="line 1: does not answer the prompt in this place"):
        finetune_draft.judge(tmp_path / "run")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"completion": 5}, "one.jsonl, line 1: its text is 5"),
        (
            {"prompt": [{"role": "user", "content": "hi"}], "completion": "x"},
            "one.jsonl, line 1: its text is",
        ),
    ],
)
def test_a_prompt_that_is_no_text_is_named(lm: Any, tmp_path: Path, row: dict, why: str):
    (tmp_path / "one.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=why):
        drafts.prompts(lm, tmp_path / "one.jsonl")


def test_an_empty_text_is_no_prompt(lm: Any, tmp_path: Path):
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": ""}))
    assert drafts.prompts(lm, tmp_path / "one.jsonl") == ([], 0)


def test_a_model_that_was_trained_again_under_its_name_is_noticed(root: Path, tmp_path: Path, capsys: Any):
    """Else its draft learns from the answers of the one before."""
    shutil.copytree(root / "model", tmp_path / "model")
    folder, talk = tmp_path / "run", str(root / "talk.jsonl")
    begin = ["finetune", "distill", talk, "--draft", "--model", str(tmp_path / "model"), *ONE_PROCESS]
    begin += ["--output", str(folder), "--steps"]
    assert main([*begin, "1"]) == 0
    weights = next((tmp_path / "model").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    for again in ([*begin, "2", "--resume"], ["finetune", str(folder), "--resume", "--steps", "2"]):
        capsys.readouterr()
        assert main(again) == 2, again
        assert "as it was before its files changed" in " ".join(capsys.readouterr().err.split())


def test_an_untrained_head_of_another_seed_is_not_used(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where a run was stopped before it was trained, it may begin with another seed."""
    started = dict[str, bytes]()

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "_train", stop)
    for name, seed in (("one", "1"), ("one", "2"), ("two", "2")):
        with contextlib.suppress(KeyboardInterrupt):
            main([*words(root, tmp_path / name), "--seed", seed])
        started[name + seed] = (tmp_path / name / finetune_draft.START / "model.safetensors").read_bytes()
    assert started["one1"] != started["one2"] == started["two2"]


# ---- what is refused, and when -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words_", ["--seed -1", "--lr -1", "--steps -1", "--objective.steps 0", "--epochs 0", "--precision bf16"]
)
def test_a_wrong_setting_is_refused_before_the_model_answers(
    root: Path, tmp_path: Path, words_: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.setattr(drafts, "answer", never)
    assert main([*words(root, tmp_path / "run"), *words_.split()]) == 2
    assert "config." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words_", "why"),
    [
        ("stopped --resume", "stopped: the model was stopped while it answered: `cutaway finetune distill"),
        ("distill --draft --resume --output stopped", "--draft --model base --output stopped` goes on"),
        ("distill --draft --resume --output run", "run: is a draft: `cutaway finetune run --resume` goes on"),
    ],
)
def test_how_a_draft_that_was_stopped_goes_on_is_shown(
    root: Path, words_: str, why: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(root)
    Path("stopped/data").mkdir(parents=True, exist_ok=True)
    Path("stopped/data/begun.json").write_text(json.dumps({"prompts": "talk.jsonl", "model": "base"}))
    Path("stopped/data/answers.jsonl").write_text("")
    assert main(["finetune", *words_.split()]) == 2
    assert why in " ".join(capsys.readouterr().err.split())


def test_a_model_without_a_head_is_refused_before_it_answers(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    def refuse(_: Any) -> None:
        raise UserError("it can have none")

    monkeypatch.setattr(drafts, "answer", never)
    monkeypatch.setattr(draft_head, "checked", refuse)
    assert main(words(root, tmp_path / "run")) == 2
    assert "it can have none" in capsys.readouterr().err


def test_two_processes_do_not_answer_into_one_file(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.setattr(drafts, "answer", never)
    with locked(tmp_path / "run"):
        assert main(words(root, tmp_path / "run")) == 2
    assert "another process trains this run" in capsys.readouterr().err


# ---- a head ------------------------------------------------------------------------------------------------


def test_a_runs_head_is_trained_further(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    """Named as `--draft` names it, by the run's folder, and from elsewhere when it goes on."""
    monkeypatch.chdir(root)
    examples = str(root / "run" / "data" / "answers.jsonl")
    further = ["finetune", "eagle3", examples, "--model", "model", "--objective.head", "run"]
    capsys.readouterr()
    assert main([*further, "--output", str(tmp_path / "more"), "--steps", "1", *ONE_PROCESS]) == 0
    shown = "".join(capsys.readouterr().err.split())
    assert f"`cutawaychatmodel--draft{tmp_path / 'more'}`draftswithit." in shown
    configs = [(folder / "draft_head" / "config.json") for folder in (root / "run", tmp_path / "more")]
    assert configs[0].read_bytes() == configs[1].read_bytes()
    monkeypatch.chdir(tmp_path)
    assert main(["finetune", "more", "--resume", "--steps", "2"]) == 0


def test_a_draft_that_was_not_tried_says_so(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    """Stopped among the held-out prompts."""
    shutil.copytree(root / "run", tmp_path / "run")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    again = ["finetune", str(tmp_path / "run"), "--resume"]
    with monkeypatch.context() as patched:
        patched.setattr(drafts, "judged", stop)
        assert main(again) == 130
    assert f"not yet tried: `cutaway finetune {tmp_path}/run --resume`" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (tmp_path / "run" / finetune_draft.ACCEPTANCE).exists()
    assert main(again) == 0 and (tmp_path / "run" / finetune_draft.ACCEPTANCE).exists()


@pytest.mark.parametrize("place", ["run", "run/draft_head", "run/checkpoints/step-00000001"])
def test_a_head_is_no_model(root: Path, place: str):
    with pytest.raises(UserError, match=r"a head that drafts.* no model.*--draft"):
        cutaway.load(root / place)


def test_an_interval_of_what_has_bounds_keeps_to_them():
    tried = [4, 5, 4, 8, 4, 4, 5, 4, 4, 4, 4, 3]
    right = [*tried[:-1], 0]
    wide, kept = statistics.ratio(right, tried), statistics.ratio(right, tried, (0.0, 1.0))
    assert wide.high > 1 >= kept.high > kept.value == wide.value > kept.low > 0
    assert statistics.ratio([4, 4, 4], [4, 4, 4], (0.0, 1.0)).low > 0, "equal ones have an interval too"
