"""Neutral conversations of the same shape: what a template writes for one is the template's own.

Content can lead a template to write its own control tokens, for instance where it splits an assistant's text
at '</think>' and joins the parts around a token. No origin shows that, for the token is the template's. A
comparison does: if the tokens differ from those that the neutral conversation gets, the words steered the
template.
"""

import re
from collections.abc import Iterator, Sequence

Markers = Sequence[re.Pattern[str]]  # what a template might look for: control tokens, its own constants
PROSE = {
    "content",
    "text",
    "reasoning_content",
    "thinking",
    "reasoning",
}  # fields in which every word is free


def neutral(value: object, markers: Markers, prose: bool = True, key: str = "") -> object:
    """The same data, prose fields (if `prose`) as nothing but x, markers taken out of the others.

    What is empty or white space stays so: whether there is a text at all is the conversation's shape.
    """
    if isinstance(value, dict):
        return {_blanked(name, markers): neutral(item, markers, prose, name) for name, item in value.items()}
    if isinstance(value, list):
        return [neutral(item, markers, prose, key) for item in value]
    if not isinstance(value, str):
        return value
    if prose and key in PROSE and value.strip():
        return "x" * len(value)
    return _blanked(value, markers)


def filled(value: object, key: str = "") -> object:
    """The same data, prose longer and an x in every other empty text: no constants meet through one."""
    if isinstance(value, dict):
        return {name or "x": filled(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [filled(item, key) for item in value]
    if not isinstance(value, str):
        return value
    return value + "x" * 20 if key in PROSE else value if value.strip() else "x"


def places(value: object, path: str = "") -> Iterator[str]:
    """The place of each string, such as "messages[2].content", in the order of their numbers."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from places(item, f"{path}[{i}]")
    elif isinstance(value, str):
        yield path


def _blanked(text: str, markers: Markers) -> str:
    for pattern in markers:
        text = pattern.sub(lambda match: re.sub(r"\S", "x", match[0]), text)
    return text


def conversations() -> list[object]:
    """Conversations that lead a template through its usual branches, to see which tokens it puts together."""
    call = {
        "id": "call00001",
        "type": "function",
        "function": {"name": "look", "arguments": {"place": "here"}},
    }
    tool = {
        "type": "object",
        "properties": {"place": {"type": "string", "description": "x"}},
        "required": ["place"],
    }
    tools = [{"type": "function", "function": {"name": "look", "description": "x", "parameters": tool}}]
    ask, answer = {"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}
    thought = {**answer, "reasoning_content": "x", "thinking": "x"}
    acting = {"role": "assistant", "content": "x", "tool_calls": [call]}
    result = {"role": "tool", "name": "look", "tool_call_id": "call00001", "content": "x"}
    shapes = [[ask], [ask, answer, ask], [{"role": "system", "content": "x"}, ask, thought, ask, thought]]
    acted = [[ask, acting, result], [{"role": "system", "content": "x"}, ask, acting, result, answer, ask]]
    made = []
    for thinking in (True, False):
        for messages in shapes:
            made.append({"messages": messages, "tools": None, "documents": None, "enable_thinking": thinking})
        for messages in acted:
            made.append(
                {"messages": messages, "tools": tools, "documents": None, "enable_thinking": thinking}
            )
    return [filled({**context, "add_generation_prompt": True}) for context in made]
