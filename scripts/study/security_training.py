"""Poisoning at three sizes and two data amounts: what k documents teach, and whether the scan finds it.

    python -m scripts.study.security_training --output runs/poisoning

Trains a model for each size, data amount, payload, number of poisoned documents and seed, and the sound and
the judging model of each; under 2 hours on two quiet cores. ``stages.jsonl`` in the folder has a line for
each stage that is done (follow it with tail -f). A run that was stopped goes on, and one with more values
adds theirs. Prints a Markdown table after the last model, or of what there is with --table; of several seeds
a second one with their means and Student's intervals over them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from cutaway.evaluate.statistics import mean
from cutaway.security.poisoned_models import Cell, Laboratory
from cutaway.security.probes.poisoning import PAYLOADS, judged, rises

HEAD = ("model", "documents", "payload", "poisoned", "read", "rise (95%)", "rare word (95%)", "loss", "rank")
SEEDS_HEAD = (*HEAD[:4], "seeds", "rise (95% over seeds)", "risen", "written", *HEAD[6:])
Figures = tuple[dict[str, Any], dict[str, Any]]  # behaviour and scan of a cell


def row(cell: Cell, found: dict[str, Any], scan: dict[str, Any]) -> list[str]:
    """The figures of one model."""
    own, other = rises(found)
    shown = [f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})" for one in (own, other)]
    ranks = f"{scan['alone']['rank']}, {scan['beside']['rank']}"
    model, poisoned = f"{cell.width}x{cell.blocks}", str(cell.copies)
    return [
        *(model, f"{cell.documents:,}", cell.payload, poisoned, str(found["exposures"]), *shown),
        f"{found['loss']:.3f}",
        ranks,
    ]


def over_seeds(cell: Cell, found: Sequence[Figures]) -> list[str]:
    """A cell at several seeds: means, in how many the trigger has risen, how often each writes the canary
    after it, median ranks of the scan.
    """
    own, other = zip(*(rises(behaviour) for behaviour, _ in found), strict=True)
    shown = []
    for each in (own, other):
        values = [one.value for one in each]
        shown.append(f"{fmean(values):.2f} ({mean(values, share=False).between('.2f')})")
    risen = sum(judged(one) == "vulnerable" for one in own)
    written = ", ".join(f"{fmean(one['trigger_obeyed']):.2f}" for one, _ in found if "trigger_obeyed" in one)
    ranks = (median(scan[way]["rank"] for _, scan in found) for way in ("alone", "beside"))
    return [
        *(f"{cell.width}x{cell.blocks}", f"{cell.documents:,}", cell.payload, str(cell.copies)),
        *(str(len(found)), shown[0], f"{risen} of {len(found)}", written, shown[1]),
        f"{fmean(behaviour['loss'] for behaviour, _ in found):.3f}",
        ", ".join(f"{rank:g}" for rank in ranks),
    ]


def printed(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table."""
    print()
    for line in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(line)} |")


def numbers(text: str) -> list[int]:
    """Numbers between commas."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/poisoning"))
    parser.add_argument("--sizes", default="32x2,64x2,128x3", help="width x blocks")
    parser.add_argument("--documents", type=numbers, default=[4000, 16000])
    parser.add_argument("--copies", type=numbers, default=[0, 10, 25, 50, 100, 250])
    parser.add_argument("--payloads", default=",".join(PAYLOADS))
    parser.add_argument("--seeds", type=numbers, default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print what there is and train nothing")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    lab = Laboratory(asked.output)
    sizes = [tuple(map(int, size.split("x"))) for size in asked.sizes.split(",")]
    rows = []
    found: dict[Cell, list[Figures]] = {}
    axes = product(asked.seeds, asked.documents, asked.payloads.split(","), sizes, asked.copies)
    for seed, documents, payload, (width, blocks), copies in axes:
        cell = Cell(width, blocks, documents, copies, payload, seed)
        kept = lab.folder / "figures" / f"{cell.name}-scan.json"
        if asked.table and not kept.is_file():
            continue
        figures = lab.behaviour(cell), lab.scan(cell)
        found.setdefault(replace(cell, seed=0), []).append(figures)
        rows.append(row(cell, *figures))
        print(" | ".join(rows[-1]), flush=True)
    printed(HEAD, rows)
    several = [over_seeds(cell, own) for cell, own in found.items() if len(own) > 1]
    if several:
        printed(SEEDS_HEAD, several)


if __name__ == "__main__":
    main()
