"""A conversation rendered by its template, with the origin of each character, and its ids."""

import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from cutaway.errors import UserError, quoted
from cutaway.tokenizer.chat.control_tokens import ControlTokens, Span, Traced, conversations, filled, neutral
from cutaway.tokenizer.chat.sandbox import helper
from cutaway.tokenizer.unicode import utf8

LONGEST_TEMPLATE = 200_000  # characters; real ones have up to 20,000
DEEPEST = 100  # lists and mappings inside each other, of a conversation or a tool
REMEMBERED = 32  # templates, each with a tokenizer, that are remembered
NAMES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "pad", "unk_token": "unknown"}
REASONING = ("reasoning_content", "thinking", "reasoning")  # what templates call a message's reasoning

OWN = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "template")
OWN += ("tokenizer", "steering")  # not the variables of a template


@runtime_checkable
class Vocabulary(Protocol):
    """What is needed of a tokenizer: its added tokens, the special ones, how it encodes around them."""

    bos: int | None
    eos: int | None
    pad: int | None
    unknown: int | None
    added: dict[str, int]
    special: dict[str, int]

    def token_text(self, id: int, /) -> str: ...

    def encode_parts(
        self, text: str, control: Sequence[tuple[int, int, int]], /, never: frozenset[int]
    ) -> list[int]: ...


@dataclass(frozen=True)
class Run:
    """Characters start to stop came from `source`: "template", "role", "input", or "messages[2].content"."""

    start: int
    stop: int
    source: str


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, where each character came from, and its control tokens as (start, stop, id)."""

    text: str
    origins: tuple[Run, ...]
    control: tuple[tuple[int, int, int], ...]
    steered: bool
    template_sha256: str

    def origin_of(self, position: int) -> str:
        """The source of the character at a position. Raises IndexError past the end."""
        for run in self.origins:
            if run.start <= position < run.stop:
                return run.source
        raise IndexError(f"the text has {len(self.text)} characters, and none at {position}")


def render(
    messages: Sequence[Mapping[str, Any]], template: str, *, tokenizer: Vocabulary, **given: Any
) -> list[int]:
    """The ids of a conversation, control tokens from the template alone; ``given`` is as in `text`."""
    return encoded(text(messages, template, tokenizer=tokenizer, **given), template, tokenizer=tokenizer)


def has_calls(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> bool:
    """Whether a conversation has tools, calls of them or their results."""
    return bool(tools) or any("tool_calls" in one or one.get("role") == "tool" for one in messages)


def encoded(rendered: Rendered, template: str, *, tokenizer: Vocabulary) -> list[int]:
    """The ids of a rendered conversation. Raises UserError for a tokenizer that chats can be forged with."""
    control = control_ids(template, tokenizer)
    ids = tokenizer.encode_parts(rendered.text, rendered.control, never=control)
    if [id for id in ids if id in control] != [id for _, _, id in rendered.control]:
        raise UserError("this tokenizer makes a control token from plain text: a chat could be forged")
    return ids


def may_be_set(name: object) -> bool:
    """Whether a conversation's ``chat_template_kwargs`` may set the variable of that name."""
    return isinstance(name, str) and name.isidentifier() and name not in OWN and not name.endswith("_token")


def control_ids(template: str, tokenizer: Vocabulary) -> frozenset[int]:
    """The ids of the control tokens of a template, none of which a conversation's texts come to."""
    return _control_tokens(template, tokenizer).ids


def text(
    messages: Sequence[Mapping[str, Any]],
    template: str,
    *,
    tokenizer: Vocabulary | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    steering: str = "refuse",
    **variables: Any,
) -> Rendered:
    """A conversation as the template writes it, with the origin of each character.

    With `continue_final_message` it stops behind the last message's content, for the model to go on with it.

    Without a tokenizer nothing is a control token, and the template gets no bos_token or eos_token.
    `steering="flag"` lets content change which tokens the template writes (`steered` tells). Raises UserError
    for a template that fails, takes no such conversation or exceeds its limits, and for content that is no
    text.
    """
    if steering not in ("refuse", "flag"):
        raise UserError(f'steering is "refuse" or "flag", not {quoted(steering)}')
    asks = add_generation_prompt and not continue_final_message
    context = _context(messages, tools=tools, documents=documents, add_generation_prompt=asks, **variables)
    tokens = _control_tokens(template, tokenizer)
    names = tokens.names
    quiet = neutral(context, tokens.markers)
    traced, expected = _traced(template, names, [context, quiet])
    if isinstance(traced, str):
        raise UserError(traced)
    if isinstance(expected, str):  # its words meant something to the template: take out the markers alone
        expected = _traced(template, names, [neutral(context, tokens.markers, prose=False)])[0]

    def probe() -> Iterable[Traced]:
        return (t for t in _traced(template, names, [filled(quiet)]) if isinstance(t, Traced))

    control = tokens.spans(traced, probe)
    neutrals = [] if isinstance(expected, str) else tokens.spans(expected, probe)
    steered = _ids(control) != _ids(neutrals)
    if steered and steering == "refuse":
        raise UserError(_steering(traced.text, control, neutrals))
    made = Rendered(
        traced.text, _runs(traced, context, tokens.own), tuple(control), steered, _digest(template)
    )
    return _unfinished(made, context["messages"]) if continue_final_message else made


def prompt_text(
    messages: Sequence[Mapping[str, Any]], template: str, *, tokenizer: Vocabulary, **variables: Any
) -> str:
    """The text alone of a conversation and the beginning of its next answer; quicker than `text`.

    Nothing is found out about where characters came from, nor whether the words steered the template: it is
    not for a model to read.
    """
    context = _context(messages, add_generation_prompt=True, **variables)
    (traced,) = _traced(template, _names(tokenizer), [context])
    if isinstance(traced, str):
        raise UserError(traced)
    return traced.text


def _context(messages: Sequence[Mapping[str, Any]], **variables: Any) -> dict[str, Any]:
    """What a template is given, as plain data."""
    if not messages:
        raise UserError("a conversation needs at least one message")
    plain = {name: _plain(value, name) for name, value in variables.items()}
    own = {"messages": [_message(message, i) for i, message in enumerate(messages)]}
    return own | {"tools": None, "documents": None} | plain


def _unfinished(whole: Rendered, messages: Sequence[Mapping[str, Any]]) -> Rendered:
    """A conversation up to the end of its last message's content. Blanks at that end which the template takes
    away are given back: the model is to go on from what was written.
    """
    place, content = f"messages[{len(messages) - 1}].content", messages[-1].get("content")
    runs = [i for i, run in enumerate(whole.origins) if run.source == place]
    if messages[-1].get("role") != "assistant" or not isinstance(content, str) or not content.strip():
        raise UserError("only an assistant's message with a text, the last one, can be continued")
    if not runs:
        raise UserError("the template leaves out the last message's text, so that it cannot be continued")
    run = whole.origins[runs[-1]]
    shown = whole.text[run.start : run.stop]
    given, kept = content[len(content.rstrip()) :], shown[len(shown.rstrip()) :]
    missing = given[len(kept) :] if given.startswith(kept) else ""
    return Rendered(
        whole.text[: run.stop] + missing,
        (*whole.origins[: runs[-1]], Run(run.start, run.stop + len(missing), place)),
        tuple(span for span in whole.control if span[1] <= run.stop),
        whole.steered,
        whole.template_sha256,
    )


def _traced(template: str, names: Mapping[str, str], contexts: list) -> list[Traced | str]:
    """What the template makes of each context, or why it makes nothing of it."""
    answer = helper.ask({"template": template, "names": names, "contexts": contexts})
    return [made.get("refused") or Traced.of(made) for made in answer["rendered"]]


_known: OrderedDict[tuple[str, int], tuple[weakref.ref[Vocabulary] | None, ControlTokens]] = OrderedDict()


def _control_tokens(template: str, tokenizer: Vocabulary | None) -> ControlTokens:
    """What is a control token for a template and a tokenizer, found out once."""
    key = (template, id(tokenizer))
    kept, tokens = _known.get(key, (None, None))
    if tokens is not None and (kept and kept()) is tokenizer:  # not another one that has its id by now
        _known.move_to_end(key)
        return tokens
    if len(template) > LONGEST_TEMPLATE:
        raise UserError(f"the chat template has over {LONGEST_TEMPLATE:,} characters; no model's has")
    utf8(template, "the chat template")
    names = _names(tokenizer)
    request = {"template": template, "names": names, "contexts": conversations()}
    answer = helper.ask(request)
    special, added = (tokenizer.special, tokenizer.added) if tokenizer else ({}, {})
    tokens = ControlTokens(template, answer["source"], answer["own"], special, added, names)
    tokens.learn(Traced.of(made) for made in answer["rendered"] if "refused" not in made)
    _known[key] = weakref.ref(tokenizer) if tokenizer is not None else None, tokens
    _known.move_to_end(key)
    while len(_known) > REMEMBERED:
        _known.popitem(last=False)
    return tokens


def _names(tokenizer: Vocabulary | None) -> dict[str, str]:
    """The variables that hold the tokenizer's own tokens: the template's text, not the conversation's."""
    ids = {name: getattr(tokenizer, field, None) for name, field in NAMES.items()}
    return {name: tokenizer.token_text(id) for name, id in ids.items() if tokenizer and id is not None}


def _message(message: object, i: int) -> dict:
    """A message as plain data, without None, its reasoning under each name that templates use."""
    if not isinstance(message, Mapping):
        raise UserError(f"messages[{i}] is a {type(message).__name__}; a message is a mapping")
    plain = _plain({key: value for key, value in message.items() if value is not None}, f"messages[{i}]")
    reasoning = next((plain[name] for name in REASONING if name in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: Any, place: str, depth: int = 0) -> Any:
    """The same data in JSON's types; UserError for others, lone surrogates and deep nesting."""
    if depth > DEEPEST:
        raise UserError(f"{quoted(place)} is nested more than {DEEPEST} deep: make it flatter")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return _text(value, place)
    if isinstance(value, Mapping):
        return {_key(key, place): _plain(item, f"{place}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{place}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise UserError(f"{place} is a {type(value).__name__}, which no chat template reads")


def _key(key: object, place: str) -> str:
    if not isinstance(key, str):
        raise UserError(f"a key of {place} is a {type(key).__name__}; the keys of a conversation are text")
    return _text(key, f"a key of {place}")


def _text(value: str, place: str) -> str:
    """A text as a plain str; UserError for half a surrogate pair, of which ASCII has none."""
    text = str.__str__(value)
    return text if text.isascii() else utf8(text, place).decode()


def _ids(spans: Sequence[Span]) -> list[int]:
    return [id for _, _, id in spans]


def _steering(text: str, control: Sequence[Span], neutrals: Sequence[Span]) -> str:
    pairs = enumerate(zip(_ids(control), _ids(neutrals), strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(control), len(neutrals)))
    start, stop, _ = control[min(same, len(control) - 1)] if control else (0, 0, 0)
    return (
        "the words of this conversation change which control tokens its template writes (near "
        f"{quoted(text[start:stop])}, character {start}): pass reasoning as reasoning_content, "
        "take the marker out, or allow it by steering='flag'"
    )


def _runs(traced: Traced, context: dict, own: int) -> tuple[Run, ...]:
    """Who wrote which stretch; from the origin ``own`` on it is the word for a message's role."""
    sources = ["input", *_places(context)]
    runs: list[Run] = []
    for start, stop, origin in traced.runs():
        source = sources[-origin] if origin <= 0 else "template" if origin < own else "role"
        if runs and runs[-1].source == source:
            start = runs.pop().start
        runs.append(Run(start, stop, source))
    return tuple(runs)


def _places(value: object, path: str = "") -> Iterator[str]:
    """The place of each string, such as "messages[2].content", in the order of their numbers."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _places(item, f"{path}[{i}]")
    elif isinstance(value, str):
        yield path


def _digest(template: str) -> str:
    import hashlib  # which loads a library of ciphers: only for what is rendered

    return hashlib.sha256(template.encode()).hexdigest()
