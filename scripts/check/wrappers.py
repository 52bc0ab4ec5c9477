"""The text of every multimodal wrapper of tests/parity/wrappers.py beside the wrapper's own logits.

    python -m scripts.check.wrappers [CASE ...]

The tests take one case of each mechanism; this takes all. A wrapper that leaves out what scales or bounds the
logits differs, and must be named in a warning. Takes about two minutes of one core.
"""

import sys
import tempfile
import warnings

from cutaway.weights import load
from tests.parity import tiny, wrappers
from tests.parity.test_wrappers import EXACT, SCALED


def main(cases: list[str]) -> int:
    wrong = 0
    for case in cases or wrappers.CASES:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = wrappers.model(case)
            model.save_pretrained(folder)
            caught.clear()
            checkpoint = load.read_checkpoint(folder)
            far = float((tiny.ours(checkpoint) - wrappers.logits(model)).abs().max())
        warned = any("leaves out" in str(each.message) for each in caught)
        good = warned and far > EXACT if case in SCALED else not warned and far < EXACT
        wrong += not good
        verdict = ("warned" if warned else "") + ("" if good else " WRONG")
        print(f"{case:28} {checkpoint.family:18} {far:.1e} {verdict}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
