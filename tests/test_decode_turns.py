"""The turns of long texts that decode beside other clients' answers."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from cutaway.generate.batch.step_budget import DecodeTurns
from cutaway.runtime.engine import RuntimeEngine
from tests import test_runtime as tiny
from tests.test_serve_engine import Paged, needs_core, request, scheduler


@dataclass
class Text:
    """A text of so many ids that decodes."""

    client: str
    length: int
    priority: int = 0
    last_decode_step: int = 0
    decoded: int = 0
    request: Any = field(init=False)

    def __post_init__(self) -> None:
        self.request = SimpleNamespace(client=self.client, priority=self.priority)

    @property
    def state(self) -> Any:
        return SimpleNamespace(length=self.length + self.decoded)


def decode(turns: DecodeTurns, texts: list[Text], steps: int) -> list[list[Text]]:
    """The texts of each step."""
    found = []
    for _ in range(steps):
        found.append(turns.choose(texts))
        for text in found[-1]:
            text.decoded += 1
    return found


def test_long_texts_beside_another_client_take_turns_and_it_decodes_in_each_step() -> None:
    long, short = [Text("a", 6000) for _ in range(4)], Text("b", 100)
    steps = decode(DecodeTurns(4200), [*long, short], 120)
    assert all(short in step for step in steps)
    read = [sum(one.state.length for one in step if one.client == "a") for step in steps]
    assert max(read) < 6200 and sum(read) / len(read) == pytest.approx(4200, rel=0.05)
    assert max(one.decoded for one in long) - min(one.decoded for one in long) <= 1, "even turns"


def test_a_client_that_is_alone_decodes_all_and_so_does_one_whose_texts_are_short() -> None:
    long = [Text("a", 6000) for _ in range(4)]
    assert decode(DecodeTurns(4200), long, 3) == [long] * 3
    several = [Text("a", 1000), Text("a", 900), Text("b", 1500)]
    assert decode(DecodeTurns(4200), several, 50) == [several] * 50


def test_a_step_decodes_something_where_each_client_saves_for_a_long_text() -> None:
    texts = [Text("a", 50_000), Text("b", 40_000)]
    steps = decode(DecodeTurns(1000), texts, 40)
    assert all(steps) and min(one.decoded for one in texts) == 40


def test_a_higher_priority_decodes_in_every_step() -> None:
    urgent, usual = Text("a", 50_000, priority=1), Text("b", 50_000)
    decode(DecodeTurns(1000), [urgent, usual], 100)
    assert urgent.decoded == 100 and usual.decoded in (1, 2)


def test_none_waits_for_ever_and_credit_is_not_saved_up() -> None:
    dice = random.Random(0)
    turns = DecodeTurns(500)
    texts = [Text(dice.choice("abc"), dice.choice([10, 400, 900, 5000])) for _ in range(12)]
    decode(turns, texts, 2000)
    assert min(one.decoded for one in texts) >= 2000 * 500 // sum(one.state.length for one in texts)
    assert all(credit <= 5000 + 2000 + 500 for credit in turns._credit.values())
    turns.choose([text for text in texts if text.client != "a"])
    assert "a" not in turns._credit, "who left is forgotten"


def test_answers_are_the_same_whatever_the_turns() -> None:
    def answers(positions: int) -> list[tuple[int | None, ...]]:
        engine = Paged()
        engine.weights_in_positions = positions
        asked = [
            request([3 + n % 5] * (4 * n), client=client, max_tokens=9, temperature=0)
            for n in range(1, 5)
            for client in "ab"
        ]
        with scheduler(engine, max_sequences=8) as made:
            streams = [made.submit(one) for one in asked]
            return [tuple(piece.id for piece in stream) for stream in streams]

    assert answers(5) == answers(1 << 30)


@needs_core
def test_an_engine_knows_how_many_positions_have_the_bytes_of_its_weights() -> None:
    of = tiny.config("llama")
    engine = RuntimeEngine(of, tiny.tensors(of))
    assert engine.weights_in_positions == engine.packed.token_nbytes * engine.page // engine.page_bytes
