"""Letters of words: spelled out, counted, reversed, the first and the last."""

from __future__ import annotations

from random import Random

from cutaway.data.programs import words
from cutaway.data.programs.item import Item

PHRASES = {
    "spell": ("Spell the word {}.", "How is {} spelled?", "Write the letters of {} one by one."),
    "count": ("How many letters has the word {}?", "Count the letters of {}."),
    "last": ("What is the last letter of {}?", "Which letter does {} end with?"),
    "first": ("What is the first letter of {}?", "Which letter does {} begin with?"),
}
KINDS = ("spell", "spell", "spell", "count", "last", "first")


def draw(random: Random) -> Item:
    """A question of one word."""
    word, kind = words.word(random), random.choice(KINDS)
    answers = {
        "spell": "-".join(word),
        "count": str(len(word)),
        "last": word[-1],
        "first": word[0],
    }
    wrongs = {
        "spell": "-".join(word[:-1] if len(word) > 2 else word + "e"),
        "count": str(len(word) + random.choice((-1, 1))),
        "last": word[-2] if word[-2] != word[-1] else "q",
        "first": word[1] if word[1] != word[0] else "q",
    }
    question = random.choice(PHRASES[kind]).format(word)
    return Item(question, answers[kind], f"spelling {word}", wrongs[kind])


def solve(question: str) -> str:
    """The answer, from the question's own text."""
    text = question.rstrip(".?")
    for kind, phrases in PHRASES.items():
        for phrase in phrases:
            before, after = phrase.rstrip(".?").split("{}")
            if text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after):
                return _answer(kind, text[len(before) : len(text) - len(after)])
    raise ValueError(question)


def _answer(kind: str, word: str) -> str:
    letters = list(word)
    if kind == "count":
        return str(len(letters))
    return "-".join(letters) if kind == "spell" else letters[0 if kind == "first" else -1]
