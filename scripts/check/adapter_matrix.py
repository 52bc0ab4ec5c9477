"""Every kind of adapter on every family, in both directions, beside PEFT.

Reading: PEFT wraps transformers' tiny model, every number of the adapter is drawn, `save_pretrained` writes
it, and the logits of our base with that folder are held to those of `PeftModel.from_pretrained`. Writing:
random changes of our matrices are written as a folder, and what PEFT makes of it is held to our own model
with them; so are the runtime with the adapter beside packed weights, and llama.cpp with its GGUF file. What
is refused is listed with its reason. Exit code 1 if anything differs, or raises what is no UserError.

    python -m scripts.check.adapter_matrix --seed 1
    python -m scripts.check.adapter_matrix --published
"""

import argparse
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if str(Path(__file__).parents[2]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parents[2]))

from cutaway.errors import UserError
from cutaway.weights import load
from tests.parity import peft_kinds
from tests.published import adapter_configs


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", help="of reading, separated by commas; none for all")
    parser.add_argument("--ours", help="kinds of writing, separated by commas; none for all")
    parser.add_argument("--cases", help="of tests/parity/tiny.py, separated by commas; none for all")
    parser.add_argument("--one", action="store_true", help="one case of each family, which the seed chooses")
    parser.add_argument("--published", action="store_true", help="the published configs instead")
    args = parser.parse_args()
    if args.published:
        return published()
    kinds = list(peft_kinds.KINDS) if args.kinds is None else list(filter(None, args.kinds.split(",")))
    ours = list(peft_kinds.OURS) if args.ours is None else list(filter(None, args.ours.split(",")))
    cases = args.cases.split(",") if args.cases else peft_kinds.cases(args.seed if args.one else None)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for case in cases:
        model = peft_kinds.model(case)
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            model.save_pretrained(root / "base")
            try:
                base = load.read_checkpoint(root / "base")
            except UserError as problem:
                print(f"{case}: the base is refused: {problem}", flush=True)
                continue
            asked = [(kind, peft_kinds.reading) for kind in kinds]
            for kind, judge in [*asked, *((kind, peft_kinds.writing) for kind in ours)]:
                found = judge(case, base, kind, args.seed, root)
                direction = judge.__name__
                counts[f"{direction}: {found.word}"] += 1
                if found.word in ("wrong", "raised"):
                    print(f"{case} {direction} {kind}: {found.word}: {found.why}", flush=True)
                elif found.why:
                    reasons[f"{direction} {kind}: {found.word}: {peft_kinds.shortened(found.why, root)}"] += 1
    for reason, count in sorted(reasons.items()):
        print(f"{count:5d}  {reason}")
    print(", ".join(f"{word} {count}" for word, count in sorted(counts.items())))
    return any(word.endswith(("wrong", "raised")) for word in counts)


def published() -> int:
    """Hold every published config of tests/published/adapters to PEFT."""
    counts: Counter[str] = Counter()
    for entry in adapter_configs.entries():
        with tempfile.TemporaryDirectory() as folder:
            found = adapter_configs.judged(entry, Path(folder))
        as_listed = found.word == "equal" or (entry.refused and re.search(entry.refused, found.why))
        counts[found.word] += 1
        counts["not as listed"] += not as_listed
        if found.word != "equal":
            print(f"{entry.name}: {found.word}: {found.why}", flush=True)
    print(", ".join(f"{word} {count}" for word, count in sorted(counts.items())))
    return counts["not as listed"] > 0


if __name__ == "__main__":
    sys.exit(main())
