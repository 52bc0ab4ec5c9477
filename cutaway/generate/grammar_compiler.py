"""The helper process that compiles grammars (helper.py): a client's 60 kB regex can ask for gigabytes.

What compiles here within the bounds costs the server no more than that when it compiles it again.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from cutaway.generate.patterns import patterns_of, shortest_text
from cutaway.helper import Bounds, Helper
from cutaway.patterns import search

BOUNDS = Bounds(seconds=0.5, memory=64 << 20)  # real grammars take a tenth of either
WAIT_SECONDS = 5.0
COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}
# A tenth or less of llguidance's own limits: a step then costs some ten milliseconds at most.
LIMITS = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}

TOKEN_IDS = re.compile(r"<\[[\d,\s-]+\]>")

helper = Helper("cutaway.generate.grammar_compiler", "the grammar", BOUNDS, WAIT_SECONDS, more=2)


def load() -> None:
    """Import what compiling and validating need."""
    import jsonschema
    import llguidance

    del jsonschema

    llguidance.LLTokenizer("byte")


def answer(request: dict) -> dict:
    """The answer to {kind, text}: the grammar as llguidance reads it and the shortest texts of its patterns,
    or why there is none. The answer to {value, text}: what is ``wrong`` with that JSON under that schema,
    None if nothing.
    """
    if "value" in request:
        return _validated(json.loads(request["text"]), request["value"])
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    kind, text = request["kind"], request["text"]
    limits = LLParserLimits(**LIMITS)
    try:
        if kind == "schema":
            options: Any = COMPACT
            compiled = LLMatcher.grammar_from_json_schema(text, overrides=options)
        else:
            make = LLMatcher.grammar_from_regex if kind == "regex" else LLMatcher.grammar_from_lark
            compiled = make(text)
        wrong, messages = LLMatcher.validate_grammar_with_warnings(compiled, limits=limits)
        if wrong:
            return {"refused": f"the {kind} cannot be followed: {one_line(messages[0])}"}
        # The model's control tokens are no ids of this vocabulary of bytes: any stands for them here.
        small = make(TOKEN_IDS.sub("<[5]>", text)) if kind == "grammar" else compiled
        matcher = LLMatcher(LLTokenizer("byte"), small, log_level=0, limits=limits)
        if not matcher.is_stopped():
            matcher.compute_bitmask()
        if matcher.is_error():
            return {"refused": f"the {kind} cannot be followed: {one_line(matcher.get_error())}"}
    except UnicodeEncodeError:
        return {"refused": f"the {kind} holds half a surrogate pair, which is no character"}
    except MemoryError:
        raise
    except Exception as error:
        return {"refused": f"the {kind} cannot be followed: {one_line(str(error))}"}
    compiled = json.dumps(compiled) if isinstance(compiled, dict) else compiled
    return {"compiled": compiled, "shortest": [shortest_text(one) for one in patterns_of(kind, text)]}


def _validated(schema: dict, value: str) -> dict:
    """Whether JSON text fits a schema; nothing that the schema refers to is fetched."""
    from jsonschema import Draft202012Validator, SchemaError, validators
    from referencing import Registry

    linear = {"pattern": _pattern, "patternProperties": _pattern_properties}
    judge: Any = validators.extend(Draft202012Validator, linear)
    try:
        Draft202012Validator.check_schema(schema)
        found = next(judge(schema, registry=Registry()).iter_errors(json.loads(value)), None)
    except SchemaError as error:
        return {"refused": f"the schema is none: {one_line(error.message)}"}
    except Exception as error:
        return {"wrong": one_line(f"{type(error).__name__}: {error}")}
    return {"wrong": found and one_line(f"{found.json_path}: {found.message}")}


def _pattern(judge: Any, pattern: str, value: Any, _: dict) -> Iterator[Any]:
    """jsonschema's `pattern`, in time that is linear in the text where the pattern allows it."""
    from jsonschema import ValidationError

    if isinstance(value, str) and not search(pattern, value):
        yield ValidationError(f"{value!r:.80} does not match {pattern!r}")


def _pattern_properties(judge: Any, patterns: dict, value: Any, _: dict) -> Iterator[Any]:
    """The same of `patternProperties`."""
    for pattern, schema in patterns.items() if isinstance(value, dict) else ():
        for name, inside in value.items():
            if search(pattern, name):
                yield from judge.descend(inside, schema, path=name, schema_path=pattern)


def one_line(message: str) -> str:
    """llguidance's message on one line: its first line, and the error where that only introduces one."""
    first, *others = message.splitlines() or [""]
    errors = [line.removeprefix("error: ") for line in others if line.startswith("error: ")]
    text = " ".join([first, *errors[:1]] if first.endswith(":") else [first])
    text = text.replace("NoExtensionBias", "no text fits it")
    return " ".join(text.split()).removesuffix(".")[:300]
