"""A queue in which clients take turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Clients take turns, and the items of one come in their order: many of one delay another by one turn.

    Clients whose first item has a higher ``priority`` come before others.
    """

    def __init__(self, priority: Callable[[Item], int] = lambda _: 0) -> None:
        self._priority = priority
        self._clients: OrderedDict[str, deque[Item]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def count(self, client: str) -> int:
        """How many items of a client wait."""
        return len(self._clients.get(client, ()))

    def add(self, client: str, item: Item) -> None:
        """Append a client's item."""
        self._clients.setdefault(client, deque()).append(item)

    def has_room(self, client: str, most: int, leaving: int = 0) -> bool:
        """Whether one more item of a client may wait, where ``most`` may and ``leaving`` leave at once.

        A named client may have as many as places are free, so that one fills half of them and another always
        finds some (Choudhury and Hahne's dynamic thresholds, 1998).
        """
        free = most - max(0, len(self) - leaving)
        return max(0, self.count(client) - leaving) < free if client else free > 0

    @property
    def clients(self) -> Iterable[str]:
        """Those that have items here."""
        return self._clients

    def first(self, blocked: Container[str] = ()) -> tuple[str, Item] | None:
        """The next client that is not blocked, and its item; None if there is none."""
        clients = [(client, own[0]) for client, own in self._clients.items() if client not in blocked]
        return max(clients, key=lambda one: self._priority(one[1]), default=None)  # of equals the first

    def pop(self, blocked: Container[str] = ()) -> tuple[str, Item] | None:
        """The same, taken out; its client goes behind the others."""
        found = self.first(blocked)
        if found is not None:
            client = found[0]
            own = self._clients.pop(client)
            own.popleft()
            if own:
                self._clients[client] = own
        return found

    def remove(self, gone: Callable[[Item], bool]) -> list[Item]:
        """Take out and return the items for which ``gone`` is true."""
        found: list[Item] = []
        for client, own in list(self._clients.items()):
            for item in [item for item in own if gone(item)]:
                own.remove(item)
                found.append(item)
            if not own:
                del self._clients[client]
        return found
