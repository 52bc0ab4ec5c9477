"""A deterministic check of the answer, which no text can talk to: three rules, each stricter than the last.

1 the value is one of the field's; 2 and the text has it; 3 and the text has no other of them.
"""

from __future__ import annotations

from collections.abc import Collection

RULES = (1, 2, 3)


def refused(value: str, text: str, allowed: Collection[str], rule: int) -> bool:
    """Whether the answer is refused under a rule."""
    named = {one for one in allowed if one in text}
    return not (value in allowed and (rule < 2 or value in named) and (rule < 3 or named == {value}))
