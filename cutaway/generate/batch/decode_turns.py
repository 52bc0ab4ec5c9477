"""Which sequences a step decodes, so that one client's long texts do not slow down another's answers.

A step reads the weights once for all sequences, and the keys and values of each besides: beside four texts of
six thousand ids a step of a small model takes seven times as long. Where several clients decode, the
sequences of one therefore read keys and values of as many positions a step, on average, as have the bytes of
the weights. Those that do not fit have their turn in the next steps. A client that is alone decodes all, and
so does one that goes before all others by its priority.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable


@runtime_checkable
class Decodes(Protocol):
    """A sequence that decodes: who asked for it, how long it is, and when it decoded last."""

    request: Any
    state: Any
    last_decode_step: int


Sequenced = TypeVar("Sequenced", bound=Decodes)


class DecodeTurns:
    """The turns of sequences that decode. ``positions``: how many have the bytes of the weights."""

    def __init__(self, positions: int) -> None:
        self.positions = positions
        self._credit: dict[str, int] = {}  # positions of which a client may still read keys and values
        self._step = 0

    def choose(self, decoding: Sequence[Sequenced]) -> list[Sequenced]:
        """Those that decode in this step; one at least, if there are any."""
        self._step += 1
        clients: dict[str, list[Sequenced]] = defaultdict(list)
        for sequence in decoding:
            clients[sequence.request.client].append(sequence)
        priorities = {client: max(one.request.priority for one in own) for client, own in clients.items()}
        chosen: list[Sequenced] = []
        for client, own in clients.items():
            others = [priority for one, priority in priorities.items() if one != client]
            is_first = all(priority < priorities[client] for priority in others)
            chosen += own if is_first else self._within_credit(client, own)
        self._credit = {client: credit for client, credit in self._credit.items() if client in clients}
        if not chosen:  # each client saves for a long text
            chosen = [min(own, key=_last_step) for own in clients.values()]
        for sequence in chosen:
            sequence.last_decode_step = self._step
        return [sequence for sequence in decoding if sequence.last_decode_step == self._step]

    def _within_credit(self, client: str, own: list[Sequenced]) -> list[Sequenced]:
        """Those of a client's sequences that its credit suffices for, which grows with each step."""
        longest = max(one.state.length for one in own)
        credit = min(self._credit.get(client, 0), longest) + self.positions
        chosen: list[Sequenced] = []
        for sequence in sorted(own, key=_last_step):
            if sequence.state.length > credit:
                break  # what is left is saved for it
            credit -= sequence.state.length
            chosen.append(sequence)
        self._credit[client] = credit
        return chosen


def _last_step(sequence: Decodes) -> int:
    return sequence.last_decode_step
