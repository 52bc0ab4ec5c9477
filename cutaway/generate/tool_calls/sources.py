"""Label each character of a rendered conversation with its source: the template, or one of the messages.

The chat renderer follows every character from its origin (``tokenizer/chat/provenance.py``). Where a template
knows no tools, a result is text inside of a message of the user's, and still the tool's here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from cutaway.errors import UserError
from cutaway.generate.tool_calls import prompted
from cutaway.generate.tool_calls.prompted import Sourced
from cutaway.generate.tool_calls.tool_format import ToolFormat
from cutaway.tokenizer import chat

# A token with several sources counts as the least trusted one's; an unknown source is trusted least.
TRUST = ("template", "system", "user", "assistant", "tool", "unknown")
Tools = Sequence[Mapping[str, Any]] | None


class Source(NamedTuple):
    """Who wrote a text, and the number of the message; None for the template."""

    source: str
    message: int | None = None


class Sources(NamedTuple):
    """Stretches of a conversation's text with their sources, and its tokens with theirs."""

    runs: list[tuple[str, Source]]
    tokens: list[tuple[int, Source]]


def of(
    messages: Sequence[Mapping[str, Any]],
    template: str,
    get_format: Callable[[], ToolFormat],
    tools: Tools,
    *,
    tokenizer: Any,
    **variables: Any,
) -> Sources:
    """The sources of a conversation; ``variables`` are those of `tokenizer.chat.text`.

    Raises UserError where the conversation cannot be rendered, and for a tokenizer whose tokens do not spell
    the text as it is.
    """
    made, shown = _messages(messages, get_format, tools)
    given = {"tokenizer": tokenizer, "tools": shown, **variables}
    try:
        rendered = chat.text([one.message for one in made], template, **given)
    except UserError:
        folded = prompted.without_system(made)
        if len(folded) == len(made):
            raise
        made, rendered = folded, chat.text([one.message for one in folded], template, **given)
    owners = [_owners(rendered.text[run.start : run.stop], run.source, made) for run in rendered.origins]
    by_character = [one for some in owners for one in some]
    runs, at = list[tuple[str, Source]](), 0
    for source, some in groupby(by_character):
        length = sum(1 for _ in some)
        runs.append((rendered.text[at : at + length], source))
        at += length
    ids = chat.encoded(rendered, template, tokenizer=tokenizer)
    return Sources(runs, _tokens(rendered.text, by_character, ids, tokenizer))


def _messages(
    given: Sequence[Mapping[str, Any]], get_format: Callable[[], ToolFormat], tools: Tools
) -> tuple[list[Sourced], Tools]:
    """The messages that the template is given."""
    if chat.has_calls(given, tools):
        return prompted.sourced(given, get_format(), tools)
    return prompted.as_given(given), tools


def _owners(text: str, place: str, made: Sequence[Sourced]) -> list[Source]:
    """The source of each character of a stretch that came from one place of the template's context."""
    if place in ("template", "role"):
        return [Source("template")] * len(text)
    number, _, field = place.removeprefix("messages[").partition("]")
    if not place.startswith("messages[") or not number.isdecimal() or int(number) >= len(made):
        return [Source("system" if place.startswith("tools") else "unknown")] * len(text)
    whole = made[int(number)]
    own = whole.message["role"]
    named = [one.message for one in whole.parts if one.message is not None]
    plain = Source(own if own in TRUST else "unknown", named[-1] if named else None)
    content = "".join(part.text for part in whole.parts)
    start = content.find(text) if field == ".content" else -1
    if start < 0 or (len(whole.parts) > 1 and content.find(text, start + 1) >= 0):
        least = max((TRUST.index(one.source) for one in whole.parts if one.source in TRUST), default=-1)
        return [Source(TRUST[least], plain.message) if least >= 0 else plain] * len(text)
    each = [Source(part.source, part.message) for part in whole.parts for _ in part.text]
    return each[start : start + len(text)]


def _tokens(
    text: str, owners: Sequence[Source], ids: Sequence[int], tokenizer: Any
) -> list[tuple[int, Source]]:
    """Each token with the least trusted source of its bytes."""
    by_byte = [source for character, source in zip(text, owners, strict=True) for _ in character.encode()]
    ends = [0]
    for id in ids:
        ends.append(ends[-1] + len(tokenizer.token_bytes(id)))
    if ends[-1] != len(by_byte):
        raise UserError("this tokenizer's tokens do not spell the text, so that their sources are not known")
    found = []
    for id, (start, stop) in zip(ids, pairwise(ends), strict=True):
        some = by_byte[start:stop] or [Source("template")]
        found.append((id, max(some, key=lambda one: TRUST.index(one.source))))
    return found
