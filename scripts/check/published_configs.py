"""Every published config of tests/published beside transformers: which load as they are, and how near.

    python -m scripts.check.published_configs            # half a minute
    python -m scripts.check.published_configs qwen       # those whose name or model_type has this

Prints a line for each: its largest difference and what rounding allows, or why it is refused, and what was
warned of. Exit code 1 where one is otherwise than its entry says, or where fewer than 95% load.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path

from cutaway.weights import described
from tests.published import collection
from tests.published.collection import Entry, Verdict


def verdict(entry: Entry) -> Verdict:
    """What becomes of a config; a refusal where transformers has no such model."""
    config = collection.small(collection.text_of(entry.config))
    with tempfile.TemporaryDirectory() as folder:
        if entry.refused is not None:
            Path(folder, "config.json").write_text(json.dumps(config), "utf-8")
            return Verdict(refused=described.read_description(Path(folder)).refused)
        return collection.judged(config, Path(folder) / "model")


def expected(entry: Entry, found: Verdict) -> bool:
    if entry.refused is None:
        return found.agrees
    return re.search(entry.refused, found.refused) is not None


def main(arguments: list[str]) -> int:
    warnings.simplefilter("ignore")
    collection.transformers.logging.set_verbosity_error()
    begun, right, loaded, chosen = time.monotonic(), 0, 0, collection.entries()
    for word in arguments:
        chosen = [one for one in chosen if word in one.name or word == one.config.get("model_type")]
    for entry in chosen:
        found = verdict(entry)
        well = expected(entry, found)
        right, loaded = right + well, loaded + found.agrees
        what = found.refused or f"{found.distance:.1e} of {found.within:.1e}"
        note = f"; warned: {found.warned}" if found.warned else ""
        print(f"{'as expected' if well else 'WRONG':<12}{entry.name}: {what}{note}", flush=True)
    share = loaded / max(1, len(chosen))
    print(
        f"{len(chosen)} configs, {loaded} load as published ({share:.1%}), {right} are as their entries say"
    )
    print(f"{time.monotonic() - begun:.0f} s")
    return int(right < len(chosen) or (not arguments and share < 0.95))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
