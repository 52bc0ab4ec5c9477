"""Lists of words: sorted, reversed, the longest word, the first, the last."""

from __future__ import annotations

from random import Random

from cutaway.data.programs import words
from cutaway.data.programs.item import Item

PHRASES = {
    "sort": "Sort these words: {}.",
    "reverse": "Write this list from the end to the start: {}.",
    "longest": "Which word is the longest: {}?",
    "first": "Which word comes first in this list: {}?",
    "last": "Which word comes last in this list: {}?",
    "count": "How many words are in this list: {}?",
}


def draw(random: Random) -> Item:
    """A question of three to five words."""
    kind = random.choice(list(PHRASES))
    found = words.several(random, random.randint(3, 5))
    while kind == "longest" and sorted(map(len, found))[-1] == sorted(map(len, found))[-2]:
        found = words.several(random, len(found))
    answers = {
        "sort": ", ".join(sorted(found)),
        "reverse": ", ".join(reversed(found)),
        "longest": max(found, key=len),
        "first": found[0],
        "last": found[-1],
        "count": str(len(found)),
    }
    moved = ", ".join([*found[1:], found[0]])
    wrongs = {
        "sort": moved if moved != answers["sort"] else ", ".join(found[::-1]),
        "reverse": moved,
        "longest": min(found, key=len),
        "first": found[1],
        "last": found[-2],
        "count": str(len(found) + 1),
    }
    given = ", ".join(found)
    return Item(PHRASES[kind].format(given), answers[kind], f"lists {kind} {given}", wrongs[kind])


def solve(question: str) -> str:
    """The answer, from the question's own text."""
    asked, _, given = question[:-1].partition(": ")
    kind = next(kind for kind, phrase in PHRASES.items() if phrase.startswith(f"{asked}:"))
    found = given.split(", ")
    if kind == "sort":
        placed: list[str] = []
        for word in found:  # by inserting each one
            at = sum(other < word for other in placed)
            placed.insert(at, word)
        return ", ".join(placed)
    if kind == "reverse":
        return ", ".join(found[n] for n in range(len(found) - 1, -1, -1))
    if kind == "count":
        return str(given.count(",") + 1)
    if kind == "longest":
        lengths = [len(word) for word in found]
        return found[lengths.index(max(lengths))]
    return found[0] if kind == "first" else found[-1]
