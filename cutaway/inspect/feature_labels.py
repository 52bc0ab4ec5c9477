"""Labels by the model itself, and labels judged by detection on held-out texts.

Detection: of two texts, one in which the feature fires and one in which it does not, the model is asked of
each whether it has to do with the label. The label is right where the first gets the higher log-odds of yes:
chance is 1/2. A label that is right in one pair in two says nothing of the feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect.features import AFTER, BEFORE, Scan
from cutaway.store import files

PAIRS = 20
WORDS = 8  # texts from which a label is made
QUESTION = 'Text: "{text}"\nDoes this text contain {label}? Answer yes or no.'
ASK = "These words are from different texts: {words}.\nWhat do they have in common? Answer in a few words."


def suggested(lm: Any, scan: Scan, feature: int) -> str:
    """A label by the model: what the tokens at which a feature is strongest have in common."""
    rows = [row for row in scan.best[feature].tolist() if row >= 0][:WORDS]
    if not rows:
        raise UserError(f"feature {feature} fires at no token that was read: there is nothing to name")
    words = ", ".join(repr(word_at(lm, scan, row)) for row in rows)
    asked = [{"role": "user", "content": ASK.format(words=words)}]
    answer = lm.chat(asked, max_tokens=12, temperature=0.0).text
    return " ".join(answer.split()).strip(" .\"'")


def word_at(lm: Any, scan: Scan, row: int) -> str:
    """The token of a row with the tokens of its word before it."""
    first = row
    while first > 0 and scan.positions[first] > 0 and row - first < 4:
        if lm.tokenizer.decode([int(scan.ids[first])])[:1].isspace():
            break
        first -= 1
    return lm.tokenizer.decode(scan.ids[first : row + 1].tolist()).strip()


def judged(
    lm: Any,
    held: Scan,
    feature: int,
    label: str,
    pairs: int = PAIRS,
    seed: int = 0,
    score: Callable[[str], float] | None = None,
    progress: files.Progress = files.silent,
) -> tuple[int, int]:
    """How many pairs of held-out texts a label tells apart, and of how many.

    ``held`` is a scan of held-out texts; ``score`` stands for the model in tests. UserError where the feature
    fires in none of them, or in all.
    """
    firing, silent = _texts(held, feature)
    count = min(pairs, len(firing), len(silent))
    if not count:
        why = "fires in no held-out text of the dataset: there is nothing to judge on"
        if len(firing):
            why = (
                f"fires in every held-out text of the dataset ({len(firing)}), and a label is judged beside "
                "a text in which it does not fire: give a dataset of more texts, or shorter ones"
            )
        raise UserError(f"feature {feature} {why}")
    drawn = np.random.default_rng(seed)
    chosen = [drawn.choice(rows, count, replace=False) for rows in (firing, silent)]
    score = _asking(lm, label) if score is None else score
    right = 0
    for n, (with_it, without) in enumerate(zip(*chosen, strict=True)):
        of_both = [score(_shown(lm, held, int(row))) for row in (with_it, without)]
        right += of_both[0] > of_both[1]
        progress("pairs", n + 1, count)
    return right, count


def _texts(held: Scan, feature: int) -> tuple[np.ndarray, np.ndarray]:
    """A row of each text at which the feature is strongest, and rows of texts in which it never fires."""
    values = held.values[:, held.features.index(feature)]
    documents = held.documents[held.rows]
    firing = []
    for document in np.unique(documents[values > 0]).tolist():
        inside = np.flatnonzero(documents == document)
        firing.append(held.rows[inside[values[inside].argmax()]])
    without = np.setdiff1d(documents, documents[values > 0])
    silent = [held.rows[np.flatnonzero(documents == one)[-1]] for one in without.tolist()]
    return np.array(firing, int), np.array(silent, int)


def _shown(lm: Any, held: Scan, row: int) -> str:
    first = row - min(BEFORE, int(held.positions[row]))
    last = row + 1
    while last < len(held.ids) and last <= row + AFTER and held.positions[last] > held.positions[last - 1]:
        last += 1
    return lm.tokenizer.decode(held.ids[first:last].tolist())


def _asking(lm: Any, label: str) -> Callable[[str], float]:
    """The model's log-odds of yes: of the first token of its answer."""
    yes, no = (_first(lm, words) for words in (("Yes", "yes"), ("No", "no")))

    def score(text: str) -> float:
        content = QUESTION.format(text=" ".join(text.split()), label=label)
        logits = lm.logits(lm.chat_ids([{"role": "user", "content": content}]))[-1]
        return float(np.logaddexp.reduce(logits[yes]) - np.logaddexp.reduce(logits[no]))

    return score


def _first(lm: Any, words: Sequence[str]) -> list[int]:
    """The first tokens of words."""
    return sorted({lm.tokenizer.encode(word)[0] for word in words})
