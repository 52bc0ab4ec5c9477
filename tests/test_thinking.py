"""Slow thinking: each strategy against the samples that it is made of, written alone."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import cutaway
from cutaway import cli, conversations
from cutaway.errors import UserError
from cutaway.generate import thinking
from cutaway.generate.thinking import budget
from cutaway.lm import LanguageModel
from tests import inputs

PROMPT = "Two plus three is"


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return cutaway.load(inputs.path("smollm2"))


def alone(lm: LanguageModel, count: int, **settings: Any) -> list[Any]:
    """The samples of a prompt, each written by itself."""
    own = [thinking.seed_of(lm.ids(PROMPT), 3 * count + n) for n in range(count)]
    return [lm.generate(PROMPT, temperature=0.8, seed=seed, **settings) for seed in own]


def test_best_of_is_the_best_sample(lm: LanguageModel):
    own = alone(lm, 4, max_tokens=8)
    found = lm.think(PROMPT, "best-of-4", max_tokens=8, seed=3)
    assert [one.ids for one in found.candidates] == [one.ids for one in own]
    means = [sum(one.logprobs) / len(one.logprobs) for one in own]
    assert found.generation.ids == own[int(np.argmax(means))].ids
    assert found.tokens == sum(len(one.ids) for one in own)
    longest = lm.think(PROMPT, "best-of-4", score=len, max_tokens=8, seed=3)
    assert len(longest.generation.text) == max(len(one.text) for one in own)


def test_prompts_share_no_luck():
    settings = cutaway.generate.sampling_params.SamplingParams(seed=3)
    seeds = [one.seed for ids in ([1, 2], [2, 1], [1, 2, 0]) for one in thinking.samples(settings, 4, ids)]
    assert len(set(seeds)) == 12
    assert seeds[:4] == [one.seed for one in thinking.samples(settings, 4, [1, 2])]


def test_a_vote_takes_the_commonest_answer(lm: LanguageModel):
    own = alone(lm, 6, max_tokens=6)

    def first_letter(text: str) -> str | None:
        letters = [letter for letter in text.lower() if letter in "aeiou"]
        return letters[0] if letters else None

    votes = Counter(first_letter(one.text) for one in own)
    votes.pop(None, None)
    found = lm.think(PROMPT, "vote-6", extract=first_letter, max_tokens=6, seed=3)
    assert votes[first_letter(found.generation.text)] == max(votes.values())
    none = lm.think(PROMPT, "vote-2", extract=lambda text: None, max_tokens=2, seed=3)
    assert none.generation.ids == none.candidates[0].ids


def test_a_tree_keeps_the_best_half_of_its_steps(lm: LanguageModel):
    seen: list[str] = []

    def short(text: str) -> float:
        seen.append(text)
        return -len(text)

    prompt = "Count:\none\ntwo\n"
    found = lm.think(prompt, "tree-4x3", score=short, max_tokens=24, seed=1, ignore_eos=True)
    assert found.generation.text == min((one.text for one in found.candidates), key=len)
    assert all(one.prompt_ids == found.generation.prompt_ids for one in found.candidates)
    for one in found.candidates:
        assert one.text == lm.tokenizer.decode(list(one.ids)) and len(one.ids) == len(one.logprobs) <= 24
    steps = {text for text in seen if text.endswith("\n") and text.count("\n") == 1}
    kept = {one.text.partition("\n")[0] + "\n" for one in found.candidates if one.text.count("\n") > 1}
    assert all(len(text) <= max(sorted(map(len, steps))[:2]) for text in kept)


def test_a_tree_goes_on_with_the_texts_that_score_best(lm: LanguageModel):
    asked: list[tuple[int, ...]] = []
    first = lm.generate(PROMPT, max_tokens=1)

    class Scripted(thinking.Writer):
        """The nth text of a step goes on with the line n."""

        def __init__(self) -> None:
            self.tokenizer = lm.tokenizer

        def write(self, prompts: Any, settings: Any, constraints: Any = None) -> list[Any]:
            asked.extend(tuple(ids) for ids in prompts)
            texts = [f"{n}\n" for n in range(len(prompts))]
            ids = [tuple(lm.tokenizer.encode(text)) for text in texts]
            return [replace(first, text=t, ids=i, stop="\n") for t, i in zip(texts, ids, strict=True)]

    judge = thinking.Judge(score=lambda _, one: sum(map(int, one.text.split())))
    settings = cutaway.generate.sampling_params.SamplingParams(max_tokens=20, seed=0)
    prompt = lm.ids(PROMPT)
    (found,) = thinking.parse("tree-4x3").answer(Scripted(), [prompt], settings, judge)
    begun = [lm.tokenizer.decode(list(ids[len(prompt) :])) for ids in asked]
    assert begun[:4] == [""] * 4 and begun[4:8] == ["3\n", "3\n", "2\n", "2\n"]
    assert begun[8:] == ["2\n3\n", "2\n3\n", "3\n1\n", "3\n1\n"]
    assert found.generation.text == "3\n1\n3\n"


def test_a_tree_reads_a_long_prompt_once(lm: LanguageModel):
    prompt = lm.ids("word " * 300)
    strategy = thinking.parse("tree-4x2")
    with thinking.Writer(lm.engine, lm.tokenizer) as writer:
        settings = replace(lm.ending(cutaway.generate.sampling_params.SamplingParams()), max_tokens=8, seed=0)
        strategy.answer(writer, [prompt], settings, thinking.Judge())
        read = writer.prompt_tokens - writer.cached_tokens
        assert len(prompt) <= read < 2 * len(prompt)  # eight texts begin with it


def test_refining_asks_to_check(lm: LanguageModel):
    messages = [{"role": "user", "content": "What is 2 + 3?"}]
    found = lm.think(messages, "refine-1", max_tokens=10)
    first = lm.chat(messages, max_tokens=10)
    turns = [*messages, {"role": "assistant", "content": first.text}]
    turns.append({"role": "user", "content": conversations.CHECK})
    assert [one.text for one in found.candidates] == [first.text, lm.chat(turns, max_tokens=10).text]
    assert found.generation is found.candidates[-1]
    with pytest.raises(UserError, match="no chat template"):
        lm.think("text", "refine-1")


# ---- budget ------------------------------------------------------------------------------------------------


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the model's control tokens stand for the markers of a thought."""
    monkeypatch.setattr(budget, "MARKERS", (("<jupyter_start>", "<jupyter_output>"),))


def test_a_budget_ends_a_thought(lm: LanguageModel, marked: None):
    begin, end = (lm.tokenizer.special[name] for name in ("<jupyter_start>", "<jupyter_output>"))
    prompt = [*lm.ids("Let us see"), begin]
    free = lm.generate(prompt, max_tokens=12, ignore_eos=True)
    assert end not in free.ids
    found = lm.think(prompt, "budget-5", max_tokens=12, ignore_eos=True).generation
    assert found.ids[:5] == free.ids[:5] and found.ids[5] == end and end not in found.ids[6:]
    none = lm.think(prompt, "budget-0", max_tokens=3, ignore_eos=True).generation
    assert none.ids[0] == end
    closed = lm.think([*prompt, end], "budget-5", max_tokens=12, ignore_eos=True).generation
    assert end not in closed.ids  # the prompt's thought is over


class Inner:
    """A constraint that allows the id 7 alone, once."""

    def __init__(self) -> None:
        self.done = False

    def mask(self, logits: np.ndarray) -> None:
        allowed = logits[7]
        logits[:] = -np.inf
        logits[7] = allowed

    def accept(self, id: int) -> None:
        assert id == 7
        self.done = True

    def fresh(self) -> "Inner":
        return Inner()


def written(limit: budget.Budget, best: int, count: int) -> list[int]:
    """What a model that always prefers ``best`` writes."""
    ids = []
    for _ in range(count):
        if limit.done:
            break
        logits = np.zeros(20, np.float32)
        logits[best] = 5
        limit.mask(logits)
        ids.append(int(logits.argmax()))
        limit.accept(ids[-1])
    return ids


class Letters:
    """A vocabulary whose "\\nWait" is 11 12, and whose ids are bytes."""

    eos_ids = (0,)

    def encode(self, text: str, special: str = "text") -> list[int]:
        return [11, 12]

    def token_bytes(self, id: int) -> bytes:
        return bytes([id + 64])


def test_markers_of_several_ids_and_a_grammar_after_the_thought():
    limit = budget.Budget(Letters(), (1,), (2, 3), True, 4, inner=Inner())
    assert written(limit, 0, 1) == [1]  # not 0: no end token within a thought before a grammar
    limit = limit.fresh()
    assert written(limit, 5, 20) == [5, 5, 5, 5, 2, 3, 7]
    own = budget.Budget(Letters(), (1,), (2, 3), False, 4, inner=Inner())
    assert written(own, 5, 20) == [7]


def test_a_thought_that_ends_too_soon_waits():
    limit = budget.Budget(Letters(), (1,), (2,), True, 8, least=5)
    assert written(limit, 2, 7) == [11, 12, 11, 12, 11, 12, 2]
    exact = budget.Budget(Letters(), (1,), (2,), True, 8, least=4)
    assert written(exact, 2, 5) == [11, 12, 11, 12, 2]


def test_a_thought_that_the_model_opens_counts():
    limit = budget.Budget(Letters(), (1,), (2,), False, 3)
    assert written(limit, 1, 6)[:5] == [1, 1, 1, 1, 2]


def test_a_model_without_markers_has_no_budget(lm: LanguageModel):
    with pytest.raises(UserError, match="no marker that opens a thought"):
        lm.think(PROMPT, "budget-5")


@pytest.mark.parametrize("spelt", ["best-of", "vote-0", "tree-4", "budget--1", "think"])
def test_what_is_no_strategy_is_refused(spelt: str):
    with pytest.raises(UserError):
        thinking.parse(spelt)


def test_the_verbs_think(tmp_path: Any, capsys: pytest.CaptureFixture[str]):
    words = ["generate", PROMPT, "--max-tokens", "4", "--seed", "3"]
    assert cli.main([*words, "--think", "vote-3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["think"] == "vote-3" and len(found["candidates"]) == 3 and found["tokens"] <= 12
    assert cli.main([*words, "--think", "vote-3", "--logprobs", "2"]) == 2
    assert "leave out" in capsys.readouterr().err
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "What is 2 + 2?", "answer": "4"}\n{"prompt": "Say hi", "answer": "hi"}\n')
    task = ["eval", "smollm2", "--tasks", str(own), "--think", "best-of-2", "--max-tokens", "6", "--no-cache"]
    assert cli.main([*task, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["tasks"]["own"]
    assert figures["ceiling"] >= figures["acc"] and figures["tokens"] > 0
