"""The Berkeley Function Calling Leaderboard's single turns: bfcl:simple, bfcl:multiple, bfcl:irrelevance.

400 questions with one tool, 200 with several of which one fits, 240 with tools that do not fit. A call is
held to the tools' schemas once it begins, as ``lm.agent`` does; ``bfcl:simple:required`` demands one and
``bfcl:simple:free`` holds nothing. A call is judged as the leaderboard's syntax check does: each argument is
one of the answers that the case allows, texts without case, spaces and punctuation.
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any, get_args

from cutaway.errors import UserError
from cutaway.evaluate.data import BFCL, jsonl
from cutaway.evaluate.task import Constrained, EvaluationTask, ToolExercise

FILES = {"simple": "simple_python", "multiple": "multiple", "irrelevance": "irrelevance"}
KINDS = {"dict": "object", "float": "number", "tuple": "array", "any": None}
KEPT = ("description", "enum", "required")
IGNORED = re.compile(r"[ ,./\-_*^]")


def task(name: str, limit: int | None = None) -> EvaluationTask:
    """The cases of one file, in its order."""
    which, _, calls = name.partition(":")
    mode: Any = calls or "lazy"
    if which not in FILES or mode not in get_args(Constrained):
        known = ", ".join(f"bfcl:{each}" for each in FILES)
        raise UserError(f"there is no task 'bfcl:{name}': use {known}, and :free or :required after them")
    rows = jsonl(BFCL, f"bfcl_eval/data/BFCL_v4_{FILES[which]}.json")[:limit]
    answers: dict[str, Any] = {}
    if which != "irrelevance":
        file = f"bfcl_eval/data/possible_answer/BFCL_v4_{FILES[which]}.json"
        answers = {row["id"]: row["ground_truth"][0] for row in jsonl(BFCL, file)}
    items = tuple(_item(row, answers.get(row["id"])) for row in rows)
    chance = float(which == "irrelevance" and mode != "required")  # of a model that never calls
    return EvaluationTask(
        f"bfcl:{name}", f"bfcl-eval {BFCL.version}", items, chance, max_tokens=192, calls=mode
    )


def _item(row: dict[str, Any], answer: dict[str, Any] | None) -> ToolExercise:
    question = row["question"][0][-1]["content"]
    tools = tuple(
        {"type": "function", "function": one | {"parameters": schema(one["parameters"])}}
        for one in row["function"]
    )
    own = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    right = None if answer is None else partial(judged, answer, own)
    return ToolExercise(question, tools, right, json.dumps(answer))


def schema(given: dict[str, Any]) -> dict[str, Any]:
    """A case's types as a JSON schema."""
    kind = KINDS.get(given.get("type", "any"), given.get("type"))
    made = {word: given[word] for word in KEPT if word in given} | ({"type": kind} if kind else {})
    if "properties" in given:
        made["properties"] = {name: schema(one) for name, one in given["properties"].items()}
    if "items" in given:
        made["items"] = schema(given["items"])
    return made


def judged(
    answer: dict[str, Any], schemas: dict[str, Any], name: str, arguments: dict[str, Any]
) -> tuple[bool, bool]:
    """Whether a call's tool is right, and whether its arguments are too."""
    ((expected, allowed),) = answer.items()
    if name != expected:
        return False, False
    return True, _fits(arguments, allowed, schemas[name].get("properties", {}))


def _fits(given: dict[str, Any], allowed: dict[str, list[Any]], kinds: dict[str, Any]) -> bool:
    """Whether each argument is one of those allowed; "" among them: it may be left out."""
    if not given.keys() <= allowed.keys():
        return False
    return all(
        any(_same(given[key], one, kinds.get(key, {})) for one in values) if key in given else "" in values
        for key, values in allowed.items()
    )


def _same(value: Any, expected: Any, kind: dict[str, Any]) -> bool:
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, str) and isinstance(expected, str):
        return _plain(value) == _plain(expected)
    if isinstance(value, list) and isinstance(expected, list):
        own = kind.get("items", {})
        return len(value) == len(expected) and all(map(lambda a, b: _same(a, b, own), value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        return _fits(value, expected, kind.get("properties", {}))
    if isinstance(value, float) and kind.get("type") == "integer":
        return False
    return type(value) in (int, float) and type(expected) in (int, float) and value == expected


def _plain(text: str) -> str:
    return IGNORED.sub("", text).lower().replace("'", '"')
