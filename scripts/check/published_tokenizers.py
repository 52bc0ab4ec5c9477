"""Published tokenizer folders and chat templates beside the libraries they were made for, in full.

    python -m scripts.check.published_tokenizers [NAME ...]

Each folder of tests/published/tokenizers gets 1,500 hostile texts, each chat template every conversation.
Prints what differs, and a line of counts. Takes about four minutes of one core.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

from cutaway.errors import UserError
from cutaway.tokenizer import Tokenizer
from tests import chat_cases, inputs
from tests.published import tokenizer_folders as published

TEXTS = 1500


def main(names: list[str]) -> int:
    outcomes: Counter[str] = Counter()
    for name in names or published.NAMES:
        with tempfile.TemporaryDirectory() as place:
            folder = published.written(name, Path(place))
            try:
                tok = Tokenizer.load(folder.path)
            except UserError as error:
                print(f"{name}: refused: {str(error).replace(place, '')}")
                outcomes["folders refused"] += 1
                continue
            outcomes["folders"] += 1
            for text in published.texts(folder.added, TEXTS):
                ids = tok.encode(text, special="allow", add_special=True)
                same = ids == folder.encode(text, True) and tok.decode(ids) == folder.decode(ids, False)
                outcomes["texts equal" if same else "texts differ"] += 1
                if not same:
                    print(f"{name}: {text!a}")
    for outcome, count in ({} if names else templates()).items():
        outcomes[f"conversations: {outcome}"] += count
    print(", ".join(f"{count:,} {what}" for what, count in outcomes.items()))
    bad = ("texts differ", "ids differ", "text differs", "only")
    return int(any(word in what for what in outcomes for word in bad))


def templates() -> Counter[str]:
    """How each template renders each conversation."""
    found = published.templates()
    with tempfile.TemporaryDirectory() as place:
        markers = chat_cases.markers(list(found.values()))
        tokenizer, peer = chat_cases.pair(inputs.path("smollm2"), Path(place), markers)
        outcomes: Counter[str] = Counter()
        for title, template in found.items():
            for case, shape in chat_cases.benign().items():
                outcome = chat_cases.compare_benign(tokenizer, peer, template, shape)
                outcomes[outcome] += 1
                if outcome not in ("same", "neither renders"):
                    print(f"{title}: {case}: {outcome}")
        return outcomes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
