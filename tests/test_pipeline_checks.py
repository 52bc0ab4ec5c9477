"""`cutaway pipeline` finds before the first stage what would otherwise fail after hours of work."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cutaway import cli
from cutaway.commands import pipeline as command
from cutaway.data import run_tokenizer
from cutaway.errors import UserError
from cutaway.evaluate.tasks import bfcl, file, gsm8k, humaneval, programs, reasoning_gym
from cutaway.pipeline import budget, checks, config, data, folder, named, run
from cutaway.pipeline.config import Pipeline
from cutaway.tokenizer import Tokenizer
from tests.test_pipeline import fake_start, made, small, with_stage

SPECIAL = ["<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<tool_call>", "</tool_call>"]
BLOCK = {
    "times": 1,
    "attention": {
        "kind": "gqa", "heads": 4, "kv_heads": 2, "key_size": 8, "position": {"kind": "rope", "size": 8},
    },
    "mlp": {"hidden": 64},
}  # fmt: skip
MODEL = {"width": 32, "context": 256, "blocks": [BLOCK]}
STAGES: dict[str, Any] = {
    "data": {"verb": "data", "config": {"programs": {"dates": 1}}},
    "tokenizer": {
        "verb": "tokenizer train",
        "config": {"files": ["data/tokenizer.txt"], "size": 512, "end_of_text": "<|end|>", "special": SPECIAL,
                   "chat_template": "data/chat_template.jinja"},
    },
    "pretrain": {
        "verb": "pretrain",
        "share": 1,
        "config": {"model": MODEL, "data": {"sources": [{"path": "data/text"}], "tokenizer": "tokenizer"},
                   "steps": 4, "batch_size": 4, "micro_batch_size": 2},
    },
    "sft": {"verb": "finetune", "share": 1,
            "config": {"base": "pretrain", "data": {"path": "data/sft.jsonl"}}},
}  # fmt: skip


def changed(**stages: Any) -> dict[str, Any]:
    """The stages, some of whose configs have other entries; a stage that is not among them comes last."""
    given = json.loads(json.dumps(STAGES))
    for name, entries in stages.items():
        if name in given:
            given[name]["config"] |= entries
        else:
            given[name] = entries
    return given


def check_all(given: Pipeline) -> None:
    command.check(given)
    named.check(given)
    checks.models(given)


def refused(wrong: str, stages: dict[str, Any], **more: Any) -> None:
    with pytest.raises(UserError, match=wrong):
        check_all(made(stages, **more))


def test_the_command_refuses_all_of_it_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the three groups of checks, in one command line."""
    monkeypatch.chdir(tmp_path)
    wrong = {
        "config.limit is -5": {"model": "sft", "tasks": "hellaswag", "limit": -5},
        "no task 'helaswag'": {"model": "sft", "tasks": "helaswag"},
        "max_tokens: 64": {"model": "sft", "tasks": "gsm8k"},
    }
    for sentence, asked in wrong.items():
        given = made(changed(ask={"verb": "eval", "config": asked}))
        (tmp_path / "mine.yaml").write_text(config.written(given))
        with pytest.raises(UserError, match=sentence):
            command.pipeline("mine.yaml", dry_run=True)
    assert [one.name for one in tmp_path.iterdir()] == ["mine.yaml"]


# ---- learning rates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "rate"),
    [(None, 2e-4), ({"kind": "dpo"}, 5e-5), ({"kind": "cdpo"}, 5e-5), ({"kind": "orpo"}, 1e-4),
     ({"kind": "reward_model"}, 1e-4), ({"kind": "grpo"}, 5e-5)],
)  # fmt: skip
def test_a_stage_begins_with_the_learning_rate_of_its_method(
    objective: dict[str, Any] | None, rate: float
) -> None:
    """What `cutaway finetune METHOD` has, whatever is trained; a rate of the file's own stays."""
    own = {"base": "pretrain"} | ({"objective": objective} if objective else {})

    def optimizer(**entries: Any) -> dict[str, Any]:
        stages = changed(more={"verb": "finetune", "config": own | entries})
        return made(stages)["more"].config["optimizer"]

    assert optimizer() == {"kind": "adamw", "learning_rate": rate, "weight_decay": 0.0}
    assert optimizer(optimizer={"kind": "muon"}) == {"kind": "muon", "learning_rate": rate}
    mine = {"kind": "adamw", "learning_rate": 0.003}
    assert optimizer(optimizer=mine) == mine
    given = made(changed(more={"verb": "finetune", "config": own}))
    assert (
        config.parsed(config.yaml.safe_load(config.written(given)), "again.yaml", Path("/nowhere")) == given
    )


def test_an_objective_that_there_is_not_is_named_by_the_checks_and_not_before() -> None:
    for objective in ({"kind": "dbo"}, {"kind": ["dpo"]}, {}, "dpo"):
        stages = changed(more={"verb": "finetune", "config": {"base": "sft", "objective": objective}})
        assert "optimizer" not in made(stages)["more"].config
        refused("stages.more: config", stages)


# ---- room for answers --------------------------------------------------------------------------------------


def asking(tasks: str, **more: Any) -> dict[str, Any]:
    return changed(ask={"verb": "eval", "config": {"model": "sft", "tasks": tasks, **more}})


def test_an_answer_that_leaves_the_question_no_room_is_refused(tmp_path: Path) -> None:
    """Of the file's own exercises, of those that the data stage writes, and of tasks by name."""
    mine, choices = tmp_path / "mine.jsonl", tmp_path / "choices.jsonl"
    mine.write_text('{"prompt": "1 + 1 =", "answer": "2"}\n')
    choices.write_text('{"prompt": "1 + 1 =", "choices": ["1", "2"], "answer": 1}\n')
    long = (
        "stages.ask: config.max_tokens: an answer to .* may have 256 tokens, and the context of sft holds 256"
    )
    for task in (f"file:{mine}", str(mine), "file:data/held-out/dates.jsonl", f"hellaswag,{mine}"):
        refused(long, asking(task))
    refused("an answer to gsm8k may have 320 tokens", asking("gsm8k"))
    refused("an answer to programs:dates may have 300 tokens", asking("programs:dates", max_tokens=300))
    refused("may have 256 tokens, and the context of pretrain holds 256", changed(
        ask={"verb": "eval", "config": {"model": "smollm2", "against": "pretrain", "tasks": str(mine)}}
    ))  # fmt: skip
    refused("the context of sft holds 128", asking(str(mine), max_tokens=128, context=128))
    refused("may have 300 tokens", asking("programs:dates", max_tokens="300"))
    for fits in (
        asking(str(mine), max_tokens=32),
        asking(str(mine), max_tokens="32"),
        asking(str(mine), context=512),
        asking(str(choices)),
        asking("programs:dates,hellaswag"),
        asking("text:data/held-out/text"),
    ):
        check_all(made(fits))


def test_a_longer_context_of_a_stage_between_is_seen() -> None:
    """By the tasks that are asked, and by the stage itself and those that go on from it."""
    longer = {"context_extension": {"factor": 2.0}, "data": {"path": "data/sft.jsonl", "context": 512}}
    after = {"base": "sft", "data": {"path": "data/sft.jsonl", "context": 512}}
    stages = changed(sft=longer, after={"verb": "finetune", "config": after})
    asked = {"model": "after", "tasks": "file:data/held-out/dates.jsonl"}
    check_all(made(stages | {"ask": {"verb": "eval", "config": asked}}))
    refused("data.context is 512; the base holds 256", changed(sft=longer | {"context_extension": None}))


def test_the_longest_answers_are_those_of_the_tasks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The numbers that the checks have beside those that the tasks ask for."""
    (tmp_path / "mine.jsonl").write_text('{"prompt": "1 + 1 =", "answer": "2"}\n')
    found = {"file": file.task(str(tmp_path / "mine.jsonl")), "programs": programs.task("dates", 2)}
    one = SimpleNamespace(test=(), floor=lambda: 0.0)
    monkeypatch.setattr(reasoning_gym.tasks, "load", lambda *_, **__: one)
    found["reasoning_gym"] = reasoning_gym.task("chain_sum", 2)
    for module in (gsm8k, bfcl):
        monkeypatch.setattr(module, "jsonl", lambda *_: [])
    found |= {"gsm8k": gsm8k.task(), "bfcl": bfcl.task("simple")}
    (tmp_path / humaneval.MEMBER).parent.mkdir(parents=True)
    (tmp_path / humaneval.MEMBER).write_bytes(gzip.compress(b""))
    monkeypatch.setattr(humaneval, "folder", lambda *_: tmp_path)
    monkeypatch.setattr(humaneval.sandbox, "run", lambda *_, **__: None)
    found["humaneval"] = humaneval.task()
    assert {name: task.max_tokens for name, task in found.items()} == checks.ANSWER


# ---- a text to be measured on ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "entries"),
    [
        ("quantize", {"source": "sft", "type": "Q8_0"}),
        ("merge", {"paths": ["sft"]}),
        ("convert", {"source": "sft", "attention": "mla"}),
    ],
)
def test_a_model_without_a_begin_token_is_not_measured_on_a_text_of_its_own(
    verb: str, entries: dict[str, Any]
) -> None:
    def packed(**more: Any) -> dict[str, Any]:
        return changed(pack={"verb": verb, "config": entries | more})

    refused("stages.pack: config.text: is missing: the vocabulary of sft has no token that begins", packed())
    check_all(made(packed(measure=False)))
    check_all(made(packed(text="data/held-out/text/0-00039.txt")))
    for tokenizer in ("bytes", "bpe:512"):
        own = {"sources": [{"path": "data/text"}], "tokenizer": tokenizer}
        check_all(made(packed() | {"pretrain": changed(pretrain={"data": own})["pretrain"]}))


def test_a_conversion_that_measures_nothing_needs_no_text() -> None:
    check_all(made(changed(pack={"verb": "convert", "config": {"source": "sft", "type": "Q8_0"}})))
    soup = {"paths": ["sft", "pretrain"], "method": "average"}
    check_all(made(changed(pack={"verb": "merge", "config": soup})))


# ---- control tokens ----------------------------------------------------------------------------------------


def test_a_chat_template_whose_tokens_the_vocabulary_lacks_is_refused(tmp_path: Path) -> None:
    lacks = r"stages.tokenizer: config.special: lacks <\|tool\|>, <tool_call>, </tool_call>, which the chat"
    refused(lacks, changed(tokenizer={"special": SPECIAL[:3]}))
    refused(r"lacks <\|end\|>", changed(tokenizer={"end_of_text": ""}))
    refused(
        r"lacks <\|system\|>, <\|end\|>, <\|user\|>",
        changed(tokenizer={"special": None, "end_of_text": None}),
    )
    check_all(made(changed(tokenizer={"special": [*SPECIAL, "<|end|>"], "end_of_text": None})))
    check_all(made(changed(tokenizer={"special": None, "chat_template": None})))
    mine = tmp_path / "mine.jinja"
    mine.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n<b>{{ m.content }}</b><|im_end|>{% endfor %}"
    )
    own = {"chat_template": str(mine)}
    refused(
        r"lacks <\|im_start\|>, <\|im_end\|>, which the chat template .*mine.jinja", changed(tokenizer=own)
    )
    check_all(made(changed(tokenizer=own | {"special": ["<|im_start|>"], "end_of_text": "<|im_end|>"})))


# ---- several processes -------------------------------------------------------------------------------------


def test_a_batch_that_the_processes_cannot_share_is_refused() -> None:
    refused("stages.pretrain: config.batch_size: 4 in micro-batches of 2 cannot be split evenly over 4",
            changed(), processes=4)  # fmt: skip
    refused("stages.sft: config.batch_size: is missing: 2 processes share each batch, so write a multiple of",
            changed(), processes=2)  # fmt: skip
    refused(
        "stages.sft: config.batch_size: 3 in micro-batches of 1", changed(sft={"batch_size": 3}), processes=2
    )
    refused("stages.pretrain: config.tensor_parallel: 3 processes cannot be grouped by 2",
            changed(pretrain={"tensor_parallel": 2}), processes=3)  # fmt: skip
    check_all(made(changed(sft={"batch_size": 8}), processes=2))
    check_all(made(changed()))


# ---- numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "entries", "wrong"),
    [
        ("eval", {"limit": -5}, "limit is -5; it must be 1 or more"),
        ("eval", {"limit": 0}, "limit is 0; it must be 1 or more"),
        ("eval", {"samples": 0}, "samples is 0; it must be 1"),
        ("eval", {"temperature": -0.5}, "temperature is -0.5; it must be 0 or more"),
        ("eval", {"temperature": float("nan")}, "temperature is nan; it must be 0"),
        ("eval", {"seed": -1}, "seed is -1; it must be 0 or more"),
        ("eval", {"max_tokens": -1}, "max_tokens is -1"),
        ("attack", {"trials": 0}, "trials is 0"),
        ("attack", {"threads": -2}, "threads is -2"),
        ("merge", {"density": -0.1}, "density is -0.1"),
    ],
)
def test_a_number_out_of_its_range_is_named_before_the_first_stage(
    verb: str, entries: dict[str, Any], wrong: str
) -> None:
    own = {
        "eval": {"model": "sft", "tasks": "hellaswag"},
        "attack": {"model": "sft"},
        "merge": {"paths": ["sft"]},
    }
    refused(f"stages.last.config.{wrong}", changed(last={"verb": verb, "config": own[verb] | entries}))


def test_numbers_of_their_least_are_taken() -> None:
    least = {"model": "sft", "tasks": "hellaswag", "limit": 1, "temperature": 0, "seed": 0, "threads": 1}
    check_all(made(changed(last={"verb": "eval", "config": least})))


def test_a_budget_below_zero_is_a_wrong_time_and_no_missing_one(capsys: pytest.CaptureFixture[str]) -> None:
    for given in (["--budget", "-5m"], ["--budget=-5m"]):
        assert cli.main(["pipeline", "tiny", "--dry-run", *given]) == 2
        assert "a budget of '-5m': write a time as 90m, 2h or 600s" in capsys.readouterr().err
    assert cli.main(["pipeline", "tiny", "--budget"]) == 2
    assert "needs --budget" in capsys.readouterr().err


# ---- a stage that is made again ----------------------------------------------------------------------------


def test_a_stage_that_is_made_again_has_the_time_that_it_had(tmp_path: Path) -> None:
    """Though the budget is spent: neither what it took before counts, nor what those behind it took."""
    tiny = replace(config.read_pipeline("tiny"), budget=900.0)
    opened = folder.opened(tmp_path / "run", tiny)
    probes = dict.fromkeys(tiny.names, (5.0, 0.5))
    planner, steps = budget.ByTime(900, lambda _: None, probes), {}
    for name in tiny.names:
        if tiny[name].share:
            steps[name] = planner.fixed(opened, name)["steps"]
        opened.add(name, planner.time_of(opened, name) if tiny[name].share else tiny[name].seconds)
    assert sum(opened.times().values()) > 0.97 * 900
    for name in ("pretrain", "sft", "rewards"):
        took = opened.took(name)
        opened.forget(name)
        assert planner.fixed(opened, name)["steps"] == steps[name] > budget.FEWEST
        opened.add(name, took)


def test_what_a_removed_stage_took_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a stage that was changed and removed, or removed alone; not of one that goes on."""
    monkeypatch.setattr(run, "start", fake_start)
    opened = folder.opened(tmp_path / "run", small())
    run.Runner(opened, note=lambda _: None).run()
    for name in small().names:
        opened.add(name, 1000.0)
        opened.add(name, 5000.0, folder.ENERGY)
    (opened.stage("tokens") / folder.DONE).unlink()
    (opened.stage("pack") / folder.DONE).unlink()
    for path in opened.stage("pack").iterdir():
        path.unlink()
    opened.stage("pack").rmdir()
    other = with_stage("pack", replace(small()["pack"], config={"source": "tokens", "type": "F16"}))
    again = folder.opened(tmp_path / "run", other)
    run.Runner(again, note=lambda _: None).run()
    assert again.took("data") > 1000 and again.took("tokens") > 1000 and again.took("pack") < 1000
    assert json.loads((tmp_path / "run" / folder.ENERGY).read_text()).keys() >= {"data", "tokens"}
    assert json.loads((tmp_path / "run" / folder.ENERGY).read_text()).get("pack", 0) < 5000


def test_the_template_of_the_data_stage_is_the_one_that_is_checked() -> None:
    assert set(checks.CONTROL.findall(data.TEMPLATE.read_text("utf-8"))) == {*SPECIAL, "<|end|>"}


@pytest.mark.filterwarnings("ignore:the corpus gives")
@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_which_vocabularies_begin_a_text_is_what_their_models_have(kind: Any, tmp_path: Path) -> None:
    """Of a vocabulary that the stage trains, as a model's folder keeps it; of bytes, and of the run's own."""
    spec = Tokenizer.train(["a word and another word "] * 9, size=320, kind=kind)
    place = run_tokenizer.save(spec, tmp_path / "tokenizer")
    found = Tokenizer.load(place).bos is not None
    assert found == checks._begins(made(changed(tokenizer={"kind": kind})), "pretrain")
    own = {"pretrain": {"verb": "pretrain", "config": {"data": {"tokenizer": str(place)}}}}
    assert found == checks._begins(made(own), "pretrain")
    own["pretrain"]["config"]["data"]["tokenizer"] = "bytes"
    assert run_tokenizer.of_bytes().bos is not None and checks._begins(made(own), "pretrain")


def test_a_vocabulary_without_room_for_its_special_tokens_is_refused() -> None:
    """The least that is taken is the least that the verb takes."""
    refused("stages.tokenizer: config.size: is 262; it must be 263 or more", changed(tokenizer={"size": 262}))
    check_all(made(changed(tokenizer={"size": 263})))
    with pytest.raises(UserError, match="ask for 263 or more"):
        Tokenizer.train(["a word"], size=262, special=[*SPECIAL, "<|end|>"])
    check_all(made(changed(tokenizer={"size": 100, "kind": "unigram"})))
