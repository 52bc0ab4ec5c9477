"""Paraphrase (2309.00614), by rule: the model reads the text in plainer words.

1 spaces and marks are evened out and case is folded; 2 and some words become their synonyms; 3 and words that
the service does not know are dropped. What depends on exact tokens is lost, and some right answers with it.
"""

from __future__ import annotations

import re
from collections.abc import Collection

STRENGTHS = (1, 2, 3)
SYNONYMS = {
    "begin": "start",
    "answer": "reply",
    "refuse": "decline",
    "write": "use",
    "complete": "finish",
    "translate": "render",
    "permission": "right",
    "story": "tale",
    "need": "require",
    "explain": "tell",
    "describe": "tell",
    "best": "good",
    "way": "manner",
}


def paraphrased(text: str, strength: int, known: Collection[str]) -> str:
    """The text again. ``known`` are words that strength 3 keeps, in lower case."""
    words = re.findall(r"[a-z0-9]+|[.,?!]", text.casefold())
    if strength >= 2:
        words = [SYNONYMS.get(word, word) for word in words]
    if strength >= 3:
        kept = {*known, *SYNONYMS.values()}
        words = [word for word in words if word in kept or not word.isalpha()]
    return re.sub(r" ([.,?!])", r"\1", " ".join(words))
