"""Who is next: clients take turns, and the requests of one are served in the order they came."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from cutaway.generate.batch.sequence import Answer


class Queue:
    """Requests that wait. One client's many never stand before another's one."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, deque[Answer]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def add(self, answer: Answer) -> None:
        self._clients.setdefault(answer.stream.request.client, deque()).append(answer)

    def first(self) -> Answer | None:
        """Whose turn it is."""
        return next(iter(self._clients.values()))[0] if self._clients else None

    def pop(self) -> Answer:
        """Takes out whose turn it is; its client goes behind the others."""
        client, own = self._clients.popitem(last=False)
        answer = own.popleft()
        if own:
            self._clients[client] = own
        return answer

    def remove(self, gone: Callable[[Answer], bool]) -> list[Answer]:
        """Takes out those that are gone."""
        found = [answer for own in self._clients.values() for answer in own if gone(answer)]
        for client, own in list(self._clients.items()):
            kept = deque(answer for answer in own if answer not in found)
            if kept:
                self._clients[client] = kept
            else:
                del self._clients[client]
        return found
