"""Calls of tools, in the format of the model's own template, which is found out by looking at what it writes.

Every family marks calls differently (`<tool_call>`, `[TOOL_CALLS]`, a bare object). But each model brings the
template that was used to train it, and that template writes the calls of an earlier turn. So it is given a
conversation with one call, with two and with three, and what stands around their names and arguments is the
format: how an answer is read, and what it is held to where a call is demanded. What three calls look like
must follow from one and two, else only one call at a time is read. A template that writes arguments otherwise
than as one JSON object is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cutaway.errors import Refused
from cutaway.generate import constrain
from cutaway.tokenizer import Tokenizer, chat

ID = "\ue000"  # stands for a call's id in the constants of a format
ID_PATTERN = "[a-zA-Z0-9]{9}"
NAMES, IDS = ("lookUp", "sendTo", "countAll"), ("abcdefgh1", "abcdefgh2", "abcdefgh3")
GIVEN, WORD = {"plaCe": "heRe", "numBer": 7}, "saYs"
ARGUMENTS = re.compile(r'\{\s*"plaCe"\s*:\s*"heRe"\s*,\s*"numBer"\s*:\s*7\s*\}')


@dataclass(frozen=True)
class Call:
    """A call that an answer holds: the tool's name, and its arguments as the model wrote them, in JSON."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Dialect:
    """What stands around calls: opening HEAD name MIDDLE arguments TAIL between HEAD ... TAIL closing.

    ``forced`` tells whether an answer begins where a call may begin: not where a template opens a thought.
    """

    opening: str
    head: str
    middle: str
    tail: str
    between: str | None  # None: one call only
    closing: str
    forced: bool

    @property
    def mark(self) -> str:
        """The word that begins a call: what comes before its JSON, or the brace where nothing does."""
        lead = (self.opening + self.head).split()[0]
        return re.split(r'\[?\{"', lead, maxsplit=1)[0] or "{"

    @property
    def bare(self) -> bool:
        """Whether calls have no mark but their brace, so that only a whole answer can be one."""
        return self.mark.startswith("{")


# ---- finding the format out --------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def dialect(template: str, tokenizer: Tokenizer) -> Dialect:
    """The format of a template. Refused for one that knows no tools, or writes their arguments otherwise."""
    asked, whole = _written(template, tokenizer, 0), _tried(template, tokenizer, 1)
    one, two, three, said = (_answer(asked, _tried(template, tokenizer, count)) for count in (1, 2, 3, -1))
    first, second = ARGUMENTS.search(one), ARGUMENTS.search(two)
    name = one.find(NAMES[0])
    if name < 0 or first is None or first.start() < name:
        raise Refused(
            "this model's chat template does not write calls of tools in a way that can be read: "
            "ask without tools"
        )
    lead, middle = _lead(one[:name], said), one[name + len(NAMES[0]) : first.start()]
    after = _without_ending(one[first.end() :], tokenizer)
    single = Dialect("", lead, middle, after, None, "", forced=whole.startswith(asked))
    if second is None or NAMES[1] not in two[second.end() :]:
        return single
    joint = two[second.end() : two.index(NAMES[1], second.end())]
    tail = _common_prefix(after, joint)
    head = _common_suffix(lead, joint[len(tail) :])
    opening, between = lead[: len(lead) - len(head)], joint[len(tail) : len(joint) - len(head)]
    several = Dialect(opening, head, middle, tail, between, after[len(tail) :], single.forced)
    return several if _spelt(several) in ARGUMENTS.sub(lambda _: json.dumps(GIVEN), three) else single


def _written(template: str, tokenizer: Tokenizer, calls: int) -> str:
    """The template's text of a question, and of an answer with so many calls; 0: of the beginning of one; -1:
    of one that says a word first."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
    if calls:
        ids = zip(NAMES[: abs(calls)], IDS, strict=False)
        made = [
            {"id": id, "type": "function", "function": {"name": name, "arguments": GIVEN}} for name, id in ids
        ]
        messages.append({"role": "assistant", "content": "" if calls > 0 else WORD, "tool_calls": made})
    tools = [_tool(name) for name in NAMES]
    told = chat.text(
        messages,
        template,
        tokenizer=tokenizer,
        tools=tools,
        add_generation_prompt=not calls,
        steering="flag",
    )
    return told.text


def _tried(template: str, tokenizer: Tokenizer, calls: int) -> str:
    """The same; "" where the template takes no such answer."""
    try:
        return _written(template, tokenizer, calls)
    except Refused:
        return ""


def _answer(asked: str, whole: str) -> str:
    """What of a text the assistant said, the ids of its calls replaced."""
    same = _common_prefix(asked, whole)
    if len(same) < len(asked) and same.rfind("<") > same.rfind(">"):
        same = same[: same.rfind("<")]  # the two part within a mark
    answer = whole[len(same) :]
    for id in IDS:
        answer = answer.replace(id, ID)
    return answer


def _lead(lead: str, said: str) -> str:
    """What begins a call, without what a template puts before every answer: what also follows words."""
    at = said.find(WORD)
    if at >= 0 and NAMES[0] in said[at:]:
        lead = _common_suffix(lead, said[at + len(WORD) : said.index(NAMES[0], at)])
    return lead.lstrip()


def _without_ending(after: str, tokenizer: Tokenizer) -> str:
    """What follows a call, without what ends every answer: that begins with the tokenizer's end token."""
    ends = [at for id in tokenizer.eos_ids if (at := after.find(tokenizer.token_text(id))) >= 0]
    return after[: min(ends, default=len(after))].rstrip()


def _tool(name: str) -> dict[str, Any]:
    kinds = {
        "plaCe": {"type": "string", "description": "x"},
        "numBer": {"type": "integer", "description": "x"},
    }
    parameters = {"type": "object", "properties": kinds, "required": list(kinds)}
    return {"type": "function", "function": {"name": name, "description": "x", "parameters": parameters}}


def _spelt(format: Dialect) -> str:
    """All the examples' calls in a format."""
    arguments = json.dumps(GIVEN)
    calls = [f"{format.head}{name}{format.middle}{arguments}{format.tail}" for name in NAMES]
    return format.opening + (format.between or "").join(calls) + format.closing


def _common_suffix(one: str, other: str) -> str:
    return _common_prefix(one[::-1], other[::-1])[::-1]


def _common_prefix(one: str, other: str) -> str:
    same = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one[: next(same, min(len(one), len(other)))]


# ---- reading an answer -------------------------------------------------------------------------------------


def parse(format: Dialect, text: str) -> tuple[str, list[Call]]:
    """What an answer says, and the calls it makes. Where a call is not whole, the whole answer is said."""
    at = text.find(format.mark)
    if at < 0 or (format.bare and text[:at].strip()):
        return text, []
    calls, place = [], _after(format.opening, text, at)
    while place is not None:
        made = _call(format, text, place)
        if made is None:
            return text, []
        call, place = made
        calls.append(call)
        if format.between is None:
            break
        following = _after(format.between, text, place)
        if following is None or _after(format.head, text, following) is None:
            break
        place = following
    if place is None:
        return text, []
    place = _after(format.closing, text, place) or place
    return (text[:at].rstrip() + text[place:].rstrip()).strip("\n"), calls


def _call(format: Dialect, text: str, place: int) -> tuple[Call, int] | None:
    """One call from its head on, and where it ends."""
    start = _after(format.head, text, place)
    if start is None:
        return None
    name = re.compile(r"[a-zA-Z0-9_.-]+").match(text, start)
    begin = None if name is None else _after(format.middle, text, name.end())
    if name is None or begin is None:
        return None
    try:
        arguments, stop = json.JSONDecoder().raw_decode(text, begin)
    except (ValueError, RecursionError):
        return None
    end = _after(format.tail, text, stop)
    if not isinstance(arguments, dict) or end is None:
        return None
    return Call(name[0], text[begin:stop]), end


def _after(constant: str, text: str, place: int) -> int | None:
    """Where a constant of the format ends, if it stands there: models are free with the space in it."""
    found = _loose(constant).match(text, place)
    return None if found is None else found.end()


@lru_cache(maxsize=256)
def _loose(constant: str) -> re.Pattern[str]:
    parts = re.split(r"(\s+|[{}\[\]:,])", constant.strip())
    pattern = "".join(
        r"\s*" if part.isspace() else rf"\s*{re.escape(part)}\s*" if part in "{}[]:," else re.escape(part)
        for part in parts
        if part
    )
    return re.compile(rf"\s*{pattern.replace(ID, '[a-zA-Z0-9_-]+')}\s*")


class Listening:
    """An answer as it comes: what is said is passed on, what may be a call is held back until the end."""

    def __init__(self, format: Dialect) -> None:
        self.format = format
        self._text, self._told, self._held = "", 0, False

    def push(self, text: str) -> str:
        """More of the answer; returns what of it is said."""
        self._text += text
        if self._held:
            return ""
        end = self._bare_end() if self.format.bare else self._end()
        safe, self._told = self._text[self._told : end], end
        return safe

    def finish(self) -> tuple[str, list[Call]]:
        """The rest of what is said, and the calls."""
        said, calls = parse(self.format, self._text)
        told = self._text[: self._told]
        return said[len(told.rstrip() if calls else told) :], calls

    def _end(self) -> int:
        """How far the text is surely said: not the mark of a call, nor what may become it."""
        mark = self.format.mark
        at = self._text.find(mark, max(0, self._told - len(mark)))
        if at >= 0:
            self._held = True
            return at
        for length in range(min(len(mark) - 1, len(self._text) - self._told), 0, -1):
            if mark.startswith(self._text[-length:]):
                return len(self._text) - length
        return len(self._text)

    def _bare_end(self) -> int:
        """The same where only a whole answer is a call."""
        words = self._text.lstrip()
        if not words or words.startswith("{"):
            self._held = bool(words)
            return 0
        return len(self._text)


# ---- holding an answer to calls ----------------------------------------------------------------------------


Schemas = Mapping[str, Mapping[str, Any] | None]  # tools by name, with the schemas of their arguments


def demanded(format: Dialect, tools: Schemas, tokenizer: Tokenizer, several: bool) -> constrain.Grammar:
    """The grammar of an answer that is calls of these tools. Refused for a template whose answers begin with
    a thought, and for schemas that cannot be followed.
    """
    if not format.forced:
        raise Refused(
            "this model's template begins an answer with a thought, so that a call cannot be demanded: "
            "use tool_choice 'auto'"
        )
    spell = _Speller(tokenizer)
    return constrain.lark(f"start: {spell(format.opening)} calls\n" + _calls(format, tools, spell, several))


def optional(format: Dialect, tools: Schemas, tokenizer: Tokenizer, several: bool) -> constrain.Grammar:
    """The grammar of an answer that is free until it makes a call, which is then one of these tools' with the
    arguments that its schema allows; unless ``several``, that call is its end.
    """
    spell = _Speller(tokenizer)
    rules = _calls(format, tools, spell, several)
    if format.bare:
        free = r"/([^{](.|\n)*)?/"
        return constrain.lark(f"start: calls | SAID\nSAID: {free}\n{rules}")
    mark = spell.first(format.mark)
    token = mark in spell.special
    rest = (format.opening + format.head).removeprefix(mark)
    first = [spell(rest + name + format.middle) for name in tools]
    begun = " | ".join(f"{start} rest_{i}" for i, start in enumerate(first))
    more = f"({spell(format.between)} call)*" if several and format.between is not None else ""
    whole = f"{'start: block* said' if several else 'start: said | block'}\nsaid: SAID\nSAID: /(.|\\n)*/"
    trigger = f"{'trigger' if token else 'trigger[lazy]'}: SAID {spell(mark)}"
    block = f"block: trigger ({begun}) {more} {spell(format.closing)}"
    return constrain.lark("\n".join(["%llguidance {}", whole, trigger, block, rules]))


def _calls(format: Dialect, tools: Schemas, spell: _Speller, several: bool) -> str:
    """The rule `calls`: all of an answer's calls after the opening."""
    more = f"({spell(format.between)} call)*" if several and format.between is not None else ""
    rules = [f"calls: call {more} {spell(format.closing)}"]
    rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools))))
    for i, (name, schema) in enumerate(tools.items()):
        rules.append(f"call_{i}: {spell(format.head + name + format.middle)} rest_{i}")
        rules.append(f"rest_{i}: %json {json.dumps(_compact(schema))} {spell(format.tail)}")
    return "\n".join(rules)


def _compact(schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """A tool's parameters, an object in any case, written on one line."""
    constrain.measure(dict(schema or {}))
    return {"type": "object", **(schema or {}), "x-guidance": constrain.COMPACT}


class _Speller:
    """A constant of a format in Lark: control tokens as tokens, everything else as text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.special = tokenizer.special
        texts = sorted(map(re.escape, self.special), key=len, reverse=True)
        self.pattern = re.compile(f"({'|'.join([*texts, ID])})")

    def first(self, mark: str) -> str:
        """The control token that a mark begins with, else the mark."""
        return next((text for text in self.special if mark.startswith(text)), mark)

    def __call__(self, constant: str | None) -> str:
        return " ".join(self._part(part) for part in self.pattern.split(constant or "") if part)

    def _part(self, part: str) -> str:
        if part == ID:
            return f"/{ID_PATTERN}/"
        id = self.special.get(part)
        return json.dumps(part, ensure_ascii=False) if id is None else f"<[{id}]>"
