"""Programs that write questions: checked answers, held-out facts, scorers that cannot be gamed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from cutaway.agent.tools.calculator import calculator
from cutaway.data import tasks
from cutaway.data.programs import registry
from cutaway.data.programs.item import reward, right
from cutaway.errors import OperationalError, UserError
from cutaway.evaluate import task_registry
from cutaway.evaluate.agent_exercises import answered
from cutaway.evaluate.cache import Cache
from cutaway.evaluate.task import AgentExercise
from cutaway.lm import LanguageModel


@pytest.mark.parametrize("name", registry.names())
def test_items_are_solved_and_held_out_facts_are_not_trained_on(name: str) -> None:
    """The answer comes from the question's text alone, and a wrong one is wrong."""
    train = registry.items(name, 400, 0, held_out=False)
    held = registry.items(name, 60, 1, held_out=True)
    assert len({item.question for item in [*train, *held]}) == 460
    assert not {item.facts for item in train} & {item.facts for item in held}
    for item in [*train, *held]:
        assert right(item.answer, item.answer) and not right(item.wrong, item.answer)
        assert item.expression is None or calculator(item.expression) == item.answer
    assert (
        registry.items(name, 400, 0, held_out=False) == train != registry.items(name, 400, 2, held_out=False)
    )


def test_a_kind_of_few_questions_keeps_its_part() -> None:
    """Of 2,000 dates two of seven ask a weekday, of which there are 42 questions."""
    drawn = registry.items("dates", 2000, 0, held_out=False, repeats=10)
    times = Counter(item.question for item in drawn)
    assert max(times.values()) == 10
    weekdays = [sum(item.facts.startswith("dates day") for item in found)
                for found in (drawn, registry.items("dates", 2000, 0, held_out=False))]  # fmt: skip
    assert weekdays[0] > 300 and weekdays[1] <= 42


def test_a_wrong_answer_of_a_program_is_an_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from cutaway.data.programs import dates

    monkeypatch.setattr(dates, "solve", lambda question: "never")
    with pytest.raises(OperationalError, match="internal error"):
        registry.items("dates", 5, 0, held_out=False)
    with pytest.raises(UserError, match="there is no such program: use arithmetic"):
        registry.items("cooking", 5, 0, held_out=False)
    item = registry.items("lists", 1, 0, held_out=False)[0]
    monkeypatch.setattr(dates, "draw", lambda random: item)
    monkeypatch.setattr(dates, "solve", lambda question: item.answer)
    with pytest.raises(UserError, match="has 1 different questions, and 2 were asked for: ask for fewer"):
        registry.items("dates", 2, 0, held_out=False)


@pytest.mark.parametrize(
    ("text", "answer", "is_right"),
    [
        ("31", "31", True),
        ("August has 31 days? It is 31.", "31", True),
        ("131", "31", False),
        ("31 or 30", "31", False),
        ("", "31", False),
        ("apple, river, moon", "moon", False),  # a list of all that might be right
        ("The last word is Moon.", "moon", True),
        ("apple\nmoon", "moon", True),
        ("g-a-r-d-e-n", "g-a-r-d-e-n", True),
        ("a-g-a-r-d-e-n", "g-a-r-d-e-n", False),
        ("moon, river", "river", False),
    ],
)
def test_an_answer_is_the_last_line_or_its_end(text: str, answer: str, is_right: bool) -> None:
    assert right(text, answer) is is_right
    full = {True: (0.5, 1.0), False: (0.0,)}[is_right]
    assert reward(text, {"answer": answer}) in full


def test_programs_are_a_task_to_learn_from_rewards() -> None:
    task = tasks.load("programs:spelling+dates", 30, 10)
    assert len(task.train) == 30 and len(task.test) == 10
    assert not {problem.question for problem in task.train} & {problem.question for problem in task.test}
    assert all(task.score(str(problem.answer), problem) == 1 for problem in task.train)
    assert task.floor() < 0.5
    with pytest.raises(UserError, match="asks the calculator"):
        tasks.load("programs:arithmetic", 4, 2)
    with pytest.raises(UserError, match=r"leave data.path"):
        tasks.load("programs:dates", 4, 2, path="x.jsonl")


class Speaker(LanguageModel):
    """A model whose agent calls the calculator, or answers at once, as ``talks`` says."""

    engine_choice, tokenizer = ("runtime", ""), property(lambda self: self)  # pyright: ignore
    checkpoint: Any = type("Checkpoint", (), {"classifier": False, "chat_template": "x"})()

    def __init__(self, talks: Any) -> None:
        self.talks, self.context, self.dtype = talks, 512, "float32"

    def decode(self, ids: list[int]) -> str:
        return "prompt"

    def chat_ids(self, messages: Any, tools: Any) -> list[int]:
        assert tools[0]["function"]["name"] == "calculator"
        return list(messages[0]["content"].encode())

    def agent(self, tools: Any, **options: Any) -> Any:
        from pathlib import Path

        from cutaway.agent.built_in_tools import built_in

        made = type(
            "Agent", (), {"messages": [], "tools": [built_in(name, Path(), lambda: None) for name in tools]}
        )
        made.ask = staticmethod(self.talks)  # pyright: ignore[reportAttributeAccessIssue]
        return made()


def test_agent_exercises_count_the_answer_after_the_calls() -> None:
    task = task_registry.find("programs:arithmetic", 6)
    assert all(isinstance(item, AgentExercise) for item in task.items)  # pyright: ignore
    solve = registry._program("arithmetic").solve

    def talks(question: str) -> Any:
        calls = ("call",) if "*" in question else ()
        answer = {"text": solve(question) if calls else "42", "calls": calls, "ids": (1, 2)}
        return type("Answer", (), answer)()

    lm: Any = Speaker(talks)
    values, answers, tokens, _ = answered(lm, task, Cache(lm, None), None, lambda *_: None)  # type: ignore[arg-type]
    products = [float("*" in item.prompt) for item in task.items]  # pyright: ignore
    assert values == {"acc": products, "called": products} and tokens == 12 and len(answers) == 6
    assert 0 < sum(products) < 6
