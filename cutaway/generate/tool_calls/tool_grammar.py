"""Grammars that make an answer tool calls, in the format of the model's template."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from cutaway.errors import UserError
from cutaway.generate import constrain, grammar_compiler, json_schema
from cutaway.generate.tool_calls.arguments import KEY, NAME, TEXT, TaggedArguments, ValueTags
from cutaway.generate.tool_calls.delimiters import COUNT, ID
from cutaway.generate.tool_calls.parser import ToolSchemas
from cutaway.generate.tool_calls.tool_format import ToolFormat
from cutaway.tokenizer import Tokenizer

STANDING = {ID: "/[a-zA-Z0-9]{9}/", COUNT: "/[0-9]{1,3}/"}
ANY = r"/(.|\n)*/"
OBJECT_KEYWORDS = {
    "type",
    "properties",
    "required",
    "additionalProperties",
}  # what an object's schema is held to
ANNOTATIONS = {"description", "title", "default", "examples", "$schema", "$defs", "definitions"}
LENGTHS = {"type", "minLength", "maxLength"}  # what a text's schema is held to


def required_grammar(
    format: ToolFormat, tools: ToolSchemas, tokenizer: Tokenizer, several: bool, answer: str = ""
) -> constrain.Grammar:
    """The grammar of an answer that is calls of these tools, or else ``answer`` (in Lark's notation), after
    reasoning where the format has it.

    UserError for a template whose answers begin with reasoning of unknown end, and for schemas that cannot be
    followed.
    """
    if not format.can_require:
        raise UserError(
            "this model's template begins an answer with a thought, so that a call cannot be demanded: "
            "use tool_choice 'auto'"
        )
    lark = LarkWriter(tokenizer)
    rules, first = [_calls(format, tools, lark, several)], ""
    if format.reasoning is not None:
        begin, end = format.reasoning.begin, format.reasoning.end
        first = "reasoning?" if begin else "reasoning"
        rules.append(f"reasoning: {lark(begin)} {_until('REASONING', ANY, end, lark)} (/[ \\n]+/)?")
    start = f"start: {first} ({lark(format.opening)} calls{' | answer' if answer else ''})"
    rules += [f"answer: {answer}"] if answer else []
    return constrain.lark("\n".join(["%llguidance {}", start, *rules, *lark.terminals]))


def optional_grammar(
    format: ToolFormat, tools: ToolSchemas, tokenizer: Tokenizer, several: bool
) -> constrain.Grammar:
    """The grammar of an answer that is free until it makes a call, whose arguments then follow its schema;
    unless ``several``, that call ends the answer.
    """
    lark = LarkWriter(tokenizer)
    rules = _calls(format, tools, lark, several)
    if format.untagged:
        mark = format.trigger[0]
        free = rf"/([^{re.escape(mark)}](.|\n)*)?/"
        return constrain.lark(f"start: {lark(format.opening)} calls | CONTENT\nCONTENT: {free}\n{rules}")
    mark = lark.first(format.trigger)
    token = mark in lark.special
    rest = (format.opening + format.head).removeprefix(mark)
    starts = [lark(rest + name + format.middle) for name in tools]
    begun = " | ".join(f"{start} rest_{i}" for i, start in enumerate(starts))
    more = f"({lark(format.between)} call)*" if several and format.between is not None else ""
    start = "start: block* content" if several else "start: content | block"
    whole = f"{start}\ncontent: CONTENT\nCONTENT: {ANY}"
    trigger = f"{'trigger' if token else 'trigger[lazy]'}: CONTENT {lark(mark)}"
    block = f"block: trigger ({begun}) {more} {lark(format.closing)}"
    return constrain.lark("\n".join(["%llguidance {}", whole, trigger, block, rules]))


def _calls(format: ToolFormat, tools: ToolSchemas, lark: LarkWriter, several: bool) -> str:
    """The rule `calls`: all of an answer's calls after the opening."""
    more = f"({lark(format.between)} call)*" if several and format.between is not None else ""
    rules = [f"calls: call {more} {lark(format.closing)}"]
    rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools))))
    for i, (name, schema) in enumerate(tools.items()):
        constrain.check_size(dict(schema or {}))
        rules.append(f"call_{i}: {lark(format.head + name + format.middle)} rest_{i}")
        if format.arguments is None:
            rules.append(f"rest_{i}: {json_rule({'type': 'object', **(schema or {})})} {lark(format.tail)}")
        else:
            rules += _Arguments(format.arguments, name, schema or {}, f"_{i}", lark).rules(format.tail)
    return "\n".join(rules)


def json_rule(schema: Mapping[str, Any]) -> str:
    """JSON as a schema has it, on one line."""
    return f"%json {json.dumps({**schema, 'x-guidance': grammar_compiler.COMPACT})}"


def _until(name: str, text: str, end: str, lark: LarkWriter) -> str:
    """A text up to the first place where ``end`` comes: its control token, or its letters."""
    letters, rest = lark.parted(end)
    spelt = json.dumps(letters, ensure_ascii=False) if letters else ""
    if rest:
        lark.terminals.append(f"{name}: {text} {spelt}")
        return f"{name} {lark(rest)}"
    lark.terminals += [f"{name}: {text}", f"until_{name.lower()}[lazy]: {name} {spelt}"]
    return f"until_{name.lower()}"


class _Arguments:
    """The rules of one tool's arguments that stand one by one: in its schema's order, those that it does not
    require perhaps.
    """

    def __init__(
        self, how: TaggedArguments, tool: str, schema: Mapping[str, Any], suffix: str, lark: LarkWriter
    ) -> None:
        self.how, self.tool, self.schema, self.suffix, self.lark = how, tool, schema, suffix, lark
        self.keys: Mapping[str, Any] = schema.get("properties") or {}
        self.required = schema.get("required") or []
        unsupported = set(schema) - OBJECT_KEYWORDS - ANNOTATIONS
        unsupported |= {f"required {key}" for key in self.required if key not in self.keys}
        if unsupported:
            raise self._refused("its parameters", ", ".join(sorted(unsupported)))

    def rules(self, tail: str) -> list[str]:
        """The rule `rest`: the arguments and the call's end."""
        own, made = self.suffix, []
        opening = self.lark(self.how.opening.replace(NAME, self.tool))
        for n, (key, schema) in enumerate(self.keys.items()):
            following, may = f"after{own}_{n + 1}", key not in self.required
            item = f"item{own}_{n}"
            made.append(f"{item}: {self._item(key, schema, f'{own}_{n}')}")
            start, after = f"{item} {following}", f"{self.lark(self.how.between)} {item} {following}"
            made.append(f"begin{own}_{n}: {start}" + (f" | begin{own}_{n + 1}" if may else ""))
            made.append(f"after{own}_{n}: {after}" + (f" | {following}" if may else ""))
        last = len(self.keys)
        made += [f'begin{own}_{last}: ""', f'after{own}_{last}: ""']
        terminals, self.lark.terminals = self.lark.terminals, []
        return [f"rest{own}: {opening} begin{own}_0 {self.lark(tail)}", *made, *terminals]

    def _item(self, key: str, schema: Any, suffix: str) -> str:
        """One argument, in each form that its schema allows."""
        head = self.lark(self.how.head) + f" {json.dumps(key, ensure_ascii=False)}"
        kinds = json_schema.kinds(schema, self.schema) or {TEXT}
        missing = sorted(kind for kind in kinds if self.how.form(kind) is None)
        if missing and (missing != ["null"] or kinds == {"null"}):
            raise self._refused(key, f"the type {missing[0]}")
        made = []
        for form in self.how.forms:
            if form.kinds & kinds:
                value = self._value(form, key, schema, kinds, suffix)
                made.append(f"{head} {self.lark(form.before.replace(KEY, key))} {value}")
        return " | ".join(made)

    def _value(self, form: ValueTags, key: str, schema: Any, kinds: set[str], suffix: str) -> str:
        """A rule for the text between a form's delimiters, with the last one."""
        after = form.after.replace(KEY, key)
        plain = json_schema.followed(schema, self.schema)
        if isinstance(plain, Mapping) and ("enum" in plain or "const" in plain):
            spelt = [
                self._written(value)
                for value in json_schema.allowed(plain)
                if json_schema.kind_of(value) in form.kinds
            ]
            return (
                f"({' | '.join(json.dumps(text, ensure_ascii=False) for text in spelt)}) {self.lark(after)}"
            )
        if TEXT in form.kinds & kinds:
            return _until(f"TEXT{suffix}", self._text(form, key, schema, kinds, after), after, self.lark)
        values = " | ".join(self._literal(kind, key, schema) for kind in sorted(form.kinds & kinds))
        return f"({values}) {self.lark(after)}"

    def _text(self, form: ValueTags, key: str, schema: Any, kinds: set[str], after: str) -> str:
        """A pattern of a text that does not hold the mark at its end; where other kinds are written alike,
        of any of them."""
        if form.quote:
            one = rf"([^{form.quote}\\\n]|\\['\"\\n])"
        else:
            one = r"(.|\n)"
        plain = json_schema.followed(schema, self.schema) if kinds == {TEXT} else {}
        held = plain if isinstance(plain, Mapping) else {}
        if unsupported := set(held) - LENGTHS - ANNOTATIONS:
            raise self._refused(key, ", ".join(sorted(unsupported)))
        least, most = held.get("minLength", 0), held.get("maxLength", "")
        text = f"/{one}{{{least},{most}}}/" if least or most != "" else f"/{one}*/"
        letters = self.lark.parted(after)[0].strip()
        if form.quote or not letters:
            return text
        return rf"({text} & ~/(.|\n)*{_escaped(letters)}(.|\n)*/)"

    def _literal(self, kind: str, key: str, schema: Any) -> str:
        """A value of a kind that is no text."""
        if kind in ("boolean", "null"):
            values = (True, False) if kind == "boolean" else (None,)
            return " | ".join(json.dumps(self._written(value)) for value in values)
        if self.how.quoted and kind in ("array", "object"):
            raise self._refused(key, f"the type {kind}")
        defs = {word: self.schema[word] for word in ("$defs", "definitions") if word in self.schema}
        kinds = json_schema.kinds(schema, self.schema)
        return json_rule({**defs, "allOf": [schema], "type": kind} if kinds != {kind} else {**defs, **schema})

    def _written(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        return repr(value) if json_schema.kind_of(value) in self.how.python else json.dumps(value)

    def _refused(self, key: str, what: str) -> UserError:
        return UserError(
            f"a call of {self.tool[:64]!r} cannot be demanded of this model, whose template marks arguments "
            f"one by one: {key[:64]} asks for {what[:200]}; use tool_choice 'auto' without strict"
        )


def _escaped(text: str) -> str:
    """A text in one of Lark's regular expressions."""
    return re.escape(text).replace("/", r"\/")


class LarkWriter:
    """A constant of a format in Lark: control tokens as tokens, everything else as text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.special = tokenizer.special
        texts = sorted(map(re.escape, self.special), key=len, reverse=True)
        self.pattern = re.compile(f"({'|'.join([*texts, *STANDING])})")
        self.terminals: list[str] = []  # needed by the rules so far

    def first(self, mark: str) -> str:
        """The control token that a mark begins with, else the mark."""
        return next((text for text in self.special if mark.startswith(text)), mark)

    def parted(self, constant: str) -> tuple[str, str]:
        """What comes before a constant's first control token, and the rest."""
        letters = self.pattern.split(constant, maxsplit=1)[0]
        return letters, constant[len(letters) :]

    def __call__(self, constant: str | None) -> str:
        return " ".join(self._part(part) for part in self.pattern.split(constant or "") if part)

    def _part(self, part: str) -> str:
        if part in STANDING:
            return STANDING[part]
        id = self.special.get(part)
        return json.dumps(part, ensure_ascii=False) if id is None else f"<[{id}]>"
