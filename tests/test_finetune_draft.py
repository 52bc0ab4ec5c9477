"""A head that drafts for a model: it begins as what the model nearly says, its answers are the model's own, a
run that was stopped goes on, what it drafts is counted, and the folder drafts for the model.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cutaway
from cutaway import native
from cutaway.cli import main
from cutaway.commands import finetune_draft
from cutaway.embedding.tables import lowrank
from cutaway.errors import UserError
from cutaway.evaluate import drafts
from cutaway.evaluate.statistics import Estimate
from cutaway.generate.decode import finish, generate
from cutaway.generate.sampling_params import SamplingParams
from cutaway.quantization import formats
from cutaway.train import draft_head
from cutaway.weights import eagle3
from tests.training import chatting_model, conversations

needs_core = pytest.mark.skipif(native.unavailable_reason() is not None, reason="the core is not built")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chatting_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(draft_head, "KEY", 8)
    monkeypatch.setattr(finetune_draft, "TOKENS", 6)
    return conversations(tmp_path / "talk.jsonl")


@pytest.fixture
def lm(base: Path) -> Any:
    return cutaway.load(base, engine="runtime")


@needs_core
@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(1.1, 1.5, "`cutaway chat m --draft run`"), (0.7, 0.9, "It does not pay"), (0.9, 1.2, "so few prompts"),
     (-math.inf, math.inf, "so few prompts")],
)  # fmt: skip
def test_a_draft_is_recommended_where_it_pays(low: float, high: float, words: str) -> None:
    found = finetune_draft.advice(Estimate((low + high) / 2, 0.1, low, high, 3), "m", Path("run"))
    assert words in found.split(".")[0]
    assert "--draft run" in found


def test_an_untrained_head_says_what_the_stream_before_the_last_layer_does(
    lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And scores the ids that were written most."""
    monkeypatch.setattr(draft_head, "KEY", 8)
    monkeypatch.setattr(draft_head, "SCORED", 50)
    counts = np.arange(320)[::-1] % 71
    draft_head.write(lm.checkpoint, counts, tmp_path)
    of = eagle3.read(tmp_path)
    assert of.ids is not None and (np.diff(of.ids) > 0).all()
    assert sorted(counts[of.ids]) == sorted(counts)[-50:]
    (head,) = lm.engines.draft_heads(tmp_path)
    ids = lm.ids("It is a truth")
    _, values = lm.engine.observe([ids], [lm.engine.new_state()], [*head.watches, "blocks.0.out"])
    logits, _ = head.read([(ids[1:], head.hidden(head.seen(values))[:-1])], [head.new_state()])
    wanted = of_lens(lm, values["blocks.0.out"][-2])[of.ids]
    assert np.corrcoef(logits[0], wanted)[0, 1] > 0.999


def of_lens(lm: Any, stream: np.ndarray) -> np.ndarray:
    """The model's head of a residual stream, in floats."""
    table, norm = (formats.unpack(lm.checkpoint.tensors[f"{name}.weight"]) for name in ("embedding", "norm"))
    return table @ (stream / np.sqrt((stream**2).mean() + 1e-5) * norm)


@pytest.mark.parametrize("changes", [{"blocks": 1}, {"table": True}])
def test_a_model_that_can_have_no_head_is_refused(base: Path, tmp_path: Path, changes: dict):
    checkpoint = cutaway.load(base).checkpoint
    of: Any = checkpoint.config
    of = replace(of, blocks=of.blocks[:1]) if "blocks" in changes else replace(of, table=lowrank.Config(4))
    with pytest.raises(UserError, match="before three layers"):
        draft_head.write(replace(checkpoint, config=of), np.ones(320), tmp_path)
    assert not list(tmp_path.iterdir())


@needs_core
@pytest.mark.parametrize("at", [0, 16, 21], ids=["first", "end of a part", "within a part"])
def test_answers_that_were_stopped_go_on(lm: Any, talk: Path, tmp_path: Path, monkeypatch: Any, at: int):
    monkeypatch.setattr(drafts, "AT_ONCE", 16)
    asked, too_long = drafts.prompts(lm, talk)
    assert (len(asked), too_long) == (40, 0) and asked[3].row == {
        "messages": [{"role": "user", "content": "3?"}]
    }

    def stop(done: int, total: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    drafts.answer(lm, asked, whole, 6, lambda done, total: None)
    with pytest.raises(KeyboardInterrupt):
        drafts.answer(lm, asked, part, 6, stop)
    assert len(drafts.answers(asked, part)) == at, "each answer that ended is kept"
    with part.open("a") as file:
        file.write('{"messages": [{"ro')  # the disk was full
    drafts.answer(lm, asked, part, 6, lambda done, total: None)
    assert part.read_bytes() == whole.read_bytes()
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [row["messages"][-1]["role"] for row in rows] == ["assistant"] * 40


@needs_core
@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "hi"}, {"messages": [{"role": "user", "content": "hi"}]}),
        ({"question": "hi", "answer": "no"}, {"messages": [{"role": "user", "content": "hi"}]}),
        ({"prompt": "hi", "completion": "no"}, {"text": "hi"}),
        ({"text": "x" * 40}, {"text": "x" * drafts.BEGINNING}),
    ],
)
def test_each_layout_has_prompts(lm: Any, tmp_path: Path, row: dict, prompt: dict):
    (tmp_path / "one.jsonl").write_text(json.dumps(row))
    assert [one.row for one in drafts.prompts(lm, tmp_path / "one.jsonl")[0]] == [prompt]


@needs_core
def test_a_model_foresees_its_own_answers(lm: Any, talk: Path):
    asked = drafts.prompts(lm, talk)[0][:4]
    found = drafts.judged(lm, lm, asked, 11, lambda done, total: None)
    assert found.acceptance.value == found.first.value == 1 and found.prompts == 4
    assert found.per_step.value == pytest.approx(5, abs=1)


@needs_core
def test_what_a_draft_foresees_is_what_it_writes_behind_each_step(lm: Any, talk: Path):
    """By hand: at each step the draft goes on greedily by COUNT tokens, of which those before a wrong one
    count.
    """
    draft = lm.first_layers(1)
    asked = drafts.prompts(lm, talk)[0][:3]
    found = drafts.judged(lm, draft, asked, 19, lambda done, total: None)
    steps = list[tuple[int, int]]()
    for one in asked:
        made = finish(generate(lm.engine, lm.tokenizer, one.ids, SamplingParams(max_tokens=19), None, None))
        end = [made.stop] if isinstance(made.stop, int) else []
        ids, at = [*made.ids, *end], 1
        while at < 19 and at < len(ids):
            count = min(drafts.COUNT, 19 - 1 - at)
            own = draft.generate([*one.ids, *ids[:at]], max_tokens=count, temperature=0, ignore_eos=True).ids
            right = next((n for n in range(count) if at + n >= len(ids) or own[n] != ids[at + n]), count)
            if count:
                steps.append((right, right + (right < count)))
            at += right + 1
    right, tried = (sum(column) for column in zip(*steps, strict=True))
    assert found.acceptance.value == pytest.approx(right / tried)
    assert found.per_step.value == pytest.approx(right / len(steps) + 1) and len(steps) > 10


@needs_core
def test_a_draft_is_trained_and_drafts(base: Path, talk: Path, tmp_path: Path, capsys: Any):
    folder = tmp_path / "draft"
    words = ["finetune", "distill", str(talk), "--draft", "--model", str(base), "--output", str(folder)]
    assert main([*words, "--steps", "1", "--threads", "1", "--compile", "never"]) == 0
    printed = capsys.readouterr().err
    assert "On 3 held-out prompts: " in printed and f"--draft {folder}" in printed
    assert set(json.loads((folder / "acceptance.json").read_text())) >= {"acceptance", "speed", "per_step"}
    assert len((folder / "data" / "answers.jsonl").read_text().splitlines()) == 40 - 3
    assert main([*words, "--steps", "2", "--threads", "1", "--resume"]) == 0
    assert "Continuing after step 1." in capsys.readouterr().err
    say = ["generate", "abc", "--model", str(base), "--max-tokens", "20", "--ignore-eos", "--json"]
    assert main(say) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main([*say, "--draft", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["ids"] == plain["ids"]


@needs_core
@pytest.mark.parametrize(
    ("words", "printed"),
    [
        ("sft talk.jsonl --draft", "--draft goes with the method distill, not with sft"),
        ("distill talk.jsonl --draft --check", "has yet to write: leave out --check"),
        ("distill --draft", "name their file"),
        ("distill long.jsonl --draft", "40 prompts leave no room for an answer: left out."),
        ("distill few.jsonl --draft", "few.jsonl: has 3 different prompts, and a draft needs 32 at least"),
        (
            "distill other.jsonl --draft --output begun",
            "begun: has answers of another model, or to other prompts",
        ),
    ],
)
def test_what_cannot_be_a_draft_is_refused(
    base: Path, talk: Path, capsys: Any, monkeypatch: Any, words: str, printed: str
):
    monkeypatch.chdir(talk.parent)
    lines = talk.read_text().splitlines(keepends=True)
    Path("few.jsonl").write_text("".join(lines[:3]))
    Path("other.jsonl").write_text("".join(lines[:35]))
    Path("long.jsonl").write_text(json.dumps({"prompt": "x" * 200}) + "\n")
    Path("long.jsonl").write_text(Path("long.jsonl").read_text() * 40)
    Path("begun/data").mkdir(parents=True)
    Path("begun/data/begun.json").write_text(json.dumps({"prompts": "talk.jsonl", "model": str(base)}))
    assert main(["finetune", *words.split(), "--model", str(base)]) == 2
    assert printed in " ".join(capsys.readouterr().err.split())
    assert not Path("runs").exists(), "what is refused leaves nothing behind"
