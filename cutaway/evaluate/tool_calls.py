"""Tool exercises: whether a model calls the right tool with the right arguments, or none where none fits.

    acc              the first call is right, or there is none where none is right
    called           the answer begins a call, whole or not
    valid_json       its first call is whole, its arguments are JSON of the tool's schema
    right_tool       it names the right tool
    right_arguments  the same, with the right arguments

All are fractions of all questions, so that ``valid_json`` / ``called`` is how many calls can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cutaway.data.layouts import is_json
from cutaway.errors import UserError
from cutaway.evaluate.cache import Cache
from cutaway.evaluate.task import EvaluationTask, ToolExercise
from cutaway.generate import constrain, thinking
from cutaway.generate.bounded import BoundedConstraint
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.tool_calls import parser, tool_grammar
from cutaway.generate.tool_calls.constraint import call_constraint
from cutaway.lm import LanguageModel

Values = dict[str, list[float]]
MAKE = {"lazy": tool_grammar.optional_grammar, "required": tool_grammar.required_grammar}


def answered(
    lm: LanguageModel,
    task: EvaluationTask,
    cache: Cache,
    max_tokens: int | None,
    progress: Callable[[int, int], None],
) -> tuple[Values, list[list[str]], int, str]:
    """Each item's figures, the answers, the tokens written, and the first prompt, for greedy answers."""
    items: Any = task.items
    if lm.checkpoint.chat_template is None:
        raise UserError(f"{task.name}: tools need a chat model, and this one has no chat template")
    asked = [[{"role": "user", "content": item.question}] for item in items]
    prompts = [lm.chat_ids(each, tools=item.tools) for each, item in zip(asked, items, strict=True)]
    size = max_tokens or task.max_tokens
    settings = lm.ending(SamplingParams(max_tokens=size))

    def compute(numbers: Sequence[int]) -> list[list[Any]]:
        limits: Any = None
        if task.calls != "free":
            limits = [_constraint(lm, items[n], task.calls, settings.stop_ids, size) for n in numbers]
        with thinking.Writer(lm.engine, lm.tokenizer) as writer:
            made = writer.write([prompts[n] for n in numbers], [settings] * len(numbers), limits)
        return [[each.text, len(each.ids)] for each in made]

    requests = [["bounded calls", task.calls, ids, size] for ids in prompts]
    found = cache.fill(requests, compute, lambda done: progress(done, len(requests)))
    rows = [_judged(lm, item, text) for item, (text, _) in zip(items, found, strict=True)]
    values = {name: [row[name] for row in rows] for name in rows[0]}
    texts = [[text] for text, _ in found]
    return values, texts, sum(count for _, count in found), lm.tokenizer.decode(prompts[0])


def _schemas(item: ToolExercise) -> dict[str, dict[str, Any]]:
    return {tool["function"]["name"]: tool["function"]["parameters"] for tool in item.tools}


def _constraint(
    lm: LanguageModel, item: ToolExercise, calls: str, ends: Sequence[int], size: int
) -> BoundedConstraint:
    """Constrains an answer of at most ``size`` tokens to the tools' schemas, to its end."""
    held = call_constraint(MAKE[calls], lm.tool_format, _schemas(item), lm.tokenizer, False)
    return BoundedConstraint(held.grammar.begin(lm.tokenizer, ends), lm.tokenizer, size)


def _judged(lm: LanguageModel, item: ToolExercise, text: str) -> dict[str, float]:
    """An answer's figures."""
    schemas = _schemas(item)
    _, calls = parser.parse(lm.tool_format, text, schemas)
    begun = bool(calls) or (not lm.tool_format.untagged and lm.tool_format.trigger in text)
    valid = tool = arguments = False
    if calls:
        call = calls[0]
        known = call.name in schemas and is_json(call.arguments)
        valid = known and constrain.schema_error(schemas[call.name], call.arguments) is None
        tool, arguments = item.right(call.name, call.object) if item.right and known else (False, False)
    right = not begun if item.right is None else arguments and len(calls) == 1
    figures = {"acc": right, "called": begun, "valid_json": valid}
    figures |= {"right_tool": tool, "right_arguments": arguments} if item.right else {}
    return {name: float(value) for name, value in figures.items()}
