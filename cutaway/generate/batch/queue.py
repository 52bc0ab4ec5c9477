"""A fair queue: clients take turns, and the requests of one are served in the order they came."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Queue(Generic[Item]):
    """Requests that wait. One client's many never delay another's one by more than a turn."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, deque[Item]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def count(self, client: str) -> int:
        """How many requests of a client wait."""
        return len(self._clients.get(client, ()))

    def add(self, client: str, item: Item) -> None:
        """Append a client's request."""
        self._clients.setdefault(client, deque()).append(item)

    def first(self) -> Item | None:
        """The next request, None if there is none."""
        return next(iter(self._clients.values()))[0] if self._clients else None

    def pop(self) -> Item:
        """Take the next request out; its client goes behind the others."""
        client, own = self._clients.popitem(last=False)
        item = own.popleft()
        if own:
            self._clients[client] = own
        return item

    def remove(self, gone: Callable[[Item], bool]) -> list[Item]:
        """Take out the requests that are gone."""
        found: list[Item] = []
        for client, own in list(self._clients.items()):
            kept: deque[Item] = deque()
            for item in own:
                (found if gone(item) else kept).append(item)
            if kept:
                self._clients[client] = kept
            else:
                del self._clients[client]
        return found
