"""How a model writes tool calls, detected from what its own chat template renders.

Every family tags calls differently (`<tool_call>`, `[TOOL_CALLS]`, a bare object), and their arguments too:
as one JSON object, or each with its own tags (arguments.py). But each model brings the template that it was
trained with, and that template renders the calls of an earlier turn. So it is given a conversation with one
call, with two and with three, and the constants around their names and arguments are the format. Three calls
must follow from one and two, else only one call at a time is read. A template that leaves calls out, or fails
on them, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from cutaway.errors import UserError
from cutaway.generate.tool_calls.arguments import NAME, TaggedArguments, detect_arguments
from cutaway.generate.tool_calls.delimiters import COUNT, ID, common_prefix, common_suffix, head_of, tail_of
from cutaway.tokenizer import Tokenizer, chat

NAMES, IDS = ("lookUp", "sendTo", "countAll"), ("abcdefgh1", "abcdefgh2", "abcdefgh3")
ANY = "\ue004"  # stands for what a call is given
EXAMPLE, CONTENT, THINKING = {"plaCe": "heRe", "siZe": 7}, "saYs", "muSes"
AS_JSON = re.compile(r'\{\s*"plaCe"\s*:\s*"heRe"\s*,\s*"siZe"\s*:\s*7\s*\}')
UNREADABLE = "this model's chat template does not write calls of tools in a way that can be read: "


@dataclass(frozen=True)
class Reasoning:
    """The constants around an answer's reasoning; ``begin`` is "" where the template has opened it."""

    begin: str
    end: str


@dataclass(frozen=True)
class ToolFormat:
    """The constants around calls: opening HEAD name MIDDLE arguments TAIL between HEAD ... TAIL closing.

    ``arguments`` is None where they are one JSON object. ``can_require``: whether it is known what an answer
    has before its first call, perhaps ``reasoning``.
    """

    opening: str
    head: str
    middle: str
    tail: str
    between: str | None  # None: one call only
    closing: str
    can_require: bool
    reasoning: Reasoning | None = None
    arguments: TaggedArguments | None = None

    @property
    def trigger(self) -> str:
        """The tag that begins a call, before its id and JSON, or the bracket where there is none."""
        lead = (self.opening + self.head).split()[0]
        return re.split(rf'\[?\{{"|[{ID}{COUNT}]', lead, maxsplit=1)[0] or "{"

    @property
    def untagged(self) -> bool:
        """Whether calls have no mark but their bracket, so that only a whole answer can be one."""
        return re.fullmatch(r'[\[{("]*', self.trigger) is not None


@lru_cache(maxsize=32)
def detect_format(template: str, tokenizer: Tokenizer) -> ToolFormat:
    """The format of a template. UserError for one that knows no tools, fails on calls or leaves them out."""
    probe = _TemplateProbe(template, tokenizer)
    rendered = probe.calls(1, EXAMPLE)
    one = probe.answer(rendered)
    if NAMES[0] not in one:
        raise UserError(f"{UNREADABLE}it leaves them out of the conversation; ask without tools")
    arguments = None if AS_JSON.search(one) else detect_arguments(probe.tagged, probe.special)
    given = AS_JSON if arguments is None else re.compile(_given(arguments))
    if given.search(one) is None:
        raise UserError(f"{UNREADABLE}arguments are neither JSON nor marked one by one; ask without tools")
    found = _around(probe, one, given)
    if not (found.opening + found.head).strip():
        raise UserError(f"{UNREADABLE}nothing marks where a call begins; ask without tools")
    reasoning, over = _reasoning(probe, found)
    before = one[: one.find((found.opening + found.head).strip())].strip()
    over = over or (before != "" and probe.prompt.rstrip().endswith(before))
    known = reasoning is not None or over or rendered.startswith(probe.prompt)
    return replace(found, arguments=arguments, reasoning=reasoning, can_require=known)


class _TemplateProbe:
    """A template, and what it makes of conversations that call tools."""

    def __init__(self, template: str, tokenizer: Tokenizer) -> None:
        self.template, self.tokenizer = template, tokenizer
        self.special = list(tokenizer.special)
        self.prompt = self._text([], generating=True)  # a question, up to where the answer begins
        self.first: int | None = None  # the number of the first call, where the template counts them
        two = self.answer(self.try_calls(2, EXAMPLE))
        self.first = next((first for first in (0, 1) if _counted(two, first).count(COUNT) == 2), None)

    def calls(self, count: int, arguments: Mapping[str, Any], content: str = "", reasoning: str = "") -> str:
        """The text of a question, and of an answer with so many calls."""
        made = [
            {"id": id, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}
            for name, id in zip(NAMES[:count], IDS, strict=False)
        ]
        more = {"reasoning_content": reasoning} if reasoning else {}
        return self._text([{"role": "assistant", "content": content, "tool_calls": made, **more}])

    def try_calls(
        self, count: int, arguments: Mapping[str, Any], content: str = "", reasoning: str = ""
    ) -> str:
        """The same; "" where the template takes no such answer."""
        try:
            return self.calls(count, arguments, content, reasoning)
        except UserError:
            return ""

    def answer(self, rendered: str) -> str:
        """The assistant's part of a rendered text, the ids and numbers of its calls replaced."""
        same = common_prefix(self.prompt, rendered)
        if len(same) < len(self.prompt) and same.rfind("<") > same.rfind(">"):
            same = same[: same.rfind("<")]  # the two part within a mark
        answer = rendered[len(same) :]
        for id in IDS:
            answer = answer.replace(id, ID)
        return answer if self.first is None else _counted(answer, self.first)

    def tagged(self, arguments: Mapping[str, Any]) -> str:
        """What comes after the name of a call with these arguments; "" where the template takes no such
        call.
        """
        answer = self.answer(self.try_calls(1, arguments))
        return answer.partition(NAMES[0])[2].replace(NAMES[0], NAME)

    def _text(self, answer: Sequence[Mapping[str, Any]], generating: bool = False) -> str:
        rendered = chat.text(
            [{"role": "user", "content": "x"}, *answer],
            self.template,
            tokenizer=self.tokenizer,
            tools=[_tool(name) for name in NAMES],
            add_generation_prompt=generating,
            steering="flag",
        )
        return rendered.text


def _counted(answer: str, first: int) -> str:
    """An answer with the numbers of its calls replaced: those that stand before a call's arguments."""
    start = 0
    for number, name in enumerate(NAMES, first):
        at = answer.find(name)
        stop = answer.find("plaCe", at)
        if at < 0 or stop < 0:
            break
        counted = re.sub(rf"(?<![\w.-]){number}(?![\w.])", COUNT, answer[start:stop])
        answer = answer[:start] + counted + answer[stop:]
        start = answer.find(name)
    return answer


def _given(arguments: TaggedArguments) -> str:
    """A pattern of the examples' arguments, marked one by one."""
    return re.escape(arguments.render(EXAMPLE)).replace(NAME, f"(?:{'|'.join(NAMES)})")


def _around(probe: _TemplateProbe, one: str, given: re.Pattern[str]) -> ToolFormat:
    """The constants around the names of calls and their arguments, whose pattern is ``given``."""
    two, three = (probe.answer(probe.try_calls(count, EXAMPLE)) for count in (2, 3))
    content = probe.answer(probe.try_calls(1, EXAMPLE, content=CONTENT))
    name = one.index(NAMES[0])
    begin, end = next((found.span() for found in [given.search(one, name)] if found), (name, name))
    lead, middle = _lead(one[:name], content), one[name + len(NAMES[0]) : begin]
    after = _without_ending(one[end:], probe.tokenizer)
    single = ToolFormat("", lead, middle, after, None, "", can_require=False)
    first = given.search(two)
    second = -1 if first is None else two.find(NAMES[1], first.end())
    if first is None or second < 0 or given.search(two, second) is None:
        return single
    joint = two[first.end() : second]
    tail = tail_of(after, joint, probe.special)
    head = head_of(lead, joint[len(tail) :], probe.special)
    opening, between = lead[: len(lead) - len(head)], joint[len(tail) : len(joint) - len(head)]
    several = ToolFormat(opening, head, middle, tail, between, after[len(tail) :], can_require=False)
    return several if _spelt(several) in given.sub(ANY, three) else single


def _lead(lead: str, content: str) -> str:
    """What begins a call, without what a template puts before every answer: what also follows words."""
    at = content.find(CONTENT)
    if at >= 0 and NAMES[0] in content[at:]:
        lead = common_suffix(lead, content[at + len(CONTENT) : content.index(NAMES[0], at)])
    return lead.lstrip()


def _without_ending(after: str, tokenizer: Tokenizer) -> str:
    """What follows a call, without what ends every answer: that begins with the tokenizer's end token."""
    ends = [at for id in tokenizer.eos_ids if (at := after.find(tokenizer.token_text(id))) >= 0]
    return after[: min(ends, default=len(after))].rstrip()


def _reasoning(probe: _TemplateProbe, found: ToolFormat) -> tuple[Reasoning | None, bool]:
    """What is around a thought that may come before a call, None where the template shows none; and
    whether the question's text ends with one that is over.
    """
    rendered = probe.try_calls(1, EXAMPLE, content=CONTENT, reasoning=THINKING)
    before, _, rest = rendered.partition(THINKING)
    lead = re.split(f"[{ID}{COUNT}]", found.opening + found.head)[0].strip()
    ends = [at for begins in (CONTENT, lead) if (at := rest.find(begins)) >= 0]
    end, prompt, before = rest[: min(ends, default=0)].strip(), probe.prompt.rstrip(), before.rstrip()
    if not end or prompt.endswith(end):
        return None, end != ""
    return (Reasoning(before[len(prompt) :].strip(), end) if before.startswith(prompt) else None), False


def _tool(name: str) -> dict[str, Any]:
    kinds = {
        "plaCe": {"type": "string", "description": "x"},
        "siZe": {"type": "integer", "description": "x"},
    }
    parameters = {"type": "object", "properties": kinds, "required": list(kinds)}
    return {"type": "function", "function": {"name": name, "description": "x", "parameters": parameters}}


def _spelt(format: ToolFormat) -> str:
    """All the examples' calls in a format, ANY for the arguments of each."""
    calls = [f"{format.head}{name}{format.middle}{ANY}{format.tail}" for name in NAMES]
    return format.opening + (format.between or "").join(calls) + format.closing
