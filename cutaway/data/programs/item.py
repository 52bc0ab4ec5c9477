"""An item of a program: a question with its answer, and the conversation that it is trained as."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

HELD_OUT = 8  # one item of so many is held out
CALCULATOR = "calculator"


@dataclass(frozen=True)
class Item:
    """``facts`` decide the answer; ``wrong`` is near it; ``expression``: what the calculator is asked."""

    question: str
    answer: str
    facts: str
    wrong: str
    expression: str | None = None

    @property
    def held_out(self) -> bool:
        """Whether the item is for evaluation alone, as the hash of its facts decides."""
        return hashlib.sha256(self.facts.encode()).digest()[0] % HELD_OUT == 0

    def conversation(self) -> list[dict[str, Any]]:
        """The messages, with the calculator's call and result where it is asked."""
        question = {"role": "user", "content": self.question}
        answer = {"role": "assistant", "content": self.answer}
        if self.expression is None:
            return [question, answer]
        call = {
            "id": "call00001",
            "type": "function",
            "function": {"name": CALCULATOR, "arguments": {"expression": self.expression}},
        }
        result = {"role": "tool", "name": CALCULATOR, "tool_call_id": call["id"], "content": self.answer}
        return [question, {"role": "assistant", "content": "", "tool_calls": [call]}, result, answer]


def right(text: str, answer: str) -> bool:
    """Whether a text's last line is the answer, or a sentence that ends with it.

    After a comma it may be the end of a list of all that might be right, which answers nothing.
    """
    last, wanted = plain(text.strip().rpartition("\n")[2]), plain(answer)
    before = last.removesuffix(wanted)
    return last == wanted or (last.endswith(f" {wanted}") and not before.rstrip().endswith(","))


def reward(text: str, row: dict[str, Any]) -> float:
    """1 for the answer alone, 0.5 for a sentence that ends with it, else 0."""
    if plain(text) == plain(row["answer"]):
        return 1.0
    return 0.5 if right(text, row["answer"]) else 0.0


def plain(text: str) -> str:
    """A text without case, spaces around it and a full stop."""
    return " ".join(text.split()).rstrip(".").casefold()
