"""Examples to fine-tune on, as ids and which of them are trained.

    {"messages": [...]}                         each of the assistant's turns is trained, with its end token
    {"prompt": ..., "completion": ...}          the completion is; both texts, or both lists of messages
    {"text": ...}                               all of it is, with the end token
    {"prompt": ..., "chosen": ..., "rejected": ...}   a pair for learning from comparisons; a prompt that both
                                                answers begin with may be left out; "margin" is how much
                                                better the chosen one is
    {"prompt": ..., "completion": ..., "label": true}  one answer that was liked, or was not; a pair is two

Other layouts become these first (``layouts.py``). ``tools`` and ``chat_template_kwargs`` go to the template.
Conversations are rendered by the model's own template, control tokens from the template alone
(``tokenizer/chat``). What the assistant wrote is known from where each character came from, so that a
template needs no generation markers. A conversation is tokenised once: a mask over its ids says what is
trained, and no cut between prompt and answer changes a token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from cutaway.bounds import is_finite
from cutaway.data import layouts
from cutaway.data.layouts import Kind
from cutaway.errors import UserError, quoted
from cutaway.tokenizer import Tokenizer, chat

MESSAGES = "messages["
Span = tuple[int, int]


@dataclass(frozen=True)
class Example:
    """A text as ids [n], and whether each of them is a target of training [n]."""

    ids: np.ndarray
    trained: np.ndarray

    @property
    def documents(self) -> tuple[Example, ...]:
        """The documents of the item, each with positions of its own in a row."""
        return (self,)

    @property
    def to_end(self) -> Example:
        """The item up to its last trained token."""
        return self.cut(int(np.flatnonzero(self.trained)[-1]) + 1) if self.trained.any() else self

    def cut(self, count: int) -> Example:
        """The first ``count`` tokens."""
        return Example(self.ids[:count], self.trained[:count])


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, the better one first, and by how much its reward should be greater."""

    chosen: Example
    rejected: Example
    margin: float = 0.0

    @property
    def documents(self) -> tuple[Example, ...]:
        """Both answers, which share a row."""
        return self.chosen, self.rejected


@dataclass(frozen=True)
class Labelled:
    """An answer, and whether it was liked. ``mismatched``: an answer to another prompt in its place."""

    answer: Example
    label: bool
    mismatched: Example | None = None

    @property
    def documents(self) -> tuple[Example, ...]:
        """The answer."""
        return (self.answer,)


Item = Example | Pair | Labelled


def changed(item: Item, change: Callable[[Example], Example]) -> Item:
    """The item with each of its documents changed."""
    if isinstance(item, Pair):
        return replace(item, chosen=change(item.chosen), rejected=change(item.rejected))
    return replace(item, answer=change(item.answer)) if isinstance(item, Labelled) else change(item)


class Reader:
    """Rows as a model reads them. ``ends`` are the ids that end an answer, the tokenizer's own among them."""

    def __init__(self, tokenizer: Tokenizer, template: str | None, ends: Sequence[int] = ()) -> None:
        self.tokenizer, self.template = tokenizer, template
        own = () if tokenizer.eos is None else (tokenizer.eos,)
        self.ends = frozenset((*own, *ends))

    def items(self, kind: Kind, row: Mapping[str, Any], where: str) -> tuple[Item, ...]:
        """What a row holds of this kind. Raises UserError if it holds none."""
        if kind == "examples":
            return (self.example(row, where),)
        if kind == "pairs":
            return (self.pair(row, where),)
        if "chosen" in row:
            pair = self.pair(row, where)
            return Labelled(pair.chosen, True), Labelled(pair.rejected, False)
        return (self.labelled(row, where),)

    def example(self, row: Mapping[str, Any], where: str) -> Example:
        """A row of messages, prompt and completion, or text. Raises UserError for another."""
        row, _ = layouts.standard("examples", row, where)
        if "messages" in row:
            return self._conversation(layouts.messages(row["messages"], f"{where}: messages"), 0, row, where)
        if "completion" in row:
            return self._answer(row.get("prompt", ""), row["completion"], row, f"{where}: completion")
        return self._text("", row["text"])

    def pair(self, row: Mapping[str, Any], where: str) -> Pair:
        """A row of chosen and rejected answers. Raises UserError for another."""
        row, _ = layouts.standard("pairs", row, where)
        margin = row.get("margin", 0.0)
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not is_finite(margin):
            raise UserError(f"{where}: margin is {quoted(margin)}; it must be a number")
        prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
        if prompt is None:
            same = _shared(chosen, rejected, where)
            prompt, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
        return Pair(
            self._answer(prompt, chosen, row, f"{where}: chosen"),
            self._answer(prompt, rejected, row, f"{where}: rejected"),
            float(margin),
        )

    def labelled(self, row: Mapping[str, Any], where: str) -> Labelled:
        """A row of an answer and its label. Raises UserError for another."""
        row, _ = layouts.standard("labelled", row, where)
        return Labelled(self._answer(row.get("prompt", ""), row["completion"], row, where), row["label"])

    def _answer(self, prompt: Any, answer: Any, row: Mapping[str, Any], where: str) -> Example:
        if isinstance(prompt, str) and isinstance(answer, str):
            return self._text(prompt, answer)
        before, after = layouts.messages(prompt, f"{where}: prompt"), layouts.messages(answer, where)
        return self._conversation([*before, *after], len(before), row, where)

    def _text(self, prompt: str, answer: str) -> Example:
        """Text without a template: the begin token where the model has one, and the end token."""
        tokenizer = self.tokenizer
        ids = tokenizer.encode(prompt + answer)
        spans = _spans(tokenizer, ids, prompt + answer)
        trained = [stop > len(prompt) for _, stop in spans]
        if tokenizer.add_bos and tokenizer.bos is not None:
            ids, trained = [tokenizer.bos, *ids], [False, *trained]
        if tokenizer.eos is not None:
            ids, trained = [*ids, tokenizer.eos], [*trained, True]
        return Example(np.array(ids, np.int32), np.array(trained))

    def _conversation(
        self, messages: Sequence[Mapping[str, Any]], first: int, row: Mapping[str, Any], where: str
    ) -> Example:
        """A conversation whose assistant's turns from message ``first`` on are trained."""
        if self.template is None:
            raise UserError(
                f"{where}: is a conversation, and this model has no chat template to write it with: take one "
                "that has, such as smollm2, or give text, or prompt and completion as texts"
            )
        self._check_roles(messages, where)
        options = template_options(row, where)
        try:
            whole = chat.text(
                messages, self.template, tokenizer=self.tokenizer, add_generation_prompt=False, **options
            )
            ids = chat.encoded(whole, self.template, tokenizer=self.tokenizer)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        answers = [
            self._turn(whole, messages, i, options)
            for i, message in enumerate(messages)
            if i >= first and message.get("role") == "assistant"
        ]
        trained = np.zeros(len(ids), bool)
        for n, (start, stop) in enumerate(_spans(self.tokenizer, ids, whole.text)):
            trained[n] = any(begin < stop and start < end for begin, end in answers)
        return Example(np.array(ids, np.int32), trained)

    def _check_roles(self, messages: Sequence[Mapping[str, Any]], where: str) -> None:
        """UserError for a role that chat templates do not write, unless this one names it."""
        for n, message in enumerate(messages):
            role = message.get("role")
            if role in layouts.SPEAKERS or any(
                f"{mark}{role}{mark}" in (self.template or "") for mark in "'\""
            ):
                continue
            meant = layouts.ROLES.get(role) if isinstance(role, str) else None
            mend = f": did you mean {meant}?" if meant else ""
            raise UserError(
                f"{where}: {MESSAGES}{n}] has the role {quoted(role)}; known: "
                f"{', '.join(layouts.SPEAKERS)}{mend}"
            )

    def _turn(
        self, whole: chat.Rendered, messages: Sequence[Mapping[str, Any]], i: int, options: dict[str, Any]
    ) -> Span:
        """The span of message ``i`` that the model writes: from the generation prompt to the end token.

        A template may write an earlier turn otherwise than the last one; what came from the message begins
        its turn then.
        """
        own = f"{MESSAGES}{i}]."
        mine = [run for run in whole.origins if run.source.startswith(own) and run.source != f"{own}role"]
        if not mine:
            return 0, 0
        start, last = mine[0].start, mine[-1].stop
        if i:
            prompt = chat.prompt_text(messages[:i], self.template or "", tokenizer=self.tokenizer, **options)
            if whole.text.startswith(prompt) and len(prompt) <= start:
                start = len(prompt)
        later = [run.start for run in whole.origins if run.start >= last and run.source.startswith(MESSAGES)]
        limit = min(later, default=len(whole.text))
        ends = [
            stop for begin, stop, id in whole.control if last <= begin and stop <= limit and id in self.ends
        ]
        return start, min(ends, default=last)


def template_options(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a row gives to the chat template beside its messages. UserError for what it may not set."""
    options, tools = row.get("chat_template_kwargs") or {}, row.get("tools")
    if isinstance(tools, str):  # as trl stores them where a table needs one type
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise UserError(f"{where}: tools is text that is not JSON ({error})") from None
    if not isinstance(options, dict):
        raise UserError(f"{where}: chat_template_kwargs should hold entries by name")
    for name in options:
        if not chat.may_be_set(name):
            raise UserError(
                f"{where}: chat_template_kwargs sets {quoted(name)}, which is not an example's to set"
            )
    return options | ({"tools": tools} if tools else {})


def _shared(chosen: Any, rejected: Any, where: str) -> int:
    """How many messages both answers begin with."""
    one = layouts.messages(chosen, f"{where}: chosen")
    other = layouts.messages(rejected, f"{where}: rejected")
    same = next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    if not same or same in (len(one), len(other)):
        raise UserError(f"{where}: has no prompt, and the answers do not begin with one and then differ")
    return same


def _spans(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> list[Span]:
    """The characters of each token in the text; UserError for a tokenizer that changes the text."""
    data = text.encode()
    at, ends = 0, []
    for id in ids:
        piece = tokenizer.token_bytes(id)
        if not data.startswith(piece, at):
            stripped = piece.lstrip(b" ")  # a space before the first word, or spaces that a token swallows
            while data.startswith(b" ", at) and not data.startswith(stripped, at):
                at += 1
            if not data.startswith(stripped, at):
                raise UserError("this tokenizer changes the text, so that its tokens have no places in it")
            piece = stripped
        at += len(piece)
        ends.append(at)
    starts = np.cumsum([0] + [len(char.encode()) for char in text]) if len(data) != len(text) else None
    if starts is not None:
        ends = np.searchsorted(starts, ends).tolist()
    return list(pairwise([0, *ends]))
