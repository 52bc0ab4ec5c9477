"""Conversations as the ids that a model reads, by its own chat template, with tools or without."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from cutaway.engines import Engines
from cutaway.errors import UserError

if TYPE_CHECKING:
    from cutaway.generate.tool_calls.tool_format import ToolFormat
    from cutaway.tokenizer import Tokenizer
    from cutaway.tokenizer.chat.rendering import Rendered

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None
Steering = Literal["refuse", "flag"]
CHECK = "Check your answer. If it is wrong, correct it. End with the answer alone on the last line."


class RenderOptions(TypedDict, total=False):
    """How a conversation is rendered; each may be left out.

    ``tools``: descriptions of what the model may call. ``steering``: what to do with content that changes
    which control tokens the template writes: "refuse", or "flag" to let it (docs/chat.md).
    """

    tools: Tools
    steering: Steering


@dataclass(frozen=True)
class Conversations:
    """Renders conversations by the chat template of a model's checkpoint."""

    engines: Engines
    get_tokenizer: Callable[[], Tokenizer]

    @property
    def template(self) -> str:
        """The model's chat template; UserError where it has none."""
        self.engines.decoder()
        checkpoint = self.engines.checkpoint
        if checkpoint.chat_template is None:
            raise UserError(f"{checkpoint.source} has no chat template: give generate() a text")
        return checkpoint.chat_template

    @cached_property
    def tool_format(self) -> ToolFormat:
        """How the model writes calls of tools: as its template does, else as it is asked to."""
        from cutaway.generate.tool_calls import prompted

        return prompted.format_of(self.template, self.get_tokenizer())

    def ids(self, messages: Messages, tools: Tools, steering: Steering, **variables: Any) -> list[int]:
        """The ids up to the assistant's turn; ``variables`` are the template's own."""
        from cutaway.tokenizer import chat

        given: dict[str, Any] = {"tokenizer": self.get_tokenizer(), "steering": steering, **variables}
        if not chat.has_calls(messages, tools):
            return chat.render(messages, self.template, tools=tools, **given)
        from cutaway.generate.tool_calls import prompted

        return prompted.render(messages, self.template, self.tool_format, tools, **given)

    def text(self, messages: Messages) -> Rendered:
        """The text, with where each character came from; content that steers is flagged."""
        from cutaway.tokenizer import chat

        return chat.text(messages, self.template, tokenizer=self.get_tokenizer(), steering="flag")

    def refining(self, messages: Messages, answers: Sequence[str]) -> list[int]:
        """The ids of a conversation that asks to check the answers so far."""
        turns = list(messages)
        for answer in answers:
            turns += [{"role": "assistant", "content": answer}, {"role": "user", "content": CHECK}]
        return self.ids(turns, None, "refuse")
