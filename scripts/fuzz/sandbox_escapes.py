"""Try every listed escape from the Python sandbox, with all its layers and with each missing in turn.

    python -m scripts.fuzz.sandbox_escapes --output runs/escapes.json

Attacks are those of tests/escapes: harmless, against canaries of its own. A normal run refuses to start where
a layer is missing, which is checked first; then it is made to run all the same, to see what the other layers
hold. Prints a table, and writes what each attack said and what was seen outside. Takes ten minutes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from cutaway import sandbox
from cutaway.errors import UserError
from cutaway.sandbox import launcher, starters
from tests.escapes import ESCAPES, Escape
from tests.escapes.grounds import Grounds, Seen
from tests.escapes.resources import ESCAPES as HEAVY


def main() -> None:
    """Run all, print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--output", type=Path, default=Path("runs/escapes.json"))
    given = options.parse_args()
    given.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        grounds = Grounds(Path(folder))
        try:
            results = {name: matrix(grounds, name) for name in settings()}
        finally:
            grounds.close()
    given.output.write_text(json.dumps(results, indent=1))
    print(f"{len(ESCAPES)} escapes, namespaces by {starters.starter()[0]}\n")
    print("| layers | starts | succeed | reach the kernel | which succeed |\n|---|---|---|---|---|")
    for name, result in results.items():
        by = {
            kind: [k for k, v in result["found"].items() if v[0] == kind] for kind in ("escapes", "reaches")
        }
        starts, escapes = "yes" if result["starts"] else "refused", by["escapes"]
        counts = f"{len(escapes)} of {result['tried']} | {len(by['reaches'])}"
        print(f"| {name} | {starts} | {counts} | {', '.join(escapes)} |")


def settings() -> list[str]:
    """Names of what is tried: all layers, Landlock's older versions, each layer missing, none."""
    older = [f"landlock {version}" for version in (1, 5)]  # before it had truncation, and signals
    return ["all", *older, *(f"without {layer}" for layer in launcher.LAYERS), "none"]


def matrix(grounds: Grounds, setting: str) -> dict:
    """Whether the sandbox starts, and the escapes that succeed in it made to start."""
    word, _, rest = setting.partition(" ")
    newest, launcher.LANDLOCK = launcher.LANDLOCK, int(rest) if word == "landlock" else launcher.LANDLOCK
    left_out = {"without": {rest}, "none": set(launcher.LAYERS)}.get(word, set())
    tried = [e for e in ESCAPES.values() if word != "none" or e not in HEAVY]
    try:
        starts = not refused(left_out)
        together = [e for e in tried if not e.alone]
        found: dict[str, tuple[str, list[str]]] = {}
        said, seen = grounds.run(together, left_out)
        single = [e for e in tried if e.alone]
        if said or seen.changes or seen.ended != "finished":
            single = tried
        for n, escape in enumerate(single, 1):
            print(f"\r{setting}: {n} of {len(single)}   ", end="", flush=True)
            found |= judged(escape, *grounds.run([escape], left_out))
        print()
    finally:
        launcher.LANDLOCK = newest
    return {"starts": starts, "tried": len(tried), "found": found}


def refused(left_out: set[str]) -> bool:
    """Whether a run without these layers is refused."""
    launcher.LEFT_OUT = frozenset(left_out)
    try:
        return sandbox.run("print(1)").output != "1\n"
    except UserError:
        return True
    finally:
        launcher.LEFT_OUT = frozenset()


def judged(escape: Escape, said: dict[str, str], seen: Seen) -> dict[str, tuple[str, list[str]]]:
    """The verdict of one escape, if it got anywhere."""
    evidence = [*said.values(), *seen.changes]
    if not evidence:
        return {}
    reaches = all(text.startswith("reached") for text in evidence)
    return {escape.name: ("reaches" if reaches else "escapes", evidence)}


if __name__ == "__main__":
    main()
