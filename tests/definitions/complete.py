"""Which mechanisms the tests of this folder hold to their equations."""

from collections.abc import Iterable
from pathlib import Path

import cutaway.attention
from tests import recipes


def without(kinds: Iterable[str]) -> list[str]:
    """A sentence for each mechanism that has no definition."""
    tests = [path for path in Path(__file__).parent.glob("test_*.py") if path.stem != "test_usual_sizes"]
    return [
        f"cutaway/attention/{kind}.py: no loops in tests/definitions are its equation; "
        "docs/adding-a-mechanism.md shows how to write them"
        for kind in recipes.unnamed(kinds, cutaway.attention, tests)
    ]
