"""A queue in which clients take turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Container
from operator import itemgetter
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Clients take turns, and the items of one come in their order: many of one delay another by one turn.

    Clients whose first item has a higher ``priority`` come before others.
    """

    def __init__(self) -> None:
        self.clients: OrderedDict[str, deque[tuple[int, Item]]] = OrderedDict()  # clients with items here

    def __len__(self) -> int:
        return sum(map(len, self.clients.values()))

    def count(self, client: str) -> int:
        """How many items of a client wait."""
        return len(self.clients.get(client, ()))

    def add(self, client: str, item: Item, priority: int = 0) -> None:
        """Append a client's item."""
        self.clients.setdefault(client, deque()).append((priority, item))

    def has_room(self, client: str, most: int, leaving: int = 0) -> bool:
        """Whether one more item of a client may wait, where ``most`` may and ``leaving`` leave at once.

        A named client may have as many as places are free, so that one fills half of them and another always
        finds some (Choudhury and Hahne's dynamic thresholds, 1998).
        """
        free = most - max(0, len(self) - leaving)
        return max(0, self.count(client) - leaving) < free if client else free > 0

    def first(self, blocked: Container[str] = ()) -> tuple[str, Item] | None:
        """The next client that is not blocked, and its item; None if there is none."""
        waiting = [(client, *own[0]) for client, own in self.clients.items() if client not in blocked]
        client, _, item = max(waiting, key=itemgetter(1), default=(None, 0, None))  # of equals the first
        return None if client is None or item is None else (client, item)

    def pop(self, blocked: Container[str] = ()) -> tuple[str, Item] | None:
        """The same, taken out; its client goes behind the others."""
        found = self.first(blocked)
        if found is not None:
            client = found[0]
            own = self.clients.pop(client)
            own.popleft()
            if own:
                self.clients[client] = own
        return found

    def remove(self, gone: Callable[[Item], bool]) -> list[Item]:
        """Take out and return the items for which ``gone`` is true."""
        found: list[Item] = []
        for client, own in list(self.clients.items()):
            for one in [one for one in own if gone(one[1])]:
                own.remove(one)
                found.append(one[1])
            if not own:
                del self.clients[client]
        return found
