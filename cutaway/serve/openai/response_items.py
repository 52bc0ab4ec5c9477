"""The items of a response's output, and the events that tell them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cutaway.generate.tool_calls import parser
from cutaway.generate.tool_calls.answer import Event
from cutaway.generate.tool_calls.thoughts import Thought
from cutaway.serve.service import new_id


@dataclass
class Items:
    """The output's items and the events that tell them, as the answer's events come."""

    made: list[dict[str, Any]] = field(default_factory=list)
    part: dict[str, Any] | None = None  # of the last item, which is under way; a call has none

    def push(self, event: Event, logprobs: Sequence[Any] = ()) -> Iterator[dict[str, Any]]:
        """An event of the answer as the response's."""
        kind = "reasoning" if isinstance(event, Thought) else "message" if isinstance(event, str) else "call"
        if isinstance(event, parser.CallStarted) or not self._open(kind):
            yield from self.close("completed")
            yield from self._begin(kind, event)
        place = self._place()
        if isinstance(event, parser.ArgumentsDelta):
            self.made[-1]["arguments"] += event.arguments
            yield {"type": "response.function_call_arguments.delta", "delta": event.arguments, **place}
        elif self.part is not None:
            text = event.text if isinstance(event, Thought) else str(event)
            self.part["text"] += text
            delta: dict[str, Any] = {"delta": text, "content_index": 0, **place}
            if kind == "message":
                self.part["logprobs"] += logprobs
                delta["logprobs"] = list(logprobs)
            yield {"type": f"response.{self.part['type']}.delta", **delta}

    def _open(self, kind: str) -> bool:
        last = self.made[-1] if self.made else {"status": "completed"}
        return last["status"] == "in_progress" and last["type"] == {"call": "function_call"}.get(kind, kind)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.made[-1]["id"], "output_index": len(self.made) - 1}

    def _begin(self, kind: str, event: Event) -> Iterator[dict[str, Any]]:
        head: dict[str, Any] = {"status": "in_progress"}
        if isinstance(event, parser.CallStarted):
            head |= {"id": new_id("fc"), "type": "function_call", "name": event.name}
            head |= {"call_id": new_id("call"), "arguments": ""}
        elif kind == "reasoning":
            head |= {"id": new_id("rs"), "type": kind, "summary": [], "content": []}
        else:
            head |= {"id": new_id("msg"), "type": kind, "role": "assistant", "content": []}
        self.made.append(head)
        index = len(self.made) - 1
        yield {"type": "response.output_item.added", "output_index": index, "item": dict(head)}
        self.part = None
        if kind != "call":
            self.part = {"type": "reasoning_text", "text": ""}
            if kind == "message":
                self.part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield {
                "type": "response.content_part.added",
                "content_index": 0,
                "part": {**self.part, **({"logprobs": []} if kind == "message" else {})},
                **self._place(),
            }

    def close(self, status: str) -> Iterator[dict[str, Any]]:
        """The end of the item under way, if there is one."""
        if not self.made or self.made[-1]["status"] != "in_progress":
            return
        item, part, place = self.made[-1], self.part, self._place()
        item["status"] = status
        if part is None:
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield {"type": "response.function_call_arguments.done", **done, **place}
        else:
            item["content"] = [part]
            place |= {"content_index": 0}
            fields = {name: part[name] for name in ("text", "logprobs") if name in part}
            yield {"type": f"response.{part['type']}.done", **fields, **place}
            yield {"type": "response.content_part.done", "part": part, **place}
        index = len(self.made) - 1
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
