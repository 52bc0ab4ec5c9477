"""The card of a set of transcoders, as a table: variance, replacement loss and KL beside linear map and mean.

    cutaway activations TEXTS --names "blocks.3.mlp_norm" --names "blocks.3.mlp.down" ... --output acts
    cutaway sae acts --kind transcoder --skip --output transcoders
    cutaway sae check transcoders HELD_OUT_TEXTS --data acts
    python -m scripts.study.transcoders transcoders

Reads what the first three commands left, in a second; the training of six layers took an hour of one core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cutaway.inspect.sae_check import ALL, ERRORS
from cutaway.inspect.sae_folders import load_set
from cutaway.store.reading import parsed


def table(folder: Path) -> str:
    """Markdown: a line for each layer, and one for all at once."""
    made = load_set(folder)
    report: dict[str, Any] = parsed(folder / "replacement.json")
    found = {(row["what"], row["by"]): row for row in report["rows"]}
    lines = [
        "| layer | unexplained | linear map | L0 | dead | KL | linear map | mean | loss |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in made:
        card, what = one.card, one.writes[0]
        figures = f"{card.unexplained:.3f} | {card.linear:.3f} | {card.l0:.1f} | {card.dead}"
        lines.append(f"| {one.layer} | {figures} | {_replaced(found, what)} |")
    lines.append(f"| all at once | | | | | {_replaced(found, ALL)} |")
    kept = found[ERRORS, "features"]
    lines.append("")
    lines.append(
        f"The model's own loss is {report['loss']:.3f}, over {report['tokens']:,} predictions in "
        f"{report['texts']} texts; with errors added the KL is {kept['kl']:.1e}."
    )
    return "\n".join(lines)


def _replaced(found: dict[tuple[str, str], Any], what: str) -> str:
    own = found[what, "features"]
    others = [found.get((what, by)) for by in ("linear map", "mean")]
    kls = " | ".join("" if row is None else f"{row['kl']:.3f}" for row in others)
    error = "" if own["kl_error"] is None else f" ± {own['kl_error']:.3f}"  # one text has none
    return f"{own['kl']:.3f}{error} | {kls} | {own['loss']:.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    print(table(parser.parse_args().folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
